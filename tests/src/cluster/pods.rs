//! Pods of a cluster: light ones, whose status the lab writes because no kubelet does, and those that a kubelet runs.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::daemon::START_PATIENCE;
use super::nodes::Cluster;
use super::{images, machine};
use crate::cni::Sandbox;
use crate::lab::{Node, Pod, PodSpec};
use crate::wait::{PATIENCE, until_some};

impl Cluster {
    /// Creates a Pod that is bound to its node and has no address yet; its UID.
    pub fn declare(&self, spec: &PodSpec) -> Result<String> {
        let object = self.api().create(
            &collection(&spec.namespace),
            &object(spec, self.has_kubelets()),
        )?;
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

    /// Waits until a declared pod runs, by its kubelet's hands. Its network namespace gets a name, as those of light
    /// pods have.
    pub(crate) fn await_pod(&self, node: &Node, namespace: &str, spec: PodSpec) -> Result<Pod> {
        let path = format!("{}/{}", collection(&spec.namespace), spec.name);
        let id = spec.id();
        let object = until_some(&format!("pod {id} Running"), START_PATIENCE, || {
            let object = self.api().get(&path)?;
            let runs = object["status"]["phase"] == "Running";
            Ok(runs.then_some(object))
        });
        let object = object.map_err(|error| match self.events(&spec.namespace) {
            Ok(events) => error.context(events),
            Err(_) => error,
        })?;
        let words = ["--name", id.as_str()];
        let group = node.namespace.name();
        let process = until_some(&format!("a process of pod {id}"), PATIENCE, || {
            Ok(machine::processes_of(group, &words)?.first().copied())
        })?;
        let namespace = machine::name_network(namespace, process)?;
        let addresses = object["status"]["podIPs"].as_array();
        let addresses = addresses
            .into_iter()
            .flatten()
            .filter_map(|entry| entry["ip"].as_str()?.parse().ok())
            .collect();
        let container = object["status"]["containerStatuses"][0]["containerID"].as_str();
        let sandbox = Sandbox {
            container: container.unwrap_or_default().to_owned(),
            namespace: spec.namespace.clone(),
            name: spec.name.clone(),
            uid: object["metadata"]["uid"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
            path: namespace.path(),
        };
        Pod::found(node, spec, namespace, addresses, sandbox)
    }

    /// What happened in a namespace, for errors.
    fn events(&self, namespace: &str) -> Result<String> {
        let list = self
            .api()
            .get(&format!("/api/v1/namespaces/{namespace}/events"))?;
        let lines = list["items"].as_array().into_iter().flatten();
        let lines: Vec<String> = lines
            .filter_map(|event| event["message"].as_str().map(str::to_owned))
            .collect();
        Ok(format!("events of {namespace}: {}", lines.join("; ")))
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

fn object(spec: &PodSpec, is_real: bool) -> Value {
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
    let mut container = json!({ "name": "server", "image": images::LAB, "ports": ports });
    if is_real {
        let mut command: Vec<String> = ["towpath-probe", "serve", "--name"]
            .map(str::to_owned)
            .into();
        command.push(spec.id());
        for port in &spec.ports {
            command.extend([format!("--{}", port.protocol), port.port.to_string()]);
        }
        container["command"] = json!(command);
        container["imagePullPolicy"] = json!("Never");
    }
    let (node, selector) = if spec.is_scheduled {
        let selector = json!({ "kubernetes.io/hostname": spec.node });
        (Value::Null, selector)
    } else {
        (json!(spec.node), Value::Null)
    };
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": spec.name, "labels": spec.labels },
        "spec": {
            "nodeName": node,
            "nodeSelector": selector,
            "automountServiceAccountToken": false,
            // The lab has no cluster DNS.
            "dnsPolicy": "Default",
            "terminationGracePeriodSeconds": 0,
            "containers": [container],
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
