//! The status object of each node: what it says, how seldom it is written, and what comes of it.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use towpath_tests::agent::{Agent, AgentOptions};
use towpath_tests::cluster::{Api, Cluster, KubernetesConfig};
use towpath_tests::cni::PluginSet;
use towpath_tests::lab::LabConfig;
use towpath_tests::stage::{Stage, deny_ingress};
use towpath_tests::wait::{PATIENCE, until, until_some};
use towpath_tests::{program, require};

const NODES: &str = "/apis/towpath.io/v1alpha1/nodestatuses";
/// Longer than the least time between two writes, on a machine under load.
const SETTLE: Duration = Duration::from_mins(1);

fn config() -> LabConfig {
    LabConfig {
        plugins: PluginSet::Module,
        kubernetes: Some(KubernetesConfig::default()),
        ..LabConfig::default()
    }
}

fn options(interval: u64) -> AgentOptions {
    AgentOptions {
        configuration: Some(format!(
            "nodeStatus: true\nnodeStatusIntervalSeconds: {interval}\n"
        )),
        ..AgentOptions::default()
    }
}

fn apply_manifest(api: &Api) {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/node-status.yaml");
    api.apply(&std::fs::read_to_string(manifest).expect("the lab does it"))
        .expect("the lab does it");
    until("kind NodeStatus", PATIENCE, || {
        Ok(api.find(NODES)?.is_some())
    })
    .expect("the lab does it");
}

fn object(api: &Api, node: &str) -> Result<Option<Value>> {
    api.find(&format!("{NODES}/{node}"))
}

/// Waits until the status of a node is as the closure wants it.
fn wait_status(api: &Api, node: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    let what = format!("status of {node}: {what}");
    let found = until_some(&what, SETTLE, || {
        let found = object(api, node)?;
        Ok(found.filter(|object| holds(&object["status"])))
    });
    match found {
        Ok(object) => object,
        Err(error) => panic!("{error:#}: {:#?}", object(api, node)),
    }
}

fn cluster_status(cluster: &Cluster, format: &str) -> Result<Output> {
    let mut command = Command::new(program::towpath()?);
    let source = format!("kubernetes:{}", cluster.plane.kubeconfig().display());
    command.args(["status", "--cluster", "--source", &source, "-o", format]);
    Ok(command.output()?)
}

/// What `towpath status` says of the part that writes it: how it does, and why.
fn standing(agent: &Agent) -> Result<(String, String)> {
    let mut command = Command::new(program::towpath()?);
    command.args(["status", "-o", "json", "--socket"]);
    let output = command.arg(agent.socket()).output()?;
    let status: Value = serde_json::from_slice(&output.stdout).context("no status")?;
    let one = &status["publishing"][0];
    let text = |key: &str| one[key].as_str().unwrap_or_default().to_owned();
    Ok((text("standing"), text("detail")))
}

#[test]
fn each_node_says_what_it_enforces_and_the_command_line_shows_who_lags() {
    require!(
        "kubernetes",
        Root,
        KubernetesServers,
        Flanneld,
        CniModulePlugins,
        Vxlan,
        Nft
    );
    let mut stage = Stage::new(&config()).unwrap();
    let api = stage.lab.cluster().unwrap().api().clone();
    apply_manifest(&api);
    stage.start_agents(&options(1)).unwrap();

    let first = wait_status(&api, "node-a", "enforced", |status| {
        status["enforced"] == true && status["endpoints"] == 2
    });
    let node = api.get("/api/v1/nodes/node-a").unwrap();
    let owner = &first["metadata"]["ownerReferences"][0];
    assert_eq!(owner["uid"], node["metadata"]["uid"]);
    assert_eq!(first["status"]["policies"], 0);
    assert_eq!(first["status"]["inSync"], true);
    assert_eq!(first["status"]["awaited"], json!([]));

    stage.write("deny", &deny_ingress("shop")).unwrap();
    let policy = "/apis/networking.k8s.io/v1/namespaces/shop/networkpolicies/deny-ingress";
    let policy = api.get(policy).unwrap();
    let number = |value: &Value| value.as_str().and_then(|text| text.parse::<u64>().ok());
    let version = number(&policy["metadata"]["resourceVersion"]).unwrap();
    for node in ["node-a", "node-b"] {
        wait_status(&api, node, "the policy", |status| {
            let held = number(&status["resourceVersions"]["networkPolicies"]);
            status["policies"] == 1 && held.is_some_and(|held| held >= version)
        });
    }
    let cluster = stage.lab.cluster().unwrap();
    let good = cluster_status(cluster, "json").unwrap();
    let rows: Value = serde_json::from_slice(&good.stdout).unwrap();
    assert_eq!(rows[0]["state"], "enforced", "{rows:#}");
    assert_eq!(rows[1]["state"], "enforced", "{rows:#}");
    assert!(good.status.success());

    // One that stands still does not hear of the next policy.
    stage.agents[1].pause().unwrap();
    api.apply(&deny_ingress("other")).unwrap();
    until("node-b is behind, and node-a is not", SETTLE, || {
        let output = cluster_status(stage.lab.cluster()?, "json")?;
        let rows: Value = serde_json::from_slice(&output.stdout)?;
        let behind = json!(["networkpolicies"]);
        let is_so = rows[0]["node"] == "node-b" && rows[0]["behind"] == behind;
        Ok(is_so && rows[1]["state"] == "enforced" && output.status.code() == Some(1))
    })
    .unwrap();
    let table = cluster_status(stage.lab.cluster().unwrap(), "table").unwrap();
    let table = String::from_utf8(table.stdout).unwrap();
    let line = table.lines().find(|line| line.starts_with("node-b"));
    assert!(line.is_some_and(|line| line.contains("behind")), "{table}");
    stage.agents[1].resume().unwrap();

    // It goes away with its Node: the real garbage collector sees to that.
    stage.agents.remove(1).kill().unwrap();
    api.delete("/api/v1/nodes/node-b").unwrap();
    until("no status of node-b", SETTLE, || {
        Ok(object(&api, "node-b")?.is_none())
    })
    .unwrap();
}

