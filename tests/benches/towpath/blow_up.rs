//! Clusters whose policies could become millions of elements (edge case 6).

use towpath_core::model::{
    Action, Endpoint, Labels, Namespace, NamespaceMatch, Object, Peer, Peers, Policy, PolicyId,
    PolicyKind, PortMatch, Ports, Protocol, Requirement, Rule, Selector, Subject, Tier,
};

use crate::worlds::{self, Size};

/// Endpoints of the node, all in namespace `team-0`.
const LOCAL: u32 = 110;
/// Remote pods of the cases with many classes.
const REMOTE: u32 = 3_000;
/// Namespaces over which remote pods are spread.
const NAMESPACES: u32 = 50;
/// Labels whose subsets are the classes of the overlapping case.
const BITS: u32 = 12;

/// A cluster and one event in it.
pub(crate) struct Case {
    /// What is special.
    pub(crate) name: &'static str,
    /// What is there before the event.
    pub(crate) objects: Vec<Object>,
    /// What the event adds.
    pub(crate) event: Vec<Object>,
}

/// All cases; the first is the control: as many pods, without any blow-up.
pub(crate) fn cases() -> Vec<Case> {
    vec![
        control(),
        overlapping(),
        wide_rules(),
        port_ranges(),
        activation(
            "first local pod activates a policy over 10k members",
            10_000,
        ),
        activation(
            "first local pod activates a policy over 100k members",
            100_000,
        ),
    ]
}

/// 24 rules, each for one of 24 applications.
fn control() -> Case {
    let rule = |index: u32| policy(&format!("app-{index}"), app(index), port(5_000, index));
    let labels = |index| label("app", index % 24);
    case("control: 24 rules, 24 classes", labels, (0..24).map(rule))
}

/// Each remote pod has another subset of 12 labels; 12 rules select one label and 12 a pair.
fn overlapping() -> Case {
    let key = |bit: u32| format!("bit-{}", bit % BITS);
    let labels = move |index: u32| -> Labels {
        (0..BITS)
            .filter(|bit| (index + 1) >> bit & 1 == 1)
            .map(|bit| (key(bit), "on"))
            .collect()
    };
    let has = move |bit: u32| Requirement::In(key(bit).into(), vec!["on".into()]);
    let single = move |bit| {
        let selector = Selector::new(vec![has(bit)]);
        policy(&format!("label-{bit}"), selector, port(5_000, bit))
    };
    let pair = move |bit| {
        let selector = Selector::new(vec![has(bit), has(bit + 1)]);
        policy(&format!("pair-{bit}"), selector, port(6_000, bit))
    };
    case(
        "(a) overlapping selectors, 3,000 classes",
        labels,
        (0..BITS).map(single).chain((0..BITS).map(pair)),
    )
}

/// 16 rules of `namespaceSelector: {}` over 1,000 classes that other rules tell apart.
fn wide_rules() -> Case {
    let narrow = |index: u32| policy(&format!("app-{index}"), app(index), port(5_000, index % 7));
    let wide = |index: u32| {
        policy(
            &format!("wide-{index}"),
            Selector::everything(),
            port(80, index * 10),
        )
    };
    case(
        "(b) 16 rules `namespaceSelector: {}` over 1,000 classes",
        |index| label("app", index % 1_000),
        (0..1_000).map(narrow).chain((0..16).map(wide)),
    )
}

/// 1,000 rules, one in twenty with `endPort`; the ranges overlap.
fn port_ranges() -> Case {
    let rule = |index: u32| {
        let ports = if index % 20 == 19 {
            let first = small(10_000 + index * 20);
            range(first, first + 1_000)
        } else {
            port(5_000, index % 40)
        };
        policy(&format!("rule-{index}"), app(index % 250), ports)
    };
    case(
        "(c) 1,000 rules over 250 classes, 5 % with endPort",
        |index| label("app", index % 250),
        (0..1_000).map(rule),
    )
}

/// A policy over every pod of the cluster that no pod of this node has called for yet.
fn activation(name: &'static str, members: u32) -> Case {
    let size = size(members);
    let mut objects = namespaces();
    let remote =
        (LOCAL..LOCAL + members).map(|index| pod(size, index, worlds::labels(size, index)));
    objects.extend(remote.map(Object::Endpoint));
    objects.push(Object::Policy(worlds::wide_policy()));
    Case {
        name,
        objects,
        event: local_pod(size, 0).into(),
    }
}

/// Local pods, remote ones with these labels, and these policies; the event is the last policy.
fn case(
    name: &'static str,
    labels: impl Fn(u32) -> Labels,
    policies: impl Iterator<Item = Policy>,
) -> Case {
    let size = size(REMOTE);
    let mut policies: Vec<Object> = policies.map(Object::Policy).collect();
    let event = policies.pop().into_iter().collect();
    let mut objects = namespaces();
    objects.extend((0..LOCAL).flat_map(|index| local_pod(size, index)));
    let remote = (0..REMOTE).map(|index| pod(size, LOCAL + index, labels(index)));
    objects.extend(remote.map(Object::Endpoint));
    objects.extend(policies);
    Case {
        name,
        objects,
        event,
    }
}

fn size(remote: u32) -> Size {
    Size {
        pods: LOCAL + remote,
        policies: 0,
        local: LOCAL,
        namespaces: NAMESPACES,
    }
}

fn namespaces() -> Vec<Object> {
    let namespace = |index| {
        let name = format!("team-{index}");
        let labels = [("kubernetes.io/metadata.name", name.clone())];
        Object::Namespace(Namespace {
            name: name.into(),
            labels: labels.into_iter().collect(),
        })
    };
    (0..NAMESPACES).map(namespace).collect()
}

fn local_pod(size: Size, index: u32) -> [Object; 2] {
    let mut pod = pod(size, index, worlds::labels(size, index));
    pod.id.namespace = "team-0".into();
    [
        Object::Endpoint(pod),
        Object::Interface(worlds::interface(index)),
    ]
}

fn pod(size: Size, index: u32, labels: Labels) -> Endpoint {
    Endpoint {
        labels,
        ..worlds::pod(size, index)
    }
}

fn label(key: &str, value: u32) -> Labels {
    [(key, format!("{key}-{value}"))].into_iter().collect()
}

fn app(index: u32) -> Selector {
    let value = format!("app-{index}");
    Selector::new(vec![Requirement::In("app".into(), vec![value.into()])])
}

fn port(base: u32, index: u32) -> PortMatch {
    range(small(base + index), small(base + index))
}

fn range(first: u16, last: u16) -> PortMatch {
    PortMatch::Range {
        protocol: Protocol::Tcp,
        first,
        last,
    }
}

fn small(port: u32) -> u16 {
    u16::try_from(port).expect("cases use ports that exist")
}

/// A NetworkPolicy for every local pod: one rule lets pods of any namespace in.
fn policy(name: &str, pods: Selector, port: PortMatch) -> Policy {
    let peer = Peer::Workloads {
        namespaces: NamespaceMatch::Matching(Selector::everything()),
        pods,
    };
    let rule = Rule {
        name: None,
        action: Action::Accept,
        peers: Peers::Of(vec![peer]),
        ports: Ports::Of(vec![port]),
    };
    Policy {
        id: PolicyId {
            kind: PolicyKind::NetworkPolicy,
            namespace: "team-0".into(),
            name: name.into(),
        },
        tier: Tier::NETWORK_POLICY,
        order: 0,
        subject: Subject {
            namespaces: NamespaceMatch::Is("team-0".into()),
            pods: Selector::everything(),
        },
        ingress: Some(vec![rule]),
        egress: None,
        invalid: None,
    }
}
