use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;
use proptest::sample::select;
use towpath_core::model::{Direction, MacAddress, Protocol, Verdict};
use towpath_core::tables::{
    AddressRange, Binding, Changes, ClassId, ClassKey, ClassProtocolKey, DirectionDelta,
    DirectionTables, EndpointState, ExactKey, PortKey, Profile, ProfileId, ProfilePorts,
    ProfileRule,
};
use towpath_dataplane::nft::{ElementValue, RuleVerdict, Value};

use super::*;
use crate::layout::{IpVersion, VerdictMap};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn address() -> impl Strategy<Value = IpAddr> + Clone {
    let texts = [
        "10.244.1.2",
        "10.244.1.3",
        "10.244.2.9",
        "192.0.2.1",
        "fd00::2",
        "fd00::3",
    ];
    select(texts.map(ip).to_vec())
}

fn block() -> impl Strategy<Value = AddressRange> + Clone {
    let ends = [
        ("198.51.100.0", "198.51.100.127"),
        ("198.51.100.128", "198.51.100.254"),
        ("203.0.113.7", "203.0.113.7"),
        ("0.0.0.0", "7.255.255.255"),
        ("2001:db8::1", "2001:db8::ffff"),
    ];
    select(
        ends.map(|(first, last)| range(ip(first), ip(last)))
            .to_vec(),
    )
}

fn range(first: IpAddr, last: IpAddr) -> AddressRange {
    AddressRange::new(first, last).unwrap()
}

fn verdict() -> impl Strategy<Value = Verdict> + Clone {
    select(vec![Verdict::Allow, Verdict::Deny])
}

fn class() -> impl Strategy<Value = ClassId> + Clone {
    (0_u32..4).prop_map(ClassId)
}

fn protocol() -> impl Strategy<Value = Protocol> + Clone {
    select(Protocol::ALL.to_vec())
}

fn port() -> impl Strategy<Value = u16> + Clone {
    select(vec![0, 53, 80, 65535])
}

/// A profile by its number: some share a long class list.
pub(crate) fn profile(number: u64) -> Profile {
    let long: Arc<[ClassId]> = (1..=100).map(ClassId).collect();
    let short: Arc<[ClassId]> = [ClassId(0), ClassId(2)].into();
    let ports = |protocol, ranges: &[(u16, u16)]| {
        Some(ProfilePorts {
            protocol,
            ranges: ranges.into(),
        })
    };
    let rule = |classes, ports, verdict| ProfileRule {
        classes,
        ports,
        verdict,
    };
    let mut rules = vec![rule(
        Some(short),
        ports(Protocol::Tcp, &[(1, 9), (20, 20)]),
        Verdict::Deny,
    )];
    if number.is_multiple_of(2) {
        rules.push(rule(
            Some(long),
            ports(Protocol::Udp, &[(0, 65535)]),
            Verdict::Allow,
        ));
    }
    if number.is_multiple_of(3) {
        rules.push(rule(Some([ClassId(1)].into()), None, Verdict::Allow));
        rules.push(rule(None, ports(Protocol::Sctp, &[(7, 8)]), Verdict::Deny));
    }
    if number % 4 == 3 {
        rules.push(rule(Some([].into()), None, Verdict::Deny));
    }
    Profile { rules }
}

fn direction_tables() -> impl Strategy<Value = DirectionTables> {
    let exact =
        (address(), class(), protocol(), port()).prop_map(|(endpoint, class, protocol, port)| {
            ExactKey {
                endpoint,
                class,
                protocol,
                port,
            }
        });
    let class_protocol =
        (address(), class(), protocol()).prop_map(|(endpoint, class, protocol)| ClassProtocolKey {
            endpoint,
            class,
            protocol,
        });
    let class_any = (address(), class()).prop_map(|(endpoint, class)| ClassKey { endpoint, class });
    let any = (address(), protocol(), port()).prop_map(|(endpoint, protocol, port)| PortKey {
        endpoint,
        protocol,
        port,
    });
    let state = select(vec![EndpointState::Open, EndpointState::Restricted]);
    (
        btree_map(address(), state, 0..5),
        btree_map(exact, verdict(), 0..9),
        btree_map(class_protocol, verdict(), 0..5),
        btree_map(class_any, verdict(), 0..5),
        btree_map(any, verdict(), 0..5),
        btree_map(address(), (0_u64..6).prop_map(ProfileId), 0..4),
        btree_map(address(), verdict(), 0..5),
    )
        .prop_map(
            |(state, exact, class_protocol, class_any, any, profile, default)| DirectionTables {
                state,
                exact,
                class_protocol,
                class_any,
                any,
                profile,
                default,
            },
        )
}

