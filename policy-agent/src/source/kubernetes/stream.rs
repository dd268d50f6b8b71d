//! Bytes of the API server, cut into objects: lines of a watch, items of a list. Never more than one object is held.

use std::io::BufRead as _;

use serde::Deserialize;

/// Bytes of one object. The store behind an API server takes far less.
pub(super) const OBJECT_BYTES: usize = 8 << 20;
/// Bytes of a list around its items.
const FRAME_BYTES: usize = 1 << 20;

/// Why a body cannot be cut.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum StreamError {
    #[error("an object has more than {OBJECT_BYTES} bytes")]
    TooLarge,
    #[error("the answer is no list: {0}")]
    NoList(String),
}

/// Cuts a body into lines.
#[derive(Debug, Default)]
pub(super) struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    /// Takes bytes in and hands out the lines that they complete.
    pub(super) fn push<E: From<StreamError>>(
        &mut self,
        bytes: &[u8],
        mut line: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut bytes = bytes;
        while let Some(end) = line_end(bytes) {
            let (head, tail) = bytes.split_at(end);
            bytes = &tail[1..];
            if self.rest.is_empty() {
                line(head)?;
            } else {
                self.rest.extend_from_slice(head);
                line(&self.rest)?;
                // A large object is rare: its memory is given back.
                self.rest = Vec::new();
            }
        }
        self.rest.extend_from_slice(bytes);
        if self.rest.len() > OBJECT_BYTES {
            return Err(StreamError::TooLarge.into());
        }
        Ok(())
    }
}

/// Where the first line of these bytes ends.
fn line_end(bytes: &[u8]) -> Option<usize> {
    // The standard library's search looks at more than one byte at a time.
    let read = (&mut &*bytes).skip_until(b'\n').ok()?;
    let end = read.checked_sub(1)?;
    (bytes[end] == b'\n').then_some(end)
}

/// What stands around the items of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ListEnd {
    pub(super) version: u64,
    /// Where the next page begins, if there is one.
    pub(super) next: Option<String>,
}

#[derive(Deserialize)]
struct Frame {
    metadata: Option<FrameMetadata>,
    items: Option<Vec<serde::de::IgnoredAny>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FrameMetadata {
    resource_version: Option<String>,
    #[serde(rename = "continue")]
    next: Option<String>,
}

/// Cuts a list into its items.
#[derive(Debug, Default)]
pub(super) struct List {
    /// The text without what stands in `items`.
    frame: Vec<u8>,
    item: Vec<u8>,
    depth: u32,
    place: Place,
    text: Text,
}

/// Where the next byte stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Frame,
    /// Inside `items`, where depth is 2 between the items.
    Items,
}

/// Whether the next byte is inside a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Text {
    #[default]
    Outside,
    Inside,
    /// Right behind a backslash.
    Escaped,
}

impl List {
    /// Takes bytes in and hands out the items that they complete.
    pub(super) fn push<E: From<StreamError>>(
        &mut self,
        bytes: &[u8],
        mut item: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        for byte in bytes.iter().copied() {
            let (before, was_between) = (self.place, self.depth == 2);
            self.step(byte);
            if before == Place::Frame || self.place == Place::Frame {
                self.frame.push(byte);
                if self.frame.len() > FRAME_BYTES {
                    return Err(StreamError::TooLarge.into());
                }
                continue;
            }
            // Commas and white space between items.
            if was_between && self.depth == 2 {
                continue;
            }
            self.item.push(byte);
            if self.item.len() > OBJECT_BYTES {
                return Err(StreamError::TooLarge.into());
            }
            if self.depth == 2 {
                item(&self.item)?;
                self.item.clear();
            }
        }
        Ok(())
    }

    /// Where the byte leads: depth, text, and whether `items` begins or ends with it.
    fn step(&mut self, byte: u8) {
        self.text = match (self.text, byte) {
            (Text::Inside, b'"') => Text::Outside,
            (Text::Inside, b'\\') => Text::Escaped,
            (Text::Inside | Text::Escaped, _) | (Text::Outside, b'"') => Text::Inside,
            (Text::Outside, b'{' | b'[') => {
                self.depth = self.depth.saturating_add(1);
                if byte == b'[' && self.depth == 2 && self.is_at_items() {
                    self.place = Place::Items;
                }
                Text::Outside
            }
            (Text::Outside, b'}' | b']') => {
                self.depth = self.depth.saturating_sub(1);
                if self.depth == 1 {
                    self.place = Place::Frame;
                }
                Text::Outside
            }
            (Text::Outside, _) => Text::Outside,
        };
    }

