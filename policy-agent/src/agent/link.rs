//! The thread that watches interfaces: pods for the graph, facts of the host for the applier, and the netfilter
//! switches of pod bridges, which it keeps on.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use smol_str::SmolStr;
use towpath_core::model::{
    InterfaceName, MacAddress, Object, ObjectKey, ObservedInterface, Update,
};
use towpath_dataplane::link::{
    BridgeNetfilter, Changes, Inventory, NetlinkError, PodChange, PodFilter, PodInterface, Scan,
    Scanner, Waker, Watcher, bridge_netfilter_available,
};
use towpath_runtime::liveness::Beat;
use towpath_runtime::readiness::Condition;
use tracing::{debug, info, warn};

use super::event::Event;
use super::state::StateDirectory;

/// How long to wait before everything is listed again after a failure.
const RETRY: Duration = Duration::from_secs(1);

/// What the kernel tells about this host, apart from its pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct HostFacts {
    /// Addresses of the host itself.
    pub(super) addresses: BTreeSet<IpAddr>,
    /// Pod bridges that exist.
    pub(super) bridges: Vec<BridgeFacts>,
    /// Ports of pod bridges but the uplinks.
    pub(super) pod_ports: BTreeSet<InterfaceName>,
}

/// A pod bridge that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BridgeFacts {
    pub(super) name: InterfaceName,
    /// Whether its frames reach the inet hooks.
    pub(super) is_filtered: bool,
}

/// What a look at the interfaces changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct InterfaceChange {
    pub(super) updates: Vec<Update>,
    /// New facts of the host, where they changed.
    pub(super) host: Option<HostFacts>,
    /// When the kernel told.
    pub(super) at: Instant,
}

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
    end: bool,
}

