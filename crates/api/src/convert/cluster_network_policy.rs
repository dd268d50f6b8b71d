//! `policy.networking.k8s.io/v1alpha2` `ClusterNetworkPolicy`.
//!
//! A peer or protocol of which no field is known comes from a newer version of the API. Upstream's rule for it: in
//! an Accept rule the rule matches nothing, in a Deny or Pass rule everything is denied in that place.

use smol_str::SmolStr;
use towpath_core::model::{
    Action, NamespaceMatch, Object, Peer, Peers, Policy, PolicyId, PolicyKind, PortMatch, Ports,
    Protocol, Rule, Selector, Subject, Tier,
};

use super::meta::Meta;
use super::network_policy::{read_cidr, read_number};
use super::selector::{self, all};
use super::{Converted, closed};
use crate::check;
use crate::fault::{quote, reorders};
use crate::field::{Field, Fields};
use crate::limits;

/// Converts a `ClusterNetworkPolicy`.
pub(super) fn convert(root: &Fields<'_>, meta: &Meta) -> Converted {
    root.only(&["apiVersion", "kind", "metadata", "spec", "status"]);
    let nothing = Converted {
        object: None,
        stand_in: None,
    };
    let Some(field) = root.require("spec", "write tier, priority, subject and rules") else {
        return nothing;
    };
    let Some(spec) = field.fields() else {
        return nothing;
    };
    spec.only(&["tier", "priority", "subject", "ingress", "egress"]);
    let tier = spec
        .require("tier", "write Admin or Baseline")
        .and_then(|tier| read_tier(&tier));
    let priority = spec
        .require("priority", "write a number from 0 (first) to 1000 (last)")
        .and_then(|priority| read_priority(&priority));
    let subject = spec
        .require("subject", "write subject: {namespaces: {}} for every pod")
        .and_then(|subject| read_subject(&subject));
    let rules = |name: &str, side: &Side| match spec.get(name) {
        None => Some(None),
        Some(list) => read_rules(&list, side).map(|rules| (!rules.is_empty()).then_some(rules)),
    };
    let (ingress, egress) = (rules("ingress", &INGRESS), rules("egress", &EGRESS));
    let kind = PolicyKind::ClusterNetworkPolicy;
    let stand_in = subject.clone().map(|subject| {
        closed(
            kind,
            SmolStr::default(),
            meta.name.clone(),
            subject,
            priority.unwrap_or(0),
        )
    });
    let policy = || {
        Some(Policy {
            id: PolicyId {
                kind,
                namespace: SmolStr::default(),
                name: meta.name.clone()?,
            },
            tier: tier?,
            order: priority?,
            subject: subject?,
            ingress: ingress?,
            egress: egress?,
            invalid: None,
        })
    };
    Converted {
        object: policy().map(Object::Policy),
        stand_in,
    }
}

/// What differs between the two directions.
struct Side {
    /// Field of the peers.
    peers: &'static str,
    /// Members that a peer may have.
    members: &'static [&'static str],
}

const INGRESS: Side = Side {
    peers: "from",
    members: &["namespaces", "pods"],
};
const EGRESS: Side = Side {
    peers: "to",
    members: &["namespaces", "pods", "nodes", "networks"],
};
const PROTOCOLS: [&str; 4] = ["tcp", "udp", "sctp", "destinationNamedPort"];

fn read_tier(field: &Field<'_>) -> Option<Tier> {
    match field.text()? {
        "Admin" => Some(Tier::ADMIN),
        "Baseline" => Some(Tier::BASELINE),
        other => {
            field.error(
                format!("{} is not a tier", quote(other)),
                "use Admin or Baseline",
            );
            None
        }
    }
}

fn read_priority(field: &Field<'_>) -> Option<i32> {
    let number = field.integer()?;
    if let Ok(priority @ 0..=1000) = i32::try_from(number) {
        return Some(priority);
    }
    field.error(
        format!("{number} is not a priority"),
        "use a number from 0 (first) to 1000 (last)",
    );
    None
}

fn read_subject(field: &Field<'_>) -> Option<Subject> {
    let fields = field.fields()?;
    fields.only(&["namespaces", "pods"]);
    let is_known = fields.unknown(&["namespaces", "pods"]).is_none() && !field.value.is_broken;
    let subject = match (fields.get("namespaces"), fields.get("pods")) {
        (Some(namespaces), None) => Subject {
            namespaces: NamespaceMatch::Matching(selector::read(&namespaces)?),
            pods: Selector::everything(),
        },
        (None, Some(pods)) => {
            let (namespaces, pods) = read_pods(&pods)?;
            Subject { namespaces, pods }
        }
        _ => {
            if is_known {
                field.error(
                    "the subject needs exactly one of namespaces and pods",
                    "write namespaces: {} for every pod",
                );
            }
            return None;
        }
    };
    is_known.then_some(subject)
}

