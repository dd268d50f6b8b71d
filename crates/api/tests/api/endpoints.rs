//! Namespaces, Nodes, Pods and `WorkloadEndpoint`s.

use ipnet::IpNet;
use towpath_core::model::{
    ContainerPort, Endpoint, EndpointId, EndpointKind, Lifecycle, MacAddress, Namespace, Node,
    Object, Protocol,
};

use super::{assert_messages, good, good_endpoint};

fn pod(rest: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: web, namespace: shop}}\n{rest}\n")
}

fn port(name: &str, protocol: Protocol, number: u16) -> ContainerPort {
    ContainerPort {
        name: (!name.is_empty()).then(|| name.into()),
        protocol,
        number,
    }
}

#[test]
fn a_namespace_has_its_name_as_a_label() {
    let text = "{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {team: a, kubernetes.io/metadata.name: liar}}}";

    let expected = Namespace {
        name: "shop".into(),
        labels: [("team", "a"), ("kubernetes.io/metadata.name", "shop")]
            .into_iter()
            .collect(),
    };
    assert_eq!(good(text).0, Object::Namespace(expected));
}

#[test]
fn a_real_pod_is_read_and_the_rest_of_it_ignored() {
    let text = r#"
apiVersion: v1
kind: Pod
metadata:
  name: web-7d9c5b9d4-x2x7p
  namespace: shop
  uid: 0d4c2f5e-5a0f-4b5e-8a74-0f0ce9a1a3a1
  generateName: web-7d9c5b9d4-
  creationTimestamp: "2026-08-01T10:00:00Z"
  labels: {app: web, pod-template-hash: 7d9c5b9d4}
  ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: web-7d9c5b9d4, uid: x, controller: true}]
  managedFields: [{manager: kubelet, fieldsV1: {"f:status": {"f:podIPs": {".": {}}}}}]
spec:
  nodeName: node-a
  serviceAccountName: default
  enableServiceLinks: true
  initContainers:
  - {name: migrate, image: x, ports: [{containerPort: 1}]}
  - {name: proxy, image: x, restartPolicy: Always, ports: [{name: admin, containerPort: 15000}]}
  containers:
  - name: web
    image: registry.example/web:1.2
    env: [{name: A, value: "1"}]
    ports:
    - {name: http, containerPort: 8080, protocol: TCP}
    - {name: dns, containerPort: 53, protocol: UDP, hostPort: 0}
    - {containerPort: 8080}
    - {name: http, containerPort: 8080}
  - {name: log, image: x}
  tolerations: [{operator: Exists}]
status:
  phase: Running
  hostIP: 192.168.77.1
  podIP: 10.244.1.5
  podIPs: [{ip: 10.244.1.5}, {ip: "fd00:10:244:1::5"}]
  conditions: [{type: Ready, status: "True"}]
"#;

    let expected = Endpoint {
        id: EndpointId {
            kind: EndpointKind::Pod,
            namespace: "shop".into(),
            name: "web-7d9c5b9d4-x2x7p".into(),
        },
        labels: [("app", "web"), ("pod-template-hash", "7d9c5b9d4")]
            .into_iter()
            .collect(),
        node: Some("node-a".into()),
        addresses: vec![
            "10.244.1.5".parse().unwrap(),
            "fd00:10:244:1::5".parse().unwrap(),
        ],
        ports: vec![
            port("", Protocol::Tcp, 8080),
            port("admin", Protocol::Tcp, 15000),
            port("dns", Protocol::Udp, 53),
            port("http", Protocol::Tcp, 8080),
        ],
        uid: "0d4c2f5e-5a0f-4b5e-8a74-0f0ce9a1a3a1".parse().ok(),
        host_network: false,
        lifecycle: Lifecycle::Live,
        interface: None,
        mac: None,
    };
    assert_eq!(good_endpoint(text), expected);
    assert_eq!(good(text).1, Vec::<String>::new());
}

