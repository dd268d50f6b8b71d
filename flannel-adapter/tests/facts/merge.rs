use std::collections::BTreeSet;

use flannel_adapter::annotations::AnnotationNames;
use flannel_adapter::backend::BackendType;
use flannel_adapter::facts::{FlannelFacts, Inputs, Link};
use flannel_adapter::lease;
use flannel_adapter::net_conf::NetConf;
use flannel_adapter::subnet_env::SubnetEnv;
use flannel_adapter::{Finding, NodeFacts, NodeKey, Severity};

use crate::annotations::record;
use crate::{address, networks};

const MAC: &str = "02:00:00:00:00:01";

fn node(name: &str, number: u8) -> NodeFacts {
    let data = format!(r#"{{"VNI":1,"VtepMAC":"02:00:00:00:00:{number:02x}"}}"#);
    let record = record(
        name,
        &[&format!("10.244.{number}.0/24")],
        &[
            ("kube-subnet-manager", "true"),
            ("backend-type", "vxlan"),
            ("backend-data", &data),
            ("public-ip", &format!("192.168.77.{number}")),
        ],
    );
    AnnotationNames::default().read(&record).whole().unwrap()
}

fn link(name: &str, addresses: &[&str]) -> Link {
    Link {
        name: name.into(),
        mtu: 1450,
        mac: Some(MAC.parse().unwrap()),
        addresses: addresses.iter().map(|text| address(text)).collect(),
        udp_port: None,
    }
}

fn env(subnet: &str) -> SubnetEnv {
    let text = format!(
        "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET={subnet}\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true"
    );
    SubnetEnv::parse("subnet.env", &text).whole().unwrap()
}

/// A node on which everything fits.
fn healthy() -> Inputs {
    let text = r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}"#;
    Inputs {
        own_node: "n1".into(),
        expects_subnet_env: true,
        nodes: vec![node("n1", 1), node("n2", 2)],
        subnet_env: Some(env("10.244.1.1/24")),
        net_conf: NetConf::parse("net-conf.json", text).whole().unwrap(),
        links: Some(vec![
            link("eth0", &["192.168.77.1"]),
            link("flannel.1", &["10.244.1.0"]),
            link("cni0", &["10.244.1.1"]),
        ]),
        routes: vec![("10.244.2.0/24".parse().unwrap(), "flannel.1".into())],
        bridge: Some("cni0".into()),
    }
}

fn findings(inputs: &Inputs) -> Vec<Finding> {
    FlannelFacts::merge(inputs).findings
}

fn key(name: &str) -> NodeKey {
    NodeKey::Node(name.into())
}

#[test]
fn everything_fits_on_a_healthy_node() {
    let facts = FlannelFacts::merge(&healthy());

    assert_eq!(facts.findings, []);
    assert_eq!(facts.backend, Some(BackendType::Vxlan));
    assert_eq!(facts.networks, ["10.244.0.0/16".parse().unwrap()]);
    assert_eq!(facts.pod_networks, networks(&["10.244.1.0/24"]));
    assert_eq!(
        (facts.mtu, facts.masquerades, facts.uses_nftables),
        (Some(1450), Some(true), Some(false))
    );
    assert_eq!(facts.own, Some(key("n1")));
    let remote: Vec<&NodeKey> = facts.remote_nodes().map(|node| &node.key).collect();
    assert_eq!(remote, [&key("n2")]);
    let hosts = facts.host_identities();
    assert_eq!(
        hosts[&key("n2")],
        [
            address("192.168.77.2"),
            address("10.244.2.0"),
            address("10.244.2.1")
        ]
        .into()
    );
    assert_eq!(
        facts.public_addresses(),
        [address("192.168.77.1"), address("192.168.77.2")].into()
    );
}

#[test]
fn nothing_read_is_nothing_known_and_no_contradiction() {
    let facts = FlannelFacts::merge(&Inputs::default());

    assert_eq!(facts, FlannelFacts::default());
}

#[test]
fn a_subnet_that_moved_is_told() {
    let inputs = Inputs {
        subnet_env: Some(env("10.244.9.1/24")),
        ..healthy()
    };

    let facts = FlannelFacts::merge(&inputs);

    assert_eq!(
        facts.findings,
        [
            Finding::SubnetDiffers {
                file: "10.244.9.0/24".parse().unwrap(),
                node: "10.244.1.0/24".parse().unwrap()
            },
            Finding::BridgeAddressDiffers {
                bridge: "cni0".into(),
                found: vec![address("10.244.1.1")],
                wanted: address("10.244.9.1")
            },
        ]
    );
    assert_eq!(facts.pod_networks, networks(&["10.244.1.0/24"]));
    assert!(
        facts
            .findings
            .iter()
            .all(|finding| finding.severity() == Severity::Serious)
    );
}

