//! `towpath get`: lists of a running agent.

use std::time::{Duration, SystemTime};

use clap::{Args, ValueEnum};

use super::error::{CommandError, Exit};
use super::output::{Cell, Colour, Format, Output};
use super::{OutputArguments, SocketArguments, client};
use crate::agent::report::{Class, Denied, Endpoint, EndpointState, Policy};

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

fn joined<T: ToString>(items: &[T]) -> String {
    items
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(",")
}
