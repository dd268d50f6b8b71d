//! What the graph thread answers: status and lists, made when somebody asks.

use std::time::Instant;

use tokio::sync::oneshot;
use towpath_runtime::process::Memory;
use tracing::{info, warn};

use super::event::Question;
use super::graph::GraphThread;
use super::metrics::gauge;
use super::report::{self, Commits, EndpointCounts, EndpointState, Status};
use super::source::{PROBLEM_KINDS, problem_kind};
use super::views;
use crate::layout::Enforcement;

impl GraphThread {
    pub(super) fn answer(&self, question: Question) {
        let (cluster, node) = (self.graph.cluster(), self.node.as_str());
        let foreign = &self.foreign_ports;
        match question {
            Question::Status(to) => tell(to, self.status()),
            Question::Endpoints(to) => tell(to, views::endpoints(cluster, node, foreign)),
            Question::Policies(to) => tell(to, views::policies(cluster, node, foreign)),
            Question::Classes(to) => tell(to, views::classes(&self.graph.tables())),
            Question::Denied(to) => tell(to, self.denied.report()),
            Question::Bypasses(to) => tell(to, self.bypass_report()),
            Question::Flannel(to) => tell(to, self.surroundings.report()),
        }
    }

    fn status(&self) -> Status {
        let now = Instant::now();
        let cluster = self.graph.cluster();
        let awaited: Vec<report::Awaited> = self
            .parts
            .readiness
            .awaited()
            .into_iter()
            .map(|awaited| report::Awaited {
                condition: awaited.condition.to_owned(),
                reason: awaited.reason,
            })
            .collect();
        let bridges = self.host.bridges.iter().map(|bridge| report::Bridge {
            name: bridge.name.to_string(),
            is_filtered: bridge.is_filtered,
        });
        let bypasses = self.bypass_report();
        let memory = Memory::read().unwrap_or_default();
        Status {
            node: self.node.clone(),
            mode: "policy-only".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: now.duration_since(self.started).as_secs(),
            enforcement: self.enforcement,
            enforced: awaited.is_empty()
                && self.enforcement == Enforcement::Enforce
                && bypasses.is_empty(),
            awaited,
            warnings: self.warning_texts(now),
            flannel: self.surroundings.report(),
            overlay_ports: self.facts.overlay_ports(),
            bypasses,
            in_sync: self.is_in_sync,
            commits: Commits {
                last_seconds_ago: self
                    .last_commit
                    .map(|at| now.duration_since(at).as_secs_f64()),
                ..self.commits.clone()
            },
            latency: self.latencies.report(),
            endpoints: views::endpoint_counts(cluster, &self.node, &self.foreign_ports),
            policies: cluster.policies.len(),
            classes: self.graph.class_count(),
            nodes: cluster.nodes.len(),
            cluster_endpoints: cluster.endpoints.len(),
            bridges: bridges.collect(),
            denied: self.denied.counts(),
            problems: self.problems.clone(),
            publishing: self.parts.publishing.report(),
            memory: report::Memory {
                resident_bytes: memory.resident,
                peak_bytes: memory.peak,
            },
        }
    }

    /// What is odd about this node, once the source is known.
    pub(super) fn strangeness(&self) -> Option<String> {
        let (cluster, node) = (self.graph.cluster(), self.node.as_str());
        self.is_in_sync
            .then(|| views::strangeness(cluster, node, &self.foreign_ports))
            .flatten()
    }

    /// Says once that no object speaks of this node, and once that one does.
    pub(super) fn look_for_this_node(&mut self) {
        let found = self.strangeness();
        if found.is_some() == self.is_stranger {
            return;
        }
        self.is_stranger = found.is_some();
        if let Some(reason) = found {
            warn!(node = self.node, reason, "no object speaks of this node");
        } else {
            info!(node = self.node, "the source speaks of this node");
        }
    }

    /// Sets the metrics that are states, not events.
    pub(super) fn set_gauges(&self) {
        let metrics = &self.parts.metrics;
        let cluster = self.graph.cluster();
        let counts = views::endpoint_counts(cluster, &self.node, &self.foreign_ports);
        for state in EndpointState::ALL {
            metrics.set_endpoints(state.label(), count_of(counts, state));
        }
        for kind in PROBLEM_KINDS {
            let errors = self
                .problems
                .iter()
                .filter(|problem| problem_kind(problem) == Some(kind));
            metrics.set_problems(kind, errors.count());
        }
        metrics
            .cluster_endpoints
            .set(gauge(cluster.endpoints.len()));
        metrics.policies.set(gauge(cluster.policies.len()));
        metrics.classes.set(gauge(self.graph.class_count()));
    }
}

/// Who asked may have gone; then nobody is told.
fn tell<T>(to: oneshot::Sender<T>, answer: T) {
    drop(to.send(answer));
}

fn count_of(counts: EndpointCounts, state: EndpointState) -> usize {
    match state {
        EndpointState::Programmed => counts.programmed,
        EndpointState::WaitingForInterface => counts.waiting_for_interface,
        EndpointState::WaitingForNamespace => counts.waiting_for_namespace,
        EndpointState::WaitingForAddress => counts.waiting_for_address,
        EndpointState::Conflict => counts.conflict,
    }
}
