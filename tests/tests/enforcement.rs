//! The agent's main job on real packets: what policy forbids does not pass, what it allows does.

use std::net::Ipv4Addr;
use std::process::Command;

use towpath_tests::agent::AgentOptions;
use towpath_tests::cni::Plug;
use towpath_tests::frame::{self, Capture};
use towpath_tests::lab::{Backend, LabConfig, Server};
use towpath_tests::matrix::Flow;
use towpath_tests::netns::Namespace;
use towpath_tests::probe::{Outcome, Patience, Target, probe};
use towpath_tests::require;
use towpath_tests::stage::{SETTLE, Stage, allow_http, deny_ingress, egress_to, server};
use towpath_tests::wait::until;

/// With [`deny_ingress`] of shop and [`allow_http`] from web to db.
fn only_web_reaches_db(flow: &Flow<'_>) -> bool {
    let to_shop = flow.to.spec.namespace == "shop";
    let is_allowed = (flow.from.id(), flow.to.id(), flow.target.port)
        == ("shop/web".to_owned(), "shop/db".to_owned(), 80);
    !to_shop || is_allowed
}

/// Nothing came back from the other side. An unknown pod does not even learn its gateway's hardware address.
fn is_silent(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::TimedOut | Outcome::Failed { .. })
}

/// `shop/db` is on node-b.
fn only_its_own_host_reaches_db(stage: &Stage) -> anyhow::Result<()> {
    let db = stage.lab.pod("shop/db")?;
    let from = |node: &str, patience| {
        let node = &stage.lab.node(node)?.namespace;
        probe(node, &db.targets(), patience)
    };

    let own = from("node-b", Patience::LONG)?;
    let other = from("node-a", Patience::default())?;

    assert!(own.iter().all(Outcome::passed), "{own:?}");
    assert!(other.iter().all(is_silent), "{other:?}");
    Ok(())
}

fn restricted(config: &LabConfig) -> anyhow::Result<Stage> {
    let stage = Stage::with_agents(config)?;
    stage.settle(|_| true)?;
    stage.write("deny", &deny_ingress("shop"))?;
    stage.write("allow", &allow_http("shop", "db", "web"))?;
    stage.settle(only_web_reaches_db)?;
    Ok(stage)
}

#[test]
fn both_families_are_judged_on_both_nodes() {
    require!(
        "enforcement",
        Root,
        CniPlugins,
        Vxlan,
        BridgeNetfilter,
        Nft,
        Ipv6
    );
    let stage = restricted(&LabConfig {
        ipv6: true,
        ..LabConfig::default()
    })
    .unwrap();

    stage.lab.withdraw("allow").unwrap();
    stage
        .settle(|flow| flow.to.spec.namespace != "shop")
        .unwrap();
    stage.lab.withdraw("deny").unwrap();

    stage.settle(|_| true).unwrap();
}

#[test]
fn host_routes_are_judged_as_tunnels_are() {
    require!("enforcement", Root, CniPlugins, BridgeNetfilter, Nft);

    let stage = restricted(&LabConfig {
        backend: Backend::HostGateway,
        ..LabConfig::default()
    })
    .unwrap();

    stage.hold(only_web_reaches_db).unwrap();
}

/// Without a bridge each pod has an interface of its own, with a name that tells whose it is.
#[test]
fn pods_of_the_plugin_ptp_are_judged_as_bridged_ones_are() {
    require!("enforcement", Root, CniPlugins, Vxlan, Nft, Ipv6);
    for backend in [Backend::Vxlan, Backend::HostGateway] {
        let mut stage = Stage::new(&LabConfig {
            plug: Plug::PointToPoint,
            backend,
            ipv6: backend == Backend::Vxlan,
            ..LabConfig::default()
        })
        .unwrap();
        stage
            .start_agents(&AgentOptions {
                configuration: Some("podBridges: []\ninterfacePrefixes: [veth]\n".to_owned()),
                ..AgentOptions::default()
            })
            .unwrap();
        stage.settle(|_| true).unwrap();
        stage.write("deny", &deny_ingress("shop")).unwrap();
        stage
            .write("allow", &allow_http("shop", "db", "web"))
            .unwrap();
        stage.settle(only_web_reaches_db).unwrap();

        only_its_own_host_reaches_db(&stage).unwrap();

        stage.lab.withdraw("deny").unwrap();
        stage.lab.withdraw("allow").unwrap();
        stage.settle(|_| true).unwrap();
    }
}

