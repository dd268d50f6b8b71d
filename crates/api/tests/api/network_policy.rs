//! `NetworkPolicy`: each field, right and wrong.

use towpath_core::model::{
    Action, NamespaceMatch, Peer, Peers, Policy, PolicyId, PolicyKind, PortMatch, Ports, Protocol,
    Requirement, Rule, Selector, Subject, Tier,
};

use super::{assert_messages, bad, errors, good, good_policy};

/// A policy with this `spec`, in flow style so that it stands on line 5.
fn policy(spec: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: web, namespace: shop}}\nspec:\n  {spec}\n"
    )
}

fn equals(key: &str, value: &str) -> Selector {
    Selector::new(vec![Requirement::In(key.into(), vec![value.into()])])
}

fn accept(peers: Peers, ports: Ports) -> Rule {
    Rule {
        name: None,
        action: Action::Accept,
        peers,
        ports,
    }
}

fn only_peer(part: &str) -> Peer {
    let policy = good_policy(&policy(&format!("{{ingress: [{{from: [{part}]}}]}}")));
    match policy.ingress.expect("ingress rules").remove(0).peers {
        Peers::Of(mut peers) if peers.len() == 1 => peers.remove(0),
        other => panic!("{other:?}"),
    }
}

fn only_port(part: &str) -> PortMatch {
    let policy = good_policy(&policy(&format!("{{ingress: [{{ports: [{part}]}}]}}")));
    match policy.ingress.expect("ingress rules").remove(0).ports {
        Ports::Of(mut ports) if ports.len() == 1 => ports.remove(0),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_whole_policy_is_converted() {
    let text = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: api
  namespace: shop
  annotations: {anything: goes}
spec:
  podSelector:
    matchLabels: {app: api}
  policyTypes: [Ingress, Egress]
  ingress:
  - from:
    - podSelector: {matchLabels: {app: web}}
    - namespaceSelector: {}
      podSelector: {matchLabels: {app: probe}}
    ports:
    - port: http
    - {port: 8000, endPort: 8010, protocol: UDP}
  egress:
  - to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}]
status: {}
";

    let expected = Policy {
        id: PolicyId {
            kind: PolicyKind::NetworkPolicy,
            namespace: "shop".into(),
            name: "api".into(),
        },
        tier: Tier::NETWORK_POLICY,
        order: 0,
        subject: Subject {
            namespaces: NamespaceMatch::Is("shop".into()),
            pods: equals("app", "api"),
        },
        ingress: Some(vec![accept(
            Peers::Of(vec![
                Peer::Workloads {
                    namespaces: NamespaceMatch::Is("shop".into()),
                    pods: equals("app", "web"),
                },
                Peer::Workloads {
                    namespaces: NamespaceMatch::Matching(Selector::everything()),
                    pods: equals("app", "probe"),
                },
            ]),
            Ports::Of(vec![
                PortMatch::Named {
                    protocol: Some(Protocol::Tcp),
                    name: "http".into(),
                },
                PortMatch::Range {
                    protocol: Protocol::Udp,
                    first: 8000,
                    last: 8010,
                },
            ]),
        )]),
        egress: Some(vec![accept(
            Peers::Of(vec![Peer::Network {
                cidr: "10.0.0.0/8".parse().unwrap(),
                except: vec!["10.1.0.0/16".parse().unwrap()],
            }]),
            Ports::Any,
        )]),
        invalid: None,
    };
    assert_eq!(good_policy(text), expected);
    assert_eq!(good(text).1, Vec::<String>::new());
}

#[test]
fn policy_types_default_as_the_api_says() {
    for (spec, ingress, egress) in [
        ("{}", Some(0), None),
        ("{ingress: null, egress: null}", Some(0), None),
        ("{egress: []}", Some(0), None),
        ("{egress: [{}]}", Some(0), Some(1)),
        ("{ingress: [{}]}", Some(1), None),
        ("{policyTypes: [], egress: [{}]}", Some(0), Some(1)),
        ("{policyTypes: [Egress]}", None, Some(0)),
        ("{policyTypes: [Ingress], egress: [{}]}", Some(0), None),
        (
            "{policyTypes: [Egress, Ingress], egress: [{}]}",
            Some(0),
            Some(1),
        ),
        ("{policyTypes: [Egress, Egress]}", None, Some(0)),
    ] {
        let policy = good_policy(&policy(spec));
        let counts = (
            policy.ingress.map(|rules| rules.len()),
            policy.egress.map(|rules| rules.len()),
        );
        assert_eq!(counts, (ingress, egress), "{spec}");
    }
}

