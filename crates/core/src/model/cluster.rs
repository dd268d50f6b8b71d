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
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Node {
    /// Name.
    pub name: SmolStr,
    /// Labels.
    pub labels: Labels,
    /// Host identities: the addresses under which processes of the host itself appear. For a remote node with
    /// Flannel's vxlan behind a bridge these include `.0` and `.1` of its pod CIDRs.
    pub addresses: Vec<IpAddr>,
    /// Pod CIDRs.
    pub pod_cidrs: Vec<IpNet>,
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
