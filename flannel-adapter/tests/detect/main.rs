//! Who carries pod traffic, and what stands in the way of policy.

#![expect(clippy::unwrap_used, reason = "helpers of tests; a panic is a failure")]

mod kernel;

use flannel_adapter::detect::{
    Carrier, Detection, Note, ObstacleKind, Survey, SurveyedFlowtable, SurveyedLink,
    SurveyedProgram, chosen_conflist, detect, parse_conflist,
};
use proptest::prelude::*;
use towpath_dataplane::link::ProgramHook;

fn link(index: u32, name: &str, kind: &str) -> SurveyedLink {
    SurveyedLink {
        index,
        name: name.into(),
        kind: Some(kind.into()),
        master: None,
        has_peer: false,
    }
}

/// A veth whose other end is in a pod.
fn pod(index: u32, name: &str, master: Option<u32>) -> SurveyedLink {
    SurveyedLink {
        master,
        has_peer: true,
        ..link(index, name, "veth")
    }
}

const FLANNEL: &str = r#"{"name":"cbr0","cniVersion":"0.3.1","plugins":[
    {"type":"flannel","delegate":{"hairpinMode":true,"isDefaultGateway":true}},
    {"type":"portmap","capabilities":{"portMappings":true}}]}"#;

fn of_plugin(text: &str) -> Survey {
    Survey {
        conflist: Some(parse_conflist("10-x.conflist", text).unwrap()),
        ..Survey::default()
    }
}

fn of_links(links: Vec<SurveyedLink>) -> Survey {
    Survey {
        links,
        ..Survey::default()
    }
}

fn kinds(detection: &Detection) -> Vec<ObstacleKind> {
    detection
        .obstacles
        .iter()
        .map(|obstacle| obstacle.kind)
        .collect()
}

#[test]
fn a_stock_flannel_node_is_enforceable() {
    let survey = Survey {
        links: vec![
            link(2, "eth0", "virtio"),
            link(3, "flannel.1", "vxlan"),
            link(4, "cni0", "bridge"),
            pod(5, "veth1a2b3c4d", Some(4)),
            link(6, "docker0", "bridge"),
            pod(7, "veth9", Some(6)),
        ],
        ..of_plugin(FLANNEL)
    };

    let found = detect(&survey);

    assert_eq!(
        found.carriers,
        [Carrier::Bridge {
            bridge: "cni0".into(),
            is_flannel: true
        }]
    );
    assert!(found.is_enforceable() && found.refusal().is_none() && found.notes.is_empty());
}

