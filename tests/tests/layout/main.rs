//! The layout in a real kernel: which frames pass a node, and which chain drops the others.
//!
//! The tables are written by hand, so that nothing but the layout and its elements is under test. What policy means
//! is proved by the kernel oracle.

mod dhcp;
mod node;
mod protocols;
mod routed;
mod world;

use std::process::Command;

use policy_agent::layout::{LayoutOptions, TableId};
use policy_agent::render;
use towpath_tests::netns::isolated;
use towpath_tests::netns::run;
use towpath_tests::require;

use node::{Case, Fate, Node};
use towpath_tests::frame::{BROADCAST, ethernet, ipv4, tagged};
use world::{
    A, A6, ALL_HOSTS, B, B6, BRIDGE_MAC, EVERYBODY, FOREIGN, FOREIGN_MAC, LINK_LOCAL_A, MAC_A,
    MAC_B, MAC_OPEN, MAC_R, MAC_UNBOUND, MDNS_MAC, NODE, NODE6, OPEN, OUTSIDE, R, STRANGER, arp,
    claim, dad, icmp_echo, icmp_unreachable, ip, router_advertisement, tcp, udp, udp6,
    with_priority,
};

const POLICY: Fate = Fate::Dropped(TableId::Inet, "policy");
const UNKNOWN: Fate = Fate::Dropped(TableId::Inet, "unknown");
const INVALID: Fate = Fate::Dropped(TableId::Inet, "invalid");
const ENCAPSULATION: Fate = Fate::Dropped(TableId::Inet, "encapsulation");
const SPOOFED: Fate = Fate::Dropped(TableId::Bridge, "spoofed");
const SPOOFED_INET: Fate = Fate::Dropped(TableId::Inet, "spoofed");
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

fn case(name: &'static str, port: &'static str, frame: Vec<u8>, fate: Fate) -> Case {
    Case {
        name,
        port,
        frame,
        fate,
    }
}

#[test]
fn verdicts_in_their_order() {
    require!("layout", Root, Nft, BridgeNetfilter, Ipv6);
    let node = Node::start().unwrap();

    node.check(&[
        case(
            "exact allow",
            "pa",
            udp(MAC_A, MAC_B, A, B, 80),
            Fate::Delivered,
        ),
        case(
            "exact deny before a wider allow",
            "pa",
            udp(MAC_A, MAC_B, A, B, 81),
            POLICY,
        ),
        case(
            "any allow",
            "pr",
            udp(MAC_R, MAC_B, R, B, 81),
            Fate::Delivered,
        ),
        case("default deny", "pa", udp(MAC_A, MAC_B, A, B, 82), POLICY),
        case(
            "a range of the profile",
            "pa",
            udp(MAC_A, MAC_B, A, B, 1500),
            Fate::Delivered,
        ),
        case(
            "a hole of the profile",
            "pa",
            udp(MAC_A, MAC_B, A, B, 1600),
            POLICY,
        ),
        case(
            "after the profile the default",
            "pa",
            udp(MAC_A, MAC_B, A, B, 2500),
            POLICY,
        ),
        case(
            "a protocol without ports",
            "pa",
            icmp_echo(MAC_A, MAC_B, A, B),
            POLICY,
        ),
        case(
            "allowed out by protocol, denied in",
            "pr",
            udp(MAC_R, MAC_B, R, B, 80),
            POLICY,
        ),
        case(
            "egress default deny",
            "pr",
            udp(MAC_R, MAC_OPEN, R, OPEN, 80),
            POLICY,
        ),
        case(
            "nothing restricts it",
            "pa",
            icmp_echo(MAC_A, MAC_OPEN, A, OPEN),
            Fate::Delivered,
        ),
        case(
            "v6 exact allow",
            "pa",
            udp6(MAC_A, MAC_B, A6, B6, 80),
            Fate::Delivered,
        ),
        case(
            "v6 default deny",
            "pa",
            udp6(MAC_A, MAC_B, A6, B6, 82),
            POLICY,
        ),
        case(
            "a block's class",
            "out",
            udp(FOREIGN_MAC, BRIDGE_MAC, OUTSIDE, B, 443),
            Fate::Delivered,
        ),
        case(
            "outside, no class",
            "out",
            udp(FOREIGN_MAC, BRIDGE_MAC, FOREIGN, B, 443),
            POLICY,
        ),
    ]);
}

