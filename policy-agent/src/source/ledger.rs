//! Who says what about which object: the memory of a file source, without texts and without I/O.
//!
//! Each document of a file makes a claim about one object. Of several claims about one object the strongest is in
//! force: a good version before a missing one before a bad one, and among equals the first by file and place in it.
//! Consumers are told only when the meaning of what is in force changes.

mod claim;
mod reading;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use rustc_hash::FxHashMap;
use towpath_api::{Document, Identity, Place, Severity};
use towpath_core::model::{Object, ObjectKey, Update};

use super::finding::Finding;
use claim::{Claim, ClaimId, Standing, State};
use reading::Read;

/// Objects in one source.
pub(super) const OBJECTS: usize = 1_000_000;
/// Findings kept of all files together.
const FINDINGS: usize = 1_000;

/// What happened to a file.
#[derive(Debug)]
pub(super) enum FileChange {
    /// It is gone.
    Gone,
    /// It was read.
    Read(Vec<Document>),
    /// It is there and holds nothing at all.
    Empty,
    /// It is there but says nothing that can be understood.
    Unreadable(Finding),
}

/// The result of some changes.
#[derive(Debug, Default)]
pub(super) struct Applied {
    /// By key.
    pub(super) updates: BTreeMap<ObjectKey, Update>,
    /// Files whose objects come into force now although they did not change; they are to be read again.
    pub(super) reread: BTreeSet<Arc<str>>,
}

/// All claims.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    keeps_notes: bool,
    /// Files by name, as numbers of `files`.
    names: BTreeMap<Arc<str>, u32>,
    files: Vec<File>,
    /// Numbers of files that are gone.
    free: Vec<u32>,
    hasher: RandomState,
    /// By the hash of the key, which halves the memory; two keys of one hash do not happen in the life of a node.
    standings: FxHashMap<u64, Standing>,
    /// Objects with more than one claim.
    contested: BTreeSet<ObjectKey>,
    /// Objects in force.
    in_force: usize,
    /// Findings of all files, kept and counted.
    told: usize,
    untold: usize,
    /// Objects claimed beyond [`OBJECTS`].
    refused: usize,
}

/// What a file said.
#[derive(Debug)]
struct File {
    name: Arc<str>,
    claims: Box<[Claim]>,
    /// What was just read behind each claim; empty once it is settled.
    fresh: Vec<Option<Box<Object>>>,
    findings: Box<[Finding]>,
    /// Further findings, and objects that there was no room for.
    untold: u32,
    refused: u32,
}

impl Ledger {
    /// An empty ledger. Notes are for reviews; an agent that runs for months has no use for them.
    pub(super) fn new(keeps_notes: bool) -> Self {
        Self {
            keeps_notes,
            ..Self::default()
        }
    }

    /// Takes in changes of files. The updates of one call belong together: an object that moves between files is
    /// never gone between them.
    pub(super) fn apply(&mut self, changes: Vec<(Arc<str>, FileChange)>) -> Applied {
        let mut touched = BTreeSet::new();
        let mut changed = Vec::new();
        for (name, change) in changes {
            changed.extend(self.change(&name, change, &mut touched));
        }
        let mut applied = Applied::default();
        for key in touched {
            self.settle(key, &mut applied);
        }
        for file in changed {
            self.files[file as usize].fresh = Vec::new();
        }
        applied
    }

    /// Objects in force.
    pub(super) fn len(&self) -> usize {
        self.in_force
    }

    /// How many objects there was no room for.
    pub(super) fn refused(&self) -> usize {
        self.refused
    }

    /// Where each object in force stands.
    pub(super) fn places(&self) -> BTreeMap<ObjectKey, Place> {
        let mut places = BTreeMap::new();
        for claim in self.files.iter().flat_map(|file| &file.claims) {
            let Some(standing) = self.standings.get(&self.hash(&claim.key)) else {
                continue;
            };
            if let (Some(_), Some(id)) = (standing.in_force, self.strongest(standing)) {
                places.insert(claim.key.clone(), self.place(id));
            }
        }
        places
    }

