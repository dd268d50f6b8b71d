//! Operations as messages of the kernel.
//!
//! Facts that are easy to get wrong:
//!
//! * A list of elements is one attribute, whose length is sixteen bits: it is split over messages.
//! * The fields of a concatenated key are padded to four bytes each.
//! * A range is two elements, its first value and, flagged as end, the value after its last one. A range that
//!   reaches the end of the space has no end element; nft wants a flag in the first one's user data instead.
//! * Numbers of the interface are in network order, class ids (and all that the kernel keeps in host order) are not.

use std::time::Duration;

use super::batch::{Batch, Nest};
use super::expression::{ANONYMOUS_NAME, anonymous_set, checked, checked_range, expressions};
use super::field::{Bytes, Shape};
use super::object::{
    Chain, ChainKind, Element, ElementValue, Family, Field, FieldType, Hook, MapData, Name, Rule,
    RuleVerdict, SetKey, SetSpec, Statement, Table, TableFlags, Value,
};
use super::transaction::Operation;
use super::uapi::{
    LIST_ELEM, NFPROTO_BRIDGE, NFPROTO_INET, NLM_F_APPEND, NLM_F_CREATE, NLM_F_NONREC, chain, data,
    element, message, rule, set, table, userdata,
};

/// Where a list of elements goes on in another message. An element is never longer than what is left to 64 KiB.
const FULL_LIST: usize = 65_000;

/// Why an operation cannot be said to the kernel: the types allow it, nftables does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EncodeError(pub(super) &'static str);

/// Writes operations to a batch.
#[derive(Debug)]
pub(super) struct Encoder<'a> {
    pub(super) batch: &'a mut Batch,
    /// Names the sets of this batch; the kernel wants a number for anonymous ones.
    next_set_id: u32,
}

/// Number of a family in a message.
pub(super) fn family_number(family: Family) -> u8 {
    match family {
        Family::Inet => NFPROTO_INET,
        Family::Bridge => NFPROTO_BRIDGE,
    }
}

/// Number of a hook.
pub(super) fn hook_number(hook: Hook) -> u32 {
    match hook {
        Hook::Prerouting => 0,
        Hook::Input => 1,
        Hook::Forward => 2,
        Hook::Output => 3,
        Hook::Postrouting => 4,
    }
}

impl<'a> Encoder<'a> {
    pub(super) fn new(batch: &'a mut Batch) -> Self {
        Self {
            batch,
            next_set_id: 1,
        }
    }

    /// Appends the messages of one operation.
    pub(super) fn operation(&mut self, operation: &Operation) -> Result<(), EncodeError> {
        match operation {
            Operation::AddTable(table, flags) => self.add_table(table, *flags),
            Operation::DeleteTable(table) => {
                self.start(message::DELTABLE, 0, table);
                self.batch.text(table::NAME, table.name.as_str());
                self.batch.finish();
            }
            Operation::AddChain(table, chain) => self.add_chain(table, chain),
            Operation::FlushChain(table, name) => {
                self.start(message::DELRULE, 0, table);
                self.batch.text(rule::TABLE, table.name.as_str());
                self.batch.text(rule::CHAIN, name.as_str());
                self.batch.finish();
            }
            Operation::DeleteChain(table, name) => {
                self.start(message::DELCHAIN, NLM_F_NONREC, table);
                self.batch.text(chain::TABLE, table.name.as_str());
                self.batch.text(chain::NAME, name.as_str());
                self.batch.finish();
            }
            Operation::AddRule(table, chain, rule) => self.add_rule(table, chain, rule)?,
            Operation::AddSet(table, spec) => self.add_set(table, spec)?,
            Operation::DeleteSet(table, name) => {
                self.start(message::DELSET, 0, table);
                self.batch.text(set::TABLE, table.name.as_str());
                self.batch.text(set::NAME, name.as_str());
                self.batch.finish();
            }
            Operation::FlushSet(table, name) => {
                self.start(message::DELSETELEM, 0, table);
                self.batch.text(element::LIST_TABLE, table.name.as_str());
                self.batch.text(element::LIST_SET, name.as_str());
                self.batch.finish();
            }
            Operation::AddElements(table, name, elements) => {
                self.elements(message::NEWSETELEM, NLM_F_CREATE, table, name, elements)?;
            }
            Operation::AddTimedElements(table, name, elements) => {
                self.timed_elements(table, name, elements)?;
            }
            Operation::DeleteElements(table, name, elements) => {
                self.elements(message::DELSETELEM, 0, table, name, elements)?;
            }
        }
        Ok(())
    }

