//! A parsed document: a tree that knows its lines and keeps the spelling of scalars.
//!
//! The tree holds what stands in the document and decides nothing: whether `1.10` is a number or a text is asked by
//! the field that it fills, which can then say "write it in quotes". serde's derived types could not: they stop at
//! the first error and forget the rest of the object, of which we still need the subject to close it.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use crate::limits;

/// A value of a document, with the line where it begins (0 when it did not come from a text).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value<'a> {
    pub(crate) line: u32,
    /// The text ended or became unreadable inside this list or map: something may be missing at its end.
    pub(crate) is_broken: bool,
    pub(crate) content: Content<'a>,
}

/// What a value is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content<'a> {
    /// A scalar as it is spelt. Plain ones (without quotes) may be meant as a number, a boolean or null.
    Scalar {
        /// The spelling, escapes resolved.
        text: Cow<'a, str>,
        /// Written without quotes.
        is_plain: bool,
    },
    /// A list.
    List(Vec<Value<'a>>),
    /// A map in the order of the document. Keys are unique.
    Map(Vec<(Cow<'a, str>, Value<'a>)>),
    /// A list or map of a field that no manifest kind of ours reads (see [`is_skipped`]).
    Skipped,
}

/// What a scalar without quotes is read as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plain {
    Null,
    Boolean(bool),
    Number,
    Text,
}

/// Reads a scalar without quotes as `kubectl` does (YAML 1.1 booleans included, but for the letters y and n).
pub(crate) fn read_plain(text: &str) -> Plain {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Plain::Null,
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => {
            Plain::Boolean(true)
        }
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => {
            Plain::Boolean(false)
        }
        _ if is_number(text) => Plain::Number,
        _ => Plain::Text,
    }
}

fn is_number(text: &str) -> bool {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    match unsigned.as_bytes() {
        [b'0'..=b'9', ..] | [b'.', b'0'..=b'9', ..] => {}
        _ => {
            return matches!(
                unsigned,
                ".inf" | ".Inf" | ".INF" | ".nan" | ".NaN" | ".NAN"
            );
        }
    }
    if let Some(digits) = unsigned.strip_prefix("0x") {
        return !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_hexdigit());
    }
    if let Some(digits) = unsigned.strip_prefix("0o") {
        return !digits.is_empty() && digits.bytes().all(|b| matches!(b, b'0'..=b'7'));
    }
    unsigned.parse::<f64>().is_ok()
}

impl<'a> Value<'a> {
    /// A list or map that is being filled, or any other content.
    pub(crate) fn new(line: u32, content: Content<'a>) -> Self {
        Self {
            line,
            is_broken: false,
            content,
        }
    }

    /// The value of a key, if this is a map that has it.
    pub(crate) fn get(&self, key: &str) -> Option<&Value<'a>> {
        match &self.content {
            Content::Map(entries) => entries
                .iter()
                .find(|(name, _)| name == key)
                .map(|(_, value)| value),
            _ => None,
        }
    }

    /// The text of a key, if this is a map that has it as a scalar.
    pub(crate) fn get_text(&self, key: &str) -> Option<&str> {
        match &self.get(key)?.content {
            Content::Scalar { text, is_plain } => {
                (!is_plain || read_plain(text) == Plain::Text).then_some(text)
            }
            _ => None,
        }
    }

    /// Whether it is null: written so, or left empty.
    pub(crate) fn is_null(&self) -> bool {
        matches!(&self.content, Content::Scalar { text, is_plain: true } if read_plain(text) == Plain::Null)
    }
}

/// Fields whose lists and maps nothing of ours reads, though every real object is full of them. Skipping them
/// keeps an object that the API server sends small. Scalars are kept: a label may have one of these names.
pub(crate) fn is_skipped(key: &str) -> bool {
    matches!(
        key,
        "affinity"
            | "args"
            | "command"
            | "conditions"
            | "containerStatuses"
            | "env"
            | "envFrom"
            | "ephemeralContainerStatuses"
            | "images"
            | "initContainerStatuses"
            | "lifecycle"
            | "livenessProbe"
            | "managedFields"
            | "nodeInfo"
            | "ownerReferences"
            | "readinessProbe"
            | "resources"
            | "securityContext"
            | "startupProbe"
            | "tolerations"
            | "volumeMounts"
            | "volumes"
            | "volumesAttached"
            | "volumesInUse"
    )
}

/// The key that stands twice in a list of entries, with its two positions.
pub(crate) fn repeated_key(entries: &[(Cow<'_, str>, Value<'_>)]) -> Option<(usize, usize)> {
    if entries.len() <= 16 {
        return entries.iter().enumerate().find_map(|(second, (key, _))| {
            let first = entries[..second]
                .iter()
                .position(|(other, _)| other == key)?;
            Some((first, second))
        });
    }
    let mut order: Vec<usize> = (0..entries.len()).collect();
    order.sort_by(|a, b| (&entries[*a].0, a).cmp(&(&entries[*b].0, b)));
    let is_repeated = |pair: &&[usize]| entries[pair[0]].0 == entries[pair[1]].0;
    order
        .windows(2)
        .find(is_repeated)
        .map(|pair| (pair[0], pair[1]))
}

