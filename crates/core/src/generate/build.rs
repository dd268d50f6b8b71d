//! From the description of a world to the objects of the model.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use smol_str::{SmolStr, format_smolstr};

use super::{
    AddressSpec, BlockSpec, EndpointSpec, Families, LabelSpec, NamespaceMatchSpec, NodeSpec,
    PeerSpec, PolicySpec, PortSpec, RuleSpec, SelectorSpec, Sort, TierSpec, World,
};
use crate::model::{
    Action, Cluster, ContainerPort, Endpoint, EndpointId, EndpointKind, InterfaceName, Labels,
    Lifecycle, MacAddress, Namespace, NamespaceMatch, Node, Object, ObservedInterface, Peer, Peers,
    Policy, PolicyId, PolicyKind, PortMatch, Ports, Protocol, Requirement, Rule, Selector, Subject,
    Tier, Update,
};

/// Name of the node whose interfaces a [`World`] reports.
pub const LOCAL_NODE: &str = "node-0";

/// The label of a namespace that holds its name.
pub(super) const NAME_LABEL: &str = "kubernetes.io/metadata.name";
const KEYS: [&str; 3] = ["app", "role", "zone"];
const VALUES: [&str; 3] = ["a", "b", "c"];
const PORT_NAMES: [&str; 4] = ["http", "dns", "metrics", "unserved"];
/// Ascending; neighbours and both ends of the range are among them.
pub(super) const PORT_NUMBERS: [u16; 10] = [1, 53, 79, 80, 81, 443, 8080, 8081, 9090, 65535];
const LENGTHS_V4: [u8; 11] = [32, 31, 30, 29, 28, 25, 24, 16, 8, 1, 0];
const LENGTHS_V6: [u8; 11] = [128, 127, 126, 125, 124, 120, 64, 48, 8, 1, 0];
/// The site of the nodes' own addresses, and of endpoints outside every pod CIDR.
const SITE_NODES: u8 = 3;
const SITE_WORKLOADS: u8 = 5;

impl World {
    /// The objects of the world.
    pub fn cluster(&self) -> Cluster {
        let mut cluster = Cluster::default();
        for update in self.updates() {
            cluster.apply(update);
        }
        cluster
    }

    /// One insertion for each object of the world. For each live workload of [`LOCAL_NODE`] with addresses there
    /// is an interface on bridge `cni0` that has them.
    pub fn updates(&self) -> Vec<Update> {
        let known = self
            .namespaces
            .iter()
            .enumerate()
            .filter(|(_, spec)| spec.is_known);
        let namespaces =
            known.map(|(index, spec)| Object::Namespace(namespace(index, spec.labels)));
        let nodes = self
            .nodes
            .iter()
            .zip(0u8..)
            .map(|(spec, index)| Object::Node(node(index, spec)));
        let endpoints: Vec<Endpoint> = (0..self.endpoints.len())
            .map(|index| self.endpoint(index))
            .collect();
        let interfaces: Vec<Object> = endpoints
            .iter()
            .zip(0u8..)
            .filter(|(endpoint, _)| is_plugged(endpoint))
            .map(|(endpoint, index)| Object::Interface(interface(endpoint, index)))
            .collect();
        let policies = self.policies.iter().enumerate().map(|(index, spec)| {
            Object::Policy(policy(index, spec, &self.namespace(spec.namespace)))
        });
        let objects = namespaces
            .chain(nodes)
            .chain(endpoints.into_iter().map(Object::Endpoint));
        objects
            .chain(interfaces)
            .chain(policies)
            .map(Update::Upsert)
            .collect()
    }

    /// Name of the namespace with this number, one of those that the world describes; a world that was shrunk may
    /// have none left.
    fn namespace(&self, number: u8) -> SmolStr {
        format_smolstr!("ns-{}", usize::from(number) % self.namespaces.len().max(1))
    }

