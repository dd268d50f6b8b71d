//! The flat verdict tables that the dataplane holds, and how a packet reads them.
//!
//! [`Tables`] is what must be in force, [`Delta`] how it changes. The tables say nothing of nftables: the agent
//! renders them. [`Tables::judge`] reads them exactly as the kernel's chains do; it is the executable
//! specification of the layout.
//!
//! A connection's first packet is judged once per local side. For the endpoint `e` (destination address on
//! ingress, source address on egress) and the peer address `p` on the other side:
//!
//! 1. `state[e]`: missing = unknown, drop. `Open` = allow. `Restricted` = go on.
//! 2. The class of `p`: `peer_class[p]`, else the range of `cidr_class` that holds it, else class 0.
//! 3. The first hit of: `exact[e, class, protocol, port]`, `class_protocol[e, class, protocol]`,
//!    `class_any[e, class]`, `any[e, protocol, port]`, then the first matching rule of `profile[e]`, then
//!    `default[e]`; missing = drop.
//!
//! Port lookups are made only for TCP, UDP and SCTP.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::model::{Direction, InterfaceName, MacAddress, Protocol, Verdict};

/// A class of peer addresses that no rule of this node tells apart. Ids are never re-used at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClassId(pub u32);

impl ClassId {
    /// The class of addresses that nothing matches. It is never written to the class maps.
    pub const NONE: Self = Self(0);
}

/// Addresses of one family from a first to a last one. Where a block has holes it is far fewer ranges than blocks.
/// Invariant: one family, the first not behind the last. Ordered by the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AddressRange {
    first: IpAddr,
    last: IpAddr,
}

impl AddressRange {
    /// The range between two addresses, both included; `None` for two families, or an empty range.
    pub fn new(first: IpAddr, last: IpAddr) -> Option<Self> {
        let is_range = first.is_ipv4() == last.is_ipv4() && first <= last;
        is_range.then_some(Self { first, last })
    }

    /// The first address.
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// The last address.
    pub fn last(&self) -> IpAddr {
        self.last
    }

    /// Whether an address lies in it.
    pub fn contains(&self, address: &IpAddr) -> bool {
        (self.first..=self.last).contains(address)
    }

    /// The block that it is, if it is one.
    fn block(&self) -> Option<IpNet> {
        let length = match (self.first, self.last) {
            (IpAddr::V4(first), IpAddr::V4(last)) => {
                (first.to_bits() ^ last.to_bits()).leading_zeros()
            }
            (IpAddr::V6(first), IpAddr::V6(last)) => {
                (first.to_bits() ^ last.to_bits()).leading_zeros()
            }
            _ => return None,
        };
        let block = IpNet::new(self.first, u8::try_from(length).ok()?).ok()?;
        (Self::from(block) == *self).then_some(block)
    }
}

impl From<IpNet> for AddressRange {
    fn from(block: IpNet) -> Self {
        Self {
            first: block.network(),
            last: block.broadcast(),
        }
    }
}

impl fmt::Display for AddressRange {
    /// A block where it is one, else its ends.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.block() {
            Some(block) => block.fmt(formatter),
            None => write!(formatter, "{}-{}", self.first, self.last),
        }
    }
}

/// Number of a profile. Equal profiles are one; a number is never given to another content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProfileId(pub u64);

/// How a known local endpoint is judged in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EndpointState {
    /// No tier restricts it: every packet passes.
    Open,
    /// Its tables decide.
    Restricted,
}

/// Source check: the only place where packets with this source address may enter.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Binding {
    /// Host-side interface.
    pub interface: InterfaceName,
    /// Hardware address of the pod's side; `None` for interfaces without a bridge when it cannot be seen.
    pub mac: Option<MacAddress>,
    /// The endpoint's address.
    pub address: IpAddr,
}

/// Key of an exact verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExactKey {
    /// Address of the local endpoint.
    pub endpoint: IpAddr,
    /// Class of the peer.
    pub class: ClassId,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Destination port.
    pub port: u16,
}

/// Key of a verdict for every port of a protocol from a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClassProtocolKey {
    /// Address of the local endpoint.
    pub endpoint: IpAddr,
    /// Class of the peer.
    pub class: ClassId,
    /// Transport protocol.
    pub protocol: Protocol,
}

