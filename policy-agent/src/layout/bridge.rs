//! Chains of `table bridge towpath`: a frame's source is its sender's.
//!
//! The table knows pod bridges by the names of their ports: the kernel may lack the bridge's own name
//! (`meta ibrname` needs `CONFIG_NFT_BRIDGE_META`).

use std::net::{Ipv4Addr, Ipv6Addr};

use towpath_dataplane::nft::{Field, Hook, Rule, RuleVerdict, Value};

use super::inet::{
    ADVERTISEMENT_TYPES, NEIGHBOUR_TYPES, base, dhcp_reply, dhcp_request, link_local,
    link_local_sources, numbers, regular, source, to_many,
};
use super::{ChainLayout, DropReason, IpVersion, LayoutOptions, RuleBuilder, SetId, name};

const ETHER_IPV4: u16 = 0x0800;
const ETHER_ARP: u16 = 0x0806;
const ETHER_IPV6: u16 = 0x86dd;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const ARP_REQUEST: u16 = 1;

/// Before everything else that may look at frames: before learning, and before `br_netfilter`.
const SOURCE_CHECK_PRIORITY: i32 = -300;
/// `filter` of the bridge family.
const FILTER_PRIORITY: i32 = -200;

/// All chains; targets of jumps may come later.
pub(super) fn chains(options: &LayoutOptions) -> Vec<ChainLayout> {
    let reasons = [
        DropReason::Spoofed,
        DropReason::Unbound,
        DropReason::Advertisement,
        DropReason::Multicast,
        DropReason::Frame,
    ];
    let mut chains: Vec<ChainLayout> = reasons
        .iter()
        .map(|reason| reason.layout(options))
        .collect();
    chains.extend([
        regular("neighbour_target", neighbour_target()),
        regular("neighbour_claim", neighbour_claim()),
        regular("arp_probe", arp_probe()),
        regular("arp_from_pods", arp_from_pods()),
        regular("ip_from_pods", ip_from_pods(options)),
        regular("ip6_from_pods", ip6_from_pods()),
        regular("from_pods", from_pods()),
        regular("to_many", to_many_chain(options)),
        base(
            "prerouting",
            Hook::Prerouting,
            SOURCE_CHECK_PRIORITY,
            prerouting(),
        ),
        base("input", Hook::Input, SOURCE_CHECK_PRIORITY, input()),
        base("forward", Hook::Forward, FILTER_PRIORITY, forward()),
    ]);
    chains
}

/// Ports of pods are checked. On every other port no pod's address may appear: a port that nobody told us of yet
/// cannot use one, even while the agent is down.
fn prerouting() -> Vec<Rule> {
    let goto = |chain| RuleVerdict::Goto(name(chain));
    vec![
        RuleBuilder::new()
            .within(Field::InputInterface, SetId::PodPorts)
            .verdict(goto("from_pods")),
        RuleBuilder::new()
            .within(
                source(IpVersion::V4),
                SetId::BridgePodNetworks(IpVersion::V4),
            )
            .drop_for(DropReason::Spoofed),
        RuleBuilder::new()
            .within(
                source(IpVersion::V6),
                SetId::BridgePodNetworks(IpVersion::V6),
            )
            .drop_for(DropReason::Spoofed),
        RuleBuilder::new()
            .within(Field::ArpSenderIp, SetId::BridgePodNetworks(IpVersion::V4))
            .drop_for(DropReason::Spoofed),
        RuleBuilder::new()
            .is(Field::Icmpv6Type, Value::U8(NEIGHBOUR_ADVERTISEMENT))
            .within(Field::Icmpv6Target, SetId::PodTargets)
            .drop_for(DropReason::Spoofed),
    ]
}

/// The kernel hands frames to the bridge's control addresses to the input hook, then learns their source.
fn input() -> Vec<Rule> {
    vec![
        to_control_addresses()
            .within(Field::InputInterface, SetId::PodPorts)
            .drop_for(DropReason::Frame),
    ]
}

