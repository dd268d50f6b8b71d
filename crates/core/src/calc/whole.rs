//! The tables of a node computed from the whole state.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::cidr::Partition;
use super::compile::{Claimant, CompiledRule, CompiledTier, Signature, Term, allowed};
use super::encode::{Encoded, encode, profile_id};
use super::matcher::{Matcher, Matchers};
use super::port_space::PortSpace;
use crate::model::{
    Cluster, Direction, Endpoint, EndpointKind, NamespaceMatch, ObservedInterface, Peer, Peers,
    Policy, PortMatch, Ports, Protocol, Rule,
};
use crate::tables::{
    Binding, ClassId, ClassKey, ClassProtocolKey, EndpointState, ExactKey, PortKey, Tables,
};

/// Ids that outlive one computation: the same signature keeps its class.
#[derive(Clone, Debug, Default)]
pub(super) struct Registry {
    classes: BTreeMap<Signature, ClassId>,
    last: u32,
}

impl Registry {
    fn class(&mut self, signature: Signature) -> ClassId {
        if signature.iter().all(Vec::is_empty) {
            return ClassId::NONE;
        }
        let last = &mut self.last;
        *self.classes.entry(signature).or_insert_with(|| {
            *last += 1;
            ClassId(*last)
        })
    }

    /// Forgets the classes that nobody uses.
    pub(super) fn retain(&mut self, used: &BTreeSet<ClassId>) {
        self.classes.retain(|_, class| used.contains(class));
    }
}

/// Computes everything.
pub(super) fn compute(cluster: &Cluster, node: &str, registry: &mut Registry) -> Tables {
    let world = World::new(cluster, node);
    let mut matchers = Matchers::default();
    let mut tables = Tables::default();
    let local = world.local();
    let mut profiles = Vec::new();
    for (address, endpoint, binding) in &local {
        let compiled =
            Direction::BOTH.map(|direction| world.compile(endpoint, direction, &mut matchers));
        tables.bindings.insert(binding.clone(), ());
        profiles.push((*address, compiled));
    }
    let partition = Partition::new(matchers.iter().filter_map(|(matcher, id)| match matcher {
        Matcher::Network { cidr, except } => Some((id, cidr, except.as_slice())),
        _ => None,
    }));
    let mut signatures = BTreeMap::new();
    world.classify(
        &matchers,
        &partition,
        registry,
        &mut tables,
        &mut signatures,
    );
    for (address, compiled) in &profiles {
        for (direction, tiers) in Direction::BOTH.into_iter().zip(compiled) {
            write(&mut tables, direction, *address, tiers, &signatures);
        }
    }
    if let Some(node) = cluster.nodes.get(node) {
        tables
            .pod_networks
            .extend(node.pod_cidrs.iter().map(|network| (*network, ())));
    }
    tables
}

fn write(
    tables: &mut Tables,
    direction: Direction,
    endpoint: IpAddr,
    tiers: &[CompiledTier],
    signatures: &BTreeMap<ClassId, Signature>,
) {
    let base = allowed(tiers, &Signature::new());
    let classes: Vec<(ClassId, Arc<PortSpace>)> = signatures
        .iter()
        .map(|(class, signature)| (*class, Arc::new(allowed(tiers, signature))))
        .collect();
    let is_open = base.is_full() && classes.iter().all(|(_, allowed)| allowed.is_full());
    let state = if is_open {
        EndpointState::Open
    } else {
        EndpointState::Restricted
    };
    let into = match direction {
        Direction::Ingress => &mut tables.ingress,
        Direction::Egress => &mut tables.egress,
    };
    into.state.insert(endpoint, state);
    if is_open {
        return;
    }
    let Encoded {
        exact,
        class_protocol,
        class_any,
        any,
        profile,
        default,
    } = encode(&base, &classes);
    let exact = exact.into_iter().map(|(class, protocol, port, verdict)| {
        (
            ExactKey {
                endpoint,
                class,
                protocol,
                port,
            },
            verdict,
        )
    });
    into.exact.extend(exact);
    let class_protocol = class_protocol
        .into_iter()
        .map(|(class, protocol, verdict)| {
            (
                ClassProtocolKey {
                    endpoint,
                    class,
                    protocol,
                },
                verdict,
            )
        });
    into.class_protocol.extend(class_protocol);
    into.class_any.extend(
        class_any
            .into_iter()
            .map(|(class, verdict)| (ClassKey { endpoint, class }, verdict)),
    );
    let any = any.into_iter().map(|(protocol, port, verdict)| {
        (
            PortKey {
                endpoint,
                protocol,
                port,
            },
            verdict,
        )
    });
    into.any.extend(any);
    into.default.insert(endpoint, default);
    if let Some(profile) = profile {
        let id = profile_id(&profile);
        into.profile.insert(endpoint, id);
        tables.profiles.insert(id, profile);
    }
}

/// The state with the lookups that a computation needs.
struct World<'a> {
    cluster: &'a Cluster,
    node: &'a str,
    claims: FxHashMap<IpAddr, Vec<&'a Endpoint>>,
    shown: FxHashMap<IpAddr, Vec<&'a ObservedInterface>>,
}

