//! Each check alone: a good node is told as good, and each fault as itself and nothing else.

use std::collections::BTreeSet;

use flannel_adapter::detect::{Detection, Survey, SurveyedLink, detect, parse_conflist};
use flannel_adapter::facts::{Inputs, Link};
use flannel_adapter::subnet_env::SubnetEnv;
use flannel_adapter::{FlannelFacts, NodeFacts, NodeKey, Vtep};
use towpath_core::model::MacAddress;
use towpath_dataplane::link::BridgeSettings;
use towpath_dataplane::nft::{SurveyedChain, SurveyedHook, SurveyedTable};

use super::facts::{Cni, Facts, Flannel, LinkFacts, Look, Settings, State, Tables};
use super::{Finding, Severity, examine};
use crate::agent::bypass::BypassScope;
use crate::agent::report::Bypass;
use crate::cli::cni::InstallationFault;

const SUBNET_ENV: &str = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

fn link(name: &str, mtu: u32, addresses: &[&str]) -> LinkFacts {
    LinkFacts {
        name: name.into(),
        mtu,
        addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
        ..LinkFacts::default()
    }
}

/// Interfaces of a node with Flannel and one pod.
fn links() -> Vec<LinkFacts> {
    vec![
        LinkFacts {
            has_default_route: true,
            ..link("eth0", 1500, &["192.0.2.1"])
        },
        LinkFacts {
            kind: Some("vxlan".into()),
            offloads_checksums: Some(true),
            ..link("flannel.1", 1450, &["10.244.1.0"])
        },
        LinkFacts {
            kind: Some("bridge".into()),
            bridge: Some(BridgeSettings::ENFORCING),
            ..link("cni0", 1450, &["10.244.1.1"])
        },
        LinkFacts {
            kind: Some("veth".into()),
            master: Some("cni0".into()),
            ..link("veth1", 1450, &[])
        },
    ]
}

/// What Flannel set up, seen on these interfaces; `change` comes before it is put together.
fn flannel(links: &[LinkFacts], change: impl FnOnce(&mut Inputs)) -> Look<Flannel> {
    let own = NodeFacts {
        pod_networks: flannel_adapter::Networks {
            ipv4: Some("10.244.1.0/24".parse().unwrap()),
            ipv6: None,
        },
        is_managed: true,
        ..NodeFacts::new(NodeKey::Node("a".into()))
    };
    let mut inputs = Inputs {
        own_node: "a".into(),
        expects_subnet_env: true,
        nodes: vec![own],
        subnet_env: Some(SubnetEnv::parse("subnet.env", SUBNET_ENV).value),
        links: Some(
            links
                .iter()
                .map(|link| Link {
                    name: link.name.clone(),
                    mtu: link.mtu,
                    mac: link.mac,
                    addresses: link.addresses.clone(),
                    udp_port: None,
                })
                .collect(),
        ),
        bridge: Some("cni0".into()),
        ..Inputs::default()
    };
    change(&mut inputs);
    Look::Seen(Flannel {
        is_there: true,
        facts: FlannelFacts::merge(&inputs),
        faults: Vec::new(),
    })
}

fn chain(name: &str, drops: bool) -> SurveyedChain {
    SurveyedChain {
        name: name.into(),
        hook: Some(SurveyedHook {
            number: 2,
            priority: 0,
            is_filter: true,
            drops,
        }),
    }
}

fn regular(name: &str) -> SurveyedChain {
    SurveyedChain {
        name: name.into(),
        hook: None,
    }
}

fn table(family: &'static str, name: &str, chains: Vec<SurveyedChain>) -> SurveyedTable {
    SurveyedTable {
        family,
        name: name.into(),
        owner: None,
        chains,
    }
}

fn cni(files: &[(&str, &str)]) -> Cni {
    Cni {
        folder: "/etc/cni/net.d".to_owned(),
        files: files
            .iter()
            .map(|(name, text)| {
                let parsed = parse_conflist(name, text).map_err(|fault| fault.to_string());
                ((*name).into(), parsed)
            })
            .collect(),
        drop_ins: Vec::new(),
        fault: None,
    }
}

const CBR0: &str = r#"{"name": "cbr0", "plugins": [{"type": "flannel"}, {"type": "portmap"}]}"#;

