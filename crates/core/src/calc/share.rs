//! The rules of endpoints, compiled once in a flush for all endpoints for which they are the same.
//!
//! A namespace may have thousands of policies, and a node a hundred of its pods. What is the same for them is found by
//! the place of labels and policies in memory, which do not move while a flush resolves.

use std::rc::Rc;
use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};
use smol_str::SmolStr;

use super::compile::{CompiledTier, MatcherId, Term};
use super::local::{Compiled, Reader, RuleCompiler};
use super::matcher::{MatcherChanges, Matchers};
use crate::model::{Action, ContainerPort, Direction, Endpoint, Policy, PortMatch, Ports, Rule};

/// The policies that select an endpoint and apply in one direction, in order.
struct Selecting<'a> {
    policies: Vec<&'a Policy>,
    /// Their places.
    places: Rc<[*const Policy]>,
    /// Whether a rule names a port of the endpoint.
    names_port: bool,
}

/// One policy in one direction.
struct Part {
    rules: Vec<(Action, Vec<Term>)>,
    /// With a reference each, for as long as the flush resolves.
    matchers: FxHashSet<MatcherId>,
    names: Vec<SmolStr>,
}

/// What may be asked for again: policies, direction, and the endpoint's ports where a rule names one.
type Key<'a, P> = (P, Direction, Option<&'a [ContainerPort]>);

/// Namespace, and place of the labels.
type Template<'a> = (&'a SmolStr, *const (SmolStr, SmolStr));

/// What one flush has compiled.
pub(super) struct Compiler<'a, 'm> {
    reader: &'m Reader<'a>,
    matchers: &'m mut Matchers,
    changes: &'m mut MatcherChanges,
    /// Ingress and egress.
    selecting: FxHashMap<Template<'a>, Rc<[Selecting<'a>; 2]>>,
    parts: FxHashMap<Key<'a, *const Policy>, Rc<Part>>,
    compiled: FxHashMap<Key<'a, Rc<[*const Policy]>>, Arc<Compiled>>,
}

impl<'a, 'm> Compiler<'a, 'm> {
    /// Nothing is compiled yet.
    pub(super) fn new(
        reader: &'m Reader<'a>,
        matchers: &'m mut Matchers,
        changes: &'m mut MatcherChanges,
    ) -> Self {
        Self {
            reader,
            matchers,
            changes,
            selecting: FxHashMap::default(),
            parts: FxHashMap::default(),
            compiled: FxHashMap::default(),
        }
    }

    /// The rules that apply to an endpoint in one direction. Takes a reference to every matcher in them.
    pub(super) fn compile(
        &mut self,
        endpoint: &'a Endpoint,
        direction: Direction,
    ) -> Arc<Compiled> {
        let template = (&endpoint.id.namespace, endpoint.labels.place());
        let reader = self.reader;
        let both = self.selecting.entry(template).or_insert_with(|| {
            let all = reader.selecting(endpoint);
            Rc::new(Direction::BOTH.map(|direction| Selecting::new(&all, direction)))
        });
        let both = both.clone();
        let selecting = match direction {
            Direction::Ingress => &both[0],
            Direction::Egress => &both[1],
        };
        let ports = selecting.names_port.then_some(endpoint.ports.as_slice());
        let key = (selecting.places.clone(), direction, ports);
        let compiled = if let Some(compiled) = self.compiled.get(&key) {
            compiled.clone()
        } else {
            let compiled = Arc::new(self.join(&selecting.policies, endpoint, direction));
            self.compiled.insert(key, compiled.clone());
            compiled
        };
        for id in &compiled.matchers {
            self.matchers.acquire_again(*id);
        }
        compiled
    }

