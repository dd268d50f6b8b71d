//! `towpath get`: lists of a running agent.

use std::time::{Duration, SystemTime};

use clap::{Args, ValueEnum};

use super::error::{CommandError, Exit};
use super::output::{Cell, Colour, Format, Output};
use super::{OutputArguments, SocketArguments, client};
use crate::agent::report::{Class, Denied, Endpoint, EndpointState, Flannel, Policy, Tunnel};

#[derive(Clone, Debug, Args)]
pub(super) struct GetArguments {
    /// What to list.
    #[arg(value_enum)]
    what: What,
    #[command(flatten)]
    socket: SocketArguments,
    #[command(flatten)]
    output: OutputArguments,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// Endpoints of this node, and what those wait for that are closed.
    Endpoints,
    /// Policies, and whom they select.
    Policies,
    /// Classes of peers that policies of this node tell apart.
    Classes,
    /// The last denied flows, with what decided.
    Denied,
    /// What Flannel set up on this node.
    Flannel,
}

/// Addresses of a class that a table shows.
const SHOWN_ADDRESSES: usize = 4;

pub(super) fn run(arguments: &GetArguments) -> Result<Exit, CommandError> {
    let socket = &arguments.socket.socket;
    let mut output = Output::stdout(arguments.output.format);
    match arguments.what {
        What::Endpoints => endpoints(&client::get::<Vec<_>>(socket, "/endpoints")?, &mut output)?,
        What::Policies => policies(&client::get::<Vec<_>>(socket, "/policies")?, &mut output)?,
        What::Classes => classes(&client::get::<Vec<_>>(socket, "/classes")?, &mut output)?,
        What::Denied => denied(&client::get::<Vec<_>>(socket, "/denied")?, &mut output)?,
        What::Flannel => flannel(
            client::get::<Option<_>>(socket, "/flannel")?.as_ref(),
            &mut output,
        )?,
    }
    output.flush()?;
    Ok(Exit::Done)
}

fn endpoints(endpoints: &[Endpoint], output: &mut Output) -> Result<(), CommandError> {
    if output.format() != Format::Table {
        return Ok(output.value(&endpoints)?);
    }
    let row = |endpoint: &Endpoint| {
        let colour = match endpoint.state {
            EndpointState::Programmed => Colour::Green,
            EndpointState::Conflict => Colour::Red,
            EndpointState::WaitingForInterface
            | EndpointState::WaitingForNamespace
            | EndpointState::WaitingForAddress => Colour::Yellow,
        };
        vec![
            format!("{}/{}", endpoint.namespace, endpoint.name).into(),
            joined(&endpoint.addresses).into(),
            Cell::coloured(colour, endpoint.state.text()),
            endpoint.interface.as_deref().unwrap_or("-").into(),
            policy_count(&endpoint.ingress_policies).into(),
            policy_count(&endpoint.egress_policies).into(),
            endpoint.reason.as_deref().unwrap_or("").into(),
        ]
    };
    let rows: Vec<Vec<Cell>> = endpoints.iter().map(row).collect();
    let heading = [
        "ENDPOINT",
        "ADDRESSES",
        "STATE",
        "INTERFACE",
        "INGRESS",
        "EGRESS",
        "",
    ];
    Ok(output.table(&heading, &rows)?)
}

fn policy_count(policies: &[String]) -> String {
    match policies.len() {
        0 => "open".to_owned(),
        1 => "1 policy".to_owned(),
        count => format!("{count} policies"),
    }
}

fn policies(policies: &[Policy], output: &mut Output) -> Result<(), CommandError> {
    if output.format() != Format::Table {
        return Ok(output.value(&policies)?);
    }
    let rules = |rules: Option<usize>| rules.map_or_else(|| "-".to_owned(), |n| n.to_string());
    let row = |policy: &Policy| {
        let name = if policy.namespace.is_empty() {
            policy.name.clone()
        } else {
            format!("{}/{}", policy.namespace, policy.name)
        };
        vec![
            policy.tier.as_str().into(),
            policy.order.to_string().into(),
            name.into(),
            rules(policy.ingress_rules).into(),
            rules(policy.egress_rules).into(),
            policy.selected_here.to_string().into(),
            policy.selected.to_string().into(),
            Cell::coloured(Colour::Red, policy.invalid.clone().unwrap_or_default()),
        ]
    };
    let rows: Vec<Vec<Cell>> = policies.iter().map(row).collect();
    let heading = [
        "TIER",
        "ORDER",
        "POLICY",
        "INGRESS RULES",
        "EGRESS RULES",
        "SELECTED HERE",
        "SELECTED",
        "",
    ];
    Ok(output.table(&heading, &rows)?)
}

fn classes(classes: &[Class], output: &mut Output) -> Result<(), CommandError> {
    if output.format() != Format::Table {
        return Ok(output.value(&classes)?);
    }
    let row = |class: &Class| {
        let mut peers: Vec<String> = class
            .addresses
            .iter()
            .take(SHOWN_ADDRESSES)
            .map(ToString::to_string)
            .collect();
        let room = SHOWN_ADDRESSES.saturating_sub(peers.len());
        peers.extend(class.blocks.iter().take(room).cloned());
        let count = class.addresses.len() + class.blocks.len();
        if count > peers.len() {
            peers.push(format!("and {} more", count - peers.len()));
        }
        vec![
            class.id.to_string().into(),
            class.addresses.len().to_string().into(),
            class.blocks.len().to_string().into(),
            peers.join(" ").into(),
        ]
    };
    let rows: Vec<Vec<Cell>> = classes.iter().map(row).collect();
    Ok(output.table(&["CLASS", "ADDRESSES", "BLOCKS", "MEMBERS"], &rows)?)
}

