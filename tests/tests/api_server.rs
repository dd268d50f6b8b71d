//! Packets while the API server is away, forgets, or refuses: what is in force stays in force, and what has changed
//! meanwhile is in force once it can be known.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use towpath_tests::agent::{Agent, AgentOptions};
use towpath_tests::cluster::{Api, KubernetesConfig, objects};
use towpath_tests::cni::PluginSet;
use towpath_tests::lab::{Lab, LabConfig};
use towpath_tests::matrix::{Flow, Matrix};
use towpath_tests::require;
use towpath_tests::stage::{Stage, allow_http, deny_ingress};
use towpath_tests::wait::{PATIENCE, until};

/// After a long outage the agent asks again every 15 seconds at the latest.
const NEXT_TRY: Duration = Duration::from_mins(1);
const NODE: &str = "node-a";
const ROLE: &str = "/apis/rbac.authorization.k8s.io/v1/clusterroles/towpath-agent";

fn stage() -> Result<Stage> {
    let stage = Stage::new(&LabConfig {
        plugins: PluginSet::Module,
        kubernetes: Some(KubernetesConfig::default()),
        ..LabConfig::default()
    })?;
    stage.write("deny", &deny_ingress("shop"))?;
    stage.write("allow", &allow_http("shop", "web", "db"))?;
    Ok(stage)
}

fn db_reaches_web(flow: &Flow<'_>) -> bool {
    let is_allowed =
        flow.from.id() == "shop/db" && flow.to.id() == "shop/web" && flow.target.port == 80;
    flow.to.spec.namespace != "shop" || is_allowed
}

/// After `allow` was replaced.
fn guest_reaches_web(flow: &Flow<'_>) -> bool {
    let is_allowed = flow.from.id() == "other/guest" && flow.to.id() == "shop/web";
    flow.to.spec.namespace != "shop" || is_allowed
}

/// Lets pods of namespace other reach shop/web.
fn allow_other() -> String {
    "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: web-for-other, namespace: shop}, \
     spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: other}}}]}]}}"
        .to_owned()
}

/// Nothing on the node opens a connection to the API server any more; those that are open go on.
fn cut_off(lab: &Lab) -> Result<()> {
    let node = &lab.node(NODE)?.namespace;
    let text = "table ip test-cut { chain out { type filter hook output priority 0; \
                tcp dport 6443 tcp flags & (syn | ack) == syn reject with tcp reset; }; }";
    node.run(Command::new("nft").arg(text))?;
    Ok(())
}

fn reconnect(lab: &Lab) -> Result<()> {
    let node = &lab.node(NODE)?.namespace;
    node.run(Command::new("nft").args(["delete", "table", "ip", "test-cut"]))?;
    Ok(())
}

/// Waits until the agent is not ready for want of the API server, and says so with these words.
fn wait_awaited(agent: &Agent, words: &[&str]) -> Result<()> {
    until(&format!("the agent says {words:?}"), PATIENCE, || {
        // Nobody answers yet right after the start.
        let status = agent.ask(&["status"]).unwrap_or_default();
        let awaited = status["awaited"].to_string();
        Ok(words.iter().all(|word| awaited.contains(word)))
    })
}

#[test]
fn what_went_while_the_server_could_not_be_heard_goes_and_nothing_else_changes() {
    require!(
        "kubernetes",
        Root,
        KubernetesServers,
        Flanneld,
        CniModulePlugins,
        Vxlan,
        BridgeNetfilter,
        Nft
    );
    let mut stage = stage().unwrap();
    stage.start_agents(&AgentOptions::default()).unwrap();
    stage.settle(db_reaches_web).unwrap();

    cut_off(&stage.lab).unwrap();
    let restart = |stage: &mut Stage| -> Result<()> {
        let plane = &mut stage.lab.cluster_mut()?.plane;
        plane.stop_server();
        plane.start_server()
    };
    restart(&mut stage).unwrap();
    wait_awaited(stage.agent(NODE).unwrap(), &["cannot reach the API server"]).unwrap();
    stage.hold(db_reaches_web).unwrap();

    // Node-b hears of all this, node-a does not.
    stage.remove("allow").unwrap();
    stage.write("other", &allow_other()).unwrap();
    stage.lab.remove_pod("shop/api").unwrap();
    stage.hold(db_reaches_web).unwrap();
    // The server forgets what the agent could go on from: it asks etcd, and its own cache is new.
    stage.lab.cluster().unwrap().plane.compact().unwrap();
    restart(&mut stage).unwrap();
    stage.hold(db_reaches_web).unwrap();

    reconnect(&stage.lab).unwrap();
    Matrix::settle(&stage.lab, NEXT_TRY, guest_reaches_web).unwrap();
    let agent = stage.agent(NODE).unwrap();
    let expired = "towpath_source_expired_watches_total";
    agent
        .wait_metric(expired, |watches| watches >= 1.0)
        .unwrap();
    let endpoints = agent.ask(&["get", "endpoints"]).unwrap();
    let names: Vec<&Value> = endpoints
        .as_array()
        .into_iter()
        .flatten()
        .map(|endpoint| &endpoint["name"])
        .collect();
    assert_eq!(names, ["web"]);
}

