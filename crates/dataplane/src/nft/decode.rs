//! The kernel's messages back into our nouns.
//!
//! What we could not have made (a set of another type, a foreign expression) decodes to `None`: our tables are ours
//! alone, and whoever compares sees that something is missing. No length or number in a message is trusted.

use super::batch::NFGENMSG;
use super::decode_rule::AnonymousSet;
use super::encode::hook_number;
use super::field::Bytes;
use super::object::{
    BaseChain, Chain, ChainKind, Element, ElementValue, Family, FieldType, Hook, MapData, Name,
    RuleVerdict, SetKey, SetSpec, Table, TableFlags, Value,
};
use super::read_back::TableState;
use super::uapi::{
    LIST_ELEM, NFNL_SUBSYS_NFTABLES, NFPROTO_BRIDGE, NFPROTO_INET, chain, data, element,
    generation, message, rule, set, table,
};
use crate::link::wire::{Attributes, Message, array_at, text};

/// A decoded message.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Decoded {
    /// A table, and whether it is dormant.
    Table(Table, TableState),
    /// A chain of a table.
    Chain(Table, Chain),
    /// A chain that we could not have made, by name.
    ForeignChain(Table, String),
    /// A named set of a table.
    Set(Table, SetSpec),
    /// An anonymous set of a table, by name, and its handle.
    AnonymousSet(Table, String, u64),
    /// Some elements of a set; ranges come as two.
    Elements(Vec<RawElement>),
    /// A rule: its table, the name of its chain, its expression list.
    Rule(Table, String, Vec<u8>),
}

/// An element as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RawElement {
    key: Vec<u8>,
    value: Option<ElementValue>,
    is_end: bool,
}

/// Decodes a message about an object.
pub(super) fn message(received: &Message<'_>) -> Option<Decoded> {
    let [subsystem, kind] = received.kind.to_be_bytes();
    if u16::from(subsystem) != NFNL_SUBSYS_NFTABLES {
        return None;
    }
    let family = family(received)?;
    let attributes = Attributes(received.payload.get(NFGENMSG..)?);
    match kind {
        message::NEWTABLE => decode_table(family, attributes),
        message::NEWCHAIN => {
            decode_chain(family, &attributes).or_else(|| foreign_chain(family, &attributes))
        }
        message::NEWSET => {
            decode_set(family, &attributes).or_else(|| unnamed_set(family, &attributes))
        }
        message::NEWSETELEM | message::DELSETELEM => decode_elements(attributes),
        message::NEWRULE => raw_rule(family, attributes),
        _ => None,
    }
}

/// The number in a generation message.
pub(super) fn generation(attributes: Attributes<'_>) -> Option<u32> {
    be32(find(attributes, generation::ID)?)
}

/// The number in a generation message, and the thread that committed.
pub(super) fn generation_and_thread(attributes: &Attributes<'_>) -> Option<(u32, u32)> {
    Some((
        generation(attributes.clone())?,
        be32(find(attributes.clone(), generation::THREAD)?)?,
    ))
}

/// The table that a message is about; the first attribute of all kinds of objects is its name.
pub(super) fn touched_table(received: &Message<'_>) -> Option<Table> {
    let family = family(received)?;
    let attributes = Attributes(received.payload.get(NFGENMSG..)?);
    Some(Table {
        family,
        name: name(find(attributes, table::NAME)?)?,
    })
}

fn family(received: &Message<'_>) -> Option<Family> {
    match *received.payload.first()? {
        NFPROTO_INET => Some(Family::Inet),
        NFPROTO_BRIDGE => Some(Family::Bridge),
        _ => None,
    }
}

fn decode_table(family: Family, attributes: Attributes<'_>) -> Option<Decoded> {
    let name = name(find(attributes.clone(), table::NAME)?)?;
    let flags = be32(find(attributes.clone(), table::FLAGS)?)?;
    let state = TableState {
        flags: TableFlags {
            owner: flags & table::F_OWNER != 0,
            persist: flags & table::F_PERSIST != 0,
        },
        owner: find(attributes, table::OWNER).and_then(be32),
        is_dormant: flags & table::F_DORMANT != 0,
    };
    Some(Decoded::Table(Table { family, name }, state))
}

fn decode_chain(family: Family, attributes: &Attributes<'_>) -> Option<Decoded> {
    let of = name(find(attributes.clone(), chain::TABLE)?)?;
    let chain_name = name(find(attributes.clone(), chain::NAME)?)?;
    let base = match find(attributes.clone(), chain::HOOK) {
        None => None,
        Some(hook) => {
            let is_ours = text(find(attributes.clone(), chain::TYPE)?) == "filter"
                && be32(find(attributes.clone(), chain::POLICY)?)? == chain::ACCEPT;
            Some(is_ours.then(|| decode_hook(Attributes(hook)))??)
        }
    };
    Some(Decoded::Chain(
        Table { family, name: of },
        Chain {
            name: chain_name,
            base,
        },
    ))
}

