//! What a Node object claims, and what is believed of it: whose claim it is must never open anything.

use std::net::IpAddr;

use towpath_core::evaluate::{Evaluator, Flow};
use towpath_core::model::{Direction, Node, Object, ObjectKey, Tier, Update, Verdict};

use crate::lab::{Lab, accept, block, deny, everything, ip, nodes, pods_of};

/// `web/a`, isolated but for nodes with `infra=yes`; node `edge` has that label.
fn lab(change: impl FnOnce(&mut Node)) -> Lab {
    let mut lab = Lab::new();
    lab.pod("web/a", "app=a");
    lab.cluster_policy(
        Tier::ADMIN,
        ("p", 1),
        everything(),
        Some(vec![
            accept(&[nodes("infra=yes")], &[]),
            deny(&[block("0.0.0.0/0", &[]), block("::/0", &[])], &[]),
        ]),
        None,
    );
    edge(&mut lab, change);
    lab
}

fn edge(lab: &mut Lab, change: impl FnOnce(&mut Node)) {
    let mut node = Node {
        name: "edge".into(),
        labels: [("infra", "yes")].into_iter().collect(),
        addresses: vec![ip("192.168.0.9")],
        pod_cidrs: vec!["10.244.9.0/24".parse().expect("a block")],
        ..Node::default()
    };
    change(&mut node);
    lab.put(Object::Node(node));
}

fn reaches(lab: &Lab, from: &str) -> bool {
    let evaluator = Evaluator::new(&lab.cluster);
    let (from, to): (IpAddr, _) = (ip(from), lab.addresses("web/a"));
    let to = to
        .into_iter()
        .find(|to| to.is_ipv4() == from.is_ipv4())
        .expect("an address of each family");
    let flow = Flow {
        source: from,
        destination: to,
        protocol: 6,
        port: Some(80),
    };
    let decision = evaluator.judge(Direction::Ingress, &flow);
    decision.verdict == Verdict::Allow
}

#[test]
fn what_a_node_lists_outside_of_pod_networks_is_its_own() {
    let lab = lab(|_| ());

    assert!(reaches(&lab, "192.168.0.9"));
    assert!(!reaches(&lab, "192.168.0.8"));
}

#[test]
fn what_a_node_lists_in_a_pod_network_of_any_node_is_not() {
    let listed = ["10.244.2.77", "10.244.9.5", "fd00:10:2::77"];
    let lab = lab(|node| node.addresses.extend(listed.map(ip)));

    for address in listed {
        assert!(!reaches(&lab, address), "{address}");
    }
}

#[test]
fn a_pod_network_that_appears_takes_listed_addresses_with_it() {
    let mut lab = lab(|node| node.addresses.push(ip("10.244.77.7")));
    assert!(reaches(&lab, "10.244.77.7"));

    lab.put(Object::Node(Node {
        name: "late".into(),
        pod_cidrs: vec!["10.244.64.0/18".parse().unwrap()],
        ..Node::default()
    }));

    assert!(!reaches(&lab, "10.244.77.7"));
}

#[test]
fn what_the_kernel_shows_is_believed_in_a_pod_network_too() {
    let lab = lab(|node| node.observed.push(ip("10.244.9.1")));

    assert!(reaches(&lab, "10.244.9.1"));
    assert!(!reaches(&lab, "10.244.9.0"));
}

#[test]
fn the_first_two_addresses_are_a_nodes_only_with_its_tunnel() {
    let without = lab(|_| ());
    let with = lab(|node| node.tunnel_cidrs = node.pod_cidrs.clone());

    for address in ["10.244.9.0", "10.244.9.1"] {
        assert!(!reaches(&without, address), "{address}");
        assert!(reaches(&with, address), "{address}");
    }
    assert!(!reaches(&with, "10.244.9.2"));
}

#[test]
fn the_first_two_addresses_of_a_disputed_network_are_nobodys() {
    for other in [
        "10.244.9.0/24",
        "10.244.9.128/25",
        "10.244.8.0/23",
        "10.0.0.0/8",
    ] {
        let mut lab = lab(|node| node.tunnel_cidrs = node.pod_cidrs.clone());
        lab.put(Object::Node(Node {
            name: "other".into(),
            pod_cidrs: vec![other.parse().unwrap()],
            ..Node::default()
        }));

        assert!(!reaches(&lab, "10.244.9.0"), "{other}");
        assert!(!reaches(&lab, "10.244.9.1"), "{other}");
        assert!(reaches(&lab, "192.168.0.9"), "{other}");

        let key = ObjectKey::Node("other".into());
        lab.cluster.apply(Update::Remove(key));

        assert!(reaches(&lab, "10.244.9.1"), "{other}, gone");
    }
}

