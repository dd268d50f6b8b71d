//! Chains of `table inet towpath`: who is judged, and how.

use std::net::{Ipv4Addr, Ipv6Addr};

use towpath_core::model::Direction;
use towpath_dataplane::nft::{
    BaseChain, Chain, ChainKind, Field, Hook, Name, Rule, RuleVerdict, Statement, Value,
};

use super::{
    ChainLayout, DropReason, IpVersion, LayoutOptions, RuleBuilder, SetId, VerdictMap, made_name,
    name, profile_end,
};

/// Neighbour discovery (133, 135, 136) and multicast listener discovery (130 to 132, 143): without them a link
/// does not work, so they pass before policy (edge case 16).
pub(super) const NEIGHBOUR_TYPES: [u8; 7] = [130, 131, 132, 133, 135, 136, 143];
/// Router advertisement and redirect: what a pod never sends.
pub(super) const ADVERTISEMENT_TYPES: [u8; 2] = [134, 137];

pub(super) const ICMP: u8 = 1;
pub(super) const ICMPV6: u8 = 58;
pub(super) const UDP: u8 = 17;
/// IPv4 in IP, IPv6 in IP, GRE.
const TUNNELS: [u8; 3] = [4, 41, 47];

/// After kube-proxy's translation (-100) and other filters (0), before masquerade (100): policy sees the real
/// back-end and the real source.
const JUDGE_PRIORITY: i32 = 10;
/// Before connection tracking sees the packet, and before `raw` (-300).
const SOURCE_CHECK_PRIORITY: i32 = -301;

/// All chains; targets of jumps may come later.
pub(super) fn chains(options: &LayoutOptions) -> Vec<ChainLayout> {
    let reasons = [
        DropReason::Policy,
        DropReason::Unknown,
        DropReason::Spoofed,
        DropReason::Invalid,
        DropReason::Encapsulation,
        DropReason::Advertisement,
    ];
    let mut chains: Vec<ChainLayout> = reasons
        .iter()
        .map(|reason| reason.layout(options))
        .collect();
    chains.extend(
        [DropReason::Policy, DropReason::Invalid].map(|reason| reason.audit_layout(options)),
    );
    chains.extend(DropReason::BYPASSED.map(|reason| reason.bypass_layout(options)));
    for direction in Direction::BOTH {
        chains.push(denied_chain(direction));
        chains.push(unknown_chain(direction));
        chains.push(profile_end_chain(direction));
        for version in IpVersion::ALL {
            chains.push(look_ups(direction, version));
            chains.extend(judge(direction, version));
        }
    }
    chains.push(regular("encapsulation", encapsulation()));
    chains.push(regular("from_pod", from_pod(options)));
    chains.push(regular("from_endpoint", from_endpoint()));
    chains.push(regular("to_endpoint", to_endpoint(options)));
    if options.routed_pods {
        chains.push(regular("routed_source", routed_source(options)));
        chains.push(base(
            "prerouting",
            Hook::Prerouting,
            SOURCE_CHECK_PRIORITY,
            source_check(),
        ));
    }
    chains.push(base("input", Hook::Input, JUDGE_PRIORITY, input(options)));
    chains.push(base(
        "forward",
        Hook::Forward,
        JUDGE_PRIORITY,
        forward(options),
    ));
    chains
}

/// Neighbour discovery is of one link, so only what a bridge forwards is: routed, it would be a way around policy.
fn forward(options: &LayoutOptions) -> Vec<Rule> {
    let mut rules = established(options);
    rules.extend([
        neighbour_discovery()
            .within(Field::InputInterface, SetId::PodInterfaces)
            .within(Field::OutputInterface, SetId::PodInterfaces)
            .verdict(RuleVerdict::Accept),
        jump("from_endpoint"),
        jump("to_endpoint"),
    ]);
    rules
}

/// Pod to its own node. The other way leaves by the output hook, which is not filtered: probes pass.
///
/// Whatever arrives here is for this node, be it broadcast, multicast or to an address that is so new that nobody has
/// told us of it: the kernel unpacks all of that, so encapsulated packets of pods end before any look at addresses.
fn input(options: &LayoutOptions) -> Vec<Rule> {
    let mut rules = established(options);
    rules.push(neighbour_discovery().verdict(RuleVerdict::Accept));
    rules.extend(encapsulated(options).map(|rule| {
        rule.within(Field::InputInterface, SetId::PodInterfaces)
            .drop_for(DropReason::Encapsulation)
    }));
    rules.push(jump("from_endpoint"));
    rules
}