/// Reads `{namespaceSelector, podSelector}`.
fn read_pods(field: &Field<'_>) -> Option<(NamespaceMatch, Selector)> {
    let fields = field.fields()?;
    fields.only(&["namespaceSelector", "podSelector"]);
    let is_known = fields
        .unknown(&["namespaceSelector", "podSelector"])
        .is_none();
    let namespaces = match fields.get("namespaceSelector") {
        None if field.value.is_broken => None,
        None => Some(Selector::everything()),
        Some(namespaces) => selector::read(&namespaces),
    };
    let pods = fields.require("podSelector", "write podSelector: {} for every pod");
    let pods = pods.and_then(|pods| selector::read(&pods));
    let read = (NamespaceMatch::Matching(namespaces?), pods?);
    is_known.then_some(read)
}

fn read_rules(field: &Field<'_>, side: &Side) -> Option<Vec<Rule>> {
    all(field
        .items(limits::CLUSTER_LIST)?
        .map(|rule| read_rule(&rule, side)))
}

fn read_rule(field: &Field<'_>, side: &Side) -> Option<Rule> {
    let fields = field.fields()?;
    fields.only(&["name", "action", side.peers, "protocols"]);
    let name = fields.get("name").and_then(|name| read_rule_name(&name));
    let action = fields.require("action", "write Accept, Deny or Pass");
    let action = action.and_then(|action| read_action(&action));
    let peers = fields.require(
        side.peers,
        "name at least one peer; for every pod write namespaces: {}",
    );
    let peers = peers.and_then(|peers| read_peers(&peers, side));
    let ports = match fields.get("protocols") {
        None => Some(Read::Known(Ports::Any)),
        Some(list) => read_protocols(&list),
    };
    let names_ports = matches!(&ports, Some(Read::Known(Ports::Of(ports))) if ports.iter().any(|port| matches!(port, PortMatch::Named { .. })));
    if names_ports
        && matches!(&peers, Some(Read::Known(peers)) if peers.iter().any(|peer| !matches!(peer, Peer::Workloads { .. })))
    {
        field.error(
            "destinationNamedPort cannot stand with nodes or networks, which have no named ports",
            "write two rules, with a port number for nodes and networks",
        );
    }
    let (action, peers, ports) = (action?, peers?, ports?);
    Some(match (peers, ports) {
        (Read::Known(peers), Read::Known(ports)) => Rule {
            name,
            action,
            peers: Peers::Of(peers),
            ports,
        },
        _ => fail_closed(field, name, action),
    })
}

/// The rule in the place of one with a peer or protocol that we do not know.
fn fail_closed(field: &Field<'_>, name: Option<SmolStr>, action: Action) -> Rule {
    let (effect, action, peers) = match action {
        Action::Accept => (
            "this Accept rule matches nothing",
            action,
            Peers::Of(Vec::new()),
        ),
        Action::Deny | Action::Pass => ("this rule denies everything", Action::Deny, Peers::Any),
    };
    field.warn(
        format!("{effect}, because a part of it is not supported"),
        "remove the part, or give it a rule of its own",
    );
    Rule {
        name,
        action,
        peers,
        ports: Ports::Any,
    }
}

fn read_rule_name(field: &Field<'_>) -> Option<SmolStr> {
    let text = field.text()?;
    if text.chars().count() > limits::RULE_NAME {
        field.error(
            format!("the name has more than {} characters", limits::RULE_NAME),
            "shorten it; a comment in the manifest may be longer",
        );
        return None;
    }
    if text.chars().any(char::is_control) {
        field.error(
            format!("{} has a control character", quote(text)),
            "use printable characters only",
        );
        return None;
    }
    // The name is only shown.
    let visible = |c| {
        if reorders(c) {
            char::REPLACEMENT_CHARACTER
        } else {
            c
        }
    };
    Some(text.chars().map(visible).collect())
}

fn read_action(field: &Field<'_>) -> Option<Action> {
    match field.text()? {
        "Accept" => Some(Action::Accept),
        "Deny" => Some(Action::Deny),
        "Pass" => Some(Action::Pass),
        other => {
            field.error(
                format!("{} is not an action", quote(other)),
                "use Accept, Deny or Pass",
            );
            None
        }
    }
}

/// A part of a rule.
enum Read<T> {
    Known(T),
    /// From a newer version of the API, or one that we do not support; reported.
    Unknown,
}

