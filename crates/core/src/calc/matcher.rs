//! Matchers: the peer conditions of active policies, numbered and counted.
//!
//! A number is never given to another matcher, so a signature means the same for ever.

use std::sync::Arc;

use ipnet::IpNet;
use rustc_hash::FxHashMap;
use smol_str::SmolStr;

use super::USED_UP;
use super::compile::MatcherId;
use crate::model::{
    Cluster, ContainerPort, Endpoint, Labels, Namespace, NamespaceMatch, Protocol, Selector,
};

/// A named port and the number behind it.
pub(super) type Served = (SmolStr, Protocol, u16);

/// A condition on a peer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Matcher {
    /// Workloads, perhaps only those that serve a named port under this number.
    Workloads {
        namespaces: NamespaceMatch,
        pods: Selector,
        serves: Option<Served>,
    },
    /// Any workload that serves a named port under this number, its namespace known or not.
    Serving(Served),
    /// Addresses in `cidr` and in none of `except`.
    Network { cidr: IpNet, except: Vec<IpNet> },
    /// Host identities of nodes.
    Nodes(Selector),
}

/// A change of the set of matchers in use.
#[derive(Clone, Debug, Default)]
pub(super) struct MatcherChanges {
    pub(super) added: Vec<(MatcherId, Arc<Matcher>)>,
    pub(super) dropped: Vec<(MatcherId, Arc<Matcher>)>,
}

impl MatcherChanges {
    /// Numbers of the matchers that are out of use, sorted.
    pub(super) fn dropped_ids(&self) -> Vec<MatcherId> {
        let mut ids: Vec<MatcherId> = self.dropped.iter().map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids
    }

    /// Whether blocks come or go.
    pub(super) fn concern_blocks(&self) -> bool {
        let mut all = self.added.iter().chain(&self.dropped);
        all.any(|(_, matcher)| matches!(**matcher, Matcher::Network { .. }))
    }
}

#[derive(Clone, Debug)]
struct Entry {
    matcher: Arc<Matcher>,
    references: u32,
}

/// Which matchers a kind of workload meets: pods of one template meet the same. Of one flush.
#[derive(Default)]
pub(super) struct Met<'a>(FxHashMap<Template<'a>, Vec<(MatcherId, bool)>>);

/// What matchers see of a workload of a known namespace. Its labels stand for their place in memory.
#[derive(PartialEq, Eq, Hash)]
struct Template<'a> {
    namespace: &'a SmolStr,
    labels: *const (SmolStr, SmolStr),
    ports: &'a [ContainerPort],
}

/// The matchers in use.
#[derive(Clone, Debug, Default)]
pub(super) struct Matchers {
    numbers: FxHashMap<Arc<Matcher>, MatcherId>,
    entries: FxHashMap<MatcherId, Entry>,
    next: MatcherId,
    /// Workload matchers by the known namespaces that they select.
    by_namespace: FxHashMap<SmolStr, Vec<MatcherId>>,
    workloads: Vec<MatcherId>,
    serving: Vec<MatcherId>,
    nodes: Vec<MatcherId>,
}

impl Matchers {
    /// Takes a reference to a matcher; a new one is noted in `changes`.
    pub(super) fn acquire(
        &mut self,
        matcher: Matcher,
        cluster: &Cluster,
        changes: &mut MatcherChanges,
    ) -> MatcherId {
        if let Some(id) = self.numbers.get(&matcher) {
            let entry = self
                .entries
                .get_mut(id)
                .expect("a numbered matcher has an entry");
            entry.references += 1;
            return *id;
        }
        let id = self.next;
        self.next = self.next.checked_add(1).expect(USED_UP);
        let matcher = Arc::new(matcher);
        match &*matcher {
            Matcher::Workloads {
                namespaces: wanted, ..
            } => {
                self.workloads.push(id);
                for namespace in cluster.namespaces_matching(wanted) {
                    self.by_namespace
                        .entry(namespace.name.clone())
                        .or_default()
                        .push(id);
                }
            }
            Matcher::Serving(_) => self.serving.push(id),
            Matcher::Nodes(_) => self.nodes.push(id),
            Matcher::Network { .. } => {}
        }
        changes.added.push((id, matcher.clone()));
        self.numbers.insert(matcher.clone(), id);
        self.entries.insert(
            id,
            Entry {
                matcher,
                references: 1,
            },
        );
        id
    }

    /// Takes another reference to a matcher in use.
    pub(super) fn acquire_again(&mut self, id: MatcherId) {
        let entry = self.entries.get_mut(&id);
        entry.expect("a matcher in use has an entry").references += 1;
    }

