//! `towpath status`.

use clap::Args;
use towpath_api::Place;

use super::arguments::SourceLocation;
use super::error::{CommandError, Exit};
use super::output::{Cell, Colour, Format, Output};
use super::{OutputArguments, SocketArguments, client, cluster_status};
use crate::agent::report::{Problem, Published, Status};
use crate::layout::Enforcement;
use crate::publish::standing::Standing;

#[derive(Clone, Debug, Args)]
pub(super) struct StatusArguments {
    /// What every node of the cluster enforces, from the objects that the agents write there; asks no agent.
    #[arg(long)]
    cluster: bool,
    /// With --cluster: kubernetes:KUBECONFIG, or kubernetes inside of a cluster.
    #[arg(long, requires = "cluster", default_value = "kubernetes")]
    source: SourceLocation,
    #[command(flatten)]
    socket: SocketArguments,
    #[command(flatten)]
    output: OutputArguments,
}

/// Exit status 1 when the node does not enforce.
pub(super) fn run(arguments: &StatusArguments) -> Result<Exit, CommandError> {
    if arguments.cluster {
        return cluster_status::run(&arguments.source, arguments.output.format);
    }
    let status: Status = client::get(&arguments.socket.socket, "/status")?;
    let mut output = Output::stdout(arguments.output.format);
    print(&status, &mut output)?;
    output.flush()?;
    Ok(if status.awaited.is_empty() {
        Exit::Done
    } else {
        Exit::Failed
    })
}

fn print(status: &Status, output: &mut Output) -> Result<(), CommandError> {
    if output.format() != Format::Table {
        return Ok(output.value(status)?);
    }
    output.table_of_pairs(&pairs(status))?;
    if !status.awaited.is_empty() {
        output.heading("AWAITED")?;
        for awaited in &status.awaited {
            output.line(&format!("  {}: {}", awaited.condition, awaited.reason))?;
        }
    }
    if !status.warnings.is_empty() {
        output.heading("WARNINGS")?;
        for warning in &status.warnings {
            output.line(&format!("  {warning}"))?;
        }
    }
    if !status.problems.is_empty() {
        output.heading("PROBLEMS")?;
        for problem in &status.problems {
            output.line(&format!("  {}", problem_text(problem)))?;
        }
    }
    Ok(())
}

fn problem_text(problem: &Problem) -> String {
    let place = Place {
        file: problem.file.as_str().into(),
        line: problem.line,
    };
    let mut text = format!("{place}: {}: ", problem.severity);
    for part in [&problem.object, &problem.path].into_iter().flatten() {
        text.push_str(part);
        text.push_str(": ");
    }
    text + &problem.message + "; " + &problem.advice
}

/// Whether policy is in force; an audited node is no fault.
fn enforced(status: &Status) -> Cell {
    let is_bypassed = status.awaited.is_empty() && !status.bypasses.is_empty();
    match (status.enforcement, status.enforced) {
        (Enforcement::Enforce, false) if is_bypassed => {
            Cell::coloured(Colour::Yellow, "no, bypassed: see below")
        }
        (Enforcement::Audit, _) => {
            Cell::coloured(Colour::Yellow, "no, audited: nothing is dropped")
        }
        (Enforcement::Enforce, true) => Cell::coloured(Colour::Green, "yes"),
        (Enforcement::Enforce, false) => Cell::coloured(Colour::Red, "no"),
    }
}

