//! What equal rules make of each class. Endpoints with the same rules in a direction share it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::USED_UP;
use super::class::{Classes, is_nothing};
use super::compile::{Claimant, MatcherId, Signature, allowed};
use super::local::Compiled;
use super::port_space::PortSpace;
use super::transition::Written;
use crate::tables::ClassId;

/// So many judgements are kept even if no class needs them at the moment.
const FEW: usize = 64;
/// So many matchers in one judgement, and it is not kept.
const LONG: usize = 64;

/// Number of a side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct SideId(u32);

/// The verdicts of one list of rules.
#[derive(Clone, Debug)]
struct Side {
    rules: Arc<Compiled>,
    /// Matchers of the rules that are refused: everybody meets them perhaps. Sorted.
    refused: Claimant,
    /// What class 0 may use.
    base: Arc<PortSpace>,
    /// What the classes may use for which that is not the base.
    allowed: BTreeMap<ClassId, Arc<PortSpace>>,
    /// What peers may use, by that of their signature which these rules ask for. Rules and numbers of matchers never
    /// change their meaning, so it holds as long as the side.
    judged: FxHashMap<Signature, Arc<PortSpace>>,
    written: Arc<Written>,
    users: u32,
}

/// The sides in use.
#[derive(Clone, Debug, Default)]
pub(super) struct Sides {
    numbers: FxHashMap<Arc<Compiled>, SideId>,
    known: FxHashMap<SideId, Side>,
    /// Matchers that are refused, sorted.
    refused: Vec<MatcherId>,
    last: u32,
}

/// Sides that are written otherwise now, each with what was written before.
pub(super) type Rewritten = BTreeMap<SideId, Arc<Written>>;

impl Sides {
    /// One more endpoint has these rules.
    pub(super) fn acquire(&mut self, rules: &Arc<Compiled>, classes: &Classes) -> SideId {
        let id = match self.numbers.entry(rules.clone()) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(vacant) => {
                self.last = self.last.checked_add(1).expect(USED_UP);
                let id = *vacant.insert(SideId(self.last));
                let side = Side::new(rules.clone(), &self.refused, classes);
                self.known.insert(id, side);
                id
            }
        };
        self.get_mut(id).users += 1;
        id
    }

    /// One endpoint fewer has these rules.
    pub(super) fn release(&mut self, id: SideId) {
        let side = self.get_mut(id);
        side.users -= 1;
        if side.users == 0 {
            let rules = side.rules.clone();
            self.known.remove(&id);
            self.numbers.remove(&rules);
        }
    }

    /// The rules of a side.
    pub(super) fn rules(&self, id: SideId) -> &Arc<Compiled> {
        &self.get(id).rules
    }

    /// What is written of a side.
    pub(super) fn written(&self, id: SideId) -> &Arc<Written> {
        &self.get(id).written
    }

    /// Takes over which matchers are refused.
    pub(super) fn refuse(&mut self, refused: &[MatcherId], classes: &Classes) -> Rewritten {
        let mut rewritten = Rewritten::new();
        if self.refused == refused {
            return rewritten;
        }
        self.refused = refused.to_vec();
        for (id, side) in &mut self.known {
            if side.refused != refused_of(&side.rules, refused) {
                let new = Side {
                    users: side.users,
                    ..Side::new(side.rules.clone(), refused, classes)
                };
                let old = std::mem::replace(side, new);
                if old.written != side.written {
                    rewritten.insert(*id, old.written);
                }
            }
        }
        rewritten
    }

    /// Judges classes that are new, or mean something else.
    pub(super) fn judge(&mut self, fresh: &[ClassId], classes: &Classes) -> Rewritten {
        self.change(|side| {
            let mut is_changed = false;
            for class in fresh {
                is_changed |= side.judge(*class, classes.signature(*class));
            }
            is_changed
        })
    }

    /// Gives classes the verdicts of others: copy and source.
    pub(super) fn copy(&mut self, sources: &BTreeMap<ClassId, ClassId>) -> Rewritten {
        self.change(|side| {
            let before = side.allowed.len();
            for (copy, source) in sources {
                if let Some(allowed) = side.allowed.get(source).cloned() {
                    side.allowed.insert(*copy, allowed);
                }
            }
            side.allowed.len() > before
        })
    }

    /// Forgets classes. State stays until rules change, which is no difference: the base alone may be open now.
    pub(super) fn forget(&mut self, gone: &[ClassId]) -> Rewritten {
        self.change(|side| {
            let before = side.allowed.len();
            for class in gone {
                side.allowed.remove(class);
            }
            if side.judged.len() > 2 * side.allowed.len() + FEW {
                side.judged.clear();
            }
            side.allowed.len() < before
        })
    }

    fn change(&mut self, change: impl Fn(&mut Side) -> bool) -> Rewritten {
        let mut rewritten = Rewritten::new();
        for (id, side) in &mut self.known {
            if change(side) {
                let written = Arc::new(Written::of(&side.base, &side.allowed));
                rewritten.insert(*id, std::mem::replace(&mut side.written, written));
            }
        }
        rewritten
    }

    fn get(&self, id: SideId) -> &Side {
        self.known
            .get(&id)
            .expect("a side lives as long as its users")
    }

    fn get_mut(&mut self, id: SideId) -> &mut Side {
        self.known
            .get_mut(&id)
            .expect("a side lives as long as its users")
    }
}

