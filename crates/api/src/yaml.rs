//! From the text of one YAML (or JSON) document to a tree.
//!
//! Built on the events of serde-saphyr's parser rather than on its serde border, which has no lines for values
//! that are right, no spelling of scalars, and nothing to show for a document that ends in an error. The part of
//! such a document that could be read is kept, so that a policy broken at its end still closes its subject.

use std::borrow::Cow;
use std::collections::HashMap;

use serde_saphyr::granit_parser::{
    Event, Options, Parser, ScalarStyle, ScanError, Span, StrInput, Tag,
};

use crate::fault::{Complaint, quote};
use crate::limits;
use crate::value::{Content, Value, repeated_key};

/// Why a text is no document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SyntaxError {
    /// Line in the file.
    pub(crate) line: u32,
    pub(crate) complaint: Complaint,
}

/// A document: what could be read of it, and the error that ended it.
#[derive(Debug)]
pub(crate) struct Parsed<'a> {
    /// `None` for a document without content.
    pub(crate) value: Option<Value<'a>>,
    pub(crate) error: Option<SyntaxError>,
    /// Whether the error is about the text as a whole: then nothing of it is in force, whole as it may look.
    pub(crate) is_refused: bool,
}

/// Parses one document. `first_line` is the line of the file on which `text` begins.
pub(crate) fn parse(text: &str, first_line: u32) -> Parsed<'_> {
    let too_large = refuse_size(text, first_line);
    let mut options = Options::default();
    options.set_emit_comments(false);
    let parser = Parser::new_from_str_with_options(text, options);
    let mut builder = Builder::new(first_line);
    // A text that is too large is read all the same, as far as the number of values allows: a policy in it has a
    // subject that must be closed.
    let error = builder.run(parser).err();
    Parsed {
        value: builder.finish(),
        is_refused: too_large.is_some(),
        error: too_large.or(error),
    }
}

fn refuse_size(text: &str, first_line: u32) -> Option<SyntaxError> {
    (text.len() > limits::DOCUMENT_BYTES).then(|| SyntaxError {
        line: first_line,
        complaint: Complaint::new(
            format!(
                "the document has {} bytes, more than {}",
                text.len(),
                limits::DOCUMENT_BYTES
            ),
            "split it with '---' lines or over several files",
        ),
    })
}

/// A list or map that is not yet closed.
struct Frame<'a> {
    line: u32,
    anchor: usize,
    open: Open<'a>,
}

enum Open<'a> {
    List(Vec<Value<'a>>),
    Map {
        entries: Vec<(Cow<'a, str>, Value<'a>)>,
        /// The key whose value comes next.
        key: Option<(Cow<'a, str>, bool)>,
        /// Values of merge keys (`<<`).
        merged: Vec<Value<'a>>,
    },
}

/// Puts the tree together from events.
struct Builder<'a> {
    first_line: u32,
    stack: Vec<Frame<'a>>,
    root: Option<Value<'a>>,
    anchors: HashMap<usize, Value<'a>>,
    values: usize,
    alias_bytes: usize,
}

impl<'a> Builder<'a> {
    fn new(first_line: u32) -> Self {
        Self {
            first_line,
            stack: Vec::new(),
            root: None,
            anchors: HashMap::new(),
            values: 0,
            alias_bytes: 0,
        }
    }

    fn run(&mut self, parser: Parser<'a, StrInput<'a>>) -> Result<(), SyntaxError> {
        for event in parser {
            let (event, span) = event.map_err(|error| self.scan_error(&error))?;
            let line = self.line(&span);
            self.take(event, line)
                .map_err(|complaint| SyntaxError { line, complaint })?;
        }
        Ok(())
    }

    fn line(&self, span: &Span) -> u32 {
        self.first_line
            .saturating_add(to_u32(span.start.line()).saturating_sub(1))
    }

    fn scan_error(&self, error: &ScanError) -> SyntaxError {
        let marker = error.marker();
        SyntaxError {
            line: self
                .first_line
                .saturating_add(to_u32(marker.line()).saturating_sub(1)),
            complaint: Complaint::new(
                format!(
                    "not valid YAML: {}, at column {}",
                    error.info(),
                    marker.col() + 1
                ),
                "correct the text at or just before this place; check indentation, quotes and brackets",
            ),
        }
    }

