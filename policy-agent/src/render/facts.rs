//! Facts of the node, and what follows from them and the tables, as sets.
//!
//! What follows from the node's facts and pod networks is small and seldom changes: it is computed anew and compared.
//! What follows from the endpoints is kept by interface, since each of its keys begins with one: a pod that comes or
//! goes costs the keys of its own interface.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

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
    /// What follows from the node's facts and pod networks.
    node: BTreeSet<Entry>,
    /// What follows from the bindings of one interface.
    ports: BTreeMap<InterfaceName, BTreeSet<Entry>>,
    /// The interfaces to which an address is bound.
    holders: BTreeMap<IpAddr, BTreeSet<InterfaceName>>,
    /// The endpoints that are audited.
    audited: BTreeSet<IpAddr>,
}

impl FactSets {
    pub(super) fn new(tables: &Tables, facts: &NodeFacts) -> Self {
        let mut sets = Self {
            node: node_entries(tables, facts),
            audited: facts.audited.clone(),
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
        let mut node: BTreeSet<Entry> = of_interfaces(SetId::PodInterfaces, interfaces).collect();
        node.extend(disjoint(networks).iter().map(|network| {
            let version = IpVersion::of(network.network());
            (SetId::PodNetworks(version), range(network))
        }));
        Self {
            node,
            ..Self::default()
        }
    }

    /// All keys, none of them twice.
    pub fn entries(&self) -> impl Iterator<Item = (SetId, &SetKey)> {
        let ports = self.ports.values().flatten();
        self.node.iter().chain(ports).map(|(set, key)| (*set, key))
    }

    /// Whether there are pod interfaces without a bridge.
    pub(super) fn has_routed_pods(&self) -> bool {
        self.node
            .iter()
            .any(|(set, _)| *set == SetId::RoutedInterfaces)
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
            let node = node_entries(tables, facts);
            compare(&self.node, &node, batch);
            self.node = node;
            changed.extend(self.audited.symmetric_difference(&facts.audited));
            self.audited.clone_from(&facts.audited);
        }
        for interface in self.touched(tables, phase, &changed) {
            let entries = port_entries(tables, &interface, &self.audited);
            let old = self.ports.remove(&interface).unwrap_or_default();
            compare(&old, &entries, batch);
            if !entries.is_empty() {
                self.ports.insert(interface, entries);
            }
        }
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

/// What follows from the node's facts and pod networks.
fn node_entries(tables: &Tables, facts: &NodeFacts) -> BTreeSet<Entry> {
    let NodeFacts {
        pod_interfaces,
        routed_interfaces,
        pod_ports,
        node_addresses,
        audited,
    } = facts;
    let mut entries: BTreeSet<Entry> = of_interfaces(SetId::PodInterfaces, pod_interfaces)
        .chain(of_interfaces(SetId::RoutedInterfaces, routed_interfaces))
        .chain(of_interfaces(SetId::PodPorts, pod_ports))
        .collect();
    entries.extend(node_addresses.iter().map(|node| {
        let set = SetId::NodeAddresses(IpVersion::of(*node));
        exact(set, [address(*node)])
    }));
    entries.extend(audited.iter().map(|endpoint| {
        let set = SetId::Audited(IpVersion::of(*endpoint));
        exact(set, [address(*endpoint)])
    }));
    for network in disjoint(tables.pod_networks.keys().copied()) {
        let version = IpVersion::of(network.network());
        entries.insert((SetId::PodNetworks(version), range(&network)));
        entries.insert((SetId::BridgePodNetworks(version), range(&network)));
        if version == IpVersion::V6 {
            entries.insert((SetId::PodTargets, range(&network)));
        }
    }
    entries
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

fn of_interfaces(set: SetId, names: &BTreeSet<InterfaceName>) -> impl Iterator<Item = Entry> {
    names.iter().map(move |name| exact(set, [interface(name)]))
}

fn exact(set: SetId, key: impl Into<Vec<Value>>) -> Entry {
    (set, SetKey::Exact(key.into()))
}

/// Adds to `batch` what differs.
fn compare(old: &BTreeSet<Entry>, new: &BTreeSet<Entry>, batch: &mut Batch) {
    let element = |key: &SetKey| Element {
        key: key.clone(),
        value: None,
    };
    for (set, key) in old.difference(new) {
        batch.remove(*set, element(key));
    }
    for (set, key) in new.difference(old) {
        batch.add(*set, element(key));
    }
}

/// Nested blocks would be refused as overlapping ranges.
fn disjoint(networks: impl IntoIterator<Item = IpNet>) -> Vec<IpNet> {
    let networks: Vec<IpNet> = networks.into_iter().collect();
    IpNet::aggregate(&networks)
}

fn interface(name: &InterfaceName) -> Value {
    Value::Interface(name.as_str().into())
}
