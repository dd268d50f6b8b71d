//! Reads our tables back and prepares what brings them right: an element is repaired, for all else both tables are
//! replaced.

use std::collections::{BTreeMap, BTreeSet};

use towpath_dataplane::nft::{CommitError, Element, ElementValue, SetKey};
use tracing::warn;

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
    /// A table, set or chain is missing, or a chain has other rules than it should: the tables are replaced.
    pub is_torn: bool,
}

impl Drift {
    /// Whether all was right.
    pub fn is_none(self) -> bool {
        self == Self::default()
    }
}

impl Applier {
    /// Compares every set and chain with what it should hold. Differences become the next batch: call
    /// [`Applier::step`] after. Does nothing while something else is at hand. Before the first commit only the guard is
    /// looked after.
    pub fn verify(&mut self) -> Result<Drift, CommitError> {
        let mut drift = Drift::default();
        if self.job.is_some() {
            return Ok(drift);
        }
        if self.must_replace {
            drift.is_torn = self.is_guard_lost()?;
            return Ok(drift);
        }
        let mut repair = render::Repair::default();
        // Where the tables are replaced there is nothing to repair. And `nft` cannot list what is dormant.
        drift.is_torn = self.are_fixed_parts_wrong()?;
        if !drift.is_torn {
            self.compare_sets(&mut drift, &mut repair)?;
            self.compare_bypass(&mut drift)?;
        }
        if !drift.is_none() {
            self.must_replace = drift.is_torn;
            self.job = Some(Job {
                batch: Some(repair.finish()),
                ..Job::new(self.generation)
            });
        }
        Ok(drift)
    }

    /// Compares the elements of all sets.
    fn compare_sets(
        &mut self,
        drift: &mut Drift,
        repair: &mut render::Repair,
    ) -> Result<(), CommitError> {
        let mut wanted = render::all_elements(&self.tables, &self.fact_sets);
        for set in SetId::all().filter(|set| !set.is_timed()) {
            let (table, name) = (set.table().table(), set.name());
            let Some(found) = self.backend.elements(&table, &name)? else {
                drift.is_torn = true;
                continue;
            };
            let wanted = wanted.remove(&set).unwrap_or_default();
            compare(set, wanted, found, drift, repair);
        }
        Ok(())
    }

    /// Compares what cannot be repaired one by one.
    fn are_fixed_parts_wrong(&mut self) -> Result<bool, CommitError> {
        for table in TableId::ALL.map(TableId::table) {
            if !self.backend.has_table(&table)? {
                return Ok(true);
            }
        }
        let mut are_wrong = false;
        for (table, fixed) in render::fixed(&self.tables, &self.options) {
            let chains = self.backend.different_chains(&table, &fixed.chains)?;
            if !chains.is_empty() {
                let family = table.family;
                warn!(
                    ?family,
                    chains = chains.join(", "),
                    "chains are not ours any more"
                );
                are_wrong = true;
            }
            if are_wrong {
                continue;
            }
            for (name, wanted) in fixed.class_lists {
                let found = self.backend.elements(&table, &name)?;
                if found.is_none_or(|found| keys(found) != keys(wanted)) {
                    warn!(ip_set = %name, "a list of classes is not ours any more");
                    are_wrong = true;
                }
            }
        }
        Ok(are_wrong)
    }
}

fn keys(elements: Vec<Element>) -> BTreeSet<SetKey> {
    elements.into_iter().map(|element| element.key).collect()
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
