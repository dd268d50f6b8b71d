//! The status of this node as an object of our own API: `NodeStatus` of `towpath.io/v1alpha1`, one per node.
//!
//! It is owned by the Node, and goes with it. Changes are merged: a write comes at once when the last one is long
//! enough ago, and else when it is. Figures that change all the time go along with other changes and with the
//! heartbeat, and lead to no write of their own, so that a node where nothing happens writes once in five minutes.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use super::standing::{Standing, Teller};
use super::time::to_second;
use crate::layout::Enforcement;
use crate::source::Versions;
use crate::source::kubernetes::{Backoff, Change, Connection, Failure, OwnNode, random};

/// Group and version of our own API.
pub const API_VERSION: &str = "towpath.io/v1alpha1";
/// Path of all objects.
pub const PATH: &str = "/apis/towpath.io/v1alpha1/nodestatuses";
/// What is written at least so often, so that a silent node can be told.
pub const HEARTBEAT: Duration = Duration::from_mins(5);
/// Refused objects that are named.
pub const MOST_REFUSED: usize = 20;
/// Characters of a reason.
const MOST_CHARACTERS: usize = 200;

/// Shortest and longest wait before another try.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(2));
/// The definition or the right is missing: somebody must do something first.
const LOOK_AGAIN: Duration = Duration::from_mins(5);
/// Who gives the kind and the right to it.
const MANIFEST: &str = "deploy/node-status.yaml";
/// Who writes the fields.
const FIELD_MANAGER: &str = "towpath-agent";

/// The `status` of the object.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeReport {
    /// Whether the source was read whole and can still be read.
    pub in_sync: bool,
    /// `enforce`, or `audit`: what is denied is counted and logged, and passes.
    pub enforcement: Enforcement,
    /// Whether policy is in force for every pod of this node as the objects say.
    pub enforced: bool,
    /// For how many enforcement is open for a while, as `towpath bypass` lists them.
    pub bypasses: u64,
    /// What is missing until it is, each with its reason.
    pub awaited: Vec<String>,
    /// Endpoints of this node whose policy is in force.
    pub endpoints: u64,
    /// Endpoints of this node that are closed, because something about them is not known yet.
    pub endpoints_waiting: u64,
    /// Policies known.
    pub policies: u64,
    /// How many objects are not in force as written.
    pub refused_objects: u64,
    /// The first of them.
    pub refused: Vec<Refused>,
    /// Up to which version of each kind the kernel holds what follows from it.
    pub resource_versions: ResourceVersions,
    /// Version of the agent.
    pub version: String,
    /// What changes all the time, as it was at the last write.
    pub figures: Figures,
    /// When it was written, by the clock of the node.
    pub heartbeat: String,
    /// It is written at least so often.
    pub heartbeat_seconds: u64,
}

/// An object that is not in force as written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Refused {
    /// Kind and name.
    pub object: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Versions as the API has them: texts. Those of kinds that were never heard of are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ResourceVersions {
    /// Of `NetworkPolicy`.
    pub network_policies: String,
    /// Of `ClusterNetworkPolicy`.
    pub cluster_network_policies: String,
    /// Of `Namespace`.
    pub namespaces: String,
}

/// What changes all the time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Figures {
    /// Of `Pod`, as above.
    pub pods_resource_version: String,
    /// Of `Node`, as above.
    pub nodes_resource_version: String,
    /// Generation in force; it counts from the start of the agent.
    pub generation: u64,
    /// Generation that is wanted.
    pub wanted_generation: u64,
    /// When the kernel took the last commit.
    pub last_commit: Option<String>,
    /// How long the oldest change waits that the kernel does not have, in seconds.
    pub lag_seconds: f64,
    /// From an event's arrival to the end of its commit: median, 99 % and the last one, in milliseconds.
    pub latency_p50_milliseconds: Option<f64>,
    /// See above.
    pub latency_p99_milliseconds: Option<f64>,
    /// See above.
    pub latency_last_milliseconds: Option<f64>,
}

impl ResourceVersions {
    /// Of what the source knows.
    pub(crate) fn of(versions: &Versions) -> Self {
        Self {
            network_policies: version_text(versions.network_policies),
            cluster_network_policies: version_text(versions.cluster_network_policies),
            namespaces: version_text(versions.namespaces),
        }
    }
}

/// A version as the API has it; 0 is none.
pub(crate) fn version_text(version: u64) -> String {
    if version == 0 {
        return String::new();
    }
    version.to_string()
}

impl Refused {
    /// Cut to what a small object can hold. Names of the API are short; reasons may quote anything.
    pub(crate) fn new(object: &str, reason: &str) -> Self {
        Self {
            object: object.chars().take(2 * MOST_CHARACTERS).collect(),
            reason: short(reason),
        }
    }
}

/// A text of somebody else, cut and without control characters.
pub(crate) fn short(text: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().take(MOST_CHARACTERS).map(plain).collect()
}

