//! Break glass with the real agent and without one: what is opened passes, and what is closed again does not.

use std::process::Command;

use serde_json::Value;
use towpath_tests::agent::{Agent, AgentOptions};
use towpath_tests::lab::{LabConfig, Node};
use towpath_tests::matrix::Flow;
use towpath_tests::require;
use towpath_tests::stage::{Stage, deny_ingress, server};
use towpath_tests::wait::{PATIENCE, until};

/// Nobody reaches `shop`, but for what is opened.
fn closed(flow: &Flow<'_>) -> bool {
    flow.to.spec.namespace != "shop"
}

fn db_is_open(flow: &Flow<'_>) -> bool {
    closed(flow) || flow.to.spec.name == "db"
}

fn all_of_node_b_is_open(flow: &Flow<'_>) -> bool {
    closed(flow) || flow.to.spec.node == "node-b"
}

fn denied_stage() -> anyhow::Result<Stage> {
    let stage = Stage::with_agents(&LabConfig::default())?;
    stage.write("deny", &deny_ingress("shop"))?;
    stage.settle(closed)?;
    Ok(stage)
}

/// `towpath bypass` with these words, and what it prints as JSON.
struct Glass<'a> {
    node: &'a Node,
    /// Options that say where the agent is.
    place: Vec<String>,
}

impl<'a> Glass<'a> {
    fn of(agent: &Agent, node: &'a Node) -> anyhow::Result<Self> {
        Ok(Self {
            node,
            place: agent.place()?,
        })
    }

    fn run(&self, words: &str) -> anyhow::Result<Value> {
        let mut command = Command::new(towpath_tests::program::towpath()?);
        command
            .arg("bypass")
            .args(words.split(' ').filter(|word| !word.is_empty()))
            .args(&self.place)
            .args(["-o", "json"]);
        Ok(serde_json::from_str(
            &self.node.namespace.run(&mut command)?,
        )?)
    }

    /// All that the doctor finds.
    fn doctor(&self) -> anyhow::Result<String> {
        let mut command = Command::new(towpath_tests::program::towpath()?);
        command
            .args(["doctor", "-o", "json", "--node", "node-b"])
            .args(&self.place);
        let output = self.node.namespace.output(&mut command)?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn on(&self, scope: &str, time: &str) -> anyhow::Result<Value> {
        self.run(&format!("on {scope} --for {time} --reason drill --yes"))
    }
}

#[test]
fn a_running_agent_opens_and_closes() {
    require!("bypass", Root, CniPlugins, Vxlan, BridgeNetfilter, Nft);
    let mut stage = denied_stage().unwrap();
    let agent = stage.agent("node-b").unwrap();
    let glass = Glass::of(agent, stage.lab.node("node-b").unwrap()).unwrap();

    let opened = glass.on("--pod shop/db", "10m").unwrap();

    let address = stage.lab.pod("shop/db").unwrap().ipv4().unwrap();
    assert_eq!(opened["outcome"], "inForce", "{opened}");
    let addresses = opened["bypasses"][0]["addresses"].as_array().unwrap();
    assert!(addresses.contains(&address.to_string().into()), "{opened}");
    stage.hold(db_is_open).unwrap();
    assert!(
        agent
            .metrics()
            .unwrap()
            .contains("towpath_bypasses{scope=\"pod\"} 1")
    );
    agent
        .wait_metric("towpath_bypassed_packets_total", |count| count > 0.0)
        .unwrap();
    assert_eq!(glass.run("list").unwrap()[0]["reason"], "drill");

    let off = glass.run("off --pod shop/db").unwrap();

    assert_eq!(off["closed"][0]["name"], "db", "{off}");
    stage.hold(closed).unwrap();

    // A pod that starts in what is open is open too.
    glass.on("--namespace shop", "10m").unwrap();
    stage.hold(db_is_open).unwrap();
    stage.lab.add_pod(server("node-b", "shop", "late")).unwrap();
    stage.settle(all_of_node_b_is_open).unwrap();

    let agent = stage.agent("node-b").unwrap();
    let glass = Glass::of(agent, stage.lab.node("node-b").unwrap()).unwrap();
    assert_eq!(
        glass.run("off").unwrap()["bypasses"],
        Value::Array(Vec::new())
    );
    stage.hold(closed).unwrap();
}

#[test]
fn what_is_open_stays_so_over_a_restart() {
    require!("bypass", Root, CniPlugins, Vxlan, BridgeNetfilter, Nft);
    let mut stage = denied_stage().unwrap();
    let node = stage.lab.node("node-b").unwrap();
    let glass = Glass::of(stage.agent("node-b").unwrap(), node).unwrap();
    glass.on("--pod shop/db", "10m").unwrap();

    for agent in stage.agents.drain(..) {
        agent.kill().unwrap();
    }
    stage.hold(db_is_open).unwrap();
    stage.start_agents(&AgentOptions::default()).unwrap();

    stage.hold(db_is_open).unwrap();
    let node = stage.lab.node("node-b").unwrap();
    let glass = Glass::of(stage.agent("node-b").unwrap(), node).unwrap();
    glass.run("off --pod shop/db").unwrap();
    stage.hold(closed).unwrap();
}

#[test]
fn without_an_agent_the_kernel_opens_and_closes_by_itself() {
    require!("bypass", Root, CniPlugins, Vxlan, BridgeNetfilter, Nft);
    let mut stage = denied_stage().unwrap();
    let agent = stage.agent("node-b").unwrap();
    let place = agent.place().unwrap();
    // Who has which address is noted every few seconds.
    until("the addresses of pods", PATIENCE, || {
        Ok(agent.state().join("addresses.json").exists())
    })
    .unwrap();
    for agent in stage.agents.drain(..) {
        agent.kill().unwrap();
    }
    let node = stage.lab.node("node-b").unwrap();
    let glass = Glass { node, place };
    stage.hold(closed).unwrap();

    let opened = glass.on("--pod shop/db", "10m").unwrap();

    assert_eq!(opened["outcome"], "inForce", "{opened}");
    stage.hold(db_is_open).unwrap();
    let doctor = glass.doctor().unwrap();
    assert!(
        doctor.contains("enforcement is open for pod shop/db"),
        "{doctor}"
    );
    glass.run("off").unwrap();
    stage.hold(closed).unwrap();
    assert!(!glass.doctor().unwrap().contains("enforcement is open"));

    glass.on("--node", "3s").unwrap();
    stage.settle(all_of_node_b_is_open).unwrap();
    stage.settle(closed).unwrap();
    assert_eq!(glass.run("list").unwrap(), Value::Array(Vec::new()));
}
