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
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Term {
    /// Whom it concerns; `None` is anybody.
    pub(super) matcher: Option<MatcherId>,
    /// Which ports.
    pub(super) ports: Arc<PortSpace>,
}

/// Rules of one action that follow one another: their order does not matter.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct CompiledRules {
    action: Action,
    /// Sorted by matcher, each once.
    terms: Vec<Term>,
}

/// The rules of one tier that apply to an endpoint in one direction, in order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct CompiledTier {
    default: TierDefault,
    rules: Vec<CompiledRules>,
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
    /// A tier of rules in order, each as its terms.
    pub(super) fn new<'t>(
        default: TierDefault,
        rules: impl Iterator<Item = &'t (Action, Vec<Term>)>,
    ) -> Self {
        let mut compiled: Vec<CompiledRules> = Vec::new();
        for (action, terms) in rules {
            match compiled.last_mut() {
                Some(last) if last.action == *action => last.terms.extend_from_slice(terms),
                _ => compiled.push(CompiledRules {
                    action: *action,
                    terms: terms.clone(),
                }),
            }
        }
        for rules in &mut compiled {
            rules.terms.sort_unstable();
            rules.terms.dedup();
            rules.terms.shrink_to_fit();
        }
        Self {
            default,
            rules: compiled,
        }
    }

    /// What passes this tier and the later ones, which let `later` through.
    fn allowed(&self, claimant: &Claimant, later: &PortSpace) -> PortSpace {
        let mut undecided = PortSpace::full();
        let mut accepted = PortSpace::default();
        let mut passed = PortSpace::default();
        // Where a Pass applies perhaps: both outcomes must allow.
        let mut perhaps_passed = PortSpace::default();
        for rules in &self.rules {
            let [sure, perhaps] = rules.regions(claimant);
            match rules.action {
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

impl CompiledRules {
    /// What they match for a claimant: for sure, and perhaps.
    fn regions(&self, claimant: &Claimant) -> [PortSpace; 2] {
        let of = |matcher: Option<MatcherId>| {
            let from = self.terms.partition_point(|term| term.matcher < matcher);
            let terms = self.terms[from..].iter();
            terms
                .take_while(move |term| term.matcher == matcher)
                .map(|term| &*term.ports)
        };
        let mut met: [Vec<&PortSpace>; 2] = [of(None).collect(), Vec::new()];
        for (id, is_sure) in claimant {
            met[usize::from(!is_sure)].extend(of(Some(*id)));
        }
        met.map(PortSpace::union_of)
    }
}
