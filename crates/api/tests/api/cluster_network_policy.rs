//! `ClusterNetworkPolicy`: each field, right and wrong.

use towpath_core::model::{
    Action, NamespaceMatch, Object, Peer, Peers, Policy, PolicyId, PolicyKind, PortMatch, Ports,
    Protocol, Requirement, Rule, Selector, Subject, Tier,
};

use super::{assert_messages, bad, good, good_policy};

/// A policy with this `spec`, on line 5.
fn policy(spec: &str) -> String {
    format!(
        "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {{name: guard}}\nspec:\n  {spec}\n"
    )
}

/// A policy of tier Admin for all pods with these fields beside.
fn with(fields: &str) -> String {
    policy(&format!(
        "{{tier: Admin, priority: 10, subject: {{namespaces: {{}}}}, {fields}}}"
    ))
}

fn equals(key: &str, value: &str) -> Selector {
    Selector::new(vec![Requirement::In(key.into(), vec![value.into()])])
}

fn all_pods() -> Peer {
    Peer::Workloads {
        namespaces: NamespaceMatch::Matching(Selector::everything()),
        pods: Selector::everything(),
    }
}

#[test]
fn a_whole_policy_is_converted() {
    let text = "
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: guard}
spec:
  tier: Baseline
  priority: 1000
  subject:
    pods: {namespaceSelector: {matchLabels: {team: a}}, podSelector: {matchLabels: {app: db}}}
  ingress:
  - name: probes
    action: Pass
    from:
    - namespaces: {}
    - pods: {podSelector: {matchLabels: {app: probe}}}
    protocols:
    - tcp: {destinationPort: {number: 80}}
    - udp: {destinationPort: {range: {start: 1, end: 65535}}}
    - sctp: {}
    - destinationNamedPort: http
  egress:
  - action: Deny
    to: [{nodes: {}}, {networks: [10.0.0.0/8, 'fd00::/8']}]
";
    let network = |cidr: &str| Peer::Network {
        cidr: cidr.parse().unwrap(),
        except: vec![],
    };
    let range = |protocol, first, last| PortMatch::Range {
        protocol,
        first,
        last,
    };

    let expected = Policy {
        id: PolicyId {
            kind: PolicyKind::ClusterNetworkPolicy,
            namespace: "".into(),
            name: "guard".into(),
        },
        tier: Tier::BASELINE,
        order: 1000,
        subject: Subject {
            namespaces: NamespaceMatch::Matching(equals("team", "a")),
            pods: equals("app", "db"),
        },
        ingress: Some(vec![Rule {
            name: Some("probes".into()),
            action: Action::Pass,
            peers: Peers::Of(vec![
                all_pods(),
                Peer::Workloads {
                    namespaces: NamespaceMatch::Matching(Selector::everything()),
                    pods: equals("app", "probe"),
                },
            ]),
            ports: Ports::Of(vec![
                range(Protocol::Tcp, 80, 80),
                range(Protocol::Udp, 1, 65535),
                range(Protocol::Sctp, 0, 65535),
                PortMatch::Named {
                    protocol: None,
                    name: "http".into(),
                },
            ]),
        }]),
        egress: Some(vec![Rule {
            name: None,
            action: Action::Deny,
            peers: Peers::Of(vec![
                Peer::Nodes(Selector::everything()),
                network("10.0.0.0/8"),
                network("fd00::/8"),
            ]),
            ports: Ports::Any,
        }]),
        invalid: None,
    };
    assert_eq!(good_policy(text), expected);
    assert_eq!(good(text).1, Vec::<String>::new());
}

#[test]
fn a_network_that_stands_twice_counts_once() {
    let text = with("egress: [{action: Deny, to: [{networks: [10.0.0.0/8, 10.0.0.0/8]}]}]");

    let (object, remarks) = good(&text);

    let Object::Policy(policy) = object else {
        panic!("{object:?}")
    };
    assert!(matches!(&policy.egress.unwrap()[0].peers, Peers::Of(peers) if peers.len() == 1));
    assert_eq!(
        remarks,
        [
            "5 warning: spec.egress[0].to[0].networks: 10.0.0.0/8 stands twice; remove one of the two"
        ]
    );
}

#[test]
fn a_direction_without_rules_is_not_touched() {
    for fields in ["", "ingress: [], egress: null"] {
        let policy = good_policy(&with(fields));
        assert_eq!((policy.ingress, policy.egress), (None, None), "{fields}");
    }
}

