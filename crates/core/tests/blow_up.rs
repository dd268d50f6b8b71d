//! What could make millions of elements, and must not (edge case 6): sizes, never times.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use smol_str::{SmolStr, format_smolstr};
use towpath_core::calc::CalcGraph;
use towpath_core::evaluate::{Evaluator, Flow};
use towpath_core::model::{
    Action, Direction, Endpoint, EndpointId, EndpointKind, Lifecycle, MacAddress, Namespace,
    NamespaceMatch, Object, ObservedInterface, Peer, Peers, Policy, PolicyId, PolicyKind,
    PortMatch, Ports, Protocol, Requirement, Rule, Selector, Subject, Tier, Update, Verdict,
};
use towpath_core::tables::{ClassId, Judgement, Tables};

const LOCAL: u32 = 20;
/// Hash entries of one endpoint and direction.
const LIMIT: usize = 2_000;

fn address(index: u32) -> IpAddr {
    Ipv4Addr::from_bits(0x0af4_0000 + index).into()
}

fn pod(index: u32, node: &str, label: (&str, SmolStr)) -> Update {
    Update::Upsert(Object::Endpoint(Endpoint {
        id: EndpointId {
            kind: EndpointKind::Pod,
            namespace: "team".into(),
            name: format_smolstr!("pod-{index}"),
        },
        labels: [label].into_iter().collect(),
        node: Some(node.into()),
        addresses: vec![address(index)],
        ports: Vec::new(),
        uid: None,
        host_network: false,
        lifecycle: Lifecycle::Live,
        interface: None,
        mac: None,
    }))
}

fn interface(index: u32) -> Update {
    let [.., c, d] = index.to_be_bytes();
    Update::Upsert(Object::Interface(ObservedInterface {
        index: 10 + index,
        name: format!("veth{index}").parse().expect("a valid name"),
        bridge: Some("cni0".parse().expect("a valid name")),
        mac: Some(MacAddress([2, 0, 0, 0, c, d])),
        addresses: vec![address(index)],
    }))
}

fn is(key: &str, value: &str) -> Selector {
    Selector::new(vec![Requirement::In(key.into(), vec![value.into()])])
}

fn workloads(pods: Selector) -> Peers {
    Peers::Of(vec![Peer::Workloads {
        namespaces: NamespaceMatch::Matching(Selector::everything()),
        pods,
    }])
}

fn ports(protocol: Protocol, ranges: impl IntoIterator<Item = (u16, u16)>) -> Ports {
    let range = |(first, last)| PortMatch::Range {
        protocol,
        first,
        last,
    };
    Ports::Of(ranges.into_iter().map(range).collect())
}

fn policy(name: &str, tier: Tier, action: Action, peers: Peers, ports: Ports) -> Update {
    let is_cluster_wide = tier != Tier::NETWORK_POLICY;
    let (kind, namespace) = if is_cluster_wide {
        (PolicyKind::ClusterNetworkPolicy, "")
    } else {
        (PolicyKind::NetworkPolicy, "team")
    };
    Update::Upsert(Object::Policy(Policy {
        id: PolicyId {
            kind,
            namespace: namespace.into(),
            name: name.into(),
        },
        tier,
        order: 0,
        subject: Subject {
            namespaces: NamespaceMatch::Is("team".into()),
            pods: is("on", "here"),
        },
        ingress: Some(vec![Rule {
            name: None,
            action,
            peers,
            ports,
        }]),
        egress: None,
        invalid: None,
    }))
}

/// Local pods, and `classes` remote ones each of which a rule of its own lets in on one of seven ports.
fn world(classes: u32) -> CalcGraph {
    let mut graph = CalcGraph::new("here");
    graph.apply(&Update::Upsert(Object::Namespace(Namespace {
        name: "team".into(),
        labels: [("kubernetes.io/metadata.name", "team")]
            .into_iter()
            .collect(),
    })));
    for index in 0..LOCAL {
        graph.apply(&pod(index, "here", ("on", "here".into())));
        graph.apply(&interface(index));
    }
    for index in 0..classes {
        let app = format_smolstr!("app-{index}");
        let port = 5_000 + u16::try_from(index % 7).expect("below 7");
        graph.apply(&pod(1_000 + index, "there", ("app", app.clone())));
        graph.apply(&policy(
            &app,
            Tier::NETWORK_POLICY,
            Action::Accept,
            workloads(is("app", &app)),
            ports(Protocol::Tcp, [(port, port)]),
        ));
    }
    graph
}

/// Blocks with a hole each, all of them in each other, on a port of their own.
fn with_holes(everything: &str, hole: impl Fn(u32) -> Vec<IpNet>, count: u32) -> Vec<Rule> {
    let cidr: IpNet = everything.parse().expect("a block");
    let rule = |index: u32| {
        let port = 1 + u16::try_from(index).expect("few rules");
        Rule {
            name: None,
            action: Action::Accept,
            peers: Peers::Of(vec![Peer::Network {
                cidr,
                except: hole(index),
            }]),
            ports: ports(Protocol::Tcp, [(port, port)]),
        }
    };
    (0..count).map(rule).collect()
}

