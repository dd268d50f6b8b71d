//! What makes a node of the lab a node of a cluster: its Node object, flanneld, kube-proxy, and the agent's account.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use ipnet::IpNet;
use serde_json::{Value, json};

use super::api::{Api, objects};
use super::control_plane::{ControlPlane, ControlPlaneConfig, Credential, View};
use super::daemon::{Daemon, Recipe};
use super::machine::Machine;
use crate::addresses::Addresses;
use crate::cni::{PluginSet, Plugins};
use crate::lab::{Backend, LabConfig, Node};
use crate::manifest::Manifests;
use crate::run::Run;
use crate::tools::Tool;

/// How Flannel and kube-proxy write their rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rules {
    /// In nft tables of their own.
    #[default]
    Nftables,
    /// By the iptables program.
    Iptables,
}

/// What a lab with Kubernetes has beside its nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KubernetesConfig {
    /// How flanneld writes its masquerading and forwarding rules.
    pub flannel: Rules,
    /// kube-proxy on each node, if any.
    pub proxy: Option<Rules>,
    /// Whether containerd and a kubelet run on each node. Else the lab plugs pods in itself: those start in
    /// milliseconds.
    pub kubelets: bool,
    /// Whether the kind ClusterNetworkPolicy is missing, as it may be in a cluster.
    pub without_cluster_policies: bool,
    /// What the control plane does.
    pub control_plane: ControlPlaneConfig,
}

impl KubernetesConfig {
    /// Everything that a small real cluster has.
    pub fn real() -> Self {
        Self {
            flannel: Rules::Nftables,
            proxy: Some(Rules::Nftables),
            kubelets: true,
            without_cluster_policies: false,
            control_plane: ControlPlaneConfig {
                watch_nodes: true,
                schedule: true,
                ipv6: false,
            },
        }
    }
}

/// The cluster's side of a lab. Dropping it ends its processes.
#[derive(Debug)]
pub struct Cluster {
    // Ended in this order: who asks goes before who answers.
    machines: BTreeMap<String, Machine>,
    proxies: BTreeMap<String, Daemon>,
    flannel: BTreeMap<String, Daemon>,
    /// API server and controllers.
    pub plane: ControlPlane,
    config: KubernetesConfig,
    backend: Backend,
    plugins: PluginSet,
    flannel_kubeconfig: PathBuf,
}

impl Cluster {
    /// Starts the control plane in the run's fabric and enters the accounts that nodes use.
    pub(crate) fn start(
        run: &Run,
        addresses: Addresses,
        config: &LabConfig,
        kubernetes: KubernetesConfig,
    ) -> Result<Self> {
        let control_plane = ControlPlaneConfig {
            ipv6: config.ipv6,
            ..kubernetes.control_plane
        };
        let plane = ControlPlane::start(&run.fabric, run.folder(), addresses, &control_plane)?;
        plane.api().apply(include_str!("flannel.yaml"))?;
        plane.api().apply(&agent_account()?)?;
        if !kubernetes.without_cluster_policies {
            plane.define_cluster_policies()?;
        }
        let token = plane.api().service_token("kube-flannel", "flannel")?;
        let flannel_kubeconfig =
            plane.write_kubeconfig("flannel", View::Lab, Credential::Token(&token))?;
        Ok(Self {
            machines: BTreeMap::new(),
            proxies: BTreeMap::new(),
            flannel: BTreeMap::new(),
            plane,
            config: kubernetes,
            backend: config.backend,
            plugins: config.plugins,
            flannel_kubeconfig,
        })
    }

    /// The administrator, from this process.
    pub fn api(&self) -> &Api {
        self.plane.api()
    }