    /// Policies as one.
    fn join(
        &mut self,
        policies: &[&'a Policy],
        endpoint: &'a Endpoint,
        direction: Direction,
    ) -> Compiled {
        let mut matchers: Vec<MatcherId> = Vec::new();
        let mut names: Vec<SmolStr> = Vec::new();
        let mut tiers = Vec::new();
        for tier in policies.chunk_by(|a, b| a.tier == b.tier) {
            let parts = tier
                .iter()
                .map(|policy| self.part(policy, endpoint, direction));
            let parts: Vec<Rc<Part>> = parts.collect();
            matchers.extend(parts.iter().flat_map(|part| &part.matchers));
            names.extend(parts.iter().flat_map(|part| &part.names).cloned());
            let rules = parts.iter().flat_map(|part| &part.rules);
            tiers.push(CompiledTier::new(tier[0].tier.default, rules));
        }
        matchers.sort_unstable();
        matchers.dedup();
        matchers.shrink_to_fit();
        names.sort_unstable();
        names.dedup();
        Compiled::new(tiers, matchers, names)
    }

    fn part(
        &mut self,
        policy: &'a Policy,
        endpoint: &'a Endpoint,
        direction: Direction,
    ) -> Rc<Part> {
        let ports = names_port(policy, direction).then_some(endpoint.ports.as_slice());
        let key = (std::ptr::from_ref(policy), direction, ports);
        if let Some(part) = self.parts.get(&key) {
            return part.clone();
        }
        let mut compiler = RuleCompiler {
            reader: self.reader,
            endpoint,
            direction,
            matchers: self.matchers,
            changes: self.changes,
            acquired: FxHashSet::default(),
            names: Vec::new(),
        };
        let rules = policy.rules(direction).unwrap_or_default().iter();
        let rules = rules.map(|rule| compiler.rule(rule)).collect();
        let part = Rc::new(Part {
            rules,
            matchers: compiler.acquired,
            names: compiler.names,
        });
        self.parts.insert(key, part.clone());
        part
    }

    /// Gives back the references that no endpoint has.
    pub(super) fn finish(self) {
        for id in self.parts.values().flat_map(|part| &part.matchers) {
            self.matchers.release(*id, self.changes);
        }
    }
}

impl<'a> Selecting<'a> {
    /// Of all policies that select an endpoint, those that apply in one direction.
    fn new(all: &[&'a Policy], direction: Direction) -> Self {
        let applying = all.iter().copied();
        let policies: Vec<&Policy> = applying
            .filter(|policy| policy.rules(direction).is_some())
            .collect();
        Self {
            places: policies
                .iter()
                .map(|policy| std::ptr::from_ref(*policy))
                .collect(),
            names_port: policies.iter().any(|policy| names_port(policy, direction)),
            policies,
        }
    }
}

/// Whether the rules of a policy depend on the ports of the endpoint that it selects.
fn names_port(policy: &Policy, direction: Direction) -> bool {
    let names = |rule: &Rule| match &rule.ports {
        Ports::Any => false,
        Ports::Of(ports) => ports
            .iter()
            .any(|port| matches!(port, PortMatch::Named { .. })),
    };
    direction == Direction::Ingress
        && policy
            .rules(direction)
            .unwrap_or_default()
            .iter()
            .any(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calc::index::Index;
    use crate::model::{
        Cluster, ContainerPort, EndpointId, EndpointKind, Labels, Lifecycle, Namespace,
        NamespaceMatch, Object, Peers, PolicyId, PolicyKind, Protocol, Selector, Subject, Tier,
        Update,
    };

    fn pod(name: &str, labels: &Labels, number: u16) -> Object {
        Object::Endpoint(Endpoint {
            id: EndpointId {
                kind: EndpointKind::Pod,
                namespace: "team".into(),
                name: name.into(),
            },
            uid: None,
            labels: labels.clone(),
            node: Some("here".into()),
            addresses: Vec::new(),
            ports: vec![ContainerPort {
                name: Some("http".into()),
                protocol: Protocol::Tcp,
                number,
            }],
            host_network: false,
            lifecycle: Lifecycle::Live,
            interface: None,
            mac: None,
        })
    }

    fn policy(port: PortMatch) -> Object {
        let peer = crate::model::Peer::Nodes(Selector::everything());
        Object::Policy(Policy {
            id: PolicyId {
                kind: PolicyKind::NetworkPolicy,
                namespace: "team".into(),
                name: "web".into(),
            },
            tier: Tier::NETWORK_POLICY,
            order: 0,
            subject: Subject {
                namespaces: NamespaceMatch::Is("team".into()),
                pods: Selector::everything(),
            },
            ingress: Some(vec![Rule {
                name: None,
                action: Action::Accept,
                peers: Peers::Of(vec![peer]),
                ports: Ports::Of(vec![port]),
            }]),
            egress: None,
            invalid: None,
        })
    }

    /// What is compiled for three pods, of which the second has other labels and the third another port; and how many
    /// matchers are out of use when all three have given back what they took.
    fn compiled(port: PortMatch) -> (Vec<Arc<Compiled>>, usize) {
        let mut cluster = Cluster::default();
        let labels = |value: &str| -> Labels { [("app", value)].into_iter().collect() };
        let web = labels("web");
        let namespace = Object::Namespace(Namespace {
            name: "team".into(),
            labels: labels("team"),
        });
        let pods = [
            pod("a", &web, 80),
            pod("b", &labels("db"), 80),
            pod("c", &web, 81),
        ];
        for object in pods.into_iter().chain([namespace, policy(port)]) {
            cluster.apply(Update::Upsert(object));
        }
        let (index, mut matchers) = (Index::default(), Matchers::default());
        let mut changes = MatcherChanges::default();
        let reader = Reader {
            cluster: &cluster,
            node: "here",
            index: &index,
        };
        let mut compiler = Compiler::new(&reader, &mut matchers, &mut changes);
        let endpoints = cluster.endpoints.values();
        let all: Vec<Arc<Compiled>> = endpoints
            .map(|endpoint| compiler.compile(endpoint, Direction::Ingress))
            .collect();
        compiler.finish();
        assert_eq!((changes.added.len(), changes.dropped.len()), (1, 0));
        for id in all.iter().flat_map(|compiled| &compiled.matchers) {
            matchers.release(*id, &mut changes);
        }
        (all, changes.dropped.len())
    }

    #[test]
    fn endpoints_under_the_same_policies_share_what_is_compiled() {
        let (all, dropped) = compiled(PortMatch::Range {
            protocol: Protocol::Tcp,
            first: 80,
            last: 80,
        });

        assert!(Arc::ptr_eq(&all[0], &all[1]) && Arc::ptr_eq(&all[0], &all[2]));
        assert_eq!(dropped, 1);
    }

    #[test]
    fn where_a_rule_names_a_port_those_share_that_serve_it_alike() {
        let (all, dropped) = compiled(PortMatch::Named {
            protocol: None,
            name: "http".into(),
        });

        assert!(Arc::ptr_eq(&all[0], &all[1]));
        assert_ne!(all[0], all[2]);
        assert_eq!(dropped, 1);
    }
}
