use flannel_adapter::Addresses;
use flannel_adapter::subnet_env::SubnetEnv;

use crate::{faults, networks};

const PLACE: &str = "/run/flannel/subnet.env";

#[test]
fn reads_what_flanneld_writes() {
    let text = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

    let env = SubnetEnv::parse(PLACE, text).whole().unwrap();

    assert_eq!(
        env,
        SubnetEnv {
            networks: vec!["10.244.0.0/16".parse().unwrap()],
            subnets: networks(&["10.244.1.0/24"]),
            gateways: Addresses {
                ipv4: Some([10, 244, 1, 1].into()),
                ipv6: None
            },
            mtu: Some(1450),
            masquerades: Some(true),
        }
    );
}

#[test]
fn the_order_of_lines_and_families_does_not_matter() {
    let lines = [
        "FLANNEL_IPV6_NETWORK=fd00:10::/56",
        "FLANNEL_IPV6_SUBNET=fd00:10:0:1::1/64",
        "FLANNEL_NETWORK=10.244.0.0/16,10.245.0.0/16",
        "FLANNEL_SUBNET=10.244.1.1/24",
        "FLANNEL_MTU=1450",
        "FLANNEL_IPMASQ=false",
    ];
    let turned: Vec<&str> = lines.iter().rev().copied().collect();

    let straight = SubnetEnv::parse(PLACE, &lines.join("\n")).whole().unwrap();
    let reversed = SubnetEnv::parse(PLACE, &turned.join("\r\n"))
        .whole()
        .unwrap();

    assert_eq!(straight, reversed);
    assert_eq!(straight.networks.len(), 3);
    assert_eq!(
        straight.subnets,
        networks(&["10.244.1.0/24", "fd00:10:0:1::/64"])
    );
}

#[test]
fn a_node_with_ipv6_only_is_whole() {
    let text = "FLANNEL_IPV6_NETWORK=fd00::/56\nFLANNEL_IPV6_SUBNET=fd00::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=true";

    let env = SubnetEnv::parse(PLACE, text).whole().unwrap();

    assert_eq!(env.subnets, networks(&["fd00::/64"]));
    assert_eq!(env.gateways.ipv4, None);
}

#[test]
fn half_a_file_names_what_is_missing_and_keeps_the_rest() {
    let parsed = SubnetEnv::parse(
        PLACE,
        "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_M",
    );

    assert_eq!(
        faults(&parsed),
        [
            r#"/run/flannel/subnet.env: a line is "FLANNEL_M"; write NAME=value"#,
            "/run/flannel/subnet.env: FLANNEL_MTU is missing; flanneld has not finished writing the file; look at its log, or restart it",
            "/run/flannel/subnet.env: FLANNEL_IPMASQ is missing; flanneld has not finished writing the file; look at its log, or restart it",
        ]
    );
    assert_eq!(parsed.value.subnets, networks(&["10.244.1.0/24"]));
}

#[test]
fn an_empty_file_is_three_faults() {
    let parsed = SubnetEnv::parse(PLACE, "\n");

    assert_eq!(parsed.faults.len(), 3);
    assert_eq!(parsed.value, SubnetEnv::default());
}

#[test]
fn one_bad_network_does_not_hide_the_others() {
    let parsed = SubnetEnv::parse(
        PLACE,
        "FLANNEL_NETWORK=10.244.0.0/16,nonsense,\nFLANNEL_SUBNET=fd00::1/64\nFLANNEL_MTU=0\nFLANNEL_IPMASQ=1",
    );

    assert_eq!(
        faults(&parsed),
        [
            r#"/run/flannel/subnet.env: FLANNEL_SUBNET is "fd00::1/64"; write an IPv4 subnet such as 10.244.1.1/24"#,
            r#"/run/flannel/subnet.env: FLANNEL_NETWORK is "nonsense"; write networks separated by commas"#,
            r#"/run/flannel/subnet.env: FLANNEL_MTU is "0"; write a number of bytes"#,
            r#"/run/flannel/subnet.env: FLANNEL_IPMASQ is "1"; write true or false"#,
        ]
    );
    assert_eq!(parsed.value.networks, ["10.244.0.0/16".parse().unwrap()]);
}

#[test]
fn unknown_lines_comments_and_quotes_are_no_fault() {
    let text = "# by hand\nFLANNEL_SUBNET=\"10.244.1.1/24\"\nFLANNEL_MTU='1450'\nFLANNEL_IPMASQ=true\nFLANNEL_NEW=x\n";

    let env = SubnetEnv::parse(PLACE, text).whole().unwrap();

    assert_eq!(
        (env.mtu, env.subnets),
        (Some(1450), networks(&["10.244.1.0/24"]))
    );
}
