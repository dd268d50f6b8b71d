//! `networking.k8s.io/v1` `NetworkPolicy`.

use std::cell::Cell;
use std::collections::BTreeSet;

use ipnet::IpNet;
use smol_str::SmolStr;
use towpath_core::calc::overlap;
use towpath_core::model::{
    Action, NamespaceMatch, Object, Peer, Peers, Policy, PolicyId, PolicyKind, PortMatch, Ports,
    Protocol, Rule, Selector, Subject, Tier,
};

use super::meta::Meta;
use super::selector::{self, all};
use super::{Converted, closed};
use crate::check;
use crate::fault::quote;
use crate::field::{Field, Fields};
use crate::limits;

/// Converts a `NetworkPolicy`.
pub(super) fn convert(root: &Fields<'_>, meta: &Meta) -> Converted {
    root.only(&["apiVersion", "kind", "metadata", "spec", "status"]);
    let Some(namespace) = meta.namespace.clone() else {
        // Which namespace to close is unknown; the rest is read for its faults.
        if let Some(spec) = root.get("spec") {
            read_spec(&spec, &SmolStr::default());
        }
        return Converted {
            object: None,
            stand_in: None,
        };
    };
    let spec = match root.get("spec") {
        Some(field) => read_spec(&field, &namespace),
        // The API takes a policy without spec for one that selects every pod.
        None if !root.is_broken() => Spec {
            pods: Some(Selector::everything()),
            rules: Some((Some(Vec::new()), None)),
        },
        None => Spec {
            pods: None,
            rules: None,
        },
    };
    let subject = |pods: Option<Selector>| Subject {
        namespaces: NamespaceMatch::Is(namespace.clone()),
        pods: pods.unwrap_or_default(),
    };
    let kind = PolicyKind::NetworkPolicy;
    let object = match (&meta.name, &spec.pods, spec.rules) {
        (Some(name), Some(pods), Some((ingress, egress))) => Some(Object::Policy(Policy {
            id: PolicyId {
                kind,
                namespace: namespace.clone(),
                name: name.clone(),
            },
            tier: Tier::NETWORK_POLICY,
            order: 0,
            subject: subject(Some(pods.clone())),
            ingress,
            egress,
            invalid: None,
        })),
        _ => None,
    };
    // A subject that could not be read may have been any pod of the namespace.
    let stand_in = closed(
        kind,
        namespace.clone(),
        meta.name.clone(),
        subject(spec.pods),
        0,
    );
    Converted {
        object,
        stand_in: Some(stand_in),
    }
}

/// The rules of both directions, `None` where the policy does not apply.
type BothRules = (Option<Vec<Rule>>, Option<Vec<Rule>>);

/// What could be read of `spec`; errors are reported.
struct Spec {
    pods: Option<Selector>,
    rules: Option<BothRules>,
}

fn read_spec(field: &Field<'_>, namespace: &SmolStr) -> Spec {
    let Some(spec) = field.fields() else {
        return Spec {
            pods: None,
            rules: None,
        };
    };
    spec.only(&["podSelector", "policyTypes", "ingress", "egress"]);
    let pods = match spec.get("podSelector") {
        Some(pods) => selector::read(&pods),
        None if spec.is_broken() => None,
        None => Some(Selector::everything()),
    };
    let conditions = Cell::new(0);
    let rules = |name: &str, peers: &'static str| match spec.get(name) {
        None => Some(Vec::new()),
        Some(list) => read_rules(&list, peers, namespace, &conditions),
    };
    let (ingress, egress) = (rules("ingress", "from"), rules("egress", "to"));
    let types = spec.get("policyTypes").map(|types| read_types(&types));
    let (Some(ingress), Some(egress), None | Some(Some(_))) = (ingress, egress, types) else {
        return Spec { pods, rules: None };
    };
    if !overlaps_little(&spec, &ingress, &egress) {
        return Spec { pods, rules: None };
    }
    let (has_ingress, has_egress) = match types.flatten() {
        // API default: Ingress, and Egress if there is an egress rule.
        None | Some((false, false)) => (true, !egress.is_empty()),
        Some(types) => types,
    };
    for (name, is_named, rules) in [
        ("ingress", has_ingress, &ingress),
        ("egress", has_egress, &egress),
    ] {
        note_direction(&spec, name, is_named, rules);
    }
    let rules = (has_ingress.then_some(ingress), has_egress.then_some(egress));
    Spec {
        pods,
        rules: Some(rules),
    }
}