pub(crate) fn tables() -> impl Strategy<Value = Tables> {
    let binding = (
        select(vec!["veth1", "veth2", "cali3"]),
        any::<bool>(),
        address(),
    )
        .prop_map(|(interface, seen, address)| {
            let mac = seen.then_some(MacAddress([2, 0, 0, 0, 0, 1]));
            (
                Binding {
                    interface: interface.parse().unwrap(),
                    mac,
                    address,
                },
                (),
            )
        });
    let class = (1_u32..4).prop_map(ClassId);
    let networks = [
        "10.244.1.0/24",
        "10.244.1.128/25",
        "10.244.0.0/16",
        "fd00::/64",
    ];
    let network = select(networks.map(|text| text.parse::<IpNet>().unwrap()).to_vec());
    (
        btree_map(address(), class.clone(), 0..6),
        btree_map(block(), class, 0..5),
        direction_tables(),
        direction_tables(),
        btree_set(0_u64..6, 0..3),
        vec(binding, 0..5),
        btree_set(network, 0..4),
    )
        .prop_map(
            |(peer_class, cidr_class, ingress, egress, more, bindings, networks)| {
                let used = [&ingress, &egress]
                    .into_iter()
                    .flat_map(|tables| tables.profile.values());
                let profiles = used.copied().chain(more.into_iter().map(ProfileId));
                let profiles = profiles.map(|id| (id, Arc::new(profile(id.0)))).collect();
                Tables {
                    peer_class,
                    cidr_class,
                    ingress,
                    egress,
                    profiles,
                    bindings: bindings.into_iter().collect(),
                    pod_networks: networks.into_iter().map(|network| (network, ())).collect(),
                }
            },
        )
}

pub(crate) fn facts() -> impl Strategy<Value = NodeFacts> {
    let interfaces = || btree_set(select(vec!["cni0", "veth1", "veth2", "cali3"]), 0..4);
    let names = |set: std::collections::BTreeSet<&str>| {
        set.into_iter().map(|name| name.parse().unwrap()).collect()
    };
    (
        interfaces(),
        interfaces(),
        interfaces(),
        btree_set(address(), 0..4),
        btree_set(address(), 0..4),
    )
        .prop_map(
            move |(pod_interfaces, routed_interfaces, pod_ports, node_addresses, audited)| {
                NodeFacts {
                    pod_interfaces: names(pod_interfaces),
                    routed_interfaces: names(routed_interfaces),
                    pod_ports: names(pod_ports),
                    node_addresses: Arc::new(node_addresses),
                    audited,
                    overlay_ports: None,
                }
            },
        )
}

fn difference<K: Ord + Clone, V: PartialEq + Clone>(
    old: &BTreeMap<K, V>,
    new: &BTreeMap<K, V>,
) -> Changes<K, V> {
    let gone = old
        .keys()
        .filter(|key| !new.contains_key(key))
        .map(|key| (key.clone(), None));
    let changed = new
        .iter()
        .filter(|(key, value)| old.get(key) != Some(value))
        .map(|(key, value)| (key.clone(), Some(value.clone())));
    gone.chain(changed).collect()
}

