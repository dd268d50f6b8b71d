//! What the kernel and nft know of fields, field types and values: lengths, ids, places in the packet.

use std::borrow::Cow;

use super::object::{Field, FieldType, Value};
use super::uapi::{expression, userdata};

/// Most bytes of one value.
pub(super) const MAX_VALUE: usize = 16;

/// Bytes of one value as the kernel compares them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Bytes {
    bytes: [u8; MAX_VALUE],
    length: u8,
}

impl Bytes {
    /// The bytes.
    pub(super) fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    /// From at most sixteen bytes.
    pub(super) fn new(value: &[u8]) -> Self {
        let mut bytes = [0; MAX_VALUE];
        bytes[..value.len()].copy_from_slice(value);
        Self {
            bytes,
            length: u8::try_from(value.len()).expect("at most sixteen bytes"),
        }
    }

    /// The next value in network order; `None` after the last one.
    pub(super) fn successor(&self) -> Option<Self> {
        let mut next = *self;
        for byte in next.bytes[..usize::from(self.length)].iter_mut().rev() {
            let (sum, overflow) = byte.overflowing_add(1);
            *byte = sum;
            if !overflow {
                return Some(next);
            }
        }
        None
    }

    /// The value before in network order; `None` before zero.
    pub(super) fn predecessor(&self) -> Option<Self> {
        let mut previous = *self;
        for byte in previous.bytes[..usize::from(self.length)].iter_mut().rev() {
            let (difference, overflow) = byte.overflowing_sub(1);
            *byte = difference;
            if !overflow {
                return Some(previous);
            }
        }
        None
    }

    /// All ones, as long as `self`: the last value.
    pub(super) fn last(&self) -> Self {
        Self::new(&[0xff; MAX_VALUE][..usize::from(self.length)])
    }

    /// A mask as long as `self` whose first `ones` bits are set.
    pub(super) fn mask(&self, ones: u8) -> Self {
        let mut mask = Self {
            bytes: [0; MAX_VALUE],
            length: self.length,
        };
        for bit in 0..usize::from(ones).min(usize::from(self.length) * 8) {
            mask.bytes[bit / 8] |= 0x80 >> (bit % 8);
        }
        mask
    }

    /// The last value whose first `ones` bits are those of `self`.
    pub(super) fn last_of(&self, ones: u8) -> Self {
        let mask = self.mask(ones);
        let mut last = *self;
        for (byte, mask) in last.bytes[..usize::from(self.length)]
            .iter_mut()
            .zip(mask.bytes)
        {
            *byte |= !mask;
        }
        last
    }

    /// Length of the prefix that holds the values from `self` to `last` and no others.
    pub(super) fn prefix_to(&self, last: &Self) -> Option<u8> {
        (0..=self.length * 8)
            .find(|ones| self.and(&self.mask(*ones)) == *self && self.last_of(*ones) == *last)
    }

    /// `self & mask`.
    pub(super) fn and(&self, mask: &Self) -> Self {
        let mut result = *self;
        for (byte, mask) in result.bytes.iter_mut().zip(mask.bytes) {
            *byte &= mask;
        }
        result
    }
}

/// Shape of a value: which variant of [`Value`] it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Ipv4,
    Ipv6,
    Ether,
    Interface,
    U8,
    U16,
    Class,
}

impl Value {
    /// Which variant it is.
    pub(super) fn shape(&self) -> Shape {
        match self {
            Self::Ipv4(_) => Shape::Ipv4,
            Self::Ipv6(_) => Shape::Ipv6,
            Self::Ether(_) => Shape::Ether,
            Self::Interface(_) => Shape::Interface,
            Self::U8(_) => Shape::U8,
            Self::U16(_) => Shape::U16,
            Self::Class(_) => Shape::Class,
        }
    }

