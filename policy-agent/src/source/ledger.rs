//! Who says what about which object: the memory of a file source, without texts and without I/O.
//!
//! Each document of a file makes a [`Claim`] about one object. Of several claims about one object the strongest is
//! in force: a good version before a missing one before a bad one, and among equals the first by file and place in
//! it. Consumers are told only when the meaning of what is in force changes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use towpath_api::{
    BadObject, Decision, Document, Identity, Kind, Outcome, Place, Severity, decide,
};
use towpath_core::model::{Object, ObjectKey, Update};

use super::finding::Finding;

/// Objects in one source.
pub(super) const OBJECTS: usize = 1_000_000;
/// Findings kept of one file.
const FILE_FINDINGS: usize = 100;
/// Findings kept of all files together.
const FINDINGS: usize = 1_000;

/// What happened to a file.
#[derive(Debug)]
pub(super) enum FileChange {
    /// It is gone.
    Gone,
    /// It was read.
    Read(Vec<Document>),
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
#[derive(Debug)]
pub(super) struct Ledger {
    keeps_notes: bool,
    files: BTreeMap<Arc<str>, Entry>,
    objects: HashMap<ObjectKey, Standing>,
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
#[derive(Debug, Default)]
struct Entry {
    keys: Box<[ObjectKey]>,
    findings: Vec<Finding>,
    /// Further findings, and objects that there was no room for.
    untold: usize,
    refused: usize,
}

/// What is said about an object, and what consumers hold.
#[derive(Debug, Default)]
struct Standing {
    claims: Vec<Claim>,
    in_force: Option<InForce>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct InForce {
    meaning: u64,
    is_stand_in: bool,
}

#[derive(Clone, Debug)]
struct Claim {
    file: Arc<str>,
    /// Position of the document in the file.
    ordinal: u32,
    line: u32,
    state: State,
    /// What was just read: the object, or its stand-in. Gone once the object is settled.
    fresh: Option<Box<Object>>,
}

/// How good a claim is. The numbers are the meaning of the version in question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Valid, and its text can be read again.
    Good(u64),
    /// Now bad; this was the last good version.
    Kept(u64),
    /// Not in the file any more, but a part of the file is bad, so it may be in there.
    Missing(u64),
    /// Bad from the beginning, with the meaning of its stand-in, if it has one.
    Bad(Option<u64>),
}

impl Claim {
    /// Strongest first.
    fn rank(&self) -> (u8, &str, u32) {
        let rank = match self.state {
            State::Good(_) | State::Kept(_) => 0,
            State::Missing(_) => 1,
            State::Bad(Some(_)) => 2,
            State::Bad(None) => 3,
        };
        (rank, &self.file, self.ordinal)
    }

    fn good_meaning(&self) -> Option<u64> {
        match self.state {
            State::Good(meaning) | State::Kept(meaning) | State::Missing(meaning) => Some(meaning),
            State::Bad(_) => None,
        }
    }

    /// What would be in force if this claim were.
    fn wanted(&self) -> Option<InForce> {
        match self.state {
            State::Bad(meaning) => Some(InForce {
                meaning: meaning?,
                is_stand_in: true,
            }),
            State::Good(meaning) | State::Kept(meaning) | State::Missing(meaning) => {
                Some(InForce {
                    meaning,
                    is_stand_in: false,
                })
            }
        }
    }

    fn place(&self) -> Place {
        Place {
            file: self.file.clone(),
            line: self.line,
        }
    }
}

impl Standing {
    fn strongest(&self) -> Option<&Claim> {
        self.claims.iter().min_by_key(|claim| claim.rank())
    }

