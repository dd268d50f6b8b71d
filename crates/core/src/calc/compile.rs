//! From ordered rules to the set of ports that a peer may use.
//!
//! A rule is broken into terms: one matcher (or anybody) and the ports that it opens to it. A peer is known by
//! the matchers that it meets, surely or perhaps (a workload of an unknown namespace, edge case 2).

use std::sync::Arc;

use super::port_space::PortSpace;
use crate::model::{Action, TierDefault};

/// Number of a matcher.
pub(super) type MatcherId = u32;

/// What one claimant of an address meets: matcher, and whether for sure. Sorted.
pub(super) type Claimant = Vec<(MatcherId, bool)>;

/// All claimants of an address, sorted, each kind once; what it may reach is what every one of them may.
pub(super) type Signature = Vec<Claimant>;

/// A part of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Term {
    /// Whom it concerns; `None` is anybody.
    pub(super) matcher: Option<MatcherId>,
    /// Which ports.
    pub(super) ports: Arc<PortSpace>,
}

/// A rule as terms.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct CompiledRule {
    pub(super) action: Action,
    pub(super) terms: Vec<Term>,
}

/// The rules of one tier that apply to an endpoint in one direction, in order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct CompiledTier {
    pub(super) default: TierDefault,
    pub(super) rules: Vec<CompiledRule>,
}

/// What a peer with this signature may use.
pub(super) fn allowed(tiers: &[CompiledTier], signature: &Signature) -> PortSpace {
    let of_claimant = |claimant: &Claimant| {
        tiers.iter().rev().fold(PortSpace::full(), |later, tier| {
            tier.allowed(claimant, &later)
        })
    };
    signature
        .iter()
        .map(of_claimant)
        .reduce(|a, b| a.intersection(&b))
        .unwrap_or_else(|| of_claimant(&Claimant::new()))
}

impl CompiledTier {
    /// What passes this tier and the later ones, which let `later` through.
    fn allowed(&self, claimant: &Claimant, later: &PortSpace) -> PortSpace {
        let mut undecided = PortSpace::full();
        let mut accepted = PortSpace::default();
        let mut passed = PortSpace::default();
        // Where a Pass applies perhaps: both outcomes must allow.
        let mut perhaps_passed = PortSpace::default();
        // Neighbours with one action are one rule: their order does not matter.
        for rules in self.rules.chunk_by(|a, b| a.action == b.action) {
            let [sure, perhaps] = regions(rules, claimant);
            match rules[0].action {
                Action::Accept => {
                    accepted = accepted.union(&undecided.intersection(&sure));
                    undecided = undecided.difference(&sure);
                }
                Action::Deny => undecided = undecided.difference(&sure.union(&perhaps)),
                Action::Pass => {
                    passed = passed.union(&undecided.intersection(&sure));
                    perhaps_passed = perhaps_passed.union(&undecided.intersection(&perhaps));
                    undecided = undecided.difference(&sure);
                }
            }
        }
        if self.default == TierDefault::Pass {
            passed = passed.union(&undecided);
        }
        let allowed = accepted.union(&passed.intersection(later));
        allowed.difference(&perhaps_passed.difference(later))
    }
}

/// What some rules match for a claimant: for sure, and perhaps.
fn regions(rules: &[CompiledRule], claimant: &Claimant) -> [PortSpace; 2] {
    let mut met: [Vec<&PortSpace>; 2] = [Vec::new(), Vec::new()];
    for term in rules.iter().flat_map(|rule| &rule.terms) {
        let is_sure = match term.matcher {
            None => true,
            Some(matcher) => match claimant.binary_search_by_key(&matcher, |(id, _)| *id) {
                Ok(index) => claimant[index].1,
                Err(_) => continue,
            },
        };
        met[usize::from(!is_sure)].push(&term.ports);
    }
    met.map(PortSpace::union_of)
}
