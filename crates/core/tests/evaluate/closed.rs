//! What is unknown, shared or half known: closed, and never more open than the known case.

use towpath_core::evaluate::{Evaluator, Reason};
use towpath_core::model::{
    Direction, EndpointId, EndpointKind, Lifecycle, ObjectKey, Peers, Tier, Update, Verdict,
};

use crate::lab::{Lab, accept, block, deny, everything, ip, pass, pods_in, pods_of, selector};

/// `web/a`, and `new/x` (app=x, http=80/tcp) whose namespace has no object.
fn lab() -> Lab {
    let mut lab = Lab::new();
    lab.pod("web/a", "app=a");
    lab.server("new/x", "app=x", &["http=80/tcp"]);
    lab
}

/// Gives two more pods one address in each family.
fn share(lab: &mut Lab, first: (&str, &str), second: (&str, &str)) {
    for (name, text) in [first, second] {
        lab.pod_with(name, text, |pod| {
            pod.node = Some("n2".into());
            pod.addresses = vec![ip("10.244.2.77"), ip("fd00:10:2::77")];
        });
    }
}

#[test]
fn endpoint_of_an_unknown_namespace_is_closed_both_ways() {
    let lab = lab();

    lab.denies("new/x", "web/a", "80/tcp");
    lab.denies("web/a", "new/x", "80/tcp");
    assert_eq!(
        lab.reason(Direction::Egress, "new/x", "web/a", "80/tcp"),
        "unknown endpoint"
    );
    assert_eq!(
        lab.reason(Direction::Ingress, "web/a", "new/x", "80/tcp"),
        "unknown endpoint"
    );
}

/// The verdicts of the side of `web/a` alone, with `new/x` as the peer: ingress, egress.
#[track_caller]
fn sides(lab: &Lab, port: &str) -> [Verdict; 2] {
    let verdicts = |from, to, direction: Direction| {
        let mut found: Vec<Verdict> = lab
            .decide(from, to, port)
            .iter()
            .map(|decision| match direction {
                Direction::Ingress => decision.ingress.verdict,
                Direction::Egress => decision.egress.verdict,
            })
            .collect();
        found.dedup();
        assert_eq!(found.len(), 1, "the families differ");
        found[0]
    };
    [
        verdicts("new/x", "web/a", Direction::Ingress),
        verdicts("web/a", "new/x", Direction::Egress),
    ]
}

#[test]
fn accept_rule_matches_no_peer_of_an_unknown_namespace() {
    for peer in [
        pods_in("", ""),
        pods_in("env notin prod", ""),
        pods_in("!env", "app=x"),
        pods_of("new", "app=x"),
    ] {
        let mut lab = lab();
        let rules = || Some(vec![accept(std::slice::from_ref(&peer), &[])]);
        lab.policy("web/p", everything(), rules(), rules());

        assert_eq!(sides(&lab, "80/tcp"), [Verdict::Deny; 2], "{peer:?}");
        lab.namespace("new", "");
        assert_eq!(
            sides(&lab, "80/tcp"),
            [Verdict::Allow; 2],
            "{peer:?}, namespace known"
        );
    }
}

#[test]
fn deny_rule_matches_every_peer_of_an_unknown_namespace() {
    for peer in [
        pods_in("env=prod", "app=a"),
        pods_in("env notin prod", ""),
        pods_of("db", ""),
    ] {
        let mut lab = lab();
        let rules = || Some(vec![deny(std::slice::from_ref(&peer), &["80/tcp"])]);
        lab.cluster_policy(Tier::ADMIN, ("p", 1), selector("team"), rules(), rules());

        assert_eq!(sides(&lab, "80/tcp"), [Verdict::Deny; 2], "{peer:?}");
        assert_eq!(sides(&lab, "81/tcp"), [Verdict::Allow; 2], "{peer:?}");
    }
}

#[test]
fn pass_rule_for_an_unknown_namespace_allows_only_if_both_outcomes_do() {
    let verdicts = |taken: Vec<_>, not_taken: Vec<_>| {
        let mut lab = lab();
        let mut rules = vec![pass(&[pods_in("env=prod", "")], &[])];
        rules.extend(not_taken);
        lab.cluster_policy(
            Tier::ADMIN,
            ("p", 1),
            selector("team"),
            Some(rules.clone()),
            Some(rules),
        );
        lab.cluster_policy(
            Tier::BASELINE,
            ("q", 1),
            selector("team"),
            Some(taken.clone()),
            Some(taken),
        );
        sides(&lab, "80/tcp")
    };
    let (open, closed) = (|| vec![accept(&[], &[])], || vec![deny(&[], &[])]);

    assert_eq!(verdicts(open(), open()), [Verdict::Allow; 2]);
    assert_eq!(verdicts(open(), closed()), [Verdict::Deny; 2]);
    assert_eq!(verdicts(closed(), open()), [Verdict::Deny; 2]);
    assert_eq!(verdicts(closed(), closed()), [Verdict::Deny; 2]);
}

