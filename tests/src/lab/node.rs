//! A node: its namespace, its place in the fabric, and what flanneld would set up.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::process::Command;

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use serde_json::{Value, json};

use super::{Backend, LabConfig};
use crate::addresses::Addresses;
use crate::cni::Plugins;
use crate::netns::Namespace;
use crate::run::Run;

/// MTU of the fabric.
const FABRIC_MTU: u16 = 1500;

/// A node of the lab.
#[derive(Debug)]
pub struct Node {
    /// Its Kubernetes name: node-a, node-b, ...
    pub name: String,
    /// Where it lives.
    pub namespace: Namespace,
    /// Its addresses on the fabric, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// Its pods' addresses come from here, IPv4 first.
    pub pod_cidrs: Vec<IpNet>,
    /// What plugs its pods in.
    pub plugins: Plugins,
    backend: Backend,
    /// Its number, from 0.
    pub index: u8,
    /// Hardware addresses of flannel.1 and flannel-v6.1.
    tunnels: Vec<String>,
}

impl Node {
    /// The namespace and its cable. Who carries packets to other nodes comes later.
    pub(super) fn create(
        run: &Run,
        index: u8,
        config: &LabConfig,
        addresses: Addresses,
    ) -> Result<Self> {
        let name = format!("node-{}", char::from(b'a' + index));
        let mut namespace = Namespace::create(&format!("{}-{name}", run.prefix()))?;
        namespace.release();
        let pod_cidrs = addresses.pod_cidrs(index);
        let data = run.folder().join(&name).join("networks");
        std::fs::create_dir_all(&data)?;
        let mtu = match (config.backend, config.ipv6) {
            (Backend::HostGateway, _) => FABRIC_MTU,
            // vxlan over IPv4 costs 50 bytes, over IPv6 70.
            (Backend::Vxlan, false) => FABRIC_MTU - 50,
            (Backend::Vxlan, true) => FABRIC_MTU - 70,
        };
        let node = Self {
            addresses: addresses.node(index),
            plugins: Plugins::new(
                config.plugins,
                &pod_cidrs,
                &addresses.pod_networks(),
                mtu,
                &data,
            )?
            .with_plug(config.plug)?,
            backend: config.backend,
            tunnels: Vec::new(),
            name,
            namespace,
            pod_cidrs,
            index,
        };
        node.set_sysctls(config)?;
        node.connect(&run.fabric)?;
        Ok(node)
    }

    /// The annotations by which flanneld tells other nodes about this one.
    pub fn annotations(&self) -> BTreeMap<String, String> {
        let mut annotations = BTreeMap::new();
        let mut note = |key: &str, value: String| {
            annotations.insert(format!("flannel.alpha.coreos.com/{key}"), value);
        };
        note("kube-subnet-manager", "true".to_owned());
        let is_vxlan = self.backend == Backend::Vxlan;
        note(
            "backend-type",
            if is_vxlan { "vxlan" } else { "host-gw" }.to_owned(),
        );
        for (place, address) in self.addresses.iter().enumerate() {
            let (public, backend) = match address {
                IpAddr::V4(_) => ("public-ip", "backend-data"),
                IpAddr::V6(_) => ("public-ipv6", "backend-v6-data"),
            };
            let facts = match self.tunnels.get(place) {
                Some(mac) => json!({ "VNI": 1, "VtepMAC": mac }).to_string(),
                None => "null".to_owned(),
            };
            note(public, address.to_string());
            note(backend, facts);
        }
        annotations
    }

    /// Forgets all connections, so that the next probe is a new one in any case.
    pub fn flush_connections(&self) -> Result<()> {
        self.namespace.run(Command::new("conntrack").arg("-F"))?;
        Ok(())
    }

    /// What `nft list ruleset` prints here.
    pub fn ruleset(&self) -> Result<String> {
        self.namespace
            .run(Command::new("nft").args(["list", "ruleset"]))
    }

