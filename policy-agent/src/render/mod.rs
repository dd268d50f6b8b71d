//! Core's tables as nft elements and rules: pure functions.
//!
//! [`replace`] says everything, [`phase`] what one batch of changes needs. The layout that the elements go into is
//! [`crate::layout`].

mod batch;
mod bypass;
mod chains;
mod elements;
mod facts;
mod profiles;

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use towpath_core::model::InterfaceName;
use towpath_core::tables::{Phase, Tables};
use towpath_dataplane::nft::{
    Element, Operation, SetKey, TextError, Transaction, transaction_text,
};

use crate::layout::{Capacities, LayoutOptions, NodeFacts, SetId, layout};

pub use bypass::{Bypassed, bypass};
pub use chains::{Fixed, fixed};
pub use facts::FactSets;

use batch::Batch;

/// Number of elements of the sets that hold any.
pub type Counts = BTreeMap<SetId, usize>;

/// Adds our tables with everything that they hold. Nothing of them may exist, so whoever replaces them deletes them
/// first in the same batch.
pub fn replace(
    tables: &Tables,
    facts: &FactSets,
    options: &LayoutOptions,
) -> (Transaction, Counts) {
    let elements = all_elements(tables, facts);
    let counts: Counts = elements
        .iter()
        .map(|(set, elements)| (*set, elements.len()))
        .collect();
    let capacities = Capacities::for_counts(&counts);
    let mut transaction = layout(options, &capacities);
    profiles::add_all(&tables.profiles, &mut transaction);
    for (set, elements) in elements {
        batch::push_chunks(elements, |chunk| {
            transaction.push(Operation::AddElements(
                set.table().table(),
                set.name(),
                chunk,
            ));
        });
    }
    (transaction, counts)
}

/// The operations that turn `old` into `old` after `phase`. No operation for a key that does not change.
pub fn phase(old: &Tables, phase: &Phase) -> Rendered {
    let mut batch = Batch::default();
    elements::changes(old, phase, &mut batch);
    profiles::changes(&old.profiles, &phase.profiles, &mut batch);
    Rendered { batch }
}

/// What a batch will do; more can be added until it is finished.
#[derive(Debug)]
pub struct Rendered {
    batch: Batch,
}

impl Rendered {
    /// Brings `sets` up to date with `phase`, which `tables` contain already, and with new facts, and adds what changes.
    pub fn with_facts(
        mut self,
        sets: &mut FactSets,
        tables: &Tables,
        phase: &Phase,
        facts: Option<&NodeFacts>,
    ) -> Self {
        sets.follow(tables, phase, facts, &mut self.batch);
        self
    }

    /// Counts what it adds and removes.
    pub fn count(&self, counts: &mut Counts) {
        self.batch.count(counts);
    }

    /// The operations: chains come before the elements that point at them and go after those.
    pub fn finish(self) -> Transaction {
        self.batch.finish()
    }
}

/// Changes of elements that were read back and are not as they should be.
#[derive(Debug, Default)]
pub struct Repair {
    batch: Batch,
}

impl Repair {
    /// An element that is missing.
    pub fn add(&mut self, set: SetId, element: Element) {
        self.batch.add(set, element);
    }

    /// An element that is not wanted.
    pub fn remove(&mut self, set: SetId, element: Element) {
        self.batch.remove(set, element);
    }

    /// The operations.
    pub fn finish(self) -> Transaction {
        self.batch.finish()
    }
}

/// Every element of every set that holds any.
pub fn all_elements(tables: &Tables, facts: &FactSets) -> BTreeMap<SetId, Vec<Element>> {
    let mut all: BTreeMap<SetId, Vec<Element>> = BTreeMap::new();
    elements::all(tables, &mut |set, element| {
        all.entry(set).or_default().push(element);
    });
    for (set, key) in facts.entries() {
        all.entry(set)
            .or_default()
            .push(Element { key, value: None });
    }
    all
}

/// One form for keys that may be told in two: a value in an interval set is a range of one.
pub(crate) fn normal_key(set: SetId, key: SetKey) -> SetKey {
    match key {
        SetKey::Exact(mut values) if set.is_interval() && values.len() == 1 => {
            let value = values.remove(0);
            SetKey::Range(value.clone(), value)
        }
        other => other,
    }
}

/// The nft text that an agent would load into a machine without our tables; `nft -c -f` takes it.
pub fn render_text(
    tables: &Tables,
    facts: &NodeFacts,
    options: &LayoutOptions,
) -> Result<String, TextError> {
    let sets = fact_sets(tables, facts);
    let options = LayoutOptions {
        routed_pods: options.routed_pods || sets.has_routed_pods(),
        ..options.clone()
    };
    transaction_text(&replace(tables, &sets, &options).0)
}

/// The facts and what follows from them and the tables, as sets.
pub fn fact_sets(tables: &Tables, facts: &NodeFacts) -> FactSets {
    FactSets::new(tables, facts)
}

/// Adds our tables such that they know of no pod: whatever touches these networks and interfaces is closed, apart from
/// connections that are established. Bridges are left alone, since their ports are not known either and a check of
/// sources would end those connections.
pub fn guard(
    networks: impl IntoIterator<Item = IpNet>,
    interfaces: &BTreeSet<InterfaceName>,
    options: &LayoutOptions,
) -> Transaction {
    let sets = FactSets::guard(networks, interfaces);
    replace(&Tables::default(), &sets, options).0
}

#[cfg(test)]
pub(crate) mod tests;
