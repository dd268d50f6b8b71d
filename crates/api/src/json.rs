//! One object as the API server sends it: JSON, of a kind that is known from the request.
//!
//! The same tree, the same checks and the same conversion as for a manifest in a file. What differs: `kind` and
//! `apiVersion` may be missing (items of a list have none), and there are no lines. Where the object cannot be understood,
//! its header is read on its own, so that it still has a name.

use std::borrow::Cow;

use serde::Deserialize;

use crate::convert::{convert_known, syntax_fault};
use crate::fault::{Complaint, Fault, Faults, Severity};
use crate::outcome::{Kind, Outcome};
use crate::value::{Content, Value};
use crate::yaml::SyntaxError;

/// What tells one object, and one version of it, from another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header<'a> {
    /// Its namespace; empty for a cluster-wide kind.
    pub namespace: Cow<'a, str>,
    /// Its name.
    pub name: Cow<'a, str>,
    /// Tells it from an earlier object of the same name; empty when the server does not say.
    pub uid: Cow<'a, str>,
    /// Its `resourceVersion`: larger is newer, across all kinds.
    pub version: u64,
}

#[derive(Deserialize)]
struct Outer<'a> {
    #[serde(borrow)]
    metadata: Option<Inner<'a>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Inner<'a> {
    #[serde(borrow, default)]
    namespace: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    name: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    uid: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    resource_version: Option<Cow<'a, str>>,
}

/// Reads the header of an object of this kind alone; why there is none, if it cannot be told which object this is. A
/// manifest without a namespace is of `default`; from the API server it is nobody's: taken for one of `default`, a
/// policy would open, and a pod would be let in, where it was not meant to.
pub fn read_header(kind: Kind, bytes: &[u8]) -> Result<Header<'_>, String> {
    let outer: Outer<'_> = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    header(kind, outer.metadata.unwrap_or_default())
}

fn header(kind: Kind, inner: Inner<'_>) -> Result<Header<'_>, String> {
    let version = inner.resource_version.as_deref().unwrap_or_default();
    let version = version
        .parse()
        .map_err(|_| format!("the resourceVersion {version:?} is no number"))?;
    let name = inner.name.filter(|name| is_path_segment(name));
    let namespace = inner.namespace.unwrap_or_default();
    match (kind.is_namespaced(), namespace.is_empty()) {
        (true, true) => return Err("the object has no namespace".to_owned()),
        (false, false) => {
            return Err("the object has a namespace, and its kind has none".to_owned());
        }
        (true, false) if !is_path_segment(&namespace) => {
            return Err("the namespace could not stand in a path".to_owned());
        }
        _ => {}
    }
    Ok(Header {
        namespace,
        name: name.ok_or("the object has no name that could stand in a path")?,
        uid: inner.uid.unwrap_or_default(),
        version,
    })
}

/// The part of a header in an object that was read whole.
fn inner<'a>(object: &Value<'a>) -> Result<Inner<'a>, String> {
    let Some(metadata) = object.get("metadata").filter(|value| !value.is_null()) else {
        return Ok(Inner::default());
    };
    if !matches!(metadata.content, Content::Map(_)) {
        return Err("its metadata is no object".to_owned());
    }
    let text = |field: &str| match metadata.get(field) {
        Some(value) if !value.is_null() => match &value.content {
            Content::Scalar {
                text,
                is_plain: false,
            } => Ok(Some(text.clone())),
            _ => Err(format!("its metadata.{field} is no text")),
        },
        _ => Ok(None),
    };
    Ok(Inner {
        namespace: text("namespace")?,
        name: text("name")?,
        uid: text("uid")?,
        resource_version: text("resourceVersion")?,
    })
}

/// What the API server demands of every name.
fn is_path_segment(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '%'])
}

/// Reads one object of this kind, in one walk over the text; an error only as in [`read_header`]. A text that is no
/// object is a bad object of the header's name, and as such closes what it would have protected.
pub fn read_object(kind: Kind, bytes: &[u8]) -> Result<(Header<'_>, Outcome), String> {
    let faults = Faults::default();
    match serde_json::from_slice::<Value<'_>>(bytes) {
        Ok(value) => {
            let header = header(kind, inner(&value)?)?;
            if kind == Kind::Pod && !has(&value, "spec") {
                faults.push(missing_spec());
            }
            Ok((header, convert_known(kind, &value, faults)))
        }
        Err(error) => {
            let header = read_header(kind, bytes)?;
            let complaint = Complaint::new(
                format!("the object cannot be read: {error}"),
                "look at it with kubectl get -o json, and replace it",
            );
            faults.push(syntax_fault(&SyntaxError { line: 0, complaint }));
            let outcome = convert_known(kind, &header_only(&header), faults);
            Ok((header, outcome))
        }
    }
}

/// Whether an object has a field with something in it.
fn has(object: &Value<'_>, field: &str) -> bool {
    match &object.content {
        Content::Map(entries) => entries
            .iter()
            .any(|(key, value)| key == field && !value.is_null()),
        _ => false,
    }
}

/// The API server demands `spec` of every pod. Taken for a pod without a node, the object would take the pod's address out
/// of the rules that deny it.
fn missing_spec() -> Fault {
    Fault {
        severity: Severity::Error,
        path: "spec".to_owned(),
        line: 0,
        message: "the pod has no spec".to_owned(),
        advice: "look at it with kubectl get -o json, and replace it".to_owned(),
    }
}

/// The object as far as its header tells, with an end that could not be read.
fn header_only<'a>(header: &'a Header<'_>) -> Value<'a> {
    let text = |text: &'a str| {
        let content = Content::Scalar {
            text: text.into(),
            is_plain: false,
        };
        Value::new(0, content)
    };
    let mut metadata = vec![("name".into(), text(&header.name))];
    if !header.namespace.is_empty() {
        metadata.push(("namespace".into(), text(&header.namespace)));
    }
    let metadata = Value::new(0, Content::Map(metadata));
    Value {
        line: 0,
        is_broken: true,
        content: Content::Map(vec![("metadata".into(), metadata)]),
    }
}
