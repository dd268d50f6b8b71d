//! The command line.
//!
//! Data goes to standard output, remarks and logs to standard error. Exit status: 0 done, 1 failed or a difference
//! was found, 2 wrong usage or configuration, 3 the kernel lacks a feature, 4 another agent is at work or the
//! API server refuses.

pub mod arguments;
mod bypass;
mod client;
mod cluster_status;
pub mod cni;
mod completions;
mod doctor;
mod error;
mod explain;
mod get;
mod lint;
mod output;
mod placeholder;
mod render;
mod simulate;
mod status;
mod text;
mod uninstall;
mod world;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};

use self::arguments::SourceLocation;
pub use self::error::{CommandError, Exit};
use self::output::{Format, Output};
use crate::agent;
use crate::agent::config::{Config, DEFAULT_SOCKET, Flags, NftBackend};
use crate::layout::Enforcement;

/// Network policy for the network you already have.
#[derive(Debug, Parser)]
#[command(
    name = "towpath",
    version,
    propagate_version = true,
    arg_required_else_help = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Enforces policy on this node until it is told to stop; the rules stay.
    Agent(AgentArguments),
    /// Says why a connection is allowed or denied: tier by tier, object and rule.
    Explain(explain::ExplainArguments),
    /// Judges every pair of pods and every declared port; with --with, what a change would change.
    Simulate(simulate::SimulateArguments),
    /// Says what is wrong with manifests, and what is suspicious.
    Lint(lint::LintArguments),
    /// Prints the nft text that the agent of a node would load.
    Render(render::RenderArguments),
    /// Shows whether the agent of this node enforces, and what it awaits.
    Status(status::StatusArguments),
    /// Says what is wrong with this node, and what to do. Needs neither an agent nor a cluster.
    Doctor(doctor::DoctorArguments),
    /// Lists what the agent of this node has.
    Get(get::GetArguments),
    /// Chains the CNI plugin on this node, or takes it away.
    Cni(cni::CniArguments),
    /// Opens enforcement on this node for a while, in an emergency; with no argument, lists what is open.
    Bypass(bypass::BypassArguments),
    /// Removes everything that the agent of this host ever changed. Opens the node.
    Uninstall(uninstall::UninstallArguments),
    /// Prints the completion script of a shell.
    Completions(completions::CompletionsArguments),
    /// Prints the manual page.
    Man,
}

/// How to print.
#[derive(Clone, Copy, Debug, Args)]
struct OutputArguments {
    /// Format of the result.
    #[arg(
        short = 'o',
        long = "output",
        value_enum,
        default_value_t,
        value_name = "FORMAT"
    )]
    format: Format,
}

/// Where a running agent is.
#[derive(Clone, Debug, Args)]
struct SocketArguments {
    /// Control socket of the agent.
    #[arg(long, env = "TOWPATH_SOCKET", default_value = DEFAULT_SOCKET, value_name = "PATH")]
    socket: PathBuf,
}

