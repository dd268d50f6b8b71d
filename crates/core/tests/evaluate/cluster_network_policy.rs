//! ClusterNetworkPolicy v1alpha2, row by row.

use towpath_core::model::{Direction, Tier};

use crate::lab::{Lab, accept, block, deny, everything, ip, nodes, pass, pods_in, selector};

/// `web/a` (app=a), `db/c` (app=c), `dev/d` (app=d).
fn lab() -> Lab {
    let mut lab = Lab::new();
    for (name, text) in [("web/a", "app=a"), ("db/c", "app=c"), ("dev/d", "app=d")] {
        lab.pod(name, text);
    }
    lab
}

#[test]
fn no_implicit_isolation() {
    let mut lab = lab();
    lab.cluster_policy(
        Tier::ADMIN,
        ("p", 1),
        everything(),
        Some(vec![]),
        Some(vec![]),
    );
    lab.cluster_policy(
        Tier::BASELINE,
        ("q", 1),
        everything(),
        Some(vec![]),
        Some(vec![]),
    );

    lab.allows("outside", "web/a", "80/tcp");
    lab.allows("web/a", "db/c", "icmp");
    assert_eq!(
        lab.reason(Direction::Ingress, "outside", "web/a", "80/tcp"),
        "no policy decides"
    );
}

#[test]
fn subject_selects_by_namespace() {
    let mut lab = lab();
    lab.cluster_policy(
        Tier::ADMIN,
        ("p", 1),
        selector("env=prod"),
        Some(vec![deny(&[], &[])]),
        None,
    );

    lab.denies("outside", "web/a", "80/tcp");
    lab.denies("outside", "db/c", "80/tcp");
    lab.allows("outside", "dev/d", "80/tcp");
}

#[test]
fn host_network_pod_is_never_selected() {
    let mut lab = lab();
    lab.pod_with("web/host", "", |pod| {
        pod.host_network = true;
        pod.addresses = vec![ip("192.168.0.2"), ip("fd00:192::2")];
    });
    lab.cluster_policy(
        Tier::ADMIN,
        ("p", 1),
        everything(),
        Some(vec![deny(&[], &[])]),
        Some(vec![deny(&[], &[])]),
    );

    lab.allows("web/host", "outside", "80/tcp");
    lab.allows("outside", "web/host", "80/tcp");
}

#[test]
fn admin_decides_before_network_policy() {
    let mut lab = lab();
    let rules = vec![
        accept(&[pods_in("", "app=c")], &["80/tcp"]),
        deny(&[pods_in("", "app=d")], &["80/tcp"]),
    ];
    lab.cluster_policy(
        Tier::ADMIN,
        ("admin", 1),
        selector("team=a"),
        Some(rules),
        None,
    );
    lab.policy(
        "web/p",
        everything(),
        Some(vec![accept(&[pods_in("", "app=d")], &[])]),
        None,
    );

    lab.allows("db/c", "web/a", "80/tcp");
    lab.denies("db/c", "web/a", "81/tcp");
    lab.denies("dev/d", "web/a", "80/tcp");
    lab.allows("dev/d", "web/a", "81/tcp");
    assert_eq!(
        lab.reason(Direction::Ingress, "dev/d", "web/a", "80/tcp"),
        "Deny by rule 1 of ClusterNetworkPolicy admin, tier Admin"
    );
}

#[test]
fn admin_pass_leaves_the_tier_to_network_policy() {
    let mut lab = lab();
    lab.cluster_policy(
        Tier::ADMIN,
        ("1-pass", 1),
        everything(),
        Some(vec![
            pass(&[pods_in("", "app=c")], &[]),
            deny(&[pods_in("", "app=c")], &[]),
        ]),
        None,
    );
    lab.cluster_policy(
        Tier::ADMIN,
        ("2-deny", 2),
        everything(),
        Some(vec![deny(&[], &[])]),
        None,
    );
    lab.policy(
        "web/p",
        everything(),
        Some(vec![accept(&[], &["80/tcp"])]),
        None,
    );

    lab.allows("db/c", "web/a", "80/tcp");
    lab.denies("db/c", "web/a", "81/tcp");
    lab.denies("dev/d", "web/a", "80/tcp");
}

