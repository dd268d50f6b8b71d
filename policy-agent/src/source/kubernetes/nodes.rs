//! What the nodes of a cluster say of themselves, read once for the command line.

use std::collections::BTreeMap;

use hyper::Request;
use hyper::header::ACCEPT;
use kube::client::Body;
use serde::Deserialize;

use super::connection::{Connection, Failure};
use super::resource::Resource;
use super::stream::OBJECT_BYTES;
use super::{KubernetesSource, LoadError};
use crate::publish::node_status::{NodeReport, PATH};
use crate::source::Versions;

/// Objects of one page; a report has some kilobytes at most.
const PAGE: u32 = 200;

/// What there is.
#[derive(Debug, Default)]
pub(crate) struct NodesSeen {
    /// Names of all Nodes; nothing where they may not be read.
    pub(crate) nodes: Option<Vec<String>>,
    /// The newest version of an object of each kind; 0 where none may be read.
    pub(crate) newest: Versions,
    /// What each node says; nothing where the API server does not have the kind.
    pub(crate) reports: Option<BTreeMap<String, NodeReport>>,
    /// What could not be read, and why.
    pub(crate) remarks: Vec<String>,
}

#[derive(Deserialize)]
struct List {
    metadata: ListMetadata,
    items: Vec<Object>,
}

#[derive(Deserialize)]
struct ListMetadata {
    #[serde(default)]
    r#continue: String,
}

#[derive(Deserialize)]
struct Object {
    metadata: Metadata,
    #[serde(default)]
    status: NodeReport,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
}

impl KubernetesSource {
    /// Reads what all nodes say of themselves. The reports come first, so that no node is behind what it could not
    /// know of when it was asked.
    pub(crate) fn see_nodes(&self) -> Result<NodesSeen, LoadError> {
        self.runtime.block_on(see(&self.connection))
    }
}

async fn see(connection: &Connection) -> Result<NodesSeen, LoadError> {
    let mut seen = NodesSeen {
        reports: match connection.reports().await {
            Ok(reports) => Some(reports),
            Err(Failure::NotFound { .. }) => return Ok(NodesSeen::default()),
            Err(failure) => return Err(failure.into()),
        },
        ..NodesSeen::default()
    };
    let mut remarks = Vec::new();
    let mut objects = BTreeMap::new();
    for resource in [
        Resource::Node,
        Resource::NetworkPolicy,
        Resource::ClusterNetworkPolicy,
    ] {
        match connection.names(resource).await {
            Ok(found) => {
                objects.insert(resource, found);
            }
            Err(Failure::NotFound { .. }) if resource.is_optional() => {}
            // Who may see the reports need not be allowed to see everything else.
            Err(failure @ Failure::Refused { .. }) => {
                remarks.push(format!("cannot list {}: {failure}", resource.plural()));
            }
            Err(failure) => return Err(failure.into()),
        }
    }
    let newest = |resource| {
        let found: Option<&(u64, Vec<String>)> = objects.get(&resource);
        found.map_or(0, |(newest, _)| *newest)
    };
    seen.newest.network_policies = newest(Resource::NetworkPolicy);
    seen.newest.cluster_network_policies = newest(Resource::ClusterNetworkPolicy);
    seen.nodes = objects.remove(&Resource::Node).map(|(_, names)| names);
    seen.remarks = remarks;
    Ok(seen)
}

impl Connection {
    /// The newest version of a kind's objects, and their names.
    async fn names(&self, resource: Resource) -> Result<(u64, Vec<String>), Failure> {
        let (path, mut next) = (resource.path(), None);
        let (mut newest, mut names) = (0, Vec::new());
        loop {
            let page = self.list(resource, &path, next.as_deref()).await?;
            for item in page.items {
                newest = item.version.max(newest);
                names.push(item.name.into());
            }
            next = page.next;
            if next.is_none() {
                return Ok((newest, names));
            }
        }
    }

    async fn reports(&self) -> Result<BTreeMap<String, NodeReport>, Failure> {
        let (mut reports, mut next) = (BTreeMap::new(), String::new());
        loop {
            let mut uri = format!("{PATH}?limit={PAGE}");
            if !next.is_empty() {
                uri.push_str("&continue=");
                uri.push_str(&super::connection::encode(&next));
            }
            let request = Request::get(&uri)
                .header(ACCEPT, "application/json")
                .body(Body::empty())
                .map_err(|error| Failure::Body(error.to_string()))?;
            let advice = || {
                "to list nodestatuses.towpath.io takes the role towpath-view of deploy/node-status.yaml, or view".to_owned()
            };
            let body = self.send(request, &uri, advice).await?.into_body();
            let bytes = self.whole(body, OBJECT_BYTES).await?;
            let list: List = serde_json::from_slice(&bytes)
                .map_err(|error| Failure::Body(format!("the list of nodestatuses: {error}")))?;
            for object in list.items {
                reports.insert(object.metadata.name, object.status);
            }
            next = list.metadata.r#continue;
            if next.is_empty() {
                return Ok(reports);
            }
        }
    }
}

impl From<Failure> for LoadError {
    fn from(failure: Failure) -> Self {
        let text = failure.to_string();
        match failure {
            Failure::Refused { .. } => Self::Refused(text),
            _ => Self::Failed(text),
        }
    }
}