fn foreign_chain(family: Family, attributes: &Attributes<'_>) -> Option<Decoded> {
    let of = name(find(attributes.clone(), chain::TABLE)?)?;
    let name = text(find(attributes.clone(), chain::NAME)?).into_owned();
    Some(Decoded::ForeignChain(Table { family, name: of }, name))
}

fn decode_hook(attributes: Attributes<'_>) -> Option<BaseChain> {
    let number = be32(find(attributes.clone(), chain::HOOK_NUMBER)?)?;
    let hooks = [
        Hook::Prerouting,
        Hook::Input,
        Hook::Forward,
        Hook::Output,
        Hook::Postrouting,
    ];
    Some(BaseChain {
        kind: ChainKind::Filter,
        hook: hooks
            .into_iter()
            .find(|hook| hook_number(*hook) == number)?,
        priority: be32(find(attributes, chain::HOOK_PRIORITY)?)?.cast_signed(),
    })
}

fn decode_set(family: Family, attributes: &Attributes<'_>) -> Option<Decoded> {
    let number = |kind| be32(find(attributes.clone(), kind)?);
    let of = name(find(attributes.clone(), set::TABLE)?)?;
    let flags = number(set::FLAGS).unwrap_or(0);
    if flags & !(set::F_INTERVAL | set::F_MAP | set::F_TIMEOUT) != 0 {
        return None;
    }
    let data = match (flags & set::F_MAP != 0, number(set::DATA_TYPE)) {
        (false, _) => None,
        (true, Some(set::DATA_VERDICT)) => Some(MapData::Verdict),
        (true, Some(kind)) if kind == FieldType::ClassId.id() => Some(MapData::ClassId),
        (true, _) => return None,
    };
    let size = find(attributes.clone(), set::DESC)
        .and_then(|desc| be32(find(Attributes(desc), set::DESC_SIZE)?))
        .unwrap_or(0);
    let spec = SetSpec {
        name: name(find(attributes.clone(), set::NAME)?)?,
        key: key_fields(number(set::KEY_TYPE)?)?,
        data,
        interval: flags & set::F_INTERVAL != 0,
        timeout: flags & set::F_TIMEOUT != 0,
        size,
    };
    Some(Decoded::Set(Table { family, name: of }, spec))
}

fn unnamed_set(family: Family, attributes: &Attributes<'_>) -> Option<Decoded> {
    let of = name(find(attributes.clone(), set::TABLE)?)?;
    let name = text(find(attributes.clone(), set::NAME)?).into_owned();
    let handle = be64(find(attributes.clone(), set::HANDLE)?)?;
    Some(Decoded::AnonymousSet(
        Table { family, name: of },
        name,
        handle,
    ))
}

/// The fields of a key from nft's type number.
fn key_fields(mut number: u32) -> Option<Vec<FieldType>> {
    let mut fields = Vec::new();
    while number != 0 {
        let id = number & ((1 << set::TYPE_BITS) - 1);
        fields.push(FieldType::ALL.into_iter().find(|field| field.id() == id)?);
        number >>= set::TYPE_BITS;
    }
    fields.reverse();
    (!fields.is_empty()).then_some(fields)
}

fn decode_elements(attributes: Attributes<'_>) -> Option<Decoded> {
    let list = find(attributes, element::LIST_ELEMENTS).unwrap_or_default();
    let elements: Option<Vec<RawElement>> = Attributes(list)
        .filter(|(kind, _)| *kind == LIST_ELEM)
        .map(|(_, attributes)| raw_element(Attributes(attributes)))
        .collect();
    Some(Decoded::Elements(elements?))
}

fn raw_rule(family: Family, attributes: Attributes<'_>) -> Option<Decoded> {
    let of = name(find(attributes.clone(), rule::TABLE)?)?;
    let chain = text(find(attributes.clone(), rule::CHAIN)?).into_owned();
    let list = find(attributes, rule::EXPRESSIONS).unwrap_or_default();
    Some(Decoded::Rule(
        Table { family, name: of },
        chain,
        list.to_vec(),
    ))
}

fn raw_element(attributes: Attributes<'_>) -> Option<RawElement> {
    let key = find(attributes.clone(), element::KEY)?;
    let key = find(Attributes(key), data::VALUE)?.to_vec();
    let flags = match find(attributes.clone(), element::FLAGS) {
        None => 0,
        Some(flags) => be32(flags)?,
    };
    let value = match find(attributes, element::DATA) {
        None => None,
        Some(value) => Some(element_value(Attributes(value))?),
    };
    Some(RawElement {
        key,
        value,
        is_end: flags & element::F_INTERVAL_END != 0,
    })
}

fn element_value(mut attributes: Attributes<'_>) -> Option<ElementValue> {
    match attributes.next()? {
        (data::VALUE, bytes) => Some(ElementValue::ClassId(u32::from_ne_bytes(
            bytes.try_into().ok()?,
        ))),
        (data::VERDICT, attributes) => Some(ElementValue::Verdict(decode_verdict(Attributes(
            attributes,
        ))?)),
        _ => None,
    }
}