    fn start(&mut self, kind: u8, flags: u16, table: &Table) {
        self.batch
            .start_nft(kind, flags, family_number(table.family));
    }

    fn add_table(&mut self, table: &Table, flags: TableFlags) {
        let owner = if flags.owner { table::F_OWNER } else { 0 };
        let persist = if flags.persist { table::F_PERSIST } else { 0 };
        self.start(message::NEWTABLE, NLM_F_CREATE, table);
        self.batch.text(table::NAME, table.name.as_str());
        self.batch.u32_be(table::FLAGS, owner | persist);
        self.batch.finish();
    }

    fn add_chain(&mut self, table: &Table, chain: &Chain) {
        self.start(message::NEWCHAIN, NLM_F_CREATE, table);
        self.batch.text(chain::TABLE, table.name.as_str());
        self.batch.text(chain::NAME, chain.name.as_str());
        if let Some(base) = chain.base {
            self.batch.nested(chain::HOOK, |batch| {
                batch.u32_be(chain::HOOK_NUMBER, hook_number(base.hook));
                batch.bytes_attribute(chain::HOOK_PRIORITY, &base.priority.to_be_bytes());
            });
            let kind = match base.kind {
                ChainKind::Filter => "filter",
            };
            self.batch.u32_be(chain::POLICY, chain::ACCEPT);
            self.batch.text(chain::TYPE, kind);
        }
        self.batch.finish();
    }

    fn add_rule(&mut self, table: &Table, chain: &Name, rule: &Rule) -> Result<(), EncodeError> {
        let first_anonymous = self.next_set_id;
        for statement in &rule.statements {
            if let Statement::Match { field, operand, .. } = statement
                && let Some(ranges) = anonymous_set(*field, operand)
            {
                self.add_anonymous_set(table, *field, &ranges)?;
            }
        }
        self.start(message::NEWRULE, NLM_F_CREATE | NLM_F_APPEND, table);
        self.batch.text(rule::TABLE, table.name.as_str());
        self.batch.text(rule::CHAIN, chain.as_str());
        let list = self.batch.open(rule::EXPRESSIONS);
        expressions(self, table.family, rule, first_anonymous)?;
        if self.batch.length(list) > FULL_LIST {
            return Err(EncodeError("a rule of more than 64 KiB"));
        }
        self.batch.close(list);
        self.batch.finish();
        Ok(())
    }

    fn add_set(&mut self, table: &Table, spec: &SetSpec) -> Result<(), EncodeError> {
        check_spec(spec)?;
        let mut flags = 0;
        if spec.interval {
            flags |= set::F_INTERVAL;
        }
        if spec.timeout {
            flags |= set::F_TIMEOUT;
        }
        if spec.data.is_some() {
            flags |= set::F_MAP;
        }
        let id = self.next_set_id;
        self.next_set_id += 1;
        self.start(message::NEWSET, NLM_F_CREATE, table);
        self.batch.text(set::TABLE, table.name.as_str());
        self.batch.text(set::NAME, spec.name.as_str());
        self.batch.u32_be(set::FLAGS, flags);
        self.batch.u32_be(set::KEY_TYPE, key_type(&spec.key));
        self.batch.u32_be(set::KEY_LEN, key_length(&spec.key));
        if let Some(data) = spec.data {
            let (kind, length) = match data {
                MapData::Verdict => (set::DATA_VERDICT, 0),
                MapData::ClassId => (FieldType::ClassId.id(), 4),
            };
            self.batch.u32_be(set::DATA_TYPE, kind);
            self.batch.u32_be(set::DATA_LEN, length);
        }
        self.batch.u32_be(set::ID, id);
        self.batch
            .nested(set::DESC, |batch| batch.u32_be(set::DESC_SIZE, spec.size));
        self.set_userdata(spec);
        self.batch.finish();
        Ok(())
    }