#[test]
fn parts_of_a_newer_api_fail_closed() {
    let nobody = |name: &str| Rule {
        name: Some(name.into()),
        action: Action::Accept,
        peers: Peers::Of(vec![]),
        ports: Ports::Any,
    };
    let everybody = |name: &str| Rule {
        name: Some(name.into()),
        action: Action::Deny,
        peers: Peers::Any,
        ports: Ports::Any,
    };
    for part in [
        "to: [{}]",
        "to: [{namespaces: {}}, {domainNames: [example.com]}]",
        "to: [{services: {}}]",
        "to: [{namespaces: {}, services: {}}]",
        "to: [{namespaces: {}}], protocols: [{quic: {}}]",
        "to: [{namespaces: {}}], protocols: [{tcp: {}}, {}]",
    ] {
        for (action, expected) in [
            ("Accept", nobody("r")),
            ("Deny", everybody("r")),
            ("Pass", everybody("r")),
        ] {
            let text = with(&format!("egress: [{{name: r, action: {action}, {part}}}]"));
            assert_eq!(
                good_policy(&text).egress,
                Some(vec![expected]),
                "{action} {part}"
            );
        }
    }
    let remarks = good(&with(
        "ingress: [{action: Pass, from: [{namespaces: {}}, {nodes: {}}]}]",
    ))
    .1;
    assert_eq!(
        remarks,
        [
            "5 warning: spec.ingress[0].from[1]: it has a field that is not supported; use one of namespaces, pods",
            "5 warning: spec.ingress[0]: this rule denies everything, because a part of it is not supported; remove the part, or give it a rule of its own",
        ]
    );
}

#[test]
fn the_name_of_a_rule_cannot_turn_the_text_around_it() {
    let text =
        with("ingress: [{name: \"a\\u202Eb\\u2066\", action: Deny, from: [{namespaces: {}}]}]");

    let rules = good_policy(&text).ingress.unwrap();

    assert_eq!(rules[0].name.as_deref(), Some("a\u{fffd}b\u{fffd}"));
}

#[test]
fn a_rule_keeps_its_place_when_it_fails_closed() {
    let text = with(
        "ingress: [{action: Accept, from: [{namespaces: {}}]}, {action: Pass, from: [{}]}, {action: Deny, from: [{namespaces: {}}]}]",
    );

    let rules = good_policy(&text).ingress.unwrap();

    let shape: Vec<_> = rules
        .iter()
        .map(|rule| (rule.action, rule.peers == Peers::Any))
        .collect();
    assert_eq!(
        shape,
        [
            (Action::Accept, false),
            (Action::Deny, true),
            (Action::Deny, false)
        ]
    );
}

#[test]
fn wrong_specs_are_told_one_by_one() {
    #[rustfmt::skip]
    let table: &[(&str, &str)] = &[
        ("{}",
        "5 error: spec: tier is missing; write Admin or Baseline | 5 error: spec: priority is missing; write a number from 0 (first) to 1000 (last) | 5 error: spec: subject is missing; write subject: {namespaces: {}} for every pod"),
        ("[]",
        "5 error: spec: a map is expected here, but this is a list; write a map"),
        ("{tier: admin, priority: 1, subject: {namespaces: {}}}",
        "5 error: spec.tier: \"admin\" is not a tier; use Admin or Baseline"),
        ("{tier: Admin, priority: 1001, subject: {namespaces: {}}}",
        "5 error: spec.priority: 1001 is not a priority; use a number from 0 (first) to 1000 (last)"),
        ("{tier: Admin, priority: -1, subject: {namespaces: {}}}",
        "5 error: spec.priority: -1 is not a priority; use a number from 0 (first) to 1000 (last)"),
        ("{tier: Admin, priority: '1', subject: {namespaces: {}}}",
        "5 error: spec.priority: a number is expected here, but this is the text \"1\"; remove the quotes: 1"),
        ("{tier: Admin, priority: 1, subject: {}}",
        "5 error: spec.subject: the subject needs exactly one of namespaces and pods; write namespaces: {} for every pod"),
        ("{tier: Admin, priority: 1, subject: {namespaces: {}, pods: {podSelector: {}}}}",
        "5 error: spec.subject: the subject needs exactly one of namespaces and pods; write namespaces: {} for every pod"),
        ("{tier: Admin, priority: 1, subject: {nodes: {}}}",
        "5 error: spec.subject.nodes: unknown field; remove it; known here: namespaces, pods"),
        ("{tier: Admin, priority: 1, subject: {pods: {}}}",
        "5 error: spec.subject.pods: podSelector is missing; write podSelector: {} for every pod"),
        ("{tier: Admin, priority: 1, subject: {namespaces: {}}, rules: []}",
        "5 error: spec.rules: unknown field; remove it; known here: tier, priority, subject, ingress, egress"),
    ];
    assert_messages(policy, table);
}

