//! The walk through tiers, policies and rules. There is one, whether somebody watches it or not.

use super::Certainty;
use super::explain::Claimant;
use super::index::Workload;
use super::matching::{Packet, PeerOutcome, PeerSide, PortOutcome};
use crate::model::{
    Action, Direction, Endpoint, Node, Peer, Peers, Policy, PortMatch, Ports, Rule, TierDefault,
    Verdict,
};

/// Hears every step of a walk, in order. Plain judging uses [`Silent`], which costs nothing.
pub(super) trait Observer<'a> {
    /// Whether to compare conditions that cannot change the outcome of their rule any more.
    const IS_COMPLETE: bool;

    /// One claimant of the peer address, or the address alone, is judged from here to `end`.
    fn begin(&mut self, _claimant: Option<Claimant<'a>>) {}
    /// The uncertain pass of this rule is followed from here to `end`; then the walk goes on without it.
    fn begin_assumed_pass(&mut self, _policy: &'a Policy, _index: usize) {}
    /// The end of what was begun last.
    fn end(&mut self, _cause: &Cause<'_, 'a>) {}
    /// The walk enters the tier of this policy.
    fn tier(&mut self, _first: &'a Policy) {}
    /// The walk enters a policy that selects the endpoint.
    fn policy(&mut self, _policy: &'a Policy) {}
    /// One port condition of the rule that is reported next.
    fn port(&mut self, _port: &'a PortMatch, _outcome: PortOutcome<'a>) {}
    /// One peer condition of the rule that is reported next.
    fn peer(&mut self, _peer: &'a Peer, _outcome: PeerOutcome<'a>) {}
    /// A rule was compared.
    fn rule(&mut self, _index: usize, _rule: &'a Rule, _found: RuleMatch) {}
    /// The rule that was reported last leaves its tier.
    fn passed(&mut self) {}
}

/// The observer of plain judging.
pub(super) struct Silent;

impl Observer<'_> for Silent {
    const IS_COMPLETE: bool = false;
}

/// What came of comparing a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RuleMatch {
    /// Of the rule.
    pub(super) certainty: Certainty,
    /// Of its peers alone, best first.
    pub(super) peers: Certainty,
    /// Whether any of its ports matches.
    pub(super) has_port: bool,
}

/// What decided, by reference.
#[derive(Clone, Copy, Debug)]
pub(super) enum Cause<'e, 'a> {
    Rule {
        policy: &'a Policy,
        index: usize,
        verdict: Verdict,
    },
    /// The policies of the tier, at least one.
    TierDefault(&'e [&'a Policy]),
    NoPolicy,
    Unknown,
    NotJudged,
    OwnNode(&'a Node),
}

/// The judgement of one direction, by reference.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ruling<'e, 'a> {
    pub(super) endpoint: Option<&'a Endpoint>,
    pub(super) cause: Cause<'e, 'a>,
}

/// One endpoint against one peer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case<'e, 'a> {
    pub(super) direction: Direction,
    pub(super) workload: &'e Workload<'a>,
    pub(super) peer: PeerSide<'e, 'a>,
    pub(super) packet: Packet,
}

