//! Keeps what an operator has opened for a while in the kernel. It stands beside the jobs: tables of an earlier run are
//! not changed before every source is in sync, but they can be opened.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use towpath_dataplane::nft::{Backend, CommitError, SetKey, Transaction};

use super::{Applier, ApplyError, Chain, Drift, Job};
use crate::layout::{SetId, TableId};
use crate::render::{self, Bypassed};

/// An element that ends so soon may be gone already, or not yet.
const SOON: Duration = Duration::from_secs(2);

/// What became of a wish to open, or to close again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum BypassOutcome {
    /// It is in force.
    InForce,
    /// There are no tables of ours, so nothing is enforced that could be opened.
    NoTables,
    /// The tables are of a version that knows of no bypass.
    OldTables,
    /// The kernel did not take it.
    Failed(String),
}

/// What the sets should hold, and whether they do.
#[derive(Debug, Default)]
pub(super) struct Opened {
    bypassed: Bypassed,
    /// Number of the newest wish.
    sequence: u64,
    is_due: bool,
    outcome: Option<(u64, BypassOutcome)>,
}

impl Opened {
    /// Takes a wish over.
    pub(super) fn wish(&mut self, (sequence, bypassed): (u64, Bypassed)) {
        (self.sequence, self.bypassed, self.is_due) = (sequence, bypassed, true);
    }

    /// What a replacement of the tables must say too.
    pub(super) fn bypassed(&self) -> &Bypassed {
        &self.bypassed
    }

    /// It is in force, or will not be.
    pub(super) fn done(&mut self, outcome: BypassOutcome) {
        if std::mem::take(&mut self.is_due) {
            self.outcome = Some((self.sequence, outcome));
        }
    }
}

/// Makes the tables that are there hold these elements, whoever made the tables: an agent of which only they are left,
/// or this process.
pub fn bypass(
    backend: &mut dyn Backend,
    bypassed: &Bypassed,
) -> Result<BypassOutcome, CommitError> {
    if !backend.has_table(&TableId::Inet.table())? {
        return Ok(BypassOutcome::NoTables);
    }
    for set in SetId::all().filter(|set| set.is_timed()) {
        if backend
            .elements(&set.table().table(), &set.name())?
            .is_none()
        {
            return Ok(BypassOutcome::OldTables);
        }
    }
    commit(backend, bypassed)?;
    Ok(BypassOutcome::InForce)
}

fn commit(backend: &mut dyn Backend, bypassed: &Bypassed) -> Result<(), CommitError> {
    let operations = render::bypass(bypassed, Instant::now()).collect();
    backend.commit(&Transaction { operations })
}

impl Applier {
    /// What became of the newest wish, with its number; once.
    pub fn take_bypass_outcome(&mut self) -> Option<(u64, BypassOutcome)> {
        self.opened.outcome.take()
    }

    /// Commits what is due. `Some`: it failed, and is to be tried again after this time.
    pub(super) fn settle_bypass(&mut self) -> Result<Option<Duration>, ApplyError> {
        // A replacement says it too.
        if !self.opened.is_due || (self.must_replace && self.job.is_some()) {
            return Ok(None);
        }
        let result = if self.must_replace {
            bypass(&mut *self.backend, &self.opened.bypassed)
        } else {
            commit(&mut *self.backend, &self.opened.bypassed).map(|()| BypassOutcome::InForce)
        };
        match result {
            Ok(outcome) => {
                self.failures = 0;
                self.opened.done(outcome);
                Ok(None)
            }
            // These tables are not to be replaced yet, whatever is wrong with them.
            Err(error) if self.must_replace => {
                let text = Chain(&error).to_string();
                self.opened.done(BypassOutcome::Failed(text));
                Ok(None)
            }
            Err(error) => {
                let wait = self.failed(error)?;
                if wait.is_none() {
                    self.job.get_or_insert_with(|| Job::new(self.generation));
                }
                Ok(wait)
            }
        }
    }

