//! Operations, and the transaction that collects them.

use std::time::Duration;

use super::object::{Chain, Element, Name, Rule, SetKey, SetSpec, Table, TableFlags};

/// One change of the ruleset. All of a transaction take effect together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Makes the table, or adopts one that is there.
    AddTable(Table, TableFlags),
    /// Removes the table with all it holds; an error when it is not there.
    DeleteTable(Table),
    /// Makes a chain, or does nothing when an equal one is there.
    AddChain(Table, Chain),
    /// Removes all rules of a chain.
    FlushChain(Table, Name),
    /// Removes an empty, unreferenced chain.
    DeleteChain(Table, Name),
    /// Appends a rule.
    AddRule(Table, Name, Rule),
    /// Makes a set, or does nothing when an equal one is there; but its size becomes this one (kernel 6.5 and later;
    /// earlier ones keep the old size).
    AddSet(Table, SetSpec),
    /// Removes an unreferenced set with its elements.
    DeleteSet(Table, Name),
    /// Removes all elements of a set.
    FlushSet(Table, Name),
    /// Adds elements; an equal one that is there is fine, one with another value is an error (`EEXIST`). To change a
    /// value, delete the element earlier in the same transaction.
    AddElements(Table, Name, Vec<Element>),
    /// Adds elements that the kernel removes by itself after their time, to a set with `timeout`. One that is there
    /// keeps the time that it has: flush the set earlier in the same transaction to give it another.
    AddTimedElements(Table, Name, Vec<(SetKey, Duration)>),
    /// Removes elements by key; an error when one is not there.
    DeleteElements(Table, Name, Vec<Element>),
}

impl Operation {
    /// The table that it changes.
    pub fn table(&self) -> &Table {
        match self {
            Self::AddTable(table, _)
            | Self::DeleteTable(table)
            | Self::AddChain(table, _)
            | Self::FlushChain(table, _)
            | Self::DeleteChain(table, _)
            | Self::AddRule(table, _, _)
            | Self::AddSet(table, _)
            | Self::DeleteSet(table, _)
            | Self::FlushSet(table, _)
            | Self::AddElements(table, _, _)
            | Self::AddTimedElements(table, _, _)
            | Self::DeleteElements(table, _, _) => table,
        }
    }
}

/// Operations that one batch carries, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    /// The operations.
    pub operations: Vec<Operation>,
}

impl Transaction {
    /// An empty transaction.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends an operation.
    pub fn push(&mut self, operation: Operation) {
        self.operations.push(operation);
    }

    /// Whether it has no operations.
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }
}
