//! The border of the crate: bytes in, objects and messages out.

mod cluster_network_policy;
mod endpoints;
mod files;
mod hostile;
mod json;
mod network_policy;

use towpath_api::{BadObject, Document, Fault, Outcome, read};
use towpath_core::model::{Endpoint, Object, Policy};

/// The only document of a text.
fn single(text: &str) -> Outcome {
    let mut documents = read("test.yaml", text.as_bytes());
    assert_eq!(documents.len(), 1, "{text}: {documents:#?}");
    documents.remove(0).outcome
}

/// The object of a text that is valid, and the remarks on it.
fn good(text: &str) -> (Object, Vec<String>) {
    match single(text) {
        Outcome::Object { object, remarks } => (object, remarks.iter().map(show).collect()),
        other => panic!("{text}: {other:#?}"),
    }
}

fn good_policy(text: &str) -> Policy {
    match good(text) {
        (Object::Policy(policy), _) => policy,
        (other, _) => panic!("{text}: {other:#?}"),
    }
}

fn good_endpoint(text: &str) -> Endpoint {
    match good(text) {
        (Object::Endpoint(endpoint), _) => endpoint,
        (other, _) => panic!("{text}: {other:#?}"),
    }
}

fn bad(text: &str) -> BadObject {
    match single(text) {
        Outcome::Bad(bad) => bad,
        other => panic!("{text}: {other:#?}"),
    }
}

/// A fault as a person sees it.
fn show(fault: &Fault) -> String {
    format!("{} {}: {fault}", fault.line, fault.severity)
}

fn errors(text: &str) -> Vec<String> {
    bad(text).faults.iter().map(show).collect()
}

/// What each document is, in one word or line.
fn outline(documents: &[Document]) -> Vec<String> {
    let show_outcome = |outcome: &Outcome| match outcome {
        Outcome::Object { object, .. } => format!("{:?}", object.key()),
        Outcome::Bad(bad) => match &bad.identity {
            Some(identity) => format!("bad {identity}"),
            None => "bad".to_owned(),
        },
        Outcome::Ignored { kind, .. } => format!("ignored {kind}"),
    };
    documents
        .iter()
        .map(|d| format!("{}: {}", d.line, show_outcome(&d.outcome)))
        .collect()
}

/// Runs a table of wrong `spec` parts, each of which gives exactly one message. `wrap` makes the manifest.
fn assert_messages(wrap: impl Fn(&str) -> String, table: &[(&str, &str)]) {
    let mut wrong = Vec::new();
    for (part, expected) in table {
        let found = errors(&wrap(part)).join(" | ");
        if found != *expected {
            wrong.push(format!("{part}\n  found    {found}\n  expected {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
