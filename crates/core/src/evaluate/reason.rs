//! What a judgement says: verdict and reason.

use std::fmt;

use smol_str::SmolStr;

use super::walk::{Cause, Ruling};
use crate::model::{Action, Direction, EndpointId, PolicyId, Tier, Verdict};

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
    /// The node that runs the workload reaches it: always allowed.
    OwnNode {
        /// Its name.
        node: SmolStr,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule {
                tier,
                policy,
                index,
                name,
                action,
            } => {
                write!(f, "{action} by rule {index}")?;
                if let Some(name) = name {
                    write!(f, " ({name})")?;
                }
                write!(f, " of {policy}, tier {}", tier.name)
            }
            Self::TierDefault { tier, policies } => {
                write!(f, "isolated in tier {} by ", tier.name)?;
                for (index, policy) in policies.iter().enumerate() {
                    let separator = if index == 0 { "" } else { ", " };
                    write!(f, "{separator}{policy}")?;
                }
                f.write_str("; no rule matches")
            }
            Self::NoPolicy => f.write_str("no policy decides"),
            Self::Unknown => f.write_str("unknown endpoint"),
            Self::NotJudged => f.write_str("not a pod or workload: not judged"),
            Self::OwnNode { node } => write!(f, "node {node} reaches its own endpoints"),
        }
    }
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

impl Decision {
    pub(super) fn new(direction: Direction, ruling: &Ruling<'_, '_>) -> Self {
        Self {
            direction,
            endpoint: ruling.endpoint.map(|endpoint| endpoint.id.clone()),
            verdict: ruling.cause.verdict(),
            reason: ruling.cause.reason(direction),
        }
    }
}

/// The judgement of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowDecision {
    /// At the source.
    pub egress: Decision,
    /// At the destination.
    pub ingress: Decision,
    /// Deny if either denies.
    pub verdict: Verdict,
}

impl FlowDecision {
    pub(super) fn new(egress: Decision, ingress: Decision) -> Self {
        // Deny is the greater of the two.
        let verdict = egress.verdict.max(ingress.verdict);
        Self {
            egress,
            ingress,
            verdict,
        }
    }
}

impl Cause<'_, '_> {
    pub(super) fn verdict(&self) -> Verdict {
        match self {
            Self::Rule { verdict, .. } => *verdict,
            Self::NoPolicy | Self::NotJudged | Self::OwnNode(_) => Verdict::Allow,
            Self::TierDefault(_) | Self::Unknown => Verdict::Deny,
        }
    }

    pub(super) fn reason(&self, direction: Direction) -> Reason {
        match self {
            Self::Rule {
                policy,
                index,
                verdict,
            } => Reason::Rule {
                tier: policy.tier.clone(),
                policy: policy.id.clone(),
                index: *index,
                name: policy
                    .rules(direction)
                    .and_then(|rules| rules.get(*index)?.name.clone()),
                action: match verdict {
                    Verdict::Allow => Action::Accept,
                    Verdict::Deny => Action::Deny,
                },
            },
            Self::TierDefault(policies) => Reason::TierDefault {
                tier: policies[0].tier.clone(),
                policies: policies.iter().map(|policy| policy.id.clone()).collect(),
            },
            Self::NoPolicy => Reason::NoPolicy,
            Self::Unknown => Reason::Unknown,
            Self::NotJudged => Reason::NotJudged,
            Self::OwnNode(node) => Reason::OwnNode {
                node: node.name.clone(),
            },
        }
    }
}
