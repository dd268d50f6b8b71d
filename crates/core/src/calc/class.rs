//! Classes: numbers for signatures, with the count of addresses and blocks that have them.

use rustc_hash::FxHashMap;

use super::compile::Signature;
use crate::tables::ClassId;

#[derive(Clone, Debug)]
struct Class {
    signature: Signature,
    members: u64,
}

/// All classes that the tables know. One signature may for a while have several (transitions), one of which is
/// canonical.
#[derive(Clone, Debug, Default)]
pub(super) struct Classes {
    canonical: FxHashMap<Signature, ClassId>,
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
        if let Some(class) = self.canonical.get(signature) {
            return (*class, false);
        }
        let class = self.fresh(signature);
        self.canonical.insert(signature.clone(), class);
        (class, true)
    }

    /// A class of its own for a signature, for the time of a transition.
    pub(super) fn fresh(&mut self, signature: &Signature) -> ClassId {
        self.last += 1;
        let class = ClassId(self.last);
        self.known.insert(
            class,
            Class {
                signature: signature.clone(),
                members: 0,
            },
        );
        class
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

    /// Every class with its signature.
    pub(super) fn iter(&self) -> impl Iterator<Item = (ClassId, &Signature)> {
        self.known.iter().map(|(id, class)| (*id, &class.signature))
    }

    /// The signature of a class; that of class 0 is nobody's.
    pub(super) fn signature(&self, class: ClassId) -> Option<&Signature> {
        self.known.get(&class).map(|class| &class.signature)
    }

    /// Forgets the classes that nobody has any more; returns them.
    pub(super) fn collect(&mut self) -> Vec<ClassId> {
        let gone: Vec<ClassId> = self
            .known
            .iter()
            .filter(|(_, class)| class.members == 0)
            .map(|(id, _)| *id)
            .collect();
        for id in &gone {
            if let Some(class) = self.known.remove(id)
                && self.canonical.get(&class.signature) == Some(id)
            {
                self.canonical.remove(&class.signature);
            }
        }
        gone
    }
}
