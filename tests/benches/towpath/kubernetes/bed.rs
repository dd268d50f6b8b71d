//! The cluster that is measured: one node with real pods and a real agent, the rest objects only.

use std::net::SocketAddr;
use std::ops::Range;

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use serde_json::json;
use towpath_tests::agent::{Agent, AgentOptions};
use towpath_tests::cluster::{Api, Crowd, KubernetesConfig, START_PATIENCE, View};
use towpath_tests::cni::PluginSet;
use towpath_tests::lab::{Lab, LabConfig, PodSpec};
use towpath_tests::netns::Namespace;
use towpath_tests::wait::until;

use super::metrics;
use super::traffic::Traffic;

/// Node objects, the real one included.
pub(super) const NODES: u32 = 1_000;
/// Real pods on the real node.
pub(super) const LOCAL: u32 = 110;
/// Namespaces, as in the other parts of the benchmark.
const NAMESPACES: u32 = 250;
/// The node that has an agent.
pub(super) const NODE: &str = "node-a";
/// Where sender and target live.
pub(super) const NAMESPACE: &str = "crowd-0";
/// Reachable while the policy of [`super::latency`] exists.
pub(super) const POLICY_PORT: u16 = 7_000;
/// Reachable while the sender has the label `client: yes`.
pub(super) const LABEL_PORT: u16 = 7_001;

/// The running cluster. Dropping it removes everything.
pub(super) struct Bed {
    agent: Option<Agent>,
    crowd: Crowd,
    /// The administrator, directly at the server: for threads in the fabric's namespace.
    pub(super) api: Api,
    pub(super) lab: Lab,
}

impl Bed {
    /// The control plane and a node with its local pods. The first ones of the crowd are here and are real.
    pub(super) fn new() -> Result<Self> {
        let lab = Lab::new(&LabConfig {
            nodes: 1,
            plugins: PluginSet::Module,
            kubernetes: Some(KubernetesConfig::default()),
            ..LabConfig::default()
        })?;
        let crowd = Crowd {
            nodes: NODES - 1,
            pods: 0,
            namespaces: NAMESPACES,
        };
        let plane = &lab.cluster()?.plane;
        let authority = plane.authority().certificate().to_owned();
        let api = Api::new(&plane.url(View::Lab), &authority, plane.token("admin"))?;
        Ok(Self {
            agent: None,
            crowd,
            api,
            lab,
        })
    }

    /// Nodes, namespaces, and the local pods.
    pub(super) fn enter_places(&mut self) -> Result<()> {
        self.crowd.enter_places(&self.lab.cluster()?.plane)?;
        let mut pods = vec![
            PodSpec::new(NODE, NAMESPACE, "sender")
                .label("app", "probe")
                .label("client", "no"),
        ];
        for number in 0..LOCAL - 1 {
            let name = if number == 0 {
                "target".to_owned()
            } else {
                format!("local-{number}")
            };
            let mut spec = PodSpec::new(NODE, &self.crowd.namespace(number), &name);
            for (key, value) in self.crowd.labels(number) {
                spec = spec.label(key, &value);
            }
            pods.push(spec);
        }
        self.lab.add_pods(pods)?;
        let standing = json!({
            "metadata": { "name": "standing" },
            "spec": {
                "podSelector": { "matchLabels": { "app": "app-0" } },
                "policyTypes": ["Ingress"],
                "ingress": [{
                    "from": [{ "podSelector": { "matchLabels": { "client": "yes" } } }],
                    "ports": [{ "protocol": "UDP", "port": LABEL_PORT }],
                }],
            },
        });
        let cluster = self.lab.cluster()?;
        let policies = format!("/apis/networking.k8s.io/v1/namespaces/{NAMESPACE}/networkpolicies");
        cluster.api().create(&policies, &standing)?;
        // In a cluster they have processors of their own, and nothing here waits for them.
        let controllers = cluster.plane.controllers().context("no controllers")?;
        controllers.signal(Signal::SIGSTOP)
    }

    /// Enters pods and policies of these numbers.
    pub(super) fn enter(&self, pods: Range<u32>, policies: Range<u32>) -> Result<()> {
        self.lab.fabric().enter(|| {
            self.crowd.enter_policies(&self.api, policies)?;
            self.crowd.enter_pods(&self.api, pods)
        })?
    }

    /// Starts the agent and waits until policy is in force.
    pub(super) fn start_agent(&mut self) -> Result<()> {
        let mut agent = Agent::start(&self.lab, NODE, &AgentOptions::default())?;
        agent.wait_ready()?;
        self.agent = Some(agent);
        Ok(())
    }

    /// Ends the agent and removes all that it left, as before the first installation.
    pub(super) fn uninstall(&mut self) -> Result<()> {
        let agent = self.agent.take().context("no agent runs")?;
        let mut uninstaller = agent.uninstaller()?;
        agent.terminate()?;
        self.lab.node(NODE)?.namespace.run(&mut uninstaller)?;
        Ok(())
    }

    pub(super) fn agent(&self) -> Result<&Agent> {
        self.agent.as_ref().context("no agent runs")
    }

    /// Waits until the agent knows so many pods, and the last change is in the kernel.
    pub(super) fn await_pods(&self, pods: u32) -> Result<()> {
        let agent = self.agent()?;
        until("the agent to know all pods", START_PATIENCE, || {
            let text = agent.metrics()?;
            let known = metrics::value(&text, "towpath_graph_cluster_endpoints")?;
            let pending = metrics::value(&text, "towpath_dataplane_pending_generations")?;
            Ok(known >= f64::from(pods) && pending < 1.0)
        })
    }

    /// Packets from the sender to a port of the target.
    pub(super) fn traffic(&self, port: u16) -> Result<Traffic> {
        let place = |id: &str| -> Result<(Namespace, _)> {
            let pod = self.lab.pod(&format!("{NAMESPACE}/{id}"))?;
            Ok((Namespace::existing(pod.namespace.name()), pod.ipv4()?))
        };
        let ((from, _), (to, address)) = (place("sender")?, place("target")?);
        Traffic::start(&from, &to, SocketAddr::from((address, port)))
    }
}
