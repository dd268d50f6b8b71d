//! What the graph is told of interfaces, decided from what scans find. Does no I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use flannel_adapter::merger::{MergedEndpoint, Merger};
use flannel_adapter::source::{Observation, SourceName, netlink};
use ipnet::IpNet;
use towpath_core::model::{InterfaceName, Object, ObjectKey, ObservedInterface, Update};
use towpath_dataplane::link::{BridgeSettings, Changes, Inventory, PodFilter, Scan, Snapshot};
use tracing::{debug, warn};

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
    /// What sources contradict each other about, in words.
    pub(super) conflicts: Vec<String>,
}

impl HostFacts {
    /// Whether one has addresses that the other has not, apart from link-local ones: every pod's interface has such.
    pub(super) fn has_other_addresses(&self, other: &Self) -> bool {
        !self.lasting_addresses().eq(other.lasting_addresses())
    }

    pub(super) fn lasting_addresses(&self) -> impl Iterator<Item = &IpAddr> {
        self.addresses.iter().filter(|address| match address {
            IpAddr::V4(address) => !address.is_link_local(),
            IpAddr::V6(address) => !address.is_unicast_link_local(),
        })
    }
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

/// The interfaces as last seen, and what the graph knows of them.
#[derive(Debug)]
pub(super) struct InterfaceView {
    filter: PodFilter,
    inventory: Inventory,
    /// Whose each address is, of what the kernel and others tell.
    merger: Merger,
    /// What the graph knows of interfaces.
    told: BTreeMap<u32, ObservedInterface>,
    /// What it knows of the host.
    told_host: Option<HostFacts>,
}

impl InterfaceView {
    /// Nothing is seen yet.
    pub(super) fn new(filter: PodFilter) -> Self {
        Self {
            inventory: Inventory::new(filter.clone()),
            filter,
            merger: Merger::default(),
            told: BTreeMap::new(),
            told_host: None,
        }
    }

    /// The interfaces as last seen.
    pub(super) fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// Pods get addresses from these networks from now on; [`Self::start_again`] follows.
    pub(super) fn set_networks(&mut self, networks: Vec<IpNet>) {
        self.filter.networks = networks;
    }

    /// The container runtime keeps these results of CNI plugins.
    pub(super) fn set_kept_results(&mut self, results: Vec<Observation>) {
        self.merger.replace(SourceName::CniCache, results);
    }

    /// Forgets what was seen, not what was told.
    pub(super) fn start_again(&mut self, snapshot: Snapshot) {
        self.inventory = Inventory::new(self.filter.clone());
        self.inventory.apply(Scan::Full(snapshot));
    }

    /// Takes over what a scan found.
    pub(super) fn apply(&mut self, scan: Scan) -> Changes {
        self.inventory.apply(scan)
    }

