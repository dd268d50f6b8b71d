//! Operations as nft's JSON commands, and nft's JSON listing back into elements.
//!
//! Rules, chains and tables go through the schema of the `nftables` crate. Sets and elements are written by hand: the
//! schema knows neither the type `classid` nor verdicts as values of elements. A set that needs `typeof` cannot be
//! said in JSON at all; the command backend then sends text.

use std::borrow::Cow;
use std::time::Duration;

use nftables::expr::{
    BinaryOperation, CT, Expression, Map as MapExpression, Meta, MetaKey, NamedExpression, Payload,
    PayloadBase, PayloadField, PayloadRaw, Prefix, Range, SetItem,
};
use nftables::schema;
use nftables::schema::{FlushObject, NfCmd, NfListObject, NfObject};
use nftables::stmt;
use nftables::types::{NfChainPolicy, NfChainType, NfFamily, NfHook};
use serde_json::{Value as Json, json};

use super::field::Shape;
use super::object::{
    Chain, ChainKind, Element, ElementValue, Family, Field, FieldType, Hook, MapData, MatchOperand,
    Name, Rule, RuleVerdict, SetKey, SetSpec, Statement, Table, Value,
};
use super::symbols::{
    CT_STATES, class_text, ether_mask, is_printable, key_types, range_type, value_text,
};
use super::text::{SetTypes, TextError, family_text, whole_seconds};
use super::transaction::{Operation, Transaction};

/// A whole transaction as the document that `nft -j -f -` reads.
pub(super) fn document(transaction: &Transaction, types: &SetTypes) -> Result<Json, TextError> {
    let mut commands = Vec::with_capacity(transaction.operations.len());
    for operation in &transaction.operations {
        commands.extend(command(operation, types)?);
    }
    Ok(json!({ "nftables": commands }))
}

fn command(operation: &Operation, types: &SetTypes) -> Result<Option<Json>, TextError> {
    Ok(Some(match operation {
        Operation::AddTable(table, _) => typed(NfCmd::Add(table_object(table))),
        Operation::DeleteTable(table) => typed(NfCmd::Delete(table_object(table))),
        Operation::AddChain(table, chain) => {
            typed(NfCmd::Add(NfListObject::Chain(chain_object(table, chain))))
        }
        Operation::FlushChain(table, name) => {
            let chain = Chain {
                name: name.clone(),
                base: None,
            };
            typed(NfCmd::Flush(FlushObject::Chain(chain_object(
                table, &chain,
            ))))
        }
        Operation::DeleteChain(table, name) => {
            let chain = Chain {
                name: name.clone(),
                base: None,
            };
            typed(NfCmd::Delete(NfListObject::Chain(chain_object(
                table, &chain,
            ))))
        }
        Operation::AddRule(table, chain, rule) => typed(NfCmd::Add(NfListObject::Rule(
            rule_object(table, chain, rule)?,
        ))),
        Operation::AddSet(table, spec) => set_command(table, spec),
        Operation::DeleteSet(table, name) => named_set("delete", table, name, types),
        Operation::FlushSet(table, name) => named_set("flush", table, name, types),
        Operation::AddElements(table, set, elements) => {
            return elements_command("add", table, set, elements, types);
        }
        Operation::AddTimedElements(table, set, elements) => {
            return timed_elements_command(table, set, elements, types);
        }
        Operation::DeleteElements(table, set, elements) => {
            return elements_command("delete", table, set, elements, types);
        }
    }))
}

fn typed(command: NfCmd<'_>) -> Json {
    serde_json::to_value(NfObject::CmdObject(command)).expect("the schema is plain data")
}

fn family_object(family: Family) -> NfFamily {
    match family {
        Family::Inet => NfFamily::INet,
        Family::Bridge => NfFamily::Bridge,
    }
}

fn table_object(table: &Table) -> NfListObject<'_> {
    NfListObject::Table(schema::Table {
        family: family_object(table.family),
        name: table.name.as_str().into(),
        handle: None,
    })
}

