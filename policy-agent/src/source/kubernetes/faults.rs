//! What is wrong with objects at the moment.

use std::collections::BTreeMap;
use std::sync::Arc;

use towpath_api::{Fault, Place, Severity};

use super::resource::Resource;
use crate::source::Finding;

/// Objects whose faults are kept; of more only the names are.
const OBJECTS: usize = 1_000;
/// Findings told at once.
const FINDINGS: usize = 1_000;

/// Faults by object.
#[derive(Debug)]
pub(super) struct Faults {
    by_object: BTreeMap<(Resource, Box<str>), Box<[Fault]>>,
    /// Why objects of the last list could not be told from others.
    unnamed: BTreeMap<Resource, Vec<String>>,
    place: Arc<str>,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            by_object: BTreeMap::new(),
            unnamed: BTreeMap::new(),
            place: "kubernetes".into(),
        }
    }
}

impl Faults {
    /// Says what is wrong with an object now. True if that is news.
    pub(super) fn set(&mut self, resource: Resource, name: &str, faults: Vec<Fault>) -> bool {
        if faults.is_empty() {
            return !self.by_object.is_empty()
                && self.by_object.remove(&(resource, name.into())).is_some();
        }
        let is_full = self.by_object.len() >= OBJECTS;
        let faults = if is_full { Vec::new() } else { faults };
        self.by_object
            .insert((resource, name.into()), faults.into());
        true
    }

    /// An object without a name was listed.
    pub(super) fn add_unnamed(&mut self, resource: Resource, reason: String) {
        let unnamed = self.unnamed.entry(resource).or_default();
        if unnamed.len() < OBJECTS {
            unnamed.push(reason);
        }
    }

    /// A new list begins.
    pub(super) fn clear_unnamed(&mut self, resource: Resource) {
        self.unnamed.remove(&resource);
    }

    /// All of them, shortened.
    pub(super) fn findings(&self) -> Vec<Finding> {
        let place = || Place {
            file: self.place.clone(),
            line: 0,
        };
        let unnamed = self.unnamed.iter().flat_map(|(resource, reasons)| {
            reasons.iter().map(move |reason| Finding {
                severity: Severity::Error,
                place: place(),
                object: Some(format!("{} without a name", resource.kind().name())),
                path: "metadata".to_owned(),
                message: reason.clone(),
                advice: "look for it with kubectl get -o json, and replace it".to_owned(),
            })
        });
        let named = self
            .by_object
            .iter()
            .flat_map(|((resource, name), faults)| {
                let object = resource.identity(name).to_string();
                let finding = move |fault: &Fault| {
                    Finding::of_fault(fault.clone(), place(), Some(object.clone()))
                };
                faults.iter().map(finding)
            });
        let mut findings: Vec<Finding> = unnamed.chain(named).take(FINDINGS).collect();
        findings.sort_by(|a, b| a.sort_key().cmp(&b.sort_key()));
        let untold = self
            .by_object
            .values()
            .filter(|faults| faults.is_empty())
            .count();
        if untold > 0 {
            findings.push(Finding::of_file(
                &self.place,
                format!("and {untold} more objects have faults"),
                "correct those above first",
            ));
        }
        findings
    }
}