impl Side {
    /// Judges every class by these rules.
    fn new(rules: Arc<Compiled>, refused: &[MatcherId], classes: &Classes) -> Self {
        let refused = refused_of(&rules, refused);
        let base = Arc::new(allowed(&rules.tiers, &vec![refused.clone()]));
        let mut side = Self {
            rules,
            refused,
            base,
            allowed: BTreeMap::new(),
            judged: FxHashMap::default(),
            written: Arc::new(Written::Open),
            users: 0,
        };
        for (class, signature) in classes.iter() {
            side.judge(class, Some(signature));
        }
        side.written = Arc::new(Written::of(&side.base, &side.allowed));
        side
    }

    /// Judges one class; returns whether that changed anything.
    fn judge(&mut self, class: ClassId, signature: Option<&Signature>) -> bool {
        let new = signature.and_then(|signature| self.allowed_for(signature));
        match new {
            Some(new) if *new != *self.base => {
                let old = self.allowed.insert(class, new.clone());
                old.is_none_or(|old| *old != *new)
            }
            _ => self.allowed.remove(&class).is_some(),
        }
    }

    /// What peers of a signature may use; `None` is the base, because no rule tells them from anybody.
    fn allowed_for(&mut self, signature: &Signature) -> Option<Arc<PortSpace>> {
        let asked = projection(signature, &self.rules.matchers);
        if is_nothing(&asked) {
            return None;
        }
        // A long one is one of many, all different; to keep them takes more than to judge them.
        let is_long = asked.iter().map(Vec::len).sum::<usize>() > LONG;
        if let Some(known) = self.judged.get(&asked).filter(|_| !is_long) {
            return Some(known.clone());
        }
        let allowed = allowed(&self.rules.tiers, &self.with_refused(&asked));
        let shared = if allowed == *self.base {
            self.base.clone()
        } else {
            Arc::new(allowed)
        };
        if !is_long {
            self.judged.insert(asked, shared.clone());
        }
        Some(shared)
    }

    /// What is refused is met perhaps, whatever a class met of it before.
    fn with_refused<'s>(&self, asked: &'s Signature) -> Cow<'s, Signature> {
        if self.refused.is_empty() {
            return Cow::Borrowed(asked);
        }
        let is_refused = |id: MatcherId| self.refused.binary_search(&(id, false)).is_ok();
        let claimants = asked.iter().map(|claimant| {
            let rest = claimant.iter().filter(|(id, _)| !is_refused(*id));
            let mut all: Claimant = rest.chain(&self.refused).copied().collect();
            all.sort_unstable();
            all
        });
        Cow::Owned(claimants.collect())
    }
}

/// The matchers of rules that are refused.
fn refused_of(rules: &Compiled, refused: &[MatcherId]) -> Claimant {
    let all = refused.iter();
    let of_rules = all.filter(|id| rules.matchers.binary_search(id).is_ok());
    of_rules.map(|id| (*id, false)).collect()
}

/// The part of a signature that some matchers (sorted) ask for. A claimant that meets none of them still counts: what
/// it may not use, the address may not.
fn projection(signature: &Signature, matchers: &[MatcherId]) -> Signature {
    let mut asked: Signature = signature
        .iter()
        .map(|claimant| {
            let met = claimant.iter();
            met.filter(|(id, _)| matchers.binary_search(id).is_ok())
                .copied()
                .collect()
        })
        .collect();
    if asked.len() > 1 {
        asked.sort_unstable();
        asked.dedup();
    }
    asked
}
