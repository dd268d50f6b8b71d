//! Which addresses are programmed here, and what rules apply to them.

use std::hash::{BuildHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use rustc_hash::{FxBuildHasher, FxHashSet};
use smol_str::SmolStr;

use super::compile::{CompiledTier, MatcherId, Term};
use super::index::Index;
use super::matcher::{Matcher, MatcherChanges, Matchers};
use super::port_space::PortSpace;
use super::side::SideId;
use crate::model::{
    Action, Cluster, Direction, Endpoint, EndpointId, EndpointKind, MacAddress, ObservedInterface,
    Peer, Peers, Policy, PolicyId, PolicyKind, PortMatch, Ports, Protocol, Rule,
};
use crate::tables::Binding;

/// The rules of one direction of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Compiled {
    pub(super) tiers: Vec<CompiledTier>,
    /// Every matcher in them, each with a reference for each endpoint; sorted.
    pub(super) matchers: Vec<MatcherId>,
    /// Names of ports whose numbers were looked up at other endpoints.
    pub(super) names: Vec<SmolStr>,
    /// Of all that; many endpoints ask for the side of one long list.
    digest: u64,
}

impl Compiled {
    /// These rules; matchers and names sorted, each once.
    pub(super) fn new(
        tiers: Vec<CompiledTier>,
        matchers: Vec<MatcherId>,
        names: Vec<SmolStr>,
    ) -> Self {
        let digest = FxBuildHasher.hash_one((&tiers, &matchers, &names));
        Self {
            tiers,
            matchers,
            names,
            digest,
        }
    }
}

impl Hash for Compiled {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.digest);
    }
}

/// A programmed address of this node.
#[derive(Debug)]
pub(super) struct Local {
    pub(super) binding: Binding,
    /// Ingress and egress, as [`Direction::BOTH`].
    pub(super) sides: [SideId; 2],
}

/// What an address is to be.
pub(super) struct Resolved {
    pub(super) binding: Binding,
    /// Ingress and egress, as [`Direction::BOTH`].
    pub(super) rules: [Arc<Compiled>; 2],
}

/// Everything that resolving and compiling reads.
pub(super) struct Reader<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) node: &'a str,
    pub(super) index: &'a Index,
}

impl<'a> Reader<'a> {
    /// Whether an endpoint belongs here. A workload endpoint without a node belongs where its address is seen.
    pub(super) fn is_here(&self, endpoint: &Endpoint) -> bool {
        match &endpoint.node {
            Some(node) => node == self.node,
            None => endpoint.id.kind == EndpointKind::WorkloadEndpoint,
        }
    }

    /// The endpoint of an address and where it is bound, if it is to be programmed here: one live claimant, of
    /// this node, of a known namespace, on one interface; on a bridge with a hardware address of its own.
    pub(super) fn resolve(&self, address: IpAddr) -> Option<(&'a Endpoint, Binding)> {
        let [endpoint] = self.index.claimants(address) else {
            return None;
        };
        let namespaces = &self.cluster.namespaces;
        if !self.is_here(endpoint) || !namespaces.contains_key(&endpoint.id.namespace) {
            return None;
        }
        let interface = self.interface(endpoint, address)?;
        let mac = self.mac(endpoint, interface);
        if interface.bridge.is_some() && mac.is_none() {
            return None;
        }
        Some((
            endpoint,
            Binding {
                interface: interface.name.clone(),
                mac,
                address,
            },
        ))
    }

    /// The one interface that an endpoint names, or that has the address.
    fn interface(&self, endpoint: &Endpoint, address: IpAddr) -> Option<&'a ObservedInterface> {
        let Some(name) = &endpoint.interface else {
            return match self.index.interfaces(address) {
                [index] => self.cluster.interfaces.get(index),
                _ => None,
            };
        };
        let all = self.cluster.interfaces.values();
        let mut named = all.filter(|observed| observed.name == *name);
        // Two of one name: one of them is gone already, nobody knows which.
        match (named.next(), named.next()) {
            (Some(interface), None) => Some(interface),
            _ => None,
        }
    }

    /// The hardware address under which an endpoint sends: the one that its object names, else the one behind its
    /// interface. A pod may give itself any, and a bridge sends frames to the port where it saw their address last. So
    /// one that is seen behind two ports of a bridge is nobody's, and one that an object names is not another port's.
    fn mac(&self, endpoint: &Endpoint, interface: &ObservedInterface) -> Option<MacAddress> {
        let Some(seen) = interface.mac.filter(|_| endpoint.mac.is_none()) else {
            return endpoint.mac;
        };
        if interface.bridge.is_none() {
            return Some(seen);
        }
        let is_neighbour = |other: &ObservedInterface| {
            other.index != interface.index && other.bridge == interface.bridge
        };
        let showing = self.index.showing(seen).iter();
        let mut showing = showing.filter_map(|index| self.cluster.interfaces.get(index));
        let naming = self.index.naming(seen).iter();
        let mut naming = naming.filter_map(|id| self.cluster.endpoints.get(id));
        let is_at_neighbour = |other: &Endpoint| {
            let mut addresses = other.addresses.iter();
            self.is_here(other)
                && addresses
                    .any(|address| self.interface(other, *address).is_some_and(is_neighbour))
        };
        let is_anothers = showing.any(is_neighbour) || naming.any(is_at_neighbour);
        (!is_anothers).then_some(seen)
    }

    /// The policies that could select an endpoint: those of its namespace, and the cluster-wide ones.
    fn policies(&self, endpoint: &EndpointId) -> impl Iterator<Item = &'a Policy> {
        let of = |kind, namespace: SmolStr| {
            let first = PolicyId {
                kind,
                namespace: namespace.clone(),
                name: SmolStr::default(),
            };
            let rest = self.cluster.policies.range(&first..);
            rest.take_while(move |policy| {
                policy.id.kind == kind && policy.id.namespace == namespace
            })
        };
        of(PolicyKind::NetworkPolicy, endpoint.namespace.clone())
            .chain(of(PolicyKind::ClusterNetworkPolicy, SmolStr::default()))
    }

    /// Whether a policy selects an endpoint.
    pub(super) fn is_selected(&self, policy: &Policy, endpoint: &Endpoint) -> bool {
        let namespace = self.cluster.namespaces.get(&endpoint.id.namespace);
        namespace.is_some_and(|namespace| policy.subject.namespaces.selects(namespace))
            && policy.subject.pods.matches(&endpoint.labels)
    }

    /// The policies that select an endpoint, in order.
    pub(super) fn selecting(&self, endpoint: &Endpoint) -> Vec<&'a Policy> {
        let all = self.policies(&endpoint.id);
        let mut selecting: Vec<&Policy> = all
            .filter(|policy| self.is_selected(policy, endpoint))
            .collect();
        selecting.sort_by(|a, b| (&a.tier, a.order, &a.id).cmp(&(&b.tier, b.order, &b.id)));
        selecting
    }
}

