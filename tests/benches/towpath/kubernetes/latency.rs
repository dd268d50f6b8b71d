//! From the end of a write to the first packet that meets it.

use std::time::Instant;

use anyhow::Result;
use serde_json::json;
use towpath_tests::cluster::Api;

use super::bed::{Bed, LABEL_PORT, NAMESPACE, POLICY_PORT};
use super::metrics::Histogram;
use super::say;
use super::traffic::{Traffic, Turn};
use super::watch::BareWatch;
use crate::report::{Arm, Gate, Kind, Report, Section};

/// Changes of each kind in each direction.
const ROUNDS: u32 = 250;
/// Rounds before, which do not count.
const WARM_UP: u32 = 5;
const HISTOGRAM: &str = "towpath_agent_programming_latency_seconds";

/// Bounds of one load, in milliseconds.
pub(super) struct Goals {
    pub(super) title: &'static str,
    pub(super) median: Option<f64>,
    /// At the 99th percentile.
    pub(super) worst: f64,
    /// Whether what the agent itself takes is bound, too.
    pub(super) is_inside_bound: bool,
}

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    /// A policy that lets the sender in is created and deleted.
    Policy,
    /// The sender gets the label that a policy asks for, and loses it.
    Label,
}

impl Change {
    fn port(self) -> u16 {
        match self {
            Self::Policy => POLICY_PORT,
            Self::Label => LABEL_PORT,
        }
    }

    fn words(self) -> [&'static str; 3] {
        match self {
            Self::Policy => ["policy", "policy deleted", "policy created"],
            Self::Label => ["pod label", "label removed", "label set"],
        }
    }

    fn watch(self, api: &Api) -> Result<BareWatch> {
        match self {
            Self::Policy => {
                BareWatch::start(api, "/apis/networking.k8s.io/v1/networkpolicies", "toggle")
            }
            Self::Label => BareWatch::start(api, "/api/v1/pods", "sender"),
        }
    }

    fn allow(self, api: &Api) -> Result<()> {
        match self {
            Self::Policy => api.create(&policies(), &toggle()).map(drop),
            Self::Label => label(api, "yes"),
        }
    }

    fn deny(self, api: &Api) -> Result<()> {
        match self {
            Self::Policy => api.delete(&format!("{}/toggle", policies())),
            Self::Label => label(api, "no"),
        }
    }
}

fn policies() -> String {
    format!("/apis/networking.k8s.io/v1/namespaces/{NAMESPACE}/networkpolicies")
}

fn toggle() -> serde_json::Value {
    json!({
        "metadata": { "name": "toggle" },
        "spec": {
            "podSelector": { "matchLabels": { "app": "app-0" } },
            "policyTypes": ["Ingress"],
            "ingress": [{
                "from": [{ "podSelector": { "matchLabels": { "app": "probe" } } }],
                "ports": [{ "protocol": "UDP", "port": POLICY_PORT }],
            }],
        },
    })
}

fn label(api: &Api, value: &str) -> Result<()> {
    let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/sender");
    let labels = json!({ "metadata": { "labels": { "client": value } } });
    api.merge(&path, &labels).map(drop)
}

/// Measures both kinds of changes, and asks the agent what it saw of them.
pub(super) fn measure(report: &mut Report, bed: &Bed, goals: &Goals) -> Result<()> {
    let before = Histogram::parse(&bed.agent()?.metrics()?, HISTOGRAM)?;
    for change in [Change::Policy, Change::Label] {
        say(&format!(
            "{}: {ROUNDS} times a {} there and back",
            goals.title,
            change.words()[0]
        ));
        let traffic = bed.traffic(change.port())?;
        let samples = bed
            .lab
            .fabric()
            .enter(|| samples(&bed.api, change, &traffic))??;
        samples.report(report, change, goals);
    }
    let inside = Histogram::parse(&bed.agent()?.metrics()?, HISTOGRAM)?.since(&before);
    let (median, worst) = (inside.quantile(0.5) * 1e3, inside.quantile(0.99) * 1e3);
    let arms = vec![Arm::once("median", median), Arm::once("p99", worst)];
    let title = format!(
        "Event received to committed, by the agent's histogram, {}",
        goals.title
    );
    let mut section = Section::side_by_side(title, "ms", arms);
    section
        .notes
        .push(format!("{} batches of events", inside.count()));
    report.sections.push(section);
    if goals.is_inside_bound {
        for (name, measured, limit) in [("median", median, 1.0), ("p99", worst, 10.0)] {
            let name = format!("{}: event received to committed, {name}, ms", goals.title);
            report
                .gates
                .push(Gate::at_most(Kind::Gate, name, measured, limit));
        }
    }
    Ok(())
}

