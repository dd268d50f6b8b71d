//! Cold start: no table, no state, no snapshot; everything comes from the API server.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde::Deserialize;
use towpath_tests::cluster::Api;

use super::bed::Bed;
use super::say;
use crate::report::{Arm, Gate, Kind, Report, Section};

/// Cold starts.
const STARTS: u32 = 3;
/// What an agent lists, and how much of it at a time.
const LISTS: [&str; 5] = [
    "/api/v1/pods",
    "/api/v1/namespaces",
    "/api/v1/nodes",
    "/apis/networking.k8s.io/v1/networkpolicies",
    "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies",
];
const PAGE: u32 = 500;

#[derive(Deserialize)]
struct List {
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(rename = "continue")]
    next: Option<String>,
}

/// Starts the agent some times on a clean node; tells when the last start was over.
pub(super) fn measure(report: &mut Report, bed: &mut Bed) -> Result<Instant> {
    let mut bare = Arm::new("control: the lists taken by a bare client");
    let mut whole = Arm::new("start of the process to enforced");
    let mut rest = Arm::new("less the bare lists");
    let mut applied = Arm::new("in sync to enforced, by the agent's log");
    let (mut bytes, mut enforced) = (0, Instant::now());
    for start in 1..=STARTS {
        say(&format!("cold start {start} of {STARTS}"));
        bed.uninstall()?;
        let began = Instant::now();
        bytes = bed.lab.fabric().enter(|| take_lists(&bed.api))??;
        let taken = began.elapsed().as_secs_f64();
        let began = Instant::now();
        bed.start_agent()?;
        enforced = Instant::now();
        let took = enforced.duration_since(began).as_secs_f64();
        bare.samples.push(taken);
        whole.samples.push(took);
        rest.samples.push(took - taken);
        applied.samples.push(logged(bed)?.as_secs_f64());
    }
    report.gates.push(Gate::at_most(
        Kind::Gate,
        "cold start: lists arrived to enforced, s (median)",
        rest.quantile(0.5),
        2.0,
    ));
    let arms = vec![bare, whole, rest, applied];
    let title = "Cold start, 10,000 pods, 10,000 policies, 1,000 nodes";
    let mut section = Section::side_by_side(title, "s", arms);
    section
        .notes
        .push(format!("{} MiB of lists, pages of {PAGE}", bytes >> 20));
    report.sections.push(section);
    Ok(enforced)
}

/// Lists everything as an agent does, one kind after the other, and forgets it; how much it was.
fn take_lists(api: &Api) -> Result<usize> {
    let mut bytes = 0;
    for path in LISTS {
        let mut next = String::new();
        loop {
            let text = api.text(&format!("{path}?limit={PAGE}{next}"))?;
            bytes += text.len();
            match serde_json::from_str::<List>(&text)?.metadata.next {
                Some(token) if !token.is_empty() => next = format!("&continue={token}"),
                _ => break,
            }
        }
    }
    Ok(bytes)
}

/// Between the last two lines of the log that tell of sync and of the first commit.
fn logged(bed: &Bed) -> Result<Duration> {
    let log = bed.lab.folder().join(super::bed::NODE).join("agent.log");
    let text = fs::read_to_string(log)?;
    let moment = |words: &str| {
        let line = text.lines().rfind(|line| line.contains(words));
        line.and_then(time_of_day)
            .with_context(|| format!("the log does not say: {words}"))
    };
    let (in_sync, enforced) = (
        moment("the source is in sync")?,
        moment("policy is in force")?,
    );
    Ok(Duration::from_secs_f64(
        (enforced - in_sync).rem_euclid(86_400.0),
    ))
}

/// Seconds of the day of a log line that begins with `YYYY-MM-DDTHH:MM:SS.FRACTIONZ`.
fn time_of_day(line: &str) -> Option<f64> {
    let clock = line.split_once('T')?.1.split_once('Z')?.0;
    let mut seconds = 0.0;
    for part in clock.split(':') {
        seconds = seconds * 60.0 + part.parse::<f64>().ok()?;
    }
    Some(seconds)
}
