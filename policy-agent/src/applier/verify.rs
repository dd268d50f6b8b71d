//! Reads our sets back and prepares what brings them right.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::time::Duration;

use towpath_dataplane::nft::{CommitError, Element, ElementValue, SetKey};

use super::{Applier, Job};
use crate::layout::{SetId, TableId};
use crate::render;

/// What the kernel held instead of what it should.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drift {
    /// Elements that are missing or hold another value.
    pub missing: usize,
    /// Elements that should not be there.
    pub surplus: usize,
    /// A table or set is missing altogether.
    pub is_torn: bool,
}

impl Drift {
    /// Whether all was right.
    pub fn is_none(self) -> bool {
        self == Self::default()
    }
}

impl Applier {
    /// Compares every set with what it should hold. Differences become the next batch: call [`Applier::step`] after.
    /// Does nothing while something else is at hand or before the first commit.
    pub fn verify(&mut self) -> Result<Drift, CommitError> {
        let mut drift = Drift::default();
        if self.job.is_some() || self.must_replace {
            return Ok(drift);
        }
        let mut wanted = render::all_elements(&self.tables, &self.fact_sets);
        let mut repair = render::Repair::default();
        for set in SetId::all() {
            let (table, name) = (set.table().table(), set.name());
            let Some(found) = self.backend.elements(&table, &name)? else {
                drift.is_torn = true;
                continue;
            };
            let wanted = wanted.remove(&set).unwrap_or_default();
            compare(set, wanted, found, &mut drift, &mut repair);
        }
        for table in TableId::ALL.map(TableId::table) {
            drift.is_torn |= !self.backend.has_table(&table)?;
        }
        if !drift.is_none() {
            self.must_replace = drift.is_torn;
            self.job = Some(Job {
                generation: self.generation,
                phases: VecDeque::new(),
                batch: Some(repair.finish()),
                facts_changed: false,
                took: Duration::ZERO,
                operations: 0,
                replaced: false,
            });
        }
        Ok(drift)
    }
}

fn compare(
    set: SetId,
    wanted: Vec<Element>,
    found: Vec<Element>,
    drift: &mut Drift,
    repair: &mut render::Repair,
) {
    let mut found = by_key(set, found);
    for (key, value) in by_key(set, wanted) {
        let other = found.remove(&key);
        if other.as_ref() == Some(&value) {
            continue;
        }
        drift.missing += 1;
        if let Some(other) = other {
            repair.remove(
                set,
                Element {
                    key: key.clone(),
                    value: other,
                },
            );
        }
        repair.add(set, Element { key, value });
    }
    drift.surplus += found.len();
    for (key, value) in found {
        repair.remove(set, Element { key, value });
    }
}

fn by_key(set: SetId, elements: Vec<Element>) -> BTreeMap<SetKey, Option<ElementValue>> {
    elements
        .into_iter()
        .map(|element| (render::normal_key(set, element.key), element.value))
        .collect()
}
