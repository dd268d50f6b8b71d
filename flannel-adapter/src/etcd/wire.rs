//! Requests and answers of etcd's JSON gateway. Numbers of 64 bits are texts there, keys and values base64.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// Body of a list of the keys from `start` up to and without `end`, as they were at `revision` (0: now).
pub(super) fn list(start: &[u8], end: &[u8], limit: u32, revision: i64) -> Vec<u8> {
    #[derive(Serialize)]
    struct List {
        key: String,
        range_end: String,
        limit: u32,
        revision: i64,
    }
    body(&List {
        key: STANDARD.encode(start),
        range_end: STANDARD.encode(end),
        limit,
        revision,
    })
}

/// Body of a watch of the keys from `start` up to and without `end`, beginning with `revision`.
pub(super) fn watch(start: &[u8], end: &[u8], revision: i64) -> Vec<u8> {
    #[derive(Serialize)]
    struct Create {
        key: String,
        range_end: String,
        start_revision: i64,
        progress_notify: bool,
    }
    #[derive(Serialize)]
    struct Watch {
        create_request: Create,
    }
    body(&Watch {
        create_request: Create {
            key: STANDARD.encode(start),
            range_end: STANDARD.encode(end),
            start_revision: revision,
            progress_notify: true,
        },
    })
}

/// Body of a request for a token.
pub(super) fn authenticate(name: &str, password: &str) -> Vec<u8> {
    #[derive(Serialize)]
    struct Authenticate<'a> {
        name: &'a str,
        password: &'a str,
    }
    body(&Authenticate { name, password })
}

fn body(request: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(request).expect("texts and numbers are JSON")
}

/// The end of the range of all keys that begin with `prefix`: the prefix with its last byte that can grow grown.
pub(super) fn range_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    // All keys.
    vec![0]
}

/// A key with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KeyValue {
    pub(super) key: String,
    pub(super) value: String,
    /// The key as etcd has it, to go on behind it.
    pub(super) raw_key: Vec<u8>,
}

/// An answer to a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) revision: i64,
    pub(super) entries: Vec<KeyValue>,
    pub(super) has_more: bool,
}

/// What one line of a watch tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Watched {
    /// Changes up to a revision, maybe none.
    Changes { revision: i64, changes: Vec<Change> },
    /// Changes were thrown away before we asked for them.
    Compacted,
    /// The watch ends for this reason.
    Ended(String),
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Put(KeyValue),
    Delete(String),
}

#[derive(Deserialize)]
struct Header {
    #[serde(default)]
    revision: Number,
}

/// A number written as text, or as a number by newer gateways.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(try_from = "Digits")]
struct Number(i64);

#[derive(Deserialize)]
#[serde(untagged)]
enum Digits {
    Text(String),
    Number(i64),
}

impl TryFrom<Digits> for Number {
    type Error = std::num::ParseIntError;

    fn try_from(digits: Digits) -> Result<Self, Self::Error> {
        match digits {
            Digits::Text(text) => text.parse().map(Self),
            Digits::Number(number) => Ok(Self(number)),
        }
    }
}

#[derive(Deserialize)]
struct RawKeyValue {
    #[serde(default)]
    key: String,
    #[serde(default)]
    value: String,
}

impl RawKeyValue {
    /// What is not UTF-8 becomes a text that no key or value of Flannel is.
    fn decode(self) -> Result<KeyValue, base64::DecodeError> {
        let raw_key = STANDARD.decode(self.key)?;
        let value = STANDARD.decode(self.value)?;
        Ok(KeyValue {
            key: String::from_utf8_lossy(&raw_key).into_owned(),
            value: String::from_utf8_lossy(&value).into_owned(),
            raw_key,
        })
    }
}

/// Why an answer cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    #[error("cannot read etcd's answer as JSON")]
    Json(#[from] serde_json::Error),
    #[error("cannot read etcd's answer as base64")]
    Base64(#[from] base64::DecodeError),
}

/// Reads the answer to [`list`].
pub(super) fn listed(text: &[u8]) -> Result<Listed, WireError> {
    #[derive(Deserialize)]
    struct Answer {
        header: Header,
        #[serde(default)]
        kvs: Vec<RawKeyValue>,
        #[serde(default)]
        more: bool,
    }
    let answer: Answer = serde_json::from_slice(text)?;
    let entries: Result<Vec<KeyValue>, _> =
        answer.kvs.into_iter().map(RawKeyValue::decode).collect();
    Ok(Listed {
        revision: answer.header.revision.0,
        entries: entries?,
        has_more: answer.more,
    })
}

/// Reads the answer to [`authenticate`].
pub(super) fn token(text: &[u8]) -> Result<String, WireError> {
    #[derive(Deserialize)]
    struct Answer {
        token: String,
    }
    Ok(serde_json::from_slice::<Answer>(text)?.token)
}

/// The words of a refusal, if it has any.
pub(super) fn refusal(text: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(alias = "error")]
        message: Option<String>,
    }
    /// A gateway may answer with a page.
    const MOST: usize = 200;
    let told = serde_json::from_slice::<serde_json::Value>(text)
        .ok()
        .and_then(|value| {
            serde_json::from_value::<Answer>(serde_json::json!({
                "message": value.get("message").or_else(|| value.get("error"))
            }))
            .ok()?
            .message
        });
    let told = told.unwrap_or_else(|| String::from_utf8_lossy(text).into_owned());
    told.chars()
        .filter(|c| !c.is_control())
        .take(MOST)
        .collect()
}

