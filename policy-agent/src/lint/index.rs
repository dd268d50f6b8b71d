//! Endpoints by namespace, so that selectors look only where they can match.

use std::collections::{BTreeMap, BTreeSet};

use smol_str::SmolStr;
use towpath_core::model::{
    Cluster, Endpoint, NamespaceMatch, Peer, Peers, PortMatch, Protocol, Selector, Subject,
};

/// A cluster prepared for questions.
pub(super) struct Index<'a> {
    pub(super) cluster: &'a Cluster,
    /// Endpoints that policies can select, by namespace.
    workloads: BTreeMap<&'a SmolStr, Vec<&'a Endpoint>>,
    /// Numbers behind each name of a port, anywhere.
    named: BTreeMap<&'a SmolStr, BTreeSet<(Protocol, u16)>>,
}

impl<'a> Index<'a> {
    pub(super) fn new(cluster: &'a Cluster) -> Self {
        let mut workloads: BTreeMap<_, Vec<_>> = BTreeMap::new();
        let mut named: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for endpoint in cluster
            .endpoints
            .values()
            .filter(|endpoint| endpoint.is_workload())
        {
            workloads
                .entry(&endpoint.id.namespace)
                .or_default()
                .push(endpoint);
            for port in &endpoint.ports {
                if let Some(name) = &port.name {
                    named
                        .entry(name)
                        .or_default()
                        .insert((port.protocol, port.number));
                }
            }
        }
        Self {
            cluster,
            workloads,
            named,
        }
    }

    /// Whether there is any workload at all; without, the manifests are probably policies alone.
    pub(super) fn has_workloads(&self) -> bool {
        !self.workloads.is_empty()
    }

    /// The endpoints that a policy selects.
    pub(super) fn selected<'s>(
        &'s self,
        subject: &'s Subject,
    ) -> impl Iterator<Item = &'a Endpoint> + 's {
        self.workloads_in(&subject.namespaces, &subject.pods)
    }

    /// The workloads that a rule's peers name.
    pub(super) fn peers<'s>(
        &'s self,
        peers: &'s Peers,
    ) -> Box<dyn Iterator<Item = &'a Endpoint> + 's> {
        match peers {
            Peers::Any => Box::new(self.workloads.values().flatten().copied()),
            Peers::Of(peers) => Box::new(
                peers
                    .iter()
                    .filter_map(|peer| match peer {
                        Peer::Workloads { namespaces, pods } => {
                            Some(self.workloads_in(namespaces, pods))
                        }
                        Peer::Network { .. } | Peer::Nodes(_) => None,
                    })
                    .flatten(),
            ),
        }
    }

    fn workloads_in<'s>(
        &'s self,
        namespaces: &'s NamespaceMatch,
        pods: &'s Selector,
    ) -> impl Iterator<Item = &'a Endpoint> + 's {
        self.workloads
            .iter()
            .filter(|(name, _)| self.is_namespace_matched(name, namespaces))
            .flat_map(|(_, endpoints)| endpoints.iter().copied())
            .filter(|endpoint| pods.matches(&endpoint.labels))
    }

    /// Whether a condition matches a namespace; one without manifest has no labels to match.
    pub(super) fn is_namespace_matched(&self, name: &SmolStr, wanted: &NamespaceMatch) -> bool {
        match wanted {
            NamespaceMatch::Is(wanted) => wanted == name,
            NamespaceMatch::Matching(selector) => self
                .cluster
                .namespaces
                .get(name)
                .is_some_and(|namespace| selector.matches(&namespace.labels)),
        }
    }

    /// Whether a port condition may let this port through, whoever the other side is.
    pub(super) fn may_match(&self, condition: &PortMatch, protocol: Protocol, number: u16) -> bool {
        match condition {
            PortMatch::Range {
                protocol: wanted,
                first,
                last,
            } => *wanted == protocol && (*first..=*last).contains(&number),
            PortMatch::Named {
                protocol: wanted,
                name,
            } => {
                wanted.is_none_or(|wanted| wanted == protocol)
                    && self
                        .named
                        .get(name)
                        .is_some_and(|ports| ports.contains(&(protocol, number)))
            }
        }
    }
}
