//! The tables of core as elements: one line for each table, and how its keys and values are written.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use towpath_core::model::{Direction, Protocol, Verdict};
use towpath_core::tables::{
    AddressRange, Changes, ClassId, ClassKey, ClassProtocolKey, DirectionDelta, DirectionTables,
    EndpointState, ExactKey, Phase, PortKey, ProfileId, Tables,
};
use towpath_dataplane::nft::{Element, ElementValue, RuleVerdict, SetKey, Value};

use super::batch::Batch;
use crate::layout::{IpVersion, SetId, VerdictMap, profile_chain};

/// Calls `sink` with every element.
pub(super) fn all(tables: &Tables, sink: &mut dyn FnMut(SetId, Element)) {
    write(&tables.peer_class, peer_class, sink);
    write(&tables.cidr_class, cidr_class, sink);
    for direction in Direction::BOTH {
        let DirectionTables {
            state,
            exact,
            class_protocol,
            class_any,
            any,
            profile,
            default,
        } = tables.direction(direction);
        write(state, state_of(direction), sink);
        write(exact, exact_verdict(direction), sink);
        write(class_protocol, class_protocol_verdict(direction), sink);
        write(class_any, class_verdict(direction), sink);
        write(any, port_verdict(direction), sink);
        write(profile, profile_of(direction), sink);
        write(default, default_verdict(direction), sink);
    }
}

/// Adds to `batch` what a phase changes.
pub(super) fn changes(old: &Tables, phase: &Phase, batch: &mut Batch) {
    change(&old.peer_class, &phase.peer_class, peer_class, batch);
    change(&old.cidr_class, &phase.cidr_class, cidr_class, batch);
    for (direction, delta) in [
        (Direction::Ingress, &phase.ingress),
        (Direction::Egress, &phase.egress),
    ] {
        let old = old.direction(direction);
        let DirectionDelta {
            state,
            exact,
            class_protocol,
            class_any,
            any,
            profile,
            default,
        } = delta;
        change(&old.state, state, state_of(direction), batch);
        change(&old.exact, exact, exact_verdict(direction), batch);
        change(
            &old.class_protocol,
            class_protocol,
            class_protocol_verdict(direction),
            batch,
        );
        change(&old.class_any, class_any, class_verdict(direction), batch);
        change(&old.any, any, port_verdict(direction), batch);
        change(&old.profile, profile, profile_of(direction), batch);
        change(&old.default, default, default_verdict(direction), batch);
    }
}

fn write<K, V>(
    table: &BTreeMap<K, V>,
    entry: impl Fn(&K, &V) -> (SetId, Element),
    sink: &mut dyn FnMut(SetId, Element),
) {
    for (key, value) in table {
        let (set, element) = entry(key, value);
        sink(set, element);
    }
}

fn change<K: Ord, V: PartialEq>(
    old: &BTreeMap<K, V>,
    changes: &Changes<K, V>,
    entry: impl Fn(&K, &V) -> (SetId, Element),
    batch: &mut Batch,
) {
    for (key, new) in changes {
        let old = old.get(key);
        if old == new.as_ref() {
            continue;
        }
        if let Some(old) = old {
            let (set, element) = entry(key, old);
            batch.remove(set, element);
        }
        if let Some(new) = new {
            let (set, element) = entry(key, new);
            batch.add(set, element);
        }
    }
}

fn peer_class(peer: &IpAddr, class: &ClassId) -> (SetId, Element) {
    let key = SetKey::Exact(vec![address(*peer)]);
    (
        SetId::PeerClass(IpVersion::of(*peer)),
        with(key, ElementValue::ClassId(class.0)),
    )
}

fn cidr_class(range: &AddressRange, class: &ClassId) -> (SetId, Element) {
    let set = SetId::CidrClass(IpVersion::of(range.first()));
    let key = SetKey::Range(address(range.first()), address(range.last()));
    (set, with(key, ElementValue::ClassId(class.0)))
}