impl<'e, 'a> Case<'e, 'a> {
    /// Judges by these policies: those that apply, in the order of evaluation.
    pub(super) fn walk<O: Observer<'a>>(
        &self,
        policies: &'e [&'a Policy],
        observer: &mut O,
    ) -> Cause<'e, 'a> {
        let mut rest = policies;
        while let Some(first) = rest.first() {
            let length = rest
                .iter()
                .take_while(|policy| policy.tier == first.tier)
                .count();
            let (tier, later) = rest.split_at(length);
            if let Some(cause) = self.walk_tier(tier, later, observer) {
                return cause;
            }
            rest = later;
        }
        Cause::NoPolicy
    }

    /// `None`: the tiers after this one decide.
    fn walk_tier<O: Observer<'a>>(
        &self,
        tier: &'e [&'a Policy],
        later: &'e [&'a Policy],
        observer: &mut O,
    ) -> Option<Cause<'e, 'a>> {
        observer.tier(tier[0]);
        let mut has_assumed_pass = false;
        for policy in tier {
            observer.policy(policy);
            for (index, rule) in policy
                .rules(self.direction)
                .unwrap_or(&[])
                .iter()
                .enumerate()
            {
                let decided = |verdict| {
                    Some(Cause::Rule {
                        policy,
                        index,
                        verdict,
                    })
                };
                match (rule.action, self.compare(index, rule, observer)) {
                    (_, Certainty::No) | (Action::Accept, Certainty::Uncertain) => {}
                    (Action::Accept, Certainty::Yes) => return decided(Verdict::Allow),
                    (Action::Deny, Certainty::Uncertain | Certainty::Yes) => {
                        return decided(Verdict::Deny);
                    }
                    (Action::Pass, Certainty::Yes) => {
                        observer.passed();
                        return None;
                    }
                    // What follows the tier is the same for each uncertain pass of it: once is enough.
                    (Action::Pass, Certainty::Uncertain) if has_assumed_pass => {}
                    (Action::Pass, Certainty::Uncertain) => {
                        has_assumed_pass = true;
                        observer.begin_assumed_pass(policy, index);
                        let cause = self.walk(later, observer);
                        observer.end(&cause);
                        if cause.verdict() == Verdict::Deny {
                            return Some(cause);
                        }
                    }
                }
            }
        }
        match tier[0].tier.default {
            TierDefault::Deny => Some(Cause::TierDefault(tier)),
            TierDefault::Pass => None,
        }
    }

    /// A rule matches when one of its ports does and one of its peers does. On egress a named port belongs to
    /// the destination workload, so it counts with workload conditions and with "anybody" only.
    fn compare<O: Observer<'a>>(
        &self,
        index: usize,
        rule: &'a Rule,
        observer: &mut O,
    ) -> Certainty {
        let (plain, named) = self.compare_ports(&rule.ports, observer);
        let is_wanted = |peer: &Peer| {
            plain
                || named
                    && (self.direction == Direction::Ingress
                        || matches!(peer, Peer::Workloads { .. }))
        };
        let mut result = RuleMatch {
            certainty: Certainty::No,
            peers: Certainty::No,
            has_port: plain || named,
        };
        match &rule.peers {
            Peers::Any => {
                result.peers = Certainty::Yes;
                result.certainty = if result.has_port {
                    Certainty::Yes
                } else {
                    Certainty::No
                };
            }
            Peers::Of(_) if !result.has_port && !O::IS_COMPLETE => {}
            Peers::Of(peers) => {
                for peer in peers {
                    let outcome = self.peer.compare(peer);
                    observer.peer(peer, outcome);
                    result.peers = result.peers.max(outcome.certainty());
                    if is_wanted(peer) {
                        result.certainty = result.certainty.max(outcome.certainty());
                    }
                    if result.certainty == Certainty::Yes && !O::IS_COMPLETE {
                        break;
                    }
                }
            }
        }
        observer.rule(index, rule, result);
        result.certainty
    }

    /// Whether a numeric port matches, and whether a named one does.
    fn compare_ports<O: Observer<'a>>(&self, ports: &'a Ports, observer: &mut O) -> (bool, bool) {
        let Ports::Of(ports) = ports else {
            return (true, false);
        };
        let owner = match self.direction {
            Direction::Ingress => Some(self.workload.endpoint),
            Direction::Egress => self.peer.workload().map(|workload| workload.endpoint),
        };
        let (mut plain, mut named) = (false, false);
        for port in ports {
            let outcome = self.packet.compare(port, owner);
            observer.port(port, outcome);
            match port {
                PortMatch::Range { .. } => plain |= outcome.is_match(),
                PortMatch::Named { .. } => named |= outcome.is_match(),
            }
            if plain && !O::IS_COMPLETE {
                break;
            }
        }
        (plain, named)
    }
}
