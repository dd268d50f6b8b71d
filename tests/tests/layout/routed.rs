//! Endpoints behind interfaces of their own, without a bridge: the node routes, and the inet table checks who sends.
//!
//! The node of these tests filters no reverse paths, so nothing but our rules drops.

use std::net::IpAddr;

use policy_agent::layout::TableId;
use towpath_tests::frame::{self, Mac};
use towpath_tests::require;

use super::case;
use super::node::{Case, Fate, Node};
use super::world::{
    A, A6, BRIDGE_MAC, CLIENT_PORT, FOREIGN, LINK_LOCAL_W, MAC_A, MAC_W, MAC_Z, MARK, NODE, NODE6,
    OUTSIDE, STRANGER, W, W6, Z, Z6, ip, ip6, packet, router_advertisement,
};

const SPOOFED: Fate = Fate::Dropped(TableId::Inet, "spoofed");
const SPOOFED_ON_BRIDGE: Fate = Fate::Dropped(TableId::Bridge, "spoofed");

/// UDP by way of the node.
fn routed(
    name: &'static str,
    (port, mac): (&'static str, Mac),
    source: impl Into<IpAddr>,
    destination: impl Into<IpAddr>,
    fate: Fate,
) -> Case {
    let (source, destination) = (source.into(), destination.into());
    let datagram = frame::udp((source, CLIENT_PORT), (destination, 80), MARK);
    let frame = packet(mac, BRIDGE_MAC, (source, destination), 17, &datagram);
    case(name, port, frame, fate)
}

const OF_W: (&str, Mac) = ("pw", MAC_W);
const OF_Z: (&str, Mac) = ("pz", MAC_Z);

#[test]
fn routed_endpoints_use_their_own_addresses() {
    require!("layout", Root, Nft, BridgeNetfilter, Ipv6);
    let node = Node::start().unwrap();

    node.check(&[
        routed("to another routed one", OF_W, W, Z, Fate::Delivered),
        routed("and back", OF_Z, Z, W, Fate::Delivered),
        routed("to the outside", OF_W, W, FOREIGN, Fate::Delivered),
        routed("to the node", OF_W, W, NODE, Fate::Input),
        routed("v6", OF_W, ip6(W6), ip6(Z6), Fate::Delivered),
        routed("v6 and back", OF_Z, ip6(Z6), ip6(W6), Fate::Delivered),
        routed("v6 to the node", OF_W, ip6(W6), ip6(NODE6), Fate::Input),
    ]);
}

#[test]
fn routed_endpoints_use_no_others() {
    require!("layout", Root, Nft, BridgeNetfilter, Ipv6);
    let node = Node::start().unwrap();

    node.check(&[
        routed("its own", OF_W, W, Z, Fate::Delivered),
        routed("an outside address", OF_W, FOREIGN, Z, SPOOFED),
        routed("another node's", OF_W, OUTSIDE, Z, SPOOFED),
        routed("this node's", OF_W, NODE, Z, SPOOFED),
        routed("no endpoint's", OF_W, STRANGER, Z, SPOOFED),
        routed("no address", OF_W, ip("0.0.0.0"), Z, SPOOFED),
        routed(
            "an outside address, to the outside",
            OF_W,
            OUTSIDE,
            FOREIGN,
            SPOOFED,
        ),
        routed(
            "an outside address, to the node",
            OF_W,
            FOREIGN,
            NODE,
            SPOOFED,
        ),
        routed("v6, its own", OF_W, ip6(W6), ip6(Z6), Fate::Delivered),
        routed(
            "v6, an outside address",
            OF_W,
            ip6("2001:db8::9"),
            ip6(Z6),
            SPOOFED,
        ),
        routed("v6, this node's", OF_W, ip6(NODE6), ip6(Z6), SPOOFED),
        routed("v6, no endpoint's", OF_W, ip6("fd00::77"), ip6(Z6), SPOOFED),
        routed(
            "v6, link-local and no discovery",
            OF_W,
            ip6(LINK_LOCAL_W),
            ip6(NODE6),
            SPOOFED,
        ),
    ]);
}

#[test]
fn addresses_of_endpoints_enter_by_their_interface_only() {
    require!("layout", Root, Nft, BridgeNetfilter, Ipv6);
    let node = Node::start().unwrap();
    let of_a = ("pa", MAC_A);
    let of_nobody = ("px", [2, 0, 0, 0, 0, 7]);

    node.check(&[
        routed("by its interface", OF_W, W, Z, Fate::Delivered),
        routed("by another routed interface", OF_Z, W, NODE, SPOOFED),
        routed(
            "by a pod's port of the bridge",
            of_a,
            W,
            Z,
            SPOOFED_ON_BRIDGE,
        ),
        routed(
            "by another port of the bridge",
            of_nobody,
            W,
            Z,
            SPOOFED_ON_BRIDGE,
        ),
        routed(
            "v6, by its interface",
            OF_W,
            ip6(W6),
            ip6(Z6),
            Fate::Delivered,
        ),
        routed(
            "v6, by another routed interface",
            OF_Z,
            ip6(W6),
            ip6(NODE6),
            SPOOFED,
        ),
        routed(
            "v6, by a pod's port of the bridge",
            of_a,
            ip6(W6),
            ip6(Z6),
            SPOOFED_ON_BRIDGE,
        ),
        routed(
            "v6, by another port of the bridge",
            of_nobody,
            ip6(W6),
            ip6(Z6),
            SPOOFED_ON_BRIDGE,
        ),
        routed(
            "a bridged endpoint's, by its port",
            of_a,
            A,
            Z,
            Fate::Delivered,
        ),
        routed(
            "a bridged endpoint's, by a routed interface",
            OF_W,
            A,
            Z,
            SPOOFED,
        ),
        routed(
            "v6, a bridged endpoint's, by its port",
            of_a,
            ip6(A6),
            ip6(Z6),
            Fate::Delivered,
        ),
        routed(
            "v6, a bridged endpoint's, by a routed interface",
            OF_W,
            ip6(A6),
            ip6(Z6),
            SPOOFED,
        ),
    ]);
}

#[test]
fn routed_endpoints_discover_their_link() {
    require!("layout", Root, Nft, BridgeNetfilter, Ipv6);
    let node = Node::start().unwrap();
    let of_w = |name, kind, fate| {
        case(
            name,
            "pw",
            router_advertisement(MAC_W, LINK_LOCAL_W, kind),
            fate,
        )
    };

    node.check(&[
        // Nobody answers it; what counts is that the check lets it pass, unlike the next two.
        of_w("a question for routers", 133, Fate::Copies(0, &[])),
        of_w("a router advertisement", 134, SPOOFED),
        of_w("a redirect", 137, SPOOFED),
    ]);
}