impl<'a> World<'a> {
    fn new(cluster: &'a Cluster, node: &'a str) -> Self {
        let mut claims: FxHashMap<IpAddr, Vec<&Endpoint>> = FxHashMap::default();
        for endpoint in cluster
            .endpoints
            .values()
            .filter(|endpoint| endpoint.is_workload())
        {
            let addresses: BTreeSet<IpAddr> = endpoint.addresses.iter().copied().collect();
            addresses
                .into_iter()
                .for_each(|address| claims.entry(address).or_default().push(endpoint));
        }
        let mut shown: FxHashMap<IpAddr, Vec<&ObservedInterface>> = FxHashMap::default();
        for interface in cluster.interfaces.values() {
            for address in &interface.addresses {
                shown.entry(*address).or_default().push(interface);
            }
        }
        Self {
            cluster,
            node,
            claims,
            shown,
        }
    }

    /// The programmed addresses of this node.
    fn local(&self) -> Vec<(IpAddr, &'a Endpoint, Binding)> {
        let mut local = Vec::new();
        for (address, claimants) in &self.claims {
            let [endpoint] = claimants.as_slice() else {
                continue;
            };
            if !self.is_here(endpoint)
                || !self.cluster.namespaces.contains_key(&endpoint.id.namespace)
            {
                continue;
            }
            if let Some(binding) = self.binding(endpoint, *address) {
                local.push((*address, *endpoint, binding));
            }
        }
        local.sort_by_key(|(address, ..)| *address);
        local
    }

    /// A workload endpoint without a node belongs where its address is seen.
    fn is_here(&self, endpoint: &Endpoint) -> bool {
        match &endpoint.node {
            Some(node) => node == self.node,
            None => endpoint.id.kind == EndpointKind::WorkloadEndpoint,
        }
    }

    fn binding(&self, endpoint: &Endpoint, address: IpAddr) -> Option<Binding> {
        let interface = match &endpoint.interface {
            Some(name) => self
                .cluster
                .interfaces
                .values()
                .find(|observed| observed.name == *name)?,
            None => match self.shown.get(&address)?.as_slice() {
                [interface] => interface,
                _ => return None,
            },
        };
        let mac = endpoint.mac.or(interface.mac);
        if interface.bridge.is_some() && mac.is_none() {
            return None;
        }
        Some(Binding {
            interface: interface.name.clone(),
            mac,
            address,
        })
    }

    /// The rules that apply to an endpoint in one direction.
    fn compile(
        &self,
        endpoint: &Endpoint,
        direction: Direction,
        matchers: &mut Matchers,
    ) -> Vec<CompiledTier> {
        let mut selecting: Vec<&Policy> = self
            .cluster
            .policies
            .values()
            .filter(|policy| policy.rules(direction).is_some() && self.selects(policy, endpoint))
            .collect();
        selecting.sort_by(|a, b| (&a.tier, a.order, &a.id).cmp(&(&b.tier, b.order, &b.id)));
        let mut tiers = Vec::new();
        for chunk in selecting.chunk_by(|a, b| a.tier == b.tier) {
            let rules = chunk
                .iter()
                .flat_map(|policy| policy.rules(direction).unwrap_or_default())
                .map(|rule| self.compile_rule(rule, endpoint, direction, matchers))
                .collect();
            tiers.push(CompiledTier {
                default: chunk[0].tier.default,
                rules,
            });
        }
        tiers
    }

    fn selects(&self, policy: &Policy, endpoint: &Endpoint) -> bool {
        let Some(namespace) = self.cluster.namespaces.get(&endpoint.id.namespace) else {
            return false;
        };
        let in_namespace = match &policy.subject.namespaces {
            NamespaceMatch::Is(name) => *name == namespace.name,
            NamespaceMatch::Matching(selector) => selector.matches(&namespace.labels),
        };
        in_namespace && policy.subject.pods.matches(&endpoint.labels)
    }

    fn compile_rule(
        &self,
        rule: &Rule,
        endpoint: &Endpoint,
        direction: Direction,
        matchers: &mut Matchers,
    ) -> CompiledRule {
        let mut terms = Vec::new();
        let (fixed, named) = split_ports(&rule.ports);
        let mut fixed = fixed;
        if direction == Direction::Ingress {
            for (protocol, name) in named {
                for port in served(endpoint, protocol, name) {
                    fixed = fixed.union(&PortSpace::range(port.0, port.1, port.1));
                }
            }
        } else {
            for (protocol, name) in named {
                self.named_egress(rule, protocol, name, matchers, &mut terms);
            }
        }
        if !fixed.is_empty() {
            match &rule.peers {
                Peers::Any => terms.push(Term {
                    matcher: None,
                    ports: fixed,
                }),
                Peers::Of(peers) => terms.extend(peers.iter().map(|peer| Term {
                    matcher: Some(matchers.number(plain(peer))),
                    ports: fixed.clone(),
                })),
            }
        }
        CompiledRule {
            action: rule.action,
            terms,
        }
    }

