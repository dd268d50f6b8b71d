//! The startup taint: it stays while a node cannot enforce, goes once it can, and takes no other taint along.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use towpath_tests::agent::{Agent, AgentOptions};
use towpath_tests::cluster::{Api, KubernetesConfig};
use towpath_tests::cni::PluginSet;
use towpath_tests::lab::{Lab, LabConfig};
use towpath_tests::wait::until;
use towpath_tests::{program, require};

const TAINT: &str = "towpath.io/not-ready";
/// The agent looks for obstacles every ten seconds.
const PATIENCE: Duration = Duration::from_mins(1);
const NODE: &str = "/api/v1/nodes/node-a";

fn lab() -> Lab {
    Lab::new(&LabConfig {
        plugins: PluginSet::Module,
        kubernetes: Some(KubernetesConfig::default()),
        ..LabConfig::default()
    })
    .expect("the lab does it")
}

fn options() -> AgentOptions {
    AgentOptions {
        configuration: Some(format!("startupTaint: {TAINT}:NoSchedule\n")),
        ..AgentOptions::default()
    }
}

fn taint(key: &str) -> Value {
    json!({ "key": key, "effect": "NoSchedule" })
}

/// Puts exactly these taints on node-a.
fn set_taints(api: &Api, taints: &[Value]) {
    api.merge(NODE, &json!({ "spec": { "taints": taints } }))
        .expect("the lab does it");
}

fn taints(api: &Api) -> Result<Vec<String>> {
    let node = api.get(NODE)?;
    let taints = node["spec"]["taints"].as_array().cloned();
    let key = |taint: &Value| taint["key"].as_str().map(str::to_owned);
    Ok(taints.unwrap_or_default().iter().filter_map(key).collect())
}

fn wait_taints(api: &Api, wanted: &[&str]) {
    let what = format!("taints {wanted:?}");
    until(&what, PATIENCE, || Ok(taints(api)? == wanted)).expect("the lab does it");
}

fn grant(api: &Api) {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/rbac-taint.yaml");
    api.apply(&std::fs::read_to_string(manifest).expect("the lab does it"))
        .expect("the lab does it");
}

/// What `towpath status` says of the startup taint: how it does, and why.
fn standing(agent: &Agent) -> Result<(String, String)> {
    let mut command = Command::new(program::towpath()?);
    command.args(["status", "-o", "json", "--socket"]);
    let output = command.arg(agent.socket()).output()?;
    let status: Value = serde_json::from_slice(&output.stdout).context("no status")?;
    let all = status["publishing"].as_array().cloned().unwrap_or_default();
    let found = all.iter().find(|one| one["what"] == "startup-taint");
    let text = |key: &str| {
        let value = found.and_then(|one| one[key].as_str());
        value.unwrap_or_default().to_owned()
    };
    Ok((text("standing"), text("detail")))
}

#[test]
fn the_taint_goes_once_the_node_enforces_and_again_when_it_is_back() {
    require!(
        "kubernetes",
        Root,
        KubernetesServers,
        Flanneld,
        CniModulePlugins,
        Vxlan,
        Nft
    );
    let lab = lab();
    let api = lab.cluster().unwrap().api().clone();
    grant(&api);
    set_taints(&api, &[taint("other"), taint(TAINT), taint("third")]);
    // What looks like IPVS: packets to Services would pass no hook that judges them.
    let node = lab.node("node-a").unwrap();
    let link = |verb: &[&str]| {
        let mut ip = Command::new("ip");
        node.namespace.run(ip.arg("link").args(verb)).unwrap();
    };
    link(&[
        "add",
        "kube-ipvs0",
        "type",
        "veth",
        "peer",
        "name",
        "ipvs-peer",
    ]);

    let mut agent = Agent::start(&lab, "node-a", &options()).unwrap();
    until("commits and the taint that waits", PATIENCE, || {
        // Nobody answers yet right after the start.
        let has_committed = agent.metric("towpath_dataplane_commits_total").is_ok();
        let (_, detail) = standing(&agent).unwrap_or_default();
        Ok(has_committed && detail.contains("not ready yet"))
    })
    .unwrap();
    assert_eq!(taints(&api).unwrap(), ["other", TAINT, "third"]);

    link(&["delete", "kube-ipvs0"]);
    wait_taints(&api, &["other", "third"]);
    agent.wait_ready().unwrap();

    set_taints(&api, &[taint(TAINT)]);
    wait_taints(&api, &[]);

    let mut object = api.get(NODE).unwrap();
    api.delete(NODE).unwrap();
    for field in [
        "uid",
        "resourceVersion",
        "creationTimestamp",
        "managedFields",
    ] {
        object["metadata"].as_object_mut().unwrap().remove(field);
    }
    object["spec"]["taints"] = json!([taint(TAINT), taint("new")]);
    api.create("/api/v1/nodes", &object).unwrap();
    until("the new Node without our taint", PATIENCE, || {
        let taints = taints(&api)?;
        Ok(taints.iter().any(|key| key == "new") && taints.iter().all(|key| key != TAINT))
    })
    .unwrap();
}

