//! The agent of a node: reads manifests, finds pods, programs the kernel, and tells how it is doing.
//!
//! Threads, joined by one bounded queue into the graph and one merging slot out of it:
//!
//! * the main thread owns the calculation graph (`graph`);
//! * `source` reads manifests, or `kubernetes` follows an API server; `link` watches interfaces, `nflog` hears of denied packets;
//! * the applier commits to the kernel;
//! * `server` has the control socket, the probes and the metrics.
//!
//! Rules stay when the agent ends, however it ends.

mod answers;
pub(crate) mod backend;
mod bridges;
pub(crate) mod bypass;
pub(crate) mod bypass_server;
pub(crate) mod bypassing;
mod cni;
mod cni_claims;
mod cni_server;
mod cni_store;
pub mod config;
mod denied;
mod event;
mod facts;
mod foreign_ports;
mod graph;
mod in_flight;
mod interfaces;
mod kept_results;
mod latency;
mod link;
pub mod local_services;
mod metrics;
mod monitor;
mod nflog;
mod nodes;
mod obstacles;
mod publishing;
pub mod report;
mod seats;
mod server;
mod snapshots;
mod source;
mod start_code;
pub mod state;
mod surroundings;
mod thread;
mod unannounced;
mod views;
mod warnings;

use std::future::Future;
use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use prometheus_client::registry::Registry;
use towpath_dataplane::link::{NetlinkError, PodFilter};
use towpath_dataplane::nft::CommitError;
use towpath_runtime::http::ListenError;
use towpath_runtime::liveness::{Beat, Liveness};
use towpath_runtime::readiness::Readiness;
use tracing::{error, info, warn};

use self::backend::{Opened, TablesError};
use self::cni::{Cni, CniRequest};
pub use self::cni_store::QUEUE as CNI_QUEUE;
use self::cni_store::{ClaimStore, drain_queue};
use self::config::Config;
use self::event::{ApplierNews, Event, QUEUE};
use self::graph::{GraphParts, GraphThread};
use self::kept_results::KeptResultsThread;
use self::link::{LinkControl, LinkParts, LinkThread, chain};
use self::metrics::Metrics;
use self::monitor::MonitorThread;
use self::nflog::NflogThread;
use self::obstacles::{Lookout, ObstacleThread};
use self::publishing::Publishing;
use self::server::{Served, Server};
use self::snapshots::Snapshots;
use self::source::{OpenedSource, SourceFeed};
use self::state::{StateDirectory, StateError};
use self::thread::{Guard, spawn};
use crate::applier::{Applier, ApplierHandle, ApplyError, Marker, Report};
use crate::layout::Enforcement;
use crate::source::kubernetes::ConnectError;