#[test]
fn new_pod_is_closed_until_it_is_programmed() {
    require!("enforcement", Root, CniPlugins, Vxlan, BridgeNetfilter, Nft);
    let mut stage = Stage::with_agents(&LabConfig::default()).unwrap();
    stage.settle(|_| true).unwrap();

    stage.lab.plug(server("node-a", "shop", "late")).unwrap();
    let is_late =
        |flow: &Flow<'_>| [&flow.from.spec.name, &flow.to.spec.name].contains(&&"late".to_owned());
    stage.hold(|flow| !is_late(flow)).unwrap();
    let late = stage.lab.pod("shop/late").unwrap();
    let nodes = stage.lab.nodes();
    let to_nodes: Vec<Target> = nodes
        .iter()
        .map(|node| Target::icmp(node.addresses[0]))
        .collect();
    let to_nodes = probe(&late.namespace, &to_nodes, Patience::default()).unwrap();
    let from_other_host = probe(&nodes[1].namespace, &late.targets(), Patience::default()).unwrap();

    assert!(to_nodes.iter().all(is_silent), "{to_nodes:?}");
    assert!(from_other_host.iter().all(is_silent), "{from_other_host:?}");

    stage.lab.publish("shop/late").unwrap();
    stage.settle(|_| true).unwrap();
}

#[test]
fn own_host_always_reaches_its_pods() {
    require!("enforcement", Root, CniPlugins, Vxlan, BridgeNetfilter, Nft);
    let stage = restricted(&LabConfig::default()).unwrap();
    only_its_own_host_reaches_db(&stage).unwrap();
}

#[test]
fn pod_to_its_own_node_is_judged_by_egress() {
    require!("enforcement", Root, CniPlugins, Vxlan, BridgeNetfilter, Nft);
    let stage = Stage::with_agents(&LabConfig::default()).unwrap();
    stage.settle(|_| true).unwrap();
    let node = Target::icmp(stage.lab.node("node-a").unwrap().addresses[0]);
    let web = &stage.lab.pod("shop/web").unwrap().namespace;
    let before = probe(web, &[node], Patience::LONG).unwrap();

    let policy = "apiVersion: networking.k8s.io/v1\n\
                  kind: NetworkPolicy\n\
                  metadata: {name: silent, namespace: shop}\n\
                  spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Egress]}\n";
    stage.write("silent", policy).unwrap();
    stage.settle(|flow| flow.from.spec.name != "web").unwrap();
    let after = probe(web, &[node], Patience::default()).unwrap();

    assert!(before[0].passed(), "{before:?}");
    assert_eq!(after, [Outcome::TimedOut]);
}

/// Pods with `app: web` in `shop` may send to nodes with a label, and to nobody else.
fn only_to_nodes(label: &str) -> String {
    format!(
        "apiVersion: policy.networking.k8s.io/v1alpha2\n\
         kind: ClusterNetworkPolicy\n\
         metadata: {{name: only-to-nodes}}\n\
         spec:\n  \
           tier: Admin\n  \
           priority: 1\n  \
           subject: {{pods: {{namespaceSelector: {{}}, podSelector: {{matchLabels: {{app: web}}}}}}}}\n  \
           egress:\n    \
             - {{action: Accept, to: [{{nodes: {{matchLabels: {{{label}}}}}}}]}}\n    \
             - {{action: Deny, to: [{{networks: [0.0.0.0/0]}}]}}\n"
    )
}

/// A Node that has the label `infra: \"yes\"`.
fn infra(addresses: &[String], pod_cidr: &str) -> String {
    let addresses: Vec<String> = addresses
        .iter()
        .map(|address| format!("{{type: InternalIP, address: {address}}}"))
        .collect();
    format!(
        "apiVersion: v1\n\
         kind: Node\n\
         metadata:\n  \
           name: edge\n  \
           labels: {{infra: \"yes\"}}\n  \
           annotations: {{flannel.alpha.coreos.com/backend-type: vxlan}}\n\
         spec: {{podCIDR: {pod_cidr}}}\n\
         status: {{addresses: [{}]}}\n",
        addresses.join(", ")
    )
}

