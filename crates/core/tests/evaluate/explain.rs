//! Explanations: what was compared, what decided, what was missing.

use std::fmt::Write;

use towpath_core::evaluate::{Certainty, Evaluator, Explanation, Reason, Side, TierEnd};
use towpath_core::model::{Direction, Tier, Verdict};

use crate::lab::{
    Lab, accept, block, deny, everything, ip, nodes, pass, pods_in, pods_of, selector,
};

/// Explains the first flow (IPv4) of one direction.
fn explain<'a>(
    evaluator: &Evaluator<'a>,
    lab: &Lab,
    direction: Direction,
    (from, to, port): (&str, &str, &str),
) -> Explanation<'a> {
    evaluator.explain(direction, &lab.flows(from, to, port)[0])
}

/// The walks as text, a line for each tier, policy and rule.
fn text(explanation: &Explanation) -> String {
    let mut text = String::new();
    for walk in &explanation.walks {
        if let Some((policy, index)) = walk.assumed_pass {
            writeln!(text, "if rule {index} of {} passes:", policy.id).unwrap();
        }
        for tier in &walk.tiers {
            writeln!(text, "{}: {}", tier.tier.name, tier.end).unwrap();
            for policy in &tier.policies {
                writeln!(text, "  {}", policy.policy.id).unwrap();
                for rule in &policy.rules {
                    let mark = if rule.is_deciding { "*" } else { " " };
                    let outcome = match (rule.matched, rule.mismatch()) {
                        (Certainty::Yes, None) => "matches".to_owned(),
                        (Certainty::Uncertain, None) => "uncertain".to_owned(),
                        (_, mismatch) => mismatch.unwrap(),
                    };
                    writeln!(
                        text,
                        "  {mark} {} {}: {outcome}",
                        rule.index, rule.rule.action
                    )
                    .unwrap();
                }
            }
        }
        writeln!(text, "{}: {}", walk.verdict, walk.reason).unwrap();
    }
    text
}

#[test]
fn tells_tiers_policies_and_rules_up_to_the_deciding_one() {
    let mut lab = Lab::new();
    lab.pod("web/a", "app=a");
    lab.pod("db/c", "app=c");
    let rules = vec![
        deny(&[pods_in("env=dev", "")], &[]),
        pass(&[pods_in("", "app=c")], &[]),
        deny(&[], &[]),
    ];
    lab.cluster_policy(
        Tier::ADMIN,
        ("guard", 1),
        selector("team"),
        Some(rules),
        None,
    );
    let rules = vec![
        accept(&[pods_of("web", "")], &[]),
        accept(&[pods_in("", "app=c")], &["80/tcp"]),
        accept(&[], &[]),
    ];
    lab.policy("web/p", everything(), Some(rules), None);
    let evaluator = Evaluator::new(&lab.cluster);

    let explanation = explain(
        &evaluator,
        &lab,
        Direction::Ingress,
        ("db/c", "web/a", "80/tcp"),
    );

    assert_eq!(
        text(&explanation),
        "\
Admin: passed to the next tier
  ClusterNetworkPolicy guard
    0 Deny: peer: would match if namespace label env=dev (has env=prod)
  * 1 Pass: matches
NetworkPolicy: decided by a rule
  NetworkPolicy web/p
    0 Accept: peer: would match if in namespace web (is in db)
  * 1 Accept: matches
allow: Accept by rule 1 of NetworkPolicy web/p, tier NetworkPolicy
"
    );
    assert_eq!(explanation.direction(), Direction::Ingress);
    assert_eq!(explanation.side.to_string(), "web/a");
    assert_eq!(explanation.peer.to_string(), "db/c");
}

#[test]
fn tells_why_a_peer_does_not_match() {
    let mut lab = Lab::new();
    lab.pod("web/a", "");
    lab.pod("dev/d", "app=db,tier=x");
    let mismatch_of = |peer, from: &str| {
        let mut lab = Lab {
            cluster: lab.cluster.clone(),
        };
        lab.policy(
            "web/p",
            everything(),
            Some(vec![accept(&[peer], &[])]),
            None,
        );
        let evaluator = Evaluator::new(&lab.cluster);
        let explanation = explain(
            &evaluator,
            &lab,
            Direction::Ingress,
            (from, "web/a", "80/tcp"),
        );
        explanation.walks[0].tiers[0].policies[0].rules[0].peers[0]
            .outcome
            .to_string()
    };

    for (peer, from, expected) in [
        (
            pods_in("", "app=web"),
            "dev/d",
            "would match if label app=web (has app=db)",
        ),
        (
            pods_in("", "role=web"),
            "dev/d",
            "would match if label role=web (has no role)",
        ),
        (
            pods_in("", "app in a|b"),
            "dev/d",
            "would match if label app in (a, b) (has app=db)",
        ),
        (
            pods_in("", "app notin db"),
            "dev/d",
            "would match if label app!=db (has app=db)",
        ),
        (
            pods_in("", "app notin db|x"),
            "dev/d",
            "would match if label app not in (db, x) (has app=db)",
        ),
        (
            pods_in("", "role"),
            "dev/d",
            "would match if label role present (has no role)",
        ),
        (
            pods_in("", "!app"),
            "dev/d",
            "would match if label app absent (has app=db)",
        ),
        (
            pods_in("env=prod", "app=web,tier=x"),
            "dev/d",
            "would match if namespace label env=prod (has env=dev) and label app=web (has app=db)",
        ),
        (
            pods_in("", ""),
            "outside",
            "selects pods, and the address is of none",
        ),
        (
            block("::/0", &[]),
            "outside",
            "the block is of the other address family",
        ),
        (
            block("10.0.0.0/8", &[]),
            "outside",
            "the address is outside the block",
        ),
        (
            block("203.0.0.0/8", &["203.1.0.0/16", "203.0.113.0/24"]),
            "outside",
            "the address is in the exception 203.0.113.0/24",
        ),
        (
            nodes("name=n1"),
            "outside",
            "selects nodes, and the address is of none",
        ),
        (
            nodes("name=n1"),
            "n2",
            "would match if node label name=n1 (has name=n2)",
        ),
    ] {
        assert_eq!(mismatch_of(peer, from), expected);
    }
}

