//! Typed reading of a tree: each step knows its path and reports what it does not find.

use std::fmt::Write as _;

use crate::fault::{Complaint, Fault, Faults, Severity, quote};
use crate::value::{Content, Plain, Value, read_plain};

/// The way from the root to a value, as a list linked upwards, so that it costs nothing until it is printed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Path<'f> {
    parent: Option<&'f Path<'f>>,
    segment: Segment<'f>,
}

#[derive(Clone, Copy, Debug)]
enum Segment<'f> {
    Root,
    Key(&'f str),
    Index(usize),
}

impl Path<'_> {
    pub(crate) const ROOT: Path<'static> = Path {
        parent: None,
        segment: Segment::Root,
    };

    fn write(&self, out: &mut String) {
        if let Some(parent) = self.parent {
            parent.write(out);
        }
        match self.segment {
            Segment::Root => {}
            Segment::Key(key) => {
                let is_simple =
                    key.len() <= 63 && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
                if !is_simple {
                    let _ = write!(out, "[{}]", quote(key));
                    return;
                }
                if !out.is_empty() {
                    out.push('.');
                }
                out.push_str(key);
            }
            Segment::Index(index) => {
                // Writing to a String cannot fail.
                let _ = write!(out, "[{index}]");
            }
        }
    }

    fn to_text(self) -> String {
        let mut out = String::new();
        self.write(&mut out);
        out
    }
}

/// A value at a path, and where its faults go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field<'f> {
    pub(crate) value: &'f Value<'f>,
    path: Path<'f>,
    faults: &'f Faults,
}

/// The entries of a map at a path.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fields<'f> {
    entries: &'f [(std::borrow::Cow<'f, str>, Value<'f>)],
    field: &'f Field<'f>,
}

impl<'f> Field<'f> {
    pub(crate) fn root(value: &'f Value<'f>, faults: &'f Faults) -> Self {
        Self {
            value,
            path: Path::ROOT,
            faults,
        }
    }

    fn report(&self, severity: Severity, message: impl Into<String>, advice: impl Into<String>) {
        self.faults.push(Fault {
            severity,
            path: self.path.to_text(),
            line: self.value.line,
            message: message.into(),
            advice: advice.into(),
        });
    }

    pub(crate) fn error(&self, message: impl Into<String>, advice: impl Into<String>) {
        self.report(Severity::Error, message, advice);
    }

    pub(crate) fn warn(&self, message: impl Into<String>, advice: impl Into<String>) {
        self.report(Severity::Warning, message, advice);
    }

    pub(crate) fn note(&self, message: impl Into<String>, advice: impl Into<String>) {
        self.report(Severity::Note, message, advice);
    }

    /// Passes a checked value on, or reports why it is none.
    pub(crate) fn checked<T>(&self, result: Result<T, Complaint>) -> Option<T> {
        result
            .map_err(|Complaint { message, advice }| self.error(message, advice))
            .ok()
    }

    /// The error of a value of the wrong type.
    fn wrong(&self, wanted: &str) {
        // The text ended in an error inside this list or map: that is told, and one error is enough.
        if self.value.is_broken {
            return;
        }
        let found = match &self.value.content {
            Content::List(_) => "this is a list".to_owned(),
            Content::Map(_) => "this is a map".to_owned(),
            Content::Skipped => "this is a list or a map".to_owned(),
            Content::Scalar {
                text,
                is_plain: false,
            } => format!("this is the text {}", quote(text)),
            Content::Scalar {
                text,
                is_plain: true,
            } => match read_plain(text) {
                Plain::Null => "nothing stands here".to_owned(),
                Plain::Boolean(_) => format!("{text} is read as true or false"),
                Plain::Number => format!("{} is read as a number", shorten(text)),
                Plain::Text => format!("this is the text {}", quote(text)),
            },
        };
        let advice = match (&self.value.content, wanted) {
            (
                Content::Scalar {
                    text,
                    is_plain: true,
                },
                "a text",
            ) if read_plain(text) != Plain::Null => {
                format!("write it in quotes: {}", quote(text))
            }
            (
                Content::Scalar {
                    text,
                    is_plain: false,
                },
                "a number" | "true or false",
            ) if matches!(read_plain(text), Plain::Number | Plain::Boolean(_)) => {
                format!("remove the quotes: {}", shorten(text))
            }
            _ => format!("write {wanted}"),
        };
        self.error(format!("{wanted} is expected here, but {found}"), advice);
    }

