//! `towpath simulate`: every pair of pods, every declared port, judged by the evaluator.

use std::borrow::Cow;
use std::net::IpAddr;

use clap::Args;
use serde::Serialize;
use towpath_core::evaluate::{Evaluator, Flow, FlowDecision};
use towpath_core::model::{Cluster, ContainerPort, Endpoint, Verdict};

use super::arguments::SourceLocation;
use super::error::{CommandError, Exit};
use super::output::{Cell, Colour, Format, List, Output};
use super::placeholder::Placeholders;
use super::world::{self, World};
use super::{OutputArguments, remark};

#[derive(Clone, Debug, Args)]
pub(super) struct SimulateArguments {
    #[arg(
        long,
        env = "TOWPATH_SOURCE",
        help = "Where objects come from: file:DIR, kubernetes:KUBECONFIG, or kubernetes inside of a cluster"
    )]
    source: SourceLocation,
    /// Print only the pairs whose verdict changes with this directory of manifests. Its objects are laid over those
    /// of the source; if it holds every endpoint of the source, it is compared as a whole.
    #[arg(long, value_name = "DIR2")]
    with: Option<SourceLocationOrDirectory>,
    /// Compare the directory of --with as a whole, even if it lacks endpoints of the source.
    #[arg(long, requires = "with")]
    whole: bool,
    #[command(flatten)]
    output: OutputArguments,
}

/// A directory, with or without `file:`, or the cluster of a kubeconfig.
#[derive(Clone, Debug)]
struct SourceLocationOrDirectory(SourceLocation);

impl std::str::FromStr for SourceLocationOrDirectory {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // A directory may be called kubernetes.
        let location = match text.split_once(':') {
            Some(_) => text.parse().or_else(|_| format!("file:{text}").parse())?,
            None => SourceLocation::File(text.into()),
        };
        Ok(Self(location))
    }
}

/// Why a verdict is as it is where the pods have no address family in common.
const NO_FAMILY: &str = "no address family in common";

/// One line of the matrix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row<'a> {
    from: &'a str,
    to: &'a str,
    port: u16,
    protocol: String,
    verdict: String,
    rule: Cow<'static, str>,
    families: Vec<&'static str>,
    /// Verdict before the change, where states are compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<String>,
    /// What decided before the change.
    #[serde(skip_serializing_if = "Option::is_none")]
    rule_before: Option<Cow<'static, str>>,
}

/// Exit status 1 if verdicts change, or if one of two states has errors: then nobody knows whether they do.
pub(super) fn run(arguments: &SimulateArguments) -> Result<Exit, CommandError> {
    let mut output = Output::stdout(arguments.output.format);
    let mut placeholders = Placeholders::default();
    let World {
        mut cluster,
        is_sound,
    } = world::load(&arguments.source)?;
    let (mut after, is_known) = match &arguments.with {
        Some(SourceLocationOrDirectory(with)) => {
            let second = world::load(with)?;
            say_unsound(&arguments.source, is_sound);
            say_unsound(with, second.is_sound);
            let is_known = is_sound && second.is_sound;
            (
                Some(lay(&cluster, with, second.cluster, arguments.whole)),
                is_known,
            )
        }
        None => (None, true),
    };
    say_placeholders(placeholders.fill(&mut cluster));
    if let Some(after) = &mut after {
        placeholders.fill(after);
    }
    let changes = match &after {
        Some(after) => compare(&cluster, after, &mut output)?,
        None => matrix(&cluster, &mut output)?,
    };
    output.flush()?;
    let is_changed = after.is_some() && changes > 0;
    Ok(if is_changed || !is_known {
        Exit::Failed
    } else {
        Exit::Done
    })
}

fn say_unsound(source: &SourceLocation, is_sound: bool) {
    if !is_sound {
        remark(&format!(
            "towpath: {source} has errors, so what changes is not known for sure; correct them first"
        ));
    }
}

fn say_placeholders(count: usize) {
    if count > 0 {
        remark(&format!(
            "towpath: {count} endpoints have no address yet; they are judged under addresses of 198.18.0.0/15"
        ));
    }
}

/// The state that results from the second directory.
fn lay(cluster: &Cluster, with: &SourceLocation, second: Cluster, is_whole: bool) -> Cluster {
    let has_all = cluster
        .endpoints
        .keys()
        .all(|id| second.endpoints.contains_key(id));
    if is_whole || (has_all && !cluster.endpoints.is_empty()) {
        remark(&format!("towpath: {with} is compared as a whole"));
        return second;
    }
    remark(&format!("towpath: {with} is laid over the source"));
    let mut laid = cluster.clone();
    laid.namespaces.extend(second.namespaces);
    laid.nodes.extend(second.nodes);
    laid.endpoints.extend(second.endpoints.into_values());
    laid.policies.extend(second.policies.into_values());
    laid
}

