//! Endpoint discovery and bridge settings against the real kernel.

#![expect(clippy::unwrap_used, reason = "helpers of tests; a panic is a failure")]

mod lab;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use nix::net::if_::if_nametoindex;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, sendto, socket};

use towpath_dataplane::link::{
    BridgeSettings, Changes, Event, Interface, Inventory, PeerFacts, PodChange, PodFilter,
    PodInterface, Scan, Scanner, Watcher,
};

use crate::lab::{Namespace, feed, in_fresh_namespace, ip};

const MAC_A: &str = "02:00:00:00:00:0a";
const MAC_B: &str = "02:00:00:00:00:0b";
const MAC_C: &str = "02:00:00:00:00:0c";

/// Scanner, watcher and inventory as the agent runs them.
struct Observer {
    scanner: Scanner,
    watcher: Watcher,
    inventory: Inventory,
}

impl Observer {
    fn start(filter: PodFilter) -> Self {
        let mut scanner = Scanner::open().unwrap();
        let watcher = Watcher::open(&scanner).unwrap();
        let mut inventory = Inventory::new(filter);
        inventory.apply(Scan::Full(scanner.discover().unwrap()));
        Self {
            scanner,
            watcher,
            inventory,
        }
    }

    /// Handles events until one of them brings what `is_awaited` looks for.
    fn until(&mut self, what: &str, mut is_awaited: impl FnMut(&Inventory, &Changes) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "never saw: {what}");
            for event in self.watcher.wait(left).unwrap().events {
                for scan in self.scanner.follow(&event, &self.inventory).unwrap() {
                    let changes = self.inventory.apply(scan);
                    if is_awaited(&self.inventory, &changes) {
                        return;
                    }
                }
            }
        }
    }

    /// Handles events until the pod behind `name` looks as wanted.
    fn until_pod(&mut self, name: &str, is_awaited: impl Fn(&PodInterface) -> bool) {
        self.until(&format!("pod behind {name}"), |_, changes| {
            changes.pods.iter().any(|change| match change {
                PodChange::Upsert(pod) => pod.name == name && is_awaited(pod),
                PodChange::Remove(_) => false,
            })
        });
    }

    fn interface(&self, name: &str) -> &Interface {
        self.inventory
            .interfaces()
            .find(|interface| interface.name == name)
            .unwrap()
    }

    /// What incremental work arrived at equals what a fresh look finds.
    fn assert_agrees_with_fresh_scan(&mut self, filter: PodFilter) {
        let mut fresh = Inventory::new(filter);
        fresh.apply(Scan::Full(self.scanner.discover().unwrap()));
        let pods = |inventory: &Inventory| inventory.pods().cloned().collect::<Vec<_>>();
        assert_eq!(pods(&self.inventory), pods(&fresh));
    }
}

fn flannel() -> PodFilter {
    PodFilter {
        bridges: vec!["cni0".into()],
        prefixes: vec!["cali".into()],
        networks: vec!["10.244.0.0/16".parse().unwrap()],
        uplinks: vec!["up0".into()],
    }
}

fn mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Vec<u8> = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect();
    bytes.try_into().ok()
}

fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// Name, bridge, MAC and addresses of the known pods.
type Seen<'a> = (&'a str, Option<&'a str>, Option<[u8; 6]>, Vec<IpAddr>);

fn seen(inventory: &Inventory) -> Vec<Seen<'_>> {
    let mut seen: Vec<_> = inventory
        .pods()
        .map(|pod| {
            (
                pod.name.as_str(),
                pod.bridge.as_deref(),
                pod.mac,
                pod.addresses.clone(),
            )
        })
        .collect();
    seen.sort_unstable();
    seen
}

fn bridge(name: &str) {
    ip(&format!("link add {name} type bridge"));
    ip(&format!("link set {name} up"));
}