    /// What nft needs to print the set.
    fn set_userdata(&mut self, spec: &SetSpec) {
        let key_order = match spec.key.as_slice() {
            [only] => only.byte_order(),
            _ => userdata::ORDER_NONE,
        };
        let nest = self.batch.open_plain(set::USERDATA);
        self.batch
            .raw(&number_tlv(userdata::SET_KEY_BYTE_ORDER, key_order));
        if let Some(data) = spec.data {
            let order = match data {
                MapData::Verdict => userdata::ORDER_NONE,
                MapData::ClassId => userdata::ORDER_HOST,
            };
            self.batch
                .raw(&number_tlv(userdata::SET_DATA_BYTE_ORDER, order));
        }
        if spec.key.contains(&FieldType::Icmpv6Target) {
            self.batch
                .raw(&tlv(userdata::SET_KEY_TYPEOF, &key_typeof(&spec.key)));
        }
        self.batch.close(nest);
    }

    fn add_anonymous_set(
        &mut self,
        table: &Table,
        field: Field,
        ranges: &[(Value, Value)],
    ) -> Result<(), EncodeError> {
        let facts = field.facts();
        let mut checked = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            checked.push(checked_range(facts.shape, first, last)?);
        }
        if checked
            .windows(2)
            .any(|pair| facts.shape.is_ordered() && pair[0].1 >= pair[1].0)
        {
            return Err(EncodeError("a list that is not sorted and disjoint"));
        }
        let interval = checked.iter().any(|(first, last)| first != last);
        let id = self.next_set_id;
        self.next_set_id += 1;
        let flags = set::F_ANONYMOUS | set::F_CONSTANT | if interval { set::F_INTERVAL } else { 0 };
        let size = checked.len() * if interval { 2 } else { 1 };
        let order = if facts.shape.is_ordered() {
            userdata::ORDER_BIG
        } else {
            userdata::ORDER_HOST
        };
        self.start(message::NEWSET, NLM_F_CREATE, table);
        self.batch.text(set::TABLE, table.name.as_str());
        self.batch.text(set::NAME, ANONYMOUS_NAME);
        self.batch.u32_be(set::FLAGS, flags);
        self.batch.u32_be(set::KEY_TYPE, facts.type_id);
        self.batch.u32_be(set::KEY_LEN, length_u32(facts.shape));
        self.batch.u32_be(set::ID, id);
        let size = u32::try_from(size).map_err(|_| EncodeError("a list without end"))?;
        self.batch
            .nested(set::DESC, |batch| batch.u32_be(set::DESC_SIZE, size));
        self.batch.bytes_attribute(
            set::USERDATA,
            &number_tlv(userdata::SET_KEY_BYTE_ORDER, order),
        );
        self.batch.finish();

