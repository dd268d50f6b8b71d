//! What enters by the ports of a pod bridge: addresses that are the sender's, plain frames, no routers.

use policy_agent::layout::TableId;
use towpath_tests::frame::{BROADCAST, ethernet, tagged};
use towpath_tests::require;

use super::node::{Fate, Node};
use super::world::{
    A, A6, ALL_HOSTS, B, B6, EVERYBODY, LINK_LOCAL_A, MAC_A, MAC_B, MAC_OPEN, MAC_R, MAC_UNBOUND,
    MDNS_MAC, NODE, NODE6, OPEN, OUTSIDE, R, STRANGER, arp, claim, dad, ip, router_advertisement,
    udp, udp6,
};
use super::{SPOOFED, case};

const UNBOUND: Fate = Fate::Dropped(TableId::Bridge, "unbound");
const ADVERTISED_BY_STRANGER: Fate = Fate::Copies(
    0,
    &[
        (TableId::Bridge, "multicast", 4),
        (TableId::Inet, "advertisement", 2),
    ],
);
const ADVERTISEMENT: Fate = Fate::Dropped(TableId::Bridge, "advertisement");
const MULTICAST: Fate = Fate::Dropped(TableId::Bridge, "multicast");
const FRAME: Fate = Fate::Dropped(TableId::Bridge, "frame");

#[test]
fn sources_are_their_senders() {
    require!("layout", Root, Nft, BridgeNetfilter, Ipv6);
    let node = Node::start().unwrap();

    node.check(&[
        case(
            "another's address",
            "pa",
            udp(MAC_A, MAC_OPEN, R, OPEN, 80),
            SPOOFED,
        ),
        case(
            "another's hardware address",
            "pa",
            udp(MAC_R, MAC_OPEN, A, OPEN, 80),
            SPOOFED,
        ),
        case(
            "another's both",
            "pa",
            udp(MAC_R, MAC_OPEN, R, OPEN, 80),
            SPOOFED,
        ),
        case(
            "another's v6 address",
            "pa",
            udp6(MAC_A, MAC_B, "fd00::4", B6, 80),
            SPOOFED,
        ),
        case(
            "an outside address",
            "pa",
            udp(MAC_A, MAC_OPEN, OUTSIDE, OPEN, 80),
            SPOOFED,
        ),
        case(
            "no address",
            "pa",
            udp(MAC_A, BROADCAST, ip("0.0.0.0"), EVERYBODY, 67),
            SPOOFED,
        ),
        case(
            "a port without endpoint",
            "pu",
            udp(MAC_UNBOUND, MAC_OPEN, STRANGER, OPEN, 80),
            SPOOFED,
        ),
        case(
            "a port nobody told of",
            "px",
            udp(MAC_A, MAC_OPEN, A, OPEN, 80),
            SPOOFED,
        ),
        case(
            "v6 of such a port",
            "px",
            udp6(MAC_A, MAC_B, A6, B6, 80),
            SPOOFED,
        ),
        case(
            "ARP of such a port",
            "px",
            arp(MAC_A, 1, (MAC_A, A), OPEN),
            SPOOFED,
        ),
        case(
            "a claim of such a port",
            "px",
            claim(MAC_A, LINK_LOCAL_A, B6),
            SPOOFED,
        ),
    ]);
}

