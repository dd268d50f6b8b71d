//! The main thread: owns the calculation graph, takes events, flushes, and answers questions.
//!
//! Nothing here waits for the kernel. A flush is made when the queue is empty, or 1 ms after the first event that it
//! will contain; nothing is sent to the applier before the source is in sync and all interfaces have been seen.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use towpath_core::calc::{CalcGraph, Doubt};
use towpath_core::model::{Node, PolicyId, Update};
use towpath_core::tables::Delta;
use towpath_runtime::liveness::Beat;
use towpath_runtime::readiness::{Condition, Readiness};
use tracing::{debug, info, warn};

use super::AgentError;
use super::bypassing::Bypassing;
use super::cni::Cni;
use super::config::Config;
use super::denied::DeniedFlows;
use super::event::{ApplierNews, Event, SourceChange};
use super::facts::KnownFacts;
use super::foreign_ports::ForeignPorts;
use super::in_flight::{InFlight, MOST_ARRIVALS};
use super::interfaces::{HostFacts, InterfaceChange};
use super::latency::Latencies;
use super::link::LinkControl;
use super::local_services;
use super::metrics::{CommitResult, Metrics, Teller};
use super::obstacles::Lookout;
use super::publishing::Publishing;
use super::report::{Commits, Problem};
use super::seats::Seats;
use super::snapshots::Snapshots;
use super::start_code::StartCode;
use super::surroundings::Known;
use super::unannounced::Unannounced;
use super::warnings::Warned;
use crate::applier::{Applied, ApplierHandle, Drift};
use crate::layout::Enforcement;
use crate::snapshot::Snapshot;

/// Longest time that an event waits for others to join its flush.
const COALESCE: Duration = Duration::from_millis(1);
/// What only packets in flight could still read is removed so long after a flush.
const COLLECT_AFTER: Duration = Duration::from_secs(1);
/// How often denied flows are attributed, and counts for the metrics are made, at most.
const TICK: Duration = Duration::from_secs(1);
/// Why the node is not ready while the kernel lags.
const SLOW_KERNEL: &str =
    "the kernel takes changes too slowly; what is in force is some seconds old";

/// What the graph needs from its owner.
pub(super) struct GraphParts {
    pub(super) receiver: Receiver<Event>,
    pub(super) applier: ApplierHandle,
    pub(super) link: LinkControl,
    pub(super) metrics: Metrics,
    pub(super) readiness: Readiness,
    /// Holds while the source is in sync.
    pub(super) synced: Condition,
    /// Holds once the first commit is done, and while commits work.
    pub(super) committed: Condition,
    pub(super) cni: Cni,
    pub(super) snapshots: Snapshots,
    pub(super) publishing: Publishing,
    pub(super) lookout: Lookout,
    pub(super) beat: Beat,
}

/// The graph and what is known around it.
pub(super) struct GraphThread {
    pub(super) node: String,
    verify_interval: Duration,
    pub(super) enforcement: Enforcement,
    pub(super) facts: KnownFacts,
    /// Policies of which blocks are refused, as the last flush left them.
    pub(super) refused: BTreeSet<PolicyId>,
    pub(super) parts: GraphParts,
    pub(super) graph: CalcGraph,
    pub(super) started: Instant,
    gate: Gate,
    /// Arrivals of the events that are not flushed yet, oldest first.
    unflushed: Vec<Instant>,
    /// What is not committed yet.
    in_flight: InFlight,
    collect_at: Option<Instant>,
    tick_at: Instant,
    pub(super) host: HostFacts,
    /// Addresses of this host that are judged as pods.
    pub(super) local_services: BTreeSet<IpAddr>,
    /// This node as the source tells it.
    pub(super) own_node: Option<Node>,
    /// Claims of nodes that are not believed, or that others make, too.
    pub(super) doubts: Vec<Doubt>,
    pub(super) foreign_ports: ForeignPorts,
    pub(super) seats: Seats,
    pub(super) problems: Vec<Problem>,
    pub(super) denied: DeniedFlows,
    pub(super) latencies: Latencies,
    pub(super) commits: Commits,
    pub(super) last_commit: Option<Instant>,
    pub(super) is_in_sync: bool,
    /// What is in force in the place of a source that was never in sync.
    provisional: Option<String>,
    /// For whom enforcement is open for a while.
    pub(super) bypassing: Bypassing,
    /// What others set up on this node.
    pub(super) surroundings: Known,
    pub(super) unannounced: Unannounced,
    pub(super) warned: Warned,
    /// Why what is in force could not be noted on disk.
    pub(super) marker_fault: Option<String>,
    /// Whether it was said that no object speaks of this node.
    pub(super) is_stranger: bool,
    verify_at: Instant,
    start_code: StartCode,
}