impl LinkControl {
    /// Pods get addresses from these networks from now on.
    pub(super) fn set_networks(&self, networks: Vec<IpNet>) {
        self.wanted().networks = Some(networks);
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
    filter: PodFilter,
    inventory: Inventory,
    control: LinkControl,
    state: StateDirectory,
    sender: SyncSender<Event>,
    scanned: Condition,
    filtered: Condition,
    beat: Beat,
    /// Indexes of the pods that the graph knows, to take back those that a new filter leaves out.
    told: BTreeSet<u32>,
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
        let control = LinkControl {
            wanted: Arc::default(),
            waker: watcher.waker(),
        };
        let LinkParts {
            filter,
            state,
            sender,
            scanned,
            filtered,
            beat,
        } = parts;
        let inventory = Inventory::new(filter.clone());
        let told = BTreeSet::new();
        Ok(Self {
            scanner,
            watcher,
            filter,
            inventory,
            control,
            state,
            sender,
            scanned,
            filtered,
            beat,
            told,
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
        self.inventory = Inventory::new(self.filter.clone());
        self.inventory.apply(Scan::Full(snapshot));
        let found: BTreeSet<u32> = self.inventory.pods().map(|pod| pod.index).collect();
        let gone: Vec<u32> = self.told.difference(&found).copied().collect();
        let mut updates: Vec<Update> = gone.into_iter().map(removal).collect();
        updates.extend(self.inventory.pods().filter_map(observed).map(upsert));
        self.told = found;
        self.assert_bridges();
        info!(pods = self.told.len(), "looked at all interfaces");
        self.scanned.met();
        Ok(self.send(updates, true, at))
    }

    /// Waits for changes and looks at what they touch.
    fn follow(&mut self) -> Result<Turn, NetlinkError> {
        let wakeup = self.watcher.wait(self.beat.interval())?;
        let at = Instant::now();
        if wakeup.is_woken {
            let wanted = std::mem::take(&mut *self.control.wanted());
            if wanted.end {
                return Ok(Turn::Ends);
            }
            if let Some(networks) = wanted.networks {
                self.filter.networks = networks;
                return Ok(Turn::Stale);
            }
        }
        let mut changes = Changes::default();
        for event in &wakeup.events {
            for scan in self.scanner.follow(event, &self.inventory)? {
                merge(&mut changes, self.inventory.apply(scan));
            }
        }
        if changes.are_pod_bridges_changed {
            self.assert_bridges();
        }
        let is_host_changed = changes.are_host_addresses_changed
            || changes.are_pod_ports_changed
            || changes.are_pod_bridges_changed;
        let updates = self.updates(changes.pods);
        if updates.is_empty() && !is_host_changed {
            return Ok(Turn::Goes);
        }
        Ok(self.send(updates, is_host_changed, at))
    }

    fn updates(&mut self, changes: Vec<PodChange>) -> Vec<Update> {
        let mut updates = Vec::new();
        for change in changes {
            match change {
                PodChange::Upsert(pod) => {
                    debug!(interface = %pod.name, addresses = ?pod.addresses, "pod interface");
                    self.told.insert(pod.index);
                    let update = observed(&pod).map_or_else(|| removal(pod.index), upsert);
                    updates.push(update);
                }
                PodChange::Remove(index) => {
                    debug!(index, "pod interface is gone");
                    self.told.remove(&index);
                    updates.push(removal(index));
                }
            }
        }
        updates
    }

    /// Blocks while the graph has more than enough to do; the kernel keeps events for us meanwhile.
    fn send(&self, updates: Vec<Update>, is_host_changed: bool, at: Instant) -> Turn {
        let host = is_host_changed.then(|| self.host());
        let event = Event::Interfaces(InterfaceChange { updates, host, at });
        if self.sender.send(event).is_ok() {
            Turn::Goes
        } else {
            Turn::Ends
        }
    }

    fn host(&self) -> HostFacts {
        let bridges = self.inventory.pod_bridges().filter_map(|bridge| {
            let is_filtered = bridge.bridge_netfilter == Some(BridgeNetfilter::ON);
            Some(BridgeFacts {
                name: bridge.name.parse().ok()?,
                is_filtered,
            })
        });
        let pod_ports = self.inventory.pod_ports().into_iter().filter_map(|index| {
            self.inventory
                .interface(index)
                .and_then(|port| port.name.parse().ok())
        });
        HostFacts {
            addresses: self
                .inventory
                .host_addresses()
                .iter()
                .map(|host| host.address)
                .collect(),
            bridges: bridges.collect(),
            pod_ports: pod_ports.collect(),
        }
    }

    /// Switches netfilter on for every pod bridge, and says whether their traffic can be judged.
    fn assert_bridges(&mut self) {
        if self.filter.bridges.is_empty() {
            self.filtered.met();
            return;
        }
        match bridge_netfilter_available() {
            Ok(true) => {}
            Ok(false) => {
                let reason = "the kernel module br_netfilter is missing; load it on the host";
                if self.filtered.unmet(reason) {
                    warn!("{reason}");
                }
                return;
            }
            Err(error) => {
                self.filtered.unmet(chain(&error));
                return;
            }
        }
        let wrong: Vec<(u32, SmolStr, Option<BridgeNetfilter>)> = self
            .inventory
            .pod_bridges()
            .filter(|bridge| bridge.bridge_netfilter != Some(BridgeNetfilter::ON))
            .map(|bridge| (bridge.index, bridge.name.clone(), bridge.bridge_netfilter))
            .collect();
        let mut faults = Vec::new();
        for (index, name, before) in wrong {
            if let Err(fault) = self.switch_on(index, &name, before) {
                warn!(bridge = %name, error = fault, "cannot switch netfilter on");
                faults.push(format!("{name}: {fault}"));
            }
        }
        if faults.is_empty() {
            self.filtered.met();
        } else {
            self.filtered.unmet(faults.join(", "));
        }
    }

    fn switch_on(
        &mut self,
        index: u32,
        name: &str,
        before: Option<BridgeNetfilter>,
    ) -> Result<(), String> {
        if let Some(before) = before {
            self.state
                .record_bridge(name, before)
                .map_err(|error| chain(&error))?;
        }
        let switched = self
            .scanner
            .set_bridge_netfilter(index, BridgeNetfilter::ON);
        switched.map_err(|error| chain(&error))?;
        info!(bridge = %name, "switched netfilter on, so that traffic between its ports is judged");
        // The inventory learns it from the event that the change itself makes.
        Ok(())
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

fn merge(all: &mut Changes, more: Changes) {
    all.pods.extend(more.pods);
    all.are_host_addresses_changed |= more.are_host_addresses_changed;
    all.are_pod_ports_changed |= more.are_pod_ports_changed;
    all.are_pod_bridges_changed |= more.are_pod_bridges_changed;
}

fn upsert(interface: ObservedInterface) -> Update {
    Update::Upsert(Object::Interface(interface))
}

fn removal(index: u32) -> Update {
    Update::Remove(ObjectKey::Interface(index))
}

/// The interface as the graph knows it; `None` for a name that no rule could hold, which stays unknown and closed.
fn observed(pod: &PodInterface) -> Option<ObservedInterface> {
    let parsed = |name: &SmolStr| match name.parse::<InterfaceName>() {
        Ok(name) => Some(name),
        Err(error) => {
            warn!(interface = ?name, %error, "an interface with such a name cannot be a pod's");
            None
        }
    };
    Some(ObservedInterface {
        index: pod.index,
        name: parsed(&pod.name)?,
        bridge: match &pod.bridge {
            Some(bridge) => Some(parsed(bridge)?),
            None => None,
        },
        mac: pod.mac.map(MacAddress),
        addresses: pod.addresses.clone(),
    })
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
