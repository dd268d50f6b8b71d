//! A file as a sequence of documents.
//!
//! Documents are separated before they are parsed, so that a broken one does not take the others with it. A line
//! that begins with `---` ends a document even inside a block of text, so nothing can be cut in two by mistake.

use std::hash::{DefaultHasher, Hash, Hasher};

use towpath_core::model::{Policy, PolicyId};

use crate::convert::{convert_broken, syntax_fault};
use crate::fault::{Complaint, Fault, Severity};
use crate::outcome::{BadObject, Outcome};
use crate::value::{Content, Value};
use crate::yaml::{self, SyntaxError};

/// One object of a file; an entry of a list is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Its first line, from 1.
    pub line: u32,
    /// What it is.
    pub outcome: Outcome,
}

/// Reads all documents of a file, in order; empty ones are left out. `file` makes the names of stand-ins for
/// policies without a name unique.
pub fn read(file: &str, bytes: &[u8]) -> Vec<Document> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut documents = Vec::new();
    for chunk in chunks(bytes) {
        read_chunk(&chunk, &mut documents);
    }
    for (index, document) in documents.iter_mut().enumerate() {
        if let Outcome::Bad(BadObject {
            stand_in: Some(policy),
            ..
        }) = &mut document.outcome
        {
            name_stand_in(policy, file, index);
        }
    }
    documents
}

/// A policy without a name has none that its stand-in could take.
fn name_stand_in(policy: &mut Policy, file: &str, index: usize) {
    let Policy {
        id: PolicyId { name, .. },
        ..
    } = policy;
    if name.is_empty() {
        let mut hasher = DefaultHasher::new();
        (file, index).hash(&mut hasher);
        *name = format!("unnamed-{:016x}", hasher.finish()).into();
    }
}

/// The text of one document.
struct Chunk<'a> {
    first_line: u32,
    bytes: &'a [u8],
}

/// Cuts a file at its `---` and `...` lines. The former belongs to the document that it opens, for something may
/// stand behind it.
fn chunks(bytes: &[u8]) -> Vec<Chunk<'_>> {
    let mut found = Vec::new();
    let (mut start, mut first_line) = (0, 1);
    let (mut offset, mut line) = (0, 1);
    for text in bytes.split_inclusive(|byte| *byte == b'\n') {
        if is_marker(text, b"---") && offset > start {
            found.push(Chunk {
                first_line,
                bytes: &bytes[start..offset],
            });
            (start, first_line) = (offset, line);
        }
        offset += text.len();
        line += 1;
        if is_marker(text, b"...") {
            found.push(Chunk {
                first_line,
                bytes: &bytes[start..offset],
            });
            (start, first_line) = (offset, line);
        }
    }
    found.push(Chunk {
        first_line,
        bytes: &bytes[start..],
    });
    found.retain(|chunk| !is_empty(chunk.bytes));
    found
}

fn is_marker(line: &[u8], marker: &[u8]) -> bool {
    line.strip_prefix(marker)
        .is_some_and(|rest| matches!(rest.first(), None | Some(b' ' | b'\t' | b'\r' | b'\n')))
}

/// Whether nothing but comments, directives and markers stands here.
fn is_empty(bytes: &[u8]) -> bool {
    bytes.split(|byte| *byte == b'\n').all(|line| {
        let line = line.trim_ascii();
        line.is_empty()
            || line.starts_with(b"#")
            || line.starts_with(b"%")
            || line == b"---"
            || line == b"..."
    })
}

fn read_chunk(chunk: &Chunk<'_>, documents: &mut Vec<Document>) {
    let text = String::from_utf8_lossy(chunk.bytes);
    let mut parsed = yaml::parse(&text, chunk.first_line);
    if let Some(error) = refuse_encoding(chunk) {
        (parsed.error, parsed.is_refused) = (Some(error), true);
    }
    match (parsed.value, parsed.error) {
        (None, None) => {}
        (None, Some(error)) => documents.push(unreadable(&error)),
        (Some(value), Some(error)) if parsed.is_refused => read_refused(value, &error, documents),
        (Some(value), error) if is_list(&value) => read_list(value, error.as_ref(), documents),
        (Some(value), None) if value.is_null() => {}
        (Some(value), error) => documents.push(Document {
            line: value.line,
            outcome: convert_broken(&value, error.as_ref()),
        }),
    }
}

fn refuse_encoding(chunk: &Chunk<'_>) -> Option<SyntaxError> {
    let error = std::str::from_utf8(chunk.bytes).err()?;
    let before = &chunk.bytes[..error.valid_up_to()];
    Some(SyntaxError {
        line: chunk.first_line + count_lines(before),
        complaint: Complaint::new(
            "the text is not UTF-8",
            "save it as UTF-8, and check that the file is a manifest at all",
        ),
    })
}

