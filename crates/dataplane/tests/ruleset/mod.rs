//! Nouns in short form for tests, and one transaction that uses everything.

pub(crate) mod everything;

use towpath_dataplane::nft::{
    BaseChain, Chain, ChainKind, Element, ElementValue, Family, Field, FieldType, Hook, MapData,
    MatchOperand, Name, Rule, RuleVerdict, SetKey, SetSpec, Statement, Table, Value,
};

pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub(crate) fn inet() -> Table {
    Table {
        family: Family::Inet,
        name: name("towpath"),
    }
}

pub(crate) fn bridge() -> Table {
    Table {
        family: Family::Bridge,
        name: name("towpath"),
    }
}

pub(crate) fn v4(text: &str) -> Value {
    Value::Ipv4(text.parse().unwrap())
}

pub(crate) fn v6(text: &str) -> Value {
    Value::Ipv6(text.parse().unwrap())
}

pub(crate) fn interface(text: &str) -> Value {
    Value::Interface(text.into())
}

pub(crate) fn mac(last: u8) -> Value {
    Value::Ether([2, 0, 0, 0, 0, last])
}

pub(crate) fn class(number: u32) -> ElementValue {
    ElementValue::ClassId(number)
}

pub(crate) fn verdict(verdict: RuleVerdict) -> ElementValue {
    ElementValue::Verdict(verdict)
}

pub(crate) fn exact<const N: usize>(
    values: [Value; N],
    value: impl Into<Option<ElementValue>>,
) -> Element {
    Element {
        key: SetKey::Exact(Vec::from(values)),
        value: value.into(),
    }
}

pub(crate) fn range(first: Value, last: Value, value: impl Into<Option<ElementValue>>) -> Element {
    Element {
        key: SetKey::Range(first, last),
        value: value.into(),
    }
}

pub(crate) fn set<const N: usize>(text: &str, key: [FieldType; N]) -> SetSpec {
    SetSpec {
        name: name(text),
        key: key.to_vec(),
        data: None,
        interval: false,
        timeout: false,
        size: 1000,
    }
}

pub(crate) fn map<const N: usize>(text: &str, key: [FieldType; N], data: MapData) -> SetSpec {
    SetSpec {
        data: Some(data),
        ..set(text, key)
    }
}

pub(crate) fn plain_chain(text: &str) -> Chain {
    Chain {
        name: name(text),
        base: None,
    }
}

pub(crate) fn base_chain(text: &str, hook: Hook, priority: i32) -> Chain {
    let base = BaseChain {
        kind: ChainKind::Filter,
        hook,
        priority,
    };
    Chain {
        name: name(text),
        base: Some(base),
    }
}

pub(crate) fn equals(field: Field, value: Value) -> Statement {
    Statement::Match {
        field,
        negated: false,
        operand: MatchOperand::Value(value),
    }
}

pub(super) fn differs(field: Field, value: Value) -> Statement {
    Statement::Match {
        field,
        negated: true,
        operand: MatchOperand::Value(value),
    }
}

pub(super) fn prefix(field: Field, value: Value, length: u8) -> Statement {
    Statement::Match {
        field,
        negated: false,
        operand: MatchOperand::Prefix(value, length),
    }
}

pub(super) fn one_of<const N: usize>(
    field: Field,
    negated: bool,
    ranges: [(Value, Value); N],
) -> Statement {
    Statement::Match {
        field,
        negated,
        operand: MatchOperand::OneOf(Vec::from(ranges)),
    }
}

pub(super) fn single(value: Value) -> (Value, Value) {
    (value.clone(), value)
}

pub(super) fn in_set(field: Field, negated: bool, set: &str) -> Statement {
    Statement::Match {
        field,
        negated,
        operand: MatchOperand::Set(name(set)),
    }
}

pub(super) fn ports(first: u16, last: u16) -> (Value, Value) {
    (Value::U16(first), Value::U16(last))
}

pub(crate) fn rule(statements: impl IntoIterator<Item = Statement>) -> Rule {
    Rule {
        statements: statements.into_iter().collect(),
    }
}

pub(crate) const DROP: Statement = Statement::Verdict(RuleVerdict::Drop);
pub(crate) const ACCEPT: Statement = Statement::Verdict(RuleVerdict::Accept);
