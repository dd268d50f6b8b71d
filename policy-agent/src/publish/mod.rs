//! What this node tells the API server: the one place of the agent that writes there.
//!
//! Every part is optional and off unless it is asked for; one that is off has no state and makes no request:
//!
//! * [`taint`]: the startup taint goes once the node is ready;
//! * [`node_status`]: what is in force here, as an object of our own API;
//! * [`denied`]: Events on pods whose traffic is denied.
//!
//! The graph thread hands over what is to be told through slots that hold the newest value, and one bounded queue; it
//! never waits. [`Publisher::run`] is one task on the source's thread, with the source's connection and credentials.
//! What cannot be written is tried again, less and less often, and is a line of status, one of the log, and a counter;
//! enforcement does not depend on it.
//!
//! Not here: what is told (the agent), how requests are made (the Kubernetes source).

pub(crate) mod denied;
pub(crate) mod metrics;
pub mod node_status;
mod series;
pub mod standing;
pub mod taint;
#[cfg(test)]
mod tests;
mod time;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use self::denied::{Denial, EventWriter};
use self::metrics::Metrics;
use self::node_status::{NodeReport, StatusWriter};
use self::standing::{Feature, Standings, Teller};
use self::taint::{StartupTaint, TaintRemover};
pub(crate) use self::time::{to_second, to_seconds};
use crate::source::kubernetes::{Connection, OwnNodeWatch};

/// Denied flows that wait to be told; what comes on top is counted and forgotten.
const QUEUE: usize = 64;

/// What is to be told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// The taint that goes once the node is ready.
    pub(crate) startup_taint: Option<StartupTaint>,
    /// Least time between two writes of the node's status; none without it.
    pub(crate) node_status: Option<Duration>,
    /// Whether pods get Events for denied traffic.
    pub(crate) denied_events: bool,
}

impl Wanted {
    fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// The side of the graph thread; nothing here waits.
#[derive(Debug)]
pub(crate) struct Desk {
    /// Whether the node is ready, for the taint.
    pub(crate) ready: Option<watch::Sender<bool>>,
    /// The newest report.
    pub(crate) report: Option<watch::Sender<NodeReport>>,
    /// Denied flows.
    pub(crate) denied: Option<mpsc::Sender<Denial>>,
    /// How each part does.
    pub(crate) standings: Standings,
    pub(crate) metrics: Metrics,
}

/// Whose side the API server is on; to be handed to the source, which runs it.
pub(crate) struct Publisher {
    node: String,
    own: Arc<OwnNodeWatch>,
    taint: Option<(StartupTaint, watch::Receiver<bool>)>,
    status: Option<(Duration, watch::Receiver<NodeReport>)>,
    denied: Option<mpsc::Receiver<Denial>>,
    standings: Standings,
    metrics: Metrics,
}

/// Both sides, if there is anything to tell.
pub(crate) fn open(
    node: &str,
    wanted: &Wanted,
    metrics: impl FnOnce() -> Metrics,
) -> Option<(Desk, Publisher)> {
    if wanted.is_nothing() {
        return None;
    }
    let metrics = metrics();
    let standings = Standings::default();
    let (ready, is_ready) = watch::channel(false);
    let (report, reports) = watch::channel(NodeReport::default());
    let (denied, notes) = mpsc::channel(QUEUE);
    let own = OwnNodeWatch::new(node, wanted.startup_taint.clone());
    let publisher = Publisher {
        node: node.to_owned(),
        own: Arc::new(own),
        taint: wanted.startup_taint.clone().map(|taint| (taint, is_ready)),
        status: wanted.node_status.map(|interval| (interval, reports)),
        denied: wanted.denied_events.then_some(notes),
        standings: standings.clone(),
        metrics: metrics.clone(),
    };
    let desk = Desk {
        ready: publisher.taint.is_some().then_some(ready),
        report: publisher.status.is_some().then_some(report),
        denied: publisher.denied.is_some().then_some(denied),
        standings,
        metrics,
    };
    Some((desk, publisher))
}

impl Publisher {
    /// Where the source notes what it hears of this node.
    pub(crate) fn own_node(&self) -> Arc<OwnNodeWatch> {
        self.own.clone()
    }

    /// Writes until the graph thread has gone.
    pub(crate) async fn run(self, connection: Connection) {
        let teller = |feature| Teller::new(feature, self.standings.clone(), self.metrics.clone());
        let taint = self.taint.map(|(taint, ready)| TaintRemover {
            taint,
            node: self.node.clone(),
            own: self.own.subscribe(),
            ready,
            connection: connection.clone(),
            teller: teller(Feature::StartupTaint),
        });
        let status = self.status.map(|(interval, reports)| StatusWriter {
            node: self.node.clone(),
            own: self.own.subscribe(),
            reports,
            interval,
            connection: connection.clone(),
            teller: teller(Feature::NodeStatus),
        });
        let denied = self.denied.map(|notes| EventWriter {
            node: self.node.clone(),
            notes,
            connection,
            teller: teller(Feature::DeniedEvents),
        });
        tokio::join!(
            async {
                if let Some(taint) = taint {
                    taint.run().await;
                }
            },
            async {
                if let Some(status) = status {
                    status.run().await;
                }
            },
            async {
                if let Some(denied) = denied {
                    denied.run().await;
                }
            },
        );
    }
}
