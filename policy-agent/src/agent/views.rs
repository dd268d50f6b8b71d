//! The state of the graph as reports: pure functions, called when somebody asks.

use std::collections::BTreeMap;
use std::net::IpAddr;

use rustc_hash::{FxHashMap, FxHashSet};
use smol_str::SmolStr;
use towpath_core::model::{
    Cluster, Direction, Endpoint, EndpointId, EndpointKind, NamespaceMatch, ObservedInterface,
    Policy, Rule, Subject,
};
use towpath_core::tables::{ClassId, Tables};

use super::foreign_ports::ForeignPorts;
use super::report::{self, EndpointCounts, EndpointState};

/// Who claims an address: the live workloads that list it and the interfaces that show it.
#[derive(Debug, Default)]
struct Claims<'a> {
    workloads: Vec<&'a EndpointId>,
    interfaces: Vec<&'a ObservedInterface>,
}

/// Everything that the state of endpoints depends on.
struct Local<'a> {
    cluster: &'a Cluster,
    node: &'a str,
    foreign: &'a ForeignPorts,
    claims: FxHashMap<IpAddr, Claims<'a>>,
}

impl<'a> Local<'a> {
    fn new(cluster: &'a Cluster, node: &'a str, foreign: &'a ForeignPorts) -> Self {
        let mut local = Self {
            cluster,
            node,
            foreign,
            claims: FxHashMap::default(),
        };
        for interface in cluster.interfaces.values() {
            for address in &interface.addresses {
                local
                    .claims
                    .entry(*address)
                    .or_default()
                    .interfaces
                    .push(interface);
            }
        }
        // Only addresses that are seen here, or listed by an endpoint of this node, matter.
        for endpoint in local.endpoints() {
            for address in &endpoint.addresses {
                local.claims.entry(*address).or_default();
            }
        }
        for endpoint in cluster
            .endpoints
            .values()
            .filter(|endpoint| endpoint.is_workload())
        {
            for address in &endpoint.addresses {
                if let Some(claims) = local.claims.get_mut(address) {
                    claims.workloads.push(&endpoint.id);
                }
            }
        }
        local
    }

    /// Live workloads of this node. One of our own kind without a node belongs where its address is seen.
    fn endpoints(&self) -> impl Iterator<Item = &'a Endpoint> + use<'a> {
        let node = self.node;
        let (interfaces, foreign) = (&self.cluster.interfaces, self.foreign);
        let seen: FxHashSet<IpAddr> = interfaces
            .values()
            .flat_map(|interface| interface.addresses.iter().copied())
            .collect();
        let names: FxHashSet<&str> = interfaces
            .values()
            .map(|interface| interface.name.as_str())
            .collect();
        self.cluster.endpoints.values().filter(move |endpoint| {
            let is_here = match &endpoint.node {
                Some(home) => home == node,
                None => {
                    endpoint.id.kind == EndpointKind::WorkloadEndpoint
                        && (endpoint
                            .addresses
                            .iter()
                            .any(|address| seen.contains(address))
                            || endpoint.interface.as_ref().is_some_and(|name| {
                                names.contains(name.as_str()) || foreign.bridge_of(name).is_some()
                            }))
                }
            };
            is_here && endpoint.is_workload()
        })
    }

