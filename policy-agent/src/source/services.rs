//! A Service and who stands behind it, for the command line. The agent needs neither: it judges packets after they were
//! translated.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::Value;

use super::directory;
use super::read::FILE_BYTES;

/// The label by which slices say whose they are.
/// <https://kubernetes.io/docs/concepts/services-networking/endpoint-slices/#ownership>
pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// A Service, and the slices of its endpoints, as far as there are any.
#[derive(Clone, Debug, Default)]
pub(crate) struct ServiceSeen {
    pub(crate) service: Service,
    pub(crate) slices: Vec<EndpointSlice>,
}

/// Looks for a Service among manifests. What cannot be read is passed over: whoever reads the rest names it.
pub(crate) fn see_in_files(root: &Path, namespace: &str, name: &str) -> Option<ServiceSeen> {
    let files: Vec<PathBuf> = if root.is_file() {
        vec![root.to_owned()]
    } else {
        let listing = directory::walk(root, &mut |_| {}).ok()?;
        listing
            .files
            .keys()
            .map(|path| root.join(&**path))
            .collect()
    };
    let mut seen = None;
    let mut slices = Vec::new();
    for object in files.iter().flat_map(|file| objects(file)) {
        let metadata = &object["metadata"];
        if metadata["namespace"].as_str().unwrap_or("default") != namespace {
            continue;
        }
        match object["kind"].as_str() {
            Some("Service") if metadata["name"] == name => {
                seen = serde_json::from_value(object).ok();
            }
            Some("EndpointSlice") if metadata["labels"][SERVICE_NAME] == name => {
                slices.extend(serde_json::from_value::<EndpointSlice>(object).ok());
            }
            _ => {}
        }
    }
    seen.map(|service| ServiceSeen { service, slices })
}

/// The objects of a file, those of lists too.
fn objects(path: &Path) -> Vec<Value> {
    let read = || -> Option<Vec<Value>> {
        let mut text = String::new();
        let file = std::fs::File::open(path).ok()?;
        file.take(FILE_BYTES).read_to_string(&mut text).ok()?;
        serde_saphyr::from_multiple(&text).ok()
    };
    let documents = read().unwrap_or_default();
    let items = |document: Value| match document {
        Value::Object(mut list) if list.get("kind").is_some_and(|kind| kind == "List") => {
            match list.remove("items") {
                Some(Value::Array(items)) => items,
                _ => Vec::new(),
            }
        }
        other => vec![other],
    };
    documents.into_iter().flat_map(items).collect()
}