    /// What is wrong at the moment, in no order, and how much more there is.
    pub(super) fn findings(&self) -> (Vec<Finding>, usize) {
        let mut findings = Vec::with_capacity(self.told);
        if self.told > 0 {
            findings.extend(
                self.files
                    .iter()
                    .flat_map(|file| file.findings.iter().cloned()),
            );
        }
        let contested = self.contested.iter().take(FINDINGS);
        findings.extend(contested.flat_map(|key| self.duplicates(key)));
        (
            findings,
            self.untold + self.contested.len().saturating_sub(FINDINGS),
        )
    }

    fn duplicates(&self, key: &ObjectKey) -> Vec<Finding> {
        let Some(standing) = self.standings.get(&self.hash(key)) else {
            return Vec::new();
        };
        let Some(strongest) = self.strongest(standing) else {
            return Vec::new();
        };
        let is_other = |id: &ClaimId| {
            *id != strongest && !matches!(self.claim(*id).state, State::Missing(_) | State::Lost(_))
        };
        let finding = |id: ClaimId| Finding {
            severity: Severity::Error,
            place: self.place(id),
            object: Identity::of(key).map(|identity| identity.to_string()),
            path: String::new(),
            message: format!(
                "the same object stands at {}, which is in force",
                self.place(strongest)
            ),
            advice: "remove one of the two, or give it another name".to_owned(),
        };
        standing.claims().filter(is_other).map(finding).collect()
    }

    fn hash(&self, key: &ObjectKey) -> u64 {
        self.hasher.hash_one(key)
    }

    fn claim(&self, id: ClaimId) -> &Claim {
        &self.files[id.file as usize].claims[id.index()]
    }

    fn place(&self, id: ClaimId) -> Place {
        let file = self.files[id.file as usize].name.clone();
        Place {
            file,
            line: self.claim(id).line,
        }
    }

    /// The claim that is in force, or would be.
    fn strongest(&self, standing: &Standing) -> Option<ClaimId> {
        if !standing.has_many() {
            return standing.claims().next();
        }
        let rank = |id: &ClaimId| {
            let file = &self.files[id.file as usize];
            (
                file.claims[id.index()].state.rank(),
                file.name.clone(),
                id.index(),
            )
        };
        standing.claims().min_by_key(rank)
    }

    /// Replaces all claims of one file; returns the file's number if it is still there.
    fn change(
        &mut self,
        name: &Arc<str>,
        change: FileChange,
        touched: &mut BTreeSet<ObjectKey>,
    ) -> Option<u32> {
        let old = self.withdraw(name, touched);
        let read = match change {
            FileChange::Gone => {
                let file = self.names.remove(name)?;
                self.free.push(file);
                return None;
            }
            FileChange::Read(documents) => reading::read(name, documents, &old, self.keeps_notes),
            FileChange::Empty if old.is_empty() => Read::default(),
            FileChange::Empty => {
                let message = "the file is empty; what it held stays in force".to_owned();
                let advice = "write it whole, or remove it";
                reading::keep(old, Finding::of_file(name, message, advice))
            }
            FileChange::Unreadable(finding) => reading::keep(old, finding),
        };
        Some(self.enter(name, read, touched))
    }

    /// Takes the claims of a file out. Their objects stay in force until they are settled.
    fn withdraw(&mut self, name: &Arc<str>, touched: &mut BTreeSet<ObjectKey>) -> Vec<Claim> {
        let Some(file) = self.names.get(name).copied() else {
            return Vec::new();
        };
        let entry = &mut self.files[file as usize];
        self.told -= entry.findings.len();
        self.untold -= entry.untold as usize;
        self.refused -= entry.refused as usize;
        (entry.untold, entry.refused, entry.findings) = (0, 0, Box::default());
        let claims = std::mem::take(&mut entry.claims).into_vec();
        for (index, claim) in (0..).zip(&claims) {
            let hash = self.hash(&claim.key);
            if let Some(standing) = self.standings.get_mut(&hash) {
                standing.remove(ClaimId::new(file, index));
            }
            touched.insert(claim.key.clone());
        }
        claims
    }

