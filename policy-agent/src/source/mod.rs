//! Where objects come from: a directory of manifests ([`FileSource`]) or an API server ([`kubernetes`]).
//!
//! A source hands out [`Batch`]es: the objects whose meaning changed, what is wrong with the rest, and whether the
//! source is in sync. It never takes back a good object because of a bad text (edge case 1), and when it cannot be
//! read it keeps quiet and says so.
//!
//! Not here: what a manifest means (crate `towpath-api`), what the objects lead to (crate `towpath-core`).

mod debounce;
mod directory;
mod file;
mod finding;
pub mod kubernetes;
mod ledger;
mod namespaces;
mod read;
mod services;
mod watch;

use std::collections::BTreeMap;
use std::time::Instant;

use towpath_core::model::Update;

pub use directory::is_manifest;
pub use file::{Detail, FileSource, Loaded, load};
pub use finding::Finding;
pub use namespaces::KeptNamespaces;
pub(crate) use services::{ServiceSeen, see_in_files};
pub use watch::WatchHandle;

/// Whether a source knows its objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceState {
    /// Everything that is there was read.
    InSync,
    /// Something could not be read; what was known before stays in force.
    NotInSync {
        /// What, and what to do.
        reason: String,
    },
}

impl SourceState {
    /// Whether it is in sync.
    pub fn is_in_sync(&self) -> bool {
        matches!(self, Self::InSync)
    }
}

/// What happened at a source since its last batch, by kind; for counters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Versions of objects that could not be read as what they should be.
    pub malformed: BTreeMap<&'static str, u64>,
    /// Watches that the server could not go on with, because it no longer knows where they stood; a list follows.
    pub expired: BTreeMap<&'static str, u64>,
}

/// Up to which `resourceVersion` a source has told of each kind; 0 where it has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Versions {
    /// Of `Pod`.
    pub pods: u64,
    /// Of `Namespace`.
    pub namespaces: u64,
    /// Of `Node`.
    pub nodes: u64,
    /// Of `NetworkPolicy`.
    pub network_policies: u64,
    /// Of `ClusterNetworkPolicy`.
    pub cluster_network_policies: u64,
}

/// One step of a source. The first is the whole state.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Changes of objects, in the order in which they take effect.
    pub updates: Vec<Update>,
    /// Everything that is wrong at the moment, sorted by place, shortened to a thousand.
    pub findings: Vec<Finding>,
    /// Whether everything could be read.
    pub state: SourceState,
    /// When the first event that led to it was received.
    pub received: Instant,
    /// Objects in force.
    pub objects: usize,
    /// Manifest files.
    pub files: usize,
    /// What is only counted. Of a folder nothing is: the same text may be read many times.
    pub tally: Tally,
    /// Up to which version objects were told of.
    pub versions: Versions,
}
