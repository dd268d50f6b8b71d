use flannel_adapter::backend::{
    Backend, BackendType, VxlanOptions, WireGuardMode, WireGuardOptions,
};
use flannel_adapter::net_conf::{NetConf, SubnetLengths};

use crate::{faults, networks};

const PLACE: &str = "net-conf.json";

fn whole(text: &str) -> NetConf {
    NetConf::parse(PLACE, text).whole().unwrap().unwrap()
}

/// The options of one backend, written without its braces.
fn backend(options: &str) -> Backend {
    whole(&format!(
        r#"{{"Network": "10.244.0.0/16", "Backend": {{{options}}}}}"#
    ))
    .backend
}

const VXLAN: VxlanOptions = VxlanOptions {
    vni: 1,
    port: None,
    group_policy: false,
    learning: false,
    direct_routing: false,
    mtu: None,
};

#[test]
fn reads_the_usual_file() {
    let conf = whole(
        r#"{"Network": "10.244.0.0/16", "EnableNFTables": true, "Backend": {"Type": "vxlan"}}"#,
    );

    assert_eq!(
        conf,
        NetConf {
            networks: networks(&["10.244.0.0/16"]),
            uses_nftables: true,
            subnet_lengths: SubnetLengths {
                ipv4: Some(24),
                ipv6: None
            },
            backend: Backend::Vxlan(VXLAN),
            names_backend: true,
        }
    );
}

#[test]
fn names_of_fields_and_backends_count_without_regard_to_case() {
    let conf = whole(
        r#"{"network": "10.244.0.0/16", "backend": {"type": "VXLAN", "vni": 4096, "directrouting": true}}"#,
    );

    let options = VxlanOptions {
        vni: 4096,
        direct_routing: true,
        ..VXLAN
    };
    assert_eq!(conf.backend, Backend::Vxlan(options));
    assert_eq!(
        conf.backend.devices(true, true),
        ["flannel.4096", "flannel-v6.4096"]
    );
}

