//! Routes, forwarding entries, programs and flowtables of others, as the kernel lists them.

#![expect(clippy::unwrap_used, reason = "helpers of tests; a panic is a failure")]

mod lab;

use std::net::IpAddr;
use std::process::{Command, Output};

use nix::net::if_::if_nametoindex;
use towpath_dataplane::link::{
    AttachedProgram, ForwardingEntry, Neighbour, ProgramHook, Route, Scanner, VxlanDevice,
};
use towpath_dataplane::nft::{
    Flowtable, SurveyedTable, flowtables, survey_bare_tables, survey_tables,
};

use crate::lab::{Namespace, feed, in_fresh_namespace, ip, skip};

const AREA: &str = "survey";

fn index(name: &str) -> u32 {
    if_nametoindex(name).unwrap()
}

fn run(program: &str, words: &str) -> Output {
    Command::new(program)
        .args(words.split(' '))
        .output()
        .unwrap()
}

#[test]
fn routes_to_one_host_are_told_from_others() {
    in_fresh_namespace(AREA, "routes", || {
        ip("link add cali1 type veth peer name peer1");
        ip("link set cali1 up");
        ip("route add 10.244.1.9/32 dev cali1 scope link");
        ip("route add 10.244.2.0/24 via 10.244.1.9 dev cali1 onlink");
        ip("route add blackhole 10.244.3.0/24");
        ip("-6 route add fd00:1::9/128 dev cali1 table 77");

        let mut scanner = Scanner::open().unwrap();
        let routes = scanner
            .routes(|route| route.index == index("cali1"))
            .unwrap();
        let hosts = scanner.routes(Route::is_to_one_host).unwrap();

        let cali1 = index("cali1");
        let route = |destination: &str, gateway: Option<IpAddr>, table| Route {
            destination: destination.parse().unwrap(),
            index: cali1,
            gateway,
            table,
        };
        let gateway = Some([10, 244, 1, 9].into());
        for wanted in [
            route("10.244.1.9/32", None, 254),
            route("10.244.2.0/24", gateway, 254),
            route("fd00:1::9/128", None, 77),
        ] {
            assert!(routes.contains(&wanted), "{wanted:?} is not in {routes:?}");
            assert_eq!(
                hosts.contains(&wanted),
                wanted.gateway.is_none(),
                "{hosts:?}"
            );
        }
        assert!(
            routes
                .iter()
                .all(|route| route.destination != "10.244.3.0/24".parse().unwrap())
        );
    });
}

#[test]
fn the_port_of_a_vxlan_device_is_the_kernels() {
    in_fresh_namespace(AREA, "tunnels", || {
        ip("link add cni0 type bridge");
        let made = run(
            "ip",
            "link add flannel.7 type vxlan id 7 dstport 8473 dev lo nolearning",
        );
        if !made.status.success() {
            return skip(AREA, "tunnels", "vxlan", "the kernel has no VXLAN devices");
        }

        let devices = Scanner::open().unwrap().vxlan_devices().unwrap();

        let expected = VxlanDevice {
            index: index("flannel.7"),
            vni: 7,
            port: 8473,
        };
        assert_eq!(devices, [expected]);
    });
}

#[test]
fn what_a_bridge_learnt_leads_from_an_address_to_a_port() {
    in_fresh_namespace(AREA, "forwarding entries", || {
        ip("link add cni0 type bridge");
        ip("addr add 10.244.1.1/24 dev cni0");
        ip("link set cni0 up");
        let pod = Namespace::new();
        pod.plug(
            "veth7",
            Some("cni0"),
            "02:00:00:00:00:07",
            &["10.244.1.7/24"],
        );
        let mac = [2, 0, 0, 0, 0, 7];
        let reached = pod.run(|| run("ping", "-c 1 -W 5 10.244.1.1"));
        assert!(reached.status.success(), "{reached:?}");

        let mut scanner = Scanner::open().unwrap();
        let entries = scanner.forwarding_entries().unwrap();
        let neighbours = scanner.neighbours().unwrap();

        let port = index("veth7");
        assert_eq!(entries, [ForwardingEntry { port, mac }]);
        let address = [10, 244, 1, 7].into();
        let cni0 = index("cni0");
        assert_eq!(
            neighbours,
            [Neighbour {
                index: cni0,
                address,
                mac
            }]
        );
    });
}

#[test]
fn a_namespace_without_programs_and_flowtables_lists_none() {
    in_fresh_namespace(AREA, "nothing", || {
        ip("link add cali1 type veth peer name peer1");

        assert_eq!(Scanner::open().unwrap().attached_programs().unwrap(), []);
        assert_eq!(flowtables().unwrap(), []);
    });
}

#[test]
fn programs_of_traffic_control_are_listed() {
    in_fresh_namespace(AREA, "tc programs", || {
        ip("link add cali1 type veth peer name peer1");
        let qdisc = run("tc", "qdisc add dev cali1 clsact");
        if !qdisc.status.success() {
            return skip(AREA, "tc programs", "clsact", "the kernel lacks it");
        }
        for direction in ["ingress", "egress"] {
            // A classic program that lets everything pass: it needs no compiler.
            let words =
                format!("filter add dev cali1 {direction} bpf da bytecode 1,6 0 0 4294967295");
            let filter = run("tc", &words);
            if !filter.status.success() {
                return skip(AREA, "tc programs", "cls-bpf", "the kernel lacks it");
            }
        }

        let found = Scanner::open().unwrap().attached_programs().unwrap();

        // Classic programs have no name.
        let index = index("cali1");
        let unnamed = |hook| AttachedProgram {
            index,
            hook,
            name: None,
        };
        assert_eq!(
            found,
            [unnamed(ProgramHook::Ingress), unnamed(ProgramHook::Egress)]
        );
    });
}

#[test]
fn flowtables_are_listed_with_their_interfaces() {
    in_fresh_namespace(AREA, "flowtables", || {
        ip("link add cali1 type veth peer name cali2");
        let text = "table inet fast {\n flowtable ft {\n hook ingress priority 0\n devices = { cali1, cali2 }\n }\n}\n";
        let check = Command::new("nft").args(["-c", text]).output().unwrap();
        if !check.status.success() {
            return skip(
                AREA,
                "flowtables",
                "nft-flowtables",
                "the kernel lacks them",
            );
        }
        feed("nft", &["-f", "-"], text);

        assert_eq!(
            flowtables().unwrap(),
            [Flowtable {
                table: "fast".into(),
                name: "ft".into(),
                interfaces: vec!["cali1".into(), "cali2".into()],
            }]
        );
    });
}

#[test]
fn tables_are_listed_with_and_without_their_chains() {
    in_fresh_namespace(AREA, "tables", || {
        run("nft", "add table ip flannel-ipv4");
        run("nft", "add chain ip flannel-ipv4 forward");
        run("nft", "add table inet other");

        let mut bare = survey_bare_tables().unwrap();
        let whole = survey_tables().unwrap();

        bare.sort_unstable();
        let names = |tables: &[SurveyedTable]| -> Vec<(&'static str, String)> {
            let named = tables.iter();
            named
                .map(|table| (table.family, table.name.to_string()))
                .collect()
        };
        assert_eq!(
            names(&bare),
            [
                ("inet", "other".to_owned()),
                ("ip", "flannel-ipv4".to_owned())
            ]
        );
        assert_eq!(names(&whole), names(&bare));
        assert!(bare.iter().all(|table| table.chains.is_empty()));
        assert_eq!(whole[1].chains[0].name, "forward");
    });
}
