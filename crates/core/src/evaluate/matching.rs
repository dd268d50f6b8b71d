//! Whether one condition of a rule holds, and what is missing where it does not.
//!
//! The outcomes carry what an explanation needs, by reference; the decision uses the same values.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use smol_str::SmolStr;

use super::explain::Claimant;
use super::index::Workload;
use crate::model::{
    ContainerPort, Endpoint, Labels, Namespace, NamespaceMatch, Node, Peer, PortMatch, Protocol,
    Requirement, Selector,
};

/// How surely a condition or a rule matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Certainty {
    /// It does not.
    No,
    /// It asks for a namespace or labels of a workload whose namespace has no object yet, or for a node that claims the
    /// address and is not believed.
    Uncertain,
    /// It does.
    Yes,
}

/// Why a workload is not in a selected set: one or more of its namespace, the labels of that, its own labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch<'a> {
    /// The condition on the namespace.
    pub namespaces: &'a NamespaceMatch,
    /// The condition on the labels.
    pub pods: &'a Selector,
    /// The workload's namespace.
    pub namespace: &'a Namespace,
    /// The workload.
    pub endpoint: &'a Endpoint,
}

impl<'a> Mismatch<'a> {
    /// The requirements on the labels of the namespace that do not hold.
    pub fn unmet_of_namespace(&self) -> impl Iterator<Item = &'a Requirement> + use<'a> {
        let selector = match self.namespaces {
            NamespaceMatch::Is(_) => None,
            NamespaceMatch::Matching(selector) => Some(selector),
        };
        let labels = &self.namespace.labels;
        selector
            .into_iter()
            .flat_map(move |selector| unmet(selector, labels))
    }

    /// The requirements on the workload's own labels that do not hold.
    pub fn unmet_of_pod(&self) -> impl Iterator<Item = &'a Requirement> + use<'a> {
        unmet(self.pods, &self.endpoint.labels)
    }

    /// The namespace that is asked for by name, if the workload is in another one.
    pub fn wanted_namespace(&self) -> Option<&'a SmolStr> {
        match self.namespaces {
            NamespaceMatch::Is(name) if *name != self.namespace.name => Some(name),
            NamespaceMatch::Is(_) | NamespaceMatch::Matching(_) => None,
        }
    }

    /// Whether one label would make it match.
    pub fn is_near_miss(&self) -> bool {
        self.wanted_namespace().is_none()
            && self.unmet_of_namespace().chain(self.unmet_of_pod()).count() == 1
    }
}

impl fmt::Display for Mismatch<'_> {
    /// What would have to hold, and what is there instead.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "would match if ";
        if let Some(wanted) = self.wanted_namespace() {
            write!(
                f,
                "{separator}in namespace {wanted} (is in {})",
                self.namespace.name
            )?;
            separator = " and ";
        }
        let of_namespace = self
            .unmet_of_namespace()
            .map(|unmet| ("namespace label ", unmet, &self.namespace.labels));
        let of_pod = self
            .unmet_of_pod()
            .map(|unmet| ("label ", unmet, &self.endpoint.labels));
        for (what, requirement, labels) in of_namespace.chain(of_pod) {
            f.write_str(separator)?;
            fmt_unmet(f, what, requirement, labels)?;
            separator = " and ";
        }
        Ok(())
    }
}

fn unmet<'a>(
    selector: &'a Selector,
    labels: &'a Labels,
) -> impl Iterator<Item = &'a Requirement> + use<'a> {
    selector
        .requirements()
        .iter()
        .filter(|requirement| !requirement.matches(labels))
}

fn fmt_unmet(
    f: &mut fmt::Formatter<'_>,
    what: &str,
    requirement: &Requirement,
    labels: &Labels,
) -> fmt::Result {
    let key = match requirement {
        Requirement::In(key, values) => {
            match values.as_slice() {
                [value] => write!(f, "{what}{key}={value}")?,
                values => write!(f, "{what}{key} in ({})", values.join(", "))?,
            }
            key
        }
        Requirement::NotIn(key, values) => {
            match values.as_slice() {
                [value] => write!(f, "{what}{key}!={value}")?,
                values => write!(f, "{what}{key} not in ({})", values.join(", "))?,
            }
            key
        }
        Requirement::Exists(key) => {
            write!(f, "{what}{key} present")?;
            key
        }
        Requirement::DoesNotExist(key) => {
            write!(f, "{what}{key} absent")?;
            key
        }
    };
    match labels.get(key) {
        Some(found) => write!(f, " (has {key}={found})"),
        None => write!(f, " (has no {key})"),
    }
}

/// Whether a workload is in a selected set.
#[derive(Clone, Copy, Debug)]
pub(super) enum Selection<'a> {
    Selected,
    UnknownNamespace,
    Not(Mismatch<'a>),
}