fn chain_object<'a>(table: &'a Table, chain: &'a Chain) -> schema::Chain<'a> {
    let base = chain.base;
    schema::Chain {
        family: family_object(table.family),
        table: table.name.as_str().into(),
        name: chain.name.as_str().into(),
        _type: base.map(|base| match base.kind {
            ChainKind::Filter => NfChainType::Filter,
        }),
        hook: base.map(|base| match base.hook {
            Hook::Prerouting => NfHook::Prerouting,
            Hook::Input => NfHook::Input,
            Hook::Forward => NfHook::Forward,
            Hook::Output => NfHook::Output,
            Hook::Postrouting => NfHook::Postrouting,
        }),
        prio: base.map(|base| base.priority),
        policy: base.map(|_| NfChainPolicy::Accept),
        ..schema::Chain::default()
    }
}

fn set_command(table: &Table, spec: &SetSpec) -> Json {
    let types: Vec<&str> = spec.key.iter().map(|field| field.name()).collect();
    let mut set = json!({
        "family": family_text(table.family),
        "table": table.name.as_str(),
        "name": spec.name.as_str(),
        "type": if let [only] = types.as_slice() { json!(only) } else { json!(types) },
        "size": spec.size,
    });
    let flags = [(spec.interval, "interval"), (spec.timeout, "timeout")];
    let flags: Vec<&str> = flags
        .into_iter()
        .filter_map(|(is_set, word)| is_set.then_some(word))
        .collect();
    if !flags.is_empty() {
        set["flags"] = json!(flags);
    }
    match spec.data {
        None => return json!({ "add": { "set": set } }),
        Some(MapData::Verdict) => set["map"] = json!("verdict"),
        Some(MapData::ClassId) => set["map"] = json!("classid"),
    }
    json!({ "add": { "map": set } })
}

fn named_set(verb: &str, table: &Table, name: &Name, types: &SetTypes) -> Json {
    let is_map = types
        .get(&(table.clone(), name.clone()))
        .is_some_and(|known| known.is_map);
    let kind = if is_map { "map" } else { "set" };
    let set = json!({
        "family": family_text(table.family),
        "table": table.name.as_str(),
        "name": name.as_str(),
    });
    json!({ verb: { kind: set } })
}

fn elements_command(
    verb: &str,
    table: &Table,
    set: &Name,
    elements: &[Element],
    types: &SetTypes,
) -> Result<Option<Json>, TextError> {
    if elements.is_empty() {
        return Ok(None);
    }
    let known = types
        .get(&(table.clone(), set.clone()))
        .map(|known| &known.key);
    let list = elements
        .iter()
        .map(|element| element_json(known, element, verb == "add"))
        .collect::<Result<Vec<Json>, TextError>>()?;
    Ok(Some(list_command(verb, table, set, &list)))
}

fn timed_elements_command(
    table: &Table,
    set: &Name,
    elements: &[(SetKey, Duration)],
    types: &SetTypes,
) -> Result<Option<Json>, TextError> {
    if elements.is_empty() {
        return Ok(None);
    }
    let known = types
        .get(&(table.clone(), set.clone()))
        .map(|known| &known.key);
    let timed = |(key, time): &(SetKey, Duration)| {
        let element = Element {
            key: key.clone(),
            value: None,
        };
        let key = element_json(known, &element, false)?;
        Ok(json!({ "elem": { "val": key, "timeout": whole_seconds(*time) } }))
    };
    let list = elements
        .iter()
        .map(timed)
        .collect::<Result<Vec<Json>, TextError>>()?;
    Ok(Some(list_command("add", table, set, &list)))
}

fn list_command(verb: &str, table: &Table, set: &Name, list: &[Json]) -> Json {
    let object = json!({
        "family": family_text(table.family),
        "table": table.name.as_str(),
        "name": set.as_str(),
        "elem": list,
    });
    json!({ verb: { "element": object } })
}

fn element_json(
    known: Option<&Vec<FieldType>>,
    element: &Element,
    with_value: bool,
) -> Result<Json, TextError> {
    let key = match &element.key {
        SetKey::Exact(values) => {
            let mut fields = values
                .iter()
                .zip(key_types(known, values))
                .map(|(value, kind)| Ok(json!(checked_text(kind.id(), value)?)))
                .collect::<Result<Vec<Json>, TextError>>()?;
            if fields.len() == 1 {
                fields.remove(0)
            } else {
                json!({ "concat": fields })
            }
        }
        SetKey::Range(first, last) => {
            let kind = key_types(known, std::slice::from_ref(first))[0];
            if first == last {
                json!(checked_text(kind.id(), first)?)
            } else {
                let end = |value| checked_text(range_type(kind.id()), value);
                json!({ "range": [end(first)?, end(last)?] })
            }
        }
    };
    Ok(match &element.value {
        Some(ElementValue::ClassId(class)) if with_value => json!([key, class_text(*class)]),
        Some(ElementValue::Verdict(verdict)) if with_value => json!([key, verdict_json(verdict)]),
        _ => key,
    })
}