/// A workload with its name as users write it.
struct Named<'a> {
    name: String,
    endpoint: &'a Endpoint,
}

fn workloads(cluster: &Cluster) -> Vec<Named<'_>> {
    let workloads = cluster
        .endpoints
        .values()
        .filter(|endpoint| endpoint.is_workload());
    workloads
        .map(|endpoint| Named {
            name: endpoint.id.to_string(),
            endpoint,
        })
        .collect()
}

/// Declared ports without repetition: several containers may name one.
fn ports(endpoint: &Endpoint) -> Vec<&ContainerPort> {
    let mut ports: Vec<&ContainerPort> = endpoint.ports.iter().collect();
    ports.sort_by_key(|port| (port.number, port.protocol));
    ports.dedup_by_key(|port| (port.number, port.protocol));
    ports
}

/// The flows between two workloads to one port, one per address family that both have.
fn flows(from: &Endpoint, to: &Endpoint, port: &ContainerPort) -> Vec<Flow> {
    let of_family = |endpoint: &Endpoint, is_v4: bool| {
        endpoint
            .addresses
            .iter()
            .copied()
            .find(|address| address.is_ipv4() == is_v4)
    };
    let flow = |is_v4| {
        Some(Flow {
            source: of_family(from, is_v4)?,
            destination: of_family(to, is_v4)?,
            protocol: port.protocol.number(),
            port: Some(port.number),
        })
    };
    [true, false].into_iter().filter_map(flow).collect()
}

fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "ipv4" } else { "ipv6" }
}

fn rule(decision: &FlowDecision) -> Cow<'static, str> {
    let (egress, ingress) = (&decision.egress, &decision.ingress);
    match (egress.verdict, ingress.verdict) {
        (Verdict::Deny, _) => format!("egress: {}", egress.reason).into(),
        (Verdict::Allow, Verdict::Deny) => format!("ingress: {}", ingress.reason).into(),
        (Verdict::Allow, Verdict::Allow) => {
            format!("egress: {}; ingress: {}", egress.reason, ingress.reason).into()
        }
    }
}

/// A verdict with its reason, for the families for which it holds.
struct Judged {
    verdict: Verdict,
    rule: Cow<'static, str>,
    families: Vec<&'static str>,
}

/// Judges all families; equal outcomes are one.
fn judge(evaluator: &Evaluator<'_>, flows: &[Flow]) -> Vec<Judged> {
    let mut judged: Vec<Judged> = Vec::new();
    for flow in flows {
        let decision = evaluator.decide(flow);
        let rule = rule(&decision);
        let family = family(flow.source);
        let same = |known: &&mut Judged| known.verdict == decision.verdict && known.rule == rule;
        match judged.iter_mut().find(same) {
            Some(known) => known.families.push(family),
            None => judged.push(Judged {
                verdict: decision.verdict,
                rule,
                families: vec![family],
            }),
        }
    }
    if judged.is_empty() {
        let rule = Cow::Borrowed(NO_FAMILY);
        judged.push(Judged {
            verdict: Verdict::Deny,
            rule,
            families: Vec::new(),
        });
    }
    judged
}

/// Writes rows as they come.
enum Sink<'a> {
    Table(&'a mut Output, [usize; 5]),
    List(List<'a>),
}

impl<'a> Sink<'a> {
    fn new(output: &'a mut Output, workloads: &[Named<'_>]) -> std::io::Result<Self> {
        if output.format() != Format::Table {
            return Ok(Self::List(output.list()?));
        }
        let longest = workloads
            .iter()
            .map(|named| named.name.chars().count())
            .max();
        let widths = [
            longest.unwrap_or(0).max(4),
            longest.unwrap_or(0).max(4),
            10,
            13,
            4,
        ];
        let heading = ["FROM", "TO", "PORT", "VERDICT", "RULE"];
        let heading = heading.map(|text| Cell::coloured(Colour::Bold, text));
        output.row(&widths, &heading)?;
        Ok(Self::Table(output, widths))
    }

    fn row(&mut self, row: &Row<'_>) -> std::io::Result<()> {
        let (output, widths) = match self {
            Self::List(list) => return list.item(row),
            Self::Table(output, widths) => (output, widths),
        };
        let verdict = match &row.before {
            Some(before) => format!("{before} -> {}", row.verdict),
            None => row.verdict.clone(),
        };
        let colour = if row.verdict == "allow" {
            Colour::Green
        } else {
            Colour::Red
        };
        let mut rule = row.rule.to_string();
        if row.families.len() == 1 && row.families[0] == "ipv6" {
            rule.push_str(" (IPv6)");
        }
        let cells = [
            row.from.into(),
            row.to.into(),
            format!("{}/{}", row.port, row.protocol).into(),
            Cell::coloured(colour, verdict),
            rule.into(),
        ];
        output.row(widths, &cells)
    }

    fn end(self) -> std::io::Result<()> {
        match self {
            Self::List(list) => list.end(),
            Self::Table(..) => Ok(()),
        }
    }
}

