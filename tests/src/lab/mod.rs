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
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

pub use node::Node;
pub use pod::{Pod, PodPort, PodSpec, Server};

use crate::addresses::Addresses;
use crate::cluster::{Cluster, KubernetesConfig};
use crate::cni::{NETWORK_NAME, Plug, PluginSet, Sandbox, invoke};
use crate::manifest::{self, Manifests};
use crate::netns::Namespace;
use crate::program;
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
    pub nodes: u8,
    /// Whether pods and nodes have IPv6 addresses too.
    pub ipv6: bool,
    /// Who carries packets between nodes.
    pub backend: Backend,
    /// Whether the node's own setting already shows bridged frames to the inet hooks. Off is the harder case: the
    /// agent must switch it on by itself.
    pub bridge_netfilter: bool,
    /// Whose CNI plugins plug pods in.
    pub plugins: PluginSet,
    /// What pods' cables are plugged into.
    pub plug: Plug,
    /// A real API server, Flannel and kube-proxy. Without it the lab does what Flannel would, and the agents read
    /// manifests.
    pub kubernetes: Option<KubernetesConfig>,
}

impl Default for LabConfig {
    fn default() -> Self {
        Self {
            nodes: 2,
            ipv6: false,
            backend: Backend::Vxlan,
            bridge_netfilter: false,
            plugins: PluginSet::default(),
            plug: Plug::default(),
            kubernetes: None,
        }
    }
}