/// The agent's role without the right to one kind.
fn role_without(role: &Value, resource: &str) -> Value {
    let mut role = role.clone();
    for rule in role["rules"].as_array_mut().into_iter().flatten() {
        if let Some(resources) = rule["resources"].as_array_mut() {
            resources.retain(|found| found != resource);
        }
    }
    // A rule for nothing is no rule.
    if let Some(rules) = role["rules"].as_array_mut() {
        rules.retain(|rule| rule["resources"] != json!([]));
    }
    role
}

fn agent_role() -> Result<Value> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/rbac.yaml");
    let all = objects(&std::fs::read_to_string(manifest)?)?;
    all.into_iter()
        .find(|object| object["kind"] == "ClusterRole")
        .context("the manifest has a role")
}

/// Puts a role in force: the API server decides by it a moment after it was written.
fn grant(api: &Api, agent: &Api, role: &Value, path: &str, status: u16) -> Result<()> {
    api.merge(ROLE, &json!({ "rules": role["rules"] }))?;
    until(&format!("status {status} for {path}"), PATIENCE, || {
        Ok(agent.request("GET", path, "", "")?.status == status)
    })
}

#[test]
fn without_any_one_right_the_agent_enforces_what_it_knew_and_names_the_right() {
    require!(
        "kubernetes",
        Root,
        KubernetesServers,
        Flanneld,
        CniModulePlugins,
        Vxlan,
        BridgeNetfilter,
        Nft
    );
    let mut stage = stage().unwrap();
    stage.start_agents(&AgentOptions::default()).unwrap();
    stage.settle(db_reaches_web).unwrap();
    let plane = &stage.lab.cluster().unwrap().plane;
    let api = plane.api().clone();
    let token = api.service_token("kube-system", "towpath-agent").unwrap();
    let user = api.with_token(&token);
    let role = agent_role().unwrap();

    for (resource, path) in [
        ("pods", "/api/v1/pods"),
        ("namespaces", "/api/v1/namespaces"),
        ("nodes", "/api/v1/nodes"),
        (
            "networkpolicies",
            "/apis/networking.k8s.io/v1/networkpolicies",
        ),
        (
            "clusternetworkpolicies",
            "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies",
        ),
    ] {
        grant(&api, &user, &role_without(&role, resource), path, 403).unwrap();

        // A watch that is open goes on; a new agent must ask.
        stage.agents.remove(0).kill().unwrap();
        let agent = Agent::start(&stage.lab, NODE, &AgentOptions::default()).unwrap();
        stage.agents.insert(0, agent);
        wait_awaited(&stage.agents[0], &[resource, "grant", "deploy/rbac.yaml"]).unwrap();
        stage.hold(db_reaches_web).unwrap();
        let ready = stage.agents[0].metric("towpath_agent_ready").unwrap();
        assert!(ready < 1.0, "without the right to {resource}");

        grant(&api, &user, &role, path, 200).unwrap();
        stage.agents[0].wait_ready().unwrap();
        stage.hold(db_reaches_web).unwrap();
    }

    stage.remove("allow").unwrap();
    stage.write("other", &allow_other()).unwrap();
    stage.settle(guest_reaches_web).unwrap();
}