    /// The bytes that the kernel compares; `None` for an interface name that is too long.
    pub(super) fn bytes(&self) -> Option<Bytes> {
        Some(match self {
            Self::Ipv4(address) => Bytes::new(&address.octets()),
            Self::Ipv6(address) => Bytes::new(&address.octets()),
            Self::Ether(address) => Bytes::new(address),
            Self::Interface(name) => {
                // IFNAMSIZ is 16 with the zero at the end.
                if name.is_empty() || name.len() >= MAX_VALUE {
                    return None;
                }
                let mut padded = Bytes {
                    bytes: [0; MAX_VALUE],
                    length: 16,
                };
                padded.bytes[..name.len()].copy_from_slice(name.as_bytes());
                padded
            }
            Self::U8(number) => Bytes::new(&[*number]),
            Self::U16(number) => Bytes::new(&number.to_be_bytes()),
            Self::Class(class) => Bytes::new(&class.to_ne_bytes()),
        })
    }
}

impl Value {
    /// The value with all bits after the first `length` ones cleared.
    pub(super) fn masked(&self, length: u8) -> Self {
        let masked = self.bytes().map(|bytes| bytes.and(&bytes.mask(length)));
        masked
            .and_then(|bytes| self.shape().value(bytes.as_slice()))
            .unwrap_or_else(|| self.clone())
    }
}

impl Shape {
    /// Bytes of such a value.
    pub(super) fn length(self) -> usize {
        match self {
            Self::Ipv4 | Self::Class => 4,
            Self::Ipv6 | Self::Interface => 16,
            Self::Ether => 6,
            Self::U8 => 1,
            Self::U16 => 2,
        }
    }

    /// The value that these bytes mean; `None` when the length is wrong or a name is no text.
    pub(super) fn value(self, bytes: &[u8]) -> Option<Value> {
        Some(match self {
            Self::Ipv4 => Value::Ipv4(<[u8; 4]>::try_from(bytes).ok()?.into()),
            Self::Ipv6 => Value::Ipv6(<[u8; 16]>::try_from(bytes).ok()?.into()),
            Self::Ether => Value::Ether(bytes.try_into().ok()?),
            Self::Interface => {
                let end = bytes.iter().position(|byte| *byte == 0)?;
                Value::Interface(std::str::from_utf8(&bytes[..end]).ok()?.into())
            }
            Self::U8 => Value::U8(<[u8; 1]>::try_from(bytes).ok()?[0]),
            Self::U16 => Value::U16(u16::from_be_bytes(bytes.try_into().ok()?)),
            Self::Class => Value::Class(u32::from_ne_bytes(bytes.try_into().ok()?)),
        })
    }

    /// Joins neighbours of a list that has ranges, as nft does; a list of single values stays as it is.
    pub(super) fn join(self, ranges: &[(Value, Value)]) -> Cow<'_, [(Value, Value)]> {
        if !self.is_ordered() || ranges.iter().all(|(first, last)| first == last) {
            return Cow::Borrowed(ranges);
        }
        let mut joined = ranges.to_vec();
        joined.dedup_by(|next, previous| {
            let following = previous.1.bytes().and_then(|bytes| bytes.successor());
            let joins = following.is_some() && following == next.0.bytes();
            if joins {
                previous.1 = next.1.clone();
            }
            joins
        });
        Cow::Owned(joined)
    }

    /// Whether values in the order of their bytes are in the order of their numbers.
    pub(super) fn is_ordered(self) -> bool {
        !matches!(self, Self::Class | Self::Interface)
    }
}

impl FieldType {
    /// All of them.
    pub(super) const ALL: [Self; 9] = [
        Self::Ipv4Addr,
        Self::Ipv6Addr,
        Self::EtherAddr,
        Self::InterfaceName,
        Self::InetProto,
        Self::NfProto,
        Self::InetService,
        Self::ClassId,
        Self::Icmpv6Target,
    ];

    /// Shape of its values.
    pub(super) fn shape(self) -> Shape {
        match self {
            Self::Ipv4Addr => Shape::Ipv4,
            Self::Ipv6Addr | Self::Icmpv6Target => Shape::Ipv6,
            Self::EtherAddr => Shape::Ether,
            Self::InterfaceName => Shape::Interface,
            Self::InetProto | Self::NfProto => Shape::U8,
            Self::InetService => Shape::U16,
            Self::ClassId => Shape::Class,
        }
    }