/// A node with Flannel on which no agent runs.
fn healthy() -> Facts {
    let tables = vec![table("ip", "flannel-ipv4", vec![chain("forward", false)])];
    Facts {
        flannel: flannel(&links(), |_| {}),
        links: Look::Seen(links()),
        pod_bridges: BTreeSet::from(["cni0".into()]),
        has_bridge_netfilter: Look::Seen(true),
        tables: Look::Seen(Tables {
            tables,
            ..Tables::default()
        }),
        detection: Look::Seen(Detection::default()),
        nodes: Look::Seen(1),
        kernel: Look::Seen("6.12.1".to_owned()),
        nft_program: Some("nftables v1.0.6 (Lester Gooch #5)".to_owned()),
        settings: Settings {
            forwards_ipv4: Some(true),
            forwards_ipv6: Some(false),
            all_bridges_ipv4: Some(false),
            all_bridges_ipv6: Some(false),
            connections: Some(70),
            most_connections: Some(100),
            tcp_seconds: Some(86_400),
        },
        cni: Look::Seen(cni(&[("10-flannel.conflist", CBR0)])),
        agent: Look::Seen(None),
        state: Look::Seen(None),
    }
}

#[test]
fn a_chained_plugin_that_others_changed_is_told() {
    let path = || "/etc/cni/net.d/05-towpath.conflist".into();
    let difference = "10-flannel.conflist has changed".to_owned();
    for (fault, severity) in [
        (InstallationFault::ProgramGone(path()), Severity::Serious),
        (
            InstallationFault::ConfigurationGone(path()),
            Severity::Warning,
        ),
        (
            InstallationFault::OutOfDate {
                copy: path(),
                difference,
            },
            Severity::Warning,
        ),
    ] {
        let found = after(|facts| {
            let Look::Seen(cni) = &mut facts.cni else {
                panic!("it was seen");
            };
            cni.fault = Some(fault);
        });
        assert_eq!(found, [("cni", severity)]);
    }
}

/// What is worse than good, but for the note that no agent runs.
fn found(facts: &Facts) -> Vec<(&'static str, Severity)> {
    let findings: Vec<Finding> = examine(facts);
    findings
        .iter()
        .filter(|finding| finding.severity != Severity::Ok)
        .filter(|finding| finding.severity != Severity::Note || finding.id != "agent")
        .map(|finding| (finding.id, finding.severity))
        .collect()
}

/// What a change of the good node adds.
fn after(change: impl FnOnce(&mut Facts)) -> Vec<(&'static str, Severity)> {
    let mut facts = healthy();
    change(&mut facts);
    found(&facts)
}

fn with_tables(more: SurveyedTable) -> Vec<(&'static str, Severity)> {
    after(|facts| {
        let Look::Seen(tables) = &mut facts.tables else {
            panic!("they were seen");
        };
        tables.tables.push(more);
    })
}

fn with_links(change: impl FnOnce(&mut Vec<LinkFacts>)) -> Vec<(&'static str, Severity)> {
    after(|facts| {
        let mut links = links();
        change(&mut links);
        facts.flannel = flannel(&links, |_| {});
        facts.links = Look::Seen(links);
    })
}

fn with_flannel(change: impl FnOnce(&mut Inputs)) -> Vec<(&'static str, Severity)> {
    after(|facts| facts.flannel = flannel(&links(), change))
}

#[test]
fn a_good_node_has_no_finding_and_each_check_says_so() {
    let findings = examine(&healthy());

    assert_eq!(found(&healthy()), []);
    let ids: BTreeSet<&str> = findings.iter().map(|finding| finding.id).collect();
    assert_eq!(ids.len(), super::checks::ALL.len());
    for finding in findings {
        let is_good = finding.severity == Severity::Ok;
        assert_eq!(finding.why.is_empty(), is_good, "{finding:?}");
        assert!(!finding.what.is_empty(), "{finding:?}");
    }
}

