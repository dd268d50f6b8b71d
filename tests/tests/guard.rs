//! A start that finds no tables: closed where an earlier run has enforced policy, untouched on a first installation.

use std::path::PathBuf;
use std::process::Command;

use towpath_tests::agent::{Agent, AgentOptions};
use towpath_tests::lab::{LabConfig, Node};
use towpath_tests::matrix::Flow;
use towpath_tests::probe::{Outcome, Patience, Protocol, probe};
use towpath_tests::require;
use towpath_tests::stage::{Stage, allow_http, deny_ingress};
use towpath_tests::stream::Stream;
use towpath_tests::wait::{PATIENCE, until};

fn only_web_reaches_db(flow: &Flow<'_>) -> bool {
    let is_allowed =
        flow.from.spec.name == "web" && flow.to.spec.name == "db" && flow.target.port == 80;
    flow.to.spec.namespace != "shop" || is_allowed
}

fn has_table(node: &Node) -> anyhow::Result<bool> {
    Ok(node.ruleset()?.contains("table inet towpath"))
}

fn nft(node: &Node, words: &str) -> anyhow::Result<()> {
    let mut nft = Command::new("nft");
    node.namespace.run(nft.args(words.split(' ')))?;
    Ok(())
}

/// What a reboot does to a node: no tables of ours, and a bridge as the system makes it. The connections of pods are
/// tracked on, as kube-proxy's rules would make the kernel do it, so that some are established.
fn forget(node: &Node) -> anyhow::Result<()> {
    for words in [
        "add table inet other",
        "add chain inet other forward { type filter hook forward priority 0 ; }",
        "add rule inet other forward ct state established counter",
        "delete table inet towpath",
        "delete table bridge towpath",
    ] {
        nft(node, words)?;
    }
    let bridge = "link set cni0 type bridge nf_call_iptables 0 nf_call_ip6tables 0";
    node.namespace
        .run(Command::new("ip").args(bridge.split(' ')))?;
    Ok(())
}

/// Moves the manifests away; agents that start now are never in sync.
fn hide_manifests(stage: &Stage) -> anyhow::Result<(PathBuf, PathBuf)> {
    let folder = stage.lab.manifests.folder().to_path_buf();
    let hidden = folder.with_extension("hidden");
    std::fs::rename(&folder, &hidden)?;
    Ok((hidden, folder))
}

/// Starts an agent on each node without waiting until it is ready, but until it serves.
fn start_unready(stage: &mut Stage) -> anyhow::Result<()> {
    for node in stage.lab.nodes() {
        let agent = Agent::start(&stage.lab, &node.name, &AgentOptions::default())?;
        until("the agent's metrics", PATIENCE, || {
            Ok(agent.metrics().is_ok())
        })?;
        stage.agents.push(agent);
    }
    Ok(())
}

/// A message each millisecond from `shop/web`.
fn echo(stage: &Stage, to: &str, protocol: Protocol, port: u16) -> anyhow::Result<Stream> {
    let to = stage.lab.pod(to)?.ipv4()?;
    let web = &stage.lab.pod("shop/web")?.namespace;
    Stream::echo(web, (to, port).into(), protocol, 1000)
}

#[test]
fn pods_are_closed_after_a_reboot_until_the_source_is_read() {
    require!("guard", Root, CniPlugins, Vxlan, BridgeNetfilter, Nft);
    let mut stage = Stage::with_agents(&LabConfig::default()).unwrap();
    stage.write("deny", &deny_ingress("shop")).unwrap();
    stage
        .write("allow", &allow_http("shop", "db", "web"))
        .unwrap();
    stage.settle(only_web_reaches_db).unwrap();
    for agent in stage.agents.drain(..) {
        agent.kill().unwrap();
    }
    for node in stage.lab.nodes() {
        forget(node).unwrap();
    }
    let (hidden, folder) = hide_manifests(&stage).unwrap();
    // Nothing protects the pods, and the prober sees it.
    stage.hold(|_| true).unwrap();
    let established = echo(&stage, "shop/db", Protocol::Tcp, 80).unwrap();

    start_unready(&mut stage).unwrap();
    stage.settle(|_| false).unwrap();
    let near = echo(&stage, "shop/api", Protocol::Udp, 53).unwrap();
    let far = echo(&stage, "shop/db", Protocol::Udp, 53).unwrap();
    stage.hold(|_| false).unwrap();
    let host = &stage.lab.node("node-b").unwrap().namespace;
    let db = stage.lab.pod("shop/db").unwrap();
    let from_host = probe(host, &db.targets(), Patience::LONG).unwrap();
    let [near, far, established] = [near, far, established].map(|stream| stream.finish().unwrap());

    for report in [near, far] {
        assert!(report.sent > 0 && report.received == 0, "{report:?}");
    }
    assert!(
        established.sent > 0 && established.error.is_none(),
        "{established:?}"
    );
    assert_eq!(established.sent, established.received, "{established:?}");
    assert!(from_host.iter().all(Outcome::passed), "{from_host:?}");

    std::fs::rename(hidden, folder).unwrap();
    stage.settle(only_web_reaches_db).unwrap();
}

#[test]
fn a_first_installation_closes_nothing_before_it_has_read_the_source() {
    require!("guard", Root, CniPlugins, Vxlan, BridgeNetfilter, Nft);
    let mut stage = Stage::new(&LabConfig::default()).unwrap();
    stage.write("deny", &deny_ingress("shop")).unwrap();
    let (hidden, folder) = hide_manifests(&stage).unwrap();

    start_unready(&mut stage).unwrap();
    stage.hold(|_| true).unwrap();

    for node in stage.lab.nodes() {
        assert!(!has_table(node).unwrap());
    }
    std::fs::rename(hidden, folder).unwrap();
    stage
        .settle(|flow| flow.to.spec.namespace != "shop")
        .unwrap();
}

#[test]
fn after_an_uninstall_a_start_is_a_first_installation() {
    require!("guard", Root, CniPlugins, Vxlan, BridgeNetfilter, Nft);
    let mut stage = Stage::with_agents(&LabConfig::default()).unwrap();
    let agents: Vec<Agent> = stage.agents.drain(..).collect();
    for agent in agents {
        let mut uninstaller = agent.uninstaller().unwrap();
        let node = stage.lab.node(&agent.node).unwrap();
        assert!(agent.terminate().unwrap().success());
        node.namespace.run(&mut uninstaller).unwrap();
    }
    let _hidden = hide_manifests(&stage).unwrap();

    start_unready(&mut stage).unwrap();

    stage.hold(|_| true).unwrap();
}
