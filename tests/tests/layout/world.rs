//! Addresses, tables and frames of the layout's tests.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use policy_agent::layout::NodeFacts;
use towpath_core::model::{Direction, MacAddress, Protocol, Verdict};
use towpath_core::tables::{
    Binding, ClassId, ClassProtocolKey, EndpointState, ExactKey, PortKey, Profile, ProfileId,
    ProfilePorts, ProfileRule, Tables,
};
use towpath_tests::frame::{self, ARP, IPV4, IPV6, Mac, ethernet, icmpv6, ipv4, ipv6};

/// Egress open, ingress protected; on port `pa`.
pub(crate) const A: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 2);
/// The same endpoint.
pub(crate) const A6: &str = "fd00::2";
/// The same endpoint on its link.
pub(crate) const LINK_LOCAL_A: &str = "fe80::2";
/// Egress open, ingress protected; on port `pb`.
pub(crate) const B: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 3);
/// The same endpoint.
pub(crate) const B6: &str = "fd00::3";
/// Restricted both ways; on port `pr`.
pub(crate) const R: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 4);
/// Nothing restricts it; on port `po`.
pub(crate) const OPEN: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 5);
/// Nothing restricts it; behind the interface `w1`, without a bridge.
pub(crate) const W: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 11);
/// The same endpoint.
pub(crate) const W6: &str = "fd00::b";
/// The same endpoint on its link.
pub(crate) const LINK_LOCAL_W: &str = "fe80::b";
/// Nothing restricts it; behind the interface `w2`, without a bridge.
pub(crate) const Z: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 12);
/// The same endpoint.
pub(crate) const Z6: &str = "fd00::c";
/// In the pod network, and no endpoint's.
pub(crate) const STRANGER: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 77);
/// The bridge.
pub(crate) const NODE: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 1);
/// The bridge.
pub(crate) const NODE6: &str = "fd00::1";
/// Another node, in a block that rules know.
pub(crate) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);
/// Neither ours nor in any block; reached by the second uplink.
pub(crate) const FOREIGN: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);
pub(crate) const ALL_HOSTS: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 1);
pub(crate) const EVERYBODY: Ipv4Addr = Ipv4Addr::BROADCAST;

pub(crate) const MAC_A: Mac = [2, 0, 0, 0, 0, 2];
pub(crate) const MAC_B: Mac = [2, 0, 0, 0, 0, 3];
pub(crate) const MAC_R: Mac = [2, 0, 0, 0, 0, 4];
pub(crate) const MAC_OPEN: Mac = [2, 0, 0, 0, 0, 5];
pub(crate) const MAC_W: Mac = [2, 0, 0, 0, 0, 11];
pub(crate) const MAC_Z: Mac = [2, 0, 0, 0, 0, 12];
pub(crate) const MAC_UNBOUND: Mac = [2, 0, 0, 0, 0, 6];
/// Of the bridge, and of all interfaces by which packets are routed.
pub(crate) const BRIDGE_MAC: Mac = [2, 0, 0, 0, 1, 0];
pub(crate) const FOREIGN_MAC: Mac = [2, 0, 0, 0, 2, 9];
pub(crate) const MDNS_MAC: Mac = [1, 0, 0x5e, 0, 0, 0xfb];

/// Source port of all questions.
pub(crate) const CLIENT_PORT: u16 = 40_000;
/// What every frame of a case carries, to be found again.
pub(crate) const MARK: &[u8] = b"marked!!";

/// Class of A.
pub(crate) const OF_A: ClassId = ClassId(1);
/// Class of B.
pub(crate) const OF_B: ClassId = ClassId(2);
const OF_BLOCK: ClassId = ClassId(3);

pub(crate) fn ip(text: &str) -> Ipv4Addr {
    text.parse().expect("an address")
}

pub(crate) fn ip6(text: &str) -> Ipv6Addr {
    text.parse().expect("an address")
}

pub(crate) fn facts() -> NodeFacts {
    NodeFacts {
        pod_interfaces: ["cni0", "w1", "w2"]
            .map(|name| name.parse().expect("a name, a block"))
            .into(),
        routed_interfaces: ["w1", "w2"]
            .map(|name| name.parse().expect("a name, a block"))
            .into(),
        pod_ports: ["va", "vb", "vr", "vo", "vu"]
            .map(|name| name.parse().expect("a name, a block"))
            .into(),
        node_addresses: Arc::new([NODE.into(), ip6(NODE6).into(), OUTSIDE.into()].into()),
        audited: BTreeSet::new(),
        overlay_ports: None,
    }
}

