//! Protocols, ports, ranges and named ports of NetworkPolicy v1, row by row.

use crate::lab::{Lab, accept, block, everything, nodes, pods_in, selector};

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
fn protocols_are_told_apart() {
    let mut lab = lab();
    let ports = ["80/tcp", "53/udp", "9/sctp"];
    lab.policy("web/p", everything(), Some(vec![accept(&[], &ports)]), None);

    for number in [80, 53, 9] {
        for protocol in ["tcp", "udp", "sctp"] {
            let port = format!("{number}/{protocol}");
            if ports.contains(&port.as_str()) {
                lab.allows("outside", "web/a", &port);
            } else {
                lab.denies("outside", "web/a", &port);
            }
        }
    }
}

#[test]
fn port_left_out_means_all_ports_of_the_protocol_only() {
    let mut lab = lab();
    lab.policy(
        "web/p",
        everything(),
        Some(vec![accept(&[], &["/udp"])]),
        None,
    );

    for port in ["0/udp", "1/udp", "65535/udp"] {
        lab.allows("outside", "web/a", port);
    }
    lab.denies("outside", "web/a", "53/tcp");
    lab.denies("outside", "web/a", "icmp");
}

#[test]
fn end_port_is_inclusive() {
    let mut lab = lab();
    lab.policy(
        "web/p",
        everything(),
        Some(vec![accept(&[], &["8000-8002/tcp", "65535/tcp"])]),
        None,
    );

    for (port, is_allowed) in [
        (7999, false),
        (8000, true),
        (8001, true),
        (8002, true),
        (8003, false),
        (65534, false),
        (65535, true),
    ] {
        let port = format!("{port}/tcp");
        if is_allowed {
            lab.allows("outside", "web/a", &port);
        } else {
            lab.denies("outside", "web/a", &port);
        }
    }
}

#[test]
fn other_protocols_pass_only_by_rules_without_ports() {
    let mut lab = lab();
    lab.policy(
        "web/ports",
        selector("app=a"),
        Some(vec![accept(&[], &["/tcp", "/udp", "/sctp"])]),
        None,
    );
    lab.policy(
        "web/plain",
        selector("app=b"),
        Some(vec![accept(&[pods_in("", "app=c")], &[])]),
        None,
    );

    for port in ["icmp", "gre"] {
        lab.denies("db/c", "web/a", port);
        lab.allows("db/c", "web/b", port);
        lab.denies("dev/d", "web/b", port);
    }
}

#[test]
fn named_port_on_ingress_is_the_selected_pods_own() {
    let mut lab = Lab::new();
    lab.server("web/a", "", &["http=80/tcp"]);
    lab.server("web/b", "", &["http=8080/tcp"]);
    lab.server("db/c", "", &["http=443/tcp"]);
    lab.policy(
        "web/p",
        everything(),
        Some(vec![accept(&[], &["http/tcp"])]),
        None,
    );

    for from in ["db/c", "outside", "n2"] {
        lab.allows(from, "web/a", "80/tcp");
        lab.denies(from, "web/a", "8080/tcp");
        lab.allows(from, "web/b", "8080/tcp");
        lab.denies(from, "web/b", "80/tcp");
        lab.denies(from, "web/a", "443/tcp");
    }
}

#[test]
fn named_port_on_ingress_is_resolved_whatever_the_peer() {
    let mut lab = Lab::new();
    lab.server("web/a", "", &["http=80/tcp"]);
    lab.pod("db/c", "");
    let blocks = [block("203.0.113.0/24", &[]), block("2001:db8::/32", &[])];
    lab.policy(
        "web/p",
        everything(),
        Some(vec![accept(&blocks, &["http/tcp"])]),
        None,
    );

    lab.allows("outside", "web/a", "80/tcp");
    lab.denies("outside", "web/a", "81/tcp");
    lab.denies("db/c", "web/a", "80/tcp");
}

#[test]
fn named_port_on_egress_is_each_destinations_own() {
    let mut lab = Lab::new();
    lab.pod("web/a", "");
    lab.server("db/b", "", &["http=80/tcp"]);
    lab.server("db/c", "", &["http=8080/tcp"]);
    lab.server("dev/d", "", &["http=80/tcp"]);
    lab.policy(
        "web/p",
        everything(),
        None,
        Some(vec![accept(&[pods_in("env=prod", "")], &["http/tcp"])]),
    );

    lab.allows("web/a", "db/b", "80/tcp");
    lab.denies("web/a", "db/b", "8080/tcp");
    lab.allows("web/a", "db/c", "8080/tcp");
    lab.denies("web/a", "db/c", "80/tcp");
    lab.denies("web/a", "dev/d", "80/tcp");
}

#[test]
fn named_port_on_egress_to_anybody_means_any_destination_pod() {
    let mut lab = Lab::new();
    lab.pod("web/a", "");
    lab.server("dev/d", "", &["http=80/tcp"]);
    lab.policy(
        "web/p",
        everything(),
        None,
        Some(vec![accept(&[], &["http/tcp"])]),
    );

    lab.allows("web/a", "dev/d", "80/tcp");
    lab.denies("web/a", "dev/d", "81/tcp");
    lab.denies("web/a", "outside", "80/tcp");
    lab.denies("web/a", "n2", "80/tcp");
}

#[test]
fn named_port_on_egress_never_counts_with_blocks_or_nodes() {
    let mut lab = Lab::new();
    lab.pod("web/a", "");
    lab.server("dev/d", "", &["http=80/tcp"]);
    let peers = [block("0.0.0.0/0", &[]), block("::/0", &[]), nodes("")];
    lab.policy(
        "web/p",
        everything(),
        None,
        Some(vec![accept(&peers, &["http/tcp", "53/udp"])]),
    );

    lab.denies("web/a", "dev/d", "80/tcp");
    lab.denies("web/a", "outside", "80/tcp");
    lab.denies("web/a", "n2", "80/tcp");
    lab.allows("web/a", "dev/d", "53/udp");
    lab.allows("web/a", "n2", "53/udp");
}

#[test]
fn named_port_matches_name_and_protocol() {
    let mut lab = Lab::new();
    lab.server(
        "web/a",
        "",
        &["dns=53/udp", "dns=5353/tcp", "dns=5354/tcp", "other=99/tcp"],
    );
    lab.policy(
        "web/p",
        everything(),
        Some(vec![accept(&[], &["dns/tcp"])]),
        None,
    );

    lab.allows("outside", "web/a", "5353/tcp");
    lab.allows("outside", "web/a", "5354/tcp");
    lab.denies("outside", "web/a", "53/udp");
    lab.denies("outside", "web/a", "53/tcp");
    lab.denies("outside", "web/a", "5353/udp");
    lab.denies("outside", "web/a", "99/tcp");
}

#[test]
fn named_port_that_nobody_serves_matches_nothing_and_still_isolates() {
    let mut lab = Lab::new();
    lab.server("web/a", "", &["http=80/tcp"]);
    lab.pod("web/b", "");
    lab.policy(
        "web/p",
        everything(),
        Some(vec![accept(&[], &["metrics/tcp"])]),
        None,
    );

    lab.denies("outside", "web/a", "80/tcp");
    lab.denies("outside", "web/b", "80/tcp");
}