/// Reads a list of which each item has exactly one of `members`.
fn read_members<T>(
    field: &Field<'_>,
    members: &[&str],
    read: impl Fn(&str, &Field<'_>) -> Option<Vec<T>>,
) -> Option<Read<Vec<T>>> {
    let items = field.items(limits::CLUSTER_LIST)?;
    let read = all(items.map(|item| {
        let fields = item.fields()?;
        if fields.unknown(members).is_some() || fields.iter().len() == 0 {
            let name = fields
                .unknown(members)
                .map(|_| "it has a field that is not supported");
            item.warn(
                name.unwrap_or("it is empty, so it may be of a newer version of the API"),
                format!("use one of {}", members.join(", ")),
            );
            return Some(Read::Unknown);
        }
        if fields.iter().len() > 1 {
            item.error(
                "it has more than one member",
                "begin a new list entry with '-' for each",
            );
            return None;
        }
        let (name, member) = fields.iter().next()?;
        read(name, &member).map(Read::Known)
    }))?;
    let mut known = Vec::new();
    for item in read {
        match item {
            Read::Known(items) => known.extend(items),
            Read::Unknown => return Some(Read::Unknown),
        }
    }
    Some(Read::Known(known))
}

fn read_peers(field: &Field<'_>, side: &Side) -> Option<Read<Vec<Peer>>> {
    let peers = read_members(field, side.members, |name, member| match name {
        "namespaces" => {
            let namespaces = NamespaceMatch::Matching(selector::read(member)?);
            Some(vec![Peer::Workloads {
                namespaces,
                pods: Selector::everything(),
            }])
        }
        "pods" => {
            let (namespaces, pods) = read_pods(member)?;
            Some(vec![Peer::Workloads { namespaces, pods }])
        }
        "nodes" => Some(vec![Peer::Nodes(selector::read(member)?)]),
        _ => read_networks(member),
    })?;
    if matches!(&peers, Read::Known(peers) if peers.is_empty()) {
        field.error(
            "the rule names no peer",
            "name at least one; for every pod write namespaces: {}",
        );
        return None;
    }
    Some(peers)
}

fn read_networks(field: &Field<'_>) -> Option<Vec<Peer>> {
    let networks = all(field
        .items(limits::CLUSTER_LIST)?
        .map(|item| read_cidr(&item)))?;
    if networks.is_empty() {
        field.error(
            "the list of networks is empty",
            "name at least one block, like 10.0.0.0/8",
        );
        return None;
    }
    let mut unique = Vec::with_capacity(networks.len());
    for network in networks {
        if unique.contains(&network) {
            field.warn(format!("{network} stands twice"), "remove one of the two");
        } else {
            unique.push(network);
        }
    }
    let peer = |cidr| Peer::Network {
        cidr,
        except: Vec::new(),
    };
    Some(unique.into_iter().map(peer).collect())
}

fn read_protocols(field: &Field<'_>) -> Option<Read<Ports>> {
    let ports = read_members(field, &PROTOCOLS, |name, member| {
        let protocol = match name {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            _ => {
                let text = member.text()?;
                if text.parse::<u16>().is_ok() {
                    member.error(
                        format!("{} is a number, not a port's name", quote(text)),
                        format!("write tcp: {{destinationPort: {{number: {text}}}}}"),
                    );
                    return None;
                }
                let name = SmolStr::new(member.checked(check::port_name(text))?);
                return Some(vec![PortMatch::Named {
                    protocol: None,
                    name,
                }]);
            }
        };
        Some(vec![read_protocol(member, protocol)?])
    })?;
    Some(match ports {
        Read::Known(ports) if ports.is_empty() => Read::Known(Ports::Any),
        Read::Known(ports) => Read::Known(Ports::Of(ports)),
        Read::Unknown => Read::Unknown,
    })
}

fn read_protocol(field: &Field<'_>, protocol: Protocol) -> Option<PortMatch> {
    let whole = PortMatch::Range {
        protocol,
        first: 0,
        last: u16::MAX,
    };
    if field.value.is_null() {
        return Some(whole);
    }
    let fields = field.fields()?;
    fields.only(&["destinationPort"]);
    let Some(port) = fields.get("destinationPort") else {
        return Some(whole);
    };
    let members = port.fields()?;
    members.only(&["number", "range"]);
    match (members.get("number"), members.get("range")) {
        (Some(number), None) => {
            let port = read_number(&number)?;
            Some(PortMatch::Range {
                protocol,
                first: port,
                last: port,
            })
        }
        (None, Some(range)) => {
            let (first, last) = read_range(&range)?;
            Some(PortMatch::Range {
                protocol,
                first,
                last,
            })
        }
        _ => {
            port.error(
                "a port needs exactly one of number and range",
                "write number: 80, or range: {start: 80, end: 90}",
            );
            None
        }
    }
}

fn read_range(field: &Field<'_>) -> Option<(u16, u16)> {
    let fields = field.fields()?;
    fields.only(&["start", "end"]);
    let start = fields.require("start", "write the first port");
    let end = fields.require("end", "write the last port");
    let start = start.and_then(|start| read_number(&start));
    let end = end.and_then(|end| read_number(&end));
    let (start, end) = (start?, end?);
    if start >= end {
        field.error(
            format!("start {start} is not below end {end}"),
            "write the lower port first; for one port use number",
        );
        return None;
    }
    Some((start, end))
}