    fn endpoint(&self, index: usize) -> Endpoint {
        let spec = &self.endpoints[index];
        let kind = match spec.sort {
            Sort::Workload => EndpointKind::WorkloadEndpoint,
            Sort::Pod | Sort::HostNetwork | Sort::Finished => EndpointKind::Pod,
        };
        // A workload endpoint may have the name of a pod; the two are not one endpoint.
        let shares_name = spec.sort == Sort::Workload
            && index
                .checked_sub(1)
                .is_some_and(|before| self.endpoints[before].sort != Sort::Workload);
        let name = format_smolstr!("e{}", if shares_name { index - 1 } else { index });
        let node = spec.node.map(|node| format_smolstr!("node-{node}"));
        let has_interface = spec.sort == Sort::Workload && spec.node == Some(0);
        let number = u8::try_from(index).expect("a world has few endpoints");
        Endpoint {
            id: EndpointId {
                kind,
                namespace: self.namespace(spec.namespace),
                name,
            },
            labels: labels(spec.labels),
            node,
            addresses: endpoint_addresses(spec),
            ports: spec
                .ports
                .iter()
                .map(|port| ContainerPort {
                    name: port.name.map(port_name),
                    protocol: Protocol::ALL[usize::from(port.protocol)],
                    number: PORT_NUMBERS[usize::from(port.number)],
                })
                .collect(),
            uid: None,
            host_network: spec.sort == Sort::HostNetwork,
            lifecycle: if spec.sort == Sort::Finished {
                Lifecycle::Finished
            } else {
                Lifecycle::Live
            },
            interface: has_interface.then(|| interface_name(number)),
            mac: has_interface.then(|| mac(number)),
        }
    }
}

/// The updates that lead from one state to another: removals first, then insertions and changes.
pub fn difference(old: &Cluster, new: &Cluster) -> Vec<Update> {
    let (old, new) = (objects(old), objects(new));
    let gone = old
        .iter()
        .map(Object::key)
        .filter(|key| !new.iter().any(|object| object.key() == *key));
    let changed = new.iter().filter(|object| !old.contains(object)).cloned();
    gone.map(Update::Remove)
        .chain(changed.map(Update::Upsert))
        .collect()
}

fn objects(cluster: &Cluster) -> Vec<Object> {
    let namespaces = cluster.namespaces.values().cloned().map(Object::Namespace);
    let nodes = cluster.nodes.values().cloned().map(Object::Node);
    let endpoints = cluster.endpoints.values().cloned().map(Object::Endpoint);
    let interfaces = cluster.interfaces.values().cloned().map(Object::Interface);
    let policies = cluster.policies.values().cloned().map(Object::Policy);
    namespaces
        .chain(nodes)
        .chain(endpoints)
        .chain(interfaces)
        .chain(policies)
        .collect()
}

fn is_plugged(endpoint: &Endpoint) -> bool {
    endpoint.is_workload()
        && endpoint.node.as_deref() == Some(LOCAL_NODE)
        && !endpoint.addresses.is_empty()
}

fn interface_name(number: u8) -> InterfaceName {
    format!("veth{number}")
        .parse()
        .expect("a valid interface name")
}

fn mac(number: u8) -> MacAddress {
    MacAddress([2, 0, 0, 0, 0, number])
}

fn interface(endpoint: &Endpoint, number: u8) -> ObservedInterface {
    ObservedInterface {
        index: 100 + u32::from(number),
        name: interface_name(number),
        bridge: Some("cni0".parse().expect("a valid interface name")),
        mac: Some(mac(number)),
        addresses: endpoint.addresses.clone(),
    }
}

fn labels(spec: LabelSpec) -> Labels {
    let pairs = KEYS.iter().zip(spec);
    pairs
        .filter_map(|(key, value)| Some((*key, VALUES[usize::from(value?)])))
        .collect()
}

fn namespace(index: usize, spec: LabelSpec) -> Namespace {
    let name = format_smolstr!("ns-{index}");
    let own = [(SmolStr::new_static(NAME_LABEL), name.clone())];
    let labels = labels(spec).iter().cloned().chain(own).collect();
    Namespace { name, labels }
}

