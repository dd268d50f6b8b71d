//! What is wrong with this node, in plain words: `towpath doctor`.
//!
//! [`gather`] reads, [`facts`] is what was read, and [`examine`] decides from that alone. Each check tells at least one
//! [`Finding`]: what could not be looked at is told as such, and never taken for good.

mod checks;
pub mod facts;
pub mod gather;

use serde::Serialize;

use facts::{Facts, Look};

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Worth knowing.
    Note,
    /// It could not be looked at.
    Unseen,
    /// Something works less well than it should.
    Warning,
    /// Pods do not get what they should, or policy is not in force.
    Serious,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// The check that found it.
    pub id: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// What was found.
    pub what: String,
    /// Why it matters; empty where nothing is wrong.
    pub why: String,
    /// What to do; empty where nothing is to be done.
    pub way_out: String,
}

/// What a check says, before it is known which check said it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Said {
    severity: Severity,
    what: String,
    why: String,
    way_out: String,
}

impl Said {
    fn ok(what: impl Into<String>) -> Vec<Self> {
        vec![Self::new(Severity::Ok, what, "", "")]
    }

    fn unseen(reason: &str, way_out: &str) -> Vec<Self> {
        vec![Self::new(Severity::Unseen, reason, "", way_out)]
    }

    fn new(
        severity: Severity,
        what: impl Into<String>,
        why: impl Into<String>,
        way_out: impl Into<String>,
    ) -> Self {
        Self {
            severity,
            what: what.into(),
            why: why.into(),
            way_out: way_out.into(),
        }
    }
}

/// A question, and who answers it.
struct Check {
    id: &'static str,
    examine: fn(&Facts) -> Vec<Said>,
}

/// Answers every question from what was read, in the order of the checks.
pub fn examine(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for check in checks::ALL {
        for said in (check.examine)(facts) {
            findings.push(Finding {
                id: check.id,
                severity: said.severity,
                what: said.what,
                why: said.why,
                way_out: said.way_out,
            });
        }
    }
    findings
}

/// What follows from a look, or that there was none.
fn seen<T>(look: &Look<T>, judge: impl FnOnce(&T) -> Vec<Said>) -> Vec<Said> {
    match look {
        Look::Seen(value) => judge(value),
        Look::Unseen(reason) => Said::unseen(reason, RIGHTS),
    }
}

/// What lets a look succeed that did not.
const RIGHTS: &str = "run it as root on the node, in the node's network namespace";

#[cfg(test)]
mod tests;