impl<'de> Deserialize<'de> for Value<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let left = Cell::new(limits::DOCUMENT_VALUES);
        deserializer.deserialize_any(ValueVisitor {
            is_skipped: false,
            left: &left,
        })
    }
}

/// Fills a tree from any serde format. The format's own limits (depth) apply; the caller bounds the input's size.
#[derive(Clone, Copy)]
struct ValueVisitor<'l> {
    /// Lists and maps are read and forgotten.
    is_skipped: bool,
    /// How many more values the document may have.
    left: &'l Cell<usize>,
}

impl<'de> serde::de::DeserializeSeed<'de> for ValueVisitor<'_> {
    type Value = Value<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        let Some(left) = self.left.get().checked_sub(1) else {
            return Err(D::Error::custom(format_args!(
                "the object has more than {} values",
                limits::DOCUMENT_VALUES
            )));
        };
        self.left.set(left);
        deserializer.deserialize_any(self)
    }
}

fn scalar<'a>(text: impl Into<Cow<'a, str>>, is_plain: bool) -> Value<'a> {
    Value::new(
        0,
        Content::Scalar {
            text: text.into(),
            is_plain,
        },
    )
}

impl<'de> Visitor<'de> for ValueVisitor<'_> {
    type Value = Value<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a manifest")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(scalar(if value { "true" } else { "false" }, true))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
        Ok(scalar(value.to_string(), true))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
        Ok(scalar(value.to_string(), true))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Self::Value, E> {
        Ok(scalar(format!("{value:?}"), true))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(scalar("null", true))
    }

    fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
        self.visit_unit()
    }

    fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
        Ok(scalar(value.to_owned(), false))
    }

    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Self::Value, E> {
        Ok(scalar(value, false))
    }

    fn visit_string<E>(self, value: String) -> Result<Self::Value, E> {
        Ok(scalar(value, false))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        if self.is_skipped {
            while items.next_element::<serde::de::IgnoredAny>()?.is_some() {}
            return Ok(Value::new(0, Content::Skipped));
        }
        let mut list = Vec::new();
        let item = ValueVisitor {
            is_skipped: false,
            ..self
        };
        while let Some(item) = items.next_element_seed(item)? {
            list.push(item);
        }
        Ok(Value::new(0, Content::List(list)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        if self.is_skipped {
            while items
                .next_entry::<serde::de::IgnoredAny, serde::de::IgnoredAny>()?
                .is_some()
            {}
            return Ok(Value::new(0, Content::Skipped));
        }
        let mut entries = Vec::new();
        while let Some(key) = items.next_key::<Cow<'de, str>>()? {
            let value = items.next_value_seed(ValueVisitor {
                is_skipped: is_skipped(&key),
                ..self
            })?;
            entries.push((key, value));
        }
        if let Some((_, second)) = repeated_key(&entries) {
            return Err(A::Error::custom(format_args!(
                "the key {:?} stands twice",
                entries[second].0
            )));
        }
        Ok(Value::new(0, Content::Map(entries)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_scalars_are_read_as_kubectl_does() {
        for (text, expected) in [
            ("", Plain::Null),
            ("~", Plain::Null),
            ("yes", Plain::Boolean(true)),
            ("False", Plain::Boolean(false)),
            ("8080", Plain::Number),
            ("-1", Plain::Number),
            ("1.10", Plain::Number),
            ("1e3", Plain::Number),
            (".5", Plain::Number),
            ("0x1f", Plain::Number),
            ("0o17", Plain::Number),
            (".nan", Plain::Number),
            ("10.0.0.1", Plain::Text),
            ("1.2.3", Plain::Text),
            ("v1", Plain::Text),
            ("infinity", Plain::Text),
            ("nan", Plain::Text),
            ("0x", Plain::Text),
            ("y", Plain::Text),
        ] {
            assert_eq!(read_plain(text), expected, "{text:?}");
        }
    }

    #[test]
    fn json_fills_the_tree_without_the_heavy_fields() {
        let text = r#"{"kind":"Pod","metadata":{"labels":{"env":"prod"},"managedFields":[{"a":1}]},"n":8,"x":null}"#;

        let value: Value<'_> = serde_json::from_str(text).unwrap();

        assert_eq!(value.get_text("kind"), Some("Pod"));
        let metadata = value.get("metadata").unwrap();
        assert_eq!(
            metadata.get("labels").unwrap().get_text("env"),
            Some("prod")
        );
        assert_eq!(
            metadata.get("managedFields").unwrap().content,
            Content::Skipped
        );
        assert_eq!(value.get("n").unwrap(), &scalar("8", true));
        assert!(value.get("x").unwrap().is_null());
    }

    #[test]
    fn json_with_a_repeated_key_is_refused() {
        let error = serde_json::from_str::<Value<'_>>(r#"{"a":1,"b":2,"a":3}"#).unwrap_err();

        assert_eq!(
            error.to_string(),
            "the key \"a\" stands twice at line 1 column 19"
        );
    }

    #[test]
    fn repeated_keys_are_found_in_long_maps_too() {
        let entry = |key: String| (Cow::Owned(key), scalar("", true));
        let mut entries: Vec<_> = (0..40).map(|n| entry(n.to_string())).collect();
        assert_eq!(repeated_key(&entries), None);

        entries.push(entry("7".to_owned()));

        assert_eq!(repeated_key(&entries), Some((7, 40)));
    }
}