#[test]
fn finds_bridged_routed_and_dual_stack_pods_and_nothing_else() {
    in_fresh_namespace("link", "finds_bridged_routed_and_dual_stack_pods", || {
        let spaces: Vec<Namespace> = (0..6).map(|_| Namespace::new()).collect();
        bridge("cni0");
        bridge("docker0");
        ip("addr add 10.244.1.1/24 dev cni0");
        spaces[0].plug("veth0a", Some("cni0"), MAC_A, &["10.244.1.5/24"]);
        spaces[1].plug(
            "veth0b",
            Some("cni0"),
            MAC_B,
            &["10.244.1.6/24", "fd00:244:1::6/64"],
        );
        spaces[2].plug("cali0c", None, MAC_C, &["192.0.2.7/32"]);
        spaces[3].plug("ptp0d", None, MAC_A, &["10.244.1.8/32"]);
        // Not pods: a container of another network, and an uplink that uses a pod address.
        spaces[4].plug("veth0e", Some("docker0"), MAC_B, &["172.17.0.2/16"]);
        spaces[5].plug("up0", Some("cni0"), MAC_C, &["10.244.1.9/24"]);

        let observer = Observer::start(flannel());

        assert_eq!(
            seen(&observer.inventory),
            [
                ("cali0c", None, mac(MAC_C), addresses(&["192.0.2.7"])),
                ("ptp0d", None, mac(MAC_A), addresses(&["10.244.1.8"])),
                (
                    "veth0a",
                    Some("cni0"),
                    mac(MAC_A),
                    addresses(&["10.244.1.5"])
                ),
                (
                    "veth0b",
                    Some("cni0"),
                    mac(MAC_B),
                    addresses(&["10.244.1.6", "fd00:244:1::6"])
                ),
            ]
        );
        assert!(observer.inventory.pods().all(|pod| pod.has_link_local));
        let port = |name| observer.interface(name).index;
        assert_eq!(
            observer.inventory.pod_ports(),
            BTreeSet::from([port("veth0a"), port("veth0b")])
        );
        let cni0 = observer.interface("cni0");
        assert!(observer.inventory.host_addresses().iter().any(|host| {
            host.index == cni0.index
                && host.address == IpAddr::from([10, 244, 1, 1])
                && host.prefix_length == 24
        }));
    });
}

#[test]
fn a_veth_without_other_namespace_is_a_port_but_no_pod() {
    in_fresh_namespace("link", "a_veth_without_other_namespace", || {
        bridge("cni0");
        ip("link add veth0a type veth peer name veth0b");
        ip("link set veth0a master cni0");

        let observer = Observer::start(flannel());

        assert_eq!(seen(&observer.inventory), []);
        let port = observer.interface("veth0a").index;
        assert_eq!(observer.inventory.pod_ports(), BTreeSet::from([port]));
    });
}

#[test]
fn follows_a_pod_from_its_start_to_its_end() {
    in_fresh_namespace("link", "follows_a_pod_from_its_start_to_its_end", || {
        let pod = Namespace::new();
        let mut observer = Observer::start(flannel());
        assert!(observer.watcher.hears_namespaces());

        bridge("cni0");
        observer.until("the bridge", |_, changes| changes.are_pod_bridges_changed);
        pod.plug("veth0a", Some("cni0"), MAC_A, &["10.244.1.5/24"]);
        observer.until_pod("veth0a", |pod| {
            pod.mac == mac(MAC_A) && pod.addresses == addresses(&["10.244.1.5"])
        });
        assert_eq!(observer.inventory.pod_ports().len(), 1);

        pod.ip("addr add fd00:244:1::5/64 dev eth0 nodad");
        observer.until_pod("veth0a", |pod| pod.addresses.len() == 2);
        pod.ip("addr del 10.244.1.5/24 dev eth0");
        observer.until_pod("veth0a", |pod| {
            pod.addresses == addresses(&["fd00:244:1::5"])
        });
        pod.ip(&format!("link set eth0 address {MAC_B}"));
        observer.until_pod("veth0a", |pod| pod.mac == mac(MAC_B));
        ip("link set veth0a name veth0z");
        observer.until_pod("veth0z", |pod| pod.bridge.as_deref() == Some("cni0"));
        observer.assert_agrees_with_fresh_scan(flannel());

        let index = observer.interface("veth0z").index;
        ip("link set veth0z nomaster");
        observer.until("the port's end", |_, changes| {
            changes.pods == [PodChange::Remove(index)]
        });
        assert_eq!(observer.inventory.pod_ports(), BTreeSet::new());
        ip("link set veth0z master cni0");
        observer.until_pod("veth0z", |_| true);
        ip("link del veth0z");
        observer.until("the link's end", |_, changes| {
            changes.pods == [PodChange::Remove(index)]
        });
        observer.assert_agrees_with_fresh_scan(flannel());
    });
}

