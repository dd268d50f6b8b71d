//! Brings the kernel to what the graph wants: owns the backend and what our tables hold.
//!
//! The applier does one attempt at a time ([`Applier::step`]) and says how long to wait before the next; it never
//! sleeps. What cannot be changed is replaced: both tables in one batch, so that no packet ever meets no rules. When
//! replacing fails too often the error is final, and the process ends rather than run open.

mod backlog;
mod bypass;
mod guard;
mod marker;
mod thread;
mod verify;

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use towpath_core::tables::{Delta, Phase, Tables};
use towpath_dataplane::nft::{Backend, CommitError, Operation, Table, Transaction};
use tracing::{info, warn};

use crate::layout::{Capacities, LayoutOptions, NodeFacts, TableId};
use crate::render::{self, Counts, FactSets};

use guard::Guard;

pub use backlog::Backlog;
pub use bypass::{BypassOutcome, bypass};
pub use guard::PodPlaces;
pub use marker::{MARKER, Marker};
pub use thread::{ApplierHandle, Report};
pub use verify::Drift;

/// Attempts to commit one batch before both tables are replaced.
const MOST_ATTEMPTS: u32 = 8;
/// Failed replacements in a row before the applier gives up: some eight seconds.
const MOST_REPLACEMENTS: u32 = 14;
/// A batch takes some milliseconds. After one that took so long, what else waits goes in one batch: else each phase
/// would cost that time again.
const SLOW_BATCH: Duration = Duration::from_millis(500);

/// Commits what is enqueued, phase by phase.
pub struct Applier {
    backend: Box<dyn Backend>,
    options: LayoutOptions,
    /// What the kernel holds once the batch at hand is committed.
    tables: Tables,
    facts: NodeFacts,
    fact_sets: FactSets,
    counts: Counts,
    capacities: Capacities,
    job: Option<Job>,
    /// Generation of the last change that is committed.
    generation: u64,
    /// Both tables must be replaced: first start, or the kernel does not hold what we think.
    must_replace: bool,
    /// The last attempt took long.
    is_slow: bool,
    failures: u32,
    /// The last failure, in words, while `failures` is above 0.
    failure: String,
    guard: Option<Guard>,
    marker: Option<Marker>,
    opened: bypass::Opened,
}

/// What was taken from the queue and is not committed as a whole.
#[derive(Debug)]
struct Job {
    generation: u64,
    phases: VecDeque<Phase>,
    /// The batch at hand.
    batch: Option<Transaction>,
    facts_changed: bool,
    took: Duration,
    operations: usize,
    replaced: bool,
}

impl Job {
    /// Nothing to do yet.
    fn new(generation: u64) -> Self {
        Self {
            generation,
            phases: VecDeque::new(),
            batch: None,
            facts_changed: false,
            took: Duration::ZERO,
            operations: 0,
            replaced: false,
        }
    }
}

/// What an attempt led to.
#[derive(Debug)]
pub enum Step {
    /// Nothing to do.
    Idle,
    /// All that was enqueued is in force.
    Applied(Applied),
    /// It failed; call [`Applier::step`] again after this time.
    Retry(Duration),
}

/// A change is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Generation of the change.
    pub generation: u64,
    /// Time in the kernel, all batches and attempts together.
    pub took: Duration,
    /// Operations that were committed.
    pub operations: usize,
    /// Both tables were replaced.
    pub replaced: bool,
}

/// The applier has given up.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Replacing our tables failed again and again.
    #[error("cannot replace tables towpath, after {attempts} attempts")]
    GivenUp {
        /// How often it was tried.
        attempts: u32,
        /// The last failure.
        source: CommitError,
    },
    /// The kernel lacks something.
    #[error("cannot use nftables of this kernel")]
    Unsupported(#[source] CommitError),
}

impl fmt::Debug for Applier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Applier")
            .field("backend", &self.backend)
            .field("generation", &self.generation)
            .field("must_replace", &self.must_replace)
            .finish_non_exhaustive()
    }
}

impl Applier {
    /// An applier that has committed nothing. Its first commit replaces whatever an earlier run left.
    pub fn new(backend: Box<dyn Backend>, options: LayoutOptions) -> Self {
        Self {
            backend,
            options,
            tables: Tables::default(),
            facts: NodeFacts::default(),
            fact_sets: FactSets::default(),
            counts: Counts::new(),
            capacities: Capacities::default(),
            job: None,
            generation: 0,
            must_replace: true,
            is_slow: false,
            failures: 0,
            failure: String::new(),
            guard: None,
            marker: None,
            opened: bypass::Opened::default(),
        }
    }

