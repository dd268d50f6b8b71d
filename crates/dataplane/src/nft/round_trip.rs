//! What is encoded and decoded again is the same, and no bytes make the decoder panic.

use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::batch::{Batch, NFGENMSG};
use super::decode::{self, Decoded, RawElement};
use super::decode_rule::{AnonymousSets, anonymous_key, decode_rule};
use super::encode::Encoder;
use super::field::Shape;
use super::object::{
    BaseChain, Chain, ChainKind, Element, ElementValue, Family, Field, FieldType, Hook, MapData,
    MatchOperand, Name, Rule, RuleVerdict, SetKey, SetSpec, Statement, Table, TableFlags, Value,
};
use super::read_back::TableState;
use super::transaction::Operation;
use super::uapi::{element, message, set};
use crate::link::wire::{Attributes, Messages};

fn table(family: Family) -> Table {
    Table {
        family,
        name: "towpath".parse().unwrap(),
    }
}

fn name() -> impl Strategy<Value = Name> {
    "[a-z]_[a-z0-9_]{0,29}".prop_map(|text| text.parse().unwrap())
}

fn value(shape: Shape) -> BoxedStrategy<Value> {
    match shape {
        Shape::Ipv4 => any::<u32>()
            .prop_map(|bits| Value::Ipv4(Ipv4Addr::from_bits(bits)))
            .boxed(),
        Shape::Ipv6 => any::<u128>()
            .prop_map(|bits| Value::Ipv6(Ipv6Addr::from_bits(bits)))
            .boxed(),
        Shape::Ether => any::<[u8; 6]>().prop_map(Value::Ether).boxed(),
        Shape::Interface => "[a-z0-9@._-]{1,15}"
            .prop_map(|name| Value::Interface(name.into()))
            .boxed(),
        Shape::U8 => any::<u8>().prop_map(Value::U8).boxed(),
        Shape::U16 => any::<u16>().prop_map(Value::U16).boxed(),
        Shape::Class => any::<u32>().prop_map(Value::Class).boxed(),
    }
}

fn verdict() -> impl Strategy<Value = RuleVerdict> {
    prop_oneof![
        Just(RuleVerdict::Accept),
        Just(RuleVerdict::Drop),
        Just(RuleVerdict::Return),
        Just(RuleVerdict::Continue),
        name().prop_map(RuleVerdict::Jump),
        name().prop_map(RuleVerdict::Goto),
    ]
}

fn field() -> impl Strategy<Value = Field> {
    prop::sample::select(Field::ALL.to_vec())
}

fn operand(field: Field) -> impl Strategy<Value = MatchOperand> {
    let shape = field.facts().shape;
    let list = prop::collection::btree_set(value(shape), 1..6).prop_map(move |values| {
        let values: Vec<Value> = values.into_iter().collect();
        let is_pair = shape.is_ordered() && values.len() > 2;
        // The first two as a range, to have ranges and single values in one list.
        let skip = usize::from(is_pair);
        let first = (values[0].clone(), values[skip].clone());
        let rest = values[skip + 1..]
            .iter()
            .map(|value| (value.clone(), value.clone()));
        MatchOperand::OneOf(std::iter::once(first).chain(rest).collect())
    });
    let is_address = matches!(shape, Shape::Ipv4 | Shape::Ipv6 | Shape::Ether);
    let bits = u8::try_from(shape.length() * 8).unwrap();
    let prefix = if is_address && field != Field::Icmpv6Target {
        (value(shape), 1..bits)
            .prop_map(|(base, length)| MatchOperand::Prefix(base.masked(length), length))
            .boxed()
    } else {
        name().prop_map(MatchOperand::Set).boxed()
    };
    prop_oneof![
        value(shape).prop_map(MatchOperand::Value),
        list,
        prefix,
        name().prop_map(MatchOperand::Set),
    ]
}

fn fields() -> impl Strategy<Value = Vec<Field>> {
    prop::collection::vec(field(), 1..4)
}

