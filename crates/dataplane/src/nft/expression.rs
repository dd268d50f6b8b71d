//! Rules as the kernel's expressions: load into registers, compare or look up, act.
//!
//! A field of a protocol's header means nothing in another protocol's packet, so a check of the protocol goes before
//! the first such field of a rule, in the form that nft writes and hides again when it lists:
//!
//! * inet: `meta nfproto`; bridge: `meta protocol` for IP headers, the `EtherType` for ARP and `ICMPv6`.
//! * `icmpv6` fields also imply `meta l4proto`, link-layer fields in inet `meta iiftype ether`.
//!
//! Ports (`th`) and [`Field::Icmpv6Target`] imply nothing: the rule says the protocol itself.

use std::borrow::Cow;

use super::batch::{Batch, Nest};
use super::encode::{EncodeError, Encoder, verdict_data};
use super::field::{Bytes, ICMPV6, Load, Network, Shape};
use super::object::{Family, Field, MatchOperand, Name, Rule, Statement, Value};
use super::symbols::CT_STATES;
use super::uapi::{LIST_ELEM, NFPROTO_IPV4, NFPROTO_IPV6, data, expression as e, rule};

/// Name under which the kernel numbers anonymous sets.
pub(super) const ANONYMOUS_NAME: &str = "__set%d";
/// `ARPHRD_ETHER`.
const ARPHRD_ETHER: u16 = 1;

/// A set to look up: a named one, or one that this batch makes.
#[derive(Clone, Copy, Debug)]
enum LookedUp<'a> {
    Named(&'a Name),
    Anonymous(u32),
}

/// Protocols that the statements so far have established.
#[derive(Clone, Copy, Debug, Default)]
struct Established {
    link: bool,
    network: Option<Network>,
    transport: Option<u8>,
}

struct Expressions<'a> {
    batch: &'a mut Batch,
    family: Family,
    established: Established,
    /// Ids of the anonymous sets, in the order of use.
    next_anonymous: u32,
}

/// A list of values as an anonymous set, or `None` when one comparison does.
pub(super) fn anonymous_set(
    field: Field,
    operand: &MatchOperand,
) -> Option<Cow<'_, [(Value, Value)]>> {
    let MatchOperand::OneOf(ranges) = operand else {
        return None;
    };
    let joined = field.facts().shape.join(ranges);
    (joined.len() > 1).then_some(joined)
}

/// Appends the rule's expression list to the open message, after its anonymous sets were made with ids from
/// `first_anonymous` on.
pub(super) fn expressions(
    encoder: &mut Encoder<'_>,
    family: Family,
    rule: &Rule,
    first_anonymous: u32,
) -> Result<(), EncodeError> {
    let mut expressions = Expressions {
        batch: encoder.batch,
        family,
        established: Established::default(),
        next_anonymous: first_anonymous,
    };
    rule.statements
        .iter()
        .try_for_each(|statement| expressions.statement(statement))
}

