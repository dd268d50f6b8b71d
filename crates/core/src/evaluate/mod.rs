//! The evaluator: decides one flow by walking tiers, policies and rules in order.
//!
//! It shares the model with the compiler and nothing else, so that each proves the other. It is cluster-wide: it
//! judges at every endpoint of every node; which of them are local is the caller's affair.
//!
//! One direction is judged so ([`Evaluator::judge`]):
//!
//! 1. The judged side is the destination on ingress, the source on egress. An address that no live workload owns
//!    is not judged, unless it lies in a node's pod CIDR and is no host identity: then it is unknown, denied. An
//!    address of several live workloads, and a workload whose namespace has no object, are unknown too.
//! 2. Tiers go by their order; in a tier the policies that select the endpoint and apply in this direction go by
//!    order and id, their rules in sequence. The first matching rule that accepts or denies decides; one that
//!    passes leaves the tier. A tier whose policies decided nothing ends in its default. After the last: allow.
//! 3. Where several nodes and live workloads have the peer address, each is judged alone; all must be allowed.
//! 4. A peer workload whose namespace has no object meets workload conditions *uncertainly*: an accept rule does
//!    not match it, a deny rule does, and for a pass rule both outcomes must allow. In the same way a peer meets
//!    conditions on nodes that claim its address and are not believed. Anybody and blocks are certain.
//!
//! [`Evaluator::decide`] joins both directions, and adds that a node may always reach its own workloads.
//!
//! Not here: what only the layout of the kernel tables does (neighbour discovery, established connections, the
//! output hook).

mod explain;
mod identities;
mod index;
mod matching;
mod reason;
mod record;
mod walk;

use std::net::IpAddr;

use crate::model::{Cluster, Direction, EndpointId, Verdict};

pub use explain::{
    Claimant, Explanation, NearMiss, PeerTrace, PolicyTrace, PortTrace, RuleTrace, Side, TierEnd,
    TierTrace, Unselected, Walk,
};
pub use matching::{Certainty, Mismatch, PeerOutcome, PortOutcome};
pub use reason::{Decision, FlowDecision, Reason};

use index::{Index, Standing, Workload};
use matching::{Packet, PeerClaimant, PeerSide};
use walk::{Case, Cause, Observer, Ruling, Silent};

/// A new connection, as seen after destination NAT and before source NAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// IANA protocol number.
    pub protocol: u8,
    /// Destination port; `None` for protocols without ports.
    pub port: Option<u16>,
}

impl Flow {
    /// The address that is judged in this direction, and the one of its peer.
    pub fn sides(&self, direction: Direction) -> (IpAddr, IpAddr) {
        match direction {
            Direction::Ingress => (self.destination, self.source),
            Direction::Egress => (self.source, self.destination),
        }
    }

    fn packet(&self) -> Packet {
        Packet {
            protocol: self.protocol,
            port: self.port,
        }
    }
}

/// Decides flows against a state. Indexed once, so that one judgement looks only at the policies of one endpoint.
#[derive(Debug)]
pub struct Evaluator<'a> {
    cluster: &'a Cluster,
    index: Index<'a>,
}

impl<'a> Evaluator<'a> {
    /// An evaluator of this state.
    pub fn new(cluster: &'a Cluster) -> Self {
        Self {
            cluster,
            index: Index::new(cluster),
        }
    }

