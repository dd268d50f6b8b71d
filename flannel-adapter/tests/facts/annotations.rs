use std::collections::BTreeMap;

use flannel_adapter::annotations::{AnnotationNames, DEFAULT_PREFIX, NodeRecord};
use flannel_adapter::backend::BackendType;
use flannel_adapter::{Addresses, NodeFacts, NodeKey, Vtep};
use smol_str::SmolStr;

use crate::{address, faults, networks};

/// A record with annotations under the usual prefix.
pub(crate) fn record(name: &str, pod_cidrs: &[&str], annotations: &[(&str, &str)]) -> NodeRecord {
    let annotations: BTreeMap<SmolStr, SmolStr> = annotations
        .iter()
        .map(|(name, value)| {
            (
                format!("{DEFAULT_PREFIX}/{name}").into(),
                SmolStr::new(value),
            )
        })
        .collect();
    NodeRecord {
        name: name.into(),
        annotations,
        pod_cidrs: pod_cidrs.iter().map(SmolStr::new).collect(),
        addresses: Vec::new(),
    }
}

pub(crate) const DATA: &str = r#"{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}"#;

#[test]
fn reads_a_node_of_vxlan() {
    let record = NodeRecord {
        addresses: vec![address("192.168.77.1"), address("0.0.0.0")],
        ..record(
            "n1",
            &["10.244.1.0/24"],
            &[
                ("kube-subnet-manager", "true"),
                ("backend-type", "vxlan"),
                ("backend-data", DATA),
                ("public-ip", "192.168.77.1"),
            ],
        )
    };

    let facts = AnnotationNames::default().read(&record).whole().unwrap();

    assert_eq!(
        facts,
        NodeFacts {
            is_managed: true,
            backend: Some(BackendType::Vxlan),
            pod_networks: networks(&["10.244.1.0/24"]),
            public: Addresses {
                ipv4: Some([192, 168, 77, 1].into()),
                ipv6: None
            },
            vtep: Some(Vtep {
                vni: 1,
                mac: "02:00:00:00:00:01".parse().unwrap()
            }),
            addresses: [address("192.168.77.1")].into(),
            ..NodeFacts::new(NodeKey::Node("n1".into()))
        }
    );
}

#[test]
fn ipv6_first_and_ipv6_only_are_read_alike() {
    let both = [
        ("kube-subnet-manager", "true"),
        ("backend-type", "vxlan"),
        ("backend-v6-data", DATA),
        ("backend-data", DATA),
        ("public-ipv6", "2001:db8::1"),
        ("public-ip", "192.0.2.1"),
    ];
    let names = AnnotationNames::default();

    let first = names
        .read(&record("n1", &["fd00:1::/64", "10.244.1.0/24"], &both))
        .whole()
        .unwrap();
    let last = names
        .read(&record("n1", &["10.244.1.0/24", "fd00:1::/64"], &both))
        .whole()
        .unwrap();
    let only = record(
        "n1",
        &["fd00:1::/64"],
        &[
            ("kube-subnet-manager", "true"),
            ("backend-type", "vxlan"),
            ("backend-data", "null"),
            ("backend-v6-data", DATA),
            ("public-ipv6", "2001:db8::1"),
        ],
    );
    let only = names.read(&only).whole().unwrap();

    assert_eq!(first, last);
    assert_eq!(only.pod_networks, networks(&["fd00:1::/64"]));
    assert_eq!((only.vtep, only.vtep_v6.is_some()), (None, true));
    assert_eq!(
        only.host_identities(true),
        [
            address("2001:db8::1"),
            address("fd00:1::"),
            address("fd00:1::1")
        ]
        .into()
    );
}

#[test]
fn a_node_without_the_mark_has_pod_networks_only() {
    let record = record(
        "n1",
        &["10.244.1.0/24"],
        &[("backend-type", "vxlan"), ("public-ip", "192.0.2.1")],
    );

    let facts = AnnotationNames::default().read(&record).whole().unwrap();

    assert_eq!((facts.is_managed, facts.backend), (false, None));
    assert_eq!(facts.pod_networks, networks(&["10.244.1.0/24"]));
    assert_eq!(facts.public, Addresses::default());
}