#[test]
fn what_a_node_object_claims_opens_nothing() {
    require!("enforcement", Root, CniPlugins, Vxlan, BridgeNetfilter, Nft);
    let stage = Stage::with_agents(&LabConfig::default()).unwrap();
    stage.settle(|_| true).unwrap();
    let [web, db] = ["shop/web", "shop/db"].map(|id| stage.lab.pod(id).unwrap());
    let other = stage.lab.node("node-b").unwrap();
    let warns = |text: &str| {
        let agent = stage.agent("node-a").unwrap();
        until("the doubtful claim is told", SETTLE, || {
            Ok(agent.ask(&["status"])?["warnings"]
                .to_string()
                .contains(text))
        })
        .unwrap();
    };
    let is_not_from_web = |flow: &Flow<'_>| flow.from.spec.name != "web";
    stage.write("edge", &infra(&[], "10.244.99.0/24")).unwrap();
    stage
        .write("web", &only_to_nodes("infra: \"yes\""))
        .unwrap();
    stage.settle(is_not_from_web).unwrap();

    // The address of a pod of another node.
    let listed = db.ipv4().unwrap().to_string();
    stage
        .write(
            "edge",
            &infra(std::slice::from_ref(&listed), "10.244.99.0/24"),
        )
        .unwrap();
    warns(&format!("node edge lists {listed}"));
    stage.hold(is_not_from_web).unwrap();

    // The pod network of another node, whose first two addresses would be the claimant's.
    let cidr = other.pod_cidrs[0].to_string();
    let bridge = Target::icmp(other.pod_cidrs[0].hosts().next().unwrap());
    let reached = || probe(&web.namespace, &[bridge], Patience::default()).unwrap();
    stage.write("edge", &infra(&[], &cidr)).unwrap();
    warns(&format!(
        "the pod CIDR {cidr} of node edge overlaps {cidr} of node node-b"
    ));
    stage.hold(is_not_from_web).unwrap();
    assert!(is_silent(&reached()[0]));

    // Those of its owner again, once nobody disputes them.
    stage.remove("edge").unwrap();
    stage
        .write("web", &only_to_nodes("kubernetes.io/hostname: node-b"))
        .unwrap();
    until("the bridge of the other node is reached", SETTLE, || {
        Ok(reached()[0].passed())
    })
    .unwrap();
    stage.hold(is_not_from_web).unwrap();
}

#[test]
fn a_nodes_own_addresses_are_those_of_its_interfaces() {
    require!("enforcement", Root, CniPlugins, BridgeNetfilter, Nft);
    // With routes no address of a pod network is told to be a node's.
    let stage = Stage::with_agents(&LabConfig {
        backend: Backend::HostGateway,
        ..LabConfig::default()
    })
    .unwrap();
    stage.settle(|_| true).unwrap();
    let web = stage.lab.pod("shop/web").unwrap();
    let own = stage.lab.node("node-a").unwrap();
    let bridge = Target::icmp(own.pod_cidrs[0].hosts().next().unwrap());
    let reached = || probe(&web.namespace, &[bridge], Patience::default()).unwrap();

    stage
        .write("web", &only_to_nodes("kubernetes.io/hostname: node-b"))
        .unwrap();
    stage.settle(|flow| flow.from.spec.name != "web").unwrap();
    assert!(is_silent(&reached()[0]));

    stage
        .write("web", &only_to_nodes("kubernetes.io/hostname: node-a"))
        .unwrap();
    until("the own bridge is reached", SETTLE, || {
        Ok(reached()[0].passed())
    })
    .unwrap();
}

#[test]
fn spoofed_packets_and_arp_do_not_leave_the_pod() {
    require!("enforcement", Root, CniPlugins, Vxlan, BridgeNetfilter, Nft);
    let stage = Stage::with_agents(&LabConfig::default()).unwrap();
    stage.settle(|_| true).unwrap();
    let [web, api] = ["shop/web", "shop/api"].map(|id| stage.lab.pod(id).unwrap());
    let [web_address, api_address] = [web, api].map(|pod| pod.ipv4().unwrap());
    let other = Ipv4Addr::new(10, 244, 1, 200);
    let datagram = |source: Ipv4Addr, mac, payload: &[u8]| {
        let datagram = frame::udp((source.into(), 1000), (api_address.into(), 53), payload);
        frame::ethernet(
            api.mac,
            mac,
            frame::IPV4,
            &frame::ipv4(source, api_address, 17, &datagram),
        )
    };
    let claim = frame::arp(2, (web.mac, other), (api.mac, api_address));
    let foreign_mac = [0x02, 0, 0, 0, 0, 1];
    let frames = [
        datagram(other, web.mac, b"foreign address"),
        datagram(web_address, foreign_mac, b"foreign mac"),
        frame::ethernet(api.mac, web.mac, frame::ARP, &claim),
        frame::tagged(&datagram(web_address, web.mac, b"vlan"), 5),
        datagram(web_address, web.mac, b"honest"),
    ];
    let mut capture = Capture::start(&api.namespace).unwrap();

    frame::send(&web.namespace, "eth0", &frames).unwrap();
    let seen = capture.until(|frame| frame.ends_with(b"honest")).unwrap();

    for frame in &frames[..4] {
        assert!(!seen.contains(frame), "passed: {}", frame::to_hex(frame));
    }
}