    /// Compares the sets. What is over by our clock or about to be is no drift, there or not.
    pub(super) fn compare_bypass(&mut self, drift: &mut Drift) -> Result<(), CommitError> {
        let now = Instant::now();
        let known = self
            .opened
            .bypassed
            .elements(now.checked_sub(SOON).unwrap_or(now));
        let (mut missing, mut surplus) = (0, 0);
        for (set, wanted) in known {
            let Some(found) = self.backend.elements(&set.table().table(), &set.name())? else {
                drift.is_torn = true;
                continue;
            };
            let is_known = |key: &SetKey| wanted.iter().any(|(known, _)| known == key);
            let is_found = |key: &SetKey| found.iter().any(|element| element.key == *key);
            surplus += found
                .iter()
                .filter(|element| !is_known(&element.key))
                .count();
            missing += wanted
                .iter()
                .filter(|(key, left)| *left > SOON + SOON && !is_found(key))
                .count();
        }
        self.opened.is_due |= missing + surplus > 0;
        drift.missing += missing;
        drift.surplus += surplus;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use towpath_core::tables::{Delta, Phase};
    use towpath_dataplane::nft::{FakeKernel, Operation, TableFlags, Value};

    use super::super::{Backlog, PodPlaces, Step};
    use super::*;
    use crate::layout::{IpVersion, LayoutOptions};

    const HOUR: Duration = Duration::from_hours(1);
    const EAGAIN: i32 = 11;
    const ENOENT: i32 = 2;

    fn applier(kernel: &FakeKernel) -> Applier {
        Applier::new(Box::new(kernel.clone()), LayoutOptions::default())
    }

    fn running(kernel: &FakeKernel) -> Applier {
        let mut applier = applier(kernel);
        let mut backlog = Backlog::default();
        let phases = vec![Phase::default()];
        backlog.push(1, Delta { phases });
        applier.enqueue(backlog);
        settle(&mut applier);
        applier
    }

    fn settle(applier: &mut Applier) {
        while !matches!(applier.step().unwrap(), Step::Idle) {}
    }

    fn open(last: u8, time: Duration) -> Bypassed {
        let address = [10, 244, 1, last].into();
        Bypassed {
            node: None,
            addresses: [(address, Instant::now() + time)].into(),
        }
    }

    fn wish(applier: &mut Applier, sequence: u64, bypassed: Bypassed) {
        applier.enqueue(Backlog {
            bypassed: Some((sequence, bypassed)),
            ..Backlog::default()
        });
    }

    fn key(last: u8) -> SetKey {
        SetKey::Exact(vec![Value::Ipv4([10, 244, 1, last].into())])
    }

    fn held(kernel: &FakeKernel) -> Option<Vec<SetKey>> {
        let set = SetId::Bypassed(IpVersion::V4);
        let elements = kernel.clone().elements(&set.table().table(), &set.name());
        let keys = |elements: Vec<towpath_dataplane::nft::Element>| {
            elements.into_iter().map(|element| element.key).collect()
        };
        elements.unwrap().map(keys)
    }

    #[test]
    fn what_is_open_is_in_the_kernel_and_nothing_else_changes() {
        let kernel = FakeKernel::new();
        let mut applier = running(&kernel);
        let commits = kernel.committed().len();

        wish(&mut applier, 3, open(2, HOUR));
        settle(&mut applier);

        assert_eq!(
            applier.take_bypass_outcome(),
            Some((3, BypassOutcome::InForce))
        );
        assert_eq!(applier.take_bypass_outcome(), None);
        assert_eq!(held(&kernel), Some(vec![key(2)]));
        let committed = kernel.committed();
        let [last] = &committed[commits..] else {
            panic!("{committed:?}");
        };
        let is_bypass = |operation: &Operation| {
            matches!(
                operation,
                Operation::FlushSet(..) | Operation::AddTimedElements(..)
            )
        };
        assert!(last.operations.iter().all(is_bypass), "{last:?}");

        wish(&mut applier, 4, Bypassed::default());
        settle(&mut applier);

        assert_eq!(held(&kernel), Some(vec![]));
    }

    #[test]
    fn tables_of_an_earlier_run_are_opened_and_not_replaced() {
        let kernel = FakeKernel::new();
        drop(running(&kernel));
        let commits = kernel.committed().len();
        let mut applier = applier(&kernel);

        wish(&mut applier, 1, open(2, HOUR));
        settle(&mut applier);

        assert_eq!(
            applier.take_bypass_outcome(),
            Some((1, BypassOutcome::InForce))
        );
        assert_eq!(kernel.committed().len(), commits + 1);
        assert_eq!(held(&kernel), Some(vec![key(2)]));
    }

    #[test]
    fn without_tables_nothing_is_made_but_the_next_ones_are_open() {
        let kernel = FakeKernel::new();
        let mut applier = applier(&kernel);

        wish(&mut applier, 1, open(2, HOUR));
        settle(&mut applier);

        assert_eq!(
            applier.take_bypass_outcome(),
            Some((1, BypassOutcome::NoTables))
        );
        assert_eq!(kernel.committed().len(), 0);
        let mut backlog = Backlog::default();
        backlog.push(
            1,
            Delta {
                phases: vec![Phase::default()],
            },
        );
        applier.enqueue(backlog);
        settle(&mut applier);
        assert_eq!(held(&kernel), Some(vec![key(2)]));
    }

    #[test]
    fn tables_without_the_sets_are_left_alone() {
        let kernel = FakeKernel::new();
        let table = TableId::Inet.table();
        let operations = vec![Operation::AddTable(table, TableFlags::default())];
        kernel.clone().commit(&Transaction { operations }).unwrap();
        let mut applier = applier(&kernel);

        wish(&mut applier, 1, open(2, HOUR));
        settle(&mut applier);

        assert_eq!(
            applier.take_bypass_outcome(),
            Some((1, BypassOutcome::OldTables))
        );
        assert_eq!(kernel.committed().len(), 1);
    }

    #[test]
    fn the_guard_is_opened_too() {
        let kernel = FakeKernel::new();
        let mut applier = applier(&kernel).guarding(PodPlaces::default());

        wish(&mut applier, 1, open(2, HOUR));
        settle(&mut applier);

        assert_eq!(
            applier.take_bypass_outcome(),
            Some((1, BypassOutcome::InForce))
        );
        assert_eq!(held(&kernel), Some(vec![key(2)]));
    }

    #[test]
    fn a_failure_is_tried_again_and_a_refusal_replaces_the_tables() {
        for (errno, commits) in [(EAGAIN, 1), (ENOENT, 1)] {
            let kernel = FakeKernel::new();
            let mut applier = running(&kernel);
            let before = kernel.committed().len();
            kernel.fail_commit(kernel.attempts() + 1, errno);

            wish(&mut applier, 1, open(2, HOUR));
            settle(&mut applier);

            assert_eq!(
                applier.take_bypass_outcome(),
                Some((1, BypassOutcome::InForce))
            );
            assert_eq!(kernel.committed().len(), before + commits);
            assert_eq!(held(&kernel), Some(vec![key(2)]));
            assert_eq!(applier.failure(), None);
        }
    }

    #[test]
    fn what_is_over_is_no_drift_and_what_others_change_is() {
        let kernel = FakeKernel::new();
        let mut applier = running(&kernel);
        wish(&mut applier, 1, open(2, SOON));
        settle(&mut applier);

        assert!(applier.verify().unwrap().is_none());
        kernel.pass(SOON);
        assert_eq!(held(&kernel), Some(vec![]));
        assert!(applier.verify().unwrap().is_none());

        wish(&mut applier, 2, open(2, HOUR));
        settle(&mut applier);
        let set = SetId::Bypassed(IpVersion::V4);
        let (table, name) = (set.table().table(), set.name());
        let operations = vec![
            Operation::FlushSet(table.clone(), name.clone()),
            Operation::AddTimedElements(table, name, vec![(key(9), HOUR)]),
        ];
        kernel.clone().commit(&Transaction { operations }).unwrap();
        let drift = applier.verify().unwrap();
        settle(&mut applier);

        let expected = Drift {
            missing: 1,
            surplus: 1,
            is_torn: false,
        };
        assert_eq!(drift, expected);
        assert_eq!(held(&kernel), Some(vec![key(2)]));
        assert!(applier.verify().unwrap().is_none());
    }
}