impl Expressions<'_> {
    fn statement(&mut self, statement: &Statement) -> Result<(), EncodeError> {
        match statement {
            Statement::Match {
                field,
                negated,
                operand,
            } => {
                self.compare(*field, *negated, operand)?;
            }
            Statement::MatchSet {
                fields,
                negated,
                set,
            } => {
                self.load_fields(fields)?;
                self.look_up(LookedUp::Named(set), *negated, None);
            }
            Statement::CtState { any_of } => self.ct_state(*any_of)?,
            Statement::VerdictMap { fields, map } => {
                self.load_fields(fields)?;
                self.look_up(LookedUp::Named(map), false, Some(e::REGISTER_VERDICT));
            }
            Statement::SetPriority(class) => {
                self.expression("immediate", |batch| {
                    batch.u32_be(e::IMMEDIATE_DREG, e::REGISTER_1);
                    value(batch, e::IMMEDIATE_DATA, &class.to_ne_bytes());
                });
                self.set_priority();
            }
            Statement::SetPriorityFromMap { fields, map } => {
                self.load_fields(fields)?;
                self.look_up(LookedUp::Named(map), false, Some(e::REGISTER_1));
                self.set_priority();
            }
            Statement::Counter => self.expression("counter", |batch| {
                batch.u64_be(e::COUNTER_BYTES, 0);
                batch.u64_be(e::COUNTER_PACKETS, 0);
            }),
            Statement::Limit { rate, burst } => self.expression("limit", |batch| {
                batch.u64_be(e::LIMIT_RATE, *rate);
                batch.u64_be(e::LIMIT_UNIT, 1);
                batch.u32_be(e::LIMIT_BURST, *burst);
                batch.u32_be(e::LIMIT_TYPE, 0);
                batch.u32_be(e::LIMIT_FLAGS, 0);
            }),
            Statement::Log {
                prefix,
                group,
                snaplen,
            } => self.expression("log", |batch| {
                batch.text(e::LOG_PREFIX, prefix.as_str());
                batch.u16_be(e::LOG_GROUP, *group);
                batch.u32_be(e::LOG_SNAPLEN, *snaplen);
                batch.u16_be(e::LOG_QTHRESHOLD, 0);
            }),
            Statement::Verdict(verdict) => self.expression("immediate", |batch| {
                batch.u32_be(e::IMMEDIATE_DREG, e::REGISTER_VERDICT);
                verdict_data(batch, e::IMMEDIATE_DATA, verdict);
            }),
        }
        Ok(())
    }

    fn compare(
        &mut self,
        field: Field,
        negated: bool,
        operand: &MatchOperand,
    ) -> Result<(), EncodeError> {
        let shape = field.facts().shape;
        match operand {
            MatchOperand::Set(set) => {
                self.load_fields(&[field])?;
                self.look_up(LookedUp::Named(set), negated, None);
            }
            MatchOperand::Value(only) => {
                self.load_fields(&[field])?;
                self.compare_bytes(negated, &checked(shape, only)?);
                if !negated {
                    self.learn(field, only);
                }
            }
            MatchOperand::OneOf(ranges) => match shape.join(ranges).as_ref() {
                [] => return Err(EncodeError("an empty list")),
                [(first, last)] if first == last => {
                    let only = MatchOperand::Value(first.clone());
                    return self.compare(field, negated, &only);
                }
                [(first, last)] => {
                    let (first, last) = checked_range(shape, first, last)?;
                    self.load_fields(&[field])?;
                    self.compare_range(negated, &first, &last);
                }
                _ => {
                    self.load_fields(&[field])?;
                    let id = self.next_anonymous;
                    self.next_anonymous += 1;
                    self.look_up(LookedUp::Anonymous(id), negated, None);
                }
            },
            MatchOperand::Prefix(base, length) => {
                let base = checked(shape, base)?;
                check_prefix(field, *length)?;
                self.compare_prefix(field, negated, &base, *length)?;
            }
        }
        Ok(())
    }

    fn compare_prefix(
        &mut self,
        field: Field,
        negated: bool,
        base: &Bytes,
        length: u8,
    ) -> Result<(), EncodeError> {
        let is_address = matches!(field.facts().shape, Shape::Ipv4 | Shape::Ipv6);
        let whole_bytes = usize::from(length / 8);
        if is_address && length.is_multiple_of(8) && whole_bytes > 0 {
            // As nft does: load only the bytes that count.
            self.imply(field)?;
            self.load(field, 0, whole_bytes);
            self.compare_bytes(negated, &Bytes::new(&base.as_slice()[..whole_bytes]));
        } else {
            self.load_fields(&[field])?;
            let mask = base.mask(length);
            self.mask(&mask);
            self.compare_bytes(negated, &base.and(&mask));
        }
        Ok(())
    }

    fn ct_state(&mut self, any_of: u32) -> Result<(), EncodeError> {
        let known = CT_STATES.iter().fold(0, |known, (bit, _)| known | bit);
        if any_of == 0 || any_of & !known != 0 {
            return Err(EncodeError("a connection state that nft does not know"));
        }
        self.expression("ct", |batch| {
            batch.u32_be(e::CT_DREG, e::REGISTER_1);
            batch.u32_be(e::CT_KEY, e::CT_STATE);
        });
        self.mask(&Bytes::new(&any_of.to_ne_bytes()));
        self.compare_bytes(true, &Bytes::new(&[0; 4]));
        Ok(())
    }

    /// Loads the fields one after the other, each padded to four bytes, as the kernel concatenates them.
    fn load_fields(&mut self, fields: &[Field]) -> Result<(), EncodeError> {
        for field in fields {
            self.imply(*field)?;
        }
        let mut word = 0;
        for field in fields {
            let length = field.facts().shape.length();
            self.load(*field, word, length);
            word += u32::try_from(length.div_ceil(4)).expect("fields are at most sixteen bytes");
        }
        if word > 16 {
            return Err(EncodeError("more fields than the registers hold"));
        }
        Ok(())
    }

    /// Loads one field to the `word`-th register of four bytes.
    fn load(&mut self, field: Field, word: u32, length: usize) {
        let register = register(word);
        match field.facts().load {
            Load::Payload { base, offset } => self.payload(register, base, offset, length),
            Load::Meta(key) => self.meta(register, key),
            Load::Ct(key) => self.expression("ct", |batch| {
                batch.u32_be(e::CT_DREG, register);
                batch.u32_be(e::CT_KEY, key);
            }),
        }
    }

    /// Adds the checks that a field implies and no statement made yet.
    fn imply(&mut self, field: Field) -> Result<(), EncodeError> {
        if let Some(network) = field.network() {
            self.imply_network(field, network)?;
        }
        let is_link = matches!(
            field,
            Field::EtherSource | Field::EtherDestination | Field::EtherType
        );
        if is_link && self.family == Family::Inet && !self.established.link {
            self.meta(e::REGISTER_1, e::META_IIFTYPE);
            self.compare_bytes(false, &Bytes::new(&ARPHRD_ETHER.to_ne_bytes()));
            self.established.link = true;
        }
        if field == Field::Icmpv6Type && self.established.transport != Some(ICMPV6) {
            self.meta(e::REGISTER_1, e::META_L4PROTO);
            self.compare_bytes(false, &Bytes::new(&[ICMPV6]));
            self.established.transport = Some(ICMPV6);
        }
        Ok(())
    }

    fn imply_network(&mut self, field: Field, network: Network) -> Result<(), EncodeError> {
        match self.established.network {
            Some(known) if known == network => return Ok(()),
            Some(_) => return Err(EncodeError("fields of two network protocols in one rule")),
            None => {}
        }
        match (self.family, network) {
            (Family::Inet, Network::Arp) => {
                return Err(EncodeError("a field of ARP in an inet table"));
            }
            (Family::Inet, Network::Ip | Network::Ip6) => {
                let number = if network == Network::Ip {
                    NFPROTO_IPV4
                } else {
                    NFPROTO_IPV6
                };
                self.meta(e::REGISTER_1, e::META_NFPROTO);
                self.compare_bytes(false, &Bytes::new(&[number]));
            }
            (Family::Bridge, _) => {
                if network == Network::Arp || field == Field::Icmpv6Type {
                    self.load(Field::EtherType, 0, 2);
                } else {
                    self.meta(e::REGISTER_1, e::META_PROTOCOL);
                }
                self.compare_bytes(false, &Bytes::new(&network.ether_type().to_be_bytes()));
            }
        }
        self.established.network = Some(network);
        Ok(())
    }

    /// Remembers what an explicit comparison established.
    fn learn(&mut self, field: Field, value: &Value) {
        match (field, value) {
            (Field::NfProto, Value::U8(NFPROTO_IPV4)) => {
                self.established.network = Some(Network::Ip);
            }
            (Field::NfProto, Value::U8(NFPROTO_IPV6)) => {
                self.established.network = Some(Network::Ip6);
            }
            (Field::EtherType, Value::U16(number)) => {
                self.established.network = Network::from_ether_type(*number);
            }
            (Field::L4Proto, Value::U8(number)) => self.established.transport = Some(*number),
            _ => {}
        }
    }

    fn payload(&mut self, register: u32, base: u32, offset: u32, length: usize) {
        let length = u32::try_from(length).expect("fields are at most sixteen bytes");
        self.expression("payload", |batch| {
            batch.u32_be(e::PAYLOAD_DREG, register);
            batch.u32_be(e::PAYLOAD_BASE, base);
            batch.u32_be(e::PAYLOAD_OFFSET, offset);
            batch.u32_be(e::PAYLOAD_LEN, length);
        });
    }

    fn meta(&mut self, register: u32, key: u32) {
        self.expression("meta", |batch| {
            batch.u32_be(e::META_DREG, register);
            batch.u32_be(e::META_KEY, key);
        });
    }

    fn set_priority(&mut self) {
        self.expression("meta", |batch| {
            batch.u32_be(e::META_KEY, e::META_PRIORITY);
            batch.u32_be(e::META_SREG, e::REGISTER_1);
        });
    }

    fn mask(&mut self, mask: &Bytes) {
        let length = mask.as_slice().len();
        self.expression("bitwise", |batch| {
            batch.u32_be(e::BITWISE_SREG, e::REGISTER_1);
            batch.u32_be(e::BITWISE_DREG, e::REGISTER_1);
            batch.u32_be(
                e::BITWISE_LEN,
                u32::try_from(length).expect("at most sixteen bytes"),
            );
            value(batch, e::BITWISE_MASK, mask.as_slice());
            value(batch, e::BITWISE_XOR, &[0; 16][..length]);
        });
    }

    fn compare_bytes(&mut self, negated: bool, bytes: &Bytes) {
        self.compare_with(if negated { e::CMP_NEQ } else { e::CMP_EQ }, bytes);
    }

    fn compare_range(&mut self, negated: bool, first: &Bytes, last: &Bytes) {
        if negated {
            self.expression("range", |batch| {
                batch.u32_be(e::RANGE_SREG, e::REGISTER_1);
                batch.u32_be(e::RANGE_OP, e::RANGE_NEQ);
                value(batch, e::RANGE_FROM, first.as_slice());
                value(batch, e::RANGE_TO, last.as_slice());
            });
        } else {
            self.compare_with(e::CMP_GTE, first);
            self.compare_with(e::CMP_LTE, last);
        }
    }

    fn compare_with(&mut self, operator: u32, bytes: &Bytes) {
        self.expression("cmp", |batch| {
            batch.u32_be(e::CMP_SREG, e::REGISTER_1);
            batch.u32_be(e::CMP_OP, operator);
            value(batch, e::CMP_DATA, bytes.as_slice());
        });
    }

    fn look_up(&mut self, set: LookedUp<'_>, negated: bool, destination: Option<u32>) {
        self.expression("lookup", |batch| {
            batch.u32_be(e::LOOKUP_SREG, e::REGISTER_1);
            if let Some(register) = destination {
                batch.u32_be(e::LOOKUP_DREG, register);
            }
            match set {
                LookedUp::Named(name) => batch.text(e::LOOKUP_SET, name.as_str()),
                LookedUp::Anonymous(id) => {
                    batch.text(e::LOOKUP_SET, ANONYMOUS_NAME);
                    batch.u32_be(e::LOOKUP_SET_ID, id);
                }
            }
            if negated {
                batch.u32_be(e::LOOKUP_FLAGS, e::LOOKUP_F_INVERTED);
            }
        });
    }

    fn expression(&mut self, name: &str, fill: impl FnOnce(&mut Batch)) {
        let element: Nest = self.batch.open(LIST_ELEM);
        self.batch.text(rule::EXPRESSION_NAME, name);
        self.batch.nested(rule::EXPRESSION_DATA, fill);
        self.batch.close(element);
    }
}

