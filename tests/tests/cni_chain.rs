//! The chained plugin between the real bridge plugin and a real agent: a pod starts when its policy is in force.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};
use towpath_tests::agent::AgentOptions;
use towpath_tests::cni::{Attachment, BRIDGE, NETWORK_NAME, PluginSet, Plugins, Sandbox, invoke};
use towpath_tests::lab::{Lab, LabConfig, Node};
use towpath_tests::netns::Namespace;
use towpath_tests::probe::{Patience, Target, probe};
use towpath_tests::stage::{Stage, server};
use towpath_tests::wait::{PATIENCE, until};
use towpath_tests::{program, require};

/// Our plugin, as a conflist of Flannel has it after the others.
struct Ours {
    plugin: PathBuf,
    configuration: Value,
}

/// What a plugin answered: what it printed, and whether it failed.
#[derive(Debug)]
struct Answer {
    printed: Value,
    remark: String,
    is_good: bool,
}

impl Answer {
    fn code(&self) -> Option<u64> {
        self.printed["code"].as_u64()
    }
}

impl Ours {
    fn new(stage: &Stage, node: &str) -> Self {
        let folder = stage.lab.folder().join(node);
        Self {
            // Built beside the agent.
            plugin: program::towpath()
                .expect("the agent is built; towpath-cni stands beside it")
                .with_file_name("towpath-cni"),
            configuration: json!({
                "cniVersion": "0.3.1",
                "name": NETWORK_NAME,
                "type": "towpath-cni",
                "socket": folder.join("towpath.sock"),
                "queue": folder.join("state/cni-deletions"),
            }),
        }
    }

    fn with(&self, key: &str, value: impl Into<Value>) -> Self {
        let mut configuration = self.configuration.clone();
        configuration[key] = value.into();
        Self {
            plugin: self.plugin.clone(),
            configuration,
        }
    }

    fn call(&self, node: &Node, sandbox: &Sandbox, verb: &str, previous: &Value) -> Answer {
        let mut configuration = self.configuration.clone();
        configuration["prevResult"] = previous.clone();
        let text = configuration.to_string();
        let output = invoke(&node.namespace, &self.plugin, sandbox, verb, &text)
            .expect("towpath-cni starts; is it built? cargo build -p towpath-cni");
        Answer {
            printed: serde_json::from_slice(&output.stdout).unwrap_or_default(),
            remark: String::from_utf8_lossy(&output.stderr).into_owned(),
            is_good: output.status.success(),
        }
    }
}

/// Network namespaces of pods that a test plugs by itself, with the lab's own addresses.
struct Plugged<'s> {
    node: &'s Node,
    bridge: Plugins,
    prefix: String,
}

/// A pod without servers; its namespace goes with it.
struct Pod {
    namespace: Namespace,
    sandbox: Sandbox,
    attachment: Attachment,
}

impl<'s> Plugged<'s> {
    fn new(stage: &'s Stage, node: &str) -> Result<Self> {
        let data = stage.lab.folder().join(node).join("networks");
        let node = stage.lab.node(node)?;
        let networks = ["10.244.0.0/16".parse()?];
        Ok(Self {
            node,
            bridge: Plugins::new(PluginSet::System, &node.pod_cidrs, &networks, 1450, &data)?,
            prefix: stage.lab.prefix().to_owned(),
        })
    }

    /// What the bridge plugin does before ours.
    fn add(&self, name: &str, number: u32) -> Result<Pod> {
        let namespace = Namespace::create(&format!("{}-pod-x{number}", self.prefix))?;
        let sandbox = Sandbox {
            container: format!("{number:064x}"),
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            uid: uid(number),
            path: namespace.path(),
        };
        let attachment = self.bridge.add(&self.node.namespace, &sandbox)?;
        Ok(Pod {
            namespace,
            sandbox,
            attachment,
        })
    }

    /// What the bridge plugin does after ours.
    fn delete(&self, pod: &Pod) -> Result<()> {
        self.bridge.delete(&self.node.namespace, &pod.sandbox)
    }

    /// Ports of the bridge, and addresses that host-local has given away.
    fn leftovers(&self, stage: &Stage) -> Result<(usize, usize)> {
        let text = self
            .node
            .namespace
            .run(Command::new("ip").args(["-json", "link", "show", "master", BRIDGE]))?;
        let ports: Vec<Value> = serde_json::from_str(&text).unwrap_or_default();
        let store = stage.lab.folder().join(&self.node.name);
        let store = store.join("networks").join(NETWORK_NAME);
        let given = std::fs::read_dir(store)?
            .filter_map(Result::ok)
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("10."));
        Ok((ports.len(), given.count()))
    }
}

