//! A state directory on a disk that is full or cannot be written: policy is enforced all the same, changes reach the
//! kernel, the agent says what it could not write, and writes it when it can.

use std::path::Path;
use std::process::Command;

use anyhow::Result;
use serde_json::Value;
use towpath_tests::agent::{Agent, AgentOptions};
use towpath_tests::lab::{LabConfig, Node};
use towpath_tests::matrix::Flow;
use towpath_tests::mounts::{Disk, Fault, with_own_mounts};
use towpath_tests::require;
use towpath_tests::stage::{Stage, allow_http, deny_ingress};
use towpath_tests::wait::{PATIENCE, until};

const MARKER: &str = "enforced.json";

fn only_web_reaches_db(flow: &Flow<'_>) -> bool {
    let is_allowed =
        flow.from.spec.name == "web" && flow.to.spec.name == "db" && flow.target.port == 80;
    flow.to.spec.namespace != "shop" || is_allowed
}

fn nobody_reaches_shop(flow: &Flow<'_>) -> bool {
    flow.to.spec.namespace != "shop"
}

/// A network that node-b is given for more pods; the marker is to name it.
const MORE: &str = "10.245.1.0/24";

fn give_more(stage: &Stage) -> Result<()> {
    let file = "node-node-b";
    let text = stage.lab.manifests.read(file)?.unwrap_or_default();
    let networks = format!("  podCIDRs:\n    - {MORE}\n");
    let text = text.replacen("  podCIDRs:\n", &networks, 1);
    stage.write(file, &text)
}

/// Networks that the marker names.
fn marked(state: &Path) -> Vec<String> {
    let text = std::fs::read(state.join(MARKER)).unwrap_or_default();
    let content: Value = serde_json::from_slice(&text).unwrap_or_default();
    let networks = content["podNetworks"].as_array().cloned();
    let networks = networks.unwrap_or_default().into_iter();
    networks
        .filter_map(|network| network.as_str().map(str::to_owned))
        .collect()
}

/// What a reboot does to a node's kernel.
fn forget(node: &Node) -> Result<()> {
    for words in ["delete table inet towpath", "delete table bridge towpath"] {
        let mut nft = Command::new("nft");
        node.namespace.run(nft.args(words.split(' ')))?;
    }
    let bridge = "link set cni0 type bridge nf_call_iptables 0 nf_call_ip6tables 0";
    let mut ip = Command::new("ip");
    node.namespace.run(ip.args(bridge.split(' ')))?;
    Ok(())
}

/// How often the log says that something could not be written.
fn complaints(agent: &Agent) -> usize {
    let log = agent.log_tail();
    log.matches("cannot note that policy is enforced").count()
}

/// Agents of both nodes; the state of node-b is on a disk of its own.
fn start(stage: &mut Stage) -> Result<Disk> {
    let disk = Disk::mount(&stage.lab.folder().join("node-b/state"))?;
    stage.write("deny", &deny_ingress("shop"))?;
    stage.write("allow", &allow_http("shop", "db", "web"))?;
    stage.start_agents(&AgentOptions::default())?;
    stage.settle(only_web_reaches_db)?;
    Ok(disk)
}

fn restart(stage: &mut Stage) -> Result<()> {
    let agent = Agent::start(&stage.lab, "node-b", &AgentOptions::default())?;
    stage.agents.push(agent);
    let agent = stage.agents.last_mut().expect("it was just pushed");
    agent.wait_ready()
}

