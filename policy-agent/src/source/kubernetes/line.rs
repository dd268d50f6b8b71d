//! One line of a watch: an event, with the object as it came.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::connection::Failure;
use super::item::{Item, name};
use super::resource::Resource;
use super::world::Event;

/// An event, and the object in it as it came.
pub(super) fn read_event(resource: Resource, line: &[u8]) -> Result<(Event, &RawValue), Failure> {
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
    Ok((event, line.object))
}