pub(super) fn select<'a>(
    namespaces: &'a NamespaceMatch,
    pods: &'a Selector,
    workload: &Workload<'a>,
) -> Selection<'a> {
    let Some(namespace) = workload.namespace else {
        return Selection::UnknownNamespace;
    };
    let is_in_namespace = match namespaces {
        NamespaceMatch::Is(name) => *name == namespace.name,
        NamespaceMatch::Matching(selector) => selector.matches(&namespace.labels),
    };
    let endpoint = workload.endpoint;
    if is_in_namespace && pods.matches(&endpoint.labels) {
        Selection::Selected
    } else {
        Selection::Not(Mismatch {
            namespaces,
            pods,
            namespace,
            endpoint,
        })
    }
}

/// What came of comparing the other side with one peer condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerOutcome<'a> {
    /// It matches.
    Matches,
    /// A workload condition, and the workload's namespace has no object yet.
    UnknownNamespace(&'a Endpoint),
    /// A workload condition, and no live workload has the address.
    NoWorkload,
    /// A workload condition that the workload does not meet.
    NotSelected(Mismatch<'a>),
    /// The block is of the other address family.
    OtherFamily,
    /// The block does not hold the address.
    OutsideBlock,
    /// The block holds it, but this hole in it does too.
    InExcept(&'a IpNet),
    /// A node condition, and the address is no host identity.
    NoNode,
    /// A node condition that selects this node, which claims the address and is not believed.
    DoubtfulNode(&'a Node),
    /// A node condition whose labels this node lacks.
    NodeNotSelected(&'a Selector, &'a Node),
}

impl PeerOutcome<'_> {
    /// What it means for the rule.
    pub fn certainty(&self) -> Certainty {
        match self {
            Self::Matches => Certainty::Yes,
            Self::UnknownNamespace(_) | Self::DoubtfulNode(_) => Certainty::Uncertain,
            Self::NoWorkload
            | Self::NotSelected(_)
            | Self::OtherFamily
            | Self::OutsideBlock
            | Self::InExcept(_)
            | Self::NoNode
            | Self::NodeNotSelected(..) => Certainty::No,
        }
    }

    /// Whether little is missing: one label, or it is in an exception.
    pub fn is_near_miss(&self) -> bool {
        match self {
            Self::NotSelected(mismatch) => mismatch.is_near_miss(),
            Self::UnknownNamespace(_)
            | Self::InExcept(_)
            | Self::DoubtfulNode(_)
            | Self::NodeNotSelected(..) => true,
            Self::Matches
            | Self::NoWorkload
            | Self::OtherFamily
            | Self::OutsideBlock
            | Self::NoNode => false,
        }
    }
}

impl fmt::Display for PeerOutcome<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Matches => f.write_str("matches"),
            Self::UnknownNamespace(endpoint) => {
                write!(
                    f,
                    "uncertain: namespace {} is not known yet",
                    endpoint.id.namespace
                )
            }
            Self::NoWorkload => f.write_str("selects pods, and the address is of none"),
            Self::NotSelected(mismatch) => mismatch.fmt(f),
            Self::OtherFamily => f.write_str("the block is of the other address family"),
            Self::OutsideBlock => f.write_str("the address is outside the block"),
            Self::InExcept(hole) => write!(f, "the address is in the exception {hole}"),
            Self::NoNode => f.write_str("selects nodes, and the address is of none"),
            Self::DoubtfulNode(node) => write!(
                f,
                "uncertain: node {} claims the address, and is not believed",
                node.name
            ),
            Self::NodeNotSelected(selector, node) => {
                let mut separator = "would match if ";
                for requirement in unmet(selector, &node.labels) {
                    f.write_str(separator)?;
                    fmt_unmet(f, "node label ", requirement, &node.labels)?;
                    separator = " and ";
                }
                Ok(())
            }
        }
    }
}

/// The other side of a flow.
#[derive(Clone, Copy, Debug)]
pub(super) struct PeerSide<'e, 'a> {
    pub(super) address: IpAddr,
    /// What the address is taken for.
    pub(super) claimant: PeerClaimant<'e, 'a>,
    /// Nodes that claim the address, too, and are not believed.
    pub(super) doubtful: &'e [&'a Node],
}

/// What a peer address may be.
#[derive(Clone, Copy, Debug)]
pub(super) enum PeerClaimant<'e, 'a> {
    /// The address of a live workload.
    Workload(&'e Workload<'a>),
    /// A node's own.
    Node(&'a Node),
    /// Nobody's.
    Nobody,
}

impl<'a> PeerClaimant<'_, 'a> {
    /// The same for an explanation.
    pub(super) fn told(self) -> Option<Claimant<'a>> {
        match self {
            Self::Workload(workload) => Some(Claimant::Workload(workload.endpoint)),
            Self::Node(node) => Some(Claimant::Node(node)),
            Self::Nobody => None,
        }
    }
}

impl<'e, 'a> PeerSide<'e, 'a> {
    /// The workload that the address is taken for.
    pub(super) fn workload(&self) -> Option<&'e Workload<'a>> {
        match self.claimant {
            PeerClaimant::Workload(workload) => Some(workload),
            PeerClaimant::Node(_) | PeerClaimant::Nobody => None,
        }
    }

