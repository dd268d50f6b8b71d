//! Pods that are not what their manifests make them look.

use std::collections::BTreeMap;
use std::net::IpAddr;

use smol_str::SmolStr;
use towpath_api::Severity;
use towpath_core::model::{Endpoint, EndpointId, Lifecycle, ObjectKey, Policy};

use super::Report;
use super::index::Index;

pub(super) fn check(index: &Index<'_>, report: &mut Report<'_>) {
    check_namespaces(index, report);
    check_addresses(index, report);
    check_host_network(index, report);
}

fn key_of(id: &EndpointId) -> ObjectKey {
    ObjectKey::Endpoint(id.clone())
}

/// Labels of a namespace without manifest are unknown, so nothing may be allowed by them.
fn check_namespaces(index: &Index<'_>, report: &mut Report<'_>) {
    let mut unknown: BTreeMap<&SmolStr, (&EndpointId, usize)> = BTreeMap::new();
    for endpoint in index
        .cluster
        .endpoints
        .values()
        .filter(|endpoint| endpoint.is_workload())
    {
        let namespace = &endpoint.id.namespace;
        if !index.cluster.namespaces.contains_key(namespace) {
            unknown.entry(namespace).or_insert((&endpoint.id, 0)).1 += 1;
        }
    }
    for (namespace, (first, count)) in unknown {
        let pods = if count == 1 {
            "this pod stays".to_owned()
        } else {
            format!("its {count} pods stay")
        };
        report.add(
            &key_of(first),
            Severity::Error,
            "metadata.namespace",
            format!("namespace {namespace} has no manifest, so {pods} closed"),
            format!("add the manifest of namespace {namespace}, with its labels"),
        );
    }
}

fn check_addresses(index: &Index<'_>, report: &mut Report<'_>) {
    let mut owners: BTreeMap<IpAddr, &EndpointId> = BTreeMap::new();
    for endpoint in index
        .cluster
        .endpoints
        .values()
        .filter(|endpoint| endpoint.is_workload())
    {
        for address in &endpoint.addresses {
            let Some(first) = owners.get(address) else {
                owners.insert(*address, &endpoint.id);
                continue;
            };
            report.add(
                &key_of(&endpoint.id),
                Severity::Error,
                "",
                format!(
                    "the address {address} is also that of {first}; on its node it stays closed"
                ),
                "remove the one that is gone, or correct its address",
            );
        }
    }
}

fn check_host_network(index: &Index<'_>, report: &mut Report<'_>) {
    let is_on_host =
        |endpoint: &&Endpoint| endpoint.host_network && endpoint.lifecycle == Lifecycle::Live;
    for endpoint in index.cluster.endpoints.values().filter(is_on_host) {
        let is_meant = |policy: &&Policy| {
            policy.subject.pods.matches(&endpoint.labels)
                && index.is_namespace_matched(&endpoint.id.namespace, &policy.subject.namespaces)
        };
        let Some(policy) = index.cluster.policies.values().find(is_meant) else {
            continue;
        };
        report.add(
            &key_of(&endpoint.id),
            Severity::Note,
            "spec.hostNetwork",
            format!(
                "{} seems to select this pod, but no policy applies to pods on the host network",
                policy.id
            ),
            "protect the node itself, or take the pod off the host network",
        );
    }
}
