//! Puts together what the sources say: this node, the others, and what does not fit.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use smol_str::SmolStr;
use towpath_core::model::MacAddress;

use crate::backend::{Backend, BackendType};
use crate::family::Networks;
use crate::finding::Finding;
use crate::net_conf::NetConf;
use crate::node::{NodeFacts, NodeKey, Vtep};
use crate::subnet_env::SubnetEnv;

/// What was read. Each part may be absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inputs {
    /// Name of this node, as its Node object has it.
    pub own_node: SmolStr,
    /// Whether Flannel is expected to have written `subnet.env` here.
    pub expects_subnet_env: bool,
    /// Every node that anybody tells of: Node objects, leases in etcd, or both.
    pub nodes: Vec<NodeFacts>,
    /// This node's `subnet.env`.
    pub subnet_env: Option<SubnetEnv>,
    /// Flannel's configuration.
    pub net_conf: Option<NetConf>,
    /// This host's interfaces; none where nobody looked.
    pub links: Option<Vec<Link>>,
    /// This host's routes by devices of Flannel.
    pub routes: Vec<(IpNet, SmolStr)>,
    /// The bridge that pods of this node are plugged into, whether or not it is there yet.
    pub bridge: Option<SmolStr>,
}

/// An interface of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: SmolStr,
    /// Largest packet in bytes.
    pub mtu: u32,
    /// Its hardware address.
    pub mac: Option<MacAddress>,
    /// Its addresses, without link-local ones.
    pub addresses: Vec<IpAddr>,
    /// UDP port of the tunnel that it is, where the kernel tells one.
    pub udp_port: Option<u16>,
}

/// What Flannel set up, as far as it can be told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlannelFacts {
    /// How packets go from node to node.
    pub backend: Option<BackendType>,
    /// The same with its options, where the configuration is known.
    pub options: Option<Backend>,
    /// Networks of all pods of the cluster.
    pub networks: Vec<IpNet>,
    /// Networks of this node's pods.
    pub pod_networks: Networks,
    /// Largest packet of this node's pods.
    pub mtu: Option<u32>,
    /// UDP ports at which the tunnels of nodes listen, see [`FlannelFacts::merge`].
    pub overlay_ports: BTreeSet<u16>,
    /// Whether Flannel masquerades what leaves the pods' networks.
    pub masquerades: Option<bool>,
    /// Whether Flannel's rules are in nftables.
    pub uses_nftables: Option<bool>,
    /// How this node is called, if anybody tells of it.
    pub own: Option<NodeKey>,
    /// Every node, this one included.
    pub nodes: BTreeMap<NodeKey, NodeFacts>,
    /// What does not fit.
    pub findings: Vec<Finding>,
    /// Whether pods are plugged into a bridge.
    has_bridge: bool,
}

impl FlannelFacts {
    /// Puts the inputs together. Where they disagree about this node, the Node object or the lease wins over `subnet.env`,
    /// which flanneld writes from them. What a node says of its backend wins over its devices, and these over the
    /// configuration, which may be newer than the program. The ports of the overlay are those of the devices; where these tell
    /// none, those of the configuration if that is of the same backend, else the backend's usual ones.
    pub fn merge(inputs: &Inputs) -> Self {
        let nodes = joined(&inputs.nodes);
        let own = own_key(inputs, &nodes);
        let own_facts = own.as_ref().and_then(|key| nodes.get(key));
        let env = inputs.subnet_env.as_ref();
        let conf = inputs.net_conf.as_ref();
        let mut networks: Vec<IpNet> = conf
            .map(|conf| conf.networks.iter().collect())
            .unwrap_or_default();
        networks.extend(env.iter().flat_map(|env| env.networks.iter().copied()));
        networks.sort_unstable();
        networks.dedup();
        let told = own_facts
            .map(|facts| facts.pod_networks)
            .unwrap_or_default();
        let links = inputs.links.as_deref().unwrap_or_default();
        let backend = own_facts
            .and_then(|facts| facts.backend.clone())
            .or_else(|| {
                links
                    .iter()
                    .find_map(|link| BackendType::of_device(&link.name))
            })
            .or_else(|| conf.map(|conf| conf.backend.kind()));
        let mut merged = Self {
            overlay_ports: overlay_ports(links, conf.map(|conf| &conf.backend), backend.as_ref()),
            backend,
            options: conf.map(|conf| conf.backend.clone()),
            networks,
            pod_networks: told.or(env.map(|env| env.subnets).unwrap_or_default()),
            mtu: env.and_then(|env| env.mtu),
            masquerades: env.and_then(|env| env.masquerades),
            uses_nftables: conf.map(|conf| conf.uses_nftables),
            own,
            nodes,
            findings: Vec::new(),
            has_bridge: inputs.bridge.is_some(),
        };
        merged.findings = Examiner {
            inputs,
            facts: &merged,
        }
        .findings();
        merged
    }

