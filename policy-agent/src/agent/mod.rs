//! The agent of a node: reads manifests, finds pods, programs the kernel, and tells how it is doing.
//!
//! Threads, joined by one bounded queue into the graph and one merging slot out of it:
//!
//! * the main thread owns the calculation graph (`graph`);
//! * `source` reads manifests, `link` watches interfaces, `nflog` hears of denied packets;
//! * the applier commits to the kernel;
//! * `server` has the control socket, the probes and the metrics.
//!
//! Rules stay when the agent ends, however it ends.

pub mod config;
mod denied;
mod event;
mod latency;
mod link;
mod metrics;
mod nflog;
pub mod report;
mod server;
mod source;
pub mod state;
mod thread;
mod views;

use std::future::Future;
use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use prometheus_client::registry::Registry;
use towpath_dataplane::link::{NetlinkError, PodFilter};
use towpath_runtime::http::ListenError;
use towpath_runtime::liveness::Liveness;
use towpath_runtime::readiness::Readiness;
use tracing::{error, info};

use self::config::Config;
use self::event::{Event, QUEUE};
use self::link::{LinkControl, LinkParts, LinkThread};
use self::metrics::Metrics;
use self::nflog::NflogThread;
use self::server::{Served, Server};
use self::state::{StateDirectory, StateError};
use self::thread::spawn;

/// A loop that has not turned for so long is stuck.
const DEADLINE: Duration = Duration::from_secs(30);

/// Why the agent could not start, or ended by itself. The rules stay in place.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// A socket cannot be served.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The kernel cannot be asked for interfaces.
    #[error(transparent)]
    Link(#[from] NetlinkError),
    /// A thread could not start.
    #[error("cannot start the thread {name}")]
    Thread {
        /// Its name.
        name: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// A thread has panicked.
    #[error("the thread {name} has failed; the rules stay as they are")]
    Panicked {
        /// Its name.
        name: &'static str,
    },
}

impl AgentError {
    /// Whether the kernel lacks something.
    pub fn is_unsupported(&self) -> bool {
        match self {
            Self::Link(error) => matches!(error, NetlinkError::Unsupported { .. }),
            Self::State(_) | Self::Listen(_) | Self::Thread { .. } | Self::Panicked { .. } => false,
        }
    }
}

fn pod_filter(config: &Config) -> PodFilter {
    let texts = |names: &[towpath_core::model::InterfaceName]| {
        names.iter().map(|name| name.as_str().into()).collect()
    };
    PodFilter {
        bridges: texts(&config.pod_bridges),
        prefixes: config
            .interface_prefixes
            .iter()
            .map(|prefix| prefix.as_str().into())
            .collect(),
        networks: Vec::new(),
        uplinks: texts(&config.bridge_uplinks),
    }
}

/// The threads that feed the graph.
struct Threads {
    link: JoinHandle<()>,
    control: LinkControl,
    nflog: Option<NflogThread>,
}

impl Threads {
    /// Ends them all. The graph has gone, so nobody blocks on its queue any more.
    fn end(self) {
        self.control.end();
        if let Some(nflog) = self.nflog {
            nflog.end();
        }
        if self.link.join().is_err() {
            error!("the thread that watches interfaces has panicked");
        }
    }
}
