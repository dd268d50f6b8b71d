//! `towpath cni`: puts the chained plugin on this node, and takes it away.

mod chain;
mod install;

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

pub use self::install::InstallationFault;
pub(super) use self::install::{InstallError, remove};
use self::install::{Installation, Method, Step};
pub(crate) use self::install::{RECORD, fault, is_installed};
use super::OutputArguments;
use super::error::{CommandError, Exit};
use super::output::Output;
use super::uninstall::{Done, print};
use crate::agent::config::{DEFAULT_SOCKET, DEFAULT_STATE_DIRECTORY};

#[derive(Clone, Debug, Args)]
pub(super) struct CniArguments {
    #[command(subcommand)]
    command: CniCommand,
}

#[derive(Clone, Debug, Subcommand)]
enum CniCommand {
    /// Chains the plugin towpath-cni behind the plugins that this node uses.
    Install(InstallArguments),
    /// Takes the plugin out of the chain and removes what was installed.
    Remove(RemoveArguments),
}

/// What happens to a new pod while the agent does not answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum FailurePolicy {
    /// It does not start; the kubelet tries again.
    #[default]
    Closed,
    /// It starts. The rules in the kernel are as they are.
    Open,
}

#[derive(Clone, Debug, Args)]
struct InstallArguments {
    /// How the plugin gets into the chain.
    #[arg(long, value_enum, default_value = "drop-in")]
    method: Method,
    /// Directory of network configurations.
    #[arg(
        long = "conf-dir",
        default_value = "/etc/cni/net.d",
        value_name = "DIR"
    )]
    configurations: PathBuf,
    /// Directory of plugins.
    #[arg(long = "bin-dir", default_value = "/opt/cni/bin", value_name = "DIR")]
    programs: PathBuf,
    /// The program to install [default: towpath-cni beside this program]
    #[arg(long, value_name = "FILE")]
    plugin: Option<PathBuf>,
    /// Name of the network to chain to [default: that of the first configuration, as runtimes take it]
    #[arg(long, value_name = "NAME")]
    network: Option<String>,
    /// What happens to a new pod while the agent does not answer.
    #[arg(long, value_enum, default_value_t)]
    failure_policy: FailurePolicy,
    /// Namespace whose pods start without waiting, and closed until their policy is in force; may be repeated.
    #[arg(long = "wait-exempt-namespace", value_name = "NAME")]
    wait_exempt_namespaces: Vec<String>,
    /// Seconds that a pod may wait.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..=10), value_name = "SECONDS")]
    timeout: u8,
    /// Control socket of the agent, as the plugin reaches it.
    #[arg(long, env = "TOWPATH_SOCKET", default_value = DEFAULT_SOCKET, value_name = "PATH")]
    socket: PathBuf,
    #[command(flatten)]
    state: StateArguments,
    #[command(flatten)]
    output: OutputArguments,
}

#[derive(Clone, Debug, Args)]
struct RemoveArguments {
    /// Leave the program: a runtime that remembers the chain of each pod needs it until these pods are gone.
    #[arg(long)]
    keep_program: bool,
    #[command(flatten)]
    state: StateArguments,
    #[command(flatten)]
    output: OutputArguments,
}

#[derive(Clone, Debug, Args)]
struct StateArguments {
    /// Directory in which it is noted what was installed.
    #[arg(
        long = "state-dir",
        env = "TOWPATH_STATE_DIRECTORY",
        default_value = DEFAULT_STATE_DIRECTORY,
        value_name = "DIR"
    )]
    state_directory: PathBuf,
}

pub(super) fn run(arguments: &CniArguments) -> Result<Exit, CommandError> {
    let (steps, output) = match &arguments.command {
        CniCommand::Install(arguments) => (arguments.install()?, arguments.output),
        CniCommand::Remove(arguments) => {
            let steps = remove(&arguments.state.state_directory, arguments.keep_program)?;
            (steps, arguments.output)
        }
    };
    let mut output = Output::stdout(output.format);
    print(&done(steps), &mut output)?;
    output.flush()?;
    Ok(Exit::Done)
}

/// What was done, for the user.
pub(super) fn done(steps: Vec<Step>) -> Vec<Done> {
    let done = steps.into_iter();
    done.map(|(action, path)| Done::new(action, path.display().to_string()))
        .collect()
}

impl InstallArguments {
    fn install(&self) -> Result<Vec<Step>, CommandError> {
        let beside = || std::env::current_exe().map(|path| path.with_file_name(chain::PLUGIN));
        let plugin = match &self.plugin {
            Some(plugin) => plugin.clone(),
            None => beside()?,
        };
        Ok(install::install(&Installation {
            method: self.method,
            configurations: &self.configurations,
            programs: &self.programs,
            state: &self.state.state_directory,
            plugin: &plugin,
            entry: self.entry(),
            network: self.network.as_deref(),
        })?)
    }

    /// The plugin's entry in a chain.
    fn entry(&self) -> Value {
        json!({
            "type": chain::PLUGIN,
            "socket": self.socket,
            "queue": self.state.state_directory.join(crate::agent::CNI_QUEUE),
            "timeoutSeconds": self.timeout,
            "failurePolicy": match self.failure_policy {
                FailurePolicy::Closed => "closed",
                FailurePolicy::Open => "open",
            },
            "waitExemptNamespaces": self.wait_exempt_namespaces,
        })
    }
}
