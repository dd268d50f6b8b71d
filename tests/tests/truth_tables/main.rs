//! What NetworkPolicy and ClusterNetworkPolicy mean, row by row: YAML through a real API server, real agents, real
//! packets, both families.
//!
//! The cases stand in the YAML files beside this one, with the verdicts written by hand. All lie
//! on one bed ([`bed`]), one after the other; each takes away what it has brought. They are played on a tunnel and nft
//! tables, and again on routes and iptables. What YAML cannot say is in [`special`].

mod bed;
mod case;
mod probes;
mod special;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Instant;

use anyhow::{Result, ensure};
use towpath_tests::cluster::Rules;
use towpath_tests::require;

use bed::Bed;
use case::{BetweenNodes, Case, Refused, Step};

/// The rows of the two tables. Each has at least one case.
const NETWORK_POLICY: &[&str] = &[
    "isolation",
    "pod selector",
    "lists of rules",
    "policy types",
    "from and to",
    "ports",
    "peer with a pod selector",
    "peer with a namespace selector",
    "peer with both",
    "peer with nothing",
    "selectors",
    "ipBlock",
    "family",
    "protocol",
    "port without a number",
    "range of ports",
    "named port",
    "ICMP",
    "pods of the host's network",
    "from the own node",
    "from another node",
    "to the own node",
    "Services",
    "Service of an outside address",
    "hairpin",
    "established connections",
    "finished and deleted pods",
    "two pods with one address",
    "start of a pod",
    "restart of a container",
    "label changes",
    "status",
];
const CLUSTER_NETWORK_POLICY: &[&str] = &[
    "spec",
    "subject",
    "rule",
    "ingress peers",
    "egress peers",
    "protocols",
    "evaluation",
    "unknown fields",
    "domain names",
    "hairpin",
    "denial on the wire",
];

#[test]
fn every_row_of_the_tables_holds_on_the_wire() {
    require!(
        "kubernetes",
        Root,
        KubernetesServers,
        Flanneld,
        KubeProxy,
        CniModulePlugins,
        Vxlan,
        BridgeNetfilter,
        Ipv6,
        Nft
    );
    play_all(Rules::Nftables, BetweenNodes::Tunnel).unwrap();
}

#[test]
fn every_row_holds_with_routes_between_nodes_and_rules_of_iptables() {
    require!(
        "kubernetes",
        Root,
        KubernetesServers,
        Flanneld,
        KubeProxy,
        CniModulePlugins,
        BridgeNetfilter,
        Ipv6,
        Nft
    );
    play_all(Rules::Iptables, BetweenNodes::Routes).unwrap();
}

fn play_all(rules: Rules, between_nodes: BetweenNodes) -> Result<()> {
    let special = special::ALL.map(|(row, ..)| row);
    let pods = [
        include_str!("network_policy.yaml"),
        include_str!("network_policy_places.yaml"),
    ];
    let cluster = [include_str!("cluster_network_policy.yaml")];
    let tables = [
        (
            "NetworkPolicy",
            case::read(&pods, NETWORK_POLICY, &special)?,
        ),
        (
            "ClusterNetworkPolicy",
            case::read(&cluster, CLUSTER_NETWORK_POLICY, &[])?,
        ),
    ];
    let mut bed = Bed::start(rules, between_nodes)?;
    let began = Instant::now();

    let mut report = Report::default();
    for (table, cases) in &tables {
        let holds_here = |case: &&Case| case.between_nodes.is_none_or(|way| way == between_nodes);
        for case in cases.iter().filter(holds_here) {
            report.add(table, &case.row, &case.name(), run(&mut bed, case));
        }
    }
    for (row, name, special) in special::ALL {
        report.add("NetworkPolicy", row, name, special(&mut bed));
    }

    eprintln!("{}in {:?}", report.summary(), began.elapsed());
    assert!(
        report.faults.is_empty(),
        "{} cases do not hold:\n{}",
        report.faults.len(),
        report.faults.join("\n")
    );
    bed.lab.close()
}

/// What came out.
#[derive(Default)]
struct Report {
    /// Cases and probes by table and row.
    rows: BTreeMap<(String, String), (usize, usize)>,
    faults: Vec<String>,
}

impl Report {
    fn add(&mut self, table: &str, row: &str, name: &str, outcome: Result<(Vec<String>, usize)>) {
        let key = (table.to_owned(), row.to_owned());
        let (cases, probes) = self.rows.entry(key).or_default();
        *cases += 1;
        match outcome {
            Ok((wrong, count)) => {
                *probes += count;
                let wrong = wrong
                    .iter()
                    .map(|fault| format!("{table}, {name}: {fault}"));
                self.faults.extend(wrong);
            }
            Err(error) => self.faults.push(format!("{table}, {name}: {error:#}")),
        }
    }

    fn summary(&self) -> String {
        let mut text = String::new();
        for ((table, row), (cases, probes)) in &self.rows {
            // Writing into a string does not fail.
            writeln!(
                text,
                "{table:20} {row:32} {cases:2} cases {probes:4} probes"
            )
            .ok();
        }
        let (cases, probes) = self
            .rows
            .values()
            .fold((0, 0), |sum, row| (sum.0 + row.0, sum.1 + row.1));
        writeln!(
            text,
            "{} rows, {cases} cases, {probes} probes, {} faults",
            self.rows.len(),
            self.faults.len()
        )
        .ok();
        text
    }
}

/// Plays a case; what is wrong, and how many probes there were.
fn run(bed: &mut Bed, case: &Case) -> Result<(Vec<String>, usize)> {
    let mut applied = Vec::new();
    let outcome = play(bed, case, &mut applied);
    for text in applied.iter().rev() {
        bed.api()?.withdraw(text)?;
    }
    outcome
}

fn play(bed: &mut Bed, case: &Case, applied: &mut Vec<String>) -> Result<(Vec<String>, usize)> {
    let (mut wrong, mut count) = (Vec::new(), 0);
    for (number, step) in case.steps.iter().enumerate() {
        change(bed, step, applied)?;
        bed.wait_heard()?;
        let (faults, probes) = probes::wrong(bed, &step.probes, step.settles)?;
        let step = number + 1;
        wrong.extend(
            faults
                .into_iter()
                .map(|fault| format!("step {step}: {fault}")),
        );
        count += probes;
    }
    Ok((wrong, count))
}

fn change(bed: &Bed, step: &Step, applied: &mut Vec<String>) -> Result<()> {
    let api = bed.api()?;
    for text in &step.apply {
        let text = bed.fill(text)?;
        applied.push(text.clone());
        api.apply(&text)?;
    }
    for merge in &step.merge {
        let fields = bed.fill(&merge.fields)?;
        api.merge(&merge.path, &serde_json::from_str(&fields)?)?;
    }
    for path in &step.delete {
        api.delete(path)?;
    }
    if let Some(Refused { manifest, because }) = &step.refused {
        let Err(error) = api.apply(&bed.fill(manifest)?) else {
            applied.push(bed.fill(manifest)?);
            anyhow::bail!("the API server takes what it should refuse");
        };
        let words = format!("{error:#}");
        ensure!(
            words.contains(because),
            "refused for another reason: {words}"
        );
    }
    Ok(())
}
