//! The proptest strategies: how often each shape occurs.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};

use super::{
    AddressSpec, BlockSpec, ContainerPortSpec, EndpointSpec, Families, LabelSpec,
    NamespaceMatchSpec, NamespaceSpec, NodeSpec, PeerSpec, PolicySpec, PortSpec, RuleSpec,
    SelectorSpec, Sort, TierSpec, World,
};
use crate::model::Action;

/// Worlds of 1 to 4 namespaces, 2 or 3 nodes, up to 12 endpoints and up to 8 policies.
pub fn world() -> impl Strategy<Value = World> {
    let namespaces = vec(namespace(), 1..=4);
    let nodes = vec(node(), 2..=3);
    let endpoints = vec(endpoint(), 2..=12);
    let policies = prop_oneof![1 => vec(policy(), 0..=3), 4 => vec(policy(), 3..=8)];
    (namespaces, nodes, endpoints, policies).prop_map(|(namespaces, nodes, endpoints, policies)| {
        World {
            namespaces,
            nodes,
            endpoints,
            policies,
        }
    })
}

/// `count` worlds, always the same for one seed; for benches and for counts, where nothing is to be shrunk.
pub fn sample(seed: u64, count: usize) -> impl Iterator<Item = World> {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let random = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(ProptestConfig::default(), random);
    let strategy = world();
    (0..count).map(move |_| {
        let tree = strategy.new_tree(&mut runner);
        tree.expect("nothing in this strategy rejects a value")
            .current()
    })
}

fn labels() -> impl Strategy<Value = LabelSpec> {
    [
        option::weighted(0.7, 0..3u8),
        option::weighted(0.5, 0..3u8),
        option::weighted(0.3, 0..3u8),
    ]
}

fn namespace() -> impl Strategy<Value = NamespaceSpec> {
    (prop::bool::weighted(0.82), labels())
        .prop_map(|(is_known, labels)| NamespaceSpec { is_known, labels })
}

fn node() -> impl Strategy<Value = NodeSpec> {
    // Some of it another node lists, too, or a workload outside of the pod CIDRs.
    let often = (any::<bool>(), 2..6u8).prop_map(|(is_v6, host)| AddressSpec {
        is_v6,
        site: 5,
        host,
    });
    let listed = prop_oneof![
        4 => Just(Vec::new()),
        2 => vec(address(), 1..=3),
        2 => vec(often, 1..=4),
    ];
    let observed = prop_oneof![6 => Just(Vec::new()), 1 => vec(address(), 1..=2)];
    let beside = (any::<bool>(), 0..3u8, 4..9u8).prop_map(|(is_v6, site, length)| {
        let host = 0;
        let around = AddressSpec { is_v6, site, host };
        BlockSpec { around, length }
    });
    // One or a few addresses, which a node lists.
    let narrow = (any::<bool>(), 10..13u8, 0..3u8).prop_map(|(is_v6, host, length)| {
        let site = 3;
        let around = AddressSpec { is_v6, site, host };
        BlockSpec { around, length }
    });
    let odd = prop_oneof![1 => block(), 3 => beside, 2 => narrow];
    let odd_cidr = option::weighted(0.14, odd);
    (labels(), any::<bool>(), listed, observed, odd_cidr).prop_map(
        |(labels, has_bridge_addresses, listed, observed, odd_cidr)| NodeSpec {
            labels,
            has_bridge_addresses,
            listed,
            observed,
            odd_cidr,
        },
    )
}

fn endpoint() -> impl Strategy<Value = EndpointSpec> {
    let sort = prop_oneof![
        14 => Just(Sort::Pod),
        3 => Just(Sort::Workload),
        2 => Just(Sort::HostNetwork),
        2 => Just(Sort::Finished),
    ];
    // Half of them on the local node; index 3 is a node that has no object.
    let node = prop_oneof![
        10 => Just(Some(0)),
        6 => Just(Some(1)),
        3 => Just(Some(2)),
        1 => Just(Some(3)),
        1 => Just(None),
    ];
    let families = prop_oneof![
        7 => Just(Families::Dual),
        4 => Just(Families::V4),
        4 => Just(Families::V6),
        1 => Just(Families::Many),
        1 => Just(Families::None),
    ];
    let place = (node, families, 2..20u8, prop::bool::weighted(0.1));
    (sort, 0..4u8, labels(), place, vec(container_port(), 0..=4)).prop_map(
        |(sort, namespace, labels, (node, families, host, is_outside), ports)| EndpointSpec {
            sort,
            namespace,
            labels,
            node,
            families,
            host,
            is_outside,
            ports,
        },
    )
}