#[test]
fn what_cannot_be_looked_at_is_not_called_good() {
    let unseen = || "no right".to_owned();
    let facts = Facts {
        links: Look::Unseen(unseen()),
        has_bridge_netfilter: Look::Unseen(unseen()),
        tables: Look::Unseen(unseen()),
        detection: Look::Unseen(unseen()),
        flannel: Look::Unseen(unseen()),
        nodes: Look::Unseen(unseen()),
        kernel: Look::Unseen(unseen()),
        settings: Settings::default(),
        cni: Look::Unseen(unseen()),
        agent: Look::Unseen(unseen()),
        state: Look::Unseen(unseen()),
        ..healthy()
    };

    let good: Vec<&str> = examine(&facts)
        .iter()
        .filter(|finding| finding.severity != Severity::Unseen)
        .map(|finding| finding.id)
        .collect();

    // It is a program that may be missing.
    assert_eq!(good, ["nft-program"]);
}

#[test]
fn bridges_that_hide_packets_are_found() {
    let missing = after(|facts| facts.has_bridge_netfilter = Look::Seen(false));
    let off = |links: &mut Vec<LinkFacts>| {
        links[2].bridge = Some(BridgeSettings {
            nf_call_ip6tables: false,
            ..BridgeSettings::ENFORCING
        });
    };
    let switched_off = with_links(off);
    let all_on = after(|facts| {
        let mut links = links();
        off(&mut links);
        facts.links = Look::Seen(links);
        facts.settings.all_bridges_ipv6 = Some(true);
    });

    assert_eq!(missing, [("bridge-netfilter", Severity::Serious)]);
    assert_eq!(switched_off, [("bridge-netfilter", Severity::Note)]);
    assert_eq!(all_on, []);
}

#[test]
fn chains_that_drop_what_they_do_not_know_are_found() {
    let firewall = with_tables(table("inet", "firewall", vec![chain("fwd", true)]));
    let docker = with_tables(table(
        "ip",
        "filter",
        vec![chain("FORWARD", true), regular("FLANNEL-FWD")],
    ));
    let rejecting = after(|facts| {
        let Look::Seen(tables) = &mut facts.tables else {
            panic!("they were seen");
        };
        let firewalld = table("inet", "firewalld", vec![chain("filter_FORWARD", false)]);
        tables.tables.push(firewalld);
        let key = ("inet", "firewalld".into(), "filter_FORWARD".into());
        tables.closing.insert(key);
    });
    let own = with_tables(table("inet", "other", vec![chain("input", false)]));

    assert_eq!(firewall, [("forward-drop", Severity::Warning)]);
    assert_eq!(docker, [("forward-drop", Severity::Note)]);
    assert_eq!(rejecting, [("forward-drop", Severity::Warning)]);
    assert_eq!(own, []);
}

#[test]
fn other_engines_are_found_by_their_names() {
    for chains in [
        "cali-FORWARD",
        "KUBE-ROUTER-FORWARD",
        "KUBE-POD-FW-ABC",
        "CILIUM_FORWARD",
        "OLD_CILIUM_INPUT",
        "ANTREA-FORWARD",
        "WEAVE-NPC",
        "AZURE-NPM",
    ] {
        let found = with_tables(table("ip", "filter", vec![regular(chains)]));
        assert_eq!(found, [("other-policy", Severity::Warning)], "{chains}");
    }
    for (family, name) in [
        ("inet", "kube-network-policies"),
        ("inet", "kindnet-network-policies"),
        ("ip6", "kube-router-filter-ipv6"),
        ("ip", "calico"),
        ("inet", "antrea"),
    ] {
        let found = with_tables(table(family, name, Vec::new()));
        assert_eq!(found, [("other-policy", Severity::Warning)], "{name}");
    }
    let proxy = with_tables(table("ip", "nat", vec![regular("KUBE-SERVICES")]));

    assert_eq!(proxy, []);
}

#[test]
fn what_passes_by_our_hooks_is_found() {
    let ipvs = after(|facts| {
        let survey = Survey {
            links: vec![SurveyedLink {
                index: 9,
                name: "kube-ipvs0".into(),
                kind: None,
                master: None,
                has_peer: false,
            }],
            ..Survey::default()
        };
        facts.detection = Look::Seen(detect(&survey));
    });

    assert_eq!(ipvs, [("past-policy", Severity::Serious)]);
}

