//! Our own state: whether an agent works here, and what an earlier one left.

use super::super::facts::{Facts, State};
use super::super::{RIGHTS, Said, Severity};
use crate::agent::report::{Bypass, Status};
use crate::layout::{Enforcement, TableId};

const START: &str = "start the agent of this node, or remove what it left with `towpath uninstall`";

/// Whether our tables are in the kernel, if that is known, and who owns them.
fn own_tables(facts: &Facts) -> Option<(bool, Option<u32>)> {
    let tables = facts.tables.get()?;
    let own: Vec<_> = TableId::ALL
        .into_iter()
        .filter_map(|id| {
            let wanted = id.table();
            tables
                .tables
                .iter()
                .find(|table| format!("{} {}", table.family, table.name) == wanted.to_string())
        })
        .collect();
    let owner = own.iter().find_map(|table| table.owner);
    Some((!own.is_empty(), owner))
}

/// Whether policy is in force, and kept up to date.
///
/// 1. An agent that answers says so itself.
/// 2. Tables that a socket owns have an agent, which serves another socket.
/// 3. Tables without an agent stay as they are: what is new is closed, what changes is not seen.
/// 4. Without tables, a marker on disk says that policy was in force once.
/// 5. Tables without an agent may have been opened for a while.
pub(super) fn agent(facts: &Facts) -> Vec<Said> {
    let status = match &facts.agent {
        super::super::Look::Seen(status) => status,
        super::super::Look::Unseen(reason) => {
            return Said::unseen(reason, "run it as root, and give the agent's --socket");
        }
    };
    if let Some(status) = status {
        return of_status(status);
    }
    let state = facts.state.get().and_then(Option::as_ref);
    let mut said = without_agent(facts, state);
    if own_tables(facts).is_some_and(|(has_tables, _)| has_tables) {
        let noted = state.iter().flat_map(|state| &state.bypasses);
        said.extend(noted.map(bypassed));
    }
    said
}

fn without_agent(facts: &Facts, state: Option<&State>) -> Vec<Said> {
    match own_tables(facts) {
        None => Said::unseen("no agent answers, and tables cannot be listed", RIGHTS),
        Some((true, Some(owner))) => vec![Said::new(
            Severity::Note,
            format!("an agent owns the tables (netlink port {owner}) and does not answer here"),
            "its state is not known",
            "give its --socket",
        )],
        Some((true, None)) => vec![Said::new(
            Severity::Serious,
            format!(
                "rules are in force, and no agent keeps them up to date{}",
                last_sign(state)
            ),
            "what changes is not seen, and new pods stay closed",
            START,
        )],
        Some((false, _)) if state.is_some_and(|state| state.has_enforced) => vec![Said::new(
            Severity::Serious,
            format!(
                "policy was in force here, and its rules are gone{}",
                last_sign(state)
            ),
            "every pod of this node is open until an agent starts",
            START,
        )],
        Some((false, _)) => vec![Said::new(
            Severity::Note,
            "no agent runs here, and none ever did",
            "no policy is in force on this node",
            "start the agent; with `enforcement: audit` it drops nothing at first",
        )],
    }
}

fn last_sign(state: Option<&State>) -> String {
    match state.and_then(|state| state.seconds_ago) {
        Some(seconds) => format!("; it wrote its last file {} ago", span(seconds)),
        None => String::new(),
    }
}

fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// Enforcement is open for a while.
fn bypassed(bypass: &Bypass) -> Said {
    Said::new(
        Severity::Warning,
        format!(
            "enforcement is open for {}, for another {}: {}",
            bypass.scope,
            span(bypass.seconds_left),
            bypass.reason
        ),
        "what policy denies there is counted, and passes",
        "it ends by itself; `towpath bypass off` ends it now",
    )
}

fn of_status(status: &Status) -> Vec<Said> {
    let mut said: Vec<Said> = status
        .awaited
        .iter()
        .map(|awaited| {
            Said::new(
                Severity::Serious,
                format!(
                    "the agent is not ready: {}: {}",
                    awaited.condition, awaited.reason
                ),
                "policy is not in force for all pods as it is written",
                "mend what the reason names; `towpath status` shows the rest",
            )
        })
        .collect();
    if status.enforcement == Enforcement::Audit {
        said.push(Said::new(
            Severity::Note,
            "this node is audited",
            "what policy denies is counted and logged, and passes",
            "set `enforcement: enforce` once `towpath get denied` shows nothing that must pass",
        ));
    }
    said.extend(status.bypasses.iter().map(bypassed));
    if let Some(error) = &status.commits.error {
        let times = status.commits.failed_in_a_row;
        said.push(Said::new(
            Severity::Serious,
            format!("the kernel refused the last {times} commits: {error}"),
            "the newest policy is not in force",
            "look at the agent's log",
        ));
    }
    let faulty = status.problems.len();
    if faulty > 0 {
        said.push(Said::new(
            Severity::Warning,
            format!("{faulty} faults in objects that the agent reads"),
            "such an object is not in force as it is written",
            "`towpath status` names each with its advice",
        ));
    }
    if said.is_empty() {
        let counts = status.endpoints;
        said = Said::ok(format!(
            "the agent enforces; {} endpoints, generation {}",
            counts.programmed, status.commits.generation
        ));
    }
    said
}

/// What an earlier installation left.
pub(super) fn leftovers(facts: &Facts) -> Vec<Said> {
    let (Some(agent), Some(tables)) = (facts.agent.get(), own_tables(facts)) else {
        return Said::unseen("neither the agent nor the tables are known", RIGHTS);
    };
    if agent.is_some() || matches!(tables, (_, Some(_))) {
        return Said::ok("an agent runs; what is here is its own");
    }
    let mut said = Vec::new();
    let has_marker = match facts.state.get() {
        Some(state) => state.as_ref().is_some_and(|state| state.has_enforced),
        None => return Said::unseen("the state directory cannot be read", RIGHTS),
    };
    if tables.0 && !has_marker {
        said.push(Said::new(
            Severity::Warning,
            "tables of ours are here without the state of an agent",
            "they are of an installation that was not removed whole, or of an agent with another --state-dir",
            "remove them with `towpath uninstall`, or give the right --state-dir",
        ));
    }
    if facts
        .cni
        .get()
        .is_some_and(super::super::facts::Cni::is_chained)
    {
        said.push(Said::new(
            Severity::Serious,
            "the CNI plugin towpath-cni is in the chain, and no agent runs",
            "no new pod starts on this node",
            "start the agent, or take the plugin out with `towpath cni remove`",
        ));
    }
    if said.is_empty() {
        said = Said::ok("nothing of an earlier installation");
    }
    said
}
