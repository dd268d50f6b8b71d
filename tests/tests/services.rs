//! Services of the kind `NodePort`, by the real kube-proxy: policy judges the pod that answers, and who asks as far as the
//! translation lets it be seen.

use std::net::IpAddr;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use towpath_tests::cluster::{KubernetesConfig, Rules};
use towpath_tests::cni::PluginSet;
use towpath_tests::lab::LabConfig;
use towpath_tests::probe::{Outcome, Patience, Target, probe};
use towpath_tests::stage::Stage;
use towpath_tests::wait::{PATIENCE, until};
use towpath_tests::{program, require};

const NODE_PORT: u16 = 30080;

/// Through node-a, where the pod is, and through node-b.
type Ways = [bool; 2];

/// A Service of shop/web, which is on node-a.
fn service(policy: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: web, namespace: shop}}, spec: {{type: NodePort, \
         externalTrafficPolicy: {policy}, selector: {{app: web}}, ports: [{{port: 80, targetPort: 80, nodePort: {NODE_PORT}}}]}}}}"
    )
}

/// Only who is of this block may enter shop/web.
fn only(block: &str) -> String {
    format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: only, namespace: shop}}, \
         spec: {{podSelector: {{matchLabels: {{app: web}}}}, ingress: [{{from: [{{ipBlock: {{cidr: {block}}}}}]}}]}}}}"
    )
}

/// Whether a client outside of the cluster gets an answer of the pod.
fn ways(stage: &Stage) -> Result<Ways> {
    let mut targets = Vec::new();
    for node in ["node-a", "node-b"] {
        let address: &IpAddr = stage
            .lab
            .node(node)?
            .addresses
            .first()
            .context("an address")?;
        targets.push(Target::tcp(*address, NODE_PORT));
    }
    let outcomes = probe(stage.lab.fabric(), &targets, Patience::default())?;
    let is_answer =
        |outcome: &Outcome| matches!(outcome, Outcome::Answered { by, .. } if by == "shop/web");
    Ok([is_answer(&outcomes[0]), is_answer(&outcomes[1])])
}

/// What `towpath explain` says of the same. Where nobody stands behind the Service it has no verdict.
fn explained(stage: &Stage, client: &str) -> Result<Ways> {
    let mut ways = [false; 2];
    for (way, node) in ways.iter_mut().zip(["node-a", "node-b"]) {
        let mut command = Command::new(program::towpath()?);
        command.args(["explain", "--via", "service/shop/web", "--port", "80/tcp"]);
        command.args(["--client", client, "--node", node, "-o", "json"]);
        let output = command
            .arg("--source")
            .arg(stage.lab.source_on_host())
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        if said.contains("nobody answers") {
            continue;
        }
        let record: Value = serde_json::from_slice(&output.stdout).context(said.into_owned())?;
        *way = record["verdict"] == "allow";
    }
    Ok(ways)
}

/// Waits for exactly these ways, and looks once more; what is explained must be what happens.
fn settle(stage: &Stage, what: &str, expected: Ways) -> Result<()> {
    until(&format!("{what}: {expected:?}"), PATIENCE, || {
        Ok(ways(stage)? == expected)
    })?;
    ensure!(ways(stage)? == expected, "{what} does not last");
    let client = stage.lab.cluster()?.plane.addresses().server().to_string();
    let explained = explained(stage, &client)?;
    ensure!(
        explained == expected,
        "{what}: explained as {explained:?}, and is {expected:?}"
    );
    Ok(())
}

#[test]
fn a_node_port_is_judged_by_its_pod_and_by_the_client_where_it_can_be_seen() {
    require!(
        "kubernetes",
        Root,
        KubernetesServers,
        Flanneld,
        KubeProxy,
        CniModulePlugins,
        Vxlan,
        BridgeNetfilter,
        Nft
    );
    for rules in [Rules::Nftables, Rules::Iptables] {
        node_ports(rules).unwrap();
    }
}

fn node_ports(rules: Rules) -> Result<()> {
    let stage = Stage::with_agents(&LabConfig {
        plugins: PluginSet::Module,
        kubernetes: Some(KubernetesConfig {
            flannel: rules,
            proxy: Some(rules),
            ..KubernetesConfig::default()
        }),
        ..LabConfig::default()
    })?;
    let client = stage.lab.cluster()?.plane.addresses().server();
    // A packet that node-b sends on has the address of its end of the tunnel.
    let tunnel = stage.lab.node("node-b")?.pod_cidrs[0].addr();
    let (client, tunnel) = (format!("{client}/32"), format!("{tunnel}/32"));

    // With `Local`, a node without a pod of the Service answers nobody.
    for (policy, through_b) in [("Cluster", true), ("Local", false)] {
        let what = |text: &str| format!("{rules:?}, {policy}, {text}");
        stage.write("service", &service(policy))?;
        settle(&stage, &what("no policy"), [true, through_b])?;
        // On the pod's own node the client is judged before its address is translated.
        stage.write("only", &only(&client))?;
        settle(&stage, &what("the client may"), [true, false])?;
        stage.write("only", &only(&tunnel))?;
        settle(&stage, &what("node-b may"), [false, through_b])?;
        stage.write("only", &only("192.0.2.0/24"))?;
        settle(&stage, &what("nobody may"), [false, false])?;
        stage.remove("only")?;
    }
    Ok(())
}