    /// nft's number for it (`enum datatypes`).
    pub(super) fn id(self) -> u32 {
        match self {
            Self::Ipv4Addr => 7,
            Self::Ipv6Addr => 8,
            Self::EtherAddr => 9,
            Self::InterfaceName => 41,
            Self::InetProto => 12,
            Self::NfProto => 2,
            Self::InetService => 13,
            Self::ClassId => 23,
            Self::Icmpv6Target => 4,
        }
    }

    /// nft's name for it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ipv4Addr => "ipv4_addr",
            Self::Ipv6Addr => "ipv6_addr",
            Self::EtherAddr => "ether_addr",
            Self::InterfaceName => "ifname",
            Self::InetProto => "inet_proto",
            Self::NfProto => "nf_proto",
            Self::InetService => "inet_service",
            Self::ClassId => "classid",
            Self::Icmpv6Target => "integer",
        }
    }

    /// A field of this type: how nft declares a set by `typeof`.
    pub(super) fn example(self) -> Field {
        match self {
            Self::Ipv4Addr => Field::IpSource,
            Self::Ipv6Addr => Field::Ip6Source,
            Self::EtherAddr => Field::EtherSource,
            Self::InterfaceName => Field::InputInterface,
            Self::InetProto => Field::L4Proto,
            Self::NfProto => Field::NfProto,
            Self::InetService => Field::DestinationPort,
            Self::ClassId => Field::Priority,
            Self::Icmpv6Target => Field::Icmpv6Target,
        }
    }

    /// How nft remembers [`Self::example`] in the user data of a set: the kind of expression and numbers that
    /// describe it (`proto_desc_id` and header field, or the meta key; base, offset and length of raw payload).
    pub(super) fn typeof_data(self) -> (u32, &'static [u32]) {
        match self {
            Self::Ipv4Addr => (userdata::EXPRESSION_PAYLOAD, &[12, 11]),
            Self::Ipv6Addr => (userdata::EXPRESSION_PAYLOAD, &[13, 8]),
            Self::EtherAddr => (userdata::EXPRESSION_PAYLOAD, &[17, 2]),
            Self::InterfaceName => (userdata::EXPRESSION_META, &[expression::META_IIFNAME]),
            Self::InetProto => (userdata::EXPRESSION_META, &[expression::META_L4PROTO]),
            Self::NfProto => (userdata::EXPRESSION_META, &[expression::META_NFPROTO]),
            Self::InetService => (userdata::EXPRESSION_PAYLOAD, &[11, 2]),
            Self::ClassId => (userdata::EXPRESSION_META, &[expression::META_PRIORITY]),
            // nft counts payload bases from the link layer as 1.
            Self::Icmpv6Target => (userdata::EXPRESSION_PAYLOAD, &[0, 0, 3, 64, 128]),
        }
    }

    /// Byte order in which nft keeps values.
    pub(super) fn byte_order(self) -> u32 {
        match self {
            Self::InterfaceName | Self::NfProto | Self::ClassId => userdata::ORDER_HOST,
            _ => userdata::ORDER_BIG,
        }
    }
}

/// How the kernel loads a field into a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Load {
    /// From the packet.
    Payload { base: u32, offset: u32 },
    /// From the packet's description.
    Meta(u32),
    /// From its connection.
    Ct(u32),
}

/// A network protocol that a field implies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Network {
    Ip,
    Ip6,
    Arp,
}

impl Network {
    /// Its `EtherType`.
    pub(super) fn ether_type(self) -> u16 {
        match self {
            Self::Ip => 0x0800,
            Self::Ip6 => 0x86dd,
            Self::Arp => 0x0806,
        }
    }

    /// The protocol of an `EtherType`.
    pub(super) fn from_ether_type(number: u16) -> Option<Self> {
        [Self::Ip, Self::Ip6, Self::Arp]
            .into_iter()
            .find(|network| network.ether_type() == number)
    }
}

/// `IPPROTO_ICMPV6`.
pub(super) const ICMPV6: u8 = 58;

/// What is known of a field.
#[derive(Clone, Copy, Debug)]
pub(super) struct FieldFacts {
    /// nft text.
    pub(super) text: &'static str,
    /// Where it comes from.
    pub(super) load: Load,
    /// Shape of its values.
    pub(super) shape: Shape,
    /// nft's number for the type of its values.
    pub(super) type_id: u32,
}