#[test]
fn follows_an_end_that_moves_between_namespaces() {
    in_fresh_namespace(
        "link",
        "follows_an_end_that_moves_between_namespaces",
        || {
            let (first, second) = (Namespace::new(), Namespace::new());
            bridge("cni0");
            first.plug("veth0a", Some("cni0"), MAC_A, &["10.244.1.5/24"]);
            let mut observer = Observer::start(flannel());
            let before = observer.inventory.pods().next().unwrap().peer;

            first.ip(&format!("link set eth0 netns {}", second.name));
            second.ip("link set eth0 up");
            second.ip("addr add 10.244.1.6/24 dev eth0");
            observer.until_pod("veth0a", |pod| pod.addresses == addresses(&["10.244.1.6"]));

            assert_ne!(
                observer.inventory.pods().next().unwrap().peer.nsid,
                before.nsid
            );
            observer.assert_agrees_with_fresh_scan(flannel());
        },
    );
}

#[test]
fn a_reused_namespace_number_does_not_mix_pods_up() {
    in_fresh_namespace("link", "a_reused_namespace_number", || {
        bridge("cni0");
        let mut observer = Observer::start(flannel());
        let mut numbers = BTreeSet::new();

        for round in 1..=5 {
            let pod = Namespace::new();
            let name = format!("veth{round}");
            let address = format!("10.244.1.{round}");
            pod.plug(&name, Some("cni0"), MAC_A, &[&format!("{address}/24")]);
            observer.until_pod(&name, |pod| pod.addresses == addresses(&[&address]));
            let known = observer.inventory.pods().find(|pod| pod.name == name);
            numbers.insert(known.unwrap().peer.nsid);
            assert_eq!(
                observer
                    .inventory
                    .pods()
                    .filter(|pod| pod.addresses == addresses(&[&address]))
                    .count(),
                1
            );
            drop(pod);
            // The next pod comes before we hear of this one's end, except in the last round.
        }
        observer.until("the last pod's end", |inventory, _| {
            inventory.pods().count() == 0
        });

        assert!(
            numbers.len() < 5,
            "the kernel re-used no number: {numbers:?}"
        );
        observer.assert_agrees_with_fresh_scan(flannel());
    });
}

#[test]
fn a_number_of_no_namespace_is_an_empty_scan() {
    in_fresh_namespace("link", "a_number_of_no_namespace", || {
        let nsid = towpath_dataplane::link::NamespaceId::from_kernel(4711).unwrap();
        let mut scanner = Scanner::open().unwrap();

        assert_eq!(
            scanner.rescan_namespace(nsid).unwrap(),
            Scan::Namespace {
                nsid,
                members: Vec::new()
            }
        );
        assert_eq!(
            scanner.rescan_link(4711).unwrap(),
            Scan::Link {
                index: 4711,
                found: None
            }
        );
    });
}

#[test]
fn a_macvlan_in_a_pod_is_not_taken_for_the_other_end_of_its_lower_veth() {
    in_fresh_namespace("link", "a_macvlan_in_a_pod", || {
        let (uplink, pod) = (Namespace::new(), Namespace::new());
        uplink.plug("eth0", None, MAC_A, &["198.51.100.1/24"]);
        ip(&format!(
            "link add link eth0 name mac0 netns {} type macvlan mode bridge",
            pod.name
        ));
        pod.ip("link set mac0 up");
        pod.ip("addr add 10.244.1.5/24 dev mac0");

        let observer = Observer::start(flannel());

        assert_eq!(seen(&observer.inventory), []);
    });
}

#[test]
fn a_pod_cannot_fill_our_memory_with_addresses() {
    in_fresh_namespace("link", "a_pod_cannot_fill_our_memory", || {
        let pod = Namespace::new();
        bridge("cni0");
        pod.plug("veth0a", Some("cni0"), MAC_A, &["10.244.1.5/24"]);
        let mut more = String::new();
        for n in 0..2000 {
            writeln!(more, "addr add 10.9.{}.{}/32 dev eth0", n / 250, n % 250).unwrap();
        }
        feed("ip", &["-n", &pod.name, "-batch", "-"], &more);

        let observer = Observer::start(flannel());

        let known = &observer.inventory.pods().next().unwrap().addresses;
        assert_eq!(known.len(), PeerFacts::MAX_ADDRESSES);
        assert!(known.contains(&IpAddr::from([10, 244, 1, 5])));
    });
}

