//! A small lab with an agent on each node, as most kernel tests want it.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::agent::{Agent, AgentOptions};
use crate::lab::{Lab, LabConfig, PodSpec};
use crate::matrix::{Check, Flow, Matrix, Style};

/// How long a change may take to be seen in probes. It takes milliseconds; this is for a machine under load.
pub const SETTLE: Duration = Duration::from_secs(10);

/// A lab and its agents.
#[derive(Debug)]
pub struct Stage {
    /// Nodes and pods.
    pub lab: Lab,
    /// One per node that has one, in the order of the nodes.
    pub agents: Vec<Agent>,
}

impl Stage {
    /// Two nodes and the pods `shop/web` and `shop/api` on node-a, `shop/db` and `other/guest` on node-b; each has its
    /// name as label `app` and serves 80/tcp and 53/udp. Agents are not started.
    pub fn new(config: &LabConfig) -> Result<Self> {
        let mut lab = Lab::new(config)?;
        lab.write_namespace("shop", &[("team", "shop")])?;
        lab.write_namespace("other", &[("team", "other")])?;
        for (node, namespace, name) in [
            ("node-a", "shop", "web"),
            ("node-a", "shop", "api"),
            ("node-b", "shop", "db"),
            ("node-b", "other", "guest"),
        ] {
            lab.add_pod(server(node, namespace, name))?;
        }
        Ok(Self {
            lab,
            agents: Vec::new(),
        })
    }

    /// The same with a ready agent on each node.
    pub fn with_agents(config: &LabConfig) -> Result<Self> {
        let mut stage = Self::new(config)?;
        stage.start_agents(&AgentOptions::default())?;
        Ok(stage)
    }

    /// Starts an agent on each node and waits until all are ready.
    pub fn start_agents(&mut self, options: &AgentOptions) -> Result<()> {
        let names: Vec<String> = self
            .lab
            .nodes()
            .iter()
            .map(|node| node.name.clone())
            .collect();
        for name in names {
            self.agents.push(Agent::start(&self.lab, &name, options)?);
        }
        for agent in &mut self.agents {
            agent.wait_ready()?;
        }
        Ok(())
    }

    /// The agent of a node.
    pub fn agent(&self, node: &str) -> Result<&Agent> {
        self.agents
            .iter()
            .find(|agent| agent.node == node)
            .with_context(|| format!("{node} has no agent"))
    }

    /// Writes a policy.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        self.lab.apply(name, text)?;
        Ok(())
    }

    /// Removes what was written under a name.
    pub fn remove(&self, name: &str) -> Result<()> {
        self.lab.withdraw(name)?;
        Ok(())
    }

    /// Waits until all probes are as expected.
    pub fn settle(&self, expected: impl Fn(&Flow<'_>) -> bool) -> Result<Matrix> {
        Matrix::settle(&self.lab, SETTLE, expected)
    }

    /// Probes once: everything must be as expected at the first look.
    pub fn hold(&self, expected: impl Fn(&Flow<'_>) -> bool) -> Result<Matrix> {
        let matrix = Matrix::probe(&self.lab, expected)?;
        let wrong: Vec<String> = matrix.wrong().map(Check::describe).collect();
        if !wrong.is_empty() {
            bail!(
                "wrong:\n{}\n{}",
                wrong.join("\n"),
                matrix.render(Style::Plain)
            );
        }
        Ok(matrix)
    }
}

/// A pod with its name as label `app` that serves 80/tcp (named `http`) and 53/udp.
pub fn server(node: &str, namespace: &str, name: &str) -> PodSpec {
    PodSpec::new(node, namespace, name)
        .label("app", name)
        .port(Some("http"), crate::probe::Protocol::Tcp, 80)
        .udp(53)
}

/// A NetworkPolicy that selects every pod of a namespace and lets nothing in.
pub fn deny_ingress(namespace: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\n\
         kind: NetworkPolicy\n\
         metadata: {{name: deny-ingress, namespace: {namespace}}}\n\
         spec: {{podSelector: {{}}, policyTypes: [Ingress]}}\n"
    )
}

/// A NetworkPolicy that lets pods of the same namespace with a label `app` reach others at 80/tcp.
pub fn allow_http(namespace: &str, to: &str, from: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\n\
         kind: NetworkPolicy\n\
         metadata: {{name: {to}-for-{from}, namespace: {namespace}}}\n\
         spec:\n  \
           podSelector: {{matchLabels: {{app: {to}}}}}\n  \
           ingress:\n    \
             - from: [{{podSelector: {{matchLabels: {{app: {from}}}}}}}]\n      \
               ports: [{{protocol: TCP, port: 80}}]\n"
    )
}

/// Pods of one application may connect to those of another in another namespace, on one TCP port, and nowhere else.
pub fn egress_to(namespace: &str, from: &str, other: &str, to: &str, port: u16) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\n\
         kind: NetworkPolicy\n\
         metadata: {{name: {from}-to-{to}, namespace: {namespace}}}\n\
         spec:\n  \
           podSelector: {{matchLabels: {{app: {from}}}}}\n  \
           policyTypes: [Egress]\n  \
           egress:\n    \
             - to: [{{namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: {other}}}}}, podSelector: {{matchLabels: {{app: {to}}}}}}}]\n      \
               ports: [{{protocol: TCP, port: {port}}}]\n"
    )
}
