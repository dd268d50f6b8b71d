//! The kernel's links and addresses: interface facts always come from here. Tells no identity.

use std::collections::BTreeMap;
use std::time::Duration;

use smol_str::{SmolStr, ToSmolStr as _};
use towpath_core::model::MacAddress;
use towpath_dataplane::link::{
    Event, Interface, Inventory, PodFilter, PodInterface, Scan, Scanner, Watcher,
};

use super::{
    Delta, EndpointSource, InterfaceFacts, InterfaceKind, InterfaceRef, Observation, SourceError,
    SourceName,
};

/// What an inventory says: each interface but the loopback and the uplinks, and of pods what is behind it.
pub fn observations<'a>(
    inventory: &'a Inventory,
    filter: &'a PodFilter,
) -> impl Iterator<Item = Observation> + 'a {
    /// Index of the loopback interface, in every namespace.
    const LOOPBACK: u32 = 1;
    let others = inventory.interfaces().filter(|interface| {
        interface.index != LOOPBACK && !filter.uplinks.contains(&interface.name)
    });
    others.map(|interface| observation(inventory, interface, inventory.pod(interface.index)))
}

fn observation(
    inventory: &Inventory,
    interface: &Interface,
    pod: Option<&PodInterface>,
) -> Observation {
    let bridge = interface
        .master
        .and_then(|master| inventory.interface(master));
    Observation {
        key: key(interface.index),
        interface: Some(InterfaceRef::Index(interface.index)),
        facts: Some(InterfaceFacts {
            index: interface.index,
            name: interface.name.clone(),
            kind: match interface.kind.as_deref() {
                Some("veth" | "netkit") => InterfaceKind::Veth,
                Some("tun" | "macvtap") => InterfaceKind::Tap,
                _ => InterfaceKind::Host,
            },
            bridge: bridge.map(|bridge| bridge.name.clone()),
            is_seen_through: pod.is_some(),
        }),
        addresses: pod.map(|pod| pod.addresses.clone()).unwrap_or_default(),
        mac: pod.and_then(|pod| pod.mac).map(MacAddress),
        ..Observation::default()
    }
}

fn key(index: u32) -> SmolStr {
    index.to_smolstr()
}

/// The source by itself. The agent, which needs the inventory for more, calls [`observations`].
#[derive(Debug)]
pub struct NetlinkSource {
    scanner: Scanner,
    watcher: Watcher,
    filter: PodFilter,
    inventory: Inventory,
    told: BTreeMap<SmolStr, Observation>,
}

impl NetlinkSource {
    /// Opens the sockets, in the network namespace of the calling thread.
    pub fn open(filter: PodFilter) -> Result<Self, SourceError> {
        let scanner = Scanner::open()?;
        let watcher = Watcher::open(&scanner)?;
        Ok(Self {
            scanner,
            watcher,
            inventory: Inventory::new(filter.clone()),
            filter,
            told: BTreeMap::new(),
        })
    }

    /// What differs from what was told.
    fn deltas(&mut self) -> Vec<Delta> {
        let seen: BTreeMap<SmolStr, Observation> = observations(&self.inventory, &self.filter)
            .map(|observation| (observation.key.clone(), observation))
            .collect();
        let gone = self.told.keys().filter(|key| !seen.contains_key(*key));
        let mut deltas: Vec<Delta> = gone.cloned().map(Delta::Gone).collect();
        let news = seen
            .iter()
            .filter(|(key, observation)| self.told.get(*key) != Some(observation));
        deltas.extend(news.map(|(_, observation)| Delta::seen(observation.clone())));
        self.told = seen;
        deltas
    }
}

impl EndpointSource for NetlinkSource {
    fn name(&self) -> SourceName {
        SourceName::Netlink
    }

    fn snapshot(&mut self) -> Result<Vec<Observation>, SourceError> {
        let snapshot = self.scanner.discover()?;
        self.inventory = Inventory::new(self.filter.clone());
        self.inventory.apply(Scan::Full(snapshot));
        self.told.clear();
        self.deltas();
        Ok(self.told.values().cloned().collect())
    }

    fn wait(&mut self, timeout: Duration) -> Result<Vec<Delta>, SourceError> {
        for event in self.watcher.wait(timeout)?.events {
            if event == Event::Overrun {
                return Ok(vec![Delta::Lagged]);
            }
            for scan in self.scanner.follow(&event, &self.inventory)? {
                self.inventory.apply(scan);
            }
        }
        Ok(self.deltas())
    }
}
