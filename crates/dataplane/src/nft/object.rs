//! The nouns of nftables that towpath uses, and nothing more.
//!
//! Every type can be said to the kernel (netlink expressions), printed as nft text and as nft JSON.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use smol_str::SmolStr;

use super::text::family_text;

/// Name of a table, chain or set. Invariant: 1..=31 characters of `[a-z0-9_]`, starting with a letter, and no
/// reserved word of nft's grammar. So a name never needs escaping.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(SmolStr);

/// Why a text is no [`Name`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a usable nftables name: 1 to 31 of a-z, 0-9 and _, starting with a letter, no reserved word"
)]
pub struct NameError {
    /// The text.
    pub text: String,
}

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // Words of nft's scanner that look like names of ours (nftables src/scanner.l).
        const RESERVED: [&str; 12] = [
            "fwd", "in", "out", "drop", "accept", "return", "goto", "jump", "map", "set", "limit",
            "log",
        ];
        let allowed = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '_');
        let good = (1..=31).contains(&text.len())
            && text.starts_with(|c: char| c.is_ascii_lowercase())
            && text.chars().all(allowed)
            && !RESERVED.contains(&text);
        if good {
            Ok(Self(text.into()))
        } else {
            Err(NameError {
                text: text.to_owned(),
            })
        }
    }
}

/// Address family of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet,
    /// Frames on a bridge.
    Bridge,
}

/// Flags of a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TableFlags {
    /// Only the socket that made it may change it (kernel 5.12+).
    pub owner: bool,
    /// It outlives its owner, and the next one may adopt it (kernel 6.9+). Never `owner` without this.
    pub persist: bool,
}

/// A table.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Table {
    /// Family.
    pub family: Family,
    /// Name.
    pub name: Name,
}

impl fmt::Display for Table {
    /// As nft names it: `inet towpath`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", family_text(self.family), self.name)
    }
}

/// What a base chain is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChainKind {
    /// `type filter`.
    Filter,
}

/// Netfilter hook of a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hook {
    /// Before routing.
    Prerouting,
    /// To this host.
    Input,
    /// Through this host.
    Forward,
    /// From this host.
    Output,
    /// After routing.
    Postrouting,
}

/// What makes a chain a base chain. Its policy is always `accept`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BaseChain {
    /// Type.
    pub kind: ChainKind,
    /// Hook.
    pub hook: Hook,
    /// Priority; lower runs first.
    pub priority: i32,
}

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Chain {
    /// Name.
    pub name: Name,
    /// Set for a base chain.
    pub base: Option<BaseChain>,
}

/// Type of one field of a set key. Names and ids are nft's (`include/datatype.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FieldType {
    /// `ipv4_addr`, 4 bytes.
    Ipv4Addr,
    /// `ipv6_addr`, 16 bytes.
    Ipv6Addr,
    /// `ether_addr`, 6 bytes.
    EtherAddr,
    /// `ifname`, 16 bytes, padded with zeros.
    InterfaceName,
    /// `inet_proto`, 1 byte.
    InetProto,
    /// `nf_proto`, 1 byte: 2 is IPv4, 10 is IPv6.
    NfProto,
    /// `inet_service`, 2 bytes, network order.
    InetService,
    /// `classid`, 4 bytes, host order: the type of `meta priority`.
    ClassId,
    /// The raw payload of [`Field::Icmpv6Target`], 16 bytes; its values are [`Value::Ipv6`], printed as one number
    /// (`0xfd00...`). nft has no type name for it, so such a set is declared `typeof iifname . @th,64,128`, and
    /// over netlink with the matching `NFTNL_UDATA_SET_KEY_TYPEOF`; its 6-bit type id is 4 (`integer`).
    Icmpv6Target,
}

/// A value of a field.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Value {
    /// `ipv4_addr`.
    Ipv4(Ipv4Addr),
    /// `ipv6_addr`.
    Ipv6(Ipv6Addr),
    /// `ether_addr`.
    Ether([u8; 6]),
    /// `ifname`: 1..=15 bytes, checked by whoever makes it.
    Interface(SmolStr),
    /// One byte: `inet_proto`, ICMP types, `meta nfproto`, `ct direction`.
    U8(u8),
    /// Two bytes, network order on the wire: ports, `EtherType`s, ARP operations.
    U16(u16),
    /// Four bytes, host order: `meta priority`.
    Class(u32),
}

/// Key of a set element: one value per field of the set.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SetKey {
    /// A plain (perhaps concatenated) key.
    Exact(Vec<Value>),
    /// An inclusive range of a one-field interval set. Its single values are ranges too.
    Range(Value, Value),
}

/// What the elements of a map hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MapData {
    /// A verdict.
    Verdict,
    /// A class id.
    ClassId,
}

/// A named set or map.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SetSpec {
    /// Name.
    pub name: Name,
    /// Types of the fields of the key.
    pub key: Vec<FieldType>,
    /// `None`: a set.
    pub data: Option<MapData>,
    /// Elements may be ranges (one-field keys only).
    pub interval: bool,
    /// Elements may end by themselves ([`super::Operation::AddTimedElements`]).
    pub timeout: bool,
    /// Most elements it can hold.
    pub size: u32,
}

