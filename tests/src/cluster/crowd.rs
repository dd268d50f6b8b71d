//! Many nodes, pods and policies that are objects only: what an agent must know of a large cluster.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Result;
use serde_json::{Value, json};

use super::api::Api;
use super::control_plane::ControlPlane;

/// How many requests are on their way at once. The server has the same two processors as everybody.
const WORKERS: u32 = 8;

/// Objects that nothing runs behind. Their names begin with `crowd-`, their addresses with 100.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crowd {
    /// Nodes, up to 4,096.
    pub nodes: u32,
    /// Pods, spread over nodes and namespaces in turn; up to 250 a node.
    pub pods: u32,
    /// Namespaces.
    pub namespaces: u32,
}

impl Crowd {
    /// A crowd as large clusters are made: ten pods a node, a hundred a namespace.
    pub fn of(pods: u32) -> Self {
        Self {
            nodes: pods.div_ceil(10),
            pods,
            namespaces: pods.div_ceil(100),
        }
    }

    /// Namespace of a pod.
    pub fn namespace(&self, pod: u32) -> String {
        format!("crowd-{}", pod % self.namespaces)
    }

    /// The first three labels of a pod, as a Deployment gives them: `app` (ten a namespace), `tier` (one of three)
    /// and `pod-template-hash` (one an app and namespace).
    pub fn labels(&self, pod: u32) -> [(&'static str, String); 3] {
        let app = pod / self.namespaces % 10;
        let tier = match pod % 3 {
            0 => "front",
            1 => "middle",
            _ => "back",
        };
        let template = pod % self.namespaces * 10 + app;
        let hash = u64::from(template) * 2_654_435_761;
        [
            ("app", format!("app-{app}")),
            ("tier", tier.to_owned()),
            ("pod-template-hash", format!("{hash:010x}")),
        ]
    }

    /// Creates all of them, without policies.
    pub fn enter(&self, plane: &ControlPlane) -> Result<()> {
        self.enter_places(plane)?;
        self.enter_pods(plane.api(), 0..self.pods)
    }

    /// Creates namespaces and nodes.
    pub fn enter_places(&self, plane: &ControlPlane) -> Result<()> {
        let api = plane.api();
        together(0..self.namespaces, |number| {
            let labels = json!({ "team": format!("team-{}", number % 10) });
            let metadata = json!({ "name": format!("crowd-{number}"), "labels": labels });
            api.create("/api/v1/namespaces", &json!({ "metadata": metadata }))?;
            Ok(())
        })?;
        for number in 0..self.namespaces {
            plane.wait_account(&format!("crowd-{number}"))?;
        }
        together(0..self.nodes, |number| enter_node(api, number))
    }

    /// Creates the pods of these numbers: two writes each, as the status comes by itself.
    pub fn enter_pods(&self, api: &Api, numbers: Range<u32>) -> Result<()> {
        together(numbers, |number| self.enter_pod(api, number))
    }

    /// Creates the policies of these numbers: one application of a namespace may be reached by two others, by a whole
    /// namespace and by a block, on a few ports; every eighth one restricts egress as well.
    pub fn enter_policies(&self, api: &Api, numbers: Range<u32>) -> Result<()> {
        together(numbers, |number| self.enter_policy(api, number))
    }

    fn enter_policy(&self, api: &Api, number: u32) -> Result<()> {
        let app = |offset: u32| {
            let app = (number / self.namespaces + offset) % 10;
            json!({ "matchLabels": { "app": format!("app-{app}") } })
        };
        let next =
            json!({ "matchLabels": { "kubernetes.io/metadata.name": self.namespace(number + 1) } });
        let block = format!("172.{}.{}.0/24", 16 + number % 1_000 / 256, number % 256);
        let port = 8_000 + number % 40;
        let mut spec = json!({
            "podSelector": app(0),
            "policyTypes": ["Ingress"],
            "ingress": [
                { "from": [{ "podSelector": app(1) }, { "podSelector": app(2) }], "ports": [{ "port": port }, { "port": port + 100 }] },
                { "from": [{ "namespaceSelector": next }, { "ipBlock": { "cidr": block } }], "ports": [{ "port": 443 }] },
            ],
        });
        if number.is_multiple_of(8) {
            spec["policyTypes"] = json!(["Ingress", "Egress"]);
            spec["egress"] = json!([{ "to": [{ "podSelector": {} }] }]);
        }
        let object = json!({ "metadata": { "name": format!("crowd-{number}") }, "spec": spec });
        let policies = format!(
            "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies",
            self.namespace(number)
        );
        api.create(&policies, &object)?;
        Ok(())
    }

    fn enter_pod(&self, api: &Api, number: u32) -> Result<()> {
        let node = number % self.nodes;
        let address = address(node, number / self.nodes + 2);
        let pods = format!("/api/v1/namespaces/{}/pods", self.namespace(number));
        let name = format!("crowd-{number}");
        let labels: Value = self.labels(number).into_iter().collect();
        let object = json!({
            "metadata": { "name": name, "labels": labels },
            "spec": {
                "nodeName": node_name(node),
                "automountServiceAccountToken": false,
                // Their nodes are never ready; where somebody watches nodes, the pods are to stay.
                "tolerations": [{ "operator": "Exists" }],
                "containers": [{
                    "name": "server",
                    "image": "localhost/none",
                    "ports": [{ "name": "http", "containerPort": 80 }],
                }],
            },
        });
        api.create(&pods, &object)?;
        let status = json!({ "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }] });
        api.merge(
            &format!("{pods}/{name}/status"),
            &json!({ "status": status }),
        )?;
        Ok(())
    }
}

fn enter_node(api: &Api, number: u32) -> Result<()> {
    let name = node_name(number);
    let cidr = format!("{}/24", address(number, 0));
    let object = json!({
        "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } },
        "spec": { "podCIDR": cidr, "podCIDRs": [cidr] },
    });
    api.create("/api/v1/nodes", &object)?;
    let own: Value =
        json!({ "type": "InternalIP", "address": address(number, 1).replacen("100", "10", 1) });
    let path = format!("/api/v1/nodes/{name}/status");
    api.merge(&path, &json!({ "status": { "addresses": [own] } }))?;
    Ok(())
}

fn node_name(number: u32) -> String {
    format!("crowd-{number}")
}

/// In a network that no lab uses.
fn address(node: u32, host: u32) -> String {
    format!("100.{}.{}.{host}", 64 + node / 256, node % 256)
}

/// Does numbered work on several threads, to the first error.
fn together(numbers: Range<u32>, work: impl Fn(u32) -> Result<()> + Sync) -> Result<()> {
    let next = AtomicU32::new(numbers.start);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..WORKERS)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= numbers.end {
                            return Ok(());
                        }
                        if let Err(error) = work(number) {
                            // The others need not go on.
                            next.store(numbers.end, Ordering::Relaxed);
                            return Err(error);
                        }
                    }
                })
            })
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().expect("requests do not panic"))
    })
}