#[test]
fn a_missing_file_counts_only_where_flannel_writes_one() {
    let missing = Inputs {
        subnet_env: None,
        ..healthy()
    };
    let elsewhere = Inputs {
        expects_subnet_env: false,
        ..missing.clone()
    };

    assert_eq!(findings(&missing), [Finding::SubnetEnvMissing]);
    assert_eq!(findings(&elsewhere), []);
}

#[test]
fn devices_are_compared_with_what_was_told() {
    let mut inputs = healthy();
    let links = inputs.links.as_mut().unwrap();
    links[1].mac = Some("02:00:00:00:00:99".parse().unwrap());
    links[1].mtu = 1500;
    links[2].mtu = 1400;

    let found = findings(&inputs);
    inputs.links.as_mut().unwrap().remove(1);
    let without = findings(&inputs);

    assert_eq!(
        found,
        [
            Finding::VtepMacDiffers {
                device: "flannel.1".into(),
                found: "02:00:00:00:00:99".parse().unwrap(),
                told: MAC.parse().unwrap()
            },
            Finding::MtuDiffers {
                interface: "flannel.1".into(),
                found: 1500,
                wanted: 1450
            },
            Finding::MtuDiffers {
                interface: "cni0".into(),
                found: 1400,
                wanted: 1450
            },
        ]
    );
    assert_eq!(
        without[0],
        Finding::DeviceMissing {
            device: "flannel.1".into()
        }
    );
}

#[test]
fn a_bridge_that_is_not_there_yet_is_no_finding() {
    let mut inputs = healthy();
    inputs.links.as_mut().unwrap().remove(2);

    assert_eq!(findings(&inputs), []);
}

#[test]
fn a_configuration_that_changed_is_told_and_the_node_counts() {
    let text = r#"{"Network": "10.244.0.0/16"}"#;
    let inputs = Inputs {
        net_conf: NetConf::parse("net-conf.json", text).whole().unwrap(),
        ..healthy()
    };

    let facts = FlannelFacts::merge(&inputs);

    assert_eq!(
        facts.findings,
        [
            Finding::BackendByDefault,
            Finding::BackendDiffers {
                configured: BackendType::Udp,
                found: BackendType::Vxlan
            }
        ]
    );
    assert_eq!(facts.backend, Some(BackendType::Vxlan));
}

#[test]
fn nodes_are_examined_one_by_one_and_together() {
    let mut inputs = healthy();
    let mut outside = node("n3", 3);
    outside.pod_networks = networks(&["10.99.0.0/24"]);
    let mut bare = node("n4", 4);
    bare.pod_networks = networks(&[]);
    let mut twin = node("n5", 2);
    twin.pod_networks = networks(&["10.244.2.128/25"]);
    let unmanaged = NodeFacts::new(key("n6"));
    inputs.nodes.extend([outside, bare, twin, unmanaged]);

    assert_eq!(
        findings(&inputs),
        [
            Finding::SubnetOutside {
                node: key("n3"),
                subnet: "10.99.0.0/24".parse().unwrap()
            },
            Finding::PodNetworkMissing { node: key("n4") },
            Finding::Unmanaged { node: key("n6") },
            Finding::SubnetsOverlap {
                first: (key("n2"), "10.244.2.0/24".parse().unwrap()),
                second: (key("n5"), "10.244.2.128/25".parse().unwrap())
            },
            Finding::PublicAddressShared {
                first: key("n2"),
                second: key("n5"),
                address: address("192.168.77.2")
            },
        ]
    );
}

#[test]
fn an_address_of_pods_is_nobodys_host() {
    let mut inputs = healthy();
    inputs.nodes[1].addresses.insert(address("10.244.1.7"));
    inputs.nodes[1].public.ipv4 = Some([10, 244, 2, 9].into());

    let facts = FlannelFacts::merge(&inputs);

    assert_eq!(
        facts.host_identities()[&key("n2")],
        [address("10.244.2.0"), address("10.244.2.1")].into()
    );
    let told = |text: &str| Finding::AddressOfPods {
        node: key("n2"),
        address: address(text),
    };
    assert_eq!(facts.findings, [told("10.244.1.7"), told("10.244.2.9")]);
}

#[test]
fn first_addresses_of_a_disputed_network_are_nobodys_host() {
    let mut inputs = healthy();
    let mut thief = node("n3", 3);
    thief.pod_networks = networks(&["10.244.2.8/29"]);
    inputs.nodes.push(thief);

    let facts = FlannelFacts::merge(&inputs);

    assert_eq!(
        facts.host_identities()[&key("n3")],
        [address("192.168.77.3")].into()
    );
}

