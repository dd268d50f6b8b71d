//! Operations as text of the `nft` language.
//!
//! [`transaction_text`] gives a file that `nft -f` loads; error messages quote single operations. Table flags are
//! left out: nft 1.0.6 does not know `persist`.
//!
//! Only interface names come from outside. A name that nft's grammar cannot hold between quotes makes
//! [`transaction_text`] fail; nothing is ever passed on unescaped.

use std::fmt::Write as _;
use std::time::Duration;

use rustc_hash::FxHashMap;

use super::object::{
    Chain, ChainKind, Element, ElementValue, Family, Field, FieldType, Hook, MapData, MatchOperand,
    Name, Rule, RuleVerdict, SetKey, SetSpec, Statement, Table, Value,
};
use super::symbols::{
    CT_STATES, class_text, ether_mask, is_printable, key_types, range_type, value_text,
};
use super::transaction::{Operation, Transaction};

/// An interface name that cannot be written in nft's language.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the interface name {name:?} cannot be written in nft's language")]
pub struct TextError {
    /// The name.
    pub name: String,
}

/// What the text of an operation on a set depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SetType {
    /// Types of its key: raw payload is printed as a number, an address of the same length is not.
    pub(super) key: Vec<FieldType>,
    /// nft has other words for maps.
    pub(super) is_map: bool,
}

/// Known sets.
pub(super) type SetTypes = FxHashMap<(Table, Name), SetType>;

/// A whole transaction as a file for `nft -f`.
///
/// Elements of a set with [`FieldType::Icmpv6Target`] are printed right only when the transaction also makes the set.
pub fn transaction_text(transaction: &Transaction) -> Result<String, TextError> {
    let mut types = SetTypes::default();
    learn_types(&mut types, transaction);
    text_with_types(transaction, &types)
}

/// As [`transaction_text`], with types known from elsewhere.
pub(super) fn text_with_types(
    transaction: &Transaction,
    types: &SetTypes,
) -> Result<String, TextError> {
    let mut printer = Printer::new(types);
    for operation in &transaction.operations {
        printer.operation(operation);
        printer.out.push('\n');
    }
    match printer.unprintable {
        None => Ok(printer.out),
        Some(name) => Err(TextError { name }),
    }
}

/// Remembers the types of the sets that a transaction makes.
pub(super) fn learn_types(types: &mut SetTypes, transaction: &Transaction) {
    for operation in &transaction.operations {
        if let Operation::AddSet(table, spec) = operation {
            let kind = SetType {
                key: spec.key.clone(),
                is_map: spec.data.is_some(),
            };
            types.insert((table.clone(), spec.name.clone()), kind);
        }
    }
}

/// One operation for an error message, shortened.
pub(super) fn describe(operation: &Operation) -> String {
    const MOST: usize = 200;
    let mut printer = Printer::new(no_types());
    match operation {
        // No need to print a hundred thousand elements for the first few.
        Operation::AddElements(table, set, elements) => {
            printer.elements("add", table, set, &elements[..elements.len().min(8)]);
        }
        Operation::DeleteElements(table, set, elements) => {
            printer.elements("delete", table, set, &elements[..elements.len().min(8)]);
        }
        Operation::AddTimedElements(table, set, elements) => {
            printer.timed_elements(table, set, &elements[..elements.len().min(8)]);
        }
        operation => printer.operation(operation),
    }
    match printer.out.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", &printer.out[..end]),
        None => printer.out,
    }
}

fn no_types() -> &'static SetTypes {
    static NONE: std::sync::LazyLock<SetTypes> = std::sync::LazyLock::new(SetTypes::default);
    &NONE
}

/// Name of a family.
pub(super) fn family_text(family: Family) -> &'static str {
    match family {
        Family::Inet => "inet",
        Family::Bridge => "bridge",
    }
}

/// Name of a hook.
pub(super) fn hook_text(hook: Hook) -> &'static str {
    match hook {
        Hook::Prerouting => "prerouting",
        Hook::Input => "input",
        Hook::Forward => "forward",
        Hook::Output => "output",
        Hook::Postrouting => "postrouting",
    }
}

