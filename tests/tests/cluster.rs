//! The cluster of the test bed: real API server, Flannel and kube-proxy carry packets, and the objects are true.

use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use towpath_tests::agent::{Agent, AgentOptions};
use towpath_tests::cluster::{KubernetesConfig, Rules};
use towpath_tests::cni::{BRIDGE, PluginSet};
use towpath_tests::frame::Mac;
use towpath_tests::lab::{Backend, Lab, LabConfig, Node, Pod, PodSpec};
use towpath_tests::matrix::{Flow, Matrix};
use towpath_tests::probe::{Outcome, Patience, Target, probe};
use towpath_tests::require;
use towpath_tests::stage::{Stage, allow_http, deny_ingress};
use towpath_tests::wait::{PATIENCE, until};

const SETTLE: Duration = Duration::from_secs(20);

/// Two pods on node-a, one on node-b, of namespace shop.
fn three_pods(config: &LabConfig) -> Result<Lab> {
    let mut lab = Lab::new(config)?;
    lab.write_namespace("shop", &[("team", "shop")])?;
    for (name, node) in [("web", "node-a"), ("api", "node-a"), ("db", "node-b")] {
        let spec = PodSpec::new(node, "shop", name)
            .label("app", name)
            .tcp(80)
            .udp(53);
        lab.add_pod(spec)?;
    }
    Ok(lab)
}

fn kubernetes(config: KubernetesConfig) -> LabConfig {
    LabConfig {
        plugins: PluginSet::Module,
        kubernetes: Some(config),
        ..LabConfig::default()
    }
}

#[test]
fn flannel_carries_packets_over_vxlan_and_objects_tell_where_pods_are() {
    require!(
        "kubernetes",
        Root,
        KubernetesServers,
        Flanneld,
        CniModulePlugins,
        Vxlan
    );
    let lab = three_pods(&kubernetes(KubernetesConfig::default())).unwrap();

    let matrix = Matrix::settle(&lab, SETTLE, |_| true).unwrap();

    assert_eq!(matrix.passed(), 3 * 2 * 2);
    let api = lab.cluster().unwrap().api();
    let pod = lab.pod("shop/db").unwrap();
    let object = api.get("/api/v1/namespaces/shop/pods/db").unwrap();
    assert_eq!(object["spec"]["nodeName"], "node-b");
    assert_eq!(object["status"]["podIP"], json!(pod.addresses[0]));
    assert_eq!(object["metadata"]["uid"], json!(pod.sandbox.uid));
    let node = api.get("/api/v1/nodes/node-b").unwrap();
    let notes = &node["metadata"]["annotations"];
    assert_eq!(notes["flannel.alpha.coreos.com/backend-type"], "vxlan");
    lab.close().unwrap();
}

#[test]
fn flannel_carries_both_families_by_host_routes_with_iptables() {
    require!(
        "kubernetes",
        Root,
        KubernetesServers,
        Flanneld,
        CniPlugins,
        Ipv6
    );
    let lab = three_pods(&LabConfig {
        ipv6: true,
        backend: Backend::HostGateway,
        plugins: PluginSet::System,
        ..kubernetes(KubernetesConfig {
            flannel: Rules::Iptables,
            ..KubernetesConfig::default()
        })
    })
    .unwrap();

    let matrix = Matrix::settle(&lab, SETTLE, |_| true).unwrap();

    let ipv6 = matrix
        .checks
        .iter()
        .filter(|check| check.target.address.is_ipv6());
    assert_eq!(ipv6.count(), 3 * 2 * 2);
}

