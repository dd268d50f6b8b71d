//! A connection to a Service: each step by which kube-proxy translates it, and the flows that policy then judges.
//!
//! Rules are those of kube-proxy in its modes nftables and iptables
//! (<https://kubernetes.io/docs/reference/networking/virtual-ips/>): the destination becomes one of the endpoints on the
//! node where the packet meets the Service; the source becomes an address of that node where the answer would not come
//! back otherwise. Our rules see a packet between the two, so a pod on that same node still sees who asks.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use k8s_openapi::api::core::v1::ServicePort;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::{Serialize, Serializer};
use towpath_core::evaluate::Flow;
use towpath_core::model::{Cluster, Direction, Endpoint, EndpointKind, Node, Protocol};

use super::super::arguments::{End, Service};
use super::super::error::CommandError;
use super::{Asked, DIRECTIONS, addresses, find};
use crate::source::ServiceSeen;

/// `service/NAMESPACE/NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Via {
    pub(super) namespace: String,
    pub(super) name: String,
}

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "service/{}/{}", self.namespace, self.name)
    }
}

impl Serialize for Via {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl FromStr for Via {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // They go into the path of a request.
        let is_name = |text: &str| {
            let is_plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
            let has_plain_ends = text.bytes().next().is_some_and(is_plain)
                && text.bytes().next_back().is_some_and(is_plain);
            has_plain_ends
                && text.len() <= 253
                && text
                    .bytes()
                    .all(|c| is_plain(c) || matches!(c, b'-' | b'.'))
        };
        let parts: Vec<&str> = text.split('/').collect();
        match parts[..] {
            ["service" | "svc", namespace, name] if is_name(namespace) && is_name(name) => {
                Ok(Self {
                    namespace: namespace.to_owned(),
                    name: name.to_owned(),
                })
            }
            _ => Err("write service/NAMESPACE/NAME".to_owned()),
        }
    }
}

/// Who asks, what, and where.
#[derive(Clone, Copy, Debug)]
pub(super) struct Question<'q> {
    pub(super) via: &'q Via,
    pub(super) from: &'q End,
    /// Only this one of the pods behind the Service.
    pub(super) to: Option<&'q End>,
    pub(super) port: &'q Service,
    /// The node whose port is asked; without it the Service's own address is.
    pub(super) node: Option<&'q str>,
}

/// Who may answer.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Backend {
    address: IpAddr,
    port: u16,
    node: Option<String>,
    /// `namespace/name` of the pod, or the address.
    name: String,
}

/// What the question means: for each of those who may answer, the flows that are judged.
pub(super) fn asked(
    cluster: &Cluster,
    seen: &ServiceSeen,
    question: &Question<'_>,
) -> Result<Vec<Asked>, CommandError> {
    let via = question.via;
    let port = service_port(seen, question)?;
    let front = Front::new(cluster, seen, port, question)?;
    let backends = backends(cluster, seen, port, question)?;
    let clients = addresses(cluster, question.from)?;
    let mut all = Vec::new();
    for client in clients {
        let Some(own) = front
            .addresses
            .iter()
            .find(|own| own.is_ipv4() == client.is_ipv4())
        else {
            continue;
        };
        for backend in backends
            .iter()
            .filter(|backend| backend.address.is_ipv4() == client.is_ipv4())
        {
            if front.is_local && backend.node.as_deref() != front.node.as_deref() {
                continue;
            }
            let way = Way {
                cluster,
                front: &front,
                own: *own,
                client,
                backend,
                from: question.from,
            };
            let group = all.last().map_or(0, |last: &Asked| last.group + 1);
            all.extend(way.flows(group));
        }
    }
    if all.is_empty() {
        let place = match &front.node {
            Some(node) if front.is_local => {
                format!(" on {node}, where its traffic policy Local wants it")
            }
            _ => String::new(),
        };
        return Err(CommandError::Failed(format!(
            "no pod stands behind {via} at {}{place}, so nobody answers {}",
            question.port, question.from
        )));
    }
    Ok(all)
}

