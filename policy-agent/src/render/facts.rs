//! Facts of the node, and what follows from them and the tables, as sets.
//!
//! Of facts and pod networks only what differs is looked at: there is an address of every node of the cluster among
//! them. What follows from the endpoints is kept by interface, since each of its keys begins with one: a pod that comes
//! or goes costs the keys of its own interface.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use towpath_core::model::InterfaceName;
use towpath_core::tables::{Binding, EndpointState, Phase, Tables};
use towpath_dataplane::nft::{Element, SetKey, Value};

use super::batch::Batch;
use super::elements::{address, range};
use crate::layout::{IpVersion, NodeFacts, SetId};

/// One key of one set.
type Entry = (SetId, SetKey);

/// Keys of sets without values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FactSets {
    facts: NodeFacts,
    /// Pod networks of this node, none inside of another.
    networks: BTreeSet<IpNet>,
    /// The bridge table is told nothing: its ports are not known.
    is_guard: bool,
    /// What follows from the bindings of one interface.
    ports: BTreeMap<InterfaceName, BTreeSet<Entry>>,
    /// The interfaces to which an address is bound.
    holders: BTreeMap<IpAddr, BTreeSet<InterfaceName>>,
}

impl FactSets {
    pub(super) fn new(tables: &Tables, facts: &NodeFacts) -> Self {
        let mut sets = Self {
            facts: facts.clone(),
            networks: disjoint(tables.pod_networks.keys().copied()),
            ..Self::default()
        };
        for Binding {
            interface, address, ..
        } in tables.bindings.keys()
        {
            let holders = sets.holders.entry(*address).or_default();
            holders.insert(interface.clone());
            if !sets.ports.contains_key(interface) {
                let entries = port_entries(tables, interface, &facts.audited);
                sets.ports.insert(interface.clone(), entries);
            }
        }
        sets
    }

    /// Pods' networks and interfaces, and nothing that is known of a single pod.
    pub(super) fn guard(
        networks: impl IntoIterator<Item = IpNet>,
        interfaces: &BTreeSet<InterfaceName>,
    ) -> Self {
        Self {
            facts: NodeFacts {
                pod_interfaces: interfaces.clone(),
                ..NodeFacts::default()
            },
            networks: disjoint(networks),
            is_guard: true,
            ..Self::default()
        }
    }

    /// All keys, none of them twice.
    pub fn entries(&self) -> impl Iterator<Item = (SetId, SetKey)> {
        let NodeFacts {
            pod_interfaces,
            routed_interfaces,
            pod_ports,
            node_addresses,
            audited,
            overlay_ports: _,
        } = &self.facts;
        let interfaces = pod_interfaces.iter().map(pod_interface);
        interfaces
            .chain(routed_interfaces.iter().map(routed_interface))
            .chain(pod_ports.iter().map(pod_port))
            .chain(node_addresses.iter().map(node_address))
            .chain(audited.iter().map(audited_endpoint))
            .chain(self.networks.iter().flat_map(|net| self.network(net)))
            .chain(self.ports.values().flatten().cloned())
    }

    /// Whether there are pod interfaces without a bridge.
    pub(super) fn has_routed_pods(&self) -> bool {
        !self.facts.routed_interfaces.is_empty()
    }

    /// Follows `phase`, which `tables` contain already, and new facts, and adds to `batch` what differs.
    pub(super) fn follow(
        &mut self,
        tables: &Tables,
        phase: &Phase,
        facts: Option<&NodeFacts>,
        batch: &mut Batch,
    ) {
        let mut changed: Vec<IpAddr> = phase.ingress.state.keys().copied().collect();
        if let Some(facts) = facts {
            changed.extend(self.facts.audited.symmetric_difference(&facts.audited));
            self.follow_facts(facts, batch);
        }
        if !phase.pod_networks.is_empty() {
            let networks = disjoint(tables.pod_networks.keys().copied());
            differ(&self.networks, &networks, |net| self.network(net), batch);
            self.networks = networks;
        }
        for interface in self.touched(tables, phase, &changed) {
            let entries = port_entries(tables, &interface, &self.facts.audited);
            let old = self.ports.remove(&interface).unwrap_or_default();
            differ(&old, &entries, |entry| [entry.clone()], batch);
            if !entries.is_empty() {
                self.ports.insert(interface, entries);
            }
        }
    }

    fn follow_facts(&mut self, new: &NodeFacts, batch: &mut Batch) {
        let old = &self.facts;
        let NodeFacts {
            pod_interfaces,
            routed_interfaces,
            pod_ports,
            node_addresses,
            audited,
            overlay_ports: _,
        } = new;
        let routed = (&old.routed_interfaces, routed_interfaces);
        differ(
            &old.pod_interfaces,
            pod_interfaces,
            |name| [pod_interface(name)],
            batch,
        );
        differ(routed.0, routed.1, |name| [routed_interface(name)], batch);
        differ(&old.pod_ports, pod_ports, |name| [pod_port(name)], batch);
        differ(
            &old.audited,
            audited,
            |address| [audited_endpoint(address)],
            batch,
        );
        // One list for as long as no node changes.
        if !Arc::ptr_eq(&old.node_addresses, node_addresses) {
            let old = &old.node_addresses;
            differ(
                old,
                node_addresses,
                |address| [node_address(address)],
                batch,
            );
        }
        self.facts.clone_from(new);
    }