        let mut list = self.open_list(
            message::NEWSETELEM,
            NLM_F_CREATE,
            table,
            ANONYMOUS_NAME,
            Some(id),
        );
        for (first, last) in &checked {
            list = self.split(
                list,
                message::NEWSETELEM,
                NLM_F_CREATE,
                table,
                ANONYMOUS_NAME,
                Some(id),
            );
            if interval {
                self.range(first, last, None);
            } else {
                self.batch
                    .nested(LIST_ELEM, |batch| key(batch, first.as_slice()));
            }
        }
        self.close_list(list);
        Ok(())
    }

    fn elements(
        &mut self,
        kind: u8,
        flags: u16,
        table: &Table,
        name: &Name,
        elements: &[Element],
    ) -> Result<(), EncodeError> {
        if elements.is_empty() {
            // Nothing to do, and nft has no way to say it.
            return Ok(());
        }
        let is_deletion = kind == message::DELSETELEM;
        let mut list = self.open_list(kind, flags, table, name.as_str(), None);
        for element in elements {
            list = self.split(list, kind, flags, table, name.as_str(), None);
            // The kernel compares the value on deletion, if there is one; the key alone decides here.
            let value = if is_deletion {
                None
            } else {
                element.value.as_ref()
            };
            self.element(&element.key, value, None)?;
        }
        self.close_list(list);
        Ok(())
    }

    fn timed_elements(
        &mut self,
        table: &Table,
        name: &Name,
        elements: &[(SetKey, Duration)],
    ) -> Result<(), EncodeError> {
        if elements.is_empty() {
            return Ok(());
        }
        let (kind, flags) = (message::NEWSETELEM, NLM_F_CREATE);
        let mut list = self.open_list(kind, flags, table, name.as_str(), None);
        for (key, time) in elements {
            list = self.split(list, kind, flags, table, name.as_str(), None);
            self.element(key, None, Some(*time))?;
        }
        self.close_list(list);
        Ok(())
    }

    fn element(
        &mut self,
        set_key: &SetKey,
        value: Option<&ElementValue>,
        time: Option<Duration>,
    ) -> Result<(), EncodeError> {
        match set_key {
            SetKey::Exact(values) => {
                let element = self.batch.open(LIST_ELEM);
                let key_nest = self.batch.open(element::KEY);
                let data_nest = self.batch.open_plain(data::VALUE);
                for value in values {
                    let bytes = checked(value.shape(), value)?;
                    self.batch.raw(bytes.as_slice());
                    if values.len() > 1 {
                        let padding = bytes.as_slice().len().next_multiple_of(4);
                        self.batch.raw(&[0; 4][..padding - bytes.as_slice().len()]);
                    }
                }
                self.batch.close(data_nest);
                self.batch.close(key_nest);
                element_value(self.batch, value);
                if let Some(time) = time {
                    let time = milliseconds(time).to_be_bytes();
                    self.batch.bytes_attribute(element::TIMEOUT, &time);
                }
                self.batch.close(element);
            }
            SetKey::Range(first, last) => {
                let (first, last) = checked_range(first.shape(), first, last)?;
                if time.is_some() {
                    return Err(EncodeError("a range that ends by itself"));
                }
                self.range(&first, &last, value);
            }
        }
        Ok(())
    }

    fn range(&mut self, first: &Bytes, last: &Bytes, value: Option<&ElementValue>) {
        let end = last.successor();
        self.batch.nested(LIST_ELEM, |batch| {
            key(batch, first.as_slice());
            element_value(batch, value);
            if end.is_none() {
                let open = number_tlv(userdata::ELEMENT_FLAGS, userdata::ELEMENT_F_INTERVAL_OPEN);
                batch.bytes_attribute(element::USERDATA, &open);
            }
        });
        if let Some(end) = end {
            self.batch.nested(LIST_ELEM, |batch| {
                batch.u32_be(element::FLAGS, element::F_INTERVAL_END);
                key(batch, end.as_slice());
            });
        }
    }

    fn open_list(
        &mut self,
        kind: u8,
        flags: u16,
        table: &Table,
        set: &str,
        id: Option<u32>,
    ) -> Nest {
        self.start(kind, flags, table);
        self.batch.text(element::LIST_TABLE, table.name.as_str());
        self.batch.text(element::LIST_SET, set);
        if let Some(id) = id {
            self.batch.u32_be(element::LIST_SET_ID, id);
        }
        self.batch.open(element::LIST_ELEMENTS)
    }

    /// Goes on in another message when this one is full.
    fn split(
        &mut self,
        list: Nest,
        kind: u8,
        flags: u16,
        table: &Table,
        set: &str,
        id: Option<u32>,
    ) -> Nest {
        if self.batch.length(list) < FULL_LIST {
            return list;
        }
        self.close_list(list);
        self.open_list(kind, flags, table, set, id)
    }

    fn close_list(&mut self, list: Nest) {
        self.batch.close(list);
        self.batch.finish();
    }
}

/// The kernel takes none for "as the set says", so no time is the shortest one.
fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1)
}