fn uid(number: u32) -> String {
    format!("00000000-0000-4000-8000-{number:012x}")
}

/// A pod as the API server has it before its containers run: bound to a node, without addresses.
fn starting(node: &str, name: &str, uid: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\n\
         metadata: {{name: {name}, namespace: shop, uid: {uid}, labels: {{app: {name}}}}}\n\
         spec: {{nodeName: {node}, containers: [{{name: server}}]}}\n\
         status: {{phase: Pending}}\n"
    )
}

/// The addresses that the kernel's tables bind to an interface.
fn is_bound(node: &Node, pod: &Pod) -> Result<bool> {
    let address = pod.attachment.addresses[0].to_string();
    let mut list = Command::new("nft");
    let text = node
        .namespace
        .run(list.args(["list", "table", "bridge", "towpath"]))?;
    Ok(text.contains(&address) && text.contains(&pod.attachment.host_interface))
}

/// One node with `shop/web` on it, whose agent is ready.
fn one_node() -> Result<Stage> {
    let mut stage = Stage {
        lab: Lab::new(&LabConfig {
            nodes: 1,
            ..LabConfig::default()
        })?,
        agents: Vec::new(),
    };
    stage.lab.write_namespace("shop", &[("team", "shop")])?;
    stage.lab.add_pod(server("node-a", "shop", "web"))?;
    stage.start_agents(&AgentOptions::default())?;
    Ok(stage)
}

fn publish(stage: &Stage, name: &str, number: u32) -> Result<()> {
    let text = starting("node-a", name, &uid(number));
    stage
        .lab
        .manifests
        .write(&format!("pod-shop-{name}"), &text)?;
    Ok(())
}

/// Whether a pod reaches the server `shop/web`, at the first packet.
fn reaches_web(stage: &Stage, pod: &Pod) -> Result<bool> {
    let web = stage.lab.pod("shop/web")?;
    let target = Target::tcp(web.ipv4()?, 80);
    let patience = Patience {
        attempts: 1,
        millis: 1000,
    };
    let namespace = Namespace::existing(pod.namespace.name());
    Ok(probe(&namespace, &[target], patience)?[0].passed())
}

#[test]
fn add_returns_when_the_pod_is_programmed() {
    require!("cni", Root, CniPlugins, Vxlan, BridgeNetfilter, Nft);
    let stage = one_node().unwrap();
    let plugged = Plugged::new(&stage, "node-a").unwrap();
    let ours = Ours::new(&stage, "node-a");
    let agent = stage.agent("node-a").unwrap();
    let before = plugged.leftovers(&stage).unwrap();
    let pod = plugged.add("late", 1).unwrap();
    let result = &pod.attachment.result;

    let (early, answer) = std::thread::scope(|scope| {
        let adding = scope.spawn(|| ours.call(plugged.node, &pod.sandbox, "ADD", result));
        agent
            .wait_metric("towpath_cni_waiting", |waiting| waiting > 0.0)
            .unwrap();
        let early = (adding.is_finished(), is_bound(plugged.node, &pod).unwrap());
        publish(&stage, "late", 1).unwrap();
        (early, adding.join().unwrap())
    });
    let bound = is_bound(plugged.node, &pod).unwrap();
    let reaches = reaches_web(&stage, &pod).unwrap();

    assert_eq!(early, (false, false));
    assert!(
        answer.is_good && bound && reaches,
        "{answer:?} {bound} {reaches}"
    );
    assert_eq!(answer.printed, *result);
    let newer = ours.with("cniVersion", "0.4.0");
    let check = newer.call(plugged.node, &pod.sandbox, "CHECK", result);
    assert!(check.is_good, "{check:?}");

    let deleted = ours.call(plugged.node, &pod.sandbox, "DEL", result);
    assert!(deleted.is_good && deleted.remark.is_empty(), "{deleted:?}");
    until("the binding goes", PATIENCE, || {
        Ok(!is_bound(plugged.node, &pod)?)
    })
    .unwrap();
    plugged.delete(&pod).unwrap();
    assert_eq!(plugged.leftovers(&stage).unwrap(), before);
}