/// The whole of IPv6 but for some addresses far apart.
fn scattered(index: u32) -> Vec<IpNet> {
    let address = |hole: u32| Ipv6Addr::from_bits(u128::from(index * 1_000 + hole + 1) << 90 | 1);
    (0..1_000)
        .map(|hole| IpAddr::from(address(hole)).into())
        .collect()
}

fn in_namespace(name: &str, rules: Vec<Rule>) -> Update {
    Update::Upsert(Object::Policy(Policy {
        id: PolicyId {
            kind: PolicyKind::NetworkPolicy,
            namespace: name.into(),
            name: "blocks".into(),
        },
        tier: Tier::NETWORK_POLICY,
        order: 0,
        subject: Subject {
            namespaces: NamespaceMatch::Is(name.into()),
            pods: Selector::everything(),
        },
        ingress: Some(rules),
        egress: None,
        invalid: None,
    }))
}

#[test]
fn a_hole_costs_a_range_and_not_as_many_blocks_as_an_address_has_bits() {
    let mut graph = world(0);
    graph.apply(&in_namespace("team", with_holes("::/0", scattered, 2)));

    graph.flush();

    let ranges = graph.tables().cidr_class.len();
    assert!((2_000..=4_001).contains(&ranges), "{ranges} ranges");
    assert_eq!(graph.refused(), Vec::<&PolicyId>::new());
}

#[test]
fn blocks_that_overlap_too_much_are_refused_by_name_and_those_of_others_are_not() {
    let hole = |index: u32| vec![IpAddr::from(Ipv4Addr::from_bits(0x0b00_0001 + 2 * index)).into()];
    let mut graph = world(0).with_block_entries(5_000);
    graph.apply(&Update::Upsert(Object::Namespace(Namespace {
        name: "other".into(),
        labels: [("team", "other")].into_iter().collect(),
    })));
    let mut other = pod(200, "here", ("on", "here".into()));
    if let Update::Upsert(Object::Endpoint(endpoint)) = &mut other {
        endpoint.id.namespace = "other".into();
    }
    graph.apply(&other);
    graph.apply(&interface(200));
    graph.apply(&in_namespace("other", with_holes("0.0.0.0/0", hole, 3)));
    graph.apply(&in_namespace("team", with_holes("0.0.0.0/0", hole, 100)));
    let outside = IpAddr::from([192, 0, 2, 1]);
    let verdict = |graph: &CalcGraph, endpoint| {
        let tables = graph.tables();
        tables.judge(Direction::Ingress, address(endpoint), outside, 6, 1)
    };

    graph.flush();

    let named: Vec<String> = graph.refused().iter().map(ToString::to_string).collect();
    assert_eq!(named, ["NetworkPolicy team/blocks"]);
    assert_eq!(
        verdict(&graph, 1),
        Judgement::Decided(Verdict::Allow),
        "a block of both"
    );
    assert_eq!(verdict(&graph, 200), Judgement::Decided(Verdict::Allow));
    let last = graph
        .tables()
        .judge(Direction::Ingress, address(1), outside, 6, 100);
    assert_eq!(last, Judgement::Decided(Verdict::Deny));
    assert!(graph.tables().cidr_class.len() < 20);

    graph.apply(&in_namespace("team", with_holes("0.0.0.0/0", hole, 20)));
    graph.flush();

    assert_eq!(graph.refused(), Vec::<&PolicyId>::new());
    assert_eq!(verdict(&graph, 1), Judgement::Decided(Verdict::Allow));
}

/// The most hash entries that one endpoint has on ingress.
fn most_entries(tables: &Tables) -> usize {
    let ingress = &tables.ingress;
    let mut counts: BTreeMap<IpAddr, usize> = BTreeMap::new();
    let endpoints = (ingress.exact.keys().map(|key| key.endpoint))
        .chain(ingress.class_protocol.keys().map(|key| key.endpoint))
        .chain(ingress.class_any.keys().map(|key| key.endpoint))
        .chain(ingress.any.keys().map(|key| key.endpoint));
    for endpoint in endpoints {
        *counts.entry(endpoint).or_default() += 1;
    }
    counts.into_values().max().unwrap_or(0)
}

fn assert_small_and_right(graph: &mut CalcGraph, what: &str) {
    graph.flush();
    graph.collect();
    let tables = graph.tables();
    assert!(
        most_entries(&tables) <= LIMIT,
        "{what}: {} entries of one endpoint",
        most_entries(&tables)
    );
    assert!(tables.profiles.len() <= 1, "{what}: equal profiles are one");
    let evaluator = Evaluator::new(graph.cluster());
    for peer in (1_000..4_000).step_by(37).chain([9_999]) {
        for (protocol, port) in [(6, 80), (6, 5_003), (6, 6_500), (17, 53), (17, 99), (1, 0)] {
            let flow = Flow {
                source: address(peer),
                destination: address(1),
                protocol,
                port: (protocol != 1).then_some(port),
            };
            let wanted = evaluator.judge(Direction::Ingress, &flow).verdict;
            let found = tables.judge(
                Direction::Ingress,
                address(1),
                address(peer),
                protocol,
                port,
            );
            assert_eq!(found, Judgement::Decided(wanted), "{what}: {flow:?}");
        }
    }
}