fn node(index: u8, spec: &NodeSpec) -> Node {
    let at = |is_v6, site, host| AddressSpec { is_v6, site, host }.address();
    let own = [
        at(false, SITE_NODES, 10 + index),
        at(true, SITE_NODES, 10 + index),
    ];
    let listed = spec.listed.iter().map(|place| place.address());
    let mut pod_cidrs = vec![
        network(at(false, index, 0), 24),
        network(at(true, index, 0), 64),
    ];
    pod_cidrs.extend(spec.odd_cidr.map(BlockSpec::network));
    Node {
        name: format_smolstr!("node-{index}"),
        labels: labels(spec.labels),
        addresses: own.into_iter().chain(listed).collect(),
        observed: spec.observed.iter().map(|place| place.address()).collect(),
        tunnel_cidrs: if spec.has_bridge_addresses {
            pod_cidrs.clone()
        } else {
            Vec::new()
        },
        pod_cidrs,
    }
}

fn endpoint_addresses(spec: &EndpointSpec) -> Vec<IpAddr> {
    let node = spec.node.unwrap_or(0);
    let (site, host) = match spec.sort {
        Sort::HostNetwork => (SITE_NODES, 10 + node),
        Sort::Pod | Sort::Workload | Sort::Finished if spec.is_outside => {
            (SITE_WORKLOADS, spec.host)
        }
        Sort::Pod | Sort::Workload | Sort::Finished => {
            // Few addresses on other nodes, so that some are shared there.
            (
                node.min(2),
                if node == 0 {
                    spec.host
                } else {
                    2 + spec.host % 7
                },
            )
        }
    };
    let at = |is_v6, host| AddressSpec { is_v6, site, host }.address();
    match spec.families {
        Families::None => Vec::new(),
        Families::V4 => vec![at(false, host)],
        Families::V6 => vec![at(true, host)],
        Families::Dual => vec![at(false, host), at(true, host)],
        Families::Many => vec![at(false, host), at(false, host + 64), at(true, host)],
    }
}

impl AddressSpec {
    pub(super) fn address(self) -> IpAddr {
        let Self { is_v6, site, host } = self;
        if is_v6 {
            let [a, b, c, d] = match site {
                0..SITE_NODES => [0xfd00, 0x10, 0x244, u16::from(site)],
                SITE_NODES => [0xfd00, 0x192, 0x168, 0],
                SITE_WORKLOADS => [0xfd00, 0x172, 0x16, 0],
                _ => [0x2001, 0xdb8, 1, 0],
            };
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, u16::from(host)).into()
        } else {
            let [a, b, c] = match site {
                0..SITE_NODES => [10, 244, site],
                SITE_NODES => [192, 168, 0],
                SITE_WORKLOADS => [172, 16, 0],
                _ => [203, 0, 113],
            };
            Ipv4Addr::new(a, b, c, host).into()
        }
    }
}

fn network(address: IpAddr, length: u8) -> IpNet {
    IpNet::new(address, length)
        .expect("a length of this family")
        .trunc()
}

impl BlockSpec {
    fn network(self) -> IpNet {
        let lengths = if self.around.is_v6 {
            LENGTHS_V6
        } else {
            LENGTHS_V4
        };
        network(self.around.address(), lengths[usize::from(self.length)])
    }

    /// A hole in `block`: this block if it lies inside, else one of its length around the block's first address.
    fn hole_in(self, block: IpNet) -> IpNet {
        let own = self.network();
        if block.contains(&own) {
            return own;
        }
        let limit = block.max_prefix_len();
        let longer = own.prefix_len().max(block.prefix_len() + 1).min(limit);
        network(block.network(), longer)
    }
}

fn port_name(index: u8) -> SmolStr {
    SmolStr::new_static(PORT_NAMES[usize::from(index)])
}

fn selector(spec: &SelectorSpec) -> Selector {
    let requirement = |&(key, operator, bits): &(u8, u8, u8)| {
        let key = SmolStr::new_static(KEYS[usize::from(key)]);
        let chosen = VALUES
            .iter()
            .enumerate()
            .filter(|(bit, _)| bits & (1 << bit) != 0);
        let values = chosen
            .map(|(_, value)| SmolStr::new_static(value))
            .collect();
        match operator {
            0 | 1 => Requirement::In(key, values),
            2 => Requirement::NotIn(key, values),
            3 => Requirement::Exists(key),
            _ => Requirement::DoesNotExist(key),
        }
    };
    Selector::new(spec.iter().map(requirement).collect())
}

