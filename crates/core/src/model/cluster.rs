//! The state of the world as objects by key, and the updates that change it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use smol_str::SmolStr;

use super::{
    Endpoint, EndpointId, Labels, NamespaceMatch, Objects, ObservedInterface, Policy, PolicyId,
};

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Namespace {
    /// Name.
    pub name: SmolStr,
    /// Labels, `kubernetes.io/metadata.name` included.
    pub labels: Labels,
}

/// A node.
///
/// An address is one of its host identities (the host's own processes send from it) when the kernel there shows it,
/// when its object lists it and it is in no pod CIDR, or when its tunnel has it. What only a Node object says is not
/// believed against another node, and still counts where it would close: a peer that is a node by such a claim is met
/// perhaps, as one whose namespace is unknown. So no Accept takes it for that node, and every Deny does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Node {
    /// Name.
    pub name: SmolStr,
    /// Labels.
    pub labels: Labels,
    /// Addresses that its object lists. Those in a pod CIDR of any node are not believed: there are pods.
    pub addresses: Vec<IpAddr>,
    /// Addresses that the kernel shows on interfaces of the host itself, which only the agent that runs there can
    /// tell. Believed wherever they lie.
    pub observed: Vec<IpAddr>,
    /// Pod CIDRs.
    pub pod_cidrs: Vec<IpNet>,
    /// Those of its pod CIDRs of which the host has the first two addresses itself: with Flannel's vxlan the tunnel's
    /// device has the first, and a bridge the second. Believed unless the CIDR overlaps one of another node, or another
    /// node lists or shows that address.
    pub tunnel_cidrs: Vec<IpNet>,
}

impl Node {
    /// Every address that it claims, believed or not.
    pub fn claimed(&self) -> impl Iterator<Item = IpAddr> {
        let tunnels = self.tunnel_cidrs.iter().copied();
        let told = self.addresses.iter().chain(&self.observed).copied();
        told.chain(tunnels.flat_map(Self::first_two))
    }

    /// The first two addresses of a network, as far as it has them.
    pub fn first_two(network: IpNet) -> impl Iterator<Item = IpAddr> {
        let first = network.network();
        let second = match first {
            IpAddr::V4(address) => IpAddr::V4(address.to_bits().saturating_add(1).into()),
            IpAddr::V6(address) => IpAddr::V6(address.to_bits().saturating_add(1).into()),
        };
        let second = (second != first && network.contains(&second)).then_some(second);
        std::iter::once(first).chain(second)
    }
}

/// An object that policy depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Object {
    /// A namespace.
    Namespace(Namespace),
    /// A node.
    Node(Node),
    /// A pod or workload endpoint.
    Endpoint(Endpoint),
    /// A policy.
    Policy(Policy),
    /// An interface that the kernel of this node reports.
    Interface(ObservedInterface),
}

impl Object {
    /// The key under which this object replaces its older version.
    pub fn key(&self) -> ObjectKey {
        match self {
            Self::Namespace(namespace) => ObjectKey::Namespace(namespace.name.clone()),
            Self::Node(node) => ObjectKey::Node(node.name.clone()),
            Self::Endpoint(endpoint) => ObjectKey::Endpoint(endpoint.id.clone()),
            Self::Policy(policy) => ObjectKey::Policy(policy.id.clone()),
            Self::Interface(interface) => ObjectKey::Interface(interface.index),
        }
    }
}

/// Identity of an [`Object`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ObjectKey {
    /// A namespace, by name.
    Namespace(SmolStr),
    /// A node, by name.
    Node(SmolStr),
    /// An endpoint.
    Endpoint(EndpointId),
    /// A policy.
    Policy(PolicyId),
    /// An interface of this node, by index.
    Interface(u32),
}

/// One change of the state. Duplicates, removals of what is not there and any order are fine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Update {
    /// The object is now this.
    Upsert(Object),
    /// The object is gone.
    Remove(ObjectKey),
}

/// All objects by key: the whole input of the evaluator, and what the calculation graph keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    /// Namespaces by name.
    pub namespaces: BTreeMap<SmolStr, Namespace>,
    /// Nodes by name.
    pub nodes: BTreeMap<SmolStr, Node>,
    /// Endpoints by id.
    pub endpoints: Objects<Endpoint>,
    /// Policies by id.
    pub policies: Objects<Policy>,
    /// Interfaces of this node by index.
    pub interfaces: BTreeMap<u32, ObservedInterface>,
}

impl Cluster {
    /// The namespaces for which a condition holds.
    pub fn namespaces_matching<'c>(
        &'c self,
        wanted: &'c NamespaceMatch,
    ) -> impl Iterator<Item = &'c Namespace> {
        let (named, labelled) = match wanted {
            NamespaceMatch::Is(name) => (self.namespaces.get(name), None),
            NamespaceMatch::Matching(_) => (None, Some(self.namespaces.values())),
        };
        let labelled = labelled.into_iter().flatten();
        named
            .into_iter()
            .chain(labelled.filter(|namespace| wanted.selects(namespace)))
    }

    /// Applies one update; returns the version of the object that it replaced or removed.
    pub fn apply(&mut self, update: Update) -> Option<Object> {
        match update {
            Update::Upsert(Object::Namespace(new)) => self
                .namespaces
                .insert(new.name.clone(), new)
                .map(Object::Namespace),
            Update::Upsert(Object::Node(new)) => {
                self.nodes.insert(new.name.clone(), new).map(Object::Node)
            }
            Update::Upsert(Object::Endpoint(new)) => {
                self.endpoints.insert(new).map(Object::Endpoint)
            }
            Update::Upsert(Object::Policy(new)) => self.policies.insert(new).map(Object::Policy),
            Update::Upsert(Object::Interface(new)) => self
                .interfaces
                .insert(new.index, new)
                .map(Object::Interface),
            Update::Remove(ObjectKey::Namespace(name)) => {
                self.namespaces.remove(&name).map(Object::Namespace)
            }
            Update::Remove(ObjectKey::Node(name)) => self.nodes.remove(&name).map(Object::Node),
            Update::Remove(ObjectKey::Endpoint(id)) => {
                self.endpoints.remove(&id).map(Object::Endpoint)
            }
            Update::Remove(ObjectKey::Policy(id)) => self.policies.remove(&id).map(Object::Policy),
            Update::Remove(ObjectKey::Interface(index)) => {
                self.interfaces.remove(&index).map(Object::Interface)
            }
        }
    }
}