    /// The interface that the object names.
    fn named(&self, endpoint: &Endpoint) -> Option<&'a ObservedInterface> {
        let wanted = endpoint.interface.as_ref()?;
        self.cluster
            .interfaces
            .values()
            .find(|interface| interface.name == *wanted)
    }

    /// The state of one address, why, and its interface.
    fn address(
        &self,
        endpoint: &Endpoint,
        address: IpAddr,
    ) -> (EndpointState, Option<String>, Option<&'a ObservedInterface>) {
        let empty = Claims::default();
        let claims = self.claims.get(&address).unwrap_or(&empty);
        let interface = match &endpoint.interface {
            Some(_) => self.named(endpoint),
            None => claims.interfaces.first().copied(),
        };
        if claims.workloads.len() > 1 {
            let others: Vec<String> = claims
                .workloads
                .iter()
                .filter(|id| ***id != endpoint.id)
                .map(ToString::to_string)
                .collect();
            let reason = format!("{} claims {address} too", others.join(", "));
            return (EndpointState::Conflict, Some(reason), interface);
        }
        if let Some(wanted) = &endpoint.interface {
            let Some(found) = interface else {
                let reason = match self.foreign.bridge_of(wanted) {
                    Some(bridge) => format!(
                        "{wanted} is a port of {bridge}, which is no pod bridge; add {bridge} to podBridges (--pod-bridge)"
                    ),
                    None => format!("there is no interface {wanted}"),
                };
                return (EndpointState::WaitingForInterface, Some(reason), None);
            };
            if found.bridge.is_some() && endpoint.mac.or(found.mac).is_none() {
                let reason = format!("{wanted} is on a bridge, and the object names no mac");
                return (EndpointState::WaitingForInterface, Some(reason), interface);
            }
            return (EndpointState::Programmed, None, interface);
        }
        match claims.interfaces.as_slice() {
            [] => {
                let reason = format!("no interface shows {address}");
                (EndpointState::WaitingForInterface, Some(reason), None)
            }
            [_] => (EndpointState::Programmed, None, interface),
            [first, second, ..] => {
                let reason = format!("{} and {} both show {address}", first.name, second.name);
                (EndpointState::Conflict, Some(reason), interface)
            }
        }
    }

    /// The worst state of all addresses.
    fn state(
        &self,
        endpoint: &Endpoint,
    ) -> (EndpointState, Option<String>, Option<&'a ObservedInterface>) {
        if !self.cluster.namespaces.contains_key(&endpoint.id.namespace) {
            let reason = format!("there is no Namespace {}", endpoint.id.namespace);
            return (EndpointState::WaitingForNamespace, Some(reason), None);
        }
        if endpoint.addresses.is_empty() {
            let reason = "the object lists no address".to_owned();
            return (EndpointState::WaitingForAddress, Some(reason), None);
        }
        let states = endpoint
            .addresses
            .iter()
            .map(|address| self.address(endpoint, *address));
        let rank = |state: EndpointState| match state {
            EndpointState::Programmed => 0,
            EndpointState::WaitingForAddress => 1,
            EndpointState::WaitingForNamespace => 2,
            EndpointState::WaitingForInterface => 3,
            EndpointState::Conflict => 4,
        };
        states
            .max_by_key(|(state, ..)| rank(*state))
            .expect("it has an address")
    }
}

/// How many endpoints of this node are in which state.
pub(super) fn endpoint_counts(
    cluster: &Cluster,
    node: &str,
    foreign: &ForeignPorts,
) -> EndpointCounts {
    let local = Local::new(cluster, node, foreign);
    let mut counts = EndpointCounts::default();
    for endpoint in local.endpoints() {
        let count = match local.state(endpoint).0 {
            EndpointState::Programmed => &mut counts.programmed,
            EndpointState::WaitingForInterface => &mut counts.waiting_for_interface,
            EndpointState::WaitingForNamespace => &mut counts.waiting_for_namespace,
            EndpointState::WaitingForAddress => &mut counts.waiting_for_address,
            EndpointState::Conflict => &mut counts.conflict,
        };
        *count += 1;
    }
    counts
}

/// What is odd when no object of the source speaks of this node: then every pod here is closed, as an unknown one.
pub(super) fn strangeness(cluster: &Cluster, node: &str, foreign: &ForeignPorts) -> Option<String> {
    if cluster.nodes.contains_key(node) {
        return None;
    }
    let local = Local::new(cluster, node, foreign);
    if local.endpoints().next().is_some() {
        return None;
    }
    let mut known: Vec<&str> = cluster.nodes.keys().map(SmolStr::as_str).collect();
    known.sort_unstable();
    known.truncate(3);
    let known = match known.as_slice() {
        [] => "the source has no Node".to_owned(),
        names => format!("the source has Nodes like {}", names.join(", ")),
    };
    Some(format!(
        "no Node and no pod of the source is of node {node}, so every pod here is closed; {known}; check --node"
    ))
}

