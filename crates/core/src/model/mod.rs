//! The objects that policy is made of, independent of the API they came from.
//!
//! Not here: how an object is written in YAML (crate `towpath-api`), what it compiles to ([`crate::tables`]).

mod cluster;
mod endpoint;
mod objects;
mod policy;
mod selector;

pub use cluster::{Cluster, Namespace, Node, Object, ObjectKey, Update};
pub use endpoint::{
    ContainerPort, Endpoint, EndpointId, EndpointKind, InterfaceName, InterfaceNameError,
    Lifecycle, MacAddress, ObservedInterface, PodUid, PodUidError,
};
pub use objects::{Identified, Objects};
pub use policy::{
    Action, Direction, NamespaceMatch, Peer, Peers, Policy, PolicyId, PolicyKind, PortMatch, Ports,
    Protocol, Rule, Subject, Tier, TierDefault, Verdict,
};
pub use selector::{Labels, Requirement, Selector};
