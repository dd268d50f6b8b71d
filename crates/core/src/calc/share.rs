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

/// What one flush has compiled.
pub(super) struct Compiler<'a, 'm> {
    reader: &'m Reader<'a>,
    matchers: &'m mut Matchers,
    changes: &'m mut MatcherChanges,
    /// By namespace and labels; ingress and egress.
    selecting: FxHashMap<(&'a SmolStr, *const (SmolStr, SmolStr)), Rc<[Selecting<'a>; 2]>>,
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