fn denied(denied: &[Denied], output: &mut Output) -> Result<(), CommandError> {
    if output.format() != Format::Table {
        return Ok(output.value(&denied)?);
    }
    let now = SystemTime::now();
    let row = |denied: &Denied| {
        let end = |name: &Option<String>, address: &std::net::IpAddr| {
            name.clone().unwrap_or_else(|| address.to_string())
        };
        let service = match denied.port {
            Some(port) => format!("{port}/{}", denied.protocol),
            None => denied.protocol.clone(),
        };
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(denied.at);
        let ago = now.duration_since(at).unwrap_or_default().as_secs();
        vec![
            format!("{ago} s ago").into(),
            denied.packets.to_string().into(),
            if denied.audited {
                Cell::coloured(Colour::Yellow, format!("audited {}", denied.reason))
            } else if denied.bypassed {
                Cell::coloured(Colour::Yellow, format!("bypassed {}", denied.reason))
            } else {
                Cell::coloured(Colour::Red, denied.reason.clone())
            },
            end(&denied.from, &denied.source).into(),
            end(&denied.to, &denied.destination).into(),
            service.into(),
            denied.rule.as_deref().unwrap_or("-").into(),
        ]
    };
    let rows: Vec<Vec<Cell>> = denied.iter().map(row).collect();
    Ok(output.table(
        &["LAST", "PACKETS", "REASON", "FROM", "TO", "SERVICE", "RULE"],
        &rows,
    )?)
}

fn flannel(flannel: Option<&Flannel>, output: &mut Output) -> Result<(), CommandError> {
    if output.format() != Format::Table {
        return Ok(output.value(&flannel)?);
    }
    let Some(flannel) = flannel else {
        return Ok(output.line("no sign of Flannel on this node")?);
    };
    output.table_of_pairs(&flannel_pairs(flannel))?;
    if !flannel.contradictions.is_empty() {
        output.heading("CONTRADICTIONS")?;
        for text in &flannel.contradictions {
            output.line(&format!("  {text}"))?;
        }
    }
    Ok(())
}

/// What Flannel set up, a line each.
fn flannel_pairs(flannel: &Flannel) -> Vec<(&'static str, Cell)> {
    let unknown = || "unknown".to_owned();
    let masquerades = flannel
        .masquerades
        .map(|is_so| if is_so { "yes" } else { "no" });
    let mut pairs = vec![
        (
            "backend",
            flannel.backend.clone().unwrap_or_else(unknown).into(),
        ),
        (
            "rules",
            flannel.rules.clone().unwrap_or_else(unknown).into(),
        ),
        (
            "MTU",
            flannel
                .mtu
                .map_or_else(unknown, |mtu| mtu.to_string())
                .into(),
        ),
        ("networks", joined(&flannel.networks).into()),
        ("pods here", joined(&flannel.pod_cidrs).into()),
        ("masquerades", masquerades.unwrap_or("unknown").into()),
    ];
    let tunnels = flannel.tunnels.iter();
    pairs.extend(tunnels.map(|tunnel| ("tunnel", tunnel_text(tunnel).into())));
    pairs
}

/// The end of a tunnel, on one line.
fn tunnel_text(tunnel: &Tunnel) -> String {
    let mut words = vec![tunnel.name.clone()];
    words.extend(tunnel.mac.clone());
    words.extend(tunnel.addresses.iter().map(ToString::to_string));
    words.extend(tunnel.udp_port.map(|port| format!("port {port}/udp")));
    words.push(format!("MTU {}", tunnel.mtu));
    words.join(" ")
}

/// What Flannel set up, on one line for the status.
pub(super) fn flannel_line(flannel: &Flannel) -> String {
    let mut parts = vec![
        flannel
            .backend
            .clone()
            .unwrap_or_else(|| "backend unknown".to_owned()),
    ];
    parts.extend(
        flannel
            .rules
            .as_ref()
            .map(|rules| format!("rules in {rules}")),
    );
    parts.extend(flannel.mtu.map(|mtu| format!("MTU {mtu}")));
    if !flannel.pod_cidrs.is_empty() {
        parts.push(format!("pods {}", joined(&flannel.pod_cidrs)));
    }
    parts.extend(flannel.tunnels.iter().map(tunnel_text));
    if !flannel.contradictions.is_empty() {
        parts.push(format!(
            "{} contradictions, see WARNINGS",
            flannel.contradictions.len()
        ));
    }
    parts.join("; ")
}

fn joined<T: ToString>(items: &[T]) -> String {
    items
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flannel_is_one_line_of_what_is_known() {
        let known = Flannel {
            rules: Some("nftables".to_owned()),
            backend: Some("vxlan".to_owned()),
            mtu: Some(1450),
            pod_cidrs: vec!["10.244.1.0/24".to_owned(), "fd00:1::/64".to_owned()],
            tunnels: vec![Tunnel {
                name: "flannel.1".to_owned(),
                mac: Some("02:00:00:00:00:01".to_owned()),
                mtu: 1450,
                addresses: vec![[10, 244, 1, 0].into()],
                udp_port: Some(8472),
            }],
            ..Flannel::default()
        };

        assert_eq!(
            flannel_line(&known),
            "vxlan; rules in nftables; MTU 1450; pods 10.244.1.0/24,fd00:1::/64; \
             flannel.1 02:00:00:00:00:01 10.244.1.0 port 8472/udp MTU 1450"
        );
        assert_eq!(flannel_line(&Flannel::default()), "backend unknown");
    }
}
