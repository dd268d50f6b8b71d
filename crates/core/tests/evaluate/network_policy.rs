//! NetworkPolicy v1, row by row.

use towpath_core::model::{Direction, Lifecycle, Peers, Ports};

use crate::lab::{Lab, accept, block, everything, ip, labels, pods_in, pods_of, rule, selector};

/// `web/a` (app=a), `web/b` (app=b), `db/c` (app=c), `dev/d` (app=d).
fn lab() -> Lab {
    let mut lab = Lab::new();
    for (name, text) in [
        ("web/a", "app=a"),
        ("web/b", "app=b"),
        ("db/c", "app=c"),
        ("dev/d", "app=d"),
    ] {
        lab.pod(name, text);
    }
    lab
}

#[test]
fn pod_that_no_policy_selects_is_not_isolated() {
    let mut lab = lab();
    lab.policy(
        "web/other",
        selector("app=none"),
        Some(vec![]),
        Some(vec![]),
    );

    lab.allows("db/c", "web/a", "80/tcp");
    lab.allows("outside", "web/a", "icmp");
    lab.allows("web/a", "outside", "gre");
    assert_eq!(
        lab.reason(Direction::Ingress, "db/c", "web/a", "80/tcp"),
        "no policy decides"
    );
}

#[test]
fn policy_isolates_only_in_its_directions() {
    let mut lab = lab();
    lab.policy("web/ingress", selector("app=a"), Some(vec![]), None);
    lab.policy("web/egress", selector("app=b"), None, Some(vec![]));

    lab.denies("db/c", "web/a", "80/tcp");
    lab.allows("web/a", "db/c", "80/tcp");
    lab.allows("db/c", "web/b", "80/tcp");
    lab.denies("web/b", "db/c", "80/tcp");
}

#[test]
fn both_sides_must_allow() {
    let mut lab = lab();
    lab.policy(
        "web/egress",
        selector("app=a"),
        None,
        Some(vec![accept(&[pods_in("", "app=c")], &[])]),
    );
    lab.policy(
        "db/ingress",
        everything(),
        Some(vec![accept(&[pods_in("", "app in b|d")], &[])]),
        None,
    );

    lab.denies("web/a", "db/c", "80/tcp");
    lab.denies("web/a", "dev/d", "80/tcp");
    lab.allows("web/b", "db/c", "80/tcp");
}

#[test]
fn empty_subject_selects_every_pod_of_the_namespace_only() {
    let mut lab = lab();
    lab.policy("web/all", everything(), Some(vec![]), None);

    lab.denies("db/c", "web/a", "80/tcp");
    lab.denies("db/c", "web/b", "80/tcp");
    lab.allows("web/a", "db/c", "80/tcp");
}

#[test]
fn empty_rule_list_denies_every_protocol() {
    let mut lab = lab();
    lab.policy("web/closed", everything(), Some(vec![]), None);

    for port in ["80/tcp", "53/udp", "9/sctp", "icmp", "gre"] {
        lab.denies("outside", "web/a", port);
    }
    assert_eq!(
        lab.reason(Direction::Ingress, "db/c", "web/a", "80/tcp"),
        "isolated in tier NetworkPolicy by NetworkPolicy web/closed; no rule matches"
    );
}

#[test]
fn rule_without_peers_and_ports_allows_all() {
    let mut lab = lab();
    lab.policy("web/closed", everything(), Some(vec![]), None);
    lab.policy(
        "web/open",
        selector("app=a"),
        Some(vec![accept(&[], &[])]),
        None,
    );

    for port in ["80/tcp", "53/udp", "9/sctp", "icmp", "gre"] {
        lab.allows("outside", "web/a", port);
    }
    lab.denies("outside", "web/b", "80/tcp");
    assert_eq!(
        lab.reason(Direction::Ingress, "db/c", "web/a", "80/tcp"),
        "Accept by rule 0 of NetworkPolicy web/open, tier NetworkPolicy"
    );
}

#[test]
fn policies_only_add() {
    let mut lab = lab();
    lab.policy(
        "web/1",
        everything(),
        Some(vec![accept(&[pods_in("", "app=c")], &["80/tcp"])]),
        None,
    );
    lab.policy(
        "web/2",
        everything(),
        Some(vec![accept(&[pods_in("", "app=d")], &["81/tcp"])]),
        None,
    );

    lab.allows("db/c", "web/a", "80/tcp");
    lab.denies("db/c", "web/a", "81/tcp");
    lab.denies("dev/d", "web/a", "80/tcp");
    lab.allows("dev/d", "web/a", "81/tcp");
}