    fn take(&mut self, event: Event<'a>, line: u32) -> Result<(), Complaint> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let is_plain = is_plain(style, tag.as_deref())?;
                let value = Value::new(line, Content::Scalar { text, is_plain });
                self.add(value, anchor)
            }
            Event::SequenceStart(_, anchor, tag) => {
                known_tag(tag.as_deref(), &["seq"])?;
                self.open(Frame {
                    line,
                    anchor,
                    open: Open::List(Vec::new()),
                })
            }
            Event::MappingStart(_, anchor, tag) => {
                known_tag(tag.as_deref(), &["map"])?;
                let open = Open::Map {
                    entries: Vec::new(),
                    key: None,
                    merged: Vec::new(),
                };
                self.open(Frame { line, anchor, open })
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            Event::Alias(anchor) => self.repeat(anchor),
            Event::DocumentStart(..) if self.root.is_some() => Err(Complaint::new(
                "a second document begins here",
                "put a line '---' between two documents",
            )),
            _ => Ok(()),
        }
    }

    fn open(&mut self, frame: Frame<'a>) -> Result<(), Complaint> {
        if let Some(Frame {
            open: Open::Map { key: None, .. },
            ..
        }) = self.stack.last()
        {
            return Err(Complaint::new(
                "a key is a list or a map",
                "keys are texts; put text of templates like {{ }} in quotes",
            ));
        }
        if self.stack.len() >= limits::DEPTH {
            return Err(Complaint::new(
                format!("lists and maps are nested more than {} deep", limits::DEPTH),
                "no manifest needs that; write it flatter",
            ));
        }
        self.stack.push(frame);
        Ok(())
    }

    fn close(&mut self) -> Result<(), Complaint> {
        let Some(Frame { line, anchor, open }) = self.stack.pop() else {
            return Ok(());
        };
        let content = match open {
            Open::List(items) => Content::List(items),
            Open::Map {
                entries, merged, ..
            } => match close_map(entries, merged) {
                Ok(entries) => Content::Map(entries),
                Err((entries, complaint)) => {
                    // Which of two equal keys was meant is unknown; the rest of the tree above is kept.
                    self.put(Value {
                        line,
                        is_broken: true,
                        content: Content::Map(entries),
                    });
                    return Err(complaint);
                }
            },
        };
        self.add(Value::new(line, content), anchor)
    }

    /// Puts a finished value into the list or map that is open.
    fn add(&mut self, value: Value<'a>, anchor: usize) -> Result<(), Complaint> {
        self.charge(1)?;
        if anchor != 0 {
            let copy = value.clone();
            self.charge_copy(&copy)?;
            self.anchors.insert(anchor, copy);
        }
        if let Some(Frame {
            open: Open::Map {
                key: key @ None, ..
            },
            ..
        }) = self.stack.last_mut()
        {
            return match value.content {
                Content::Scalar { text, is_plain } => {
                    *key = Some((text, is_plain));
                    Ok(())
                }
                _ => Err(Complaint::new("a key is a list or a map", "keys are texts")),
            };
        }
        self.put(value);
        Ok(())
    }

    fn put(&mut self, value: Value<'a>) {
        match self.stack.last_mut().map(|frame| &mut frame.open) {
            None => self.root = Some(value),
            Some(Open::List(items)) => items.push(value),
            Some(Open::Map {
                entries,
                key,
                merged,
            }) => match key.take() {
                Some((text, true)) if text == "<<" => merged.push(value),
                Some((text, _)) => entries.push((text, value)),
                None => {}
            },
        }
    }

    fn repeat(&mut self, anchor: usize) -> Result<(), Complaint> {
        let Some(value) = self.anchors.get(&anchor) else {
            return Err(Complaint::new(
                "an alias refers to the value that it stands in",
                "write the value out",
            ));
        };
        let copy = value.clone();
        self.charge_copy(&copy)?;
        self.add(copy, 0)
    }

    fn charge(&mut self, values: usize) -> Result<(), Complaint> {
        self.values += values;
        if self.values <= limits::DOCUMENT_VALUES {
            return Ok(());
        }
        Err(Complaint::new(
            format!(
                "the document has more than {} values",
                limits::DOCUMENT_VALUES
            ),
            "split it with '---' lines or over several files, and write aliases out",
        ))
    }

    fn charge_copy(&mut self, copy: &Value<'_>) -> Result<(), Complaint> {
        let (values, bytes) = weigh(copy);
        self.charge(values)?;
        self.alias_bytes += bytes;
        if self.alias_bytes <= limits::ALIAS_BYTES {
            return Ok(());
        }
        Err(Complaint::new(
            format!("aliases repeat more than {} bytes", limits::ALIAS_BYTES),
            "write the values out instead",
        ))
    }

    /// The tree so far; lists and maps that are still open are marked as broken.
    fn finish(mut self) -> Option<Value<'a>> {
        while let Some(Frame { line, open, .. }) = self.stack.pop() {
            let content = match open {
                Open::List(items) => Content::List(items),
                Open::Map { entries, .. } => Content::Map(entries),
            };
            self.put(Value {
                line,
                is_broken: true,
                content,
            });
        }
        self.root
    }
}