/// Key of a verdict for everything from a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClassKey {
    /// Address of the local endpoint.
    pub endpoint: IpAddr,
    /// Class of the peer.
    pub class: ClassId,
}

/// Key of a verdict that is the same for every peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortKey {
    /// Address of the local endpoint.
    pub endpoint: IpAddr,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Destination port.
    pub port: u16,
}

/// An ordered rule list: what does not fit the hash maps. The first matching rule decides; after the last one
/// the endpoint's default does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Profile {
    /// The rules in order.
    pub rules: Vec<ProfileRule>,
}

/// One rule of a [`Profile`]. All conditions must hold.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ProfileRule {
    /// The peer's class is one of these (sorted); `None` is any class, 0 included.
    pub classes: Option<Arc<[ClassId]>>,
    /// Protocol and destination ports; `None` is every protocol.
    pub ports: Option<ProfilePorts>,
    /// What happens.
    pub verdict: Verdict,
}

/// Ports of one protocol, as sorted, disjoint, inclusive ranges.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ProfilePorts {
    /// Transport protocol.
    pub protocol: Protocol,
    /// The ranges; `[(0, 65535)]` is the whole protocol.
    pub ranges: Arc<[(u16, u16)]>,
}

/// The verdict tables of one direction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DirectionTables {
    /// Known endpoints.
    pub state: BTreeMap<IpAddr, EndpointState>,
    /// Verdicts for one port from one class.
    pub exact: BTreeMap<ExactKey, Verdict>,
    /// Verdicts for a protocol from one class.
    pub class_protocol: BTreeMap<ClassProtocolKey, Verdict>,
    /// Verdicts for everything from one class.
    pub class_any: BTreeMap<ClassKey, Verdict>,
    /// Verdicts for one port from everybody.
    pub any: BTreeMap<PortKey, Verdict>,
    /// Ordered rule lists.
    pub profile: BTreeMap<IpAddr, ProfileId>,
    /// What happens to the rest.
    pub default: BTreeMap<IpAddr, Verdict>,
}

/// All tables of a node.
#[expect(
    clippy::zero_sized_map_values,
    reason = "sets change by the same code as maps"
)]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// Class of single peer addresses.
    pub peer_class: BTreeMap<IpAddr, ClassId>,
    /// Class of the addresses in disjoint ranges, for those without an entry in `peer_class`.
    pub cidr_class: BTreeMap<AddressRange, ClassId>,
    /// Traffic to local endpoints.
    pub ingress: DirectionTables,
    /// Traffic from local endpoints.
    pub egress: DirectionTables,
    /// Rule lists by id.
    pub profiles: BTreeMap<ProfileId, Arc<Profile>>,
    /// Source checks.
    pub bindings: BTreeMap<Binding, ()>,
    /// Pod CIDRs of this node: an address in one of them that is in no state map is unknown.
    pub pod_networks: BTreeMap<IpNet, ()>,
}

/// What the tables say of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// The endpoint's address is in no state map.
    Unknown,
    /// Decided.
    Decided(Verdict),
}

impl Tables {
    /// The tables of one direction.
    pub fn direction(&self, direction: Direction) -> &DirectionTables {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }

    /// The class of a peer address, by the reading order of the module's documentation.
    pub fn class_of(&self, peer: IpAddr) -> ClassId {
        if let Some(class) = self.peer_class.get(&peer) {
            return *class;
        }
        // They are disjoint: the last one that begins at or before the address holds it, or none does.
        let highest = IpAddr::from([u8::MAX; 16]);
        let before = ..=AddressRange {
            first: peer,
            last: highest,
        };
        self.cidr_class
            .range(before)
            .next_back()
            .filter(|(range, _)| range.contains(&peer))
            .map_or(ClassId::NONE, |(_, class)| *class)
    }

