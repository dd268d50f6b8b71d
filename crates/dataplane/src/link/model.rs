//! What a scan finds: interfaces, addresses, and what stands behind a veth.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use smol_str::SmolStr;

/// Number by which this namespace knows another one. The kernel gives it out when an interface here has its peer there,
/// and re-uses it after that namespace is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespaceId(u32);

impl NamespaceId {
    /// Takes the kernel's number, which is negative for "none".
    pub fn from_kernel(number: i32) -> Option<Self> {
        u32::try_from(number).ok().map(Self)
    }

    pub(super) fn to_kernel(self) -> [u8; 4] {
        self.0.to_ne_bytes()
    }
}

impl fmt::Display for NamespaceId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "namespace id {}", self.0)
    }
}

/// The other end of a veth, in another namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The namespace of the other end.
    pub nsid: NamespaceId,
    /// The interface's number over there.
    pub index: u32,
}

/// The settings of a bridge on which enforcement depends, under the kernel's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BridgeSettings {
    /// Hands IPv4 frames to the inet hooks.
    pub nf_call_iptables: bool,
    /// Hands IPv6 frames to the inet hooks.
    pub nf_call_ip6tables: bool,
    /// Keeps frames to the bridge's control addresses (spanning tree, LLDP) from teaching it their source: it takes
    /// some of them before every hook.
    pub no_linklocal_learn: bool,
}

impl BridgeSettings {
    /// What enforcement needs.
    pub const ENFORCING: Self = Self {
        nf_call_iptables: true,
        nf_call_ip6tables: true,
        no_linklocal_learn: true,
    };

    /// Whether the inet hooks see what the bridge forwards, as far as its settings decide it.
    pub fn is_filtered(self) -> bool {
        self.nf_call_iptables && self.nf_call_ip6tables
    }
}

/// An interface of this namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// The interface's number.
    pub index: u32,
    /// Its name.
    pub name: SmolStr,
    /// The kernel's word for its kind (`veth`, `bridge`, `vxlan`), none for hardware and loopback.
    pub kind: Option<SmolStr>,
    /// The bridge or bond it is a port of.
    pub master: Option<u32>,
    /// Its Ethernet address.
    pub mac: Option<[u8; 6]>,
    /// Largest packet in bytes.
    pub mtu: u32,
    /// Whether it is set up (not whether it has a carrier).
    pub is_up: bool,
    /// The other end, if it is a veth into another live namespace.
    pub peer: Option<Peer>,
    /// The settings of a bridge, if it is one and the kernel has all of them.
    pub bridge_settings: Option<BridgeSettings>,
}

impl Interface {
    /// Whether it is a Linux bridge.
    pub fn is_bridge(&self) -> bool {
        self.kind.as_deref() == Some("bridge")
    }
}

/// An address of this namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostAddress {
    /// The interface that has it.
    pub index: u32,
    /// The address.
    pub address: IpAddr,
    /// Length of its on-link prefix.
    pub prefix_length: u8,
}

/// What the other end of a veth has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerFacts {
    /// Its Ethernet address.
    pub mac: Option<[u8; 6]>,
    /// Its addresses in order, without loopback, link-local and multicast ones; at most [`PeerFacts::MAX_ADDRESSES`].
    pub addresses: Vec<IpAddr>,
    /// Whether it also has a link-local IPv6 address.
    pub has_link_local: bool,
}

impl PeerFacts {
    /// Addresses kept of one interface. A pod may give itself any number of addresses; those beyond are not listed, so
    /// that it cannot fill our memory.
    pub const MAX_ADDRESSES: usize = 256;
}

/// An interface of this namespace behind which a pod lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodInterface {
    /// Number of the interface on this side.
    pub index: u32,
    /// Its name on this side.
    pub name: SmolStr,
    /// Name of the bridge (or other master) it is a port of.
    pub bridge: Option<SmolStr>,
    /// The pod's end.
    pub peer: Peer,
    /// The pod's Ethernet address.
    pub mac: Option<[u8; 6]>,
    /// The pod's addresses on that interface, see [`PeerFacts::addresses`].
    ///
    /// The pod's namespace says so: a pod that may change its interface can claim any address. Who binds an identity to
    /// an address must keep the first claimant.
    pub addresses: Vec<IpAddr>,
    /// Whether the pod has a link-local IPv6 address.
    pub has_link_local: bool,
}

/// Which interfaces belong to pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodFilter {
    /// Bridges whose veth ports are pods, for example `cni0`.
    pub bridges: Vec<SmolStr>,
    /// Beginnings of the names of veths that are pods without a bridge, for example `cali`.
    pub prefixes: Vec<SmolStr>,
    /// Networks from which pods get addresses; a veth whose other end has one is a pod wherever it is attached.
    pub networks: Vec<IpNet>,
    /// Names of interfaces that are never pods, whatever else holds.
    pub uplinks: Vec<SmolStr>,
}

impl PodFilter {
    /// Decides whether a pod lives behind `interface`.
    ///
    /// 1. An uplink is none.
    /// 2. Nothing without a live peer in another namespace is one.
    /// 3. A port of a pod bridge is one.
    /// 4. So is an interface without master that has a configured prefix,
    /// 5. or whose peer has an address in a pod network.
    /// 6. Everything else, such as a container of another network, is none.
    pub fn is_pod(&self, interface: &Interface, master: Option<&str>, facts: &PeerFacts) -> bool {
        let has_prefix = |prefix: &SmolStr| interface.name.starts_with(prefix.as_str());
        let is_in_network = |network: &IpNet| {
            facts
                .addresses
                .iter()
                .any(|address| network.contains(address))
        };
        if self.uplinks.contains(&interface.name) || interface.peer.is_none() {
            return false;
        }
        match master {
            Some(master) if self.is_pod_bridge(master) => true,
            None if self.prefixes.iter().any(has_prefix) => true,
            _ => self.networks.iter().any(is_in_network),
        }
    }

    /// Whether `name` is one of the configured pod bridges.
    pub fn is_pod_bridge(&self, name: &str) -> bool {
        self.bridges.iter().any(|bridge| bridge == name)
    }
}

/// Everything that one full scan found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// All interfaces of this namespace.
    pub interfaces: Vec<Interface>,
    /// All addresses of this namespace.
    pub host_addresses: Vec<HostAddress>,
    /// What the other ends of veths have, by the number of the end on this side.
    pub peers: BTreeMap<u32, PeerFacts>,
}

/// What a scan found, full or partial; see [`super::Inventory::apply`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scan {
    /// Everything.
    Full(Snapshot),
    /// One interface of this namespace and its other end, or none if it is gone.
    Link {
        /// The interface's number.
        index: u32,
        /// What it is now.
        found: Option<(Interface, Option<PeerFacts>)>,
    },
    /// All interfaces of this namespace whose other end is in one other namespace.
    Namespace {
        /// The other namespace.
        nsid: NamespaceId,
        /// The ends on this side and what their other ends have.
        members: Vec<(Interface, PeerFacts)>,
    },
    /// All addresses of this namespace.
    HostAddresses(Vec<HostAddress>),
}