    /// What the graph has to be told now, if anything; it counts as told from then on.
    pub(super) fn change(&mut self, at: Instant) -> Option<InterfaceChange> {
        let updates = self.updates();
        let host = Some(self.host()).filter(|host| self.told_host.as_ref() != Some(host));
        if updates.is_empty() && host.is_none() {
            return None;
        }
        if host.is_some() {
            self.told_host.clone_from(&host);
        }
        Some(InterfaceChange { updates, host, at })
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
    ///
    /// The merger takes addresses away where sources contradict each other, and never adds one: what the kernel does not
    /// show behind a pod's interface is not there.
    fn seen(&mut self) -> BTreeMap<u32, ObservedInterface> {
        let seen: Vec<Observation> = netlink::observations(&self.inventory, &self.filter).collect();
        self.merger.replace(SourceName::Netlink, seen);
        if self.merger.refresh().are_conflicts_changed {
            for conflict in &self.merger.view().conflicts {
                warn!(%conflict, "sources contradict each other");
            }
        }
        let endpoints = self.merger.view().endpoints.values();
        endpoints
            .filter_map(|endpoint| Some((endpoint.index, self.observed(endpoint)?)))
            .collect()
    }

    /// One whose name no rule could hold is not known, so it stays closed.
    fn observed(&self, endpoint: &MergedEndpoint) -> Option<ObservedInterface> {
        let pod = self.inventory.pod(endpoint.index);
        let is_shown = |address: &&IpAddr| pod.is_some_and(|pod| pod.addresses.contains(address));
        Some(ObservedInterface {
            index: endpoint.index,
            name: endpoint.name.parse().ok()?,
            bridge: endpoint.bridge.as_ref().and_then(|name| name.parse().ok()),
            mac: endpoint.mac.filter(|_| pod.is_some()),
            addresses: endpoint
                .addresses
                .iter()
                .filter(is_shown)
                .copied()
                .collect(),
        })
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
            conflicts: self
                .merger
                .view()
                .conflicts
                .iter()
                .map(ToString::to_string)
                .collect(),
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use flannel_adapter::source::{Identity, InterfaceRef};
    use towpath_core::model::MacAddress;
    use towpath_dataplane::link::{HostAddress, Interface, NamespaceId, Peer, PeerFacts};

    fn name(text: &str) -> InterfaceName {
        text.parse().unwrap()
    }

    fn plain(index: u32, name: &str, kind: &str) -> Interface {
        Interface {
            index,
            name: name.into(),
            kind: Some(kind.into()),
            master: None,
            mac: None,
            mtu: 1450,
            is_up: true,
            peer: None,
            bridge_settings: None,
        }
    }

    fn cni0(settings: BridgeSettings) -> Interface {
        Interface {
            bridge_settings: Some(settings),
            ..plain(3, "cni0", "bridge")
        }
    }

    fn veth(index: u32, name: &str, master: Option<u32>) -> Interface {
        let nsid = NamespaceId::from_kernel(index.cast_signed()).unwrap();
        Interface {
            master,
            peer: Some(Peer { nsid, index: 2 }),
            ..plain(index, name, "veth")
        }
    }

    fn facts(last: u8) -> PeerFacts {
        PeerFacts {
            mac: Some([2, 0, 0, 0, 0, last]),
            addresses: vec![[10, 244, 1, last].into()],
            has_link_local: false,
        }
    }

    fn observed(index: u32, text: &str, bridge: Option<&str>, last: Option<u8>) -> Update {
        Update::Upsert(Object::Interface(ObservedInterface {
            index,
            name: name(text),
            bridge: bridge.map(name),
            mac: last.map(|last| MacAddress([2, 0, 0, 0, 0, last])),
            addresses: last
                .map(|last| [10, 244, 1, last].into())
                .into_iter()
                .collect(),
        }))
    }

    /// One pod on `cni0`, one on a routed interface, an uplink, a container of somebody else's bridge.
    fn node() -> Snapshot {
        Snapshot {
            interfaces: vec![
                plain(1, "lo", "loopback"),
                plain(2, "eth0", "dummy"),
                cni0(BridgeSettings::ENFORCING),
                plain(4, "docker0", "bridge"),
                veth(7, "veth7", Some(3)),
                veth(8, "cali8", None),
                veth(9, "veth9", Some(4)),
            ],
            host_addresses: vec![HostAddress {
                index: 2,
                address: [192, 0, 2, 1].into(),
                prefix_length: 24,
            }],
            peers: BTreeMap::from([
                (7, facts(7)),
                (8, facts(8)),
                (
                    9,
                    PeerFacts {
                        addresses: vec![[172, 17, 0, 2].into()],
                        ..facts(9)
                    },
                ),
            ]),
        }
    }

    fn view() -> InterfaceView {
        InterfaceView::new(PodFilter {
            bridges: vec!["cni0".into()],
            prefixes: vec!["cali".into()],
            networks: Vec::new(),
            uplinks: vec!["eth0".into()],
        })
    }

    #[test]
    fn pods_are_told_with_what_is_behind_them_and_others_by_name() {
        let mut view = view();
        let at = Instant::now();

        view.start_again(node());
        let change = view.change(at).unwrap();

        assert_eq!(
            change.updates,
            [
                observed(3, "cni0", None, None),
                observed(4, "docker0", None, None),
                observed(7, "veth7", Some("cni0"), Some(7)),
                observed(8, "cali8", None, Some(8)),
                observed(9, "veth9", Some("docker0"), None),
            ]
        );
        assert_eq!(
            change.host,
            Some(HostFacts {
                addresses: [[192, 0, 2, 1].into()].into(),
                bridges: vec![BridgeFacts {
                    name: name("cni0"),
                    is_filtered: true
                }],
                pod_ports: [name("veth7")].into(),
                routed: [name("cali8")].into(),
                conflicts: Vec::new(),
            })
        );
        assert_eq!(change.at, at);
    }

    #[test]
    fn addresses_that_every_interface_has_are_no_others() {
        let host = |texts: &[&str]| HostFacts {
            addresses: texts.iter().map(|text| text.parse().unwrap()).collect(),
            ..HostFacts::default()
        };
        let one = host(&["10.244.1.1", "fd00::1", "fe80::1"]);

        let with_a_pod = host(&["10.244.1.1", "fd00::1", "fe80::1", "fe80::2", "169.254.1.1"]);
        let with_a_tunnel = host(&["10.244.1.0", "10.244.1.1", "fd00::1", "fe80::1"]);

        assert!(!one.has_other_addresses(&with_a_pod));
        assert!(one.has_other_addresses(&with_a_tunnel));
        assert!(with_a_tunnel.has_other_addresses(&one));
    }

    #[test]
    fn what_is_told_is_not_told_again() {
        let mut view = view();
        view.start_again(node());
        view.change(Instant::now());

        view.start_again(node());

        assert_eq!(view.change(Instant::now()), None);
    }

    /// What the runtime keeps of the pod behind `veth7`.
    fn kept(interface: &str, last: u8) -> Observation {
        Observation {
            key: interface.into(),
            interface: Some(InterfaceRef::Name(interface.into())),
            addresses: vec![[10, 244, 1, last].into()],
            identity: Some(Identity::Pod {
                namespace: "default".into(),
                name: interface.into(),
                uid: None,
                sandbox: None,
            }),
            ..Observation::default()
        }
    }

    #[test]
    fn a_pod_that_takes_anothers_address_does_not_close_the_owner() {
        let mut view = view();
        view.set_kept_results(vec![kept("veth7", 7)]);
        let mut thief = node();
        let behind = thief.peers.get_mut(&8).unwrap();
        behind.addresses.insert(0, [10, 244, 1, 7].into());

        view.start_again(thief);
        let change = view.change(Instant::now()).unwrap();

        assert!(
            change
                .updates
                .contains(&observed(7, "veth7", Some("cni0"), Some(7)))
        );
        assert!(
            change
                .updates
                .contains(&observed(8, "cali8", None, Some(8)))
        );
    }

    #[test]
    fn without_a_kept_result_an_address_of_two_is_nobodys() {
        let mut view = view();
        view.start_again(node());
        view.change(Instant::now());
        let mut thief = node();
        let behind = thief.peers.get_mut(&8).unwrap();
        behind.addresses.insert(0, [10, 244, 1, 7].into());

        view.start_again(thief);
        let closed = view.change(Instant::now()).unwrap();
        view.set_kept_results(vec![kept("veth7", 7)]);
        let opened = view.change(Instant::now()).unwrap();

        let [Update::Upsert(Object::Interface(found))] = &closed.updates[..] else {
            panic!("{closed:?}")
        };
        assert_eq!((found.index, found.addresses.len()), (7, 0));
        assert_eq!(
            opened.updates,
            [observed(7, "veth7", Some("cni0"), Some(7))]
        );
    }

    #[test]
    fn a_kept_result_makes_no_pod_of_what_the_kernel_does_not_show() {
        let mut view = view();
        view.set_kept_results(vec![kept("veth9", 9), kept("docker0", 4)]);

        view.start_again(node());
        let change = view.change(Instant::now()).unwrap();

        assert!(
            change
                .updates
                .contains(&observed(9, "veth9", Some("docker0"), None))
        );
        assert!(change.updates.contains(&observed(4, "docker0", None, None)));
    }

    #[test]
    fn a_pod_that_goes_is_removed_and_its_port_with_it() {
        let mut view = view();
        view.start_again(node());
        view.change(Instant::now());

        let changes = view.apply(Scan::Link {
            index: 7,
            found: None,
        });
        let change = view.change(Instant::now()).unwrap();

        assert!(changes.are_pod_ports_changed);
        assert_eq!(change.updates, [Update::Remove(ObjectKey::Interface(7))]);
        assert!(change.host.unwrap().pod_ports.is_empty());
    }

    #[test]
    fn a_bridge_whose_switch_somebody_turned_off_is_told_at_once() {
        let mut view = view();
        view.start_again(node());
        view.change(Instant::now());

        let off = BridgeSettings {
            nf_call_ip6tables: false,
            ..BridgeSettings::ENFORCING
        };
        let changes = view.apply(Scan::Link {
            index: 3,
            found: Some((cni0(off), None)),
        });
        let change = view.change(Instant::now()).unwrap();

        assert!(changes.are_pod_bridges_changed);
        assert_eq!(change.updates, []);
        assert!(!change.host.unwrap().bridges[0].is_filtered);
    }

    #[test]
    fn networks_make_pods_of_what_was_told_by_name() {
        let mut view = view();
        view.start_again(node());
        view.change(Instant::now());

        view.set_networks(vec!["172.17.0.0/16".parse().unwrap()]);
        view.start_again(node());
        let change = view.change(Instant::now()).unwrap();

        let [Update::Upsert(Object::Interface(found))] = &change.updates[..] else {
            panic!("{change:?}")
        };
        let addresses: Vec<IpAddr> = vec![[172, 17, 0, 2].into()];
        assert_eq!((found.index, &found.addresses), (9, &addresses));
    }
}