#[test]
fn a_pod_may_have_next_to_nothing() {
    let endpoint = good_endpoint("{apiVersion: v1, kind: Pod, metadata: {name: a}}");

    assert_eq!(
        (endpoint.id.namespace.as_str(), endpoint.node),
        ("default", None)
    );
    assert_eq!((endpoint.addresses, endpoint.ports), (vec![], vec![]));
}

#[test]
fn the_phase_decides_whether_a_pod_counts() {
    for (phase, expected) in [
        ("Pending", Lifecycle::Live),
        ("Running", Lifecycle::Live),
        ("Unknown", Lifecycle::Live),
        ("Succeeded", Lifecycle::Finished),
        ("Failed", Lifecycle::Finished),
    ] {
        assert_eq!(
            good_endpoint(&pod(&format!("status: {{phase: {phase}}}"))).lifecycle,
            expected
        );
    }
}

#[test]
fn pod_addresses_are_normal() {
    for (status, expected) in [
        ("{podIP: 10.0.0.1}", "[10.0.0.1]"),
        ("{podIP: ''}", "[]"),
        ("{podIP: null, podIPs: []}", "[]"),
        ("{podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.2}]}", "[10.0.0.2]"),
        (
            "{podIPs: [{ip: '::ffff:10.0.0.1'}, {ip: 10.0.0.1}]}",
            "[10.0.0.1]",
        ),
    ] {
        let endpoint = good_endpoint(&pod(&format!("status: {status}")));
        assert_eq!(format!("{:?}", endpoint.addresses), expected, "{status}");
    }
}

#[test]
fn host_network_is_read() {
    assert!(good_endpoint(&pod("spec: {hostNetwork: true}")).host_network);
    assert!(!good_endpoint(&pod("spec: {hostNetwork: null}")).host_network);
}

#[test]
fn wrong_pods_are_told() {
    #[rustfmt::skip]
    let table: &[(&str, &str)] = &[
        ("spec: []",
        "4 error: spec: a map is expected here, but this is a list; write a map"),
        ("spec: {hostNetwork: 'true'}",
        "4 error: spec.hostNetwork: true or false is expected here, but this is the text \"true\"; remove the quotes: true"),
        ("spec: {nodeName: 'a b'}",
        "4 error: spec.nodeName: \"a b\" is not a valid name; use 1 to 253 lower-case letters, digits, '-' and '.', with a letter or digit at both ends of each part"),
        ("spec: {containers: {}}",
        "4 error: spec.containers: a list is expected here, but this is a map; write a list"),
        ("spec: {containers: [{ports: [{containerPort: 0}]}]}",
        "4 error: spec.containers[0].ports[0].containerPort: 0 is not a port number; use a number from 1 to 65535"),
        ("spec: {containers: [{ports: [{name: http}]}]}",
        "4 error: spec.containers[0].ports[0]: containerPort is missing; write the port's number"),
        ("spec: {containers: [{ports: [{name: HTTP, containerPort: 1}]}]}",
        "4 error: spec.containers[0].ports[0].name: \"HTTP\" is not a valid port name; use 1 to 15 lower-case letters, digits and single '-', at least one letter, no '-' at the ends"),
        ("spec: {containers: [{ports: [{containerPort: 1, protocol: tcp}]}]}",
        "4 error: spec.containers[0].ports[0].protocol: \"tcp\" is not a protocol that policies know; use TCP, UDP or SCTP, in capital letters"),
        ("status: {podIP: 10.0.0}",
        "4 error: status.podIP: \"10.0.0\" is not an IP address; write it like 10.244.1.5 or fd00::5, without a prefix length or leading zeros"),
        ("status: {podIP: 127.0.0.1}",
        "4 error: status.podIP: 127.0.0.1 cannot be the address of a pod or node; write the unicast address under which others reach it"),
        ("status: {podIPs: [10.0.0.1]}",
        "4 error: status.podIPs[0]: a map is expected here, but this is the text \"10.0.0.1\"; write a map"),
    ];
    assert_messages(pod, table);
    assert_messages(
        |labels| format!("{{apiVersion: v1, kind: Pod, metadata: {{name: a, labels: {labels}}}}}"),
        &[
            (
                "{version: 1.10}",
                "1 error: metadata.labels.version: a text is expected here, but 1.10 is read as a number; write it in quotes: \"1.10\"",
            ),
            (
                "{'-a': b}",
                "1 error: metadata.labels[\"-a\"]: \"-a\" is not a valid label key; use at most 63 letters, digits, '-', '_' and '.', after an optional domain and '/', like example.com/role",
            ),
            (
                "[a]",
                "1 error: metadata.labels: a map is expected here, but this is a list; write a map",
            ),
        ],
    );
}

