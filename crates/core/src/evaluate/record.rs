//! The observer that writes an [`Explanation`] while the walk decides.

use std::net::IpAddr;

use super::explain::{
    Claimant, Explanation, PeerTrace, PolicyTrace, PortTrace, RuleTrace, Side, TierEnd, TierTrace,
    Unselected, Walk,
};
use super::index::{Standing, select_subject};
use super::matching::{PeerOutcome, PortOutcome, Selection};
use super::walk::{Cause, Observer, RuleMatch};
use super::{Decision, Evaluator, Flow};
use crate::model::{Direction, Peer, Policy, PortMatch, Rule};

impl<'a> Evaluator<'a> {
    /// Explains one direction of [`Self::decide`].
    pub fn explain(&self, direction: Direction, flow: &Flow) -> Explanation<'a> {
        let (address, peer_address) = flow.sides(direction);
        let mut recorder = Recorder {
            direction,
            open: Vec::new(),
            done: Vec::new(),
        };
        let ruling = self.final_ruling(direction, flow, &mut recorder);
        Explanation {
            flow: *flow,
            address,
            side: self.side(address),
            peer_address,
            peer: self.side(peer_address),
            walks: recorder.done,
            unselected: self.unselected(direction, address),
            decision: Decision::new(direction, &ruling),
        }
    }

    /// What an address is.
    pub fn side(&self, address: IpAddr) -> Side<'a> {
        match self.index.standing(address) {
            Standing::Judged(workload) => Side::Workload(workload.endpoint),
            Standing::UnknownNamespace(workload) => Side::UnknownNamespace(workload.endpoint),
            Standing::Shared(several) => Side::Shared(
                several
                    .iter()
                    .map(|at| self.index.workload(*at).endpoint)
                    .collect(),
            ),
            Standing::Unowned(node) => Side::Unowned(node),
            Standing::Host => Side::Host(self.index.nodes(address).to_vec()),
            Standing::Missing | Standing::Outside => Side::Outside,
        }
    }

    fn unselected(&self, direction: Direction, address: IpAddr) -> Vec<Unselected<'a>> {
        let Standing::Judged(workload) = self.index.standing(address) else {
            return Vec::new();
        };
        let nearly = |policy: &'a Policy| match select_subject(policy, workload) {
            Selection::Not(mismatch) if mismatch.is_near_miss() => {
                Some(Unselected { policy, mismatch })
            }
            Selection::Selected | Selection::UnknownNamespace | Selection::Not(_) => None,
        };
        let candidates = self.index.candidates(workload);
        candidates
            .filter(|policy| policy.rules(direction).is_some())
            .filter_map(nearly)
            .collect()
    }
}

/// Writes down what it hears.
struct Recorder<'a> {
    direction: Direction,
    /// Walks that have not ended, innermost last.
    open: Vec<OpenWalk<'a>>,
    done: Vec<Walk<'a>>,
}

#[derive(Default)]
struct OpenWalk<'a> {
    claimant: Option<Claimant<'a>>,
    assumed_pass: Option<(&'a Policy, usize)>,
    tiers: Vec<TierTrace<'a>>,
    peers: Vec<PeerTrace<'a>>,
    ports: Vec<PortTrace<'a>>,
}

impl<'a> Recorder<'a> {
    fn current(&mut self) -> &mut OpenWalk<'a> {
        self.open
            .last_mut()
            .expect("a walk begins before its first step")
    }
}

impl<'a> OpenWalk<'a> {
    fn last_policy(&mut self) -> Option<&mut PolicyTrace<'a>> {
        self.tiers.last_mut()?.policies.last_mut()
    }

    /// Marks the last tier and rule by what decided.
    fn close(&mut self, cause: &Cause<'_, 'a>) {
        let Some(tier) = self.tiers.last_mut() else {
            return;
        };
        match cause {
            Cause::Rule { policy, index, .. } => {
                let last = tier
                    .policies
                    .last_mut()
                    .filter(|last| std::ptr::eq(last.policy, *policy));
                let rule = last.and_then(|policy| policy.rules.last_mut());
                match rule.filter(|rule| rule.index == *index) {
                    Some(rule) => {
                        rule.is_deciding = true;
                        tier.end = TierEnd::Decided;
                    }
                    None => tier.end = TierEnd::DeniedAfterPass,
                }
            }
            Cause::TierDefault(policies) if policies[0].tier == *tier.tier => {
                tier.end = TierEnd::Isolated;
            }
            Cause::TierDefault(_) => tier.end = TierEnd::DeniedAfterPass,
            Cause::NoPolicy | Cause::Unknown | Cause::NotJudged | Cause::OwnNode(_) => {}
        }
    }
}

impl<'a> Observer<'a> for Recorder<'a> {
    const IS_COMPLETE: bool = true;

    fn begin(&mut self, claimant: Option<Claimant<'a>>) {
        self.open.push(OpenWalk {
            claimant,
            ..OpenWalk::default()
        });
    }

    fn begin_assumed_pass(&mut self, policy: &'a Policy, index: usize) {
        let claimant = self.current().claimant;
        self.open.push(OpenWalk {
            claimant,
            assumed_pass: Some((policy, index)),
            ..OpenWalk::default()
        });
    }

    fn end(&mut self, cause: &Cause<'_, 'a>) {
        let Some(mut walk) = self.open.pop() else {
            return;
        };
        walk.close(cause);
        self.done.push(Walk {
            claimant: walk.claimant,
            assumed_pass: walk.assumed_pass,
            tiers: walk.tiers,
            verdict: cause.verdict(),
            reason: cause.reason(self.direction),
        });
    }

    fn tier(&mut self, first: &'a Policy) {
        let trace = TierTrace {
            tier: &first.tier,
            policies: Vec::new(),
            end: TierEnd::Undecided,
        };
        self.current().tiers.push(trace);
    }

    fn policy(&mut self, policy: &'a Policy) {
        if let Some(tier) = self.current().tiers.last_mut() {
            tier.policies.push(PolicyTrace {
                policy,
                rules: Vec::new(),
            });
        }
    }

    fn port(&mut self, port: &'a PortMatch, outcome: PortOutcome<'a>) {
        self.current().ports.push(PortTrace { port, outcome });
    }

    fn peer(&mut self, peer: &'a Peer, outcome: PeerOutcome<'a>) {
        self.current().peers.push(PeerTrace { peer, outcome });
    }

    fn rule(&mut self, index: usize, rule: &'a Rule, found: RuleMatch) {
        let walk = self.current();
        let trace = RuleTrace {
            index,
            rule,
            matched: found.certainty,
            peers_matched: found.peers,
            has_port: found.has_port,
            is_deciding: false,
            peers: std::mem::take(&mut walk.peers),
            ports: std::mem::take(&mut walk.ports),
        };
        if let Some(policy) = walk.last_policy() {
            policy.rules.push(trace);
        }
    }

    fn passed(&mut self) {
        let walk = self.current();
        if let Some(rule) = walk
            .last_policy()
            .and_then(|policy| policy.rules.last_mut())
        {
            rule.is_deciding = true;
        }
        if let Some(tier) = walk.tiers.last_mut() {
            tier.end = TierEnd::Passed;
        }
    }
}
