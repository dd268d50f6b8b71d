//! Explanations: the record of a walk, tier by tier, policy by policy, rule by rule.
//!
//! The record is made by an observer of the very walk that decides, so it cannot tell another story. It is data
//! with references into the state; text and JSON are the caller's.

use std::fmt;
use std::net::IpAddr;

use super::{Certainty, Decision, Flow, Mismatch, PeerOutcome, PortOutcome, Reason};
use crate::model::{
    Direction, Endpoint, Node, Peer, Peers, Policy, PortMatch, Ports, Rule, Tier, Verdict,
};

/// What the judged address is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Side<'a> {
    /// The address of one live workload of a known namespace: judged.
    Workload(&'a Endpoint),
    /// The address of one live workload whose namespace has no object: closed.
    UnknownNamespace(&'a Endpoint),
    /// Claimed by several live workloads: closed.
    Shared(Vec<&'a Endpoint>),
    /// In a pod CIDR of this node, and nobody's: closed.
    Unowned(&'a Node),
    /// A host identity of these nodes: not judged.
    Host(Vec<&'a Node>),
    /// Neither pod nor node: not judged.
    Outside,
}

impl fmt::Display for Side<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workload(endpoint) => write!(f, "{}", endpoint.id),
            Self::UnknownNamespace(endpoint) => {
                write!(f, "{}, whose namespace is not known yet", endpoint.id)
            }
            Self::Shared(endpoints) => {
                f.write_str("claimed by several: ")?;
                fmt_list(f, endpoints.iter().map(|endpoint| &endpoint.id))
            }
            Self::Unowned(node) => {
                write!(f, "in a pod network of node {}, but of no pod", node.name)
            }
            Self::Host(nodes) => {
                f.write_str("host ")?;
                fmt_list(f, nodes.iter().map(|node| &node.name))
            }
            Self::Outside => f.write_str("outside"),
        }
    }
}

fn fmt_list(
    f: &mut fmt::Formatter<'_>,
    items: impl Iterator<Item = impl fmt::Display>,
) -> fmt::Result {
    for (index, item) in items.enumerate() {
        let separator = if index == 0 { "" } else { ", " };
        write!(f, "{separator}{item}")?;
    }
    Ok(())
}

/// Why one direction of a flow is allowed or denied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation<'a> {
    /// The flow.
    pub flow: Flow,
    /// The judged address.
    pub address: IpAddr,
    /// What it is.
    pub side: Side<'a>,
    /// The other address.
    pub peer_address: IpAddr,
    /// What that is.
    pub peer: Side<'a>,
    /// What was walked: nothing for a side that is not judged or closed; one walk for each claimant of the peer
    /// address (node or workload) up to the first that is denied, and before it those that follow an uncertain pass.
    pub walks: Vec<Walk<'a>>,
    /// Policies that apply in this direction and would select the endpoint if one label were different.
    pub unselected: Vec<Unselected<'a>>,
    /// The outcome, the same as [`super::Evaluator::decide`] gives.
    pub decision: Decision,
}

impl<'a> Explanation<'a> {
    /// Which direction this is.
    pub fn direction(&self) -> Direction {
        self.decision.direction
    }

    /// The rules that did not match for want of one thing, in the order of the walks.
    pub fn near_misses(&self) -> Vec<NearMiss<'a>> {
        let tiers = self.walks.iter().flat_map(|walk| &walk.tiers);
        let policies = tiers.flat_map(|tier| &tier.policies);
        let misses = policies.flat_map(|policy| {
            policy
                .rules
                .iter()
                .filter_map(|rule| rule.near_miss(policy.policy))
        });
        let mut found = Vec::new();
        for miss in misses {
            if !found.contains(&miss) {
                found.push(miss);
            }
        }
        found
    }
}

/// One of those whose address the peer's may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claimant<'a> {
    /// A live workload that lists it.
    Workload(&'a Endpoint),
    /// A node of which it is an identity.
    Node(&'a Node),
}

impl fmt::Display for Claimant<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workload(endpoint) => write!(f, "{}", endpoint.id),
            Self::Node(node) => write!(f, "node {}", node.name),
        }
    }
}

/// One walk through the tiers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walk<'a> {
    /// What the peer address was taken for; `None` if it is nobody's.
    pub claimant: Option<Claimant<'a>>,
    /// Set when this walk follows the pass of a rule (by index) whose match is uncertain; it starts after the
    /// rule's tier.
    pub assumed_pass: Option<(&'a Policy, usize)>,
    /// The tiers that were entered.
    pub tiers: Vec<TierTrace<'a>>,
    /// Its verdict. The flow is denied if any walk denies.
    pub verdict: Verdict,
    /// What decided it.
    pub reason: Reason,
}

/// What happened in one tier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TierTrace<'a> {
    /// The tier.
    pub tier: &'a Tier,
    /// The policies of it that select the endpoint, up to the deciding one.
    pub policies: Vec<PolicyTrace<'a>>,
    /// How it ended.
    pub end: TierEnd,
}

/// How a tier ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TierEnd {
    /// A rule accepted or denied.
    Decided,
    /// A rule passed to the next tier.
    Passed,
    /// No rule decided, and the tier isolates.
    Isolated,
    /// No rule decided, and the next tier does.
    Undecided,
    /// The walk that follows an uncertain pass out of this tier denied.
    DeniedAfterPass,
}