/// Milliseconds of one kind of change.
struct Samples {
    written: Arm,
    seen: Arm,
    denied: Arm,
    allowed: Arm,
    gaps: Arm,
    strays: usize,
}

fn samples(api: &Api, change: Change, traffic: &Traffic) -> Result<Samples> {
    let [_, denied, allowed] = change.words();
    let mut samples = Samples {
        seen: Arm::new("control: write returned -> a bare watch saw it"),
        written: Arm::new("write sent -> returned"),
        denied: Arm::new(format!("{denied} -> first packet denied")),
        allowed: Arm::new(format!("{allowed} -> first packet allowed")),
        gaps: Arm::new("between the packets around the change"),
        strays: 0,
    };
    let watch = change.watch(api)?;
    traffic.forget();
    traffic.await_closed()?;
    for round in 0..WARM_UP + ROUNDS {
        let is_counted = round >= WARM_UP;
        let open = step(traffic, &watch, || change.allow(api), Traffic::await_open)?;
        let closed = step(traffic, &watch, || change.deny(api), Traffic::await_closed)?;
        if is_counted {
            samples.allowed.samples.push(open.latency());
            samples.denied.samples.push(closed.latency());
            for step in [open, closed] {
                samples
                    .seen
                    .samples
                    .push(milliseconds(step.returned, step.seen));
                samples
                    .written
                    .samples
                    .push(milliseconds(step.sent, step.returned));
                samples.gaps.samples.push(step.turn.gap.as_secs_f64() * 1e3);
                samples.strays += step.turn.strays;
            }
        }
    }
    Ok(samples)
}

/// One write and what came of it.
struct Step {
    sent: Instant,
    returned: Instant,
    seen: Instant,
    turn: Turn,
}

impl Step {
    fn latency(&self) -> f64 {
        milliseconds(self.returned, self.turn.first)
    }
}

fn step(
    traffic: &Traffic,
    watch: &BareWatch,
    write: impl FnOnce() -> Result<()>,
    wait: impl FnOnce(&Traffic) -> Result<Turn>,
) -> Result<Step> {
    traffic.forget();
    let sent = Instant::now();
    write()?;
    let returned = Instant::now();
    let turn = wait(traffic)?;
    Ok(Step {
        sent,
        returned,
        seen: watch.next()?,
        turn,
    })
}

/// Negative when the second comes before the first: an event may be out before the answer to its write.
fn milliseconds(from: Instant, to: Instant) -> f64 {
    let ahead = to.saturating_duration_since(from).as_secs_f64();
    let behind = from.saturating_duration_since(to).as_secs_f64();
    (ahead - behind) * 1e3
}

impl Samples {
    fn report(self, report: &mut Report, change: Change, goals: &Goals) {
        for arm in [&self.denied, &self.allowed] {
            let bounds = [
                goals
                    .median
                    .map(|limit| ("median", arm.quantile(0.5), limit)),
                Some(("p99", arm.quantile(0.99), goals.worst)),
            ];
            for (name, measured, limit) in bounds.into_iter().flatten() {
                let name = format!("{}: {}, {name}, ms", goals.title, arm.name);
                report
                    .gates
                    .push(Gate::at_most(Kind::Gate, name, measured, limit));
            }
        }
        let title = format!("A {} changes, {}", change.words()[0], goals.title);
        let arms = vec![
            self.seen,
            self.denied,
            self.allowed,
            self.written,
            self.gaps,
        ];
        let mut section = Section::side_by_side(title, "ms", arms);
        section.notes.push(format!(
            "{} packets were dropped after the first that passed; below zero: before the write had returned",
            self.strays
        ));
        report.sections.push(section);
    }
}