    /// Brings the strongest claim into force.
    fn settle(&mut self, key: &ObjectKey, applied: &mut Applied) -> Option<Update> {
        let strongest = self
            .claims
            .iter_mut()
            .min_by(|a, b| a.rank().cmp(&b.rank()));
        let wanted = strongest.and_then(|claim| Some((claim.wanted()?, claim)));
        let Some((wanted, claim)) = wanted else {
            return self.in_force.take().map(|_| Update::Remove(key.clone()));
        };
        let is_readable = matches!(claim.state, State::Good(_) | State::Bad(_));
        // Where the text is gone, so is the way to another version than the one in force.
        if self.in_force == Some(wanted) || !is_readable {
            return None;
        }
        let Some(object) = claim.fresh.take() else {
            applied.reread.insert(claim.file.clone());
            return None;
        };
        self.in_force = Some(wanted);
        Some(Update::Upsert(*object))
    }
}

fn meaning_of(object: &Object) -> u64 {
    let mut hasher = DefaultHasher::new();
    object.hash(&mut hasher);
    hasher.finish()
}

impl Ledger {
    /// An empty ledger. Notes are for reviews; an agent that runs for months has no use for them.
    pub(super) fn new(keeps_notes: bool) -> Self {
        Self {
            keeps_notes,
            files: BTreeMap::new(),
            objects: HashMap::new(),
            contested: BTreeSet::new(),
            in_force: 0,
            told: 0,
            untold: 0,
            refused: 0,
        }
    }

