//! Conditions of rules in words.

use towpath_core::model::{NamespaceMatch, Peer, Peers, PortMatch, Ports, Requirement, Selector};

/// Peers shown of a long list.
const SHOWN: usize = 4;

/// A selector in the syntax of label selectors.
pub(super) fn selector_text(selector: &Selector) -> String {
    let requirements: Vec<String> = selector
        .requirements()
        .iter()
        .map(requirement_text)
        .collect();
    requirements.join(",")
}

fn requirement_text(requirement: &Requirement) -> String {
    match requirement {
        Requirement::In(key, values) => match values.as_slice() {
            [value] => format!("{key}={value}"),
            values => format!("{key} in ({})", values.join(",")),
        },
        Requirement::NotIn(key, values) => format!("{key} notin ({})", values.join(",")),
        Requirement::Exists(key) => key.to_string(),
        Requirement::DoesNotExist(key) => format!("!{key}"),
    }
}

/// One peer.
pub(super) fn peer_text(peer: &Peer) -> String {
    match peer {
        Peer::Workloads { namespaces, pods } => {
            let pods = match selector_text(pods).as_str() {
                "" => "all pods".to_owned(),
                text => format!("pods {text}"),
            };
            match namespaces {
                NamespaceMatch::Is(name) => format!("{pods} in namespace {name}"),
                NamespaceMatch::Matching(selector) => match selector_text(selector).as_str() {
                    "" => format!("{pods} in all namespaces"),
                    text => format!("{pods} in namespaces {text}"),
                },
            }
        }
        Peer::Network { cidr, except } if except.is_empty() => format!("block {cidr}"),
        Peer::Network { cidr, except } => {
            let holes: Vec<String> = except.iter().map(ToString::to_string).collect();
            format!("block {cidr} except {}", holes.join(", "))
        }
        Peer::Nodes(selector) => match selector_text(selector).as_str() {
            "" => "all nodes".to_owned(),
            text => format!("nodes {text}"),
        },
    }
}

/// The other side of a rule.
pub(super) fn peers_text(peers: &Peers) -> String {
    match peers {
        Peers::Any => "anybody".to_owned(),
        Peers::Of(peers) if peers.is_empty() => "nobody".to_owned(),
        Peers::Of(peers) => listed(peers, peer_text, " or "),
    }
}

/// One port condition.
pub(super) fn port_text(port: &PortMatch) -> String {
    match port {
        PortMatch::Range {
            protocol,
            first: 0,
            last: u16::MAX,
        } => format!("all of {protocol}"),
        PortMatch::Range {
            protocol,
            first,
            last,
        } if first == last => format!("{first}/{protocol}"),
        PortMatch::Range {
            protocol,
            first,
            last,
        } => format!("{first}-{last}/{protocol}"),
        PortMatch::Named {
            protocol: Some(protocol),
            name,
        } => format!("{name}/{protocol}"),
        PortMatch::Named {
            protocol: None,
            name,
        } => name.to_string(),
    }
}

/// The ports of a rule.
pub(super) fn ports_text(ports: &Ports) -> String {
    match ports {
        Ports::Any => "any port".to_owned(),
        Ports::Of(ports) if ports.is_empty() => "no port".to_owned(),
        Ports::Of(ports) => format!("port {}", listed(ports, port_text, ", ")),
    }
}

fn listed<T>(items: &[T], text: impl Fn(&T) -> String, separator: &str) -> String {
    let mut texts: Vec<String> = items.iter().take(SHOWN).map(text).collect();
    if items.len() > SHOWN {
        texts.push(format!("{} more", items.len() - SHOWN));
    }
    texts.join(separator)
}
