//! An explanation as data: the JSON of `towpath explain`, described in docs/json.md.

use std::net::IpAddr;

use serde::Serialize;
use towpath_core::evaluate::{
    Certainty, Evaluator, Explanation, Flow, PolicyTrace, Reason, RuleTrace, TierTrace, Walk,
};
use towpath_core::model::Verdict;

use super::super::arguments::protocol_name;
use super::super::text::{peer_text, port_text};
use super::{DIRECTIONS, ExplainArguments};

/// The answer to one question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Record {
    from: String,
    to: String,
    service: String,
    /// `allow`, `deny`, or `mixed` where the flows differ.
    verdict: String,
    flows: Vec<FlowRecord>,
}

impl Record {
    pub(super) fn new(arguments: &ExplainArguments, flows: Vec<FlowRecord>) -> Self {
        let first = flows
            .first()
            .map(|flow| flow.verdict.clone())
            .unwrap_or_default();
        let is_mixed = flows.iter().any(|flow| flow.verdict != first);
        Self {
            from: arguments.from.to_string(),
            to: arguments.to.to_string(),
            service: arguments.port.to_string(),
            verdict: if is_mixed { "mixed".to_owned() } else { first },
            flows,
        }
    }
}

/// One flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct FlowRecord {
    source: IpAddr,
    destination: IpAddr,
    protocol: String,
    port: Option<u16>,
    verdict: String,
    directions: Vec<DirectionRecord>,
}

impl FlowRecord {
    pub(super) fn new(evaluator: &Evaluator<'_>, flow: &Flow) -> Self {
        let explanations = DIRECTIONS.map(|direction| evaluator.explain(direction, flow));
        let verdict = explanations.iter().map(|one| one.decision.verdict).max();
        Self {
            source: flow.source,
            destination: flow.destination,
            protocol: protocol_name(flow.protocol),
            port: flow.port,
            verdict: verdict.unwrap_or(Verdict::Deny).to_string(),
            directions: explanations.iter().map(DirectionRecord::new).collect(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct DirectionRecord {
    direction: String,
    /// What the judged side is.
    judged: String,
    peer: String,
    verdict: String,
    reason: String,
    deciding: Option<Deciding>,
    walks: Vec<WalkRecord>,
    near_misses: Vec<NearMissRecord>,
    nearly_selecting: Vec<NearMissRecord>,
}

impl DirectionRecord {
    fn new(explanation: &Explanation<'_>) -> Self {
        let decision = &explanation.decision;
        let near_misses = explanation
            .near_misses()
            .into_iter()
            .map(|miss| NearMissRecord {
                policy: miss.policy.id.to_string(),
                rule: Some(miss.index),
                missing: miss.text,
            });
        let nearly_selecting = explanation
            .unselected
            .iter()
            .map(|unselected| NearMissRecord {
                policy: unselected.policy.id.to_string(),
                rule: None,
                missing: unselected.mismatch.to_string(),
            });
        Self {
            direction: decision.direction.to_string(),
            judged: explanation.side.to_string(),
            peer: explanation.peer.to_string(),
            verdict: decision.verdict.to_string(),
            reason: decision.reason.to_string(),
            deciding: Deciding::new(&decision.reason),
            walks: explanation.walks.iter().map(WalkRecord::new).collect(),
            near_misses: near_misses.collect(),
            nearly_selecting: nearly_selecting.collect(),
        }
    }
}

/// The object and rule that decide.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Deciding {
    tier: String,
    policies: Vec<String>,
    /// Index of the rule, from 0; nothing when the end of the tier decides.
    rule: Option<usize>,
    rule_name: Option<String>,
    action: String,
}

impl Deciding {
    fn new(reason: &Reason) -> Option<Self> {
        match reason {
            Reason::Rule {
                tier,
                policy,
                index,
                name,
                action,
            } => Some(Self {
                tier: tier.name.to_string(),
                policies: vec![policy.to_string()],
                rule: Some(*index),
                rule_name: name.as_ref().map(ToString::to_string),
                action: action.to_string(),
            }),
            Reason::TierDefault { tier, policies } => Some(Self {
                tier: tier.name.to_string(),
                policies: policies.iter().map(ToString::to_string).collect(),
                rule: None,
                rule_name: None,
                action: "Deny".to_owned(),
            }),
            Reason::NoPolicy | Reason::Unknown | Reason::NotJudged | Reason::OwnNode { .. } => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct WalkRecord {
    /// The workload or node that the peer address was taken for.
    claimant: Option<String>,
    /// Set when the walk follows a pass that is uncertain.
    assumed_pass: Option<String>,
    verdict: String,
    reason: String,
    tiers: Vec<TierRecord>,
}

impl WalkRecord {
    fn new(walk: &Walk<'_>) -> Self {
        Self {
            claimant: walk.claimant.map(|claimant| claimant.to_string()),
            assumed_pass: walk
                .assumed_pass
                .map(|(policy, rule)| format!("rule {rule} of {}", policy.id)),
            verdict: walk.verdict.to_string(),
            reason: walk.reason.to_string(),
            tiers: walk.tiers.iter().map(TierRecord::new).collect(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct TierRecord {
    tier: String,
    end: String,
    policies: Vec<PolicyRecord>,
}

impl TierRecord {
    fn new(tier: &TierTrace<'_>) -> Self {
        Self {
            tier: tier.tier.name.to_string(),
            end: tier.end.to_string(),
            policies: tier.policies.iter().map(PolicyRecord::new).collect(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct PolicyRecord {
    policy: String,
    rules: Vec<RuleRecord>,
}

impl PolicyRecord {
    fn new(trace: &PolicyTrace<'_>) -> Self {
        Self {
            policy: trace.policy.id.to_string(),
            rules: trace.rules.iter().map(RuleRecord::new).collect(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct RuleRecord {
    index: usize,
    name: Option<String>,
    action: String,
    /// `yes`, `no` or `uncertain`.
    matched: &'static str,
    is_deciding: bool,
    /// Why it did not match.
    mismatch: Option<String>,
    peers: Vec<ConditionRecord>,
    ports: Vec<ConditionRecord>,
}

impl RuleRecord {
    fn new(trace: &RuleTrace<'_>) -> Self {
        let peers = trace.peers.iter().map(|peer| ConditionRecord {
            condition: peer_text(peer.peer),
            outcome: peer.outcome.to_string(),
        });
        let ports = trace.ports.iter().map(|port| ConditionRecord {
            condition: port_text(port.port),
            outcome: port.outcome.to_string(),
        });
        Self {
            index: trace.index,
            name: trace.rule.name.as_ref().map(ToString::to_string),
            action: trace.rule.action.to_string(),
            matched: match trace.matched {
                Certainty::No => "no",
                Certainty::Uncertain => "uncertain",
                Certainty::Yes => "yes",
            },
            is_deciding: trace.is_deciding,
            mismatch: trace.mismatch(),
            peers: peers.collect(),
            ports: ports.collect(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct ConditionRecord {
    condition: String,
    outcome: String,
}

/// A rule or a subject that would have matched but for one thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct NearMissRecord {
    policy: String,
    /// Index of the rule; nothing for a policy that does not select the endpoint.
    rule: Option<usize>,
    missing: String,
}
