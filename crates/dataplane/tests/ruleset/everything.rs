//! One transaction that uses every kind of object, statement, field and type.

use towpath_dataplane::nft::{
    Element, Field, FieldType, Hook, MapData, MatchOperand, Operation, Rule, RuleVerdict, SetSpec,
    Statement, TableFlags, Transaction, Value,
};

use super::{
    ACCEPT, DROP, base_chain, bridge, class, differs, equals, exact, in_set, inet, interface, mac,
    map, name, one_of, plain_chain, ports, prefix, range, rule, set, single, v4, v6, verdict,
};

/// Every table, chain, set and element type.
pub(crate) fn everything(flags: TableFlags) -> Transaction {
    let mut transaction = Transaction::new();
    for table in [inet(), bridge()] {
        transaction.push(Operation::AddTable(table, flags));
    }
    for spec in inet_sets() {
        transaction.push(Operation::AddSet(inet(), spec));
    }
    for spec in bridge_sets() {
        transaction.push(Operation::AddSet(bridge(), spec));
    }
    let chains = [
        base_chain("prerouting", Hook::Prerouting, -301),
        base_chain("input", Hook::Input, 10),
        base_chain("forward", Hook::Forward, 10),
        base_chain("output", Hook::Output, 0),
        base_chain("postrouting", Hook::Postrouting, 77),
        plain_chain("to_endpoint"),
        plain_chain("ingress"),
    ];
    for chain in chains {
        transaction.push(Operation::AddChain(inet(), chain));
    }
    let prerouting = base_chain("prerouting", Hook::Prerouting, -300);
    transaction.push(Operation::AddChain(bridge(), prerouting));
    for (set, elements) in inet_elements() {
        transaction.push(Operation::AddElements(inet(), name(set), elements));
    }
    for (set, elements) in bridge_elements() {
        transaction.push(Operation::AddElements(bridge(), name(set), elements));
    }
    for (chain, rules) in [
        ("forward", forward_rules()),
        ("to_endpoint", endpoint_rules()),
        ("ingress", ingress_rules()),
    ] {
        for rule in rules {
            transaction.push(Operation::AddRule(inet(), name(chain), rule));
        }
    }
    for rule in bridge_rules() {
        transaction.push(Operation::AddRule(bridge(), name("prerouting"), rule));
    }
    transaction
}

fn inet_sets() -> Vec<SetSpec> {
    use FieldType::{
        ClassId, EtherAddr, InetProto, InetService, InterfaceName, Ipv4Addr, Ipv6Addr,
    };
    let interval = |spec: SetSpec| SetSpec {
        interval: true,
        ..spec
    };
    vec![
        map("peer_class", [Ipv4Addr], MapData::ClassId),
        map("peer_class6", [Ipv6Addr], MapData::ClassId),
        interval(map("cidr_class", [Ipv4Addr], MapData::ClassId)),
        interval(map("cidr_class6", [Ipv6Addr], MapData::ClassId)),
        interval(set("port_ranges", [InetService])),
        interval(map("protocols", [InetProto], MapData::Verdict)),
        map("ingress_state", [Ipv4Addr], MapData::Verdict),
        map(
            "ingress_verdict",
            [Ipv4Addr, ClassId, InetProto, InetService],
            MapData::Verdict,
        ),
        map(
            "ingress_verdict6",
            [Ipv6Addr, ClassId, InetProto, InetService],
            MapData::Verdict,
        ),
        map("ingress_class_any", [Ipv4Addr, ClassId], MapData::Verdict),
        set("interfaces", [InterfaceName]),
        set("protocol_set", [InetProto]),
        set("classes", [ClassId]),
        set("service", [InetService]),
        set("mixed", [InterfaceName, EtherAddr, ClassId]),
    ]
}

