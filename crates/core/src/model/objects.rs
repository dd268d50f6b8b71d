//! Objects sorted by the id that each carries: a map that does not keep its keys twice.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeFrom;
use std::sync::Arc;

use super::{Endpoint, EndpointId, Policy, PolicyId};

/// What carries its id.
pub trait Identified {
    /// Type of the id.
    type Id: Ord;

    /// The id. It never changes while the object is in a collection.
    fn id(&self) -> &Self::Id;
}

/// An object, sorted by its id. Behind a pointer: a sparse node of the tree costs little then, and indices share it.
#[derive(Clone)]
struct Entry<T>(Arc<T>);

/// Objects by id.
#[derive(Clone)]
pub struct Objects<T: Identified>(BTreeSet<Entry<T>>);

macro_rules! identified {
    ($object:ty, $id:ty) => {
        impl Identified for $object {
            type Id = $id;

            fn id(&self) -> &$id {
                &self.id
            }
        }

        impl Borrow<$id> for Entry<$object> {
            fn borrow(&self) -> &$id {
                &self.0.id
            }
        }
    };
}

identified!(Endpoint, EndpointId);
identified!(Policy, PolicyId);

impl<T: Identified> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0.id() == other.0.id()
    }
}

impl<T: Identified> Eq for Entry<T> {}

impl<T: Identified> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T: Identified> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.id().cmp(other.0.id())
    }
}

#[expect(private_bounds, reason = "holds for every type of object there is")]
impl<T: Identified + Clone> Objects<T>
where
    Entry<T>: Borrow<T::Id>,
{
    /// The object of this id.
    pub fn get(&self, id: &T::Id) -> Option<&T> {
        self.0.get(id).map(|entry| &*entry.0)
    }

    /// The object of this id, to be shared.
    pub(crate) fn shared(&self, id: &T::Id) -> Option<&Arc<T>> {
        self.0.get(id).map(|entry| &entry.0)
    }

    /// Whether there is an object of this id.
    pub fn contains_key(&self, id: &T::Id) -> bool {
        self.0.contains(id)
    }

    /// Puts an object in; returns the one of the same id that it replaced.
    pub fn insert(&mut self, object: T) -> Option<T> {
        let old = self.0.replace(Entry(Arc::new(object)));
        old.map(|entry| Arc::unwrap_or_clone(entry.0))
    }

    /// Takes an object out.
    pub fn remove(&mut self, id: &T::Id) -> Option<T> {
        let old = self.0.take(id);
        old.map(|entry| Arc::unwrap_or_clone(entry.0))
    }

    /// All objects from this id on.
    pub fn range(&self, from: RangeFrom<&T::Id>) -> impl Iterator<Item = &T> + use<'_, T> {
        self.0.range::<T::Id, _>(from).map(|entry| &*entry.0)
    }

    /// All objects, by id.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|entry| &*entry.0)
    }

    /// All ids, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &T::Id> {
        self.values().map(Identified::id)
    }

    /// All objects, by id.
    pub fn into_values(self) -> impl Iterator<Item = T> {
        self.0
            .into_iter()
            .map(|entry| Arc::unwrap_or_clone(entry.0))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<T: Identified> Extend<T> for Objects<T> {
    fn extend<I: IntoIterator<Item = T>>(&mut self, objects: I) {
        for object in objects {
            self.0.replace(Entry(Arc::new(object)));
        }
    }
}

impl<T: Identified> Default for Objects<T> {
    fn default() -> Self {
        Self(BTreeSet::new())
    }
}

impl<T: Identified + PartialEq> PartialEq for Objects<T> {
    fn eq(&self, other: &Self) -> bool {
        let objects = |of: &Self| of.0.len();
        objects(self) == objects(other) && self.0.iter().zip(&other.0).all(|(a, b)| a.0 == b.0)
    }
}

impl<T: Identified + Eq> Eq for Objects<T> {}

impl<T: Identified + fmt::Debug> fmt::Debug for Objects<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.0.iter().map(|entry| &entry.0))
            .finish()
    }
}
