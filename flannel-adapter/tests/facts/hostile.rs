//! Nothing that anybody may write makes a parser panic, and what is refused is said in a line that can be read.

use flannel_adapter::annotations::{AnnotationNames, NodeRecord};
use flannel_adapter::facts::{FlannelFacts, Inputs};
use flannel_adapter::lease::{Key, KeyNames, read};
use flannel_adapter::net_conf::NetConf;
use flannel_adapter::subnet_env::SubnetEnv;
use flannel_adapter::{Fault, NodeFacts};
use proptest::prelude::*;
use smol_str::SmolStr;

use crate::networks;

/// Texts that come close to what is expected.
fn near() -> impl Strategy<Value = String> {
    let words = prop_oneof![
        Just("10.244.0.0/16".to_owned()),
        Just("fd00::/56".to_owned()),
        Just("0.0.0.0/0".to_owned()),
        Just("::/0".to_owned()),
        Just("255.255.255.255/32".to_owned()),
        Just("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128".to_owned()),
        Just("vxlan".to_owned()),
        Just("true".to_owned()),
        Just(r#"{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}"#.to_owned()),
        Just(r#"{"VNI":18446744073709551616,"VtepMAC":null}"#.to_owned()),
        Just("\0\u{202e}é".to_owned()),
        "\\PC{0,40}",
    ];
    prop::collection::vec(words, 0..3).prop_map(|words| words.join(","))
}

fn readable(faults: &[Fault]) -> bool {
    faults.iter().all(|fault| {
        let text = fault.to_string();
        text.len() < 900 && !text.contains('\n')
    })
}

proptest! {
    #[test]
    fn net_conf(text in any::<String>(), network in near(), options in near()) {
        prop_assert!(readable(&NetConf::parse("net-conf.json", &text).faults));
        let text = format!(r#"{{"EnableIPv6": true, "Network": {network:?}, "IPv6Network": {options:?}, "Backend": {{"Type": {options:?}}}}}"#);
        prop_assert!(readable(&NetConf::parse("net-conf.json", &text).faults));
    }

    #[test]
    fn subnet_env(text in any::<String>(), values in prop::collection::vec(near(), 6)) {
        prop_assert!(readable(&SubnetEnv::parse("subnet.env", &text).faults));
        let names = ["NETWORK", "SUBNET", "IPV6_NETWORK", "IPV6_SUBNET", "MTU", "IPMASQ"];
        let lines: Vec<String> = names.iter().zip(&values).map(|(name, value)| format!("FLANNEL_{name}={value}")).collect();
        prop_assert!(readable(&SubnetEnv::parse("subnet.env", &lines.join("\n")).faults));
    }

    #[test]
    fn keys_and_values(name in any::<String>(), value in near()) {
        let names = KeyNames::default();
        let key = names.classify(&format!("{}{name}", names.subnets()));
        if let Ok(Key::Subnet(subnets)) = key {
            prop_assert!(!subnets.is_empty());
        }
        prop_assert!(readable(&read(networks(&["10.5.0.0/24"]), &value).faults));
    }

    #[test]
    fn nodes_and_all_together(cells in prop::collection::vec((near(), near(), near(), near()), 0..6)) {
        let names = AnnotationNames::default();
        let mut nodes: Vec<NodeFacts> = Vec::new();
        for (position, (cidr, data, public, backend)) in cells.iter().enumerate() {
            let annotation = |name: &str, value: &str| (SmolStr::from(names.of(name)), SmolStr::new(value));
            let record = NodeRecord {
                name: format!("n{position}").into(),
                annotations: [
                    annotation("kube-subnet-manager", "true"),
                    annotation("backend-type", backend),
                    annotation("backend-data", data),
                    annotation("public-ip", public),
                ].into(),
                pod_cidrs: vec![cidr.into()],
                addresses: Vec::new(),
            };
            let parsed = names.read(&record);
            prop_assert!(readable(&parsed.faults));
            nodes.push(parsed.value);
        }
        let facts = FlannelFacts::merge(&Inputs { own_node: "n0".into(), nodes, bridge: Some("cni0".into()), ..Inputs::default() });
        // This node's own addresses are never told from afar.
        prop_assert!(facts.host_identities().keys().all(|key| Some(*key) != facts.own.as_ref()));
    }
}