/// A running agent whose disk fails, and is well again.
fn enforces_throughout(stage: &mut Stage, fault: Fault) -> Result<()> {
    let disk = start(stage)?;
    let agent = stage.agent("node-b")?;
    let state = agent.state().to_owned();
    until("the marker", PATIENCE, || Ok(!marked(&state).is_empty()))?;
    let before = marked(&state);

    disk.fail(fault)?;
    // Changes reach the kernel, and one of them is to be noted.
    stage.remove("allow")?;
    give_more(stage)?;
    stage.settle(nobody_reaches_shop)?;
    until("the agent says so", PATIENCE, || Ok(complaints(agent) > 0))?;
    until("the status says so", PATIENCE, || {
        Ok(agent.metric("towpath_agent_warnings")? >= 1.0)
    })?;
    // The old content is whole, and the node does its work.
    assert_eq!(marked(&state), before);
    assert!(agent.metric("towpath_agent_ready")? >= 1.0);

    // With the next change, or none.
    disk.recover(fault)?;
    until("the marker is up to date", PATIENCE, || {
        Ok(marked(&state).contains(&MORE.to_owned()))
    })?;
    until("the warning ends", PATIENCE, || {
        Ok(agent.metric("towpath_agent_warnings")? < 1.0)
    })?;
    stage.hold(nobody_reaches_shop)?;
    // Nothing half-written is left.
    for entry in std::fs::read_dir(&state)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        assert!(!name.starts_with('.'), "{name}");
    }
    Ok(())
}

/// An agent that starts on a failing disk after a reboot.
fn starts_closed(stage: &mut Stage, fault: Fault) -> Result<()> {
    let disk = start(stage)?;
    let agent = stage.agents.pop().expect("node-b is the last");
    until("the marker", PATIENCE, || {
        Ok(!marked(agent.state()).is_empty())
    })?;
    agent.kill()?;
    disk.fail(fault)?;

    // With tables in the kernel.
    stage.hold(only_web_reaches_db)?;
    restart(stage)?;
    stage.hold(only_web_reaches_db)?;
    stage.agents.pop().expect("it has just started").kill()?;

    // And with none: what nobody protects is open, and the prober sees it.
    let node = stage.lab.node("node-b")?;
    forget(node)?;
    let is_open = |flow: &Flow<'_>| flow.to.spec.node == "node-b" || only_web_reaches_db(flow);
    stage.hold(is_open)?;
    let folder = stage.lab.manifests.folder().to_path_buf();
    let hidden = folder.with_extension("hidden");
    std::fs::rename(&folder, &hidden)?;
    let agent = Agent::start(&stage.lab, "node-b", &AgentOptions::default())?;
    until("the agent's metrics", PATIENCE, || {
        Ok(agent.metrics().is_ok())
    })?;
    stage.agents.push(agent);
    stage.settle(|flow| {
        flow.to.spec.node != "node-b"
            && flow.from.spec.node != "node-b"
            && only_web_reaches_db(flow)
    })?;
    std::fs::rename(hidden, folder)?;
    stage.settle(only_web_reaches_db)?;
    Ok(())
}

fn run(test: impl FnOnce(&mut Stage) -> Result<()> + Send) {
    // Made before, so that the namespaces of its pods are seen by all.
    let mut stage = Stage::new(&LabConfig::default()).expect("a lab");
    with_own_mounts(|| {
        let outcome = test(&mut stage);
        // Agents end where their disk is.
        stage.agents.clear();
        outcome
    })
    .expect("a mount namespace")
    .expect("the test");
}

#[test]
fn a_full_disk_changes_nothing_of_enforcement() {
    require!("state", Root, CniPlugins, Vxlan, BridgeNetfilter, Nft);
    run(|stage| enforces_throughout(stage, Fault::Full));
}

#[test]
fn a_disk_that_cannot_be_written_changes_nothing_of_enforcement() {
    require!("state", Root, CniPlugins, Vxlan, BridgeNetfilter, Nft);
    run(|stage| enforces_throughout(stage, Fault::ReadOnly));
}

#[test]
fn a_start_on_a_full_disk_is_closed_and_enforces() {
    require!("state", Root, CniPlugins, Vxlan, BridgeNetfilter, Nft);
    run(|stage| starts_closed(stage, Fault::Full));
}

#[test]
fn a_start_on_a_disk_that_cannot_be_written_is_closed_and_enforces() {
    require!("state", Root, CniPlugins, Vxlan, BridgeNetfilter, Nft);
    run(|stage| starts_closed(stage, Fault::ReadOnly));
}
