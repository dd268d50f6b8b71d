//! Kubelets, containerd and the scheduler start pods; agents and the chained plugin decide when these may speak.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use towpath_tests::agent::{Agent, AgentOptions};
use towpath_tests::cluster::Api;
use towpath_tests::lab::{Lab, LabConfig};
use towpath_tests::matrix::Flow;
use towpath_tests::stage::{Stage, allow_http, deny_ingress, server};
use towpath_tests::wait::until;
use towpath_tests::{program, require};

const TAINT: &str = "towpath.io/not-ready";
/// The scheduler and the kubelet try again after a while, and after a longer one each time.
const PATIENCE: Duration = Duration::from_mins(2);

/// Whoever may: shop/api asks shop/web for HTTP. What is not of namespace shop is not protected.
fn only_api_reaches_web(flow: &Flow<'_>) -> bool {
    let is_allowed =
        flow.from.id() == "shop/api" && flow.to.id() == "shop/web" && flow.target.port == 80;
    flow.to.spec.namespace != "shop" || is_allowed
}

/// Where containerd of a node looks for configurations and programs.
fn runtime_folders(lab: &Lab, node: &str) -> [PathBuf; 2] {
    ["net.d", "bin"].map(|name| lab.folder().join(node).join("cni").join(name))
}

fn cni(stage: &Stage, node: &str, words: &[&str]) -> Result<()> {
    let mut command = Command::new(program::towpath()?);
    command.arg("cni").args(words);
    let state = stage.lab.folder().join(node).join("state");
    command.arg("--state-dir").arg(state);
    stage.lab.node(node)?.namespace.run(&mut command)?;
    Ok(())
}

/// Copies the chain: containerd reads no drop-ins before its version 2.2.
fn install_plugin(stage: &Stage, node: &str) -> Result<()> {
    let [configurations, programs] =
        runtime_folders(&stage.lab, node).map(|path| path.to_string_lossy().into_owned());
    let socket = stage.agent(node)?.socket().to_string_lossy().into_owned();
    let words = [
        "install",
        "--method",
        "copy",
        "--timeout",
        "2",
        "--conf-dir",
        &configurations,
        "--bin-dir",
        &programs,
        "--socket",
        &socket,
    ];
    cni(stage, node, &words)
}

fn names(folders: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for folder in folders {
        for entry in fs::read_dir(folder)? {
            found.push(entry?.path());
        }
    }
    found.sort();
    Ok(found)
}

/// Waits for an event of a pod of namespace shop with these words in it.
fn wait_event(api: &Api, pod: &str, words: &str) -> Result<()> {
    until(&format!("an event {words:?} of {pod}"), PATIENCE, || {
        let list = api.get("/api/v1/namespaces/shop/events")?;
        let events = list["items"].as_array().cloned().unwrap_or_default();
        Ok(events.iter().any(|event| {
            let message = event["message"].as_str().unwrap_or_default();
            event["involvedObject"]["name"] == pod && message.contains(words)
        }))
    })
}

fn taints(api: &Api, node: &str) -> Result<Vec<Value>> {
    let node = api.get(&format!("/api/v1/nodes/{node}"))?;
    Ok(node["spec"]["taints"]
        .as_array()
        .cloned()
        .unwrap_or_default())
}

fn options() -> AgentOptions {
    AgentOptions {
        configuration: Some(format!("startupTaint: {TAINT}:NoSchedule\n")),
        ..AgentOptions::default()
    }
}

fn start_agent(stage: &mut Stage, node: &str) -> Result<()> {
    let mut agent = Agent::start(&stage.lab, node, &options())?;
    agent.wait_ready()?;
    stage.agents.push(agent);
    Ok(())
}