/// It passes before policy: without it a link does not work.
fn neighbour_discovery() -> RuleBuilder {
    RuleBuilder::new().one_of(Field::Icmpv6Type, &numbers(&NEIGHBOUR_TYPES))
}

/// Packets of connections that were judged before.
fn established(options: &LayoutOptions) -> Vec<Rule> {
    let established = || RuleBuilder::new().ct_state(Statement::CT_ESTABLISHED);
    if options.stateless_protocols.is_empty() {
        return vec![established().verdict(RuleVerdict::Accept)];
    }
    // Without a tracker all packets between two addresses are one connection, whatever their ports (edge case 8):
    // only its replies pass here.
    let protocols: Vec<u8> = options.stateless_protocols.iter().copied().collect();
    vec![
        established()
            .none_of(Field::L4Proto, &numbers(&protocols))
            .verdict(RuleVerdict::Accept),
        established()
            .is(Field::CtDirection, Value::U8(1))
            .verdict(RuleVerdict::Accept),
    ]
}

/// Judges the source: the egress side. What enters by a pod's interface has a chain of its own; elsewhere:
///
/// 1. An address of our pods is dropped: behind the uplink it would be taken for the pod.
/// 2. A known source is judged, or left alone when nothing restricts it.
fn from_endpoint() -> Vec<Rule> {
    let mut rules = vec![
        RuleBuilder::new()
            .within(Field::InputInterface, SetId::PodInterfaces)
            .verdict(RuleVerdict::Goto(name("from_pod"))),
    ];
    rules.extend(IpVersion::ALL.map(|version| {
        RuleBuilder::new()
            .within(source(version), SetId::PodNetworks(version))
            // The host talks to itself with its bridge's address, which is in the pod network.
            .differs(Field::InputInterface, Value::Interface("lo".into()))
            .drop_for(DropReason::Spoofed)
    }));
    rules.extend(IpVersion::ALL.map(|version| known(Direction::Egress, version)));
    rules
}

/// Judges what enters by a pod's interface.
///
/// 1. A known source is judged, or left alone when nothing restricts it; what makes a pod a router is dropped.
/// 2. An unknown source is dropped.
fn from_pod(options: &LayoutOptions) -> Vec<Rule> {
    let mut rules = vec![
        known(Direction::Egress, IpVersion::V4),
        RuleBuilder::new()
            .one_of(Field::Icmpv6Type, &numbers(&ADVERTISEMENT_TYPES))
            .drop_for(DropReason::Advertisement),
        known(Direction::Egress, IpVersion::V6),
    ];
    if options.dhcp {
        rules.push(dhcp_request(RuleBuilder::new()));
    }
    rules.push(RuleBuilder::new().verdict(goto_unknown(Direction::Egress)));
    rules
}

/// Packets that carry others: by their protocol, or by the overlay's ports.
fn encapsulated(options: &LayoutOptions) -> impl Iterator<Item = RuleBuilder> {
    let udp = || RuleBuilder::new().is(Field::L4Proto, Value::U8(UDP));
    let ports: Vec<Value> = options
        .overlay_ports
        .iter()
        .copied()
        .map(Value::U16)
        .collect();
    let by_port = match ports.as_slice() {
        [] => None,
        [only] => Some(udp().is(Field::DestinationPort, only.clone())),
        several => Some(udp().one_of(Field::DestinationPort, several)),
    };
    let by_protocol = RuleBuilder::new().one_of(Field::L4Proto, &numbers(&TUNNELS));
    std::iter::once(by_protocol).chain(by_port)
}

/// Judges the destination: the ingress side.
///
/// 1. A known destination is judged, or left alone when nothing restricts it.
/// 2. Encapsulated packets of pods to nodes are dropped. No endpoint is a node, so only packets that go elsewhere pay
///    for the look.
/// 3. Multicast and broadcast of pods were judged at their source; which ports they reach is the bridge table's.
/// 4. An unknown destination is dropped when a pod's interface or network says that it is ours.
fn to_endpoint(options: &LayoutOptions) -> Vec<Rule> {
    let mut rules = vec![
        known(Direction::Ingress, IpVersion::V4),
        known(Direction::Ingress, IpVersion::V6),
    ];
    rules.extend(encapsulated(options).map(|rule| rule.verdict(jump_to("encapsulation"))));
    rules.extend(to_many().map(|rule| {
        rule.within(Field::InputInterface, SetId::PodInterfaces)
            .verdict(RuleVerdict::Return)
    }));
    if options.dhcp {
        rules.push(dhcp_reply(
            RuleBuilder::new().is(Field::NfProto, Value::U8(2)),
        ));
    }
    rules.push(
        RuleBuilder::new()
            .within(Field::OutputInterface, SetId::PodInterfaces)
            .verdict(goto_unknown(Direction::Ingress)),
    );
    rules.extend(IpVersion::ALL.map(|version| {
        RuleBuilder::new()
            .within(destination(version), SetId::PodNetworks(version))
            .verdict(goto_unknown(Direction::Ingress))
    }));
    rules
}

