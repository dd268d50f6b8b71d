//! What is wrong with a manifest, with its place.

use std::fmt;

use serde::Serialize;
use towpath_api::{Fault, Place, Severity};

/// Something that a person should look at, in a manifest or in how manifests fit together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// Where.
    #[serde(flatten)]
    pub place: Place,
    /// The object, like `NetworkPolicy shop/web`, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// The field, like `spec.ingress[0].from[1]`; empty for the object as a whole.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub advice: String,
}

impl Finding {
    /// A fault of a document, with its place and object.
    pub(crate) fn of_fault(fault: Fault, mut place: Place, object: Option<String>) -> Self {
        let Fault {
            severity,
            path,
            line,
            message,
            advice,
        } = fault;
        if line != 0 {
            place.line = line;
        }
        Self {
            severity,
            place,
            object,
            path,
            message,
            advice,
        }
    }

    /// Something about a file as a whole.
    pub(crate) fn of_file(file: &std::sync::Arc<str>, message: String, advice: &str) -> Self {
        Self {
            severity: Severity::Error,
            place: Place {
                file: file.clone(),
                line: 0,
            },
            object: None,
            path: String::new(),
            message,
            advice: advice.to_owned(),
        }
    }

    /// The order in which findings are shown.
    pub(crate) fn sort_key(&self) -> (&Place, Severity, &str, &str) {
        (&self.place, self.severity, &self.path, &self.message)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: ", self.place, self.severity)?;
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        write!(f, "{}; {}", self.message, self.advice)
    }
}