    /// Enters the nodes, starts their daemons, and waits until Flannel has joined them.
    pub(crate) fn join(
        &mut self,
        nodes: &mut [Node],
        folder: &Path,
        manifests: &Manifests,
    ) -> Result<()> {
        for node in &*nodes {
            self.enter(node)?;
            let daemon = self.start_flannel(node, folder)?;
            self.flannel.insert(node.name.clone(), daemon);
        }
        for node in &mut *nodes {
            self.adopt_subnet(node, folder)?;
        }
        for node in &*nodes {
            for other in nodes.iter().filter(|other| other.index != node.index) {
                self.wait_route(node, other)?;
            }
            let object = self.api().get(&format!("/api/v1/nodes/{}", node.name))?;
            // JSON is YAML.
            manifests.write(&format!("node-{}", node.name), &object.to_string())?;
        }
        if let Some(rules) = self.config.proxy {
            for node in &*nodes {
                let daemon = self.start_proxy(node, folder, rules)?;
                self.proxies.insert(node.name.clone(), daemon);
            }
        }
        if self.config.kubelets {
            for node in &*nodes {
                let machine = Machine::start(&self.plane, node, folder)?;
                self.machines.insert(node.name.clone(), machine);
            }
            for machine in self.machines.values_mut() {
                machine.wait_ready(&self.plane)?;
            }
        }
        Ok(())
    }

    /// Whether kubelets run the pods.
    pub fn has_kubelets(&self) -> bool {
        self.config.kubelets
    }

    /// What is around a node with a kubelet.
    pub fn machine(&self, node: &str) -> Result<&Machine> {
        let found = self.machines.get(node);
        found.with_context(|| format!("{node} has no kubelet"))
    }

    /// flanneld of a node, for tests that stop it.
    pub fn flannel(&mut self, node: &str) -> Result<&mut Daemon> {
        let found = self.flannel.get_mut(node);
        found.with_context(|| format!("{node} has no flanneld"))
    }

    /// kube-proxy of a node, for tests that stop it.
    pub fn proxy(&mut self, node: &str) -> Result<&mut Daemon> {
        let found = self.proxies.get_mut(node);
        found.with_context(|| format!("{node} has no kube-proxy"))
    }

    /// A kubeconfig with a token of the agent's account, for one node's agent. The token is asked for once: an agent
    /// may start again while the API server is away.
    pub fn agent_kubeconfig(&self, node: &str) -> Result<PathBuf> {
        let file = format!("agent-{node}");
        if let Some(written) = self.plane.written_kubeconfig(&file) {
            return Ok(written);
        }
        let (namespace, name) = account_in(&agent_account()?)?;
        let token = self.api().service_token(&namespace, &name)?;
        self.plane
            .write_kubeconfig(&file, View::Lab, Credential::Token(&token))
    }

    /// All of it goes on when this value is gone.
    pub(crate) fn release(self) {
        for machine in self.machines.into_values() {
            machine.release();
        }
        for daemon in self.proxies.into_values().chain(self.flannel.into_values()) {
            daemon.release();
        }
        self.plane.release();
    }