    /// The state it decides against.
    pub fn cluster(&self) -> &'a Cluster {
        self.cluster
    }

    /// Judges one direction of a flow by policy alone: see the module's list.
    pub fn judge(&self, direction: Direction, flow: &Flow) -> Decision {
        let (address, peer) = flow.sides(direction);
        let standing = self.index.standing(address);
        let ruling = self.ruling(direction, standing, peer, flow.packet(), &mut Silent);
        Decision::new(direction, &ruling)
    }

    /// Judges one direction at an endpoint that the caller knows to have `address`, which the API may not list
    /// yet. It is unknown if another live workload claims the address.
    pub fn judge_endpoint(
        &self,
        direction: Direction,
        endpoint: &EndpointId,
        address: IpAddr,
        peer: IpAddr,
        protocol: u8,
        port: Option<u16>,
    ) -> Decision {
        let standing = self.index.standing_of(endpoint, address);
        let packet = Packet { protocol, port };
        let ruling = self.ruling(direction, standing, peer, packet, &mut Silent);
        Decision::new(direction, &ruling)
    }

    /// Judges both sides. Unlike [`Self::judge`], it lets every node reach its own workloads: their packets come
    /// over the output hook, which no policy filters.
    pub fn decide(&self, flow: &Flow) -> FlowDecision {
        let side = |direction| {
            let ruling = self.final_ruling(direction, flow, &mut Silent);
            Decision::new(direction, &ruling)
        };
        FlowDecision::new(side(Direction::Egress), side(Direction::Ingress))
    }

    /// The verdict of [`Self::decide`], without reasons and without allocation.
    pub fn verdict(&self, flow: &Flow) -> Verdict {
        let side = |direction| {
            self.final_ruling(direction, flow, &mut Silent)
                .cause
                .verdict()
        };
        match side(Direction::Egress) {
            Verdict::Allow => side(Direction::Ingress),
            Verdict::Deny => Verdict::Deny,
        }
    }

    /// As [`Self::ruling`], with the step that [`Self::decide`] adds.
    fn final_ruling<O: Observer<'a>>(
        &self,
        direction: Direction,
        flow: &Flow,
        observer: &mut O,
    ) -> Ruling<'_, 'a> {
        let (address, peer) = flow.sides(direction);
        let standing = self.index.standing(address);
        if direction == Direction::Ingress
            && let Some(node) = self.index.own_node(standing, peer)
        {
            return Ruling {
                endpoint: standing.endpoint(),
                cause: Cause::OwnNode(node),
            };
        }
        self.ruling(direction, standing, peer, flow.packet(), observer)
    }

    fn ruling<'e, O: Observer<'a>>(
        &'e self,
        direction: Direction,
        standing: Standing<'e, 'a>,
        peer: IpAddr,
        packet: Packet,
        observer: &mut O,
    ) -> Ruling<'e, 'a> {
        let cause = match standing {
            Standing::Judged(workload) => {
                self.judge_each_claimant(direction, workload, peer, packet, observer)
            }
            Standing::UnknownNamespace(_)
            | Standing::Shared(_)
            | Standing::Unowned(_)
            | Standing::Missing => Cause::Unknown,
            Standing::Host | Standing::Outside => Cause::NotJudged,
        };
        Ruling {
            endpoint: standing.endpoint(),
            cause,
        }
    }

    /// Walks once for each node whose identity the peer address is and each live workload that claims it, up to the
    /// first that is denied; once for the address alone if there is none.
    fn judge_each_claimant<'e, O: Observer<'a>>(
        &'e self,
        direction: Direction,
        workload: &'e Workload<'a>,
        address: IpAddr,
        packet: Packet,
        observer: &mut O,
    ) -> Cause<'e, 'a> {
        let policies = self.index.applying(workload, direction);
        let doubtful = self.index.doubtful_nodes(address);
        let mut walk = |claimant: PeerClaimant<'e, 'a>| {
            let peer = PeerSide {
                address,
                claimant,
                doubtful,
            };
            observer.begin(claimant.told());
            let cause = Case {
                direction,
                workload,
                peer,
                packet,
            }
            .walk(policies, observer);
            observer.end(&cause);
            cause
        };
        let nodes = self.index.nodes(address).iter().copied();
        let workloads = self.index.claimants(address).iter();
        let workloads = workloads.map(|position| self.index.workload(*position));
        let mut allowed = None;
        let nodes = nodes.map(PeerClaimant::Node);
        for claimant in nodes.chain(workloads.map(PeerClaimant::Workload)) {
            let cause = walk(claimant);
            if cause.verdict() == Verdict::Deny {
                return cause;
            }
            allowed = Some(cause);
        }
        allowed.unwrap_or_else(|| walk(PeerClaimant::Nobody))
    }
}
