//! Flows that probe a world, biased to the addresses and ports at which its policies turn.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::build::{LOCAL_NODE, PORT_NUMBERS};
use super::random::Random;
use super::{AddressSpec, World};
use crate::evaluate::Flow;
use crate::model::{Cluster, Direction, Peer, Peers, PortMatch, Ports};

/// The first packet of a connection, at one of its two sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Probe {
    /// Direction as seen from the endpoint.
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
        let has_ports = crate::model::Protocol::from_number(self.protocol).is_some();
        Flow {
            source,
            destination,
            protocol: self.protocol,
            port: has_ports.then_some(self.port),
        }
    }
}

impl World {
    /// `count` probes at endpoints of [`LOCAL_NODE`], and now and then at an address of its pod CIDRs that nobody
    /// owns. Both sides are of one family. No probe without an endpoint.
    pub fn flows(&self, seed: u64, count: usize) -> Vec<Probe> {
        let points = Points::of(&self.cluster());
        let mut random = Random::new(seed);
        (0..count)
            .filter_map(|_| points.probe(&mut random))
            .collect()
    }
}

/// The interesting values of a world.
struct Points {
    endpoints: Vec<IpAddr>,
    workloads: Vec<IpAddr>,
    peers: Vec<IpAddr>,
    ports: Vec<u16>,
}

impl Points {
    fn of(cluster: &Cluster) -> Self {
        let local = cluster.endpoints.values().filter(|endpoint| {
            endpoint.is_workload() && endpoint.node.as_deref() == Some(LOCAL_NODE)
        });
        let endpoints = local
            .flat_map(|endpoint| endpoint.addresses.iter().copied())
            .collect();
        let all = cluster
            .endpoints
            .values()
            .flat_map(|endpoint| endpoint.addresses.iter().copied());
        let workloads: Vec<IpAddr> = all.collect();
        let mut peers: BTreeSet<IpAddr> = workloads.iter().copied().collect();
        peers.extend(
            cluster
                .nodes
                .values()
                .flat_map(|node| node.addresses.iter().copied()),
        );
        for is_v6 in [false, true] {
            peers.extend((0..6).map(|site| {
                AddressSpec {
                    is_v6,
                    site,
                    host: 3,
                }
                .address()
            }));
        }
        let mut ports: BTreeSet<u16> = PORT_NUMBERS.into_iter().collect();
        for policy in cluster.policies.values() {
            for rule in Direction::BOTH
                .iter()
                .filter_map(|direction| policy.rules(*direction))
                .flatten()
            {
                add_edges_of_blocks(&rule.peers, &mut peers);
                add_edges_of_ranges(&rule.ports, &mut ports);
            }
        }
        Self {
            endpoints,
            workloads,
            peers: peers.into_iter().collect(),
            ports: ports.into_iter().collect(),
        }
    }

    fn probe(&self, random: &mut Random) -> Option<Probe> {
        let unowned = |is_v6| {
            AddressSpec {
                is_v6,
                site: 0,
                host: 200,
            }
            .address()
        };
        let endpoint = match random.below(100) {
            0 => unowned(false),
            1 => unowned(true),
            _ => random.pick(&self.endpoints)?,
        };
        let pool = if random.chance(60) {
            &self.workloads
        } else {
            &self.peers
        };
        let of_family: Vec<IpAddr> = pool
            .iter()
            .copied()
            .filter(|peer| peer.is_ipv4() == endpoint.is_ipv4())
            .collect();
        let peer = random.pick(&of_family)?;
        let direction = Direction::BOTH[random.below(2)];
        let (protocol, port) = match random.below(20) {
            0 => (if endpoint.is_ipv4() { 1 } else { 58 }, 0),
            1 => (47, 0),
            2..=4 => (17, random.pick(&self.ports)?),
            5 | 6 => (132, random.pick(&self.ports)?),
            _ => (6, random.pick(&self.ports)?),
        };
        Some(Probe {
            direction,
            endpoint,
            peer,
            protocol,
            port,
        })
    }
}

fn add_edges_of_blocks(peers: &Peers, addresses: &mut BTreeSet<IpAddr>) {
    let Peers::Of(peers) = peers else { return };
    for peer in peers {
        let Peer::Network { cidr, except } = peer else {
            continue;
        };
        for block in except.iter().chain([cidr]) {
            let (first, last) = (block.network(), block.broadcast());
            addresses.extend([first, last, step(first, false), step(last, true)]);
        }
    }
}

fn add_edges_of_ranges(ports: &Ports, numbers: &mut BTreeSet<u16>) {
    let Ports::Of(ports) = ports else { return };
    for port in ports {
        if let PortMatch::Range { first, last, .. } = port {
            numbers.extend([
                *first,
                *last,
                first.saturating_sub(1),
                last.saturating_add(1),
            ]);
        }
    }
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
