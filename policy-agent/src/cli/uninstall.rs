//! `towpath uninstall`: removes everything that an agent of this host ever changed. Needs no cluster.

use std::fs;
use std::io::{self, BufRead, ErrorKind, IsTerminal, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use towpath_dataplane::link::{BridgeSettings, Interface, Scanner};
use towpath_dataplane::nft::NetlinkBackend;

use super::error::{CommandError, Exit};
use super::output::{Format, Output};
use super::{OutputArguments, SocketArguments, client, cni};
use crate::agent::backend::refuse_owned;
use crate::agent::config::DEFAULT_STATE_DIRECTORY;
use crate::agent::state::StateDirectory;
use crate::applier;

#[derive(Clone, Debug, Args)]
pub(super) struct UninstallArguments {
    /// Do not ask.
    #[arg(long)]
    yes: bool,
    /// Directory in which the agent recorded what it changed.
    #[arg(
        long = "state-dir",
        env = "TOWPATH_STATE_DIRECTORY",
        default_value = DEFAULT_STATE_DIRECTORY,
        value_name = "DIR"
    )]
    state_directory: PathBuf,
    /// Leave the program of the CNI plugin: a runtime that remembers the chain of each pod needs it until these pods
    /// are gone.
    #[arg(long)]
    keep_cni_program: bool,
    #[command(flatten)]
    socket: SocketArguments,
    #[command(flatten)]
    output: OutputArguments,
}

/// One thing that was undone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Done {
    /// `removed`, `restored`, `absent`, or `left`: somebody else must do it.
    action: &'static str,
    object: String,
}

impl Done {
    pub(super) fn new(action: &'static str, object: impl Into<String>) -> Self {
        Self {
            action,
            object: object.into(),
        }
    }
}

pub(super) fn run(arguments: &UninstallArguments) -> Result<Exit, CommandError> {
    let socket = &arguments.socket.socket;
    has_socket(socket)?;
    if client::is_served(socket) {
        let socket = socket.clone();
        return Err(CommandError::Running { socket });
    }
    confirm(
        arguments.yes,
        "uninstall opens this node",
        "remove all rules of towpath from this node, which opens it?",
    )?;
    // The lock also refuses while an agent runs under another socket.
    let has_state = arguments.state_directory.exists();
    let state = StateDirectory::open(&arguments.state_directory)?;
    // First, so that no new pod waits for an agent that is not to come back.
    let mut done = cni::done(cni::remove(
        &arguments.state_directory,
        arguments.keep_cni_program,
    )?);
    done.extend(remove_tables()?);
    done.extend(restore_bridges(&state)?);
    if let Some(taint) = state.startup_taint() {
        let text = format!(
            "startup taint {taint}: take it out of whatever puts it on nodes, and off those that have it"
        );
        done.push(Done::new("left", text));
    }
    let directories: Vec<PathBuf> = state.directories().map(Path::to_owned).collect();
    state.remove()?;
    if has_state {
        let path = arguments.state_directory.display();
        done.push(Done::new("removed", format!("state directory {path}")));
    }
    done.extend(remove_socket(socket)?);
    done.extend(remove_directories(&directories));
    let mut output = Output::stdout(arguments.output.format);
    print(&done, &mut output)?;
    output.flush()?;
    Ok(Exit::Done)
}

/// Asks on a terminal; elsewhere the flag is needed.
pub(super) fn confirm(
    is_confirmed: bool,
    effect: &str,
    question: &str,
) -> Result<(), CommandError> {
    if is_confirmed {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        let text = format!("{effect}; give --yes to confirm");
        return Err(CommandError::Usage(text));
    }
    write!(io::stderr(), "{question} [y/N] ")?;
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        return Ok(());
    }
    Err(CommandError::Failed("nothing was changed".to_owned()))
}

fn remove_tables() -> Result<Vec<Done>, CommandError> {
    let mut backend = NetlinkBackend::open()?;
    // An agent with another state directory and another socket.
    refuse_owned(&mut backend)?;
    let removed = applier::uninstall(&mut backend)?;
    if removed.is_empty() {
        return Ok(vec![Done::new("absent", "tables")]);
    }
    Ok(removed
        .into_iter()
        .map(|table| Done::new("removed", format!("table {table}")))
        .collect())
}

