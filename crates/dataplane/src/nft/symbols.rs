//! How nft writes values: symbols, class ids, names between quotes. Text and JSON share it.

use super::field::{Bytes, Shape};
use super::object::{Field, FieldType, Statement, Value};

/// Names of connection states, in the order in which nft lists them.
pub(super) const CT_STATES: [(u32, &str); 5] = [
    (Statement::CT_INVALID, "invalid"),
    (Statement::CT_ESTABLISHED, "established"),
    (Statement::CT_RELATED, "related"),
    (Statement::CT_NEW, "new"),
    (Statement::CT_UNTRACKED, "untracked"),
];

/// nft's names of numbers: data type, number, name.
const SYMBOLS: [(u32, u16, &str); 31] = [
    // `nf_proto`
    (2, 2, "ipv4"),
    (2, 10, "ipv6"),
    // `ether_type`
    (10, 0x0800, "ip"),
    (10, 0x0806, "arp"),
    (10, 0x86dd, "ip6"),
    // `arp_op`
    (11, 1, "request"),
    (11, 2, "reply"),
    // `inet_proto`
    (12, 1, "icmp"),
    (12, 6, "tcp"),
    (12, 17, "udp"),
    (12, 58, "ipv6-icmp"),
    (12, 132, "sctp"),
    // `ct_dir`
    (27, 0, "original"),
    (27, 1, "reply"),
    // `icmpv6_type`
    (29, 1, "destination-unreachable"),
    (29, 2, "packet-too-big"),
    (29, 128, "echo-request"),
    (29, 129, "echo-reply"),
    (29, 130, "mld-listener-query"),
    (29, 131, "mld-listener-report"),
    (29, 132, "mld-listener-done"),
    (29, 133, "nd-router-solicit"),
    (29, 134, "nd-router-advert"),
    (29, 135, "nd-neighbor-solicit"),
    (29, 136, "nd-neighbor-advert"),
    (29, 137, "nd-redirect"),
    (29, 143, "mld2-listener-report"),
    // `pkt_type`
    (31, 0, "host"),
    (31, 1, "broadcast"),
    (31, 2, "multicast"),
    (31, 3, "other"),
];

/// nft's name for a number of a data type, when it has one.
pub(super) fn symbol(type_id: u32, number: u16) -> Option<&'static str> {
    let known = SYMBOLS
        .iter()
        .find(|(of, value, _)| (*of, *value) == (type_id, number));
    known.map(|(_, _, name)| *name)
}

/// The number that nft has a name for.
pub(super) fn numbered(type_id: u32, name: &str) -> Option<u16> {
    let known = SYMBOLS
        .iter()
        .find(|(of, _, known)| (*of, *known) == (type_id, name));
    known.map(|(_, number, _)| *number)
}

/// A class id as nft writes it: two halves in hexadecimal.
pub(super) fn class_text(class: u32) -> String {
    match class {
        0 => "none".to_owned(),
        u32::MAX => "root".to_owned(),
        class => format!("{:x}:{:x}", class >> 16, class & 0xffff),
    }
}

/// Whether nft's grammar can hold the name between quotes: a star at the end would match more than this name.
pub(super) fn is_printable(interface: &str) -> bool {
    !interface.is_empty()
        // nft's JSON takes a word with this mark for the name of a set.
        && !interface.starts_with('@')
        && interface.chars().all(|c| c.is_ascii_graphic() && !matches!(c, '"' | '*' | '\\'))
}

/// A value of a data type; `quote` interface names for the nft language.
pub(super) fn value_text(type_id: u32, value: &Value, quote: bool) -> String {
    match value {
        Value::Ipv4(address) => address.to_string(),
        // `integer`: raw payload.
        Value::Ipv6(address) if type_id == FieldType::Icmpv6Target.id() => {
            format!("{:#x}", address.to_bits())
        }
        Value::Ipv6(address) => address.to_string(),
        Value::Ether(bytes) => bytes.map(|byte| format!("{byte:02x}")).join(":"),
        Value::Interface(name) if quote => format!("\"{}\"", name.escape_debug()),
        Value::Interface(name) => name.to_string(),
        Value::U8(number) => number_text(type_id, u16::from(*number)),
        Value::U16(number) => number_text(type_id, *number),
        Value::Class(class) => class_text(*class),
    }
}

/// nft does not take names as ends of a range; no type, no name.
pub(super) fn range_type(type_id: u32) -> u32 {
    if type_id == FieldType::Icmpv6Target.id() {
        type_id
    } else {
        0
    }
}

fn number_text(type_id: u32, number: u16) -> String {
    match symbol(type_id, number) {
        Some(symbol) => symbol.to_owned(),
        None if type_id == Field::EtherType.facts().type_id => format!("{number:#06x}"),
        None => number.to_string(),
    }
}

/// The data type of the value at a position of a key whose set is not known.
fn usual_type(value: &Value) -> FieldType {
    match value.shape() {
        Shape::Ipv4 => FieldType::Ipv4Addr,
        Shape::Ipv6 => FieldType::Ipv6Addr,
        Shape::Ether => FieldType::EtherAddr,
        Shape::Interface => FieldType::InterfaceName,
        Shape::U8 => FieldType::InetProto,
        Shape::U16 => FieldType::InetService,
        Shape::Class => FieldType::ClassId,
    }
}

/// The data types of the values of a key.
pub(super) fn key_types(known: Option<&Vec<FieldType>>, values: &[Value]) -> Vec<FieldType> {
    match known {
        Some(types) if types.len() == values.len() => types.clone(),
        _ => values.iter().map(usual_type).collect(),
    }
}

/// The mask of a prefix of a hardware address.
pub(super) fn ether_mask(length: u8) -> Value {
    let mask = Bytes::new(&[0; 6]).mask(length);
    Shape::Ether.value(mask.as_slice()).expect("six bytes")
}