#[test]
fn wrong_rules_are_told_one_by_one() {
    #[rustfmt::skip]
    let table: &[(&str, &str)] = &[
        ("{}",
        "5 error: spec.ingress[0]: action is missing; write Accept, Deny or Pass | 5 error: spec.ingress[0]: from is missing; name at least one peer; for every pod write namespaces: {}"),
        ("{action: Allow, from: [{namespaces: {}}]}",
        "5 error: spec.ingress[0].action: \"Allow\" is not an action; use Accept, Deny or Pass"),
        ("{action: Accept}",
        "5 error: spec.ingress[0]: from is missing; name at least one peer; for every pod write namespaces: {}"),
        ("{action: Accept, from: []}",
        "5 error: spec.ingress[0].from: the rule names no peer; name at least one; for every pod write namespaces: {}"),
        ("{action: Accept, to: [{namespaces: {}}]}",
        "5 error: spec.ingress[0].to: unknown field; remove it; known here: name, action, from, protocols | 5 error: spec.ingress[0]: from is missing; name at least one peer; for every pod write namespaces: {}"),
        ("{action: Accept, from: [{namespaces: {}, pods: {podSelector: {}}}]}",
        "5 error: spec.ingress[0].from[0]: it has more than one member; begin a new list entry with '-' for each"),
        ("{action: Accept, from: [{pods: {namespaceSelector: {}}}]}",
        "5 error: spec.ingress[0].from[0].pods: podSelector is missing; write podSelector: {} for every pod"),
        ("{action: Accept, from: [{pods: {podSelector: {}, extra: 1}}]}",
        "5 error: spec.ingress[0].from[0].pods.extra: unknown field; remove it; known here: namespaceSelector, podSelector"),
        ("{action: Accept, from: [{namespaces: {matchLabel: {}}}]}",
        "5 error: spec.ingress[0].from[0].namespaces.matchLabel: unknown field; did you mean matchLabels?"),
        ("{action: Accept, from: [namespaces]}",
        "5 error: spec.ingress[0].from[0]: a map is expected here, but this is the text \"namespaces\"; write a map"),
        ("{action: Accept, from: [{namespaces: {}}], ports: []}",
        "5 error: spec.ingress[0].ports: unknown field; remove it; known here: name, action, from, protocols"),
        ("{action: Accept, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {}}}]}",
        "5 error: spec.ingress[0].protocols[0].tcp.destinationPort: a port needs exactly one of number and range; write number: 80, or range: {start: 80, end: 90}"),
        ("{action: Accept, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 1, range: {start: 1, end: 2}}}}]}",
        "5 error: spec.ingress[0].protocols[0].tcp.destinationPort: a port needs exactly one of number and range; write number: 80, or range: {start: 80, end: 90}"),
        ("{action: Accept, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 0}}}]}",
        "5 error: spec.ingress[0].protocols[0].tcp.destinationPort.number: 0 is not a port number; use a number from 1 to 65535"),
        ("{action: Accept, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {range: {start: 2, end: 2}}}}]}",
        "5 error: spec.ingress[0].protocols[0].tcp.destinationPort.range: start 2 is not below end 2; write the lower port first; for one port use number"),
        ("{action: Accept, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {range: {start: 2}}}}]}",
        "5 error: spec.ingress[0].protocols[0].tcp.destinationPort.range: end is missing; write the last port"),
        ("{action: Accept, from: [{namespaces: {}}], protocols: [{tcp: {sourcePort: 1}}]}",
        "5 error: spec.ingress[0].protocols[0].tcp.sourcePort: unknown field; remove it; known here: destinationPort"),
        ("{action: Accept, from: [{namespaces: {}}], protocols: [{tcp: {}, udp: {}}]}",
        "5 error: spec.ingress[0].protocols[0]: it has more than one member; begin a new list entry with '-' for each"),
        ("{action: Accept, from: [{namespaces: {}}], protocols: [{destinationNamedPort: '80'}]}",
        "5 error: spec.ingress[0].protocols[0].destinationNamedPort: \"80\" is a number, not a port's name; write tcp: {destinationPort: {number: 80}}"),
        ("{name: \"a\\nb\", action: Accept, from: [{namespaces: {}}]}",
        "5 error: spec.ingress[0].name: \"a\\nb\" has a control character; use printable characters only"),
    ];
    assert_messages(|rule| with(&format!("ingress: [{rule}]")), table);
    #[rustfmt::skip]
    let table: &[(&str, &str)] = &[
        ("{action: Deny, to: [{networks: []}]}",
        "5 error: spec.egress[0].to[0].networks: the list of networks is empty; name at least one block, like 10.0.0.0/8"),
        ("{action: Deny, to: [{networks: [10.0.0.0/40]}]}",
        "5 error: spec.egress[0].to[0].networks[0]: \"10.0.0.0/40\" is not an address block; use a prefix length from 0 to 32"),
        ("{action: Deny, to: [{nodes: {}}], protocols: [{destinationNamedPort: http}]}",
        "5 error: spec.egress[0]: destinationNamedPort cannot stand with nodes or networks, which have no named ports; write two rules, with a port number for nodes and networks"),
    ];
    assert_messages(|rule| with(&format!("egress: [{rule}]")), table);
}

