//! JSON as Flannel reads it: names of fields count without regard to case, and `null` is absent.

use serde_json::{Map, Value};

use crate::fault::Fault;

/// An object and where it stands, collecting what is wrong with it.
#[derive(Debug)]
pub(crate) struct Fields<'a> {
    place: &'a str,
    /// Names of the objects around this one, each with a dot.
    prefix: &'static str,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// The top of a document.
    pub(crate) fn of(place: &'a str, value: &'a Value) -> Result<Self, Fault> {
        Self::within(place, "", value)
    }

    fn within(place: &'a str, prefix: &'static str, value: &'a Value) -> Result<Self, Fault> {
        match value {
            Value::Object(map) => Ok(Self { place, prefix, map }),
            other => Err(Fault::malformed(
                place,
                if prefix.is_empty() {
                    "the document"
                } else {
                    prefix.trim_end_matches('.')
                },
                &shown(other),
                "a JSON object",
            )),
        }
    }

    /// An object in this one.
    pub(crate) fn object(
        &self,
        name: &'static str,
        prefix: &'static str,
        faults: &mut Vec<Fault>,
    ) -> Option<Fields<'a>> {
        let value = self.value(name, faults)?;
        kept(Self::within(self.place, prefix, value), faults)
    }

    /// A field that is read by `read`; `wanted` says what that takes.
    pub(crate) fn read<T>(
        &self,
        name: &'static str,
        wanted: &'static str,
        faults: &mut Vec<Fault>,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Option<T> {
        let value = self.value(name, faults)?;
        let read = read(value);
        if read.is_none() {
            let found = shown(value);
            faults.push(Fault::malformed(
                self.place,
                &self.path(name),
                &found,
                wanted,
            ));
        }
        read
    }

    pub(crate) fn text<T>(
        &self,
        name: &'static str,
        wanted: &'static str,
        faults: &mut Vec<Fault>,
        read: impl FnOnce(&'a str) -> Option<T>,
    ) -> Option<T> {
        self.read(name, wanted, faults, |value| value.as_str().and_then(read))
    }

    pub(crate) fn flag(&self, name: &'static str, faults: &mut Vec<Fault>) -> Option<bool> {
        self.read(name, "true or false", faults, Value::as_bool)
    }

    pub(crate) fn number<T: TryFrom<u64>>(
        &self,
        name: &'static str,
        wanted: &'static str,
        faults: &mut Vec<Fault>,
    ) -> Option<T> {
        self.read(name, wanted, faults, |value| {
            T::try_from(value.as_u64()?).ok()
        })
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        let mut named = self
            .map
            .iter()
            .filter(|(key, _)| key.eq_ignore_ascii_case(name));
        named.any(|(_, value)| !value.is_null())
    }

    fn value(&self, name: &'static str, faults: &mut Vec<Fault>) -> Option<&'a Value> {
        let mut named = self
            .map
            .iter()
            .filter(|(key, value)| key.eq_ignore_ascii_case(name) && !value.is_null());
        let (_, first) = named.next()?;
        if named.any(|(_, other)| other != first) {
            faults.push(Fault::repeated(self.place, &self.path(name)));
            return None;
        }
        Some(first)
    }

    fn path(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }
}

/// Parses a whole document. The text may hold secrets, so a fault tells the place and not the text.
pub(crate) fn document(place: &str, text: &str) -> Result<Value, Fault> {
    // The parser itself bounds the depth.
    serde_json::from_str(text).map_err(|error| {
        let found = format!("broken at line {} column {}", error.line(), error.column());
        Fault::malformed(place, "the document", &found, "valid JSON")
    })
}

/// A value as a message shows it: lists and objects by their kind only, for they may hold secrets.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

/// What there is; what is wrong goes to `faults`.
pub(crate) fn kept<T>(result: Result<T, Fault>, faults: &mut Vec<Fault>) -> Option<T> {
    result.map_err(|fault| faults.push(fault)).ok()
}