/// One copy of a frame to each port: multicast and broadcast reach only endpoints whose ingress nothing restricts.
/// A multicast packet in a unicast frame is multicast to its receiver too.
fn forward() -> Vec<Rule> {
    let to_many_frames = [1, 2]
        .map(|kind| RuleBuilder::new().is(Field::PacketType, Value::U8(kind)))
        .into_iter();
    to_many_frames
        .chain(to_many())
        .map(|rule| rule.verdict(RuleVerdict::Goto(name("to_many"))))
        .collect()
}

fn to_many_chain(options: &LayoutOptions) -> Vec<Rule> {
    let mut rules = vec![
        RuleBuilder::new()
            .not_within(Field::OutputInterface, SetId::PodPorts)
            .verdict(RuleVerdict::Return),
        RuleBuilder::new()
            .within(Field::OutputInterface, SetId::OpenPorts)
            .verdict(RuleVerdict::Return),
        RuleBuilder::new()
            .is(Field::EtherType, Value::U16(ETHER_ARP))
            .verdict(RuleVerdict::Return),
        RuleBuilder::new()
            .one_of(Field::Icmpv6Type, &numbers(&NEIGHBOUR_TYPES))
            .verdict(RuleVerdict::Return),
    ];
    if options.dhcp {
        // No pod is a DHCP server.
        let from_server = RuleBuilder::new()
            .not_within(Field::InputInterface, SetId::PodPorts)
            .is(Field::EtherType, Value::U16(ETHER_IPV4));
        rules.push(dhcp_reply(from_server));
    }
    rules.push(RuleBuilder::new().drop_for(DropReason::Multicast));
    rules
}

/// Untagged ARP, IPv4 and IPv6, and nothing else.
fn from_pods() -> Vec<Rule> {
    let goto = |kind, chain| {
        RuleBuilder::new()
            .is(Field::EtherType, Value::U16(kind))
            .verdict(RuleVerdict::Goto(name(chain)))
    };
    vec![
        to_control_addresses().drop_for(DropReason::Frame),
        goto(ETHER_IPV4, "ip_from_pods"),
        goto(ETHER_IPV6, "ip6_from_pods"),
        goto(ETHER_ARP, "arp_from_pods"),
        RuleBuilder::new().drop_for(DropReason::Frame),
    ]
}

/// `01:80:c2:00:00:00` to `0f`: spanning tree, pause, LLDP and their like.
fn to_control_addresses() -> RuleBuilder {
    let address = |last| Value::Ether([0x01, 0x80, 0xc2, 0, 0, last]);
    RuleBuilder::new().ranges(Field::EtherDestination, vec![(address(0), address(0x0f))])
}

fn ip_from_pods(options: &LayoutOptions) -> Vec<Rule> {
    let mut rules = vec![
        RuleBuilder::new()
            .tuple_within(
                &[Field::InputInterface, Field::EtherSource, Field::IpSource],
                SetId::Bindings(IpVersion::V4),
            )
            .verdict(RuleVerdict::Return),
    ];
    if options.dhcp {
        rules.push(dhcp_request(RuleBuilder::new()));
    }
    rules.push(RuleBuilder::new().drop_for(DropReason::Spoofed));
    rules
}

/// Both the frame's and the message's sender must be the port's.
fn arp_from_pods() -> Vec<Rule> {
    let bindings = SetId::Bindings(IpVersion::V4);
    vec![
        RuleBuilder::new()
            .is(Field::ArpSenderIp, Value::Ipv4(Ipv4Addr::UNSPECIFIED))
            .verdict(RuleVerdict::Goto(name("arp_probe"))),
        RuleBuilder::new()
            .tuple_not_within(
                &[
                    Field::InputInterface,
                    Field::EtherSource,
                    Field::ArpSenderIp,
                ],
                bindings,
            )
            .drop_for(DropReason::Spoofed),
        RuleBuilder::new()
            .tuple_within(
                &[
                    Field::InputInterface,
                    Field::ArpSenderEther,
                    Field::ArpSenderIp,
                ],
                bindings,
            )
            .verdict(RuleVerdict::Return),
        RuleBuilder::new().drop_for(DropReason::Spoofed),
    ]
}