    /// Whether the frame ends in the key `items`.
    fn is_at_items(&self) -> bool {
        let key = self.frame.trim_ascii_end().strip_suffix(b":");
        key.is_some_and(|key| key.trim_ascii_end().ends_with(b"\"items\""))
    }

    /// The end of the list.
    pub(super) fn end(self) -> Result<ListEnd, StreamError> {
        let no_list = |message: String| StreamError::NoList(message);
        let frame: Frame =
            serde_json::from_slice(&self.frame).map_err(|error| no_list(error.to_string()))?;
        let metadata = frame.metadata.filter(|_| frame.items.is_some());
        let metadata = metadata.ok_or_else(|| no_list("it has no metadata or items".to_owned()))?;
        let version = metadata.resource_version.unwrap_or_default();
        Ok(ListEnd {
            version: version
                .parse()
                .map_err(|_| no_list(format!("its resourceVersion {version:?} is no number")))?,
            next: metadata.next.filter(|next| !next.is_empty()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(text: &str, size: usize) -> Result<(Vec<String>, ListEnd), StreamError> {
        let (mut list, mut items) = (List::default(), Vec::new());
        for bytes in text.as_bytes().chunks(size) {
            list.push(bytes, |item| {
                items.push(String::from_utf8_lossy(item).into_owned());
                Ok::<_, StreamError>(())
            })?;
        }
        Ok((items, list.end()?))
    }

    #[test]
    fn a_list_is_cut_into_items_wherever_the_bytes_break() {
        let before = r#"{"kind":"PodList","metadata":{"resourceVersion":"7","continue":"x]"},"items":[ {"a":"}]\"{"}, {"items":[1,[2]]},{}]}"#;
        let behind = r#"{"items" : [{"a":"}]\"{"},{"items":[1,[2]]},{}], "metadata":{"continue":"x]","resourceVersion":"7"}}"#;
        let expected = (
            vec![
                r#"{"a":"}]\"{"}"#.to_owned(),
                r#"{"items":[1,[2]]}"#.to_owned(),
                "{}".to_owned(),
            ],
            ListEnd {
                version: 7,
                next: Some("x]".to_owned()),
            },
        );

        for text in [before, behind] {
            for size in 1..=text.len() {
                assert_eq!(cut(text, size), Ok(expected.clone()), "{text} by {size}");
            }
        }
    }

    #[test]
    fn an_empty_list_has_no_items() {
        for items in ["[]", "[ ]"] {
            let text = format!(r#"{{"metadata":{{"resourceVersion":"9"}},"items":{items}}}"#);
            let end = ListEnd {
                version: 9,
                next: None,
            };
            assert_eq!(cut(&text, 3), Ok((Vec::new(), end)));
        }
    }

    #[test]
    fn what_is_no_list_is_an_error() {
        for text in [
            "",
            "{",
            "[]",
            "{}",
            "<html>",
            r#"{"metadata":{"resourceVersion":"1"}}"#,
            r#"{"metadata":{"resourceVersion":"one"},"items":[]}"#,
            r#"{"metadata":{"resourceVersion":"1"},"items":[{}"#,
            r#"{"metadata":{"resourceVersion":"1"},"items":[{},"#,
        ] {
            assert!(
                matches!(cut(text, 5), Err(StreamError::NoList(_))),
                "{text}"
            );
        }
    }

    #[test]
    fn lines_are_whole_wherever_the_bytes_break() {
        let text = b"one\n\ntwo\nrest";
        for size in 1..=text.len() {
            let (mut lines, mut found) = (Lines::default(), Vec::new());
            for bytes in text.chunks(size) {
                let line = |line: &[u8]| {
                    found.push(line.to_vec());
                    Ok::<_, StreamError>(())
                };
                lines.push(bytes, line).unwrap();
            }
            assert_eq!(found, [b"one".to_vec(), Vec::new(), b"two".to_vec()]);
        }
    }

    #[test]
    fn no_object_may_grow_without_end() {
        let mut lines = Lines::default();
        let filler = vec![b'x'; OBJECT_BYTES];
        lines.push(&filler, |_| Ok::<_, StreamError>(())).unwrap();

        let error = lines.push(b"xx", |_| Ok::<_, StreamError>(()));

        assert_eq!(error, Err(StreamError::TooLarge));
    }
}