    /// This node.
    pub fn own_node(&self) -> Option<&NodeFacts> {
        self.nodes.get(self.own.as_ref()?)
    }

    /// The other nodes.
    pub fn remote_nodes(&self) -> impl Iterator<Item = &NodeFacts> {
        self.nodes
            .values()
            .filter(|node| Some(&node.key) != self.own.as_ref())
    }

    /// The networks of pods of any node.
    fn all_pod_networks(&self) -> impl Iterator<Item = IpNet> {
        let nodes = self
            .nodes
            .values()
            .flat_map(|node| node.pod_networks.iter());
        nodes.chain(self.pod_networks.iter())
    }

    /// Addresses that stand for other nodes' hosts, not for pods; see [`NodeFacts::host_identities`]. What anybody tells of
    /// a node that lies in a pod network is not believed, for it would take a pod for a host.
    ///
    /// This node's own are the addresses really on its interfaces, which the kernel tells.
    pub fn host_identities(&self) -> BTreeMap<&NodeKey, BTreeSet<IpAddr>> {
        let networks = Lookup::new(self.all_pod_networks());
        let disputed = self.disputed();
        let mut identities = BTreeMap::new();
        for node in self.remote_nodes() {
            let mut addresses = node.host_identities(self.has_bridge);
            for told in told(node) {
                if networks.holds(told) {
                    addresses.remove(&told);
                }
            }
            let is_disputed = |network: IpNet| disputed.contains(&network);
            if node.pod_networks.iter().any(is_disputed) {
                // Its first addresses may be pods of the other node.
                addresses.retain(|address| !networks.holds(*address));
            } else {
                // Hosts by their place, whatever was told.
                addresses.extend(node.bridge_identities(self.has_bridge));
            }
            identities.insert(&node.key, addresses);
        }
        identities
    }

    /// Pod networks that overlap another node's.
    fn disputed(&self) -> BTreeSet<IpNet> {
        let mut disputed = BTreeSet::new();
        for finding in &self.findings {
            if let Finding::SubnetsOverlap { first, second } = finding {
                disputed.extend([first.1, second.1]);
            }
        }
        disputed
    }

    /// The public addresses of all nodes: tunnel packets come from these and no others.
    pub fn public_addresses(&self) -> BTreeSet<IpAddr> {
        self.nodes
            .values()
            .flat_map(|node| node.public.iter())
            .collect()
    }
}

/// UDP ports of the tunnels.
fn overlay_ports(
    links: &[Link],
    options: Option<&Backend>,
    backend: Option<&BackendType>,
) -> BTreeSet<u16> {
    let devices = links
        .iter()
        .filter(|link| BackendType::of_device(&link.name).is_some());
    let shown: BTreeSet<u16> = devices.filter_map(|link| link.udp_port).collect();
    if !shown.is_empty() {
        return shown;
    }
    let Some(backend) = backend else {
        return BTreeSet::new();
    };
    match options.filter(|options| options.kind() == *backend) {
        Some(options) => [false, true]
            .into_iter()
            .filter_map(|is_ipv6| options.tunnel_port(is_ipv6))
            .collect(),
        None => backend.usual_ports().iter().copied().collect(),
    }
}

/// What anybody tells as addresses of a node.
fn told(node: &NodeFacts) -> impl Iterator<Item = IpAddr> {
    node.addresses.iter().copied().chain(node.public.iter())
}

/// Many networks, asked which of them hold an address: one look-up for each length that occurs.
struct Lookup {
    networks: BTreeSet<IpNet>,
    lengths: BTreeSet<u8>,
}

impl Lookup {
    fn new(networks: impl Iterator<Item = IpNet>) -> Self {
        let networks: BTreeSet<IpNet> = networks.map(|network| network.trunc()).collect();
        let lengths = networks.iter().map(IpNet::prefix_len).collect();
        Self { networks, lengths }
    }

    fn holds(&self, address: IpAddr) -> bool {
        self.lengths.iter().any(|length| {
            IpNet::new(address, *length)
                .is_ok_and(|network| self.networks.contains(&network.trunc()))
        })
    }

    /// Whether a network lies within one of these.
    fn covers(&self, inner: IpNet) -> bool {
        self.lengths
            .iter()
            .filter(|length| **length <= inner.prefix_len())
            .any(|length| {
                IpNet::new(inner.network(), *length)
                    .is_ok_and(|network| self.networks.contains(&network.trunc()))
            })
    }
}

