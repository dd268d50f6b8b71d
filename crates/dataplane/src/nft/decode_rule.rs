//! The expressions of a rule back into statements: the inverse of [`super::expression`].
//!
//! A check that the encoder adds for a field is left out again; so is one that the rule makes itself right before a
//! field that implies it. Encoded again, the rule is the same.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};

use super::decode::{be32, decode_verdict, find, name};
use super::expression::ANONYMOUS_NAME;
use super::field::{Bytes, ICMPV6, Load, MAX_VALUE, Network, Shape};
use super::object::{Family, Field, MatchOperand, Rule, Statement, Value};
use super::symbols::CT_STATES;
use super::uapi::{LIST_ELEM, NFPROTO_IPV4, NFPROTO_IPV6, data, expression as e, rule};
use crate::link::wire::{Attributes, array_at, text};

/// What an anonymous set holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AnonymousSet {
    /// First and last values, as bytes, sorted.
    pub(super) ranges: Vec<(Bytes, Bytes)>,
}

/// Anonymous sets by name, or by number in a batch that is not committed yet.
pub(super) type AnonymousSets = BTreeMap<String, AnonymousSet>;

/// Names of the anonymous sets that an expression list looks up.
pub(super) fn anonymous_names(list: &[u8]) -> Vec<String> {
    expressions(list)
        .filter(|(kind, _)| kind == "lookup")
        .filter_map(|(_, attributes)| set_name(&attributes))
        .filter(|name| name.starts_with("__"))
        .collect()
}

/// A rule from its expression list; `None` when it is not one of ours.
pub(super) fn decode_rule(family: Family, list: &[u8], sets: &AnonymousSets) -> Option<Rule> {
    let mut decoder = Decoder {
        family,
        sets,
        network: None,
        loads: Vec::new(),
        mask: None,
        lower: None,
        result: None,
        statements: Vec::new(),
    };
    for (kind, attributes) in expressions(list) {
        decoder.expression(&kind, &attributes)?;
    }
    let is_complete =
        decoder.loads.is_empty() && decoder.lower.is_none() && decoder.result.is_none();
    is_complete.then_some(Rule {
        statements: decoder.statements,
    })
}

/// Feeds a hash with what makes a rule what it is, without what its counters have counted. Anonymous sets never change,
/// so their handles stand for their content.
pub(super) fn hash_rule(list: &[u8], handles: &BTreeMap<String, u64>, hasher: &mut impl Hasher) {
    for (kind, attributes) in expressions(list).filter(|(kind, _)| kind != "counter") {
        set_name(&attributes)
            .and_then(|set| handles.get(&set))
            .hash(hasher);
        (kind, attributes.0).hash(hasher);
    }
}

fn expressions(list: &[u8]) -> impl Iterator<Item = (String, Attributes<'_>)> {
    Attributes(list)
        .filter(|(kind, _)| *kind == LIST_ELEM)
        .filter_map(|(_, attributes)| {
            let kind = find(Attributes(attributes), rule::EXPRESSION_NAME)?;
            let data = find(Attributes(attributes), rule::EXPRESSION_DATA).unwrap_or_default();
            Some((text(kind).into_owned(), Attributes(data)))
        })
}

/// Something loaded into registers.
#[derive(Clone, Copy, Debug)]
struct Loaded {
    register: u32,
    load: Load,
    length: Option<usize>,
}

/// What waits in a register for `meta set`.
#[derive(Clone, Debug)]
enum Waiting {
    Class(u32),
    Map(Vec<Field>, String),
}

struct Decoder<'a> {
    family: Family,
    sets: &'a AnonymousSets,
    network: Option<Network>,
    loads: Vec<Loaded>,
    mask: Option<Bytes>,
    lower: Option<Bytes>,
    result: Option<Waiting>,
    statements: Vec<Statement>,
}