    fn set_sysctls(&self, config: &LabConfig) -> Result<()> {
        let set = |key: &str, value: &str| self.namespace.set_sysctl(key, value);
        set("net/ipv4/ip_forward", "1")?;
        // Loose, as systemd sets it: Flannel nodes are seldom strict.
        set("net/ipv4/conf/all/rp_filter", "2")?;
        set("net/ipv4/conf/default/rp_filter", "2")?;
        if config.ipv6 {
            set("net/ipv6/conf/all/forwarding", "1")?;
            // Duplicate address detection would hold cni0's address back for a second.
            set("net/ipv6/conf/all/accept_dad", "0")?;
            set("net/ipv6/conf/default/accept_dad", "0")?;
        }
        let value = if config.bridge_netfilter { "1" } else { "0" };
        for key in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"] {
            let key = format!("net/bridge/{key}");
            // The file is there when the module is.
            if self.namespace.sysctl(&key).is_ok() {
                set(&key, value)?;
            }
        }
        Ok(())
    }

    /// A cable from the fabric's bridge to eth0.
    fn connect(&self, fabric: &Namespace) -> Result<()> {
        let name = &self.name;
        fabric.ip_batch(&format!(
            "link add {name} type veth peer name eth0 netns {}\nlink set {name} master br-lab up\n",
            self.namespace.name()
        ))?;
        let mut lines = String::new();
        for address in &self.addresses {
            let length = if address.is_ipv4() { "24" } else { "64 nodad" };
            let _ = writeln!(lines, "address add {address}/{length} dev eth0");
        }
        lines.push_str("link set eth0 up\n");
        self.namespace.ip_batch(&lines)
    }

    fn add_tunnels(&mut self) -> Result<()> {
        for (address, cidr) in self.addresses.iter().zip(&self.pod_cidrs) {
            let (name, mtu, more, length) = tunnel(*address);
            // The same words as Flannel's backend uses; the tunnel has the first address of the pod CIDR.
            self.namespace.ip_batch(&format!(
                "link add {name} mtu {mtu} type vxlan id 1 local {address} dev eth0 dstport 8472 nolearning{more}\n\
                 address add {}/{length} dev {name}\n\
                 link set {name} up\n",
                cidr.network()
            ))?;
            self.tunnels.push(hardware_address(&self.namespace, name)?);
        }
        Ok(())
    }

    /// What flanneld does when it hears of another node.
    fn learn(&self, other: &Self) -> Result<()> {
        let mut lines = String::new();
        for (place, (address, cidr)) in other.addresses.iter().zip(&other.pod_cidrs).enumerate() {
            let Some(mac) = other.tunnels.get(place) else {
                let _ = writeln!(lines, "route replace {cidr} via {address} dev eth0");
                continue;
            };
            let name = tunnel(*address).0;
            let via = cidr.network();
            let _ = writeln!(
                lines,
                "neighbour replace {via} dev {name} lladdr {mac} nud permanent"
            );
            let _ = writeln!(lines, "route replace {cidr} via {via} dev {name} onlink");
            let mut entry = Command::new("bridge");
            entry.args([
                "fdb",
                "append",
                mac,
                "dev",
                name,
                "dst",
                &address.to_string(),
            ]);
            self.namespace.run(entry.args(["self", "permanent"]))?;
        }
        self.namespace.ip_batch(&lines)
    }
}

/// Does what flanneld would: tunnels, and every node hears of every other.
pub(super) fn join(nodes: &mut [Node], config: &LabConfig) -> Result<()> {
    if config.backend == Backend::Vxlan {
        for node in &mut *nodes {
            node.add_tunnels()?;
        }
    }
    let nodes = &*nodes;
    for node in nodes {
        for other in nodes.iter().filter(|other| other.index != node.index) {
            node.learn(other).with_context(|| {
                format!(
                    "joining {} to {} ({:?})",
                    node.name, other.name, config.backend
                )
            })?;
        }
    }
    Ok(())
}

/// Name, MTU, more options and prefix length of the tunnel of an address' family.
fn tunnel(address: IpAddr) -> (&'static str, u16, &'static str, u8) {
    match address {
        IpAddr::V4(_) => ("flannel.1", FABRIC_MTU - 50, "", 32),
        IpAddr::V6(_) => ("flannel-v6.1", FABRIC_MTU - 70, " udp6zerocsumrx", 128),
    }
}

fn hardware_address(namespace: &Namespace, interface: &str) -> Result<String> {
    let text =
        namespace.run(Command::new("ip").args(["-json", "link", "show", "dev", interface]))?;
    let links: Value = serde_json::from_str(&text)?;
    links[0]["address"]
        .as_str()
        .map(str::to_owned)
        .with_context(|| format!("no hardware address of {interface}"))
}
