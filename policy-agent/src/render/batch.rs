//! Collects the operations of one batch and puts them into an order that the kernel takes.

use std::collections::BTreeMap;

use towpath_dataplane::nft::{Element, Name, Operation, Rule, Transaction};

use crate::layout::{SetId, TableId};

/// Elements per operation: an element list of one message is limited to 64 KiB.
const CHUNK: usize = 500;

/// Operations by kind.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// Sets of class lists and chains of profiles, before anything points at them.
    made: Vec<Operation>,
    removed: BTreeMap<SetId, Vec<Element>>,
    added: BTreeMap<SetId, Vec<Element>>,
    /// Chains that nothing points at any more.
    unmade: Vec<Operation>,
    /// Sets that only those chains used.
    unmade_last: Vec<Operation>,
}

impl Batch {
    pub(super) fn add(&mut self, set: SetId, element: Element) {
        self.added.entry(set).or_default().push(element);
    }

    pub(super) fn remove(&mut self, set: SetId, element: Element) {
        self.removed.entry(set).or_default().push(element);
    }

    /// Makes something that elements will point at.
    pub(super) fn make(&mut self, operation: Operation) {
        self.made.push(operation);
    }

    /// Removes something that elements pointed at.
    pub(super) fn unmake(&mut self, operation: Operation) {
        self.unmade.push(operation);
    }

    /// Removes something that what was removed before pointed at.
    pub(super) fn unmake_last(&mut self, operation: Operation) {
        self.unmade_last.push(operation);
    }

    pub(super) fn count(&self, counts: &mut BTreeMap<SetId, usize>) {
        for (set, elements) in &self.added {
            *counts.entry(*set).or_default() += elements.len();
        }
        for (set, elements) in &self.removed {
            let count = counts.entry(*set).or_default();
            *count = count.saturating_sub(elements.len());
        }
    }

    /// A changed value is a removal and an addition, so all removals come first.
    pub(super) fn finish(self) -> Transaction {
        let mut transaction = Transaction {
            operations: self.made,
        };
        for (set, elements) in self.removed {
            push_chunks(elements, |chunk| {
                let (table, name) = (set.table().table(), set.name());
                transaction.push(Operation::DeleteElements(table, name, chunk));
            });
        }
        for (set, elements) in self.added {
            push_chunks(elements, |chunk| {
                let (table, name) = (set.table().table(), set.name());
                transaction.push(Operation::AddElements(table, name, chunk));
            });
        }
        transaction.operations.extend(self.unmade);
        transaction.operations.extend(self.unmade_last);
        transaction
    }
}

/// Cuts a list of elements to what one operation may carry.
pub(super) fn push_chunks(elements: Vec<Element>, mut push: impl FnMut(Vec<Element>)) {
    if elements.len() <= CHUNK {
        return push(elements);
    }
    let mut elements = elements.into_iter().peekable();
    while elements.peek().is_some() {
        push(elements.by_ref().take(CHUNK).collect());
    }
}

/// Appends the rules of a chain of the inet table.
pub(super) fn add_rules(chain: &Name, rules: Vec<Rule>) -> impl Iterator<Item = Operation> {
    let table = TableId::Inet.table();
    rules
        .into_iter()
        .map(move |rule| Operation::AddRule(table.clone(), chain.clone(), rule))
}