#[test]
fn a_policy_without_spec_isolates_the_namespace() {
    let policy =
        good_policy("{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: a}}");

    assert_eq!(policy.id.namespace, "default");
    assert_eq!(policy.subject.pods, Selector::everything());
    assert_eq!((policy.ingress, policy.egress), (Some(vec![]), None));
}

#[test]
fn empty_lists_of_peers_and_ports_mean_any() {
    for rule in ["{}", "{from: null}", "{from: [], ports: []}"] {
        let policy = good_policy(&policy(&format!("{{ingress: [{rule}]}}")));
        assert_eq!(
            policy.ingress,
            Some(vec![accept(Peers::Any, Ports::Any)]),
            "{rule}"
        );
    }
}

#[test]
fn selectors_are_read() {
    let expression = |requirement| Selector::new(vec![requirement]);
    let key = || "app".into();
    for (part, expected) in [
        ("{}", Selector::everything()),
        (
            "{matchLabels: null, matchExpressions: []}",
            Selector::everything(),
        ),
        ("{matchLabels: {app: \"\"}}", equals("app", "")),
        (
            "{matchExpressions: [{key: app, operator: In, values: [b, a, b]}]}",
            expression(Requirement::In(key(), vec!["a".into(), "b".into()])),
        ),
        (
            "{matchExpressions: [{key: app, operator: NotIn, values: [a]}]}",
            expression(Requirement::NotIn(key(), vec!["a".into()])),
        ),
        (
            "{matchExpressions: [{key: app, operator: Exists}]}",
            expression(Requirement::Exists(key())),
        ),
        (
            "{matchExpressions: [{key: app, operator: DoesNotExist, values: []}]}",
            expression(Requirement::DoesNotExist(key())),
        ),
    ] {
        let policy = good_policy(&policy(&format!("{{podSelector: {part}}}")));
        assert_eq!(policy.subject.pods, expected, "{part}");
    }
}

#[test]
fn peers_are_read() {
    let shop = || NamespaceMatch::Is("shop".into());
    assert_eq!(
        only_peer("{podSelector: {}}"),
        Peer::Workloads {
            namespaces: shop(),
            pods: Selector::everything()
        }
    );
    assert_eq!(
        only_peer("{namespaceSelector: {matchLabels: {team: a}}, podSelector: null}"),
        Peer::Workloads {
            namespaces: NamespaceMatch::Matching(equals("team", "a")),
            pods: Selector::everything()
        }
    );
    assert_eq!(
        only_peer(
            "{ipBlock: {cidr: 'fd00::/8', except: ['fd01::/16', 'fd01::/16', 'fd02::1/128']}}"
        ),
        Peer::Network {
            cidr: "fd00::/8".parse().unwrap(),
            except: vec!["fd01::/16".parse().unwrap(), "fd02::1/128".parse().unwrap()],
        }
    );
}

#[test]
fn ports_are_read() {
    let range = |protocol, first, last| PortMatch::Range {
        protocol,
        first,
        last,
    };
    assert_eq!(only_port("{}"), range(Protocol::Tcp, 0, 65535));
    assert_eq!(
        only_port("{protocol: SCTP}"),
        range(Protocol::Sctp, 0, 65535)
    );
    assert_eq!(only_port("{port: 1}"), range(Protocol::Tcp, 1, 1));
    assert_eq!(
        only_port("{port: 65535, endPort: 65535}"),
        range(Protocol::Tcp, 65535, 65535)
    );
    assert_eq!(
        only_port("{port: dns, protocol: UDP}"),
        PortMatch::Named {
            protocol: Some(Protocol::Udp),
            name: "dns".into()
        }
    );
}

#[test]
fn blocks_that_can_be_read_in_one_way_are_corrected_with_a_warning() {
    for (block, network, remark) in [
        (
            "10.1.2.3/8",
            "10.0.0.0/8",
            "5 warning: spec.ingress[0].from[0].ipBlock.cidr: \"10.1.2.3/8\" has bits set behind its prefix and is read as 10.0.0.0/8; write 10.0.0.0/8, or a longer prefix if one address was meant",
        ),
        (
            "'::ffff:10.0.0.0/104'",
            "10.0.0.0/8",
            "5 warning: spec.ingress[0].from[0].ipBlock.cidr: \"::ffff:10.0.0.0/104\" is an IPv4 block in IPv6 notation and is read as 10.0.0.0/8; write 10.0.0.0/8",
        ),
    ] {
        let part = format!("{{ipBlock: {{cidr: {block}}}}}");
        assert_eq!(
            only_peer(&part),
            Peer::Network {
                cidr: network.parse().unwrap(),
                except: vec![]
            }
        );
        let (_, remarks) = good(&policy(&format!("{{ingress: [{{from: [{part}]}}]}}")));
        assert_eq!(remarks, [remark]);
    }
}