type Entries<'a> = Vec<(Cow<'a, str>, Value<'a>)>;

/// Adds what merge keys bring; a key of the map itself wins, then that of the first merged map.
fn close_map<'a>(
    mut entries: Entries<'a>,
    merged: Vec<Value<'a>>,
) -> Result<Entries<'a>, (Entries<'a>, Complaint)> {
    if let Some((first, second)) = repeated_key(&entries) {
        let complaint = Complaint::new(
            format!(
                "the key {} stands twice in one map, first on line {}",
                quote(&entries[first].0),
                entries[first].1.line
            ),
            "remove one of the two",
        );
        entries.remove(second);
        entries.remove(first);
        return Err((entries, complaint));
    }
    for value in merged {
        let maps = match value.content {
            Content::List(items) => items,
            _ => vec![value],
        };
        for map in maps {
            let Content::Map(added) = map.content else {
                let complaint = Complaint::new(
                    "a merge key (<<) needs a map or a list of maps",
                    "merge a map, or quote the key",
                );
                return Err((entries, complaint));
            };
            for (key, value) in added {
                if entries.iter().all(|(other, _)| *other != key) {
                    entries.push((key, value));
                }
            }
        }
    }
    Ok(entries)
}

/// Values and bytes of texts in a tree. Borrowed texts weigh nothing.
fn weigh(value: &Value<'_>) -> (usize, usize) {
    let owned = |text: &Cow<'_, str>| match text {
        Cow::Borrowed(_) => 0,
        Cow::Owned(text) => text.len(),
    };
    let add = |sum: (usize, usize), item: &Value<'_>| {
        let (values, bytes) = weigh(item);
        (sum.0 + values, sum.1 + bytes)
    };
    match &value.content {
        Content::Scalar { text, .. } => (1, owned(text)),
        Content::List(items) => items.iter().fold((1, 0), add),
        Content::Map(entries) => entries.iter().fold((1, 0), |sum, (key, item)| {
            let (values, bytes) = add(sum, item);
            (values, bytes + owned(key))
        }),
        Content::Skipped => (1, 0),
    }
}

/// Whether a scalar may be something else than a text.
fn is_plain(style: ScalarStyle, tag: Option<&Tag>) -> Result<bool, Complaint> {
    known_tag(tag, &["str", "int", "float", "bool", "null", "timestamp"])?;
    Ok(match tag.and_then(Tag::core_suffix) {
        Some("str") => false,
        Some(_) => true,
        None => style == ScalarStyle::Plain && tag.is_none(),
    })
}

fn known_tag(tag: Option<&Tag>, known: &[&str]) -> Result<(), Complaint> {
    let Some(tag) = tag else { return Ok(()) };
    let is_non_specific = tag.handle().is_empty() && tag.suffix() == "!";
    if is_non_specific
        || tag
            .core_suffix()
            .is_some_and(|suffix| known.contains(&suffix))
    {
        return Ok(());
    }
    Err(Complaint::new(
        format!("the tag {} has no meaning here", quote(&tag.original())),
        "remove it; if the text begins with '!', put it in quotes",
    ))
}

fn to_u32(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
