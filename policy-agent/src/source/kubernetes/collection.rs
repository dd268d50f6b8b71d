//! Which version of which object counts: the memory of one kind, without its objects.
//!
//! Versions are revisions of the API server's store, one sequence for all kinds. What is known of a kind grows from
//! three sides: a list of everything (in pages, all of one revision), the events of a watch that goes on from a list,
//! and reads of a *partition* (the policies of one namespace, say) that were made ahead of the watch. Each says up to
//! which revision it is complete, and nothing older undoes it: a partition that was read has a *floor*, below which
//! pages and events say nothing new about it, removals included.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use super::resource::Resource;

/// What is known of an object.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) version: u64,
    /// Hash of the uid.
    pub(super) uid: u64,
    /// The list in which it was seen last.
    seen: u32,
    pub(super) standing: Standing,
}

/// What consumers hold of an object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Standing {
    /// Nothing.
    #[default]
    Absent,
    /// A good version with this meaning. A pod of this node that is let in may change without waiting again.
    Good { meaning: u64, is_let_in: bool },
    /// A stand-in with this meaning.
    StandIn { meaning: u64 },
}

/// What an offered version is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Offered {
    /// Nothing new.
    Old,
    /// The newest version of an object.
    New,
    /// The first version of another object of the same name.
    Replaced,
}

/// All objects of a kind.
#[derive(Debug)]
pub(super) struct Collection {
    resource: Resource,
    pub(super) entries: BTreeMap<Box<str>, Entry>,
    /// Partitions that are known up to a later revision than `progress`.
    floors: BTreeMap<Box<str>, u64>,
    /// Every change up to this revision is known.
    progress: u64,
    /// Revision of the list that is being read.
    listing: Option<u64>,
    /// Lists so far.
    lists: u32,
    is_listed: bool,
    /// The API server does not know the kind, and did not at this revision.
    absent: Option<u64>,
    /// Answers in a row that the API server does not know a kind of which there are objects.
    misses: u32,
}

/// So often the API server must say that it does not know a kind before the objects of it count as removed.
const MISSES: u32 = 3;

impl Collection {
    pub(super) fn new(resource: Resource) -> Self {
        Self {
            resource,
            entries: BTreeMap::new(),
            floors: BTreeMap::new(),
            progress: 0,
            listing: None,
            lists: 0,
            is_listed: false,
            absent: None,
            misses: 0,
        }
    }

    /// Whether all objects were known once.
    pub(super) fn is_listed(&self) -> bool {
        self.is_listed
    }

    /// Up to which revision a partition is known.
    pub(super) fn known_to(&self, partition: &str) -> u64 {
        self.progress
            .max(self.floor(partition))
            .max(self.absent.unwrap_or_default())
    }

    fn floor(&self, partition: &str) -> u64 {
        self.floors.get(partition).copied().unwrap_or_default()
    }

    /// A list of this revision begins. True when the store has gone back in time (it was restored): then what was
    /// known has no version any more, and the list is right.
    pub(super) fn begin_list(&mut self, version: u64) -> bool {
        self.lists += 1;
        self.listing = Some(version);
        (self.absent, self.misses) = (None, 0);
        let is_back = version < self.progress;
        if is_back {
            self.progress = 0;
            for entry in self.entries.values_mut() {
                entry.version = 0;
            }
        }
        is_back
    }

    /// Forgets what reads have said; the revisions are of another history.
    pub(super) fn forget_reads(&mut self) {
        self.floors.clear();
        self.absent = self.absent.map(|_| 0);
    }

    /// A version from a list.
    pub(super) fn offer_listed(&mut self, name: &str, uid: u64, version: u64) -> Offered {
        if version <= self.floor(self.resource.partition(name)) {
            if let Some(entry) = self.entries.get_mut(name) {
                entry.seen = self.lists;
            }
            return Offered::Old;
        }
        self.offer(name, uid, version)
    }

    /// The list is over: what it did not name is gone. Returns the names, with what consumers hold.
    pub(super) fn end_list(&mut self) -> Vec<(Box<str>, Standing)> {
        let Some(version) = self.listing.take() else {
            return Vec::new();
        };
        let is_gone = |name: &str, entry: &Entry| {
            entry.seen != self.lists
                && entry.version <= version
                && self.floor(self.resource.partition(name)) <= version
        };
        let gone: Vec<Box<str>> = self
            .entries
            .iter()
            .filter(|(name, entry)| is_gone(name, entry))
            .map(|(name, _)| name.clone())
            .collect();
        self.is_listed = true;
        self.pass(version);
        let gone = self.take_out(gone);
        // A list comes sorted, which leaves the nodes of the tree half empty; made of all at once they are full.
        self.entries = std::mem::take(&mut self.entries).into_iter().collect();
        gone
    }

