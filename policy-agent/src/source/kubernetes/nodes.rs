//! What the nodes of a cluster say of themselves, read once for the command line.

use std::collections::BTreeMap;

use hyper::Request;
use hyper::header::ACCEPT;
use kube::client::Body;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::connection::{Connection, Failure};
use super::resource::Resource;
use super::stream::OBJECT_BYTES;
use super::{KubernetesSource, LoadError};
use crate::publish::node_status::{NodeReport, PATH, short};
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
    /// What each node says, nothing of one that cannot be understood; nothing at all where the API server does not have
    /// the kind.
    pub(crate) reports: Option<BTreeMap<String, Option<NodeReport>>>,
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
    /// Understood one by one: whoever may write one of them must not take the others away.
    #[serde(default)]
    status: Option<Box<RawValue>>,
}

impl List {
    fn read(bytes: &[u8]) -> Result<Self, Failure> {
        serde_json::from_slice(bytes)
            .map_err(|error| Failure::Body(format!("the list of nodestatuses: {error}")))
    }
}

impl Object {
    /// The node and what it says. A report that cannot be understood is none, and a remark.
    fn report(self, remarks: &mut Vec<String>) -> (String, Option<NodeReport>) {
        let node = self.metadata.name;
        let report = match self.status {
            None => Ok(NodeReport::default()),
            Some(status) => serde_json::from_str(status.get()),
        };
        let report = report.map_err(|error| {
            let error = short(&error.to_string());
            remarks.push(format!("cannot understand NodeStatus {node}: {error}"));
        });
        (node, report.ok())
    }
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
    let mut remarks = Vec::new();
    let mut seen = NodesSeen {
        reports: match connection.reports(&mut remarks).await {
            Ok(reports) => Some(reports),
            Err(Failure::NotFound { .. }) => return Ok(NodesSeen::default()),
            Err(failure) => return Err(failure.into()),
        },
        ..NodesSeen::default()
    };
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

    async fn reports(
        &self,
        remarks: &mut Vec<String>,
    ) -> Result<BTreeMap<String, Option<NodeReport>>, Failure> {
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
            let list = List::read(&bytes)?;
            reports.extend(list.items.into_iter().map(|object| object.report(remarks)));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_that_cannot_be_understood_takes_no_other_away() {
        let text = br#"{"metadata":{},"items":[
            {"metadata":{"name":"a"},"status":{"endpoints":-1}},
            {"metadata":{"name":"b"},"status":{"endpoints":2}},
            {"metadata":{"name":"c"}}]}"#;
        let mut remarks = Vec::new();

        let items = List::read(text).unwrap().items.into_iter();
        let reports: Vec<_> = items.map(|object| object.report(&mut remarks)).collect();

        let report = |endpoints| {
            Some(NodeReport {
                endpoints,
                ..NodeReport::default()
            })
        };
        let expected = [("a", None), ("b", report(2)), ("c", report(0))];
        assert_eq!(
            reports,
            expected.map(|(node, report)| (node.to_owned(), report))
        );
        assert!(
            matches!(&remarks[..], [one] if one.starts_with("cannot understand NodeStatus a: ")),
            "{remarks:?}"
        );
    }
}
