//! Flows that probe a world, biased to the addresses and ports at which its policies turn.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use smol_str::SmolStr;

use super::build::{LOCAL_NODE, PORT_NUMBERS};
use super::random::Random;
use super::{AddressSpec, DirectionText, World};
use crate::evaluate::Flow;
use crate::model::{
    Cluster, Direction, Endpoint, NamespaceMatch, Node, Peer, Peers, Policy, PortMatch, Ports,
    Protocol,
};

/// The first packet of a connection, at one of its two sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Probe {
    /// Direction as seen from the endpoint.
    #[serde(with = "DirectionText")]
    pub direction: Direction,
    /// Address of the side that is judged.
    pub endpoint: IpAddr,
    /// Address of the other side.
    pub peer: IpAddr,
    /// IANA protocol number.
    pub protocol: u8,
    /// Destination port; 0 for protocols without ports.
    pub port: u16,
}

impl Probe {
    /// The connection.
    pub fn flow(&self) -> Flow {
        let (source, destination) = match self.direction {
            Direction::Ingress => (self.peer, self.endpoint),
            Direction::Egress => (self.endpoint, self.peer),
        };
        let has_ports = Protocol::from_number(self.protocol).is_some();
        Flow {
            source,
            destination,
            protocol: self.protocol,
            port: has_ports.then_some(self.port),
        }
    }
}

impl World {
    /// As [`flows`], of the whole world.
    pub fn flows(&self, seed: u64, count: usize) -> Vec<Probe> {
        flows(&self.cluster(), seed, count)
    }
}

/// `count` probes at endpoints of [`LOCAL_NODE`], and now and then at an address of its pod CIDRs that nobody owns.
/// Both sides are of one family. No probe without an endpoint.
pub fn flows(cluster: &Cluster, seed: u64, count: usize) -> Vec<Probe> {
    let points = Points::of(cluster);
    let mut random = Random::new(seed);
    (0..count)
        .filter_map(|_| points.probe(&mut random))
        .collect()
}

/// A port of a protocol, by IANA number.
type ProtocolPort = (u8, u16);

/// The interesting values of a world.
#[derive(Default)]
struct Points {
    endpoints: Vec<IpAddr>,
    /// Addresses of endpoints of any sort, and what they declare.
    workloads: Vec<IpAddr>,
    declared: BTreeMap<IpAddr, Vec<(Option<SmolStr>, ProtocolPort)>>,
    nodes: Vec<IpAddr>,
    /// Addresses of several workloads, and of those whose namespace is unknown.
    odd: Vec<IpAddr>,
    rules: Vec<RulePoints>,
    /// Which of these apply at an address.
    applying: BTreeMap<(IpAddr, Direction), Vec<usize>>,
}

/// Where one rule turns.
struct RulePoints {
    peers: Vec<IpAddr>,
    ports: Vec<ProtocolPort>,
    names: Vec<SmolStr>,
}

impl Points {
    fn of(cluster: &Cluster) -> Self {
        let nodes = cluster.nodes.values().flat_map(Node::claimed).collect();
        let mut points = Self {
            nodes,
            ..Self::default()
        };
        for endpoint in cluster.endpoints.values() {
            points.add_endpoint(cluster, endpoint);
        }
        for policy in cluster.policies.values() {
            points.add_policy(cluster, policy);
        }
        points
    }

    fn add_endpoint(&mut self, cluster: &Cluster, endpoint: &Endpoint) {
        let has_namespace = cluster.namespaces.contains_key(&endpoint.id.namespace);
        for address in &endpoint.addresses {
            if !has_namespace || self.workloads.contains(address) {
                self.odd.push(*address);
            }
            self.workloads.push(*address);
            if is_local(endpoint) {
                self.endpoints.push(*address);
            }
            let ports = endpoint
                .ports
                .iter()
                .map(|port| (port.name.clone(), (port.protocol.number(), port.number)));
            self.declared.entry(*address).or_default().extend(ports);
        }
    }

    fn add_policy(&mut self, cluster: &Cluster, policy: &Policy) {
        let subjects = cluster
            .endpoints
            .values()
            .filter(|endpoint| is_local(endpoint) && is_subject(cluster, policy, endpoint));
        let addresses: Vec<IpAddr> = subjects
            .flat_map(|subject| subject.addresses.clone())
            .collect();
        for direction in Direction::BOTH {
            for rule in policy.rules(direction).unwrap_or(&[]) {
                for address in &addresses {
                    self.applying
                        .entry((*address, direction))
                        .or_default()
                        .push(self.rules.len());
                }
                self.rules.push(RulePoints {
                    peers: self.turns_of_peers(cluster, &rule.peers),
                    ports: edges_of_ranges(&rule.ports),
                    names: names(&rule.ports),
                });
            }
        }
    }

