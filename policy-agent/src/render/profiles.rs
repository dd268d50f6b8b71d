//! Profiles: ordered rule lists as chains, one for each direction, and the class lists that they share.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use towpath_core::model::{Direction, Verdict};
use towpath_core::tables::{Changes, ClassId, Profile, ProfileId, ProfileRule};
use towpath_dataplane::nft::{
    Chain, Element, Field, FieldType, Name, Operation, Rule, RuleVerdict, SetKey, SetSpec,
    Transaction, Value,
};

use super::batch::{Batch, add_rules, push_chunks};
use crate::layout::{RuleBuilder, TableId, goto_denied, made_name, profile_chain, profile_end};

/// Longer class lists become sets with names, shared by content.
const LONGEST_ANONYMOUS: usize = 64;

type Profiles = BTreeMap<ProfileId, Arc<Profile>>;
type ClassList = Arc<[ClassId]>;

/// Makes all profiles.
pub(super) fn add_all(profiles: &Profiles, transaction: &mut Transaction) {
    for list in long_lists(profiles.values()).values() {
        transaction.operations.extend(make_list(list));
    }
    for (id, profile) in profiles {
        transaction.operations.extend(make_profile(*id, profile));
    }
}

/// Adds to `batch` the profiles that come and go. A number is never given to another content, so none changes.
pub(super) fn changes(
    old: &Profiles,
    changes: &Changes<ProfileId, Arc<Profile>>,
    batch: &mut Batch,
) {
    let added = || {
        changes
            .iter()
            .filter_map(|(id, new)| Some((id, new.as_ref()?)))
            .filter(|(id, _)| !old.contains_key(id))
    };
    let removed = || {
        changes
            .iter()
            .filter(|(_, new)| new.is_none())
            .filter_map(|(id, _)| old.get_key_value(id))
    };
    let lost = long_lists(removed().map(|(_, profile)| profile));
    let gained = long_lists(added().map(|(_, profile)| profile));
    if !lost.is_empty() || !gained.is_empty() {
        let had = long_lists(old.values());
        let stay = |(id, _): &(&ProfileId, &Arc<Profile>)| !matches!(changes.get(id), Some(None));
        let kept = long_lists(old.iter().filter(stay).map(|(_, profile)| profile));
        for (name, list) in &gained {
            if !had.contains_key(name) {
                make_list(list).for_each(|operation| batch.make(operation));
            }
        }
        for name in lost.keys() {
            if !kept.contains_key(name) && !gained.contains_key(name) {
                // After the chains that use it.
                let operation = Operation::DeleteSet(TableId::Inet.table(), name.clone());
                batch.unmake_last(operation);
            }
        }
    }
    for (id, profile) in added() {
        make_profile(*id, profile).for_each(|operation| batch.make(operation));
    }
    for (id, _) in removed() {
        for direction in Direction::BOTH {
            let (table, chain) = (TableId::Inet.table(), profile_chain(direction, *id));
            batch.unmake(Operation::FlushChain(table.clone(), chain.clone()));
            batch.unmake(Operation::DeleteChain(table, chain));
        }
    }
}

fn make_profile(id: ProfileId, profile: &Profile) -> impl Iterator<Item = Operation> {
    Direction::BOTH.into_iter().flat_map(move |direction| {
        let name = profile_chain(direction, id);
        let chain = Chain {
            name: name.clone(),
            base: None,
        };
        let mut rules: Vec<Rule> = profile
            .rules
            .iter()
            .filter(|rule| can_match(rule))
            .map(|described| rule(described, direction))
            .collect();
        rules.push(RuleBuilder::new().verdict(RuleVerdict::Goto(profile_end(direction))));
        let make = Operation::AddChain(TableId::Inet.table(), chain);
        let rules: Vec<Operation> = add_rules(&name, rules).collect();
        std::iter::once(make).chain(rules)
    })
}

/// An empty list matches nothing, and the kernel has no word for it.
fn can_match(rule: &ProfileRule) -> bool {
    rule.classes
        .as_ref()
        .is_none_or(|classes| !classes.is_empty())
        && rule
            .ports
            .as_ref()
            .is_none_or(|ports| !ports.ranges.is_empty())
}

fn rule(rule: &ProfileRule, direction: Direction) -> Rule {
    let mut builder = RuleBuilder::new();
    if let Some(classes) = &rule.classes {
        builder = within_classes(builder, classes);
    }
    if let Some(ports) = &rule.ports {
        builder = builder.is(Field::L4Proto, Value::U8(ports.protocol.number()));
        if *ports.ranges != [(0, u16::MAX)] {
            let range = |(first, last): &(u16, u16)| (Value::U16(*first), Value::U16(*last));
            let ranges = ports.ranges.iter().map(range).collect();
            builder = builder.ranges(Field::DestinationPort, ranges);
        }
    }
    match rule.verdict {
        Verdict::Allow => builder.verdict(RuleVerdict::Return),
        Verdict::Deny => builder.verdict(goto_denied(direction)),
    }
}

fn within_classes(builder: RuleBuilder, classes: &ClassList) -> RuleBuilder {
    if classes.len() > LONGEST_ANONYMOUS {
        return builder.within_named(Field::Priority, list_name(classes));
    }
    let values: Vec<Value> = classes.iter().map(|class| Value::Class(class.0)).collect();
    builder.one_of(Field::Priority, &values)
}

/// The class lists that need a set, by its name.
fn long_lists<'a>(profiles: impl Iterator<Item = &'a Arc<Profile>>) -> BTreeMap<Name, ClassList> {
    profiles
        .flat_map(|profile| &profile.rules)
        .filter_map(|rule| rule.classes.as_ref())
        .filter(|classes| classes.len() > LONGEST_ANONYMOUS)
        .map(|classes| (list_name(classes), Arc::clone(classes)))
        .collect()
}

fn list_name(classes: &ClassList) -> Name {
    let mut hasher = DefaultHasher::new();
    classes.hash(&mut hasher);
    made_name(&format!("classes_{:016x}", hasher.finish()))
}

fn make_list(classes: &ClassList) -> impl Iterator<Item = Operation> {
    let (table, name) = (TableId::Inet.table(), list_name(classes));
    let spec = SetSpec {
        name: name.clone(),
        key: vec![FieldType::ClassId],
        data: None,
        interval: false,
        timeout: false,
        size: u32::try_from(classes.len()).unwrap_or(u32::MAX),
    };
    let element = |class: &ClassId| Element {
        key: SetKey::Exact(vec![Value::Class(class.0)]),
        value: None,
    };
    let mut operations = vec![Operation::AddSet(table.clone(), spec)];
    push_chunks(classes.iter().map(element).collect(), |chunk| {
        operations.push(Operation::AddElements(table.clone(), name.clone(), chunk));
    });
    operations.into_iter()
}
