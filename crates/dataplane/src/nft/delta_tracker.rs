//! Desired against actual, in one map.
//!
//! The owner says what it wants ([`DeltaTracker::set_desired`]) and what the kernel holds
//! ([`DeltaTracker::set_actual`]); the tracker knows the difference. It does no I/O: whoever commits the pending
//! changes says so with [`DeltaTracker::mark_applied`].
//!
//! Memory: a key is stored once, and so is its value while both sides agree. Only keys that differ are stored a
//! second time, in the set of pending ones.

use std::collections::hash_map::Entry as Slot;
use std::hash::Hash;

use rustc_hash::{FxHashMap, FxHashSet};

/// Where one key stands.
#[derive(Clone, Debug)]
enum Entry<V> {
    /// Wanted and there.
    Equal(V),
    /// Wanted, not there.
    Missing(V),
    /// There, not wanted.
    Surplus(V),
    /// There with another value. Boxed: it is rare, and the entry stays as small as its value.
    Different(Box<Pair<V>>),
}

#[derive(Clone, Debug)]
struct Pair<V> {
    desired: V,
    actual: V,
}

impl<V: PartialEq> Entry<V> {
    fn new(desired: Option<V>, actual: Option<V>) -> Option<Self> {
        match (desired, actual) {
            (None, None) => None,
            (Some(desired), None) => Some(Self::Missing(desired)),
            (None, Some(actual)) => Some(Self::Surplus(actual)),
            (Some(desired), Some(actual)) if desired == actual => Some(Self::Equal(desired)),
            (Some(desired), Some(actual)) => {
                Some(Self::Different(Box::new(Pair { desired, actual })))
            }
        }
    }

    fn is_pending(&self) -> bool {
        !matches!(self, Self::Equal(_))
    }

    fn desired(&self) -> Option<&V> {
        match self {
            Self::Equal(value) | Self::Missing(value) => Some(value),
            Self::Surplus(_) => None,
            Self::Different(pair) => Some(&pair.desired),
        }
    }

    fn actual(&self) -> Option<&V> {
        match self {
            Self::Equal(value) | Self::Surplus(value) => Some(value),
            Self::Missing(_) => None,
            Self::Different(pair) => Some(&pair.actual),
        }
    }

    fn into_desired(self) -> Option<V> {
        match self {
            Self::Equal(value) | Self::Missing(value) => Some(value),
            Self::Surplus(_) => None,
            Self::Different(pair) => Some(pair.desired),
        }
    }

    fn into_actual(self) -> Option<V> {
        match self {
            Self::Equal(value) | Self::Surplus(value) => Some(value),
            Self::Missing(_) => None,
            Self::Different(pair) => Some(pair.actual),
        }
    }
}

/// Tracks the difference between what is wanted and what is there.
#[derive(Clone, Debug)]
pub struct DeltaTracker<K, V> {
    entries: FxHashMap<K, Entry<V>>,
    pending: FxHashSet<K>,
}

/// One entry that must be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Update<'a, K, V> {
    /// Key.
    pub key: &'a K,
    /// The value to write.
    pub desired: &'a V,
    /// The value that must go first, if there is one.
    pub actual: Option<&'a V>,
}

/// What separates actual from desired, sorted by key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending<'a, K, V> {
    /// Entries to write.
    pub updates: Vec<Update<'a, K, V>>,
    /// Entries to remove, with the value they have.
    pub deletions: Vec<(&'a K, &'a V)>,
}

impl<K, V> Default for DeltaTracker<K, V> {
    fn default() -> Self {
        Self {
            entries: FxHashMap::default(),
            pending: FxHashSet::default(),
        }
    }
}

impl<K: Clone + Eq + Hash + Ord, V: Clone + PartialEq> DeltaTracker<K, V> {
    /// An empty tracker.
    pub fn new() -> Self {
        Self::default()
    }

    /// Wants `key` to have `value`.
    pub fn set_desired(&mut self, key: K, value: V) {
        self.change(key, |_, actual| (Some(value), actual));
    }

    /// Wants `key` gone.
    pub fn delete_desired(&mut self, key: &K) {
        self.change_known(key, |_, actual| (None, actual));
    }