#[test]
fn local_dns_is_found_by_its_device_or_by_its_rules() {
    let device = with_links(|links| links.push(link("nodelocaldns", 1500, &["169.254.20.10"])));
    let rules = after(|facts| {
        let Look::Seen(tables) = &mut facts.tables else {
            panic!("they were seen");
        };
        tables.untracking.insert(("ip", "raw".into()));
    });

    assert_eq!(device, [("local-dns", Severity::Note)]);
    assert_eq!(rules, [("local-dns", Severity::Note)]);
}

#[test]
fn faults_of_flannel_are_told_under_their_subject() {
    let no_file = with_flannel(|inputs| inputs.subnet_env = None);
    let no_network = with_flannel(|inputs| {
        inputs.nodes[0].pod_networks = flannel_adapter::Networks::default();
    });
    let other_network = with_flannel(|inputs| {
        inputs.nodes[0].pod_networks.ipv4 = Some("10.244.9.0/24".parse().unwrap());
    });
    let stale = with_flannel(|inputs| {
        inputs.routes = vec![("10.244.7.0/24".parse().unwrap(), "flannel.1".into())];
    });
    let address = with_links(|links| links[2].addresses = vec!["10.244.3.1".parse().unwrap()]);

    assert_eq!(no_file, [("flannel", Severity::Serious)]);
    assert_eq!(no_network, [("pod-network", Severity::Serious)]);
    assert_eq!(other_network, [("pod-network", Severity::Serious)]);
    assert_eq!(stale, [("stale-routes", Severity::Warning)]);
    assert_eq!(address, [("bridge-address", Severity::Serious)]);
}

#[test]
fn largest_packets_are_compared_from_pod_to_uplink() {
    for changed in [0, 1, 2, 3] {
        let found = with_links(|links| links[changed].mtu = 1400);
        assert_eq!(found, [("mtu", Severity::Warning)], "{changed}");
    }
    assert_eq!(with_links(|links| links[0].mtu = 9000), []);
}

#[test]
fn a_changed_tunnel_end_is_found_without_flannels_configuration() {
    let told = Vtep {
        vni: 1,
        mac: MacAddress([2, 0, 0, 0, 0, 1]),
    };
    let with = |vtep: Vtep, mac: [u8; 6]| {
        after(|facts| {
            let mut links = links();
            links[1].mac = Some(MacAddress(mac));
            facts.flannel = flannel(&links, |inputs| inputs.nodes[0].vtep = Some(vtep));
            facts.links = Look::Seen(links);
        })
    };

    let serious = [("vtep", Severity::Serious)];
    assert_eq!(with(told, [2, 0, 0, 0, 0, 1]), []);
    assert_eq!(with(told, [2, 0, 0, 0, 0, 9]), serious);
    assert_eq!(with(Vtep { vni: 7, ..told }, [2, 0, 0, 0, 0, 1]), serious);
}

#[test]
fn checksums_matter_on_old_kernels_and_behind_translation() {
    let old = after(|facts| facts.kernel = Look::Seen("5.4.0-150-generic".to_owned()));
    let translated = with_flannel(|inputs| {
        inputs.nodes[0].public = flannel_adapter::Addresses {
            ipv4: Some("198.51.100.7".parse().unwrap()),
            ipv6: None,
        };
    });

    let warning = ("vxlan-checksum", Severity::Warning);
    assert_eq!(old, [("kernel", Severity::Warning), warning]);
    assert_eq!(translated, [warning]);
}

#[test]
fn hidden_clients_are_found() {
    let found = with_tables(table("ip", "nat", vec![regular("FLANNEL-POSTRTG")]));

    assert_eq!(found, [("client-address", Severity::Note)]);
}

#[test]
fn settings_of_the_host_are_found() {
    let not_forwarding = after(|facts| facts.settings.forwards_ipv4 = Some(false));
    let strict = with_links(|links| links[1].reverse_path = Some(1));
    let strict_uplink = with_links(|links| links[0].reverse_path = Some(1));
    let short = after(|facts| facts.settings.tcp_seconds = Some(300));
    let fill = |count| after(move |facts| facts.settings.connections = Some(count));

    assert_eq!(not_forwarding, [("forwarding", Severity::Serious)]);
    assert_eq!(strict, [("reverse-path", Severity::Note)]);
    assert_eq!(strict_uplink, []);
    assert_eq!(short, [("conntrack", Severity::Warning)]);
    assert_eq!(fill(79), []);
    assert_eq!(fill(80), [("conntrack", Severity::Warning)]);
    assert_eq!(fill(95), [("conntrack", Severity::Serious)]);
}

