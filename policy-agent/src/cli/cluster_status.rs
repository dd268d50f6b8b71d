//! `towpath status --cluster`: what every node says it enforces, from the objects that the agents write.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::arguments::SourceLocation;
use super::error::{CommandError, Exit};
use super::output::{Cell, Colour, Format, Output};
use super::remark;
use super::status::duration;
use crate::layout::Enforcement;
use crate::publish::node_status::NodeReport;
use crate::publish::to_seconds;
use crate::source::Versions;
use crate::source::kubernetes::{KubernetesSource, NodesSeen};

/// A node that has not written for so many times as long as it said it would is silent.
const MISSED: u64 = 2;
/// No agent promises less than one writing in so many seconds.
const MOST_HEARTBEAT: u64 = 24 * 3600;
/// Refused objects and reasons that a table shows.
const MOST_LINES: usize = 50;

/// How a node does; the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    /// It never wrote, or what cannot be understood.
    NoReport,
    /// It has not written for long.
    Silent,
    /// Its last writing lies in the future, so that its silence would not be seen.
    ClockAhead,
    /// Something is awaited.
    NotEnforced,
    /// It is in force, but for whom an operator has opened it.
    Bypassed,
    /// A newer policy is there than it says to have.
    Behind,
    /// Nothing is dropped, as it is meant.
    Audited,
    /// All is in force.
    Enforced,
}

impl State {
    fn text(self) -> &'static str {
        match self {
            Self::NoReport => "no report",
            Self::Silent => "silent",
            Self::ClockAhead => "clock ahead",
            Self::NotEnforced => "not enforced",
            Self::Bypassed => "bypassed",
            Self::Behind => "behind",
            Self::Audited => "audited",
            Self::Enforced => "enforced",
        }
    }

    fn colour(self) -> Colour {
        match self {
            Self::NoReport | Self::Silent | Self::ClockAhead | Self::NotEnforced => Colour::Red,
            Self::Bypassed | Self::Behind | Self::Audited => Colour::Yellow,
            Self::Enforced => Colour::Green,
        }
    }

    fn is_good(self) -> bool {
        matches!(self, Self::Audited | Self::Enforced)
    }
}

/// A node.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    node: String,
    state: State,
    /// Kinds of which newer objects are there than the node says to have.
    behind: Vec<&'static str>,
    /// Seconds since it wrote, by the clocks of the node and of this machine; negative if its clock is ahead.
    heard_seconds_ago: Option<i64>,
    report: Option<NodeReport>,
}

/// Exit status 1 while a node does not enforce what it is meant to, or does not say so.
pub(super) fn run(source: &SourceLocation, format: Format) -> Result<Exit, CommandError> {
    let SourceLocation::Kubernetes(kubeconfig) = source else {
        let text = "--cluster asks an API server; give --source kubernetes:KUBECONFIG";
        return Err(CommandError::Usage(text.to_owned()));
    };
    let source = KubernetesSource::open(kubeconfig.as_deref())
        .map_err(|error| CommandError::Cluster(error.into()))?;
    let seen = source.see_nodes()?;
    for text in &seen.remarks {
        remark(&format!("towpath: {text}"));
    }
    if seen.reports.is_none() {
        let text = "the API server has no NodeStatus objects; apply deploy/node-status.yaml and set nodeStatus: true in the agents' configuration";
        return Err(CommandError::Failed(text.to_owned()));
    }
    let rows = rows(seen, SystemTime::now());
    let mut output = Output::stdout(format);
    print(&rows, &mut output)?;
    output.flush()?;
    let is_good = rows.iter().all(|row| row.state.is_good());
    Ok(if is_good { Exit::Done } else { Exit::Failed })
}

/// All nodes; those with the worst news first.
fn rows(seen: NodesSeen, now: SystemTime) -> Vec<Row> {
    let mut reports = seen.reports.unwrap_or_default();
    for node in seen.nodes.unwrap_or_default() {
        reports.entry(node).or_default();
    }
    let mut rows: Vec<Row> = reports
        .into_iter()
        .map(|(node, report)| row(node, report, &seen.newest, now))
        .collect();
    rows.sort_by(|a, b| (a.state, &a.node).cmp(&(b.state, &b.node)));
    rows
}