fn container_port() -> impl Strategy<Value = ContainerPortSpec> {
    (option::weighted(0.9, port_name()), protocol(), 0..10u8).prop_map(
        |(name, protocol, number)| ContainerPortSpec {
            name,
            protocol,
            number,
        },
    )
}

/// Index of a port's name. Few names, so that they often meet.
fn port_name() -> impl Strategy<Value = u8> {
    prop_oneof![6 => Just(0), 3 => Just(1), 1 => Just(2)]
}

/// Index of a protocol: TCP, UDP, SCTP.
fn protocol() -> impl Strategy<Value = u8> {
    prop_oneof![5 => Just(0), 2 => Just(1), 1 => Just(2)]
}

fn address() -> impl Strategy<Value = AddressSpec> {
    let site = prop_oneof![3 => 0..3u8, 2 => 3..6u8];
    let host = prop_oneof![6 => 0..21u8, 1 => Just(255)];
    (any::<bool>(), site, host).prop_map(|(is_v6, site, host)| AddressSpec { is_v6, site, host })
}

fn block() -> impl Strategy<Value = BlockSpec> {
    (address(), prop_oneof![1 => Just(0), 5 => 0..11u8])
        .prop_map(|(around, length)| BlockSpec { around, length })
}

fn selector() -> impl Strategy<Value = SelectorSpec> {
    let requirement = || (0..3u8, 0..5u8, 1..8u8);
    prop_oneof![
        4 => Just(Vec::new()),
        5 => requirement().prop_map(|one| vec![one]),
        1 => vec(requirement(), 2..=3),
    ]
}

fn namespace_match() -> impl Strategy<Value = NamespaceMatchSpec> {
    prop_oneof![
        3 => Just(NamespaceMatchSpec::Own),
        1 => (0..5u8).prop_map(NamespaceMatchSpec::Named),
        1 => (0..5u8).prop_map(NamespaceMatchSpec::Labelled),
        5 => selector().prop_map(NamespaceMatchSpec::Matching),
    ]
}

fn peer() -> impl Strategy<Value = PeerSpec> {
    prop_oneof![
        5 => (namespace_match(), selector()).prop_map(|(n, pods)| PeerSpec::Workloads(n, pods)),
        6 => (block(), vec(block(), 0..=3)).prop_map(|(block, except)| PeerSpec::Network(block, except)),
        3 => selector().prop_map(PeerSpec::Nodes),
    ]
}

fn port() -> impl Strategy<Value = PortSpec> {
    prop_oneof![
        4 => (protocol(), 0..10u8)
            .prop_map(|(protocol, first)| PortSpec::Range { protocol, first, last: first }),
        2 => (protocol(), 0..10u8, 0..10u8).prop_map(|(protocol, a, b)| PortSpec::Range {
            protocol,
            first: a.min(b),
            last: a.max(b),
        }),
        1 => protocol().prop_map(|protocol| PortSpec::Whole { protocol }),
        5 => (option::weighted(0.5, protocol()), prop_oneof![9 => port_name(), 1 => Just(3)])
            .prop_map(|(protocol, name)| PortSpec::Named { protocol, name }),
    ]
}

fn rule() -> impl Strategy<Value = RuleSpec> {
    let action =
        prop_oneof![4 => Just(Action::Accept), 3 => Just(Action::Deny), 3 => Just(Action::Pass)];
    // Empty lists are rare: they match nothing.
    let peers = prop_oneof![3 => Just(None), 8 => vec(peer(), 1..=3).prop_map(Some), 1 => Just(Some(Vec::new()))];
    let ports = prop_oneof![4 => Just(None), 7 => vec(port(), 1..=3).prop_map(Some), 1 => Just(Some(Vec::new()))];
    (action, peers, ports).prop_map(|(action, peers, ports)| RuleSpec {
        action,
        peers,
        ports,
    })
}

fn policy() -> impl Strategy<Value = PolicySpec> {
    let tier = prop_oneof![
        4 => Just(TierSpec::Admin),
        4 => Just(TierSpec::NetworkPolicy),
        4 => Just(TierSpec::Baseline),
    ];
    let rules = || option::weighted(0.7, vec(rule(), 0..=3));
    (
        tier,
        0..4u8,
        0..3u8,
        namespace_match(),
        selector(),
        rules(),
        rules(),
    )
        .prop_map(
            |(tier, namespace, order, namespaces, pods, ingress, egress)| PolicySpec {
                tier,
                namespace,
                order,
                namespaces,
                pods,
                ingress,
                egress,
            },
        )
}