impl LabConfig {
    /// A small real cluster: API server, Flannel, kube-proxy and kubelets, with CNI plugins as they are shipped today.
    pub fn real() -> Self {
        Self {
            plugins: PluginSet::Module,
            kubernetes: Some(KubernetesConfig::real()),
            ..Self::default()
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
    cluster: Option<Cluster>,
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
        let addresses = match config.kubernetes {
            Some(_) => Addresses::of_run(run.prefix(), config.ipv6),
            None => Addresses::usual(config.ipv6),
        };
        addresses.set_up(&run.fabric)?;
        let mut cluster = config
            .kubernetes
            .map(|kubernetes| Cluster::start(&run, addresses, config, kubernetes))
            .transpose()?;
        let manifests = Manifests::create(run.folder())?;
        let mut nodes = Vec::new();
        for index in 0..config.nodes {
            nodes.push(Node::create(&run, index, config, addresses)?);
        }
        if let Some(cluster) = &mut cluster {
            cluster.join(&mut nodes, run.folder(), &manifests)?;
        } else {
            node::join(&mut nodes, config)?;
            for node in &nodes {
                manifests.write(&format!("node-{}", node.name), &manifest::node(node))?;
            }
        }
        Ok(Self {
            nodes,
            pods: BTreeMap::new(),
            manifests,
            started_pods: 0,
            cluster,
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

    /// The cluster of a lab with Kubernetes.
    pub fn cluster(&self) -> Result<&Cluster> {
        self.cluster.as_ref().context("the lab has no Kubernetes")
    }

    /// The same, to stop and start its daemons.
    pub fn cluster_mut(&mut self) -> Result<&mut Cluster> {
        self.cluster.as_mut().context("the lab has no Kubernetes")
    }

    /// What a node's agent is to read, as `--source` names it.
    pub fn source(&self, node: &str) -> Result<String> {
        Ok(match &self.cluster {
            Some(cluster) => format!("kubernetes:{}", cluster.agent_kubeconfig(node)?.display()),
            None => format!("file:{}", self.manifests.folder().display()),
        })
    }

    /// What a command line on the host is to read, as `--source` names it.
    pub fn source_on_host(&self) -> String {
        match &self.cluster {
            Some(cluster) => format!("kubernetes:{}", cluster.plane.kubeconfig().display()),
            None => format!("file:{}", self.manifests.folder().display()),
        }
    }

    /// Writes or changes a manifest under a name, and applies it to the API server if there is one. Returns the moment
    /// just before agents could see it.
    pub fn apply(&self, name: &str, text: &str) -> Result<Instant> {
        let written = self.manifests.write(name, text)?;
        let Some(cluster) = &self.cluster else {
            return Ok(written);
        };
        let before = Instant::now();
        cluster.api().apply(text)?;
        Ok(before)
    }

    /// Removes what [`Lab::apply`] wrote under a name.
    pub fn withdraw(&self, name: &str) -> Result<Instant> {
        let text = self.manifests.read(name)?;
        let removed = self.manifests.remove(name)?;
        let (Some(cluster), Some(text)) = (&self.cluster, text) else {
            return Ok(removed);
        };
        let before = Instant::now();
        cluster.api().withdraw(&text)?;
        Ok(before)
    }

    /// Writes or changes a Namespace.
    pub fn write_namespace(&self, name: &str, labels: &[(&str, &str)]) -> Result<()> {
        let labels = labels
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        let text = manifest::namespace(name, &labels);
        self.apply(&format!("namespace-{name}"), &text)?;
        if let Some(cluster) = &self.cluster {
            cluster.plane.wait_account(name)?;
        }
        Ok(())
    }

    /// Plugs a pod in and starts its servers. No manifest speaks of it until [`Lab::publish`].
    pub fn plug(&mut self, spec: PodSpec) -> Result<&Pod> {
        if self.cluster.as_ref().is_some_and(Cluster::has_kubelets) {
            bail!("a kubelet plugs no pod in that nobody has declared");
        }
        self.plug_as(spec, None)
    }

    /// Tells the API of a pod's place and address, as a kubelet does: without Kubernetes, writes its manifest.
    pub fn publish(&self, id: &str) -> Result<()> {
        let pod = self.pod(id)?;
        if let Some(cluster) = &self.cluster
            && !cluster.has_kubelets()
        {
            cluster.publish(pod)?;
        }
        self.manifests
            .write(&manifest::pod_file(&pod.spec), &manifest::pod(pod))?;
        Ok(())
    }

    /// Does what the cluster does for a new pod: it is declared, plugged in, and its address is published.
    pub fn add_pod(&mut self, spec: PodSpec) -> Result<&Pod> {
        let id = spec.id();
        self.add_pods(vec![spec])?;
        self.pod(&id)
    }

    /// The same for several, which kubelets start side by side.
    pub fn add_pods(&mut self, specs: Vec<PodSpec>) -> Result<()> {
        let mut uids = Vec::new();
        for spec in &specs {
            let uid = self
                .cluster
                .as_ref()
                .map(|cluster| cluster.declare(spec))
                .transpose()?;
            uids.push(uid);
        }
        for (spec, uid) in specs.into_iter().zip(uids) {
            let id = spec.id();
            self.plug_as(spec, uid)?;
            self.publish(&id)?;
        }
        Ok(())
    }

    /// Pulls a pod out: its object first, as the API would, then CNI DEL, then its namespace.
    pub fn remove_pod(&mut self, id: &str) -> Result<()> {
        let spec = &self.pod(id)?.spec;
        if let Some(cluster) = &self.cluster {
            cluster.forget(spec)?;
        }
        self.manifests.remove(&manifest::pod_file(spec))?;
        self.unplug(id)
    }

    /// The same without the object: nobody has told the API yet.
    pub fn unplug(&mut self, id: &str) -> Result<()> {
        let pod = self.pods.remove(id);
        let pod = pod.with_context(|| format!("the lab has no pod {id}"))?;
        let node = self.node(&pod.spec.node)?;
        pod.destroy(node)
    }

    /// Calls our plugin on a node, as a conflist of Flannel has it after the others; `previous` is what these said.
    pub fn call_plugin(
        &self,
        node: &str,
        sandbox: &Sandbox,
        verb: &str,
        previous: &Value,
    ) -> Result<()> {
        let folder = self.folder().join(node);
        let mut configuration = json!({
            "cniVersion": "0.3.1",
            "name": NETWORK_NAME,
            "type": "towpath-cni",
            "socket": folder.join("towpath.sock"),
            "queue": folder.join("state/cni-deletions"),
        });
        if !previous.is_null() {
            configuration["prevResult"] = previous.clone();
        }
        let plugin = program::plugin()?;
        let namespace = &self.node(node)?.namespace;
        let output = invoke(
            namespace,
            &plugin,
            sandbox,
            verb,
            &configuration.to_string(),
        )?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stdout);
            bail!("towpath-cni {verb} failed: {words}");
        }
        Ok(())
    }

    /// Creates the object of a pod that a kubelet is to start, and does not wait for it.
    pub fn declare(&self, spec: &PodSpec) -> Result<()> {
        let cluster = self.cluster()?;
        if !cluster.has_kubelets() {
            bail!("no kubelet would start {}", spec.id());
        }
        cluster.declare(spec)?;
        Ok(())
    }

    /// Waits until a pod that was declared runs.
    pub fn await_declared(&mut self, spec: PodSpec) -> Result<&Pod> {
        let id = spec.id();
        self.plug_as(spec, None)?;
        self.publish(&id)?;
        self.pod(&id)
    }

    fn plug_as(&mut self, spec: PodSpec, uid: Option<String>) -> Result<&Pod> {
        let id = spec.id();
        if self.pods.contains_key(&id) {
            bail!("pod {id} is plugged already");
        }
        self.started_pods += 1;
        let node = self.node(&spec.node)?;
        let run = &self.run.prefix()[2..];
        let number = self.started_pods;
        let pod = match &self.cluster {
            Some(cluster) if cluster.has_kubelets() => {
                let name = format!("{}-pod-{number}", self.run.prefix());
                cluster.await_pod(node, &name, spec)?
            }
            _ => Pod::create(node, run, number, spec, uid)?,
        };
        Ok(self.pods.entry(id).or_insert(pod))
    }

    /// Leaves everything running. `cargo xtask lab down` removes it.
    pub fn release(mut self) -> Result<()> {
        for pod in self.pods.values_mut() {
            pod.release();
        }
        if let Some(cluster) = self.cluster.take() {
            cluster.release();
        }
        self.run.release()
    }

    /// Removes everything, and says what went wrong, which a drop cannot.
    pub fn close(self) -> Result<()> {
        self.run.close()
    }
}
