//! Classes: numbers for signatures, with the count of addresses and blocks that have them.
//!
//! One signature may have several classes: during a transition, and after a matcher went out of use that had told
//! them apart. One of them is canonical. The others live on, for to leave them costs an element per member; they are
//! emptied when there is time ([`Classes::is_leftover`]).

use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::USED_UP;
use super::compile::{MatcherId, Signature};
use crate::tables::ClassId;

#[derive(Clone, Debug)]
struct Class {
    signature: Arc<Signature>,
    members: u64,
}

/// All classes that the tables know.
#[derive(Clone, Debug, Default)]
pub(super) struct Classes {
    /// The classes of each signature; the first is canonical.
    alike: FxHashMap<Arc<Signature>, Vec<ClassId>>,
    known: FxHashMap<ClassId, Class>,
    last: u32,
}

/// Whether nothing at all is met.
pub(super) fn is_nothing(signature: &Signature) -> bool {
    signature.iter().all(Vec::is_empty)
}

impl Classes {
    /// The canonical class of a signature, and whether it is new.
    pub(super) fn canonical(&mut self, signature: &Signature) -> (ClassId, bool) {
        if is_nothing(signature) {
            return (ClassId::NONE, false);
        }
        match self.alike.get(signature) {
            Some(classes) => (classes[0], false),
            None => (self.fresh(signature), true),
        }
    }

    /// A class of its own for a signature, for the time of a transition.
    pub(super) fn fresh(&mut self, signature: &Signature) -> ClassId {
        self.last = self.last.checked_add(1).expect(USED_UP);
        let class = ClassId(self.last);
        let signature = Arc::new(signature.clone());
        self.known.insert(
            class,
            Class {
                signature: signature.clone(),
                members: 0,
            },
        );
        self.enter(class, signature);
        class
    }

    fn enter(&mut self, id: ClassId, signature: Arc<Signature>) {
        self.alike.entry(signature).or_default().push(id);
    }

    fn withdraw(&mut self, id: ClassId, signature: &Signature) {
        if let Some(classes) = self.alike.get_mut(signature) {
            classes.retain(|other| *other != id);
            if classes.is_empty() {
                self.alike.remove(signature);
            }
        }
    }

    /// Whether some class has this signature.
    pub(super) fn is_known(&self, signature: &Signature) -> bool {
        self.alike.contains_key(signature)
    }

    /// All members of a class have another signature now, which no class has yet.
    pub(super) fn rename(&mut self, id: ClassId, signature: &Signature) {
        let Some(class) = self.known.get_mut(&id) else {
            return;
        };
        let signature = Arc::new(signature.clone());
        let old = std::mem::replace(&mut class.signature, signature.clone());
        self.withdraw(id, &old);
        self.enter(id, signature);
    }

    /// Matchers (sorted) are out of use: no signature holds them any more.
    pub(super) fn forget(&mut self, dropped: &[MatcherId]) {
        let holds = |class: &Class| {
            let mut met = class.signature.iter().flatten();
            met.any(|(id, _)| dropped.binary_search(id).is_ok())
        };
        let concerned = self.known.iter().filter(|(_, class)| holds(class));
        let mut concerned: Vec<ClassId> = concerned.map(|(id, _)| *id).collect();
        // The largest becomes canonical: the others may have to move.
        concerned.sort_unstable_by_key(|id| (std::cmp::Reverse(self.known[id].members), *id));
        for id in concerned {
            let Some(class) = self.known.get_mut(&id) else {
                continue;
            };
            let mut signature = (*class.signature).clone();
            for claimant in &mut signature {
                claimant.retain(|(id, _)| dropped.binary_search(id).is_err());
            }
            signature.sort_unstable();
            signature.dedup();
            let signature = Arc::new(signature);
            let old = std::mem::replace(&mut class.signature, signature.clone());
            self.withdraw(id, &old);
            self.enter(id, signature);
        }
    }

    /// Whether another class, or none, would do as well for the members of this one.
    pub(super) fn is_leftover(&self, id: ClassId) -> bool {
        self.signature(id).is_some_and(|signature| {
            let canonical = self
                .alike
                .get(signature)
                .and_then(|classes| classes.first());
            is_nothing(signature) || canonical != Some(&id)
        })
    }