#[test]
fn peer_and_port_of_one_rule_must_both_match() {
    let mut lab = lab();
    let rules = vec![
        accept(&[pods_in("", "app=c")], &["80/tcp"]),
        accept(&[pods_in("", "app=d")], &["53/udp"]),
    ];
    lab.policy("web/p", everything(), Some(rules), None);

    lab.allows("db/c", "web/a", "80/tcp");
    lab.denies("db/c", "web/a", "53/udp");
    lab.allows("dev/d", "web/a", "53/udp");
    lab.denies("dev/d", "web/a", "80/tcp");
}

#[test]
fn pod_selector_alone_means_the_own_namespace() {
    let mut lab = lab();
    lab.pod("db/b", "app=b");
    lab.policy(
        "web/p",
        selector("app=a"),
        Some(vec![accept(&[pods_of("web", "app=b")], &[])]),
        None,
    );

    lab.allows("web/b", "web/a", "80/tcp");
    lab.denies("db/b", "web/a", "80/tcp");
}

#[test]
fn namespace_selector_alone_means_all_its_pods() {
    let mut lab = lab();
    lab.policy(
        "web/p",
        selector("app=a"),
        Some(vec![accept(&[pods_in("env=prod", "")], &[])]),
        None,
    );

    lab.allows("web/b", "web/a", "80/tcp");
    lab.allows("db/c", "web/a", "80/tcp");
    lab.denies("dev/d", "web/a", "80/tcp");
}

#[test]
fn empty_namespace_selector_means_all_pods_and_nothing_else() {
    let mut lab = lab();
    lab.policy(
        "web/p",
        selector("app=a"),
        Some(vec![accept(&[pods_in("", "")], &[])]),
        None,
    );

    lab.allows("dev/d", "web/a", "80/tcp");
    lab.denies("outside", "web/a", "80/tcp");
    lab.denies("n2", "web/a", "80/tcp");
}

#[test]
fn both_selectors_in_one_peer_are_and_two_peers_are_or() {
    let mut lab = lab();
    let and = [pods_in("env=prod", "app=d")];
    let or = [pods_in("env=prod", ""), pods_of("dev", "app=d")];
    lab.policy(
        "web/and",
        selector("app=a"),
        Some(vec![accept(&and, &[])]),
        None,
    );
    lab.policy(
        "web/or",
        selector("app=b"),
        Some(vec![accept(&or, &[])]),
        None,
    );

    lab.denies("dev/d", "web/a", "80/tcp");
    lab.denies("db/c", "web/a", "80/tcp");
    lab.allows("dev/d", "web/b", "80/tcp");
    lab.allows("db/c", "web/b", "80/tcp");
}

#[test]
fn empty_peer_and_port_lists_of_the_model_match_nothing() {
    let mut lab = lab();
    let mut nobody = rule(towpath_core::model::Action::Accept, &[], &[]);
    nobody.peers = Peers::Of(vec![]);
    let mut no_port = nobody.clone();
    (no_port.peers, no_port.ports) = (Peers::Any, Ports::Of(vec![]));
    lab.policy("web/p", everything(), Some(vec![nobody, no_port]), None);

    lab.denies("db/c", "web/a", "80/tcp");
    lab.denies("outside", "web/a", "icmp");
}

#[test]
fn selector_operators() {
    let allowed = |text: &str| -> Vec<&str> {
        let mut lab = Lab::new();
        for (name, text) in [
            ("dev/a", "app=a"),
            ("dev/b", "app=b"),
            ("dev/none", "role=x"),
        ] {
            lab.pod(name, text);
        }
        lab.pod("web/server", "");
        lab.policy(
            "web/p",
            everything(),
            Some(vec![accept(&[pods_of("dev", text)], &[])]),
            None,
        );
        let is_allowed = |from: &&str| {
            lab.decide(from, "web/server", "80/tcp")[0]
                .verdict
                .to_string()
                == "allow"
        };
        ["dev/a", "dev/b", "dev/none"]
            .into_iter()
            .filter(is_allowed)
            .collect()
    };

    assert_eq!(allowed("app=a"), ["dev/a"]);
    assert_eq!(allowed("app in a|b"), ["dev/a", "dev/b"]);
    assert_eq!(allowed("app notin a"), ["dev/b", "dev/none"]);
    assert_eq!(allowed("app"), ["dev/a", "dev/b"]);
    assert_eq!(allowed("!app"), ["dev/none"]);
    assert_eq!(allowed("app,app notin b"), ["dev/a"]);
    assert_eq!(allowed(""), ["dev/a", "dev/b", "dev/none"]);
}