    /// A pod network of this node.
    fn network(&self, network: &IpNet) -> impl Iterator<Item = Entry> + use<> {
        let version = IpVersion::of(network.network());
        let sets = [
            Some(SetId::PodNetworks(version)),
            (!self.is_guard).then_some(SetId::BridgePodNetworks(version)),
            (!self.is_guard && version == IpVersion::V6).then_some(SetId::PodTargets),
        ];
        let key = range(network);
        sets.into_iter()
            .flatten()
            .map(move |set| (set, key.clone()))
    }

    /// The interfaces whose keys may change with `phase` or since `changed` addresses are judged otherwise, after the
    /// holders of addresses are brought up to date.
    fn touched(
        &mut self,
        tables: &Tables,
        phase: &Phase,
        changed: &[IpAddr],
    ) -> BTreeSet<InterfaceName> {
        let mut touched = BTreeSet::new();
        for binding in phase.bindings.keys() {
            let Binding {
                interface, address, ..
            } = binding;
            touched.insert(interface.clone());
            let mut bound = of_interface(tables, interface);
            if bound.any(|binding| binding.address == *address) {
                let holders = self.holders.entry(*address).or_default();
                holders.insert(interface.clone());
            } else if let Some(holders) = self.holders.get_mut(address) {
                holders.remove(interface);
                if holders.is_empty() {
                    self.holders.remove(address);
                }
            }
        }
        touched.extend(
            changed
                .iter()
                .filter_map(|address| self.holders.get(address))
                .flatten()
                .cloned(),
        );
        touched
    }
}

fn pod_interface(name: &InterfaceName) -> Entry {
    exact(SetId::PodInterfaces, [interface(name)])
}

fn routed_interface(name: &InterfaceName) -> Entry {
    exact(SetId::RoutedInterfaces, [interface(name)])
}

fn pod_port(name: &InterfaceName) -> Entry {
    exact(SetId::PodPorts, [interface(name)])
}

fn node_address(node: &IpAddr) -> Entry {
    exact(SetId::NodeAddresses(IpVersion::of(*node)), [address(*node)])
}

fn audited_endpoint(endpoint: &IpAddr) -> Entry {
    exact(
        SetId::Audited(IpVersion::of(*endpoint)),
        [address(*endpoint)],
    )
}

/// What follows from the bindings of one interface. Every binding is checked where its kind of interface is: only one
/// of the two ever sees its packets.
fn port_entries(
    tables: &Tables,
    port: &InterfaceName,
    audited: &BTreeSet<IpAddr>,
) -> BTreeSet<Entry> {
    let mut entries = BTreeSet::new();
    let mut is_open = true;
    for binding in of_interface(tables, port) {
        let version = IpVersion::of(binding.address);
        let source = address(binding.address);
        let name = || interface(port);
        entries.insert(exact(
            SetId::RoutedBindings(version),
            [name(), source.clone()],
        ));
        if let Some(mac) = binding.mac {
            let mac = Value::Ether(mac.0);
            entries.insert(exact(SetId::BoundPorts(version), [name(), mac.clone()]));
            entries.insert(exact(
                SetId::Bindings(version),
                [name(), mac, source.clone()],
            ));
            if version == IpVersion::V6 {
                entries.insert(exact(SetId::NeighbourTargets, [name(), source]));
            }
        }
        let state = tables.ingress.state.get(&binding.address);
        is_open &= state == Some(&EndpointState::Open)
            || (state.is_some() && audited.contains(&binding.address));
    }
    // All of its endpoints are known, and nothing restricts their ingress, or would but for an audit.
    if is_open && !entries.is_empty() {
        entries.insert(exact(SetId::OpenPorts, [interface(port)]));
    }
    entries
}

/// The bindings of one interface: they are sorted by it first.
fn of_interface<'a>(
    tables: &'a Tables,
    interface: &'a InterfaceName,
) -> impl Iterator<Item = &'a Binding> {
    let first = Binding {
        interface: interface.clone(),
        mac: None,
        address: IpAddr::from([0, 0, 0, 0]),
    };
    tables
        .bindings
        .range(first..)
        .map(|(binding, ())| binding)
        .take_while(move |binding| binding.interface == *interface)
}

fn exact(set: SetId, key: impl Into<Vec<Value>>) -> Entry {
    (set, SetKey::Exact(key.into()))
}

/// Adds to `batch` the entries of what differs.
fn differ<T: Ord, E: IntoIterator<Item = Entry>>(
    old: &BTreeSet<T>,
    new: &BTreeSet<T>,
    entries: impl Fn(&T) -> E,
    batch: &mut Batch,
) {
    let element = |key| Element { key, value: None };
    for (set, key) in old.difference(new).flat_map(&entries) {
        batch.remove(set, element(key));
    }
    for (set, key) in new.difference(old).flat_map(&entries) {
        batch.add(set, element(key));
    }
}

/// Nested blocks would be refused as overlapping ranges.
fn disjoint(networks: impl IntoIterator<Item = IpNet>) -> BTreeSet<IpNet> {
    let networks: Vec<IpNet> = networks.into_iter().collect();
    IpNet::aggregate(&networks).into_iter().collect()
}

fn interface(name: &InterfaceName) -> Value {
    Value::Interface(name.as_str().into())
}