fn direction_difference(old: &DirectionTables, new: &DirectionTables) -> DirectionDelta {
    DirectionDelta {
        state: difference(&old.state, &new.state),
        exact: difference(&old.exact, &new.exact),
        class_protocol: difference(&old.class_protocol, &new.class_protocol),
        class_any: difference(&old.class_any, &new.class_any),
        any: difference(&old.any, &new.any),
        profile: difference(&old.profile, &new.profile),
        default: difference(&old.default, &new.default),
    }
}

/// The phase that leads from one state to another.
pub(crate) fn phase_between(old: &Tables, new: &Tables) -> Phase {
    Phase {
        peer_class: difference(&old.peer_class, &new.peer_class),
        cidr_class: difference(&old.cidr_class, &new.cidr_class),
        ingress: direction_difference(&old.ingress, &new.ingress),
        egress: direction_difference(&old.egress, &new.egress),
        profiles: difference(&old.profiles, &new.profiles),
        bindings: difference(&old.bindings, &new.bindings),
        pod_networks: difference(&old.pod_networks, &new.pod_networks),
    }
}

/// Reads elements back into tables; profiles, bindings and networks are no elements of their own.
fn decode(elements: &BTreeMap<SetId, Vec<Element>>) -> Tables {
    let mut tables = Tables::default();
    for (set, elements) in elements {
        for element in elements {
            decode_element(&mut tables, *set, element);
        }
    }
    tables
}

fn decode_element(tables: &mut Tables, set: SetId, element: &Element) {
    match set {
        SetId::PeerClass(version) => {
            let SetKey::Exact(key) = &element.key else {
                panic!("{element:?}")
            };
            let peer = decode_address(&key[0], version);
            tables.peer_class.insert(peer, decode_class(element));
        }
        SetId::CidrClass(version) => {
            let (first, last) = match &element.key {
                SetKey::Range(first, last) => (first, last),
                SetKey::Exact(key) => (&key[0], &key[0]),
            };
            let block = range(
                decode_address(first, version),
                decode_address(last, version),
            );
            tables.cidr_class.insert(block, decode_class(element));
        }
        SetId::Verdict(direction, map, version) => {
            let SetKey::Exact(key) = &element.key else {
                panic!("{element:?}")
            };
            let Some(ElementValue::Verdict(verdict)) = &element.value else {
                panic!("{element:?}")
            };
            let endpoint = decode_address(&key[0], version);
            let tables = match direction {
                Direction::Ingress => &mut tables.ingress,
                Direction::Egress => &mut tables.egress,
            };
            decode_verdict(tables, map, endpoint, &key[1..], verdict);
        }
        _ => {}
    }
}

fn decode_verdict(
    tables: &mut DirectionTables,
    map: VerdictMap,
    endpoint: IpAddr,
    rest: &[Value],
    verdict: &RuleVerdict,
) {
    let decided = match verdict {
        RuleVerdict::Return => Verdict::Allow,
        _ => Verdict::Deny,
    };
    let class_of = |value: &Value| match value {
        Value::Class(class) => ClassId(*class),
        other => panic!("{other:?}"),
    };
    let protocol_of = |value: &Value| match value {
        Value::U8(number) => Protocol::from_number(*number).unwrap(),
        other => panic!("{other:?}"),
    };
    let port_of = |value: &Value| match value {
        Value::U16(port) => *port,
        other => panic!("{other:?}"),
    };
    match (map, rest) {
        (VerdictMap::State, []) => {
            let state = match verdict {
                RuleVerdict::Return => EndpointState::Open,
                RuleVerdict::Continue => EndpointState::Restricted,
                other => panic!("{other:?}"),
            };
            tables.state.insert(endpoint, state);
        }
        (VerdictMap::Exact, [class, protocol, port]) => {
            let (class, protocol) = (class_of(class), protocol_of(protocol));
            let key = ExactKey {
                endpoint,
                class,
                protocol,
                port: port_of(port),
            };
            tables.exact.insert(key, decided);
        }
        (VerdictMap::ClassProtocol, [class, protocol]) => {
            let (class, protocol) = (class_of(class), protocol_of(protocol));
            tables.class_protocol.insert(
                ClassProtocolKey {
                    endpoint,
                    class,
                    protocol,
                },
                decided,
            );
        }
        (VerdictMap::ClassAny, [class]) => {
            tables.class_any.insert(
                ClassKey {
                    endpoint,
                    class: class_of(class),
                },
                decided,
            );
        }
        (VerdictMap::Any, [protocol, port]) => {
            let (protocol, port) = (protocol_of(protocol), port_of(port));
            tables.any.insert(
                PortKey {
                    endpoint,
                    protocol,
                    port,
                },
                decided,
            );
        }
        (VerdictMap::Profile, []) => {
            let RuleVerdict::Goto(chain) = verdict else {
                panic!("{verdict:?}")
            };
            let id = chain.as_str().split_once('_').unwrap().1;
            tables
                .profile
                .insert(endpoint, ProfileId(u64::from_str_radix(id, 16).unwrap()));
        }
        (VerdictMap::Default, []) => {
            tables.default.insert(endpoint, decided);
        }
        other => panic!("{other:?}"),
    }
}