/// A text that is refused as a whole may still say which policies it holds, and what is to be closed for them. Of a
/// list only these are told one by one.
fn read_refused(mut value: Value<'_>, error: &SyntaxError, documents: &mut Vec<Document>) {
    if !is_list(&value) {
        let outcome = convert_broken(&value, Some(error));
        documents.push(match &outcome {
            Outcome::Bad(BadObject {
                identity: Some(_), ..
            }) => Document {
                line: value.line,
                outcome,
            },
            _ => unreadable(error),
        });
        return;
    }
    documents.push(unreadable(error));
    for (index, mut item) in take_items(&mut value).into_iter().enumerate() {
        inherit_kind(&value, &mut item);
        let mut outcome = convert_broken(&item, Some(error));
        if matches!(&outcome, Outcome::Bad(bad) if bad.stand_in.is_some()) {
            place_in_list(&mut outcome, index);
            documents.push(Document {
                line: item.line,
                outcome,
            });
        }
    }
}

fn count_lines(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.split(|byte| *byte == b'\n').count() - 1).unwrap_or(u32::MAX)
}

fn unreadable(error: &SyntaxError) -> Document {
    let faults = vec![syntax_fault(error)];
    Document {
        line: error.line,
        outcome: Outcome::Bad(BadObject {
            identity: None,
            faults,
            stand_in: None,
        }),
    }
}

/// Whether this is a list of objects: `List`, `PodList` and the like. `kubectl` writes `kind` behind the items, so
/// one that ends before is a list if it has items.
fn is_list(value: &Value<'_>) -> bool {
    match value.get_text("kind") {
        Some(kind) => kind.ends_with("List") && value.get("items").is_some(),
        None => value.is_broken && value.get("items").is_some(),
    }
}

fn read_list(mut list: Value<'_>, error: Option<&SyntaxError>, documents: &mut Vec<Document>) {
    let mut untold = error;
    for (index, mut item) in take_items(&mut list).into_iter().enumerate() {
        let error = if item.is_broken { untold.take() } else { None };
        let mut outcome = if is_list(&item) {
            refuse_nested(&item)
        } else {
            inherit_kind(&list, &mut item);
            convert_broken(&item, error)
        };
        place_in_list(&mut outcome, index);
        documents.push(Document {
            line: item.line,
            outcome,
        });
    }
    if let Some(error) = untold {
        documents.push(unreadable(error));
    }
}

/// Faults of an item name their field from the top of the document, as the user sees it.
fn place_in_list(outcome: &mut Outcome, index: usize) {
    let faults = match outcome {
        Outcome::Object { remarks, .. } | Outcome::Ignored { remarks, .. } => remarks,
        Outcome::Bad(bad) => &mut bad.faults,
    };
    for Fault { path, .. } in faults {
        let separator = match path.chars().next() {
            None | Some('[') => "",
            Some(_) => ".",
        };
        *path = format!("items[{index}]{separator}{path}");
    }
}

fn take_items<'a>(list: &mut Value<'a>) -> Vec<Value<'a>> {
    let Content::Map(entries) = &mut list.content else {
        return Vec::new();
    };
    let items = entries.iter_mut().find(|(key, _)| key == "items");
    match items.map(|(_, items)| &mut items.content) {
        Some(Content::List(items)) => std::mem::take(items),
        _ => Vec::new(),
    }
}

fn refuse_nested(item: &Value<'_>) -> Outcome {
    let fault = Fault {
        severity: Severity::Error,
        path: String::new(),
        line: item.line,
        message: "a list stands inside a list".to_owned(),
        advice: "put its items into the outer list".to_owned(),
    };
    Outcome::Bad(BadObject {
        identity: None,
        faults: vec![fault],
        stand_in: None,
    })
}

/// An item of a typed list (`PodList`) may leave out what the list says for all.
fn inherit_kind<'a>(list: &Value<'a>, item: &mut Value<'a>) {
    let kind = list
        .get_text("kind")
        .and_then(|kind| kind.strip_suffix("List"));
    let Some(kind) = kind.filter(|kind| !kind.is_empty()) else {
        return;
    };
    let line = item.line;
    let Content::Map(entries) = &mut item.content else {
        return;
    };
    if entries
        .iter()
        .any(|(key, _)| key == "kind" || key == "apiVersion")
    {
        return;
    }
    let kind = Content::Scalar {
        text: kind.to_owned().into(),
        is_plain: false,
    };
    entries.push(("kind".into(), Value::new(line, kind)));
    if let Some(version) = list.get("apiVersion") {
        entries.push(("apiVersion".into(), version.clone()));
    }
}