#[test]
fn arp_tells_the_truth() {
    require!("layout", Root, Nft, BridgeNetfilter, Ipv6);
    let node = Node::start().unwrap();

    node.check(&[
        case(
            "a question",
            "pa",
            arp(MAC_A, 1, (MAC_A, A), OPEN),
            Fate::Delivered,
        ),
        case(
            "an answer",
            "pa",
            arp(MAC_A, 2, (MAC_A, A), OPEN),
            Fate::Delivered,
        ),
        case(
            "another's address",
            "pa",
            arp(MAC_A, 2, (MAC_A, B), OPEN),
            SPOOFED,
        ),
        case(
            "the bridge's address",
            "pa",
            arp(MAC_A, 2, (MAC_A, NODE), OPEN),
            SPOOFED,
        ),
        case(
            "another's hardware address inside",
            "pa",
            arp(MAC_A, 2, (MAC_R, A), OPEN),
            SPOOFED,
        ),
        case(
            "another's hardware address outside",
            "pa",
            arp(MAC_R, 2, (MAC_A, A), OPEN),
            SPOOFED,
        ),
        case(
            "a probe",
            "pa",
            arp(MAC_A, 1, (MAC_A, ip("0.0.0.0")), A),
            Fate::Delivered,
        ),
        case(
            "a probe that answers",
            "pa",
            arp(MAC_A, 2, (MAC_A, ip("0.0.0.0")), A),
            SPOOFED,
        ),
        case(
            "a probe with another's hardware address",
            "pa",
            arp(MAC_A, 1, (MAC_R, ip("0.0.0.0")), A),
            SPOOFED,
        ),
        case(
            "a probe of a port without endpoint",
            "pu",
            arp(MAC_UNBOUND, 1, (MAC_UNBOUND, ip("0.0.0.0")), A),
            SPOOFED,
        ),
    ]);
}

#[test]
fn neighbour_discovery_tells_the_truth() {
    require!("layout", Root, Nft, BridgeNetfilter, Ipv6);
    let node = Node::start().unwrap();

    node.check(&[
        case(
            "its own address",
            "pa",
            claim(MAC_A, A6, A6),
            Fate::Delivered,
        ),
        case(
            "its own, from its link-local one",
            "pa",
            claim(MAC_A, LINK_LOCAL_A, A6),
            Fate::Delivered,
        ),
        case(
            "its link-local one",
            "pa",
            claim(MAC_A, LINK_LOCAL_A, LINK_LOCAL_A),
            Fate::Delivered,
        ),
        case(
            "another's address",
            "pa",
            claim(MAC_A, A6, "fd00::4"),
            SPOOFED,
        ),
        case(
            "another's, from its link-local one",
            "pa",
            claim(MAC_A, LINK_LOCAL_A, B6),
            SPOOFED,
        ),
        case(
            "the bridge's address",
            "pa",
            claim(MAC_A, A6, NODE6),
            SPOOFED,
        ),
        case(
            "another's hardware address",
            "pa",
            claim(MAC_R, A6, A6),
            SPOOFED,
        ),
        case("another's source", "pa", claim(MAC_A, B6, A6), SPOOFED),
        case("is my address free", "pa", dad(MAC_A, A6), Fate::Delivered),
        case("is another's address free", "pa", dad(MAC_A, B6), SPOOFED),
        case(
            "an endpoint without IPv6",
            "pr",
            dad(MAC_R, "fe80::4"),
            UNBOUND,
        ),
        case(
            "an endpoint without IPv6 asks for a router",
            "pr",
            router_advertisement(MAC_R, "fe80::4", 133),
            UNBOUND,
        ),
        case(
            "a port without endpoint asks for a router",
            "pu",
            router_advertisement(MAC_UNBOUND, "fe80::6", 133),
            UNBOUND,
        ),
        case(
            "an endpoint without IPv6 has an address nevertheless",
            "pr",
            udp6(MAC_R, MAC_B, "fd00::4", B6, 80),
            SPOOFED,
        ),
        case(
            "link-local and no discovery",
            "pa",
            udp6(MAC_A, MAC_B, LINK_LOCAL_A, B6, 80),
            SPOOFED,
        ),
    ]);
}