/// What an element of a map holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ElementValue {
    /// A verdict.
    Verdict(RuleVerdict),
    /// A class id.
    ClassId(u32),
}

/// An element of a set or map.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Element {
    /// Key.
    pub key: SetKey,
    /// Value, for maps.
    pub value: Option<ElementValue>,
}

/// A verdict statement.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RuleVerdict {
    /// Ends this base chain in favour of the packet.
    Accept,
    /// Ends everything.
    Drop,
    /// Back to the caller.
    Return,
    /// On with what follows: a map element that holds it lets the rest of its rule run, while a miss ends the
    /// rule. Unlike `goto` it is plain data: the kernel does not validate the table for it.
    Continue,
    /// Go there and come back.
    Jump(Name),
    /// Go there and do not come back.
    Goto(Name),
}

/// Something of a packet that can be compared or looked up. The encoder adds the protocol checks that a field
/// implies (as nft does), e.g. `meta nfproto ipv4` for `ip saddr` in an inet table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Field {
    /// `ip saddr`.
    IpSource,
    /// `ip daddr`.
    IpDestination,
    /// `ip6 saddr`.
    Ip6Source,
    /// `ip6 daddr`.
    Ip6Destination,
    /// `meta l4proto`.
    L4Proto,
    /// `meta nfproto`: 2 is IPv4, 10 is IPv6.
    NfProto,
    /// `meta priority`, as a class id.
    Priority,
    /// `th sport`.
    SourcePort,
    /// `th dport`.
    DestinationPort,
    /// `iifname`.
    InputInterface,
    /// `oifname`.
    OutputInterface,
    /// `ct direction`: 0 original, 1 reply.
    CtDirection,
    /// `icmpv6 type`.
    Icmpv6Type,
    /// The target of a neighbour solicitation or advertisement: 16 bytes at offset 8 of the transport header.
    /// Printed as `@th,64,128` (nft 1.0.6 does not know `icmpv6 taddr`), and it implies no protocol check.
    Icmpv6Target,
    /// `ether saddr`.
    EtherSource,
    /// `ether daddr`.
    EtherDestination,
    /// `ether type`.
    EtherType,
    /// `arp operation`.
    ArpOperation,
    /// `arp saddr ether`.
    ArpSenderEther,
    /// `arp saddr ip`.
    ArpSenderIp,
    /// `meta pkttype`: 0 host, 1 broadcast, 2 multicast, 3 other.
    PacketType,
}

/// The right side of a comparison.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum MatchOperand {
    /// One value.
    Value(Value),
    /// An anonymous set of values and inclusive ranges: sorted, disjoint, not empty.
    OneOf(Vec<(Value, Value)>),
    /// An address block: base and prefix length.
    Prefix(Value, u8),
    /// A named set of one field.
    Set(Name),
}

/// A part of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Statement {
    /// Compares one field; the rule goes on when it holds (`negated`: when it does not).
    Match {
        /// Left side.
        field: Field,
        /// `!=`.
        negated: bool,
        /// Right side.
        operand: MatchOperand,
    },
    /// Looks a concatenation up in a named set.
    MatchSet {
        /// The fields, in the order of the set's key.
        fields: Vec<Field>,
        /// `!=`.
        negated: bool,
        /// The set.
        set: Name,
    },
    /// `ct state` has one of these bits.
    CtState {
        /// Any of [`Self::CT_INVALID`], [`Self::CT_ESTABLISHED`], [`Self::CT_RELATED`], [`Self::CT_NEW`],
        /// [`Self::CT_UNTRACKED`].
        any_of: u32,
    },
    /// Looks fields up in a verdict map and follows the element; a miss goes on with the next rule.
    VerdictMap {
        /// The fields, in the order of the map's key.
        fields: Vec<Field>,
        /// The map.
        map: Name,
    },
    /// `meta priority set CLASS`; 0 is `none`.
    SetPriority(u32),
    /// `meta priority set FIELDS map @MAP`; a miss ends the rule.
    SetPriorityFromMap {
        /// The fields, in the order of the map's key.
        fields: Vec<Field>,
        /// The map.
        map: Name,
    },
    /// `counter`.
    Counter,
    /// `limit rate RATE/second burst BURST packets`.
    Limit {
        /// Packets per second.
        rate: u64,
        /// Burst in packets.
        burst: u32,
    },
    /// `log prefix "PREFIX" group GROUP`.
    Log {
        /// Prefix: `[a-z0-9_-]` only, at most 63 characters.
        prefix: Name,
        /// NFLOG group.
        group: u16,
        /// Bytes of the packet that are copied.
        snaplen: u32,
    },
    /// A verdict; last in a rule.
    Verdict(RuleVerdict),
}

impl Statement {
    /// `ct state invalid` (`NF_CT_STATE_INVALID_BIT`).
    pub const CT_INVALID: u32 = 1;
    /// `ct state established`.
    pub const CT_ESTABLISHED: u32 = 2;
    /// `ct state related`.
    pub const CT_RELATED: u32 = 4;
    /// `ct state new`.
    pub const CT_NEW: u32 = 8;
    /// `ct state untracked`.
    pub const CT_UNTRACKED: u32 = 64;
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    /// Its statements in order.
    pub statements: Vec<Statement>,
}