    /// The list was not read to its end, or not everything in it could be told from the rest: nothing is gone.
    pub(super) fn end_list_keeping(&mut self) {
        if let Some(version) = self.listing.take() {
            self.is_listed = true;
            self.pass(version);
        }
    }

    /// A version from the watch.
    pub(super) fn offer_watched(&mut self, name: &str, uid: u64, version: u64) -> Offered {
        let is_old = version <= self.known_by_watch(name);
        self.pass(version);
        if is_old {
            Offered::Old
        } else {
            self.offer(name, uid, version)
        }
    }

    /// The watch says that an object went away with this revision.
    pub(super) fn remove_watched(&mut self, name: &str, version: u64) -> Option<Standing> {
        let is_old = version <= self.known_by_watch(name);
        self.pass(version);
        let entry = self.entries.get(name)?;
        if is_old || entry.version > version {
            return None;
        }
        self.entries.remove(name).map(|entry| entry.standing)
    }

    fn known_by_watch(&self, name: &str) -> u64 {
        self.progress.max(self.floor(self.resource.partition(name)))
    }

    /// The watch has come so far.
    pub(super) fn pass(&mut self, version: u64) {
        if version > self.progress {
            self.progress = version;
            self.floors.retain(|_, floor| *floor > version);
        }
    }

    /// A read of a partition says what is there at this revision. False when more is known already.
    pub(super) fn begin_read(&mut self, partition: &str, version: u64) -> bool {
        if version <= self.progress.max(self.floor(partition)) {
            return false;
        }
        self.floors.insert(partition.into(), version);
        true
    }

    /// A version from the read.
    pub(super) fn offer_read(&mut self, name: &str, uid: u64, version: u64) -> Offered {
        self.offer(name, uid, version)
    }

    /// What the read did not name is gone.
    pub(super) fn end_read(
        &mut self,
        partition: &str,
        there: &BTreeSet<Box<str>>,
    ) -> Vec<(Box<str>, Standing)> {
        let gone = self
            .names_in(partition)
            .filter(|name| !there.contains(*name))
            .cloned()
            .collect();
        self.take_out(gone)
    }

    fn names_in(&self, partition: &str) -> impl Iterator<Item = &Box<str>> {
        let resource = self.resource;
        let first: Bound<&str> = match partition {
            "" => Bound::Unbounded,
            partition => Bound::Included(partition),
        };
        // Names of `a-b` stand between those of `a`, but all of `a` begin with it.
        self.entries
            .range::<str, _>((first, Bound::Unbounded))
            .map(|(name, _)| name)
            .take_while(move |name| name.starts_with(partition))
            .filter(move |name| resource.partition(name) == partition)
    }

    /// The API server does not know the kind. `None` while that is not certain, else what is gone.
    pub(super) fn miss(&mut self) -> Option<Vec<(Box<str>, Standing)>> {
        self.misses += 1;
        if !self.entries.is_empty() && self.misses < MISSES {
            return None;
        }
        (self.listing, self.is_listed) = (None, true);
        self.absent = Some(self.absent.unwrap_or_default());
        self.floors.clear();
        let all = self.entries.keys().cloned().collect();
        Some(self.take_out(all))
    }

    /// A read says that the kind is not there at this revision. False while a list has not said so.
    pub(super) fn is_missed_at(&mut self, version: u64) -> bool {
        if !self.entries.is_empty() {
            return false;
        }
        match &mut self.absent {
            Some(known) => {
                *known = version.max(*known);
                true
            }
            None => false,
        }
    }

    /// The one rule: a newer version counts, whoever brings it.
    fn offer(&mut self, name: &str, uid: u64, version: u64) -> Offered {
        let seen = self.lists;
        let Some(entry) = self.entries.get_mut(name) else {
            let entry = Entry {
                version,
                uid,
                seen,
                standing: Standing::Absent,
            };
            self.entries.insert(name.into(), entry);
            return Offered::New;
        };
        entry.seen = seen;
        if version <= entry.version {
            return Offered::Old;
        }
        let is_same = entry.uid == uid;
        (entry.version, entry.uid) = (version, uid);
        if is_same {
            Offered::New
        } else {
            Offered::Replaced
        }
    }

    fn take_out(&mut self, names: Vec<Box<str>>) -> Vec<(Box<str>, Standing)> {
        let take = |name: Box<str>| {
            let entry = self.entries.remove(&name)?;
            Some((name, entry.standing))
        };
        names.into_iter().filter_map(take).collect()
    }
}
