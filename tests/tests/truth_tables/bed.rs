//! The bed on which all cases lie: two nodes of a real cluster, dual stack, with agents, and pods that stay.
//!
//! | pod | node | labels | serves |
//! |---|---|---|---|
//! | x/a | node-a | app=a, role=front | tcp 80 (web), tcp 81, udp 53 (dns) |
//! | x/b | node-a | app=b, role=back | the same |
//! | x/c | node-b | app=c | the same |
//! | z/a | node-b | app=a, role=front | tcp 80, tcp 81 (web, of a sidecar), udp 53 (dns) |
//! | z/b | node-a | app=b | as x/a |
//! | z/old | node-b | app=old | as x/a; one case deletes it |
//!
//! Namespace x has the label team=x, z team=z. `outside` is a host beside the nodes, which knows the way to pods.
//!
//! In namespace `marks` each node has a pod by which the agents show how far they have heard: [`Bed::wait_heard`].

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use towpath_tests::agent::{Agent, AgentOptions};
use towpath_tests::cluster::{Api, KubernetesConfig, Rules};
use towpath_tests::cni::PluginSet;
use towpath_tests::lab::{Backend, Lab, LabConfig, PodSpec};
use towpath_tests::netns::Namespace;
use towpath_tests::probe::Protocol;
use towpath_tests::wait::until;

use crate::case::{BetweenNodes, Family};

const NODES: [&str; 2] = ["node-a", "node-b"];
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Bed {
    pub(crate) lab: Lab,
    pub(crate) agents: Vec<Agent>,
    marks: u32,
}

impl Bed {
    /// Flannel and kube-proxy write their rules in this way, and pods of two nodes reach each other in that way.
    pub(crate) fn start(rules: Rules, between_nodes: BetweenNodes) -> Result<Self> {
        let mut lab = Lab::new(&LabConfig {
            ipv6: true,
            plugins: PluginSet::Module,
            backend: match between_nodes {
                BetweenNodes::Tunnel => Backend::Vxlan,
                BetweenNodes::Routes => Backend::HostGateway,
            },
            kubernetes: Some(KubernetesConfig {
                flannel: rules,
                proxy: Some(rules),
                ..KubernetesConfig::default()
            }),
            ..LabConfig::default()
        })?;
        for (namespace, team) in [("x", "x"), ("z", "z"), ("marks", "marks")] {
            lab.write_namespace(namespace, &[("team", team)])?;
        }
        let two_names = with_sidecar(&lab)?;
        lab.add_pods(vec![
            server("node-a", "x", "a").label("role", "front"),
            server("node-a", "x", "b").label("role", "back"),
            server("node-b", "x", "c"),
            server("node-a", "z", "b"),
            server("node-b", "z", "old"),
            PodSpec::new("node-a", "marks", "node-a"),
            PodSpec::new("node-b", "marks", "node-b"),
        ])?;
        let id = lab.plug(two_names)?.id();
        lab.publish(&id)?;
        lead_outside(&lab)?;
        let mut agents = Vec::new();
        for node in NODES {
            agents.push(Agent::start(&lab, node, &AgentOptions::default())?);
        }
        for agent in &mut agents {
            agent.wait_ready()?;
        }
        let mut bed = Self {
            lab,
            agents,
            marks: 0,
        };
        bed.wait_heard()?;
        Ok(bed)
    }

    pub(crate) fn api(&self) -> Result<&Api> {
        Ok(self.lab.cluster()?.api())
    }

    /// Waits until every agent enforces all that the API server has taken before this call.
    ///
    /// Watches of different kinds are not ordered, so each is given something new by which it shows where it is: a
    /// NetworkPolicy and a ClusterNetworkPolicy with a new number, and a namespace and pods with a new label that those
    /// select. Once both select its node's pod, an agent has heard of all four kinds up to here.
    pub(crate) fn wait_heard(&mut self) -> Result<()> {
        let before = mark(self.marks);
        self.marks += 1;
        let number = self.marks.to_string();
        let api = self.api()?;
        if self.marks > 1 {
            api.withdraw(&before)?;
        }
        api.apply(&mark(self.marks))?;
        let label = json!({ "metadata": { "labels": { "mark": number } } });
        api.merge("/api/v1/namespaces/marks", &label)?;
        for node in NODES {
            api.merge(&format!("/api/v1/namespaces/marks/pods/{node}"), &label)?;
        }
        let wanted: BTreeSet<String> = [
            format!("ClusterNetworkPolicy mark-{number}"),
            format!("NetworkPolicy marks/mark-{number}"),
        ]
        .into();
        for agent in &self.agents {
            let what = format!("what the agent of {} has heard", agent.node);
            until(&what, PATIENCE, || {
                let endpoints = agent.ask(&["get", "endpoints"])?;
                Ok(policies_of_mark(&endpoints, &agent.node) == wanted)
            })?;
            // The view is of the graph; the kernel has it when no generation is pending.
            let what = format!("the commit of {}", agent.node);
            until(&what, PATIENCE, || {
                let commits = &agent.ask(&["status"])?["commits"];
                Ok(commits["generation"] == commits["wantedGeneration"])
            })?;
        }
        Ok(())
    }

    /// Where probes of this name start.
    pub(crate) fn place(&self, name: &str) -> Result<&Namespace> {
        Ok(match name {
            "outside" => self.lab.fabric(),
            name if NODES.contains(&name) => &self.lab.node(name)?.namespace,
            name => &self.lab.pod(name)?.namespace,
        })
    }