/// A destination that is many: multicast, or everybody on the link.
pub(super) fn to_many() -> [RuleBuilder; 3] {
    let multicast = Value::Ipv4(Ipv4Addr::new(224, 0, 0, 0));
    let multicast6 = Value::Ipv6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0));
    [
        RuleBuilder::new().prefix(Field::IpDestination, multicast, 4),
        RuleBuilder::new().is(Field::IpDestination, Value::Ipv4(Ipv4Addr::BROADCAST)),
        RuleBuilder::new().prefix(Field::Ip6Destination, multicast6, 8),
    ]
}

/// Finishes a rule for a DHCP client that has no address yet.
pub(super) fn dhcp_request(rule: RuleBuilder) -> Rule {
    rule.is(Field::IpSource, Value::Ipv4(Ipv4Addr::UNSPECIFIED))
        .is(Field::L4Proto, Value::U8(UDP))
        .is(Field::SourcePort, Value::U16(68))
        .is(Field::DestinationPort, Value::U16(67))
        .verdict(RuleVerdict::Return)
}

/// Finishes a rule for the answer of a DHCP server; it begins with a check for IPv4.
pub(super) fn dhcp_reply(rule: RuleBuilder) -> Rule {
    rule.is(Field::L4Proto, Value::U8(UDP))
        .is(Field::SourcePort, Value::U16(67))
        .is(Field::DestinationPort, Value::U16(68))
        .verdict(RuleVerdict::Return)
}

/// An endpoint in the state map: `return` leaves the caller's chain, `continue` goes on to be judged.
fn known(direction: Direction, version: IpVersion) -> Rule {
    let state = SetId::Verdict(direction, VerdictMap::State, version);
    RuleBuilder::new()
        .look_up(&[endpoint(direction, version)], state)
        .verdict(RuleVerdict::Goto(judge_name(direction, version)))
}

/// Judges a packet of a restricted endpoint. `meta priority` carries the class in between.
fn judge(direction: Direction, version: IpVersion) -> [ChainLayout; 2] {
    let look_up = || {
        [
            RuleBuilder::new().verdict(RuleVerdict::Jump(look_ups_name(direction, version))),
            RuleBuilder::new().reset_class(),
        ]
    };
    // New packets, which are nearly all, pass one test of their state.
    let odd = Statement::CT_RELATED | Statement::CT_INVALID;
    let first = RuleBuilder::new()
        .ct_state(odd)
        .verdict(RuleVerdict::Goto(odd_state_name(direction, version)));
    let mut odd_rules = odd_state(direction, version);
    odd_rules.extend(look_up());
    [
        chain_of(
            judge_name(direction, version),
            std::iter::once(first).chain(look_up()).collect(),
        ),
        chain_of(odd_state_name(direction, version), odd_rules),
    ]
}

/// Errors about a connection pass; what belongs to none and begins none does not.
fn odd_state(direction: Direction, version: IpVersion) -> Vec<Rule> {
    let protocol = match version {
        IpVersion::V4 => ICMP,
        IpVersion::V6 => ICMPV6,
    };
    vec![
        RuleBuilder::new()
            .ct_state(Statement::CT_RELATED)
            .is(Field::L4Proto, Value::U8(protocol))
            .verdict(RuleVerdict::Return),
        RuleBuilder::new()
            .ct_state(Statement::CT_INVALID)
            .within(endpoint(direction, version), SetId::Audited(version))
            .verdict(RuleVerdict::Goto(DropReason::Invalid.audit_chain())),
        RuleBuilder::new()
            .ct_state(Statement::CT_INVALID)
            .within(endpoint(direction, version), SetId::Bypassed(version))
            .verdict(RuleVerdict::Goto(DropReason::Invalid.bypass_chain())),
        RuleBuilder::new()
            .ct_state(Statement::CT_INVALID)
            .within(Field::NfProto, SetId::BypassedNode)
            .verdict(RuleVerdict::Goto(DropReason::Invalid.bypass_chain())),
        RuleBuilder::new()
            .ct_state(Statement::CT_INVALID)
            .drop_for(DropReason::Invalid),
    ]
}