fn verdict_json(verdict: &RuleVerdict) -> Json {
    match verdict {
        RuleVerdict::Accept => json!({ "accept": null }),
        RuleVerdict::Drop => json!({ "drop": null }),
        RuleVerdict::Return => json!({ "return": null }),
        RuleVerdict::Continue => json!({ "continue": null }),
        RuleVerdict::Jump(chain) => json!({ "jump": { "target": chain.as_str() } }),
        RuleVerdict::Goto(chain) => json!({ "goto": { "target": chain.as_str() } }),
    }
}

fn rule_object<'a>(
    table: &'a Table,
    chain: &'a Name,
    rule: &'a Rule,
) -> Result<schema::Rule<'a>, TextError> {
    let statements: Vec<stmt::Statement<'a>> = rule
        .statements
        .iter()
        .map(statement)
        .collect::<Result<_, TextError>>()?;
    Ok(schema::Rule {
        family: family_object(table.family),
        table: table.name.as_str().into(),
        chain: chain.as_str().into(),
        expr: statements.into(),
        ..schema::Rule::default()
    })
}

fn statement(statement: &Statement) -> Result<stmt::Statement<'_>, TextError> {
    Ok(match statement {
        Statement::Match {
            field,
            negated,
            operand,
        } => compare(*field, *negated, operand)?,
        Statement::MatchSet {
            fields,
            negated,
            set,
        } => matched(fields_expression(fields), *negated, set_reference(set)),
        Statement::CtState { any_of } => {
            let states = CT_STATES
                .iter()
                .filter(|(bit, _)| any_of & bit != 0)
                .map(|(_, name)| Expression::String(Cow::Borrowed(*name)))
                .collect();
            stmt::Statement::Match(stmt::Match {
                left: connection("state"),
                right: Expression::List(states),
                op: stmt::Operator::IN,
            })
        }
        Statement::VerdictMap { fields, map } => stmt::Statement::VerdictMap(stmt::VerdictMap {
            key: fields_expression(fields),
            data: set_reference(map),
        }),
        Statement::SetPriority(class) => stmt::Statement::Mangle(stmt::Mangle {
            key: field_expression(Field::Priority),
            value: Expression::String(class_text(*class).into()),
        }),
        Statement::SetPriorityFromMap { fields, map } => stmt::Statement::Mangle(stmt::Mangle {
            key: field_expression(Field::Priority),
            value: Expression::Named(NamedExpression::Map(Box::new(MapExpression {
                key: fields_expression(fields),
                data: set_reference(map),
            }))),
        }),
        Statement::Counter => stmt::Statement::Counter(stmt::Counter::Anonymous(None)),
        Statement::Limit { rate, burst } => stmt::Statement::Limit(stmt::Limit {
            // The schema has 32 bits; more packets a second than that are no limit.
            rate: u32::try_from(*rate).unwrap_or(u32::MAX),
            rate_unit: None,
            per: Some("second".into()),
            burst: Some(*burst),
            burst_unit: None,
            inv: None,
        }),
        Statement::Log {
            prefix,
            group,
            snaplen,
        } => stmt::Statement::Log(Some(stmt::Log {
            prefix: Some(prefix.as_str().into()),
            snaplen: Some(*snaplen),
            ..stmt::Log::new(Some(u32::from(*group)))
        })),
        Statement::Verdict(verdict) => verdict_statement(verdict),
    })
}

fn verdict_statement(verdict: &RuleVerdict) -> stmt::Statement<'_> {
    let target = |chain: &Name| stmt::JumpTarget {
        target: chain.to_string().into(),
    };
    match verdict {
        RuleVerdict::Accept => stmt::Statement::Accept(None),
        RuleVerdict::Drop => stmt::Statement::Drop(None),
        RuleVerdict::Return => stmt::Statement::Return(None),
        RuleVerdict::Continue => stmt::Statement::Continue(None),
        RuleVerdict::Jump(chain) => stmt::Statement::Jump(target(chain)),
        RuleVerdict::Goto(chain) => stmt::Statement::Goto(target(chain)),
    }
}

