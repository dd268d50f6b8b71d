//! The thread that watches interfaces: pods for the graph, facts of the host for the applier, and the settings of pod
//! bridges, which it keeps.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use towpath_core::model::{
    InterfaceName, MacAddress, Object, ObjectKey, ObservedInterface, Update,
};
use towpath_dataplane::link::{
    BridgeSettings, Interface, Inventory, NetlinkError, PodFilter, Scan, Scanner, Waker, Watcher,
    bridge_netfilter_available,
};
use towpath_runtime::liveness::Beat;
use towpath_runtime::readiness::Condition;
use tracing::{debug, info, warn};

use super::bridges::PodBridges;
use super::event::Event;
use super::state::StateDirectory;

/// Index of the loopback interface, in every namespace.
const LOOPBACK: u32 = 1;
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
    /// Pod interfaces that are ports of no bridge.
    pub(super) routed: BTreeSet<InterfaceName>,
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
    bridges: PodBridges,
    sender: SyncSender<Event>,
    scanned: Condition,
    beat: Beat,
    /// What the graph knows of interfaces.
    told: BTreeMap<u32, ObservedInterface>,
    /// What it knows of the host.
    told_host: Option<HostFacts>,
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
        let bridges = PodBridges::new(
            !filter.bridges.is_empty(),
            state,
            bridge_netfilter_available,
            filtered,
        );
        Ok(Self {
            scanner,
            watcher,
            filter,
            inventory,
            control,
            bridges,
            sender,
            scanned,
            beat,
            told: BTreeMap::new(),
            told_host: None,
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
        self.keep_bridges();
        let pods = self.inventory.pods().count();
        info!(pods, "looked at all interfaces");
        self.scanned.met();
        Ok(self.tell(at))
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
        let mut are_bridges_changed = false;
        for event in &wakeup.events {
            for scan in self.scanner.follow(event, &self.inventory)? {
                are_bridges_changed |= self.inventory.apply(scan).are_pod_bridges_changed;
            }
        }
        if are_bridges_changed || self.bridges.is_module_changed() {
            self.keep_bridges();
        }
        if wakeup.events.is_empty() {
            return Ok(Turn::Goes);
        }
        Ok(self.tell(at))
    }

    /// What changed since the graph was told last.
    fn updates(&mut self) -> Vec<Update> {
        let seen = self.seen();
        let gone = self.told.keys().filter(|index| !seen.contains_key(index));
        let mut updates: Vec<Update> = gone
            .map(|index| Update::Remove(ObjectKey::Interface(*index)))
            .collect();
        for (index, interface) in &seen {
            if self.told.get(index) != Some(interface) {
                debug!(interface = %interface.name, addresses = ?interface.addresses, "interface");
                updates.push(Update::Upsert(Object::Interface(interface.clone())));
            }
        }
        self.told = seen;
        updates
    }

    /// Interfaces as the graph knows them: those of pods with what is behind them, and the others by name only, for
    /// endpoints that name their interface.
    fn seen(&self) -> BTreeMap<u32, ObservedInterface> {
        let name_of = |index: u32| self.inventory.interface(index)?.name.parse().ok();
        let others = self.inventory.interfaces().filter(|interface| {
            interface.index != LOOPBACK && !self.filter.uplinks.contains(&interface.name)
        });
        let mut seen: BTreeMap<u32, ObservedInterface> = others
            .filter_map(|interface| {
                let observed = ObservedInterface {
                    index: interface.index,
                    name: interface.name.parse().ok()?,
                    bridge: interface.master.and_then(name_of),
                    mac: None,
                    addresses: Vec::new(),
                };
                Some((interface.index, observed))
            })
            .collect();
        for pod in self.inventory.pods() {
            // One whose name no rule could hold is not known, so it stays closed.
            if let Some(observed) = seen.get_mut(&pod.index) {
                observed.mac = pod.mac.map(MacAddress);
                observed.addresses.clone_from(&pod.addresses);
            }
        }
        seen
    }

    /// Tells the graph, if there is anything to tell. Blocks while the graph has more than enough to do; the kernel
    /// keeps events for us meanwhile.
    fn tell(&mut self, at: Instant) -> Turn {
        let updates = self.updates();
        let host = Some(self.host()).filter(|host| self.told_host.as_ref() != Some(host));
        if updates.is_empty() && host.is_none() {
            return Turn::Goes;
        }
        if host.is_some() {
            self.told_host.clone_from(&host);
        }
        let event = Event::Interfaces(InterfaceChange { updates, host, at });
        if self.sender.send(event).is_ok() {
            Turn::Goes
        } else {
            Turn::Ends
        }
    }

    fn host(&self) -> HostFacts {
        let bridges = self.inventory.pod_bridges().filter_map(|bridge| {
            let settings = bridge.bridge_settings;
            let is_filtered = settings.is_some_and(BridgeSettings::is_filtered);
            let name = bridge.name.parse().ok()?;
            Some(BridgeFacts { name, is_filtered })
        });
        let pod_ports = self.inventory.pod_ports().into_iter().filter_map(|index| {
            let port = self.inventory.interface(index)?;
            port.name.parse().ok()
        });
        let addresses = self.inventory.host_addresses().iter();
        HostFacts {
            addresses: addresses.map(|host| host.address).collect(),
            bridges: bridges.collect(),
            pod_ports: pod_ports.collect(),
            routed: self.routed(),
        }
    }

    /// Pods' interfaces without a bridge, and those that have a configured prefix even if nothing is known behind
    /// them: what is unknown there is closed.
    fn routed(&self) -> BTreeSet<InterfaceName> {
        let has_prefix = |name: &str| {
            self.filter
                .prefixes
                .iter()
                .any(|prefix| name.starts_with(prefix.as_str()))
        };
        let pods = self
            .inventory
            .pods()
            .filter(|pod| pod.bridge.is_none())
            .map(|pod| &pod.name);
        let named = self.inventory.interfaces().filter(|interface| {
            interface.master.is_none()
                && has_prefix(&interface.name)
                && !self.filter.uplinks.contains(&interface.name)
        });
        pods.chain(named.map(|interface| &interface.name))
            .filter_map(|name| name.parse().ok())
            .collect()
    }

    /// Sets up every pod bridge, and says whether its traffic can be judged.
    fn keep_bridges(&mut self) {
        let bridges: Vec<Interface> = self.inventory.pod_bridges().cloned().collect();
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