#[test]
fn changes_are_merged_and_nothing_is_written_when_nothing_changes() {
    require!(
        "kubernetes",
        Root,
        KubernetesServers,
        Flanneld,
        CniModulePlugins,
        Vxlan,
        Nft
    );
    let mut stage = Stage::new(&config()).unwrap();
    let api = stage.lab.cluster().unwrap().api().clone();
    apply_manifest(&api);
    stage.start_agents(&options(5)).unwrap();
    wait_status(&api, "node-a", "endpoints", |status| {
        status["endpoints"] == 2 && status["enforced"] == true
    });
    // The object stands in the API server a moment before the agent has counted that it wrote it.
    let writes = |stage: &Stage| {
        stage.agents[0]
            .wait_metric("towpath_api_writes_total", |number| number >= 1.0)
            .unwrap()
    };

    let (before, started) = (writes(&stage), std::time::Instant::now());
    for number in 0..100 {
        let policy = deny_ingress("shop").replace("deny-ingress", &format!("deny-{number}"));
        api.apply(&policy).unwrap();
    }
    wait_status(&api, "node-a", "all policies", |status| {
        status["policies"] == 100
    });
    let (after, took) = (writes(&stage), started.elapsed());
    let most = 2.0 + took.as_secs_f64() / 5.0;
    assert!(
        after - before <= most,
        "{} writes in {took:?}",
        after - before
    );

    // What says nothing new to this node leads to no write: the next one has all of it.
    let generation = api.get(&format!("{NODES}/node-a")).unwrap()["metadata"]["generation"].clone();
    let events = |stage: &Stage| {
        stage.agents[0]
            .metric("towpath_graph_events_total")
            .unwrap()
    };
    let seen = events(&stage);
    for number in 0..20 {
        let pod = format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: far-{number}, namespace: other}}, \
             spec: {{nodeName: nowhere, containers: [{{name: c, image: i}}]}}}}"
        );
        api.apply(&pod).unwrap();
    }
    until("the pods are heard of", PATIENCE, || {
        Ok(events(&stage) >= seen + 20.0)
    })
    .unwrap();
    let now = api.get(&format!("{NODES}/node-a")).unwrap()["metadata"]["generation"].clone();
    assert_eq!(now, generation);
}

#[test]
fn without_the_kind_or_the_right_it_is_off_and_says_so_once() {
    require!(
        "kubernetes",
        Root,
        KubernetesServers,
        Flanneld,
        CniModulePlugins,
        Vxlan,
        Nft
    );
    let mut stage = Stage::new(&config()).unwrap();
    stage.start_agents(&options(1)).unwrap();
    let api = stage.lab.cluster().unwrap().api().clone();

    // Who has no right is refused before anybody looks whether the kind is there.
    until("it is refused", SETTLE, || {
        Ok(standing(&stage.agents[0])?.0 == "refused")
    })
    .unwrap();
    let (_, detail) = standing(&stage.agents[0]).unwrap();
    assert!(detail.contains("deploy/node-status.yaml"), "{detail}");
    let output = cluster_status(stage.lab.cluster().unwrap(), "table").unwrap();
    assert_eq!(output.status.code(), Some(1));
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(words.contains("deploy/node-status.yaml"), "{words}");

    let role = "{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {name: early}, \
        rules: [{apiGroups: [towpath.io], resources: [nodestatuses], verbs: [create, patch]}]}\n---\n\
        {apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {name: early}, \
        roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: early}, \
        subjects: [{kind: ServiceAccount, name: towpath-agent, namespace: kube-system}]}";
    api.apply(role).unwrap();
    stage.agents.remove(0).kill().unwrap();
    let mut agent = Agent::start(&stage.lab, "node-a", &options(1)).unwrap();
    agent.wait_ready().unwrap();
    until("the kind is missing", SETTLE, || {
        Ok(standing(&agent)?.0 == "missing")
    })
    .unwrap();
    let (_, detail) = standing(&agent).unwrap();
    assert!(detail.contains("nodeStatus"), "{detail}");
    let log = agent.log_tail();
    let told = |text: &str| log.matches(text).count();
    assert_eq!(told("does not know /apis/towpath.io"), 1, "{log}");
}
