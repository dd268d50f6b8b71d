//! The evaluator: decides one flow by walking tiers, policies and rules in order.
//!
//! It shares the model with the compiler and nothing else, so that each proves the other.

use std::net::IpAddr;

use smol_str::SmolStr;

use crate::model::{Action, Cluster, Direction, EndpointId, PolicyId, Tier, Verdict};

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

/// What decided a direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A rule of a policy.
    Rule {
        /// Its tier.
        tier: Tier,
        /// Its policy.
        policy: PolicyId,
        /// Index in the policy's list of this direction, from 0.
        index: usize,
        /// Name of the rule, where it has one.
        name: Option<SmolStr>,
        /// What it does.
        action: Action,
    },
    /// The end of a tier that isolates: these policies selected the endpoint and no rule matched.
    TierDefault {
        /// The tier.
        tier: Tier,
        /// The policies that selected the endpoint.
        policies: Vec<PolicyId>,
    },
    /// No tier decided: allowed.
    NoPolicy,
    /// The address is of a pod network of a known node, or of an endpoint of this side, and no single live
    /// workload of a known namespace owns it: dropped at its node.
    Unknown,
    /// This side is no workload of ours: not judged.
    NotJudged,
}

/// The judgement of one direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Which one.
    pub direction: Direction,
    /// The endpoint that was judged, if the address has one.
    pub endpoint: Option<EndpointId>,
    /// The outcome.
    pub verdict: Verdict,
    /// What decided.
    pub reason: Reason,
}

/// Decides flows against a state.
#[derive(Clone, Copy, Debug)]
pub struct Evaluator<'a> {
    cluster: &'a Cluster,
}

impl<'a> Evaluator<'a> {
    /// An evaluator of this state.
    pub fn new(cluster: &'a Cluster) -> Self {
        Self { cluster }
    }

    /// The state it decides against.
    pub fn cluster(&self) -> &'a Cluster {
        self.cluster
    }
}
