//! Bypass: what an operator has opened for a while passes, and the kernel closes it again by itself.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use policy_agent::layout::TableId;
use policy_agent::render::Bypassed;
use towpath_tests::frame::{ethernet, ipv4};
use towpath_tests::require;
use towpath_tests::wait::{PATIENCE, until};

use super::node::{Case, Fate, Node};
use super::world::{
    A, A6, B, B6, BRIDGE_MAC, MAC_A, MAC_B, MAC_OPEN, MAC_R, MAC_UNBOUND, NODE, OPEN, OUTSIDE, R,
    STRANGER, ip6, tcp, udp, udp6,
};
use super::{ENCAPSULATION, INVALID, POLICY, SPOOFED, UNKNOWN, case};

/// It arrives, and is counted once.
const BYPASSED: Fate = Fate::Copies(1, &[(TableId::Inet, "bypass_policy", 1)]);
/// Long enough for every test.
const LONG: Duration = Duration::from_hours(1);

fn until_then(addresses: &[IpAddr], time: Duration) -> Bypassed {
    let until = Instant::now() + time;
    Bypassed {
        node: None,
        addresses: addresses.iter().map(|address| (*address, until)).collect(),
    }
}

fn whole_node(time: Duration) -> Bypassed {
    Bypassed {
        node: Some(Instant::now() + time),
        ..Bypassed::default()
    }
}

fn denied_in() -> Vec<u8> {
    udp(MAC_A, MAC_B, A, B, 82)
}

/// To an address of the pod network that no endpoint has: the bridge floods it.
fn to_a_stranger() -> Vec<u8> {
    udp(MAC_A, MAC_UNBOUND, A, STRANGER, 80)
}

/// What a bypass never lets through.
fn forbidden() -> [Case; 3] {
    let inner = ipv4(A, OUTSIDE, 17, b"inner");
    let outer = ethernet(BRIDGE_MAC, MAC_A, 0x0800, &ipv4(A, OUTSIDE, 4, &inner));
    [
        case(
            "a spoofed source",
            "pu",
            udp(MAC_UNBOUND, MAC_B, STRANGER, B, 80),
            SPOOFED,
        ),
        case(
            "another pod's source",
            "pa",
            udp(MAC_A, MAC_OPEN, R, OPEN, 80),
            SPOOFED,
        ),
        case(
            "an encapsulated packet to a node",
            "pa",
            outer,
            ENCAPSULATION,
        ),
    ]
}

#[test]
fn of_a_bypassed_address_policy_drops_nothing() {
    require!("layout", Root, Nft, BridgeNetfilter, Ipv6);
    let mut node = Node::start().unwrap();
    node.check(&[
        case("denied before", "pa", denied_in(), POLICY),
        case("nobody's address before", "pa", to_a_stranger(), UNKNOWN),
    ]);

    node.bypass(until_then(
        &[B.into(), ip6(B6).into(), STRANGER.into()],
        LONG,
    ))
    .unwrap();

    node.check(&[
        case("denied in", "pa", udp(MAC_A, MAC_B, A, B, 81), BYPASSED),
        case(
            "denied by a rule of a profile",
            "pa",
            udp(MAC_A, MAC_B, A, B, 1600),
            BYPASSED,
        ),
        case("v6", "pa", udp6(MAC_A, MAC_B, A6, B6, 82), BYPASSED),
        case(
            "invalid",
            "pa",
            tcp(MAC_A, MAC_B, A, B, 80, 0x29),
            Fate::Copies(1, &[(TableId::Inet, "bypass_invalid", 1)]),
        ),
        case(
            "to another endpoint",
            "pb",
            udp(MAC_B, MAC_A, B, A, 80),
            POLICY,
        ),
        case(
            "invalid, to another endpoint",
            "pb",
            tcp(MAC_B, MAC_A, B, A, 80, 0x29),
            INVALID,
        ),
        case(
            "the other side denies it",
            "pr",
            udp(MAC_R, MAC_OPEN, R, OPEN, 80),
            POLICY,
        ),
        case(
            "to the node",
            "pr",
            udp(MAC_R, BRIDGE_MAC, R, NODE, 80),
            POLICY,
        ),
        case(
            "to an address that is not known yet",
            "pa",
            to_a_stranger(),
            Fate::Copies(1, &[(TableId::Inet, "bypass_unknown", 1)]),
        ),
    ]);
    node.check(&forbidden());
}

#[test]
fn on_a_bypassed_node_policy_drops_nothing() {
    require!("layout", Root, Nft, BridgeNetfilter, Ipv6);
    let mut node = Node::start().unwrap();

    node.bypass(whole_node(LONG)).unwrap();

    node.check(&[
        case("denied in", "pa", udp(MAC_A, MAC_B, A, B, 81), BYPASSED),
        case("v6", "pa", udp6(MAC_A, MAC_B, A6, B6, 82), BYPASSED),
        case(
            "denied out",
            "pr",
            udp(MAC_R, MAC_OPEN, R, OPEN, 80),
            BYPASSED,
        ),
        case(
            "denied out and in",
            "pr",
            udp(MAC_R, MAC_A, R, A, 80),
            Fate::Copies(1, &[(TableId::Inet, "bypass_policy", 2)]),
        ),
        case(
            "allowed",
            "pa",
            udp(MAC_A, MAC_B, A, B, 80),
            Fate::Delivered,
        ),
        case(
            "to an address that is not known yet",
            "pa",
            to_a_stranger(),
            Fate::Copies(1, &[(TableId::Inet, "bypass_unknown", 1)]),
        ),
    ]);
    node.check(&forbidden());
}

#[test]
fn the_kernel_ends_it_by_itself_and_that_is_no_drift() {
    require!("layout", Root, Nft, BridgeNetfilter, Ipv6);
    let mut node = Node::start().unwrap();
    let both = Bypassed {
        node: None,
        addresses: [
            (A.into(), Instant::now() + LONG),
            (B.into(), Instant::now() + Duration::from_secs(3)),
        ]
        .into(),
    };
    node.bypass(both).unwrap();
    node.check(&[case("open", "pa", denied_in(), BYPASSED)]);
    assert!(node.verify().unwrap().is_none());

    let listed = || node.run("nft", &["list", "set", "inet", "towpath", "bypassed"]);
    until("the end", PATIENCE, || {
        Ok(!listed()?.contains(&B.to_string()))
    })
    .unwrap();

    assert!(listed().unwrap().contains(&A.to_string()));
    assert!(node.verify().unwrap().is_none());
    node.check(&[case("closed", "pa", denied_in(), POLICY)]);
}
