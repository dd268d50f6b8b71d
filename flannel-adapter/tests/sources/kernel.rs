use std::fs::File;
use std::io::Write as _;
use std::net::IpAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use flannel_adapter::merger::{EndpointState, Merger};
use flannel_adapter::source::fdb::FdbSource;
use flannel_adapter::source::fixed::{StaticEndpoint, StaticSource};
use flannel_adapter::source::names;
use flannel_adapter::source::netlink::NetlinkSource;
use flannel_adapter::source::routes::RoutesSource;
use flannel_adapter::source::{
    Delta, EndpointSource, Identity, InterfaceKind, Observation, SourceName,
};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{geteuid, gettid};
use towpath_dataplane::link::PodFilter;

/// Runs `body` in a network namespace of its own, or skips aloud.
fn in_fresh_namespace(name: &str, body: impl FnOnce() + Send + 'static) {
    if !geteuid().is_root() {
        eprintln!("SKIP[sources] {name}: root: needs root");
        if let Some(path) = std::env::var_os("TOWPATH_SKIP_LOG") {
            let mut file = File::options()
                .create(true)
                .append(true)
                .open(path)
                .unwrap();
            writeln!(file, "sources\t{name}\troot\tneeds root").unwrap();
        }
        return;
    }
    let run = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        ip("link set lo up");
        body();
    });
    if let Err(panic) = run.join() {
        std::panic::resume_unwind(panic);
    }
}

fn ip(words: &str) {
    let output = Command::new("ip").args(words.split(' ')).output().unwrap();
    assert!(
        output.status.success(),
        "ip {words}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A named namespace; deleted when dropped.
struct Pod {
    name: String,
}

impl Pod {
    fn plug(name: &str, host_end: &str, bridge: Option<&str>, address: &str) -> Self {
        let name = format!("towpath-fa-{}-{name}", std::process::id());
        ip(&format!("netns add {name}"));
        let pod = Self { name };
        let host = gettid();
        let inside = |words: &str| ip(&format!("-n {} {words}", pod.name));
        inside(&format!(
            "link add eth0 type veth peer name {host_end} netns {host}"
        ));
        if let Some(bridge) = bridge {
            ip(&format!("link set {host_end} master {bridge}"));
        }
        ip(&format!("link set {host_end} up"));
        inside("link set eth0 up");
        inside(&format!("addr add {address} dev eth0"));
        pod
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        drop(
            Command::new("ip")
                .args(["netns", "del", &self.name])
                .status(),
        );
    }
}

fn filter() -> PodFilter {
    PodFilter {
        bridges: vec!["cni0".into()],
        prefixes: vec!["cali".into()],
        networks: Vec::new(),
        uplinks: Vec::new(),
    }
}

fn named<'a>(seen: &'a [Observation], name: &str) -> &'a Observation {
    let is_named =
        |seen: &&Observation| seen.facts.as_ref().is_some_and(|facts| facts.name == name);
    seen.iter()
        .find(is_named)
        .unwrap_or_else(|| panic!("no {name} in {seen:?}"))
}

#[test]
fn netlink_tells_interfaces_and_what_is_behind_them() {
    in_fresh_namespace("netlink", || {
        ip("link add cni0 type bridge");
        ip("tuntap add vnet0 mode tap");
        let _bridged = Pod::plug("a", "vetha", Some("cni0"), "10.244.1.7/24");
        let _routed = Pod::plug("b", "cali1", None, "10.244.1.8/32");
        let mut source = NetlinkSource::open(filter()).unwrap();

        let seen = source.snapshot().unwrap();

        let addresses: [IpAddr; 1] = [[10, 244, 1, 7].into()];
        let bridged = named(&seen, "vetha");
        assert_eq!(bridged.addresses, addresses);
        assert_eq!(
            bridged.facts.as_ref().unwrap().bridge.as_deref(),
            Some("cni0")
        );
        assert!(bridged.mac.is_some());
        assert!(
            named(&seen, "cali1")
                .facts
                .as_ref()
                .unwrap()
                .is_seen_through
        );
        let tap = named(&seen, "vnet0").facts.as_ref().unwrap();
        assert_eq!((tap.kind, tap.is_seen_through), (InterfaceKind::Tap, false));
        let providers: Vec<_> = names::observations(seen.iter())
            .map(|told| told.provider)
            .collect();
        assert_eq!(providers.len(), 2, "{providers:?}");
    });
}