    /// Wants everything gone.
    pub fn delete_all_desired(&mut self) {
        self.change_all(|_, actual| (None, actual));
    }

    /// Says that the kernel holds `value` under `key`.
    pub fn set_actual(&mut self, key: K, value: V) {
        self.change(key, |desired, _| (desired, Some(value)));
    }

    /// Says that the kernel does not hold `key`.
    pub fn delete_actual(&mut self, key: &K) {
        self.change_known(key, |desired, _| (desired, None));
    }

    /// Says that the kernel holds exactly these: what a read-back gives.
    pub fn replace_actual(&mut self, actual: impl IntoIterator<Item = (K, V)>) {
        self.change_all(|desired, _| (desired, None));
        for (key, value) in actual {
            self.set_actual(key, value);
        }
    }

    /// The wanted value of a key.
    pub fn desired(&self, key: &K) -> Option<&V> {
        self.entries.get(key)?.desired()
    }

    /// The value of a key that the kernel holds.
    pub fn actual(&self, key: &K) -> Option<&V> {
        self.entries.get(key)?.actual()
    }

    /// All wanted entries, in no order.
    pub fn iter_desired(&self) -> impl Iterator<Item = (&K, &V)> {
        self.entries
            .iter()
            .filter_map(|(key, entry)| Some((key, entry.desired()?)))
    }