fn row(node: String, report: Option<NodeReport>, newest: &Versions, now: SystemTime) -> Row {
    let Some(report) = report else {
        return Row {
            node,
            state: State::NoReport,
            behind: Vec::new(),
            heard_seconds_ago: None,
            report: None,
        };
    };
    let now = now
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let heard =
        to_seconds(&report.heartbeat).map(|at| now.cast_signed().saturating_sub_unsigned(at));
    let patience = MISSED * report.heartbeat_seconds.clamp(1, MOST_HEARTBEAT);
    let is_silent = heard.is_none_or(|ago| ago > patience.cast_signed());
    let is_ahead = heard.is_some_and(|ago| ago < -patience.cast_signed());
    let behind = behind(&report, newest);
    let state = if is_silent {
        State::Silent
    } else if is_ahead {
        State::ClockAhead
    } else if !report.in_sync || !report.awaited.is_empty() {
        State::NotEnforced
    } else if report.bypasses > 0 {
        State::Bypassed
    } else if !behind.is_empty() {
        State::Behind
    } else if report.enforcement == Enforcement::Audit {
        State::Audited
    } else if report.enforced {
        State::Enforced
    } else {
        State::NotEnforced
    };
    Row {
        node,
        state,
        behind,
        heard_seconds_ago: heard,
        report: Some(report),
    }
}

/// Kinds of which newer objects are there than the node says to have.
fn behind(report: &NodeReport, newest: &Versions) -> Vec<&'static str> {
    let held = &report.resource_versions;
    let kinds = [
        (
            "networkpolicies",
            &held.network_policies,
            newest.network_policies,
        ),
        (
            "clusternetworkpolicies",
            &held.cluster_network_policies,
            newest.cluster_network_policies,
        ),
    ];
    let is_behind = |held: &str, newest: u64| held.parse::<u64>().unwrap_or_default() < newest;
    let behind = kinds
        .into_iter()
        .filter(|(_, held, newest)| is_behind(held, *newest));
    behind.map(|(kind, ..)| kind).collect()
}

fn print(rows: &[Row], output: &mut Output) -> Result<(), CommandError> {
    if output.format() != Format::Table {
        return Ok(output.value(&rows)?);
    }
    let heading = [
        "NODE",
        "STATE",
        "IN SYNC",
        "ENDPOINTS",
        "POLICIES",
        "REFUSED",
        "BEHIND",
        "LATENCY P99",
        "HEARD",
        "VERSION",
    ];
    let cells: Vec<Vec<Cell>> = rows.iter().map(cells).collect();
    output.table(&heading, &cells)?;
    lines("AWAITED", awaited(rows), output)?;
    lines("REFUSED", refused(rows), output)
}

fn cells(row: &Row) -> Vec<Cell> {
    let state = Cell::coloured(row.state.colour(), row.state.text());
    let Some(report) = &row.report else {
        let mut cells = vec![Cell::from(row.node.as_str()), state];
        cells.resize_with(10, || Cell::from("-"));
        return cells;
    };
    let endpoints = match report.endpoints_waiting {
        0 => report.endpoints.to_string(),
        waiting => format!("{}, {waiting} closed", report.endpoints),
    };
    let behind = if row.behind.is_empty() {
        "-".to_owned()
    } else {
        row.behind.join(", ")
    };
    let latency = report.figures.latency_p99_milliseconds;
    let latency = latency.map_or_else(|| "-".to_owned(), |p99| duration(p99 / 1e3));
    let heard = row
        .heard_seconds_ago
        .map_or_else(|| "-".to_owned(), heard_text);
    vec![
        row.node.as_str().into(),
        state,
        if report.in_sync { "yes" } else { "no" }.into(),
        endpoints.into(),
        report.policies.to_string().into(),
        report.refused_objects.to_string().into(),
        behind.into(),
        latency.into(),
        heard.into(),
        plain(&report.version).into(),
    ]
}

fn heard_text(ago: i64) -> String {
    if ago < 0 {
        format!("{} s ahead", ago.unsigned_abs())
    } else {
        format!("{ago} s ago")
    }
}

/// On one line of a terminal: whoever may write the objects may not write there.
fn plain(text: &str) -> String {
    text.replace(char::is_control, " ")
}

fn lines(heading: &str, lines: Vec<String>, output: &mut Output) -> Result<(), CommandError> {
    if lines.is_empty() {
        return Ok(());
    }
    output.heading(heading)?;
    let more = lines.len().saturating_sub(MOST_LINES);
    for line in lines.into_iter().take(MOST_LINES) {
        output.line(&format!("  {}", plain(&line)))?;
    }
    if more > 0 {
        output.line(&format!("  and {more} more"))?;
    }
    Ok(())
}

