//! The lab itself: without an agent everything reaches everything, and nothing is left behind.

use std::net::Ipv4Addr;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;
use std::time::Duration;

use towpath_tests::frame::{self, Capture};
use towpath_tests::lab::{Backend, Lab, LabConfig, PodSpec};
use towpath_tests::matrix::Matrix;
use towpath_tests::netns::{self, Namespace};
use towpath_tests::probe::{Outcome, Patience, Protocol, Target, probe};
use towpath_tests::stream::Stream;
use towpath_tests::{program, require};

const SETTLE: Duration = Duration::from_secs(10);

/// Two pods on node-a, one on node-b.
fn three_pods(config: &LabConfig) -> anyhow::Result<Lab> {
    let mut lab = Lab::new(config)?;
    lab.write_namespace("shop", &[("team", "shop")])?;
    for (name, node) in [("web", "node-a"), ("api", "node-a"), ("db", "node-b")] {
        let spec = PodSpec::new(node, "shop", name)
            .label("app", name)
            .tcp(80)
            .udp(53);
        lab.add_pod(spec)?;
    }
    Ok(lab)
}

/// IPv4 packet in an Ethernet frame with this payload at its end.
fn ends_with(payload: &'static [u8]) -> impl Fn(&[u8]) -> bool {
    move |frame| frame.ends_with(payload)
}

#[test]
fn everything_reaches_everything_over_vxlan() {
    require!("lab", Root, CniPlugins, Vxlan);
    let lab = three_pods(&LabConfig::default()).unwrap();

    let matrix = Matrix::settle(&lab, SETTLE, |_| true).unwrap();

    assert_eq!(matrix.checks.len(), 3 * 2 * 2);
    assert_eq!(matrix.passed(), matrix.checks.len());
    lab.close().unwrap();
}

#[test]
fn everything_reaches_everything_by_host_routes() {
    require!("lab", Root, CniPlugins);
    let lab = three_pods(&LabConfig {
        backend: Backend::HostGateway,
        ..LabConfig::default()
    })
    .unwrap();

    let matrix = Matrix::settle(&lab, SETTLE, |_| true).unwrap();

    assert_eq!(matrix.passed(), matrix.checks.len());
}

#[test]
fn both_families_reach_everything() {
    require!("lab", Root, CniPlugins, Vxlan, Ipv6);
    let lab = three_pods(&LabConfig {
        ipv6: true,
        ..LabConfig::default()
    })
    .unwrap();

    let matrix = Matrix::settle(&lab, SETTLE, |_| true).unwrap();

    let ipv6 = matrix
        .checks
        .iter()
        .filter(|check| check.target.address.is_ipv6());
    assert_eq!(ipv6.count(), matrix.checks.len() / 2);
}

#[test]
fn pods_and_nodes_reach_each_other() {
    require!("lab", Root, CniPlugins, Vxlan);
    let lab = three_pods(&LabConfig::default()).unwrap();
    let pod = lab.pod("shop/web").unwrap();
    let here = &lab.nodes()[0];
    let there = &lab.nodes()[1];

    let from_pod: Vec<Target> = [here.addresses[0], there.addresses[0]]
        .map(Target::icmp)
        .into();
    let from_pod = probe(&pod.namespace, &from_pod, Patience::LONG).unwrap();
    let from_node = probe(&there.namespace, &pod.targets(), Patience::LONG).unwrap();

    assert!(from_pod.iter().all(Outcome::passed), "{from_pod:?}");
    assert!(from_node.iter().all(Outcome::passed), "{from_node:?}");
}

#[test]
fn answered_refused_and_silent_are_three_outcomes() {
    require!("lab", Root, CniPlugins, Vxlan, Nft);
    let lab = three_pods(&LabConfig::default()).unwrap();
    let to = lab.pod("shop/db").unwrap().ipv4().unwrap();
    let from = lab.pod("shop/web").unwrap();
    let rules = "add table ip test; add chain ip test in { type filter hook input priority 0; }; \
                 add rule ip test in tcp dport 80 drop";
    lab.pod("shop/db")
        .unwrap()
        .namespace
        .run(Command::new("nft").arg(rules))
        .unwrap();

    let targets = [
        Target::tcp(to, 80),
        Target::udp(to, 53),
        Target::tcp(to, 81),
        Target::udp(to, 81),
    ];
    let outcomes = probe(&from.namespace, &targets, Patience::default()).unwrap();

    assert_eq!(outcomes[0], Outcome::TimedOut);
    assert!(
        matches!(&outcomes[1], Outcome::Answered { by, .. } if by == "shop/db"),
        "{outcomes:?}"
    );
    assert!(
        matches!(outcomes[2], Outcome::Refused { .. }),
        "{outcomes:?}"
    );
    assert!(
        matches!(outcomes[3], Outcome::Refused { .. }),
        "{outcomes:?}"
    );
}