/// Name of the condition that holds while traffic between ports of pod bridges can be judged.
const BRIDGE_NETFILTER: &str = "bridge netfilter";

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
    /// The kernel's tables cannot be used.
    #[error(transparent)]
    Tables(#[from] TablesError),
    /// The API server cannot even be asked.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// Changes by others cannot be heard.
    #[error("cannot listen to changes of nftables")]
    Monitor(#[source] CommitError),
    /// The applier has given up.
    #[error("the kernel could not be programmed; the rules stay as they are")]
    Apply(#[source] ApplyError),
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
    /// Whether another agent is at work here.
    pub fn is_in_use(&self) -> bool {
        matches!(
            self,
            Self::State(StateError::InUse { .. }) | Self::Tables(TablesError::Owned { .. })
        )
    }

    /// Whether the configuration is of no use.
    pub fn is_misconfigured(&self) -> bool {
        matches!(self, Self::Connect(_))
    }

    /// Whether the kernel lacks something.
    pub fn is_unsupported(&self) -> bool {
        match self {
            Self::Link(error) => matches!(error, NetlinkError::Unsupported { .. }),
            Self::Tables(error) => error.is_unsupported(),
            Self::Monitor(error) => matches!(error, CommitError::Unsupported { .. }),
            Self::Apply(error) => matches!(error, ApplyError::Unsupported(_)),
            Self::State(_)
            | Self::Listen(_)
            | Self::Connect(_)
            | Self::Thread { .. }
            | Self::Panicked { .. } => false,
        }
    }
}

/// Runs the agent in the network namespace of the calling thread until `shutdown` is done, or until commits fail
/// too often.
pub fn run<F>(config: &Config, shutdown: F) -> Result<(), AgentError>
where
    F: Future<Output = ()> + Send + 'static,
{
    let effective = serde_json::to_string(config).unwrap_or_default();
    info!(
        version = env!("CARGO_PKG_VERSION"),
        config = effective,
        "starting"
    );
    let Agent {
        graph,
        threads,
        server,
    } = Agent::start(config, shutdown)?;
    let outcome = graph.run();
    threads.end();
    server.end();
    info!("ended; the rules stay in place");
    outcome
}

/// The running agent, but for the graph's loop.
struct Agent {
    graph: GraphThread,
    threads: Threads,
    server: Server,
}

/// What threads tell about themselves.
struct Health {
    readiness: Readiness,
    liveness: Liveness,
    now: Instant,
}

impl Health {
    fn beat(&mut self, name: &'static str) -> Beat {
        self.liveness.add(name, DEADLINE, self.now)
    }
}

impl Agent {
    /// Opens every socket, in the network namespace of the calling thread, then starts the threads. The server comes
    /// after all who have a beat, so that none is missing.
    fn start<F>(config: &Config, shutdown: F) -> Result<Self, AgentError>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut state = StateDirectory::open(&config.state_directory)?;
        let taint = config.startup_taint.as_ref().map(ToString::to_string);
        let recorded = [
            state.record_startup_taint(taint),
            state.record_directories(&config.socket),
        ];
        // An agent that does not start protects nobody.
        for error in recorded.into_iter().filter_map(Result::err) {
            warn!(%error, "cannot note what an uninstall has to undo; trying again");
        }
        let source = config.source.as_ref().map(OpenedSource::open).transpose()?;
        let (sender, receiver) = sync_channel(QUEUE);
        let mut registry = Registry::with_prefix("towpath");
        let readiness = Readiness::default();
        let metrics = Metrics::register(&mut registry, readiness.clone());
        let (publishing, publisher) = Publishing::open(config, &mut registry);
        let mut health = Health {
            readiness,
            liveness: Liveness::default(),
            now: Instant::now(),
        };

        let link = LinkThread::open(link_parts(config, state, &sender, &mut health))?;
        let control = link.control();
        let mut opened = backend::open(config)?;
        let snapshots = Snapshots::open(config, &mut *opened.backend);
        let monitored = opened.port.filter(|_| !opened.options.table_flags.owner);
        let (applier, applier_thread) =
            start_applier(config, opened, &sender, health.beat("applier"))?;
        let (lookout, wakeups) = Lookout::new();
        let parts = GraphParts {
            receiver,
            applier: applier.clone(),
            link: control.clone(),
            metrics,
            readiness: health.readiness.clone(),
            synced: health.readiness.add("source", "not read yet"),
            committed: health
                .readiness
                .add("first commit", "nothing is committed yet"),
            cni: Cni::new(
                &config.node,
                ClaimStore::new(&config.state_directory),
                health.now,
            ),
            snapshots,
            publishing,
            lookout: lookout.clone(),
            beat: health.beat("graph"),
        };
        let graph = GraphThread::new(config, parts, health.now);
        let clear = health
            .readiness
            .add("other dataplanes", "not looked at yet");
        let Health {
            readiness,
            liveness,
            ..
        } = health;
        let parts = Served {
            sender: sender.clone(),
            liveness,
            readiness,
            registry,
        };
        let server = Server::start(config, parts, shutdown)?;
        // After the socket is there: what the plugin could not tell before is in the queue by now.
        tell_queued_deletions(config, &sender);
        let threads = Threads {
            link: spawn("link", sender.clone(), move || link.run())?,
            kept_results: KeptResultsThread::start(
                config.cni_results_directory.clone(),
                control.clone(),
                sender.clone(),
            )?,
            control,
            obstacles: ObstacleThread::start(config, clear, (lookout, wakeups), sender.clone())?,
            nflog: NflogThread::start(config.nflog_group, sender.clone())?,
            monitor: monitor(monitored, &sender)?,
            source: source
                .map(|source| source.start(&config.node, publisher, sender))
                .transpose()?,
            applier,
            applier_thread,
        };
        Ok(Self {
            graph,
            threads,
            server,
        })
    }
}

/// Nobody has sent anything yet, so this does not wait for the graph.
fn tell_queued_deletions(config: &Config, sender: &SyncSender<Event>) {
    match drain_queue(&config.state_directory) {
        Ok(gone) if gone.is_empty() => {}
        Ok(gone) => {
            info!(pods = gone.len(), "pods were taken away while no agent ran");
            let request = CniRequest::Delete { gone, to: None };
            sender.try_send(Event::Cni(request)).ok();
        }
        Err(error) => warn!(%error, "cannot read the queue of the CNI plugin"),
    }
}

fn link_parts(
    config: &Config,
    state: StateDirectory,
    sender: &SyncSender<Event>,
    health: &mut Health,
) -> LinkParts {
    LinkParts {
        filter: pod_filter(config),
        state,
        sender: sender.clone(),
        scanned: health.readiness.add("interfaces", "not looked at yet"),
        filtered: health.readiness.add(BRIDGE_NETFILTER, "not looked at yet"),
        beat: health.beat("link"),
    }
}

fn start_applier(
    config: &Config,
    opened: Opened,
    sender: &SyncSender<Event>,
    beat: Beat,
) -> Result<(ApplierHandle, JoinHandle<()>), AgentError> {
    let Opened {
        backend, options, ..
    } = opened;
    let report = applier_report(sender.clone(), beat);
    let failed = |source| AgentError::Thread {
        name: "applier",
        source,
    };
    let unread = |source| StateError::File {
        action: "read the marker in",
        path: config.state_directory.clone(),
        source,
    };
    let (marker, places) = Marker::open(&config.state_directory).map_err(unread)?;
    let is_audited = options.enforcement == Enforcement::Audit;
    let mut applier = Applier::new(backend, options);
    // A node that is audited closes nothing, so it promises nothing for after a reboot either.
    if is_audited {
        warn!("this node is audited: what is denied is counted and logged, and passes");
        return ApplierHandle::start(applier, report).map_err(failed);
    }
    applier = applier.noting(marker);
    if let Some(mut places) = places {
        places.interfaces.extend(config.pod_bridges.iter().cloned());
        applier = applier.guarding(places);
    }
    ApplierHandle::start(applier, report).map_err(failed)
}

/// What the applier reports, as events of the graph.
fn applier_report(sender: SyncSender<Event>, beat: Beat) -> impl FnMut(Report) + Send + 'static {
    let guard = Guard::new("applier", sender.clone());
    move |report| {
        // Moved in whole, so that a panic of the thread is told.
        let _guard = &guard;
        let now = Instant::now();
        beat.beat(now);
        let news = match report {
            Report::Alive => return,
            Report::Applied(applied) => ApplierNews::Applied(applied, now),
            Report::Retrying { failures, failure } => ApplierNews::Retrying(failures, failure),
            Report::Verified(drift) => ApplierNews::Verified(drift),
            Report::Bypassed(sequence, outcome) => ApplierNews::Bypassed(sequence, outcome),
            Report::Noted(fault) => ApplierNews::Noted(fault),
            Report::Unverified(error) => {
                warn!(error = chain(&error), "cannot read the tables back");
                return;
            }
            Report::Failed(error) => ApplierNews::Failed(error),
        };
        // When the graph is gone, the agent ends.
        sender.send(Event::Applier(news)).ok();
    }
}