fn key(batch: &mut Batch, bytes: &[u8]) {
    batch.nested(element::KEY, |batch| {
        batch.bytes_attribute(data::VALUE, bytes);
    });
}

fn element_value(batch: &mut Batch, value: Option<&ElementValue>) {
    match value {
        None => {}
        Some(ElementValue::Verdict(verdict)) => verdict_data(batch, element::DATA, verdict),
        Some(ElementValue::ClassId(class)) => batch.nested(element::DATA, |batch| {
            batch.bytes_attribute(data::VALUE, &class.to_ne_bytes());
        }),
    }
}

/// Appends an attribute that holds a verdict.
pub(super) fn verdict_data(batch: &mut Batch, kind: u16, verdict: &RuleVerdict) {
    let (code, chain) = match verdict {
        RuleVerdict::Accept => (data::ACCEPT, None),
        RuleVerdict::Drop => (data::DROP, None),
        RuleVerdict::Return => (data::RETURN, None),
        RuleVerdict::Continue => (data::CONTINUE, None),
        RuleVerdict::Jump(chain) => (data::JUMP, Some(chain)),
        RuleVerdict::Goto(chain) => (data::GOTO, Some(chain)),
    };
    batch.nested(kind, |batch| {
        batch.nested(data::VERDICT, |batch| {
            batch.bytes_attribute(data::VERDICT_CODE, &code.to_be_bytes());
            if let Some(chain) = chain {
                batch.text(data::VERDICT_CHAIN, chain.as_str());
            }
        });
    });
}

fn check_spec(spec: &SetSpec) -> Result<(), EncodeError> {
    match spec.key.as_slice() {
        [] => Err(EncodeError("a set without fields")),
        [only] if spec.interval && !only.shape().is_ordered() => {
            Err(EncodeError("ranges of values without order"))
        }
        [_, _, ..] if spec.interval => Err(EncodeError("ranges in a concatenation")),
        // nft has room for five types in 32 bits.
        key if key.len() > 5 => Err(EncodeError("a key of more than five fields")),
        _ => Ok(()),
    }
}

/// nft's type of a key: the ids of its fields, six bits each.
pub(super) fn key_type(key: &[FieldType]) -> u32 {
    key.iter()
        .fold(0, |number, field| (number << set::TYPE_BITS) | field.id())
}

/// Bytes of a key.
pub(super) fn key_length(key: &[FieldType]) -> u32 {
    match key {
        [only] => length_u32(only.shape()),
        fields => fields
            .iter()
            .map(|field| length_u32(field.shape()).next_multiple_of(4))
            .sum(),
    }
}

fn length_u32(shape: Shape) -> u32 {
    u32::try_from(shape.length()).expect("values are at most sixteen bytes")
}

/// The user data that makes nft print `typeof` with an example of each field.
fn key_typeof(fields: &[FieldType]) -> Vec<u8> {
    let field_data = |field: FieldType| {
        let (expression, numbers) = field.typeof_data();
        let described: Vec<u8> = (0..)
            .zip(numbers)
            .flat_map(|(kind, number)| number_tlv(kind, *number))
            .collect();
        (expression, described)
    };
    let typed = |(expression, described): (u32, Vec<u8>)| {
        let mut bytes = number_tlv(userdata::TYPEOF_EXPRESSION, expression).to_vec();
        bytes.extend(tlv(userdata::TYPEOF_DATA, &described));
        bytes
    };
    match fields {
        [only] => typed(field_data(*only)),
        fields => {
            let parts = (0..)
                .zip(fields)
                .flat_map(|(position, field)| tlv(position, &typed(field_data(*field))))
                .collect();
            typed((userdata::EXPRESSION_CONCAT, parts))
        }
    }
}

fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
    let length = u8::try_from(value.len()).expect("five short fields at most");
    let mut bytes = vec![kind, length];
    bytes.extend_from_slice(value);
    bytes
}

fn number_tlv(kind: u8, number: u32) -> [u8; 6] {
    let [a, b, c, d] = number.to_ne_bytes();
    [kind, 4, a, b, c, d]
}
