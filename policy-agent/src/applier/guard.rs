//! The closed guard: what is in force between a start that finds no tables and the first commit.
//!
//! Tables outlive an agent, but neither a reboot nor a flush of the ruleset. Where an earlier run has enforced policy,
//! a start without tables therefore closes the pods at once, before anything is known of them (edge case 21): their
//! packets are dropped as those of unknown pods, what the host sends and what is established passes. The first commit
//! replaces the guard in one batch. On a first installation there is no guard: nobody was promised anything yet, and
//! closing a running node would break it.

use std::collections::BTreeSet;
use std::time::Duration;

use ipnet::IpNet;
use towpath_core::model::InterfaceName;
use towpath_dataplane::nft::{CommitError, Operation};
use tracing::info;

use super::{Applier, ApplyError};
use crate::layout::TableId;
use crate::render;

/// Where the pods of this node are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodPlaces {
    /// Networks of their addresses.
    pub networks: BTreeSet<IpNet>,
    /// Interfaces behind which there are only pods.
    pub interfaces: BTreeSet<InterfaceName>,
}

/// A guard, and how far it got.
#[derive(Debug)]
pub(super) struct Guard {
    places: PodPlaces,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The tables are to be looked for.
    Due,
    /// There are tables of an earlier run, which are better.
    NotNeeded,
    /// In force.
    Loaded,
}

impl Guard {
    pub(super) fn new(places: PodPlaces) -> Self {
        Self {
            places,
            state: State::Due,
        }
    }
}

impl Applier {
    /// Where the pods are, according to what is committed.
    pub fn places(&self) -> PodPlaces {
        PodPlaces {
            networks: self.tables.pod_networks.keys().copied().collect(),
            interfaces: self.facts.pod_interfaces.clone(),
        }
    }

    /// Loads the guard if it is due. `Some`: it failed, and is to be tried again after this time.
    pub(super) fn load_guard(&mut self) -> Result<Option<Duration>, ApplyError> {
        let is_due = |guard: &Guard| guard.state == State::Due;
        // A change that waits closes what is unknown as well.
        if self.job.is_some() || !self.must_replace || !self.guard.as_ref().is_some_and(is_due) {
            return Ok(None);
        }
        match self.commit_guard() {
            Ok(()) => {
                self.failures = 0;
                Ok(None)
            }
            Err(error) => self.failed(error),
        }
    }

    fn commit_guard(&mut self) -> Result<(), CommitError> {
        let Some(guard) = &mut self.guard else {
            return Ok(());
        };
        let inet = TableId::Inet.table();
        if self.backend.has_table(&inet)? {
            guard.state = State::NotNeeded;
            return Ok(());
        }
        let PodPlaces {
            networks,
            interfaces,
        } = &guard.places;
        let mut transaction = render::guard(networks.iter().copied(), interfaces, &self.options);
        // The other table may be there, and is not touched before the first commit.
        transaction
            .operations
            .retain(|operation: &Operation| *operation.table() == inet);
        self.backend.commit(&transaction)?;
        guard.state = State::Loaded;
        info!(
            ?networks,
            ?interfaces,
            "an earlier run has enforced policy and its tables are gone: pods are closed until the first commit"
        );
        Ok(())
    }

    /// Whether the guard was in force and somebody has removed it; then it is due again.
    pub(super) fn is_guard_lost(&mut self) -> Result<bool, CommitError> {
        let Some(guard) = &mut self.guard else {
            return Ok(false);
        };
        let is_lost =
            guard.state == State::Loaded && !self.backend.has_table(&TableId::Inet.table())?;
        if is_lost {
            guard.state = State::Due;
        }
        Ok(is_lost)
    }
}

#[cfg(test)]
mod tests {
    use towpath_core::tables::{Delta, Phase};
    use towpath_dataplane::nft::{Backend, FakeKernel, Table, TableFlags, Transaction};

    use super::super::{Backlog, Step};
    use super::*;
    use crate::layout::{IpVersion, LayoutOptions, SetId};

    /// Errors as Linux numbers them.
    const EAGAIN: i32 = 11;

