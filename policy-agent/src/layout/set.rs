//! The named sets and maps, and how big they are made.

use std::collections::BTreeMap;
use std::net::IpAddr;

use towpath_core::model::Direction;
use towpath_dataplane::nft::{FieldType, MapData, Name, SetSpec};

use super::{TableId, made_name};

/// Version of the Internet Protocol. Maps whose key begins with an address exist once for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum IpVersion {
    /// IPv4; no suffix in names.
    V4,
    /// IPv6; suffix `6` in names.
    V6,
}

impl IpVersion {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The version of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() {
            Self::V4
        } else {
            Self::V6
        }
    }

    /// What names end in.
    pub(super) fn suffix(self) -> &'static str {
        match self {
            Self::V4 => "",
            Self::V6 => "6",
        }
    }

    fn address(self) -> FieldType {
        match self {
            Self::V4 => FieldType::Ipv4Addr,
            Self::V6 => FieldType::Ipv6Addr,
        }
    }
}

/// One of the lookups of a direction; they are read in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum VerdictMap {
    /// Known endpoints: `return` when no tier restricts them, `continue` to be judged.
    State,
    /// One port of a protocol from one class.
    Exact,
    /// A protocol from one class.
    ClassProtocol,
    /// Everything from one class.
    ClassAny,
    /// One port of a protocol from everybody.
    Any,
    /// `goto` an ordered rule list.
    Profile,
    /// The rest.
    Default,
}

impl VerdictMap {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::State,
        Self::Exact,
        Self::ClassProtocol,
        Self::ClassAny,
        Self::Any,
        Self::Profile,
        Self::Default,
    ];

    fn word(self) -> &'static str {
        match self {
            Self::State => "state",
            Self::Exact => "verdict",
            Self::ClassProtocol => "class_proto",
            Self::ClassAny => "class_any",
            Self::Any => "any",
            Self::Profile => "profile",
            Self::Default => "default",
        }
    }

    /// Types of the key after the endpoint's address.
    fn key(self) -> &'static [FieldType] {
        use FieldType::{ClassId, InetProto, InetService};
        match self {
            Self::State | Self::Profile | Self::Default => &[],
            Self::Exact => &[ClassId, InetProto, InetService],
            Self::ClassProtocol => &[ClassId, InetProto],
            Self::ClassAny => &[ClassId],
            Self::Any => &[InetProto, InetService],
        }
    }
}

/// A named set or map of the layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SetId {
    /// Class of single peer addresses.
    PeerClass(IpVersion),
    /// Class of blocks of peer addresses.
    CidrClass(IpVersion),
    /// A verdict map of one direction.
    Verdict(Direction, VerdictMap, IpVersion),
    /// Interfaces behind which there are only pods.
    PodInterfaces,
    /// Pod networks of this node.
    PodNetworks(IpVersion),
    /// Addresses of nodes.
    NodeAddresses(IpVersion),
    /// Endpoints to and from which nothing is dropped that policy denies.
    Audited(IpVersion),
    /// Addresses of pods for which enforcement is open for a while. Its elements end by themselves.
    Bypassed(IpVersion),
    /// IP versions for which enforcement of the whole node is open for a while. Its elements end by themselves.
    BypassedNode,
    /// Pod interfaces that are no bridges.
    RoutedInterfaces,
    /// Which source may enter by which routed interface.
    RoutedBindings(IpVersion),
    /// Ports of pods.
    PodPorts,
    /// Ports of pods that receive multicast: nothing restricts their ingress.
    OpenPorts,
    /// Ports and hardware addresses of known endpoints.
    BoundPorts(IpVersion),
    /// Which source may enter by which port, with which hardware address.
    Bindings(IpVersion),
    /// Which address may be claimed on which port over neighbour discovery.
    NeighbourTargets,
    /// Pod networks of this node, for the bridge table.
    BridgePodNetworks(IpVersion),
    /// The IPv6 ones again, for claims over neighbour discovery.
    PodTargets,
}

