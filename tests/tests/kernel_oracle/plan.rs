//! What a state means for the fabric: where addresses are, which flows can be probed, and what should become of them.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use towpath_core::evaluate::{Evaluator, Flow, Reason};
use towpath_core::generate::LOCAL_NODE;
use towpath_core::model::{
    Cluster, Direction, Endpoint, EndpointKind, Node, ObservedInterface, Verdict,
};

use super::fabric::{Addresses, FENCE, Fabric, Place, Shot, Way};

/// Encapsulations that carry packets past policy: IPv4, IPv6 and GRE in IP.
const ENCAPSULATIONS: [u8; 3] = [4, 41, 47];

/// A state, laid out on the fabric.
pub(crate) struct Plan<'a> {
    evaluator: Evaluator<'a>,
    pub(crate) addresses: Addresses,
    nodes: BTreeSet<IpAddr>,
    /// This node's pod CIDRs.
    networks: &'a [IpNet],
}

/// Why a flow is not probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Skip {
    /// It leaves by the output hook, which is not filtered.
    FromTheNode,
    /// It never leaves the pod.
    WithinAPod,
    /// It never touches the node's pods.
    PastTheNode,
    /// The kernel routes no packet with such an address.
    Unroutable,
    /// It answers a probe without ports, and so is of its connection.
    Reply,
    /// Its arrival at the node could not be seen.
    Unseen,
    /// The object names an interface that does not (yet) have the address.
    HalfKnown,
}

/// What should become of a probe, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Expectation {
    pub(crate) verdict: Verdict,
    pub(crate) source: Option<Cause>,
    pub(crate) destination: Option<Cause>,
}

impl Expectation {
    pub(crate) fn of(source: Option<Cause>, destination: Option<Cause>) -> Self {
        let causes = source.iter().chain(&destination);
        Self {
            verdict: causes.map(Cause::verdict).max().unwrap_or(Verdict::Allow),
            source,
            destination,
        }
    }
}

/// What decides one side that is enforced here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// No single endpoint of this node has the address.
    Closed,
    /// A pod speaks an encapsulation to a node.
    Encapsulation,
    /// The evaluator's word.
    Evaluator(Verdict, Reason),
}

impl Cause {
    fn verdict(&self) -> Verdict {
        match self {
            Self::Closed | Self::Encapsulation => Verdict::Deny,
            Self::Evaluator(verdict, _) => *verdict,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("deny: no single known endpoint of this node"),
            Self::Encapsulation => f.write_str("deny: encapsulation to a node"),
            Self::Evaluator(verdict, reason) => write!(f, "{verdict}: {reason}"),
        }
    }
}

impl<'a> Plan<'a> {
    /// Lays a state out.
    pub(crate) fn new(cluster: &'a Cluster) -> Self {
        let mut addresses = Addresses::default();
        for interface in cluster.interfaces.values() {
            let number = pod_number(interface);
            for address in &interface.addresses {
                let pod = addresses.pods.entry(*address).or_insert(number);
                *pod = (*pod).min(number);
            }
        }
        let node = cluster.nodes.get(LOCAL_NODE);
        if let Some(node) = node {
            addresses.node.extend(node.claimed());
        }
        Self {
            evaluator: Evaluator::new(cluster),
            addresses,
            nodes: cluster.nodes.values().flat_map(Node::claimed).collect(),
            networks: node.map_or(&[][..], |node| &node.pod_cidrs),
        }
    }

