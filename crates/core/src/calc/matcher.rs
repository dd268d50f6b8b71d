//! Matchers: the peer conditions of active policies, numbered.

use std::net::IpAddr;

use ipnet::IpNet;
use rustc_hash::FxHashMap;
use smol_str::SmolStr;

use super::compile::MatcherId;
use crate::model::{Cluster, Endpoint, NamespaceMatch, Protocol, Selector};

/// A condition on a peer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Matcher {
    /// Workloads, perhaps only those that serve a named port under this number.
    Workloads {
        namespaces: NamespaceMatch,
        pods: Selector,
        serves: Option<(SmolStr, Protocol, u16)>,
    },
    /// Any workload that serves a named port under this number, its namespace known or not.
    Serving {
        name: SmolStr,
        protocol: Protocol,
        number: u16,
    },
    /// Addresses in `cidr` and in none of `except`.
    Network { cidr: IpNet, except: Vec<IpNet> },
    /// Host identities of nodes.
    Nodes(Selector),
}

impl Matcher {
    /// Whether it meets a workload: `None` when not, `Some(false)` when perhaps.
    pub(super) fn meets_workload(&self, cluster: &Cluster, endpoint: &Endpoint) -> Option<bool> {
        let (namespaces, pods) = match self {
            Self::Workloads {
                namespaces,
                pods,
                serves,
            } => {
                if serves
                    .as_ref()
                    .is_some_and(|wanted| !is_served(endpoint, wanted))
                {
                    return None;
                }
                (namespaces, pods)
            }
            Self::Serving {
                name,
                protocol,
                number,
            } => {
                return is_served(endpoint, &(name.clone(), *protocol, *number)).then_some(true);
            }
            Self::Network { .. } | Self::Nodes(_) => return None,
        };
        let Some(namespace) = cluster.namespaces.get(&endpoint.id.namespace) else {
            return Some(false);
        };
        let in_namespace = match namespaces {
            NamespaceMatch::Is(name) => *name == namespace.name,
            NamespaceMatch::Matching(selector) => selector.matches(&namespace.labels),
        };
        (in_namespace && pods.matches(&endpoint.labels)).then_some(true)
    }

    /// Whether it meets an address, whoever owns it.
    pub(super) fn meets_address(&self, cluster: &Cluster, address: IpAddr) -> bool {
        match self {
            Self::Workloads { .. } | Self::Serving { .. } => false,
            Self::Network { cidr, except } => {
                cidr.contains(&address) && !except.iter().any(|hole| hole.contains(&address))
            }
            Self::Nodes(selector) => cluster
                .nodes
                .values()
                .any(|node| selector.matches(&node.labels) && node.addresses.contains(&address)),
        }
    }
}

/// Whether an endpoint declares this named port.
fn is_served(endpoint: &Endpoint, (name, protocol, number): &(SmolStr, Protocol, u16)) -> bool {
    endpoint.ports.iter().any(|port| {
        port.name.as_ref() == Some(name) && port.protocol == *protocol && port.number == *number
    })
}

/// Numbers for matchers; a matcher keeps its number.
#[derive(Clone, Debug, Default)]
pub(super) struct Matchers {
    numbers: FxHashMap<Matcher, MatcherId>,
}

impl Matchers {
    /// The number of a matcher, a new one if need be.
    pub(super) fn number(&mut self, matcher: Matcher) -> MatcherId {
        let next = MatcherId::try_from(self.numbers.len()).expect("fewer than 2^32 matchers");
        *self.numbers.entry(matcher).or_insert(next)
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Matcher, MatcherId)> {
        self.numbers.iter().map(|(matcher, id)| (matcher, *id))
    }
}
