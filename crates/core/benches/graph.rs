//! What single events cost the calculation graph, without a kernel: `cargo xtask bench --micro`.
//!
//! 10,000 pods and 10,000 policies, 110 pods of this node. One iteration is an object removed, flushed, added again
//! and flushed, then the collection of what that left behind, so that the graph is the same before the next one.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};

use criterion::{Criterion, criterion_group, criterion_main};
use towpath_core::calc::CalcGraph;
use towpath_core::model::{
    Action, Endpoint, EndpointId, EndpointKind, Lifecycle, MacAddress, Namespace, NamespaceMatch,
    Object, ObservedInterface, Peer, Peers, Policy, PolicyId, PolicyKind, PortMatch, Ports,
    Protocol, Requirement, Rule, Selector, Subject, Tier, Update,
};

const NODE: &str = "here";
const PODS: u32 = 10_000;
const POLICIES: u32 = 10_000;
const LOCAL: u32 = 110;
const NAMESPACES: u32 = 250;

fn namespace(index: u32) -> String {
    format!("team-{}", index % NAMESPACES)
}

fn address(index: u32) -> IpAddr {
    Ipv4Addr::from_bits(0x0a00_0100 + index).into()
}

/// Pods of one namespace are of ten applications in turn.
fn pod(index: u32) -> Object {
    let node = if index < LOCAL { NODE } else { "there" };
    let application = format!("app-{}", index / NAMESPACES % 10);
    Object::Endpoint(Endpoint {
        id: EndpointId {
            kind: EndpointKind::Pod,
            namespace: namespace(index).into(),
            name: format!("pod-{index}").into(),
        },
        labels: [("app", application)].into_iter().collect(),
        node: Some(node.into()),
        addresses: vec![address(index)],
        ports: Vec::new(),
        uid: None,
        host_network: false,
        lifecycle: Lifecycle::Live,
        interface: None,
        mac: None,
    })
}

fn interface(index: u32) -> Object {
    let [.., c, d] = index.to_be_bytes();
    Object::Interface(ObservedInterface {
        index: 10 + index,
        name: format!("veth{index}").parse().expect("a good name"),
        bridge: Some("cni0".parse().expect("a good name")),
        mac: Some(MacAddress([2, 0, 0, 0, c, d])),
        addresses: vec![address(index)],
    })
}

fn application(index: u32) -> Selector {
    let value = format!("app-{}", index % 10);
    Selector::new(vec![Requirement::In("app".into(), vec![value.into()])])
}

/// One application of a namespace may be reached by the next one; of the four policies of each, no two name one port.
fn policy(index: u32) -> Object {
    let own = NamespaceMatch::Is(namespace(index).into());
    let port = 8_000 + u16::try_from(index / NAMESPACES).expect("below 40");
    let rule = Rule {
        name: None,
        action: Action::Accept,
        peers: Peers::Of(vec![Peer::Workloads {
            namespaces: own.clone(),
            pods: application(index / NAMESPACES + 1),
        }]),
        ports: Ports::Of(vec![PortMatch::Range {
            protocol: Protocol::Tcp,
            first: port,
            last: port,
        }]),
    };
    Object::Policy(Policy {
        id: PolicyId {
            kind: PolicyKind::NetworkPolicy,
            namespace: namespace(index).into(),
            name: format!("policy-{index}").into(),
        },
        tier: Tier::NETWORK_POLICY,
        order: 0,
        subject: Subject {
            namespaces: own,
            pods: application(index / NAMESPACES),
        },
        ingress: Some(vec![rule]),
        egress: None,
        invalid: None,
    })
}

fn cluster() -> CalcGraph {
    let namespaces = (0..NAMESPACES).map(|index| {
        let name = namespace(index);
        let labels = [("kubernetes.io/metadata.name", name.clone())];
        Object::Namespace(Namespace {
            name: name.into(),
            labels: labels.into_iter().collect(),
        })
    });
    let mut graph = CalcGraph::new(NODE);
    namespaces
        .chain((0..PODS).map(pod))
        .chain((0..LOCAL).map(interface))
        .chain((0..POLICIES).map(policy))
        .for_each(|object| graph.apply(&Update::Upsert(object)));
    graph.flush();
    graph
}

fn events(criterion: &mut Criterion) {
    let mut graph = cluster();
    let mut group = criterion.benchmark_group("10k pods, 10k policies");
    // The policy selects pod 0 and lets the remote one in.
    for (name, object) in [
        ("remote pod", pod(11 * NAMESPACES)),
        ("local pod", pod(0)),
        ("policy", policy(0)),
    ] {
        let remove = Update::Remove(object.key());
        let add = Update::Upsert(object);
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                for update in [&remove, &add] {
                    graph.apply(update);
                    let delta = graph.flush();
                    assert!(!delta.phases.is_empty(), "the event changes something");
                    black_box(delta);
                }
                black_box(graph.collect());
            });
        });
    }
    group.finish();
}

criterion_group!(benches, events);
criterion_main!(benches);