    fn probe(&self, random: &mut Random) -> Option<Probe> {
        let direction = Direction::BOTH[random.below(2)];
        let endpoint = match random.below(100) {
            0 => AddressSpec {
                is_v6: false,
                site: 0,
                host: 200,
            }
            .address(),
            1 => AddressSpec {
                is_v6: true,
                site: 0,
                host: 200,
            }
            .address(),
            2..12 => random.pick(&self.endpoints)?,
            _ => {
                let judged = self
                    .applying
                    .keys()
                    .filter(|(_, applying)| *applying == direction);
                let judged: Vec<IpAddr> = judged.map(|(address, _)| *address).collect();
                random
                    .pick(&judged)
                    .or_else(|| random.pick(&self.endpoints))?
            }
        };
        let applying = self
            .applying
            .get(&(endpoint, direction))
            .map_or(&[] as &[usize], Vec::as_slice);
        // Rules with named ports come twice as often: a named port rarely meets a peer that serves it.
        let mut pick = || random.pick(applying).map(|index| &self.rules[index]);
        let rule = pick().filter(|rule| !rule.names.is_empty()).or_else(pick);
        let peer = self.peer(direction, endpoint, rule, random);
        let destination = match direction {
            Direction::Ingress => endpoint,
            Direction::Egress => peer,
        };
        let (protocol, port) = self.port(destination, rule, random);
        Some(Probe {
            direction,
            endpoint,
            peer,
            protocol,
            port,
        })
    }

    /// An address of the endpoint's family.
    fn peer(
        &self,
        direction: Direction,
        endpoint: IpAddr,
        rule: Option<&RulePoints>,
        random: &mut Random,
    ) -> IpAddr {
        let is_v6 = endpoint.is_ipv6();
        let named = rule.filter(|rule| direction == Direction::Egress && !rule.names.is_empty());
        let pool: Vec<IpAddr> = match (random.below(10), named) {
            (turn @ 0..6, Some(rule)) => {
                let preferred = if turn < 3 { &rule.peers } else { &self.odd };
                let serving = self.serving(&rule.names);
                let serving = serving.filter(|address| address.is_ipv6() == is_v6);
                let (preferred, other): (Vec<_>, Vec<_>) =
                    serving.partition(|address| preferred.contains(address));
                if preferred.is_empty() {
                    other
                } else {
                    preferred
                }
            }
            (0 | 1, None) => self.workloads.clone(),
            (2..5, None) => self.odd.clone(),
            (5, _) => self.nodes.clone(),
            (6..9, _) => rule.map_or_else(Vec::new, |rule| rule.peers.clone()),
            _ => Vec::new(),
        };
        let of_family: Vec<IpAddr> = pool
            .into_iter()
            .filter(|peer| peer.is_ipv6() == is_v6)
            .collect();
        random.pick(&of_family).unwrap_or_else(|| {
            let site = [0, 1, 2, 3, 4, 5][random.below(6)];
            AddressSpec {
                is_v6,
                site,
                host: 3,
            }
            .address()
        })
    }

    /// The addresses whose owners declare a port of one of these names.
    fn serving(&self, names: &[SmolStr]) -> impl Iterator<Item = IpAddr> {
        let serves = |(name, _): &(Option<SmolStr>, ProtocolPort)| {
            name.as_ref().is_some_and(|name| names.contains(name))
        };
        let serving = self
            .declared
            .iter()
            .filter(move |(_, ports)| ports.iter().any(serves));
        serving.map(|(address, _)| *address)
    }