#[test]
fn namespace_name_label_selects_one_namespace() {
    let mut lab = lab();
    let peer = pods_in("kubernetes.io/metadata.name=db", "");
    lab.policy(
        "web/p",
        everything(),
        Some(vec![accept(&[peer], &[])]),
        None,
    );

    lab.allows("db/c", "web/a", "80/tcp");
    lab.denies("web/b", "web/a", "80/tcp");
}

#[test]
fn block_matches_outside_addresses_pods_and_nodes_alike() {
    let mut lab = lab();
    let blocks = [
        block("203.0.113.0/24", &[]),
        block("2001:db8::/32", &[]),
        block("10.244.0.0/16", &[]),
        block("fd00:10::/32", &[]),
        block("192.168.0.2/32", &[]),
        block("fd00:192::2/128", &[]),
    ];
    lab.policy(
        "web/p",
        everything(),
        Some(vec![accept(&blocks, &[])]),
        None,
    );

    lab.allows("outside", "web/a", "80/tcp");
    lab.allows("dev/d", "web/a", "80/tcp");
    lab.allows("n2", "web/a", "80/tcp");
    lab.denies("198.51.100.1", "web/a", "80/tcp");
    lab.denies("2001:db9::1", "web/a", "80/tcp");
}

#[test]
fn exception_is_a_hole_and_no_denial() {
    let mut lab = lab();
    let one = [
        block("203.0.113.0/24", &["203.0.113.0/25", "203.0.113.200/32"]),
        block("2001:db8::/32", &["2001:db8::/64", "2001:db8:1::/64"]),
    ];
    lab.policy(
        "web/one",
        selector("app=a"),
        Some(vec![accept(&one, &[])]),
        None,
    );
    lab.policy(
        "web/two",
        selector("app=b"),
        Some(vec![accept(&one, &[])]),
        None,
    );
    let other = [block("203.0.113.7/32", &[]), block("2001:db8::7/128", &[])];
    lab.policy(
        "web/other",
        selector("app=b"),
        Some(vec![accept(&other, &[])]),
        None,
    );

    lab.denies("outside", "web/a", "80/tcp");
    lab.allows("outside", "web/b", "80/tcp");
    lab.denies("203.0.113.127", "web/a", "80/tcp");
    lab.allows("203.0.113.128", "web/a", "80/tcp");
    lab.denies("203.0.113.200", "web/a", "80/tcp");
    lab.denies("2001:db8:1::1", "web/a", "80/tcp");
    lab.allows("2001:db8:2::1", "web/a", "80/tcp");
}

#[test]
fn block_of_one_family_never_matches_the_other() {
    let mut lab = lab();
    lab.policy(
        "web/v4",
        selector("app=a"),
        Some(vec![accept(&[block("0.0.0.0/0", &[])], &[])]),
        None,
    );
    lab.policy(
        "web/v6",
        selector("app=b"),
        Some(vec![accept(&[block("::/0", &[])], &[])]),
        None,
    );

    lab.allows("203.0.113.7", "web/a", "80/tcp");
    lab.denies("2001:db8::7", "web/a", "80/tcp");
    lab.denies("203.0.113.7", "web/b", "80/tcp");
    lab.allows("2001:db8::7", "web/b", "80/tcp");
}

#[test]
fn every_address_of_a_pod_counts() {
    let mut lab = lab();
    lab.pod_with("dev/many", "app=many", |pod| {
        pod.addresses = vec![ip("10.244.2.50"), ip("10.244.2.51"), ip("fd00:10:2::50")];
    });
    lab.policy(
        "web/p",
        selector("app=a"),
        Some(vec![accept(&[pods_in("", "app=many")], &[])]),
        None,
    );
    lab.policy("dev/p", selector("app=many"), Some(vec![]), None);

    lab.allows("dev/many", "web/a", "80/tcp");
    lab.denies("web/a", "dev/many", "80/tcp");
    assert_eq!(lab.decide("dev/many", "web/a", "80/tcp").len(), 3);
}