/// Nodes by key; a lease is joined to the Node that has its public address, since both tell of one machine.
fn joined(nodes: &[NodeFacts]) -> BTreeMap<NodeKey, NodeFacts> {
    let mut by_key: BTreeMap<NodeKey, NodeFacts> = BTreeMap::new();
    let mut owners: BTreeMap<IpAddr, Option<NodeKey>> = BTreeMap::new();
    for node in nodes
        .iter()
        .filter(|node| matches!(node.key, NodeKey::Node(_)))
    {
        for address in &node.addresses {
            owners
                .entry(*address)
                .and_modify(|owner| {
                    if owner.as_ref() != Some(&node.key) {
                        *owner = None;
                    }
                })
                .or_insert_with(|| Some(node.key.clone()));
        }
        by_key.insert(node.key.clone(), node.clone());
    }
    for lease in nodes
        .iter()
        .filter(|node| matches!(node.key, NodeKey::Lease(_)))
    {
        let owner = lease
            .public
            .iter()
            .find_map(|address| owners.get(&address)?.clone());
        match owner.and_then(|owner| by_key.get_mut(&owner)) {
            Some(node) if !node.is_managed => {
                // In etcd mode the lease counts; what Kubernetes gives out is not used.
                *node = NodeFacts {
                    key: node.key.clone(),
                    addresses: std::mem::take(&mut node.addresses),
                    ..lease.clone()
                };
            }
            _ => {
                by_key.insert(lease.key.clone(), lease.clone());
            }
        }
    }
    by_key
}

/// This node: by its name, else the lease of the subnet that `subnet.env` names.
fn own_key(inputs: &Inputs, nodes: &BTreeMap<NodeKey, NodeFacts>) -> Option<NodeKey> {
    let named = NodeKey::Node(inputs.own_node.clone());
    if nodes.contains_key(&named) {
        return Some(named);
    }
    let subnets = inputs.subnet_env.as_ref()?.subnets;
    let mut leases = nodes.values().filter(|node| {
        matches!(node.key, NodeKey::Lease(_))
            && subnets
                .iter()
                .any(|subnet| node.pod_networks.iter().any(|other| other == subnet))
    });
    leases.next().map(|node| node.key.clone())
}

/// Looks for what does not fit.
struct Examiner<'a> {
    inputs: &'a Inputs,
    facts: &'a FlannelFacts,
}

