//! An explanation as data: the JSON of `towpath explain`, described in docs/json.md.

use std::net::IpAddr;

use serde::Serialize;
use towpath_core::evaluate::{
    Certainty, Evaluator, Explanation, PolicyTrace, Reason, RuleTrace, TierTrace, Walk,
};
use towpath_core::model::{Direction, Verdict};

use super::super::arguments::protocol_name;
use super::super::text::{peer_text, port_text};
use super::{Asked, ExplainArguments};

/// The answer to one question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Record {
    from: String,
    /// Empty where every pod of the Service is meant.
    to: String,
    /// The Service through which it goes.
    via: Option<String>,
    service: String,
    /// `allow`, `deny`, or `mixed` where the flows differ.
    verdict: String,
    flows: Vec<FlowRecord>,
}

impl Record {
    pub(super) fn new(
        arguments: &ExplainArguments,
        evaluator: &Evaluator<'_>,
        asked: &[Asked],
    ) -> Self {
        let flows: Vec<FlowRecord> = asked
            .iter()
            .map(|asked| FlowRecord::new(evaluator, asked))
            .collect();
        // A connection is as good as the worst of its flows.
        let connections: Vec<bool> = asked
            .chunk_by(|one, next| one.group == next.group)
            .scan(0, |from, group| {
                let to = *from + group.len();
                let is_allowed = flows[*from..to].iter().all(|flow| flow.verdict == "allow");
                *from = to;
                Some(is_allowed)
            })
            .collect();
        let verdict = match (connections.contains(&true), connections.contains(&false)) {
            (true, true) => "mixed",
            (true, false) => "allow",
            (false, _) => "deny",
        };
        let to = arguments.to.as_ref().map(ToString::to_string);
        Self {
            from: arguments.from.to_string(),
            to: to.unwrap_or_default(),
            via: arguments.via.as_ref().map(ToString::to_string),
            service: arguments.port.to_string(),
            verdict: verdict.to_owned(),
            flows,
        }
    }
}

/// One flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct FlowRecord {
    from: String,
    to: String,
    source: IpAddr,
    destination: IpAddr,
    protocol: String,
    port: Option<u16>,
    /// Flows with the same number make up one connection.
    connection: usize,
    /// What happens to the packet on its way.
    steps: Vec<String>,
    verdict: String,
    directions: Vec<DirectionRecord>,
}

impl FlowRecord {
    fn new(evaluator: &Evaluator<'_>, asked: &Asked) -> Self {
        let flow = &asked.flow;
        let explain = |direction: &Direction| evaluator.explain(*direction, flow);
        let explanations: Vec<Explanation<'_>> = asked.directions.iter().map(explain).collect();
        let verdict = explanations.iter().map(|one| one.decision.verdict).max();
        Self {
            from: asked.from.clone(),
            to: asked.to.clone(),
            source: flow.source,
            destination: flow.destination,
            protocol: protocol_name(flow.protocol),
            port: flow.port,
            connection: asked.group,
            steps: asked.steps.clone(),
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
