//! One version of an object, as far as we need it.

use std::hash::{DefaultHasher, Hash, Hasher};

use towpath_api::{Header, Outcome, read_object};

use super::resource::Resource;

/// A version of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item {
    /// `namespace/name`, or the name alone where the kind is cluster-wide.
    pub(super) name: Box<str>,
    /// Hash of the uid.
    pub(super) uid: u64,
    /// `resourceVersion`.
    pub(super) version: u64,
    pub(super) outcome: Outcome,
}

impl Item {
    /// Reads an object; an error only where it cannot be told which object it is.
    pub(super) fn read(resource: Resource, bytes: &[u8]) -> Result<Self, String> {
        let (header, outcome) = read_object(resource.kind(), bytes)?;
        Ok(Self {
            name: name(&header),
            uid: hash(&header.uid),
            version: header.version,
            outcome,
        })
    }
}

/// The name under which an object is known here.
pub(super) fn name(header: &Header<'_>) -> Box<str> {
    if header.namespace.is_empty() {
        Box::from(&*header.name)
    } else {
        format!("{}/{}", header.namespace, header.name).into()
    }
}

/// The hash of something; the same in one process.
pub(super) fn hash(of: &(impl Hash + ?Sized)) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}