impl Examiner<'_> {
    fn findings(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        self.configuration(&mut findings);
        self.own_subnets(&mut findings);
        self.nodes(&mut findings);
        self.overlaps(&mut findings);
        self.shared_addresses(&mut findings);
        if let Some(links) = &self.inputs.links {
            self.devices(links, &mut findings);
            self.bridge(links, &mut findings);
            self.mtu(links, &mut findings);
        }
        self.routes(&mut findings);
        findings
    }

    fn configuration(&self, findings: &mut Vec<Finding>) {
        if self.inputs.subnet_env.is_none() && self.inputs.expects_subnet_env {
            findings.push(Finding::SubnetEnvMissing);
        }
        let Some(conf) = &self.inputs.net_conf else {
            return;
        };
        if !conf.names_backend {
            findings.push(Finding::BackendByDefault);
        }
        let configured = conf.backend.kind();
        if let Some(found) = self.facts.own_node().and_then(|node| node.backend.clone())
            && found != configured
        {
            findings.push(Finding::BackendDiffers { configured, found });
        }
    }

    fn own_subnets(&self, findings: &mut Vec<Finding>) {
        let (Some(env), Some(own)) = (&self.inputs.subnet_env, self.facts.own_node()) else {
            return;
        };
        for file in env.subnets.iter() {
            let same_family = |other: &IpNet| other.addr().is_ipv4() == file.addr().is_ipv4();
            if let Some(node) = own.pod_networks.iter().find(same_family)
                && node != file
            {
                findings.push(Finding::SubnetDiffers { file, node });
            }
        }
    }

    fn nodes(&self, findings: &mut Vec<Finding>) {
        let cluster = Lookup::new(self.facts.networks.iter().copied());
        let pods = Lookup::new(self.facts.all_pod_networks());
        for node in self.facts.nodes.values() {
            if !node.is_managed {
                findings.push(Finding::Unmanaged {
                    node: node.key.clone(),
                });
                continue;
            }
            if node.pod_networks.is_empty() {
                findings.push(Finding::PodNetworkMissing {
                    node: node.key.clone(),
                });
            }
            for subnet in node.pod_networks.iter() {
                let is_judged = self
                    .facts
                    .networks
                    .iter()
                    .any(|network| network.addr().is_ipv4() == subnet.addr().is_ipv4());
                if is_judged && !cluster.covers(subnet) {
                    let node = node.key.clone();
                    findings.push(Finding::SubnetOutside { node, subnet });
                }
            }
            let inside: BTreeSet<IpAddr> =
                told(node).filter(|address| pods.holds(*address)).collect();
            for address in inside {
                let node = node.key.clone();
                findings.push(Finding::AddressOfPods { node, address });
            }
        }
    }

    /// Sorted by first address, a network overlaps its neighbours or nobody.
    fn overlaps(&self, findings: &mut Vec<Finding>) {
        let mut all: Vec<(IpNet, &NodeKey)> = Vec::new();
        for node in self.facts.nodes.values() {
            all.extend(node.pod_networks.iter().map(|network| (network, &node.key)));
        }
        all.sort_by_key(|(network, key)| (network.network(), network.prefix_len(), *key));
        let mut widest: Option<(IpNet, &NodeKey)> = None;
        for (network, key) in all {
            if let Some((wide, other)) = widest
                && wide.contains(&network)
            {
                if other != key {
                    findings.push(Finding::SubnetsOverlap {
                        first: (other.clone(), wide),
                        second: (key.clone(), network),
                    });
                }
                continue;
            }
            widest = Some((network, key));
        }
    }

    fn shared_addresses(&self, findings: &mut Vec<Finding>) {
        let mut seen: BTreeMap<IpAddr, &NodeKey> = BTreeMap::new();
        for node in self.facts.nodes.values().filter(|node| node.is_managed) {
            for address in node.public.iter() {
                if let Some(first) = seen.insert(address, &node.key) {
                    findings.push(Finding::PublicAddressShared {
                        first: first.clone(),
                        second: node.key.clone(),
                        address,
                    });
                }
            }
        }
    }

    fn devices(&self, links: &[Link], findings: &mut Vec<Finding>) {
        let Some(options) = &self.facts.options else {
            return;
        };
        if self.facts.backend.as_ref() != Some(&options.kind()) {
            // The configuration is newer than the program; its devices cannot be told.
            return;
        }
        let networks = self.facts.pod_networks;
        let own = self.facts.own_node();
        let families: [(bool, bool, Option<Vtep>); 2] = [
            (
                networks.ipv4.is_some(),
                false,
                own.and_then(|node| node.vtep),
            ),
            (
                networks.ipv6.is_some(),
                true,
                own.and_then(|node| node.vtep_v6),
            ),
        ];
        for (has_family, is_ipv6, vtep) in families {
            for device in options.devices(has_family && !is_ipv6, has_family && is_ipv6) {
                let Some(link) = links.iter().find(|link| link.name == device) else {
                    findings.push(Finding::DeviceMissing { device });
                    continue;
                };
                if let (Some(vtep), Some(found)) = (vtep, link.mac)
                    && found != vtep.mac
                {
                    let told = vtep.mac;
                    findings.push(Finding::VtepMacDiffers {
                        device,
                        found,
                        told,
                    });
                }
            }
        }
    }

    /// The bridge appears with the first pod, so its absence says nothing.
    fn bridge(&self, links: &[Link], findings: &mut Vec<Finding>) {
        let (Some(name), Some(env)) = (&self.inputs.bridge, &self.inputs.subnet_env) else {
            return;
        };
        let Some(bridge) = links.iter().find(|link| link.name == *name) else {
            return;
        };
        for wanted in env.gateways.iter() {
            let found: Vec<IpAddr> = bridge
                .addresses
                .iter()
                .copied()
                .filter(|address| address.is_ipv4() == wanted.is_ipv4())
                .collect();
            if !found.contains(&wanted) {
                findings.push(Finding::BridgeAddressDiffers {
                    bridge: name.clone(),
                    found,
                    wanted,
                });
            }
        }
    }

    /// Of the devices, only those of one family each are compared: the IPv6 tunnel may have an MTU of its own.
    fn mtu(&self, links: &[Link], findings: &mut Vec<Finding>) {
        let Some(wanted) = self.facts.mtu else {
            return;
        };
        let has_ipv4 = self.facts.pod_networks.ipv4.is_some();
        let mut names: Vec<SmolStr> = self.inputs.bridge.clone().into_iter().collect();
        if let Some(options) = &self.facts.options {
            names.extend(options.devices(has_ipv4, !has_ipv4));
        }
        for link in links.iter().filter(|link| names.contains(&link.name)) {
            if link.mtu != wanted {
                findings.push(Finding::MtuDiffers {
                    interface: link.name.clone(),
                    found: link.mtu,
                    wanted,
                });
            }
        }
    }

    fn routes(&self, findings: &mut Vec<Finding>) {
        if self.facts.nodes.is_empty() {
            // Nobody told of nodes; then no route can be stale.
            return;
        }
        let known: BTreeSet<IpNet> = self.facts.all_pod_networks().collect();
        for (network, device) in &self.inputs.routes {
            let is_of_pods = self
                .facts
                .networks
                .iter()
                .any(|all| all.contains(network) && all != network);
            if is_of_pods && !known.contains(network) {
                findings.push(Finding::StaleRoute {
                    network: *network,
                    device: device.clone(),
                });
            }
        }
    }
}