fn matched<'a>(left: Expression<'a>, negated: bool, right: Expression<'a>) -> stmt::Statement<'a> {
    let op = if negated {
        stmt::Operator::NEQ
    } else {
        stmt::Operator::EQ
    };
    stmt::Statement::Match(stmt::Match { left, right, op })
}

fn compare(
    field: Field,
    negated: bool,
    operand: &MatchOperand,
) -> Result<stmt::Statement<'_>, TextError> {
    let facts = field.facts();
    let left = field_expression(field);
    let right = match operand {
        MatchOperand::Value(value) => value_expression(facts.type_id, value)?,
        MatchOperand::Set(set) => set_reference(set),
        MatchOperand::OneOf(ranges) => match facts.shape.join(ranges).as_ref() {
            [(first, last)] => range_expression(facts.type_id, first, last)?,
            ranges => {
                let items = ranges
                    .iter()
                    .map(|(first, last)| {
                        range_expression(facts.type_id, first, last).map(SetItem::Element)
                    })
                    .collect::<Result<Vec<_>, TextError>>()?;
                Expression::Named(NamedExpression::Set(items))
            }
        },
        MatchOperand::Prefix(base, length) if facts.shape == Shape::Ether => {
            let mask = value_expression(facts.type_id, &ether_mask(*length))?;
            let masked = Expression::BinaryOperation(Box::new(BinaryOperation::AND(left, mask)));
            let base = value_expression(facts.type_id, &base.masked(*length))?;
            return Ok(matched(masked, negated, base));
        }
        MatchOperand::Prefix(base, length) if usize::from(*length) == facts.shape.length() * 8 => {
            value_expression(facts.type_id, base)?
        }
        MatchOperand::Prefix(base, length) => Expression::Named(NamedExpression::Prefix(Prefix {
            addr: Box::new(value_expression(facts.type_id, base)?),
            len: u32::from(*length),
        })),
    };
    Ok(matched(left, negated, right))
}

fn checked_text(type_id: u32, value: &Value) -> Result<String, TextError> {
    match value {
        Value::Interface(name) if !is_printable(name) => Err(TextError {
            name: name.to_string(),
        }),
        value => Ok(value_text(type_id, value, false)),
    }
}

fn value_expression(type_id: u32, value: &Value) -> Result<Expression<'static>, TextError> {
    Ok(Expression::String(checked_text(type_id, value)?.into()))
}

fn range_expression(
    type_id: u32,
    first: &Value,
    last: &Value,
) -> Result<Expression<'static>, TextError> {
    if first == last {
        return value_expression(type_id, first);
    }
    let end = |value| value_expression(range_type(type_id), value);
    Ok(Expression::Range(Box::new(Range {
        range: [end(first)?, end(last)?],
    })))
}

fn set_reference(name: &Name) -> Expression<'static> {
    Expression::String(format!("@{name}").into())
}

fn connection(key: &'static str) -> Expression<'static> {
    Expression::Named(NamedExpression::CT(CT {
        key: key.into(),
        family: None,
        dir: None,
    }))
}

fn fields_expression(fields: &[Field]) -> Expression<'static> {
    match fields {
        [only] => field_expression(*only),
        fields => Expression::Named(NamedExpression::Concat(
            fields
                .iter()
                .map(|field| field_expression(*field))
                .collect(),
        )),
    }
}

fn field_expression(field: Field) -> Expression<'static> {
    let meta = |key| Expression::Named(NamedExpression::Meta(Meta { key }));
    match field {
        Field::L4Proto => meta(MetaKey::L4proto),
        Field::NfProto => meta(MetaKey::Nfproto),
        Field::Priority => meta(MetaKey::Priority),
        Field::InputInterface => meta(MetaKey::Iifname),
        Field::OutputInterface => meta(MetaKey::Oifname),
        Field::PacketType => meta(MetaKey::Pkttype),
        Field::CtDirection => connection("direction"),
        Field::Icmpv6Target => {
            let raw = PayloadRaw {
                base: PayloadBase::TH,
                offset: 64,
                len: 128,
            };
            Expression::Named(NamedExpression::Payload(Payload::PayloadRaw(raw)))
        }
        field => {
            let text = field.facts().text;
            let (protocol, name) = text.split_once(' ').expect("a header and its field");
            let payload = PayloadField {
                protocol: protocol.into(),
                field: name.into(),
            };
            Expression::Named(NamedExpression::Payload(Payload::PayloadField(payload)))
        }
    }
}
