//! `ClusterNetworkPolicy`s whose order is not told, and rules that are never reached.

use std::collections::BTreeMap;

use ipnet::IpNet;
use towpath_api::Severity;
use towpath_core::model::{
    Cluster, Direction, NamespaceMatch, Peer, Peers, Policy, PolicyKind, PortMatch, Ports, Rule,
    Selector,
};

use super::{Report, key_of, rule_path};

/// Rules before one that are looked at; beyond, nobody writes by hand.
const BEFORE: usize = 500;

pub(super) fn check(cluster: &Cluster, report: &mut Report<'_>) {
    let is_checked = |policy: &&Policy| {
        policy.id.kind == PolicyKind::ClusterNetworkPolicy && policy.invalid.is_none()
    };
    let mut ordered: Vec<&Policy> = cluster.policies.values().filter(is_checked).collect();
    ordered.sort_by_key(|policy| (&policy.tier, policy.order, &policy.id));
    check_priorities(&ordered, report);
    for direction in Direction::BOTH {
        check_shadows(&ordered, direction, report);
    }
}

/// Of two policies of one priority either may come first, says the API.
fn check_priorities(ordered: &[&Policy], report: &mut Report<'_>) {
    for pair in ordered.windows(2) {
        let [first, second] = pair else { continue };
        let meets =
            |direction| first.rules(direction).is_some() && second.rules(direction).is_some();
        if first.tier == second.tier
            && first.order == second.order
            && Direction::BOTH.into_iter().any(meets)
        {
            report.add(
                &key_of(second),
                Severity::Warning,
                "spec.priority",
                format!(
                    "{} has priority {} in tier {} too; which comes first is up to the implementation (here: by name)",
                    first.id.name, first.order, first.tier.name
                ),
                "give each policy of a tier its own priority",
            );
        }
    }
}

/// Rules that an earlier rule, of the same policy or of one before with the same subject, takes everything from.
fn check_shadows(ordered: &[&Policy], direction: Direction, report: &mut Report<'_>) {
    let mut before: BTreeMap<_, Vec<(&Policy, usize, &Rule)>> = BTreeMap::new();
    for policy in ordered {
        let earlier = before.entry((&policy.tier, &policy.subject)).or_default();
        for (number, rule) in policy
            .rules(direction)
            .unwrap_or_default()
            .iter()
            .enumerate()
        {
            if let Some((by, index, _)) = earlier.iter().find(|(.., other)| covers(other, rule)) {
                let whose = if by.id == policy.id {
                    String::new()
                } else {
                    format!(" of {}", by.id.name)
                };
                report.add(
                    &key_of(policy),
                    Severity::Warning,
                    rule_path(direction, number),
                    format!(
                        "this rule is never reached: {}{whose} matches all that it matches",
                        rule_path(direction, *index)
                    ),
                    "put the narrower rule first, or remove it",
                );
            }
            if earlier.len() < BEFORE {
                earlier.push((policy, number, rule));
            }
        }
    }
}

/// Whether `wide` surely matches everything that `narrow` matches.
fn covers(wide: &Rule, narrow: &Rule) -> bool {
    let covers_ports = match (&wide.ports, &narrow.ports) {
        (Ports::Any, _) => true,
        (Ports::Of(_), Ports::Any) => false,
        (Ports::Of(wide), Ports::Of(narrow)) => narrow
            .iter()
            .all(|narrow| wide.iter().any(|wide| covers_port(wide, narrow))),
    };
    let covers_peers = match (&wide.peers, &narrow.peers) {
        // A rule for nobody is told of when it is read.
        (_, Peers::Of(narrow)) if narrow.is_empty() => false,
        (Peers::Any, _) => true,
        (Peers::Of(_), Peers::Any) => false,
        (Peers::Of(wide), Peers::Of(narrow)) => narrow
            .iter()
            .all(|narrow| wide.iter().any(|wide| covers_peer(wide, narrow))),
    };
    covers_ports && covers_peers
}

fn covers_port(wide: &PortMatch, narrow: &PortMatch) -> bool {
    match (wide, narrow) {
        (
            PortMatch::Range {
                protocol,
                first,
                last,
            },
            PortMatch::Range {
                protocol: other,
                first: from,
                last: to,
            },
        ) => protocol == other && first <= from && to <= last,
        (
            PortMatch::Named { protocol, name },
            PortMatch::Named {
                protocol: other,
                name: other_name,
            },
        ) => name == other_name && (protocol.is_none() || protocol == other),
        _ => false,
    }
}

fn covers_peer(wide: &Peer, narrow: &Peer) -> bool {
    match (wide, narrow) {
        (
            Peer::Workloads { namespaces, pods },
            Peer::Workloads {
                namespaces: other,
                pods: other_pods,
            },
        ) => {
            let covers_namespaces = match (namespaces, other) {
                (NamespaceMatch::Matching(wide), NamespaceMatch::Matching(narrow)) => {
                    covers_selector(wide, narrow)
                }
                (NamespaceMatch::Matching(wide), NamespaceMatch::Is(_)) => {
                    *wide == Selector::everything()
                }
                (NamespaceMatch::Is(_), _) => namespaces == other,
            };
            covers_namespaces && covers_selector(pods, other_pods)
        }
        (
            Peer::Network { cidr, except },
            Peer::Network {
                cidr: other,
                except: other_except,
            },
        ) => {
            let is_whole = |hole: &IpNet| {
                let is_apart = !hole.contains(other) && !other.contains(hole);
                is_apart || other_except.iter().any(|other| other.contains(hole))
            };
            cidr.contains(other) && except.iter().all(is_whole)
        }
        (Peer::Nodes(wide), Peer::Nodes(narrow)) => covers_selector(wide, narrow),
        _ => false,
    }
}

/// A selector with fewer of the same requirements matches more.
fn covers_selector(wide: &Selector, narrow: &Selector) -> bool {
    wide.requirements()
        .iter()
        .all(|requirement| narrow.requirements().contains(requirement))
}