#[test]
fn netlink_hears_of_pods_that_come_and_go() {
    in_fresh_namespace("netlink events", || {
        ip("link add cni0 type bridge");
        let mut source = NetlinkSource::open(filter()).unwrap();
        source.snapshot().unwrap();
        let mut merger = Merger::default();
        let mut until = |what: &str, is_awaited: &dyn Fn(&Merger) -> bool| {
            let deadline = Instant::now() + Duration::from_secs(20);
            while !is_awaited(&merger) {
                assert!(
                    Instant::now() < deadline,
                    "never saw {what}: {:?}",
                    merger.view()
                );
                for delta in source.wait(Duration::from_millis(100)).unwrap() {
                    match delta {
                        Delta::Lagged => {
                            merger.replace(SourceName::Netlink, source.snapshot().unwrap());
                        }
                        delta => merger.apply(SourceName::Netlink, delta),
                    }
                }
                merger.refresh();
            }
        };
        let has = |merger: &Merger| {
            let address: IpAddr = [10, 244, 1, 7].into();
            merger
                .view()
                .endpoints
                .values()
                .any(|endpoint| endpoint.addresses.contains(&address))
        };

        let pod = Pod::plug("c", "vethc", Some("cni0"), "10.244.1.7/24");
        until("the pod", &has);
        drop(pod);
        until("its end", &|merger| !has(merger));
    });
}

#[test]
fn routes_and_learnt_addresses_stand_in_where_nobody_can_look() {
    in_fresh_namespace("routes and fdb", || {
        ip("link add cni0 type bridge");
        ip("addr add 10.244.1.1/24 dev cni0");
        ip("link set cni0 up");
        let pod = Pod::plug("d", "vethd", Some("cni0"), "10.244.1.7/24");
        ip("link add cali9 type veth peer name other");
        ip("link set cali9 up");
        ip("route add 10.244.1.9/32 dev cali9");
        let ping = [
            "netns",
            "exec",
            &pod.name,
            "ping",
            "-c",
            "1",
            "-W",
            "5",
            "10.244.1.1",
        ];
        assert!(Command::new("ip").args(ping).status().unwrap().success());

        let routes = RoutesSource::open().unwrap().snapshot().unwrap();
        let learnt = FdbSource::open().unwrap().snapshot().unwrap();
        // Without looking behind any interface.
        let mut blind = NetlinkSource::open(PodFilter::default()).unwrap();
        let fixed = StaticEndpoint {
            interface: "cali9".parse().unwrap(),
            identity: Identity::Machine { id: "vm".into() },
            addresses: Vec::new(),
            mac: None,
        };
        let mut merger = Merger::default();
        merger.replace(SourceName::Netlink, blind.snapshot().unwrap());
        merger.replace(SourceName::Routes, routes);
        merger.replace(SourceName::Fdb, learnt);
        merger.replace(
            SourceName::Static,
            StaticSource::new(vec![fixed]).snapshot().unwrap(),
        );
        merger.refresh();

        let found = |name: &str| {
            let mut endpoints = merger.view().endpoints.values();
            endpoints.find(|endpoint| endpoint.name == name).unwrap()
        };
        let addresses = |last| -> Vec<IpAddr> { vec![[10, 244, 1, last].into()] };
        assert_eq!(found("vethd").addresses, addresses(7));
        assert_eq!(found("cali9").addresses, addresses(9));
        assert_eq!(found("cali9").state, EndpointState::Identified);
    });
}