#[test]
fn sections_without_effect_are_remarked() {
    for (spec, expected) in [
        (
            "{policyTypes: [Ingress], egress: [{}]}",
            "5 warning: spec.egress: the egress rules have no effect, because policyTypes does not name Egress; add Egress to policyTypes, or remove the rules",
        ),
        (
            "{policyTypes: [Egress], ingress: [{}]}",
            "5 warning: spec.ingress: the ingress rules have no effect, because policyTypes does not name Ingress; add Ingress to policyTypes, or remove the rules",
        ),
        (
            "{egress: []}",
            "5 note: spec.egress: the empty egress list has no effect, because Egress is not in force here; add Egress to policyTypes to deny all egress, or remove the list",
        ),
        (
            "{ingress: []}",
            "5 note: spec.ingress: the empty ingress list denies all ingress of the selected pods; if that is meant, nothing; to allow everything write ingress: [{}]",
        ),
        (
            "{ingress: [{from: []}]}",
            "5 note: spec.ingress[0].from: an empty list here means no restriction, not nobody; remove it if everybody and every port is meant; to deny, leave out the whole rule",
        ),
    ] {
        assert_eq!(good(&policy(spec)).1, [expected], "{spec}");
    }
}

#[test]
fn wrong_fields_are_told_one_by_one() {
    assert_messages(policy, WRONG_SPECS);
}