    fn guarded(kernel: &FakeKernel) -> Applier {
        let places = PodPlaces {
            networks: ["10.244.1.0/24", "10.244.0.0/16", "fd00:1::/64"]
                .map(|network| network.parse().unwrap())
                .into(),
            interfaces: ["cni0"].map(|name| name.parse().unwrap()).into(),
        };
        Applier::new(Box::new(kernel.clone()), LayoutOptions::default()).guarding(places)
    }

    fn change() -> Backlog {
        let mut backlog = Backlog::default();
        let phases = vec![Phase::default()];
        backlog.push(1, Delta { phases });
        backlog
    }

    fn add(kernel: &FakeKernel, table: TableId) {
        let operation = Operation::AddTable(table.table(), TableFlags::default());
        let operations = vec![operation];
        kernel.clone().commit(&Transaction { operations }).unwrap();
    }

    fn tables(kernel: &FakeKernel) -> Vec<Table> {
        let is_there = |table: &Table| kernel.table_flags(table).is_some();
        TableId::ALL
            .map(TableId::table)
            .into_iter()
            .filter(is_there)
            .collect()
    }

    fn count(kernel: &FakeKernel, set: SetId) -> usize {
        let elements = kernel.clone().elements(&set.table().table(), &set.name());
        elements.unwrap().unwrap().len()
    }

    #[test]
    fn pods_are_closed_until_the_first_commit_replaces_the_guard() {
        let kernel = FakeKernel::new();
        let mut applier = guarded(&kernel);

        let first = applier.step().unwrap();

        assert!(matches!(first, Step::Idle), "{first:?}");
        assert_eq!(tables(&kernel), [TableId::Inet.table()]);
        assert_eq!(count(&kernel, SetId::PodInterfaces), 1);
        assert_eq!(count(&kernel, SetId::PodNetworks(IpVersion::V4)), 1);
        assert_eq!(count(&kernel, SetId::PodNetworks(IpVersion::V6)), 1);

        applier.enqueue(change());
        let next = applier.step().unwrap();

        assert!(
            matches!(next, Step::Applied(applied) if applied.replaced),
            "{next:?}"
        );
        assert_eq!(kernel.committed().len(), 2);
        assert_eq!(tables(&kernel), TableId::ALL.map(TableId::table));
        assert_eq!(count(&kernel, SetId::PodInterfaces), 0);
    }

    #[test]
    fn tables_of_an_earlier_run_are_not_touched() {
        let kernel = FakeKernel::new();
        add(&kernel, TableId::Inet);

        guarded(&kernel).step().unwrap();

        assert_eq!(kernel.committed().len(), 1);
    }

    #[test]
    fn only_the_table_that_is_missing_is_added() {
        let kernel = FakeKernel::new();
        add(&kernel, TableId::Bridge);

        guarded(&kernel).step().unwrap();

        assert_eq!(tables(&kernel), TableId::ALL.map(TableId::table));
        assert_eq!(kernel.chains(&TableId::Bridge.table()), []);
    }

    #[test]
    fn a_change_that_waits_is_better_than_the_guard() {
        let kernel = FakeKernel::new();
        let mut applier = guarded(&kernel);

        applier.enqueue(change());
        applier.step().unwrap();

        assert_eq!(kernel.committed().len(), 1);
        assert_eq!(count(&kernel, SetId::PodInterfaces), 0);
    }

    #[test]
    fn a_failure_is_tried_again() {
        let kernel = FakeKernel::new();
        let mut applier = guarded(&kernel);
        kernel.fail_commit(1, EAGAIN);

        let first = applier.step().unwrap();
        let second = applier.step().unwrap();

        assert!(matches!(first, Step::Retry(_)), "{first:?}");
        assert!(matches!(second, Step::Idle), "{second:?}");
        assert_eq!(tables(&kernel), [TableId::Inet.table()]);
        assert_eq!(applier.failure(), None);
    }

    #[test]
    fn a_guard_that_somebody_removed_comes_back() {
        let kernel = FakeKernel::new();
        let mut applier = guarded(&kernel);
        applier.step().unwrap();
        let before = applier.verify().unwrap();
        let operations = vec![Operation::DeleteTable(TableId::Inet.table())];
        kernel.clone().commit(&Transaction { operations }).unwrap();

        let drift = applier.verify().unwrap();
        applier.step().unwrap();

        assert!(before.is_none());
        assert!(drift.is_torn);
        assert_eq!(count(&kernel, SetId::PodInterfaces), 1);
    }
}