/// `web/a` may be reached by anybody but nodes with `infra=yes`.
fn closed_to_edge(change: impl FnOnce(&mut Node)) -> Lab {
    let mut lab = Lab::new();
    lab.pod("web/a", "app=a");
    let rules = vec![deny(&[nodes("infra=yes")], &[])];
    lab.cluster_policy(Tier::ADMIN, ("p", 1), everything(), Some(rules), None);
    edge(&mut lab, change);
    lab
}

#[test]
fn a_claim_that_is_not_believed_still_closes() {
    let mut lab = closed_to_edge(|node| {
        node.addresses.push(ip("10.244.2.77"));
        node.tunnel_cidrs = node.pod_cidrs.clone();
    });
    for cidr in ["192.168.0.0/16", "10.244.9.0/30", "0.0.0.0/0"] {
        lab.put(Object::Node(Node {
            name: "other".into(),
            pod_cidrs: vec![cidr.parse().expect("a block")],
            ..Node::default()
        }));

        for address in ["192.168.0.9", "10.244.9.0", "10.244.9.1", "10.244.2.77"] {
            assert!(!reaches(&lab, address), "{address} beside {cidr}");
        }
        assert!(reaches(&lab, "192.0.2.1"), "nobody claims it");
    }
}

#[test]
fn a_pod_that_a_node_lists_keeps_what_pods_may() {
    let mut lab = closed_to_edge(|node| {
        node.labels = [("infra", "no")].into_iter().collect();
        node.addresses.push(ip("10.244.2.77"));
    });
    lab.cluster_policy(
        Tier::ADMIN,
        ("first", 0),
        everything(),
        Some(vec![
            accept(&[pods_of("dev", "app=b")], &[]),
            deny(&[block("10.0.0.0/8", &[])], &[]),
        ]),
        None,
    );
    assert!(!reaches(&lab, "10.244.2.77"));
    lab.pod_with("dev/b", "app=b", |pod| {
        pod.node = Some("n2".into());
        pod.addresses = vec![ip("10.244.2.77")];
    });

    assert!(reaches(&lab, "10.244.2.77"));
}

#[test]
fn a_pod_cidr_of_one_address_takes_no_address_of_another_node() {
    for (cidr, taken) in [
        ("192.168.0.2/32", "192.168.0.2"),
        ("192.168.0.0/30", "192.168.0.1"),
    ] {
        let lab = lab(|node| {
            node.pod_cidrs = vec![cidr.parse().expect("a block")];
            node.tunnel_cidrs = node.pod_cidrs.clone();
        });

        assert!(!reaches(&lab, taken), "{cidr}");
    }
}

#[test]
fn an_address_that_a_pod_and_a_node_claim_must_be_allowed_as_both() {
    let mut lab = lab(|_| ());
    lab.pod_with("dev/b", "app=b", |pod| {
        pod.node = Some("n2".into());
        pod.addresses = vec![ip("192.168.0.9")];
    });

    assert!(!reaches(&lab, "192.168.0.9"), "the pod may not");

    lab.cluster_policy(
        Tier::ADMIN,
        ("first", 0),
        everything(),
        Some(vec![accept(&[pods_of("dev", "app=b")], &[])]),
        None,
    );
    assert!(reaches(&lab, "192.168.0.9"), "both may");

    edge(&mut lab, |node| {
        node.labels = [("infra", "no")].into_iter().collect();
    });
    assert!(!reaches(&lab, "192.168.0.9"), "the node may not");
}

#[test]
fn an_address_of_two_nodes_must_be_allowed_as_both() {
    let mut lab = lab(|_| ());
    lab.put(Object::Node(Node {
        name: "twin".into(),
        addresses: vec![ip("192.168.0.9")],
        ..Node::default()
    }));

    assert!(!reaches(&lab, "192.168.0.9"));
}

#[test]
fn a_pod_with_its_nodes_address_is_not_taken_for_the_node() {
    let mut lab = lab(|_| ());
    lab.pod_with("dev/b", "app=b", |pod| {
        pod.node = Some("n2".into());
        pod.addresses = vec![ip("192.168.0.1")];
    });
    let evaluator = Evaluator::new(&lab.cluster);
    for flow in lab.flows("dev/b", "web/a", "80/tcp") {
        assert_eq!(evaluator.verdict(&flow), Verdict::Deny, "{flow:?}");
    }
}
