//! Random policies: what the evaluator says of each flow, against what the kernel does to real packets.
//!
//! `TOWPATH_ORACLE_ROUNDS` sets the number of rounds, `TOWPATH_ORACLE_SEED` the first seed. A round probes 448 flows.

use std::cell::Cell;
use std::time::Instant;

use towpath_tests::lab::{Lab, LabConfig};
use towpath_tests::matrix::{Check, Matrix};
use towpath_tests::random::{NAMESPACES, Random, pods, policy};
use towpath_tests::require;
use towpath_tests::simulate::Simulation;
use towpath_tests::stage::{SETTLE, Stage};

/// Policies of a round: up to this many.
const MOST: usize = 7;
/// Rounds in `cargo xtask test`; `soak` runs more.
const ROUNDS: u64 = 6;

fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().expect("a number"),
        Err(_) => default,
    }
}

fn stage() -> anyhow::Result<Stage> {
    let mut lab = Lab::new(&LabConfig {
        ipv6: true,
        ..LabConfig::default()
    })?;
    for (name, team) in NAMESPACES {
        lab.write_namespace(name, &[("team", team)])?;
    }
    for spec in pods() {
        lab.add_pod(spec)?;
    }
    let mut stage = Stage {
        lab,
        agents: Vec::new(),
    };
    stage.start_agents(&towpath_tests::agent::AgentOptions::default())?;
    Ok(stage)
}

/// Replaces all policies by those of a seed; returns their text.
fn replace_policies(lab: &Lab, seed: u64) -> anyhow::Result<String> {
    let mut random = Random::new(seed);
    let count = 1 + random.below(MOST);
    let mut all = String::new();
    for place in 0..MOST {
        let file = format!("random-{place}");
        if place >= count {
            lab.withdraw(&file)?;
            continue;
        }
        let text = policy(&mut random, place);
        lab.apply(&file, &text)?;
        all.push_str("---\n");
        all.push_str(&text);
    }
    Ok(all)
}

/// One round: the matrix, which must become what the evaluator says.
fn round(stage: &Stage, seed: u64) -> anyhow::Result<Matrix> {
    let text = replace_policies(&stage.lab, seed)?;
    let simulation = Simulation::run(&stage.lab)?;
    for node in stage.lab.nodes() {
        // A flow that was allowed in an earlier round must not carry one of this round.
        node.flush_connections()?;
    }
    let unknown = Cell::new(None);
    let matrix = Matrix::settle(&stage.lab, SETTLE, |flow| {
        let answer = simulation.passes(&flow.from.id(), &flow.to.id(), flow.target);
        answer.unwrap_or_else(|error| {
            unknown.set(Some(error));
            false
        })
    });
    if let Some(error) = unknown.take() {
        return Err(error);
    }
    matrix.map_err(|error| error.context(format!("seed {seed}, policies:\n{text}")))
}

#[test]
fn kernel_agrees_with_the_evaluator_on_random_policies() {
    require!(
        "oracle",
        Root,
        CniPlugins,
        Vxlan,
        BridgeNetfilter,
        Nft,
        Conntrack,
        Ipv6
    );
    let stage = stage().unwrap();
    stage.settle(|_| true).unwrap();
    let started = Instant::now();
    let first = number("TOWPATH_ORACLE_SEED", 1);
    let rounds = number("TOWPATH_ORACLE_ROUNDS", ROUNDS);

    let mut checks: Vec<Check> = Vec::new();
    for seed in first..first + rounds {
        checks.extend(round(&stage, seed).unwrap().checks);
    }

    let allowed = checks.iter().filter(|check| check.expected).count();
    println!(
        "{} probes in {rounds} rounds from seed {first}, {allowed} allowed, {} s",
        checks.len(),
        started.elapsed().as_secs()
    );
    // A run in which nearly everything has one verdict would prove little.
    let share = allowed * 100 / checks.len();
    assert!(
        (15..=85).contains(&share),
        "{share} % of the probes are allowed"
    );
}