/// Whether the blocks of all rules are within the limit; if not, that is reported.
fn overlaps_little(spec: &Fields<'_>, ingress: &[Rule], egress: &[Rule]) -> bool {
    let peers = ingress
        .iter()
        .chain(egress)
        .flat_map(|rule| match &rule.peers {
            Peers::Of(peers) => peers.as_slice(),
            Peers::Any => &[],
        });
    // Those that are equal are one.
    let blocks: BTreeSet<(&IpNet, &[IpNet])> = peers
        .filter_map(|peer| match peer {
            Peer::Network { cidr, except } => Some((cidr, except.as_slice())),
            _ => None,
        })
        .collect();
    if overlap(blocks.into_iter()) <= limits::OVERLAP {
        return true;
    }
    let place = spec.get("egress").filter(|_| !egress.is_empty());
    if let Some(field) = place.or_else(|| spec.get("ingress")) {
        field.error(
            "too many ipBlocks of the policy lie in each other, each with holes of its own",
            "put the holes that rules have in common into one ipBlock, or allow the blocks between them",
        );
    }
    false
}

/// Remarks on a direction that may not mean what it seems to.
fn note_direction(spec: &Fields<'_>, name: &str, is_named: bool, rules: &[Rule]) {
    let Some(field) = spec.get(name) else { return };
    let type_name = if name == "ingress" {
        "Ingress"
    } else {
        "Egress"
    };
    if !is_named && !rules.is_empty() {
        field.warn(
            format!(
                "the {name} rules have no effect, because policyTypes does not name {type_name}"
            ),
            format!("add {type_name} to policyTypes, or remove the rules"),
        );
    } else if !is_named {
        field.note(
            format!(
                "the empty {name} list has no effect, because {type_name} is not in force here"
            ),
            format!("add {type_name} to policyTypes to deny all {name}, or remove the list"),
        );
    } else if rules.is_empty() {
        field.note(
            format!("the empty {name} list denies all {name} of the selected pods"),
            format!("if that is meant, nothing; to allow everything write {name}: [{{}}]"),
        );
    }
}

/// Whether Ingress and Egress are named.
fn read_types(field: &Field<'_>) -> Option<(bool, bool)> {
    let types = all(field.items(16)?.map(|item| match item.text()? {
        "Ingress" => Some((true, false)),
        "Egress" => Some((false, true)),
        other => {
            item.error(
                format!("{} is not a policy type", quote(other)),
                "use Ingress, Egress or both",
            );
            None
        }
    }))?;
    Some(
        types
            .into_iter()
            .fold((false, false), |sum, one| (sum.0 | one.0, sum.1 | one.1)),
    )
}

fn read_rules(
    field: &Field<'_>,
    peers: &'static str,
    namespace: &SmolStr,
    conditions: &Cell<usize>,
) -> Option<Vec<Rule>> {
    all(field
        .items(limits::RULES)?
        .map(|rule| read_rule(&rule, peers, namespace, conditions)))
}

fn read_rule(
    field: &Field<'_>,
    peers: &'static str,
    namespace: &SmolStr,
    conditions: &Cell<usize>,
) -> Option<Rule> {
    let rule = field.fields()?;
    rule.only(&[peers, "ports"]);
    let peers = match rule.get(peers) {
        None => Some(Peers::Any),
        Some(list) => read_list(&list, conditions, |peer| read_peer(peer, namespace)).map(|list| {
            if list.is_empty() {
                Peers::Any
            } else {
                Peers::Of(list)
            }
        }),
    };
    let ports = match rule.get("ports") {
        None => Some(Ports::Any),
        Some(list) => read_list(&list, conditions, read_port).map(|list| {
            if list.is_empty() {
                Ports::Any
            } else {
                Ports::Of(list)
            }
        }),
    };
    Some(Rule {
        name: None,
        action: Action::Accept,
        peers: peers?,
        ports: ports?,
    })
}