/// Gives bridges that still exist the settings from before.
fn restore_bridges(state: &StateDirectory) -> Result<Vec<Done>, CommandError> {
    let recorded: Vec<(&str, BridgeSettings)> = state.bridges().collect();
    if recorded.is_empty() {
        return Ok(Vec::new());
    }
    let mut scanner = Scanner::open()?;
    let interfaces = scanner.discover()?.interfaces;
    let mut done = Vec::new();
    for (name, before) in recorded {
        let is_it = |interface: &&Interface| interface.is_bridge() && interface.name == name;
        match interfaces.iter().find(is_it) {
            Some(bridge) => {
                scanner.set_bridge(bridge.index, before)?;
                done.push(Done::new("restored", format!("settings of bridge {name}")));
            }
            None => done.push(Done::new("absent", format!("bridge {name}"))),
        }
    }
    Ok(done)
}

/// Whether a socket stands here. Anything else of that name is not ours, and must not be removed.
fn has_socket(socket: &Path) -> Result<bool, CommandError> {
    let place = socket.display();
    match fs::symlink_metadata(socket) {
        Ok(metadata) if metadata.file_type().is_socket() => Ok(true),
        Ok(_) => Err(CommandError::Usage(format!(
            "{place} is no socket; correct --socket"
        ))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(CommandError::Failed(format!(
            "cannot look at the socket {place}: {error}"
        ))),
    }
}

/// Removes a socket that nobody serves; the default one with its directory, which a service manager may have made.
fn remove_socket(socket: &Path) -> Result<Option<Done>, CommandError> {
    if !has_socket(socket)? {
        return Ok(None);
    }
    let place = socket.display();
    fs::remove_file(socket).map_err(|error| {
        CommandError::Failed(format!("cannot remove the socket {place}: {error}"))
    })?;
    if socket == Path::new(crate::agent::config::DEFAULT_SOCKET)
        && let Some(directory) = socket.parent()
    {
        fs::remove_dir(directory).ok();
    }
    Ok(Some(Done::new("removed", format!("socket {place}"))))
}

/// Removes what the agent made for its socket, but nothing that somebody uses.
fn remove_directories(directories: &[PathBuf]) -> Vec<Done> {
    let remove = |directory: &PathBuf| {
        let place = directory.display();
        match fs::remove_dir(directory) {
            Ok(()) => Some(Done::new("removed", format!("directory {place}"))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => Some(Done::new("left", format!("directory {place}: {error}"))),
        }
    };
    directories.iter().filter_map(remove).collect()
}

pub(super) fn print(done: &[Done], output: &mut Output) -> io::Result<()> {
    if output.format() != Format::Table {
        return output.value(&done);
    }
    done.iter()
        .try_for_each(|done| output.line(&format!("{} {}", done.action, done.object)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_directory_that_somebody_uses_stays() {
        let directory = tempfile::tempdir().unwrap();
        let (outer, inner) = (directory.path().join("a"), directory.path().join("a/b"));
        fs::create_dir_all(&inner).unwrap();
        fs::write(outer.join("precious"), "").unwrap();

        let done = remove_directories(&[inner.clone(), outer.clone(), inner.clone()]);

        let removed = Done::new("removed", format!("directory {}", inner.display()));
        assert_eq!(
            (&done[0], done[1].action, done.len()),
            (&removed, "left", 2)
        );
        assert!(outer.join("precious").exists());
    }

    #[test]
    fn only_a_socket_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let (socket, file) = (directory.path().join("s"), directory.path().join("f"));
        drop(UnixListener::bind(&socket).unwrap());
        fs::write(&file, "precious").unwrap();

        let done = remove_socket(&socket).unwrap().unwrap();
        let error = remove_socket(&file).unwrap_err();

        assert_eq!((done.action, socket.exists()), ("removed", false));
        assert_eq!(error.exit(), Exit::Usage, "{error}");
        assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
        assert_eq!(remove_socket(&socket).unwrap(), None);
    }
}
