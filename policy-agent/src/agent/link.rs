//! The thread that watches interfaces and keeps the settings of pod bridges. What it tells the graph is decided in
//! `interfaces`.

use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use flannel_adapter::source::Observation;
use ipnet::IpNet;
use towpath_dataplane::link::{
    Interface, NetlinkError, PodFilter, Scanner, Waker, Watcher, bridge_netfilter_available,
};
use towpath_runtime::liveness::Beat;
use towpath_runtime::readiness::Condition;
use tracing::{info, warn};

use super::bridges::PodBridges;
use super::event::Event;
use super::interfaces::InterfaceView;
use super::state::StateDirectory;

/// How long to wait before everything is listed again after a failure.
const RETRY: Duration = Duration::from_secs(1);

/// Reaches the thread from outside: tells it which networks are pods', or to end.
#[derive(Clone, Debug)]
pub(super) struct LinkControl {
    wanted: Arc<Mutex<Wanted>>,
    waker: Waker,
}

/// What was asked for and not yet done. One slot, so that it cannot grow.
#[derive(Debug, Default)]
struct Wanted {
    networks: Option<Vec<IpNet>>,
    kept_results: Option<Vec<Observation>>,
    end: bool,
}

impl LinkControl {
    /// A handle to whoever waits for `waker`.
    pub(super) fn new(waker: Waker) -> Self {
        Self {
            wanted: Arc::default(),
            waker,
        }
    }

    /// Pods get addresses from these networks from now on.
    pub(super) fn set_networks(&self, networks: Vec<IpNet>) {
        self.wanted().networks = Some(networks);
        self.waker.wake();
    }

    /// The container runtime keeps these results of CNI plugins from now on.
    pub(super) fn set_kept_results(&self, results: Vec<Observation>) {
        self.wanted().kept_results = Some(results);
        self.waker.wake();
    }

    /// Ends the thread.
    pub(super) fn end(&self) {
        self.wanted().end = true;
        self.waker.wake();
    }

    fn wanted(&self) -> std::sync::MutexGuard<'_, Wanted> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The watch of this host's interfaces.
#[derive(Debug)]
pub(super) struct LinkThread {
    scanner: Scanner,
    watcher: Watcher,
    view: InterfaceView,
    control: LinkControl,
    bridges: PodBridges,
    sender: SyncSender<Event>,
    scanned: Condition,
    beat: Beat,
}

/// What the thread needs from its owner.
pub(super) struct LinkParts {
    pub(super) filter: PodFilter,
    pub(super) state: StateDirectory,
    pub(super) sender: SyncSender<Event>,
    /// Holds once all interfaces have been looked at.
    pub(super) scanned: Condition,
    /// Holds while the frames of every pod bridge can be seen.
    pub(super) filtered: Condition,
    pub(super) beat: Beat,
}

impl LinkThread {
    /// Opens the sockets, in the network namespace of the calling thread.
    pub(super) fn open(parts: LinkParts) -> Result<Self, NetlinkError> {
        let scanner = Scanner::open()?;
        let watcher = Watcher::open(&scanner)?;
        if !watcher.hears_namespaces() {
            warn!(
                "without CAP_NET_BROADCAST pods are looked for every second, not heard of at once"
            );
        }
        let control = LinkControl::new(watcher.waker());
        let LinkParts {
            filter,
            state,
            sender,
            scanned,
            filtered,
            beat,
        } = parts;
        let bridges = PodBridges::new(
            !filter.bridges.is_empty(),
            state,
            bridge_netfilter_available,
            filtered,
        );
        Ok(Self {
            scanner,
            watcher,
            view: InterfaceView::new(filter),
            control,
            bridges,
            sender,
            scanned,
            beat,
        })
    }

    /// A handle to it.
    pub(super) fn control(&self) -> LinkControl {
        self.control.clone()
    }

    /// Watches until it is told to end, or the graph is gone.
    pub(super) fn run(mut self) {
        let mut is_whole = false;
        loop {
            let started = Instant::now();
            self.beat.beat(started);
            let turn = if is_whole {
                self.follow()
            } else {
                self.discover()
            };
            match turn {
                Ok(Turn::Goes) => is_whole = true,
                Ok(Turn::Stale) => is_whole = false,
                Ok(Turn::Ends) => return,
                Err(error) => {
                    warn!(
                        error = chain(&error),
                        "cannot watch interfaces; trying again"
                    );
                    self.scanned.unmet(chain(&error));
                    is_whole = false;
                    // The wait also hears of the end.
                    if self
                        .watcher
                        .wait(RETRY)
                        .is_ok_and(|_| self.control.wanted().end)
                    {
                        return;
                    }
                }
            }
        }
    }

    /// Lists everything.
    fn discover(&mut self) -> Result<Turn, NetlinkError> {
        let at = Instant::now();
        let snapshot = self.scanner.discover()?;
        self.view.start_again(snapshot);
        self.keep_bridges();
        let pods = self.view.inventory().pods().count();
        info!(pods, "looked at all interfaces");
        self.scanned.met();
        Ok(self.tell(at))
    }

    /// Waits for changes and looks at what they touch.
    fn follow(&mut self) -> Result<Turn, NetlinkError> {
        let wakeup = self.watcher.wait(self.beat.interval())?;
        let at = Instant::now();
        let mut are_sources_changed = false;
        if wakeup.is_woken {
            let wanted = std::mem::take(&mut *self.control.wanted());
            if wanted.end {
                return Ok(Turn::Ends);
            }
            if let Some(results) = wanted.kept_results {
                self.view.set_kept_results(results);
                are_sources_changed = true;
            }
            if let Some(networks) = wanted.networks {
                self.view.set_networks(networks);
                return Ok(Turn::Stale);
            }
        }
        let mut are_bridges_changed = false;
        for event in &wakeup.events {
            for scan in self.scanner.follow(event, self.view.inventory())? {
                are_bridges_changed |= self.view.apply(scan).are_pod_bridges_changed;
            }
        }
        if are_bridges_changed || self.bridges.must_look() {
            self.keep_bridges();
        }
        if wakeup.events.is_empty() && !are_sources_changed {
            return Ok(Turn::Goes);
        }
        Ok(self.tell(at))
    }

    /// Tells the graph, if there is anything to tell. Blocks while the graph has more than enough to do; the kernel
    /// keeps events for us meanwhile.
    fn tell(&mut self, at: Instant) -> Turn {
        let Some(change) = self.view.change(at) else {
            return Turn::Goes;
        };
        if self.sender.send(Event::Interfaces(change)).is_ok() {
            Turn::Goes
        } else {
            Turn::Ends
        }
    }

    /// Sets up every pod bridge, and says whether its traffic can be judged.
    fn keep_bridges(&mut self) {
        let bridges: Vec<Interface> = self.view.inventory().pod_bridges().cloned().collect();
        let scanner = &mut self.scanner;
        self.bridges.keep(&bridges, &mut |index, wanted| {
            scanner.set_bridge(index, wanted)
        });
    }
}

/// How the thread goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Goes,
    /// Everything must be looked at again.
    Stale,
    Ends,
}

/// An error with its causes, on one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