    /// Judges the first packet of a connection at `endpoint`, as the kernel would. `port` is the destination
    /// port; it is not looked at for protocols other than TCP, UDP and SCTP.
    pub fn judge(
        &self,
        direction: Direction,
        endpoint: IpAddr,
        peer: IpAddr,
        protocol: u8,
        port: u16,
    ) -> Judgement {
        let tables = self.direction(direction);
        match tables.state.get(&endpoint) {
            None => return Judgement::Unknown,
            Some(EndpointState::Open) => return Judgement::Decided(Verdict::Allow),
            Some(EndpointState::Restricted) => {}
        }
        let class = self.class_of(peer);
        let transport = Protocol::from_number(protocol).map(|protocol| (protocol, port));
        let verdict = tables
            .look_up(endpoint, class, transport)
            .or_else(|| {
                let profile = self.profiles.get(tables.profile.get(&endpoint)?)?;
                profile.look_up(class, transport)
            })
            .or_else(|| tables.default.get(&endpoint).copied());
        Judgement::Decided(verdict.unwrap_or(Verdict::Deny))
    }
}

impl DirectionTables {
    /// The hash maps, specific before wide.
    fn look_up(
        &self,
        endpoint: IpAddr,
        class: ClassId,
        transport: Option<(Protocol, u16)>,
    ) -> Option<Verdict> {
        let exact = transport.and_then(|(protocol, port)| {
            let exact = self.exact.get(&ExactKey {
                endpoint,
                class,
                protocol,
                port,
            });
            exact.or_else(|| {
                self.class_protocol.get(&ClassProtocolKey {
                    endpoint,
                    class,
                    protocol,
                })
            })
        });
        exact
            .or_else(|| self.class_any.get(&ClassKey { endpoint, class }))
            .or_else(|| {
                let (protocol, port) = transport?;
                self.any.get(&PortKey {
                    endpoint,
                    protocol,
                    port,
                })
            })
            .copied()
    }
}

impl Profile {
    /// The verdict of the first matching rule.
    fn look_up(&self, class: ClassId, transport: Option<(Protocol, u16)>) -> Option<Verdict> {
        let matches = |rule: &&ProfileRule| {
            let class_matches = rule
                .classes
                .as_ref()
                .is_none_or(|classes| classes.binary_search(&class).is_ok());
            let port_matches = rule.ports.as_ref().is_none_or(|ports| {
                transport.is_some_and(|(protocol, port)| {
                    ports.protocol == protocol
                        && ports
                            .ranges
                            .iter()
                            .any(|(first, last)| (*first..=*last).contains(&port))
                })
            });
            class_matches && port_matches
        };
        self.rules.iter().find(matches).map(|rule| rule.verdict)
    }
}

/// Changes of one table: the new value, or `None` for gone.
pub type Changes<K, V> = BTreeMap<K, Option<V>>;

/// Changes of one direction's tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DirectionDelta {
    /// Changes of [`DirectionTables::state`].
    pub state: Changes<IpAddr, EndpointState>,
    /// Changes of [`DirectionTables::exact`].
    pub exact: Changes<ExactKey, Verdict>,
    /// Changes of [`DirectionTables::class_protocol`].
    pub class_protocol: Changes<ClassProtocolKey, Verdict>,
    /// Changes of [`DirectionTables::class_any`].
    pub class_any: Changes<ClassKey, Verdict>,
    /// Changes of [`DirectionTables::any`].
    pub any: Changes<PortKey, Verdict>,
    /// Changes of [`DirectionTables::profile`].
    pub profile: Changes<IpAddr, ProfileId>,
    /// Changes of [`DirectionTables::default`].
    pub default: Changes<IpAddr, Verdict>,
}

/// Changes that take effect together: one batch of the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Phase {
    /// Changes of [`Tables::peer_class`].
    pub peer_class: Changes<IpAddr, ClassId>,
    /// Changes of [`Tables::cidr_class`].
    pub cidr_class: Changes<AddressRange, ClassId>,
    /// Changes of [`Tables::ingress`].
    pub ingress: DirectionDelta,
    /// Changes of [`Tables::egress`].
    pub egress: DirectionDelta,
    /// Changes of [`Tables::profiles`].
    pub profiles: Changes<ProfileId, Arc<Profile>>,
    /// Changes of [`Tables::bindings`].
    pub bindings: Changes<Binding, ()>,
    /// Changes of [`Tables::pod_networks`].
    pub pod_networks: Changes<IpNet, ()>,
}

/// What one flush of the calculation graph changes: batches to be committed in order, each atomic. Between two
/// of them every packet meets either the old verdict or the new one, never a third (edge case 7: a commit is
/// atomic per lookup, not per packet).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// The batches in order; none is empty.
    pub phases: Vec<Phase>,
}

