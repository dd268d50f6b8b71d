//! `towpath doctor`: what is wrong with this node. Needs neither an agent nor a cluster.

use std::io;
use std::path::PathBuf;

use clap::Args;
use flannel_adapter::here::DEFAULT_NET_CONF;
use flannel_adapter::subnet_env::DEFAULT_PATH;
use smol_str::SmolStr;

use super::arguments::SourceLocation;
use super::client::{self, ClientError};
use super::error::{CommandError, Exit};
use super::output::{Colour, Format, Output};
use super::{OutputArguments, SocketArguments};
use crate::agent::config::{DEFAULT_CNI_CONFIG_DIRECTORY, DEFAULT_STATE_DIRECTORY};
use crate::agent::report::Status;
use crate::doctor::facts::Look;
use crate::doctor::gather::{Places, chain, gather};
use crate::doctor::{Finding, Severity, examine};

#[derive(Clone, Debug, Args)]
pub(super) struct DoctorArguments {
    #[arg(
        long,
        help = "Where Node objects are, to compare them with this node: file:DIR, kubernetes:KUBECONFIG, or kubernetes inside of a cluster [env: TOWPATH_SOURCE]"
    )]
    source: Option<SourceLocation>,
    /// Name of this node [default: the agent's, or the host's]
    #[arg(long, env = "TOWPATH_NODE")]
    node: Option<SmolStr>,
    /// Bridge whose ports are pods, besides the one of the CNI configuration; may be repeated.
    #[arg(long = "pod-bridge", value_name = "NAME")]
    pod_bridges: Vec<SmolStr>,
    /// What flanneld writes at its start.
    #[arg(long, default_value = DEFAULT_PATH, value_name = "FILE")]
    subnet_env: PathBuf,
    /// Flannel's configuration, where the host has it as a file; what the API server has wins.
    #[arg(long, default_value = DEFAULT_NET_CONF, value_name = "FILE")]
    net_conf: PathBuf,
    /// Directory of CNI configurations.
    #[arg(
        long = "cni-config-dir",
        env = "TOWPATH_CNI_CONFIG_DIRECTORY",
        default_value = DEFAULT_CNI_CONFIG_DIRECTORY,
        value_name = "DIR"
    )]
    cni_configurations: PathBuf,
    /// The agent's state directory.
    #[arg(
        long = "state-dir",
        env = "TOWPATH_STATE_DIRECTORY",
        default_value = DEFAULT_STATE_DIRECTORY,
        value_name = "DIR"
    )]
    state_directory: PathBuf,
    #[command(flatten)]
    socket: SocketArguments,
    #[command(flatten)]
    output: OutputArguments,
}

/// Exit status 1 if anything is serious.
pub(super) fn run(arguments: &DoctorArguments) -> Result<Exit, CommandError> {
    let agent = agent(arguments);
    let answered = agent.get().and_then(Option::as_ref);
    let places = Places {
        node: arguments
            .node
            .clone()
            .or_else(|| answered.map(|status| SmolStr::new(&status.node))),
        source: arguments.source.clone(),
        pod_bridges: arguments.pod_bridges.iter().cloned().collect(),
        flannel: flannel_adapter::here::Places {
            subnet_env: arguments.subnet_env.clone(),
            net_conf: arguments.net_conf.clone(),
        },
        cni_configurations: arguments.cni_configurations.clone(),
        state_directory: arguments.state_directory.clone(),
    };
    let findings = examine(&gather(&places, agent));
    let mut output = Output::stdout(arguments.output.format);
    print(&findings, &mut output)?;
    output.flush()?;
    let is_serious = findings
        .iter()
        .any(|finding| finding.severity == Severity::Serious);
    Ok(if is_serious { Exit::Failed } else { Exit::Done })
}

/// What the agent says. That nobody answers is an answer, too.
fn agent(arguments: &DoctorArguments) -> Look<Option<Status>> {
    let nobody = [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused];
    match client::get(&arguments.socket.socket, "/status") {
        Ok(status) => Look::Seen(Some(status)),
        Err(ClientError::Connect { source, .. }) if nobody.contains(&source.kind()) => {
            Look::Seen(None)
        }
        Err(error) => Look::Unseen(chain(&error)),
    }
}

/// The worst first; what is good comes last, on a line each.
fn print(findings: &[Finding], output: &mut Output) -> io::Result<()> {
    if output.format() != Format::Table {
        return output.value(&findings);
    }
    let mut sorted: Vec<&Finding> = findings.iter().collect();
    sorted.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    for finding in sorted {
        let (colour, word) = match finding.severity {
            Severity::Ok => (Colour::Green, "ok"),
            Severity::Note => (Colour::Dim, "note"),
            Severity::Unseen => (Colour::Yellow, "not looked at"),
            Severity::Warning => (Colour::Yellow, "warning"),
            Severity::Serious => (Colour::Red, "serious"),
        };
        let word = output.paint(colour, word);
        let what = one_line(&finding.what);
        output.line(&format!("{word}: {}: {what}", finding.id))?;
        for more in [&finding.why, &finding.way_out] {
            if !more.is_empty() {
                output.line(&format!("  {}", one_line(more)))?;
            }
        }
    }
    let count = |severity| {
        findings
            .iter()
            .filter(|finding| finding.severity == severity)
            .count()
    };
    output.line(&format!(
        "{} serious, {} warnings, {} not looked at, {} notes",
        count(Severity::Serious),
        count(Severity::Warning),
        count(Severity::Unseen),
        count(Severity::Note)
    ))
}

/// Names that others gave must not move the cursor of a terminal.
fn one_line(text: &str) -> String {
    let escaped = |character: char| {
        if character.is_control() {
            character.escape_default().to_string()
        } else {
            character.to_string()
        }
    };
    text.chars().map(escaped).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_named_stays_on_its_line() {
        assert_eq!(
            one_line("the chain \"a\n\u{1b}[31m\" drops"),
            r#"the chain "a\n\u{1b}[31m" drops"#
        );
    }
}