impl fmt::Display for TierEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Decided => "decided by a rule",
            Self::Passed => "passed to the next tier",
            Self::Isolated => {
                "no rule matches: denied, because policies of this tier select the endpoint"
            }
            Self::Undecided => "no rule matches: the next tier decides",
            Self::DeniedAfterPass => "denied if the uncertain pass is taken",
        })
    }
}

/// A policy that selects the endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyTrace<'a> {
    /// The policy.
    pub policy: &'a Policy,
    /// Its rules, up to the deciding one.
    pub rules: Vec<RuleTrace<'a>>,
}

/// A rule that was compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleTrace<'a> {
    /// Index in the policy's list of this direction, from 0.
    pub index: usize,
    /// The rule.
    pub rule: &'a Rule,
    /// Whether it matched.
    pub matched: Certainty,
    /// Whether any of its peers matched, whatever the port.
    pub peers_matched: Certainty,
    /// Whether any of its ports matched, whatever the peer.
    pub has_port: bool,
    /// Whether it decided its walk, or its tier by passing.
    pub is_deciding: bool,
    /// Its peer conditions; empty for "anybody" and for an empty list.
    pub peers: Vec<PeerTrace<'a>>,
    /// Its port conditions; empty for "any port" and for an empty list.
    pub ports: Vec<PortTrace<'a>>,
}

impl<'a> RuleTrace<'a> {
    /// Why the rule did not match, in the fewest words: the peer, the port, or both; `None` if it did.
    pub fn mismatch(&self) -> Option<String> {
        if self.matched != Certainty::No {
            return None;
        }
        let mut missing = Vec::new();
        if self.peers_matched == Certainty::No {
            missing.push(match &self.rule.peers {
                Peers::Of(peers) if peers.is_empty() => "peer: the list is empty".to_owned(),
                _ => format!("peer: {}", join(self.peers.iter().map(|peer| peer.outcome))),
            });
        }
        if !self.has_port {
            missing.push(match &self.rule.ports {
                Ports::Of(ports) if ports.is_empty() => "port: the list is empty".to_owned(),
                _ => format!("port: {}", join(self.ports.iter())),
            });
        }
        if missing.is_empty() {
            missing.push("port: a named port does not count with blocks and nodes".to_owned());
        }
        Some(missing.join("; "))
    }

    /// What one thing is missing.
    fn near_miss(&self, policy: &'a Policy) -> Option<NearMiss<'a>> {
        let is_near = match (self.matched, self.peers_matched, self.has_port) {
            (Certainty::Uncertain | Certainty::Yes, _, _)
            | (Certainty::No, Certainty::No, false) => false,
            // Peer and port hold, but not together, or only the port is wrong.
            (Certainty::No, Certainty::Uncertain | Certainty::Yes, _) => true,
            (Certainty::No, Certainty::No, true) => {
                self.peers.iter().any(|peer| peer.outcome.is_near_miss())
            }
        };
        let text = if is_near {
            self.mismatch()?
        } else {
            return None;
        };
        Some(NearMiss {
            policy,
            index: self.index,
            rule: self.rule,
            text,
        })
    }
}

fn join(items: impl Iterator<Item = impl fmt::Display>) -> String {
    let mut texts: Vec<String> = Vec::new();
    for text in items.map(|item| item.to_string()) {
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    texts.join(", or ")
}

/// A peer condition that was compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerTrace<'a> {
    /// The condition.
    pub peer: &'a Peer,
    /// What came of it.
    pub outcome: PeerOutcome<'a>,
}

/// A port condition that was compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortTrace<'a> {
    /// The condition.
    pub port: &'a PortMatch,
    /// What came of it.
    pub outcome: PortOutcome<'a>,
}

impl fmt::Display for PortTrace<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            PortMatch::Range {
                protocol,
                first: 0,
                last: u16::MAX,
            } => write!(f, "all of {protocol}")?,
            PortMatch::Range {
                protocol,
                first,
                last,
            } if first == last => write!(f, "{first}/{protocol}")?,
            PortMatch::Range {
                protocol,
                first,
                last,
            } => write!(f, "{first}-{last}/{protocol}")?,
            PortMatch::Named {
                protocol: Some(protocol),
                name,
            } => write!(f, "{name}/{protocol}")?,
            PortMatch::Named {
                protocol: None,
                name,
            } => write!(f, "{name}")?,
        }
        write!(f, ": {}", self.outcome)
    }
}

/// A rule that would have matched but for one thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NearMiss<'a> {
    /// Its policy.
    pub policy: &'a Policy,
    /// Index in the policy's list of this direction, from 0.
    pub index: usize,
    /// The rule.
    pub rule: &'a Rule,
    /// What is missing.
    pub text: String,
}

impl fmt::Display for NearMiss<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "rule {} of {}: {}",
            self.index, self.policy.id, self.text
        )
    }
}

/// A policy that does not select the endpoint, though nearly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unselected<'a> {
    /// The policy.
    pub policy: &'a Policy,
    /// What is missing.
    pub mismatch: Mismatch<'a>,
}

impl fmt::Display for Unselected<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.policy.id, self.mismatch)
    }
}