impl NodeReport {
    /// Whether this is worth a write after `other`.
    pub(crate) fn is_news_after(&self, other: &Self) -> bool {
        let facts = |report: &Self| Self {
            figures: Figures::default(),
            heartbeat: String::new(),
            ..report.clone()
        };
        facts(self) != facts(other)
    }
}

/// Writes the object.
pub(super) struct StatusWriter {
    pub(super) node: String,
    pub(super) own: watch::Receiver<Option<OwnNode>>,
    pub(super) reports: watch::Receiver<NodeReport>,
    /// Least time between two writes.
    pub(super) interval: Duration,
    pub(super) connection: Connection,
    pub(super) teller: Teller,
}

impl StatusWriter {
    /// Works until the graph thread has gone.
    pub(super) async fn run(mut self) {
        let mut retry = Backoff::new(RETRY.0, RETRY.1);
        while let Some(uid) = self.next().await {
            // The next write is that of the newest report, whatever it was that led to it.
            let report = self.reports.borrow_and_update().clone();
            self.own.borrow_and_update();
            match self.write(&uid, report).await {
                Ok(()) => {
                    retry.reset();
                    let text = format!("NodeStatus {} is written", self.node);
                    self.teller.done(&text);
                    // Jitter, so that a thousand nodes that heard the same do not write at the same time for ever.
                    sleep(self.interval.mul_f64(1.0 + random() / 2.0)).await;
                    if !self.news().await {
                        return;
                    }
                }
                Err(failure) => {
                    let wait = retry.next(random()).max(failure.retry_after());
                    self.tell(&failure);
                    sleep(if is_for_somebody(&failure) {
                        LOOK_AGAIN.mul_f64(1.0 - random() / 4.0)
                    } else {
                        wait
                    })
                    .await;
                }
            }
        }
    }

    fn tell(&self, failure: &Failure) {
        let way_out = match failure {
            Failure::NotFound { .. } => {
                format!("apply {MANIFEST}, or set nodeStatus to false")
            }
            _ => String::new(),
        };
        self.teller.failed(failure, &way_out);
    }

    /// Waits until the node has an object, which is to own ours, and there is a report; nothing at the end.
    async fn next(&mut self) -> Option<String> {
        loop {
            let has_report = !self.reports.borrow().version.is_empty();
            if let Some(node) = self.own.borrow_and_update().as_ref()
                && has_report
            {
                return Some(node.uid.clone());
            }
            let reason = if has_report {
                "the API server has no Node of this name"
            } else {
                "the agent is starting"
            };
            self.teller.stand(Standing::Waiting, reason);
            tokio::select! {
                changed = self.reports.changed() => changed.ok()?,
                changed = self.own.changed() => changed.ok()?,
            }
        }
    }

    /// Waits until there is something to write; false at the end.
    async fn news(&mut self) -> bool {
        let heartbeat = Instant::now() + HEARTBEAT.mul_f64(1.0 - random() / 4.0);
        tokio::select! {
            changed = self.reports.changed() => changed.is_ok(),
            changed = self.own.changed() => changed.is_ok(),
            () = sleep_until(heartbeat) => true,
        }
    }

    async fn write(&self, uid: &str, mut report: NodeReport) -> Result<(), Failure> {
        report.heartbeat = to_second(SystemTime::now());
        report.heartbeat_seconds = HEARTBEAT.as_secs();
        let object = json!({
            "apiVersion": API_VERSION,
            "kind": "NodeStatus",
            "metadata": {
                "name": self.node,
                "ownerReferences": [
                    { "apiVersion": "v1", "kind": "Node", "name": self.node, "uid": uid },
                ],
            },
            "status": report,
        });
        let change = Change {
            method: "PATCH",
            uri: &format!(
                "{PATH}/{}?fieldManager={FIELD_MANAGER}&force=true",
                self.node
            ),
            // JSON is YAML.
            content: "application/apply-patch+yaml",
            body: object.to_string().into_bytes(),
            right: "create and patch nodestatuses.towpath.io",
            manifest: MANIFEST,
        };
        self.connection.change(change).await
    }
}

/// Whether trying again is of no use before somebody has done something.
fn is_for_somebody(failure: &Failure) -> bool {
    matches!(failure, Failure::NotFound { .. } | Failure::Refused { .. })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_no_news_and_facts_are() {
        let first = NodeReport {
            endpoints: 3,
            ..NodeReport::default()
        };
        let mut second = first.clone();
        second.figures.generation = 9;
        second.heartbeat = "now".to_owned();
        assert!(!second.is_news_after(&first));

        second.endpoints = 4;

        assert!(second.is_news_after(&first));
    }

    #[test]
    fn texts_of_others_are_cut_and_plain() {
        let refused = Refused::new("Pod shop/web", &"a\n\u{1b}é".repeat(100));

        assert_eq!(refused.reason.chars().count(), MOST_CHARACTERS);
        assert!(refused.reason.starts_with("a  éa  é"));
    }
}
