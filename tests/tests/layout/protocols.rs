//! Protocols that are neither TCP nor UDP: SCTP, which connection tracking knows with its ports, and one that it
//! knows by its addresses only.

use std::net::IpAddr;

use policy_agent::layout::LayoutOptions;
use towpath_core::model::{Protocol, Verdict};
use towpath_core::tables::{ClassId, ClassKey, DirectionDelta, ExactKey, Phase, Tables};
use towpath_tests::frame::{Mac, sctp, sctp_init, sctp_init_ack};
use towpath_tests::require;

use super::node::{Case, Fate, Node};
use super::world::{
    A, A6, B, B6, CLIENT_PORT, MAC_A, MAC_B, MAC_OPEN, MAC_R, MARK, OF_A, OPEN, R, ip6, packet,
    tables,
};
use super::{INVALID, POLICY, case};

const SCTP: u8 = 132;
/// RFC 3692: for experiments. It has no ports, and nothing tracks it.
const EXPERIMENT: u8 = 253;
const OF_OPEN: ClassId = ClassId(4);

/// RFC 9260 section 3.3.11: COOKIE ECHO, the third packet of an association, with an empty cookie.
const COOKIE_ECHO: [u8; 4] = [10, 0, 0, 4];
/// Section 3.3.12: COOKIE ACK, the fourth.
const COOKIE_ACK: [u8; 4] = [11, 0, 0, 4];

/// A and B, by both families.
fn pairs() -> [(IpAddr, IpAddr); 2] {
    [(A.into(), B.into()), (ip6(A6).into(), ip6(B6).into())]
}

/// B lets A in on one port of SCTP and denies another; the rest is its default's.
fn sctp_rules(allowed: u16, denied: u16) -> [(ExactKey, Verdict); 4] {
    let rule = |endpoint: IpAddr, port, verdict| {
        let key = ExactKey {
            endpoint,
            class: OF_A,
            protocol: Protocol::Sctp,
            port,
        };
        (key, verdict)
    };
    let [(_, b), (_, b6)] = pairs();
    [
        rule(b, allowed, Verdict::Allow),
        rule(b, denied, Verdict::Deny),
        rule(b6, allowed, Verdict::Allow),
        rule(b6, denied, Verdict::Deny),
    ]
}

fn with_sctp(allowed: u16, denied: u16) -> Tables {
    let mut tables = tables();
    tables.ingress.exact.extend(sctp_rules(allowed, denied));
    tables
}

/// Makes other rules of [`with_sctp`]'s.
fn sctp_change(allowed: u16, denied: u16) -> Phase {
    let changes = sctp_rules(allowed, denied).map(|(key, verdict)| (key, Some(verdict)));
    Phase {
        ingress: DirectionDelta {
            exact: changes.into(),
            ..DirectionDelta::default()
        },
        ..Phase::default()
    }
}

fn without_tracker(protocol: u8) -> LayoutOptions {
    LayoutOptions {
        stateless_protocols: [protocol].into(),
        ..LayoutOptions::default()
    }
}

/// From A to a port of B.
fn to_b(name: &'static str, (a, b): (IpAddr, IpAddr), segment: &[u8], fate: Fate) -> Case {
    case(
        name,
        "pa",
        packet(MAC_A, MAC_B, (a, b), SCTP, segment),
        fate,
    )
}

/// From a port of B to A.
fn to_a(name: &'static str, (a, b): (IpAddr, IpAddr), segment: &[u8], fate: Fate) -> Case {
    case(
        name,
        "pb",
        packet(MAC_B, MAC_A, (b, a), SCTP, segment),
        fate,
    )
}

fn init(port: u16) -> Vec<u8> {
    sctp_init(CLIENT_PORT, port, 1)
}

fn init_ack(port: u16) -> Vec<u8> {
    sctp_init_ack(port, CLIENT_PORT, 1)
}

#[test]
fn sctp_is_judged_by_its_port() {
    require!("layout", Root, Nft, BridgeNetfilter, Ipv6, SctpConntrack);

    for (allowed, denied) in [(80, 81), (81, 80)] {
        let node = Node::start_with(LayoutOptions::default(), with_sctp(allowed, denied)).unwrap();
        for pair in pairs() {
            node.check(&[
                to_b("denied", pair, &init(denied), POLICY),
                to_b("allowed", pair, &init(allowed), Fate::Delivered),
                to_b("denied beside an allowed one", pair, &init(denied), POLICY),
                to_b("by default", pair, &init(82), POLICY),
                to_b("allowed again", pair, &init(allowed), Fate::Delivered),
            ]);
        }
    }
}

#[test]
fn sctp_associations_that_were_allowed_go_on() {
    require!("layout", Root, Nft, BridgeNetfilter, Ipv6, SctpConntrack);
    let node = Node::start_with(LayoutOptions::default(), with_sctp(80, 81)).unwrap();
    let cookie = sctp(CLIENT_PORT, 80, 1, &COOKIE_ECHO);
    let thanks = sctp(80, CLIENT_PORT, 1, &COOKIE_ACK);
    let mut broken = init(80);
    broken[8] ^= 1;

    for pair in pairs() {
        node.check(&[
            to_a("an answer without a question", pair, &init_ack(80), INVALID),
            to_b("with a wrong checksum", pair, &broken, INVALID),
            to_b("the question", pair, &init(80), Fate::Delivered),
            to_a("the answer", pair, &init_ack(80), Fate::Delivered),
            to_b("the cookie", pair, &cookie, Fate::Delivered),
            to_a("the thanks", pair, &thanks, Fate::Delivered),
            to_b("another port beside it", pair, &init(81), POLICY),
            to_a("an answer of that port", pair, &init_ack(81), INVALID),
            to_a("a question the other way", pair, &init(80), POLICY),
        ]);
    }
}

