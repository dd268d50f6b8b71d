//! The layout in a real kernel: which frames pass a node, and which chain drops the others.
//!
//! The tables are written by hand, so that nothing but the layout and its elements is under test. What policy means
//! is proved by the kernel oracle.

mod audit;
mod bridge;
mod bypass;
mod dhcp;
mod node;
mod protocols;
mod routed;
mod world;

use std::process::Command;

use policy_agent::layout::{LayoutOptions, NodeFacts, TableId};
use policy_agent::render;
use towpath_tests::netns::isolated;
use towpath_tests::netns::run;
use towpath_tests::require;

use node::{Case, Fate, Node};
use towpath_tests::frame::{ethernet, icmpv6, ipv4};
use world::{
    A, A6, ALL_HOSTS, B, B6, BRIDGE_MAC, EVERYBODY, FOREIGN, FOREIGN_MAC, MAC_A, MAC_B, MAC_OPEN,
    MAC_R, MARK, NODE, NODE6, OPEN, OUTSIDE, R, STRANGER, facts, icmp_echo, icmp_unreachable, ip,
    ip6, packet, tables, tcp, udp, udp6, with_priority,
};

const POLICY: Fate = Fate::Dropped(TableId::Inet, "policy");
const UNKNOWN: Fate = Fate::Dropped(TableId::Inet, "unknown");
const INVALID: Fate = Fate::Dropped(TableId::Inet, "invalid");
const ENCAPSULATION: Fate = Fate::Dropped(TableId::Inet, "encapsulation");
const SPOOFED: Fate = Fate::Dropped(TableId::Bridge, "spoofed");
const SPOOFED_INET: Fate = Fate::Dropped(TableId::Inet, "spoofed");

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
        // The kernel unpacks what is for everybody, too.
        case(
            "vxlan to everybody",
            "pa",
            udp(MAC_A, BRIDGE_MAC, A, EVERYBODY, 8472),
            ENCAPSULATION,
        ),
        case(
            "vxlan to the network's broadcast address",
            "pa",
            udp(MAC_A, BRIDGE_MAC, A, ip("10.244.1.255"), 8472),
            ENCAPSULATION,
        ),
        case(
            "vxlan to all hosts",
            "pa",
            udp(MAC_A, BRIDGE_MAC, A, ALL_HOSTS, 8472),
            ENCAPSULATION,
        ),
        case(
            "v6 vxlan to all hosts",
            "pa",
            udp6(MAC_A, BRIDGE_MAC, A6, "ff02::1", 8472),
            ENCAPSULATION,
        ),
        case(
            "GRE to everybody",
            "pa",
            tunnel(BRIDGE_MAC, EVERYBODY, 47),
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

/// Neighbour discovery is of one link. What is routed under its name would be a way around every policy.
#[test]
fn neighbour_discovery_passes_on_its_link_and_is_judged_elsewhere() {
    require!("layout", Root, Nft, BridgeNetfilter, Ipv6);
    let node = Node::start().unwrap();
    let solicitation = |from, to, source: &str| {
        let (source, destination) = (ip6(source), ip6(B6));
        let body = [&[0; 4][..], &destination.octets(), MARK].concat();
        let message = icmpv6(source, destination, 135, &body);
        packet(from, to, (source.into(), destination.into()), 58, &message)
    };

    node.check(&[
        case(
            "from a neighbour",
            "pa",
            solicitation(MAC_A, MAC_B, A6),
            Fate::Delivered,
        ),
        case(
            "from elsewhere",
            "out",
            solicitation(FOREIGN_MAC, BRIDGE_MAC, "2001:db8::9"),
            POLICY,
        ),
    ]);
}

#[test]
fn ports_of_the_overlay_are_those_that_are_known() {
    require!("layout", Root, Nft, BridgeNetfilter, Ipv6);
    let facts = NodeFacts {
        overlay_ports: Some([4789, 8473].into()),
        ..facts()
    };
    let node = Node::start_as(LayoutOptions::default(), facts, tables()).unwrap();

    node.check(&[
        case(
            "one, to this node",
            "pa",
            udp(MAC_A, BRIDGE_MAC, A, NODE, 4789),
            ENCAPSULATION,
        ),
        case(
            "the other, to another node",
            "pa",
            udp(MAC_A, BRIDGE_MAC, A, OUTSIDE, 8473),
            ENCAPSULATION,
        ),
        case(
            "v6",
            "pa",
            udp6(MAC_A, BRIDGE_MAC, A6, NODE6, 8473),
            ENCAPSULATION,
        ),
        case(
            "the usual one",
            "pa",
            udp(MAC_A, BRIDGE_MAC, A, NODE, 8472),
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