/// What nodes wait for.
fn awaited(rows: &[Row]) -> Vec<String> {
    let reports = rows
        .iter()
        .filter_map(|row| Some((&row.node, row.report.as_ref()?)));
    let texts = reports.flat_map(|(node, report)| {
        let awaited = report.awaited.iter();
        awaited.map(move |awaited| format!("{node}: {awaited}"))
    });
    texts.collect()
}

/// Objects that are not in force as written, each once.
fn refused(rows: &[Row]) -> Vec<String> {
    let mut nodes: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for report in rows.iter().filter_map(|row| row.report.as_ref()) {
        for refused in &report.refused {
            let key = (refused.object.as_str(), refused.reason.as_str());
            *nodes.entry(key).or_default() += 1;
        }
    }
    let text = |((object, reason), nodes)| match nodes {
        1 => format!("{object}: {reason} (1 node)"),
        nodes => format!("{object}: {reason} ({nodes} nodes)"),
    };
    nodes.into_iter().map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::node_status::ResourceVersions;
    use std::time::Duration;

    const NOW: Duration = Duration::from_hours(500_000);

    fn good() -> NodeReport {
        NodeReport {
            in_sync: true,
            enforced: true,
            version: "1".to_owned(),
            heartbeat: "2027-01-15T07:59:00Z".to_owned(),
            heartbeat_seconds: 300,
            resource_versions: ResourceVersions {
                network_policies: "9".to_owned(),
                ..ResourceVersions::default()
            },
            ..NodeReport::default()
        }
    }

    fn state(report: Option<NodeReport>, newest: u64) -> State {
        let newest = Versions {
            network_policies: newest,
            ..Versions::default()
        };
        row("a".to_owned(), report, &newest, UNIX_EPOCH + NOW).state
    }

    #[test]
    fn a_node_is_in_the_worst_state_that_holds() {
        assert_eq!(state(None, 9), State::NoReport);
        assert_eq!(state(Some(good()), 9), State::Enforced);
        assert_eq!(state(Some(good()), 10), State::Behind);
        let silent = NodeReport {
            heartbeat: "2027-01-15T07:49:59Z".to_owned(),
            ..good()
        };
        assert_eq!(state(Some(silent), 10), State::Silent);
        for (heartbeat, expected) in [
            ("2027-01-15T08:10:00Z", State::Enforced),
            ("2027-01-15T08:10:01Z", State::ClockAhead),
            ("9999-12-30T00:00:00Z", State::ClockAhead),
        ] {
            let ahead = NodeReport {
                heartbeat: heartbeat.to_owned(),
                ..good()
            };
            assert_eq!(state(Some(ahead), 9), expected, "{heartbeat}");
        }
        let boastful = NodeReport {
            heartbeat: "2027-01-13T07:59:59Z".to_owned(),
            heartbeat_seconds: u64::MAX,
            ..good()
        };
        assert_eq!(state(Some(boastful), 9), State::Silent);
        let audited = NodeReport {
            enforcement: Enforcement::Audit,
            enforced: false,
            ..good()
        };
        assert_eq!(state(Some(audited), 9), State::Audited);
        let waiting = NodeReport {
            enforced: false,
            awaited: vec!["source: away".to_owned()],
            ..good()
        };
        assert_eq!(state(Some(waiting), 10), State::NotEnforced);
        let bypassed = NodeReport {
            enforced: false,
            bypasses: 1,
            ..good()
        };
        assert_eq!(state(Some(bypassed), 9), State::Bypassed);
    }

    #[test]
    fn nodes_without_a_report_are_listed_and_the_worst_come_first() {
        let seen = NodesSeen {
            nodes: Some(["a", "b", "c"].map(str::to_owned).into()),
            reports: Some([("b".to_owned(), Some(good()))].into()),
            ..NodesSeen::default()
        };

        let rows = rows(seen, UNIX_EPOCH + NOW);

        let names: Vec<&str> = rows.iter().map(|row| row.node.as_str()).collect();
        assert_eq!(names, ["a", "c", "b"]);
        assert_eq!(rows[2].heard_seconds_ago, Some(60));
    }
}
