//! A ruleset in memory that takes and refuses operations as the kernel does.
//!
//! Checked against the kernel by a walk of random transactions (`tests/nft_walk.rs`). What the kernel does not check
//! and a program of ours must not do (fields that do not fit the key of a set, overlapping ranges with the same end) is refused
//! with `EINVAL` or `EEXIST`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use nix::libc;

use super::encode::Encoder;
use super::object::{
    Chain, Element, ElementValue, Field, FieldType, MapData, MatchOperand, Name, Rule, RuleVerdict,
    SetKey, SetSpec, Statement, Table, TableFlags, Value,
};
use super::transaction::{Operation, Transaction};

/// An error number.
pub(super) type Errno = i32;

/// How deep chains may jump (`NFT_JUMP_STACK_SIZE`).
const MOST_JUMPS: usize = 16;

/// All tables. Cloning is cheap: sets are shared until they change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ruleset {
    pub(super) tables: BTreeMap<Table, TableContent>,
}

/// A table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TableContent {
    flags: TableFlags,
    /// In the order of making, as nft lists them.
    pub(super) sets: Vec<Arc<SetContent>>,
    pub(super) chains: Vec<ChainContent>,
}

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ChainContent {
    pub(super) chain: Chain,
    pub(super) rules: Vec<Rule>,
    /// How many rules and elements jump here.
    users: usize,
}

/// A set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SetContent {
    pub(super) spec: SetSpec,
    elements: BTreeMap<SetKey, Option<ElementValue>>,
    /// How long those elements stay that end by themselves.
    times: BTreeMap<SetKey, Duration>,
    /// Chains that elements jump to, with how many do.
    targets: BTreeMap<Name, usize>,
    /// A set that is made again takes the new size with the commit (kernel 6.5 and later).
    next_size: Option<u32>,
    /// How many rules look it up.
    users: usize,
}

impl Ruleset {
    /// Applies one operation, or leaves something half done and says why not: the caller throws it away then.
    pub(super) fn apply(&mut self, operation: &Operation) -> Result<(), Errno> {
        match operation {
            Operation::AddTable(table, flags) => self.add_table(table, *flags),
            Operation::DeleteTable(table) => {
                self.tables.remove(table).map(|_| ()).ok_or(libc::ENOENT)
            }
            Operation::AddChain(table, chain) => self.table(table)?.add_chain(chain),
            Operation::FlushChain(table, name) => self.table(table)?.flush_chain(name),
            Operation::DeleteChain(table, name) => self.table(table)?.delete_chain(name),
            Operation::AddRule(of, chain, rule) => {
                check_encoding(operation)?;
                self.table(of)?.add_rule(chain, rule)
            }
            Operation::AddSet(of, spec) => {
                check_encoding(operation)?;
                self.table(of)?.add_set(spec)
            }
            Operation::DeleteSet(table, name) => self.table(table)?.delete_set(name),
            Operation::FlushSet(table, name) => self.table(table)?.flush_set(name),
            Operation::AddElements(_, _, elements) | Operation::DeleteElements(_, _, elements)
                if elements.is_empty() =>
            {
                Ok(())
            }
            Operation::AddElements(table, name, elements) => {
                check_encoding(operation)?;
                elements
                    .iter()
                    .try_for_each(|element| self.table(table)?.add_element(name, element))
            }
            Operation::AddTimedElements(_, _, elements) if elements.is_empty() => Ok(()),
            Operation::AddTimedElements(table, name, elements) => {
                check_encoding(operation)?;
                elements
                    .iter()
                    .try_for_each(|(key, time)| self.table(table)?.add_timed(name, key, *time))
            }
            Operation::DeleteElements(table, name, elements) => {
                check_encoding(operation)?;
                elements
                    .iter()
                    .try_for_each(|element| self.table(table)?.delete_element(name, &element.key))
            }
        }
    }

    /// Ends a batch: checks what the kernel checks last, and gives sets their new sizes.
    pub(super) fn finish(&mut self) -> Result<(), Errno> {
        for table in self.tables.values_mut() {
            table.check_jumps()?;
            for set in &mut table.sets {
                if let Some(size) = set.next_size {
                    let set = Arc::make_mut(set);
                    set.spec.size = size;
                    set.next_size = None;
                }
            }
        }
        Ok(())
    }