/// A cluster without pods, whose nodes have the startup taint and whose namespace shop is closed.
fn tainted() -> Result<Stage> {
    let lab = Lab::new(&LabConfig::real())?;
    let api = lab.cluster()?.api();
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/rbac-taint.yaml");
    api.apply(&fs::read_to_string(manifest)?)?;
    for node in lab.nodes() {
        let taint = json!({ "key": TAINT, "effect": "NoSchedule" });
        let path = format!("/api/v1/nodes/{}", node.name);
        api.merge(&path, &json!({ "spec": { "taints": [taint] } }))?;
    }
    lab.write_namespace("shop", &[])?;
    let stage = Stage {
        lab,
        agents: Vec::new(),
    };
    stage.write("deny", &deny_ingress("shop"))?;
    stage.write("allow", &allow_http("shop", "web", "api"))?;
    Ok(stage)
}

#[test]
fn workload_that_is_there_before_the_agent_starts_only_when_the_node_enforces() {
    require!(
        "kubernetes",
        Root,
        KubernetesServers,
        Flanneld,
        KubeProxy,
        CniModulePlugins,
        Kubelet,
        Vxlan,
        BridgeNetfilter,
        Nft
    );
    let mut stage = tainted().unwrap();
    let api = stage.lab.cluster().unwrap().api().clone();
    let pods = [
        ("node-a", "web"),
        ("node-a", "api"),
        ("node-b", "db"),
        ("node-b", "job"),
    ];
    let specs = pods.map(|(node, name)| server(node, "shop", name).scheduled());
    for spec in &specs {
        stage.lab.declare(spec).unwrap();
    }
    for (_, name) in pods {
        wait_event(&api, name, "untolerated taint").unwrap();
    }

    // The scheduler binds the pods of a node as soon as its taint is gone, while the other node is still closed.
    for node in ["node-b", "node-a"] {
        start_agent(&mut stage, node).unwrap();
        for spec in specs.iter().filter(|spec| spec.node == node) {
            stage.lab.await_declared(spec.clone()).unwrap();
        }
        assert_eq!(taints(&api, node).unwrap(), Vec::<Value>::new());
        stage.hold(only_api_reaches_web).unwrap();
    }
}

#[test]
fn kubelets_start_pods_through_the_plugin_and_try_again_while_the_agent_is_away() {
    require!(
        "kubernetes",
        Root,
        KubernetesServers,
        Flanneld,
        KubeProxy,
        CniModulePlugins,
        Kubelet,
        Vxlan,
        BridgeNetfilter,
        Nft
    );
    let mut stage = tainted().unwrap();
    let api = stage.lab.cluster().unwrap().api().clone();
    let folders = runtime_folders(&stage.lab, "node-a");
    let before = names(&folders).unwrap();
    for node in ["node-a", "node-b"] {
        start_agent(&mut stage, node).unwrap();
        install_plugin(&stage, node).unwrap();
    }
    let first = [("node-a", "web"), ("node-a", "api"), ("node-b", "db")];
    let specs = first.map(|(node, name)| server(node, "shop", name));
    stage.lab.add_pods(specs.to_vec()).unwrap();
    // With the plugin a pod that runs is programmed.
    stage.hold(only_api_reaches_web).unwrap();

    stage.agents.remove(0).kill().unwrap();
    let late = server("node-a", "shop", "late");
    stage.lab.declare(&late).unwrap();
    wait_event(&api, "late", "is it running?").unwrap();
    // The runtime still deletes: nobody has to be there for that.
    stage.lab.remove_pod("shop/api").unwrap();
    start_agent(&mut stage, "node-a").unwrap();
    stage.lab.await_declared(late).unwrap();
    stage.hold(only_api_reaches_web).unwrap();

    cni(&stage, "node-a", &["remove"]).unwrap();
    assert_eq!(names(&folders).unwrap(), before);
    stage.lab.add_pod(server("node-a", "shop", "api")).unwrap();
    stage.settle(only_api_reaches_web).unwrap();
    let left = fs::read_dir(stage.lab.folder().join("node-a/state/cni-deletions"));
    let left = left.map_or(0, Iterator::count);
    assert_eq!(left, 0, "deletions that nobody took");
}