#[test]
fn connections_that_were_allowed_go_on() {
    require!("layout", Root, Nft, BridgeNetfilter, Ipv6);
    let node = Node::start().unwrap();
    let question = udp(MAC_R, MAC_B, R, B, 81);
    let answer = world::udp_ports(MAC_B, MAC_R, B, R, (81, world::CLIENT_PORT), b"answer");

    node.check(&[
        case("an answer without a question", "pb", answer.clone(), POLICY),
        case("the question", "pr", question, Fate::Delivered),
        case("the answer", "pb", answer, Fate::Delivered),
        case(
            "an error about it",
            "pb",
            icmp_unreachable(MAC_B, MAC_R, B, R, 81),
            Fate::Delivered,
        ),
        case(
            "an error about nothing",
            "pb",
            icmp_unreachable(MAC_B, MAC_R, B, R, 99),
            INVALID,
        ),
        case(
            "flags that no connection has",
            "pa",
            tcp(MAC_A, MAC_B, A, B, 80, 0x03),
            INVALID,
        ),
    ]);
}

#[test]
fn unknown_addresses_are_closed() {
    require!("layout", Root, Nft, BridgeNetfilter, Ipv6);
    let node = Node::start().unwrap();

    node.check(&[
        case(
            "to no endpoint, bridged",
            "pa",
            udp(MAC_A, MAC_B, A, STRANGER, 80),
            UNKNOWN,
        ),
        case(
            "to no endpoint, routed",
            "out",
            udp(FOREIGN_MAC, BRIDGE_MAC, OUTSIDE, STRANGER, 80),
            UNKNOWN,
        ),
        case(
            "from no endpoint, routed",
            "out",
            udp(FOREIGN_MAC, BRIDGE_MAC, STRANGER, B, 80),
            SPOOFED_INET,
        ),
        case(
            "to the network's broadcast",
            "pa",
            udp(MAC_A, MAC_B, A, ip("10.244.1.255"), 80),
            UNKNOWN,
        ),
        case(
            "with an endpoint's address",
            "out",
            udp(FOREIGN_MAC, BRIDGE_MAC, A, B, 80),
            SPOOFED_INET,
        ),
        case(
            "with an endpoint's address, IPv6",
            "out",
            udp6(FOREIGN_MAC, BRIDGE_MAC, A6, B6, 80),
            SPOOFED_INET,
        ),
        case(
            "foreign to foreign",
            "out",
            udp(FOREIGN_MAC, BRIDGE_MAC, OUTSIDE, FOREIGN, 80),
            Fate::Delivered,
        ),
    ]);
}

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

#[test]
fn encapsulated_packets_do_not_reach_nodes() {
    require!("layout", Root, Nft, BridgeNetfilter, Ipv6);
    let node = Node::start().unwrap();
    let inner = ipv4(R, OPEN, 17, &[0; 8]);
    let tunnel = |to_mac, to, protocol| {
        ethernet(
            to_mac,
            MAC_A,
            0x0800,
            &ipv4(A, to, protocol, &[&inner[..], b"marked!!"].concat()),
        )
    };

    node.check(&[
        case(
            "vxlan to this node",
            "pa",
            udp(MAC_A, BRIDGE_MAC, A, NODE, 8472),
            ENCAPSULATION,
        ),
        case(
            "vxlan to another node",
            "pa",
            udp(MAC_A, BRIDGE_MAC, A, OUTSIDE, 8472),
            ENCAPSULATION,
        ),
        case(
            "IP in IP",
            "pa",
            tunnel(BRIDGE_MAC, OUTSIDE, 4),
            ENCAPSULATION,
        ),
        case("GRE", "pa", tunnel(BRIDGE_MAC, NODE, 47), ENCAPSULATION),
        case(
            "v6 vxlan",
            "pa",
            udp6(MAC_A, BRIDGE_MAC, A6, NODE6, 8472),
            ENCAPSULATION,
        ),
        case(
            "to an endpoint",
            "pa",
            udp(MAC_A, MAC_OPEN, A, OPEN, 8472),
            Fate::Delivered,
        ),
        case(
            "IP in IP to an endpoint",
            "pa",
            tunnel(MAC_OPEN, OPEN, 4),
            Fate::Delivered,
        ),
        case(
            "between nodes",
            "out",
            udp(FOREIGN_MAC, BRIDGE_MAC, OUTSIDE, NODE, 8472),
            Fate::Input,
        ),
    ]);
}