/// A wrong `spec` and what is said about it.
#[rustfmt::skip]
const WRONG_SPECS: &[(&str, &str)] = &[
    ("[]",
        "5 error: spec: a map is expected here, but this is a list; write a map"),
    ("{podselector: {}}",
        "5 error: spec.podselector: unknown field; did you mean podSelector?"),
    ("{podSelector: web}",
        "5 error: spec.podSelector: a map is expected here, but this is the text \"web\"; write a map"),
    ("{podSelector: {app: web}}",
        "5 error: spec.podSelector: these labels stand directly in the selector; put them under matchLabels"),
    ("{podSelector: {matchLabels: {app: 1.10}}}",
        "5 error: spec.podSelector.matchLabels.app: a text is expected here, but 1.10 is read as a number; write it in quotes: \"1.10\""),
    ("{podSelector: {matchLabels: {app: yes}}}",
        "5 error: spec.podSelector.matchLabels.app: a text is expected here, but yes is read as true or false; write it in quotes: \"yes\""),
    ("{podSelector: {matchLabels: {app: null}}}",
        "5 error: spec.podSelector.matchLabels.app: a text is expected here, but nothing stands here; write a text"),
    ("{podSelector: {matchLabels: {app: [a]}}}",
        "5 error: spec.podSelector.matchLabels.app: a text is expected here, but this is a list; write a text"),
    ("{podSelector: {matchLabels: {'a b': c}}}",
        "5 error: spec.podSelector.matchLabels[\"a b\"]: \"a b\" is not a valid label key; use at most 63 letters, digits, '-', '_' and '.', after an optional domain and '/', like example.com/role"),
    ("{podSelector: {matchLabels: {app: 'a b'}}}",
        "5 error: spec.podSelector.matchLabels.app: \"a b\" is not a valid label value; use at most 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends"),
    ("{podSelector: {matchLabels: [app]}}",
        "5 error: spec.podSelector.matchLabels: a map is expected here, but this is a list; write a map"),
    ("{podSelector: {matchExpressions: {key: a}}}",
        "5 error: spec.podSelector.matchExpressions: a list is expected here, but this is a map; write a list"),
    ("{podSelector: {matchExpressions: [{key: a, operator: Equals, values: [b]}]}}",
        "5 error: spec.podSelector.matchExpressions[0].operator: \"Equals\" is not an operator of selectors; use In, NotIn, Exists or DoesNotExist"),
    ("{podSelector: {matchExpressions: [{key: a, operator: In}]}}",
        "5 error: spec.podSelector.matchExpressions[0]: In needs at least one value; add values, or use Exists or DoesNotExist"),
    ("{podSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}}",
        "5 error: spec.podSelector.matchExpressions[0]: Exists takes no values; remove values, or use In or NotIn"),
    ("{podSelector: {matchExpressions: [{operator: Exists}]}}",
        "5 error: spec.podSelector.matchExpressions[0]: key is missing; name the label to select by"),
    ("{podSelector: {matchExpressions: [{key: a}]}}",
        "5 error: spec.podSelector.matchExpressions[0]: operator is missing; write In, NotIn, Exists or DoesNotExist"),
    ("{podSelector: {matchExpressions: [{key: a, operator: In, value: [b]}]}}",
        "5 error: spec.podSelector.matchExpressions[0].value: unknown field; did you mean values?"),
    ("{podSelector: {matchExpressions: [null]}}",
        "5 error: spec.podSelector.matchExpressions[0]: a map is expected here, but nothing stands here; write a map"),
    ("{policyTypes: Ingress}",
        "5 error: spec.policyTypes: a list is expected here, but this is the text \"Ingress\"; write a list"),
    ("{policyTypes: [ingress]}",
        "5 error: spec.policyTypes[0]: \"ingress\" is not a policy type; use Ingress, Egress or both"),
    ("{ingress: {}}",
        "5 error: spec.ingress: a list is expected here, but this is a map; write a list"),
    ("{ingress: [null]}",
        "5 error: spec.ingress[0]: a map is expected here, but nothing stands here; write a map"),
    ("{ingress: [{to: []}]}",
        "5 error: spec.ingress[0].to: unknown field; remove it; known here: from, ports"),
    ("{ingress: [{form: []}]}",
        "5 error: spec.ingress[0].form: unknown field; did you mean from?"),
    ("{egress: [{from: []}]}",
        "5 error: spec.egress[0].from: unknown field; remove it; known here: to, ports"),
    ("{ingress: [{from: {podSelector: {}}}]}",
        "5 error: spec.ingress[0].from: a list is expected here, but this is a map; write a list"),
    ("{ingress: [{from: [{}]}]}",
        "5 error: spec.ingress[0].from[0]: the peer names nobody; give it podSelector, namespaceSelector or ipBlock; for every pod write namespaceSelector: {}"),
    ("{ingress: [{from: [null]}]}",
        "5 error: spec.ingress[0].from[0]: a map is expected here, but nothing stands here; write a map"),
    ("{ingress: [{from: [{serviceSelector: {}}]}]}",
        "5 error: spec.ingress[0].from[0].serviceSelector: unknown field; remove it; known here: podSelector, namespaceSelector, ipBlock"),
    ("{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}]}]}",
        "5 error: spec.ingress[0].from[0].ipBlock: ipBlock cannot stand beside a selector in one peer; begin a second peer with '-' before ipBlock"),
    ("{ingress: [{from: [{ipBlock: 10.0.0.0/8}]}]}",
        "5 error: spec.ingress[0].from[0].ipBlock: a map is expected here, but this is the text \"10.0.0.0/8\"; write a map"),
    ("{ingress: [{from: [{ipBlock: {}}]}]}",
        "5 error: spec.ingress[0].from[0].ipBlock: cidr is missing; write the block, like cidr: 10.0.0.0/8"),
    ("{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/33}}]}]}",
        "5 error: spec.ingress[0].from[0].ipBlock.cidr: \"10.0.0.0/33\" is not an address block; use a prefix length from 0 to 32"),
    ("{ingress: [{from: [{ipBlock: {cidr: 10.0.0.1}}]}]}",
        "5 error: spec.ingress[0].from[0].ipBlock.cidr: \"10.0.0.1\" is not an address block; write 10.0.0.1/32 for this one address"),
    ("{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}]}]}",
        "5 error: spec.ingress[0].from[0].ipBlock.except[0]: 11.0.0.0/16 is not a part of 10.0.0.0/8; except cuts smaller blocks out of cidr; remove it, or correct one of the two"),
    ("{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}]}]}",
        "5 error: spec.ingress[0].from[0].ipBlock.except[0]: 10.0.0.0/8 is not a part of 10.0.0.0/8; except cuts smaller blocks out of cidr; remove it, or correct one of the two"),
    ("{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: ['fd00::/16']}}]}]}",
        "5 error: spec.ingress[0].from[0].ipBlock.except[0]: fd00::/16 is not a part of 10.0.0.0/8; except cuts smaller blocks out of cidr; remove it, or correct one of the two"),
    ("{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: 10.1.0.0/16}}]}]}",
        "5 error: spec.ingress[0].from[0].ipBlock.except: a list is expected here, but this is the text \"10.1.0.0/16\"; write a list"),
    ("{ingress: [{ports: [80]}]}",
        "5 error: spec.ingress[0].ports[0]: a map is expected here, but 80 is read as a number; write a map"),
    ("{ingress: [{ports: [{port: 0}]}]}",
        "5 error: spec.ingress[0].ports[0].port: 0 is not a port number; use a number from 1 to 65535"),
    ("{ingress: [{ports: [{port: 65536}]}]}",
        "5 error: spec.ingress[0].ports[0].port: 65536 is not a port number; use a number from 1 to 65535"),
    ("{ingress: [{ports: [{port: 80.5}]}]}",
        "5 error: spec.ingress[0].ports[0].port: a whole number is expected here; write it in plain decimal digits"),
    ("{ingress: [{ports: [{port: '80'}]}]}",
        "5 error: spec.ingress[0].ports[0].port: \"80\" is not a valid port name; remove the quotes to mean the port's number"),
    ("{ingress: [{ports: [{port: HTTP}]}]}",
        "5 error: spec.ingress[0].ports[0].port: \"HTTP\" is not a valid port name; use 1 to 15 lower-case letters, digits and single '-', at least one letter, no '-' at the ends"),
    ("{ingress: [{ports: [{port: [80]}]}]}",
        "5 error: spec.ingress[0].ports[0].port: a text is expected here, but this is a list; write a text"),
    ("{ingress: [{ports: [{port: 80, endPort: 79}]}]}",
        "5 error: spec.ingress[0].ports[0].endPort: endPort 79 is below port 80; write the range from the lower to the higher port"),
    ("{ingress: [{ports: [{port: 80, endPort: '90'}]}]}",
        "5 error: spec.ingress[0].ports[0].endPort: a number is expected here, but this is the text \"90\"; remove the quotes: 90"),
    ("{ingress: [{ports: [{port: http, endPort: 90}]}]}",
        "5 error: spec.ingress[0].ports[0].endPort: endPort needs a port by number; write port as a number, or remove endPort"),
    ("{ingress: [{ports: [{endPort: 90}]}]}",
        "5 error: spec.ingress[0].ports[0].endPort: endPort needs a port; write port, the first of the range"),
    ("{ingress: [{ports: [{port: 80, protocol: tcp}]}]}",
        "5 error: spec.ingress[0].ports[0].protocol: \"tcp\" is not a protocol that policies know; use TCP, UDP or SCTP, in capital letters"),
    ("{ingress: [{ports: [{port: 80, protocol: ICMP}]}]}",
        "5 error: spec.ingress[0].ports[0].protocol: \"ICMP\" is not a protocol that policies know; use TCP, UDP or SCTP, in capital letters"),
    ("{ingress: [{ports: [{port: 80, portocol: TCP}]}]}",
        "5 error: spec.ingress[0].ports[0].portocol: unknown field; did you mean protocol?"),
];