fn pairs(status: &Status) -> Vec<(&'static str, Cell)> {
    let commits = &status.commits;
    let counts = status.endpoints;
    let yes_no = |is_true: bool, yes: &str, no: &str| {
        let (colour, text) = if is_true {
            (Colour::Green, yes)
        } else {
            (Colour::Red, no)
        };
        Cell::coloured(colour, text)
    };
    let mut pairs = vec![
        ("node", Cell::from(status.node.as_str())),
        ("mode", Cell::from(status.mode.as_str())),
        ("enforced", enforced(status)),
        ("in sync", yes_no(status.in_sync, "yes", "no")),
        (
            "version",
            format!("{}, up {}", status.version, span(status.uptime_seconds)).into(),
        ),
        ("generation", generation(status).into()),
        ("last commit", last_commit(status).into()),
        ("latency", latency(status).into()),
        (
            "endpoints",
            format!("{} programmed", counts.programmed).into(),
        ),
    ];
    for bypass in &status.bypasses {
        pairs.push((
            "bypassed",
            Cell::coloured(Colour::Yellow, super::bypass::one_line(bypass)),
        ));
    }
    for (text, count) in [
        ("waiting for interface", counts.waiting_for_interface),
        ("waiting for namespace", counts.waiting_for_namespace),
        ("waiting for address", counts.waiting_for_address),
        ("in conflict", counts.conflict),
    ] {
        if count > 0 {
            pairs.push((
                "",
                Cell::coloured(Colour::Yellow, format!("{count} {text}")),
            ));
        }
    }
    let known = format!(
        "{} policies, {} endpoints, {} nodes, {} classes",
        status.policies, status.cluster_endpoints, status.nodes, status.classes
    );
    pairs.push(("known", known.into()));
    for bridge in &status.bridges {
        let filtered = if bridge.is_filtered {
            "filtered"
        } else {
            "NOT filtered"
        };
        pairs.push(("bridge", format!("{} {filtered}", bridge.name).into()));
    }
    if let Some(flannel) = &status.flannel {
        pairs.push(("flannel", super::get::flannel_line(flannel).into()));
    }
    let ports: Vec<String> = status.overlay_ports.iter().map(u16::to_string).collect();
    if !ports.is_empty() {
        let text = format!("{}/udp of nodes closed to pods", ports.join(","));
        pairs.push(("overlay", text.into()));
    }
    let denied: Vec<String> = status
        .denied
        .iter()
        .map(|count| format!("{} {}", count.packets, count.reason))
        .collect();
    let denied = if denied.is_empty() {
        "none logged".to_owned()
    } else {
        denied.join(", ")
    };
    pairs.push(("denied", denied.into()));
    pairs.extend(status.publishing.iter().map(published));
    if let Some(error) = &commits.error {
        let text = format!("{} failures in a row: {error}", commits.failed_in_a_row);
        pairs.push(("commit", Cell::coloured(Colour::Red, text)));
    }
    if commits.drift_repaired > 0 {
        let text = format!(
            "{} objects changed by others were repaired",
            commits.drift_repaired
        );
        pairs.push(("drift", Cell::coloured(Colour::Yellow, text)));
    }
    let memory = status.memory;
    let text = format!(
        "{} resident, {} peak",
        size(memory.resident_bytes),
        size(memory.peak_bytes)
    );
    pairs.push(("memory", text.into()));
    pairs
}

/// What is told to the API server, and how that goes.
fn published(published: &Published) -> (&'static str, Cell) {
    let colour = match published.standing {
        Standing::Working => Colour::Green,
        Standing::Waiting | Standing::Missing => Colour::Yellow,
        Standing::Refused | Standing::Failing => Colour::Red,
    };
    let name = match published.what.as_str() {
        "startup-taint" => "startup taint",
        "node-status" => "node status",
        _ => "denied events",
    };
    (name, Cell::coloured(colour, published.detail.as_str()))
}

fn generation(status: &Status) -> String {
    let commits = &status.commits;
    if commits.generation == commits.wanted_generation {
        commits.generation.to_string()
    } else {
        format!(
            "{}, {} wanted",
            commits.generation, commits.wanted_generation
        )
    }
}

fn last_commit(status: &Status) -> String {
    let commits = &status.commits;
    match (commits.last_seconds_ago, commits.last_duration_seconds) {
        (Some(ago), Some(took)) => {
            format!(
                "{ago:.1} s ago, took {}; {} in all",
                duration(took),
                commits.done
            )
        }
        _ => "none yet".to_owned(),
    }
}

fn latency(status: &Status) -> String {
    let latency = status.latency;
    let text = |seconds: Option<f64>| seconds.map_or_else(|| "-".to_owned(), duration);
    format!(
        "p50 {}, p99 {}, last {} ({} events)",
        text(latency.p50_seconds),
        text(latency.p99_seconds),
        text(latency.last_seconds),
        latency.events
    )
}

/// A duration in the unit that suits it.
pub(super) fn duration(seconds: f64) -> String {
    if seconds >= 1.0 {
        format!("{seconds:.2} s")
    } else if seconds >= 0.001 {
        format!("{:.2} ms", seconds * 1e3)
    } else {
        format!("{:.0} us", seconds * 1e6)
    }
}

pub(super) fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

fn size(bytes: u64) -> String {
    format!("{}.{} MiB", bytes >> 20, ((bytes & 0xf_ffff) * 10) >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_one_line_whatever_its_file_is_called() {
        let problem = Problem {
            severity: "error".to_owned(),
            file: "d\n\u{1b}[31m/x.yaml".to_owned(),
            line: 3,
            object: Some("NetworkPolicy shop/web".to_owned()),
            path: None,
            message: "bad".to_owned(),
            advice: "mend it".to_owned(),
        };

        assert_eq!(
            problem_text(&problem),
            r"d\n\u{1b}[31m/x.yaml:3: error: NetworkPolicy shop/web: bad; mend it"
        );
    }

    #[test]
    fn writes_figures_for_people() {
        assert_eq!(duration(0.000_123), "123 us");
        assert_eq!(duration(0.012_3), "12.30 ms");
        assert_eq!(duration(2.5), "2.50 s");
        assert_eq!(span(7_300), "2 h");
        assert_eq!(size(31_981_568), "30.5 MiB");
    }
}