    /// The address of what has this name.
    pub(crate) fn address(&self, name: &str, family: Family) -> Result<IpAddr> {
        let addresses = match name {
            "outside" => {
                let addresses = self.lab.cluster()?.plane.addresses();
                let networks = addresses.fabric();
                networks.iter().map(ipnet::IpNet::addr).collect()
            }
            name if NODES.contains(&name) => self.lab.node(name)?.addresses.clone(),
            name => match name.strip_prefix("service:") {
                Some(service) => self.service(service)?,
                None => self.lab.pod(name)?.addresses.clone(),
            },
        };
        let found = addresses
            .into_iter()
            .find(|address| address.is_ipv4() == (family == Family::V4));
        found.with_context(|| format!("{name} has no address in {family:?}"))
    }

    fn service(&self, name: &str) -> Result<Vec<IpAddr>> {
        let object = self
            .api()?
            .get(&format!("/api/v1/namespaces/x/services/{name}"))?;
        let addresses = object["spec"]["clusterIPs"].as_array();
        let addresses = addresses.into_iter().flatten().filter_map(Value::as_str);
        Ok(addresses.map(str::parse).collect::<Result<_, _>>()?)
    }

    /// Writes addresses into a text: `<x/a v4>`, `<node-b v6>`, `<outside v4>`, `<service:web v6>`, `<tunnel-b v4>`
    /// for what a packet of node-b to a pod elsewhere has as its source, `<pods v4>` for the network of all pods.
    pub(crate) fn fill(&self, text: &str) -> Result<String> {
        let mut filled = String::new();
        let mut rest = text;
        while let Some((before, more)) = rest.split_once('<') {
            let (name, after) = more.split_once('>').context("a place has no end")?;
            let (name, family) = match name.split_once(' ') {
                Some((name, "v4")) => (name, Family::V4),
                Some((name, "v6")) => (name, Family::V6),
                _ => bail!("<{name}> has no family"),
            };
            filled.push_str(before);
            write!(filled, "{}", self.meaning(name, family)?)?;
            rest = after;
        }
        filled.push_str(rest);
        Ok(filled)
    }

    fn meaning(&self, name: &str, family: Family) -> Result<String> {
        let place = usize::from(family == Family::V6);
        Ok(match name {
            "tunnel-b" => self.lab.node("node-b")?.pod_cidrs[place]
                .network()
                .to_string(),
            "pods" => self.lab.cluster()?.plane.addresses().pod_networks()[place].to_string(),
            name => self.address(name, family)?.to_string(),
        })
    }
}

/// A pod with its name as label `app`, and its node beside two protocols and two ports.
fn server(node: &str, namespace: &str, name: &str) -> PodSpec {
    PodSpec::new(node, namespace, name)
        .label("app", name)
        .port(Some("web"), Protocol::Tcp, 80)
        .port(None, Protocol::Tcp, 81)
        .port(Some("dns"), Protocol::Udp, 53)
}

/// Declares z/a by hand, because the lab's pods have no sidecars; what is to be plugged in for it.
fn with_sidecar(lab: &Lab) -> Result<PodSpec> {
    lab.cluster()?.api().apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: z, labels: {app: a, role: front}}, \
         spec: {nodeName: node-b, automountServiceAccountToken: false, \
         containers: [{name: main, image: i, ports: [{containerPort: 80}, {name: dns, containerPort: 53, protocol: UDP}]}], \
         initContainers: [\
           {name: side, image: i, restartPolicy: Always, ports: [{name: web, containerPort: 81}]}, \
           {name: once, image: i, ports: [{name: once, containerPort: 80}]}]}}",
    )?;
    Ok(PodSpec::new("node-b", "z", "a")
        .label("app", "a")
        .label("role", "front")
        .tcp(80)
        .tcp(81)
        .udp(53))
}

/// Shows the host beside the nodes the way to pods.
fn lead_outside(lab: &Lab) -> Result<()> {
    let mut lines = String::new();
    for node in lab.nodes() {
        for (cidr, address) in node.pod_cidrs.iter().zip(&node.addresses) {
            writeln!(lines, "route replace {cidr} via {address}")?;
        }
    }
    lab.fabric().ip_batch(&lines)
}

/// Policies that select the pods of `marks` when those and their namespace have this number.
fn mark(number: u32) -> String {
    format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: mark-{number}, namespace: marks}}, \
         spec: {{podSelector: {{matchLabels: {{mark: '{number}'}}}}}}}}\n---\n\
         {{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: {{name: mark-{number}}}, \
         spec: {{tier: Baseline, priority: 1000, \
         subject: {{pods: {{namespaceSelector: {{matchLabels: {{mark: '{number}'}}}}, podSelector: {{}}}}}}, \
         ingress: [{{action: Accept, from: [{{namespaces: {{}}}}]}}]}}}}\n"
    )
}

fn policies_of_mark(endpoints: &Value, node: &str) -> BTreeSet<String> {
    let endpoints = endpoints.as_array().into_iter().flatten();
    endpoints
        .filter(|endpoint| endpoint["namespace"] == "marks" && endpoint["name"] == node)
        .flat_map(|endpoint| endpoint["ingressPolicies"].as_array().into_iter().flatten())
        .filter_map(|policy| policy.as_str().map(str::to_owned))
        .collect()
}