/// Compiles the rules of one policy and direction.
pub(super) struct RuleCompiler<'a, 'r> {
    pub(super) reader: &'r Reader<'a>,
    pub(super) endpoint: &'r Endpoint,
    pub(super) direction: Direction,
    pub(super) matchers: &'r mut Matchers,
    pub(super) changes: &'r mut MatcherChanges,
    /// With a reference each.
    pub(super) acquired: FxHashSet<MatcherId>,
    pub(super) names: Vec<SmolStr>,
}

impl RuleCompiler<'_, '_> {
    pub(super) fn rule(&mut self, rule: &Rule) -> (Action, Vec<Term>) {
        let mut terms = Vec::new();
        let (mut fixed, named) = split_ports(&rule.ports);
        for (protocol, name) in named {
            if self.direction == Direction::Ingress {
                for (protocol, number) in served(self.endpoint, protocol, name) {
                    fixed = fixed.union(&PortSpace::range(protocol, number, number));
                }
            } else {
                self.named_at_destination(&rule.peers, protocol, name, &mut terms);
            }
        }
        if !fixed.is_empty() {
            let fixed = Arc::new(fixed);
            match &rule.peers {
                Peers::Any => terms.push(Term {
                    matcher: None,
                    ports: fixed,
                }),
                Peers::Of(peers) => {
                    for peer in peers {
                        let matcher = Some(self.acquire(plain(peer)));
                        terms.push(Term {
                            matcher,
                            ports: fixed.clone(),
                        });
                    }
                }
            }
        }
        (rule.action, terms)
    }

    /// Named ports of destinations: one matcher for each number that somebody serves. Never blocks or nodes.
    fn named_at_destination(
        &mut self,
        peers: &Peers,
        protocol: Option<Protocol>,
        name: &SmolStr,
        terms: &mut Vec<Term>,
    ) {
        self.names.push(name.clone());
        let numbers = self.reader.index.numbers(name);
        let wanted = numbers.filter(|(number_of, _)| protocol.is_none_or(|p| p == *number_of));
        for (protocol, number) in wanted {
            let served = (name.clone(), protocol, number);
            let mut add = |matcher| {
                let matcher = Some(self.acquire(matcher));
                terms.push(Term {
                    matcher,
                    ports: Arc::new(PortSpace::range(protocol, number, number)),
                });
            };
            match peers {
                Peers::Any => add(Matcher::Serving(served)),
                Peers::Of(peers) => {
                    for peer in peers {
                        if let Peer::Workloads { namespaces, pods } = peer {
                            let (namespaces, pods) = (namespaces.clone(), pods.clone());
                            add(Matcher::Workloads {
                                namespaces,
                                pods,
                                serves: Some(served.clone()),
                            });
                        }
                    }
                }
            }
        }
    }

    /// One reference for each matcher, however often it occurs.
    fn acquire(&mut self, matcher: Matcher) -> MatcherId {
        let id = self
            .matchers
            .acquire(matcher, self.reader.cluster, self.changes);
        if !self.acquired.insert(id) {
            self.matchers.release(id, self.changes);
        }
        id
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
fn split_ports(ports: &Ports) -> (PortSpace, Vec<(Option<Protocol>, &SmolStr)>) {
    let Ports::Of(ports) = ports else {
        return (PortSpace::full(), Vec::new());
    };
    let (mut ranges, mut named) = (Vec::new(), Vec::new());
    for port in ports {
        match port {
            PortMatch::Range {
                protocol,
                first,
                last,
            } => ranges.push((*protocol, *first, *last)),
            PortMatch::Named { protocol, name } => named.push((*protocol, name)),
        }
    }
    (PortSpace::of_ranges(ranges), named)
}

/// The numbers that an endpoint serves under a name.
fn served(
    endpoint: &Endpoint,
    protocol: Option<Protocol>,
    name: &str,
) -> impl Iterator<Item = (Protocol, u16)> {
    let wanted = endpoint.ports.iter().filter(move |port| {
        port.name.as_deref() == Some(name) && protocol.is_none_or(|wanted| wanted == port.protocol)
    });
    wanted.map(|port| (port.protocol, port.number))
}