/// What must have happened before the first commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Gate {
    is_source_read: bool,
    are_interfaces_seen: bool,
}

impl Gate {
    fn is_open(self) -> bool {
        self.is_source_read && self.are_interfaces_seen
    }
}

impl GraphThread {
    pub(super) fn new(config: &Config, parts: GraphParts, now: Instant) -> Self {
        let mut graph = CalcGraph::new(config.node.as_str());
        local_services::updates(&config.local_services).for_each(|update| graph.apply(&update));
        let events = parts.publishing.events(&config.node);
        let mut unannounced = Unannounced::default();
        // An earlier run heard of these.
        for kept in parts.cni.claims.kept() {
            unannounced.announce(&kept.claim.pod);
        }
        Self {
            node: config.node.clone(),
            verify_interval: config.verify_interval(),
            enforcement: config.enforcement_here(),
            facts: KnownFacts::new(config),
            refused: BTreeSet::new(),
            parts,
            graph,
            started: now,
            gate: Gate::default(),
            unflushed: Vec::new(),
            in_flight: InFlight::default(),
            collect_at: None,
            tick_at: now + TICK,
            host: HostFacts::default(),
            local_services: local_services::addresses(&config.local_services),
            own_node: None,
            doubts: Vec::new(),
            foreign_ports: ForeignPorts::default(),
            seats: Seats::new(&config.node),
            problems: Vec::new(),
            denied: DeniedFlows::new(config.denied_flows_kept).telling(events),
            latencies: Latencies::default(),
            commits: Commits::default(),
            last_commit: None,
            is_in_sync: false,
            provisional: None,
            bypassing: Bypassing::open(&config.state_directory, now),
            surroundings: Known::default(),
            unannounced,
            warned: Warned::default(),
            marker_fault: None,
            is_stranger: false,
            verify_at: now + config.verify_interval(),
            start_code: StartCode::default(),
        }
    }

    /// Works until it is told to end, or until commits fail too often.
    pub(super) fn run(mut self) -> Result<(), AgentError> {
        self.begin_with_bypasses();
        self.begin_with_snapshot();
        let outcome = self.work();
        if self.is_in_sync {
            self.parts.snapshots.finish(self.graph.cluster());
        }
        outcome
    }

    /// What an earlier run knew is in force until the source answers.
    fn begin_with_snapshot(&mut self) {
        let Some(Snapshot {
            written_at,
            objects,
        }) = self.parts.snapshots.begin()
        else {
            return;
        };
        let count = objects.len();
        for object in objects {
            let update = Update::Upsert(object);
            self.facts.note(&update);
            self.apply_source(&update);
        }
        self.count(Teller::Source, count, self.started);
        self.gate.is_source_read = true;
        let age = SystemTime::now()
            .duration_since(UNIX_EPOCH + Duration::from_secs(written_at))
            .unwrap_or_default();
        let age = Duration::from_secs(age.as_secs());
        let note = format!(
            "until then the snapshot of an earlier run is in force, {age:?} old at this start"
        );
        self.parts.synced.unmet(format!("not read yet; {note}"));
        self.provisional = Some(note);
    }