/// RFC 5227: a request without a sender's address asks whether an address is free; nobody learns from it.
fn arp_probe() -> Vec<Rule> {
    let ports = SetId::BoundPorts(IpVersion::V4);
    vec![
        RuleBuilder::new()
            .tuple_not_within(&[Field::InputInterface, Field::EtherSource], ports)
            .drop_for(DropReason::Spoofed),
        RuleBuilder::new()
            .is(Field::ArpOperation, Value::U16(ARP_REQUEST))
            .tuple_within(&[Field::InputInterface, Field::ArpSenderEther], ports)
            .verdict(RuleVerdict::Return),
        RuleBuilder::new().drop_for(DropReason::Spoofed),
    ]
}

/// Global sources are bound; link-local ones and none at all are for neighbour discovery only, of endpoints that
/// have IPv6.
fn ip6_from_pods() -> Vec<Rule> {
    let port = [Field::InputInterface, Field::EtherSource];
    let mut rules = vec![
        RuleBuilder::new()
            .one_of(Field::Icmpv6Type, &numbers(&ADVERTISEMENT_TYPES))
            .drop_for(DropReason::Advertisement),
        RuleBuilder::new()
            .is(Field::Icmpv6Type, Value::U8(NEIGHBOUR_ADVERTISEMENT))
            .verdict(RuleVerdict::Goto(name("neighbour_claim"))),
        RuleBuilder::new()
            .tuple_within(
                &[Field::InputInterface, Field::EtherSource, Field::Ip6Source],
                SetId::Bindings(IpVersion::V6),
            )
            .verdict(RuleVerdict::Return),
    ];
    // Router solicitations and their like, which every kernel sends without being asked: no sign of spoofing.
    rules.extend(link_local_sources().map(|rule| {
        rule.tuple_not_within(&port, SetId::BoundPorts(IpVersion::V6))
            .drop_for(DropReason::Unbound)
    }));
    rules.extend([
        RuleBuilder::new()
            .tuple_not_within(&port, SetId::BoundPorts(IpVersion::V6))
            .drop_for(DropReason::Spoofed),
        // Duplicate address detection: only of an address that is the port's.
        RuleBuilder::new()
            .is(Field::Icmpv6Type, Value::U8(NEIGHBOUR_SOLICITATION))
            .is(Field::Ip6Source, Value::Ipv6(Ipv6Addr::UNSPECIFIED))
            .verdict(RuleVerdict::Goto(name("neighbour_target"))),
    ]);
    rules.extend(link_local_sources().map(|rule| {
        rule.one_of(Field::Icmpv6Type, &numbers(&NEIGHBOUR_TYPES))
            .verdict(RuleVerdict::Return)
    }));
    rules.push(RuleBuilder::new().drop_for(DropReason::Spoofed));
    rules
}

/// A neighbour advertisement: its source and the address that it claims must be the port's.
fn neighbour_claim() -> Vec<Rule> {
    let target = || RuleVerdict::Goto(name("neighbour_target"));
    vec![
        RuleBuilder::new()
            .tuple_not_within(
                &[Field::InputInterface, Field::EtherSource],
                SetId::BoundPorts(IpVersion::V6),
            )
            .drop_for(DropReason::Spoofed),
        RuleBuilder::new()
            .prefix(Field::Ip6Source, link_local(), 10)
            .verdict(target()),
        RuleBuilder::new()
            .tuple_within(
                &[Field::InputInterface, Field::EtherSource, Field::Ip6Source],
                SetId::Bindings(IpVersion::V6),
            )
            .verdict(target()),
        RuleBuilder::new().drop_for(DropReason::Spoofed),
    ]
}

fn neighbour_target() -> Vec<Rule> {
    vec![
        RuleBuilder::new()
            // fe80::/10 as a range, since raw payload knows no prefixes.
            .ranges(Field::Icmpv6Target, vec![(link_local(), last_link_local())])
            .verdict(RuleVerdict::Return),
        RuleBuilder::new()
            .tuple_within(
                &[Field::InputInterface, Field::Icmpv6Target],
                SetId::NeighbourTargets,
            )
            .verdict(RuleVerdict::Return),
        RuleBuilder::new().drop_for(DropReason::Spoofed),
    ]
}

/// The last address of `fe80::/10`.
fn last_link_local() -> Value {
    Value::Ipv6(Ipv6Addr::from_bits(0xfebf << 112 | (!0 >> 16)))
}