#[test]
fn conditions_without_namespace_or_labels_stay_certain() {
    let mut lab = lab();
    let blocks = [block("10.244.0.0/16", &[]), block("fd00:10::/32", &[])];
    let rules = || Some(vec![accept(&blocks, &["80/tcp"]), accept(&[], &["81/tcp"])]);
    lab.policy("web/p", everything(), rules(), rules());

    assert_eq!(sides(&lab, "80/tcp"), [Verdict::Allow; 2]);
    assert_eq!(sides(&lab, "81/tcp"), [Verdict::Allow; 2]);
    assert_eq!(sides(&lab, "82/tcp"), [Verdict::Deny; 2]);
}

#[test]
fn named_port_of_a_peer_of_an_unknown_namespace() {
    let mut lab = lab();
    lab.cluster_policy(
        Tier::ADMIN,
        ("p", 1),
        selector("team"),
        None,
        Some(vec![deny(&[pods_in("env=prod", "")], &["http"])]),
    );
    assert_eq!(sides(&lab, "80/tcp")[1], Verdict::Deny);
    assert_eq!(sides(&lab, "81/tcp")[1], Verdict::Allow);

    lab.policy(
        "web/p",
        everything(),
        None,
        Some(vec![accept(&[], &["http/tcp", "81/tcp"])]),
    );
    lab.cluster
        .apply(Update::Remove(ObjectKey::Policy(policy_id("p"))));
    // Anybody who serves the name: that asks for no namespace.
    assert_eq!(sides(&lab, "80/tcp")[1], Verdict::Allow);
}

fn policy_id(name: &str) -> towpath_core::model::PolicyId {
    towpath_core::model::PolicyId {
        kind: towpath_core::model::PolicyKind::ClusterNetworkPolicy,
        namespace: "".into(),
        name: name.into(),
    }
}

#[test]
fn shared_peer_address_is_allowed_only_where_every_claimant_is() {
    for names in [["dev/1", "db/2"], ["db/1", "dev/2"]] {
        let mut lab = Lab::new();
        lab.pod("web/a", "");
        share(&mut lab, (names[0], "app=x"), (names[1], "app=x"));
        let rules = || {
            Some(vec![
                accept(&[pods_in("env=prod", "")], &["80/tcp"]),
                accept(&[pods_in("", "app=x")], &["81/tcp"]),
            ])
        };
        lab.policy("web/p", everything(), rules(), rules());
        let evaluator = Evaluator::new(&lab.cluster);

        for (port, verdict) in [("80/tcp", Verdict::Deny), ("81/tcp", Verdict::Allow)] {
            for flow in lab.flows(names[0], "web/a", port) {
                assert_eq!(
                    evaluator.judge(Direction::Ingress, &flow).verdict,
                    verdict,
                    "{names:?} {port}"
                );
            }
            for flow in lab.flows("web/a", names[0], port) {
                assert_eq!(
                    evaluator.judge(Direction::Egress, &flow).verdict,
                    verdict,
                    "{names:?} {port}"
                );
            }
        }
    }
}

#[test]
fn shared_address_is_denied_by_a_rule_for_any_claimant() {
    let mut lab = Lab::new();
    lab.pod("web/a", "");
    share(&mut lab, ("db/1", ""), ("dev/2", ""));
    lab.cluster_policy(
        Tier::ADMIN,
        ("p", 1),
        selector("team"),
        Some(vec![deny(&[pods_in("env=dev", "")], &[])]),
        None,
    );

    lab.denies("db/1", "web/a", "80/tcp");
}

#[test]
fn named_port_to_a_shared_address_must_be_served_by_every_claimant() {
    let mut lab = Lab::new();
    lab.pod("web/a", "");
    share(&mut lab, ("db/1", ""), ("db/2", ""));
    let serve = |lab: &mut Lab, name: &str, number: u16| {
        let mut pod = lab.endpoint(name).clone();
        pod.ports = vec![towpath_core::model::ContainerPort {
            name: Some("http".into()),
            protocol: towpath_core::model::Protocol::Tcp,
            number,
        }];
        lab.put(towpath_core::model::Object::Endpoint(pod));
    };
    lab.policy(
        "web/p",
        everything(),
        None,
        Some(vec![accept(&[pods_in("", "")], &["http/tcp"])]),
    );
    let egress = |lab: &Lab| lab.decide("web/a", "db/1", "80/tcp")[0].egress.verdict;

    serve(&mut lab, "db/1", 80);
    serve(&mut lab, "db/2", 8080);
    assert_eq!(egress(&lab), Verdict::Deny);

    serve(&mut lab, "db/2", 80);
    assert_eq!(egress(&lab), Verdict::Allow);
}

#[test]
fn shared_address_is_closed_at_its_own_side() {
    let mut lab = Lab::new();
    lab.pod("web/a", "");
    share(&mut lab, ("db/1", ""), ("dev/2", ""));

    lab.denies("web/a", "db/1", "80/tcp");
    lab.denies("db/1", "web/a", "80/tcp");
    assert_eq!(
        lab.reason(Direction::Ingress, "web/a", "db/1", "80/tcp"),
        "unknown endpoint"
    );
    assert_eq!(
        lab.reason(Direction::Egress, "db/1", "web/a", "80/tcp"),
        "unknown endpoint"
    );
}

