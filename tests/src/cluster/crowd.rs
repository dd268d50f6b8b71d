//! Many nodes and pods that are objects only: what an agent must know of a large cluster.

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

    /// Creates all of them. Pods have the labels `app: app-N` (one of 100), `tier` (one of 3) and `pod: N`.
    pub fn enter(&self, plane: &ControlPlane) -> Result<()> {
        let api = plane.api();
        for number in 0..self.namespaces {
            let name = format!("crowd-{number}");
            let labels = json!({ "team": format!("team-{}", number % 10) });
            let metadata = json!({ "name": name, "labels": labels });
            api.create("/api/v1/namespaces", &json!({ "metadata": metadata }))?;
        }
        for number in 0..self.namespaces {
            plane.wait_account(&format!("crowd-{number}"))?;
        }
        together(self.nodes, |number| enter_node(api, number))?;
        together(self.pods, |number| self.enter_pod(api, number))
    }

    fn enter_pod(&self, api: &Api, number: u32) -> Result<()> {
        let node = number % self.nodes;
        let address = address(node, number / self.nodes + 2);
        let pods = format!("/api/v1/namespaces/{}/pods", self.namespace(number));
        let name = format!("crowd-{number}");
        let tier = match number % 3 {
            0 => "front",
            1 => "middle",
            _ => "back",
        };
        let labels = json!({
            "app": format!("app-{}", number % 100),
            "tier": tier,
            "pod": number.to_string(),
        });
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
fn together(count: u32, work: impl Fn(u32) -> Result<()> + Sync) -> Result<()> {
    let next = AtomicU32::new(0);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..WORKERS)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= count {
                            return Ok(());
                        }
                        if let Err(error) = work(number) {
                            // The others need not go on.
                            next.store(count, Ordering::Relaxed);
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