    /// Takes in changes of files. The updates of one call belong together: an object that moves between files is
    /// never gone between them.
    pub(super) fn apply(&mut self, changes: Vec<(Arc<str>, FileChange)>) -> Applied {
        let mut touched = BTreeSet::new();
        for (file, change) in changes {
            self.change(&file, change, &mut touched);
        }
        let mut applied = Applied::default();
        for key in touched {
            self.settle(key, &mut applied);
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
        let place = |(key, standing): (&ObjectKey, &Standing)| {
            standing.in_force?;
            Some((key.clone(), standing.strongest()?.place()))
        };
        self.objects.iter().filter_map(place).collect()
    }

    /// What is wrong at the moment, in no order, and how much more there is.
    pub(super) fn findings(&self) -> (Vec<Finding>, usize) {
        let mut findings = Vec::with_capacity(self.told);
        if self.told > 0 {
            findings.extend(
                self.files
                    .values()
                    .flat_map(|entry| entry.findings.iter().cloned()),
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
        let Some(standing) = self.objects.get(key) else {
            return Vec::new();
        };
        let Some(strongest) = standing.strongest() else {
            return Vec::new();
        };
        let is_other = |claim: &&Claim| {
            !std::ptr::eq(*claim, strongest) && !matches!(claim.state, State::Missing(_))
        };
        let finding = |claim: &Claim| Finding {
            severity: Severity::Error,
            place: claim.place(),
            object: Identity::of(key).map(|identity| identity.to_string()),
            path: String::new(),
            message: format!(
                "the same object stands at {}, which is in force",
                strongest.place()
            ),
            advice: "remove one of the two, or give it another name".to_owned(),
        };
        standing
            .claims
            .iter()
            .filter(is_other)
            .map(finding)
            .collect()
    }

    /// Replaces all claims of one file.
    fn change(&mut self, file: &Arc<str>, change: FileChange, touched: &mut BTreeSet<ObjectKey>) {
        let old = self.withdraw(file, touched);
        let (claims, mut findings, mut untold) = match change {
            FileChange::Gone => return,
            FileChange::Read(documents) => self.read_claims(file, documents, &old),
            FileChange::Unreadable(finding) => (keep(old), vec![finding], 0),
        };
        let room = FINDINGS.saturating_sub(self.told);
        untold += findings.len().saturating_sub(room);
        findings.truncate(room);
        findings.shrink_to_fit();
        let mut refused = 0;
        let mut keys = Vec::with_capacity(claims.len());
        for (key, claim) in claims {
            if !self.objects.contains_key(&key) && self.objects.len() >= OBJECTS {
                refused += 1;
                continue;
            }
            let standing = self.objects.entry(key.clone()).or_default();
            // Nearly every object has one claim.
            standing.claims.reserve_exact(1);
            standing.claims.push(claim);
            touched.insert(key.clone());
            keys.push(key);
        }
        self.told += findings.len();
        self.untold += untold;
        self.refused += refused;
        let entry = Entry {
            keys: keys.into_boxed_slice(),
            findings,
            untold,
            refused,
        };
        self.files.insert(file.clone(), entry);
    }

    /// Takes the claims of a file out. Their objects stay in force until they are settled.
    fn withdraw(
        &mut self,
        file: &Arc<str>,
        touched: &mut BTreeSet<ObjectKey>,
    ) -> Vec<(ObjectKey, Claim)> {
        let mut withdrawn = Vec::new();
        let Some(entry) = self.files.remove(file) else {
            return withdrawn;
        };
        self.told -= entry.findings.len();
        self.untold -= entry.untold;
        self.refused -= entry.refused;
        for key in entry.keys {
            if let Some(standing) = self.objects.get_mut(&key) {
                let claims = standing.claims.extract_if(.., |claim| claim.file == *file);
                withdrawn.extend(claims.map(|claim| (key.clone(), claim)));
            }
            touched.insert(key);
        }
        withdrawn
    }

    fn read_claims(
        &self,
        file: &Arc<str>,
        documents: Vec<Document>,
        old: &[(ObjectKey, Claim)],
    ) -> (Vec<(ObjectKey, Claim)>, Vec<Finding>, usize) {
        let mut reading = Reading::new(file, &documents, old, self.keeps_notes);
        for (ordinal, document) in (0..).zip(documents) {
            reading.read(ordinal, document);
        }
        reading.finish()
    }

    /// Decides what is in force for one object, and tells consumers if that is something else.
    fn settle(&mut self, key: ObjectKey, applied: &mut Applied) {
        let Some(standing) = self.objects.get_mut(&key) else {
            return;
        };
        if standing.claims.len() > 1 {
            self.contested.insert(key.clone());
        } else {
            self.contested.remove(&key);
        }
        let was_in_force = standing.in_force.is_some();
        let update = standing.settle(&key, applied);
        for claim in &mut standing.claims {
            claim.fresh = None;
        }
        let is_in_force = standing.in_force.is_some();
        self.in_force = self.in_force + usize::from(is_in_force) - usize::from(was_in_force);
        if standing.claims.is_empty() {
            self.objects.remove(&key);
        }
        applied.updates.extend(update.map(|update| (key, update)));
    }
}

/// What stays of claims whose file can no longer be understood.
fn keep(old: Vec<(ObjectKey, Claim)>) -> Vec<(ObjectKey, Claim)> {
    let keep_one = |(key, claim): (ObjectKey, Claim)| {
        let state = claim.good_meaning().map_or(claim.state, State::Kept);
        (key, Claim { state, ..claim })
    };
    old.into_iter().map(keep_one).collect()
}

/// The documents of one file on their way to claims.
struct Reading<'a> {
    file: &'a Arc<str>,
    keeps_notes: bool,
    /// Last good versions that this file had.
    good: HashMap<&'a ObjectKey, &'a Claim>,
    /// Those of them that its new text no longer names, though a part of it is bad.
    missing: BTreeMap<&'a ObjectKey, &'a Claim>,
    /// How many missing policies of one kind and namespace may hide behind a policy without a name.
    hidden: HashMap<(Kind, String), usize>,
    claims: Vec<(ObjectKey, Claim)>,
    findings: Vec<Finding>,
    untold: usize,
}

impl<'a> Reading<'a> {
    fn new(
        file: &'a Arc<str>,
        documents: &[Document],
        old: &'a [(ObjectKey, Claim)],
        keeps_notes: bool,
    ) -> Self {
        let has_good = |(_, claim): &&(ObjectKey, Claim)| claim.good_meaning().is_some();
        let good: HashMap<_, _> = old
            .iter()
            .filter(has_good)
            .map(|(key, claim)| (key, claim))
            .collect();
        let is_whole = documents
            .iter()
            .all(|document| !matches!(document.outcome, Outcome::Bad(_)));
        let mut missing = BTreeMap::new();
        if !is_whole {
            missing.extend(good.iter().map(|(key, claim)| (*key, *claim)));
            for document in documents {
                if let Some(key) = key_of(&document.outcome) {
                    missing.remove(&key);
                }
            }
        }
        let mut hidden = HashMap::new();
        for identity in missing.keys().filter_map(|key| Identity::of(key)) {
            let place = (
                identity.kind,
                identity.namespace.unwrap_or_default().to_string(),
            );
            *hidden.entry(place).or_default() += 1;
        }
        Self {
            file,
            keeps_notes,
            good,
            missing,
            hidden,
            claims: Vec::with_capacity(documents.len()),
            findings: Vec::new(),
            untold: 0,
        }
    }

    fn read(&mut self, ordinal: u32, document: Document) {
        let Document { line, outcome } = document;
        let file = self.file.clone();
        let claim = |state, fresh| Claim {
            file,
            ordinal,
            line,
            state,
            fresh,
        };
        match outcome {
            Outcome::Object { object, remarks } => {
                let key = object.key();
                let shown = || Identity::of(&key).map(|identity| identity.to_string());
                self.tell(remarks, line, shown);
                let state = State::Good(meaning_of(&object));
                self.claims
                    .push((key, claim(state, Some(Box::new(object)))));
            }
            Outcome::Ignored { remarks, .. } => self.tell(remarks, line, || None),
            Outcome::Bad(bad) => {
                if let Some((key, state, stand_in)) = self.read_bad(&bad) {
                    self.claims.push((key, claim(state, stand_in)));
                }
                let identity = bad.identity;
                self.tell(bad.faults, line, || {
                    identity.map(|identity| identity.to_string())
                });
            }
        }
    }

    /// What a bad document claims, and what stands in for it.
    fn read_bad(&mut self, bad: &BadObject) -> Option<(ObjectKey, State, Option<Box<Object>>)> {
        let key = bad.identity.as_ref().and_then(Identity::key);
        let known = key
            .as_ref()
            .and_then(|key| self.good.get(key))
            .and_then(|c| c.good_meaning());
        match (decide(known.is_some(), bad), key) {
            (Decision::KeepLastGood, key) => Some((key?, State::Kept(known?), None)),
            (Decision::Absent, key) => Some((key?, State::Bad(None), None)),
            (Decision::StandIn(policy), key) => {
                if key.is_none() && self.is_hidden_version(bad) {
                    return None;
                }
                let object = Box::new(Object::Policy(policy.clone()));
                let state = State::Bad(Some(meaning_of(&object)));
                Some((object.key(), state, Some(object)))
            }
        }
    }

    /// Whether a policy without a name is probably the new version of one that this file no longer names, which
    /// then stays in force.
    fn is_hidden_version(&mut self, bad: &BadObject) -> bool {
        let Some(identity) = &bad.identity else {
            return false;
        };
        let namespace = identity.namespace.clone().unwrap_or_default().to_string();
        match self.hidden.get_mut(&(identity.kind, namespace)) {
            Some(count @ 1..) => {
                *count -= 1;
                true
            }
            _ => false,
        }
    }

    fn tell(
        &mut self,
        faults: Vec<towpath_api::Fault>,
        line: u32,
        object: impl FnOnce() -> Option<String>,
    ) {
        if faults.is_empty() {
            return;
        }
        let object = object();
        for fault in faults {
            if fault.severity == Severity::Note && !self.keeps_notes {
                continue;
            }
            if self.findings.len() >= FILE_FINDINGS {
                self.untold += 1;
                continue;
            }
            let place = Place {
                file: self.file.clone(),
                line,
            };
            self.findings
                .push(Finding::of_fault(fault, place, object.clone()));
        }
    }

    fn finish(mut self) -> (Vec<(ObjectKey, Claim)>, Vec<Finding>, usize) {
        for (key, claim) in self.missing {
            if let Some(meaning) = claim.good_meaning() {
                let state = State::Missing(meaning);
                self.claims.push((
                    key.clone(),
                    Claim {
                        state,
                        ..claim.clone()
                    },
                ));
            }
        }
        (self.claims, self.findings, self.untold)
    }
}

fn key_of(outcome: &Outcome) -> Option<ObjectKey> {
    match outcome {
        Outcome::Object { object, .. } => Some(object.key()),
        Outcome::Bad(bad) => bad.identity.as_ref()?.key(),
        Outcome::Ignored { .. } => None,
    }
}

#[cfg(test)]
mod tests;