/// Endpoints of this node.
pub(super) fn endpoints(
    cluster: &Cluster,
    node: &str,
    foreign: &ForeignPorts,
) -> Vec<report::Endpoint> {
    let local = Local::new(cluster, node, foreign);
    let describe = |endpoint: &Endpoint| {
        let (state, reason, interface) = local.state(endpoint);
        let name = interface
            .map(|interface| interface.name.clone())
            .or(endpoint.interface.clone());
        let mac = interface
            .and_then(|interface| interface.mac)
            .or(endpoint.mac);
        report::Endpoint {
            namespace: endpoint.id.namespace.to_string(),
            name: endpoint.id.name.to_string(),
            kind: kind(endpoint.id.kind).to_owned(),
            addresses: endpoint.addresses.clone(),
            state,
            reason,
            interface: name.map(|name| name.to_string()),
            mac: mac.map(|mac| mac.to_string()),
            ingress_policies: policies_of(cluster, endpoint, Direction::Ingress),
            egress_policies: policies_of(cluster, endpoint, Direction::Egress),
        }
    };
    local.endpoints().map(describe).collect()
}

fn kind(kind: EndpointKind) -> &'static str {
    match kind {
        EndpointKind::Pod => "Pod",
        EndpointKind::WorkloadEndpoint => "WorkloadEndpoint",
        EndpointKind::LocalService => "LocalService",
    }
}

/// Policies that select the endpoint and apply in this direction, in the order in which they decide.
fn policies_of(cluster: &Cluster, endpoint: &Endpoint, direction: Direction) -> Vec<String> {
    let mut policies: Vec<&Policy> = cluster
        .policies
        .values()
        .filter(|policy| rules(policy, direction).is_some())
        .filter(|policy| is_selected(cluster, &policy.subject, endpoint))
        .collect();
    policies.sort_by_key(|policy| (policy.tier.order, policy.order));
    policies
        .iter()
        .map(|policy| policy.id.to_string())
        .collect()
}

fn rules(policy: &Policy, direction: Direction) -> Option<&Vec<Rule>> {
    match direction {
        Direction::Ingress => policy.ingress.as_ref(),
        Direction::Egress => policy.egress.as_ref(),
    }
}

fn is_selected(cluster: &Cluster, subject: &Subject, endpoint: &Endpoint) -> bool {
    let is_in_namespace = match &subject.namespaces {
        NamespaceMatch::Is(name) => *name == endpoint.id.namespace,
        NamespaceMatch::Matching(selector) => cluster
            .namespaces
            .get(&endpoint.id.namespace)
            .is_some_and(|namespace| selector.matches(&namespace.labels)),
    };
    is_in_namespace && subject.pods.matches(&endpoint.labels)
}

/// All policies, in the order in which they decide.
pub(super) fn policies(
    cluster: &Cluster,
    node: &str,
    foreign: &ForeignPorts,
) -> Vec<report::Policy> {
    let here: FxHashSet<&EndpointId> = Local::new(cluster, node, foreign)
        .endpoints()
        .map(|endpoint| &endpoint.id)
        .collect();
    let mut by_namespace: FxHashMap<&str, Vec<&Endpoint>> = FxHashMap::default();
    for endpoint in cluster
        .endpoints
        .values()
        .filter(|endpoint| endpoint.is_workload())
    {
        by_namespace
            .entry(&endpoint.id.namespace)
            .or_default()
            .push(endpoint);
    }
    let mut policies: Vec<&Policy> = cluster.policies.values().collect();
    policies.sort_by_key(|policy| (policy.tier.order, policy.order));
    let describe = |policy: &&Policy| {
        let candidates: Vec<&Endpoint> = match &policy.subject.namespaces {
            NamespaceMatch::Is(name) => {
                by_namespace.get(name.as_str()).cloned().unwrap_or_default()
            }
            NamespaceMatch::Matching(_) => by_namespace.values().flatten().copied().collect(),
        };
        let selected = candidates
            .into_iter()
            .filter(|endpoint| is_selected(cluster, &policy.subject, endpoint));
        let (mut count, mut count_here) = (0, 0);
        for endpoint in selected {
            count += 1;
            count_here += usize::from(here.contains(&endpoint.id));
        }
        report::Policy {
            kind: policy.id.kind.to_string(),
            namespace: policy.id.namespace.to_string(),
            name: policy.id.name.to_string(),
            tier: policy.tier.name.to_string(),
            order: policy.order,
            ingress_rules: policy.ingress.as_ref().map(Vec::len),
            egress_rules: policy.egress.as_ref().map(Vec::len),
            selected: count,
            selected_here: count_here,
            invalid: policy.invalid.as_ref().map(ToString::to_string),
        }
    };
    policies.iter().map(describe).collect()
}