#[test]
fn a_route_to_a_node_that_is_gone_is_stale() {
    let mut inputs = healthy();
    inputs
        .routes
        .push(("10.244.8.0/24".parse().unwrap(), "flannel.1".into()));
    // The network of all, and one of somebody else.
    inputs
        .routes
        .push(("10.244.0.0/16".parse().unwrap(), "flannel.1".into()));
    inputs
        .routes
        .push(("172.16.0.0/24".parse().unwrap(), "flannel.1".into()));

    assert_eq!(
        findings(&inputs),
        [Finding::StaleRoute {
            network: "10.244.8.0/24".parse().unwrap(),
            device: "flannel.1".into()
        }]
    );
}

#[test]
fn leases_are_joined_to_the_nodes_that_have_their_address() {
    let value = |number: u8| {
        format!(
            r#"{{"PublicIP":"192.168.77.{number}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:00:{number:02x}"}}}}"#
        )
    };
    let lease = |number: u8| {
        let subnets = networks(&[&format!("10.244.{number}.0/24")]);
        lease::read(subnets, &value(number)).whole().unwrap()
    };
    let bare = |name: &str, text: &str| NodeFacts {
        addresses: [address(text)].into(),
        ..NodeFacts::new(key(name))
    };
    let inputs = Inputs {
        nodes: vec![
            bare("n1", "192.168.77.1"),
            lease(1),
            lease(2),
            bare("n3", "192.168.77.3"),
        ],
        ..healthy()
    };

    let facts = FlannelFacts::merge(&inputs);

    let keys: Vec<&NodeKey> = facts.nodes.keys().collect();
    let by_subnet = NodeKey::Lease("10.244.2.0/24".into());
    assert_eq!(keys, [&key("n1"), &key("n3"), &by_subnet]);
    assert_eq!(
        facts.own_node().unwrap().pod_networks,
        networks(&["10.244.1.0/24"])
    );
    assert_eq!(facts.findings, [Finding::Unmanaged { node: key("n3") }]);
}

#[test]
fn without_kubernetes_the_own_lease_is_that_of_the_own_subnet() {
    let value = r#"{"PublicIP":"192.168.77.1","BackendType":"host-gw"}"#;
    let inputs = Inputs {
        nodes: vec![
            lease::read(networks(&["10.244.1.0/24"]), value)
                .whole()
                .unwrap(),
        ],
        ..healthy()
    };

    let facts = FlannelFacts::merge(&inputs);

    assert_eq!(facts.own, Some(NodeKey::Lease("10.244.1.0/24".into())));
    assert_eq!(facts.remote_nodes().count(), 0);
}

#[test]
fn ports_of_the_overlay_are_the_devices_else_the_configured_else_the_usual_ones() {
    let ports = |change: &dyn Fn(&mut Inputs)| {
        let mut inputs = Inputs {
            nodes: Vec::new(),
            net_conf: None,
            links: Some(vec![link("eth0", &[])]),
            ..healthy()
        };
        change(&mut inputs);
        let facts = FlannelFacts::merge(&inputs);
        facts.overlay_ports
    };
    let configured = |inputs: &mut Inputs, backend: &str| {
        let text = format!(r#"{{"Network": "10.244.0.0/16", "Backend": {backend}}}"#);
        inputs.net_conf = NetConf::parse("net-conf.json", &text).whole().unwrap();
    };
    let with = |name: &str, udp_port| {
        Some(vec![Link {
            udp_port,
            ..link(name, &[])
        }])
    };

    assert_eq!(ports(&|_| {}), BTreeSet::from([]));
    // Somebody else's tunnel is not Flannel's.
    assert_eq!(
        ports(&|inputs| inputs.links = with("vxlan7", Some(4789))),
        BTreeSet::from([])
    );
    assert_eq!(
        ports(&|inputs| inputs.links = with("flannel.1", None)),
        BTreeSet::from([8472])
    );
    assert_eq!(
        ports(&|inputs| inputs.links = with("flannel-wg", None)),
        BTreeSet::from([51_820, 51_821])
    );
    assert_eq!(
        ports(&|inputs| inputs.links = with("flannel0", None)),
        BTreeSet::from([8285])
    );
    assert_eq!(
        ports(&|inputs| inputs.links = with("flannel.ipip", None)),
        BTreeSet::from([])
    );
    let vxlan = r#"{"Type": "vxlan", "Port": 8473}"#;
    assert_eq!(
        ports(&|inputs| configured(inputs, vxlan)),
        BTreeSet::from([8473])
    );
    let in_force = ports(&|inputs| {
        configured(inputs, vxlan);
        inputs.links = with("flannel.1", Some(8474));
    });
    assert_eq!(in_force, BTreeSet::from([8474]));
    let changed = ports(&|inputs| {
        configured(inputs, r#"{"Type": "wireguard", "ListenPort": 7}"#);
        inputs.links = with("flannel.1", None);
    });
    assert_eq!(changed, BTreeSet::from([8472]));
    assert_eq!(
        ports(&|inputs| configured(inputs, r#"{"Type": "host-gw"}"#)),
        BTreeSet::from([])
    );
}
