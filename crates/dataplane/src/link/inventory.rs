//! What is known of interfaces, and what each scan changes.

use std::collections::{BTreeMap, BTreeSet};

use smol_str::SmolStr;

use super::model::{
    HostAddress, Interface, NamespaceId, PeerFacts, PodFilter, PodInterface, Scan, Snapshot,
};

/// A change of a pod's interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodChange {
    /// It is new or different.
    Upsert(PodInterface),
    /// The interface with this number is gone or no longer a pod's.
    Remove(u32),
}

/// What a scan changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// The pods' interfaces, by number.
    pub pods: Vec<PodChange>,
    /// Whether the addresses of this host changed; see [`Inventory::host_addresses`].
    pub are_host_addresses_changed: bool,
    /// Whether [`Inventory::pod_ports`] changed.
    pub are_pod_ports_changed: bool,
    /// Whether a pod bridge is new, gone or set differently; see [`Inventory::pod_bridges`].
    pub are_pod_bridges_changed: bool,
}

/// The interfaces of this namespace as last seen. Does no I/O.
///
/// No two of them have one name, as in the kernel. Where what is seen says otherwise, because one was renamed or
/// replaced between two looks, the later look is right, and the interface of the earlier one is forgotten until its own
/// event, which is on its way, tells its new name or its end.
#[derive(Clone, Debug)]
pub struct Inventory {
    filter: PodFilter,
    interfaces: BTreeMap<u32, Interface>,
    peers: BTreeMap<u32, PeerFacts>,
    host_addresses: Vec<HostAddress>,
    pods: BTreeMap<u32, PodInterface>,
}

impl Inventory {
    /// An empty inventory; the first scan to apply is a full one.
    pub fn new(filter: PodFilter) -> Self {
        Self {
            filter,
            interfaces: BTreeMap::new(),
            peers: BTreeMap::new(),
            host_addresses: Vec::new(),
            pods: BTreeMap::new(),
        }
    }

    /// Takes over what a scan found and says what that changes.
    pub fn apply(&mut self, scan: Scan) -> Changes {
        let ports = self.pod_ports();
        let bridges: Vec<Interface> = self.pod_bridges().cloned().collect();
        let mut changes = Changes::default();
        let touched = match scan {
            Scan::Full(snapshot) => self.replace(snapshot, &mut changes),
            Scan::Link { index, found } => self.put(index, found),
            Scan::Namespace { nsid, members } => self.put_members(nsid, members),
            Scan::HostAddresses(addresses) => {
                self.put_host_addresses(addresses, &mut changes);
                return changes;
            }
        };
        for index in touched {
            changes.pods.extend(self.judge(index));
        }
        changes.are_pod_ports_changed = ports != self.pod_ports();
        changes.are_pod_bridges_changed = !self.pod_bridges().eq(&bridges);
        changes
    }

    /// The pods' interfaces, by number.
    pub fn pods(&self) -> impl Iterator<Item = &PodInterface> {
        self.pods.values()
    }

    /// One pod's interface.
    pub fn pod(&self, index: u32) -> Option<&PodInterface> {
        self.pods.get(&index)
    }

    /// All interfaces of this namespace, by number.
    pub fn interfaces(&self) -> impl Iterator<Item = &Interface> {
        self.interfaces.values()
    }

    /// One interface of this namespace.
    pub fn interface(&self, index: u32) -> Option<&Interface> {
        self.interfaces.get(&index)
    }

    /// The addresses of this namespace, in order.
    pub fn host_addresses(&self) -> &[HostAddress] {
        &self.host_addresses
    }

    /// The pod bridges that exist, with their settings.
    pub fn pod_bridges(&self) -> impl Iterator<Item = &Interface> {
        self.interfaces
            .values()
            .filter(|interface| interface.is_bridge() && self.filter.is_pod_bridge(&interface.name))
    }

    /// Numbers of all ports of the pod bridges but the uplinks, whether or not an address is known behind them.
    pub fn pod_ports(&self) -> BTreeSet<u32> {
        let bridges: BTreeSet<u32> = self.pod_bridges().map(|bridge| bridge.index).collect();
        self.interfaces
            .values()
            .filter(|interface| {
                interface
                    .master
                    .is_some_and(|master| bridges.contains(&master))
                    && !self.filter.uplinks.contains(&interface.name)
            })
            .map(|interface| interface.index)
            .collect()
    }

