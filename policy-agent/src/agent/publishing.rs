//! What the graph thread hands over to be told to the API server: whether the node is ready, what is in force, and
//! denied flows. Slots and a bounded queue: nothing here waits, and without a part that was asked for nothing is made.

use std::time::{Duration, Instant, SystemTime};

use prometheus_client::registry::Registry;
use smol_str::SmolStr;
use tokio::sync::{mpsc, watch};
use towpath_api::Severity;
use towpath_core::model::{Cluster, EndpointId, EndpointKind};

use super::config::Config;
use super::graph::GraphThread;
use super::report::{Denied, EndpointState, Published};
use crate::layout::{DropReason, Enforcement};
use crate::publish::denied::{Denial, DeniedNote, Flow};
use crate::publish::metrics::Metrics;
use crate::publish::node_status::{
    Figures, MOST_REFUSED, NodeReport, Refused, ResourceVersions, short, version_text,
};
use crate::publish::{self, Desk, Publisher, Wanted};
use crate::source::Versions;

/// Reasons why the node is not ready that a report names.
const MOST_AWAITED: usize = 10;

/// What is told, and what that takes to know.
#[derive(Debug, Default)]
pub(super) struct Publishing {
    desk: Option<Desk>,
    versions: KernelVersions,
}

impl Publishing {
    /// Our side, and the one that the source is to run. Metrics are there only when anything is told.
    pub(super) fn open(config: &Config, registry: &mut Registry) -> (Self, Option<Publisher>) {
        let wanted = Wanted {
            startup_taint: config.startup_taint.clone(),
            node_status: config.node_status.then(|| config.node_status_interval()),
            denied_events: config.denied_events,
        };
        let Some((desk, publisher)) =
            publish::open(&config.node, &wanted, || Metrics::register(registry))
        else {
            return (Self::default(), None);
        };
        let publishing = Self {
            desk: Some(desk),
            versions: KernelVersions::default(),
        };
        (publishing, Some(publisher))
    }

    /// The source has told of everything up to these versions.
    pub(super) fn told(&mut self, versions: Versions) {
        self.versions.told = versions;
    }

    /// Where denied flows go that become Events, if they do.
    pub(super) fn events(&self, node: &str) -> Option<EventSink> {
        let desk = self.desk.as_ref()?;
        Some(EventSink {
            node: node.into(),
            sender: desk.denied.clone()?,
            metrics: desk.metrics.clone(),
        })
    }

    /// How each part does.
    pub(super) fn report(&self) -> Vec<Published> {
        let standings = self.desk.as_ref().map(|desk| desk.standings.all());
        let published = |(what, standing, detail)| Published {
            what: publish::standing::Feature::name(what).to_owned(),
            standing,
            detail,
        };
        standings
            .unwrap_or_default()
            .into_iter()
            .map(published)
            .collect()
    }
}

/// Joins versions of the source with generations of the kernel.
#[derive(Clone, Copy, Debug, Default)]
struct KernelVersions {
    told: Versions,
    /// What the kernel holds as soon as it has this generation.
    coming: Option<(u64, Versions)>,
    held: Versions,
}

impl KernelVersions {
    /// To be called when everything that was told has been flushed. Under a stream of changes, generations are always
    /// pending; one is awaited at a time, so that what is held goes on.
    fn pass(&mut self, generation: u64, wanted: u64) {
        if let Some((needed, versions)) = self.coming
            && generation >= needed
        {
            self.held = versions;
            self.coming = None;
        }
        if generation == wanted && generation > 0 {
            (self.held, self.coming) = (self.told, None);
        } else if self.coming.is_none() && wanted > 0 {
            self.coming = Some((wanted, self.told));
        }
    }
}

impl GraphThread {
    /// Hands over what is new. Called once a second, after a flush and after the gauges were set.
    pub(super) fn publish(&mut self, now: Instant) {
        let is_flushed = self.is_flushed();
        let publishing = &mut self.parts.publishing;
        if publishing.desk.is_none() {
            return;
        }
        if is_flushed {
            let commits = &self.commits;
            publishing
                .versions
                .pass(commits.generation, commits.wanted_generation);
        }
        let publishing = &self.parts.publishing;
        let Some(desk) = &publishing.desk else {
            return;
        };
        if let Some(ready) = &desk.ready {
            let is_ready = self.is_in_sync && self.parts.readiness.is_ready();
            ready.send_if_modified(|known| std::mem::replace(known, is_ready) != is_ready);
        }
        if let Some(reports) = &desk.report {
            self.publish_report(reports, now);
        }
    }

    fn publish_report(&self, reports: &watch::Sender<NodeReport>, now: Instant) {
        let report = self.node_report(now);
        reports.send_if_modified(|known| {
            let is_news = report.is_news_after(known);
            *known = report;
            is_news
        });
    }

    fn node_report(&self, now: Instant) -> NodeReport {
        let awaited = self.parts.readiness.awaited();
        let bypasses = self.bypass_report().len() as u64;
        let is_enforced =
            awaited.is_empty() && self.enforcement == Enforcement::Enforce && bypasses == 0;
        let counted = |state: EndpointState| self.parts.metrics.endpoints(state.label());
        let all: u64 = EndpointState::ALL.into_iter().map(counted).sum();
        let endpoints = counted(EndpointState::Programmed);
        let (refused_objects, refused) = self.refused_objects();
        let awaited = awaited
            .iter()
            .map(|awaited| format!("{}: {}", awaited.condition, short(&awaited.reason)));
        NodeReport {
            in_sync: self.is_in_sync,
            enforcement: self.enforcement,
            enforced: is_enforced,
            bypasses,
            awaited: awaited.take(MOST_AWAITED).collect(),
            endpoints,
            endpoints_waiting: all - endpoints,
            policies: self.graph.cluster().policies.len() as u64,
            refused_objects,
            refused,
            resource_versions: ResourceVersions::of(&self.parts.publishing.versions.held),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            figures: self.figures(now),
            ..NodeReport::default()
        }
    }

