//! Metrics of the agent. Names are `towpath_<part>_<what>_<unit>`; labels are closed enums, never names of pods.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use towpath_runtime::process::Memory;
use towpath_runtime::readiness::Readiness;

use super::bypass::BypassScope;
use super::denied::{Outcome, Reason};
use crate::source::Tally;

/// Who told of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Teller {
    /// The source of manifests.
    Source,
    /// The kernel's interfaces.
    Interfaces,
    /// The CNI plugin.
    Cni,
}

impl Teller {
    fn label(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Interfaces => "interfaces",
            Self::Cni => "cni",
        }
    }
}

/// How a commit ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CommitResult {
    /// The kernel took it.
    Done,
    /// The kernel refused it, or could not be asked.
    Failed,
}

impl CommitResult {
    fn label(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
        }
    }
}

// Values of all labels come from our own closed lists.

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct FromLabel {
    from: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ResultLabel {
    result: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct StateLabel {
    state: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ScopeLabel {
    scope: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct KindLabel {
    kind: &'static str,
}

/// The agent's metrics; clones share the values.
#[derive(Clone, Debug)]
pub(super) struct Metrics {
    events: Family<FromLabel, Counter>,
    pub(super) flush_seconds: Histogram,
    pub(super) commit_seconds: Histogram,
    commits: Family<ResultLabel, Counter>,
    pub(super) pending_generations: Gauge,
    pub(super) drift_repaired: Counter,
    pub(super) programming_latency_seconds: Histogram,
    denied_packets: Family<ReasonLabel, Counter>,
    audited_packets: Family<ReasonLabel, Counter>,
    bypassed_packets: Family<ReasonLabel, Counter>,
    bypasses: Family<ScopeLabel, Gauge>,
    pub(super) denied_lost: Counter,
    endpoints: Family<StateLabel, Gauge>,
    pub(super) cluster_endpoints: Gauge,
    pub(super) policies: Gauge,
    pub(super) classes: Gauge,
    cni_claims: Gauge,
    cni_waiting: Gauge,
    problems: Family<KindLabel, Gauge>,
    warnings: Family<KindLabel, Gauge>,
    malformed: Family<KindLabel, Counter>,
    expired: Family<KindLabel, Counter>,
}

/// Upper bounds of buckets, in seconds: 50 us to 10 s.
const BUCKETS: [f64; 17] = [
    0.000_05, 0.000_1, 0.000_2, 0.000_3, 0.000_5, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05,
    0.1, 0.5, 1.0, 2.0, 10.0,
];

impl Metrics {
    /// Makes and registers them.
    pub(super) fn register(registry: &mut Registry, readiness: Readiness) -> Self {
        let histogram = || Histogram::new(BUCKETS);
        let metrics = Self {
            events: Family::default(),
            flush_seconds: histogram(),
            commit_seconds: histogram(),
            commits: Family::default(),
            pending_generations: Gauge::default(),
            drift_repaired: Counter::default(),
            programming_latency_seconds: histogram(),
            denied_packets: Family::default(),
            audited_packets: Family::default(),
            bypassed_packets: Family::default(),
            bypasses: Family::default(),
            denied_lost: Counter::default(),
            endpoints: Family::default(),
            cluster_endpoints: Gauge::default(),
            policies: Gauge::default(),
            classes: Gauge::default(),
            cni_claims: Gauge::default(),
            cni_waiting: Gauge::default(),
            problems: Family::default(),
            warnings: Family::default(),
            malformed: Family::default(),
            expired: Family::default(),
        };
        metrics.register_all(registry);
        registry.register_collector(Box::new(Process { readiness }));
        metrics
    }

    #[rustfmt::skip]
    fn register_all(&self, registry: &mut Registry) {
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "Version of the agent", version);
        registry.register("graph_events", "Changes that were told", self.events.clone());
        registry.register_with_unit("graph_flush", "Time to compute what changes in the tables", Unit::Seconds, self.flush_seconds.clone());
        registry.register("graph_endpoints", "Endpoints of this node by state", self.endpoints.clone());
        registry.register("graph_cluster_endpoints", "Endpoints of the whole cluster", self.cluster_endpoints.clone());
        registry.register("graph_policies", "Policies known", self.policies.clone());
        registry.register("graph_classes", "Classes of peers in use", self.classes.clone());
        registry.register("cni_claims", "Pods that have addresses from the CNI plugin and not yet from the source", self.cni_claims.clone());
        registry.register("cni_waiting", "Pods that are held back until their policy is in force", self.cni_waiting.clone());
        registry.register("agent_warnings", "What holds and hardly is meant, by kind", self.warnings.clone());
        registry.register("source_problems", "Objects with faults, by kind", self.problems.clone());
        registry.register("source_malformed_objects", "Versions of objects from the API server that could not be understood, by kind", self.malformed.clone());
        registry.register("source_expired_watches", "Watches that the API server could not go on with (410), by kind; a list followed each", self.expired.clone());
        registry.register_with_unit("dataplane_commit", "Time of one commit to the kernel", Unit::Seconds, self.commit_seconds.clone());
        registry.register("dataplane_commits", "Commits by result", self.commits.clone());
        registry.register("dataplane_pending_generations", "Flushes that the kernel does not have yet", self.pending_generations.clone());
        registry.register("dataplane_drift_repaired_objects", "Objects that others changed and that were repaired", self.drift_repaired.clone());
        registry.register_with_unit("agent_programming_latency", "From an event's arrival to the end of its commit", Unit::Seconds, self.programming_latency_seconds.clone());
        registry.register("denied_packets", "Logged denied packets by reason; the kernel logs a limited share", self.denied_packets.clone());
        registry.register("audited_packets", "Logged packets by reason that would be denied, and passed since their node or endpoint is audited", self.audited_packets.clone());
        registry.register("bypassed_packets", "Logged packets by reason that would be denied, and passed since enforcement is open for a while", self.bypassed_packets.clone());
        registry.register("bypasses", "For how many enforcement is open for a while, by scope", self.bypasses.clone());
        registry.register("denied_lost_packets", "Denied packets whose log did not reach the agent", self.denied_lost.clone());
    }

    pub(super) fn set_cni(&self, claims: usize, waiting: usize) {
        self.cni_claims.set(gauge(claims));
        self.cni_waiting.set(gauge(waiting));
    }

    pub(super) fn count_events(&self, teller: Teller, events: usize) {
        let events = u64::try_from(events).unwrap_or(u64::MAX);
        let from = teller.label();
        self.events
            .get_or_create(&FromLabel { from })
            .inc_by(events);
    }

    pub(super) fn count_commit(&self, result: CommitResult) {
        self.commits
            .get_or_create(&ResultLabel {
                result: result.label(),
            })
            .inc();
    }

    pub(super) fn count_denied(&self, reason: Reason, packets: u64) {
        let family = match reason.outcome {
            Outcome::Dropped => &self.denied_packets,
            Outcome::Audited => &self.audited_packets,
            Outcome::Bypassed => &self.bypassed_packets,
        };
        family
            .get_or_create(&ReasonLabel {
                reason: reason.name,
            })
            .inc_by(packets);
    }

    /// Sets how many of each scope are open.
    pub(super) fn set_bypasses<'a>(&self, open: impl Iterator<Item = &'a BypassScope>) {
        let mut counts = BypassScope::KINDS.map(|scope| (scope, 0));
        for scope in open {
            for (kind, count) in &mut counts {
                *count += usize::from(*kind == scope.kind());
            }
        }
        for (scope, count) in counts {
            self.bypasses
                .get_or_create(&ScopeLabel { scope })
                .set(gauge(count));
        }
    }

    /// Adds what a source has counted.
    pub(super) fn count_tally(&self, tally: &Tally) {
        for (family, counts) in [
            (&self.malformed, &tally.malformed),
            (&self.expired, &tally.expired),
        ] {
            for (&kind, &count) in counts {
                family.get_or_create(&KindLabel { kind }).inc_by(count);
            }
        }
    }

    pub(super) fn set_endpoints(&self, state: &'static str, count: usize) {
        self.endpoints
            .get_or_create(&StateLabel { state })
            .set(gauge(count));
    }

    /// Endpoints of this node in a state, as they were counted last.
    pub(super) fn endpoints(&self, state: &'static str) -> u64 {
        let gauge = self.endpoints.get_or_create(&StateLabel { state });
        u64::try_from(gauge.get()).unwrap_or_default()
    }

    pub(super) fn set_warnings(&self, kind: &'static str, count: usize) {
        self.warnings
            .get_or_create(&KindLabel { kind })
            .set(gauge(count));
    }

    /// Sets the counts of all kinds; kinds without problems are set to zero by the caller.
    pub(super) fn set_problems(&self, kind: &'static str, count: usize) {
        self.problems
            .get_or_create(&KindLabel { kind })
            .set(gauge(count));
    }
}

/// The value of a gauge for a count.
pub(super) fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Figures that are read when somebody asks.
#[derive(Debug)]
struct Process {
    readiness: Readiness,
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let ready = ConstGauge::new(i64::from(self.readiness.is_ready()));
        let help = "Whether policy is in force for this node.";
        ready.encode(encoder.encode_descriptor(
            "agent_ready",
            help,
            None,
            ready.metric_type(),
        )?)?;
        let Some(memory) = Memory::read() else {
            return Ok(());
        };
        for (name, help, bytes) in [
            ("agent_memory_resident", "Resident memory.", memory.resident),
            (
                "agent_memory_peak",
                "Most resident memory so far.",
                memory.peak,
            ),
        ] {
            let value = ConstGauge::new(i64::try_from(bytes).unwrap_or(i64::MAX));
            let unit = Some(&Unit::Bytes);
            value.encode(encoder.encode_descriptor(name, help, unit, value.metric_type())?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_have_their_names_and_units() {
        let mut registry = Registry::with_prefix("towpath");
        let metrics = Metrics::register(&mut registry, Readiness::default());
        metrics.count_events(Teller::Source, 3);
        metrics.count_commit(CommitResult::Done);
        let policy = Reason {
            name: "policy",
            outcome: Outcome::Dropped,
        };
        metrics.count_denied(policy, 2);
        let pod = BypassScope::Pod {
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
        };
        metrics.set_bypasses([&pod].into_iter());
        metrics.set_endpoints("programmed", 5);
        metrics.count_tally(&Tally {
            malformed: [("Pod", 2)].into(),
            expired: [("Node", 1)].into(),
        });
        metrics.programming_latency_seconds.observe(0.000_4);

        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();

        for line in [
            "towpath_graph_events_total{from=\"source\"} 3",
            "towpath_dataplane_commits_total{result=\"done\"} 1",
            "towpath_denied_packets_total{reason=\"policy\"} 2",
            "towpath_bypasses{scope=\"pod\"} 1",
            "towpath_bypasses{scope=\"node\"} 0",
            "towpath_graph_endpoints{state=\"programmed\"} 5",
            "towpath_source_malformed_objects_total{kind=\"Pod\"} 2",
            "towpath_source_expired_watches_total{kind=\"Node\"} 1",
            "towpath_agent_programming_latency_seconds_bucket{le=\"0.0005\"} 1",
            "towpath_agent_ready 1",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "{line} is missing in\n{text}"
            );
        }
        assert!(
            text.contains("towpath_agent_memory_resident_bytes"),
            "{text}"
        );
        assert!(text.contains("towpath_build_info{version="), "{text}");
    }
}
