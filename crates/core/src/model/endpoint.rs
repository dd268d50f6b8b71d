//! Endpoints: what policy protects and what may be a peer.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use smol_str::SmolStr;

use super::{Labels, Protocol};

/// Where an endpoint came from. A pod and a workload endpoint of one name are two endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum EndpointKind {
    /// A Kubernetes Pod.
    Pod,
    /// Our own `WorkloadEndpoint`, for hosts without Kubernetes.
    WorkloadEndpoint,
    /// Addresses of the node itself that stand for the pods of a Service; never an endpoint of this node.
    LocalService,
}

impl EndpointKind {
    /// All kinds, in order.
    pub const ALL: [Self; 3] = [Self::Pod, Self::WorkloadEndpoint, Self::LocalService];
}

/// Identity of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct EndpointId {
    /// Where it came from.
    pub kind: EndpointKind,
    /// Its namespace.
    pub namespace: SmolStr,
    /// Its name.
    pub name: SmolStr,
}

impl fmt::Display for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Whether an endpoint counts in pod sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Lifecycle {
    /// Pending, running or terminating: it may own its addresses.
    Live,
    /// Succeeded or failed: its addresses may already be another's, so it is in no pod set.
    Finished,
}

/// A port that a container declares; named ports resolve to these.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ContainerPort {
    /// Name by which policies refer to it.
    pub name: Option<SmolStr>,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port number, 1..=65535.
    pub number: u16,
}

/// A pod, VM, container or other workload with addresses of its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Endpoint {
    /// Identity.
    pub id: EndpointId,
    /// Tells a pod from an earlier one of the same name, where the source knows it. Policy does not look at it.
    pub uid: Option<PodUid>,
    /// Labels that selectors see.
    pub labels: Labels,
    /// Name of the node it runs on, once known.
    pub node: Option<SmolStr>,
    /// All its addresses, both families, as the API tells them.
    pub addresses: Vec<IpAddr>,
    /// Declared ports of all containers, native sidecars included.
    pub ports: Vec<ContainerPort>,
    /// Shares the node's network namespace: never selected, never a peer.
    pub host_network: bool,
    /// Whether it still counts.
    pub lifecycle: Lifecycle,
    /// Host-side interface, if the object names one (workload endpoints only).
    pub interface: Option<InterfaceName>,
    /// Hardware address, if the object names one (workload endpoints only).
    pub mac: Option<MacAddress>,
}

impl Endpoint {
    /// Whether it is in pod sets at all: not on the host network and not finished.
    pub fn is_workload(&self) -> bool {
        !self.host_network && self.lifecycle == Lifecycle::Live
    }
}

/// The uid of a pod: that of its object, or of a static pod the one that the kubelet made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PodUid([u8; 16]);

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|octet| write!(f, "{octet:02x}"))
    }
}

/// Why a text is no uid of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a pod's uid has 32 hexadecimal digits, with or without dashes")]
pub struct PodUidError;

impl FromStr for PodUid {
    type Err = PodUidError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut digits = 0;
        let mut number = 0_u128;
        for digit in text.chars().filter(|found| *found != '-') {
            let value = digit.to_digit(16).ok_or(PodUidError)?;
            digits += 1;
            if digits > 32 {
                return Err(PodUidError);
            }
            number = number << 4 | u128::from(value);
        }
        if digits == 32 {
            Ok(Self(number.to_be_bytes()))
        } else {
            Err(PodUidError)
        }
    }
}

/// Name of a network interface. Invariant: 1..=15 bytes, no `/`, no white space, no control character, and
/// nothing that nft would have to escape (quote, backslash); not `.` or `..`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "SmolStr", into = "SmolStr"))]
pub struct InterfaceName(SmolStr);

impl InterfaceName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a text is no interface name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InterfaceNameError {
    /// Empty, longer than 15 bytes, `.` or `..`.
    #[error("an interface name has 1 to 15 bytes and is not . or ..")]
    Length,
    /// A character that the kernel or nft would not take as it is.
    #[error("an interface name may not contain {found:?}")]
    Character {
        /// The first such character.
        found: char,
    },
}

impl FromStr for InterfaceName {
    type Err = InterfaceNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() || text.len() > 15 || text == "." || text == ".." {
            return Err(InterfaceNameError::Length);
        }
        let is_bad =
            |c: &char| c.is_whitespace() || c.is_control() || matches!(c, '/' | '"' | '\\' | '*');
        match text.chars().find(is_bad) {
            Some(found) => Err(InterfaceNameError::Character { found }),
            None => Ok(Self(text.into())),
        }
    }
}

impl TryFrom<SmolStr> for InterfaceName {
    type Error = InterfaceNameError;

    fn try_from(text: SmolStr) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<InterfaceName> for SmolStr {
    fn from(name: InterfaceName) -> Self {
        name.0
    }
}

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct MacAddress(pub [u8; 6]);

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, octet) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { ":" };
            write!(f, "{separator}{octet:02x}")?;
        }
        Ok(())
    }
}

impl FromStr for MacAddress {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WANTED: &str = "a hardware address is six hexadecimal octets separated by colons";
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().ok_or(WANTED)?;
            if part.len() != 2 {
                return Err(WANTED);
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| WANTED)?;
        }
        if parts.next().is_some() {
            Err(WANTED)
        } else {
            Ok(Self(octets))
        }
    }
}

/// What the kernel of this node tells about one pod interface: the facts of an endpoint, without identity.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ObservedInterface {
    /// Interface index on the host side; the key.
    pub index: u32,
    /// Name on the host side.
    pub name: InterfaceName,
    /// The bridge it is a port of; `None` for a routed interface.
    pub bridge: Option<InterfaceName>,
    /// Hardware address on the pod's side, where it can be seen.
    pub mac: Option<MacAddress>,
    /// Addresses on the pod's side (link-local ones left out), where they can be seen.
    pub addresses: Vec<IpAddr>,
}