#[test]
fn configurations_name_the_carrier() {
    let flannel = |bridge: &str| Carrier::Bridge {
        bridge: bridge.into(),
        is_flannel: true,
    };
    let cases = [
        (
            r#"{"plugins":[{"type":"flannel","delegate":{"bridge":"br9"}}]}"#,
            flannel("br9"),
        ),
        (
            r#"{"type":"bridge","bridge":"mynet0"}"#,
            Carrier::Bridge {
                bridge: "mynet0".into(),
                is_flannel: false,
            },
        ),
        (r#"{"plugins":[{"type":"ptp"}]}"#, Carrier::PointToPoint),
        (r#"{"plugins":[{"type":"calico"}]}"#, Carrier::Calico),
        (r#"{"plugins":[{"type":"aws-cni"}]}"#, Carrier::AwsVpcCni),
        (
            r#"{"plugins":[{"type":"new"}]}"#,
            Carrier::Other {
                plugin: "new".into(),
            },
        ),
    ];

    for (text, wanted) in cases {
        let found = detect(&of_plugin(text));

        assert_eq!(found.carriers, [wanted], "{text}");
        assert!(found.is_enforceable(), "{text}");
    }
}

#[test]
fn interfaces_name_the_carrier_where_no_configuration_does() {
    let routed = Survey {
        routed: vec![5],
        ..of_links(vec![pod(5, "veth5", None), pod(6, "veth6", None)])
    };
    let changed_over = of_links(vec![pod(5, "cali5", None), pod(6, "eni6", None)]);

    assert_eq!(detect(&routed).carriers, [Carrier::PointToPoint]);
    assert_eq!(
        detect(&changed_over).carriers,
        [Carrier::Calico, Carrier::AwsVpcCni]
    );
    assert_eq!(
        detect(&of_links(vec![link(5, "cali5", "veth")])).carriers,
        [],
        "no pod behind it"
    );
}

#[test]
fn other_dataplanes_are_refused_by_name() {
    let program = |name: &str| Survey {
        programs: vec![SurveyedProgram {
            interface: "eth0".into(),
            hook: ProgramHook::Ingress,
            name: Some(name.into()),
        }],
        ..Survey::default()
    };
    let cases = [
        (
            of_links(vec![link(2, "cilium_host", "veth")]),
            ObstacleKind::EbpfDataplane,
        ),
        (
            of_links(vec![pod(2, "lxc12ab", None)]),
            ObstacleKind::EbpfDataplane,
        ),
        (program("cil_from_netdev"), ObstacleKind::EbpfDataplane),
        (program("cali_tc_preamble"), ObstacleKind::EbpfDataplane),
        (
            of_plugin(r#"{"plugins":[{"type":"cilium-cni"}]}"#),
            ObstacleKind::EbpfDataplane,
        ),
        (
            of_links(vec![link(2, "kube-ipvs0", "dummy")]),
            ObstacleKind::Ipvs,
        ),
        (
            of_links(vec![link(2, "antrea-gw0", "openvswitch")]),
            ObstacleKind::OpenVswitch,
        ),
        (
            of_plugin(r#"{"plugins":[{"type":"ovn-k8s-cni-overlay"}]}"#),
            ObstacleKind::OpenVswitch,
        ),
        (
            of_plugin(r#"{"plugins":[{"type":"macvlan"}]}"#),
            ObstacleKind::NotSeen,
        ),
    ];

    for (survey, kind) in cases {
        let found = detect(&survey);

        assert_eq!(kinds(&found), [kind], "{survey:?}");
        let refusal = found.refusal().unwrap();
        // What it is, why, and the way out.
        assert!(
            refusal.contains(": ") && refusal.contains("; "),
            "{refusal}"
        );
        assert!(!refusal.contains('\n') && refusal.len() > 60, "{refusal}");
    }
}

#[test]
fn a_flowtable_hinders_where_it_carries_packets_of_pods() {
    let with = |interfaces: &[&str]| Survey {
        flowtables: vec![SurveyedFlowtable {
            table: "fast".into(),
            name: "ft".into(),
            interfaces: interfaces.iter().map(|name| (*name).into()).collect(),
        }],
        ..of_links(vec![
            link(2, "eth0", "virtio"),
            link(3, "cni0", "bridge"),
            pod(4, "cali4", None),
        ])
    };

    assert_eq!(
        kinds(&detect(&with(&["eth0", "cni0"]))),
        [ObstacleKind::Flowtable]
    );
    assert_eq!(kinds(&detect(&with(&["cali4"]))), [ObstacleKind::Flowtable]);
    assert_eq!(kinds(&detect(&with(&["eth0"]))), []);
    assert_eq!(kinds(&detect(&with(&[]))), []);
}

#[test]
fn programs_that_only_filter_or_that_nobody_knows_are_noted() {
    let program = |hook, name: Option<&str>| SurveyedProgram {
        interface: "eni7".into(),
        hook,
        name: name.map(Into::into),
    };
    let survey = Survey {
        programs: vec![
            program(ProgramHook::Ingress, Some("handle_ingress")),
            program(ProgramHook::Egress, Some("handle_egress")),
            program(ProgramHook::Xdp, None),
        ],
        ..Survey::default()
    };

    let found = detect(&survey);

    assert!(found.is_enforceable());
    let texts: Vec<String> = found.notes.iter().map(Note::to_string).collect();
    assert_eq!(
        texts,
        [
            "an unknown program (without a name) at eni7, XDP; what it redirects is not judged",
            "Amazon's network policy agent filters packets too; what either denies is denied",
        ]
    );
}

#[test]
fn the_first_configuration_that_can_be_read_counts() {
    let files = [
        ("20-other.conflist", r#"{"plugins":[{"type":"ptp"}]}"#),
        ("10-flannel.conflist", FLANNEL),
        ("05-broken.conf", "{"),
        ("00-kubeconfig", "not looked at"),
        ("01-empty.conflist", r#"{"plugins":[]}"#),
    ];

    let (chosen, faults) = chosen_conflist(files);

    let chosen = chosen.unwrap();
    assert_eq!(
        (chosen.file.as_str(), chosen.name.as_str()),
        ("10-flannel.conflist", "cbr0")
    );
    assert_eq!(chosen.plugins, ["flannel", "portmap"]);
    let texts: Vec<String> = faults.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            r#"CNI configuration 01-empty.conflist: the file is "without a plugin's type"; write a CNI configuration, or move the file out of the folder"#,
            r#"CNI configuration 05-broken.conf: the file is "broken at line 1 column 1"; write a CNI configuration, or move the file out of the folder"#,
        ]
    );
}

proptest! {
    #[test]
    fn any_configuration_is_read_without_panic(text in any::<String>(), word in any::<String>()) {
        let near = serde_json::json!({"plugins": [{"type": word, "delegate": word, "bridge": word}]});
        prop_assert!(parse_conflist("x", &text).is_err() || text.contains("type"));
        let found = parse_conflist("x", &near.to_string()).unwrap();
        let survey = Survey { conflist: Some(found), ..Survey::default() };
        prop_assert_eq!(detect(&survey).carriers.len(), 1);
    }
}
