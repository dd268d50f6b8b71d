//! The last synced state of a source that may be out of reach, on disk: a rebooted node enforces it before its API
//! server answers.
//!
//! A file of JSON lines: a header, then one object each. It is replaced as a whole, and only root can read it. Addresses
//! of this node's pods are left out: a sandbox does not outlive a reboot, and its address may be another pod's by then;
//! who has which is known again from the CNI plugin, or from the API server.
//!
//! It is read only where an earlier run has enforced policy and no table is there (edge case 21): an existing table is
//! not changed before the source is in sync.

mod writer;

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use towpath_core::model::{Cluster, EndpointKind, Object};
use towpath_runtime::file;

pub use writer::SnapshotWriter;

/// Name of the file in the state directory.
pub const SNAPSHOT: &str = "snapshot.jsonl";
/// Raised when another version would misunderstand the file.
const VERSION: u32 = 2;
/// Longest line: the largest object that an API server stores is smaller.
const LINE_BYTES: u64 = 16 << 20;
/// Objects in one file.
const OBJECTS: usize = 2_000_000;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Header {
    version: u32,
    node: String,
    /// Seconds since 1970.
    written_at: u64,
    objects: usize,
}

/// What stood in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Seconds since 1970 when it was written.
    pub written_at: u64,
    /// Everything but interfaces, and but the addresses of this node's pods.
    pub objects: Vec<Object>,
}

/// Why a snapshot is not used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// It cannot be read.
    #[error("cannot read it")]
    Read(#[from] io::Error),
    /// It is not what this version writes.
    #[error("line {line}: {source}")]
    Content {
        /// From 1.
        line: usize,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// It is another version's.
    #[error("it has version {found}, and this agent knows {VERSION}")]
    Version {
        /// The version.
        found: u32,
    },
    /// It is another node's.
    #[error("it is of node {found:?}")]
    Node {
        /// The node.
        found: String,
    },
    /// It ends early or goes on too long.
    #[error("it does not have the {announced} objects that it announces")]
    Count {
        /// How many there should be.
        announced: usize,
    },
}

/// Reads the snapshot of this node; `None` when there is none.
pub fn load(state_directory: &Path, node: &str) -> Result<Option<Snapshot>, SnapshotError> {
    let file = match File::open(state_directory.join(SNAPSHOT)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    read(BufReader::new(file), node).map(Some)
}

fn read(mut file: impl BufRead, node: &str) -> Result<Snapshot, SnapshotError> {
    let mut line = Vec::new();
    let content = |line: usize| move |source| SnapshotError::Content { line, source };
    next_line(&mut file, &mut line)?;
    let header: Header = serde_json::from_slice(&line).map_err(content(1))?;
    if header.version != VERSION {
        return Err(SnapshotError::Version {
            found: header.version,
        });
    }
    if header.node != node {
        return Err(SnapshotError::Node { found: header.node });
    }
    let announced = header.objects;
    let mut objects = Vec::with_capacity(announced.min(OBJECTS));
    while next_line(&mut file, &mut line)? {
        if objects.len() >= announced.min(OBJECTS) {
            return Err(SnapshotError::Count { announced });
        }
        let object = serde_json::from_slice(&line).map_err(content(objects.len() + 2))?;
        objects.push(object);
    }
    if objects.len() != announced {
        return Err(SnapshotError::Count { announced });
    }
    Ok(Snapshot {
        written_at: header.written_at,
        objects,
    })
}

/// Reads a line; false at the end of the file.
fn next_line(file: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    let read = file.by_ref().take(LINE_BYTES).read_until(b'\n', line)?;
    Ok(read > 0)
}

/// Replaces the snapshot as a whole.
fn save(state_directory: &Path, node: &str, cluster: &Cluster, written_at: u64) -> io::Result<()> {
    file::replace(&state_directory.join(SNAPSHOT), 0o600, |file| {
        write(file, node, cluster, written_at)
    })
}

fn write(file: &mut impl Write, node: &str, cluster: &Cluster, written_at: u64) -> io::Result<()> {
    let Cluster {
        namespaces,
        nodes,
        endpoints,
        policies,
        interfaces: _,
    } = cluster;
    // What the node's configuration adds is read from there again.
    let told = || {
        let endpoints = endpoints.values();
        endpoints.filter(|endpoint| endpoint.id.kind != EndpointKind::LocalService)
    };
    let header = Header {
        version: VERSION,
        node: node.to_owned(),
        written_at,
        objects: namespaces.len() + nodes.len() + told().count() + policies.len(),
    };
    serde_json::to_writer(&mut *file, &header)?;
    file.write_all(b"\n")?;
    let mut line = |object: Object| {
        serde_json::to_writer(&mut *file, &object)?;
        file.write_all(b"\n")
    };
    for namespace in namespaces.values() {
        line(Object::Namespace(namespace.clone()))?;
    }
    for node in nodes.values() {
        line(Object::Node(node.clone()))?;
    }
    for policy in policies.values() {
        line(Object::Policy(policy.clone()))?;
    }
    for endpoint in told() {
        let mut endpoint = endpoint.clone();
        if endpoint.node.as_deref() == Some(node) && !endpoint.host_network {
            endpoint.addresses.clear();
        }
        line(Object::Endpoint(endpoint))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
