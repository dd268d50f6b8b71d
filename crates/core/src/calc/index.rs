//! Who claims an address, who shows it, which numbers stand behind a port's name.
//!
//! Every insertion has one removal with the same key, made from the same version of the object.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use rustc_hash::{FxHashMap, FxHashSet};
use smol_str::SmolStr;

use super::identities::Identities;
use crate::model::{
    Cluster, Endpoint, EndpointId, InterfaceName, MacAddress, Node, ObservedInterface, Protocol,
};

/// Lookups over the state.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    /// Sorted, for the question who lies in a block.
    claims: BTreeMap<IpAddr, Vec<Arc<Endpoint>>>,
    /// Addresses with more than one claim.
    contested: FxHashSet<IpAddr>,
    shown: FxHashMap<IpAddr, Vec<u32>>,
    /// Interfaces behind which a hardware address is seen.
    shown_macs: FxHashMap<MacAddress, Vec<u32>>,
    /// Endpoints whose objects name a hardware address.
    named_macs: FxHashMap<MacAddress, Vec<EndpointId>>,
    identities: Identities,
    bound: FxHashMap<InterfaceName, Vec<EndpointId>>,
    numbers: FxHashMap<SmolStr, BTreeMap<(Protocol, u16), u32>>,
    /// Live workloads by namespace, counted.
    namespaces: FxHashMap<SmolStr, u32>,
    /// Those of them that are not known.
    unknown: BTreeSet<SmolStr>,
}

pub(super) fn add<V: Ord>(values: &mut Vec<V>, value: V) {
    if let Err(position) = values.binary_search(&value) {
        values.reserve_exact(1);
        values.insert(position, value);
    }
}

/// Removes a value; returns whether none is left.
pub(super) fn remove<V: Ord>(values: &mut Vec<V>, value: &V) -> bool {
    values.retain(|other| other != value);
    values.is_empty()
}

/// Removes a value from the list of a key, and the key with its last value.
macro_rules! remove_at {
    ($map:expr, $key:expr, $value:expr) => {
        if $map
            .get_mut($key)
            .is_some_and(|values| remove(values, $value))
        {
            $map.remove($key);
        }
    };
}
pub(super) use remove_at;

impl Index {
    /// Takes a version of an endpoint in; returns names of ports that now stand for other numbers.
    pub(super) fn add_endpoint(
        &mut self,
        endpoint: &Arc<Endpoint>,
        is_namespace_known: bool,
        renumbered: &mut FxHashSet<SmolStr>,
    ) {
        if !endpoint.is_workload() {
            return;
        }
        let namespace = &endpoint.id.namespace;
        *self.namespaces.entry(namespace.clone()).or_insert(0) += 1;
        if !is_namespace_known {
            self.unknown.insert(namespace.clone());
        }
        for address in &endpoint.addresses {
            let claims = self.claims.entry(*address).or_default();
            let position = claims.partition_point(|other| other.id < endpoint.id);
            claims.reserve_exact(1);
            claims.insert(position, endpoint.clone());
            if claims.len() > 1 {
                self.contested.insert(*address);
            }
        }
        if let Some(interface) = &endpoint.interface {
            add(
                self.bound.entry(interface.clone()).or_default(),
                endpoint.id.clone(),
            );
        }
        if let Some(mac) = endpoint.mac {
            add(self.named_macs.entry(mac).or_default(), endpoint.id.clone());
        }
        for port in &endpoint.ports {
            let Some(name) = &port.name else { continue };
            let count = self
                .numbers
                .entry(name.clone())
                .or_default()
                .entry((port.protocol, port.number));
            let count = count.or_insert(0);
            *count += 1;
            if *count == 1 {
                renumbered.insert(name.clone());
            }
        }
    }