#[test]
fn tells_why_a_port_does_not_match() {
    let mut lab = Lab::new();
    lab.pod("web/a", "");
    lab.server("dev/d", "", &["http=8080/tcp"]);
    let mismatch = |port, to: &str, flow_port| {
        let mut lab = Lab {
            cluster: lab.cluster.clone(),
        };
        lab.policy(
            "web/p",
            everything(),
            None,
            Some(vec![accept(&[], &[port])]),
        );
        let evaluator = Evaluator::new(&lab.cluster);
        let explanation = explain(
            &evaluator,
            &lab,
            Direction::Egress,
            ("web/a", to, flow_port),
        );
        explanation.walks[0].tiers[0].policies[0].rules[0]
            .mismatch()
            .unwrap()
    };

    for (port, to, flow_port, expected) in [
        (
            "80/tcp",
            "dev/d",
            "443/tcp",
            "port: 80/tcp: the flow is to another port",
        ),
        (
            "80-90/tcp",
            "dev/d",
            "80/udp",
            "port: 80-90/tcp: the flow is of another protocol",
        ),
        (
            "/sctp",
            "dev/d",
            "icmp",
            "port: all of sctp: the flow is of another protocol",
        ),
        (
            "http/tcp",
            "dev/d",
            "80/tcp",
            "port: http/tcp: this name is another port of dev/d",
        ),
        (
            "http/udp",
            "dev/d",
            "8080/udp",
            "port: http/udp: dev/d has no port of this name",
        ),
        (
            "metrics",
            "dev/d",
            "80/tcp",
            "port: metrics: dev/d has no port of this name",
        ),
        (
            "http",
            "outside",
            "80/tcp",
            "port: http: a named port, and the destination is no pod",
        ),
    ] {
        assert_eq!(mismatch(port, to, flow_port), expected);
    }
}

#[test]
fn tells_when_only_a_block_meets_a_named_port() {
    let mut lab = Lab::new();
    lab.pod("web/a", "");
    lab.server("dev/d", "", &["http=80/tcp"]);
    lab.policy(
        "web/p",
        everything(),
        None,
        Some(vec![accept(&[block("10.0.0.0/8", &[])], &["http/tcp"])]),
    );
    let evaluator = Evaluator::new(&lab.cluster);

    let explanation = explain(
        &evaluator,
        &lab,
        Direction::Egress,
        ("web/a", "dev/d", "80/tcp"),
    );

    assert_eq!(explanation.decision.verdict, Verdict::Deny);
    assert_eq!(
        explanation.near_misses()[0].to_string(),
        "rule 0 of NetworkPolicy web/p: port: a named port does not count with blocks and nodes"
    );
}

#[test]
fn near_misses_lack_one_thing() {
    let mut lab = Lab::new();
    lab.pod("web/a", "");
    lab.pod("dev/d", "app=db");
    let rules = vec![
        accept(&[pods_in("", "app=web")], &["80/tcp"]),
        accept(&[pods_in("", "app=db")], &["443/tcp"]),
        accept(&[pods_in("", "app=web")], &["443/tcp"]),
        accept(&[pods_in("env=prod", "app=web")], &["80/tcp"]),
        accept(&[block("10.0.0.0/8", &["10.244.0.0/16"])], &[]),
        accept(&[block("172.16.0.0/12", &[])], &[]),
    ];
    lab.policy("web/p", everything(), Some(rules), None);
    let evaluator = Evaluator::new(&lab.cluster);

    let explanation = explain(
        &evaluator,
        &lab,
        Direction::Ingress,
        ("dev/d", "web/a", "80/tcp"),
    );
    let misses: Vec<String> = explanation
        .near_misses()
        .iter()
        .map(ToString::to_string)
        .collect();

    assert_eq!(
        misses,
        [
            "rule 0 of NetworkPolicy web/p: peer: would match if label app=web (has app=db)",
            "rule 1 of NetworkPolicy web/p: port: 443/tcp: the flow is to another port",
            "rule 4 of NetworkPolicy web/p: peer: the address is in the exception 10.244.0.0/16",
        ]
    );
    assert_eq!(
        explanation.decision.reason.to_string(),
        "isolated in tier NetworkPolicy by NetworkPolicy web/p; no rule matches"
    );
    assert_eq!(explanation.walks[0].tiers[0].end, TierEnd::Isolated);
}