/// Prints into a text and remembers what could not be printed.
#[derive(Debug)]
pub(super) struct Printer<'a> {
    pub(super) out: String,
    types: &'a SetTypes,
    /// The first interface name that is no good text.
    pub(super) unprintable: Option<String>,
}

impl<'a> Printer<'a> {
    pub(super) fn new(types: &'a SetTypes) -> Self {
        Self {
            out: String::new(),
            types,
            unprintable: None,
        }
    }

    pub(super) fn push(&mut self, text: impl std::fmt::Display) {
        write!(self.out, "{text}").expect("a string takes everything");
    }

    fn operation(&mut self, operation: &Operation) {
        match operation {
            Operation::AddTable(table, _) => self.command("add table", table, None),
            Operation::DeleteTable(table) => self.command("delete table", table, None),
            Operation::AddChain(table, chain) => {
                self.command("add chain", table, Some(&chain.name));
                if let Some(hook) = hook_line(chain) {
                    self.push(format_args!(" {{ {hook} }}"));
                }
            }
            Operation::FlushChain(table, name) => self.command("flush chain", table, Some(name)),
            Operation::DeleteChain(table, name) => self.command("delete chain", table, Some(name)),
            Operation::AddRule(table, chain, rule) => {
                self.command("add rule", table, Some(chain));
                self.out.push(' ');
                self.rule(rule);
            }
            Operation::AddSet(table, spec) => {
                let verb = if spec.data.is_some() {
                    "add map"
                } else {
                    "add set"
                };
                self.command(verb, table, Some(&spec.name));
                self.push(format_args!(" {{ {}; }}", spec_lines(spec).join("; ")));
            }
            Operation::DeleteSet(table, name) => {
                let verb = if self.is_map(table, name) {
                    "delete map"
                } else {
                    "delete set"
                };
                self.command(verb, table, Some(name));
            }
            Operation::FlushSet(table, name) => {
                let verb = if self.is_map(table, name) {
                    "flush map"
                } else {
                    "flush set"
                };
                self.command(verb, table, Some(name));
            }
            Operation::AddElements(table, set, elements) => {
                self.elements("add", table, set, elements);
            }
            Operation::AddTimedElements(table, set, elements) => {
                self.timed_elements(table, set, elements);
            }
            Operation::DeleteElements(table, set, elements) => {
                self.elements("delete", table, set, elements);
            }
        }
    }

    fn is_map(&self, table: &Table, name: &Name) -> bool {
        self.types
            .get(&(table.clone(), name.clone()))
            .is_some_and(|known| known.is_map)
    }

    fn command(&mut self, verb: &str, table: &Table, name: Option<&Name>) {
        let family = family_text(table.family);
        self.push(format_args!("{verb} {family} {}", table.name));
        if let Some(name) = name {
            self.push(format_args!(" {name}"));
        }
    }

    fn elements(&mut self, verb: &str, table: &Table, set: &Name, elements: &[Element]) {
        if elements.is_empty() {
            // nft has no text for a list of nothing.
            return;
        }
        self.command(&format!("{verb} element"), table, Some(set));
        self.out.push_str(" { ");
        let types = self
            .types
            .get(&(table.clone(), set.clone()))
            .map(|known| &known.key);
        for (position, element) in elements.iter().enumerate() {
            if position > 0 {
                self.out.push_str(", ");
            }
            // A value in a deletion would have to be equal; the key alone decides.
            self.element(types, element, verb == "add");
        }
        self.out.push_str(" }");
    }

    fn timed_elements(&mut self, table: &Table, set: &Name, elements: &[(SetKey, Duration)]) {
        if elements.is_empty() {
            return;
        }
        self.command("add element", table, Some(set));
        self.out.push_str(" { ");
        let types = self
            .types
            .get(&(table.clone(), set.clone()))
            .map(|known| &known.key);
        for (position, (key, time)) in elements.iter().enumerate() {
            if position > 0 {
                self.out.push_str(", ");
            }
            let element = Element {
                key: key.clone(),
                value: None,
            };
            self.element(types, &element, false);
            self.push(format_args!(" timeout {}s", whole_seconds(*time)));
        }
        self.out.push_str(" }");
    }