fn node(backend: &str) -> Node {
    let text = format!(
        "
apiVersion: v1
kind: Node
metadata:
  name: node-a
  labels: {{zone: x}}
  annotations: {{flannel.alpha.coreos.com/backend-type: {backend}}}
spec: {{podCIDR: 10.244.1.0/24, podCIDRs: [10.244.1.0/24, 'fd00:10:244:1::/64']}}
status:
  addresses:
  - {{type: InternalIP, address: 192.168.77.1}}
  - {{type: Hostname, address: node-a}}
  - {{type: ExternalIP, address: 203.0.113.9}}
"
    );
    match good(&text).0 {
        Object::Node(node) => node,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_node_has_tunnels_where_flannel_says_so() {
    let addresses = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    let pod_cidrs: Vec<IpNet> = vec![
        "10.244.1.0/24".parse().unwrap(),
        "fd00:10:244:1::/64".parse().unwrap(),
    ];

    let expected = Node {
        name: "node-a".into(),
        labels: [("zone", "x")].into_iter().collect(),
        addresses: addresses(&["192.168.77.1", "203.0.113.9"]),
        observed: Vec::new(),
        tunnel_cidrs: pod_cidrs.clone(),
        pod_cidrs: pod_cidrs.clone(),
    };
    assert_eq!(node("vxlan"), expected);
    assert_eq!(node("VXLAN"), expected);
    let plain = Node {
        tunnel_cidrs: Vec::new(),
        ..expected
    };
    assert_eq!(node("host-gw"), plain);
    for (key, tunnel) in [("backend-data", 0), ("backend-v6-data", 1)] {
        let annotations = format!("vxlan, flannel.alpha.coreos.com/{key}: '{{}}'");
        let found = node(&annotations).tunnel_cidrs;
        assert_eq!(found, [pod_cidrs[tunnel]], "{key}");
    }
    let none = node("vxlan, flannel.alpha.coreos.com/backend-data: 'null'");
    assert_eq!(none.tunnel_cidrs, [], "Flannel says that there is none");
}

#[test]
fn an_address_that_flannel_does_not_have_costs_no_node() {
    let node = node("host-gw, flannel.alpha.coreos.com/public-ip: 0.0.0.0");

    assert_eq!(node.addresses.len(), 2, "{node:?}");
}

#[test]
fn the_address_that_flannel_sends_from_is_a_nodes_own() {
    let node = node(
        "host-gw, flannel.alpha.coreos.com/public-ip: 192.0.2.7, flannel.alpha.coreos.com/public-ipv6: 'fd00:7::7'",
    );

    let expected = ["192.0.2.7", "192.168.77.1", "203.0.113.9", "fd00:7::7"];
    let addresses: Vec<String> = node.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, expected);
}

#[test]
fn wrong_nodes_are_told() {
    #[rustfmt::skip]
    let table: &[(&str, &str)] = &[
        ("spec: {podCIDR: 10.244.1.0}",
        "4 error: spec.podCIDR: \"10.244.1.0\" is not an address block; write 10.244.1.0/32 for this one address"),
        ("spec: {podCIDRs: 10.244.1.0/24}",
        "4 error: spec.podCIDRs: a list is expected here, but this is the text \"10.244.1.0/24\"; write a list"),
        ("status: {addresses: [{type: InternalIP, address: nowhere}]}",
        "4 error: status.addresses[0].address: \"nowhere\" is not an IP address; write it like 10.244.1.5 or fd00::5, without a prefix length or leading zeros"),
    ];
    assert_messages(
        |rest| format!("apiVersion: v1\nkind: Node\nmetadata: {{name: a}}\n{rest}"),
        table,
    );
}

#[test]
fn a_static_pod_has_the_uid_that_its_kubelet_gave_it() {
    let uid = |metadata: &str| {
        let text = format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: p, {metadata}}}\n");
        good_endpoint(&text).uid
    };
    let mirrored = "annotations: {kubernetes.io/config.mirror: 0123456789abcdef0123456789abcdef}";
    let own = "uid: 0d4c2f5e-5a0f-4b5e-8a74-0f0ce9a1a3a1";

    let found = [
        uid(own),
        uid(&format!("{own}, {mirrored}")),
        uid("uid: something"),
    ];

    let expected = [
        "0d4c2f5e-5a0f-4b5e-8a74-0f0ce9a1a3a1".parse().ok(),
        "01234567-89ab-cdef-0123-456789abcdef".parse().ok(),
        None,
    ];
    assert_eq!(found, expected);
    assert!(found[0].is_some() && found[1].is_some());
}

