//! Services among manifests, and what becomes of those who ask them.

use super::super::tests::text_of;
use super::*;
use crate::cli::world::tests::cluster;
use crate::source::see_in_files;

/// A front end on node-a; a back end on each node, of which one has another number for its port; a policy that lets
/// only the front end in. Outside of the cluster there is 192.0.2.9.
const SHOP: &str = r#"
apiVersion: v1
kind: Node
metadata:
  name: node-a
  annotations: { flannel.alpha.coreos.com/backend-type: vxlan, flannel.alpha.coreos.com/kube-subnet-manager: "true" }
spec: { podCIDR: 10.0.1.0/24, podCIDRs: [10.0.1.0/24] }
status: { addresses: [ { type: InternalIP, address: 192.168.0.1 } ] }
---
apiVersion: v1
kind: Node
metadata:
  name: node-b
  annotations: { flannel.alpha.coreos.com/backend-type: vxlan, flannel.alpha.coreos.com/kube-subnet-manager: "true" }
spec: { podCIDR: 10.0.2.0/24, podCIDRs: [10.0.2.0/24] }
status: { addresses: [ { type: InternalIP, address: 192.168.0.2 } ] }
---
apiVersion: v1
kind: Namespace
metadata: { name: shop }
---
apiVersion: v1
kind: Pod
metadata: { name: web, namespace: shop, labels: { app: web } }
spec: { nodeName: node-a, containers: [ { name: c, image: i } ] }
status: { podIPs: [ { ip: 10.0.1.5 } ] }
---
apiVersion: v1
kind: Pod
metadata: { name: db-0, namespace: shop, labels: { app: db } }
spec: { nodeName: node-a, containers: [ { name: c, image: i, ports: [ { name: sql, containerPort: 5432 } ] } ] }
status: { podIPs: [ { ip: 10.0.1.6 } ] }
---
apiVersion: v1
kind: Pod
metadata: { name: db-1, namespace: shop, labels: { app: db } }
spec: { nodeName: node-b, containers: [ { name: c, image: i, ports: [ { name: sql, containerPort: 5433 } ] } ] }
status: { podIPs: [ { ip: 10.0.2.6 } ] }
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: db, namespace: shop }
spec:
  podSelector: { matchLabels: { app: db } }
  ingress:
  - from: [ { podSelector: { matchLabels: { app: web } } }, { ipBlock: { cidr: 192.0.2.9/32 } } ]
"#;

fn service(more: &str) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: Service, metadata: {{name: db, namespace: shop}}, spec: {{clusterIPs: [10.96.0.7], \
         selector: {{app: db}}, {more} ports: [{{name: sql, port: 15432, targetPort: sql, nodePort: 30432}}]}}}}\n"
    )
}

fn ask(
    manifests: &str,
    from: &str,
    node: Option<&str>,
    port: &str,
) -> Result<(Vec<Asked>, String), CommandError> {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join("all.yaml"), manifests).expect("a file");
    let seen = see_in_files(directory.path(), "shop", "db").expect("the Service is there");
    let text: Vec<&str> = manifests.split("---\n").collect();
    let known: Vec<&str> = text
        .into_iter()
        .filter(|text| !text.contains("kind: Service") && !text.contains("EndpointSlice"))
        .collect();
    let cluster = cluster(&known.join("---\n"));
    let (via, from) = ("service/shop/db".parse().unwrap(), from.parse().unwrap());
    let port = port.parse().unwrap();
    let question = Question {
        via: &via,
        from: &from,
        to: None,
        port: &port,
        node,
    };
    let asked = asked(&cluster, &seen, &question)?;
    let text = text_of(&cluster, &asked);
    Ok((asked, text))
}

/// Source, destination and port of each flow.
fn flows(asked: &[Asked]) -> Vec<(String, String, u16, usize)> {
    let flow = |asked: &Asked| {
        let Asked { flow, group, .. } = asked;
        let port = flow.port.unwrap_or_default();
        (
            flow.source.to_string(),
            flow.destination.to_string(),
            port,
            *group,
        )
    };
    asked.iter().map(flow).collect()
}

fn expected(flows: &[(&str, &str, u16, usize)]) -> Vec<(String, String, u16, usize)> {
    let own = flows
        .iter()
        .map(|(from, to, port, group)| ((*from).to_owned(), (*to).to_owned(), *port, *group));
    own.collect()
}