#[test]
fn names_policies_that_nearly_select_the_endpoint() {
    let mut lab = Lab::new();
    lab.pod("web/a", "app=a");
    lab.policy("web/one", selector("app=b"), Some(vec![]), None);
    lab.policy("web/egress-only", selector("app=b"), None, Some(vec![]));
    lab.policy("web/two", selector("app=b,tier=x"), Some(vec![]), None);
    lab.policy(
        "web/selects",
        selector("app=a"),
        Some(vec![accept(&[], &[])]),
        None,
    );
    lab.policy("db/elsewhere", selector("app=b"), Some(vec![]), None);
    lab.cluster_policy(
        Tier::ADMIN,
        ("cluster", 1),
        selector("env=dev"),
        Some(vec![]),
        None,
    );
    let evaluator = Evaluator::new(&lab.cluster);

    let explanation = explain(
        &evaluator,
        &lab,
        Direction::Ingress,
        ("outside", "web/a", "80/tcp"),
    );
    let unselected: Vec<String> = explanation
        .unselected
        .iter()
        .map(ToString::to_string)
        .collect();

    assert_eq!(
        unselected,
        [
            "ClusterNetworkPolicy cluster: would match if namespace label env=dev (has env=prod)",
            "NetworkPolicy web/one: would match if label app=b (has app=a)",
        ]
    );
}

#[test]
fn follows_an_uncertain_pass_both_ways() {
    let mut lab = Lab::new();
    lab.pod("web/a", "");
    lab.pod("new/x", "");
    let rules = vec![pass(&[pods_in("env=prod", "")], &[]), accept(&[], &[])];
    lab.cluster_policy(
        Tier::ADMIN,
        ("maybe", 1),
        selector("team"),
        Some(rules),
        None,
    );
    lab.policy("web/closed", everything(), Some(vec![]), None);
    let evaluator = Evaluator::new(&lab.cluster);

    let explanation = explain(
        &evaluator,
        &lab,
        Direction::Ingress,
        ("new/x", "web/a", "80/tcp"),
    );

    assert_eq!(
        text(&explanation),
        "\
if rule 0 of ClusterNetworkPolicy maybe passes:
NetworkPolicy: no rule matches: denied, because policies of this tier select the endpoint
  NetworkPolicy web/closed
deny: isolated in tier NetworkPolicy by NetworkPolicy web/closed; no rule matches
Admin: denied if the uncertain pass is taken
  ClusterNetworkPolicy maybe
    0 Pass: uncertain
deny: isolated in tier NetworkPolicy by NetworkPolicy web/closed; no rule matches
"
    );
    assert_eq!(
        explanation.peer.to_string(),
        "new/x, whose namespace is not known yet"
    );
}

#[test]
fn walks_once_for_each_claimant_of_the_peer_address() {
    let mut lab = Lab::new();
    lab.pod("web/a", "");
    for name in ["db/1", "dev/2"] {
        lab.pod_with(name, "", |pod| pod.addresses = vec![ip("10.244.2.77")]);
    }
    lab.policy(
        "web/p",
        everything(),
        Some(vec![accept(&[pods_in("env=prod", "")], &[])]),
        None,
    );
    let evaluator = Evaluator::new(&lab.cluster);

    let explanation = explain(
        &evaluator,
        &lab,
        Direction::Ingress,
        ("db/1", "web/a", "80/tcp"),
    );
    let walks: Vec<(String, Verdict)> = explanation
        .walks
        .iter()
        .map(|walk| (walk.claimant.unwrap().to_string(), walk.verdict))
        .collect();

    assert_eq!(
        walks,
        [
            ("db/1".to_owned(), Verdict::Allow),
            ("dev/2".to_owned(), Verdict::Deny)
        ]
    );
    assert_eq!(
        explanation.peer.to_string(),
        "claimed by several: db/1, dev/2"
    );
}

#[test]
fn says_what_an_address_is_when_nothing_is_walked() {
    let mut lab = Lab::new();
    lab.pod("web/a", "");
    let evaluator = Evaluator::new(&lab.cluster);
    let side = |to: &str| {
        let explanation = explain(
            &evaluator,
            &lab,
            Direction::Ingress,
            ("web/a", to, "80/tcp"),
        );
        assert!(explanation.walks.is_empty());
        explanation.side.to_string()
    };

    assert_eq!(
        side("10.244.2.200"),
        "in a pod network of node n2, but of no pod"
    );
    assert_eq!(side("n2"), "host n2");
    assert_eq!(side("outside"), "outside");
    let own = explain(
        &evaluator,
        &lab,
        Direction::Ingress,
        ("n1", "web/a", "80/tcp"),
    );
    assert_eq!(own.decision.reason, Reason::OwnNode { node: "n1".into() });
    assert!(matches!(own.side, Side::Workload(_)));
}