#[test]
fn wrong_heads_are_told() {
    #[rustfmt::skip]
    let table: &[(&str, &str)] = &[
        ("{kind: NetworkPolicy, metadata: {name: a}}",
        "1 error: apiVersion is missing; write apiVersion: networking.k8s.io/v1"),
        ("{apiVersion: networking.k8s.io/v1beta1, kind: NetworkPolicy, metadata: {name: a}}",
        "1 error: NetworkPolicy of \"networking.k8s.io/v1beta1\" is not supported; write it for apiVersion networking.k8s.io/v1"),
        ("{apiVersion: extensions/v1beta1, kind: NetworkPolicy, metadata: {name: a}}",
        "1 error: NetworkPolicy of \"extensions/v1beta1\" is not supported; write it for apiVersion networking.k8s.io/v1"),
        ("{apiVersion: networking.k8s.io/v1, kind: Networkpolicy, metadata: {name: a}}",
        "1 error: the kind \"Networkpolicy\" does not exist; did you mean NetworkPolicy?"),
        ("{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy}",
        "1 error: metadata is missing; write metadata with at least a name"),
        ("{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {}}",
        "1 error: metadata: name is missing; write the object's name"),
        ("{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {generateName: a-}}",
        "1 error: metadata: name is missing; a manifest in a file needs a fixed name; write name instead of generateName"),
        ("{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: 'A b'}}",
        "1 error: metadata.name: \"A b\" is not a valid name; use 1 to 253 lower-case letters, digits, '-' and '.', with a letter or digit at both ends of each part"),
        ("{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: 7}}",
        "1 error: metadata.name: a text is expected here, but 7 is read as a number; write it in quotes: \"7\""),
        ("{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: a, namespace: a.b}}",
        "1 error: metadata.namespace: \"a.b\" is not a valid name; use 1 to 63 lower-case letters, digits and '-', the first and last of them no '-'"),
        ("{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: a}, policyTypes: []}",
        "1 error: policyTypes: unknown field; remove it; known here: apiVersion, kind, metadata, spec, status"),
        ("{apiVersion: networking.k8s.io/v1, metadata: {name: a}}",
        "1 error: kind is missing; every manifest has apiVersion, kind and metadata"),
        ("{apiVersion: 1, kind: NetworkPolicy, metadata: {name: a}}",
        "1 error: apiVersion: a text is expected here, but 1 is read as a number; write it in quotes: \"1\""),
        ("[a]",
        "1 error: this is not a manifest; a manifest is a map with apiVersion, kind and metadata"),
        ("just text",
        "1 error: this is not a manifest; a manifest is a map with apiVersion, kind and metadata"),
    ];
    assert_messages(str::to_owned, table);
}