    /// The operation that a batch is refused for at its end. The kernel finds it as is done here: it runs the batch
    /// again and validates after each step.
    pub(super) fn first_invalid(&self, transaction: &Transaction) -> usize {
        let mut ruleset = self.clone();
        let is_valid = |operation: &&Operation| -> bool {
            ruleset.apply(operation).is_ok()
                && ruleset
                    .tables
                    .values()
                    .all(|table| table.check_jumps().is_ok())
        };
        transaction.operations.iter().take_while(is_valid).count()
    }

    /// Lets time pass: elements that end by themselves go.
    pub(super) fn pass(&mut self, time: Duration) {
        for set in self.tables.values_mut().flat_map(|table| &mut table.sets) {
            if set.times.is_empty() {
                continue;
            }
            let set = Arc::make_mut(set);
            let left = |left: &Duration| left.checked_sub(time).filter(|left| !left.is_zero());
            let times = std::mem::take(&mut set.times);
            for (key, before) in times {
                match left(&before) {
                    Some(left) => drop(set.times.insert(key, left)),
                    None => drop(set.elements.remove(&key)),
                }
            }
        }
    }

    /// The owner's socket is closed: owned tables without `persist` vanish, the others wait for the next one.
    pub(super) fn release(&mut self) {
        self.tables
            .retain(|_, table| !table.flags.owner || table.flags.persist);
        for table in self.tables.values_mut() {
            table.flags.owner = false;
        }
    }

    /// Flags of a table; `None` when it is not there.
    pub(super) fn flags(&self, table: &Table) -> Option<TableFlags> {
        self.tables.get(table).map(|content| content.flags)
    }

    /// Names of the chains of a table, in the order of making.
    pub(super) fn chains(&self, table: &Table) -> Vec<Chain> {
        let content = self.tables.get(table);
        content
            .map(|table| {
                table
                    .chains
                    .iter()
                    .map(|chain| chain.chain.clone())
                    .collect()
            })
            .unwrap_or_default()
    }

    /// Rules of a chain; `None` when it is not there.
    pub(super) fn rules(&self, table: &Table, chain: &Name) -> Option<Vec<Rule>> {
        let chains = &self.tables.get(table)?.chains;
        chains
            .iter()
            .find(|content| content.chain.name == *chain)
            .map(|content| content.rules.clone())
    }

    /// Elements of a set, sorted by key; `None` when it is not there.
    pub(super) fn elements(&self, table: &Table, set: &Name) -> Option<Vec<Element>> {
        let sets = &self.tables.get(table)?.sets;
        let set = sets.iter().find(|content| content.spec.name == *set)?;
        Some(set.list().collect())
    }

    fn table(&mut self, table: &Table) -> Result<&mut TableContent, Errno> {
        self.tables.get_mut(table).ok_or(libc::ENOENT)
    }

    fn add_table(&mut self, table: &Table, flags: TableFlags) -> Result<(), Errno> {
        let Some(content) = self.tables.get_mut(table) else {
            // Persistence is a property of owned tables.
            if flags.persist && !flags.owner {
                return Err(libc::EOPNOTSUPP);
            }
            let content = TableContent {
                flags,
                ..TableContent::default()
            };
            self.tables.insert(table.clone(), content);
            return Ok(());
        };
        let is_orphan = content.flags.persist && !content.flags.owner;
        let is_adopted = flags.owner && flags.persist && is_orphan;
        if flags != content.flags && !is_adopted {
            return Err(libc::EOPNOTSUPP);
        }
        content.flags = flags;
        Ok(())
    }
}

/// What netlink cannot say is refused before the kernel sees it.
fn check_encoding(operation: &Operation) -> Result<(), Errno> {
    let mut batch = super::batch::Batch::default();
    Encoder::new(&mut batch)
        .operation(operation)
        .map_err(|_| libc::EINVAL)
}

impl TableContent {
    fn chain(&mut self, name: &Name) -> Result<&mut ChainContent, Errno> {
        self.chains
            .iter_mut()
            .find(|content| content.chain.name == *name)
            .ok_or(libc::ENOENT)
    }