    /// Named ports of destinations: one matcher for each number that somebody serves.
    fn named_egress(
        &self,
        rule: &Rule,
        protocol: Option<Protocol>,
        name: &str,
        matchers: &mut Matchers,
        terms: &mut Vec<Term>,
    ) {
        let workload_endpoints = self.cluster.endpoints.values().filter(|e| e.is_workload());
        let numbers: BTreeSet<(Protocol, u16)> = workload_endpoints
            .flat_map(|endpoint| served(endpoint, protocol, name))
            .collect();
        for (protocol, number) in numbers {
            let mut add = |matcher| {
                let ports = PortSpace::range(protocol, number, number);
                terms.push(Term {
                    matcher: Some(matchers.number(matcher)),
                    ports,
                });
            };
            match &rule.peers {
                Peers::Any => add(Matcher::Serving {
                    name: name.into(),
                    protocol,
                    number,
                }),
                Peers::Of(peers) => peers.iter().for_each(|peer| {
                    if let Peer::Workloads { namespaces, pods } = peer {
                        add(Matcher::Workloads {
                            namespaces: namespaces.clone(),
                            pods: pods.clone(),
                            serves: Some((name.into(), protocol, number)),
                        });
                    }
                }),
            }
        }
    }

    /// Writes the class maps, and collects the signature of each class.
    fn classify(
        &self,
        matchers: &Matchers,
        partition: &Partition,
        registry: &mut Registry,
        tables: &mut Tables,
        signatures: &mut BTreeMap<ClassId, Signature>,
    ) {
        for piece in partition.pieces() {
            let signature =
                Signature::from([piece.matchers.iter().map(|id| (*id, true)).collect()]);
            let class = registry.class(signature.clone());
            signatures.insert(class, signature);
            tables
                .cidr_class
                .extend(piece.networks().into_iter().map(|network| (network, class)));
        }
        let nodes = self
            .cluster
            .nodes
            .values()
            .flat_map(|node| node.addresses.iter().copied());
        let addresses: BTreeSet<IpAddr> = self.claims.keys().copied().chain(nodes).collect();
        for address in addresses {
            let blocks: Claimant = partition
                .matchers(address)
                .iter()
                .map(|id| (*id, true))
                .collect();
            let signature = self.signature(matchers, address);
            if signature == Signature::from([blocks]) {
                continue;
            }
            let class = registry.class(signature.clone());
            if class != ClassId::NONE {
                signatures.insert(class, signature);
                tables.peer_class.insert(address, class);
            }
        }
    }

    fn signature(&self, matchers: &Matchers, address: IpAddr) -> Signature {
        let claimant = |endpoint: Option<&Endpoint>| {
            let mut met: Claimant = matchers
                .iter()
                .filter_map(|(matcher, id)| {
                    let as_workload = endpoint
                        .and_then(|endpoint| matcher.meets_workload(self.cluster, endpoint));
                    let by_address = matcher.meets_address(self.cluster, address).then_some(true);
                    Some((id, as_workload.or(by_address)?))
                })
                .collect();
            met.sort_unstable();
            met
        };
        match self.claims.get(&address) {
            Some(claimants) => claimants
                .iter()
                .map(|endpoint| claimant(Some(endpoint)))
                .collect(),
            None => Signature::from([claimant(None)]),
        }
    }
}

fn plain(peer: &Peer) -> Matcher {
    match peer {
        Peer::Workloads { namespaces, pods } => Matcher::Workloads {
            namespaces: namespaces.clone(),
            pods: pods.clone(),
            serves: None,
        },
        Peer::Network { cidr, except } => Matcher::Network {
            cidr: *cidr,
            except: except.clone(),
        },
        Peer::Nodes(selector) => Matcher::Nodes(selector.clone()),
    }
}

/// Numbered ports as a space, and the names.
fn split_ports(ports: &Ports) -> (PortSpace, Vec<(Option<Protocol>, &str)>) {
    let Ports::Of(ports) = ports else {
        return (PortSpace::full(), Vec::new());
    };
    let (mut space, mut named) = (PortSpace::default(), Vec::new());
    for port in ports {
        match port {
            PortMatch::Range {
                protocol,
                first,
                last,
            } => {
                space = space.union(&PortSpace::range(*protocol, *first, *last));
            }
            PortMatch::Named { protocol, name } => named.push((*protocol, name.as_str())),
        }
    }
    (space, named)
}

/// The numbers that an endpoint serves under a name.
fn served<'e>(
    endpoint: &'e Endpoint,
    protocol: Option<Protocol>,
    name: &'e str,
) -> impl Iterator<Item = (Protocol, u16)> + 'e {
    endpoint
        .ports
        .iter()
        .filter(move |port| {
            port.name.as_deref() == Some(name)
                && protocol.is_none_or(|wanted| wanted == port.protocol)
        })
        .map(|port| (port.protocol, port.number))
}