impl Field {
    /// All of them.
    pub(super) const ALL: [Self; 21] = [
        Self::IpSource,
        Self::IpDestination,
        Self::Ip6Source,
        Self::Ip6Destination,
        Self::L4Proto,
        Self::NfProto,
        Self::Priority,
        Self::SourcePort,
        Self::DestinationPort,
        Self::InputInterface,
        Self::OutputInterface,
        Self::CtDirection,
        Self::Icmpv6Type,
        Self::Icmpv6Target,
        Self::EtherSource,
        Self::EtherDestination,
        Self::EtherType,
        Self::ArpOperation,
        Self::ArpSenderEther,
        Self::ArpSenderIp,
        Self::PacketType,
    ];

    /// The table of fields.
    pub(super) fn facts(self) -> FieldFacts {
        use expression::{
            BASE_LINK, BASE_NETWORK, BASE_TRANSPORT, CT_DIRECTION, META_IIFNAME, META_L4PROTO,
            META_NFPROTO, META_OIFNAME, META_PKTTYPE, META_PRIORITY,
        };
        let at = |base, offset| Load::Payload { base, offset };
        let (text, load, shape, type_id) = match self {
            Self::IpSource => ("ip saddr", at(BASE_NETWORK, 12), Shape::Ipv4, 7),
            Self::IpDestination => ("ip daddr", at(BASE_NETWORK, 16), Shape::Ipv4, 7),
            Self::Ip6Source => ("ip6 saddr", at(BASE_NETWORK, 8), Shape::Ipv6, 8),
            Self::Ip6Destination => ("ip6 daddr", at(BASE_NETWORK, 24), Shape::Ipv6, 8),
            Self::L4Proto => ("meta l4proto", Load::Meta(META_L4PROTO), Shape::U8, 12),
            Self::NfProto => ("meta nfproto", Load::Meta(META_NFPROTO), Shape::U8, 2),
            Self::Priority => ("meta priority", Load::Meta(META_PRIORITY), Shape::Class, 23),
            Self::SourcePort => ("th sport", at(BASE_TRANSPORT, 0), Shape::U16, 13),
            Self::DestinationPort => ("th dport", at(BASE_TRANSPORT, 2), Shape::U16, 13),
            Self::InputInterface => ("iifname", Load::Meta(META_IIFNAME), Shape::Interface, 41),
            Self::OutputInterface => ("oifname", Load::Meta(META_OIFNAME), Shape::Interface, 41),
            Self::CtDirection => ("ct direction", Load::Ct(CT_DIRECTION), Shape::U8, 27),
            Self::Icmpv6Type => ("icmpv6 type", at(BASE_TRANSPORT, 0), Shape::U8, 29),
            Self::Icmpv6Target => ("@th,64,128", at(BASE_TRANSPORT, 8), Shape::Ipv6, 4),
            Self::EtherSource => ("ether saddr", at(BASE_LINK, 6), Shape::Ether, 9),
            Self::EtherDestination => ("ether daddr", at(BASE_LINK, 0), Shape::Ether, 9),
            Self::EtherType => ("ether type", at(BASE_LINK, 12), Shape::U16, 10),
            Self::ArpOperation => ("arp operation", at(BASE_NETWORK, 6), Shape::U16, 11),
            Self::ArpSenderEther => ("arp saddr ether", at(BASE_NETWORK, 8), Shape::Ether, 9),
            Self::ArpSenderIp => ("arp saddr ip", at(BASE_NETWORK, 14), Shape::Ipv4, 7),
            Self::PacketType => ("meta pkttype", Load::Meta(META_PKTTYPE), Shape::U8, 31),
        };
        FieldFacts {
            text,
            load,
            shape,
            type_id,
        }
    }

    /// The network protocol whose header it is in.
    pub(super) fn network(self) -> Option<Network> {
        match self {
            Self::IpSource | Self::IpDestination => Some(Network::Ip),
            Self::Ip6Source | Self::Ip6Destination | Self::Icmpv6Type => Some(Network::Ip6),
            Self::ArpOperation | Self::ArpSenderEther | Self::ArpSenderIp => Some(Network::Arp),
            _ => None,
        }
    }
}