/// The register at a word of four bytes; where sixteen bytes start, nft uses the old name.
fn register(word: u32) -> u32 {
    if word.is_multiple_of(4) {
        e::REGISTER_1 + word / 4
    } else {
        e::REGISTER32_0 + word
    }
}

/// Appends an attribute that holds a data value.
fn value(batch: &mut Batch, kind: u16, bytes: &[u8]) {
    batch.nested(kind, |batch| batch.bytes_attribute(data::VALUE, bytes));
}

/// The bytes of a value, when it has the shape.
pub(super) fn checked(shape: Shape, value: &Value) -> Result<Bytes, EncodeError> {
    if value.shape() != shape {
        return Err(EncodeError("a value of another type than its field"));
    }
    value
        .bytes()
        .ok_or(EncodeError("an interface name that is empty or too long"))
}

/// The bytes of both ends of a range, when it is one.
pub(super) fn checked_range(
    shape: Shape,
    first: &Value,
    last: &Value,
) -> Result<(Bytes, Bytes), EncodeError> {
    let (first, last) = (checked(shape, first)?, checked(shape, last)?);
    if first > last || (first != last && !shape.is_ordered()) {
        return Err(EncodeError("a range that is none"));
    }
    Ok((first, last))
}

/// Prefixes are of addresses, and raw payload is none.
fn check_prefix(field: Field, length: u8) -> Result<(), EncodeError> {
    let shape = field.facts().shape;
    let is_address = matches!(shape, Shape::Ipv4 | Shape::Ipv6 | Shape::Ether);
    if is_address && field != Field::Icmpv6Target && usize::from(length) <= shape.length() * 8 {
        Ok(())
    } else {
        Err(EncodeError("a prefix that does not fit its field"))
    }
}