    /// How many keys are known, wanted or there.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no key is known.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether desired and actual differ.
    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// The difference, sorted by key. Costs as much as the difference is long.
    pub fn pending(&self) -> Pending<'_, K, V> {
        let mut pending = Pending {
            updates: Vec::new(),
            deletions: Vec::new(),
        };
        for key in &self.pending {
            match self.entries.get(key) {
                Some(Entry::Missing(desired)) => {
                    pending.updates.push(Update {
                        key,
                        desired,
                        actual: None,
                    });
                }
                Some(Entry::Different(pair)) => {
                    let Pair { desired, actual } = pair.as_ref();
                    pending.updates.push(Update {
                        key,
                        desired,
                        actual: Some(actual),
                    });
                }
                Some(Entry::Surplus(actual)) => pending.deletions.push((key, actual)),
                Some(Entry::Equal(_)) | None => {}
            }
        }
        pending.updates.sort_unstable_by_key(|update| update.key);
        pending.deletions.sort_unstable_by_key(|(key, _)| *key);
        pending
    }

    /// Says that everything pending has been committed: actual is now desired.
    pub fn mark_applied(&mut self) {
        for key in std::mem::take(&mut self.pending) {
            self.change_known(&key, |desired, _| (desired.clone(), desired));
        }
    }

    /// Says that one pending key has been committed.
    pub fn mark_key_applied(&mut self, key: &K) {
        self.change_known(key, |desired, _| (desired.clone(), desired));
    }

    /// Changes one entry that may not be known yet.
    fn change(
        &mut self,
        key: K,
        edit: impl FnOnce(Option<V>, Option<V>) -> (Option<V>, Option<V>),
    ) {
        if self.entries.contains_key(&key) {
            self.change_known(&key, edit);
            return;
        }
        let (desired, actual) = edit(None, None);
        if let Some(entry) = Entry::new(desired, actual) {
            if entry.is_pending() {
                self.pending.insert(key.clone());
            }
            self.entries.insert(key, entry);
        }
    }

    /// Changes one known entry; does nothing for an unknown one.
    fn change_known(
        &mut self,
        key: &K,
        edit: impl FnOnce(Option<V>, Option<V>) -> (Option<V>, Option<V>),
    ) {
        let Slot::Occupied(mut slot) = self.entries.entry(key.clone()) else {
            return;
        };
        let (desired, actual) = match slot.get().clone() {
            Entry::Equal(value) => edit(Some(value.clone()), Some(value)),
            Entry::Different(pair) => edit(Some(pair.desired), Some(pair.actual)),
            entry @ Entry::Missing(_) => edit(entry.into_desired(), None),
            entry @ Entry::Surplus(_) => edit(None, entry.into_actual()),
        };
        match Entry::new(desired, actual) {
            None => {
                slot.remove();
                self.pending.remove(key);
            }
            Some(entry) => {
                if entry.is_pending() {
                    self.pending.insert(key.clone());
                } else {
                    self.pending.remove(key);
                }
                slot.insert(entry);
            }
        }
    }

    fn change_all(&mut self, edit: impl Fn(Option<V>, Option<V>) -> (Option<V>, Option<V>)) {
        let keys: Vec<K> = self.entries.keys().cloned().collect();
        for key in keys {
            self.change_known(&key, &edit);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Desire(u8, u8),
        Undesire(u8),
        Find(u8, u8),
        Lose(u8),
        Replace(BTreeMap<u8, u8>),
        UndesireAll,
        Apply,
        ApplyOne(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        let key = 0..6_u8;
        let value = 0..3_u8;
        prop_oneof![
            4 => (key.clone(), value.clone()).prop_map(|(key, value)| Step::Desire(key, value)),
            2 => key.clone().prop_map(Step::Undesire),
            2 => (key.clone(), value.clone()).prop_map(|(key, value)| Step::Find(key, value)),
            1 => key.clone().prop_map(Step::Lose),
            1 => prop::collection::btree_map(key.clone(), value, 0..4).prop_map(Step::Replace),
            1 => Just(Step::UndesireAll),
            1 => Just(Step::Apply),
            1 => key.prop_map(Step::ApplyOne),
        ]
    }

    fn run_on_maps(step: Step, desired: &mut BTreeMap<u8, u8>, actual: &mut BTreeMap<u8, u8>) {
        match step {
            Step::Desire(key, value) => drop(desired.insert(key, value)),
            Step::Undesire(key) => drop(desired.remove(&key)),
            Step::Find(key, value) => drop(actual.insert(key, value)),
            Step::Lose(key) => drop(actual.remove(&key)),
            Step::Replace(found) => *actual = found,
            Step::UndesireAll => desired.clear(),
            Step::Apply => actual.clone_from(desired),
            Step::ApplyOne(key) => match desired.get(&key) {
                Some(value) => drop(actual.insert(key, *value)),
                None => drop(actual.remove(&key)),
            },
        }
    }

    fn run_on_tracker(step: Step, tracker: &mut DeltaTracker<u8, u8>) {
        match step {
            Step::Desire(key, value) => tracker.set_desired(key, value),
            Step::Undesire(key) => tracker.delete_desired(&key),
            Step::Find(key, value) => tracker.set_actual(key, value),
            Step::Lose(key) => tracker.delete_actual(&key),
            Step::Replace(found) => tracker.replace_actual(found),
            Step::UndesireAll => tracker.delete_all_desired(),
            Step::Apply => tracker.mark_applied(),
            Step::ApplyOne(key) => tracker.mark_key_applied(&key),
        }
    }

    proptest! {
        #[test]
        fn is_the_difference_of_two_maps(steps in prop::collection::vec(step(), 0..40)) {
            let mut tracker = DeltaTracker::new();
            let (mut desired, mut actual) = (BTreeMap::new(), BTreeMap::new());

            for step in steps {
                run_on_tracker(step.clone(), &mut tracker);
                run_on_maps(step, &mut desired, &mut actual);

                let pending = tracker.pending();
                let updates: Vec<_> = desired
                    .iter()
                    .filter(|(key, value)| actual.get(key) != Some(*value))
                    .map(|(key, desired)| Update { key, desired, actual: actual.get(key) })
                    .collect();
                let deletions: Vec<_> =
                    actual.iter().filter(|(key, _)| !desired.contains_key(key)).collect();
                prop_assert_eq!(&pending, &Pending { updates, deletions });
                let is_different = !pending.updates.is_empty() || !pending.deletions.is_empty();
                prop_assert_eq!(tracker.has_pending(), is_different);
                let wanted: BTreeMap<u8, u8> =
                    tracker.iter_desired().map(|(key, value)| (*key, *value)).collect();
                prop_assert_eq!(&wanted, &desired);
            }
        }
    }

    #[test]
    fn entry_is_as_small_as_its_value() {
        assert!(size_of::<Entry<u64>>() <= 16, "a tag and the value");
    }
}
