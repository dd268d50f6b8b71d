//! The lab's own objects as manifests in a directory: what the agents read.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::lab::{Node, Pod, PodSpec};

/// A directory of manifests. A file appears, changes and goes in one step: nobody reads half of one.
#[derive(Debug)]
pub struct Manifests {
    folder: PathBuf,
    staging: PathBuf,
}

impl Manifests {
    /// Makes the directory `manifests` in the folder, and one beside it to write in.
    pub fn create(folder: &Path) -> Result<Self> {
        let manifests = Self {
            folder: folder.join("manifests"),
            staging: folder.join("staging"),
        };
        fs::create_dir_all(&manifests.folder)?;
        fs::create_dir_all(&manifests.staging)?;
        Ok(manifests)
    }

    /// The directory, as `file:DIR` names it.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes or replaces a file; `name` is without the ending. Returns the moment just before it became visible.
    pub fn write(&self, name: &str, text: &str) -> Result<Instant> {
        let file = format!("{name}.yaml");
        let staged = self.staging.join(&file);
        fs::write(&staged, text).with_context(|| format!("cannot write {}", staged.display()))?;
        let visible = self.folder.join(&file);
        let before = Instant::now();
        fs::rename(&staged, &visible)
            .with_context(|| format!("cannot move {} into place", visible.display()))?;
        Ok(before)
    }

    /// Text of a file, if there is one.
    pub fn read(&self, name: &str) -> Result<Option<String>> {
        let path = self.folder.join(format!("{name}.yaml"));
        match fs::read_to_string(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            text => {
                Ok(Some(text.with_context(|| {
                    format!("cannot read {}", path.display())
                })?))
            }
        }
    }

    /// Removes a file; nothing happens when there is none.
    pub fn remove(&self, name: &str) -> Result<Instant> {
        let path = self.folder.join(format!("{name}.yaml"));
        let before = Instant::now();
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", path.display()))
            }
            _ => Ok(before),
        }
    }
}

/// Name of a pod's file.
pub fn pod_file(spec: &PodSpec) -> String {
    format!("pod-{}-{}", spec.namespace, spec.name)
}

/// A Namespace.
pub fn namespace(name: &str, labels: &BTreeMap<String, String>) -> String {
    // The API server puts this label on every namespace.
    let mut labels = labels.clone();
    labels.insert("kubernetes.io/metadata.name".to_owned(), name.to_owned());
    let mut text = format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n");
    push_map(&mut text, "  ", "labels", &labels);
    text
}

/// A Node with what flanneld notes on it.
pub fn node(node: &Node) -> String {
    let mut text = format!(
        "apiVersion: v1\nkind: Node\nmetadata:\n  name: {}\n",
        node.name
    );
    let labels = [("kubernetes.io/hostname".to_owned(), node.name.clone())];
    push_map(&mut text, "  ", "labels", &labels.into());
    push_map(&mut text, "  ", "annotations", &node.annotations());
    text.push_str("spec:\n");
    if let Some(first) = node.pod_cidrs.first() {
        let _ = writeln!(text, "  podCIDR: {first}");
    }
    text.push_str("  podCIDRs:\n");
    for cidr in &node.pod_cidrs {
        let _ = writeln!(text, "    - {cidr}");
    }
    text.push_str("status:\n  addresses:\n");
    for address in &node.addresses {
        let _ = writeln!(
            text,
            "    - type: InternalIP\n      address: {:?}",
            address.to_string()
        );
    }
    text
}

/// A running Pod.
pub fn pod(pod: &Pod) -> String {
    let spec = &pod.spec;
    let mut text = format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {}\n  namespace: {}\n  uid: {}\n",
        spec.name, spec.namespace, pod.sandbox.uid
    );
    push_map(&mut text, "  ", "labels", &spec.labels);
    let _ = write!(
        text,
        "spec:\n  nodeName: {}\n  containers:\n    - name: server\n",
        spec.node
    );
    if !spec.ports.is_empty() {
        text.push_str("      ports:\n");
    }
    for port in &spec.ports {
        let protocol = port.protocol.to_string().to_uppercase();
        let _ = writeln!(
            text,
            "        - containerPort: {}\n          protocol: {protocol}",
            port.port
        );
        if let Some(name) = &port.name {
            let _ = writeln!(text, "          name: {name}");
        }
    }
    text.push_str("status:\n  phase: Running\n");
    if let Some(first) = pod.addresses.first() {
        let _ = writeln!(text, "  podIP: {:?}", first.to_string());
    }
    text.push_str("  podIPs:\n");
    for address in &pod.addresses {
        let _ = writeln!(text, "    - ip: {:?}", address.to_string());
    }
    text
}

fn push_map(text: &mut String, indent: &str, key: &str, map: &BTreeMap<String, String>) {
    if map.is_empty() {
        return;
    }
    let _ = writeln!(text, "{indent}{key}:");
    for (key, value) in map {
        // JSON's quoted strings are YAML's as well.
        let value = serde_json::Value::from(value.as_str());
        let _ = writeln!(text, "{indent}  {key}: {value}");
    }
}