#[test]
fn without_an_agent_a_pod_starts_only_where_the_configuration_says_so() {
    require!("cni", Root, CniPlugins, Vxlan, BridgeNetfilter, Nft);
    let mut stage = one_node().unwrap();
    stage.agents.pop().unwrap().kill().unwrap();
    let queue = stage.lab.folder().join("node-a/state/cni-deletions");
    {
        let plugged = Plugged::new(&stage, "node-a").unwrap();
        let ours = Ours::new(&stage, "node-a").with("timeoutSeconds", 1);
        let before = plugged.leftovers(&stage).unwrap();
        let pod = plugged.add("late", 1).unwrap();
        let call = |ours: &Ours, verb: &str| {
            ours.call(plugged.node, &pod.sandbox, verb, &pod.attachment.result)
        };

        let closed = call(&ours, "ADD");
        let open = call(&ours.with("failurePolicy", "open"), "ADD");
        let exempt = call(&ours.with("waitExemptNamespaces", json!(["shop"])), "ADD");
        let reaches = reaches_web(&stage, &pod).unwrap();
        let newest = ours.with("cniVersion", "1.1.0");
        let status = call(&newest, "STATUS");
        let deleted = [call(&ours, "DEL"), call(&ours, "DEL")];
        plugged.delete(&pod).unwrap();

        assert_eq!(
            (closed.is_good, closed.code()),
            (false, Some(11)),
            "{closed:?}"
        );
        assert_eq!(status.code(), Some(50), "{status:?}");
        for answer in [open, exempt] {
            assert!(answer.is_good, "{answer:?}");
            assert_eq!(answer.printed, pod.attachment.result);
        }
        assert!(!reaches, "exempt from the wait is not exempt from the drop");
        assert!(deleted.iter().all(|answer| answer.is_good), "{deleted:?}");
        assert_eq!(plugged.leftovers(&stage).unwrap(), before);
        let lines = std::fs::read_to_string(&queue).unwrap();
        assert_eq!(lines.lines().count(), 1, "{lines}");
    }

    stage.start_agents(&AgentOptions::default()).unwrap();

    assert_eq!(std::fs::read_to_string(&queue).unwrap(), "");
}

#[test]
fn a_pod_of_an_exempt_namespace_starts_at_once_and_closed() {
    require!("cni", Root, CniPlugins, Vxlan, BridgeNetfilter, Nft);
    let stage = one_node().unwrap();
    let plugged = Plugged::new(&stage, "node-a").unwrap();
    let ours = Ours::new(&stage, "node-a").with("waitExemptNamespaces", json!(["shop"]));
    let pod = plugged.add("late", 1).unwrap();

    let answer = ours.call(plugged.node, &pod.sandbox, "ADD", &pod.attachment.result);
    let early = reaches_web(&stage, &pod).unwrap();
    publish(&stage, "late", 1).unwrap();
    until("the binding", PATIENCE, || is_bound(plugged.node, &pod)).unwrap();

    assert!(
        answer.is_good && answer.remark.contains("exempt"),
        "{answer:?}"
    );
    assert!(!early);
    // The kernel still waits for the neighbour that the early packet looked for.
    until("the pod to reach web", PATIENCE, || {
        reaches_web(&stage, &pod)
    })
    .unwrap();
    plugged.delete(&pod).unwrap();
}

#[test]
fn a_starting_pod_outlives_the_agent_and_one_that_ended_meanwhile_does_not() {
    require!("cni", Root, CniPlugins, Vxlan, BridgeNetfilter, Nft);
    let mut stage = one_node().unwrap();
    let pods: Vec<Pod> = {
        let plugged = Plugged::new(&stage, "node-a").unwrap();
        let ours = Ours::new(&stage, "node-a");
        let add = |(name, number)| {
            publish(&stage, name, number).unwrap();
            let pod = plugged.add(name, number).unwrap();
            let answer = ours.call(plugged.node, &pod.sandbox, "ADD", &pod.attachment.result);
            assert!(answer.is_good, "{answer:?}");
            pod
        };
        [("stays", 1), ("goes", 2)].map(add).into()
    };
    let file = stage.lab.folder().join("node-a/state/cni-claims.json");
    until("the claims on disk", PATIENCE, || {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        Ok(pods.iter().all(|pod| text.contains(&pod.sandbox.container)))
    })
    .unwrap();

    stage.agents.pop().unwrap().kill().unwrap();
    {
        let node = stage.lab.node("node-a").unwrap();
        let ours = Ours::new(&stage, "node-a");
        let deleted = ours.call(node, &pods[1].sandbox, "DEL", &pods[1].attachment.result);
        assert!(deleted.is_good, "{deleted:?}");
    }
    stage.start_agents(&AgentOptions::default()).unwrap();

    let node = stage.lab.node("node-a").unwrap();
    until("the binding of the one that stays", PATIENCE, || {
        is_bound(node, &pods[0])
    })
    .unwrap();
    assert!(!is_bound(node, &pods[1]).unwrap());
    assert!(reaches_web(&stage, &pods[0]).unwrap());
}

