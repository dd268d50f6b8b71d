//! One line of a watch: an event, with the object as it came.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::connection::Failure;
use super::item::{Item, name};
use super::resource::Resource;
use super::world::Event;

/// An event, and the object in it as it came. Of a line as every API server writes it, the object is read at once: one
/// walk over the text. Any other line, and what cannot be read, is taken apart first.
pub(super) fn read_event(resource: Resource, line: &[u8]) -> Result<(Event, &[u8]), Failure> {
    if let Some(object) = object_there(line)
        && let Ok(item) = Item::read(resource, object)
    {
        return Ok((Event::There(item), object));
    }
    take_apart(resource, line)
}

/// What stands for the object in a line that tells of one that is there.
fn object_there(line: &[u8]) -> Option<&[u8]> {
    let line = line.trim_ascii();
    let heads: [&[u8]; 2] = [
        br#"{"type":"ADDED","object":"#,
        br#"{"type":"MODIFIED","object":"#,
    ];
    let rest = heads.iter().find_map(|head| line.strip_prefix(*head))?;
    rest.strip_suffix(b"}")
}

fn take_apart(resource: Resource, line: &[u8]) -> Result<(Event, &[u8]), Failure> {
    #[derive(Deserialize)]
    struct Line<'a> {
        r#type: &'a str,
        #[serde(borrow)]
        object: &'a RawValue,
    }
    #[derive(Deserialize)]
    struct Status {
        #[serde(default)]
        code: u16,
        #[serde(default)]
        message: String,
    }
    #[derive(Deserialize)]
    struct Bookmark {
        metadata: BookmarkMetadata,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct BookmarkMetadata {
        resource_version: String,
    }

    let broken = |error: serde_json::Error| {
        Failure::Body(format!("an event of {}: {error}", resource.plural()))
    };
    let unnamed = |reason| Failure::Body(format!("an event of {}: {reason}", resource.plural()));
    let line: Line<'_> = serde_json::from_slice(line).map_err(broken)?;
    let object = line.object.get().as_bytes();
    let event = match line.r#type {
        "ADDED" | "MODIFIED" => Event::There(Item::read(resource, object).map_err(unnamed)?),
        "DELETED" => {
            let header = towpath_api::read_header(resource.kind(), object).map_err(unnamed)?;
            Event::Gone {
                name: name(&header),
                version: header.version,
            }
        }
        "BOOKMARK" => {
            let bookmark: Bookmark = serde_json::from_slice(object).map_err(broken)?;
            let version = bookmark.metadata.resource_version.parse();
            let version = version.map_err(|_| unnamed("a bookmark without a number".to_owned()))?;
            Event::Bookmark(version)
        }
        "ERROR" => {
            let Status { code, message } = serde_json::from_slice(object).map_err(broken)?;
            return Err(match code {
                410 => Failure::Gone,
                code => Failure::Status {
                    code,
                    message,
                    retry_after: None,
                },
            });
        }
        other => return Err(unnamed(format!("the type {other:?} is unknown"))),
    };
    Ok((event, object))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LINE: &str = r#"{"type":"ADDED","object":{"metadata":{"name":"a","namespace":"b","uid":"c","resourceVersion":"7","managedFields":[{"x":"\"}"}]},"spec":{"nodeName":"n","containers":[{"name":"{"}]}}}"#;

    fn both(line: &str) -> (Result<Event, Failure>, Result<Event, Failure>) {
        let of = |read: Result<(Event, &[u8]), Failure>| read.map(|(event, _)| event);
        (
            of(read_event(Resource::Pod, line.as_bytes())),
            of(take_apart(Resource::Pod, line.as_bytes())),
        )
    }

    #[test]
    fn a_line_as_the_server_writes_it_is_read_at_once() {
        for line in [LINE, &LINE.replace("ADDED", "MODIFIED")] {
            assert!(object_there(line.as_bytes()).is_some());
            let (quick, careful) = both(line);
            assert_eq!(quick.unwrap(), careful.unwrap());
        }
    }

    #[test]
    fn what_stands_behind_the_object_is_not_taken_for_a_part_of_it() {
        let more = LINE.replace("}}}", r#"}},"more":{"metadata":{"name":"x"}}}"#);
        let (quick, careful) = both(&more);
        assert_eq!(quick.unwrap(), careful.unwrap());

        for broken in [&LINE[..LINE.len() - 1], &format!("{LINE}}}")] {
            assert!(both(broken).0.is_err(), "{broken}");
        }
    }

    proptest! {
        #[test]
        fn what_is_read_at_once_is_what_a_careful_reader_reads(
            changes in prop::collection::vec((0..LINE.len(), prop::sample::select(&b"{}[]\",:\\ a7"[..]), 0_u8..3), 0..4)
        ) {
            let mut line = LINE.as_bytes().to_vec();
            for (place, byte, how) in changes {
                let place = place.min(line.len() - 1);
                match how {
                    0 => line[place] = byte,
                    1 => line.insert(place, byte),
                    _ => drop(line.remove(place)),
                }
            }
            let line = String::from_utf8(line).unwrap();
            match both(&line) {
                (Ok(quick), Ok(careful)) => prop_assert_eq!(quick, careful),
                (quick, careful) => prop_assert!(quick.is_err() && careful.is_err(), "{line}"),
            }
        }
    }
}