    /// Closes these pods with the first [`Self::step`] if no tables are there.
    #[must_use]
    pub fn guarding(mut self, places: PodPlaces) -> Self {
        self.guard = Some(Guard::new(places));
        self
    }

    /// Notes on disk what is in force, when [`Self::remember`] is called.
    #[must_use]
    pub fn noting(mut self, marker: Marker) -> Self {
        self.marker = Some(marker);
        self
    }

    /// Writes the marker if what stands in it is not in force any more. Takes a moment when it does. Returns whether it
    /// stands, or why not, when that is news.
    pub fn remember(&mut self) -> Option<Result<(), String>> {
        if self.generation == 0 {
            return None;
        }
        let places = self.places();
        self.marker.as_mut()?.note(places)
    }

    /// Whether the marker could not be written last time, so that [`Self::remember`] is to be called without a change.
    pub fn must_remember(&self) -> bool {
        self.marker.as_ref().is_some_and(Marker::is_failing)
    }

    /// Failures in a row, and the last one in words; `None` when the last attempt worked.
    pub fn failure(&self) -> Option<(u32, &str)> {
        (self.failures > 0).then_some((self.failures, self.failure.as_str()))
    }

    /// What our tables hold, once [`Self::step`] is idle.
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Takes changes over. Facts alone commit nothing before the first delta: an existing table is not touched before
    /// every source is in sync. Call it when [`Self::step`] is idle, else the changes wait behind those at hand.
    pub fn enqueue(&mut self, backlog: Backlog) {
        let Backlog {
            generation,
            phases,
            facts,
            bypassed,
        } = backlog;
        if let Some(wish) = bypassed {
            self.opened.wish(wish);
        }
        let facts_changed = facts.is_some_and(|facts| {
            let changed = facts != self.facts;
            self.facts = facts;
            changed
        });
        let is_loaded = self.generation > 0 || !self.must_replace || self.job.is_some();
        if generation.is_none() && !(is_loaded && facts_changed) {
            return;
        }
        let mut job = self.job.take().unwrap_or_else(|| Job::new(self.generation));
        job.generation = generation.unwrap_or(job.generation);
        job.phases.extend(phases);
        job.facts_changed |= facts_changed;
        self.job = Some(job);
        if !self.facts.routed_interfaces.is_empty() && !self.options.routed_pods {
            // The check stays when the last such pod goes: the next one need not replace the tables again.
            self.options.routed_pods = true;
            self.must_replace = true;
        }
        if let Some(ports) = &self.facts.overlay_ports
            && self.options.overlay_ports != *ports
        {
            self.options.overlay_ports.clone_from(ports);
            self.must_replace = true;
        }
    }

    /// One attempt at one batch, or more while they succeed.
    pub fn step(&mut self) -> Result<Step, ApplyError> {
        if let Some(wait) = self.load_guard()? {
            return Ok(Step::Retry(wait));
        }
        if let Some(wait) = self.settle_bypass()? {
            return Ok(Step::Retry(wait));
        }
        while self.job.is_some() {
            self.prepare();
            let started = Instant::now();
            let result = if self.must_replace {
                self.replace()
            } else {
                self.commit_batch()
            };
            let job = self.job.as_mut().expect("a job stays until it is done");
            let took = started.elapsed();
            self.is_slow = took >= SLOW_BATCH;
            job.took += took;
            match result {
                Ok(operations) => {
                    self.failures = 0;
                    job.operations += operations;
                    if job.phases.is_empty() && !job.facts_changed {
                        return Ok(Step::Applied(self.finish()));
                    }
                }
                Err(error) => {
                    if let Some(wait) = self.failed(error)? {
                        return Ok(Step::Retry(wait));
                    }
                }
            }
        }
        Ok(Step::Idle)
    }

    /// Makes the next batch, unless one waits for another attempt.
    fn prepare(&mut self) {
        let Some(job) = &mut self.job else { return };
        if self.must_replace || job.batch.is_some() {
            return;
        }
        if self.is_slow {
            let joined = backlog::join(job.phases.drain(..));
            job.phases.push_back(joined);
        }
        let phase = job.phases.pop_front().unwrap_or_default();
        let rendered = render::phase(&self.tables, &phase);
        self.tables.apply(&phase);
        let are_facts_stale =
            std::mem::take(&mut job.facts_changed) || !phase.pod_networks.is_empty();
        let facts = are_facts_stale.then_some(&self.facts);
        let rendered = rendered.with_facts(&mut self.fact_sets, &self.tables, &phase, facts);
        rendered.count(&mut self.counts);
        if self.capacities.hold(&self.counts) {
            job.batch = Some(rendered.finish());
        } else {
            info!("a set is full: the tables are replaced by bigger ones");
            self.must_replace = true;
        }
    }