fn apply_changes<K: Ord + Clone, V: Clone>(table: &mut BTreeMap<K, V>, changes: &Changes<K, V>) {
    for (key, value) in changes {
        match value {
            Some(value) => table.insert(key.clone(), value.clone()),
            None => table.remove(key),
        };
    }
}

impl DirectionDelta {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.state.is_empty()
            && self.exact.is_empty()
            && self.class_protocol.is_empty()
            && self.class_any.is_empty()
            && self.any.is_empty()
            && self.profile.is_empty()
            && self.default.is_empty()
    }
}

impl Phase {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.peer_class.is_empty()
            && self.cidr_class.is_empty()
            && self.ingress.is_empty()
            && self.egress.is_empty()
            && self.profiles.is_empty()
            && self.bindings.is_empty()
            && self.pod_networks.is_empty()
    }

    /// The changes of one direction.
    pub fn direction_mut(&mut self, direction: Direction) -> &mut DirectionDelta {
        match direction {
            Direction::Ingress => &mut self.ingress,
            Direction::Egress => &mut self.egress,
        }
    }
}

impl Tables {
    /// Applies one batch.
    pub fn apply(&mut self, phase: &Phase) {
        apply_changes(&mut self.peer_class, &phase.peer_class);
        apply_changes(&mut self.cidr_class, &phase.cidr_class);
        apply_changes(&mut self.profiles, &phase.profiles);
        apply_changes(&mut self.bindings, &phase.bindings);
        apply_changes(&mut self.pod_networks, &phase.pod_networks);
        for (tables, delta) in [
            (&mut self.ingress, &phase.ingress),
            (&mut self.egress, &phase.egress),
        ] {
            apply_changes(&mut tables.state, &delta.state);
            apply_changes(&mut tables.exact, &delta.exact);
            apply_changes(&mut tables.class_protocol, &delta.class_protocol);
            apply_changes(&mut tables.class_any, &delta.class_any);
            apply_changes(&mut tables.any, &delta.any);
            apply_changes(&mut tables.profile, &delta.profile);
            apply_changes(&mut tables.default, &delta.default);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: &str, last: &str) -> AddressRange {
        let ip = |text: &str| text.parse().expect("an address");
        AddressRange::new(ip(first), ip(last)).expect("a range")
    }

    #[test]
    fn a_range_that_is_a_block_is_written_as_one() {
        for block in [
            "10.0.0.0/24",
            "10.0.0.7/32",
            "0.0.0.0/0",
            "::/0",
            "fd00::/127",
        ] {
            let parsed: IpNet = block.parse().expect("a block");
            assert_eq!(AddressRange::from(parsed).to_string(), block);
        }
        for (first, last) in [
            ("10.0.0.1", "10.0.0.2"),
            ("10.0.0.2", "10.0.0.5"),
            ("::1", "::4"),
        ] {
            assert_eq!(range(first, last).to_string(), format!("{first}-{last}"));
        }
    }

    #[test]
    fn a_range_is_of_one_family_and_not_empty() {
        let (low, high): (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        assert_eq!(AddressRange::new(high, low), None);
        assert_eq!(AddressRange::new(low, IpAddr::from([0; 16])), None);
        assert!(range("10.0.0.1", "10.0.0.2").contains(&high));
        assert!(!range("0.0.0.0", "255.255.255.255").contains(&IpAddr::from([0; 16])));
    }

    #[test]
    fn the_class_of_an_address_is_that_of_the_range_that_holds_it() {
        let tables = Tables {
            cidr_class: [
                (range("10.0.0.2", "10.0.0.5"), ClassId(1)),
                (range("10.0.0.6", "10.0.0.6"), ClassId(2)),
                (range("::", "::9"), ClassId(3)),
            ]
            .into(),
            ..Tables::default()
        };
        for (address, class) in [
            ("10.0.0.1", 0),
            ("10.0.0.2", 1),
            ("10.0.0.5", 1),
            ("10.0.0.6", 2),
            ("10.0.0.7", 0),
            ("255.255.255.255", 0),
            ("::", 3),
            ("::9", 3),
            ("::a", 0),
        ] {
            let found = tables.class_of(address.parse().expect("an address"));
            assert_eq!(found, ClassId(class), "{address}");
        }
    }
}