    fn set(&mut self, name: &Name) -> Result<&mut SetContent, Errno> {
        let set = self
            .sets
            .iter_mut()
            .find(|content| content.spec.name == *name);
        set.map(Arc::make_mut).ok_or(libc::ENOENT)
    }

    fn add_chain(&mut self, chain: &Chain) -> Result<(), Errno> {
        if let Ok(known) = self.chain(&chain.name) {
            // A chain keeps its hook, or has none for ever.
            let is_same = chain.base.is_none() || chain.base == known.chain.base;
            return if is_same {
                Ok(())
            } else {
                Err(libc::EOPNOTSUPP)
            };
        }
        self.chains.push(ChainContent {
            chain: chain.clone(),
            rules: Vec::new(),
            users: 0,
        });
        Ok(())
    }

    fn flush_chain(&mut self, name: &Name) -> Result<(), Errno> {
        let rules = std::mem::take(&mut self.chain(name)?.rules);
        rules
            .iter()
            .try_for_each(|rule| self.count_rule(rule, usize::wrapping_sub))
    }

    fn delete_chain(&mut self, name: &Name) -> Result<(), Errno> {
        let chain = self.chain(name)?;
        if chain.users > 0 || !chain.rules.is_empty() {
            return Err(libc::EBUSY);
        }
        self.chains.retain(|content| content.chain.name != *name);
        Ok(())
    }

    fn add_rule(&mut self, chain: &Name, rule: &Rule) -> Result<(), Errno> {
        self.chain(chain)?;
        for statement in &rule.statements {
            self.check_statement(statement)?;
        }
        self.count_rule(rule, usize::wrapping_add)?;
        self.chain(chain)?.rules.push(rule.clone());
        Ok(())
    }

    fn check_statement(&mut self, statement: &Statement) -> Result<(), Errno> {
        let (fields, set, data) = match statement {
            Statement::Verdict(verdict) => return self.check_verdict(verdict),
            Statement::Match {
                field,
                operand: MatchOperand::Set(set),
                ..
            } => (std::slice::from_ref(field), set, None),
            Statement::MatchSet { fields, set, .. } => (fields.as_slice(), set, None),
            Statement::VerdictMap { fields, map } => {
                (fields.as_slice(), map, Some(MapData::Verdict))
            }
            Statement::SetPriorityFromMap { fields, map } => {
                (fields.as_slice(), map, Some(MapData::ClassId))
            }
            _ => return Ok(()),
        };
        let spec = &self.set(set)?.spec;
        if spec.data == data && fits(fields, &spec.key) {
            Ok(())
        } else {
            Err(libc::EINVAL)
        }
    }

    fn check_verdict(&mut self, verdict: &RuleVerdict) -> Result<(), Errno> {
        match target(verdict) {
            Some(chain) if self.chain(chain)?.chain.base.is_some() => Err(libc::EOPNOTSUPP),
            _ => Ok(()),
        }
    }