    /// The Node object, as a kubelet would keep it.
    fn enter(&self, node: &Node) -> Result<()> {
        let labels = json!({ "kubernetes.io/hostname": node.name, "kubernetes.io/os": "linux" });
        let cidrs = words(&node.pod_cidrs);
        let object = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": { "name": node.name, "labels": labels },
            "spec": { "podCIDR": cidrs.first(), "podCIDRs": cidrs },
        });
        self.api().create("/api/v1/nodes", &object)?;
        let path = format!("/api/v1/nodes/{}", node.name);
        let addresses: Vec<Value> = node
            .addresses
            .iter()
            .map(|address| json!({ "type": "InternalIP", "address": address }))
            .collect();
        let status = format!("{path}/status");
        self.api()
            .merge(&status, &json!({ "status": { "addresses": addresses } }))?;
        if self.config.kubelets {
            return Ok(());
        }
        let ready = json!({ "type": "Ready", "status": "True", "reason": "Lab" });
        self.api()
            .merge(&status, &json!({ "status": { "conditions": [ready] } }))?;
        // The API server taints new nodes until a controller says that they are ready.
        self.api()
            .merge(&path, &json!({ "spec": { "taints": null } }))?;
        Ok(())
    }

    fn start_flannel(&self, node: &Node, folder: &Path) -> Result<Daemon> {
        let folder = folder.join(&node.name);
        let addresses = self.plane.addresses();
        let networks = words(&addresses.pod_networks());
        let kind = match self.backend {
            Backend::Vxlan => "vxlan",
            Backend::HostGateway => "host-gw",
        };
        let mut network = json!({
            "Network": networks.first(),
            "EnableIPv6": addresses.has_ipv6(),
            "EnableNFTables": self.config.flannel == Rules::Nftables,
            "Backend": { "Type": kind },
        });
        if let Some(networks) = networks.get(1) {
            network["IPv6Network"] = json!(networks);
        }
        let file = folder.join("net-conf.json");
        fs::write(&file, network.to_string())?;
        let program = Tool::Flanneld.path()?;
        let mut recipe = Recipe::new("flanneld", &program, &node.namespace, &folder)
            .variable("NODE_NAME", &node.name)
            .flag("kube-subnet-mgr", "true")
            .flag("kubeconfig-file", &self.flannel_kubeconfig)
            .flag("net-config-path", file)
            .flag("subnet-file", subnet_file(&folder))
            .flag("iface", "eth0")
            .flag("ip-masq", "true");
        if let Some(address) = node.addresses.first() {
            recipe = recipe.flag("public-ip", address.to_string());
        }
        if let Some(address) = node.addresses.get(1) {
            recipe = recipe.flag("public-ipv6", address.to_string());
        }
        recipe.start()
    }

    /// Waits for flanneld's file and plugs pods in accordingly.
    fn adopt_subnet(&mut self, node: &mut Node, folder: &Path) -> Result<()> {
        let folder = folder.join(&node.name);
        let file = subnet_file(&folder);
        let daemon = self.flannel(&node.name)?;
        daemon.wait("flanneld's subnet.env", || Ok(file.exists()))?;
        let text = fs::read_to_string(&file)?;
        node.plugins = Plugins::of_subnet_env(self.plugins, &text, &folder.join("networks"))?;
        Ok(())
    }

    fn wait_route(&mut self, node: &Node, other: &Node) -> Result<()> {
        let daemon = self.flannel(&node.name)?;
        for cidr in &other.pod_cidrs {
            let what = format!("route from {} to pods of {}", node.name, other.name);
            let family = if cidr.addr().is_ipv6() { "-6" } else { "-4" };
            let cidr = cidr.to_string();
            daemon.wait(&what, || {
                let mut command = Command::new("ip");
                let routes = node
                    .namespace
                    .run(command.args([family, "route", "show", &cidr]))?;
                Ok(!routes.trim().is_empty())
            })?;
        }
        Ok(())
    }

    fn start_proxy(&self, node: &Node, folder: &Path, rules: Rules) -> Result<Daemon> {
        let folder = folder.join(&node.name);
        let networks = words(&self.plane.addresses().pod_networks());
        let credential = Credential::Token(self.plane.token("system:kube-proxy"));
        let kubeconfig = self
            .plane
            .write_kubeconfig("kube-proxy", View::Lab, credential)?;
        let config = json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": match rules { Rules::Nftables => "nftables", Rules::Iptables => "iptables" },
            "hostnameOverride": node.name,
            "clusterCIDR": networks.join(","),
            "clientConnection": { "kubeconfig": kubeconfig },
            // Limits of connection tracking are not a namespace's to set.
            "conntrack": { "maxPerCore": 0 },
            "healthzBindAddress": "",
            "metricsBindAddress": "",
        });
        let file = folder.join("kube-proxy.json");
        fs::write(&file, config.to_string())?;
        Recipe::new("kube-proxy", &Tool::Proxy.path()?, &node.namespace, &folder)
            .flag("config", file)
            .start()
    }
}

fn subnet_file(folder: &Path) -> PathBuf {
    folder.join("subnet.env")
}

fn words(networks: &[IpNet]) -> Vec<String> {
    networks.iter().map(ToString::to_string).collect()
}

/// The product's own manifest, so that a missing right shows up here.
fn agent_account() -> Result<String> {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/rbac.yaml"));
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Namespace and name of the one service account of a manifest.
fn account_in(text: &str) -> Result<(String, String)> {
    for object in objects(text)? {
        if object["kind"] == "ServiceAccount" {
            let text = |key: &str| {
                object["metadata"][key]
                    .as_str()
                    .unwrap_or("default")
                    .to_owned()
            };
            return Ok((text("namespace"), text("name")));
        }
    }
    bail!("the manifest of the agent's account has no ServiceAccount")
}