/// Port, hardware address and address of an endpoint, and what restricts it: ingress, egress.
type Endpoint = (&'static str, Mac, IpAddr, EndpointState, EndpointState);

fn endpoints() -> [Endpoint; 10] {
    use EndpointState::{Open, Restricted};
    [
        ("va", MAC_A, A.into(), Restricted, Open),
        ("va", MAC_A, ip6(A6).into(), Restricted, Open),
        ("vb", MAC_B, B.into(), Restricted, Open),
        ("vb", MAC_B, ip6(B6).into(), Restricted, Open),
        ("vr", MAC_R, R.into(), Restricted, Restricted),
        ("vo", MAC_OPEN, OPEN.into(), Open, Open),
        ("w1", MAC_W, W.into(), Open, Open),
        ("w1", MAC_W, ip6(W6).into(), Open, Open),
        ("w2", MAC_Z, Z.into(), Open, Open),
        ("w2", MAC_Z, ip6(Z6).into(), Open, Open),
    ]
}

pub(crate) fn tables() -> Tables {
    let mut tables = Tables::default();
    for (port, mac, address, ingress, egress) in endpoints() {
        let interface = port.parse().expect("a name, a block");
        let binding = Binding {
            interface,
            mac: Some(MacAddress(mac)),
            address,
        };
        tables.bindings.insert(binding, ());
        for (direction, state) in [(Direction::Ingress, ingress), (Direction::Egress, egress)] {
            let tables = match direction {
                Direction::Ingress => &mut tables.ingress,
                Direction::Egress => &mut tables.egress,
            };
            tables.state.insert(address, state);
            if state == EndpointState::Restricted {
                tables.default.insert(address, Verdict::Deny);
            }
        }
    }
    tables.pod_networks = ["10.244.1.0/24", "fd00::/64"]
        .map(|text| (text.parse().expect("a name, a block"), ()))
        .into();
    tables.peer_class = [(A.into(), OF_A), (ip6(A6).into(), OF_A), (B.into(), OF_B)].into();
    let block: IpNet = "192.0.2.0/24".parse().expect("a block");
    tables.cidr_class = [(block.into(), OF_BLOCK)].into();
    rules_of_b(&mut tables);
    let udp = Protocol::Udp;
    let key = ClassProtocolKey {
        endpoint: R.into(),
        class: OF_B,
        protocol: udp,
    };
    tables.egress.class_protocol.insert(key, Verdict::Allow);
    tables
}

fn rules_of_b(tables: &mut Tables) {
    let protocol = Protocol::Udp;
    let exact = |endpoint, class, port| ExactKey {
        endpoint,
        class,
        protocol,
        port,
    };
    let ingress = &mut tables.ingress;
    ingress.exact = [
        (exact(B.into(), OF_A, 80), Verdict::Allow),
        (exact(B.into(), OF_A, 81), Verdict::Deny),
        (exact(B.into(), OF_BLOCK, 443), Verdict::Allow),
        (exact(ip6(B6).into(), OF_A, 80), Verdict::Allow),
    ]
    .into();
    ingress.any = [(
        PortKey {
            endpoint: B.into(),
            protocol,
            port: 81,
        },
        Verdict::Allow,
    )]
    .into();
    ingress.profile = [(B.into(), ProfileId(1))].into();
    let rule = |ranges: &[(u16, u16)], verdict| ProfileRule {
        classes: Some([OF_A].into()),
        ports: Some(ProfilePorts {
            protocol,
            ranges: ranges.into(),
        }),
        verdict,
    };
    let rules = vec![
        rule(&[(1600, 1600), (1700, 1701)], Verdict::Deny),
        rule(&[(1000, 2000)], Verdict::Allow),
    ];
    tables.profiles = [(ProfileId(1), Arc::new(Profile { rules }))].into();
}

pub(crate) fn udp(
    from: Mac,
    to: Mac,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    port: u16,
) -> Vec<u8> {
    udp_ports(from, to, source, destination, (CLIENT_PORT, port), MARK)
}

pub(crate) fn udp_ports(
    from: Mac,
    to: Mac,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    ports: (u16, u16),
    payload: &[u8],
) -> Vec<u8> {
    let payload = [payload, MARK].concat();
    let datagram = frame::udp(
        (source.into(), ports.0),
        (destination.into(), ports.1),
        &payload,
    );
    ethernet(to, from, IPV4, &ipv4(source, destination, 17, &datagram))
}

pub(crate) fn udp6(from: Mac, to: Mac, source: &str, destination: &str, port: u16) -> Vec<u8> {
    let (source, destination) = (ip6(source), ip6(destination));
    let datagram = frame::udp(
        (source.into(), CLIENT_PORT),
        (destination.into(), port),
        MARK,
    );
    ethernet(
        to,
        from,
        IPV6,
        &ipv6(source, destination, 17, 64, &datagram),
    )
}

/// A packet of any protocol, IPv4 or IPv6 as its addresses are.
pub(crate) fn packet(
    from: Mac,
    to: Mac,
    route: (IpAddr, IpAddr),
    protocol: u8,
    payload: &[u8],
) -> Vec<u8> {
    match route {
        (IpAddr::V4(source), IpAddr::V4(destination)) => ethernet(
            to,
            from,
            IPV4,
            &ipv4(source, destination, protocol, payload),
        ),
        (IpAddr::V6(source), IpAddr::V6(destination)) => ethernet(
            to,
            from,
            IPV6,
            &ipv6(source, destination, protocol, 64, payload),
        ),
        _ => unreachable!("both addresses are of one family"),
    }
}

pub(crate) fn icmp_echo(from: Mac, to: Mac, source: Ipv4Addr, destination: Ipv4Addr) -> Vec<u8> {
    let message = icmp(8, 0, &[&[0, 7, 0, 1], MARK].concat());
    ethernet(to, from, IPV4, &ipv4(source, destination, 1, &message))
}

/// Port unreachable, about what [`udp`] sent the other way.
pub(crate) fn icmp_unreachable(
    from: Mac,
    to: Mac,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    port: u16,
) -> Vec<u8> {
    let about = &udp(to, from, destination, source, port)[14..];
    let message = icmp(3, 3, &[&[0, 0, 0, 0], about].concat());
    ethernet(to, from, IPV4, &ipv4(source, destination, 1, &message))
}

fn icmp(kind: u8, code: u8, rest: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, code, 0, 0];
    message.extend_from_slice(rest);
    let sum = frame::checksum(&message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

/// A bare TCP header with these flags.
pub(crate) fn tcp(
    from: Mac,
    to: Mac,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    port: u16,
    flags: u8,
) -> Vec<u8> {
    let mut segment = vec![0; 20];
    segment[..2].copy_from_slice(&CLIENT_PORT.to_be_bytes());
    segment[2..4].copy_from_slice(&port.to_be_bytes());
    (segment[12], segment[13]) = (0x50, flags);
    segment.extend_from_slice(MARK);
    let sum = frame::transport_checksum(source.into(), destination.into(), 6, &segment);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    ethernet(to, from, IPV4, &ipv4(source, destination, 6, &segment))
}

/// A frame from a hardware address with an ARP message about a sender, to [`OPEN`]'s port.
pub(crate) fn arp(from: Mac, operation: u16, sender: (Mac, Ipv4Addr), asked: Ipv4Addr) -> Vec<u8> {
    let message = frame::arp(operation, sender, ([0; 6], asked));
    ethernet(MAC_OPEN, from, ARP, &[&message[..], MARK].concat())
}

/// A neighbour advertisement to B: `claimed` is at the hardware address.
pub(crate) fn claim(from: Mac, source: &str, claimed: &str) -> Vec<u8> {
    let packet = frame::neighbour_advertisement(ip6(source), ip6(B6), ip6(claimed), from);
    ethernet(MAC_B, from, IPV6, &packet)
}

/// A neighbour solicitation without source: is the address free?
pub(crate) fn dad(from: Mac, target: &str) -> Vec<u8> {
    let (source, target) = (Ipv6Addr::UNSPECIFIED, ip6(target));
    let [.., a, b, c] = target.octets();
    let group = Ipv6Addr::new(
        0xff02,
        0,
        0,
        0,
        0,
        1,
        0xff00 | u16::from(a),
        u16::from_be_bytes([b, c]),
    );
    let body = [&[0; 4][..], &target.octets()].concat();
    let message = icmpv6(source, group, 135, &body);
    ethernet(MAC_B, from, IPV6, &ipv6(source, group, 58, 255, &message))
}

/// A router solicitation, router advertisement or redirect to everybody.
pub(crate) fn router_advertisement(from: Mac, source: &str, kind: u8) -> Vec<u8> {
    let (source, everybody) = (ip6(source), ip6("ff02::1"));
    let message = icmpv6(
        source,
        everybody,
        kind,
        &[64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0],
    );
    let to = [0x33, 0x33, 0, 0, 0, 1];
    ethernet(to, from, IPV6, &ipv6(source, everybody, 58, 255, &message))
}

/// The frame with type of service 0x10.
pub(crate) fn with_priority(mut frame: Vec<u8>) -> Vec<u8> {
    frame[15] = 0x10;
    (frame[24], frame[25]) = (0, 0);
    let sum = frame::checksum(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// What is sent behind a case: routed from one uplink to the other, and no business of ours.
pub(crate) fn fence() -> Vec<u8> {
    let source = OUTSIDE.into();
    let datagram = frame::udp((source, 1), (FOREIGN.into(), 9), FENCE);
    ethernet(
        BRIDGE_MAC,
        FOREIGN_MAC,
        IPV4,
        &ipv4(OUTSIDE, FOREIGN, 17, &datagram),
    )
}

/// What a fence carries.
pub(crate) const FENCE: &[u8] = b"behind it";