#[test]
fn lost_events_lead_to_a_full_scan() {
    in_fresh_namespace("link", "lost_events_lead_to_a_full_scan", || {
        let pod = Namespace::new();
        bridge("cni0");
        pod.plug("veth0a", Some("cni0"), MAC_A, &["10.244.1.5/24"]);
        let mut observer = Observer::start(flannel());

        let flood = "addr add 10.9.9.9/32 dev eth0\naddr del 10.9.9.9/32 dev eth0\n".repeat(20_000);
        feed("ip", &["-n", &pod.name, "-batch", "-"], &flood);
        pod.ip("addr add 10.244.1.6/24 dev eth0");
        let events = observer
            .watcher
            .wait(Duration::from_secs(20))
            .unwrap()
            .events;

        assert_eq!(events, [Event::Overrun]);
        let scans = observer
            .scanner
            .follow(&events[0], &observer.inventory)
            .unwrap();
        assert!(matches!(scans[..], [Scan::Full(_)]));
        for scan in scans {
            observer.inventory.apply(scan);
        }
        assert_eq!(
            observer.inventory.pods().next().unwrap().addresses,
            addresses(&["10.244.1.5", "10.244.1.6"])
        );
    });
}

#[test]
fn a_waker_ends_the_wait() {
    in_fresh_namespace("link", "a_waker_ends_the_wait", || {
        let scanner = Scanner::open().unwrap();
        let mut watcher = Watcher::open(&scanner).unwrap();
        let waker = watcher.waker();

        let stop = std::thread::spawn(move || waker.wake());
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut is_woken = false;
        while !is_woken && Instant::now() < deadline {
            is_woken = watcher.wait(Duration::from_secs(20)).unwrap().is_woken;
        }
        stop.join().unwrap();

        assert!(is_woken);
    });
}

const OFF: BridgeSettings = BridgeSettings {
    nf_call_iptables: false,
    nf_call_ip6tables: false,
    no_linklocal_learn: false,
};

#[test]
fn sets_and_restores_the_settings_of_a_bridge() {
    in_fresh_namespace("link", "sets_and_restores_the_settings_of_a_bridge", || {
        bridge("cni0");
        let mut observer = Observer::start(flannel());
        let index = observer.interface("cni0").index;

        let enforcing = BridgeSettings::ENFORCING;
        let before = observer.scanner.set_bridge(index, enforcing).unwrap();
        assert_eq!(before, OFF);
        let again = observer.scanner.set_bridge(index, enforcing).unwrap();
        assert_eq!(again, enforcing);
        observer.until("our own change", |inventory, _| {
            inventory.interface(index).unwrap().bridge_settings == Some(enforcing)
        });

        for (option, changed) in [
            (
                "nf_call_ip6tables",
                BridgeSettings {
                    nf_call_ip6tables: false,
                    ..enforcing
                },
            ),
            (
                "no_linklocal_learn",
                BridgeSettings {
                    nf_call_ip6tables: false,
                    no_linklocal_learn: false,
                    ..enforcing
                },
            ),
        ] {
            ip(&format!("link set cni0 type bridge {option} 0"));
            observer.until("the change of somebody else", |inventory, changes| {
                changes.are_pod_bridges_changed
                    && inventory
                        .pod_bridges()
                        .all(|bridge| bridge.bridge_settings == Some(changed))
            });
        }
        observer.scanner.set_bridge(index, before).unwrap();
        assert_eq!(observer.scanner.bridge_settings(index).unwrap(), OFF);
    });
}

/// Whether the bridge has learnt the address behind the port, after a frame from there to the control address.
fn teaches(pod: &Namespace, control: [u8; 6], source: [u8; 6]) -> bool {
    // A frame that comes after it on the same port, and teaches the bridge in any case, says when to look.
    static MARKS: AtomicU8 = AtomicU8::new(1);
    let mark = [2, 0xaa, 0, 0, 0, MARKS.fetch_add(1, Ordering::Relaxed)];
    pod.run(|| {
        send_frame("eth0", &ethernet(control, source, 0x88cc));
        send_frame("eth0", &ethernet([0xff; 6], mark, 0x88b5));
    });
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let learnt = forwarding_database();
        if learnt.contains(&hardware(mark)) {
            return learnt.contains(&hardware(source));
        }
        assert!(Instant::now() < deadline, "the bridge learns nothing");
        std::thread::yield_now();
    }
}

fn hardware(address: [u8; 6]) -> String {
    address.map(|byte| format!("{byte:02x}")).join(":")
}