fn namespace_match(spec: &NamespaceMatchSpec, own: &SmolStr) -> NamespaceMatch {
    match spec {
        NamespaceMatchSpec::Own => NamespaceMatch::Is(own.clone()),
        NamespaceMatchSpec::Named(index) => NamespaceMatch::Is(format_smolstr!("ns-{index}")),
        NamespaceMatchSpec::Labelled(index) => {
            let name = vec![format_smolstr!("ns-{index}")];
            let requirement = Requirement::In(SmolStr::new_static(NAME_LABEL), name);
            NamespaceMatch::Matching(Selector::new(vec![requirement]))
        }
        NamespaceMatchSpec::Matching(spec) => NamespaceMatch::Matching(selector(spec)),
    }
}

fn peer(spec: &PeerSpec, own: &SmolStr) -> Peer {
    match spec {
        PeerSpec::Workloads(namespaces, pods) => Peer::Workloads {
            namespaces: namespace_match(namespaces, own),
            pods: selector(pods),
        },
        PeerSpec::Network(block, except) => {
            let cidr = block.network();
            Peer::Network {
                cidr,
                except: except.iter().map(|hole| hole.hole_in(cidr)).collect(),
            }
        }
        PeerSpec::Nodes(labels) => Peer::Nodes(selector(labels)),
    }
}

fn port(spec: &PortSpec) -> PortMatch {
    let protocol = |index: u8| Protocol::ALL[usize::from(index)];
    match *spec {
        PortSpec::Range {
            protocol: index,
            first,
            last,
        } => PortMatch::Range {
            protocol: protocol(index),
            first: PORT_NUMBERS[usize::from(first)],
            last: PORT_NUMBERS[usize::from(last)],
        },
        PortSpec::Whole { protocol: index } => PortMatch::Range {
            protocol: protocol(index),
            first: 0,
            last: u16::MAX,
        },
        PortSpec::Named {
            protocol: index,
            name,
        } => PortMatch::Named {
            protocol: index.map(protocol),
            name: port_name(name),
        },
    }
}

fn rules(specs: &[RuleSpec], tier: TierSpec, own: &SmolStr) -> Vec<Rule> {
    let rule = |(index, spec): (usize, &RuleSpec)| {
        let is_cluster_wide = tier != TierSpec::NetworkPolicy;
        Rule {
            name: is_cluster_wide.then(|| format_smolstr!("r{index}")),
            action: if is_cluster_wide {
                spec.action
            } else {
                Action::Accept
            },
            peers: spec.peers.as_ref().map_or(Peers::Any, |peers| {
                Peers::Of(peers.iter().map(|spec| peer(spec, own)).collect())
            }),
            ports: spec.ports.as_ref().map_or(Ports::Any, |ports| {
                Ports::Of(ports.iter().map(port).collect())
            }),
        }
    };
    specs.iter().enumerate().map(rule).collect()
}

/// `own` is the namespace of a NetworkPolicy, and stands for the own namespace in a ClusterNetworkPolicy.
fn policy(index: usize, spec: &PolicySpec, own: &SmolStr) -> Policy {
    let (tier, kind) = match spec.tier {
        TierSpec::Admin => (Tier::ADMIN, PolicyKind::ClusterNetworkPolicy),
        TierSpec::NetworkPolicy => (Tier::NETWORK_POLICY, PolicyKind::NetworkPolicy),
        TierSpec::Baseline => (Tier::BASELINE, PolicyKind::ClusterNetworkPolicy),
    };
    let name = format_smolstr!("p{index}");
    let (namespace, order, namespaces) = match kind {
        PolicyKind::NetworkPolicy => (own.clone(), 0, NamespaceMatch::Is(own.clone())),
        PolicyKind::ClusterNetworkPolicy => (
            SmolStr::default(),
            i32::from(spec.order),
            namespace_match(&spec.namespaces, own),
        ),
    };
    let of = |list: &Option<Vec<RuleSpec>>| list.as_ref().map(|list| rules(list, spec.tier, own));
    Policy {
        id: PolicyId {
            kind,
            namespace,
            name,
        },
        tier,
        order,
        subject: Subject {
            namespaces,
            pods: selector(&spec.pods),
        },
        ingress: of(&spec.ingress),
        egress: of(&spec.egress),
        invalid: None,
    }
}
