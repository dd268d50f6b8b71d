//! Start, crash, restart, stop, foreign hands and uninstall: traffic already secured stays so, and nothing is lost.

use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use towpath_tests::agent::{AgentOptions, HEALTH_PORT, http_get};
use towpath_tests::lab::{Lab, LabConfig, Node};
use towpath_tests::matrix::Flow;
use towpath_tests::probe::Protocol;
use towpath_tests::program;
use towpath_tests::require;
use towpath_tests::skip::report;
use towpath_tests::stage::{Stage, allow_http, deny_ingress};
use towpath_tests::stream::Stream;
use towpath_tests::wait::{PATIENCE, until};

fn only_web_reaches_db(flow: &Flow<'_>) -> bool {
    let is_allowed =
        flow.from.spec.name == "web" && flow.to.spec.name == "db" && flow.target.port == 80;
    flow.to.spec.namespace != "shop" || is_allowed
}

fn restricted() -> anyhow::Result<Stage> {
    let stage = Stage::with_agents(&LabConfig::default())?;
    stage.write("deny", &deny_ingress("shop"))?;
    stage.write("allow", &allow_http("shop", "db", "web"))?;
    stage.settle(only_web_reaches_db)?;
    Ok(stage)
}

/// What a node shows of its kernel state that an agent may change.
fn kernel_state(node: &Node) -> anyhow::Result<(String, Value)> {
    let mut link = Command::new("ip");
    link.args(["-json", "-details", "link", "show", "dev", "cni0"]);
    let links: Value = serde_json::from_str(&node.namespace.run(&mut link)?)?;
    let mut bridge = links[0]["linkinfo"]["info_data"].clone();
    if let Some(settings) = bridge.as_object_mut() {
        // Timers of the bridge run by themselves.
        settings.retain(|name, _| !name.ends_with("_timer"));
    }
    // Kernels of pods solicit routers when they please, and that is counted.
    let ruleset = node.ruleset()?;
    let mut is_solicitation = false;
    let lines = ruleset.lines().filter(|line| {
        if line.trim_start().starts_with("chain ") {
            is_solicitation = line.contains("drop_unbound");
        }
        !(is_solicitation && line.trim_start().starts_with("counter "))
    });
    Ok((lines.collect::<Vec<_>>().join("\n"), bridge))
}

#[test]
fn rules_outlive_the_agent_however_it_ends() {
    require!("lifecycle", Root, CniPlugins, Vxlan, BridgeNetfilter, Nft);
    let mut stage = restricted().unwrap();

    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGKILL] {
        for agent in stage.agents.drain(..) {
            let process = Pid::from_raw(agent.id().cast_signed());
            kill(process, signal).unwrap();
            agent.wait().unwrap();
        }
        stage.hold(only_web_reaches_db).unwrap();
        stage.start_agents(&AgentOptions::default()).unwrap();
        stage.hold(only_web_reaches_db).unwrap();
    }
}

#[test]
fn restart_loses_nothing_of_open_connections() {
    require!("lifecycle", Root, CniPlugins, Vxlan, BridgeNetfilter, Nft);
    let mut stage = Stage::with_agents(&LabConfig::default()).unwrap();
    stage.settle(|_| true).unwrap();
    let address = stage.lab.pod("shop/db").unwrap().ipv4().unwrap();
    let web = &stage.lab.pod("shop/web").unwrap().namespace;
    let tcp = Stream::echo(web, (address, 80).into(), Protocol::Tcp, 1000).unwrap();
    let udp = Stream::echo(web, (address, 53).into(), Protocol::Udp, 1000).unwrap();

    for agent in stage.agents.drain(..) {
        agent.kill().unwrap();
    }
    stage.start_agents(&AgentOptions::default()).unwrap();
    let [tcp, udp] = [tcp, udp].map(|stream| stream.finish().unwrap());

    for report in [tcp, udp] {
        assert!(report.sent > 0 && report.error.is_none(), "{report:?}");
        assert_eq!(report.sent, report.received, "{report:?}");
    }
}

#[test]
fn an_agent_that_is_stopped_opens_nothing_and_catches_up() {
    require!("lifecycle", Root, CniPlugins, Vxlan, BridgeNetfilter, Nft);
    let stage = restricted().unwrap();

    for agent in &stage.agents {
        agent.pause().unwrap();
    }
    stage.write("other", &deny_ingress("other")).unwrap();
    stage.remove("allow").unwrap();
    stage.hold(only_web_reaches_db).unwrap();
    for node in stage.lab.nodes() {
        // Whoever asks gets no answer, which is what a probe of a kubelet takes for not ready.
        assert!(http_get(&node.namespace, HEALTH_PORT, "/readyz").is_err());
    }
    for agent in &stage.agents {
        agent.resume().unwrap();
    }

    stage
        .settle(|flow| !["shop", "other"].contains(&flow.to.spec.namespace.as_str()))
        .unwrap();
}