#[test]
fn admin_pass_reaches_baseline_where_no_network_policy_selects() {
    let mut lab = lab();
    lab.cluster_policy(
        Tier::ADMIN,
        ("pass", 1),
        everything(),
        Some(vec![pass(&[], &[])]),
        None,
    );
    lab.cluster_policy(
        Tier::ADMIN,
        ("deny", 2),
        everything(),
        Some(vec![deny(&[], &[])]),
        None,
    );
    let rules = vec![deny(&[pods_in("", "app=c")], &[])];
    lab.cluster_policy(Tier::BASELINE, ("base", 1), everything(), Some(rules), None);

    lab.denies("db/c", "web/a", "80/tcp");
    lab.allows("dev/d", "web/a", "80/tcp");
}

#[test]
fn network_policy_that_selects_the_pod_decides_finally() {
    let mut lab = lab();
    lab.policy(
        "web/p",
        everything(),
        Some(vec![accept(&[], &["80/tcp"])]),
        None,
    );
    let rules = vec![deny(&[], &["80/tcp"]), accept(&[], &[])];
    lab.cluster_policy(
        Tier::BASELINE,
        ("base", 1),
        everything(),
        Some(rules.clone()),
        Some(rules),
    );

    lab.allows("outside", "web/a", "80/tcp");
    lab.denies("outside", "web/a", "81/tcp");
    lab.denies("web/a", "outside", "80/tcp");
    lab.allows("web/a", "outside", "81/tcp");
}

#[test]
fn baseline_decides_where_nothing_else_does() {
    let mut lab = lab();
    let rules = vec![accept(&[pods_in("env=prod", "")], &[]), deny(&[], &[])];
    lab.cluster_policy(Tier::BASELINE, ("base", 1), everything(), Some(rules), None);

    lab.allows("db/c", "web/a", "80/tcp");
    lab.denies("dev/d", "web/a", "80/tcp");
    lab.denies("outside", "web/a", "icmp");
}

#[test]
fn baseline_pass_allows() {
    let mut lab = lab();
    let rules = vec![pass(&[pods_in("", "app=c")], &[]), deny(&[], &[])];
    lab.cluster_policy(Tier::BASELINE, ("base", 1), everything(), Some(rules), None);

    lab.allows("db/c", "web/a", "80/tcp");
    lab.denies("dev/d", "web/a", "80/tcp");
}

#[test]
fn lower_priority_number_goes_first_and_ties_go_by_name() {
    let mut lab = lab();
    lab.cluster_policy(
        Tier::ADMIN,
        ("a-late", 9),
        everything(),
        Some(vec![deny(&[], &[])]),
        None,
    );
    lab.cluster_policy(
        Tier::ADMIN,
        ("z-early", 0),
        everything(),
        Some(vec![accept(&[], &["80/tcp"])]),
        None,
    );
    lab.cluster_policy(
        Tier::ADMIN,
        ("b", 5),
        everything(),
        Some(vec![deny(&[], &["81/tcp"])]),
        None,
    );
    lab.cluster_policy(
        Tier::ADMIN,
        ("a", 5),
        everything(),
        Some(vec![accept(&[], &["81/tcp"])]),
        None,
    );

    lab.allows("outside", "web/a", "80/tcp");
    lab.allows("outside", "web/a", "81/tcp");
    lab.denies("outside", "web/a", "82/tcp");
}

#[test]
fn first_matching_rule_of_a_policy_decides() {
    let mut lab = lab();
    let rules = vec![
        accept(&[pods_in("", "app=c")], &["80/tcp"]),
        deny(&[pods_in("", "app=c")], &[]),
        accept(&[], &[]),
    ];
    lab.cluster_policy(Tier::ADMIN, ("p", 1), selector("team=a"), Some(rules), None);

    lab.allows("db/c", "web/a", "80/tcp");
    lab.denies("db/c", "web/a", "81/tcp");
    lab.allows("dev/d", "web/a", "81/tcp");
}

