//! The kinds that are followed, and where the API server has them.

use smol_str::SmolStr;
use towpath_api::{Identity, Kind};
use towpath_core::model::ObjectKey;

/// A kind that is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Resource {
    Pod,
    Namespace,
    Node,
    NetworkPolicy,
    ClusterNetworkPolicy,
}

impl Resource {
    pub(super) const ALL: [Self; 5] = [
        Self::Pod,
        Self::Namespace,
        Self::Node,
        Self::NetworkPolicy,
        Self::ClusterNetworkPolicy,
    ];
    /// What must be at least as new as a pod of this node before the pod is let in.
    pub(super) const BEFORE_PODS: [Self; 3] = [
        Self::NetworkPolicy,
        Self::Namespace,
        Self::ClusterNetworkPolicy,
    ];

    pub(super) const fn kind(self) -> Kind {
        match self {
            Self::Pod => Kind::Pod,
            Self::Namespace => Kind::Namespace,
            Self::Node => Kind::Node,
            Self::NetworkPolicy => Kind::NetworkPolicy,
            Self::ClusterNetworkPolicy => Kind::ClusterNetworkPolicy,
        }
    }

    /// Where the API server has its group.
    const fn group(self) -> &'static str {
        match self {
            Self::Pod | Self::Namespace | Self::Node => "/api/v1",
            Self::NetworkPolicy => "/apis/networking.k8s.io/v1",
            Self::ClusterNetworkPolicy => "/apis/policy.networking.k8s.io/v1alpha2",
        }
    }

    /// Its name in paths and rights.
    pub(super) const fn plural(self) -> &'static str {
        match self {
            Self::Pod => "pods",
            Self::Namespace => "namespaces",
            Self::Node => "nodes",
            Self::NetworkPolicy => "networkpolicies",
            Self::ClusterNetworkPolicy => "clusternetworkpolicies",
        }
    }

    /// The path of all objects.
    pub(super) fn path(self) -> String {
        format!("{}/{}", self.group(), self.plural())
    }

    /// The path of all objects of a namespace.
    pub(super) fn path_in(self, namespace: &str) -> String {
        format!("{}/namespaces/{namespace}/{}", self.group(), self.plural())
    }

    /// Whether it may be missing, since it comes with a custom resource definition.
    pub(super) const fn is_optional(self) -> bool {
        matches!(self, Self::ClusterNetworkPolicy)
    }

    /// The part of all objects that one consistent read tells about: what may concern the pods of one namespace.
    /// Empty where that is everything.
    pub(super) fn partition(self, name: &str) -> &str {
        match self {
            Self::Pod | Self::NetworkPolicy => name
                .split_once('/')
                .map_or(name, |(namespace, _)| namespace),
            Self::Namespace | Self::Node => name,
            Self::ClusterNetworkPolicy => "",
        }
    }

    /// The identity behind a name.
    pub(super) fn identity(self, name: &str) -> Identity {
        let (namespace, name) = match name.split_once('/') {
            Some((namespace, name)) => (Some(SmolStr::new(namespace)), name),
            None => (None, name),
        };
        Identity {
            kind: self.kind(),
            namespace,
            name: Some(name.into()),
            bad_name: None,
        }
    }

    /// The key of an object in the model.
    pub(super) fn key(self, name: &str) -> Option<ObjectKey> {
        self.identity(name).key()
    }
}