#[test]
fn wide_rules_over_many_classes_go_to_one_shared_profile() {
    let mut graph = world(3_000);
    assert_small_and_right(&mut graph, "a rule for each of 3,000 classes");

    let everybody = || workloads(Selector::everything());
    let np = Tier::NETWORK_POLICY;
    let many = (0..16).map(|index| (80 + index * 10, 80 + index * 10));
    graph.apply(&policy(
        "wide",
        np.clone(),
        Action::Accept,
        everybody(),
        ports(Protocol::Tcp, many),
    ));
    assert_small_and_right(&mut graph, "16 ports for every workload");

    let few = (0..10).map(|index| (53 + index * 10, 53 + index * 10));
    graph.apply(&policy(
        "anybody",
        np,
        Action::Accept,
        Peers::Any,
        ports(Protocol::Udp, few),
    ));
    assert_small_and_right(&mut graph, "10 ports for anybody");

    graph.apply(&policy(
        "deny",
        Tier::ADMIN,
        Action::Deny,
        everybody(),
        ports(Protocol::Udp, [(0, 65_535)]),
    ));
    assert_small_and_right(
        &mut graph,
        "no UDP from workloads, which anybody else may use",
    );
}

#[test]
fn many_classes_that_share_few_ports_are_a_rule_a_port() {
    let mut graph = world(0);
    for index in 0..3_000_u32 {
        let app = format_smolstr!("app-{index}");
        graph.apply(&pod(1_000 + index, "there", ("app", app.clone())));
        // One of 276 pairs of 24 ports.
        let (low, high) = (index % 24, (index + 1 + index / 24 % 23) % 24);
        let port = |offset: u32| 5_000 + 2 * u16::try_from(offset).expect("below 24");
        graph.apply(&policy(
            &app,
            Tier::NETWORK_POLICY,
            Action::Accept,
            workloads(is("app", &app)),
            ports(
                Protocol::Tcp,
                [(port(low), port(low)), (port(high), port(high))],
            ),
        ));
    }

    assert_small_and_right(&mut graph, "276 pairs of 24 ports");

    let most = graph
        .tables()
        .profiles
        .values()
        .map(|p| p.rules.len())
        .max();
    assert!(most <= Some(24 + 4), "{most:?} rules");
}

/// Each class may use all ports but one of its own: port by port, nearly every class would be in every list.
#[test]
fn lists_of_classes_do_not_grow_with_classes_times_ports() {
    const CLASSES: u16 = 600;
    let mut graph = world(0);
    let all = 10_000..10_000 + CLASSES;
    for own in all.clone() {
        let app = format_smolstr!("app-{own}");
        let others = [(all.start, own - 1), (own + 1, all.end - 1)];
        graph.apply(&pod(u32::from(own), "there", ("app", app.clone())));
        graph.apply(&policy(
            &app,
            Tier::NETWORK_POLICY,
            Action::Accept,
            workloads(is("app", &app)),
            ports(Protocol::Tcp, others.into_iter().filter(|(a, b)| a <= b)),
        ));
    }
    assert_small_and_right(&mut graph, "all ports but one");

    let tables = graph.tables();
    let rules = tables.profiles.values().flat_map(|profile| &profile.rules);
    let lists: BTreeSet<&Arc<[ClassId]>> = rules.filter_map(|rule| rule.classes.as_ref()).collect();
    let members: usize = lists.iter().map(|list| list.len()).sum();
    assert!(
        !lists.is_empty() && members <= 16 * 7 * usize::from(CLASSES),
        "{members} members of {} lists",
        lists.len()
    );
}

#[test]
fn overlapping_ranges_stay_ranges() {
    let mut graph = world(100);
    for index in 0..200u16 {
        graph.apply(&policy(
            &format!("range-{index}"),
            Tier::NETWORK_POLICY,
            Action::Accept,
            workloads(is("app", &format!("app-{}", index % 20))),
            ports(Protocol::Tcp, [(10_000 + index * 20, 11_000 + index * 20)]),
        ));
    }

    assert_small_and_right(&mut graph, "200 overlapping ranges");
}

#[test]
fn ten_thousand_rules_on_one_port_are_one_entry() {
    let mut graph = world(0);
    for index in 0..10_000 {
        graph.apply(&policy(
            &format!("rule-{index}"),
            Tier::NETWORK_POLICY,
            Action::Accept,
            Peers::Any,
            ports(Protocol::Tcp, [(443, 443)]),
        ));
    }

    graph.flush();

    let tables = graph.tables();
    assert_eq!(tables.ingress.any.len(), LOCAL as usize);
    assert!(
        tables
            .ingress
            .any
            .values()
            .all(|verdict| *verdict == Verdict::Allow)
    );
    assert!(tables.ingress.exact.is_empty() && tables.profiles.is_empty());
}