#[test]
fn counts_are_limited() {
    let list = |count: usize, item: &str| vec![item; count].join(", ");
    let rule = |from: &str| format!("{{action: Deny, from: [{from}]}}");
    let (peer, protocol) = ("{namespaces: {}}", "{tcp: {}}");
    for count in [25, 26] {
        let networks: Vec<_> = (0..count).map(|n| format!("10.{n}.0.0/16")).collect();
        for (fields, what) in [
            (
                format!("ingress: [{}]", list(count, &rule(peer))),
                "ingress",
            ),
            (
                format!("ingress: [{}]", rule(&list(count, peer))),
                "ingress[0].from",
            ),
            (
                format!(
                    "ingress: [{{action: Deny, from: [{peer}], protocols: [{}]}}]",
                    list(count, protocol)
                ),
                "ingress[0].protocols",
            ),
            (
                format!(
                    "egress: [{{action: Deny, to: [{{networks: [{}]}}]}}]",
                    networks.join(", ")
                ),
                "egress[0].to[0].networks",
            ),
        ] {
            if count == 25 {
                good_policy(&with(&fields));
            } else {
                let expected = format!(
                    "5 error: spec.{what}: the list has 26 entries, more than 25; leave at most 25, or split the object"
                );
                assert_eq!(super::errors(&with(&fields)), [expected]);
            }
        }
    }
    let named = |length| {
        with(&format!(
            "ingress: [{{name: {}, action: Deny, from: [{peer}]}}]",
            "é".repeat(length)
        ))
    };
    good_policy(&named(100));
    assert_eq!(super::errors(&named(101)).len(), 1);
}

#[test]
fn a_bad_policy_denies_both_ways_in_tier_admin() {
    let text = policy(
        "{tier: Baseline, priority: 7, subject: {namespaces: {matchLabels: {a: b}}}, ingress: [{action: Alow, from: [{namespaces: {}}]}]}",
    );

    let stand_in = bad(&text).stand_in.unwrap();

    let deny = Rule {
        name: Some("stand-in of an invalid policy".into()),
        action: Action::Deny,
        peers: Peers::Any,
        ports: Ports::Any,
    };
    assert_eq!(
        stand_in,
        Policy {
            id: PolicyId {
                kind: PolicyKind::ClusterNetworkPolicy,
                namespace: "".into(),
                name: "guard".into(),
            },
            tier: Tier::ADMIN,
            order: 7,
            subject: Subject {
                namespaces: NamespaceMatch::Matching(equals("a", "b")),
                pods: Selector::everything(),
            },
            ingress: Some(vec![deny.clone()]),
            egress: Some(vec![deny]),
            invalid: Some(
                "spec.ingress[0].action: \"Alow\" is not an action; use Accept, Deny or Pass"
                    .into()
            ),
        }
    );
}

#[test]
fn a_stand_in_has_priority_zero_when_its_own_is_unknown() {
    let stand_in = bad(&policy("{tier: Admin, subject: {namespaces: {}}}"))
        .stand_in
        .unwrap();

    assert_eq!((stand_in.order, stand_in.tier), (0, Tier::ADMIN));
}

#[test]
fn without_a_subject_nothing_can_be_closed() {
    for spec in [
        "{tier: Admin, priority: 1}",
        "{tier: Admin, priority: 1, subject: {namespaces: {a: b}}}",
    ] {
        assert_eq!(bad(&policy(spec)).stand_in, None, "{spec}");
    }
}