fn state_of(direction: Direction) -> impl Fn(&IpAddr, &EndpointState) -> (SetId, Element) {
    move |endpoint, state| {
        let verdict = match state {
            EndpointState::Open => RuleVerdict::Return,
            EndpointState::Restricted => RuleVerdict::Continue,
        };
        verdict_entry(direction, VerdictMap::State, *endpoint, [], verdict)
    }
}

fn exact_verdict(direction: Direction) -> impl Fn(&ExactKey, &Verdict) -> (SetId, Element) {
    move |key, verdict| {
        let rest = [
            class(key.class),
            protocol(key.protocol),
            Value::U16(key.port),
        ];
        verdict_entry(
            direction,
            VerdictMap::Exact,
            key.endpoint,
            rest,
            verdict_of(*verdict),
        )
    }
}

fn class_protocol_verdict(
    direction: Direction,
) -> impl Fn(&ClassProtocolKey, &Verdict) -> (SetId, Element) {
    move |key, verdict| {
        let rest = [class(key.class), protocol(key.protocol)];
        let verdict = verdict_of(*verdict);
        verdict_entry(
            direction,
            VerdictMap::ClassProtocol,
            key.endpoint,
            rest,
            verdict,
        )
    }
}

fn class_verdict(direction: Direction) -> impl Fn(&ClassKey, &Verdict) -> (SetId, Element) {
    move |key, verdict| {
        let rest = [class(key.class)];
        verdict_entry(
            direction,
            VerdictMap::ClassAny,
            key.endpoint,
            rest,
            verdict_of(*verdict),
        )
    }
}

fn port_verdict(direction: Direction) -> impl Fn(&PortKey, &Verdict) -> (SetId, Element) {
    move |key, verdict| {
        let rest = [protocol(key.protocol), Value::U16(key.port)];
        verdict_entry(
            direction,
            VerdictMap::Any,
            key.endpoint,
            rest,
            verdict_of(*verdict),
        )
    }
}

fn profile_of(direction: Direction) -> impl Fn(&IpAddr, &ProfileId) -> (SetId, Element) {
    move |endpoint, profile| {
        let verdict = RuleVerdict::Goto(profile_chain(direction, *profile));
        verdict_entry(direction, VerdictMap::Profile, *endpoint, [], verdict)
    }
}

fn default_verdict(direction: Direction) -> impl Fn(&IpAddr, &Verdict) -> (SetId, Element) {
    move |endpoint, verdict| {
        verdict_entry(
            direction,
            VerdictMap::Default,
            *endpoint,
            [],
            verdict_of(*verdict),
        )
    }
}

fn verdict_entry(
    direction: Direction,
    map: VerdictMap,
    endpoint: IpAddr,
    rest: impl IntoIterator<Item = Value>,
    verdict: RuleVerdict,
) -> (SetId, Element) {
    let key = std::iter::once(address(endpoint)).chain(rest).collect();
    let set = SetId::Verdict(direction, map, IpVersion::of(endpoint));
    (
        set,
        with(SetKey::Exact(key), ElementValue::Verdict(verdict)),
    )
}

/// A denial goes on with its rule, which drops, counts and logs.
fn verdict_of(verdict: Verdict) -> RuleVerdict {
    match verdict {
        Verdict::Allow => RuleVerdict::Return,
        Verdict::Deny => RuleVerdict::Continue,
    }
}

fn with(key: SetKey, value: ElementValue) -> Element {
    Element {
        key,
        value: Some(value),
    }
}

/// An address as a value.
pub(super) fn address(address: IpAddr) -> Value {
    match address {
        IpAddr::V4(address) => Value::Ipv4(address),
        IpAddr::V6(address) => Value::Ipv6(address),
    }
}

/// A block as the range from its first to its last address.
pub(super) fn range(block: &IpNet) -> SetKey {
    SetKey::Range(address(block.network()), address(block.broadcast()))
}

fn class(class: ClassId) -> Value {
    Value::Class(class.0)
}

fn protocol(protocol: Protocol) -> Value {
    Value::U8(protocol.number())
}
