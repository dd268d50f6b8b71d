//! Why a command failed, and the exit status that says so.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use towpath_dataplane::link::NetlinkError;
use towpath_dataplane::nft::CommitError;
use towpath_runtime::config::ConfigError;
use towpath_runtime::logs::LogError;

use super::client::ClientError;
use super::cni::InstallError;
use crate::agent::AgentError;
use crate::agent::backend::TablesError;
use crate::agent::state::StateError;
use crate::source::kubernetes::LoadError;

/// Exit status of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done,
    /// Failed, or a difference was found.
    Failed,
    /// Wrong usage or configuration.
    Usage,
    /// The kernel lacks a feature.
    Unsupported,
    /// Another agent is at work on this node.
    InUse,
    /// The API server refuses.
    Refused,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Unsupported => 3,
            Exit::InUse | Exit::Refused => 4,
        })
    }
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The arguments make no sense together.
    #[error("{0}")]
    Usage(String),
    /// The command did what it should, and the answer is a failure.
    #[error("{0}")]
    Failed(String),
    /// The configuration has faults.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Logs cannot be set up.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The result cannot be written.
    #[error("cannot write the result")]
    Output(#[from] io::Error),
    /// The agent cannot be asked.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The kernel cannot be asked for interfaces.
    #[error(transparent)]
    Link(#[from] NetlinkError),
    /// The kernel's tables cannot be changed.
    #[error("cannot change the tables of this node")]
    Change(#[from] CommitError),
    /// The kernel's tables cannot be used.
    #[error(transparent)]
    Tables(#[from] TablesError),
    /// The cluster cannot be read.
    #[error(transparent)]
    Cluster(#[from] LoadError),
    /// The CNI plugin cannot be installed or removed.
    #[error(transparent)]
    Cni(#[from] InstallError),
    /// An agent runs.
    #[error("an agent runs and serves {}; stop it first", socket.display())]
    Running {
        /// Its control socket.
        socket: PathBuf,
    },
    /// The agent ended.
    #[error(transparent)]
    Agent(#[from] AgentError),
}

impl CommandError {
    /// The exit status for it.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Usage(_)
            | Self::Config(_)
            | Self::Log(_)
            | Self::Cluster(LoadError::Connect(_)) => Exit::Usage,
            Self::Agent(error) if error.is_misconfigured() => Exit::Usage,
            Self::Cluster(LoadError::Refused(_)) => Exit::Refused,
            Self::Agent(error) if error.is_unsupported() => Exit::Unsupported,
            Self::Tables(error) if error.is_unsupported() => Exit::Unsupported,
            Self::Agent(error) if error.is_in_use() => Exit::InUse,
            Self::Running { .. }
            | Self::State(StateError::InUse { .. })
            | Self::Tables(TablesError::Owned { .. }) => Exit::InUse,
            Self::Link(NetlinkError::Unsupported { .. })
            | Self::Change(CommitError::Unsupported { .. }) => Exit::Unsupported,
            Self::Failed(_)
            | Self::Output(_)
            | Self::Client(_)
            | Self::State(_)
            | Self::Link(_)
            | Self::Change(_)
            | Self::Cni(_)
            | Self::Tables(_)
            | Self::Cluster(LoadError::Failed(_))
            | Self::Agent(_) => Exit::Failed,
        }
    }

    /// Whether the reader of our output has gone: that is his right, and no error.
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}