#[test]
fn the_kernel_and_nft_say_what_they_can_do() {
    let kernel = |release: &str| after(|facts| facts.kernel = Look::Seen(release.to_owned()));

    assert_eq!(kernel("6.9.0"), []);
    assert_eq!(kernel("6.1.0-18-amd64"), [("kernel", Severity::Note)]);
    assert_eq!(kernel("5.10.0"), [("kernel", Severity::Note)]);
    assert_eq!(
        kernel("4.19.0").first(),
        Some(&("kernel", Severity::Serious))
    );
    assert_eq!(kernel("mine"), [("kernel", Severity::Unseen)]);
    let old = after(|facts| facts.nft_program = Some("nftables v0.9.8 (E.D.S.)".to_owned()));
    assert_eq!(old, [("nft-program", Severity::Note)]);
    assert_eq!(after(|facts| facts.nft_program = None), []);
}

#[test]
fn configurations_that_fight_are_found() {
    const OTHER: &str = r#"{"name": "k8s-pod-network", "plugins": [{"type": "calico"}]}"#;
    const CALICO_FILE: &str = "05-calico.conflist";
    let with = |files: &[(&str, &str)]| {
        let cni = cni(files);
        after(|facts| facts.cni = Look::Seen(cni))
    };

    let beside = with(&[("10-flannel.conflist", CBR0), ("20-copy.conflist", CBR0)]);
    let broken = with(&[("05-x.conf", "{"), ("10-flannel.conflist", CBR0)]);
    let fighting = with(&[(CALICO_FILE, OTHER), ("10-flannel.conflist", CBR0)]);
    let none = with(&[]);

    assert_eq!(beside, []);
    assert_eq!(broken, [("cni", Severity::Warning)]);
    assert_eq!(fighting, [("cni", Severity::Warning)]);
    assert_eq!(none, [("cni", Severity::Note)]);
}

#[test]
fn what_an_agent_left_is_told_apart() {
    let state = |has_enforced| {
        Look::Seen(Some(State {
            folder: "/var/lib/towpath".to_owned(),
            has_enforced,
            seconds_ago: Some(7_300),
            bypasses: Vec::new(),
        }))
    };
    let with = |has_tables: bool, has_enforced: bool, is_chained: bool| {
        after(|facts| {
            facts.state = state(has_enforced);
            if let (true, Look::Seen(tables)) = (has_tables, &mut facts.tables) {
                tables
                    .tables
                    .push(table("inet", "towpath", vec![chain("forward", false)]));
            }
            if let (true, Look::Seen(cni)) = (is_chained, &mut facts.cni) {
                cni.drop_ins = vec!["cbr0".into()];
            }
        })
    };

    let serious = |id| (id, Severity::Serious);
    assert_eq!(with(false, false, false), []);
    assert_eq!(with(true, true, false), [serious("agent")]);
    assert_eq!(with(false, true, false), [serious("agent")]);
    let leftover = [serious("agent"), ("leftovers", Severity::Warning)];
    assert_eq!(with(true, false, false), leftover);
    assert_eq!(with(false, false, true), [serious("leftovers")]);
}

#[test]
fn what_was_opened_without_an_agent_is_told_while_there_are_tables() {
    let open = Bypass {
        scope: BypassScope::Node,
        reason: "drill".to_owned(),
        begun: 1_000,
        until: 1_900,
        seconds_left: 600,
        addresses: Vec::new(),
    };
    let with = |has_tables: bool| {
        after(|facts| {
            facts.state = Look::Seen(Some(State {
                has_enforced: true,
                bypasses: vec![open.clone()],
                ..State::default()
            }));
            if let (true, Look::Seen(tables)) = (has_tables, &mut facts.tables) {
                tables
                    .tables
                    .push(table("inet", "towpath", vec![chain("forward", false)]));
            }
        })
    };

    let serious = ("agent", Severity::Serious);
    assert_eq!(with(true), [serious, ("agent", Severity::Warning)]);
    assert_eq!(with(false), [serious]);
}