    fn work(&mut self) -> Result<(), AgentError> {
        loop {
            let now = Instant::now();
            self.parts.beat.beat(now);
            match self.parts.receiver.recv_timeout(self.until_wake(now)) {
                Ok(event) => {
                    if self.take(event)? {
                        return Ok(());
                    }
                    if self.drain()? {
                        return Ok(());
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            self.flush();
            self.settle_waiters();
            self.tick(Instant::now());
        }
    }

    fn until_wake(&self, now: Instant) -> Duration {
        let due = self
            .collect_at
            .map_or(self.tick_at, |at| at.min(self.tick_at));
        due.saturating_duration_since(now)
            .min(self.parts.beat.interval())
    }

    /// Takes what else is there, until the queue is empty or the flush is due. True at the end.
    fn drain(&mut self) -> Result<bool, AgentError> {
        let until = Instant::now() + COALESCE;
        while Instant::now() < until {
            let Ok(event) = self.parts.receiver.try_recv() else {
                break;
            };
            if self.take(event)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Takes one event; true when it is the end.
    fn take(&mut self, event: Event) -> Result<bool, AgentError> {
        match event {
            Event::Source(change) => self.take_source(change),
            Event::Interfaces(change) => self.take_interfaces(change),
            Event::Applier(ApplierNews::Applied(applied, at)) => self.take_applied(applied, at),
            Event::Applier(ApplierNews::Retrying(failures, failure)) => {
                self.take_failure(failures, failure);
            }
            Event::Applier(ApplierNews::Verified(drift)) => self.take_verified(drift),
            Event::Applier(ApplierNews::Bypassed(sequence, outcome)) => {
                self.take_bypass_outcome(sequence, &outcome);
            }
            Event::Applier(ApplierNews::Noted(fault)) => self.marker_fault = fault,
            Event::Applier(ApplierNews::Failed(error)) => return Err(AgentError::Apply(error)),
            Event::Panicked(name) => return Err(AgentError::Panicked { name }),
            Event::Tampered => self.parts.applier.verify(),
            Event::Denied(packets, lost) => {
                let now = SystemTime::now();
                for packet in &packets {
                    let reason = self.denied.add(packet, now);
                    self.parts.metrics.count_denied(reason, 1);
                }
                self.parts.metrics.denied_lost.inc_by(lost);
            }
            Event::Cni(request) => self.take_cni(request),
            Event::Bypass(request) => self.take_bypass(request),
            Event::Surroundings(seen) => self.take_surroundings(*seen),
            Event::Ask(question) => self.answer(question),
            Event::End => return Ok(true),
        }
        Ok(false)
    }

    fn take_source(&mut self, change: SourceChange) {
        let SourceChange {
            mut updates,
            problems,
            sync,
            tally,
            versions,
            at,
        } = change;
        self.parts.publishing.told(versions);
        self.parts.metrics.count_tally(&tally);
        self.parts
            .snapshots
            .complete(&mut updates, sync.is_ok(), self.graph.cluster());
        if sync.is_ok() && !updates.is_empty() {
            self.parts.snapshots.changed(at);
        }
        self.count(Teller::Source, updates.len(), at);
        // The graph keeps copies; the originals, among the remains of their texts, go together.
        for update in &updates {
            self.facts.note(update);
            self.apply_source(update);
        }
        drop(updates);
        self.problems = problems;
        self.is_in_sync = sync.is_ok();
        match sync {
            Ok(()) => {
                self.gate.is_source_read = true;
                self.provisional = None;
                if self.parts.synced.met() {
                    info!("the source is in sync");
                }
            }
            Err(reason) => {
                let reason = match &self.provisional {
                    Some(note) => format!("{reason}; {note}"),
                    None => reason,
                };
                if self.parts.synced.unmet(reason.as_str()) {
                    warn!(
                        reason,
                        "the source is not in sync; what is in force stays in force"
                    );
                }
            }
        }
    }

    fn take_interfaces(&mut self, change: InterfaceChange) {
        let InterfaceChange { updates, host, at } = change;
        self.count(Teller::Interfaces, updates.len(), at);
        for update in updates {
            let update = self.foreign_ports.pass(update, &self.facts.bridges);
            let claims = &self.parts.cni.claims;
            let is_claimed = |address, name: &_| claims.allow(address, name);
            for update in self.seats.interface(update, is_claimed, at) {
                self.facts.note(&update);
                self.graph.apply(&update);
            }
        }
        self.settle_claims();
        if let Some(host) = host {
            if self.host.has_other_addresses(&host) {
                self.parts.lookout.look();
            }
            self.facts.note_host(&self.host, &host);
            self.host = host;
            let told = self.tell_own_node();
            self.count(Teller::Interfaces, told, at);
        }
        self.gate.are_interfaces_seen = true;
    }

    /// Notes that something has changed, so that it is flushed.
    pub(super) fn count(&mut self, teller: Teller, updates: usize, at: Instant) {
        if updates == 0 {
            return;
        }
        self.parts.metrics.count_events(teller, updates);
        if self.unflushed.len() < MOST_ARRIVALS {
            self.unflushed.push(at);
        }
    }

    /// When the oldest event came that the kernel does not have yet.
    pub(super) fn oldest_pending(&self) -> Option<Instant> {
        let in_flight = self.in_flight.oldest_arrival();
        in_flight.or(self.unflushed.first().copied())
    }

    /// Whether the applier has been told of everything.
    pub(super) fn is_flushed(&self) -> bool {
        self.unflushed.is_empty() && self.facts.are_told()
    }

    fn flush(&mut self) {
        if !self.gate.is_open() {
            return;
        }
        // Facts go first: the first generation is made with them.
        self.tell_facts();
        if self.unflushed.is_empty() && self.commits.wanted_generation > 0 {
            return;
        }
        let started = Instant::now();
        let delta = self.graph.flush();
        self.parts
            .metrics
            .flush_seconds
            .observe(started.elapsed().as_secs_f64());
        let arrivals = std::mem::take(&mut self.unflushed);
        self.tell_networks();
        self.tell_audited();
        self.follow_bypassed();
        self.note_refused();
        // The first generation is sent even when it is empty: it closes what is unknown.
        if delta.phases.is_empty() && self.commits.wanted_generation > 0 {
            return;
        }
        self.send(delta, arrivals);
        self.collect_at = Some(Instant::now() + COLLECT_AFTER);
    }

    /// Names the policies whose blocks are too much for this node.
    fn note_refused(&mut self) {
        let refused: BTreeSet<PolicyId> = self.graph.refused().into_iter().cloned().collect();
        for policy in refused.difference(&self.refused) {
            warn!(%policy, "too many ipBlocks of this node's policies lie in each other; those of this policy match nobody");
        }
        for policy in self.refused.difference(&refused) {
            info!(%policy, "its ipBlocks are in force again");
        }
        self.refused = refused;
    }

    fn send(&mut self, delta: Delta, arrivals: Vec<Instant>) {
        self.commits.wanted_generation += 1;
        let generation = self.commits.wanted_generation;
        debug!(generation, phases = delta.phases.len(), "tables change");
        self.in_flight.sent(generation, arrivals, Instant::now());
        self.parts.applier.submit(generation, delta);
        self.note_pending();
    }

    /// A change is in force.
    fn take_applied(&mut self, applied: Applied, at: Instant) {
        let metrics = &self.parts.metrics;
        metrics.count_commit(CommitResult::Done);
        metrics.commit_seconds.observe(applied.took.as_secs_f64());
        for arrival in self.in_flight.applied(applied.generation) {
            let latency = at.saturating_duration_since(arrival);
            metrics
                .programming_latency_seconds
                .observe(latency.as_secs_f64());
            self.latencies.add(latency);
        }
        self.commits.generation = applied.generation;
        self.note_pending();
        self.commits.failed_in_a_row = 0;
        self.commits.error = None;
        self.commits.done += 1;
        self.commits.last_duration_seconds = Some(applied.took.as_secs_f64());
        self.last_commit = Some(at);
        let (generation, operations) = (applied.generation, applied.operations);
        if applied.replaced {
            info!(generation, operations, took = ?applied.took, "tables replaced");
        } else {
            debug!(generation, operations, took = ?applied.took, "committed");
        }
        if !self.in_flight.is_slow(at) && self.parts.committed.met() {
            info!(generation, after = ?at.duration_since(self.started), "policy is in force");
        }
    }

    fn note_pending(&self) {
        let Commits {
            generation,
            wanted_generation,
            ..
        } = self.commits;
        let pending = wanted_generation.saturating_sub(generation);
        let pending = i64::try_from(pending).unwrap_or(i64::MAX);
        self.parts.metrics.pending_generations.set(pending);
    }

    /// Says so when the kernel lags behind; a failure says more.
    fn look_for_slowness(&self, now: Instant) {
        if self.commits.error.is_none()
            && self.in_flight.is_slow(now)
            && self.parts.committed.unmet(SLOW_KERNEL)
        {
            warn!("{SLOW_KERNEL}");
        }
    }

    /// An attempt failed; the applier has logged it and tries again.
    fn take_failure(&mut self, failures: u32, failure: String) {
        self.parts.metrics.count_commit(CommitResult::Failed);
        self.parts.committed.unmet(failure.as_str());
        self.commits.failed_in_a_row = failures;
        self.commits.error = Some(failure);
    }

    /// The tables were read back; the applier repairs what it found by itself.
    fn take_verified(&mut self, drift: Drift) {
        if drift.is_none() {
            return;
        }
        let Drift {
            missing,
            surplus,
            is_torn,
        } = drift;
        warn!(
            missing,
            surplus, is_torn, "others have changed our tables; they are repaired"
        );
        let objects = u64::try_from(missing + surplus).unwrap_or(u64::MAX).max(1);
        self.parts.metrics.drift_repaired.inc_by(objects);
        self.commits.drift_repaired += objects;
    }

    /// What is due by the clock.
    fn tick(&mut self, now: Instant) {
        if self.collect_at.is_some_and(|at| at <= now) && self.unflushed.is_empty() {
            self.collect_at = None;
            let delta = self.graph.collect();
            if !delta.phases.is_empty() {
                self.send(delta, Vec::new());
                self.collect_at = Some(now + COLLECT_AFTER);
            }
        }
        if self.verify_at <= now {
            self.verify_at = now + self.verify_interval;
            self.parts.applier.verify();
        }
        if self.tick_at <= now {
            self.tick_at = now + TICK;
            self.denied.attribute(self.graph.cluster(), now);
            if self.is_in_sync {
                self.parts.snapshots.tick(self.graph.cluster(), now);
            }
            self.look_for_slowness(now);
            self.set_gauges();
            self.look_for_this_node();
            self.publish(now);
            self.expire_claims(now);
            self.expire_seats(now);
            self.tick_bypasses(now);
            self.tick_warnings(now);
            let is_enforcing = self.is_in_sync && self.last_commit.is_some();
            self.start_code.tick(is_enforcing, now);
        }
    }
}