#[test]
fn nobody_on_the_bridge_is_a_router() {
    require!("layout", Root, Nft, BridgeNetfilter, Ipv6);
    let node = Node::start().unwrap();

    node.check(&[
        case(
            "a router advertisement",
            "pa",
            router_advertisement(MAC_A, LINK_LOCAL_A, 134),
            ADVERTISEMENT,
        ),
        case(
            "a redirect",
            "pa",
            router_advertisement(MAC_A, LINK_LOCAL_A, 137),
            ADVERTISEMENT,
        ),
        // Copies to protected ports end on the bridge; that to the open endpoint and the node's own meet the inet hooks.
        case(
            "a router advertisement of a port that nobody told us of",
            "px",
            router_advertisement([2, 0, 0, 0, 0, 7], "fe80::7", 134),
            ADVERTISED_BY_STRANGER,
        ),
        case(
            "a redirect of a port that nobody told us of",
            "px",
            router_advertisement([2, 0, 0, 0, 0, 7], "fe80::7", 137),
            ADVERTISED_BY_STRANGER,
        ),
    ]);
}

#[test]
fn only_plain_frames_enter() {
    require!("layout", Root, Nft, BridgeNetfilter, Ipv6);
    let node = Node::start().unwrap();
    let plain = udp(MAC_A, MAC_OPEN, A, OPEN, 80);
    let payload = plain[14..].to_vec();

    node.check(&[
        case("plain", "pa", plain.clone(), Fate::Delivered),
        case("tagged", "pa", tagged(&plain, 5), FRAME),
        case("priority tagged", "pa", tagged(&plain, 0), FRAME),
        case("tagged twice", "pa", tagged(&tagged(&plain, 5), 6), FRAME),
        case(
            "provider tagged",
            "pa",
            ethernet(
                MAC_OPEN,
                MAC_A,
                0x88a8,
                &[&[0, 5, 8, 0], &payload[..]].concat(),
            ),
            FRAME,
        ),
        case(
            "PPPoE",
            "pa",
            ethernet(MAC_OPEN, MAC_A, 0x8864, &payload),
            FRAME,
        ),
        case(
            "no EtherType",
            "pa",
            ethernet(MAC_OPEN, MAC_A, 46, &payload),
            FRAME,
        ),
        case(
            "spanning tree",
            "pa",
            ethernet([1, 0x80, 0xc2, 0, 0, 0], MAC_A, 46, &payload),
            FRAME,
        ),
        case(
            "802.1X",
            "pa",
            ethernet([1, 0x80, 0xc2, 0, 0, 3], MAC_A, 0x888e, &payload),
            FRAME,
        ),
        // The kernel takes these before any hook: that they do not teach the bridge is a setting of the bridge
        // (`no_linklocal_learn`), not of ours.
        case(
            "LLDP",
            "pa",
            ethernet([1, 0x80, 0xc2, 0, 0, 0x0e], MAC_A, 0x88cc, &payload),
            Fate::Copies(0, &[]),
        ),
    ]);
}

#[test]
fn multicast_reaches_open_endpoints_only() {
    require!("layout", Root, Nft, BridgeNetfilter, Ipv6);
    let node = Node::start().unwrap();
    let mdns = ip("224.0.0.251");
    // The copies to the open endpoint and to the port that is no pod's arrive; B, the port without endpoint, and R
    // or A are protected.
    let flooded = Fate::Copies(2, &[(TableId::Bridge, "multicast", 3)]);
    // Here the first two are judged.
    let isolated = Fate::Copies(
        0,
        &[
            (TableId::Bridge, "multicast", 3),
            (TableId::Inet, "policy", 2),
        ],
    );

    node.check(&[
        case(
            "multicast",
            "pa",
            udp(MAC_A, MDNS_MAC, A, mdns, 5353),
            flooded,
        ),
        case(
            "broadcast",
            "pa",
            udp(MAC_A, BROADCAST, A, EVERYBODY, 9),
            flooded,
        ),
        case(
            "from an isolated endpoint",
            "pr",
            udp(MAC_R, MDNS_MAC, R, mdns, 5353),
            isolated,
        ),
        case(
            "in a unicast frame, protected",
            "pa",
            udp(MAC_A, MAC_B, A, ALL_HOSTS, 80),
            MULTICAST,
        ),
        case(
            "in a unicast frame, open",
            "pa",
            udp(MAC_A, MAC_OPEN, A, ALL_HOSTS, 80),
            Fate::Delivered,
        ),
    ]);
}