#[test]
fn bad_version_does_not_replace_a_good_one() {
    require!("enforcement", Root, CniPlugins, Vxlan, BridgeNetfilter, Nft);
    let stage = restricted(&LabConfig::default()).unwrap();
    let problems = "towpath_source_problems";
    let agent = stage.agent("node-b").unwrap();
    assert!(agent.metric(problems).unwrap_or(0.0) < 1.0);

    let broken = allow_http("shop", "db", "web").replace("port: 80", "port: 80, prot: TCP");
    stage.write("allow", &broken).unwrap();
    agent.wait_metric(problems, |count| count >= 1.0).unwrap();
    stage.hold(only_web_reaches_db).unwrap();
    stage
        .write("allow", &allow_http("shop", "db", "api"))
        .unwrap();

    stage
        .settle(|flow| {
            let is_allowed =
                flow.from.spec.name == "api" && flow.to.spec.name == "db" && flow.target.port == 80;
            flow.to.spec.namespace != "shop" || is_allowed
        })
        .unwrap();
}

/// What `NodeLocal` `DNSCache` does to a node: addresses of its own and of the DNS Service, a server, and no tracking.
fn start_dns_cache(node: &Namespace) -> anyhow::Result<Server> {
    node.ip_batch(
        "link add nodelocaldns type bridge\nlink set nodelocaldns up\n\
         address add 169.254.20.10/32 dev nodelocaldns\naddress add 10.96.0.10/32 dev nodelocaldns\n",
    )?;
    node.run(Command::new("nft").arg(
        "add table ip raw ; add set ip raw dns { type ipv4_addr ; elements = { 169.254.20.10, 10.96.0.10 } ; } ; \
         add chain ip raw prerouting { type filter hook prerouting priority -300 ; } ; \
         add rule ip raw prerouting ip daddr @dns th dport 53 notrack ; \
         add chain ip raw output { type filter hook output priority -300 ; } ; \
         add rule ip raw output ip saddr @dns th sport 53 notrack",
    ))?;
    Server::start(node, "cache", &["--tcp", "53"])
}

#[test]
fn a_dns_cache_of_the_node_is_judged_as_the_pods_it_stands_for() {
    require!("enforcement", Root, CniPlugins, Vxlan, BridgeNetfilter, Nft);
    let mut stage = Stage::new(&LabConfig::default()).unwrap();
    let node = stage.lab.node("node-a").unwrap();
    let _cache = start_dns_cache(&node.namespace).unwrap();
    let targets = [
        Target::tcp(Ipv4Addr::new(169, 254, 20, 10), 53),
        Target::tcp(Ipv4Addr::new(10, 96, 0, 10), 53),
        // The same server at an address that stands for nobody.
        Target::tcp(node.addresses[0], 53),
    ];
    stage.lab.write_namespace("dns", &[]).unwrap();
    stage
        .write("egress", &egress_to("shop", "web", "dns", "kube-dns", 53))
        .unwrap();
    let options = AgentOptions {
        configuration: Some(
            "localServices:\n- addresses: [169.254.20.10, 10.96.0.10]\n  namespace: dns\n  labels: { app: kube-dns }\n"
                .to_owned(),
        ),
        ..AgentOptions::default()
    };
    stage.start_agents(&options).unwrap();
    let reached = |stage: &Stage, pod: &str| -> Vec<bool> {
        let pod = stage.lab.pod(pod).unwrap();
        let outcomes = probe(&pod.namespace, &targets, Patience::default()).unwrap();
        outcomes.iter().map(Outcome::passed).collect()
    };

    assert_eq!(reached(&stage, "shop/web"), [true, true, false]);
    assert_eq!(reached(&stage, "shop/api"), [true, true, true]);

    stage
        .write("egress", &egress_to("shop", "web", "dns", "others", 53))
        .unwrap();
    until("the cache closed", SETTLE, || {
        Ok(reached(&stage, "shop/web") == [false, false, false])
    })
    .unwrap();
    assert_eq!(reached(&stage, "shop/api"), [true, true, true]);
}