    /// Whether an address is of this node's pods, wherever it is.
    fn is_in_pod_cidr(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|cidr| cidr.contains(&address))
    }

    /// Whether the fabric's own packet is of no interest to the tables.
    pub(crate) fn leaves_the_fence_alone(&self) -> bool {
        !FENCE
            .into_iter()
            .any(|address| self.is_in_pod_cidr(address.into()))
    }

    fn place(&self, address: IpAddr) -> Place {
        if self.addresses.node.contains(&address) {
            Place::Node
        } else if let Some(pod) = self.addresses.pods.get(&address) {
            Place::Pod(*pod)
        } else if Fabric::is_in_pod_network(address) {
            Place::Stray
        } else {
            Place::Outside
        }
    }

    /// How the flow is probed. Neighbours on the bridge speak to each other directly, unless `prefers_routed`.
    pub(crate) fn shot(&self, flow: &Flow, prefers_routed: bool) -> Result<Shot, Skip> {
        let (from, to) = (self.place(flow.source), self.place(flow.destination));
        if !is_routable(flow.source) || !is_routable(flow.destination) {
            return Err(Skip::Unroutable);
        }
        if to == Place::Node && !Fabric::sees_input(flow) {
            return Err(Skip::Unseen);
        }
        match (from, to) {
            (Place::Node, _) => return Err(Skip::FromTheNode),
            (Place::Outside, Place::Outside | Place::Node) => return Err(Skip::PastTheNode),
            _ if from == to => return Err(Skip::WithinAPod),
            _ => {}
        }
        let are_neighbours = from != Place::Outside && matches!(to, Place::Pod(_) | Place::Stray);
        let can_be_direct = are_neighbours
            && Fabric::is_in_pod_network(flow.source)
            && Fabric::is_in_pod_network(flow.destination);
        let way = if can_be_direct && !prefers_routed {
            Way::Bridged
        } else {
            Way::Routed
        };
        Ok(Shot {
            flow: *flow,
            from,
            to,
            way,
        })
    }

    /// What should become of a probe: only the sides that are on this node are judged here.
    pub(crate) fn expect(&self, shot: &Shot) -> Result<Expectation, Skip> {
        let source = match shot.from {
            Place::Pod(_) | Place::Stray => Some(self.judge(Direction::Egress, &shot.flow)?),
            Place::Outside if self.is_in_pod_cidr(shot.flow.source) => {
                Some(self.judge(Direction::Egress, &shot.flow)?)
            }
            Place::Outside | Place::Node => None,
        };
        let destination = match shot.to {
            Place::Pod(_) | Place::Stray => Some(self.judge(Direction::Ingress, &shot.flow)?),
            Place::Outside if self.is_in_pod_cidr(shot.flow.destination) => {
                Some(self.judge(Direction::Ingress, &shot.flow)?)
            }
            Place::Node | Place::Outside => None,
        };
        Ok(Expectation::of(source, destination))
    }

    fn judge(&self, direction: Direction, flow: &Flow) -> Result<Cause, Skip> {
        let (address, peer) = flow.sides(direction);
        let is_encapsulation = ENCAPSULATIONS.contains(&flow.protocol);
        let may_unpack = is_encapsulation && self.nodes.contains(&peer);
        // What goes to a pod here unpacks nothing on a node, whoever claims its address.
        if direction == Direction::Egress && may_unpack && !self.is_known(peer)? {
            return Ok(Cause::Encapsulation);
        }
        if !self.is_known(address)? {
            return Ok(Cause::Closed);
        }
        let decision = self.evaluator.judge(direction, flow);
        Ok(Cause::Evaluator(decision.verdict, decision.reason))
    }

    /// Whether exactly one live endpoint has the address, is of this node, and is plugged in with it.
    fn is_known(&self, address: IpAddr) -> Result<bool, Skip> {
        let cluster = self.evaluator.cluster();
        let mut claimants = cluster
            .endpoints
            .values()
            .filter(|endpoint| endpoint.is_workload() && endpoint.addresses.contains(&address));
        let (Some(claimant), None) = (claimants.next(), claimants.next()) else {
            return Ok(false);
        };
        if !is_here(claimant) {
            return Ok(false);
        }
        let mut interfaces = cluster
            .interfaces
            .values()
            .filter(|interface| interface.addresses.contains(&address));
        match (interfaces.next(), interfaces.next(), &claimant.interface) {
            (Some(one), None, None) => Ok(one.bridge.is_some()),
            (Some(one), None, Some(named)) if one.name == *named => Ok(true),
            (_, _, Some(_)) => Err(Skip::HalfKnown),
            (_, _, None) => Ok(false),
        }
    }
}

fn is_here(endpoint: &Endpoint) -> bool {
    match endpoint.node.as_deref() {
        Some(node) => node == LOCAL_NODE,
        None => endpoint.id.kind == EndpointKind::WorkloadEndpoint,
    }
}

/// The pod behind `veth<number>`, as the random worlds name their interfaces.
fn pod_number(interface: &ObservedInterface) -> u8 {
    let number = interface.name.as_str().strip_prefix("veth");
    number
        .and_then(|number| number.parse().ok())
        .expect("a random world names interfaces by number")
}

/// Whether the kernel forwards from and to such an address.
fn is_routable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let is_zero_network = address.octets()[0] == 0;
            !(is_zero_network
                || address.is_loopback()
                || address.is_multicast()
                || address == Ipv4Addr::BROADCAST)
        }
        IpAddr::V6(address) => {
            !(address.is_unspecified() || address.is_loopback() || address.is_multicast())
        }
    }
}