    pub(super) fn compare(&self, peer: &'a Peer) -> PeerOutcome<'a> {
        match peer {
            Peer::Workloads { namespaces, pods } => match self.claimant {
                PeerClaimant::Node(_) | PeerClaimant::Nobody => PeerOutcome::NoWorkload,
                PeerClaimant::Workload(workload) => match select(namespaces, pods, workload) {
                    Selection::Selected => PeerOutcome::Matches,
                    Selection::UnknownNamespace => PeerOutcome::UnknownNamespace(workload.endpoint),
                    Selection::Not(mismatch) => PeerOutcome::NotSelected(mismatch),
                },
            },
            Peer::Network { cidr, except } => self.compare_block(cidr, except),
            Peer::Nodes(selector) => {
                let is_selected = |node: &&&'a Node| selector.matches(&node.labels);
                match (self.claimant, self.doubtful.iter().find(is_selected)) {
                    (PeerClaimant::Node(node), _) if selector.matches(&node.labels) => {
                        PeerOutcome::Matches
                    }
                    (_, Some(node)) => PeerOutcome::DoubtfulNode(node),
                    (PeerClaimant::Node(node), None) => {
                        PeerOutcome::NodeNotSelected(selector, node)
                    }
                    (PeerClaimant::Workload(_) | PeerClaimant::Nobody, None) => PeerOutcome::NoNode,
                }
            }
        }
    }

    fn compare_block(&self, cidr: &IpNet, except: &'a [IpNet]) -> PeerOutcome<'a> {
        if cidr.addr().is_ipv4() != self.address.is_ipv4() {
            return PeerOutcome::OtherFamily;
        }
        if !cidr.contains(&self.address) {
            return PeerOutcome::OutsideBlock;
        }
        match except.iter().find(|hole| hole.contains(&self.address)) {
            Some(hole) => PeerOutcome::InExcept(hole),
            None => PeerOutcome::Matches,
        }
    }
}

/// Protocol and destination port of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) protocol: u8,
    pub(super) port: Option<u16>,
}

/// What came of comparing a flow with one port condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortOutcome<'a> {
    /// It matches.
    Matches,
    /// The flow is of another protocol.
    OtherProtocol,
    /// The protocol is right, the port is not.
    OtherPort,
    /// A named port, and the destination is no workload.
    NoWorkload,
    /// A named port, and the destination declares none of this name and protocol.
    NotServed(&'a Endpoint),
    /// A named port that stands for other numbers at the destination.
    ServedElsewhere(&'a Endpoint),
}

impl PortOutcome<'_> {
    /// Whether it matches.
    pub fn is_match(&self) -> bool {
        *self == Self::Matches
    }
}

impl fmt::Display for PortOutcome<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Matches => f.write_str("matches"),
            Self::OtherProtocol => f.write_str("the flow is of another protocol"),
            Self::OtherPort => f.write_str("the flow is to another port"),
            Self::NoWorkload => f.write_str("a named port, and the destination is no pod"),
            Self::NotServed(endpoint) => write!(f, "{} has no port of this name", endpoint.id),
            Self::ServedElsewhere(endpoint) => {
                write!(f, "this name is another port of {}", endpoint.id)
            }
        }
    }
}

impl Packet {
    /// `named` is whose named ports count: the destination, if it is a workload.
    pub(super) fn compare<'a>(
        self,
        port: &'a PortMatch,
        named: Option<&'a Endpoint>,
    ) -> PortOutcome<'a> {
        let protocol = Protocol::from_number(self.protocol);
        match port {
            PortMatch::Range {
                protocol: wanted, ..
            } if protocol != Some(*wanted) => PortOutcome::OtherProtocol,
            PortMatch::Range { first, last, .. } => {
                // A flow of unknown port still is one of the whole protocol.
                let is_whole = (*first, *last) == (0, u16::MAX);
                let is_inside = self
                    .port
                    .is_some_and(|port| (*first..=*last).contains(&port));
                if is_whole || is_inside {
                    PortOutcome::Matches
                } else {
                    PortOutcome::OtherPort
                }
            }
            PortMatch::Named {
                protocol: wanted,
                name,
            } => {
                let Some(protocol) =
                    protocol.filter(|own| wanted.is_none_or(|wanted| wanted == *own))
                else {
                    return PortOutcome::OtherProtocol;
                };
                named.map_or(PortOutcome::NoWorkload, |endpoint| {
                    self.compare_named(protocol, name, endpoint)
                })
            }
        }
    }

    fn compare_named<'a>(
        self,
        protocol: Protocol,
        name: &SmolStr,
        endpoint: &'a Endpoint,
    ) -> PortOutcome<'a> {
        let is_named =
            |port: &&ContainerPort| port.name.as_ref() == Some(name) && port.protocol == protocol;
        let mut declared = endpoint.ports.iter().filter(is_named).peekable();
        if declared.peek().is_none() {
            PortOutcome::NotServed(endpoint)
        } else if declared.any(|port| Some(port.number) == self.port) {
            PortOutcome::Matches
        } else {
            PortOutcome::ServedElsewhere(endpoint)
        }
    }
}
