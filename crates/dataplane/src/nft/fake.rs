//! A backend without a kernel, for tests of what stands above.
//!
//! It refuses what the kernel refuses (see [`super::ruleset`]), takes a transaction whole or not at all, prints
//! itself, and fails on demand. Clones share one ruleset: a test keeps one and hands the other in.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::backend::{Backend, CommitError};
use super::compare::{ChainRules, surplus};
use super::dump::dump;
use super::object::{Chain, Element, Name, Rule, Table, TableFlags};
use super::ruleset::Ruleset;
use super::text::{TextError, describe};
use super::transaction::Transaction;

/// An in-memory kernel.
#[derive(Clone, Debug, Default)]
pub struct FakeKernel(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    ruleset: Ruleset,
    /// Attempts so far, failed ones included.
    attempts: u64,
    /// Error numbers by attempt.
    faults: BTreeMap<u64, i32>,
    /// What was committed, in order.
    committed: Vec<Transaction>,
}

impl FakeKernel {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the `nth` commit from now (1 is the next) fail with an error number, taking nothing.
    pub fn fail_commit(&self, nth: u64, errno: i32) {
        let mut state = self.state();
        let attempt = state.attempts + nth;
        state.faults.insert(attempt, errno);
    }

    /// The whole ruleset as text that `nft -f` loads, table flags left out.
    pub fn dump(&self) -> Result<String, TextError> {
        dump(&self.state().ruleset)
    }

    /// Flags of a table; `None` when it is not there.
    pub fn table_flags(&self, table: &Table) -> Option<TableFlags> {
        self.state().ruleset.flags(table)
    }

    /// Chains of a table in the order of making.
    pub fn chains(&self, table: &Table) -> Vec<Chain> {
        self.state().ruleset.chains(table)
    }

    /// Rules of a chain; `None` when it is not there.
    pub fn rules(&self, table: &Table, chain: &Name) -> Option<Vec<Rule>> {
        self.state().ruleset.rules(table, chain)
    }

    /// The transactions that took effect, in order.
    pub fn committed(&self) -> Vec<Transaction> {
        self.state().committed.clone()
    }

    /// How many commits were tried.
    pub fn attempts(&self) -> u64 {
        self.state().attempts
    }

    /// Lets time pass for elements that end by themselves.
    pub fn pass(&self, time: Duration) {
        self.state().ruleset.pass(time);
    }

    /// The owner dies: its persistent tables stay as orphans.
    pub fn release_owner(&self) {
        self.state().ruleset.release();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A test that panicked elsewhere must not hide its own message.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Backend for FakeKernel {
    fn commit(&mut self, transaction: &Transaction) -> Result<(), CommitError> {
        let mut state = self.state();
        state.attempts += 1;
        let attempt = state.attempts;
        if let Some(errno) = state.faults.remove(&attempt) {
            return Err(refusal(transaction, 0, errno));
        }
        let mut ruleset = state.ruleset.clone();
        for (index, operation) in transaction.operations.iter().enumerate() {
            ruleset
                .apply(operation)
                .map_err(|errno| refusal(transaction, index, errno))?;
        }
        if let Err(errno) = ruleset.finish() {
            let index = state.ruleset.first_invalid(transaction);
            return Err(refusal(transaction, index, errno));
        }
        state.ruleset = ruleset;
        state.committed.push(transaction.clone());
        Ok(())
    }

    fn has_table(&mut self, table: &Table) -> Result<bool, CommitError> {
        Ok(self.table_flags(table).is_some())
    }

    fn elements(&mut self, table: &Table, set: &Name) -> Result<Option<Vec<Element>>, CommitError> {
        Ok(self.state().ruleset.elements(table, set))
    }

    fn different_chains(
        &mut self,
        table: &Table,
        wanted: &[ChainRules],
    ) -> Result<Vec<String>, CommitError> {
        let is_same = |chain: &&ChainRules| {
            self.chains(table).contains(&chain.chain)
                && self.rules(table, &chain.chain.name).as_ref() == Some(&chain.rules)
        };
        let names = self
            .chains(table)
            .into_iter()
            .map(|chain| chain.name.to_string());
        let mut different = surplus(names, wanted);
        let other = wanted.iter().filter(|chain| !is_same(chain));
        different.extend(other.map(|chain| chain.chain.name.to_string()));
        Ok(different)
    }
}

fn refusal(transaction: &Transaction, index: usize, errno: i32) -> CommitError {
    CommitError::from_errno(errno, index, || {
        transaction
            .operations
            .get(index)
            .map(describe)
            .unwrap_or_default()
    })
}
