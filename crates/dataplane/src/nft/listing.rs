//! nft's JSON listing of a set, back into our nouns.
//!
//! The listing must be numeric (`nft -j -n`). What we could not have made gives `None`.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde_json::Value as Json;

use super::field::Shape;
use super::object::{
    Element, ElementValue, FieldType, MapData, RuleVerdict, SetKey, SetSpec, Value,
};
use super::symbols::numbered;

/// Declarations and elements of the sets and maps in a listing, with the family and the table of each.
pub(super) fn sets(document: &Json) -> Vec<(&str, &str, SetSpec, &Json)> {
    let objects = document["nftables"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    objects
        .iter()
        .filter_map(|object| object.get("set").or_else(|| object.get("map")))
        .filter_map(|set| {
            Some((
                set["family"].as_str()?,
                set["table"].as_str()?,
                spec(set)?,
                &set["elem"],
            ))
        })
        .collect()
}

fn spec(set: &Json) -> Option<SetSpec> {
    let field = |name: &Json| {
        let name = name.as_str()?;
        FieldType::ALL
            .into_iter()
            .find(|field| field.name() == name)
    };
    let key = match &set["type"] {
        Json::Array(names) => names.iter().map(field).collect::<Option<Vec<_>>>()?,
        name => vec![field(name)?],
    };
    let data = match set.get("map").map(Json::as_str) {
        None => None,
        Some(Some("verdict")) => Some(MapData::Verdict),
        Some(Some("classid")) => Some(MapData::ClassId),
        Some(_) => return None,
    };
    let flags = set["flags"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    Some(SetSpec {
        name: set["name"].as_str()?.parse().ok()?,
        key,
        data,
        interval: flags.iter().any(|flag| flag == "interval"),
        timeout: flags.iter().any(|flag| flag == "timeout"),
        size: u32::try_from(set["size"].as_u64().unwrap_or(0)).ok()?,
    })
}

/// The elements of a set, sorted by key.
pub(super) fn elements(spec: &SetSpec, list: &Json) -> Option<Vec<Element>> {
    let list = match list {
        Json::Null => &[][..],
        list => list.as_array()?,
    };
    let mut elements = list
        .iter()
        .map(|element| decode_element(spec, element))
        .collect::<Option<Vec<_>>>()?;
    elements.sort_unstable_by(|left, right| left.key.cmp(&right.key));
    Some(elements)
}

fn decode_element(spec: &SetSpec, element: &Json) -> Option<Element> {
    let (key, value) = match (spec.data, element.as_array().map(Vec::as_slice)) {
        (None, _) => (element, None),
        (Some(MapData::ClassId), Some([key, class])) => (
            key,
            Some(ElementValue::ClassId(class_number(class.as_str()?)?)),
        ),
        (Some(MapData::Verdict), Some([key, verdict])) => {
            (key, Some(ElementValue::Verdict(decode_verdict(verdict)?)))
        }
        _ => return None,
    };
    // An element that ends by itself is written with its time.
    let key = key.get("elem").map_or(key, |timed| &timed["val"]);
    let key = match (spec.interval, spec.key.as_slice()) {
        (true, [field]) => decode_range(*field, key)?,
        (false, [field]) => SetKey::Exact(vec![decode_value(*field, key)?]),
        (false, fields) => {
            let values = key["concat"].as_array()?;
            if values.len() != fields.len() {
                return None;
            }
            let values = fields
                .iter()
                .zip(values)
                .map(|(field, value)| decode_value(*field, value));
            SetKey::Exact(values.collect::<Option<Vec<_>>>()?)
        }
        (true, _) => return None,
    };
    Some(Element { key, value })
}

fn decode_range(field: FieldType, key: &Json) -> Option<SetKey> {
    if let Some([first, last]) = key["range"].as_array().map(Vec::as_slice) {
        return Some(SetKey::Range(
            decode_value(field, first)?,
            decode_value(field, last)?,
        ));
    }
    if let Some(prefix) = key.get("prefix") {
        let base = decode_value(field, &prefix["addr"])?;
        let length = u8::try_from(prefix["len"].as_u64()?).ok()?;
        let bytes = base.bytes()?;
        let last = bytes.last_of(length);
        return Some(SetKey::Range(base, field.shape().value(last.as_slice())?));
    }
    let only = decode_value(field, key)?;
    Some(SetKey::Range(only.clone(), only))
}

fn decode_value(field: FieldType, value: &Json) -> Option<Value> {
    let number = || u16::try_from(value.as_u64()?).ok();
    Some(match field.shape() {
        Shape::Ipv4 => Value::Ipv4(value.as_str()?.parse::<Ipv4Addr>().ok()?),
        Shape::Ipv6 if field == FieldType::Icmpv6Target => Value::Ipv6(raw_address(value)?),
        Shape::Ipv6 => Value::Ipv6(value.as_str()?.parse::<Ipv6Addr>().ok()?),
        Shape::Ether => Value::Ether(hardware_address(value.as_str()?)?),
        Shape::Interface => Value::Interface(value.as_str()?.into()),
        // nft writes this type by name, numeric or not.
        Shape::U8 if field == FieldType::NfProto => match value.as_str() {
            Some(name) => Value::U8(u8::try_from(numbered(field.id(), name)?).ok()?),
            None => Value::U8(u8::try_from(number()?).ok()?),
        },
        Shape::U8 => Value::U8(u8::try_from(number()?).ok()?),
        Shape::U16 => Value::U16(number()?),
        Shape::Class => Value::Class(class_number(value.as_str()?)?),
    })
}

/// Raw payload is a number where it fits one, else hexadecimal text.
fn raw_address(value: &Json) -> Option<Ipv6Addr> {
    let bits = match value {
        Json::Number(number) => u128::from(number.as_u64()?),
        text => u128::from_str_radix(text.as_str()?.strip_prefix("0x")?, 16).ok()?,
    };
    Some(Ipv6Addr::from_bits(bits))
}

fn hardware_address(text: &str) -> Option<[u8; 6]> {
    let bytes: Vec<u8> = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).ok())
        .collect::<Option<_>>()?;
    bytes.try_into().ok()
}

fn class_number(text: &str) -> Option<u32> {
    match text {
        "none" => Some(0),
        "root" => Some(u32::MAX),
        text => {
            let (high, low) = text.split_once(':')?;
            let half = |text| u16::from_str_radix(text, 16).ok().map(u32::from);
            Some(half(high)? << 16 | half(low)?)
        }
    }
}

fn decode_verdict(verdict: &Json) -> Option<RuleVerdict> {
    let (word, target) = verdict.as_object()?.iter().next()?;
    let target = || target["target"].as_str()?.parse().ok();
    Some(match word.as_str() {
        "accept" => RuleVerdict::Accept,
        "drop" => RuleVerdict::Drop,
        "return" => RuleVerdict::Return,
        "continue" => RuleVerdict::Continue,
        "jump" => RuleVerdict::Jump(target()?),
        "goto" => RuleVerdict::Goto(target()?),
        _ => return None,
    })
}
