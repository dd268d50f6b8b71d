//! Packets while the API server is away, forgets, or refuses: what is in force stays in force, and what has changed
//! meanwhile is in force once it can be known.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use towpath_tests::agent::{Agent, AgentOptions};
use towpath_tests::cluster::{Api, KubernetesConfig, objects};
use towpath_tests::cni::PluginSet;
use towpath_tests::lab::{Lab, LabConfig};
use towpath_tests::matrix::{Flow, Matrix};
use towpath_tests::mounts::{Disk, with_own_mounts};
use towpath_tests::require;
use towpath_tests::stage::{Stage, allow_http, deny_ingress};
use towpath_tests::wait::{PATIENCE, until};

/// After a long outage the agent asks again every 15 seconds at the latest.
const NEXT_TRY: Duration = Duration::from_mins(1);
/// A token is read again at least every minute, and the API server asked after that.
const EXCHANGED: Duration = Duration::from_mins(2);
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

/// Where a pod finds the account that the kubelet mounts.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// A token of the agent's account that is good until this Secret is deleted.
fn token_of(api: &Api, secret: &str) -> Result<String> {
    let secrets = "/api/v1/namespaces/kube-system/secrets";
    let made = api.create(secrets, &json!({ "metadata": { "name": secret } }))?;
    let bound = json!({ "kind": "Secret", "apiVersion": "v1", "name": secret, "uid": made["metadata"]["uid"] });
    let request = json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": { "expirationSeconds": 3600, "boundObjectRef": bound },
    });
    let path = "/api/v1/namespaces/kube-system/serviceaccounts/towpath-agent/token";
    let answer = api.create(path, &request)?;
    let token = answer["status"]["token"].as_str();
    Ok(token.context("the API server gave no token")?.to_owned())
}

#[test]
fn in_a_pod_the_agent_takes_the_mounted_account_and_goes_along_when_its_token_is_exchanged() {
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
    // Only this thread, and what it starts, sees the account.
    with_own_mounts(mounted_account).unwrap().unwrap();
}

fn mounted_account() -> Result<()> {
    let mut stage = stage()?;
    stage.lab.withdraw("allow")?;
    stage.write("other", &allow_other())?;
    let plane = &stage.lab.cluster()?.plane;
    let api = plane.api().clone();
    let first = token_of(&api, "first")?;
    let _disk = Disk::mount(Path::new("/var"))?;
    // Elsewhere `/var/run` is another name of `/run`, where namespaces have theirs.
    let mut bind = Command::new("mount");
    std::fs::create_dir_all("/var/run/netns")?;
    let bound = bind
        .args(["--rbind", "/run/netns", "/var/run/netns"])
        .status()?;
    ensure!(bound.success(), "cannot show the namespaces");
    let account = Path::new(ACCOUNT);
    std::fs::create_dir_all(account)?;
    std::fs::copy(plane.authority().file(), account.join("ca.crt"))?;
    std::fs::write(account.join("namespace"), "kube-system")?;
    std::fs::write(account.join("token"), &first)?;
    let variable = |name: &str, value: String| (format!("KUBERNETES_SERVICE_{name}"), value);
    let options = AgentOptions {
        source: Some("kubernetes".to_owned()),
        variables: vec![
            variable("HOST", plane.addresses().server().to_string()),
            variable("PORT", "6443".to_owned()),
        ],
        ..AgentOptions::default()
    };
    stage.start_agents(&options)?;
    stage.settle(guest_reaches_web)?;

    // As the kubelet does it: another file in the place of the first one. The old token is worth nothing from now on,
    // which is harder than what a kubelet does.
    std::fs::write(account.join("next"), token_of(&api, "second")?)?;
    std::fs::rename(account.join("next"), account.join("token"))?;
    api.delete("/api/v1/namespaces/kube-system/secrets/first")?;
    let user = api.with_token(&first);
    until("the old token is refused", PATIENCE, || {
        Ok(user.request("GET", "/api/v1/pods", "", "")?.status == 401)
    })?;
    // Connections that are open stay so; these end.
    let plane = &mut stage.lab.cluster_mut()?.plane;
    plane.stop_server();
    plane.start_server()?;
    stage.hold(guest_reaches_web)?;

    stage.remove("other")?;
    stage.write("allow", &allow_http("shop", "web", "db"))?;
    Matrix::settle(&stage.lab, EXCHANGED, db_reaches_web)?;
    for agent in &mut stage.agents {
        agent.wait_ready()?;
    }
    Ok(())
}