impl Decoder<'_> {
    fn expression(&mut self, kind: &str, attributes: &Attributes<'_>) -> Option<()> {
        let number = |kind| be32(find(attributes.clone(), kind)?);
        match kind {
            "payload" => {
                let load = Load::Payload {
                    base: number(e::PAYLOAD_BASE)?,
                    offset: number(e::PAYLOAD_OFFSET)?,
                };
                let length = usize::try_from(number(e::PAYLOAD_LEN)?).ok();
                self.loads.push(Loaded {
                    register: number(e::PAYLOAD_DREG)?,
                    load,
                    length,
                });
            }
            "meta" => match number(e::META_SREG) {
                Some(_) if number(e::META_KEY)? == e::META_PRIORITY => self.set_priority()?,
                Some(_) => return None,
                None => {
                    let load = Load::Meta(number(e::META_KEY)?);
                    let register = number(e::META_DREG)?;
                    self.loads.push(Loaded {
                        register,
                        load,
                        length: None,
                    });
                }
            },
            "ct" => {
                let load = Load::Ct(number(e::CT_KEY)?);
                self.loads.push(Loaded {
                    register: number(e::CT_DREG)?,
                    load,
                    length: None,
                });
            }
            "bitwise" => self.mask = Some(value(attributes, e::BITWISE_MASK)?),
            "cmp" => self.compare(number(e::CMP_OP)?, value(attributes, e::CMP_DATA)?)?,
            "range" => {
                let (low, high) = (
                    value(attributes, e::RANGE_FROM)?,
                    value(attributes, e::RANGE_TO)?,
                );
                if number(e::RANGE_OP)? != e::RANGE_NEQ {
                    return None;
                }
                self.one_of(true, &[(low, high)])?;
            }
            "lookup" => self.look_up(attributes)?,
            "immediate" => self.immediate(attributes)?,
            "counter" => self.statements.push(Statement::Counter),
            "limit" => self.statements.push(limit(attributes)?),
            "log" => self.statements.push(log(attributes)?),
            _ => return None,
        }
        Some(())
    }

    fn compare(&mut self, operator: u32, bytes: Bytes) -> Option<()> {
        let negated = match operator {
            e::CMP_EQ => false,
            e::CMP_NEQ => true,
            e::CMP_GTE => {
                self.lower = Some(bytes);
                return Some(());
            }
            e::CMP_LTE => {
                let low = self.lower.take()?;
                return self.one_of(false, &[(low, bytes)]);
            }
            _ => return None,
        };
        let [loaded] = self.loads[..] else {
            return None;
        };
        match self.mask.take() {
            Some(mask) => self.masked(loaded, negated, &mask, &bytes)?,
            None if self.is_implied(loaded, &bytes) => {}
            None if negated => self.equal(loaded, true, &bytes)?,
            None => {
                for (loaded, bytes) in self.split(loaded, &bytes)? {
                    self.equal(loaded, false, &bytes)?;
                }
            }
        }
        self.loads.clear();
        Some(())
    }

    /// Protocol checks that only the encoder makes.
    fn is_implied(&mut self, loaded: Loaded, bytes: &Bytes) -> bool {
        match loaded.load {
            Load::Meta(e::META_PROTOCOL) if self.family == Family::Bridge => {
                self.network = array_at(bytes.as_slice(), 0)
                    .map(u16::from_be_bytes)
                    .and_then(Network::from_ether_type);
                true
            }
            Load::Meta(e::META_IIFTYPE) => true,
            _ => false,
        }
    }

    /// The fields of a comparison: nft makes one of several that stand side by side in the packet.
    fn split(&self, loaded: Loaded, bytes: &Bytes) -> Option<Vec<(Loaded, Bytes)>> {
        let Load::Payload { base, mut offset } = loaded.load else {
            return Some(vec![(loaded, *bytes)]);
        };
        let mut parts = Vec::new();
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let at = |length| Loaded {
                load: Load::Payload { base, offset },
                length: Some(length),
                ..loaded
            };
            let length = (1..=rest.len())
                .rev()
                .find(|length| self.field(at(*length)).is_some())?;
            parts.push((at(length), Bytes::new(&rest[..length])));
            rest = &rest[length..];
            offset = offset.checked_add(u32::try_from(length).ok()?)?;
        }
        Some(parts)
    }

    fn equal(&mut self, loaded: Loaded, negated: bool, bytes: &Bytes) -> Option<()> {
        let field = self.field(loaded)?;
        let shape = field.facts().shape;
        let operand = if bytes.as_slice().len() < shape.length() {
            let mut padded = [0; MAX_VALUE];
            padded[..bytes.as_slice().len()].copy_from_slice(bytes.as_slice());
            let ones = u8::try_from(bytes.as_slice().len() * 8).ok()?;
            MatchOperand::Prefix(shape.value(&padded[..shape.length()])?, ones)
        } else {
            let value = shape.value(bytes.as_slice())?;
            if !negated {
                self.learn(field, &value);
            }
            MatchOperand::Value(value)
        };
        self.push(
            &[field],
            Statement::Match {
                field,
                negated,
                operand,
            },
        );
        Some(())
    }

    fn masked(&mut self, loaded: Loaded, negated: bool, mask: &Bytes, bytes: &Bytes) -> Option<()> {
        if loaded.load == Load::Ct(e::CT_STATE) {
            let any_of = array_at(mask.as_slice(), 0).map(u32::from_ne_bytes)?;
            let known = CT_STATES.iter().fold(0, |known, (bit, _)| known | bit);
            let is_ours = negated && *bytes == Bytes::new(&[0; 4]) && any_of & !known == 0;
            self.statements
                .push(is_ours.then_some(Statement::CtState { any_of })?);
            return Some(());
        }
        let field = self.field(loaded)?;
        let ones: u32 = mask.as_slice().iter().map(|byte| byte.count_ones()).sum();
        let ones = u8::try_from(ones).ok()?;
        if *mask != bytes.mask(ones) {
            return None;
        }
        let operand = MatchOperand::Prefix(field.facts().shape.value(bytes.as_slice())?, ones);
        self.push(
            &[field],
            Statement::Match {
                field,
                negated,
                operand,
            },
        );
        Some(())
    }

    fn one_of(&mut self, negated: bool, ranges: &[(Bytes, Bytes)]) -> Option<()> {
        let fields = self.take_fields()?;
        let [field] = fields[..] else { return None };
        let shape = field.facts().shape;
        let mut values = ranges
            .iter()
            .map(|(first, last)| {
                Some((
                    shape.value(first.as_slice())?,
                    shape.value(last.as_slice())?,
                ))
            })
            .collect::<Option<Vec<_>>>()?;
        // The order of class ids is not the order of their bytes.
        values.sort_unstable();
        let operand = MatchOperand::OneOf(values);
        self.push(
            &[field],
            Statement::Match {
                field,
                negated,
                operand,
            },
        );
        Some(())
    }

    fn look_up(&mut self, attributes: &Attributes<'_>) -> Option<()> {
        let set = set_name(attributes)?;
        let flags = find(attributes.clone(), e::LOOKUP_FLAGS)
            .and_then(be32)
            .unwrap_or(0);
        let negated = flags & e::LOOKUP_F_INVERTED != 0;
        if let Some(anonymous) = self.sets.get(&set) {
            let ranges = anonymous.ranges.clone();
            return self.one_of(negated, &ranges);
        }
        let fields = self.take_fields()?;
        match find(attributes.clone(), e::LOOKUP_DREG).and_then(be32) {
            Some(e::REGISTER_VERDICT) => {
                let map = set.parse().ok()?;
                self.push(&fields.clone(), Statement::VerdictMap { fields, map });
            }
            Some(_) => {
                self.strip_implied(&fields);
                self.result = Some(Waiting::Map(fields, set));
            }
            None => {
                let set = set.parse().ok()?;
                let statement = match fields[..] {
                    [field] => {
                        let operand = MatchOperand::Set(set);
                        Statement::Match {
                            field,
                            negated,
                            operand,
                        }
                    }
                    _ => Statement::MatchSet {
                        fields: fields.clone(),
                        negated,
                        set,
                    },
                };
                self.push(&fields, statement);
            }
        }
        Some(())
    }

    fn immediate(&mut self, attributes: &Attributes<'_>) -> Option<()> {
        let data = find(attributes.clone(), e::IMMEDIATE_DATA)?;
        if be32(find(attributes.clone(), e::IMMEDIATE_DREG)?)? == e::REGISTER_VERDICT {
            let verdict = decode_verdict(Attributes(find(Attributes(data), data::VERDICT)?))?;
            self.statements.push(Statement::Verdict(verdict));
        } else {
            let class = find(Attributes(data), data::VALUE)?;
            self.result = Some(Waiting::Class(array_at(class, 0).map(u32::from_ne_bytes)?));
        }
        Some(())
    }

    fn set_priority(&mut self) -> Option<()> {
        self.statements.push(match self.result.take()? {
            Waiting::Class(class) => Statement::SetPriority(class),
            Waiting::Map(fields, map) => Statement::SetPriorityFromMap {
                fields,
                map: map.parse().ok()?,
            },
        });
        Some(())
    }

    /// The fields in the registers, in order.
    fn take_fields(&mut self) -> Option<Vec<Field>> {
        let loads = std::mem::take(&mut self.loads);
        let is_ordered = loads
            .first()
            .is_some_and(|first| first.register == e::REGISTER_1);
        if self.mask.is_some() || !is_ordered {
            return None;
        }
        loads.into_iter().map(|loaded| self.field(loaded)).collect()
    }

    /// The field at a place. The same bytes mean different fields in different protocols.
    fn field(&self, loaded: Loaded) -> Option<Field> {
        let matches = |field: &Field| {
            let facts = field.facts();
            let is_address = matches!(facts.shape, Shape::Ipv4 | Shape::Ipv6);
            let fits = loaded.length.is_none_or(|length| {
                length == facts.shape.length() || (is_address && length < facts.shape.length())
            });
            let is_possible = field
                .network()
                .is_none_or(|network| self.network == Some(network));
            facts.load == loaded.load && fits && is_possible
        };
        let mut candidates: Vec<Field> = Field::ALL.into_iter().filter(matches).collect();
        // A whole field rather than the start of a longer one.
        candidates.sort_by_key(|field| field.facts().shape.length());
        candidates.first().copied()
    }

    /// Appends a statement that reads these fields.
    fn push(&mut self, fields: &[Field], statement: Statement) {
        self.strip_implied(fields);
        self.statements.push(statement);
    }

    /// Removes the checks right before that the encoder will add again.
    fn strip_implied(&mut self, fields: &[Field]) {
        let is_icmpv6 = fields.contains(&Field::Icmpv6Type);
        if is_icmpv6 && self.last_is(Field::L4Proto, &Value::U8(ICMPV6)) {
            self.statements.pop();
        }
        let Some(network) = fields.iter().find_map(|field| field.network()) else {
            return;
        };
        let is_implied = match (self.family, network) {
            (Family::Inet, Network::Ip) => self.last_is(Field::NfProto, &Value::U8(NFPROTO_IPV4)),
            (Family::Inet, Network::Ip6) => self.last_is(Field::NfProto, &Value::U8(NFPROTO_IPV6)),
            (Family::Bridge, network) if is_icmpv6 || network == Network::Arp => {
                self.last_is(Field::EtherType, &Value::U16(network.ether_type()))
            }
            _ => false,
        };
        if is_implied {
            self.statements.pop();
        }
    }

    fn last_is(&self, checked: Field, wanted: &Value) -> bool {
        matches!(
            self.statements.last(),
            Some(Statement::Match { field, negated: false, operand: MatchOperand::Value(value) })
                if *field == checked && value == wanted
        )
    }

    fn learn(&mut self, field: Field, value: &Value) {
        self.network = match (field, value) {
            (Field::NfProto, Value::U8(NFPROTO_IPV4)) => Some(Network::Ip),
            (Field::NfProto, Value::U8(NFPROTO_IPV6)) => Some(Network::Ip6),
            (Field::EtherType, Value::U16(number)) => Network::from_ether_type(*number),
            _ => self.network,
        };
    }
}

