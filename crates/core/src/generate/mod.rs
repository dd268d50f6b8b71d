//! Random worlds for tests: namespaces, nodes, endpoints, policies, and flows that probe them.
//!
//! A [`World`] is a compact description of small numbers, so that [`shrink`] can take it apart and a line of a file
//! can keep it; [`World::cluster`] turns it into the objects of the model. Worlds hold what clusters hold on bad days too: namespaces that nobody has
//! seen, shared and missing addresses, finished and host-network pods, ports of one name with several numbers.
//!
//! Behind the feature `generate`; production code does not see it.

mod build;
mod coverage;
mod probe;
mod random;
mod regression;
mod row;
mod shrink;
mod strategy;
mod walk;

use serde::{Deserialize, Serialize};

use crate::model::{Action, Direction};

pub use build::{LOCAL_NODE, difference};
pub use coverage::Coverage;
pub use probe::{Probe, flows};
pub use regression::{Kept, kept, line};
pub use row::Row;
pub use shrink::shrink;
pub use strategy::{sample, world};
pub use walk::{Step, Walk};

/// A small cluster, described by small numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct World {
    namespaces: Vec<NamespaceSpec>,
    nodes: Vec<NodeSpec>,
    endpoints: Vec<EndpointSpec>,
    policies: Vec<PolicySpec>,
}

/// Values of the label keys of one object: `None` lacks the key.
type LabelSpec = [Option<u8>; 3];

/// Namespace `ns-<index>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct NamespaceSpec {
    /// Whether its object exists.
    is_known: bool,
    labels: LabelSpec,
}

/// Node `node-<index>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct NodeSpec {
    labels: LabelSpec,
    /// Whether `.0` and `.1` of its pod CIDRs are host identities, as with Flannel's vxlan.
    has_bridge_addresses: bool,
    /// What its object lists besides its address of the nodes' network.
    #[serde(default)]
    listed: Vec<AddressSpec>,
    /// What its kernel shows.
    #[serde(default)]
    observed: Vec<AddressSpec>,
    /// A pod CIDR that is not in the scheme of the others, and may overlap them.
    #[serde(default)]
    odd_cidr: Option<BlockSpec>,
}

/// Which families an endpoint has addresses of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Families {
    None,
    V4,
    V6,
    Dual,
    /// Two addresses of IPv4 and one of IPv6.
    Many,
}

/// What sort of endpoint it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Sort {
    Pod,
    Workload,
    HostNetwork,
    Finished,
}

/// Endpoint `e<index>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct EndpointSpec {
    sort: Sort,
    namespace: u8,
    labels: LabelSpec,
    /// Index of its node; `None` before it is scheduled.
    node: Option<u8>,
    families: Families,
    /// Host part of its addresses; equal ones of a node clash.
    host: u8,
    /// Whether its addresses lie in no pod CIDR.
    is_outside: bool,
    ports: Vec<ContainerPortSpec>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ContainerPortSpec {
    name: Option<u8>,
    protocol: u8,
    number: u8,
}

/// An address of one of the places that the world knows: the pod CIDRs of three nodes, the nodes' network, the
/// outside, and a network of workloads without pod CIDR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct AddressSpec {
    is_v6: bool,
    site: u8,
    host: u8,
}

/// A block around an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct BlockSpec {
    around: AddressSpec,
    /// Index into the prefix lengths of the family.
    length: u8,
}

/// Requirements: key, operator, and values as bits.
type SelectorSpec = Vec<(u8, u8, u8)>;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum NamespaceMatchSpec {
    /// The policy's own namespace.
    Own,
    Named(u8),
    /// By the label that holds its name.
    Labelled(u8),
    Matching(SelectorSpec),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum PeerSpec {
    Workloads(NamespaceMatchSpec, SelectorSpec),
    Network(BlockSpec, Vec<BlockSpec>),
    Nodes(SelectorSpec),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum PortSpec {
    Range { protocol: u8, first: u8, last: u8 },
    Whole { protocol: u8 },
    Named { protocol: Option<u8>, name: u8 },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct RuleSpec {
    /// What it does in a ClusterNetworkPolicy; a NetworkPolicy accepts.
    #[serde(with = "ActionText")]
    action: Action,
    peers: Option<Vec<PeerSpec>>,
    ports: Option<Vec<PortSpec>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum TierSpec {
    Admin,
    NetworkPolicy,
    Baseline,
}

/// Policy `p<index>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct PolicySpec {
    tier: TierSpec,
    namespace: u8,
    order: u8,
    namespaces: NamespaceMatchSpec,
    pods: SelectorSpec,
    ingress: Option<Vec<RuleSpec>>,
    egress: Option<Vec<RuleSpec>>,
}

/// How an action is written in a kept case.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Action")]
enum ActionText {
    Accept,
    Deny,
    Pass,
}

/// How a direction is written in a kept case.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Direction")]
enum DirectionText {
    Ingress,
    Egress,
}