/// The lookups, in the order of `towpath_core::tables`. A hit returns (allowed) or goes on to the drop (denied).
fn look_ups(direction: Direction, version: IpVersion) -> ChainLayout {
    let endpoint = endpoint(direction, version);
    let peer = match direction {
        Direction::Ingress => source(version),
        Direction::Egress => destination(version),
    };
    let map = |map| SetId::Verdict(direction, map, version);
    let denied = |fields: &[Field], id| {
        RuleBuilder::new()
            .look_up(fields, map(id))
            .verdict(goto_denied(direction))
    };
    let port = [Field::L4Proto, Field::DestinationPort];
    let rules = vec![
        RuleBuilder::new().reset_class(),
        RuleBuilder::new().set_class(peer, SetId::PeerClass(version)),
        // Only addresses without a class of their own pay the interval lookup.
        RuleBuilder::new()
            .is(Field::Priority, Value::Class(0))
            .set_class(peer, SetId::CidrClass(version)),
        denied(
            &[endpoint, Field::Priority, port[0], port[1]],
            VerdictMap::Exact,
        ),
        denied(
            &[endpoint, Field::Priority, Field::L4Proto],
            VerdictMap::ClassProtocol,
        ),
        denied(&[endpoint, Field::Priority], VerdictMap::ClassAny),
        denied(&[endpoint, port[0], port[1]], VerdictMap::Any),
        RuleBuilder::new()
            .look_up(&[endpoint], map(VerdictMap::Profile))
            .end(),
        RuleBuilder::new()
            .look_up(&[endpoint], map(VerdictMap::Default))
            .end(),
        RuleBuilder::new().verdict(goto_denied(direction)),
    ];
    ChainLayout {
        chain: Chain {
            name: look_ups_name(direction, version),
            base: None,
        },
        rules,
    }
}

/// Where profiles end: the endpoint's default.
fn profile_end_chain(direction: Direction) -> ChainLayout {
    let mut rules: Vec<Rule> = IpVersion::ALL
        .map(|version| {
            let map = SetId::Verdict(direction, VerdictMap::Default, version);
            RuleBuilder::new()
                .look_up(&[endpoint(direction, version)], map)
                .end()
        })
        .into();
    rules.push(RuleBuilder::new().verdict(goto_denied(direction)));
    chain_of(profile_end(direction), rules)
}

/// Where packets go that policy denies in one direction.
fn denied_chain(direction: Direction) -> ChainLayout {
    let mut rules: Vec<Rule> = IpVersion::ALL
        .map(|version| {
            RuleBuilder::new()
                .within(endpoint(direction, version), SetId::Audited(version))
                .verdict(RuleVerdict::Goto(DropReason::Policy.audit_chain()))
        })
        .into();
    rules.extend(bypassed(direction, DropReason::Policy));
    rules.push(RuleBuilder::new().drop_for(DropReason::Policy));
    chain_of(denied_name(direction), rules)
}

/// Where packets go whose address of one side should be a known endpoint's and is not.
fn unknown_chain(direction: Direction) -> ChainLayout {
    let mut rules = bypassed(direction, DropReason::Unknown);
    rules.push(RuleBuilder::new().drop_for(DropReason::Unknown));
    chain_of(unknown_name(direction), rules)
}

/// Lets pass what an operator has opened for a while: what concerns an address, or the whole node. It stands right
/// before a drop, so nothing else pays for it. `return` of the chains that it goes to comes back to where the other
/// side of the packet is judged.
fn bypassed(direction: Direction, reason: DropReason) -> Vec<Rule> {
    let goto = || RuleVerdict::Goto(reason.bypass_chain());
    let mut rules: Vec<Rule> = IpVersion::ALL
        .map(|version| {
            RuleBuilder::new()
                .within(endpoint(direction, version), SetId::Bypassed(version))
                .verdict(goto())
        })
        .into();
    rules.push(
        RuleBuilder::new()
            .within(Field::NfProto, SetId::BypassedNode)
            .verdict(goto()),
    );
    rules
}

fn goto_unknown(direction: Direction) -> RuleVerdict {
    RuleVerdict::Goto(unknown_name(direction))
}

fn unknown_name(direction: Direction) -> Name {
    made_name(&format!("{direction}_unknown"))
}