fn bridge_sets() -> Vec<SetSpec> {
    use FieldType::{EtherAddr, Icmpv6Target, InterfaceName, Ipv4Addr, Ipv6Addr};
    vec![
        set("pods", [InterfaceName, EtherAddr, Ipv4Addr]),
        set("pods6", [InterfaceName, EtherAddr, Ipv6Addr]),
        set("targets", [InterfaceName, EtherAddr, Icmpv6Target]),
        set("target", [Icmpv6Target]),
        set("macs", [EtherAddr]),
    ]
}

fn inet_elements() -> Vec<(&'static str, Vec<Element>)> {
    [class_elements(), verdict_elements(), plain_elements()].concat()
}

fn class_elements() -> Vec<(&'static str, Vec<Element>)> {
    use RuleVerdict::{Accept, Drop};
    vec![
        (
            "peer_class",
            (1..=9)
                .map(|n| exact([v4(&format!("10.244.2.{n}"))], class(n)))
                .collect(),
        ),
        (
            "peer_class6",
            vec![
                exact([v6("fd00::1")], class(70000)),
                exact([v6("fd00::2")], class(2)),
            ],
        ),
        (
            "cidr_class",
            vec![
                range(v4("0.0.0.0"), v4("9.255.255.255"), class(1)),
                range(v4("10.0.0.0"), v4("10.0.255.255"), class(2)),
                range(v4("10.1.0.0"), v4("10.1.0.6"), class(3)),
                range(v4("192.0.2.1"), v4("192.0.2.1"), class(5)),
                range(v4("240.0.0.0"), v4("255.255.255.255"), class(4)),
            ],
        ),
        (
            "cidr_class6",
            vec![
                range(
                    v6("2001:db8::"),
                    v6("2001:db8:7fff:ffff:ffff:ffff:ffff:ffff"),
                    class(1),
                ),
                range(
                    v6("ff00::"),
                    v6("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
                    class(2),
                ),
            ],
        ),
        (
            "port_ranges",
            vec![
                range(Value::U16(1), Value::U16(1023), None),
                range(Value::U16(8080), Value::U16(8080), None),
            ],
        ),
        (
            "protocols",
            vec![
                range(Value::U8(6), Value::U8(6), verdict(Accept)),
                range(Value::U8(200), Value::U8(255), verdict(Drop)),
            ],
        ),
    ]
}

fn verdict_elements() -> Vec<(&'static str, Vec<Element>)> {
    use RuleVerdict::{Accept, Continue, Drop, Goto, Jump, Return};
    let address = v4("10.244.1.5");
    let (tcp, http) = (Value::U8(6), Value::U16(80));
    vec![
        (
            "ingress_state",
            vec![
                exact([address.clone()], verdict(Goto(name("ingress")))),
                exact([v4("10.244.1.6")], verdict(Return)),
                exact([v4("10.244.1.7")], verdict(Drop)),
                exact([v4("10.244.1.8")], verdict(Accept)),
                exact([v4("10.244.1.9")], verdict(Jump(name("ingress")))),
                exact([v4("10.244.1.10")], verdict(Continue)),
            ],
        ),
        (
            "ingress_verdict",
            vec![
                exact(
                    [address.clone(), Value::Class(7), tcp.clone(), http.clone()],
                    verdict(Return),
                ),
                exact(
                    [
                        address.clone(),
                        Value::Class(0),
                        Value::U8(17),
                        Value::U16(53),
                    ],
                    verdict(Drop),
                ),
            ],
        ),
        (
            "ingress_verdict6",
            vec![exact(
                [v6("fd00::5"), Value::Class(1), tcp, http],
                verdict(Return),
            )],
        ),
        (
            "ingress_class_any",
            vec![exact([address, Value::Class(70000)], verdict(Return))],
        ),
    ]
}

fn plain_elements() -> Vec<(&'static str, Vec<Element>)> {
    vec![
        (
            "interfaces",
            vec![
                exact([interface("cni0")], None),
                exact([interface("a-1.b@c")], None),
            ],
        ),
        (
            "protocol_set",
            vec![exact([Value::U8(1)], None), exact([Value::U8(132)], None)],
        ),
        (
            "classes",
            vec![
                exact([Value::Class(1)], None),
                exact([Value::Class(0)], None),
            ],
        ),
        ("service", vec![exact([Value::U16(443)], None)]),
        (
            "mixed",
            vec![exact([interface("eth0"), mac(1), Value::Class(3)], None)],
        ),
    ]
}

fn bridge_elements() -> Vec<(&'static str, Vec<Element>)> {
    let veth = interface("veth1234abcd");
    vec![
        (
            "pods",
            vec![exact([veth.clone(), mac(5), v4("10.244.1.5")], None)],
        ),
        (
            "pods6",
            vec![exact([veth.clone(), mac(5), v6("fd00::5")], None)],
        ),
        (
            "targets",
            vec![
                exact([veth.clone(), mac(5), v6("fd00::5")], None),
                exact([veth, mac(5), v6("::5")], None),
            ],
        ),
        ("target", vec![exact([v6("fe80::5")], None)]),
        ("macs", vec![exact([mac(5)], None)]),
    ]
}

fn forward_rules() -> Vec<Rule> {
    [address_rules(), list_rules()].concat()
}

fn address_rules() -> Vec<Rule> {
    let jump = || Statement::Verdict(RuleVerdict::Jump(name("to_endpoint")));
    vec![
        rule([
            Statement::CtState {
                any_of: Statement::CT_ESTABLISHED,
            },
            ACCEPT,
        ]),
        rule([
            Statement::CtState {
                any_of: Statement::CT_RELATED,
            },
            one_of(
                Field::L4Proto,
                false,
                [single(Value::U8(1)), single(Value::U8(58))],
            ),
            ACCEPT,
        ]),
        rule([
            Statement::CtState {
                any_of: Statement::CT_INVALID | Statement::CT_UNTRACKED,
            },
            Statement::Counter,
            DROP,
        ]),
        rule([
            Statement::CtState {
                any_of: Statement::CT_NEW | Statement::CT_RELATED,
            },
            jump(),
        ]),
        rule([equals(Field::CtDirection, Value::U8(1)), ACCEPT]),
        rule([prefix(Field::IpSource, v4("10.244.1.0"), 24), jump()]),
        rule([prefix(Field::IpDestination, v4("10.244.2.128"), 25), jump()]),
        rule([prefix(Field::Ip6Source, v6("fd00::"), 33), jump()]),
        rule([prefix(Field::Ip6Destination, v6("fe80::"), 10), jump()]),
        rule([prefix(Field::Ip6Destination, v6("ff00::"), 8), jump()]),
        rule([prefix(Field::IpSource, v4("10.0.0.1"), 32), jump()]),
        rule([
            Statement::Match {
                field: Field::IpSource,
                negated: true,
                operand: MatchOperand::Prefix(v4("10.244.0.0"), 16),
            },
            differs(Field::IpDestination, v4("10.0.0.1")),
            jump(),
        ]),
        rule([
            equals(Field::NfProto, Value::U8(2)),
            equals(Field::InputInterface, interface("cni0")),
            jump(),
        ]),
        rule([
            equals(Field::NfProto, Value::U8(10)),
            differs(Field::OutputInterface, interface("eth0")),
            DROP,
        ]),
    ]
}

fn list_rules() -> Vec<Rule> {
    let tcp = || equals(Field::L4Proto, Value::U8(6));
    vec![
        rule([
            one_of(
                Field::InputInterface,
                true,
                [single(interface("cni0")), single(interface("docker0"))],
            ),
            DROP,
        ]),
        rule([
            tcp(),
            one_of(Field::DestinationPort, false, [ports(80, 90)]),
            Statement::Counter,
        ]),
        rule([
            tcp(),
            one_of(Field::DestinationPort, true, [ports(80, 90)]),
            Statement::Counter,
        ]),
        rule([
            tcp(),
            one_of(
                Field::DestinationPort,
                false,
                [ports(1, 5), ports(8, 8), ports(9, 100), ports(65000, 65535)],
            ),
            DROP,
        ]),
        rule([
            equals(Field::L4Proto, Value::U8(17)),
            one_of(Field::SourcePort, true, [ports(53, 53), ports(67, 67)]),
            DROP,
        ]),
        rule([
            one_of(
                Field::IpSource,
                false,
                [
                    (v4("10.0.0.0"), v4("10.0.0.5")),
                    (v4("224.0.0.0"), v4("255.255.255.255")),
                ],
            ),
            DROP,
        ]),
        rule([in_set(Field::DestinationPort, false, "port_ranges"), ACCEPT]),
        rule([
            tcp(),
            in_set(Field::DestinationPort, true, "service"),
            ACCEPT,
        ]),
        rule([in_set(Field::L4Proto, false, "protocol_set"), ACCEPT]),
        rule([in_set(Field::InputInterface, true, "interfaces"), DROP]),
        rule([equals(Field::Icmpv6Type, Value::U8(134)), DROP]),
        rule([
            one_of(
                Field::Icmpv6Type,
                false,
                [single(Value::U8(133)), (Value::U8(135), Value::U8(136))],
            ),
            ACCEPT,
        ]),
        rule([equals(Field::PacketType, Value::U8(2)), DROP]),
        rule([
            one_of(
                Field::PacketType,
                false,
                [single(Value::U8(1)), single(Value::U8(2))],
            ),
            DROP,
        ]),
        rule([Statement::Verdict(RuleVerdict::Continue)]),
        rule([Statement::Verdict(RuleVerdict::Goto(name("to_endpoint")))]),
    ]
}

fn endpoint_rules() -> Vec<Rule> {
    vec![
        rule([
            Statement::VerdictMap {
                fields: vec![Field::IpDestination],
                map: name("ingress_state"),
            },
            Statement::Counter,
        ]),
        rule([Statement::VerdictMap {
            fields: vec![Field::L4Proto],
            map: name("protocols"),
        }]),
        rule([
            Statement::Counter,
            Statement::Limit {
                rate: 10,
                burst: 20,
            },
            Statement::Log {
                prefix: name("unknown"),
                group: 100,
                snaplen: 128,
            },
        ]),
        rule([DROP]),
    ]
}

fn ingress_rules() -> Vec<Rule> {
    let from = |field, map| Statement::SetPriorityFromMap {
        fields: vec![field],
        map: name(map),
    };
    let verdicts = |fields, map| Statement::VerdictMap {
        fields,
        map: name(map),
    };
    let peer = [Field::Priority, Field::L4Proto, Field::DestinationPort];
    vec![
        rule([Statement::SetPriority(0)]),
        rule([from(Field::IpSource, "peer_class")]),
        rule([
            equals(Field::Priority, Value::Class(0)),
            from(Field::IpSource, "cidr_class"),
        ]),
        rule([from(Field::Ip6Source, "peer_class6")]),
        rule([
            equals(Field::Priority, Value::Class(0)),
            from(Field::Ip6Source, "cidr_class6"),
        ]),
        rule([verdicts(
            [vec![Field::IpDestination], peer.to_vec()].concat(),
            "ingress_verdict",
        )]),
        rule([verdicts(
            [vec![Field::Ip6Destination], peer.to_vec()].concat(),
            "ingress_verdict6",
        )]),
        rule([verdicts(
            vec![Field::IpDestination, Field::Priority],
            "ingress_class_any",
        )]),
        rule([
            one_of(
                Field::Priority,
                false,
                [single(Value::Class(3)), single(Value::Class(70000))],
            ),
            Statement::Verdict(RuleVerdict::Return),
        ]),
        rule([
            in_set(Field::Priority, false, "classes"),
            Statement::Verdict(RuleVerdict::Return),
        ]),
        rule([
            Statement::SetPriority(0x0002_0003),
            Statement::Verdict(RuleVerdict::Return),
        ]),
        rule([
            Statement::MatchSet {
                fields: vec![Field::InputInterface, Field::EtherSource, Field::Priority],
                negated: true,
                set: name("mixed"),
            },
            DROP,
        ]),
    ]
}

fn bridge_rules() -> Vec<Rule> {
    [frame_rules(), packet_rules()].concat()
}

fn in_pods(fields: [Field; 3], negated: bool, set: &str) -> Statement {
    Statement::MatchSet {
        fields: fields.to_vec(),
        negated,
        set: name(set),
    }
}

fn frame_rules() -> Vec<Rule> {
    let (port, ether) = (Field::InputInterface, Field::EtherSource);
    let arp = || equals(Field::EtherType, Value::U16(0x0806));
    vec![
        rule([equals(Field::EtherSource, mac(5)), ACCEPT]),
        rule([
            prefix(
                Field::EtherDestination,
                Value::Ether([1, 0, 0x5e, 0, 0, 0]),
                25,
            ),
            DROP,
        ]),
        rule([
            prefix(
                Field::EtherDestination,
                Value::Ether([1, 0x80, 0xc2, 0, 0, 0]),
                40,
            ),
            DROP,
        ]),
        rule([in_set(Field::EtherSource, true, "macs"), DROP]),
        rule([
            one_of(
                Field::EtherType,
                true,
                [
                    single(Value::U16(0x0800)),
                    single(Value::U16(0x0806)),
                    single(Value::U16(0x86dd)),
                ],
            ),
            DROP,
        ]),
        rule([in_pods([port, ether, Field::IpSource], true, "pods"), DROP]),
        rule([
            equals(Field::EtherType, Value::U16(0x86dd)),
            in_pods([port, ether, Field::Ip6Source], true, "pods6"),
            DROP,
        ]),
        rule([
            in_pods(
                [port, Field::ArpSenderEther, Field::ArpSenderIp],
                true,
                "pods",
            ),
            DROP,
        ]),
        rule([
            arp(),
            equals(Field::ArpOperation, Value::U16(2)),
            in_pods([port, ether, Field::ArpSenderIp], false, "pods"),
            ACCEPT,
        ]),
        rule([
            arp(),
            one_of(Field::ArpOperation, true, [ports(1, 1), ports(2, 2)]),
            DROP,
        ]),
        rule([arp(), differs(Field::ArpSenderIp, v4("0.0.0.0")), ACCEPT]),
    ]
}

fn packet_rules() -> Vec<Rule> {
    let (port, ether) = (Field::InputInterface, Field::EtherSource);
    vec![
        rule([
            equals(Field::Icmpv6Type, Value::U8(136)),
            in_pods([port, ether, Field::Icmpv6Target], true, "targets"),
            DROP,
        ]),
        rule([
            equals(Field::Icmpv6Type, Value::U8(135)),
            in_set(Field::Icmpv6Target, false, "target"),
            ACCEPT,
        ]),
        rule([
            equals(Field::Icmpv6Type, Value::U8(135)),
            equals(Field::Icmpv6Target, v6("fe80::1")),
            ACCEPT,
        ]),
        rule([
            equals(Field::EtherType, Value::U16(0x86dd)),
            equals(Field::L4Proto, Value::U8(58)),
            equals(Field::Icmpv6Type, Value::U8(134)),
            Statement::Counter,
            Statement::Limit { rate: 5, burst: 5 },
            Statement::Log {
                prefix: name("spoofed"),
                group: 7,
                snaplen: 64,
            },
            DROP,
        ]),
        rule([prefix(Field::IpSource, v4("10.0.0.0"), 8), DROP]),
        rule([prefix(Field::Ip6Source, v6("fe80::"), 10), DROP]),
        rule([equals(Field::PacketType, Value::U8(0)), ACCEPT]),
        rule([
            equals(Field::L4Proto, Value::U8(17)),
            equals(Field::SourcePort, Value::U16(68)),
            equals(Field::DestinationPort, Value::U16(67)),
            ACCEPT,
        ]),
        rule([Statement::SetPriority(0)]),
    ]
}
