//! The documents of one file on their way to claims.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use towpath_api::{
    BadObject, Decision, Document, Fault, Identity, Kind, Outcome, Place, Severity, decide,
};
use towpath_core::model::{Object, ObjectKey};

use super::claim::{Claim, State};
use crate::source::Finding;

/// Findings kept of one file.
const FINDINGS: usize = 100;

/// What a file says.
#[derive(Debug, Default)]
pub(super) struct Read {
    /// Its claims, in the order of the file, and what was read behind each of them.
    pub(super) claims: Vec<(Claim, Option<Box<Object>>)>,
    pub(super) findings: Vec<Finding>,
    /// Further findings.
    pub(super) untold: usize,
}

/// Turns documents into claims. `old` are the claims that the file made before.
pub(super) fn read(
    file: &Arc<str>,
    documents: Vec<Document>,
    old: &[Claim],
    keeps_notes: bool,
) -> Read {
    let mut reading = Reading::new(file, &documents, old, keeps_notes);
    for document in documents {
        reading.add(document);
    }
    reading.finish()
}

/// What stays of claims whose file can no longer be understood.
pub(super) fn keep(old: Vec<Claim>, finding: Finding) -> Read {
    let keep_one = |claim: Claim| {
        let state = match claim.state {
            State::Bad(Some(meaning)) => State::Lost(meaning),
            state => state.good_meaning().map_or(state, State::Kept),
        };
        (Claim { state, ..claim }, None)
    };
    let claims = old.into_iter().map(keep_one).collect();
    Read {
        claims,
        findings: vec![finding],
        untold: 0,
    }
}

fn meaning_of(object: &Object) -> u64 {
    let mut hasher = DefaultHasher::new();
    object.hash(&mut hasher);
    hasher.finish()
}

fn show(key: &ObjectKey) -> Option<String> {
    Identity::of(key).map(|identity| identity.to_string())
}

struct Reading<'a> {
    file: &'a Arc<str>,
    keeps_notes: bool,
    /// Last good versions that the file had.
    good: HashMap<&'a ObjectKey, &'a Claim>,
    /// What it said that its new text no longer names, though a part of it is bad.
    missing: BTreeMap<&'a ObjectKey, &'a Claim>,
    /// How many missing policies of one kind and namespace may hide behind a policy without a name.
    hidden: HashMap<(Kind, String), usize>,
    read: Read,
}

impl<'a> Reading<'a> {
    fn new(
        file: &'a Arc<str>,
        documents: &[Document],
        old: &'a [Claim],
        keeps_notes: bool,
    ) -> Self {
        let is_bad = |document: &Document| matches!(document.outcome, Outcome::Bad(_));
        let mut reading = Self {
            file,
            keeps_notes,
            good: HashMap::new(),
            missing: BTreeMap::new(),
            hidden: HashMap::new(),
            read: Read {
                claims: Vec::with_capacity(documents.len()),
                ..Read::default()
            },
        };
        // Of a file that is whole the past does not matter.
        if documents.iter().any(is_bad) {
            let has_good = |claim: &&Claim| claim.state.good_meaning().is_some();
            reading.good = old
                .iter()
                .filter(has_good)
                .map(|claim| (&claim.key, claim))
                .collect();
            reading.find_missing(documents, old);
        }
        reading
    }

    fn find_missing(&mut self, documents: &[Document], old: &'a [Claim]) {
        let stays = |claim: &&Claim| claim.state.wanted().is_some();
        self.missing = old
            .iter()
            .filter(stays)
            .map(|claim| (&claim.key, claim))
            .collect();
        for document in documents {
            if let Some(key) = key_of(&document.outcome) {
                self.missing.remove(&key);
            }
        }
        let missing = self.missing.keys();
        let good = missing.filter(|key| self.good.contains_key(*key));
        for identity in good.filter_map(|key| Identity::of(key)) {
            let place = (
                identity.kind,
                identity.namespace.unwrap_or_default().to_string(),
            );
            *self.hidden.entry(place).or_default() += 1;
        }
    }

    fn add(&mut self, document: Document) {
        let Document { line, outcome } = document;
        match outcome {
            Outcome::Object { object, remarks } => {
                let key = object.key();
                self.tell(remarks, line, || show(&key));
                let state = State::Good(meaning_of(&object));
                self.claim(Claim { key, state, line }, Some(Box::new(object)));
            }
            Outcome::Ignored { kind, mut remarks } => {
                if remarks.is_empty() && self.keeps_notes {
                    remarks.push(ignored(&kind, line));
                }
                self.tell(remarks, line, || None);
            }
            Outcome::Bad(bad) => {
                if let Some((key, state, stand_in)) = self.read_bad(&bad) {
                    self.claim(Claim { key, state, line }, stand_in);
                }
                let identity = bad.identity;
                self.tell(bad.faults, line, || {
                    identity.map(|identity| identity.to_string())
                });
            }
        }
    }

    fn claim(&mut self, claim: Claim, object: Option<Box<Object>>) {
        self.read.claims.push((claim, object));
    }

    /// What a bad document claims, and what stands in for it.
    fn read_bad(&mut self, bad: &BadObject) -> Option<(ObjectKey, State, Option<Box<Object>>)> {
        let key = bad.identity.as_ref().and_then(Identity::key);
        let last_good = key.as_ref().and_then(|key| self.good.get(key));
        let known = last_good.and_then(|claim| claim.state.good_meaning());
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

    /// Whether a policy without a name is probably the new version of one that the file no longer names, which
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

    fn tell(&mut self, faults: Vec<Fault>, line: u32, object: impl FnOnce() -> Option<String>) {
        if faults.is_empty() {
            return;
        }
        let object = object();
        for fault in faults {
            if fault.severity == Severity::Note && !self.keeps_notes {
                continue;
            }
            if self.read.findings.len() >= FINDINGS {
                self.read.untold += 1;
                continue;
            }
            let place = Place {
                file: self.file.clone(),
                line,
            };
            self.read
                .findings
                .push(Finding::of_fault(fault, place, object.clone()));
        }
    }

    fn finish(mut self) -> Read {
        for (key, claim) in std::mem::take(&mut self.missing) {
            let state = match claim.state {
                State::Bad(None) => continue,
                State::Bad(Some(meaning)) | State::Lost(meaning) => State::Lost(meaning),
                State::Good(meaning) | State::Kept(meaning) | State::Missing(meaning) => {
                    State::Missing(meaning)
                }
            };
            let claim = Claim {
                key: key.clone(),
                state,
                line: claim.line,
            };
            self.claim(claim, None);
        }
        self.read
    }
}

/// What to say about an object of a kind that is not read.
fn ignored(kind: &str, line: u32) -> Fault {
    Fault {
        severity: Severity::Note,
        path: "kind".to_owned(),
        line,
        message: format!("policy does not depend on {kind}, so it is ignored"),
        advice: "correct the kind, if another was meant".to_owned(),
    }
}

fn key_of(outcome: &Outcome) -> Option<ObjectKey> {
    match outcome {
        Outcome::Object { object, .. } => Some(object.key()),
        Outcome::Bad(bad) => bad.identity.as_ref()?.key(),
        Outcome::Ignored { .. } => None,
    }
}