#[test]
fn streams_count_what_comes_back() {
    require!("lab", Root, CniPlugins, Vxlan);
    let lab = three_pods(&LabConfig::default()).unwrap();
    let from = lab.pod("shop/web").unwrap();
    let to = lab.pod("shop/db").unwrap();
    let server = to.serve_push(9000).unwrap();
    let address = to.ipv4().unwrap();
    Matrix::settle(&lab, SETTLE, |_| true).unwrap();

    let tcp = Stream::echo(&from.namespace, (address, 80).into(), Protocol::Tcp, 1000).unwrap();
    let udp = Stream::echo(&from.namespace, (address, 53).into(), Protocol::Udp, 1000).unwrap();
    let pushed = Stream::listen(&from.namespace, (address, 9000).into()).unwrap();
    // Any work will do; meanwhile messages flow.
    Matrix::settle(&lab, SETTLE, |_| true).unwrap();
    let [tcp, udp, pushed] = [tcp, udp, pushed].map(|stream| stream.finish().unwrap());

    for report in [&tcp, &udp] {
        assert!(report.sent > 0, "{report:?}");
        assert_eq!(report.sent, report.received, "{report:?}");
    }
    assert!(pushed.received > 0 && pushed.sent == 0, "{pushed:?}");
    assert_eq!([tcp.error, udp.error, pushed.error], [None, None, None]);
    drop(server);
}

#[test]
fn frames_made_by_hand_arrive() {
    require!("lab", Root, CniPlugins, Vxlan);
    let lab = three_pods(&LabConfig::default()).unwrap();
    let from = lab.pod("shop/web").unwrap();
    let to = lab.pod("shop/api").unwrap();
    let mut capture = Capture::start(&to.namespace).unwrap();

    let packet = |source: &str, payload: &[u8]| {
        let source: Ipv4Addr = source.parse().unwrap();
        let destination = to.ipv4().unwrap();
        let datagram = frame::udp((source.into(), 1000), (destination.into(), 53), payload);
        let packet = frame::ipv4(source, destination, 17, &datagram);
        frame::ethernet(to.mac, from.mac, frame::IPV4, &packet)
    };
    // The second has a source address that is not the pod's: without an agent it arrives like any other.
    let frames = [
        packet("10.244.1.250", b"spoofed"),
        packet("10.244.1.251", b"fence"),
    ];
    frame::send(&from.namespace, "eth0", &frames).unwrap();
    let seen = capture.until(ends_with(b"fence")).unwrap();

    assert!(seen.iter().any(|frame| *frame == frames[0]), "{seen:?}");
}

#[test]
fn removed_pod_is_gone_and_its_address_store_empty() {
    require!("lab", Root, CniPlugins, Vxlan);
    let mut lab = three_pods(&LabConfig::default()).unwrap();
    let pod = lab.pod("shop/db").unwrap();
    let namespace = pod.namespace.name().to_owned();
    let address = pod.ipv4().unwrap();
    let manifest = lab.manifests.folder().join("pod-shop-db.yaml");
    let store = lab
        .folder()
        .join("node-b/networks/cbr0")
        .join(address.to_string());
    assert!(manifest.exists() && store.exists());

    lab.remove_pod("shop/db").unwrap();

    assert!(!manifest.exists() && !store.exists());
    assert!(!netns::list(&namespace).unwrap().contains(&namespace));
    assert!(lab.pod("shop/db").is_err());
}

#[test]
fn nothing_is_left_of_a_lab() {
    require!("lab", Root, CniPlugins, Vxlan);
    let lab = three_pods(&LabConfig::default()).unwrap();
    let prefix = lab.prefix().to_owned();
    let folder = lab.folder().to_owned();
    assert_eq!(netns::list(&prefix).unwrap().len(), 1 + 2 + 3);

    lab.close().unwrap();

    assert_eq!(netns::list(&prefix).unwrap(), Vec::<String>::new());
    assert!(!folder.exists());
}

#[test]
fn nothing_is_left_of_a_run_that_was_killed() {
    require!("lab", Root);
    let prefix = format!("tpk{:x}", std::process::id());
    let namespace = format!("{prefix}-orphan");
    netns::run(Command::new("ip").args(["netns", "add", &namespace])).unwrap();
    let mut server = Namespace::existing(&namespace)
        .spawn(Command::new("sleep").arg("600"))
        .unwrap();
    // The run is a process that holds the other end of the keeper's pipe.
    let (reader, writer) = std::io::pipe().unwrap();
    let mut run = Command::new("sleep")
        .arg("600")
        .stdout(writer)
        .spawn()
        .unwrap();
    let mut keeper = Command::new(program::probe().unwrap())
        .args(["keep", "--prefix", &prefix, "--folder", "/nonexistent"])
        .stdin(reader)
        .spawn()
        .unwrap();

    run.kill().unwrap();

    assert!(keeper.wait().unwrap().success());
    assert_eq!(netns::list(&prefix).unwrap(), Vec::<String>::new());
    assert_eq!(server.wait().unwrap().signal(), Some(9));
    run.wait().unwrap();
}
