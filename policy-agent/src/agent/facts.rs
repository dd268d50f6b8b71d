//! What the layout depends on besides the tables, gathered for the applier: interfaces, addresses of nodes, who is
//! audited, and the pod networks.
//!
//! Events come in thousands and most of them change none of it, so what may have changed is noted, and only that is
//! gathered anew: the list of node addresses when a node or this host's addresses change, interfaces when interfaces
//! or who names one change.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use smol_str::SmolStr;
use towpath_core::model::{EndpointId, EndpointKind, InterfaceName, Object, ObjectKey, Update};
use tracing::info;

use super::config::Config;
use super::graph::GraphThread;
use super::interfaces::HostFacts;
use super::surroundings::Known;
use crate::layout::{DEFAULT_OVERLAY_PORT, NodeFacts};

/// What the applier was told, and whether it still holds.
#[derive(Debug)]
pub(super) struct KnownFacts {
    /// Configured pod bridges, there or not.
    pub(super) bridges: Vec<InterfaceName>,
    /// Interfaces of which no sources are checked.
    spoof_exempt: Vec<InterfaceName>,
    audit_namespaces: BTreeSet<SmolStr>,
    facts: NodeFacts,
    networks: Vec<IpNet>,
    are_interfaces_stale: bool,
    are_nodes_stale: bool,
    are_ports_stale: bool,
    /// The configured port of the overlay.
    overlay_port: Option<u16>,
}

impl KnownFacts {
    /// Nothing has been told.
    pub(super) fn new(config: &Config) -> Self {
        Self {
            bridges: config.pod_bridges.clone(),
            spoof_exempt: config.spoof_exempt_interfaces.clone(),
            audit_namespaces: config.audit_namespaces.iter().map(SmolStr::from).collect(),
            facts: NodeFacts::default(),
            networks: Vec::new(),
            are_interfaces_stale: true,
            are_nodes_stale: true,
            are_ports_stale: false,
            overlay_port: config.overlay_udp_port,
        }
    }

    /// Notes what others set up here.
    pub(super) fn note_surroundings(&mut self, known: &Known) {
        let ports = known.overlay_ports(self.overlay_port);
        if self.facts.overlay_ports != ports {
            info!(ports = ?ports.iter().flatten().collect::<Vec<_>>(), "pods may not send to these UDP ports of nodes");
            self.facts.overlay_ports = ports;
            self.are_ports_stale = true;
        }
    }

    /// UDP ports of nodes to which pods may not send.
    pub(super) fn overlay_ports(&self) -> Vec<u16> {
        match &self.facts.overlay_ports {
            Some(ports) => ports.iter().copied().collect(),
            None => vec![self.overlay_port.unwrap_or(DEFAULT_OVERLAY_PORT)],
        }
    }

    /// Notes what an update may change.
    pub(super) fn note(&mut self, update: &Update) {
        let id = match update {
            Update::Upsert(Object::Node(_)) | Update::Remove(ObjectKey::Node(_)) => {
                self.are_nodes_stale = true;
                return;
            }
            Update::Upsert(Object::Interface(_)) | Update::Remove(ObjectKey::Interface(_)) => {
                self.are_interfaces_stale = true;
                return;
            }
            Update::Upsert(Object::Endpoint(endpoint)) => &endpoint.id,
            Update::Remove(ObjectKey::Endpoint(id)) => id,
            Update::Upsert(Object::Namespace(_) | Object::Policy(_))
            | Update::Remove(ObjectKey::Namespace(_) | ObjectKey::Policy(_)) => return,
        };
        // Endpoints of this kind name their interface.
        self.are_interfaces_stale |= id.kind == EndpointKind::WorkloadEndpoint;
    }

    /// Notes that this host looks otherwise than `old` did.
    pub(super) fn note_host(&mut self, old: &HostFacts, new: &HostFacts) {
        self.are_interfaces_stale = true;
        self.are_nodes_stale |= old.addresses != new.addresses;
    }