fn statement() -> impl Strategy<Value = Statement> {
    let state = prop::sample::subsequence(
        vec![
            Statement::CT_INVALID,
            Statement::CT_ESTABLISHED,
            Statement::CT_RELATED,
            Statement::CT_NEW,
        ],
        1..4,
    );
    prop_oneof![
        6 => (field(), any::<bool>()).prop_flat_map(|(field, negated)| {
            operand(field).prop_map(move |operand| Statement::Match { field, negated, operand })
        }),
        1 => (fields(), any::<bool>(), name())
            .prop_map(|(fields, negated, set)| Statement::MatchSet { fields, negated, set }),
        1 => state.prop_map(|bits| Statement::CtState { any_of: bits.iter().sum() }),
        1 => (fields(), name()).prop_map(|(fields, map)| Statement::VerdictMap { fields, map }),
        1 => (fields(), name()).prop_map(|(fields, map)| Statement::SetPriorityFromMap { fields, map }),
        1 => any::<u32>().prop_map(Statement::SetPriority),
        1 => Just(Statement::Counter),
        1 => (1..1000_u64, 1..1000_u32).prop_map(|(rate, burst)| Statement::Limit { rate, burst }),
        1 => (name(), any::<u16>(), 1..1000_u32)
            .prop_map(|(prefix, group, snaplen)| Statement::Log { prefix, group, snaplen }),
        1 => verdict().prop_map(Statement::Verdict),
    ]
}

fn encode(operation: &Operation) -> Option<Vec<u8>> {
    let mut batch = Batch::default();
    Encoder::new(&mut batch).operation(operation).ok()?;
    Some(batch.bytes().to_vec())
}

/// Reads a batch as the kernel would give it back: anonymous sets, then the rule.
fn decode_batch(family: Family, bytes: &[u8]) -> Option<Rule> {
    let mut sets = AnonymousSets::new();
    let mut declared = None;
    for received in Messages(bytes) {
        let attributes = Attributes(received.payload.get(NFGENMSG..)?);
        let number = |kind| decode::find(attributes.clone(), kind).and_then(decode::be32);
        match received.kind.to_be_bytes()[1] {
            message::NEWSET => {
                declared = Some((number(set::ID)?, decode::is_interval(attributes.clone())));
            }
            message::NEWSETELEM => {
                let (id, is_interval) = declared?;
                assert_eq!(number(element::LIST_SET_ID), Some(id));
                let Some(Decoded::Elements(raw)) = decode::message(&received) else {
                    return None;
                };
                let raw: Vec<RawElement> = raw;
                let set = decode::anonymous_set(is_interval, raw.into_iter())?;
                sets.insert(anonymous_key(id), set);
            }
            _ => {
                let Some(Decoded::Rule(_, _, list)) = decode::message(&received) else {
                    return None;
                };
                return decode_rule(family, &list, &sets);
            }
        }
    }
    None
}

fn spec() -> impl Strategy<Value = SetSpec> {
    let key = prop::collection::vec(prop::sample::select(FieldType::ALL.to_vec()), 1..5);
    let data = prop::option::of(prop_oneof![Just(MapData::Verdict), Just(MapData::ClassId)]);
    let flags = (any::<bool>(), any::<bool>());
    (name(), key, data, flags, 1..1_000_000_u32).prop_map(
        |(name, key, data, (interval, timeout), size)| {
            let interval = interval && key.len() == 1 && key[0].shape().is_ordered();
            SetSpec {
                name,
                key,
                data,
                interval,
                timeout,
                size,
            }
        },
    )
}

fn element_value(data: Option<MapData>) -> BoxedStrategy<Option<ElementValue>> {
    match data {
        None => Just(None).boxed(),
        Some(MapData::ClassId) => any::<u32>()
            .prop_map(|class| Some(ElementValue::ClassId(class)))
            .boxed(),
        Some(MapData::Verdict) => verdict()
            .prop_map(|verdict| Some(ElementValue::Verdict(verdict)))
            .boxed(),
    }
}

fn elements(spec: SetSpec) -> BoxedStrategy<(SetSpec, Vec<Element>)> {
    let shapes: Vec<Shape> = spec.key.iter().map(|field| field.shape()).collect();
    let pairs = |values: Vec<Value>| -> Vec<SetKey> {
        values
            .chunks_exact(2)
            .map(|pair| SetKey::Range(pair[0].clone(), pair[1].clone()))
            .collect()
    };
    let keys: BoxedStrategy<Vec<SetKey>> = if spec.interval {
        prop::collection::btree_set(value(shapes[0]), 2..9)
            .prop_map(move |values| pairs(values.into_iter().collect()))
            .boxed()
    } else {
        let key = shapes.into_iter().map(value).collect::<Vec<_>>();
        prop::collection::btree_set(key.prop_map(SetKey::Exact), 1..9)
            .prop_map(|keys| keys.into_iter().collect())
            .boxed()
    };
    let data = spec.data;
    keys.prop_flat_map(move |keys| {
        let spec = spec.clone();
        let values = keys.iter().map(|_| element_value(data)).collect::<Vec<_>>();
        values.prop_map(move |values| {
            let keys = keys.clone();
            let join = |(key, value)| Element { key, value };
            (
                spec.clone(),
                keys.into_iter().zip(values).map(join).collect(),
            )
        })
    })
    .boxed()
}

