//! Facts of the node, and what follows from them and the tables, as sets.
//!
//! These sets are small (interfaces, addresses and ports of this node), so they are computed anew and compared.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use towpath_core::model::InterfaceName;
use towpath_core::tables::{Binding, EndpointState, Tables};
use towpath_dataplane::nft::{Element, SetKey, Value};

use super::batch::Batch;
use super::elements::{address, range};
use crate::layout::{IpVersion, NodeFacts, SetId};

/// Keys by set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FactSets {
    sets: BTreeMap<SetId, BTreeSet<SetKey>>,
}

impl FactSets {
    pub(super) fn new(tables: &Tables, facts: &NodeFacts) -> Self {
        let mut sets = Self::default();
        sets.interfaces(SetId::PodInterfaces, &facts.pod_interfaces);
        sets.interfaces(SetId::RoutedInterfaces, &facts.routed_interfaces);
        sets.interfaces(SetId::PodPorts, &facts.pod_ports);
        for node in &facts.node_addresses {
            sets.insert(SetId::NodeAddresses(IpVersion::of(*node)), [address(*node)]);
        }
        for binding in tables.bindings.keys() {
            sets.binding(binding);
        }
        for port in open_ports(tables) {
            sets.insert(SetId::OpenPorts, [interface(port)]);
        }
        for network in disjoint(tables.pod_networks.keys().copied()) {
            let version = IpVersion::of(network.network());
            sets.network(SetId::PodNetworks(version), &network);
            sets.network(SetId::BridgePodNetworks(version), &network);
            if version == IpVersion::V6 {
                sets.network(SetId::PodTargets, &network);
            }
        }
        sets
    }

    /// Pods' networks and interfaces, and nothing that is known of a single pod.
    pub(super) fn guard(
        networks: impl IntoIterator<Item = IpNet>,
        interfaces: &BTreeSet<InterfaceName>,
    ) -> Self {
        let mut sets = Self::default();
        sets.interfaces(SetId::PodInterfaces, interfaces);
        for network in disjoint(networks) {
            let version = IpVersion::of(network.network());
            sets.network(SetId::PodNetworks(version), &network);
        }
        sets
    }

    /// The sets that hold anything.
    pub fn sets(&self) -> impl Iterator<Item = (SetId, &BTreeSet<SetKey>)> {
        self.sets.iter().map(|(set, keys)| (*set, keys))
    }

    /// Whether there are pod interfaces without a bridge.
    pub(super) fn has_routed_pods(&self) -> bool {
        self.sets.contains_key(&SetId::RoutedInterfaces)
    }

    fn get(&self, set: SetId) -> Option<&BTreeSet<SetKey>> {
        self.sets.get(&set)
    }

    fn insert(&mut self, set: SetId, key: impl Into<Vec<Value>>) {
        self.sets
            .entry(set)
            .or_default()
            .insert(SetKey::Exact(key.into()));
    }

    fn network(&mut self, set: SetId, network: &IpNet) {
        self.sets.entry(set).or_default().insert(range(network));
    }

    fn interfaces(&mut self, set: SetId, names: &BTreeSet<InterfaceName>) {
        for name in names {
            self.insert(set, [interface(name)]);
        }
    }

    /// Every binding is checked where its kind of interface is: only one of the two ever sees its packets.
    fn binding(&mut self, binding: &Binding) {
        let version = IpVersion::of(binding.address);
        let source = address(binding.address);
        let name = || interface(&binding.interface);
        self.insert(SetId::RoutedBindings(version), [name(), source.clone()]);
        if let Some(mac) = binding.mac {
            let mac = Value::Ether(mac.0);
            self.insert(SetId::BoundPorts(version), [name(), mac.clone()]);
            self.insert(SetId::Bindings(version), [name(), mac, source.clone()]);
            if version == IpVersion::V6 {
                self.insert(SetId::NeighbourTargets, [name(), source]);
            }
        }
    }
}

/// Nested blocks would be refused as overlapping ranges.
fn disjoint(networks: impl IntoIterator<Item = IpNet>) -> Vec<IpNet> {
    let networks: Vec<IpNet> = networks.into_iter().collect();
    IpNet::aggregate(&networks)
}

/// Interfaces with endpoints whose ingress nothing restricts, all of them known.
fn open_ports(tables: &Tables) -> impl Iterator<Item = &InterfaceName> {
    let mut ports: BTreeMap<&InterfaceName, bool> = BTreeMap::new();
    for binding in tables.bindings.keys() {
        let is_open = tables.ingress.state.get(&binding.address) == Some(&EndpointState::Open);
        *ports.entry(&binding.interface).or_insert(true) &= is_open;
    }
    ports
        .into_iter()
        .filter_map(|(port, is_open)| is_open.then_some(port))
}

/// Adds to `batch` what differs.
pub(super) fn changes(old: &FactSets, new: &FactSets, batch: &mut Batch) {
    let none = BTreeSet::new();
    let sets: BTreeSet<SetId> = old.sets.keys().chain(new.sets.keys()).copied().collect();
    for set in sets {
        let (old, new) = (old.get(set).unwrap_or(&none), new.get(set).unwrap_or(&none));
        for key in old.difference(new) {
            batch.remove(
                set,
                Element {
                    key: key.clone(),
                    value: None,
                },
            );
        }
        for key in new.difference(old) {
            batch.add(
                set,
                Element {
                    key: key.clone(),
                    value: None,
                },
            );
        }
    }
}

fn interface(name: &InterfaceName) -> Value {
    Value::Interface(name.as_str().into())
}