#[test]
fn taints_that_others_add_meanwhile_are_not_lost() {
    require!(
        "kubernetes",
        Root,
        KubernetesServers,
        Flanneld,
        CniModulePlugins,
        Vxlan,
        Nft
    );
    let lab = lab();
    let api = lab.cluster().unwrap().api().clone();
    grant(&api);
    set_taints(&api, &[taint("first")]);
    let mut agent = Agent::start(&lab, "node-a", &options()).unwrap();
    agent.wait_ready().unwrap();

    // Each of them moves the places of all others; some bring ours along.
    let add = |taint: &Value| {
        let patch = json!([{ "op": "add", "path": "/spec/taints/0", "value": taint }]);
        let content = "application/json-patch+json";
        let answer = api.request("PATCH", NODE, content, &patch.to_string());
        answer.unwrap().status
    };
    let others: Vec<String> = (0..30).map(|number| format!("other-{number}")).collect();
    for other in &others {
        // Where the last one is still there, a second one is refused.
        assert!([200, 422].contains(&add(&taint(TAINT))));
        assert_eq!(add(&taint(other)), 200);
    }

    let mut wanted: Vec<&str> = others.iter().rev().map(String::as_str).collect();
    wanted.push("first");
    wait_taints(&api, &wanted);
    // The API server shows the write before the agent has counted it.
    agent
        .wait_metric("towpath_api_writes_total", |writes| writes >= 1.0)
        .unwrap();
}

#[test]
fn without_the_right_the_node_enforces_and_says_what_to_do() {
    require!(
        "kubernetes",
        Root,
        KubernetesServers,
        Flanneld,
        CniModulePlugins,
        Vxlan,
        Nft
    );
    let lab = lab();
    let api = lab.cluster().unwrap().api().clone();
    set_taints(&api, &[taint(TAINT)]);

    let mut agent = Agent::start(&lab, "node-a", &options()).unwrap();
    agent.wait_ready().unwrap();
    until("the refusal in status", PATIENCE, || {
        Ok(standing(&agent)?.0 == "refused")
    })
    .unwrap();

    let (_, detail) = standing(&agent).unwrap();
    assert!(detail.contains("deploy/rbac-taint.yaml"), "{detail}");
    let metrics = agent.metrics().unwrap();
    let counted = "towpath_api_writes_total{what=\"startup-taint\",result=\"refused\"} 1";
    assert!(metrics.contains(counted), "{metrics}");
    assert_eq!(taints(&api).unwrap(), [TAINT]);
    let log = agent.log_tail();
    let told = log.matches("deploy/rbac-taint.yaml").count();
    assert_eq!(told, 1, "{log}");

    // A new agent asks at once.
    agent.kill().unwrap();
    grant(&api);
    let mut agent = Agent::start(&lab, "node-a", &options()).unwrap();
    wait_taints(&api, &[]);
    agent.wait_ready().unwrap();

    // Whoever puts it on nodes goes on to do so.
    let mut uninstall = agent.uninstaller().unwrap();
    assert!(agent.terminate().unwrap().success());
    let node = lab.node("node-a").unwrap();
    let told = node.namespace.run(&mut uninstall).unwrap();
    assert!(
        told.contains(&format!("startup taint {TAINT}:NoSchedule")),
        "{told}"
    );
}