/// A verdict with its chain.
pub(super) fn decode_verdict(attributes: Attributes<'_>) -> Option<RuleVerdict> {
    let code = be32(find(attributes.clone(), data::VERDICT_CODE)?)?.cast_signed();
    let chain = || name(find(attributes, data::VERDICT_CHAIN)?);
    Some(match code {
        data::ACCEPT => RuleVerdict::Accept,
        data::DROP => RuleVerdict::Drop,
        data::RETURN => RuleVerdict::Return,
        data::CONTINUE => RuleVerdict::Continue,
        data::JUMP => RuleVerdict::Jump(chain()?),
        data::GOTO => RuleVerdict::Goto(chain()?),
        _ => return None,
    })
}

/// The elements of a set, sorted by key. `None` when one is not of the set's type.
pub(super) fn elements(
    spec: &SetSpec,
    raw: impl Iterator<Item = RawElement>,
) -> Option<Vec<Element>> {
    let mut elements = match (spec.interval, spec.key.as_slice()) {
        (true, [field]) => ranges(*field, raw)?,
        (true, _) => return None,
        (false, fields) => raw
            .map(|raw| {
                Some(Element {
                    key: SetKey::Exact(exact_key(fields, &raw.key)?),
                    value: raw.value,
                })
            })
            .collect::<Option<Vec<_>>>()?,
    };
    elements.sort_unstable_by(|left, right| left.key.cmp(&right.key));
    Some(elements)
}

fn exact_key(fields: &[FieldType], mut bytes: &[u8]) -> Option<Vec<Value>> {
    let mut values = Vec::with_capacity(fields.len());
    for field in fields {
        let length = field.shape().length();
        values.push(field.shape().value(bytes.get(..length)?)?);
        let padded = if fields.len() == 1 {
            length
        } else {
            length.next_multiple_of(4)
        };
        bytes = bytes.get(padded..)?;
    }
    bytes.is_empty().then_some(values)
}

/// Joins the elements of an interval set into elements of ours.
fn ranges(field: FieldType, raw: impl Iterator<Item = RawElement>) -> Option<Vec<Element>> {
    let shape = field.shape();
    let joined = joined(raw)?;
    joined
        .into_iter()
        .map(|(first, last, value)| {
            let key = SetKey::Range(
                shape.value(first.as_slice())?,
                shape.value(last.as_slice())?,
            );
            Some(Element { key, value })
        })
        .collect()
}

/// Joins starts and ends. A start without an end reaches to the next start, as in a lookup, or to the end of the
/// space.
fn joined(
    raw: impl Iterator<Item = RawElement>,
) -> Option<Vec<(Bytes, Bytes, Option<ElementValue>)>> {
    let mut raw: Vec<RawElement> = raw.collect();
    raw.sort_by(|left, right| (&left.key, !left.is_end).cmp(&(&right.key, !right.is_end)));
    let mut ranges = Vec::new();
    let mut raw = raw.into_iter().peekable();
    while let Some(start) = raw.next() {
        if start.is_end {
            // The end of the range before, or the one at zero with which nft begins a set.
            continue;
        }
        let first = bounded(&start.key)?;
        let last = match raw.peek() {
            Some(next) => bounded(&next.key)?.predecessor()?,
            None => first.last(),
        };
        ranges.push((first, last, start.value));
    }
    Some(ranges)
}

/// What an anonymous set holds.
pub(super) fn anonymous_set(
    is_interval: bool,
    raw: impl Iterator<Item = RawElement>,
) -> Option<AnonymousSet> {
    let mut ranges: Vec<(Bytes, Bytes)> = if is_interval {
        joined(raw)?
            .into_iter()
            .map(|(first, last, _)| (first, last))
            .collect()
    } else {
        raw.map(|raw| bounded(&raw.key).map(|key| (key, key)))
            .collect::<Option<_>>()?
    };
    ranges.sort_unstable();
    Some(AnonymousSet { ranges })
}

/// Whether the flags of a set say that it holds ranges.
pub(super) fn is_interval(attributes: Attributes<'_>) -> bool {
    find(attributes, set::FLAGS).and_then(be32).unwrap_or(0) & set::F_INTERVAL != 0
}

fn bounded(key: &[u8]) -> Option<Bytes> {
    (key.len() <= super::field::MAX_VALUE).then(|| Bytes::new(key))
}

pub(super) fn find(mut attributes: Attributes<'_>, kind: u16) -> Option<&[u8]> {
    attributes
        .find(|(found, _)| *found == kind)
        .map(|(_, value)| value)
}

pub(super) fn be32(value: &[u8]) -> Option<u32> {
    array_at(value, 0).map(u32::from_be_bytes)
}

pub(super) fn be64(value: &[u8]) -> Option<u64> {
    array_at(value, 0).map(u64::from_be_bytes)
}

pub(super) fn name(value: &[u8]) -> Option<Name> {
    text(value).parse().ok()
}