/// The port of the Service that is meant.
fn service_port<'s>(
    seen: &'s ServiceSeen,
    question: &Question<'_>,
) -> Result<&'s ServicePort, CommandError> {
    let spec = seen.service.spec.as_ref();
    let ports = spec
        .and_then(|spec| spec.ports.as_deref())
        .unwrap_or_default();
    let is_meant = |port: &&ServicePort| match question.port {
        Service::Port(wanted, number) => {
            protocol(port) == Some(*wanted) && port.port == i32::from(*number)
        }
        Service::Named(wanted, name) => {
            port.name.as_deref() == Some(name)
                && wanted.is_none_or(|wanted| protocol(port) == Some(wanted))
        }
        Service::Protocol(_) => false,
    };
    ports.iter().find(is_meant).ok_or_else(|| {
        let known: Vec<String> = ports
            .iter()
            .map(|port| match (&port.name, protocol(port)) {
                (Some(name), Some(protocol)) => format!("{name} ({}/{protocol})", port.port),
                (None, Some(protocol)) => format!("{}/{protocol}", port.port),
                (_, None) => port.port.to_string(),
            })
            .collect();
        CommandError::Failed(format!(
            "{} has no port {}; it has {}",
            question.via,
            question.port,
            if known.is_empty() {
                "none".to_owned()
            } else {
                known.join(", ")
            }
        ))
    })
}

fn protocol(port: &ServicePort) -> Option<Protocol> {
    let Some(text) = &port.protocol else {
        return Some(Protocol::Tcp);
    };
    let mut all = Protocol::ALL.into_iter();
    all.find(|known| known.to_string().eq_ignore_ascii_case(text))
}

/// Where the packet meets the Service.
#[derive(Clone, Debug)]
struct Front {
    addresses: Vec<IpAddr>,
    port: u16,
    protocol: Protocol,
    /// The node that translates.
    node: Option<String>,
    /// Only pods of that node may answer.
    is_local: bool,
    /// Whether the source is translated too, unless the client is its own server.
    is_masqueraded: bool,
    /// The client is a pod, on this node.
    client_node: Option<String>,
}

impl Front {
    fn new(
        cluster: &Cluster,
        seen: &ServiceSeen,
        port: &ServicePort,
        question: &Question<'_>,
    ) -> Result<Self, CommandError> {
        let failed = |text: String| Err(CommandError::Failed(text));
        let via = question.via;
        let spec = seen.service.spec.clone().unwrap_or_default();
        let Some(protocol) = protocol(port) else {
            return failed(format!("{via} has a port of an unknown protocol"));
        };
        let client = client(cluster, question.from);
        let number = |number: i32| u16::try_from(number).unwrap_or_default();
        let is_local = |policy: &Option<String>| policy.as_deref() == Some("Local");
        if let Some(name) = question.node {
            let Some(node) = cluster.nodes.get(name) else {
                return failed(format!("there is no node {name}"));
            };
            let Some(node_port) = port.node_port.filter(|port| *port > 0) else {
                return failed(format!(
                    "{via} has no port on nodes; leave --node out to ask its own address"
                ));
            };
            let is_local = is_local(&spec.external_traffic_policy);
            return Ok(Self {
                addresses: first_of_each_family(&node.addresses),
                port: number(node_port),
                protocol,
                node: Some(name.to_owned()),
                is_local,
                is_masqueraded: !is_local,
                client_node: client
                    .filter(|client| client.is_pod)
                    .map(|client| client.node),
            });
        }
        let own = spec.cluster_ips.clone().unwrap_or_default();
        let own: Vec<&String> = own.iter().chain(&spec.cluster_ip).collect();
        let mut addresses: Vec<IpAddr> = own.iter().filter_map(|text| text.parse().ok()).collect();
        addresses.dedup();
        if addresses.is_empty() {
            return failed(format!(
                "{via} has no address of its own: clients ask its pods themselves; ask with --to"
            ));
        }
        let Some(client) = client else {
            return failed(format!(
                "{} is not of this cluster, so it comes in by a node: give --node",
                question.from
            ));
        };
        Ok(Self {
            addresses,
            port: number(port.port),
            protocol,
            is_local: is_local(&spec.internal_traffic_policy),
            // A process of a node has a node's address already.
            is_masqueraded: false,
            client_node: client.is_pod.then(|| client.node.clone()),
            node: Some(client.node),
        })
    }
}

