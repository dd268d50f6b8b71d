//! What is wrong with something that was read, and what to do about it.

use std::fmt;

/// Text of the input that is repeated in a message; the rest is cut, since it may be anybody's.
const MOST_CHARACTERS: usize = 64;

/// One thing wrong with one input. Everything else of that input still counts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {field} {kind}")]
pub struct Fault {
    /// The file, object or key that was read.
    pub place: String,
    /// The field in it.
    pub field: String,
    /// What is wrong with the field.
    pub kind: FaultKind,
}

/// What may be wrong with a field. Its text ends in what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// It is not there.
    Missing {
        /// Who has to put it there.
        remedy: &'static str,
    },
    /// It is not what it should be.
    Malformed {
        /// What it is, cut to a readable length.
        found: String,
        /// What it should be.
        wanted: &'static str,
    },
    /// It stands there more than once with different values.
    Repeated,
}

impl fmt::Display for FaultKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { remedy } => write!(formatter, "is missing; {remedy}"),
            Self::Malformed { found, wanted } => {
                write!(formatter, "is {found}; write {wanted}")
            }
            Self::Repeated => formatter.write_str("stands there twice; keep one"),
        }
    }
}

impl Fault {
    pub(crate) fn missing(place: &str, field: &str, remedy: &'static str) -> Self {
        Self {
            place: place.to_owned(),
            field: field.to_owned(),
            kind: FaultKind::Missing { remedy },
        }
    }

    pub(crate) fn malformed(place: &str, field: &str, found: &str, wanted: &'static str) -> Self {
        Self {
            place: place.to_owned(),
            field: field.to_owned(),
            kind: FaultKind::Malformed {
                found: quoted(found),
                wanted,
            },
        }
    }

    pub(crate) fn repeated(place: &str, field: &str) -> Self {
        Self {
            place: place.to_owned(),
            field: field.to_owned(),
            kind: FaultKind::Repeated,
        }
    }
}

/// A text of the input, on one line and not too long.
fn quoted(text: &str) -> String {
    let mut shown: String = text.chars().take(MOST_CHARACTERS).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    format!("{shown:?}")
}

/// What was understood of an input, and what was not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parsed<T> {
    /// What was understood; what is in `faults` is left out.
    pub value: T,
    /// What was not.
    pub faults: Vec<Fault>,
}

impl<T> Parsed<T> {
    /// The value, if nothing is wrong.
    pub fn whole(self) -> Result<T, Vec<Fault>> {
        if self.faults.is_empty() {
            Ok(self.value)
        } else {
            Err(self.faults)
        }
    }
}

/// The last version of an input with which nothing was wrong: a bad one never replaces it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastGood<T> {
    good: Option<T>,
    faults: Vec<Fault>,
}

impl<T> Default for LastGood<T> {
    fn default() -> Self {
        Self {
            good: None,
            faults: Vec::new(),
        }
    }
}

impl<T> LastGood<T> {
    /// Takes a new version. With faults it counts only as far as there was none before.
    pub fn take(&mut self, parsed: Parsed<T>) {
        if parsed.faults.is_empty() || self.good.is_none() {
            self.good = Some(parsed.value);
        }
        self.faults = parsed.faults;
    }

    /// The input is not there any more.
    pub fn remove(&mut self) {
        self.good = None;
        self.faults.clear();
    }

    /// What holds.
    pub fn get(&self) -> Option<&T> {
        self.good.as_ref()
    }

    /// What is wrong with the newest version.
    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_says_where_what_and_what_to_do() {
        let fault = Fault::malformed(
            "Node n1",
            "public-ip",
            &"x\n".repeat(100),
            "an IPv4 address",
        );

        let text = fault.to_string();

        assert!(
            text.starts_with("Node n1: public-ip is \"x\\nx\\n"),
            "{text}"
        );
        assert!(text.ends_with("…\"; write an IPv4 address"), "{text}");
        assert!(text.len() < 200, "{text}");
    }

    #[test]
    fn a_bad_version_does_not_replace_a_good_one() {
        let mut kept = LastGood::default();
        let fault = Fault::repeated("subnet.env", "FLANNEL_MTU");

        kept.take(Parsed {
            value: 1,
            faults: Vec::new(),
        });
        kept.take(Parsed {
            value: 2,
            faults: vec![fault.clone()],
        });

        assert_eq!((kept.get(), kept.faults()), (Some(&1), &[fault][..]));
        kept.remove();
        assert_eq!((kept.get(), kept.faults().len()), (None, 0));
    }
}
