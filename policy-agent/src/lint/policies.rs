//! Policies that select nothing, name nobody's ports, or forget name resolution.

use std::collections::BTreeMap;

use towpath_api::Severity;
use towpath_core::model::{
    Action, Direction, Endpoint, EndpointId, NamespaceMatch, Peer, Peers, Policy, PolicyId,
    PolicyKind, PortMatch, Ports, Protocol, Rule, Selector, Tier,
};

use super::index::Index;
use super::{PER_OBJECT, Report, key_of, peers_field, rule_path};

/// The port of name resolution.
const DNS: u16 = 53;

pub(super) fn check(index: &Index<'_>, policy: &Policy, report: &mut Report<'_>) {
    let selects = index.selected(&policy.subject).next().is_some();
    if !selects && index.has_workloads() {
        report_idle(index, policy, report);
    }
    for direction in Direction::BOTH {
        let rules = policy.rules(direction).unwrap_or_default();
        for (number, rule) in rules.iter().enumerate().take(PER_OBJECT * 100) {
            let path = rule_path(direction, number);
            if policy.id.kind == PolicyKind::NetworkPolicy {
                check_dash(
                    policy,
                    rule,
                    &format!("{path}.{}", peers_field(direction)),
                    report,
                );
            }
            if selects {
                check_named_ports(index, policy, direction, rule, &path, report);
            }
        }
    }
}

fn report_idle(index: &Index<'_>, policy: &Policy, report: &mut Report<'_>) {
    let (message, advice) = match &policy.subject.namespaces {
        NamespaceMatch::Is(name) if !index.cluster.namespaces.contains_key(name) => (
            format!("the policy selects nothing: there is no namespace {name}"),
            "correct metadata.namespace, or add the namespace's manifest".to_owned(),
        ),
        _ => (
            "the policy selects no pod".to_owned(),
            "compare its selector with the labels of the pods it is meant for".to_owned(),
        ),
    };
    report.add(&key_of(policy), Severity::Warning, "spec", message, advice);
}

/// One dash too many: `namespaceSelector` and `podSelector` as two peers where one with both was meant.
fn check_dash(policy: &Policy, rule: &Rule, path: &str, report: &mut Report<'_>) {
    let Peers::Of(peers) = &rule.peers else {
        return;
    };
    let is_namespaces_only = |peer: &Peer| matches!(peer, Peer::Workloads { namespaces: NamespaceMatch::Matching(_), pods } if *pods == Selector::everything());
    let is_pods_only = |peer: &Peer| matches!(peer, Peer::Workloads { namespaces: NamespaceMatch::Is(_), pods } if *pods != Selector::everything());
    for (number, pair) in peers.windows(2).enumerate() {
        let is_split = is_namespaces_only(&pair[0]) && is_pods_only(&pair[1])
            || is_pods_only(&pair[0]) && is_namespaces_only(&pair[1]);
        if is_split {
            report.add(
                &key_of(policy),
                Severity::Warning,
                format!("{path}[{number}]"),
                "this peer and the next are two: all pods of some namespaces, or some pods of the own namespace",
                "to mean some pods of these namespaces, write both selectors under one '-'; else swap the peers apart or ignore this",
            );
        }
    }
}

/// A named port that no destination declares matches nothing.
fn check_named_ports(
    index: &Index<'_>,
    policy: &Policy,
    direction: Direction,
    rule: &Rule,
    path: &str,
    report: &mut Report<'_>,
) {
    let Ports::Of(ports) = &rule.ports else {
        return;
    };
    for port in ports {
        let PortMatch::Named { protocol, name } = port else {
            continue;
        };
        let serves = |endpoint: &Endpoint| {
            endpoint.ports.iter().any(|served| {
                served.name.as_ref() == Some(name)
                    && protocol.is_none_or(|protocol| protocol == served.protocol)
            })
        };
        let mut destinations: Box<dyn Iterator<Item = &Endpoint>> = match direction {
            Direction::Ingress => Box::new(index.selected(&policy.subject)),
            Direction::Egress => index.peers(&rule.peers),
        };
        if destinations.any(serves) {
            continue;
        }
        let whose = match direction {
            Direction::Ingress => "no pod that the policy selects",
            Direction::Egress => "no pod that the rule names",
        };
        let protocol = protocol.map_or_else(String::new, |protocol| format!("{protocol} "));
        report.add(
            &key_of(policy),
            Severity::Warning,
            path,
            format!("{whose} declares a {protocol}port named {name}, so this port matches nothing"),
            "correct the name or the protocol, or write the number; blocks and nodes have no named ports",
        );
    }
}

/// Pods that may reach other pods but no name server.
pub(super) fn check_name_resolution(index: &Index<'_>, report: &mut Report<'_>) {
    let mut isolated: BTreeMap<&EndpointId, Egress<'_>> = BTreeMap::new();
    for policy in index.cluster.policies.values() {
        let Some(rules) = policy.rules(Direction::Egress) else {
            continue;
        };
        let allows_names = rules.iter().any(|rule| may_resolve(index, rule));
        let may_be_blamed = policy.tier == Tier::NETWORK_POLICY
            && policy.invalid.is_none()
            && rules.iter().any(needs_names);
        if policy.tier == Tier::BASELINE {
            continue;
        }
        for endpoint in index.selected(&policy.subject) {
            let egress = isolated.entry(&endpoint.id).or_default();
            egress.allows_names |= allows_names;
            if may_be_blamed && egress.policy.is_none() {
                egress.policy = Some(policy);
            }
        }
    }
    let mut blamed: BTreeMap<&PolicyId, (&Policy, &EndpointId, usize)> = BTreeMap::new();
    for (id, egress) in isolated {
        if let (false, Some(policy)) = (egress.allows_names, egress.policy) {
            blamed.entry(&policy.id).or_insert((policy, id, 0)).2 += 1;
        }
    }
    for (policy, first, count) in blamed.into_values() {
        let pods = if count == 1 {
            format!("pod {first}")
        } else {
            format!("{count} pods, {first} among them,")
        };
        report.add(
            &key_of(policy),
            Severity::Warning,
            "spec.egress",
            format!("{pods} may reach other pods but no name server: no policy lets them out to UDP port 53"),
            "add an egress rule to the cluster's DNS pods with UDP and TCP port 53",
        );
    }
}

/// What the policies of one pod say about its egress.
#[derive(Default)]
struct Egress<'a> {
    allows_names: bool,
    /// The first that isolates it and lets it reach something.
    policy: Option<&'a Policy>,
}

fn may_resolve(index: &Index<'_>, rule: &Rule) -> bool {
    let has_peers = !matches!(&rule.peers, Peers::Of(peers) if peers.is_empty());
    let has_port = match &rule.ports {
        Ports::Any => true,
        Ports::Of(ports) => ports
            .iter()
            .any(|port| index.may_match(port, Protocol::Udp, DNS)),
    };
    rule.action == Action::Accept && has_peers && has_port
}

/// Whether a rule names destinations that are usually found by name.
fn needs_names(rule: &Rule) -> bool {
    match &rule.peers {
        Peers::Any => true,
        Peers::Of(peers) => peers
            .iter()
            .any(|peer| matches!(peer, Peer::Workloads { .. })),
    }
}