    /// Gives a reference back; the last one is noted in `changes`.
    pub(super) fn release(&mut self, id: MatcherId, changes: &mut MatcherChanges) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        entry.references -= 1;
        if entry.references > 0 {
            return;
        }
        let Some(Entry { matcher, .. }) = self.entries.remove(&id) else {
            return;
        };
        self.numbers.remove(&matcher);
        match &*matcher {
            Matcher::Workloads { namespaces, .. } => {
                self.workloads.retain(|other| *other != id);
                self.forget(id, namespaces);
            }
            Matcher::Serving(_) => self.serving.retain(|other| *other != id),
            Matcher::Nodes(_) => self.nodes.retain(|other| *other != id),
            Matcher::Network { .. } => {}
        }
        changes.dropped.push((id, matcher));
    }

    /// Takes a matcher out of the lists of namespaces.
    fn forget(&mut self, id: MatcherId, namespaces: &NamespaceMatch) {
        let is_left = |ids: &mut Vec<MatcherId>| {
            ids.retain(|other| *other != id);
            !ids.is_empty()
        };
        match namespaces {
            NamespaceMatch::Is(name) => {
                if self
                    .by_namespace
                    .get_mut(name)
                    .is_some_and(|ids| !is_left(ids))
                {
                    self.by_namespace.remove(name);
                }
            }
            NamespaceMatch::Matching(_) => self.by_namespace.retain(|_, ids| is_left(ids)),
        }
    }

    /// A namespace is new, has other labels, or is gone.
    pub(super) fn rescan_namespace(&mut self, name: &SmolStr, namespace: Option<&Namespace>) {
        self.by_namespace.remove(name);
        let Some(namespace) = namespace else { return };
        let is_selecting = |id: &&MatcherId| match &*self.entries[*id].matcher {
            Matcher::Workloads { namespaces, .. } => namespaces.selects(namespace),
            _ => false,
        };
        let selecting: Vec<MatcherId> = self
            .workloads
            .iter()
            .filter(is_selecting)
            .copied()
            .collect();
        if !selecting.is_empty() {
            self.by_namespace.insert(name.clone(), selecting);
        }
    }

    /// The number of a matcher, if it is in use.
    pub(super) fn number(&self, matcher: &Matcher) -> Option<MatcherId> {
        self.numbers.get(matcher).copied()
    }

    /// The block of a network matcher in use, with its holes.
    pub(super) fn network(&self, id: MatcherId) -> Option<(&IpNet, &[IpNet])> {
        match &*self.entries.get(&id)?.matcher {
            Matcher::Network { cidr, except } => Some((cidr, except.as_slice())),
            _ => None,
        }
    }

    /// The blocks of network matchers.
    pub(super) fn networks(&self) -> impl Iterator<Item = (MatcherId, &IpNet, &[IpNet])> {
        self.entries
            .iter()
            .filter_map(|(id, entry)| match &*entry.matcher {
                Matcher::Network { cidr, except } => Some((*id, cidr, except.as_slice())),
                _ => None,
            })
    }

    /// Adds what a workload meets: matcher, and whether for sure.
    pub(super) fn of_workload<'a>(
        &self,
        endpoint: &'a Endpoint,
        is_namespace_known: bool,
        known: &mut Met<'a>,
        met: &mut Vec<(MatcherId, bool)>,
    ) {
        if !is_namespace_known {
            self.find_met(endpoint, is_namespace_known, met);
            return;
        }
        let template = Template {
            namespace: &endpoint.id.namespace,
            labels: endpoint.labels.place(),
            ports: &endpoint.ports,
        };
        let found = known.0.entry(template).or_insert_with(|| {
            let mut found = Vec::new();
            self.find_met(endpoint, is_namespace_known, &mut found);
            found
        });
        met.extend_from_slice(found);
    }

    fn find_met(
        &self,
        endpoint: &Endpoint,
        is_namespace_known: bool,
        met: &mut Vec<(MatcherId, bool)>,
    ) {
        if is_namespace_known {
            let ids = self
                .by_namespace
                .get(&endpoint.id.namespace)
                .map_or(&[][..], Vec::as_slice);
            let matching = ids.iter().filter(|id| match &*self.entries[*id].matcher {
                Matcher::Workloads { pods, serves, .. } => {
                    pods.matches(&endpoint.labels)
                        && serves
                            .as_ref()
                            .is_none_or(|served| is_served(endpoint, served))
                }
                _ => false,
            });
            met.extend(matching.map(|id| (*id, true)));
        } else {
            let possible = self
                .workloads
                .iter()
                .filter(|id| match &*self.entries[*id].matcher {
                    Matcher::Workloads { serves, .. } => serves
                        .as_ref()
                        .is_none_or(|served| is_served(endpoint, served)),
                    _ => false,
                });
            met.extend(possible.map(|id| (*id, false)));
        }
        let serving = self.serving.iter().filter(|id| {
            matches!(&*self.entries[*id].matcher, Matcher::Serving(served) if is_served(endpoint, served))
        });
        met.extend(serving.map(|id| (*id, true)));
    }

    /// Adds the node matchers that meet a node with these labels, surely or perhaps.
    pub(super) fn of_node(&self, labels: &Labels, is_sure: bool, met: &mut Vec<(MatcherId, bool)>) {
        let matching = self.nodes.iter().filter(
            |id| matches!(&*self.entries[*id].matcher, Matcher::Nodes(selector) if selector.matches(labels)),
        );
        met.extend(matching.map(|id| (*id, is_sure)));
    }
}

/// Whether an endpoint declares this named port.
pub(super) fn is_served(endpoint: &Endpoint, (name, protocol, number): &Served) -> bool {
    endpoint.ports.iter().any(|port| {
        port.name.as_ref() == Some(name) && port.protocol == *protocol && port.number == *number
    })
}
