//! Labels and label selectors (Kubernetes apimachinery `LabelSelector` semantics).

use std::sync::Arc;

use smol_str::SmolStr;

/// The labels of an object: sorted by key, each key once. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(from = "Vec<(SmolStr, SmolStr)>"))]
pub struct Labels(Arc<[(SmolStr, SmolStr)]>);

impl Labels {
    /// The value of `key`, if the object has it.
    pub fn get(&self, key: &str) -> Option<&SmolStr> {
        let index = self.0.binary_search_by(|(k, _)| k.as_str().cmp(key)).ok()?;
        Some(&self.0[index].1)
    }

    /// Whether somebody else holds the same memory.
    pub(crate) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    /// Where they stand in memory: labels of one place are equal.
    pub(crate) fn place(&self) -> *const (SmolStr, SmolStr) {
        self.0.as_ptr()
    }

    /// All pairs, sorted by key.
    pub fn iter(&self) -> impl Iterator<Item = &(SmolStr, SmolStr)> {
        self.0.iter()
    }
}

impl<K: Into<SmolStr>, V: Into<SmolStr>> FromIterator<(K, V)> for Labels {
    /// Sorts; of two pairs with one key the later wins.
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        let sorted: std::collections::BTreeMap<SmolStr, SmolStr> = pairs
            .into_iter()
            .map(|(k, v)| (k.into(), v.into()))
            .collect();
        Self(sorted.into_iter().collect())
    }
}

impl From<Vec<(SmolStr, SmolStr)>> for Labels {
    fn from(pairs: Vec<(SmolStr, SmolStr)>) -> Self {
        pairs.into_iter().collect()
    }
}

/// One condition on the labels of an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Requirement {
    /// The key is there with one of these values (sorted). `matchLabels` is the one-value case.
    In(SmolStr, Vec<SmolStr>),
    /// The key is missing, or has none of these values (sorted).
    NotIn(SmolStr, Vec<SmolStr>),
    /// The key is there.
    Exists(SmolStr),
    /// The key is missing.
    DoesNotExist(SmolStr),
}

impl Requirement {
    /// Whether labels meet this condition.
    pub fn matches(&self, labels: &Labels) -> bool {
        match self {
            Self::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
            Self::NotIn(key, values) => {
                !labels.get(key).is_some_and(|value| values.contains(value))
            }
            Self::Exists(key) => labels.get(key).is_some(),
            Self::DoesNotExist(key) => labels.get(key).is_none(),
        }
    }
}

/// All of its requirements must hold; without any it matches everything. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(
    feature = "serde",
    serde(from = "Vec<Requirement>", into = "Vec<Requirement>")
)]
pub struct Selector {
    /// Sorted, so that equal selectors compare equal.
    requirements: Arc<[Requirement]>,
}

impl Selector {
    /// A selector of these requirements, in any order.
    pub fn new(mut requirements: Vec<Requirement>) -> Self {
        requirements.sort();
        requirements.dedup();
        Self {
            requirements: requirements.into(),
        }
    }

    /// The selector that matches every object.
    pub fn everything() -> Self {
        Self::default()
    }

    /// Whether somebody else holds the same memory.
    pub(crate) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.requirements) > 1
    }

    /// Whether `labels` meet all requirements.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements
            .iter()
            .all(|requirement| requirement.matches(labels))
    }

    /// The requirements, sorted.
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }
}

impl From<Vec<Requirement>> for Selector {
    fn from(requirements: Vec<Requirement>) -> Self {
        Self::new(requirements)
    }
}

impl From<Selector> for Vec<Requirement> {
    fn from(selector: Selector) -> Self {
        selector.requirements.to_vec()
    }
}
