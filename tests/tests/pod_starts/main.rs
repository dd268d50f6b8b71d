//! Pods that start: no packet of theirs, and none to them, passes before their policy is in force.
//!
//! Each pod sends from its first instant: its probe runs in its network namespace before the plugins have given it an
//! interface, to a peer on its own node, to one on another node, and to one that its policy allows; and a neighbour sends
//! to it as soon as its address exists. Packets carry the number of the start, and what arrives where it must not is
//! counted by that number.
//!
//! `TOWPATH_STARTS=1000` is the long form, which `cargo xtask soak` runs.

mod peers;
mod start;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use towpath_tests::agent::{Agent, AgentOptions};
use towpath_tests::require;

use self::start::{Bed, NODE, Outcome, Way};

/// Starts of the short form, each way.
const STARTS: u32 = 60;
/// Pods that start side by side.
const WORKERS: u32 = 4;

fn starts() -> u32 {
    let text = std::env::var("TOWPATH_STARTS").ok();
    text.map_or(STARTS, |text| {
        text.parse().expect("TOWPATH_STARTS is a number")
    })
}

#[test]
fn no_packet_passes_before_the_policy_of_a_new_pod_without_the_chained_plugin() {
    require!(
        "starts",
        Root,
        KubernetesServers,
        Flanneld,
        CniModulePlugins,
        Vxlan,
        BridgeNetfilter,
        Nft
    );
    under_load(Way::Bare).unwrap();
}

#[test]
fn no_packet_passes_before_the_policy_of_a_new_pod_with_the_chained_plugin() {
    require!(
        "starts",
        Root,
        KubernetesServers,
        Flanneld,
        CniModulePlugins,
        Vxlan,
        BridgeNetfilter,
        Nft
    );
    under_load(Way::Chained).unwrap();
}

/// Many starts while policies and labels change all the time.
fn under_load(way: Way) -> Result<()> {
    let count = starts();
    let bed = Bed::new(count + 1)?;
    let mut agent = Agent::start(&bed.lab, NODE, &AgentOptions::default())?;
    agent.wait_ready()?;
    let began = Instant::now();
    let (next, is_over, writes) = (AtomicU32::new(0), AtomicBool::new(false), AtomicU32::new(0));
    let total = Mutex::new(Outcome::default());
    let work = || -> Result<()> {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return Ok(());
            }
            let outcome = bed
                .start(number, way)
                .inspect_err(|_| next.store(count, Ordering::Relaxed));
            total.lock().expect("no holder panics").add(&outcome?);
        }
    };
    std::thread::scope(|scope| -> Result<()> {
        let churn = scope.spawn(|| churn(&bed, &is_over, &writes));
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(work)).collect();
        let done: Vec<Result<()>> = workers
            .into_iter()
            .map(|worker| worker.join().expect("a start does not panic"))
            .collect();
        is_over.store(true, Ordering::Relaxed);
        churn.join().expect("writes do not panic")?;
        done.into_iter().collect()
    })?;
    let total = total.into_inner()?;
    eprintln!(
        "{count} starts ({way:?}) in {:.1} s beside {} other writes: {total}",
        began.elapsed().as_secs_f64(),
        writes.into_inner()
    );
    ensure!(
        total.passed == [0; 3],
        "packets have passed too early: {total}"
    );
    ensure!(
        total.early > u64::from(count),
        "the probes were late: {total}"
    );
    agent.kill()?;
    control(&bed, count)
}

/// Without tables the same probes see what passes.
fn control(bed: &Bed, number: u32) -> Result<()> {
    bed.forget_tables()?;
    let outcome = bed.start(number, Way::Unprotected)?;
    ensure!(
        outcome.passed.iter().all(|passed| *passed > 0),
        "a probe is blind: {outcome}"
    );
    Ok(())
}

/// Policies and labels that change all the time, and concern no pod that starts: if they did, they could hide a
/// policy that comes late.
fn churn(bed: &Bed, is_over: &AtomicBool, writes: &AtomicU32) -> Result<()> {
    let api = bed.lab.cluster()?.api();
    let policies = "/apis/networking.k8s.io/v1/namespaces/other/networkpolicies";
    let policy = json!({
        "metadata": { "name": "churn" },
        "spec": {
            "podSelector": { "matchLabels": { "app": "friend" } },
            "policyTypes": ["Ingress"],
            "ingress": [{}, { "from": [{ "podSelector": { "matchLabels": { "turn": "odd" } } }] }],
        },
    });
    while !is_over.load(Ordering::Relaxed) {
        for turn in ["odd", "even"] {
            let labels = json!({ "metadata": { "labels": { "turn": turn } } });
            api.merge("/api/v1/namespaces/other/pods/near", &labels)?;
        }
        api.create(policies, &policy)?;
        api.delete(&format!("{policies}/churn"))?;
        writes.fetch_add(4, Ordering::Relaxed);
    }
    Ok(())
}

/// Rounds of the tests below: each starts an agent.
fn rounds() -> u32 {
    (starts() / 20).clamp(3, 20)
}

#[test]
fn on_a_fresh_node_a_pod_and_the_agent_start_at_once() {
    require!(
        "starts",
        Root,
        KubernetesServers,
        Flanneld,
        CniModulePlugins,
        Vxlan,
        BridgeNetfilter,
        Nft
    );
    at_once(|bed, agent| {
        let mut uninstaller = agent.uninstaller()?;
        agent.terminate()?;
        bed.lab
            .node(NODE)?
            .namespace
            .run(&mut uninstaller)
            .map(drop)
    })
    .unwrap();
}

#[test]
fn after_a_reboot_a_pod_and_the_agent_start_at_once() {
    require!(
        "starts",
        Root,
        KubernetesServers,
        Flanneld,
        CniModulePlugins,
        Vxlan,
        BridgeNetfilter,
        Nft
    );
    at_once(|bed, agent| {
        agent.kill()?;
        bed.forget_tables()
    })
    .unwrap();
}

/// A pod is plugged in and the agent starts at the same moment, with nothing in the kernel; between rounds, `forget`
/// ends the agent and takes the tables away.
fn at_once(forget: impl Fn(&Bed, Agent) -> Result<()>) -> Result<()> {
    let rounds = rounds();
    let bed = Bed::new(rounds + 1)?;
    let mut total = Outcome::default();
    for number in 0..rounds {
        let (agent, outcome) = std::thread::scope(|scope| {
            let starting = scope.spawn(|| bed.start(number, Way::Closed));
            let agent = Agent::start(&bed.lab, NODE, &AgentOptions::default());
            (agent, starting.join().expect("a start does not panic"))
        });
        let agent = agent?;
        let outcome =
            outcome.with_context(|| format!("round {number}; the agent:\n{}", agent.log_tail()))?;
        total.add(&outcome);
        forget(&bed, agent)?;
    }
    eprintln!("{rounds} starts of a pod and the agent at once: {total}");
    ensure!(
        total.passed == [0; 3],
        "packets have passed too early: {total}"
    );
    control(&bed, rounds)
}