#[derive(Clone, Debug, Args)]
struct AgentArguments {
    #[arg(
        long,
        help = "Name of this node, as manifests have it [env: TOWPATH_NODE]"
    )]
    node: Option<String>,
    #[arg(
        long,
        help = "Where objects come from: file:DIR, kubernetes:KUBECONFIG, or kubernetes inside of a cluster [env: TOWPATH_SOURCE]"
    )]
    source: Option<SourceLocation>,
    /// Configuration file in YAML; variables and flags override it.
    #[arg(long, value_name = "FILE", env = "TOWPATH_CONFIG")]
    config: Option<PathBuf>,
    #[arg(
        long,
        value_name = "PATH",
        help = "Control socket [env: TOWPATH_SOCKET]"
    )]
    socket: Option<PathBuf>,
    #[arg(
        long = "state-dir",
        value_name = "DIR",
        help = "Directory of what must outlive the agent [env: TOWPATH_STATE_DIRECTORY]"
    )]
    state_directory: Option<PathBuf>,
    #[arg(long, value_name = "ADDR", value_parser = towpath_runtime::http::parse_listen_address, help = "Serve /metrics here; a bare port is loopback [env: TOWPATH_METRICS]")]
    metrics: Option<std::net::SocketAddr>,
    #[arg(long, value_name = "ADDR", value_parser = towpath_runtime::http::parse_listen_address, help = "Serve /livez and /readyz here; a bare port is loopback [env: TOWPATH_HEALTH]")]
    health: Option<std::net::SocketAddr>,
    #[arg(
        long,
        value_enum,
        help = "How transactions reach the kernel [env: TOWPATH_NFT_BACKEND]"
    )]
    nft_backend: Option<NftBackend>,
    #[arg(
        long = "pod-bridge",
        value_name = "NAME",
        help = "Bridge whose ports are pods; may be repeated [env: TOWPATH_POD_BRIDGES]"
    )]
    pod_bridges: Vec<towpath_core::model::InterfaceName>,
    #[arg(long, help = "Log lines as JSON [env: TOWPATH_LOG_FORMAT]")]
    log_json: bool,
    #[arg(
        long,
        value_name = "FILTER",
        help = "Log level, or target=level pairs [env: TOWPATH_LOG]"
    )]
    log: Option<String>,
    #[arg(
        long,
        value_enum,
        value_name = "MODE",
        help = "Drop what is denied (enforce), or only count and log it (audit) [env: TOWPATH_ENFORCEMENT]"
    )]
    enforcement: Option<Enforcement>,
}

impl AgentArguments {
    fn config(self) -> Result<Config, CommandError> {
        let flags = Flags {
            node: self.node,
            source: self.source,
            socket: self.socket,
            state_directory: self.state_directory,
            metrics: self.metrics,
            health: self.health,
            nft_backend: self.nft_backend,
            pod_bridges: self.pod_bridges,
            log_format: self
                .log_json
                .then_some(towpath_runtime::logs::LogFormat::Json),
            log: self.log,
            enforcement: self.enforcement,
        };
        let variable = |name: &str| std::env::var(name).ok();
        Ok(Config::load(self.config.as_deref(), variable, flags)?)
    }
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match run(cli.command) {
        Ok(exit) => exit.into(),
        Err(error) if error.is_broken_pipe() => Exit::Done.into(),
        Err(error) => {
            report(&error);
            error.exit().into()
        }
    }
}

/// Help and version are results; everything else that clap says is a fault of usage.
fn usage(error: &clap::Error) -> ExitCode {
    let is_printed = error.print().is_ok();
    let exit = if error.use_stderr() || !is_printed {
        Exit::Usage
    } else {
        Exit::Done
    };
    exit.into()
}

fn run(command: Command) -> Result<Exit, CommandError> {
    match command {
        Command::Agent(arguments) => run_agent(arguments),
        Command::Explain(arguments) => explain::run(&arguments),
        Command::Simulate(arguments) => simulate::run(&arguments),
        Command::Lint(arguments) => lint::run(&arguments),
        Command::Render(arguments) => render::run(&arguments),
        Command::Status(arguments) => status::run(&arguments),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Get(arguments) => get::run(&arguments),
        Command::Cni(arguments) => cni::run(&arguments),
        Command::Bypass(arguments) => bypass::run(arguments),
        Command::Uninstall(arguments) => uninstall::run(&arguments),
        Command::Completions(arguments) => completions::print(
            arguments,
            &mut Cli::command(),
            Output::stdout(Format::Table),
        ),
        Command::Man => completions::manual(Cli::command(), Output::stdout(Format::Table)),
    }
}

fn run_agent(arguments: AgentArguments) -> Result<Exit, CommandError> {
    let config = arguments.config()?;
    towpath_runtime::logs::start(config.log_format, &config.log)?;
    let shutdown = async {
        match towpath_runtime::process::end_signal().await {
            Ok(signal) => tracing::info!(signal, "told to end"),
            Err(error) => tracing::error!(%error, "cannot listen for signals"),
        }
    };
    agent::run(&config, shutdown)?;
    Ok(Exit::Done)
}

/// Prints an error with its causes, once.
fn report(error: &dyn std::error::Error) {
    let mut text = format!("towpath: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    remark(&text);
}

/// A remark for the user. When nobody can read it there is nobody to tell.
fn remark(text: &str) {
    writeln!(io::stderr(), "{text}").ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }
}