impl SetId {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        let per_version = IpVersion::ALL.into_iter().flat_map(|version| {
            let verdicts = Direction::BOTH.into_iter().flat_map(move |direction| {
                VerdictMap::ALL.map(|map| Self::Verdict(direction, map, version))
            });
            [
                Self::PeerClass(version),
                Self::CidrClass(version),
                Self::PodNetworks(version),
                Self::NodeAddresses(version),
                Self::Audited(version),
                Self::Bypassed(version),
                Self::RoutedBindings(version),
                Self::BoundPorts(version),
                Self::Bindings(version),
                Self::BridgePodNetworks(version),
            ]
            .into_iter()
            .chain(verdicts)
        });
        per_version.chain([
            Self::BypassedNode,
            Self::PodInterfaces,
            Self::RoutedInterfaces,
            Self::PodPorts,
            Self::OpenPorts,
            Self::NeighbourTargets,
            Self::PodTargets,
        ])
    }

    /// The table that it is in.
    pub fn table(self) -> TableId {
        match self {
            Self::PeerClass(_)
            | Self::CidrClass(_)
            | Self::Verdict(..)
            | Self::PodInterfaces
            | Self::PodNetworks(_)
            | Self::NodeAddresses(_)
            | Self::Audited(_)
            | Self::Bypassed(_)
            | Self::BypassedNode
            | Self::RoutedInterfaces
            | Self::RoutedBindings(_) => TableId::Inet,
            Self::PodPorts
            | Self::OpenPorts
            | Self::BoundPorts(_)
            | Self::Bindings(_)
            | Self::NeighbourTargets
            | Self::BridgePodNetworks(_)
            | Self::PodTargets => TableId::Bridge,
        }
    }

    /// Its name in the table.
    pub fn name(self) -> Name {
        let versioned = |word: &str, version: IpVersion| format!("{word}{}", version.suffix());
        made_name(&match self {
            Self::PeerClass(version) => versioned("peer_class", version),
            Self::CidrClass(version) => versioned("cidr_class", version),
            Self::Verdict(direction, map, version) => {
                format!("{direction}_{}{}", map.word(), version.suffix())
            }
            Self::PodInterfaces => "pod_interfaces".to_owned(),
            Self::PodNetworks(version) | Self::BridgePodNetworks(version) => {
                versioned("pod_networks", version)
            }
            Self::NodeAddresses(version) => versioned("node_addresses", version),
            Self::Audited(version) => versioned("audited", version),
            Self::Bypassed(version) => versioned("bypassed", version),
            Self::BypassedNode => "bypassed_node".to_owned(),
            Self::RoutedInterfaces => "routed_interfaces".to_owned(),
            Self::RoutedBindings(version) => versioned("routed_bindings", version),
            Self::PodPorts => "pod_ports".to_owned(),
            Self::OpenPorts => "open_ports".to_owned(),
            Self::BoundPorts(version) => versioned("bound_ports", version),
            Self::Bindings(version) => versioned("bindings", version),
            Self::NeighbourTargets => "neighbour_targets".to_owned(),
            Self::PodTargets => "pod_targets".to_owned(),
        })
    }

    /// Its description, for `size` elements.
    pub fn spec(self, size: u32) -> SetSpec {
        SetSpec {
            name: self.name(),
            key: self.key(),
            data: self.data(),
            interval: self.is_interval(),
            timeout: self.is_timed(),
            size,
        }
    }

    /// Whether its elements are ranges.
    pub fn is_interval(self) -> bool {
        matches!(
            self,
            Self::CidrClass(_)
                | Self::PodNetworks(_)
                | Self::BridgePodNetworks(_)
                | Self::PodTargets
        )
    }

    /// Whether its elements end by themselves.
    pub fn is_timed(self) -> bool {
        matches!(self, Self::Bypassed(_) | Self::BypassedNode)
    }

    fn data(self) -> Option<MapData> {
        match self {
            Self::PeerClass(_) | Self::CidrClass(_) => Some(MapData::ClassId),
            Self::Verdict(..) => Some(MapData::Verdict),
            _ => None,
        }
    }

    fn key(self) -> Vec<FieldType> {
        use FieldType::{EtherAddr, Icmpv6Target, InterfaceName};
        match self {
            Self::PeerClass(version)
            | Self::CidrClass(version)
            | Self::PodNetworks(version)
            | Self::NodeAddresses(version)
            | Self::Audited(version)
            | Self::Bypassed(version)
            | Self::BridgePodNetworks(version) => vec![version.address()],
            Self::BypassedNode => vec![FieldType::NfProto],
            Self::Verdict(_, map, version) => [version.address()]
                .iter()
                .chain(map.key())
                .copied()
                .collect(),
            Self::PodInterfaces | Self::RoutedInterfaces | Self::PodPorts | Self::OpenPorts => {
                vec![InterfaceName]
            }
            Self::RoutedBindings(version) => vec![InterfaceName, version.address()],
            Self::BoundPorts(_) => vec![InterfaceName, EtherAddr],
            Self::Bindings(version) => vec![InterfaceName, EtherAddr, version.address()],
            Self::NeighbourTargets => vec![InterfaceName, Icmpv6Target],
            Self::PodTargets => vec![Icmpv6Target],
        }
    }
}

/// How many elements each set can hold; sets that are not named here have the least.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capacities {
    sizes: BTreeMap<SetId, u32>,
}

impl Capacities {
    /// Room of a small set. The kernel allocates a bucket of 8 bytes per element.
    const LEAST: u32 = 1024;
    /// Room of the sets of which nobody counts the elements.
    pub(crate) const TIMED: u32 = 4096;

    /// Capacities with headroom over these numbers of elements.
    pub fn for_counts(counts: &BTreeMap<SetId, usize>) -> Self {
        let with_room = |(set, count): (&SetId, &usize)| {
            let wanted = Self::slots(*set, *count).saturating_mul(2);
            let wanted = u32::try_from(wanted).unwrap_or(u32::MAX);
            let size = wanted.checked_next_power_of_two().unwrap_or(u32::MAX);
            (size > Self::LEAST).then_some((*set, size))
        };
        Self {
            sizes: counts.iter().filter_map(with_room).collect(),
        }
    }

    /// The size of a set.
    pub fn of(&self, set: SetId) -> u32 {
        let least = if set.is_timed() {
            Self::TIMED
        } else {
            Self::LEAST
        };
        self.sizes.get(&set).copied().unwrap_or(least)
    }

    /// Whether so many elements fit.
    pub fn hold(&self, counts: &BTreeMap<SetId, usize>) -> bool {
        counts
            .iter()
            .all(|(set, count)| Self::slots(*set, *count) <= self.of(*set) as usize)
    }

    /// The kernel stores both ends of a range.
    fn slots(set: SetId, count: usize) -> usize {
        if set.is_interval() {
            count.saturating_mul(2).saturating_add(1)
        } else {
            count
        }
    }
}
