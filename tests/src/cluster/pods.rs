//! Light pods: objects whose status the lab writes, because no kubelet does.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::nodes::Cluster;
use crate::lab::{Pod, PodSpec};

impl Cluster {
    /// Creates a Pod that is bound to its node and has no address yet; its UID.
    pub fn declare(&self, spec: &PodSpec) -> Result<String> {
        let object = self
            .api()
            .create(&collection(&spec.namespace), &object(spec))?;
        let uid = object["metadata"]["uid"].as_str();
        Ok(uid.context("a pod without uid")?.to_owned())
    }

    /// Writes the status of a plugged pod, and creates its object if nobody has declared it.
    pub fn publish(&self, pod: &Pod) -> Result<()> {
        let path = format!("{}/{}", collection(&pod.spec.namespace), pod.spec.name);
        if self.api().find(&path)?.is_none() {
            self.declare(&pod.spec)?;
        }
        self.api().merge(&format!("{path}/status"), &status(pod))?;
        Ok(())
    }

    /// Deletes the object of a pod.
    pub fn forget(&self, spec: &PodSpec) -> Result<()> {
        let path = format!("{}/{}", collection(&spec.namespace), spec.name);
        self.api().delete(&path)
    }
}

fn collection(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/pods")
}

fn object(spec: &PodSpec) -> Value {
    let ports: Vec<Value> = spec
        .ports
        .iter()
        .map(|port| {
            json!({
                "containerPort": port.port,
                "protocol": port.protocol.to_string().to_uppercase(),
                "name": port.name,
            })
        })
        .collect();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": spec.name, "labels": spec.labels },
        "spec": {
            "nodeName": spec.node,
            "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": 0,
            "containers": [{ "name": "server", "image": "localhost/light", "ports": ports }],
        },
    })
}

fn status(pod: &Pod) -> Value {
    let addresses: Vec<Value> = pod
        .addresses
        .iter()
        .map(|address| json!({ "ip": address }))
        .collect();
    // Services send traffic to pods that are ready.
    let conditions: Vec<Value> = ["PodScheduled", "Initialized", "ContainersReady", "Ready"]
        .iter()
        .map(|kind| json!({ "type": kind, "status": "True" }))
        .collect();
    json!({
        "status": {
            "phase": "Running",
            "podIP": pod.addresses.first(),
            "podIPs": addresses,
            "conditions": conditions,
        },
    })
}