/// Prints the whole matrix.
fn matrix(cluster: &Cluster, output: &mut Output) -> Result<usize, CommandError> {
    let evaluator = Evaluator::new(cluster);
    let workloads = workloads(cluster);
    let mut sink = Sink::new(output, &workloads)?;
    let mut rows = 0;
    for from in &workloads {
        for to in workloads
            .iter()
            .filter(|to| to.endpoint.id != from.endpoint.id)
        {
            for port in ports(to.endpoint) {
                for judged in judge(&evaluator, &flows(from.endpoint, to.endpoint, port)) {
                    sink.row(&line(from, to, port, judged, None))?;
                    rows += 1;
                }
            }
        }
    }
    sink.end()?;
    say_portless(&workloads);
    Ok(rows)
}

fn say_portless(workloads: &[Named<'_>]) {
    let portless = workloads
        .iter()
        .filter(|named| named.endpoint.ports.is_empty())
        .count();
    if portless > 0 {
        remark(&format!(
            "towpath: endpoints that declare no ports, and so are no destinations here: {portless}"
        ));
    }
}

fn line<'a>(
    from: &'a Named<'_>,
    to: &'a Named<'_>,
    port: &ContainerPort,
    judged: Judged,
    before: Option<Judged>,
) -> Row<'a> {
    let (before, rule_before) = before
        .map(|before| (before.verdict.to_string(), before.rule))
        .unzip();
    Row {
        from: &from.name,
        to: &to.name,
        port: port.number,
        protocol: port.protocol.to_string(),
        verdict: judged.verdict.to_string(),
        rule: judged.rule,
        families: judged.families,
        before,
        rule_before,
    }
}

/// Prints the pairs whose verdict differs; those that only one state has are counted.
fn compare(before: &Cluster, after: &Cluster, output: &mut Output) -> Result<usize, CommandError> {
    let (old, new) = (Evaluator::new(before), Evaluator::new(after));
    let workloads = workloads(after);
    let mut sink = Sink::new(output, &workloads)?;
    let (mut rows, mut is_incomplete) = (0, false);
    for from in &workloads {
        for to in workloads
            .iter()
            .filter(|to| to.endpoint.id != from.endpoint.id)
        {
            for port in ports(to.endpoint) {
                let Some(old_flows) = flows_before(before, from, to, port) else {
                    is_incomplete = true;
                    continue;
                };
                let new_flows = flows(from.endpoint, to.endpoint, port);
                if has_same_verdicts((&old, &old_flows), (&new, &new_flows)) {
                    continue;
                }
                for (was, is) in changes(judge_each(&old, &old_flows), judge_each(&new, &new_flows))
                {
                    sink.row(&line(from, to, port, is, Some(was)))?;
                    rows += 1;
                }
            }
        }
    }
    sink.end()?;
    if is_incomplete {
        remark("towpath: pairs that only one of the two states has are not compared");
    }
    Ok(rows)
}

/// The same flows in the state before; `None` when it lacks one of the ends, or the port.
fn flows_before(
    before: &Cluster,
    from: &Named<'_>,
    to: &Named<'_>,
    port: &ContainerPort,
) -> Option<Vec<Flow>> {
    let from = before
        .endpoints
        .get(&from.endpoint.id)
        .filter(|found| found.is_workload())?;
    let to = before
        .endpoints
        .get(&to.endpoint.id)
        .filter(|found| found.is_workload())?;
    let same =
        |known: &&ContainerPort| known.number == port.number && known.protocol == port.protocol;
    to.ports.iter().find(same)?;
    Some(flows(from, to, port))
}

/// The quick way: verdicts without reasons.
fn has_same_verdicts(old: (&Evaluator<'_>, &[Flow]), new: (&Evaluator<'_>, &[Flow])) -> bool {
    let verdicts = |(evaluator, flows): (&Evaluator<'_>, &[Flow])| -> Vec<(&str, Verdict)> {
        flows
            .iter()
            .map(|flow| (family(flow.source), evaluator.verdict(flow)))
            .collect()
    };
    verdicts(old) == verdicts(new)
}

fn judge_each(evaluator: &Evaluator<'_>, flows: &[Flow]) -> Vec<Judged> {
    flows
        .iter()
        .flat_map(|flow| judge(evaluator, std::slice::from_ref(flow)))
        .collect()
}