#[test]
fn services_answer_in_both_modes_of_kube_proxy() {
    require!(
        "kubernetes",
        Root,
        KubernetesServers,
        Flanneld,
        KubeProxy,
        CniModulePlugins,
        Vxlan
    );
    for rules in [Rules::Nftables, Rules::Iptables] {
        let lab = three_pods(&kubernetes(KubernetesConfig {
            flannel: rules,
            proxy: Some(rules),
            ..KubernetesConfig::default()
        }))
        .unwrap();
        lab.apply(
            "service-db",
            "{apiVersion: v1, kind: Service, metadata: {name: db, namespace: shop}, \
             spec: {selector: {app: db}, ports: [{port: 8080, targetPort: 80}]}}",
        )
        .unwrap();
        let api = lab.cluster().unwrap().api();
        let service = api.get("/api/v1/namespaces/shop/services/db").unwrap();
        let address: IpAddr = service["spec"]["clusterIP"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap();
        let from = &lab.pod("shop/web").unwrap().namespace;

        until("the Service answers", PATIENCE, || {
            let targets = [Target::tcp(address, 8080)];
            let outcomes = probe(from, &targets, Patience::default())?;
            Ok(matches!(&outcomes[0], Outcome::Answered { by, .. } if by == "shop/db"))
        })
        .unwrap();

        let node = lab.node("node-a").unwrap();
        let tables = node
            .namespace
            .run(Command::new("nft").args(["list", "tables"]));
        let is_native = tables.unwrap().contains("kube-proxy");
        assert_eq!(is_native, rules == Rules::Nftables);
    }
}

#[test]
fn agents_enforce_what_is_applied_to_the_api_server() {
    require!(
        "kubernetes",
        Root,
        KubernetesServers,
        Flanneld,
        CniModulePlugins,
        Vxlan,
        Nft
    );
    let stage = Stage::with_agents(&kubernetes(KubernetesConfig::default())).unwrap();
    stage.settle(|_| true).unwrap();

    stage.write("deny", &deny_ingress("shop")).unwrap();
    stage
        .write("allow", &allow_http("shop", "db", "web"))
        .unwrap();
    stage
        .settle(|flow| {
            let is_web_to_db = flow.from.id() == "shop/web" && flow.to.id() == "shop/db";
            flow.to.spec.namespace == "other" || is_web_to_db && flow.target.port == 80
        })
        .unwrap();
    stage.remove("deny").unwrap();
    stage.remove("allow").unwrap();

    stage.settle(|_| true).unwrap();
}

/// What the policies of the test below allow.
fn db_reaches_web(flow: &Flow<'_>) -> bool {
    let is_allowed =
        flow.from.id() == "shop/db" && flow.to.id() == "shop/web" && flow.target.port == 80;
    flow.to.spec.namespace != "shop" || is_allowed
}

/// Takes our tables from a node, as a reboot does.
fn forget_tables(node: &Node) -> Result<()> {
    for family in ["inet", "bridge"] {
        let mut nft = Command::new("nft");
        let delete = nft.args(["delete", "table", family, "towpath"]);
        node.namespace.run(delete)?;
    }
    Ok(())
}

/// Announces a pod of the lab to its node's agent, as the chained plugin does when a kubelet starts the pod's sandbox
/// (again), and waits for its answer.
fn announce(lab: &Lab, pod: &Pod) -> Result<()> {
    let text = |mac: &Mac| mac.map(|byte| format!("{byte:02x}")).join(":");
    let address = pod.ipv4()?;
    let result = json!({
        "cniVersion": "0.3.1",
        "interfaces": [
            { "name": BRIDGE },
            { "name": pod.host_interface },
            { "name": "eth0", "mac": text(&pod.mac), "sandbox": pod.sandbox.path },
        ],
        "ips": [{ "version": "4", "interface": 2, "address": format!("{address}/24") }],
    });
    lab.call_plugin(&pod.spec.node, &pod.sandbox, "ADD", &result)
}

#[test]
fn a_rebooted_node_enforces_its_snapshot_before_its_api_server_answers() {
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
    let mut stage = Stage::new(&kubernetes(KubernetesConfig::default())).unwrap();
    stage.write("deny", &deny_ingress("shop")).unwrap();
    stage
        .write("allow", &allow_http("shop", "web", "db"))
        .unwrap();
    stage.start_agents(&AgentOptions::default()).unwrap();
    stage.settle(db_reaches_web).unwrap();
    let snapshot = stage.lab.folder().join("node-a/state/snapshot.jsonl");
    until("the snapshot", PATIENCE, || {
        let text = std::fs::read_to_string(&snapshot).unwrap_or_default();
        Ok(text.contains("web-for-db"))
    })
    .unwrap();

    stage.lab.cluster_mut().unwrap().plane.stop_server();
    // Agents are in the order of the nodes.
    stage.agents.remove(0).kill().unwrap();
    forget_tables(stage.lab.node("node-a").unwrap()).unwrap();
    // Nothing protects the pods of node-a, and the prober sees it.
    let is_open = |flow: &Flow<'_>| flow.to.spec.node == "node-a" || db_reaches_web(flow);
    stage.hold(is_open).unwrap();

    let agent = Agent::start(&stage.lab, "node-a", &AgentOptions::default()).unwrap();
    until("the agent's metrics", PATIENCE, || {
        Ok(agent.metrics().is_ok())
    })
    .unwrap();
    stage.agents.insert(0, agent);
    // Whose an address is nobody has said since the start, so it is nobody's.
    let is_away = |pod: &Pod| pod.spec.node == "node-a";
    stage
        .settle(|flow| !is_away(flow.from) && !is_away(flow.to) && db_reaches_web(flow))
        .unwrap();
    for id in ["shop/web", "shop/api"] {
        let pod = stage.lab.pod(id).unwrap();
        announce(&stage.lab, pod).unwrap();
    }
    stage.hold(db_reaches_web).unwrap();
    let ready = stage.agents[0].metric("towpath_agent_ready").unwrap();
    assert_eq!(ready.to_bits(), 0.0_f64.to_bits(), "the API server is away");

    stage
        .lab
        .cluster_mut()
        .unwrap()
        .plane
        .start_server()
        .unwrap();
    stage.agents[0].wait_ready().unwrap();
    stage.hold(db_reaches_web).unwrap();
    stage.remove("allow").unwrap();
    stage
        .settle(|flow| flow.to.spec.namespace != "shop")
        .unwrap();
}

#[test]
fn kubelets_run_pods_that_reach_each_other() {
    require!(
        "kubernetes",
        Root,
        KubernetesServers,
        Flanneld,
        KubeProxy,
        CniModulePlugins,
        Kubelet,
        Vxlan
    );
    let mut lab = three_pods(&kubernetes(KubernetesConfig::real())).unwrap();

    let matrix = Matrix::settle(&lab, SETTLE, |_| true).unwrap();

    assert_eq!(matrix.passed(), 3 * 2 * 2);
    let api = lab.cluster().unwrap().api();
    let log = api.get("/api/v1/namespaces/shop/pods/web/log").unwrap();
    assert_eq!(log, "ready\n");
    lab.remove_pod("shop/web").unwrap();
    let prefix = lab.prefix().to_owned();
    let folder = lab.folder().to_owned();
    lab.close().unwrap();
    let groups = std::fs::read_dir("/sys/fs/cgroup/pids")
        .into_iter()
        .flatten();
    let left = groups.filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        name.to_string_lossy().starts_with(&prefix)
    });
    assert_eq!(left.count(), 0);
    assert!(!folder.exists());
}
