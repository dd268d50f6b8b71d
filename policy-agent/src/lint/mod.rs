//! Mistakes in how manifests fit together: each object is valid, but together they hardly mean what was meant.
//!
//! [`lint`] is a pure function of the objects in force. What is wrong with a manifest by itself is found when it is
//! read; [`review`] puts both together. Which check found something stands in the message, not in a code: people
//! read these, and programs have the severity.

mod cluster_policies;
mod endpoints;
mod index;
mod networks;
mod policies;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use towpath_api::{Identity, Place, Severity};
use towpath_core::model::{Cluster, Direction, ObjectKey, Policy};

use crate::source::{Finding, Loaded};
use index::Index;

/// Findings of one check about one object; the rest is counted in the last one.
const PER_OBJECT: usize = 10;

/// Everything there is to say about a directory, sorted by place.
pub fn review(loaded: &Loaded) -> Vec<Finding> {
    let mut findings = loaded.findings.clone();
    findings.extend(lint(&loaded.cluster, &loaded.places));
    findings.sort_by(|a, b| a.sort_key().cmp(&b.sort_key()));
    findings
}

/// Checks how the objects fit together. An object without a place is taken to be elsewhere: it counts, but nothing
/// is said about it.
pub fn lint(cluster: &Cluster, places: &BTreeMap<ObjectKey, Place>) -> Vec<Finding> {
    let index = Index::new(cluster);
    let mut report = Report {
        places,
        findings: Vec::new(),
    };
    endpoints::check(&index, &mut report);
    // The stand-in of an invalid policy is nobody's intention.
    for policy in cluster
        .policies
        .values()
        .filter(|policy| policy.invalid.is_none())
    {
        policies::check(&index, policy, &mut report);
        networks::check(&index, policy, &mut report);
    }
    policies::check_name_resolution(&index, &mut report);
    cluster_policies::check(cluster, &mut report);
    let mut findings = report.findings;
    findings.sort_by(|a, b| a.sort_key().cmp(&b.sort_key()));
    findings
}

/// Collects findings with the places of their objects.
struct Report<'a> {
    places: &'a BTreeMap<ObjectKey, Place>,
    findings: Vec<Finding>,
}

impl Report<'_> {
    fn add(
        &mut self,
        key: &ObjectKey,
        severity: Severity,
        path: impl Into<String>,
        message: impl Into<String>,
        advice: impl Into<String>,
    ) {
        let Some(place) = self.places.get(key) else {
            return;
        };
        self.findings.push(Finding {
            severity,
            place: place.clone(),
            object: Identity::of(key).map(|identity| identity.to_string()),
            path: path.into(),
            message: message.into(),
            advice: advice.into(),
        });
    }
}

fn key_of(policy: &Policy) -> ObjectKey {
    ObjectKey::Policy(policy.id.clone())
}

/// The field of a rule, like `spec.ingress[2]`.
fn rule_path(direction: Direction, index: usize) -> String {
    format!("spec.{direction}[{index}]")
}

/// The field in which a rule of this direction names its peers.
fn peers_field(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "from",
        Direction::Egress => "to",
    }
}
