//! Addresses of the node that stand for the pods of a Service (edge case 28).
//!
//! `NodeLocal` `DNSCache` binds the address of the DNS Service, and one of its own, on every node. A pod's packets to them end at
//! the node and are never translated to a DNS pod, so a policy that names those pods says nothing of them. The
//! configuration tells which pods such an address stands for, and policy takes it for one more of those.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use smol_str::{SmolStr, format_smolstr};
use towpath_core::model::{
    ContainerPort, Endpoint, EndpointId, EndpointKind, Lifecycle, Object, Protocol, Update,
};

/// Addresses in all, so that a mistake does not fill the tables.
const MOST_ADDRESSES: usize = 64;

/// Addresses, and what the pods behind the Service are like.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LocalService {
    /// Addresses that the node answers at: of the Service, and what the cache has besides.
    pub addresses: Vec<IpAddr>,
    /// Namespace of the pods.
    pub namespace: SmolStr,
    /// Labels of the pods: the selector of the Service.
    pub labels: BTreeMap<String, String>,
    /// Ports by which policies may refer to them.
    #[serde(default)]
    pub ports: Vec<NamedPort>,
}

/// A port that policies name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NamedPort {
    /// Name, as the pods' containers declare it.
    pub name: SmolStr,
    /// Number at which the node answers.
    pub port: u16,
    /// TCP, UDP or SCTP.
    pub protocol: PortProtocol,
}

/// A protocol with ports, as manifests write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum PortProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// Reads the list; a variable holds it as JSON.
///
/// # Errors
///
/// What is wrong with which entry.
pub fn parse(value: Value) -> Result<Vec<LocalService>, String> {
    let value = match value {
        Value::String(text) => serde_json::from_str(&text).map_err(|error| error.to_string())?,
        value => value,
    };
    let services: Vec<LocalService> =
        serde_json::from_value(value).map_err(|error| error.to_string())?;
    let mut seen = BTreeSet::new();
    for service in &services {
        if service.addresses.is_empty() || service.namespace.is_empty() {
            return Err("each entry needs addresses and the namespace of the pods".to_owned());
        }
        if service.labels.is_empty() {
            return Err(format!(
                "give the labels of the pods behind {}, or it would be a pod without any",
                service.addresses[0]
            ));
        }
        if service.ports.iter().any(|port| port.port == 0) {
            return Err("0 is no port".to_owned());
        }
        for address in &service.addresses {
            if address.is_unspecified() || address.is_multicast() {
                return Err(format!("{address} is no address of a node"));
            }
            if !seen.insert(*address) {
                return Err(format!("{address} stands for two Services"));
            }
        }
    }
    if seen.len() > MOST_ADDRESSES {
        return Err(format!("more than {MOST_ADDRESSES} addresses"));
    }
    Ok(services)
}

/// The peers that stand for these Services.
pub fn updates(services: &[LocalService]) -> impl Iterator<Item = Update> {
    let peer = |(index, service): (usize, &LocalService)| Endpoint {
        id: EndpointId {
            kind: EndpointKind::LocalService,
            namespace: service.namespace.clone(),
            name: format_smolstr!("localServices[{index}]"),
        },
        labels: service
            .labels
            .iter()
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect(),
        node: None,
        addresses: service.addresses.clone(),
        ports: service.ports.iter().map(container_port).collect(),
        uid: None,
        host_network: false,
        lifecycle: Lifecycle::Live,
        interface: None,
        mac: None,
    };
    let peers = services.iter().enumerate().map(peer);
    peers.map(|peer| Update::Upsert(Object::Endpoint(peer)))
}

/// Every address that stands for pods.
pub(super) fn addresses(services: &[LocalService]) -> BTreeSet<IpAddr> {
    let addresses = services.iter().flat_map(|service| &service.addresses);
    addresses.copied().collect()
}

fn container_port(port: &NamedPort) -> ContainerPort {
    ContainerPort {
        name: Some(port.name.clone()),
        protocol: match port.protocol {
            PortProtocol::Tcp => Protocol::Tcp,
            PortProtocol::Udp => Protocol::Udp,
            PortProtocol::Sctp => Protocol::Sctp,
        },
        number: port.port,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(yaml: &str) -> Result<Vec<LocalService>, String> {
        parse(serde_saphyr::from_str(yaml).unwrap())
    }

    #[test]
    fn a_cache_is_a_peer_with_the_labels_of_the_pods() {
        let services = read(
            "- addresses: [169.254.20.10, 10.96.0.10]\n  namespace: kube-system\n  labels: { k8s-app: kube-dns }\n  \
             ports: [{ name: dns, port: 53, protocol: UDP }]\n",
        )
        .unwrap();

        let peers: Vec<Update> = updates(&services).collect();

        let [Update::Upsert(Object::Endpoint(peer))] = peers.as_slice() else {
            panic!("not one endpoint: {peers:?}");
        };
        assert_eq!(
            peer.labels.get("k8s-app").map(SmolStr::as_str),
            Some("kube-dns")
        );
        assert_eq!(peer.addresses.len(), 2);
        assert_eq!(peer.ports[0].number, 53);
        assert_eq!(peer.node, None);
    }

    #[test]
    fn what_would_mean_nothing_or_two_things_is_refused() {
        let with = |addresses: &str, labels: &str, more: &str| {
            read(&format!(
                "[{{ addresses: {addresses}, namespace: dns, labels: {labels}{more} }}]"
            ))
        };

        assert!(with("[10.0.0.1]", "{ a: b }", "").is_ok());
        assert!(with("[]", "{ a: b }", "").is_err());
        assert!(with("[10.0.0.1, 10.0.0.1]", "{ a: b }", "").is_err());
        assert!(with("[0.0.0.0]", "{ a: b }", "").is_err());
        assert!(with("[224.0.0.1]", "{ a: b }", "").is_err());
        assert!(with("[10.0.0.1]", "{}", "").is_err());
        assert!(with("[10.0.0.1]", "{ a: b }", ", port: 53").is_err());
        assert!(
            with(
                "[10.0.0.1]",
                "{ a: b }",
                ", ports: [{ name: d, port: 0, protocol: UDP }]"
            )
            .is_err()
        );
    }

    #[test]
    fn a_variable_holds_json() {
        let text = r#"[{"addresses":["fd00::a"],"namespace":"dns","labels":{"a":"b"}}]"#;

        let services = parse(Value::String(text.to_owned())).unwrap();

        assert_eq!(
            services[0].addresses,
            ["fd00::a".parse::<IpAddr>().unwrap()]
        );
    }
}