#[test]
fn stateless_sctp_is_judged_packet_by_packet() {
    require!("layout", Root, Nft, BridgeNetfilter, Ipv6, SctpConntrack);
    let cookie = sctp(CLIENT_PORT, 80, 1, &COOKIE_ECHO);
    let thanks = sctp(80, CLIENT_PORT, 1, &COOKIE_ACK);

    for (options, later) in [
        (without_tracker(SCTP), POLICY),
        // The control: with the tracker alone an association outlives its rule.
        (LayoutOptions::default(), Fate::Delivered),
    ] {
        let mut node = Node::start_with(options, with_sctp(80, 81)).unwrap();
        for pair in pairs() {
            node.check(&[
                to_b("the question", pair, &init(80), Fate::Delivered),
                to_a("the answer", pair, &init_ack(80), Fate::Delivered),
                to_b("the cookie", pair, &cookie, Fate::Delivered),
                to_b("another port", pair, &init(81), POLICY),
            ]);
        }
        node.change(sctp_change(81, 80)).unwrap();
        for pair in pairs() {
            node.check(&[
                to_b("the cookie when denied", pair, &cookie, later),
                to_a("its reply", pair, &thanks, Fate::Delivered),
                to_b(
                    "another port when allowed",
                    pair,
                    &init(81),
                    Fate::Delivered,
                ),
            ]);
        }
    }
}

#[test]
fn stateless_protocols_without_ports_are_judged_packet_by_packet() {
    require!("layout", Root, Nft, BridgeNetfilter, Ipv6);

    for (options, later) in [
        (without_tracker(EXPERIMENT), POLICY),
        // The control: all packets between two addresses are one connection, which goes on.
        (LayoutOptions::default(), Fate::Delivered),
    ] {
        let mut node = Node::start_with(options, with_classes()).unwrap();
        for conversation in conversations() {
            node.check(&[
                conversation.answer("an answer without a question", POLICY),
                conversation.question("the question", Fate::Delivered),
                conversation.answer("the answer", Fate::Delivered),
                conversation.question("the next question", Fate::Delivered),
            ]);
        }
        node.change(classes_denied()).unwrap();
        for conversation in conversations() {
            node.check(&[
                conversation.question("a question when denied", later),
                conversation.answer("an answer that is one", Fate::Delivered),
            ]);
        }
    }
}

#[test]
fn other_protocols_stay_tracked_beside_stateless_ones() {
    require!("layout", Root, Nft, BridgeNetfilter, Ipv6);
    let mut node = Node::start_with(without_tracker(SCTP), with_classes()).unwrap();
    let [conversation, ..] = conversations();
    node.check(&[
        conversation.question("the question", Fate::Delivered),
        conversation.answer("the answer", Fate::Delivered),
    ]);

    node.change(classes_denied()).unwrap();

    node.check(&[conversation.question("the next one when denied", Fate::Delivered)]);
}

/// Who asks whom in [`EXPERIMENT`]: port, hardware address, address.
struct Conversation {
    asks: (&'static str, Mac, IpAddr),
    answers: (&'static str, Mac, IpAddr),
}

impl Conversation {
    fn question(&self, name: &'static str, fate: Fate) -> Case {
        one_way(name, self.asks, self.answers, fate)
    }

    fn answer(&self, name: &'static str, fate: Fate) -> Case {
        one_way(name, self.answers, self.asks, fate)
    }
}

fn one_way(
    name: &'static str,
    (port, from, source): (&'static str, Mac, IpAddr),
    (_, to, destination): (&'static str, Mac, IpAddr),
    fate: Fate,
) -> Case {
    let frame = packet(from, to, (source, destination), EXPERIMENT, MARK);
    case(name, port, frame, fate)
}

/// Two that B's ingress judges, one that R's egress judges. Of each, the asking side lets nobody in by itself.
fn conversations() -> [Conversation; 3] {
    let between = |asks, answers| Conversation { asks, answers };
    [
        between(("pa", MAC_A, A.into()), ("pb", MAC_B, B.into())),
        between(("pa", MAC_A, ip6(A6).into()), ("pb", MAC_B, ip6(B6).into())),
        between(("pr", MAC_R, R.into()), ("po", MAC_OPEN, OPEN.into())),
    ]
}

/// Allows the questions of [`conversations`] by rules without ports.
fn with_classes() -> Tables {
    let mut tables = tables();
    tables.peer_class.insert(OPEN.into(), OF_OPEN);
    let [ingress, egress] = classes();
    for key in ingress {
        tables.ingress.class_any.insert(key, Verdict::Allow);
    }
    for key in egress {
        tables.egress.class_any.insert(key, Verdict::Allow);
    }
    tables
}

fn classes_denied() -> Phase {
    let [ingress, egress] = classes().map(|keys| {
        let changes = keys.into_iter().map(|key| (key, Some(Verdict::Deny)));
        DirectionDelta {
            class_any: changes.collect(),
            ..DirectionDelta::default()
        }
    });
    Phase {
        ingress,
        egress,
        ..Phase::default()
    }
}

/// Of ingress and of egress.
fn classes() -> [Vec<ClassKey>; 2] {
    let key = |endpoint: IpAddr, class| ClassKey { endpoint, class };
    let [(_, b), (_, b6)] = pairs();
    [
        vec![key(b, OF_A), key(b6, OF_A)],
        vec![key(R.into(), OF_OPEN)],
    ]
}