fn decode_address(value: &Value, version: IpVersion) -> IpAddr {
    match (value, version) {
        (Value::Ipv4(address), IpVersion::V4) => (*address).into(),
        (Value::Ipv6(address), IpVersion::V6) => (*address).into(),
        other => panic!("{other:?}"),
    }
}

fn decode_class(element: &Element) -> ClassId {
    match element.value {
        Some(ElementValue::ClassId(class)) => ClassId(class),
        ref other => panic!("{other:?}"),
    }
}

proptest! {
    #[test]
    fn elements_say_all_that_the_tables_say(tables in tables()) {
        let elements = all_elements(&tables, &FactSets::default());

        let read = decode(&elements);

        let wanted = Tables {
            peer_class: tables.peer_class,
            cidr_class: tables.cidr_class,
            ingress: tables.ingress,
            egress: tables.egress,
            ..Tables::default()
        };
        prop_assert_eq!(read, wanted);
    }

    #[test]
    fn facts_follow_as_if_they_were_made_anew(
        states in vec((tables(), facts()), 2..5),
        seen in vec(any::<bool>(), 5),
    ) {
        let ((mut tables, mut facts), rest) = states.split_first().map(|(first, rest)| (first.clone(), rest)).unwrap();
        let mut sets = fact_sets(&tables, &facts);
        for ((next, new_facts), are_new) in rest.iter().zip(seen) {
            let change = phase_between(&tables, next);
            let are_new = are_new || !change.pod_networks.is_empty();
            if are_new {
                facts = new_facts.clone();
            }
            let old = all_elements(&tables, &sets);
            tables = next.clone();
            let told = are_new.then_some(&facts);
            let rendered = phase(&Tables::default(), &Phase::default()).with_facts(&mut sets, &tables, &change, told);

            prop_assert_eq!(&sets, &fact_sets(&tables, &facts));
            let is_fact = |set: &SetId| all_elements(&Tables::default(), &sets).contains_key(set);
            let mut counts: Counts = old.iter().map(|(set, elements)| (*set, elements.len())).collect();
            rendered.count(&mut counts);
            let new = all_elements(&tables, &sets);
            for (set, elements) in new.iter().filter(|(set, _)| is_fact(set)) {
                prop_assert_eq!(counts.get(set), Some(&elements.len()));
            }
        }
    }

    #[test]
    fn a_phase_touches_only_what_changes(old in tables(), new in tables()) {
        let there = phase(&old, &phase_between(&old, &old)).finish();
        let back = phase(&new, &phase_between(&new, &new)).finish();
        let again = {
            let mut tables = old.clone();
            let changes = phase_between(&old, &new);
            tables.apply(&changes);
            phase(&tables, &changes).finish()
        };

        prop_assert!(there.is_empty() && back.is_empty() && again.is_empty());
    }
}