#[test]
fn change_made_while_the_agent_was_down_is_in_force_after_its_start() {
    require!("lifecycle", Root, CniPlugins, Vxlan, BridgeNetfilter, Nft);
    let mut stage = restricted().unwrap();
    for agent in stage.agents.drain(..) {
        agent.kill().unwrap();
    }

    stage.lab.withdraw("allow").unwrap();
    stage.hold(only_web_reaches_db).unwrap();
    stage.start_agents(&AgentOptions::default()).unwrap();

    stage.hold(|flow| flow.to.spec.namespace != "shop").unwrap();
}

#[test]
fn flush_by_somebody_else_opens_nothing_that_lasts() {
    require!("lifecycle", Root, CniPlugins, Vxlan, BridgeNetfilter, Nft);
    let stage = restricted().unwrap();

    for node in stage.lab.nodes() {
        // The node's namespace is the lab's own. Where the kernel protects the tables this does nothing.
        let _ = node
            .namespace
            .run(Command::new("nft").args(["flush", "ruleset"]));
    }

    stage.settle(only_web_reaches_db).unwrap();
}

#[test]
fn uninstall_leaves_the_kernel_as_it_was() {
    require!("lifecycle", Root, CniPlugins, Vxlan, BridgeNetfilter, Nft);
    let mut stage = Stage::new(&LabConfig::default()).unwrap();
    let before: Vec<_> = stage
        .lab
        .nodes()
        .iter()
        .map(|node| kernel_state(node).unwrap())
        .collect();
    stage.start_agents(&AgentOptions::default()).unwrap();
    stage.write("deny", &deny_ingress("shop")).unwrap();
    stage
        .settle(|flow| flow.to.spec.namespace != "shop")
        .unwrap();
    let during: Vec<_> = stage
        .lab
        .nodes()
        .iter()
        .map(|node| kernel_state(node).unwrap())
        .collect();

    let agents: Vec<_> = stage.agents.drain(..).collect();
    for agent in agents {
        let mut uninstaller = agent.uninstaller().unwrap();
        let node = stage.lab.node(&agent.node).unwrap();
        assert!(agent.terminate().unwrap().success());
        node.namespace.run(&mut uninstaller).unwrap();
    }

    let after: Vec<_> = stage
        .lab
        .nodes()
        .iter()
        .map(|node| kernel_state(node).unwrap())
        .collect();
    assert_eq!(after, before);
    for (during, before) in during.iter().zip(&before) {
        assert_ne!(during.0, before.0);
        assert_ne!(during.1, before.1);
    }
    stage.hold(|_| true).unwrap();
}

#[test]
fn uninstall_removes_the_directories_that_the_agent_made_for_its_socket() {
    require!("lifecycle", Root, CniPlugins, Vxlan, BridgeNetfilter, Nft);
    let lab = Lab::new(&LabConfig::default()).unwrap();
    let node = lab.node("node-a").unwrap();
    let folder = lab.folder().join("own");
    let (made, state) = (folder.join("run/towpath"), folder.join("state"));
    std::fs::create_dir(&folder).unwrap();
    let towpath = |arguments: &[&str]| {
        let mut command = Command::new(program::towpath().unwrap());
        command.args(arguments);
        command.arg("--socket").arg(made.join("agent.sock"));
        command.arg("--state-dir").arg(&state);
        command
    };
    let source = lab.source("node-a").unwrap();
    let mut agent = towpath(&["agent", "--node", "node-a", "--source", &source]);
    let log = std::fs::File::create(folder.join("log")).unwrap();
    agent.stdout(log.try_clone().unwrap()).stderr(log);
    let mut agent = node.namespace.spawn(&mut agent).unwrap();
    let socket = made.join("agent.sock");
    until("the agent answers", PATIENCE, || {
        let mut get = Command::new(program::towpath()?);
        get.args(["get", "policies", "--socket"]).arg(&socket);
        Ok(node.namespace.run(&mut get).is_ok())
    })
    .unwrap();
    let id = Pid::from_raw(i32::try_from(agent.id()).unwrap());
    kill(id, Signal::SIGTERM).unwrap();
    assert!(agent.wait().unwrap().success());

    let said = node.namespace.run(&mut towpath(&["uninstall", "--yes"]));

    let said = said.unwrap();
    let removed = format!("removed directory {}\n", made.display());
    assert!(said.contains(&removed), "{said}");
    let left: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["log"]);
}

#[test]
fn both_backends_enforce() {
    require!("lifecycle", Root, CniPlugins, Vxlan, BridgeNetfilter, Nft);
    let mut stage = Stage::new(&LabConfig::default()).unwrap();
    let options = AgentOptions {
        arguments: ["--nft-backend", "command"].map(str::to_owned).into(),
        ..AgentOptions::default()
    };

    stage.start_agents(&options).unwrap();
    stage.settle(|_| true).unwrap();
    stage.write("deny", &deny_ingress("shop")).unwrap();
    stage
        .write("allow", &allow_http("shop", "db", "web"))
        .unwrap();

    stage.settle(only_web_reaches_db).unwrap();
}

