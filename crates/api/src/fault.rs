//! What is wrong in a manifest: where, what, and what to do about it.

use std::cell::RefCell;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use crate::limits;

/// A line of a file.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Place {
    /// The file, as the user named it.
    pub file: Arc<str>,
    /// The line, from 1; 0 is the file as a whole.
    pub line: u32,
}

impl Place {
    /// A path as a whole.
    pub fn of_path(path: &Path) -> Self {
        Self {
            file: Arc::from(path.to_string_lossy()),
            line: 0,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A file name is the user's text as well: it must not break the line or the terminal.
        for c in self.file.chars() {
            if c.is_control() || reorders(c) {
                write!(f, "{}", c.escape_default())?;
            } else {
                write!(f, "{c}")?;
            }
        }
        if self.line == 0 {
            Ok(())
        } else {
            write!(f, ":{}", self.line)
        }
    }
}

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The object is not in force as written.
    Error,
    /// It is in force, and probably does not mean what was meant.
    Warning,
    /// Worth a look.
    Note,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        })
    }
}

/// Something wrong with one field of an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// How much it matters.
    pub severity: Severity,
    /// The field, like `spec.ingress[0].from[1].ipBlock.cidr`; empty for the object as a whole.
    pub path: String,
    /// Its line in the file, from 1; 0 when the object did not come from a file.
    pub line: u32,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub advice: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        write!(f, "{}; {}", self.message, self.advice)
    }
}

/// What a check of one text found wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Complaint {
    pub(crate) message: String,
    pub(crate) advice: String,
}

impl Complaint {
    pub(crate) fn new(message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            advice: advice.into(),
        }
    }
}

/// Whether a character changes the direction of the text around it (Unicode, UAX #9), so that a terminal shows another
/// text than the one that is there.
pub(crate) fn reorders(c: char) -> bool {
    matches!(
        c,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    )
}

/// Text of the user inside a message: quoted, escaped and cut to a length that a line can bear.
pub(crate) fn quote(text: &str) -> String {
    const LONGEST: usize = 64;
    match text.char_indices().nth(LONGEST) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}...", &text[..end]),
    }
}

/// Collects the faults of one object. Errors beyond [`limits::FAULTS`] are counted only.
#[derive(Debug, Default)]
pub(crate) struct Faults(RefCell<Collected>);

#[derive(Debug, Default)]
struct Collected {
    faults: Vec<Fault>,
    errors: usize,
    untold: usize,
}

impl Faults {
    pub(crate) fn push(&self, fault: Fault) {
        let mut collected = self.0.borrow_mut();
        collected.errors += usize::from(fault.severity == Severity::Error);
        if collected.faults.len() < limits::FAULTS {
            collected.faults.push(fault);
        } else {
            collected.untold += 1;
        }
    }

    /// How many errors there are so far.
    pub(crate) fn errors(&self) -> usize {
        self.0.borrow().errors
    }

    /// All of them, and in the last place how many more there are.
    pub(crate) fn into_vec(self) -> Vec<Fault> {
        let Collected {
            mut faults, untold, ..
        } = self.0.into_inner();
        // Errors first: the head of the list stands for the object where there is room for one line only.
        faults.sort_by_key(|fault| fault.severity);
        if untold > 0 {
            faults.push(Fault {
                severity: Severity::Error,
                path: String::new(),
                line: faults.first().map_or(0, |fault| fault.line),
                message: format!("and {untold} more faults"),
                advice: "correct those above first".to_owned(),
            });
        }
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_text_is_escaped_and_cut() {
        assert_eq!(quote("a\"b\n\u{7}"), r#""a\"b\n\u{7}""#);
        assert_eq!(
            quote(&"x".repeat(1_000_000)),
            format!("\"{}\"...", "x".repeat(64))
        );
    }

    #[test]
    fn file_names_cannot_break_the_line() {
        let place = Place {
            file: "a\n\u{1b}[2J\u{202e}.yaml".into(),
            line: 3,
        };

        assert_eq!(place.to_string(), "a\\n\\u{1b}[2J\\u{202e}.yaml:3");
    }
}