#[test]
fn a_network_with_host_bits_is_the_network() {
    let conf = whole(r#"{"Network": "10.244.7.9/16", "Backend": {"Type": "host-gw"}}"#);

    assert_eq!(conf.networks, networks(&["10.244.0.0/16"]));
}

#[test]
fn without_a_backend_flannel_takes_udp() {
    let conf = whole(r#"{"Network": "10.244.0.0/16"}"#);

    assert_eq!(conf.backend, Backend::Udp { port: 8285 });
    assert!(!conf.names_backend);
}

#[test]
fn ipv6_counts_only_where_it_is_enabled() {
    let off = whole(r#"{"Network": "10.244.0.0/16", "IPv6Network": "fd00::/56"}"#);
    let dual =
        whole(r#"{"EnableIPv6": true, "IPv6Network": "fd00::/56", "Network": "10.244.0.0/16"}"#);
    let only = whole(r#"{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00::/56"}"#);

    assert_eq!(off.networks, networks(&["10.244.0.0/16"]));
    assert_eq!(dual.networks, networks(&["fd00::/56", "10.244.0.0/16"]));
    assert_eq!(only.networks, networks(&["fd00::/56"]));
    assert_eq!(only.subnet_lengths.ipv6, Some(64));
}

#[test]
fn subnets_of_small_networks_are_quarters() {
    let length = |text: &str| {
        let text = format!(r#"{{"Network": "{text}", "Backend": {{"Type": "vxlan"}}}}"#);
        whole(&text).subnet_lengths.ipv4
    };

    assert_eq!(length("10.0.0.0/22"), Some(24));
    assert_eq!(length("10.0.0.0/23"), Some(25));
    assert_eq!(length("10.0.0.0/28"), Some(30));
    assert_eq!(length("10.0.0.0/29"), None);
}

#[test]
fn reads_every_backend_with_its_options() {
    let wireguard = WireGuardOptions {
        port: 51_820,
        port_v6: 51_821,
        mode: WireGuardMode::Separate,
        mtu: None,
    };
    let cases = [
        (
            r#""Type": "vxlan", "VNI": 7, "Port": 4789, "GBP": true, "Learning": true, "MTU": 1400"#,
            Backend::Vxlan(VxlanOptions {
                vni: 7,
                port: Some(4789),
                group_policy: true,
                learning: true,
                direct_routing: false,
                mtu: Some(1400),
            }),
        ),
        (
            r#""Type": "host-gw""#,
            Backend::Plain(BackendType::HostGateway),
        ),
        (
            r#""Type": "ipip", "DirectRouting": true"#,
            Backend::Ipip {
                direct_routing: true,
            },
        ),
        (
            r#""Type": "wireguard", "PSK": "secret""#,
            Backend::WireGuard(wireguard),
        ),
        (
            r#""Type": "wireguard", "ListenPort": 1, "ListenPortV6": 2, "Mode": "auto", "MTU": 1300"#,
            Backend::WireGuard(WireGuardOptions {
                port: 1,
                port_v6: 2,
                mode: WireGuardMode::Auto,
                mtu: Some(1300),
            }),
        ),
        (r#""Type": "udp", "Port": 9"#, Backend::Udp { port: 9 }),
        (
            r#""Type": "ipsec", "PSK": "secret", "UDPEncap": true"#,
            Backend::Ipsec {
                udp_encapsulation: true,
            },
        ),
        (r#""Type": "alloc""#, Backend::Plain(BackendType::Alloc)),
        (
            r#""Type": "extension", "PostStartupCommand": "x""#,
            Backend::Plain(BackendType::Extension),
        ),
        (
            r#""Type": "tencent-vpc""#,
            Backend::Plain(BackendType::TencentVpc),
        ),
        (
            r#""Type": "gce""#,
            Backend::Plain(BackendType::Other("gce".into())),
        ),
    ];

    for (options, wanted) in cases {
        let found = backend(options);

        assert!(!format!("{found:?}").contains("secret"), "{options}");
        assert_eq!(found, wanted, "{options}");
    }
}

#[test]
fn tells_what_tunnels_use() {
    let cases = [
        (
            r#""Type": "vxlan""#,
            Some(50),
            Some(8472),
            vec!["flannel.1", "flannel-v6.1"],
        ),
        (r#""Type": "host-gw""#, Some(0), None, vec![]),
        (r#""Type": "ipip""#, Some(20), None, vec!["flannel.ipip"]),
        (
            r#""Type": "wireguard""#,
            Some(80),
            Some(51_820),
            vec!["flannel-wg", "flannel-wg-v6"],
        ),
        (
            r#""Type": "wireguard", "Mode": "ipv4""#,
            Some(80),
            Some(51_820),
            vec![],
        ),
        (r#""Type": "udp""#, Some(28), Some(8285), vec![]),
        (r#""Type": "extension""#, None, None, vec![]),
    ];

    for (options, overhead, port, devices) in cases {
        let found = backend(options);

        assert_eq!(found.kind().overhead(), overhead, "{options}");
        assert_eq!(found.tunnel_port(false), port, "{options}");
        assert_eq!(found.devices(true, true), devices, "{options}");
    }
}

#[test]
fn a_fault_names_the_field_and_the_rest_counts() {
    let parsed = NetConf::parse(
        PLACE,
        r#"{"Network": "10.244.0.0/16", "EnableNFTables": "yes", "Backend": {"Type": "vxlan", "VNI": 16777216, "Port": -1}}"#,
    );

    assert_eq!(
        faults(&parsed),
        [
            r#"net-conf.json: Backend.VNI is "16777216"; write a number below 16777216"#,
            r#"net-conf.json: Backend.Port is "-1"; write a port number"#,
            r#"net-conf.json: EnableNFTables is "yes"; write true or false"#,
        ]
    );
    assert_eq!(parsed.value.unwrap().networks, networks(&["10.244.0.0/16"]));
}

#[test]
fn no_fault_repeats_a_secret() {
    let texts = [
        r#"{"Backend": {"PSK": "secret", "Type": "ipsec""#,
        r#"{"Network": {"PSK": "secret"}, "Backend": [{"PSK": "secret"}]}"#,
        r#"[{"PSK": "secret"}]"#,
    ];

    for text in texts {
        let found = faults(&NetConf::parse(PLACE, text));

        assert!(
            !found.is_empty() && !found.join("\n").contains("secret"),
            "{found:?}"
        );
    }
}

#[test]
fn what_is_no_configuration_is_a_fault() {
    let texts = [
        "",
        "[]",
        "{",
        "null",
        "{\"Backend\": []}",
        "{}",
        r#"{"Network": "10.0.0.0"}"#,
    ];

    for text in texts {
        let parsed = NetConf::parse(PLACE, text);

        assert!(!parsed.faults.is_empty(), "{text}");
    }
}

#[test]
fn a_field_written_twice_in_two_ways_is_a_fault() {
    let parsed = NetConf::parse(
        PLACE,
        r#"{"Network": "10.244.0.0/16", "network": "10.0.0.0/8", "Backend": {"Type": "vxlan"}}"#,
    );

    assert_eq!(
        faults(&parsed),
        ["net-conf.json: Network stands there twice; keep one"]
    );
    assert!(parsed.value.unwrap().networks.is_empty());
}