    /// Enters what a file says now.
    fn enter(&mut self, name: &Arc<str>, read: Read, touched: &mut BTreeSet<ObjectKey>) -> u32 {
        let Read {
            claims: read,
            mut findings,
            mut untold,
        } = read;
        let room = FINDINGS.saturating_sub(self.told);
        untold += findings.len().saturating_sub(room);
        findings.truncate(room);
        let file = self.number(name);
        let (mut claims, mut fresh) = (
            Vec::with_capacity(read.len()),
            Vec::with_capacity(read.len()),
        );
        let mut refused = 0;
        for (claim, object) in read {
            let hash = self.hash(&claim.key);
            if self.standings.len() >= OBJECTS && !self.standings.contains_key(&hash) {
                refused += 1;
                continue;
            }
            let index = u32::try_from(claims.len()).unwrap_or(u32::MAX);
            self.standings
                .entry(hash)
                .or_default()
                .add(ClaimId::new(file, index));
            touched.insert(claim.key.clone());
            claims.push(claim);
            fresh.push(object);
        }
        self.told += findings.len();
        self.untold += untold;
        self.refused += refused as usize;
        self.files[file as usize] = File {
            name: name.clone(),
            claims: claims.into_boxed_slice(),
            fresh,
            findings: findings.into_boxed_slice(),
            untold: u32::try_from(untold).unwrap_or(u32::MAX),
            refused,
        };
        file
    }

    /// The number of a file, a new one if it has none.
    fn number(&mut self, name: &Arc<str>) -> u32 {
        if let Some(file) = self.names.get(name) {
            return *file;
        }
        let file = self.free.pop().unwrap_or_else(|| {
            self.files.push(File {
                name: name.clone(),
                claims: Box::default(),
                fresh: Vec::new(),
                findings: Box::default(),
                untold: 0,
                refused: 0,
            });
            u32::try_from(self.files.len() - 1).unwrap_or(u32::MAX)
        });
        self.names.insert(name.clone(), file);
        file
    }

    /// Decides what is in force for one object, and tells consumers if that is something else.
    fn settle(&mut self, key: ObjectKey, applied: &mut Applied) {
        let hash = self.hash(&key);
        let Some(standing) = self.standings.get(&hash) else {
            return;
        };
        let before = standing.in_force;
        let strongest = self.strongest(standing);
        if standing.has_many() {
            self.contested.insert(key.clone());
        } else {
            self.contested.remove(&key);
        }
        let wanted = strongest.and_then(|id| Some((id, self.claim(id).state.wanted()?)));
        let after = match wanted {
            None => None,
            Some((_, wanted)) if before == Some(wanted) => return,
            // Where the text is gone, so is the way to another version than the one in force.
            Some((id, _)) if !self.claim(id).state.is_readable() => return,
            Some((id, wanted)) => {
                let file = &mut self.files[id.file as usize];
                let fresh = file.fresh.get_mut(id.index()).and_then(Option::take);
                let Some(object) = fresh else {
                    applied.reread.insert(file.name.clone());
                    return;
                };
                applied.updates.insert(key.clone(), Update::Upsert(*object));
                Some(wanted)
            }
        };
        if before.is_some() && after.is_none() {
            applied.updates.insert(key.clone(), Update::Remove(key));
        }
        self.in_force =
            self.in_force + usize::from(after.is_some()) - usize::from(before.is_some());
        if let Some(standing) = self.standings.get_mut(&hash) {
            standing.in_force = after;
            if standing.is_over() {
                self.standings.remove(&hash);
            }
        }
    }
}