    fn commit_batch(&mut self) -> Result<usize, CommitError> {
        let job = self.job.as_mut().expect("a batch belongs to a job");
        let batch = job.batch.take().unwrap_or_default();
        let operations = batch.operations.len();
        if operations > 0
            && let Err(error) = self.backend.commit(&batch)
        {
            job.batch = Some(batch);
            return Err(error);
        }
        Ok(operations)
    }

    /// Deletes both tables and adds them as they should be, in one batch.
    fn replace(&mut self) -> Result<usize, CommitError> {
        let job = self.job.as_mut().expect("a replacement belongs to a job");
        job.batch = None;
        job.replaced = true;
        job.facts_changed = false;
        for phase in job.phases.drain(..) {
            self.tables.apply(&phase);
        }
        self.fact_sets = render::fact_sets(&self.tables, &self.facts);
        let mut transaction = delete_tables(&mut *self.backend)?.0;
        let (add, counts) = render::replace(&self.tables, &self.fact_sets, &self.options);
        transaction.operations.extend(add.operations);
        let bypass = render::bypass(self.opened.bypassed(), Instant::now());
        transaction.operations.extend(bypass);
        let operations = transaction.operations.len();
        self.backend.commit(&transaction)?;
        self.capacities = Capacities::for_counts(&counts);
        self.counts = counts;
        self.must_replace = false;
        self.opened.done(BypassOutcome::InForce);
        Ok(operations)
    }

    /// Decides how to go on after a failure: after a while (`Some`), at once (`None`), or not at all.
    ///
    /// 1. What the kernel lacks does not come back.
    /// 2. A replacement is tried again, and given up after [`MOST_REPLACEMENTS`].
    /// 3. A batch that was not taken, or a socket that failed, is tried again.
    /// 4. A refused batch, or one that failed [`MOST_ATTEMPTS`] times, means that the kernel does not hold what we
    ///    think: replace at once.
    fn failed(&mut self, error: CommitError) -> Result<Option<Duration>, ApplyError> {
        let is_refused = matches!(error, CommitError::Refused { .. });
        if matches!(error, CommitError::Unsupported { .. }) {
            return Err(ApplyError::Unsupported(error));
        }
        self.failures += 1;
        self.failure = Chain(&error).to_string();
        let attempts = self.failures;
        if self.must_replace && attempts >= MOST_REPLACEMENTS {
            return Err(ApplyError::GivenUp {
                attempts,
                source: error,
            });
        }
        warn!(error = %Chain(&error), attempts, replacing = self.must_replace, "a batch failed");
        if self.must_replace || !(is_refused || attempts >= MOST_ATTEMPTS) {
            return Ok(Some(retry_delay(attempts)));
        }
        self.must_replace = true;
        self.failures = 0;
        Ok(None)
    }

    fn finish(&mut self) -> Applied {
        let job = self.job.take().expect("only a job is finished");
        self.generation = job.generation;
        Applied {
            generation: job.generation,
            took: job.took,
            operations: job.operations,
            replaced: job.replaced,
        }
    }
}

/// How long to wait after so many failures in a row: 1 ms, doubled up to 4 s.
pub fn retry_delay(attempts: u32) -> Duration {
    Duration::from_millis(1 << attempts.saturating_sub(1).min(12))
}

/// Removes our tables; returns those that were there.
pub fn uninstall(backend: &mut dyn Backend) -> Result<Vec<Table>, CommitError> {
    let (transaction, tables) = delete_tables(backend)?;
    if !transaction.is_empty() {
        backend.commit(&transaction)?;
    }
    Ok(tables)
}

/// The operations that remove those of our tables that exist, and these tables.
fn delete_tables(backend: &mut dyn Backend) -> Result<(Transaction, Vec<Table>), CommitError> {
    let mut found = Vec::new();
    for table in TableId::ALL.map(TableId::table) {
        if backend.has_table(&table)? {
            found.push(table);
        }
    }
    let operations = found.iter().cloned().map(Operation::DeleteTable).collect();
    Ok((Transaction { operations }, found))
}

/// Everything that the graph says from nothing, as one change: for tools that load tables without a graph.
pub fn whole(tables: Tables) -> Delta {
    Delta {
        phases: vec![backlog::phase_of(tables)],
    }
}

/// An error with its sources, for a log line.
struct Chain<'a>(&'a CommitError);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = std::error::Error::source(self.0);
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