#[test]
fn packets_to_the_node_itself() {
    require!("layout", Root, Nft, BridgeNetfilter, Ipv6);
    let node = Node::start().unwrap();

    node.check(&[
        case(
            "of an open endpoint",
            "pa",
            udp(MAC_A, BRIDGE_MAC, A, NODE, 53),
            Fate::Input,
        ),
        case(
            "of a restricted one",
            "pr",
            udp(MAC_R, BRIDGE_MAC, R, NODE, 53),
            POLICY,
        ),
        case(
            "of others",
            "out",
            udp(FOREIGN_MAC, BRIDGE_MAC, OUTSIDE, NODE, 53),
            Fate::Input,
        ),
        case(
            "with a pod's address from outside",
            "out",
            udp(FOREIGN_MAC, BRIDGE_MAC, STRANGER, NODE, 53),
            SPOOFED_INET,
        ),
    ]);
    assert!(
        node.hears_itself().unwrap(),
        "the bridge's own address is in the pod network"
    );
    assert!(
        node.reaches_b().unwrap(),
        "the node's own packets are not filtered"
    );
}

#[test]
fn priority_of_others_stays() {
    require!("layout", Root, Nft, BridgeNetfilter, Ipv6);
    let node = Node::start().unwrap();
    // Forwarding turns a type of service of 0x10 into priority 0:6.
    let foreign = with_priority(udp(FOREIGN_MAC, BRIDGE_MAC, OUTSIDE, FOREIGN, 80));
    let judged = with_priority(udp(FOREIGN_MAC, BRIDGE_MAC, OUTSIDE, B, 443));

    node.check(&[case("foreign", "out", foreign, Fate::Delivered)]);
    let of_foreign = node.priorities().unwrap();
    node.check(&[case("judged", "out", judged.clone(), Fate::Delivered)]);
    let of_judged = node.priorities().unwrap();

    assert_eq!(of_foreign, (1, 0), "it keeps 0:6");
    assert_eq!(of_judged, (1, 1), "it leaves with none, not with its class");
}

#[test]
fn the_text_loads_and_its_listing_reloads() {
    require!("layout", Root, Nft);
    let text = render::render_text(&world::tables(), &world::facts(), &LayoutOptions::default());
    let folder = tempfile::tempdir().unwrap();
    let (written, listed) = (folder.path().join("written"), folder.path().join("listed"));
    std::fs::write(&written, text.unwrap()).unwrap();

    isolated(|| {
        run(Command::new("nft").arg("-f").arg(&written)).unwrap();
        let listing = run(Command::new("nft").args(["list", "ruleset"])).unwrap();
        std::fs::write(&listed, &listing).unwrap();
        isolated(|| run(Command::new("nft").args(["-c", "-f"]).arg(&listed)).unwrap()).unwrap();
        assert!(
            listing.contains("goto iprofile_0000000000000001"),
            "{listing}"
        );
    })
    .unwrap();
}

#[test]
fn a_listing_of_what_netlink_loaded_reloads() {
    require!("layout", Root, Nft, BridgeNetfilter, Ipv6);
    let node = Node::start().unwrap();
    let listing = node.run("nft", &["list", "ruleset"]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let listed = folder.path().join("listed");
    let without_flags: String = listing
        .split_inclusive('\n')
        .filter(|line| !line.trim().starts_with("flags owner"))
        .collect();
    std::fs::write(&listed, without_flags).unwrap();

    isolated(|| run(Command::new("nft").args(["-c", "-f"]).arg(&listed)).unwrap()).unwrap();

    assert!(listing.contains("table bridge towpath"), "{listing}");
}