/// Listens for changes by others unless the kernel refuses them, or no port tells ours: each transaction of the `nft`
/// program would look like somebody else's.
fn monitor(
    own_port: Option<u32>,
    sender: &SyncSender<Event>,
) -> Result<Option<MonitorThread>, AgentError> {
    own_port
        .map(|port| MonitorThread::start(port, sender.clone()))
        .transpose()
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

/// The threads around the graph.
struct Threads {
    link: JoinHandle<()>,
    control: LinkControl,
    kept_results: KeptResultsThread,
    obstacles: ObstacleThread,
    nflog: Option<NflogThread>,
    monitor: Option<MonitorThread>,
    source: Option<SourceFeed>,
    applier: ApplierHandle,
    applier_thread: JoinHandle<()>,
}

impl Threads {
    /// Ends them all. The graph has gone, so nobody blocks on its queue any more.
    fn end(self) {
        drop(self.source);
        self.control.end();
        self.applier.end();
        if let Some(nflog) = self.nflog {
            nflog.end();
        }
        if let Some(monitor) = self.monitor {
            monitor.end();
        }
        let ended = [
            ("link", self.link.join()),
            ("applier", self.applier_thread.join()),
            ("obstacles", self.obstacles.end()),
            ("kept results", self.kept_results.end()),
        ];
        for (name, ended) in ended {
            if ended.is_err() {
                error!(name, "a thread has panicked");
            }
        }
    }
}

#[cfg(test)]
mod tests;
