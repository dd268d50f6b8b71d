//! Audit: what is denied is counted, and passes.

use policy_agent::layout::{Enforcement, LayoutOptions, NodeFacts, TableId};
use towpath_tests::require;

use super::node::{Fate, Node};
use super::world::{
    A, B, BRIDGE_MAC, MAC_A, MAC_B, MAC_OPEN, MAC_R, MAC_UNBOUND, OPEN, R, STRANGER, facts, ip6,
    tables, tcp, udp, udp6,
};
use super::world::{A6, B6};
use super::{POLICY, SPOOFED, case};

/// It arrives, and is counted once.
const AUDITED: Fate = Fate::Copies(1, &[(TableId::Inet, "audit_policy", 1)]);
const COUNTED: Fate = Fate::Copies(1, &[(TableId::Inet, "policy", 1)]);

#[test]
fn an_audited_node_drops_nothing() {
    require!("layout", Root, Nft, BridgeNetfilter, Ipv6);
    let options = LayoutOptions {
        enforcement: Enforcement::Audit,
        ..LayoutOptions::default()
    };
    let node = Node::start_as(options, facts(), tables()).unwrap();

    node.check(&[
        case(
            "an allowed packet",
            "pa",
            udp(MAC_A, MAC_B, A, B, 80),
            Fate::Delivered,
        ),
        case("denied in", "pa", udp(MAC_A, MAC_B, A, B, 81), COUNTED),
        case(
            "denied by a rule of a profile",
            "pa",
            udp(MAC_A, MAC_B, A, B, 1600),
            COUNTED,
        ),
        case(
            "allowed out, denied in",
            "pr",
            udp(MAC_R, MAC_B, R, B, 4000),
            Fate::Copies(1, &[(TableId::Inet, "policy", 1)]),
        ),
        case("v6", "pa", udp6(MAC_A, MAC_B, A6, B6, 82), COUNTED),
        case(
            "invalid",
            "pa",
            tcp(MAC_A, MAC_B, A, B, 80, 0x29),
            Fate::Copies(1, &[(TableId::Inet, "invalid", 1)]),
        ),
        case(
            "a spoofed source of nobody",
            "pa",
            udp(MAC_A, MAC_OPEN, STRANGER, OPEN, 80),
            Fate::Copies(
                1,
                &[
                    (TableId::Inet, "unknown", 1),
                    (TableId::Bridge, "spoofed", 1),
                ],
            ),
        ),
    ]);
}

#[test]
fn of_an_audited_endpoint_policy_drops_nothing() {
    require!("layout", Root, Nft, BridgeNetfilter, Ipv6);
    let facts = NodeFacts {
        audited: [B.into(), ip6(B6).into()].into(),
        ..facts()
    };
    let node = Node::start_as(LayoutOptions::default(), facts, tables()).unwrap();

    node.check(&[
        case("denied in", "pa", udp(MAC_A, MAC_B, A, B, 81), AUDITED),
        case(
            "denied by a rule of a profile",
            "pa",
            udp(MAC_A, MAC_B, A, B, 1600),
            AUDITED,
        ),
        case("v6", "pa", udp6(MAC_A, MAC_B, A6, B6, 82), AUDITED),
        case(
            "invalid",
            "pa",
            tcp(MAC_A, MAC_B, A, B, 80, 0x29),
            Fate::Copies(1, &[(TableId::Inet, "audit_invalid", 1)]),
        ),
        case(
            "to another endpoint",
            "pb",
            udp(MAC_B, MAC_A, B, A, 80),
            POLICY,
        ),
        case(
            "the other side denies it",
            "pr",
            udp(MAC_R, MAC_OPEN, R, OPEN, 80),
            POLICY,
        ),
        case(
            "a spoofed source",
            "pu",
            udp(MAC_UNBOUND, MAC_B, STRANGER, B, 80),
            SPOOFED,
        ),
        case(
            "to the node",
            "pr",
            udp(MAC_R, BRIDGE_MAC, R, super::NODE, 80),
            POLICY,
        ),
    ]);
}