/// The verdict of policy's denials.
pub(crate) fn goto_denied(direction: Direction) -> RuleVerdict {
    RuleVerdict::Goto(denied_name(direction))
}

fn denied_name(direction: Direction) -> Name {
    made_name(&format!("{direction}_denied"))
}

/// An encapsulated packet would carry another one past policy, when a node unpacks it (edge case 15).
fn encapsulation() -> Vec<Rule> {
    IpVersion::ALL
        .map(|version| {
            RuleBuilder::new()
                .within(destination(version), SetId::NodeAddresses(version))
                .within(Field::InputInterface, SetId::PodInterfaces)
                .drop_for(DropReason::Encapsulation)
        })
        .into()
}

fn source_check() -> Vec<Rule> {
    vec![
        RuleBuilder::new()
            .within(Field::InputInterface, SetId::RoutedInterfaces)
            .verdict(RuleVerdict::Goto(name("routed_source"))),
    ]
}

/// Pod interfaces without a bridge: the same check as on the ports of a bridge, without hardware addresses.
fn routed_source(options: &LayoutOptions) -> Vec<Rule> {
    let mut rules: Vec<Rule> = IpVersion::ALL
        .map(|version| {
            RuleBuilder::new()
                .tuple_within(
                    &[Field::InputInterface, source(version)],
                    SetId::RoutedBindings(version),
                )
                .verdict(RuleVerdict::Return)
        })
        .into();
    rules.extend(link_local_sources().map(|rule| {
        rule.one_of(Field::Icmpv6Type, &numbers(&NEIGHBOUR_TYPES))
            .verdict(RuleVerdict::Return)
    }));
    if options.dhcp {
        rules.push(dhcp_request(RuleBuilder::new()));
    }
    rules.push(RuleBuilder::new().drop_for(DropReason::Spoofed));
    rules
}

/// Sources of neighbour discovery before an address is known: link-local, or none at all.
pub(super) fn link_local_sources() -> [RuleBuilder; 2] {
    [
        RuleBuilder::new().prefix(Field::Ip6Source, link_local(), 10),
        RuleBuilder::new().is(Field::Ip6Source, Value::Ipv6(Ipv6Addr::UNSPECIFIED)),
    ]
}

/// Base of `fe80::/10`.
pub(super) fn link_local() -> Value {
    Value::Ipv6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0))
}

pub(super) fn source(version: IpVersion) -> Field {
    match version {
        IpVersion::V4 => Field::IpSource,
        IpVersion::V6 => Field::Ip6Source,
    }
}

fn destination(version: IpVersion) -> Field {
    match version {
        IpVersion::V4 => Field::IpDestination,
        IpVersion::V6 => Field::Ip6Destination,
    }
}

/// The field that holds the local endpoint's address.
fn endpoint(direction: Direction, version: IpVersion) -> Field {
    match direction {
        Direction::Ingress => destination(version),
        Direction::Egress => source(version),
    }
}

fn judge_name(direction: Direction, version: IpVersion) -> Name {
    made_name(&format!("{direction}{}", version.suffix()))
}

fn odd_state_name(direction: Direction, version: IpVersion) -> Name {
    made_name(&format!("{direction}_odd_state{}", version.suffix()))
}

fn look_ups_name(direction: Direction, version: IpVersion) -> Name {
    made_name(&format!("{direction}_lookup{}", version.suffix()))
}

fn chain_of(name: Name, rules: Vec<Rule>) -> ChainLayout {
    ChainLayout {
        chain: Chain { name, base: None },
        rules,
    }
}

/// One-byte values.
pub(super) fn numbers(values: &[u8]) -> Vec<Value> {
    values.iter().map(|value| Value::U8(*value)).collect()
}

fn jump(chain: &'static str) -> Rule {
    RuleBuilder::new().verdict(jump_to(chain))
}

fn jump_to(chain: &'static str) -> RuleVerdict {
    RuleVerdict::Jump(name(chain))
}

pub(super) fn regular(text: &'static str, rules: Vec<Rule>) -> ChainLayout {
    ChainLayout {
        chain: Chain {
            name: name(text),
            base: None,
        },
        rules,
    }
}

pub(super) fn base(text: &'static str, hook: Hook, priority: i32, rules: Vec<Rule>) -> ChainLayout {
    let base = Some(BaseChain {
        kind: ChainKind::Filter,
        hook,
        priority,
    });
    ChainLayout {
        chain: Chain {
            name: name(text),
            base,
        },
        rules,
    }
}