    pub(crate) fn text(&self) -> Option<&'f str> {
        match &self.value.content {
            Content::Scalar { text, is_plain } if !is_plain || read_plain(text) == Plain::Text => {
                Some(text)
            }
            _ => {
                self.wrong("a text");
                None
            }
        }
    }

    pub(crate) fn is_number(&self) -> bool {
        matches!(&self.value.content, Content::Scalar { text, is_plain: true } if read_plain(text) == Plain::Number)
    }

    pub(crate) fn integer(&self) -> Option<i64> {
        if let Content::Scalar {
            text,
            is_plain: true,
        } = &self.value.content
            && let Ok(number) = text.parse()
        {
            return Some(number);
        }
        if self.is_number() {
            self.error(
                "a whole number is expected here",
                "write it in plain decimal digits",
            );
        } else {
            self.wrong("a number");
        }
        None
    }

    pub(crate) fn boolean(&self) -> Option<bool> {
        if let Content::Scalar {
            text,
            is_plain: true,
        } = &self.value.content
            && let Plain::Boolean(value) = read_plain(text)
        {
            return Some(value);
        }
        self.wrong("true or false");
        None
    }

    pub(crate) fn fields(&self) -> Option<Fields<'_>> {
        if let Content::Map(entries) = &self.value.content {
            let field = self;
            return Some(Fields { entries, field });
        }
        self.wrong("a map");
        None
    }

    /// The items of a list of at most `limit`.
    pub(crate) fn items(&self, limit: usize) -> Option<impl ExactSizeIterator<Item = Field<'_>>> {
        let Content::List(items) = &self.value.content else {
            self.wrong("a list");
            return None;
        };
        if items.len() > limit {
            self.error(
                format!("the list has {} entries, more than {limit}", items.len()),
                format!("leave at most {limit}, or split the object"),
            );
            return None;
        }
        Some(items.iter().enumerate().map(|(index, value)| Field {
            value,
            path: Path {
                parent: Some(&self.path),
                segment: Segment::Index(index),
            },
            faults: self.faults,
        }))
    }
}

impl<'f> Fields<'f> {
    fn field(&self, key: &'f str, value: &'f Value<'f>) -> Field<'f> {
        Field {
            value,
            path: Path {
                parent: Some(&self.field.path),
                segment: Segment::Key(key),
            },
            faults: self.field.faults,
        }
    }

    /// The field of this name; null counts as absent, as it does for the API server.
    pub(crate) fn get(&self, name: &str) -> Option<Field<'f>> {
        let (key, value) = self.entries.iter().find(|(key, _)| key == name)?;
        (!value.is_null()).then(|| self.field(key, value))
    }

    /// As [`Self::get`]; reports it when absent.
    pub(crate) fn require(&self, name: &str, advice: &str) -> Option<Field<'f>> {
        let field = self.get(name);
        if field.is_none() && !self.is_broken() {
            self.field.error(format!("{name} is missing"), advice);
        }
        field
    }

    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = (&'f str, Field<'f>)> {
        let fields = *self;
        fields
            .entries
            .iter()
            .map(move |(key, value)| (&**key, fields.field(key, value)))
    }

    /// Whether the text ended inside this map, so that an absent field may have been meant.
    pub(crate) fn is_broken(&self) -> bool {
        self.field.value.is_broken
    }

    /// The first field that is none of `known`.
    pub(crate) fn unknown(&self, known: &[&str]) -> Option<Field<'f>> {
        let (_, field) = self.iter().find(|(key, _)| !known.contains(key))?;
        Some(field)
    }

    /// Reports every field that is none of `known`.
    pub(crate) fn only(&self, known: &[&str]) {
        for (key, field) in self.iter().filter(|(key, _)| !known.contains(key)) {
            let near = known.iter().find(|name| is_near(name, key));
            let advice = match near {
                Some(name) => format!("did you mean {name}?"),
                None if known.is_empty() => "remove it".to_owned(),
                None => format!("remove it; known here: {}", known.join(", ")),
            };
            field.error("unknown field", advice);
        }
    }
}

fn shorten(text: &str) -> &str {
    text.char_indices()
        .nth(32)
        .map_or(text, |(end, _)| &text[..end])
}

/// Whether `written` is probably meant to be `name`: equal but for case, one
/// letter off, or two letters swapped.
pub(crate) fn is_near(name: &str, written: &str) -> bool {
    if name.eq_ignore_ascii_case(written) {
        return true;
    }
    let (a, b): (Vec<char>, Vec<char>) =
        (name.chars().collect(), written.chars().take(64).collect());
    let same_head = a.iter().zip(&b).take_while(|(x, y)| x == y).count();
    let same_tail = a
        .iter()
        .rev()
        .zip(b.iter().rev())
        .take_while(|(x, y)| x == y)
        .count();
    let longest = a.len().max(b.len());
    let is_one_off = a.len().abs_diff(b.len()) <= 1 && same_head + same_tail + 1 >= longest;
    let is_swapped = a.len() == b.len() && same_head + same_tail + 3 >= longest && {
        let (mut a, mut b) = (a, b);
        a.sort_unstable();
        b.sort_unstable();
        a == b
    };
    longest > 2 && (is_one_off || is_swapped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_recognised() {
        for written in [
            "podselector",
            "podSelectors",
            "podSeletor",
            "podSelectoR",
            "podXelector",
            "podSleector",
        ] {
            assert!(is_near("podSelector", written), "{written}");
        }
        for written in ["pod", "selector", "namespaceSelector", "", "to"] {
            assert!(!is_near("podSelector", written), "{written}");
        }
        assert!(!is_near("to", "no"));
    }

    #[test]
    fn paths_are_printed_as_people_write_them() {
        let spec = Path {
            parent: Some(&Path::ROOT),
            segment: Segment::Key("spec"),
        };
        let index = Path {
            parent: Some(&spec),
            segment: Segment::Index(3),
        };
        let odd = Path {
            parent: Some(&index),
            segment: Segment::Key("a.b/c\n"),
        };
        let last = Path {
            parent: Some(&odd),
            segment: Segment::Key("x"),
        };

        assert_eq!(last.to_text(), "spec[3][\"a.b/c\\n\"].x");
    }
}