#[test]
fn a_pod_that_asks_the_service_is_seen_as_itself() {
    let manifests = SHOP.to_owned() + &service("");

    let (asked, text) = ask(&manifests, "shop/web", None, "sql").unwrap();

    let wanted = [
        ("10.0.1.5", "10.0.1.6", 5432, 0),
        ("10.0.1.5", "10.0.2.6", 5433, 1),
    ];
    assert_eq!(flows(&asked), expected(&wanted));
    insta::assert_snapshot!(text);
}

#[test]
fn by_a_node_port_the_client_is_seen_on_that_node_only() {
    let manifests = SHOP.to_owned() + &service("type: NodePort,");

    let (asked, text) = ask(&manifests, "192.0.2.9", Some("node-a"), "15432").unwrap();

    let wanted = [
        ("192.0.2.9", "10.0.1.6", 5432, 0),
        ("10.0.1.0", "10.0.2.6", 5433, 1),
    ];
    assert_eq!(flows(&asked), expected(&wanted));
    insta::assert_snapshot!(text);
}

#[test]
fn with_the_policy_local_only_the_nodes_own_pods_answer() {
    let manifests = SHOP.to_owned() + &service("type: NodePort, externalTrafficPolicy: Local,");

    let (asked, _) = ask(&manifests, "192.0.2.9", Some("node-b"), "sql/tcp").unwrap();

    assert_eq!(
        flows(&asked),
        expected(&[("192.0.2.9", "10.0.2.6", 5433, 0)])
    );
    let nobody = manifests.replace("nodeName: node-b", "nodeName: node-a");
    let error = ask(&nobody, "192.0.2.9", Some("node-b"), "sql").unwrap_err();
    assert!(error.to_string().contains("nobody answers"), "{error}");
}

#[test]
fn what_a_pod_sends_to_another_nodes_port_is_judged_as_it_leaves_and_as_it_comes() {
    let manifests = SHOP.to_owned() + &service("type: NodePort,");

    let (asked, _) = ask(&manifests, "shop/web", Some("node-b"), "sql").unwrap();

    let wanted = [
        ("10.0.1.5", "192.168.0.2", 30432, 0),
        ("10.0.2.0", "10.0.1.6", 5432, 0),
        ("10.0.1.5", "192.168.0.2", 30432, 1),
        ("10.0.1.5", "10.0.2.6", 5433, 1),
    ];
    assert_eq!(flows(&asked), expected(&wanted));
    let directions: Vec<usize> = asked.iter().map(|asked| asked.directions.len()).collect();
    assert_eq!(directions, [1; 4]);
}

#[test]
fn a_pod_that_meets_itself_is_its_own_peer() {
    let manifests = SHOP.to_owned() + &service("");

    let (asked, _) = ask(&manifests, "shop/db-0", None, "sql").unwrap();

    assert_eq!(
        flows(&asked)[0],
        expected(&[("10.0.1.6", "10.0.1.6", 5432, 0)])[0]
    );
    assert!(
        asked[0].steps[1].contains("its own peer"),
        "{:?}",
        asked[0].steps
    );
}

#[test]
fn slices_say_who_answers() {
    let slice = "---\n{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: db-1, namespace: shop, \
                 labels: {kubernetes.io/service-name: db}}, addressType: IPv4, ports: [{name: sql, port: 5432, protocol: TCP}], \
                 endpoints: [{addresses: [10.0.1.6], nodeName: node-a, conditions: {ready: false}}, \
                 {addresses: [192.0.2.50]}]}\n";
    let manifests = SHOP.to_owned() + &service("") + slice;

    let (asked, _) = ask(&manifests, "shop/web", None, "sql").unwrap();

    assert_eq!(
        flows(&asked),
        expected(&[("10.0.1.5", "192.0.2.50", 5432, 0)])
    );
}

#[test]
fn questions_without_an_answer_say_what_to_ask() {
    let manifests = SHOP.to_owned() + &service("");
    let headless = manifests.replace("clusterIPs: [10.96.0.7]", "clusterIPs: [None]");
    for (manifests, from, node, port, words) in [
        (&manifests, "shop/web", None, "80", "it has sql (15432/tcp)"),
        (
            &manifests,
            "shop/web",
            None,
            "icmp",
            "it has sql (15432/tcp)",
        ),
        (&manifests, "192.0.2.9", None, "sql", "give --node"),
        (
            &manifests,
            "192.0.2.9",
            Some("node-x"),
            "sql",
            "no node node-x",
        ),
        (&headless, "shop/web", None, "sql", "ask with --to"),
    ] {
        let error = ask(manifests, from, node, port).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    for bad in [
        "db",
        "service/db",
        "service/shop/",
        "pod/shop/db",
        "service/../db",
        "service/shop/a b",
    ] {
        assert!(bad.parse::<Via>().is_err(), "{bad}");
    }
}
