//! Nodes joined by a fabric, each set up as Flannel does it, with pods plugged by the real CNI plugins.
//!
//! ```text
//!  tpXXXX-fabric            br-lab 192.168.77.254/24
//!                            |                  |
//!  tpXXXX-node-a   eth0 192.168.77.1     eth0 192.168.77.2   tpXXXX-node-b
//!                  flannel.1 10.244.1.0  flannel.1 10.244.2.0
//!                  cni0 10.244.1.1       cni0 10.244.2.1
//!                   |        |
//!  tpXXXX-pod-1    eth0     eth0         ...
//! ```
//!
//! All of it is in namespaces of this run; addresses may repeat in another run.

mod node;
mod pod;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

pub use node::Node;
pub use pod::{Pod, PodPort, PodSpec};

use crate::manifest::{self, Manifests};
use crate::netns::Namespace;
use crate::run::Run;

/// Who carries packets between nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// Flannel's default: a tunnel per node.
    #[default]
    Vxlan,
    /// Routes by node address; nodes are neighbours.
    HostGateway,
}

/// What a lab is to look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabConfig {
    /// How many nodes, up to 26.
    pub nodes: usize,
    /// Whether pods and nodes have IPv6 addresses too.
    pub ipv6: bool,
    /// Who carries packets between nodes.
    pub backend: Backend,
    /// Whether the node's own setting already shows bridged frames to the inet hooks. Off is the harder case: the
    /// agent must switch it on by itself.
    pub bridge_netfilter: bool,
}

impl Default for LabConfig {
    fn default() -> Self {
        Self {
            nodes: 2,
            ipv6: false,
            backend: Backend::Vxlan,
            bridge_netfilter: false,
        }
    }
}

/// A cluster in namespaces. Dropping it removes everything.
#[derive(Debug)]
pub struct Lab {
    nodes: Vec<Node>,
    pods: BTreeMap<String, Pod>,
    /// What the agents read.
    pub manifests: Manifests,
    started_pods: u32,
    // Last, so that it removes what the others leave.
    run: Run,
}

impl Lab {
    /// Builds nodes and the network between them, and writes the manifests of the nodes.
    pub fn new(config: &LabConfig) -> Result<Self> {
        if config.nodes > 26 {
            bail!("a lab has at most 26 nodes, one per letter");
        }
        let run = Run::claim()?;
        node::set_up_fabric(&run.fabric, config)?;
        let manifests = Manifests::create(run.folder())?;
        let mut nodes = Vec::new();
        for index in 0..config.nodes {
            nodes.push(Node::create(&run, index, config)?);
        }
        node::join(&nodes, config)?;
        for node in &nodes {
            manifests.write(&format!("node-{}", node.name), &manifest::node(node))?;
        }
        Ok(Self {
            nodes,
            pods: BTreeMap::new(),
            manifests,
            started_pods: 0,
            run,
        })
    }

    /// Prefix, folder and keeper.
    pub fn run(&self) -> &Run {
        &self.run
    }

    /// What every namespace of this lab starts with.
    pub fn prefix(&self) -> &str {
        self.run.prefix()
    }

    /// The lab's folder: manifests, address stores, sockets, logs.
    pub fn folder(&self) -> &Path {
        self.run.folder()
    }

    /// The network between the nodes.
    pub fn fabric(&self) -> &Namespace {
        &self.run.fabric
    }

    /// All nodes, node-a first.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A node by name.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes
            .iter()
            .find(|node| node.name == name)
            .with_context(|| format!("the lab has no node {name}"))
    }

    /// All plugged pods, by `namespace/name`.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values()
    }

    /// A plugged pod, by `namespace/name`.
    pub fn pod(&self, id: &str) -> Result<&Pod> {
        self.pods
            .get(id)
            .with_context(|| format!("the lab has no pod {id}"))
    }

    /// Writes or changes a Namespace manifest.
    pub fn write_namespace(&self, name: &str, labels: &[(&str, &str)]) -> Result<()> {
        let labels = labels
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        let text = manifest::namespace(name, &labels);
        self.manifests.write(&format!("namespace-{name}"), &text)?;
        Ok(())
    }

    /// Plugs a pod in and starts its servers. No manifest speaks of it until [`Lab::publish`].
    pub fn plug(&mut self, spec: PodSpec) -> Result<&Pod> {
        let id = spec.id();
        if self.pods.contains_key(&id) {
            bail!("pod {id} is plugged already");
        }
        self.started_pods += 1;
        let node = self.node(&spec.node)?;
        let pod = Pod::create(node, &self.run.prefix()[2..], self.started_pods, spec)?;
        Ok(self.pods.entry(id).or_insert(pod))
    }

    /// Writes the manifest of a plugged pod.
    pub fn publish(&self, id: &str) -> Result<()> {
        let pod = self.pod(id)?;
        self.manifests
            .write(&manifest::pod_file(&pod.spec), &manifest::pod(pod))?;
        Ok(())
    }

    /// Plugs a pod in and publishes it.
    pub fn add_pod(&mut self, spec: PodSpec) -> Result<&Pod> {
        let id = spec.id();
        self.plug(spec)?;
        self.publish(&id)?;
        self.pod(&id)
    }

    /// Pulls a pod out: its manifest first, as the API would, then CNI DEL, then its namespace.
    pub fn remove_pod(&mut self, id: &str) -> Result<()> {
        let pod = self
            .pods
            .remove(id)
            .with_context(|| format!("the lab has no pod {id}"))?;
        self.manifests.remove(&manifest::pod_file(&pod.spec))?;
        let node = self.node(&pod.spec.node)?;
        pod.destroy(node)
    }

    /// Leaves everything running. `cargo xtask lab down` removes it.
    pub fn release(mut self) -> Result<()> {
        for pod in self.pods.values_mut() {
            pod.release();
        }
        self.run.release()
    }

    /// Removes everything, and says what went wrong, which a drop cannot.
    pub fn close(self) -> Result<()> {
        self.run.close()
    }
}