    fn port(
        &self,
        destination: IpAddr,
        rule: Option<&RulePoints>,
        random: &mut Random,
    ) -> ProtocolPort {
        let declared = self
            .declared
            .get(&destination)
            .map_or(&[] as &[_], Vec::as_slice)
            .iter();
        let pool: Vec<ProtocolPort> = match random.below(20) {
            0 => return (if destination.is_ipv4() { 1 } else { 58 }, 0),
            1 => return (47, 0),
            2..5 => declared.map(|(_, port)| *port).collect(),
            5..12 => {
                let names = rule.map_or(&[] as &[SmolStr], |rule| &rule.names);
                let is_asked =
                    |name: &Option<SmolStr>| name.as_ref().is_some_and(|name| names.contains(name));
                declared
                    .filter(|(name, _)| is_asked(name))
                    .map(|(_, port)| *port)
                    .collect()
            }
            12..18 => rule.map_or_else(Vec::new, |rule| rule.ports.clone()),
            _ => Vec::new(),
        };
        random.pick(&pool).unwrap_or_else(|| {
            let protocol = Protocol::ALL[random.below(3)].number();
            (protocol, PORT_NUMBERS[random.below(PORT_NUMBERS.len())])
        })
    }

    /// The first and last addresses of blocks and of the holes in them, their neighbours, and the endpoints in
    /// the blocks; what selected nodes claim.
    fn turns_of_peers(&self, cluster: &Cluster, peers: &Peers) -> Vec<IpAddr> {
        let mut addresses = Vec::new();
        let Peers::Of(peers) = peers else {
            return addresses;
        };
        for peer in peers {
            let (cidr, except) = match peer {
                Peer::Network { cidr, except } => (cidr, except),
                Peer::Nodes(selector) => {
                    let nodes = cluster.nodes.values();
                    let selected = nodes.filter(|node| selector.matches(&node.labels));
                    for node in selected {
                        addresses.extend(node.claimed());
                        // Claims that are hardly believed come more often: few nodes make such.
                        let others: Vec<&IpNet> = cluster
                            .nodes
                            .values()
                            .filter(|other| other.name != node.name)
                            .flat_map(|other| &other.pod_cidrs)
                            .collect();
                        let is_odd =
                            |address: &IpAddr| others.iter().any(|cidr| cidr.contains(address));
                        for odd in node.claimed().filter(is_odd) {
                            addresses.extend([odd; 24]);
                        }
                    }
                    continue;
                }
                Peer::Workloads { .. } => continue,
            };
            for block in except.iter().chain([cidr]) {
                let (first, last) = (block.network(), block.broadcast());
                addresses.extend([first, last, step(first, false), step(last, true)]);
            }
            addresses.extend(
                self.workloads
                    .iter()
                    .filter(|address| cidr.contains(*address)),
            );
        }
        addresses
    }
}

fn is_local(endpoint: &Endpoint) -> bool {
    endpoint.is_workload() && endpoint.node.as_deref() == Some(LOCAL_NODE)
}

fn is_subject(cluster: &Cluster, policy: &Policy, endpoint: &Endpoint) -> bool {
    let namespace = cluster.namespaces.get(&endpoint.id.namespace);
    let is_in_namespace = namespace.is_some_and(|namespace| match &policy.subject.namespaces {
        NamespaceMatch::Is(name) => *name == namespace.name,
        NamespaceMatch::Matching(selector) => selector.matches(&namespace.labels),
    });
    is_in_namespace && policy.subject.pods.matches(&endpoint.labels)
}

/// The ends of ranges, their neighbours, and something between.
fn edges_of_ranges(ports: &Ports) -> Vec<ProtocolPort> {
    let mut numbers = Vec::new();
    let Ports::Of(ports) = ports else {
        return numbers;
    };
    for port in ports {
        if let PortMatch::Range {
            protocol,
            first,
            last,
        } = port
        {
            let middle = first.midpoint(*last);
            let edges = [
                *first,
                *last,
                middle,
                first.saturating_sub(1),
                last.saturating_add(1),
            ];
            numbers.extend(edges.map(|number| (protocol.number(), number)));
        }
    }
    numbers
}

fn names(ports: &Ports) -> Vec<SmolStr> {
    let Ports::Of(ports) = ports else {
        return Vec::new();
    };
    let named = ports.iter().filter_map(|port| match port {
        PortMatch::Named { name, .. } => Some(name.clone()),
        PortMatch::Range { .. } => None,
    });
    named.collect()
}

/// The next address, or the one before; the ends stay.
fn step(address: IpAddr, forward: bool) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let bits = address.to_bits();
            Ipv4Addr::from_bits(if forward {
                bits.saturating_add(1)
            } else {
                bits.saturating_sub(1)
            })
            .into()
        }
        IpAddr::V6(address) => {
            let bits = address.to_bits();
            Ipv6Addr::from_bits(if forward {
                bits.saturating_add(1)
            } else {
                bits.saturating_sub(1)
            })
            .into()
        }
    }
}