    /// One element, with its value if wanted.
    pub(super) fn element(
        &mut self,
        types: Option<&Vec<FieldType>>,
        element: &Element,
        with_value: bool,
    ) {
        match &element.key {
            SetKey::Exact(values) => {
                for (position, (value, kind)) in
                    values.iter().zip(key_types(types, values)).enumerate()
                {
                    if position > 0 {
                        self.out.push_str(" . ");
                    }
                    self.value(kind.id(), value);
                }
            }
            SetKey::Range(first, last) => {
                let kind = key_types(types, std::slice::from_ref(first))[0];
                self.range(kind.id(), first, last);
            }
        }
        match &element.value {
            Some(ElementValue::ClassId(class)) if with_value => {
                self.push(format_args!(" : {}", class_text(*class)));
            }
            Some(ElementValue::Verdict(verdict)) if with_value => {
                self.out.push_str(" : ");
                self.verdict(verdict);
            }
            _ => {}
        }
    }

    fn value(&mut self, type_id: u32, value: &Value) {
        if let Value::Interface(name) = value
            && !is_printable(name)
        {
            self.unprintable.get_or_insert_with(|| name.to_string());
        }
        self.push(value_text(type_id, value, true));
    }

    fn range(&mut self, type_id: u32, first: &Value, last: &Value) {
        if first == last {
            self.value(type_id, first);
        } else if let Some(length) = address_prefix(type_id, first, last) {
            self.value(type_id, first);
            self.push(format_args!("/{length}"));
        } else {
            self.value(range_type(type_id), first);
            self.out.push('-');
            self.value(range_type(type_id), last);
        }
    }

    /// The statements of a rule.
    pub(super) fn rule(&mut self, rule: &Rule) {
        for (position, statement) in rule.statements.iter().enumerate() {
            if position > 0 {
                self.out.push(' ');
            }
            self.statement(statement);
        }
    }

    fn statement(&mut self, statement: &Statement) {
        match statement {
            Statement::Match {
                field,
                negated,
                operand,
            } => self.compare(*field, *negated, operand),
            Statement::MatchSet {
                fields,
                negated,
                set,
            } => {
                let unequal = if *negated { "!= " } else { "" };
                self.push(format_args!("{} {unequal}@{set}", fields_text(fields)));
            }
            Statement::CtState { any_of } => {
                let states: Vec<&str> = CT_STATES
                    .iter()
                    .filter(|(bit, _)| any_of & bit != 0)
                    .map(|(_, name)| *name)
                    .collect();
                self.push(format_args!("ct state {}", states.join(",")));
            }
            Statement::VerdictMap { fields, map } => {
                self.push(format_args!("{} vmap @{map}", fields_text(fields)));
            }
            Statement::SetPriority(class) => {
                self.push(format_args!("meta priority set {}", class_text(*class)));
            }
            Statement::SetPriorityFromMap { fields, map } => {
                self.push(format_args!(
                    "meta priority set {} map @{map}",
                    fields_text(fields)
                ));
            }
            Statement::Counter => self.out.push_str("counter"),
            Statement::Limit { rate, burst } => {
                self.push(format_args!(
                    "limit rate {rate}/second burst {burst} packets"
                ));
            }
            Statement::Log {
                prefix,
                group,
                snaplen,
            } => {
                self.push(format_args!(
                    "log prefix \"{prefix}\" group {group} snaplen {snaplen}"
                ));
            }
            Statement::Verdict(verdict) => self.verdict(verdict),
        }
    }