fn workload_endpoint(spec: &str) -> String {
    format!(
        "apiVersion: towpath.io/v1alpha1\nkind: WorkloadEndpoint\nmetadata: {{name: vm, labels: {{app: vm}}}}\nspec: {spec}\n"
    )
}

#[test]
fn a_workload_endpoint_is_read() {
    let text = workload_endpoint(
        "{addresses: [10.0.0.9], node: host-1, interface: vnet0, mac: '52:54:00:12:34:56', ports: [{name: ssh, port: 22}]}",
    );

    let expected = Endpoint {
        id: EndpointId {
            kind: EndpointKind::WorkloadEndpoint,
            namespace: "default".into(),
            name: "vm".into(),
        },
        labels: [("app", "vm")].into_iter().collect(),
        node: Some("host-1".into()),
        addresses: vec!["10.0.0.9".parse().unwrap()],
        ports: vec![port("ssh", Protocol::Tcp, 22)],
        uid: None,
        host_network: false,
        lifecycle: Lifecycle::Live,
        interface: Some("vnet0".parse().unwrap()),
        mac: Some(MacAddress([0x52, 0x54, 0, 0x12, 0x34, 0x56])),
    };
    assert_eq!(good_endpoint(&text), expected);
}

#[test]
fn wrong_workload_endpoints_are_told() {
    #[rustfmt::skip]
    let table: &[(&str, &str)] = &[
        ("{}",
        "4 error: spec: addresses is missing; list the endpoint's IP addresses"),
        ("{addresses: 10.0.0.9}",
        "4 error: spec.addresses: a list is expected here, but this is the text \"10.0.0.9\"; write a list"),
        ("{addresses: [10.0.0.9], nodeName: a}",
        "4 error: spec.nodeName: unknown field; remove it; known here: addresses, interface, mac, node, ports"),
        ("{addresses: [10.0.0.9], interface: 'a b'}",
        "4 error: spec.interface: an interface name may not contain ' '; write the host-side interface's name, like vethweb0"),
        ("{addresses: [10.0.0.9], interface: averyveryverylongname}",
        "4 error: spec.interface: an interface name has 1 to 15 bytes and is not . or ..; write the host-side interface's name, like vethweb0"),
        ("{addresses: [10.0.0.9], mac: 1-2-3}",
        "4 error: spec.mac: a hardware address is six hexadecimal octets separated by colons; write it like 02:42:0a:f4:01:05"),
        ("{addresses: [10.0.0.9], ports: [{containerPort: 1}]}",
        "4 error: spec.ports[0].containerPort: unknown field; remove it; known here: name, protocol, port | 4 error: spec.ports[0]: port is missing; write the port's number"),
    ];
    assert_messages(workload_endpoint, table);
}