/// Pairs the outcomes of one family whose verdicts differ.
fn changes(old: Vec<Judged>, new: Vec<Judged>) -> Vec<(Judged, Judged)> {
    let mut changes: Vec<(Judged, Judged)> = Vec::new();
    let mut old = old;
    for is in new {
        let Some(index) = old.iter().position(|was| was.families == is.families) else {
            continue;
        };
        let was = old.swap_remove(index);
        if was.verdict == is.verdict {
            continue;
        }
        let same = |(known_was, known_is): &&mut (Judged, Judged)| {
            known_was.rule == was.rule && known_is.rule == is.rule
        };
        match changes.iter_mut().find(same) {
            Some((_, known)) => known.families.extend(is.families),
            None => changes.push((was, is)),
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::output::tests::Captured;
    use crate::cli::world::tests::{DATABASE_POLICY, SHOP, cluster};
    use serde_json::{Value, json};

    fn isolated() -> Cluster {
        cluster(&format!("{SHOP}---\n{DATABASE_POLICY}"))
    }

    fn printed(print: impl FnOnce(&mut Output)) -> Value {
        let captured = Captured::default();
        print(&mut captured.output(Format::Json));
        serde_json::from_str(&captured.text()).unwrap()
    }

    /// Rows without the words of the rule.
    fn short(rows: &Value) -> Vec<(String, String, u64, String, Value)> {
        let text = |row: &Value, key: &str| row[key].as_str().unwrap().to_owned();
        let short = |row: &Value| {
            let port = row["port"].as_u64().unwrap();
            (
                text(row, "from"),
                text(row, "to"),
                port,
                text(row, "verdict"),
                row["families"].clone(),
            )
        };
        rows.as_array().unwrap().iter().map(short).collect()
    }

    fn row(
        from: &str,
        port: u64,
        verdict: &str,
        families: Value,
    ) -> (String, String, u64, String, Value) {
        (
            from.to_owned(),
            "shop/db".to_owned(),
            port,
            verdict.to_owned(),
            families,
        )
    }

    #[test]
    fn every_pair_and_declared_port_has_its_verdict() {
        let rows = printed(|output| {
            matrix(&isolated(), output).unwrap();
        });

        let expected = [
            row("shop/cron", 53, "deny", json!(["ipv4"])),
            row("shop/cron", 5432, "deny", json!(["ipv4"])),
            row("shop/web", 53, "deny", json!(["ipv4"])),
            row("shop/web", 53, "allow", json!(["ipv6"])),
            row("shop/web", 5432, "allow", json!(["ipv4", "ipv6"])),
        ];
        assert_eq!(short(&rows), expected);
        let expected = json!({
            "from": "shop/cron",
            "to": "shop/db",
            "port": 53,
            "protocol": "udp",
            "verdict": "deny",
            "rule": "ingress: isolated in tier NetworkPolicy by NetworkPolicy shop/db; no rule matches",
            "families": ["ipv4"],
        });
        assert_eq!(rows[0], expected);
    }

    #[test]
    fn a_comparison_lists_only_what_changes() {
        let mut changes = 0;
        let rows = printed(|output| {
            changes = compare(&cluster(SHOP), &isolated(), output).unwrap();
        });

        let expected = [
            row("shop/cron", 53, "deny", json!(["ipv4"])),
            row("shop/cron", 5432, "deny", json!(["ipv4"])),
            row("shop/web", 53, "deny", json!(["ipv4"])),
        ];
        assert_eq!(short(&rows), expected);
        assert_eq!(changes, 3);
        assert_eq!(rows[0]["before"], "allow");
        let equal = printed(|output| {
            changes = compare(&isolated(), &isolated(), output).unwrap();
        });
        assert_eq!((equal, changes), (json!([]), 0));
    }

    #[test]
    fn endpoints_without_an_address_are_judged_too() {
        let bare = SHOP.replace("status:", "ignored:");
        let mut bare = cluster(&format!("{bare}---\n{DATABASE_POLICY}"));

        let count = Placeholders::default().fill(&mut bare);

        let rows = printed(|output| {
            matrix(&bare, output).unwrap();
        });
        assert_eq!(count, 3);
        let allowed: Vec<_> = short(&rows)
            .into_iter()
            .filter(|row| row.3 == "allow")
            .map(|row| (row.0, row.2))
            .collect();
        assert_eq!(allowed, [("shop/web".to_owned(), 5432)]);
    }

    #[test]
    fn a_table_has_one_line_a_row() {
        let captured = Captured::default();

        matrix(&isolated(), &mut captured.output(Format::Table)).unwrap();

        let text = captured.text();
        assert_eq!(text.lines().count(), 6);
        assert!(
            text.starts_with("FROM       TO         PORT        VERDICT"),
            "{text}"
        );
    }
}
