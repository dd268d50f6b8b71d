//! Policies: tiers, rules, peers, ports. One model for every policy API.

use std::fmt;

use ipnet::IpNet;
use smol_str::SmolStr;

use super::{Namespace, Selector};

/// Direction as seen from the endpoint that a policy selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Direction {
    /// Traffic to the endpoint.
    Ingress,
    /// Traffic from the endpoint.
    Egress,
}

impl Direction {
    /// Both directions.
    pub const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

/// What finally happens to a new connection in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Verdict {
    /// It passes.
    Allow,
    /// It is dropped.
    Deny,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        })
    }
}

/// What happens at the end of a tier when a policy of it selected the endpoint and no rule decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum TierDefault {
    /// The endpoint is isolated: deny.
    Deny,
    /// Go on with the next tier.
    Pass,
}

/// A tier: policies of a lower order decide first. After the last tier everything is allowed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Tier {
    /// Position; lower first.
    pub order: u32,
    /// Name for people.
    pub name: SmolStr,
    /// What the end of the tier means.
    pub default: TierDefault,
}

impl Tier {
    /// ClusterNetworkPolicy of tier Admin.
    pub const ADMIN: Self = Self {
        order: 1_000,
        name: SmolStr::new_static("Admin"),
        default: TierDefault::Pass,
    };
    /// Kubernetes NetworkPolicy.
    pub const NETWORK_POLICY: Self = Self {
        order: 1_000_000,
        name: SmolStr::new_static("NetworkPolicy"),
        default: TierDefault::Deny,
    };
    /// ClusterNetworkPolicy of tier Baseline.
    pub const BASELINE: Self = Self {
        order: 10_000_000,
        name: SmolStr::new_static("Baseline"),
        default: TierDefault::Pass,
    };
}

/// Which API a policy came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum PolicyKind {
    /// `networking.k8s.io/v1` NetworkPolicy.
    NetworkPolicy,
    /// `policy.networking.k8s.io/v1alpha2` ClusterNetworkPolicy.
    ClusterNetworkPolicy,
}

impl fmt::Display for PolicyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NetworkPolicy => "NetworkPolicy",
            Self::ClusterNetworkPolicy => "ClusterNetworkPolicy",
        })
    }
}

/// Identity of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PolicyId {
    /// Which API it came from.
    pub kind: PolicyKind,
    /// Its namespace; empty for a cluster-wide one.
    pub namespace: SmolStr,
    /// Its name.
    pub name: SmolStr,
}

impl fmt::Display for PolicyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

/// A policy: whom it selects, and its ordered rules per direction.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Policy {
    /// Identity.
    pub id: PolicyId,
    /// Tier it belongs to.
    pub tier: Tier,
    /// Order in the tier; lower first, equal ones by id (so by name).
    pub order: i32,
    /// The endpoints it applies to.
    pub subject: Subject,
    /// Rules for traffic to the subject. `None`: it does not apply in this direction. An empty list applies,
    /// and decides nothing but the tier's default.
    pub ingress: Option<Vec<Rule>>,
    /// Rules for traffic from the subject; as `ingress`.
    pub egress: Option<Vec<Rule>>,
    /// Set when the object could not be read whole and this is the closed stand-in for it: the reason, for
    /// people.
    pub invalid: Option<SmolStr>,
}

impl Policy {
    /// The rules of one direction, `None` where it does not apply.
    pub fn rules(&self, direction: Direction) -> Option<&[Rule]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }
}

/// The endpoints that a policy applies to: workloads in `namespaces` whose labels match `pods`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Subject {
    /// Their namespaces.
    pub namespaces: NamespaceMatch,
    /// Their labels.
    pub pods: Selector,
}

/// A condition on the namespace of a workload.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum NamespaceMatch {
    /// The namespace of this name.
    Is(SmolStr),
    /// Every namespace whose labels match.
    Matching(Selector),
}

impl NamespaceMatch {
    /// Whether it holds for this namespace.
    pub fn selects(&self, namespace: &Namespace) -> bool {
        match self {
            Self::Is(name) => *name == namespace.name,
            Self::Matching(selector) => selector.matches(&namespace.labels),
        }
    }
}

/// What a rule does with traffic that it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Action {
    /// Allow, finally.
    Accept,
    /// Deny, finally.
    Deny,
    /// Leave this tier; the next one decides.
    Pass,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Accept => "Accept",
            Self::Deny => "Deny",
            Self::Pass => "Pass",
        })
    }
}

/// A rule: matches when the peer *and* the port match.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Rule {
    /// Name, where the API has one.
    pub name: Option<SmolStr>,
    /// What it does.
    pub action: Action,
    /// The other side.
    pub peers: Peers,
    /// Protocols and destination ports.
    pub ports: Ports,
}

/// The other side of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Peers {
    /// Anybody.
    Any,
    /// One of these; an empty list is nobody.
    Of(Vec<Peer>),
}

/// A set of peers.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Peer {
    /// Workloads; never a host-network or finished pod, never an outside address.
    Workloads {
        /// Their namespaces.
        namespaces: NamespaceMatch,
        /// Their labels.
        pods: Selector,
    },
    /// Every address in `cidr` and in none of `except`, whoever owns it. One family only.
    Network {
        /// The block, host bits cleared.
        cidr: IpNet,
        /// Holes in it: addresses that this peer does not match.
        except: Vec<IpNet>,
    },
    /// The host identities of the nodes whose labels match.
    Nodes(Selector),
}

/// Protocols and destination ports of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Ports {
    /// Every protocol and port, ICMP and others included.
    Any,
    /// One of these; an empty list is none.
    Of(Vec<PortMatch>),
}

/// One protocol-and-port condition.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum PortMatch {
    /// Ports `first..=last` of one protocol; `0..=65535` is all of it.
    Range {
        /// Transport protocol.
        protocol: Protocol,
        /// First port.
        first: u16,
        /// Last port, not below `first`.
        last: u16,
    },
    /// A named port of the destination: on ingress of the selected endpoint, on egress of each destination
    /// workload. A destination that is no workload has no named port. One name may stand for several numbers.
    Named {
        /// Transport protocol; `None` is whichever the port has.
        protocol: Option<Protocol>,
        /// The name.
        name: SmolStr,
    },
}

/// Transport protocols with ports that policies can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// The IANA protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// The protocol with this IANA number, if policies can name its ports.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            132 => Some(Self::Sctp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}