/// Classes and who is in them.
pub(super) fn classes(tables: &Tables) -> Vec<report::Class> {
    let mut classes: BTreeMap<ClassId, report::Class> = BTreeMap::new();
    let empty = |id: ClassId| report::Class {
        id: id.0,
        addresses: Vec::new(),
        blocks: Vec::new(),
    };
    for (address, id) in &tables.peer_class {
        classes
            .entry(*id)
            .or_insert_with(|| empty(*id))
            .addresses
            .push(*address);
    }
    for (block, id) in &tables.cidr_class {
        classes
            .entry(*id)
            .or_insert_with(|| empty(*id))
            .blocks
            .push(block.to_string());
    }
    classes.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use towpath_core::model::{Labels, Lifecycle, Namespace, Object, Update};

    fn pod(name: &str, address: &str) -> Update {
        Update::Upsert(Object::Endpoint(Endpoint {
            id: EndpointId {
                kind: EndpointKind::Pod,
                namespace: "shop".into(),
                name: name.into(),
            },
            labels: Labels::default(),
            node: Some("here".into()),
            addresses: address
                .split(',')
                .filter_map(|text| text.parse().ok())
                .collect(),
            ports: Vec::new(),
            uid: None,
            host_network: false,
            lifecycle: Lifecycle::Live,
            interface: None,
            mac: None,
        }))
    }

    fn interface(index: u32, address: &str) -> Update {
        Update::Upsert(Object::Interface(ObservedInterface {
            index,
            name: format!("veth{index}").parse().unwrap(),
            bridge: None,
            mac: None,
            addresses: vec![address.parse().unwrap()],
        }))
    }

    fn states(updates: Vec<Update>) -> Vec<(String, EndpointState)> {
        let mut cluster = Cluster::default();
        let name = SmolStr::new_static("shop");
        let namespace = Namespace {
            name,
            labels: Labels::default(),
        };
        cluster.apply(Update::Upsert(Object::Namespace(namespace)));
        for update in updates {
            cluster.apply(update);
        }
        let endpoints = endpoints(&cluster, "here", &ForeignPorts::default()).into_iter();
        endpoints
            .map(|endpoint| (endpoint.name, endpoint.state))
            .collect()
    }

    #[test]
    fn an_endpoint_waits_until_one_interface_shows_its_address() {
        let found = states(vec![
            pod("a", "10.0.0.1"),
            pod("b", "10.0.0.2"),
            pod("c", ""),
            interface(1, "10.0.0.1"),
        ]);

        let expected = [
            ("a".to_owned(), EndpointState::Programmed),
            ("b".to_owned(), EndpointState::WaitingForInterface),
            ("c".to_owned(), EndpointState::WaitingForAddress),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn two_claimants_of_an_address_are_in_conflict() {
        let found = states(vec![
            pod("a", "10.0.0.1"),
            pod("b", "10.0.0.1,fd00::1"),
            pod("c", "10.0.0.3"),
            interface(1, "10.0.0.1"),
            interface(2, "10.0.0.3"),
            interface(3, "10.0.0.3"),
        ]);

        assert!(
            found
                .iter()
                .all(|(_, state)| *state == EndpointState::Conflict),
            "{found:?}"
        );
    }

    #[test]
    fn endpoints_of_an_unknown_namespace_are_named() {
        let mut cluster = Cluster::default();
        cluster.apply(pod("a", "10.0.0.1"));
        cluster.apply(interface(1, "10.0.0.1"));

        let counts = endpoint_counts(&cluster, "here", &ForeignPorts::default());

        assert_eq!(
            counts,
            EndpointCounts {
                waiting_for_namespace: 1,
                ..EndpointCounts::default()
            }
        );
    }
}
