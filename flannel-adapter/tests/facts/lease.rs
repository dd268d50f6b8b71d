use flannel_adapter::backend::BackendType;
use flannel_adapter::lease::{Key, KeyNames, read};
use flannel_adapter::{Addresses, NodeFacts, NodeKey, Vtep};

use crate::{faults, networks};

#[test]
fn keys_are_known_under_any_prefix() {
    let names = KeyNames::new("/my/net/");

    assert_eq!(names.config(), "/my/net/config");
    assert_eq!(names.classify("/my/net/config"), Ok(Key::Config));
    assert_eq!(
        names.classify("/my/net/subnets/10.5.34.0-24"),
        Ok(Key::Subnet(networks(&["10.5.34.0/24"])))
    );
    assert_eq!(
        names.classify("/my/net/subnets/10.5.34.0-24&fd00:5:34::-64"),
        Ok(Key::Subnet(networks(&["10.5.34.0/24", "fd00:5:34::/64"])))
    );
    assert_eq!(names.classify("/my/net/other"), Ok(Key::Other));
    assert_eq!(names.classify("/coreos.com/network/config"), Ok(Key::Other));
}

#[test]
fn keys_that_are_no_subnets_are_named() {
    let names = KeyNames::default();
    let bad = [
        "",
        "x",
        "10.5.34.0",
        "10.5.34.0-33",
        "-24",
        "10.5.34.0-24&",
        "10.5.34.0-24&fd00::-129",
        "fd00::-64",
    ];

    for name in bad {
        let fault = names
            .classify(&format!("{}{name}", names.subnets()))
            .unwrap_err();

        assert!(
            fault.to_string().contains("a key among the subnets"),
            "{fault}"
        );
    }
}

#[test]
fn reads_a_lease_of_both_families() {
    let subnets = networks(&["10.5.34.0/24", "fd00:5:34::/64"]);
    let value = r#"{"PublicIP":"192.0.2.7","PublicIPv6":"2001:db8::7","BackendType":"vxlan",
        "BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:07"},"BackendV6Data":{"VNI":1,"VtepMAC":"02:00:00:00:00:08"}}"#;
    let vtep = |mac: &str| {
        Some(Vtep {
            vni: 1,
            mac: mac.parse().unwrap(),
        })
    };

    let facts = read(subnets, value).whole().unwrap();

    assert_eq!(
        facts,
        NodeFacts {
            is_managed: true,
            backend: Some(BackendType::Vxlan),
            pod_networks: subnets,
            public: Addresses {
                ipv4: Some([192, 0, 2, 7].into()),
                ipv6: Some("2001:db8::7".parse().unwrap())
            },
            vtep: vtep("02:00:00:00:00:07"),
            vtep_v6: vtep("02:00:00:00:00:08"),
            ..NodeFacts::new(NodeKey::Lease("10.5.34.0/24 fd00:5:34::/64".into()))
        }
    );
}

#[test]
fn what_flannel_writes_for_none_is_none() {
    let value =
        r#"{"PublicIP":"0.0.0.0","PublicIPv6":null,"BackendType":"host-gw","BackendData":null}"#;

    let facts = read(networks(&["10.5.34.0/24"]), value).whole().unwrap();

    assert_eq!(facts.public, Addresses::default());
    assert_eq!(facts.backend, Some(BackendType::HostGateway));
}

#[test]
fn a_bad_value_is_named_by_its_subnet() {
    let parsed = read(
        networks(&["10.5.34.0/24"]),
        r#"{"PublicIP": 7, "BackendType": "vxlan"}"#,
    );

    assert_eq!(
        faults(&parsed),
        [r#"etcd subnet 10.5.34.0/24: PublicIP is "7"; write an IPv4 address of the node"#]
    );
    assert_eq!(parsed.value.backend, Some(BackendType::Vxlan));
}