fn forwarding_database() -> String {
    let output = Command::new("bridge")
        .args(["fdb", "show", "br", "cni0"])
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn ethernet(to: [u8; 6], from: [u8; 6], kind: u16) -> Vec<u8> {
    let mut frame = [to, from].concat();
    frame.extend(kind.to_be_bytes());
    frame.resize(60, 0);
    frame
}

/// Sends a whole frame from an interface of the calling thread's namespace.
fn send_frame(interface: &str, frame: &[u8]) {
    let socket = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .unwrap();
    let mut interfaces = nix::ifaddrs::getifaddrs().unwrap();
    let address = interfaces
        .find_map(|found| {
            let address = *found.address?.as_link_addr()?;
            (found.interface_name == interface).then_some(address)
        })
        .unwrap();
    let sent = sendto(socket.as_raw_fd(), frame, &address, MsgFlags::empty()).unwrap();
    assert_eq!(sent, frame.len());
}

#[test]
fn frames_to_control_addresses_do_not_teach_an_enforcing_bridge() {
    const NAME: &str = "frames_to_control_addresses_do_not_teach_an_enforcing_bridge";
    in_fresh_namespace("link", NAME, || {
        let pod = Namespace::new();
        bridge("cni0");
        pod.plug("veth0a", Some("cni0"), MAC_A, &["10.244.1.5/24"]);
        let mut scanner = Scanner::open().unwrap();
        let index = if_nametoindex("cni0").unwrap();
        let lldp = [1, 0x80, 0xc2, 0, 0, 0x0e];
        let other = [1, 0x80, 0xc2, 0, 0, 3];

        let before = [
            teaches(&pod, lldp, [2, 0xbb, 0, 0, 0, 1]),
            teaches(&pod, other, [2, 0xbb, 0, 0, 0, 2]),
        ];
        scanner
            .set_bridge(index, BridgeSettings::ENFORCING)
            .unwrap();
        let after = [
            teaches(&pod, lldp, [2, 0xbb, 0, 0, 0, 3]),
            teaches(&pod, other, [2, 0xbb, 0, 0, 0, 4]),
        ];

        assert_eq!((before, after), ([true; 2], [false; 2]));
    });
}

#[test]
fn names_what_is_not_a_bridge() {
    in_fresh_namespace("link", "names_what_is_not_a_bridge", || {
        let mut scanner = Scanner::open().unwrap();

        let error = scanner
            .set_bridge(1, BridgeSettings::ENFORCING)
            .unwrap_err();

        assert_eq!(error.to_string(), "cannot find a bridge with number 1");
        assert_eq!(error.errno(), Some(nix::errno::Errno::ENODEV));
    });
}

/// Set in the second run of this program, which lacks a capability.
const LACKS: &str = "TOWPATH_TEST_LACKS";

/// Runs the test `name` of this program again without a capability.
fn run_again_without(capability: &str, name: &str) {
    let status = Command::new("setpriv")
        .arg(format!("--bounding-set=-{capability}"))
        .arg(format!("--inh-caps=-{capability}"))
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(LACKS, capability)
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn polls_where_it_may_not_listen_to_namespaces() {
    const NAME: &str = "polls_where_it_may_not_listen_to_namespaces";
    in_fresh_namespace("link", NAME, || {
        if std::env::var_os(LACKS).is_none() {
            run_again_without("net_broadcast", NAME);
            return;
        }
        let pod = Namespace::new();
        bridge("cni0");
        pod.plug("veth0a", Some("cni0"), MAC_A, &["10.244.1.5/24"]);
        let mut observer = Observer::start(flannel());
        assert!(!observer.watcher.hears_namespaces());

        pod.ip("addr add 10.244.1.6/24 dev eth0");
        observer.until_pod("veth0a", |pod| pod.addresses.len() == 2);

        observer.assert_agrees_with_fresh_scan(flannel());
    });
}

#[test]
fn says_which_capability_is_missing() {
    const NAME: &str = "says_which_capability_is_missing";
    if std::env::var_os(LACKS).is_none() {
        in_fresh_namespace("link", NAME, || run_again_without("net_admin", NAME));
        return;
    }
    let error = Scanner::open().unwrap_err();

    assert_eq!(
        error.to_string(),
        "cannot open our network namespace; CAP_NET_ADMIN is needed"
    );
    assert!(!error.is_retryable());
}