    /// Takes a version of an endpoint out.
    pub(super) fn remove_endpoint(
        &mut self,
        endpoint: &Endpoint,
        renumbered: &mut FxHashSet<SmolStr>,
    ) {
        if !endpoint.is_workload() {
            return;
        }
        if let Some(count) = self.namespaces.get_mut(&endpoint.id.namespace) {
            *count -= 1;
            if *count == 0 {
                self.namespaces.remove(&endpoint.id.namespace);
                self.unknown.remove(&endpoint.id.namespace);
            }
        }
        for address in &endpoint.addresses {
            if let Some(claims) = self.claims.get_mut(address) {
                claims.retain(|other| other.id != endpoint.id);
                if claims.len() < 2 {
                    self.contested.remove(address);
                }
                if claims.is_empty() {
                    self.claims.remove(address);
                }
            }
        }
        if let Some(interface) = &endpoint.interface {
            remove_at!(self.bound, interface, &endpoint.id);
        }
        if let Some(mac) = endpoint.mac {
            remove_at!(self.named_macs, &mac, &endpoint.id);
        }
        for port in &endpoint.ports {
            let Some(name) = &port.name else { continue };
            let Some(numbers) = self.numbers.get_mut(name) else {
                continue;
            };
            let key = (port.protocol, port.number);
            if let Some(count) = numbers.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    numbers.remove(&key);
                    renumbered.insert(name.clone());
                }
            }
        }
    }

    /// A namespace is known now, or no longer.
    pub(super) fn note_namespace(&mut self, name: &SmolStr, is_known: bool) {
        if is_known {
            self.unknown.remove(name);
        } else if self.namespaces.contains_key(name) {
            self.unknown.insert(name.clone());
        }
    }

    /// Takes a version of a node in.
    pub(super) fn add_node(&mut self, node: &Node) {
        self.identities.add(node);
    }

    /// Takes a version of a node out.
    pub(super) fn remove_node(&mut self, node: &Node) {
        self.identities.remove(node);
    }

    /// Takes a version of an interface in.
    pub(super) fn add_interface(&mut self, interface: &ObservedInterface) {
        for address in &interface.addresses {
            add(self.shown.entry(*address).or_default(), interface.index);
        }
        if let Some(mac) = interface.mac {
            add(self.shown_macs.entry(mac).or_default(), interface.index);
        }
    }

    /// Takes a version of an interface out.
    pub(super) fn remove_interface(&mut self, interface: &ObservedInterface) {
        for address in &interface.addresses {
            remove_at!(self.shown, address, &interface.index);
        }
        if let Some(mac) = interface.mac {
            remove_at!(self.shown_macs, &mac, &interface.index);
        }
    }

    /// The live workloads that list an address.
    pub(super) fn claimants(&self, address: IpAddr) -> &[Arc<Endpoint>] {
        self.claims.get(&address).map_or(&[], Vec::as_slice)
    }

    /// Whether a live workload that lists an address may not be the only one to claim it.
    pub(super) fn is_contested(&self, address: IpAddr) -> bool {
        self.contested.contains(&address) || self.identities.is_claimed(address)
    }

    /// The interfaces that show an address.
    pub(super) fn interfaces(&self, address: IpAddr) -> &[u32] {
        self.shown.get(&address).map_or(&[], Vec::as_slice)
    }

    /// The interfaces behind which a hardware address is seen.
    pub(super) fn showing(&self, mac: MacAddress) -> &[u32] {
        self.shown_macs.get(&mac).map_or(&[], Vec::as_slice)
    }

    /// The endpoints whose objects name a hardware address.
    pub(super) fn naming(&self, mac: MacAddress) -> &[EndpointId] {
        self.named_macs.get(&mac).map_or(&[], Vec::as_slice)
    }

    /// Which addresses are nodes' own.
    pub(super) fn identities(&self) -> &Identities {
        &self.identities
    }

    /// The endpoints that name an interface.
    pub(super) fn bound_to(&self, interface: &InterfaceName) -> &[EndpointId] {
        self.bound.get(interface).map_or(&[], Vec::as_slice)
    }

    /// The interfaces that live endpoints name, and these endpoints.
    pub(super) fn named_interfaces(&self) -> impl Iterator<Item = (&InterfaceName, &[EndpointId])> {
        self.bound.iter().map(|(name, ids)| (name, ids.as_slice()))
    }

    /// The numbers that somebody serves under a name.
    pub(super) fn numbers(&self, name: &str) -> impl Iterator<Item = (Protocol, u16)> {
        self.numbers
            .get(name)
            .into_iter()
            .flat_map(|numbers| numbers.keys().copied())
    }

    /// Whether the namespace of a workload is known.
    pub(super) fn is_namespace_known(&self, name: &SmolStr) -> bool {
        !self.unknown.contains(name)
    }

    /// The endpoints of namespaces that are not known.
    pub(super) fn homeless<'c>(
        &'c self,
        cluster: &'c Cluster,
    ) -> impl Iterator<Item = &'c Endpoint> {
        let unknown = self.unknown.iter();
        unknown.flat_map(|name| super::endpoints_of(cluster, name))
    }

    /// Every address that a workload or node claims and that lies in a block.
    pub(super) fn addresses_in(&self, block: &IpNet) -> impl Iterator<Item = IpAddr> {
        let range = block.network()..=block.broadcast();
        let claims = self.claims.range(range).map(|(address, _)| *address);
        claims.chain(self.identities.claimed_in(block))
    }
}