    fn compare(&mut self, field: Field, negated: bool, operand: &MatchOperand) {
        let facts = field.facts();
        let unequal = if negated { "!= " } else { "" };
        if let MatchOperand::Prefix(base @ Value::Ether(_), length) = operand {
            self.ether_prefix(field, negated, base, *length);
            return;
        }
        self.push(format_args!("{} {unequal}", facts.text));
        match operand {
            MatchOperand::Value(value) => self.value(facts.type_id, value),
            MatchOperand::Set(set) => self.push(format_args!("@{set}")),
            MatchOperand::Prefix(base, length) => {
                self.value(facts.type_id, base);
                if usize::from(*length) < facts.shape.length() * 8 {
                    self.push(format_args!("/{length}"));
                }
            }
            MatchOperand::OneOf(ranges) => match facts.shape.join(ranges).as_ref() {
                [(first, last)] => self.range(facts.type_id, first, last),
                ranges => {
                    self.out.push_str("{ ");
                    for (position, (first, last)) in ranges.iter().enumerate() {
                        if position > 0 {
                            self.out.push_str(", ");
                        }
                        self.range(facts.type_id, first, last);
                    }
                    self.out.push_str(" }");
                }
            },
        }
    }

    /// nft has no prefixes of hardware addresses.
    fn ether_prefix(&mut self, field: Field, negated: bool, base: &Value, length: u8) {
        let facts = field.facts();
        let mask = ether_mask(length);
        let operator = if negated { "!=" } else { "==" };
        self.push(format_args!("{} & ", facts.text));
        self.value(facts.type_id, &mask);
        self.push(format_args!(" {operator} "));
        self.value(facts.type_id, &base.masked(length));
    }

    fn verdict(&mut self, verdict: &RuleVerdict) {
        match verdict {
            RuleVerdict::Accept => self.out.push_str("accept"),
            RuleVerdict::Drop => self.out.push_str("drop"),
            RuleVerdict::Return => self.out.push_str("return"),
            RuleVerdict::Continue => self.out.push_str("continue"),
            RuleVerdict::Jump(chain) => self.push(format_args!("jump {chain}")),
            RuleVerdict::Goto(chain) => self.push(format_args!("goto {chain}")),
        }
    }
}

/// The prefix length of a range of addresses that is a block.
fn address_prefix(type_id: u32, first: &Value, last: &Value) -> Option<u8> {
    let is_address = [FieldType::Ipv4Addr.id(), FieldType::Ipv6Addr.id()].contains(&type_id);
    if is_address {
        first.bytes()?.prefix_to(&last.bytes()?)
    } else {
        None
    }
}

fn fields_text(fields: &[Field]) -> String {
    let texts: Vec<&str> = fields.iter().map(|field| field.facts().text).collect();
    texts.join(" . ")
}

/// The line that makes a base chain.
pub(super) fn hook_line(chain: &Chain) -> Option<String> {
    let base = chain.base?;
    let kind = match base.kind {
        ChainKind::Filter => "filter",
    };
    let (hook, priority) = (hook_text(base.hook), base.priority);
    Some(format!(
        "type {kind} hook {hook} priority {priority}; policy accept;"
    ))
}

/// The lines that declare a set, as nft lists them, without the elements.
pub(super) fn spec_lines(spec: &SetSpec) -> Vec<String> {
    let data = match spec.data {
        None => "",
        Some(MapData::Verdict) => " : verdict",
        Some(MapData::ClassId) if is_typeof(spec) => " : meta priority",
        Some(MapData::ClassId) => " : classid",
    };
    let key: Vec<&str> = if is_typeof(spec) {
        spec.key
            .iter()
            .map(|field| field.example().facts().text)
            .collect()
    } else {
        spec.key.iter().map(|field| field.name()).collect()
    };
    let word = if is_typeof(spec) { "typeof" } else { "type" };
    let mut lines = vec![format!("{word} {}{data}", key.join(" . "))];
    lines.push(format!("size {}", spec.size));
    match (spec.interval, spec.timeout) {
        (false, false) => {}
        (true, false) => lines.push("flags interval".to_owned()),
        (false, true) => lines.push("flags timeout".to_owned()),
        (true, true) => lines.push("flags interval,timeout".to_owned()),
    }
    lines
}

/// A time as nft's JSON has it: at least a second, and no shorter than it is.
pub(super) fn whole_seconds(time: Duration) -> u64 {
    let part = u64::from(time.subsec_nanos() > 0);
    time.as_secs().saturating_add(part).max(1)
}

/// Whether a set must be declared by example, because nft has no name for the type of a field.
pub(super) fn is_typeof(spec: &SetSpec) -> bool {
    spec.key.contains(&FieldType::Icmpv6Target)
}