/// Name of a looked-up set. In a batch that is not committed yet, anonymous sets are known by number.
fn set_name(attributes: &Attributes<'_>) -> Option<String> {
    let set = text(find(attributes.clone(), e::LOOKUP_SET)?).into_owned();
    match find(attributes.clone(), e::LOOKUP_SET_ID).and_then(be32) {
        Some(id) if set == ANONYMOUS_NAME => Some(anonymous_key(id)),
        _ => Some(set),
    }
}

/// How [`AnonymousSets`] calls a set that has only a number.
pub(super) fn anonymous_key(id: u32) -> String {
    format!("{ANONYMOUS_NAME}{id}")
}

fn value(attributes: &Attributes<'_>, kind: u16) -> Option<Bytes> {
    let bytes = find(Attributes(find(attributes.clone(), kind)?), data::VALUE)?;
    (bytes.len() <= MAX_VALUE).then(|| Bytes::new(bytes))
}

fn limit(attributes: &Attributes<'_>) -> Option<Statement> {
    let wide = |kind| array_at(find(attributes.clone(), kind)?, 0).map(u64::from_be_bytes);
    let number = |kind| be32(find(attributes.clone(), kind)?);
    let is_packets_per_second = wide(e::LIMIT_UNIT)? == 1
        && number(e::LIMIT_TYPE).unwrap_or(0) == 0
        && number(e::LIMIT_FLAGS).unwrap_or(0) == 0;
    let burst = number(e::LIMIT_BURST)?;
    let rate = wide(e::LIMIT_RATE)?;
    is_packets_per_second.then_some(Statement::Limit { rate, burst })
}

fn log(attributes: &Attributes<'_>) -> Option<Statement> {
    Some(Statement::Log {
        prefix: name(find(attributes.clone(), e::LOG_PREFIX)?)?,
        group: array_at(find(attributes.clone(), e::LOG_GROUP)?, 0).map(u16::from_be_bytes)?,
        snaplen: find(attributes.clone(), e::LOG_SNAPLEN)
            .and_then(be32)
            .unwrap_or(0),
    })
}