#[test]
fn address_listed_twice_by_one_endpoint_is_not_shared() {
    let mut lab = Lab::new();
    lab.pod("web/a", "");
    lab.pod_with("db/c", "", |pod| {
        pod.addresses = vec![ip("10.244.1.80"), ip("10.244.1.80")];
    });

    lab.allows("web/a", "db/c", "80/tcp");
}

#[test]
fn address_of_a_pod_network_that_nobody_owns_is_closed() {
    let mut lab = Lab::new();
    lab.pod("web/a", "");

    for address in ["10.244.2.200", "fd00:10:2::200"] {
        lab.denies("web/a", address, "80/tcp");
        lab.denies(address, "web/a", "80/tcp");
        assert_eq!(
            lab.reason(Direction::Ingress, "web/a", address, "80/tcp"),
            "unknown endpoint"
        );
    }
}

#[test]
fn host_identity_inside_a_pod_network_is_not_judged() {
    let mut lab = Lab::new();
    lab.pod("web/a", "");

    lab.allows("web/a", "10.244.2.0", "80/tcp");
    lab.allows("fd00:10:2::", "web/a", "80/tcp");
}

#[test]
fn address_of_a_finished_pod_is_nobodys() {
    let mut lab = Lab::new();
    lab.pod("web/a", "");
    lab.pod_with("web/done", "", |pod| pod.lifecycle = Lifecycle::Finished);

    lab.denies("web/a", "web/done", "80/tcp");
    assert_eq!(
        lab.reason(Direction::Ingress, "web/a", "web/done", "80/tcp"),
        "unknown endpoint"
    );
}

#[test]
fn outside_addresses_are_not_judged() {
    let lab = Lab::new();

    lab.allows("outside", "n1", "80/tcp");
    assert_eq!(
        lab.reason(Direction::Egress, "outside", "n1", "80/tcp"),
        "not a pod or workload: not judged"
    );
}

#[test]
fn own_node_reaches_closed_endpoints_too() {
    let lab = lab();

    lab.allows("n1", "new/x", "80/tcp");
    lab.denies("n2", "new/x", "80/tcp");
}

#[test]
fn judging_by_policy_alone_leaves_out_the_own_node() {
    let mut lab = lab();
    lab.policy("web/closed", everything(), Some(vec![]), None);
    let evaluator = Evaluator::new(&lab.cluster);

    for flow in lab.flows("n1", "web/a", "80/tcp") {
        assert_eq!(
            evaluator.judge(Direction::Ingress, &flow).verdict,
            Verdict::Deny
        );
        assert_eq!(evaluator.decide(&flow).verdict, Verdict::Allow);
    }
}

#[test]
fn endpoint_is_judged_at_an_address_that_the_api_does_not_list_yet() {
    let mut lab = lab();
    lab.pod_with("web/early", "app=early", |pod| pod.addresses.clear());
    lab.policy(
        "web/p",
        selector("app=early"),
        Some(vec![accept(&[], &["80/tcp"])]),
        None,
    );
    let evaluator = Evaluator::new(&lab.cluster);
    let id = &lab.endpoint("web/early").id;
    let judge = |address: &str, port| {
        evaluator.judge_endpoint(
            Direction::Ingress,
            id,
            ip(address),
            ip("203.0.113.7"),
            6,
            Some(port),
        )
    };

    assert_eq!(judge("10.244.1.90", 80).verdict, Verdict::Allow);
    assert_eq!(judge("10.244.1.90", 81).verdict, Verdict::Deny);
    assert_eq!(judge("10.244.1.90", 80).endpoint.as_ref(), Some(id));
    let of_another = lab.addresses("web/a")[0].to_string();
    assert_eq!(judge(&of_another, 80).reason, Reason::Unknown);
}

#[test]
fn endpoint_that_does_not_exist_is_unknown() {
    let lab = lab();
    let evaluator = Evaluator::new(&lab.cluster);
    let id = EndpointId {
        kind: EndpointKind::Pod,
        namespace: "web".into(),
        name: "gone".into(),
    };

    let decision = evaluator.judge_endpoint(
        Direction::Egress,
        &id,
        ip("10.244.1.90"),
        ip("203.0.113.7"),
        6,
        Some(80),
    );

    assert_eq!(
        (decision.verdict, decision.reason),
        (Verdict::Deny, Reason::Unknown)
    );
}

#[test]
fn policy_of_an_unknown_peer_kind_matches_nobody_and_still_isolates() {
    let mut lab = lab();
    let mut nobody = accept(&[], &[]);
    nobody.peers = Peers::Of(vec![]);
    lab.policy("web/p", everything(), Some(vec![nobody]), None);

    lab.denies("outside", "web/a", "80/tcp");
}