    /// Whether the applier has been told of everything that was noted.
    pub(super) fn are_told(&self) -> bool {
        !self.are_interfaces_stale && !self.are_nodes_stale && !self.are_ports_stale
    }

    fn is_checked(&self, name: &InterfaceName) -> bool {
        !self.spoof_exempt.contains(name)
    }
}

impl GraphThread {
    /// Tells the applier what the layout depends on, when that has changed.
    pub(super) fn tell_facts(&mut self) {
        let mut is_changed = std::mem::take(&mut self.facts.are_ports_stale);
        if std::mem::take(&mut self.facts.are_nodes_stale) {
            is_changed |= self.gather_node_addresses();
        }
        if std::mem::take(&mut self.facts.are_interfaces_stale) {
            is_changed |= self.gather_interfaces();
        }
        if is_changed {
            self.parts.applier.set_facts(self.facts.facts.clone());
        }
    }

    /// Addresses of this host and of all nodes; whether they differ from what was told.
    fn gather_node_addresses(&mut self) -> bool {
        let nodes = self.graph.cluster().nodes.values();
        let nodes = nodes.flat_map(NodeFacts::addresses_of);
        let addresses: BTreeSet<IpAddr> =
            self.host.addresses.iter().copied().chain(nodes).collect();
        let told = &mut self.facts.facts.node_addresses;
        let is_changed = **told != addresses;
        if is_changed {
            *told = Arc::new(addresses);
        }
        is_changed
    }

    /// Interfaces that pods are behind; whether they differ from what was told. A configured bridge counts before it
    /// is there.
    fn gather_interfaces(&mut self) -> bool {
        let named: BTreeSet<&InterfaceName> = self.graph.named_interfaces().collect();
        let mut routed: BTreeSet<InterfaceName> = self.host.routed.clone();
        if !named.is_empty() {
            let interfaces = self.graph.cluster().interfaces.values();
            let unbridged = interfaces.filter(|interface| interface.bridge.is_none());
            let names = unbridged.map(|interface| &interface.name);
            routed.extend(names.filter(|name| named.contains(name)).cloned());
        }
        let known = &self.facts;
        let ports = self.host.pod_ports.iter();
        let facts = NodeFacts {
            pod_interfaces: known.bridges.iter().chain(&routed).cloned().collect(),
            pod_ports: ports
                .filter(|name| known.is_checked(name))
                .cloned()
                .collect(),
            routed_interfaces: {
                routed.retain(|name| known.is_checked(name));
                routed
            },
            node_addresses: Arc::clone(&known.facts.node_addresses),
            audited: known.facts.audited.clone(),
            overlay_ports: known.facts.overlay_ports.clone(),
        };
        let is_changed = facts != known.facts;
        self.facts.facts = facts;
        is_changed
    }

    /// Tells the applier whose denials pass, when that has changed. Called after a flush.
    pub(super) fn tell_audited(&mut self) {
        if self.facts.audit_namespaces.is_empty() {
            return;
        }
        let is_audited =
            |owner: &EndpointId| self.facts.audit_namespaces.contains(&owner.namespace);
        let audited: BTreeSet<IpAddr> = self
            .graph
            .bound_addresses()
            .filter(|(_, owner)| is_audited(owner))
            .map(|(address, _)| address)
            .collect();
        if audited != self.facts.facts.audited {
            self.facts.facts.audited = audited;
            self.parts.applier.set_facts(self.facts.facts.clone());
        }
    }

    /// The pod networks of this node decide which interfaces are pods'. Called after a flush.
    pub(super) fn tell_networks(&mut self) {
        let node = self.graph.cluster().nodes.get(self.node.as_str());
        let networks = node.map_or(&[][..], |node| &node.pod_cidrs);
        if networks != self.facts.networks {
            let networks = networks.to_vec();
            self.parts.link.set_networks(networks.clone());
            self.facts.networks = networks;
        }
    }
}