#[test]
fn directions_are_judged_apart() {
    let mut lab = lab();
    lab.cluster_policy(
        Tier::ADMIN,
        ("p", 1),
        selector("team=a"),
        None,
        Some(vec![deny(&[], &[])]),
    );

    lab.denies("web/a", "db/c", "80/tcp");
    lab.allows("db/c", "web/a", "80/tcp");
}

#[test]
fn networks_match_pods_inside_and_every_protocol() {
    let mut lab = lab();
    let peers = [
        block("10.244.0.0/16", &[]),
        block("fd00:10::/32", &[]),
        block("203.0.113.0/24", &[]),
    ];
    lab.cluster_policy(
        Tier::ADMIN,
        ("p", 1),
        selector("team=a"),
        None,
        Some(vec![deny(&peers, &[])]),
    );

    lab.denies("web/a", "db/c", "80/tcp");
    lab.denies("web/a", "db/c", "icmp");
    lab.denies("web/a", "203.0.113.9", "gre");
    lab.allows("web/a", "2001:db8::7", "80/tcp");
    lab.allows("web/a", "n2", "80/tcp");
}

#[test]
fn nodes_match_the_addresses_of_selected_nodes_only() {
    let mut lab = lab();
    lab.cluster_policy(
        Tier::ADMIN,
        ("p", 1),
        selector("team=a"),
        None,
        Some(vec![deny(&[nodes("name=n2")], &[])]),
    );

    lab.denies("web/a", "n2", "80/tcp");
    lab.denies("web/a", "10.244.2.0", "80/tcp");
    lab.allows("web/a", "n1", "80/tcp");
    lab.allows("web/a", "outside", "80/tcp");
    lab.allows("web/a", "db/c", "80/tcp");
}

#[test]
fn host_network_pod_is_reached_by_nodes_and_never_by_pods() {
    let mut lab = lab();
    lab.pod_with("web/host", "app=host", |pod| {
        pod.host_network = true;
        pod.addresses = vec![ip("192.168.0.2"), ip("fd00:192::2")];
    });
    let rules = vec![
        deny(&[pods_in("", "app=host")], &["80/tcp"]),
        deny(&[nodes("name=n2")], &["81/tcp"]),
    ];
    lab.cluster_policy(Tier::ADMIN, ("p", 1), everything(), None, Some(rules));

    lab.allows("web/a", "web/host", "80/tcp");
    lab.denies("web/a", "web/host", "81/tcp");
}

#[test]
fn named_port_without_protocol_takes_each_the_pod_declares() {
    let mut lab = Lab::new();
    lab.server("web/a", "", &["dns=53/udp", "dns=53/tcp", "dns=5353/sctp"]);
    lab.pod("db/c", "");
    lab.cluster_policy(
        Tier::ADMIN,
        ("p", 1),
        everything(),
        Some(vec![deny(&[], &["dns"])]),
        None,
    );
    lab.cluster_policy(
        Tier::ADMIN,
        ("q", 1),
        selector("!team"),
        None,
        Some(vec![deny(&[pods_in("", "")], &["dns"])]),
    );

    for port in ["53/udp", "53/tcp", "5353/sctp"] {
        lab.denies("outside", "web/a", port);
        lab.denies("db/c", "web/a", port);
    }
    for port in ["53/sctp", "5353/udp", "icmp"] {
        lab.allows("outside", "web/a", port);
        lab.allows("db/c", "web/a", port);
    }
}

#[test]
fn rule_without_protocols_decides_every_protocol() {
    let mut lab = lab();
    lab.cluster_policy(
        Tier::ADMIN,
        ("p", 1),
        everything(),
        Some(vec![accept(&[pods_in("", "app=c")], &[])]),
        None,
    );
    lab.policy("web/closed", everything(), Some(vec![]), None);

    for port in ["80/tcp", "53/udp", "9/sctp", "icmp", "gre"] {
        lab.allows("db/c", "web/a", port);
        lab.denies("dev/d", "web/a", port);
    }
}

#[test]
fn hairpin_is_subject_to_policy() {
    let mut lab = lab();
    lab.cluster_policy(
        Tier::ADMIN,
        ("p", 1),
        everything(),
        Some(vec![deny(&[pods_in("", "")], &[])]),
        None,
    );

    lab.denies("web/a", "web/a", "80/tcp");
}