#[test]
fn rules_that_somebody_changes_are_put_right() {
    require!("lifecycle", Root, CniPlugins, Vxlan, BridgeNetfilter, Nft);
    let mut stage = Stage::new(&LabConfig::default()).unwrap();
    stage.write("deny", &deny_ingress("shop")).unwrap();
    let options = AgentOptions {
        arguments: ["--nft-backend", "command"].map(str::to_owned).into(),
        configuration: Some("verifyIntervalSeconds: 1\n".to_owned()),
        ..AgentOptions::default()
    };
    stage.start_agents(&options).unwrap();
    let is_allowed = |flow: &Flow<'_>| flow.to.spec.namespace != "shop";
    stage.settle(is_allowed).unwrap();
    let node = stage.lab.node("node-b").unwrap();
    let agent = stage.agent("node-b").unwrap();
    let nft = |words: &str| {
        let mut nft = Command::new("nft");
        node.namespace.run(nft.args(words.split(' '))).unwrap()
    };
    let listing = || nft("-s list table inet towpath");
    let repaired = || {
        agent
            .metric("towpath_dataplane_drift_repaired_objects_total")
            .unwrap()
    };
    let wanted = listing();

    for change in [
        "insert rule inet towpath forward accept",
        "add rule inet towpath to_endpoint return",
        "delete rule inet towpath forward handle HANDLE",
        "flush chain inet towpath forward",
        "add chain inet towpath forward { policy drop ; }",
        "add table inet towpath { flags dormant ; }",
    ] {
        let handles = nft("-a list chain inet towpath forward");
        let last = handles.lines().rfind(|line| line.starts_with("\t\t"));
        let handle = last.and_then(|line| line.rsplit(' ').next()).unwrap();
        let before = repaired();

        nft(&change.replace("HANDLE", handle));
        until(change, PATIENCE, || Ok(repaired() > before)).unwrap();

        until(change, PATIENCE, || Ok(listing() == wanted)).unwrap();
        stage.hold(is_allowed).unwrap();
    }
}

#[test]
fn short_opening_is_seen_by_the_prober() {
    require!("lifecycle", Root, CniPlugins, Vxlan, BridgeNetfilter, Nft);
    let stage = restricted().unwrap();
    let agent = stage.agent("node-a").unwrap();
    let commits = || agent.metric("towpath_dataplane_commits_total");
    let address = stage.lab.pod("shop/api").unwrap().ipv4().unwrap();
    let guest = &stage.lab.pod("other/guest").unwrap().namespace;
    let start = || Stream::echo(guest, (address, 53).into(), Protocol::Udp, 1000).unwrap();
    let closed = start();
    stage.hold(only_web_reaches_db).unwrap();
    let closed = closed.finish().unwrap();

    let opened = start();
    for (change, text) in [("open", None), ("close", Some(deny_ingress("shop")))] {
        let before = commits().unwrap();
        match text {
            None => stage.lab.withdraw("deny").map(drop).unwrap(),
            Some(text) => stage.write("deny", &text).unwrap(),
        }
        let what = format!("the commit of the {change}");
        until(&what, PATIENCE, || Ok(commits()? > before)).unwrap();
    }
    let opened = opened.finish().unwrap();

    assert!(closed.sent > 0 && closed.received == 0, "{closed:?}");
    assert!(opened.received > 0, "{opened:?}");
}

#[test]
fn an_agent_beside_another_ends_at_once_and_changes_nothing() {
    const NAME: &str = "an_agent_beside_another_ends_at_once_and_changes_nothing";
    require!("lifecycle", Root, CniPlugins, Vxlan, BridgeNetfilter, Nft);
    let stage = restricted().unwrap();
    let node = stage.lab.node("node-a").unwrap();
    let before = kernel_state(node).unwrap();
    if !before.0.contains("flags owner") {
        report("lifecycle", NAME, "nft-persist", "tables are not owned");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut second = Command::new(program::towpath().unwrap());
    second.args(["agent", "--node", "node-a", "--source"]);
    second.arg(format!("file:{}", stage.lab.manifests.folder().display()));
    second.arg("--socket").arg(folder.path().join("socket"));
    second.arg("--state-dir").arg(folder.path().join("state"));

    let output = node.namespace.output(&mut second).unwrap();

    let said = String::from_utf8_lossy(&output.stderr);
    let owner = stage.agent("node-a").unwrap().id();
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(
        said.contains("belongs to another running program"),
        "{said}"
    );
    assert!(said.contains(&format!("netlink port {owner},")), "{said}");
    assert_eq!(kernel_state(node).unwrap(), before);
}