/// A small world, as text that a person can read.
#[test]
fn a_small_world_as_text() {
    let (endpoint, peer) = (ip("10.244.1.2"), ip("10.244.2.9"));
    let mut tables = Tables::default();
    tables.peer_class.insert(peer, ClassId(3));
    tables
        .cidr_class
        .insert(range(ip("198.51.100.0"), ip("198.51.100.6")), ClassId(4));
    tables
        .cidr_class
        .insert(range(ip("2001:db8::1"), ip("2001:db8::1")), ClassId(4));
    tables
        .pod_networks
        .insert("10.244.1.0/24".parse().unwrap(), ());
    tables.profiles.insert(ProfileId(6), Arc::new(profile(6)));
    for address in [endpoint, ip("fd00::2")] {
        let binding = Binding {
            interface: "veth1".parse().unwrap(),
            mac: Some(MacAddress([2, 0, 0, 0, 0, 1])),
            address,
        };
        tables.bindings.insert(binding, ());
        tables
            .ingress
            .state
            .insert(address, EndpointState::Restricted);
        tables.egress.state.insert(address, EndpointState::Open);
        tables.ingress.default.insert(address, Verdict::Deny);
    }
    let ingress = &mut tables.ingress;
    let (class, protocol) = (ClassId(3), Protocol::Tcp);
    ingress.exact.insert(
        ExactKey {
            endpoint,
            class,
            protocol,
            port: 80,
        },
        Verdict::Allow,
    );
    ingress.class_protocol.insert(
        ClassProtocolKey {
            endpoint,
            class,
            protocol,
        },
        Verdict::Deny,
    );
    ingress.class_any.insert(
        ClassKey {
            endpoint,
            class: ClassId(4),
        },
        Verdict::Allow,
    );
    ingress.any.insert(
        PortKey {
            endpoint,
            protocol,
            port: 443,
        },
        Verdict::Allow,
    );
    ingress.profile.insert(endpoint, ProfileId(6));
    let facts = NodeFacts {
        pod_interfaces: ["cni0".parse().unwrap()].into(),
        routed_interfaces: [].into(),
        pod_ports: ["veth1".parse().unwrap()].into(),
        node_addresses: Arc::new([ip("192.0.2.1"), ip("10.244.1.1")].into()),
        audited: [ip("10.244.1.3")].into(),
        overlay_ports: None,
    };

    let text = render_text(&tables, &facts, &LayoutOptions::default()).unwrap();

    let empty = render_text(
        &Tables::default(),
        &NodeFacts::default(),
        &LayoutOptions::default(),
    );
    let empty = empty.unwrap();
    let layout: std::collections::BTreeSet<&str> = empty.lines().collect();
    let policy: Vec<&str> = text.lines().filter(|line| !layout.contains(line)).collect();
    insta::assert_snapshot!(policy.join("\n"));
}

#[test]
fn multicast_reaches_ports_of_open_endpoints_only() {
    let bind = |interface: &str, address: &str| {
        let (interface, address) = (interface.parse().unwrap(), ip(address));
        (
            Binding {
                interface,
                mac: None,
                address,
            },
            (),
        )
    };
    let mut tables = Tables {
        bindings: [
            bind("open", "10.244.1.2"),
            bind("half", "10.244.1.3"),
            bind("half", "fd00::3"),
            bind("unknown", "10.244.1.4"),
        ]
        .into(),
        ..Tables::default()
    };
    tables.ingress.state = [
        (ip("10.244.1.2"), EndpointState::Open),
        (ip("10.244.1.3"), EndpointState::Open),
        (ip("fd00::3"), EndpointState::Restricted),
    ]
    .into();

    let sets = fact_sets(&tables, &NodeFacts::default());

    let is_open_port = |(set, _): &(SetId, SetKey)| *set == SetId::OpenPorts;
    let open: Vec<_> = sets.entries().filter(is_open_port).collect();
    let key = SetKey::Exact(vec![Value::Interface("open".into())]);
    assert_eq!(open, [(SetId::OpenPorts, key)]);
}