fn decode_one(bytes: &[u8]) -> Option<Decoded> {
    Messages(bytes)
        .next()
        .and_then(|received| decode::message(&received))
}

proptest! {
    #[test]
    fn rule_encodes_the_same_after_decoding(
        family in prop_oneof![Just(Family::Inet), Just(Family::Bridge)],
        statements in prop::collection::vec(statement(), 1..5),
    ) {
        let chain: Name = "forward".parse().unwrap();
        let add = |rule| Operation::AddRule(table(family), chain.clone(), rule);
        let Some(bytes) = encode(&add(Rule { statements })) else {
            // Fields of two protocols in one rule.
            return Ok(());
        };

        let decoded = decode_batch(family, &bytes);

        prop_assert!(decoded.is_some());
        let again = encode(&add(decoded.unwrap()));
        prop_assert_eq!(again, Some(bytes));
    }

    #[test]
    fn set_and_elements_round_trip((spec, elements) in spec().prop_flat_map(elements)) {
        let of = table(Family::Inet);

        let declared = encode(&Operation::AddSet(of.clone(), spec.clone())).unwrap();
        let filled = encode(&Operation::AddElements(of.clone(), spec.name.clone(), elements.clone()));

        prop_assert_eq!(decode_one(&declared), Some(Decoded::Set(of, spec.clone())));
        let Some(Decoded::Elements(raw)) = decode_one(&filled.unwrap()) else {
            return Err(TestCaseError::fail("no elements"));
        };
        prop_assert_eq!(decode::elements(&spec, raw.into_iter()), Some(elements));
    }

    #[test]
    fn decoder_survives_any_bytes(
        kind in 0..20_u8,
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        place in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        statements in prop::collection::vec(statement(), 1..4),
    ) {
        let mut batch = Batch::default();
        batch.start_nft(kind, 0, 1);
        batch.raw(&bytes);
        batch.finish();
        drop(decode_one(batch.bytes()));

        // A good message with one wrong byte goes deeper.
        let add = Operation::AddRule(table(Family::Inet), "a".parse().unwrap(), Rule { statements });
        if let Some(mut bytes) = encode(&add) {
            let place = place.index(bytes.len());
            bytes[place] = byte;
            for received in Messages(&bytes) {
                if let Some(Decoded::Rule(of, _, list)) = decode::message(&received) {
                    drop(decode_rule(of.family, &list, &AnonymousSets::new()));
                }
            }
        }
    }
}

#[test]
fn table_and_chain_round_trip() {
    let of = table(Family::Bridge);
    let flags = TableFlags {
        owner: true,
        persist: true,
    };
    let base = BaseChain {
        kind: ChainKind::Filter,
        hook: Hook::Prerouting,
        priority: -301,
    };
    let chain = Chain {
        name: "prerouting".parse().unwrap(),
        base: Some(base),
    };

    let made = encode(&Operation::AddTable(of.clone(), flags)).unwrap();
    let hooked = encode(&Operation::AddChain(of.clone(), chain.clone())).unwrap();

    let state = TableState {
        flags,
        // The kernel says it, and nobody asks for it.
        owner: None,
        is_dormant: false,
    };
    assert_eq!(decode_one(&made), Some(Decoded::Table(of.clone(), state)));
    assert_eq!(decode_one(&hooked), Some(Decoded::Chain(of, chain)));
}

#[test]
fn splits_long_lists() {
    let elements: Vec<Element> = (0..10_000_u32)
        .map(|bits| Element {
            key: SetKey::Exact(vec![Value::Ipv4(Ipv4Addr::from_bits(bits))]),
            value: Some(ElementValue::ClassId(bits)),
        })
        .collect();
    let name: Name = "peers".parse().unwrap();

    let bytes = encode(&Operation::AddElements(table(Family::Inet), name, elements)).unwrap();

    let counts: Vec<usize> = Messages(&bytes)
        .map(|received| match decode::message(&received) {
            Some(Decoded::Elements(elements)) => elements.len(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(counts.len() > 1, "one attribute holds at most 64 KiB");
    assert_eq!(counts.iter().sum::<usize>(), 10_000);
}