#[test]
fn every_fault_of_an_object_is_told_at_once() {
    let text = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: web
spec:
  podSelector:
    matchLabels:
      app: 1
  ingress:
  - from:
    - ipBlock:
        cidr: 10.0.0.0/99
    ports:
    - port: 0
";

    let expected = [
        "8 error: spec.podSelector.matchLabels.app: a text is expected here, but 1 is read as a number; write it in quotes: \"1\"",
        "12 error: spec.ingress[0].from[0].ipBlock.cidr: \"10.0.0.0/99\" is not an address block; use a prefix length from 0 to 32",
        "14 error: spec.ingress[0].ports[0].port: 0 is not a port number; use a number from 1 to 65535",
    ];
    assert_eq!(errors(text), expected);
}

fn stand_in(text: &str) -> (String, NamespaceMatch, Selector) {
    let policy = bad(text).stand_in.expect("a stand-in");
    assert_eq!(
        (policy.ingress.as_deref(), policy.egress.as_deref()),
        (Some(&[][..]), Some(&[][..]))
    );
    assert_eq!(policy.tier, Tier::NETWORK_POLICY);
    assert!(policy.invalid.is_some());
    (
        policy.id.to_string(),
        policy.subject.namespaces,
        policy.subject.pods,
    )
}

#[test]
fn a_bad_policy_closes_its_subject() {
    let text = policy("{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{}]}]}");

    let (id, namespaces, pods) = stand_in(&text);

    assert_eq!(id, "NetworkPolicy shop/web");
    assert_eq!(
        (namespaces, pods),
        (NamespaceMatch::Is("shop".into()), equals("app", "web"))
    );
}

#[test]
fn a_bad_subject_closes_the_namespace() {
    for spec in [
        "{podSelector: {app: web}}",
        "{podSelector: {matchLabels: {app: 1}}}",
        "[]",
        "7",
    ] {
        let (_, namespaces, pods) = stand_in(&policy(spec));
        assert_eq!(
            (namespaces, pods),
            (NamespaceMatch::Is("shop".into()), Selector::everything()),
            "{spec}"
        );
    }
}

#[test]
fn a_bad_name_closes_the_subject_under_a_name_of_ours() {
    let text = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: 'a\"}; flush'}\nspec: {podSelector: {matchLabels: {app: web}}}";

    let (id, _, pods) = stand_in(text);

    assert!(id.starts_with("NetworkPolicy default/unnamed-"), "{id}");
    assert_eq!(pods, equals("app", "web"));
}

#[test]
fn without_a_namespace_nothing_can_be_closed() {
    let text = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: a, namespace: 'a b'}}";

    assert_eq!(bad(text).stand_in, None);
}

#[test]
fn a_policy_that_ends_early_closes_what_it_named_before() {
    let whole =
        policy("podSelector: {matchLabels: {app: web}}\n  ingress: [{from: [{podSelector: {}}]}]");
    assert_eq!(good_policy(&whole).subject.pods, equals("app", "web"));

    let cut_in_rules = whole.strip_suffix("}}]}]\n").unwrap();
    assert_eq!(stand_in(cut_in_rules).2, equals("app", "web"));

    let cut_in_subject = whole.split_once("web}}").unwrap().0;
    assert_eq!(stand_in(cut_in_subject).2, Selector::everything());

    let cut_in_namespace = &whole[..whole.find("shop").unwrap()];
    assert_eq!(bad(cut_in_namespace).stand_in, None);
}