    /// Counts what a rule refers to up or down.
    fn count_rule(&mut self, rule: &Rule, count: fn(usize, usize) -> usize) -> Result<(), Errno> {
        for statement in &rule.statements {
            match statement {
                Statement::Match {
                    operand: MatchOperand::Set(set),
                    ..
                }
                | Statement::MatchSet { set, .. }
                | Statement::VerdictMap { map: set, .. }
                | Statement::SetPriorityFromMap { map: set, .. } => {
                    let users = &mut self.set(set)?.users;
                    *users = count(*users, 1);
                }
                Statement::Verdict(verdict) => {
                    target(verdict).map_or(Ok(()), |chain| self.count_chain(chain, count))?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn count_chain(&mut self, chain: &Name, count: fn(usize, usize) -> usize) -> Result<(), Errno> {
        let users = &mut self.chain(chain)?.users;
        *users = count(*users, 1);
        Ok(())
    }

    fn add_set(&mut self, spec: &SetSpec) -> Result<(), Errno> {
        if let Ok(known) = self.set(&spec.name) {
            let same = SetSpec {
                size: known.spec.size,
                ..spec.clone()
            };
            known.next_size = Some(spec.size);
            return if same == known.spec {
                Ok(())
            } else {
                Err(libc::EEXIST)
            };
        }
        self.sets.push(Arc::new(SetContent {
            spec: spec.clone(),
            elements: BTreeMap::new(),
            times: BTreeMap::new(),
            targets: BTreeMap::new(),
            next_size: None,
            users: 0,
        }));
        Ok(())
    }

    fn delete_set(&mut self, name: &Name) -> Result<(), Errno> {
        if self.set(name)?.users > 0 {
            return Err(libc::EBUSY);
        }
        self.flush_set(name)?;
        self.sets.retain(|content| content.spec.name != *name);
        Ok(())
    }

    fn flush_set(&mut self, name: &Name) -> Result<(), Errno> {
        let set = self.set(name)?;
        set.targets.clear();
        set.times.clear();
        let elements = std::mem::take(&mut set.elements);
        for value in elements.into_values() {
            self.count_value(value.as_ref(), usize::wrapping_sub)?;
        }
        Ok(())
    }

    fn count_value(
        &mut self,
        value: Option<&ElementValue>,
        count: fn(usize, usize) -> usize,
    ) -> Result<(), Errno> {
        value_target(value).map_or(Ok(()), |chain| self.count_chain(chain, count))
    }

    fn add_element(&mut self, name: &Name, element: &Element) -> Result<(), Errno> {
        let set = self.set(name)?;
        if !key_fits(&set.spec, &element.key) || !value_fits(&set.spec, element.value.as_ref()) {
            return Err(libc::EINVAL);
        }
        if let Some(ElementValue::Verdict(verdict)) = &element.value {
            self.check_verdict(verdict)?;
        }
        let set = self.set(name)?;
        match set.elements.get(&element.key) {
            Some(value) if *value == element.value => return Ok(()),
            Some(_) => return Err(libc::EEXIST),
            None => {}
        }
        set.check_room(&element.key)?;
        set.elements
            .insert(element.key.clone(), element.value.clone());
        if let Some(chain) = value_target(element.value.as_ref()) {
            *set.targets.entry(chain.clone()).or_default() += 1;
        }
        self.count_value(element.value.as_ref(), usize::wrapping_add)
    }

    fn add_timed(&mut self, name: &Name, key: &SetKey, time: Duration) -> Result<(), Errno> {
        let set = self.set(name)?;
        if !set.spec.timeout {
            return Err(libc::EINVAL);
        }
        if set.elements.contains_key(key) {
            return Ok(());
        }
        let element = Element {
            key: key.clone(),
            value: None,
        };
        self.add_element(name, &element)?;
        self.set(name)?.times.insert(key.clone(), time);
        Ok(())
    }

    fn delete_element(&mut self, name: &Name, key: &SetKey) -> Result<(), Errno> {
        let set = self.set(name)?;
        if !key_fits(&set.spec, key) {
            return Err(libc::EINVAL);
        }
        let value = set.elements.remove(key).ok_or(libc::ENOENT)?;
        set.times.remove(key);
        if let Some(chain) = value_target(value.as_ref())
            && let Some(count) = set.targets.get_mut(chain)
        {
            *count -= 1;
            set.targets.retain(|_, count| *count > 0);
        }
        self.count_value(value.as_ref(), usize::wrapping_sub)
    }

    /// Follows the jumps from every base chain.
    fn check_jumps(&self) -> Result<(), Errno> {
        let base = self
            .chains
            .iter()
            .filter(|content| content.chain.base.is_some());
        for chain in base {
            self.check_depth(chain, 1)?;
        }
        Ok(())
    }

    fn check_depth(&self, chain: &ChainContent, depth: usize) -> Result<(), Errno> {
        if depth > MOST_JUMPS {
            return Err(libc::EMLINK);
        }
        for statement in chain.rules.iter().flat_map(|rule| &rule.statements) {
            match statement {
                Statement::Verdict(verdict) => {
                    target(verdict).map_or(Ok(()), |name| self.check_target(name, depth))?;
                }
                Statement::VerdictMap { map, .. } => {
                    let set = self.sets.iter().find(|set| set.spec.name == *map);
                    for name in set.iter().flat_map(|set| set.targets.keys()) {
                        self.check_target(name, depth)?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn check_target(&self, name: &Name, depth: usize) -> Result<(), Errno> {
        let chain = self
            .chains
            .iter()
            .find(|content| content.chain.name == *name);
        chain.map_or(Ok(()), |chain| self.check_depth(chain, depth + 1))
    }
}

impl SetContent {
    /// Its elements, sorted by key.
    pub(super) fn list(&self) -> impl Iterator<Item = Element> {
        self.elements.iter().map(|(key, value)| Element {
            key: key.clone(),
            value: value.clone(),
        })
    }

    /// Whether it has no elements.
    pub(super) fn is_empty(&self) -> bool {
        self.elements.is_empty()
    }

    /// Places that its elements take: a range takes one for each end.
    fn places(&self) -> usize {
        if self.spec.interval {
            self.elements.keys().map(places).sum()
        } else {
            self.elements.len()
        }
    }

    fn most_places(&self) -> usize {
        let size = usize::try_from(self.spec.size).unwrap_or(usize::MAX);
        match size {
            0 => usize::MAX,
            size if self.spec.interval => size.saturating_mul(2),
            size => size,
        }
    }

    /// Whether a new element has a place and meets no other range. The kernel adds the start of a range, then its
    /// end; each is first compared with the others, then counted.
    fn check_room(&self, key: &SetKey) -> Result<(), Errno> {
        let left = self.most_places().saturating_sub(self.places());
        if let SetKey::Range(first, last) = key {
            let seen = if left == 0 { first } else { last };
            if self.has_range_in(first, seen) {
                return Err(libc::EEXIST);
            }
        }
        if left < places(key) {
            Err(libc::ENFILE)
        } else {
            Ok(())
        }
    }

    /// Whether a range of the set meets this one.
    fn has_range_in(&self, first: &Value, last: &Value) -> bool {
        self.elements.keys().any(|known| match known {
            SetKey::Range(known_first, known_last) => first <= known_last && known_first <= last,
            SetKey::Exact(_) => false,
        })
    }
}

/// Places that one element takes.
fn places(key: &SetKey) -> usize {
    match key {
        SetKey::Exact(_) => 1,
        // A range to the end of the space has no end element.
        SetKey::Range(_, last) => {
            let is_open = last.bytes().is_none_or(|bytes| bytes.successor().is_none());
            if is_open { 1 } else { 2 }
        }
    }
}

fn target(verdict: &RuleVerdict) -> Option<&Name> {
    match verdict {
        RuleVerdict::Jump(chain) | RuleVerdict::Goto(chain) => Some(chain),
        RuleVerdict::Accept | RuleVerdict::Drop | RuleVerdict::Return | RuleVerdict::Continue => {
            None
        }
    }
}

fn value_target(value: Option<&ElementValue>) -> Option<&Name> {
    match value {
        Some(ElementValue::Verdict(verdict)) => target(verdict),
        Some(ElementValue::ClassId(_)) | None => None,
    }
}

fn fits(fields: &[Field], key: &[FieldType]) -> bool {
    let shape = |field: &Field| field.facts().shape;
    let is_payload = |field: &Field| *field == Field::Icmpv6Target;
    fields.len() == key.len()
        && fields.iter().zip(key).all(|(field, kind)| {
            // Raw payload has a type of its own, which no other field has.
            shape(field) == kind.shape() && is_payload(field) == (*kind == FieldType::Icmpv6Target)
        })
}

fn key_fits(spec: &SetSpec, key: &SetKey) -> bool {
    let fits = |value: &Value, kind: &FieldType| value.shape() == kind.shape();
    match (key, spec.key.as_slice()) {
        (SetKey::Range(first, last), [kind]) => {
            spec.interval && fits(first, kind) && fits(last, kind)
        }
        (SetKey::Range(..), _) => false,
        (SetKey::Exact(values), kinds) => {
            !spec.interval
                && values.len() == kinds.len()
                && values
                    .iter()
                    .zip(kinds)
                    .all(|(value, kind)| fits(value, kind))
        }
    }
}

fn value_fits(spec: &SetSpec, value: Option<&ElementValue>) -> bool {
    matches!(
        (spec.data, value),
        (None, None)
            | (Some(MapData::Verdict), Some(ElementValue::Verdict(_)))
            | (Some(MapData::ClassId), Some(ElementValue::ClassId(_)))
    )
}