#[test]
fn the_first_pod_of_a_node_starts_when_its_bridge_is_judged() {
    require!("cni", Root, CniPlugins, Vxlan, BridgeNetfilter, Nft);
    let mut stage = Stage {
        lab: Lab::new(&LabConfig {
            nodes: 1,
            ..LabConfig::default()
        })
        .unwrap(),
        agents: Vec::new(),
    };
    stage.lab.write_namespace("shop", &[]).unwrap();
    publish(&stage, "first", 1).unwrap();
    stage.start_agents(&AgentOptions::default()).unwrap();
    let plugged = Plugged::new(&stage, "node-a").unwrap();
    let ours = Ours::new(&stage, "node-a");

    // The bridge plugin makes the bridge, and the kernel does not show its frames to the rules by itself.
    let pod = plugged.add("first", 1).unwrap();
    let answer = ours.call(plugged.node, &pod.sandbox, "ADD", &pod.attachment.result);
    let mut show = Command::new("ip");
    show.args(["-json", "-details", "link", "show", "dev", BRIDGE]);
    let links: Value =
        serde_json::from_str(&plugged.node.namespace.run(&mut show).unwrap()).unwrap();

    assert!(answer.is_good, "{answer:?}");
    assert!(is_bound(plugged.node, &pod).unwrap());
    assert_eq!(links[0]["linkinfo"]["info_data"]["nf_call_iptables"], 1);
    plugged.delete(&pod).unwrap();
}

#[test]
fn more_pods_than_may_wait_at_once_start_all_the_same() {
    /// More than the agent lets wait, and more than its socket has connections.
    const PODS: u32 = 70;
    require!("cni", Root, CniPlugins, Vxlan, BridgeNetfilter, Nft);
    let stage = one_node().unwrap();
    let plugged = Plugged::new(&stage, "node-a").unwrap();
    let ours = Ours::new(&stage, "node-a").with("timeoutSeconds", 10);
    let agent = stage.agent("node-a").unwrap();
    let pods: Vec<Pod> = (1..=PODS)
        .map(|number| plugged.add(&format!("p{number}"), number).unwrap())
        .collect();

    let answers: Vec<Answer> = std::thread::scope(|scope| {
        let adding: Vec<_> = pods
            .iter()
            .map(|pod| {
                scope.spawn(|| ours.call(plugged.node, &pod.sandbox, "ADD", &pod.attachment.result))
            })
            .collect();
        agent
            .wait_metric("towpath_cni_waiting", |waiting| waiting >= 40.0)
            .unwrap();
        for number in 1..=PODS {
            publish(&stage, &format!("p{number}"), number).unwrap();
        }
        adding
            .into_iter()
            .map(|adding| adding.join().unwrap())
            .collect()
    });

    for (pod, answer) in pods.iter().zip(answers) {
        assert!(answer.is_good, "{}: {answer:?}", pod.sandbox.name);
        assert!(is_bound(plugged.node, pod).unwrap(), "{}", pod.sandbox.name);
    }
}

/// Prints what the plugin adds to ADD. The figures depend on the machine; that all of them start does not.
#[test]
fn a_hundred_pods_start_one_after_the_other() {
    const PODS: u32 = 100;
    require!("cni", Root, CniPlugins, Vxlan, BridgeNetfilter, Nft);
    let stage = one_node().unwrap();
    let plugged = Plugged::new(&stage, "node-a").unwrap();
    let ours = Ours::new(&stage, "node-a");
    let agent = stage.agent("node-a").unwrap();
    for number in 1..=PODS {
        publish(&stage, &format!("p{number}"), number).unwrap();
    }
    agent
        .wait_metric("towpath_graph_cluster_endpoints", |pods| {
            pods > f64::from(PODS)
        })
        .unwrap();

    let (mut adds, mut floor) = (Vec::new(), Vec::new());
    for number in 1..=PODS {
        let pod = plugged.add(&format!("p{number}"), number).unwrap();
        let result = &pod.attachment.result;
        let timed = |verb: &str, times: &mut Vec<Duration>| {
            let started = Instant::now();
            let answer = ours.call(plugged.node, &pod.sandbox, verb, result);
            times.push(started.elapsed());
            assert!(answer.is_good, "{verb} of p{number}: {answer:?}");
        };
        timed("ADD", &mut adds);
        timed("VERSION", &mut floor);
        assert!(is_bound(plugged.node, &pod).unwrap());
        timed("DEL", &mut Vec::new());
        plugged.delete(&pod).unwrap();
    }

    for (what, mut times) in [("ADD", adds), ("VERSION, the floor", floor)] {
        times.sort();
        let at = |share: usize| times[(times.len() * share / 100).min(times.len() - 1)];
        eprintln!(
            "towpath-cni {what}: p50 {:?}, p99 {:?}, max {:?}",
            at(50),
            at(99),
            at(100)
        );
    }
}