    /// One address or block more has this class.
    pub(super) fn join(&mut self, class: ClassId) {
        if let Some(class) = self.known.get_mut(&class) {
            class.members += 1;
        }
    }

    /// One address or block fewer has this class.
    pub(super) fn leave(&mut self, class: ClassId) {
        if let Some(class) = self.known.get_mut(&class) {
            class.members -= 1;
        }
    }

    /// How many addresses and blocks have this class.
    pub(super) fn members(&self, class: ClassId) -> u64 {
        self.known.get(&class).map_or(0, |class| class.members)
    }

    /// Every class with its signature.
    pub(super) fn iter(&self) -> impl Iterator<Item = (ClassId, &Signature)> {
        self.known
            .iter()
            .map(|(id, class)| (*id, &*class.signature))
    }

    /// The signature of a class; that of class 0 is nobody's.
    pub(super) fn signature(&self, class: ClassId) -> Option<&Signature> {
        self.known.get(&class).map(|class| &*class.signature)
    }

    /// Whether members of two classes are the same to all rules.
    pub(super) fn are_alike(&self, a: ClassId, b: ClassId) -> bool {
        let nothing = |class| self.signature(class).is_none_or(is_nothing);
        a == b || self.signature(a) == self.signature(b) || (nothing(a) && nothing(b))
    }

    /// Forgets the classes that nobody has any more; returns them.
    pub(super) fn collect(&mut self) -> Vec<ClassId> {
        let empty = self.known.iter().filter(|(_, class)| class.members == 0);
        let gone: Vec<ClassId> = empty.map(|(id, _)| *id).collect();
        for id in &gone {
            if let Some(class) = self.known.remove(id) {
                self.withdraw(*id, &class.signature);
            }
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signature(matchers: &[MatcherId]) -> Signature {
        vec![matchers.iter().map(|id| (*id, true)).collect()]
    }

    #[test]
    fn classes_that_a_dropped_matcher_told_apart_are_alike() {
        let mut classes = Classes::default();
        let (small, _) = classes.canonical(&signature(&[1, 2]));
        let (large, _) = classes.canonical(&signature(&[1]));
        classes.join(small);

        classes.forget(&[2]);

        assert!(classes.are_alike(small, large));
        assert!(classes.is_leftover(small));
        assert!(!classes.is_leftover(large));
        assert_eq!(classes.canonical(&signature(&[1])), (large, false));
    }

    #[test]
    fn a_class_without_matchers_is_like_none() {
        let mut classes = Classes::default();
        let (class, _) = classes.canonical(&signature(&[7]));
        classes.join(class);

        classes.forget(&[7]);

        assert!(classes.are_alike(class, ClassId::NONE));
        assert!(classes.is_leftover(class));
        assert_eq!(classes.canonical(&signature(&[])), (ClassId::NONE, false));
    }

    #[test]
    fn a_class_whose_canonical_one_is_gone_takes_its_place() {
        let mut classes = Classes::default();
        classes.canonical(&signature(&[1]));
        let copy = classes.fresh(&signature(&[1]));
        classes.join(copy);

        classes.collect();

        assert!(!classes.is_leftover(copy));
        assert_eq!(classes.canonical(&signature(&[1])), (copy, false));
    }

    #[test]
    #[should_panic(expected = "used up")]
    fn class_0_is_nobodys_even_when_numbers_are_used_up() {
        let mut classes = Classes {
            last: u32::MAX,
            ..Classes::default()
        };
        classes.canonical(&signature(&[1]));
    }

    #[test]
    fn a_renamed_class_keeps_its_number_and_members() {
        let mut classes = Classes::default();
        let (class, _) = classes.canonical(&signature(&[1]));
        classes.join(class);

        classes.rename(class, &signature(&[1, 2]));

        assert_eq!(classes.canonical(&signature(&[1, 2])), (class, false));
        assert_eq!(classes.members(class), 1);
        assert!(classes.canonical(&signature(&[1])).1);
    }
}