#[test]
fn first_addresses_are_hosts_with_vxlan_and_a_bridge_only() {
    let read = |backend: &str| {
        let record = record(
            "n1",
            &["10.244.1.0/24"],
            &[
                ("kube-subnet-manager", "true"),
                ("backend-type", backend),
                ("backend-data", DATA),
                ("public-ip", "192.0.2.1"),
            ],
        );
        AnnotationNames::default().read(&record).whole().unwrap()
    };
    let public = address("192.0.2.1");

    let first_two = [public, address("10.244.1.0"), address("10.244.1.1")];
    assert_eq!(read("vxlan").host_identities(true), first_two.into());
    assert_eq!(read("vxlan").host_identities(false), [public].into());
    assert_eq!(read("host-gw").host_identities(true), [public].into());
}

#[test]
fn a_network_of_one_address_has_no_second_one() {
    let record = record(
        "n1",
        &["255.255.255.255/32"],
        &[
            ("kube-subnet-manager", "true"),
            ("backend-type", "vxlan"),
            ("backend-data", DATA),
        ],
    );

    let facts = AnnotationNames::default().read(&record).whole().unwrap();

    assert_eq!(
        facts.host_identities(true),
        [address("255.255.255.255")].into()
    );
}

#[test]
fn prefixes_are_formed_as_flannel_forms_them() {
    let name = |prefix: &str| AnnotationNames::new(prefix).map(|names| names.of("public-ip"));

    assert_eq!(
        name("flannel.alpha.coreos.com").unwrap(),
        "flannel.alpha.coreos.com/public-ip"
    );
    assert_eq!(name("example.com/").unwrap(), "example.com/public-ip");
    assert_eq!(
        name("example.com/blue").unwrap(),
        "example.com/blue-public-ip"
    );
    assert_eq!(
        name("example.com/blue-").unwrap(),
        "example.com/blue-public-ip"
    );
    for bad in [
        "",
        "flannel",
        "Example.com",
        "a.b/c/d",
        "a..b",
        "a b.c",
        "/x",
    ] {
        assert!(
            name(bad)
                .unwrap_err()
                .to_string()
                .contains("--kube-annotation-prefix"),
            "{bad}"
        );
    }
}

#[test]
fn each_bad_annotation_is_named_and_the_others_count() {
    let record = record(
        "n1",
        &["10.244.1.0/24", "nonsense", "10.244.2.0/24"],
        &[
            ("kube-subnet-manager", "true"),
            ("backend-type", "vxlan"),
            ("backend-data", r#"{"VNI":1,"VtepMAC":"ff:ff:ff:ff:ff:ff"}"#),
            ("backend-v6-data", "{"),
            ("public-ip", "2001:db8::1"),
            ("public-ipv6", "2001:db8::2"),
        ],
    );

    let parsed = AnnotationNames::default().read(&record);

    assert_eq!(
        faults(&parsed),
        [
            r#"Node n1: spec.podCIDRs is "nonsense"; write a network; the controller manager gives it out"#,
            "Node n1: spec.podCIDRs stands there twice; keep one",
            r#"Node n1: flannel.alpha.coreos.com/public-ip is "2001:db8::1"; write an IPv4 address of the node"#,
            r#"Node n1 flannel.alpha.coreos.com/backend-data: VtepMAC is "ff:ff:ff:ff:ff:ff"; write a hardware address such as 02:00:00:00:00:01"#,
            r#"Node n1 flannel.alpha.coreos.com/backend-v6-data: the document is "broken at line 1 column 1"; write valid JSON"#,
        ]
    );
    assert_eq!(parsed.value.pod_networks, networks(&["10.244.1.0/24"]));
    assert_eq!(
        parsed.value.public.ipv6,
        Some("2001:db8::2".parse().unwrap())
    );
}