#[test]
fn host_network_pod_is_neither_subject_nor_peer() {
    let mut lab = lab();
    lab.pod_with("web/host", "app=host", |pod| {
        pod.host_network = true;
        pod.node = Some("n2".into());
        pod.addresses = vec![ip("192.168.0.2"), ip("fd00:192::2")];
    });
    lab.policy(
        "web/closed",
        selector("app=host"),
        Some(vec![]),
        Some(vec![]),
    );
    lab.policy(
        "web/p",
        selector("app=a"),
        Some(vec![accept(&[pods_in("", "app=host")], &[])]),
        None,
    );

    lab.allows("db/c", "web/host", "80/tcp");
    lab.allows("web/host", "db/c", "80/tcp");
    lab.denies("web/host", "web/a", "80/tcp");
    assert_eq!(
        lab.reason(Direction::Ingress, "db/c", "web/host", "80/tcp"),
        "not a pod or workload: not judged"
    );
}

#[test]
fn finished_pod_is_no_peer_and_leaves_its_address_to_the_next() {
    let mut lab = lab();
    lab.pod_with("web/done", "app=b", |pod| {
        pod.lifecycle = Lifecycle::Finished;
        pod.addresses = vec![ip("10.244.1.99"), ip("fd00:10:1::99")];
    });
    lab.policy(
        "web/p",
        selector("app=a"),
        Some(vec![accept(&[pods_of("web", "app=b")], &[])]),
        None,
    );
    lab.denies("10.244.1.99", "web/a", "80/tcp");

    lab.pod_with("dev/next", "app=next", |pod| {
        pod.addresses = vec![ip("10.244.1.99"), ip("fd00:10:1::99")];
    });

    lab.denies("dev/next", "web/a", "80/tcp");
    lab.allows("web/a", "dev/next", "80/tcp");
}

#[test]
fn own_node_reaches_its_pods_whatever_the_policy() {
    let mut lab = lab();
    lab.policy("web/closed", everything(), Some(vec![]), None);

    lab.allows("n1", "web/a", "80/tcp");
    lab.allows("n1", "web/a", "icmp");
    lab.denies("n2", "web/a", "80/tcp");
    assert_eq!(
        lab.reason(Direction::Ingress, "n1", "web/a", "80/tcp"),
        "node n1 reaches its own endpoints"
    );
}

#[test]
fn remote_node_is_judged_by_any_of_its_addresses() {
    let mut lab = lab();
    let blocks = [block("10.244.2.0/32", &[]), block("fd00:10:2::/128", &[])];
    lab.policy(
        "web/p",
        everything(),
        Some(vec![accept(&blocks, &[])]),
        None,
    );

    lab.allows("10.244.2.0", "web/a", "80/tcp");
    lab.allows("fd00:10:2::", "web/a", "80/tcp");
    lab.denies("192.168.0.2", "web/a", "80/tcp");
}

#[test]
fn egress_to_the_own_node_is_judged() {
    let mut lab = lab();
    lab.policy(
        "web/p",
        selector("app=a"),
        None,
        Some(vec![accept(&[], &["53/udp"])]),
    );

    lab.denies("web/a", "n1", "80/tcp");
    lab.allows("web/a", "n1", "53/udp");
}

#[test]
fn pod_reaching_itself_through_a_service_is_judged() {
    let mut lab = lab();
    lab.policy(
        "web/p",
        selector("app=a"),
        Some(vec![accept(&[pods_of("web", "app=b")], &[])]),
        None,
    );

    lab.denies("web/a", "web/a", "80/tcp");
    lab.allows("web/b", "web/b", "80/tcp");
}

#[test]
fn labels_of_pods_and_namespaces_are_read_anew() {
    let mut lab = lab();
    lab.policy(
        "web/p",
        selector("app=a"),
        Some(vec![accept(&[pods_in("env=prod", "app=d")], &[])]),
        None,
    );
    lab.denies("dev/d", "web/a", "80/tcp");

    lab.namespace("dev", "env=prod");
    lab.allows("dev/d", "web/a", "80/tcp");

    let mut pod = lab.endpoint("dev/d").clone();
    pod.labels = labels("app=other");
    lab.put(towpath_core::model::Object::Endpoint(pod));
    lab.denies("dev/d", "web/a", "80/tcp");
}