    /// What is not in force as written: how many, and the first of them.
    fn refused_objects(&self) -> (u64, Vec<Refused>) {
        let error = Severity::Error.to_string();
        let problems = || {
            let errors = self.problems.iter();
            errors.filter(|problem| problem.severity == error)
        };
        let faulty = problems().map(|problem| {
            let object = problem.object.as_deref().unwrap_or(&problem.file);
            Refused::new(object, &problem.message)
        });
        let too_many = "too many of its ipBlocks lie in those of other policies; they match nobody";
        let blocks = self.refused.iter();
        let blocks = blocks.map(|policy| Refused::new(&policy.to_string(), too_many));
        let count = problems().count() + self.refused.len();
        (
            count as u64,
            faulty.chain(blocks).take(MOST_REFUSED).collect(),
        )
    }

    fn figures(&self, now: Instant) -> Figures {
        let held = &self.parts.publishing.versions.held;
        let latency = self.latencies.report();
        let milliseconds = |seconds: Option<f64>| seconds.map(|s| (s * 1e6).round() / 1e3);
        let oldest = self.oldest_pending();
        let lag = oldest.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        let commit = self.last_commit.map(|at| {
            let ago = now.saturating_duration_since(at);
            let at = SystemTime::now().checked_sub(ago);
            publish::to_second(at.unwrap_or(SystemTime::UNIX_EPOCH))
        });
        Figures {
            pods_resource_version: version_text(held.pods),
            nodes_resource_version: version_text(held.nodes),
            generation: self.commits.generation,
            wanted_generation: self.commits.wanted_generation,
            last_commit: commit,
            lag_seconds: (lag.as_secs_f64() * 1e3).round() / 1e3,
            latency_p50_milliseconds: milliseconds(latency.p50_seconds),
            latency_p99_milliseconds: milliseconds(latency.p99_seconds),
            latency_last_milliseconds: milliseconds(latency.last_seconds),
        }
    }
}

/// Where denied flows go that are to become Events.
#[derive(Clone, Debug)]
pub(super) struct EventSink {
    node: SmolStr,
    sender: mpsc::Sender<Denial>,
    metrics: Metrics,
}

impl EventSink {
    /// Takes a flow that policy denies at a pod of this node; what is denied for other reasons is no policy's.
    pub(super) fn tell(&self, denied: &Denied, cluster: &Cluster) {
        let Some(note) = self.note(denied, cluster) else {
            return;
        };
        let packets = denied.packets;
        if self.sender.try_send(Denial { note, packets }).is_err() {
            self.metrics.events_suppressed.inc();
        }
    }

    fn note(&self, denied: &Denied, cluster: &Cluster) -> Option<DeniedNote> {
        if denied.reason != DropReason::Policy.name() {
            return None;
        }
        let direction = denied.direction.as_deref()?;
        let (pod, peer, address) = if direction == "egress" {
            (&denied.from, &denied.to, denied.destination)
        } else {
            (&denied.to, &denied.from, denied.source)
        };
        let (namespace, name) = pod.as_deref()?.split_once('/')?;
        let id = EndpointId {
            kind: EndpointKind::Pod,
            namespace: namespace.into(),
            name: name.into(),
        };
        let pod = cluster.endpoints.get(&id)?;
        if pod.node.as_ref() != Some(&self.node) {
            return None;
        }
        let peer = match peer {
            Some(peer) => format!("{peer} ({address})"),
            None => address.to_string(),
        };
        let flow = Flow {
            is_dropped: !denied.audited && !denied.bypassed,
            direction,
            peer: &peer,
            protocol: &denied.protocol,
            port: denied.port,
            rule: denied.rule.as_deref()?,
        };
        let (text, is_dropped) = (flow.text(), flow.is_dropped);
        Some(DeniedNote {
            namespace: id.namespace,
            pod: id.name,
            uid: pod.uid,
            is_dropped,
            text,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(number: u64) -> Versions {
        Versions {
            network_policies: number,
            ..Versions::default()
        }
    }

    #[test]
    fn versions_are_held_once_the_kernel_has_what_follows_from_them() {
        let mut versions = KernelVersions {
            told: version(5),
            ..KernelVersions::default()
        };

        versions.pass(0, 0);
        assert_eq!(versions.held, version(0), "nothing is in force yet");
        versions.pass(0, 1);
        assert_eq!(versions.held, version(0));
        versions.told = version(7);
        versions.pass(1, 2);
        assert_eq!(versions.held, version(5), "7 waits for generation 2");
        versions.told = version(9);
        versions.pass(2, 3);
        assert_eq!(versions.held, version(7));
        versions.pass(3, 3);
        assert_eq!(versions.held, version(9));
        versions.told = version(10);
        versions.pass(3, 3);
        assert_eq!(versions.held, version(10), "nothing followed from it");
    }
}
