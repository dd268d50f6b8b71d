//! What others set up on a node, and what the agent makes of it: dataplanes beside ours, and results of CNI plugins.

use std::fs;
use std::process::Command;

use serde_json::json;
use towpath_tests::agent::{AgentOptions, HEALTH_PORT, http_get};
use towpath_tests::lab::LabConfig;
use towpath_tests::matrix::Flow;
use towpath_tests::netns::Namespace;
use towpath_tests::require;
use towpath_tests::stage::{Stage, allow_http, deny_ingress};
use towpath_tests::wait::{PATIENCE, until};

fn ip(namespace: &Namespace, words: &str) {
    namespace
        .run(Command::new("ip").args(words.split(' ')))
        .expect("the lab does what it is told");
}

fn only_web_reaches_db(flow: &Flow<'_>) -> bool {
    let is_allowed =
        flow.from.spec.name == "web" && flow.to.spec.name == "db" && flow.target.port == 80;
    flow.to.spec.namespace != "shop" || is_allowed
}

fn restrict(stage: &Stage) {
    stage
        .write("deny", &deny_ingress("shop"))
        .expect("the lab does what it is told");
    stage
        .write("allow", &allow_http("shop", "db", "web"))
        .expect("the lab does what it is told");
}

#[test]
fn a_node_with_another_dataplane_is_not_ready_and_stays_closed() {
    require!("providers", Root, CniPlugins, Vxlan, BridgeNetfilter, Nft);
    let stage = Stage::with_agents(&LabConfig::default()).unwrap();
    restrict(&stage);
    stage.settle(only_web_reaches_db).unwrap();
    let node = &stage.lab.node("node-a").unwrap().namespace;
    let answer = || http_get(node, HEALTH_PORT, "/readyz").err();

    // Any kind of device will do: it is known by its name.
    ip(node, "link add kube-ipvs0 type bridge");
    let is_refused = || Ok(answer().is_some_and(|told| told.to_string().contains("IPVS")));
    until("the refusal", PATIENCE, is_refused).unwrap();
    stage.hold(only_web_reaches_db).unwrap();

    ip(node, "link del kube-ipvs0");
    until("readiness", PATIENCE, || Ok(answer().is_none())).unwrap();
}

#[test]
fn a_pod_that_takes_anothers_address_cannot_close_it_where_results_are_kept() {
    require!("providers", Root, CniPlugins, Vxlan, BridgeNetfilter, Nft);
    let mut stage = Stage::new(&LabConfig::default()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    stage
        .start_agents(&AgentOptions {
            configuration: Some(format!(
                "cniResultsDirectory: {}\n",
                folder.path().display()
            )),
            ..AgentOptions::default()
        })
        .unwrap();
    restrict(&stage);
    stage.settle(only_web_reaches_db).unwrap();
    let (db, guest) = (
        stage.lab.pod("shop/db").unwrap(),
        stage.lab.pod("other/guest").unwrap(),
    );
    let address = db.ipv4().unwrap();

    // Nobody knows whose it is, so nobody has it.
    ip(&guest.namespace, &format!("addr add {address}/32 dev eth0"));
    // The taker's own packets shall still leave for the pod that it imitates.
    ip(
        &guest.namespace,
        &format!("route del table local local {address} dev eth0"),
    );
    let is_closed = |flow: &Flow<'_>| {
        let concerns_db = flow.from.spec.name == "db" || flow.to.spec.name == "db";
        !concerns_db && only_web_reaches_db(flow)
    };
    stage.settle(is_closed).unwrap();

    let kept = json!({
        "kind": "cniCacheV1",
        "containerId": "sandbox-of-db",
        "networkName": "cbr0",
        "ifName": "eth0",
        "cniArgs": [["K8S_POD_NAMESPACE", "shop"], ["K8S_POD_NAME", "db"]],
        "result": {
            "interfaces": [{"name": db.host_interface}, {"name": "eth0", "sandbox": "/run/netns/db"}],
            "ips": [{"interface": 1, "address": format!("{address}/24")}]
        }
    });
    fs::write(folder.path().join("cbr0-db-eth0"), kept.to_string()).unwrap();

    // Only the taker does not answer its own address.
    let is_taken = |flow: &Flow<'_>| flow.from.spec.name == "db" && flow.to.spec.name == "guest";
    stage
        .settle(|flow| only_web_reaches_db(flow) && !is_taken(flow))
        .unwrap();
}