/// Reads the peers or ports of a rule, within the limit for the whole policy.
fn read_list<T>(
    list: &Field<'_>,
    conditions: &Cell<usize>,
    read: impl Fn(&Field<'_>) -> Option<T>,
) -> Option<Vec<T>> {
    let items = list.items(limits::CONDITIONS)?;
    if items.len() == 0 {
        list.note(
            "an empty list here means no restriction, not nobody",
            "remove it if everybody and every port is meant; to deny, leave out the whole rule",
        );
    }
    let before = conditions.get();
    conditions.set(before + items.len());
    if conditions.get() > limits::CONDITIONS {
        if before <= limits::CONDITIONS {
            list.error(
                format!(
                    "the policy has more than {} peers and ports",
                    limits::CONDITIONS
                ),
                "split it into several policies; they add up",
            );
        }
        return None;
    }
    all(items.map(|item| read(&item)))
}

fn read_peer(field: &Field<'_>, namespace: &SmolStr) -> Option<Peer> {
    let peer = field.fields()?;
    peer.only(&["podSelector", "namespaceSelector", "ipBlock"]);
    let pods = peer.get("podSelector");
    let namespaces = peer.get("namespaceSelector");
    if let Some(block) = peer.get("ipBlock") {
        if pods.is_some() || namespaces.is_some() {
            block.error(
                "ipBlock cannot stand beside a selector in one peer",
                "begin a second peer with '-' before ipBlock",
            );
        }
        return read_block(&block);
    }
    if pods.is_none() && namespaces.is_none() {
        let is_known = peer
            .unknown(&["podSelector", "namespaceSelector", "ipBlock"])
            .is_none();
        if is_known && !field.value.is_broken {
            field.error(
                "the peer names nobody",
                "give it podSelector, namespaceSelector or ipBlock; for every pod write namespaceSelector: {}",
            );
        }
        return None;
    }
    let pods = pods.map_or_else(
        || Some(Selector::everything()),
        |pods| selector::read(&pods),
    );
    let namespaces = match namespaces {
        None => Some(NamespaceMatch::Is(namespace.clone())),
        Some(namespaces) => selector::read(&namespaces).map(NamespaceMatch::Matching),
    };
    Some(Peer::Workloads {
        namespaces: namespaces?,
        pods: pods?,
    })
}

fn read_block(field: &Field<'_>) -> Option<Peer> {
    let block = field.fields()?;
    block.only(&["cidr", "except"]);
    let cidr = block.require("cidr", "write the block, like cidr: 10.0.0.0/8");
    let cidr = cidr.and_then(|cidr| read_cidr(&cidr));
    let except = match block.get("except") {
        None => Some(Vec::new()),
        Some(list) => all(list.items(limits::EXCEPTIONS)?.map(|item| {
            let hole = read_cidr(&item)?;
            let Some(cidr) = cidr else { return Some(hole) };
            if hole == cidr || !cidr.contains(&hole) {
                item.error(
                    format!("{hole} is not a part of {cidr}"),
                    "except cuts smaller blocks out of cidr; remove it, or correct one of the two",
                );
                return None;
            }
            Some(hole)
        })),
    };
    let mut except = except?;
    except.sort();
    except.dedup();
    Some(Peer::Network {
        cidr: cidr?,
        except,
    })
}

/// Reads a block; one that can be read in one way only is corrected with a warning.
pub(super) fn read_cidr(field: &Field<'_>) -> Option<IpNet> {
    let text = field.text()?;
    let check::Block {
        network,
        had_host_bits,
        was_mapped,
    } = field.checked(check::block(text))?;
    if was_mapped {
        field.warn(
            format!(
                "{} is an IPv4 block in IPv6 notation and is read as {network}",
                quote(text)
            ),
            format!("write {network}"),
        );
    } else if had_host_bits {
        field.warn(
            format!(
                "{} has bits set behind its prefix and is read as {network}",
                quote(text)
            ),
            format!("write {network}, or a longer prefix if one address was meant"),
        );
    }
    Some(network)
}

fn read_port(field: &Field<'_>) -> Option<PortMatch> {
    let fields = field.fields()?;
    fields.only(&["protocol", "port", "endPort"]);
    let protocol = match fields.get("protocol") {
        None => Some(Protocol::Tcp),
        Some(protocol) => protocol
            .text()
            .and_then(|text| protocol.checked(check::protocol(text))),
    };
    let end = fields.get("endPort").map(|end| (end, read_number(&end)));
    let Some(port) = fields.get("port") else {
        if let Some((end, _)) = end {
            end.error("endPort needs a port", "write port, the first of the range");
        }
        return Some(PortMatch::Range {
            protocol: protocol?,
            first: 0,
            last: u16::MAX,
        });
    };
    if !port.is_number() {
        let name = port
            .text()
            .and_then(|text| port.checked(check::port_name(text)));
        if let Some((end, _)) = end {
            end.error(
                "endPort needs a port by number",
                "write port as a number, or remove endPort",
            );
        }
        return Some(PortMatch::Named {
            protocol: Some(protocol?),
            name: SmolStr::new(name?),
        });
    }
    let first = read_number(&port);
    let (Some(first), Some((end, Some(last)))) = (first, end.as_ref()) else {
        // Without endPort it is one port; an endPort that is wrong is already reported.
        let first = first?;
        return end.is_none().then_some(PortMatch::Range {
            protocol: protocol?,
            first,
            last: first,
        });
    };
    if *last < first {
        end.error(
            format!("endPort {last} is below port {first}"),
            "write the range from the lower to the higher port",
        );
        return None;
    }
    Some(PortMatch::Range {
        protocol: protocol?,
        first,
        last: *last,
    })
}

/// Reads a port number.
pub(super) fn read_number(field: &Field<'_>) -> Option<u16> {
    let number = field.integer()?;
    field.checked(check::port_number(number))
}