    /// Numbers of the interfaces here whose other end is believed to be in `nsid`.
    pub(super) fn interfaces_into(&self, nsid: NamespaceId) -> Vec<u32> {
        self.interfaces
            .values()
            .filter(|interface| interface.peer.is_some_and(|peer| peer.nsid == nsid))
            .map(|interface| interface.index)
            .collect()
    }

    /// Takes over a full scan; returns every number old or new.
    fn replace(&mut self, snapshot: Snapshot, changes: &mut Changes) -> BTreeSet<u32> {
        self.put_host_addresses(snapshot.host_addresses, changes);
        let mut touched: BTreeSet<u32> = self.interfaces.keys().copied().collect();
        // The kernel lists by number, so of two with one name the higher number was seen later.
        let by_name: BTreeMap<SmolStr, u32> = snapshot
            .interfaces
            .iter()
            .map(|interface| (interface.index, interface.name.clone()))
            .collect::<BTreeMap<_, _>>()
            .into_iter()
            .map(|(index, name)| (name, index))
            .collect();
        self.interfaces = snapshot
            .interfaces
            .into_iter()
            .filter(|interface| by_name.get(&interface.name) == Some(&interface.index))
            .map(|interface| (interface.index, interface))
            .collect();
        self.peers = snapshot.peers;
        self.peers
            .retain(|index, _| self.interfaces.contains_key(index));
        touched.extend(self.interfaces.keys());
        touched
    }

    /// Takes over one interface; returns the numbers whose judgement may differ.
    fn put(&mut self, index: u32, found: Option<(Interface, Option<PeerFacts>)>) -> BTreeSet<u32> {
        let name = |inventory: &Self| {
            inventory
                .interfaces
                .get(&index)
                .map(|interface| interface.name.clone())
        };
        let name_before = name(self);
        self.interfaces.remove(&index);
        self.peers.remove(&index);
        let mut touched = BTreeSet::from([index]);
        if let Some((interface, facts)) = found {
            let namesake = self
                .interfaces
                .values()
                .find(|other| other.name == interface.name)
                .map(|other| other.index);
            if let Some(namesake) = namesake {
                touched.extend(self.put(namesake, None));
            }
            self.interfaces.insert(index, interface);
            self.peers.extend(facts.map(|facts| (index, facts)));
        }
        if name_before != name(self) {
            // Ports are judged by the name of their bridge.
            let ports = self.interfaces.values();
            let ports = ports.filter(|interface| interface.master == Some(index));
            touched.extend(ports.map(|interface| interface.index));
        }
        touched
    }

    /// Takes over the interfaces into one namespace.
    fn put_members(
        &mut self,
        nsid: NamespaceId,
        members: Vec<(Interface, PeerFacts)>,
    ) -> BTreeSet<u32> {
        let mut touched: BTreeSet<u32> = self.interfaces_into(nsid).into_iter().collect();
        for index in &touched {
            // Those still there come back below.
            self.peers.remove(index);
        }
        for (interface, facts) in members {
            touched.extend(self.put(interface.index, Some((interface, Some(facts)))));
        }
        touched
    }

    fn put_host_addresses(&mut self, addresses: Vec<HostAddress>, changes: &mut Changes) {
        changes.are_host_addresses_changed = addresses != self.host_addresses;
        self.host_addresses = addresses;
    }

    /// Decides anew whether a pod lives behind one interface.
    fn judge(&mut self, index: u32) -> Option<PodChange> {
        let Some(pod) = self.pod_behind(index) else {
            return self.pods.remove(&index).map(|_| PodChange::Remove(index));
        };
        if self.pods.get(&index) == Some(&pod) {
            return None;
        }
        self.pods.insert(index, pod.clone());
        Some(PodChange::Upsert(pod))
    }