/// Who asks, if it is of this cluster.
struct Client {
    node: String,
    is_pod: bool,
}

fn client(cluster: &Cluster, from: &End) -> Option<Client> {
    let of = |endpoint: &Endpoint| {
        Some(Client {
            node: endpoint.node.as_ref()?.to_string(),
            is_pod: endpoint.is_workload(),
        })
    };
    let address = match from {
        End::Endpoint { namespace, name } => return of(find(cluster, namespace, name).ok()?),
        End::Address(address) => address,
    };
    let mut endpoints = cluster.endpoints.values();
    if let Some(endpoint) =
        endpoints.find(|one| one.is_workload() && one.addresses.contains(address))
    {
        return of(endpoint);
    }
    let mut nodes = cluster.nodes.values();
    let node = nodes.find(|node| node.claimed().any(|claimed| claimed == *address))?;
    Some(Client {
        node: node.name.to_string(),
        is_pod: false,
    })
}

fn first_of_each_family(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let first = |is_v4| addresses.iter().copied().find(|one| one.is_ipv4() == is_v4);
    [true, false].into_iter().filter_map(first).collect()
}

/// Those who may answer: of the slices, or where there are none of the selector.
fn backends(
    cluster: &Cluster,
    seen: &ServiceSeen,
    port: &ServicePort,
    question: &Question<'_>,
) -> Result<Vec<Backend>, CommandError> {
    let found = if seen.slices.is_empty() {
        selected(cluster, seen, port, question)
    } else {
        sliced(cluster, seen, port)
    };
    let Some(wanted) = question.to else {
        return Ok(found);
    };
    let wanted = addresses(cluster, wanted)?;
    let is_wanted = |backend: &Backend| wanted.contains(&backend.address);
    Ok(found.into_iter().filter(is_wanted).collect())
}

fn sliced(cluster: &Cluster, seen: &ServiceSeen, port: &ServicePort) -> Vec<Backend> {
    let mut found = Vec::new();
    for slice in &seen.slices {
        let ports = slice.ports.as_deref().unwrap_or_default();
        let name = |name: &Option<String>| name.clone().unwrap_or_default();
        let Some(number) = ports
            .iter()
            .find(|known| name(&known.name) == name(&port.name))
            .and_then(|known| u16::try_from(known.port?).ok())
        else {
            continue;
        };
        for endpoint in slice.endpoints.as_deref().unwrap_or_default() {
            let conditions = endpoint.conditions.as_ref();
            if conditions.and_then(|conditions| conditions.ready) == Some(false) {
                continue;
            }
            for address in endpoint
                .addresses
                .iter()
                .filter_map(|text| text.parse().ok())
            {
                let mut pods = cluster.endpoints.values();
                let pod = pods.find(|pod| pod.is_workload() && pod.addresses.contains(&address));
                found.push(Backend {
                    address,
                    port: number,
                    node: endpoint
                        .node_name
                        .clone()
                        .or_else(|| Some(pod?.node.as_ref()?.to_string())),
                    name: pod.map_or_else(|| address.to_string(), name_of),
                });
            }
        }
    }
    found
}

fn selected(
    cluster: &Cluster,
    seen: &ServiceSeen,
    port: &ServicePort,
    question: &Question<'_>,
) -> Vec<Backend> {
    let spec = seen.service.spec.as_ref();
    let empty = BTreeMap::new();
    let selector = spec
        .and_then(|spec| spec.selector.as_ref())
        .unwrap_or(&empty);
    if selector.is_empty() {
        return Vec::new();
    }
    let pods = cluster.endpoints.values().filter(|pod| {
        let has =
            |(key, value): (&String, &String)| pod.labels.get(key).is_some_and(|own| own == value);
        pod.id.kind == EndpointKind::Pod
            && pod.id.namespace == question.via.namespace
            && pod.is_workload()
            && selector.iter().all(has)
    });
    let mut found = Vec::new();
    for pod in pods {
        let number = match &port.target_port {
            None => u16::try_from(port.port).ok(),
            Some(IntOrString::Int(number)) => u16::try_from(*number).ok(),
            Some(IntOrString::String(name)) => {
                let is_it = |known: &&towpath_core::model::ContainerPort| {
                    known.name.as_deref() == Some(name.as_str())
                        && Some(known.protocol) == protocol(port)
                };
                pod.ports.iter().find(is_it).map(|known| known.number)
            }
        };
        let Some(number) = number else { continue };
        found.extend(pod.addresses.iter().map(|address| Backend {
            address: *address,
            port: number,
            node: pod.node.as_ref().map(ToString::to_string),
            name: name_of(pod),
        }));
    }
    found
}

