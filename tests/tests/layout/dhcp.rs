//! DHCP: clients without an address ask everybody, where the configuration says that pods do.

use anyhow::Result;
use policy_agent::layout::{LayoutOptions, TableId};
use towpath_tests::frame::{BROADCAST, Mac};
use towpath_tests::require;

use super::node::{Case, Fate, Node};
use super::world::{
    A, B, BRIDGE_MAC, EVERYBODY, FOREIGN_MAC, MAC_A, MAC_B, MAC_R, MAC_UNBOUND, MAC_W, OUTSIDE, R,
    STRANGER, ip, tables, udp_ports,
};
use super::{POLICY, SPOOFED, SPOOFED_INET, UNKNOWN, case};

/// Source and destination port of a client's packets.
const CLIENT: (u16, u16) = (68, 67);
/// Of a server's.
const SERVER: (u16, u16) = (67, 68);

/// The copies to the open endpoint and to the port that is no pod's arrive, the three to protected ports do not.
const FLOODED: Fate = Fate::Copies(2, &[(TableId::Bridge, "multicast", 3)]);

fn start(dhcp: bool) -> Result<Node> {
    let options = LayoutOptions {
        dhcp,
        ..LayoutOptions::default()
    };
    Node::start_with(options, tables())
}

/// A packet to everybody from a client without address.
fn discover(
    name: &'static str,
    port: &'static str,
    mac: Mac,
    ports: (u16, u16),
    fate: Fate,
) -> Case {
    let frame = udp_ports(mac, BROADCAST, ip("0.0.0.0"), EVERYBODY, ports, b"");
    case(name, port, frame, fate)
}

#[test]
fn clients_without_address_are_heard_where_configured() {
    require!("layout", Root, Nft, BridgeNetfilter, Ipv6);

    for (dhcp, bridged, routed, heard) in [
        (true, FLOODED, Fate::Input, 4),
        (false, SPOOFED, SPOOFED_INET, 0),
    ] {
        let node = start(dhcp).unwrap();
        let before = node.inputs().unwrap();
        node.check(&[
            discover("of an open endpoint", "pa", MAC_A, CLIENT, bridged),
            discover("of an isolated endpoint", "pr", MAC_R, CLIENT, bridged),
            discover(
                "of a port without endpoint",
                "pu",
                MAC_UNBOUND,
                CLIENT,
                bridged,
            ),
            discover("without a bridge", "pw", MAC_W, CLIENT, routed),
        ]);
        assert_eq!(
            node.inputs().unwrap() - before,
            heard,
            "a server on the node"
        );
    }
}

#[test]
fn only_dhcp_needs_no_address() {
    require!("layout", Root, Nft, BridgeNetfilter, Ipv6);
    let node = start(true).unwrap();
    let bound = |name, source, to, destination, ports, fate| {
        let frame = udp_ports(MAC_R, to, source, destination, ports, b"");
        case(name, "pr", frame, fate)
    };

    node.check(&[
        discover("from another port", "pa", MAC_A, (69, 67), SPOOFED),
        discover("to another port", "pa", MAC_A, (68, 69), SPOOFED),
        discover("as a server", "pa", MAC_A, SERVER, SPOOFED),
        discover("without a bridge", "pw", MAC_W, (68, 69), SPOOFED_INET),
        bound(
            "with another's address",
            A,
            BROADCAST,
            EVERYBODY,
            CLIENT,
            SPOOFED,
        ),
        bound(
            "with an outside address",
            OUTSIDE,
            BROADCAST,
            EVERYBODY,
            CLIENT,
            SPOOFED,
        ),
        bound(
            "to another endpoint, with an address",
            R,
            MAC_B,
            B,
            CLIENT,
            POLICY,
        ),
        bound("as a server, to an endpoint", R, MAC_A, A, SERVER, POLICY),
    ]);
}

/// What a server among the pods says to everybody reaches whom any other packet does.
#[test]
fn no_pod_is_a_server() {
    require!("layout", Root, Nft, BridgeNetfilter, Ipv6);
    let offer = udp_ports(MAC_A, BROADCAST, A, EVERYBODY, SERVER, b"");

    start(true)
        .unwrap()
        .check(&[case("an offer of an endpoint", "pa", offer, FLOODED)]);
}

#[test]
fn servers_answer_addresses_that_are_not_known_yet() {
    require!("layout", Root, Nft, BridgeNetfilter, Ipv6);
    let offer = |name, destination, ports, fate| {
        let frame = udp_ports(FOREIGN_MAC, BRIDGE_MAC, OUTSIDE, destination, ports, b"");
        case(name, "out", frame, fate)
    };

    start(true).unwrap().check(&[
        offer("an offer", STRANGER, SERVER, Fate::Delivered),
        offer("from another port", STRANGER, (66, 68), UNKNOWN),
        offer("to another port", STRANGER, (67, 69), UNKNOWN),
        offer("to a known endpoint", B, SERVER, POLICY),
    ]);
    start(false)
        .unwrap()
        .check(&[offer("an offer", STRANGER, SERVER, UNKNOWN)]);
}
