//! What becomes of one manifest.

use std::fmt;

use smol_str::SmolStr;
use towpath_core::model::{
    EndpointId, EndpointKind, Object, ObjectKey, Policy, PolicyId, PolicyKind,
};

use crate::fault::{Fault, quote};

/// What one manifest is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// An object, with warnings and notes about it.
    Object {
        /// The object.
        object: Object,
        /// Warnings and notes; no errors.
        remarks: Vec<Fault>,
    },
    /// An object of a kind that we read, but not a valid one, or a text that cannot be read at all.
    Bad(BadObject),
    /// An object of a kind that policy does not depend on, or a policy of a system that is not ours.
    Ignored {
        /// Its kind.
        kind: String,
        /// What to say about it: an error when it is a policy that somebody may believe to be in force.
        remarks: Vec<Fault>,
    },
}

/// An object that is not valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadObject {
    /// What is known of its identity.
    pub identity: Option<Identity>,
    /// What is wrong; at least one error, errors first.
    pub faults: Vec<Fault>,
    /// What closes at least that which the policy would have protected, while no good version of it is known.
    pub stand_in: Option<Policy>,
}

/// The kinds of manifests that policy depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `v1` Namespace.
    Namespace,
    /// `v1` Node.
    Node,
    /// `v1` Pod.
    Pod,
    /// `towpath.io/v1alpha1` `WorkloadEndpoint`.
    WorkloadEndpoint,
    /// `networking.k8s.io/v1` `NetworkPolicy`.
    NetworkPolicy,
    /// `policy.networking.k8s.io/v1alpha2` `ClusterNetworkPolicy`.
    ClusterNetworkPolicy,
}

impl Kind {
    pub(crate) const ALL: [Self; 6] = [
        Self::Namespace,
        Self::Node,
        Self::Pod,
        Self::WorkloadEndpoint,
        Self::NetworkPolicy,
        Self::ClusterNetworkPolicy,
    ];

    /// The `kind` of its manifests.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::Pod => "Pod",
            Self::WorkloadEndpoint => "WorkloadEndpoint",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::ClusterNetworkPolicy => "ClusterNetworkPolicy",
        }
    }

    /// The `apiVersion` of its manifests.
    pub const fn api_version(self) -> &'static str {
        match self {
            Self::Namespace | Self::Node | Self::Pod => "v1",
            Self::WorkloadEndpoint => "towpath.io/v1alpha1",
            Self::NetworkPolicy => "networking.k8s.io/v1",
            Self::ClusterNetworkPolicy => "policy.networking.k8s.io/v1alpha2",
        }
    }

    pub(crate) const fn is_namespaced(self) -> bool {
        matches!(
            self,
            Self::Pod | Self::WorkloadEndpoint | Self::NetworkPolicy
        )
    }
}

/// As much of an object's identity as could be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; `None` for a cluster-wide kind, or when unknown.
    pub namespace: Option<SmolStr>,
    /// Its name; `None` when unknown.
    pub name: Option<SmolStr>,
    /// What stands in the place of a name and is none: quoted, escaped and cut.
    pub bad_name: Option<String>,
}

impl Identity {
    /// The key of the object, if the whole identity is known.
    pub fn key(&self) -> Option<ObjectKey> {
        let name = self.name.clone()?;
        let namespace = match (&self.namespace, self.kind.is_namespaced()) {
            (Some(namespace), _) => namespace.clone(),
            (None, false) => SmolStr::default(),
            (None, true) => return None,
        };
        Some(match self.kind {
            Kind::Namespace => ObjectKey::Namespace(name),
            Kind::Node => ObjectKey::Node(name),
            Kind::Pod => ObjectKey::Endpoint(EndpointId {
                kind: EndpointKind::Pod,
                namespace,
                name,
            }),
            Kind::WorkloadEndpoint => ObjectKey::Endpoint(EndpointId {
                kind: EndpointKind::WorkloadEndpoint,
                namespace,
                name,
            }),
            Kind::NetworkPolicy => ObjectKey::Policy(PolicyId {
                kind: PolicyKind::NetworkPolicy,
                namespace,
                name,
            }),
            Kind::ClusterNetworkPolicy => ObjectKey::Policy(PolicyId {
                kind: PolicyKind::ClusterNetworkPolicy,
                namespace,
                name,
            }),
        })
    }

    /// The identity behind a key; `None` for what has no manifest.
    pub fn of(key: &ObjectKey) -> Option<Self> {
        let (kind, namespace, name) = match key {
            ObjectKey::Namespace(name) => (Kind::Namespace, None, name),
            ObjectKey::Node(name) => (Kind::Node, None, name),
            ObjectKey::Endpoint(EndpointId {
                kind,
                namespace,
                name,
            }) => {
                let kind = match kind {
                    EndpointKind::Pod => Kind::Pod,
                    EndpointKind::WorkloadEndpoint => Kind::WorkloadEndpoint,
                    EndpointKind::LocalService => return None,
                };
                (kind, Some(namespace.clone()), name)
            }
            ObjectKey::Policy(PolicyId {
                kind: PolicyKind::NetworkPolicy,
                namespace,
                name,
            }) => (Kind::NetworkPolicy, Some(namespace.clone()), name),
            ObjectKey::Policy(PolicyId {
                kind: PolicyKind::ClusterNetworkPolicy,
                name,
                ..
            }) => (Kind::ClusterNetworkPolicy, None, name),
            ObjectKey::Interface(_) => return None,
        };
        Some(Self {
            kind,
            namespace,
            name: Some(name.clone()),
            bad_name: None,
        })
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kind,
            namespace,
            name,
            bad_name,
        } = self;
        write!(f, "{}", kind.name())?;
        match (namespace, name, bad_name) {
            (Some(namespace), Some(name), _) => return write!(f, " {namespace}/{name}"),
            (None, Some(name), _) => return write!(f, " {name}"),
            (_, None, Some(bad_name)) => write!(f, " {bad_name}")?,
            (_, None, None) => f.write_str(" without a name")?,
        }
        match namespace {
            Some(namespace) => write!(f, " in namespace {namespace}"),
            None => Ok(()),
        }
    }
}

/// What to enforce in the place of an object whose newest version is bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision<'a> {
    /// The last good version stays in force.
    KeepLastGood,
    /// This closed policy is in force.
    StandIn(&'a Policy),
    /// Nothing is: the object is reported and absent.
    Absent,
}

/// What becomes of an object whose newest version is bad (edge case 1): a bad version never replaces a good one;
/// without one, the stand-in closes what the object would have protected; what has none is absent.
pub fn decide(has_good_version: bool, bad: &BadObject) -> Decision<'_> {
    match &bad.stand_in {
        _ if has_good_version => Decision::KeepLastGood,
        Some(stand_in) => Decision::StandIn(stand_in),
        None => Decision::Absent,
    }
}

impl BadObject {
    /// The first error in one line, for the reason that a stand-in carries.
    pub(crate) fn reason(faults: &[Fault]) -> SmolStr {
        let text = faults.first().map(ToString::to_string).unwrap_or_default();
        match text.char_indices().nth(200) {
            None => text.into(),
            Some((end, _)) => format!("{}...", &text[..end]).into(),
        }
    }
}

/// A kind as the user wrote it, for a message.
pub(crate) fn show_kind(kind: &str) -> String {
    let is_simple = kind.len() <= 63 && kind.bytes().all(|b| b.is_ascii_alphanumeric());
    if is_simple {
        kind.to_owned()
    } else {
        quote(kind)
    }
}