    fn pod_behind(&self, index: u32) -> Option<PodInterface> {
        let interface = self.interfaces.get(&index)?;
        let facts = self.peers.get(&index)?;
        let bridge = interface
            .master
            .and_then(|master| self.interfaces.get(&master))
            .map(|master| master.name.clone());
        if interface.master.is_some() && bridge.is_none() {
            // The master is not listed yet; its own event brings us back.
            return None;
        }
        self.filter
            .is_pod(interface, bridge.as_deref(), facts)
            .then(|| {
                Some(PodInterface {
                    index,
                    name: interface.name.clone(),
                    bridge,
                    peer: interface.peer?,
                    mac: facts.mac,
                    addresses: facts.addresses.clone(),
                    has_link_local: facts.has_link_local,
                })
            })?
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::model::Peer;
    use super::*;

    fn interface(index: u32, name: &str, kind: &str, master: Option<u32>) -> Interface {
        Interface {
            index,
            name: name.into(),
            kind: Some(kind.into()),
            master,
            mac: None,
            mtu: 1450,
            is_up: true,
            peer: None,
            bridge_settings: None,
        }
    }

    fn veth(index: u32, nsid: i32, master: Option<u32>) -> Interface {
        Interface {
            peer: NamespaceId::from_kernel(nsid).map(|nsid| Peer { nsid, index: 2 }),
            ..interface(index, &format!("veth{index}"), "veth", master)
        }
    }

    fn facts(last: u8) -> PeerFacts {
        PeerFacts {
            mac: Some([2, 0, 0, 0, 0, last]),
            addresses: vec![[10, 244, 1, last].into()],
            has_link_local: false,
        }
    }

    fn link(interface: Interface, facts: Option<PeerFacts>) -> Scan {
        Scan::Link {
            index: interface.index,
            found: Some((interface, facts)),
        }
    }

    fn inventory() -> Inventory {
        Inventory::new(PodFilter {
            bridges: vec!["cni0".into()],
            ..PodFilter::default()
        })
    }

    #[test]
    fn a_port_becomes_a_pod_when_its_bridge_gets_the_name() {
        let mut inventory = inventory();
        inventory.apply(link(interface(3, "br0", "bridge", None), None));
        inventory.apply(link(veth(7, 0, Some(3)), Some(facts(5))));

        let renamed = inventory.apply(link(interface(3, "cni0", "bridge", None), None));
        let renamed_back = inventory.apply(link(interface(3, "br0", "bridge", None), None));

        assert!(matches!(&renamed.pods[..], [PodChange::Upsert(pod)] if pod.index == 7));
        assert!(renamed.are_pod_ports_changed && renamed.are_pod_bridges_changed);
        assert_eq!(renamed_back.pods, [PodChange::Remove(7)]);
    }

    #[test]
    fn a_replaced_bridge_is_forgotten_before_its_end_is_heard() {
        let mut inventory = inventory();
        inventory.apply(link(interface(3, "cni0", "bridge", None), None));
        inventory.apply(link(veth(7, 0, Some(3)), Some(facts(5))));

        let replaced = inventory.apply(link(interface(9, "cni0", "bridge", None), None));
        let late_end = inventory.apply(Scan::Link {
            index: 3,
            found: None,
        });

        assert_eq!(replaced.pods, [PodChange::Remove(7)]);
        assert!(replaced.are_pod_ports_changed && replaced.are_pod_bridges_changed);
        let bridges: Vec<u32> = inventory.pod_bridges().map(|bridge| bridge.index).collect();
        assert_eq!(bridges, [9]);
        assert_eq!(late_end, Changes::default());
    }

    #[test]
    fn interfaces_that_swap_their_names_come_back_with_the_new_ones() {
        let named = |index, name: &str| Interface {
            name: name.into(),
            ..veth(index, i32::try_from(index).unwrap(), Some(3))
        };
        let mut inventory = inventory();
        inventory.apply(link(interface(3, "cni0", "bridge", None), None));
        inventory.apply(link(named(7, "left"), Some(facts(5))));
        inventory.apply(link(named(8, "right"), Some(facts(6))));

        // The lower number is told later here: the last word counts, not the number.
        let first = inventory.apply(link(named(8, "left"), Some(facts(6))));
        let names = |inventory: &Inventory| -> Vec<(u32, SmolStr)> {
            let pods = inventory.pods();
            pods.map(|pod| (pod.index, pod.name.clone())).collect()
        };
        let between = names(&inventory);
        inventory.apply(link(named(7, "right"), Some(facts(5))));

        assert_eq!(first.pods[0], PodChange::Remove(7));
        assert_eq!(between, [(8, "left".into())]);
        assert_eq!(names(&inventory), [(7, "right".into()), (8, "left".into())]);
    }

    #[test]
    fn of_two_namesakes_in_one_list_the_one_listed_later_is_there() {
        let mut inventory = inventory();
        let namesake = |index| Interface {
            name: "same".into(),
            ..veth(index, i32::try_from(index).unwrap(), Some(3))
        };

        inventory.apply(Scan::Full(Snapshot {
            interfaces: vec![
                interface(3, "cni0", "bridge", None),
                namesake(8),
                namesake(7),
            ],
            host_addresses: Vec::new(),
            peers: BTreeMap::from([(7, facts(5)), (8, facts(6))]),
        }));

        assert!(inventory.interface(7).is_none());
        assert_eq!(
            inventory.pods().map(|pod| pod.index).collect::<Vec<_>>(),
            [8]
        );
        assert_eq!(inventory.pod_ports(), BTreeSet::from([8]));
    }

    #[test]
    fn the_same_scan_twice_changes_nothing() {
        let mut inventory = inventory();
        inventory.apply(link(interface(3, "cni0", "bridge", None), None));
        inventory.apply(link(veth(7, 0, Some(3)), Some(facts(5))));

        let changes = inventory.apply(link(veth(7, 0, Some(3)), Some(facts(5))));

        assert_eq!(changes, Changes::default());
    }

    #[test]
    fn a_number_that_now_means_another_namespace_takes_the_old_pod_away() {
        let mut inventory = inventory();
        inventory.apply(link(interface(3, "cni0", "bridge", None), None));
        inventory.apply(link(veth(7, 0, Some(3)), Some(facts(5))));
        let nsid = NamespaceId::from_kernel(0).unwrap();

        let changes = inventory.apply(Scan::Namespace {
            nsid,
            members: vec![(veth(8, 0, Some(3)), facts(6))],
        });

        assert_eq!(changes.pods[0], PodChange::Remove(7));
        assert!(matches!(&changes.pods[1..], [PodChange::Upsert(pod)] if pod.index == 8));
    }

    /// One of four bridges or eight veths, present or not, in a few shapes.
    fn any_scan() -> impl Strategy<Value = Scan> {
        let bridge = (1_u32..5, prop_oneof![Just("cni0"), Just("br0")])
            .prop_map(|(index, name)| link(interface(index, name, "bridge", None), None));
        let port = (
            10_u32..18,
            -1_i32..4,
            proptest::option::of(1_u32..5),
            1_u8..4,
        )
            .prop_map(|(index, nsid, master, last)| {
                let facts = (nsid >= 0).then(|| facts(last));
                link(veth(index, nsid, master), facts)
            });
        let gone =
            prop_oneof![1_u32..5, 10_u32..18].prop_map(|index| Scan::Link { index, found: None });
        prop_oneof![bridge, port, gone]
    }

    proptest! {
        #[test]
        fn changes_add_up_to_what_a_full_scan_finds(scans in proptest::collection::vec(any_scan(), 0..60)) {
            let mut inventory = inventory();
            let mut follower = BTreeMap::new();
            for scan in scans {
                for change in inventory.apply(scan).pods {
                    match change {
                        PodChange::Upsert(pod) => drop(follower.insert(pod.index, pod)),
                        PodChange::Remove(index) => prop_assert!(follower.remove(&index).is_some()),
                    }
                }
            }

            let mut fresh = self::inventory();
            fresh.apply(Scan::Full(Snapshot {
                interfaces: inventory.interfaces.values().cloned().collect(),
                host_addresses: Vec::new(),
                peers: inventory.peers.clone(),
            }));

            prop_assert_eq!(&follower, &fresh.pods);
            prop_assert_eq!(inventory.pod_ports(), fresh.pod_ports());
        }
    }
}