/// Reads one line of a watch.
pub(super) fn watched(line: &[u8]) -> Result<Watched, WireError> {
    #[derive(Deserialize)]
    struct Line {
        result: Option<Message>,
        error: Option<serde_json::Value>,
    }
    #[derive(Deserialize)]
    struct Message {
        header: Header,
        #[serde(default)]
        canceled: bool,
        #[serde(default)]
        cancel_reason: String,
        #[serde(default)]
        compact_revision: Number,
        #[serde(default)]
        events: Vec<RawEvent>,
    }
    #[derive(Deserialize)]
    struct RawEvent {
        #[serde(default, rename = "type")]
        kind: String,
        kv: RawKeyValue,
    }
    let line: Line = serde_json::from_slice(line)?;
    let Some(message) = line.result else {
        let error = line.error.unwrap_or_default();
        return Ok(Watched::Ended(refusal(error.to_string().as_bytes())));
    };
    if message.compact_revision.0 != 0 {
        return Ok(Watched::Compacted);
    }
    if message.canceled {
        return Ok(Watched::Ended(message.cancel_reason));
    }
    let changes: Result<Vec<Change>, base64::DecodeError> = message
        .events
        .into_iter()
        .map(|event| {
            let entry = event.kv.decode()?;
            Ok(match event.kind.as_str() {
                "DELETE" => Change::Delete(entry.key),
                _ => Change::Put(entry),
            })
        })
        .collect();
    Ok(Watched::Changes {
        revision: message.header.revision.0,
        changes: changes?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_end_behind_the_prefix() {
        assert_eq!(range_end(b"/c/"), b"/c0");
        assert_eq!(range_end(&[b'a', 0xff]), b"b");
        assert_eq!(range_end(&[0xff]), [0]);
    }

    #[test]
    fn a_list_is_read_and_a_missing_one_is_empty() {
        let text = br#"{"header":{"revision":"7"},"kvs":[{"key":"L2MvY29uZmln","value":"eA=="}],"more":true,"count":"9"}"#;
        let empty = br#"{"header":{"revision":8}}"#;

        assert_eq!(
            listed(text).unwrap(),
            Listed {
                revision: 7,
                entries: vec![KeyValue {
                    key: "/c/config".into(),
                    value: "x".into(),
                    raw_key: b"/c/config".to_vec()
                }],
                has_more: true
            }
        );
        assert_eq!(listed(empty).unwrap().revision, 8);
    }

    #[test]
    fn lines_of_a_watch_are_told_apart() {
        let line = |text: &str| watched(text.as_bytes()).unwrap();

        assert_eq!(
            line(r#"{"result":{"header":{"revision":"6"},"created":true}}"#),
            Watched::Changes {
                revision: 6,
                changes: vec![]
            }
        );
        assert_eq!(
            line(
                r#"{"result":{"header":{"revision":"6"},"events":[{"type":"DELETE","kv":{"key":"L2MvY29uZmln"}}]}}"#
            ),
            Watched::Changes {
                revision: 6,
                changes: vec![Change::Delete("/c/config".into())]
            }
        );
        assert_eq!(
            line(r#"{"result":{"header":{},"canceled":true,"compact_revision":"5"}}"#),
            Watched::Compacted
        );
        assert_eq!(
            line(r#"{"result":{"header":{},"canceled":true,"cancel_reason":"no leader"}}"#),
            Watched::Ended("no leader".into())
        );
        assert_eq!(
            line(r#"{"error":{"grpc_code":14,"message":"etcdserver: no leader"}}"#),
            Watched::Ended("etcdserver: no leader".into())
        );
    }

    #[test]
    fn refusals_are_one_short_line() {
        assert_eq!(refusal(br#"{"error":"a","message":"b","code":11}"#), "b");
        assert_eq!(refusal(b"<html>\n</html>"), "<html></html>");
        assert_eq!(refusal(&[b'x'; 900]).len(), 200);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..80), key in any::<Vec<u8>>()) {
            prop_assert!(listed(&bytes).is_err());
            prop_assert!(watched(&bytes).is_err());
            prop_assert!(refusal(&bytes).chars().count() <= 200);
            // Whatever the prefix, its keys lie before the end of its range.
            let end = range_end(&key);
            prop_assert!(end == [0] || end > key);
        }
    }
}
