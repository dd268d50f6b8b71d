//! Events on pods whose traffic policy denies: what they say, how few they are, and that nobody gets them unasked.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;
use towpath_tests::agent::AgentOptions;
use towpath_tests::cluster::{Api, KubernetesConfig};
use towpath_tests::cni::PluginSet;
use towpath_tests::lab::LabConfig;
use towpath_tests::probe::{Patience, Target, probe};
use towpath_tests::require;
use towpath_tests::stage::{Stage, deny_ingress};
use towpath_tests::wait::{PATIENCE, until, until_some};

const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/shop/events";
/// A series is written once a minute.
const A_MINUTE: Duration = Duration::from_mins(2);

fn stage() -> Stage {
    let stage = Stage::new(&LabConfig {
        plugins: PluginSet::Module,
        kubernetes: Some(KubernetesConfig::default()),
        ..LabConfig::default()
    });
    let stage = stage.expect("a lab");
    stage
        .write("deny", &deny_ingress("shop"))
        .expect("the API server takes it");
    stage
}

fn api(stage: &Stage) -> Api {
    let cluster = stage.lab.cluster().expect("the lab has a cluster");
    cluster.api().clone()
}

fn grant(api: &Api) {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/rbac-events.yaml");
    let text = std::fs::read_to_string(manifest).expect("the manifest is there");
    api.apply(&text).expect("the API server takes it");
}

fn options() -> AgentOptions {
    AgentOptions {
        configuration: Some("deniedEvents: true\n".to_owned()),
        ..AgentOptions::default()
    }
}

/// Events of policy on a pod of namespace shop.
fn events(api: &Api, pod: &str) -> Result<Vec<Value>> {
    let list = api.get(EVENTS)?;
    let events = list["items"].as_array().cloned().unwrap_or_default();
    let is_ours = |event: &Value| {
        event["reportingController"] == "towpath.io/agent" && event["regarding"]["name"] == pod
    };
    Ok(events.into_iter().filter(is_ours).collect())
}

/// Tries ports of shop/web from other/guest, which is on the other node.
fn knock(stage: &Stage, ports: impl Iterator<Item = u16>) -> Result<()> {
    let web = stage.lab.pod("shop/web")?.ipv4()?;
    let targets: Vec<Target> = ports.map(|port| Target::tcp(web, port)).collect();
    let guest = &stage.lab.pod("other/guest")?.namespace;
    probe(guest, &targets, Patience::default())?;
    Ok(())
}

/// Knocks until the agent of shop/web has listed a denied flow.
fn wait_denied(stage: &Stage) {
    let agent = stage.agent("node-a").expect("node-a has an agent");
    until("a denied flow", PATIENCE, || {
        knock(stage, 80..81)?;
        let denied = agent.ask(&["get", "denied"])?;
        let flows = denied.as_array().cloned().unwrap_or_default();
        Ok(flows.iter().any(|flow| flow["to"] == "shop/web"))
    })
    .expect("policy denies it");
}

#[test]
fn a_pod_is_told_who_was_denied_once_and_then_how_often() {
    require!(
        "kubernetes",
        Root,
        KubernetesServers,
        Flanneld,
        CniModulePlugins,
        Vxlan,
        Nft
    );
    let mut stage = stage();
    let api = api(&stage);
    grant(&api);
    stage.start_agents(&options()).unwrap();
    wait_denied(&stage);

    let event = until_some("an Event", PATIENCE, || Ok(events(&api, "web")?.pop())).unwrap();
    let pod = stage.lab.pod("shop/web").unwrap();
    let guest = stage.lab.pod("other/guest").unwrap().ipv4().unwrap();
    let note = event["note"].as_str().unwrap();
    let start = format!("ingress denied from other/guest ({guest}) at 80/tcp: ");
    assert!(note.starts_with(&start), "{note}");
    assert!(note.contains("NetworkPolicy shop/deny-ingress"), "{note}");
    assert_eq!(event["reason"], "PolicyDenied");
    assert_eq!(event["type"], "Warning");
    assert_eq!(event["reportingInstance"], "node-a");
    let object = api.get("/api/v1/namespaces/shop/pods/web").unwrap();
    assert_eq!(event["regarding"]["uid"], object["metadata"]["uid"]);
    assert_eq!(event["regarding"]["name"], pod.spec.name);

    // The same flow again is no second Event, but a number in the first one.
    let packets = |event: &Value| event["series"]["count"].as_u64().unwrap_or(1);
    let first = packets(&event);
    until("a series", A_MINUTE, || {
        knock(&stage, 80..81)?;
        let events = events(&api, "web")?;
        anyhow::ensure!(events.len() == 1, "{events:#?}");
        Ok(packets(&events[0]) > first)
    })
    .unwrap();

    // Who scans uses up the budget of the pod, and the rest is counted.
    knock(&stage, 1_000..1_060).unwrap();
    let agent = stage.agent("node-a").unwrap();
    agent
        .wait_metric("towpath_api_events_suppressed_total", |count| count > 0.0)
        .unwrap();
    assert!(events(&api, "web").unwrap().len() <= 6);
    let status = agent.ask(&["status"]).unwrap();
    assert_eq!(status["publishing"][0]["standing"], "working");
}

#[test]
fn nobody_gets_events_who_did_not_ask_or_may_not() {
    require!(
        "kubernetes",
        Root,
        KubernetesServers,
        Flanneld,
        CniModulePlugins,
        Vxlan,
        Nft
    );
    let mut stage = stage();
    let api = api(&stage);
    stage.start_agents(&options()).unwrap();
    wait_denied(&stage);
    let agent = stage.agent("node-a").unwrap();
    let refusal = until_some("the refusal", PATIENCE, || {
        let part = agent.ask(&["status"])?["publishing"][0].clone();
        Ok((part["standing"] == "refused").then_some(part))
    });
    let refusal = refusal.unwrap();
    let detail = refusal["detail"].as_str().unwrap();
    assert!(detail.contains("deploy/rbac-events.yaml"), "{detail}");
    assert!(agent.log_tail().contains("deploy/rbac-events.yaml"));

    // With the right, but not asked to.
    grant(&api);
    for agent in std::mem::take(&mut stage.agents) {
        agent.kill().unwrap();
    }
    stage.start_agents(&AgentOptions::default()).unwrap();
    wait_denied(&stage);
    let metrics = stage.agents[0].metrics().unwrap();
    assert!(!metrics.contains("towpath_api_"), "{metrics}");
    assert_eq!(events(&api, "web").unwrap(), Vec::<Value>::new());
}