fn name_of(pod: &Endpoint) -> String {
    format!("{}/{}", pod.id.namespace, pod.id.name)
}

fn socket_text(address: IpAddr, port: u16, protocol: Protocol) -> String {
    format!("{}/{protocol}", SocketAddr::from((address, port)))
}

/// One client, one of those who may answer.
struct Way<'w> {
    cluster: &'w Cluster,
    front: &'w Front,
    /// The address that is asked.
    own: IpAddr,
    client: IpAddr,
    backend: &'w Backend,
    from: &'w End,
}

impl Way<'_> {
    fn flows(&self, group: usize) -> Vec<Asked> {
        let (front, backend) = (self.front, self.backend);
        let translating = front.node.as_deref().unwrap_or("a node");
        let there = match &backend.node {
            Some(node) => format!("{} on {node}", backend.name),
            None => backend.name.clone(),
        };
        let mut steps = vec![format!(
            "on {translating}: {} becomes {} ({there})",
            socket_text(self.own, front.port, front.protocol),
            socket_text(backend.address, backend.port, front.protocol),
        )];
        let is_same_node = backend.node.is_some() && backend.node == front.node;
        let leaves = match &front.client_node {
            Some(node) => Some(node) == front.node.as_ref(),
            None => true,
        };
        let source = if self.client == backend.address {
            steps.push(format!(
                "on {translating}: the source becomes an address of {translating}, after policy has judged the pod as its own peer"
            ));
            self.client
        } else if !front.is_masqueraded {
            steps.push(format!("the source stays {}", self.client));
            self.client
        } else if is_same_node {
            steps.push(format!(
                "on {translating}: the source becomes an address of {translating}, after policy has judged {}",
                self.client
            ));
            self.client
        } else {
            let source = self.source_of(translating).unwrap_or(self.client);
            steps.push(format!(
                "on {translating}: the source becomes {source}, by which the packet leaves, and which the pod's node sees"
            ));
            source
        };
        let from = if source == self.client {
            self.from.to_string()
        } else {
            translating.to_owned()
        };
        let flow = |source, destination, port| Flow {
            source,
            destination,
            protocol: front.protocol.number(),
            port: Some(port),
        };
        let asked =
            |from: String, to: String, flow: Flow, directions: &'static [Direction]| Asked {
                from,
                to,
                flow,
                directions,
                steps: steps.clone(),
                group,
            };
        let whole = flow(source, backend.address, backend.port);
        if front.client_node.is_none() || (source == self.client && leaves) {
            return vec![asked(from, backend.name.clone(), whole, &DIRECTIONS)];
        }
        // What leaves the client is judged on its own node, where it may not be translated yet.
        let (target, out) = if leaves {
            let out = flow(self.client, backend.address, backend.port);
            (backend.name.clone(), out)
        } else {
            let out = flow(self.client, self.own, front.port);
            (translating.to_owned(), out)
        };
        vec![
            asked(self.from.to_string(), target, out, &[Direction::Egress]),
            asked(from, backend.name.clone(), whole, &[Direction::Ingress]),
        ]
    }

    /// With which address a node sends on what it has translated: that of the interface by which it leaves.
    fn source_of(&self, name: &str) -> Option<IpAddr> {
        let node = self.cluster.nodes.get(name)?;
        let of_family = |address: &IpAddr| address.is_ipv4() == self.client.is_ipv4();
        let mut tunnels = node
            .tunnel_cidrs
            .iter()
            .flat_map(|cidr| Node::first_two(*cidr));
        let tunnel = tunnels.find(of_family);
        tunnel.or_else(|| node.addresses.iter().copied().find(of_family))
    }
}

#[cfg(test)]
mod tests;
