//! Node objects with their annotations, and Flannel's configuration, from manifests or an API server.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use flannel_adapter::Parsed;
use flannel_adapter::annotations::NodeRecord;
use flannel_adapter::net_conf::NetConf;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use smol_str::SmolStr;

use super::super::facts::Look;
use super::chain;
use crate::cli::arguments::SourceLocation;

/// An API server that takes longer is taken for one that does not answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Larger manifests are none of Nodes.
const MOST_BYTES: u64 = 8 << 20;
/// Where Flannel's manifests put its configuration.
const NET_CONF: [&str; 2] = [
    "/api/v1/namespaces/kube-flannel/configmaps/kube-flannel-cfg",
    "/api/v1/namespaces/kube-system/configmaps/kube-flannel-cfg",
];

/// What was read.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    pub(super) records: Vec<NodeRecord>,
    /// Flannel's configuration, where it was found.
    pub(super) net_conf: Option<Parsed<Option<NetConf>>>,
}

/// Any object, as far as it matters here. Every field may be missing.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Object {
    kind: String,
    metadata: Metadata,
    spec: Option<Spec>,
    status: Option<Status>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Metadata {
    name: String,
    annotations: Option<BTreeMap<SmolStr, SmolStr>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<SmolStr>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<SmolStr>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    addresses: Option<Vec<Address>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Address {
    address: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct List {
    items: Vec<Object>,
    metadata: ListMetadata,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ListMetadata {
    r#continue: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ConfigMap {
    data: BTreeMap<String, String>,
}

impl Object {
    fn record(self) -> NodeRecord {
        let spec = self.spec.unwrap_or_default();
        let mut pod_cidrs = spec.pod_cidrs.unwrap_or_default();
        if pod_cidrs.is_empty() {
            pod_cidrs.extend(spec.pod_cidr);
        }
        let addresses = self
            .status
            .unwrap_or_default()
            .addresses
            .unwrap_or_default();
        NodeRecord {
            name: self.metadata.name.into(),
            annotations: self.metadata.annotations.unwrap_or_default(),
            pod_cidrs,
            addresses: addresses
                .iter()
                .filter_map(|address| address.address.parse::<IpAddr>().ok())
                .collect(),
        }
    }
}

/// Reads all Node objects.
pub(super) fn read(source: Option<&SourceLocation>) -> Look<Nodes> {
    match source {
        None => Look::Unseen("nobody said where Node objects are".to_owned()),
        Some(SourceLocation::File(folder)) => of_folder(folder),
        Some(SourceLocation::Kubernetes(kubeconfig)) => of_cluster(kubeconfig.as_deref()),
    }
}

/// Nodes among the manifests of a folder. Manifests of other things may be as they like; `towpath lint` judges them.
fn of_folder(folder: &Path) -> Look<Nodes> {
    let mut nodes = Nodes::default();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) => {
                return Look::Unseen(format!("cannot read {}: {error}", folder.display()));
            }
        };
        for entry in entries.flatten() {
            let path = entry.path();
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            if metadata.is_dir() {
                folders.push(path);
            } else if metadata.is_file() && metadata.len() <= MOST_BYTES && is_manifest(&path) {
                let text = fs::read_to_string(&path).unwrap_or_default();
                nodes.records.extend(of_text(&text));
            }
        }
    }
    nodes
        .records
        .sort_unstable_by(|one, other| one.name.cmp(&other.name));
    Look::Seen(nodes)
}

fn is_manifest(path: &Path) -> bool {
    let end = path.extension().and_then(|end| end.to_str());
    matches!(end, Some("yaml" | "yml" | "json"))
}

fn of_text(text: &str) -> Vec<NodeRecord> {
    // Cheaper than reading every policy.
    if !text.contains("Node") {
        return Vec::new();
    }
    let objects: Vec<Object> = serde_saphyr::from_multiple(text).unwrap_or_default();
    let nodes = objects.into_iter().filter(|object| object.kind == "Node");
    nodes.map(Object::record).collect()
}

fn of_cluster(kubeconfig: Option<&Path>) -> Look<Nodes> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return Look::Unseen(format!("cannot start a client: {error}")),
    };
    let answer = runtime.block_on(async {
        let listed = tokio::time::timeout(PATIENCE, list(kubeconfig)).await;
        listed.unwrap_or_else(|_| Err("the API server does not answer".to_owned()))
    });
    match answer {
        Ok(nodes) => Look::Seen(nodes),
        Err(reason) => Look::Unseen(reason),
    }
}

async fn list(kubeconfig: Option<&Path>) -> Result<Nodes, String> {
    let config = match kubeconfig {
        None => Config::incluster().map_err(|error| chain(&error))?,
        Some(path) => {
            let read = Kubeconfig::read_from(path).map_err(|error| chain(&error))?;
            Config::from_custom_kubeconfig(read, &KubeConfigOptions::default())
                .await
                .map_err(|error| chain(&error))?
        }
    };
    let client = Client::try_from(config).map_err(|error| chain(&error))?;
    let mut nodes = Nodes::default();
    let mut next = String::new();
    loop {
        let list: List = get(&client, &format!("/api/v1/nodes?limit=500{next}")).await?;
        nodes
            .records
            .extend(list.items.into_iter().map(Object::record));
        match list.metadata.r#continue.filter(|token| !token.is_empty()) {
            // The server's tokens need no escape but for these.
            Some(token) => {
                let token = token
                    .replace('+', "%2B")
                    .replace('/', "%2F")
                    .replace('=', "%3D");
                next = format!("&continue={token}");
            }
            None => break,
        }
    }
    for path in NET_CONF {
        // The right to read it is not needed otherwise; without it the nodes' own words must do.
        if let Ok(map) = get::<ConfigMap>(&client, path).await
            && let Some(text) = map.data.get("net-conf.json")
        {
            nodes.net_conf = Some(NetConf::parse("ConfigMap kube-flannel-cfg", text));
            break;
        }
    }
    Ok(nodes)
}

async fn get<T: DeserializeOwned>(client: &Client, path: &str) -> Result<T, String> {
    let request = hyper::Request::get(path)
        .body(Vec::new())
        .map_err(|error| error.to_string())?;
    client.request(request).await.map_err(|error| chain(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_nodes_among_other_manifests() {
        let text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: Node}\n---\n\
            apiVersion: v1\nkind: Node\nmetadata: {name: a, annotations: {k: v}}\n\
            spec: {podCIDR: 10.244.1.0/24}\n\
            status: {addresses: [{type: Hostname, address: a}, {type: InternalIP, address: 192.0.2.1}]}\n";

        let found = of_text(text);

        let expected = NodeRecord {
            name: "a".into(),
            annotations: BTreeMap::from([("k".into(), "v".into())]),
            pod_cidrs: vec!["10.244.1.0/24".into()],
            addresses: vec!["192.0.2.1".parse().unwrap()],
        };
        assert_eq!(found, vec![expected]);
    }
}
