//! Equal parts of objects, kept once.
//!
//! Thousands of pods have the labels of a few templates, and thousands of policies the selectors of a few
//! applications. What the graph keeps shares them, in memory of its own: the object that it was told lies among
//! the remains of the text that it was read from.

use rustc_hash::FxHashSet;
use smol_str::SmolStr;

use crate::model::{
    Endpoint, Labels, Namespace, NamespaceMatch, Node, Object, Peer, Peers, Policy, PortMatch,
    Ports, Requirement, Rule, Selector, Subject,
};

/// The parts in use, and some that were.
#[derive(Debug, Default)]
pub(super) struct Pool {
    labels: FxHashSet<Labels>,
    selectors: FxHashSet<Selector>,
    /// Names that are too long to stand inside of a `SmolStr`.
    names: FxHashSet<SmolStr>,
    /// Parts that make the next purge.
    limit: usize,
}

/// Fewer parts are never purged.
const FEW: usize = 1_024;

impl Pool {
    /// A copy that shares what it can and owns the rest without slack.
    pub(super) fn copy(&mut self, object: &Object) -> Object {
        self.purge();
        match object {
            Object::Namespace(namespace) => Object::Namespace(Namespace {
                name: self.name(&namespace.name),
                labels: self.labels(&namespace.labels),
            }),
            Object::Node(node) => Object::Node(Node {
                labels: self.labels(&node.labels),
                ..node.clone()
            }),
            Object::Endpoint(endpoint) => Object::Endpoint(self.endpoint(endpoint)),
            Object::Policy(policy) => Object::Policy(self.policy(policy)),
            Object::Interface(interface) => Object::Interface(interface.clone()),
        }
    }

    fn endpoint(&mut self, endpoint: &Endpoint) -> Endpoint {
        let mut copy = endpoint.clone();
        copy.id.namespace = self.name(&endpoint.id.namespace);
        copy.labels = self.labels(&endpoint.labels);
        copy.node = endpoint.node.as_ref().map(|node| self.name(node));
        copy
    }

    fn policy(&mut self, policy: &Policy) -> Policy {
        let mut copy = policy.clone();
        copy.id.namespace = self.name(&policy.id.namespace);
        copy.subject = Subject {
            namespaces: self.namespaces(&policy.subject.namespaces),
            pods: self.selector(&policy.subject.pods),
        };
        for rule in [&mut copy.ingress, &mut copy.egress]
            .into_iter()
            .flatten()
            .flatten()
        {
            self.rule(rule);
        }
        copy
    }

    fn rule(&mut self, rule: &mut Rule) {
        if let Peers::Of(peers) = &mut rule.peers {
            for peer in peers {
                match peer {
                    Peer::Workloads { namespaces, pods } => {
                        *namespaces = self.namespaces(namespaces);
                        *pods = self.selector(pods);
                    }
                    Peer::Nodes(selector) => *selector = self.selector(selector),
                    Peer::Network { .. } => {}
                }
            }
        }
        if let Ports::Of(ports) = &mut rule.ports {
            for port in ports {
                if let PortMatch::Named { name, .. } = port {
                    *name = self.name(name);
                }
            }
        }
    }

    fn namespaces(&mut self, namespaces: &NamespaceMatch) -> NamespaceMatch {
        match namespaces {
            NamespaceMatch::Is(name) => NamespaceMatch::Is(self.name(name)),
            NamespaceMatch::Matching(selector) => NamespaceMatch::Matching(self.selector(selector)),
        }
    }

    fn selector(&mut self, selector: &Selector) -> Selector {
        if let Some(known) = self.selectors.get(selector) {
            return known.clone();
        }
        let copy = |requirement: &Requirement, pool: &mut Self| match requirement {
            Requirement::In(key, values) => Requirement::In(pool.name(key), pool.values(values)),
            Requirement::NotIn(key, values) => {
                Requirement::NotIn(pool.name(key), pool.values(values))
            }
            Requirement::Exists(key) => Requirement::Exists(pool.name(key)),
            Requirement::DoesNotExist(key) => Requirement::DoesNotExist(pool.name(key)),
        };
        let requirements = selector.requirements().iter();
        let fresh = Selector::new(requirements.map(|r| copy(r, self)).collect());
        self.selectors.insert(fresh.clone());
        fresh
    }

    fn values(&mut self, values: &[SmolStr]) -> Vec<SmolStr> {
        values.iter().map(|value| self.name(value)).collect()
    }

    fn labels(&mut self, labels: &Labels) -> Labels {
        if let Some(known) = self.labels.get(labels) {
            return known.clone();
        }
        let pairs = labels.iter();
        let fresh: Labels = pairs
            .map(|(key, value)| (self.name(key), self.name(value)))
            .collect();
        self.labels.insert(fresh.clone());
        fresh
    }

    fn name(&mut self, name: &SmolStr) -> SmolStr {
        if !name.is_heap_allocated() {
            return name.clone();
        }
        if let Some(known) = self.names.get(name) {
            return known.clone();
        }
        let fresh = SmolStr::new(name.as_str());
        self.names.insert(fresh.clone());
        fresh
    }

    /// Forgets parts that no object has any more, now and then.
    fn purge(&mut self) {
        let count = |pool: &Self| pool.labels.len() + pool.selectors.len() + pool.names.len();
        if count(self) < self.limit.max(FEW) {
            return;
        }
        self.labels.retain(Labels::is_shared);
        self.selectors.retain(Selector::is_shared);
        // A name does not tell who else has it; those in use come back.
        self.names.clear();
        self.limit = 2 * count(self);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace(index: usize) -> Object {
        Object::Namespace(Namespace {
            name: format!("n{index}").into(),
            labels: [("team", format!("team-{index}"))].into_iter().collect(),
        })
    }

    #[test]
    fn copies_are_equal_and_share() {
        let mut pool = Pool::default();

        let copies = [namespace(1), namespace(1)].map(|object| pool.copy(&object));

        assert_eq!(copies, [namespace(1), namespace(1)]);
        assert_eq!(pool.labels.len(), 1);
    }

    #[test]
    fn what_is_gone_is_forgotten() {
        let mut pool = Pool::default();
        let kept = pool.copy(&namespace(0));

        for index in 1..10 * FEW {
            pool.copy(&namespace(index));
        }

        assert!(pool.labels.len() <= 2 * FEW, "{}", pool.labels.len());
        assert_eq!(kept, namespace(0));
        let Object::Namespace(kept) = kept else {
            return;
        };
        assert!(pool.labels.contains(&kept.labels));
    }
}
