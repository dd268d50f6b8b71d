//! A small process that removes what a run made, however the run ends.
//!
//! It waits at a pipe that only the run holds. When the pipe closes (the run ended, panicked, was interrupted or
//! killed) it ends the processes in the run's namespaces, deletes the namespaces and the run's folder. It is its own
//! process group, so ctrl-C does not reach it.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cluster::control_groups;
use crate::netns::{self, Namespace};
use crate::program;
use crate::wait::{PATIENCE, until};

/// Every folder that a run may delete starts with this.
pub const FOLDER_PREFIX: &str = "towpath-lab-";

const RELEASE: &[u8] = b"release\n";

/// The run's side of the pipe.
#[derive(Debug)]
pub struct Keeper {
    child: Child,
}

impl Keeper {
    /// Starts to watch over everything with this prefix and over this folder.
    pub fn start(prefix: &str, folder: &Path) -> Result<Self> {
        let child = Command::new(program::probe()?)
            .arg("keep")
            .args(["--prefix", prefix])
            .arg("--folder")
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
            .context("cannot start the keeper of the lab")?;
        Ok(Self { child })
    }

    /// Leaves everything as it is: the lab stays up.
    pub fn release(&mut self) -> Result<()> {
        if let Some(mut pipe) = self.child.stdin.take() {
            pipe.write_all(RELEASE)?;
        }
        self.child.wait()?;
        Ok(())
    }

    /// Has everything removed and waits for it.
    pub fn clean(&mut self) -> Result<()> {
        drop(self.child.stdin.take());
        let status = self.child.wait()?;
        ensure!(status.success(), "the keeper ended with {status}");
        Ok(())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = self.clean();
    }
}

/// The keeper itself: waits for the end of its input, then removes everything.
pub fn keep(prefix: &str, folder: &Path) -> Result<()> {
    let mut words = Vec::new();
    // An error of the pipe means the same as its end.
    let _ = std::io::stdin().lock().read_to_end(&mut words);
    if words.ends_with(RELEASE) {
        return Ok(());
    }
    remove_everything(prefix, folder)
}

/// Ends the processes in all namespaces with the prefix, deletes the namespaces, control groups, then the folder.
///
/// Two may do this at once, and a run that is about to end may still be making namespaces.
pub fn remove_everything(prefix: &str, folder: &Path) -> Result<()> {
    ensure!(
        prefix.len() >= 4,
        "prefix {prefix} is too short to be a run's"
    );
    for name in netns::list(prefix)? {
        end_processes(&name);
    }
    until(&format!("namespaces {prefix}* removed"), PATIENCE, || {
        for name in netns::list(prefix)? {
            end_processes(&name);
            let deleted = netns::run(Command::new("ip").args(["netns", "delete", &name]));
            if deleted.is_err() && netns::list(prefix)?.contains(&name) {
                deleted?;
            }
        }
        Ok(netns::list(prefix)?.is_empty())
    })?;
    control_groups::remove(prefix)?;
    let is_ours = folder
        .file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with(FOLDER_PREFIX));
    if is_ours && folder.exists() {
        match std::fs::remove_dir_all(folder) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error)
                    .with_context(|| format!("cannot remove folder {}", folder.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

fn end_processes(namespace: &str) {
    // A namespace or a process that is gone by now is what we want.
    for process in Namespace::existing(namespace)
        .processes()
        .unwrap_or_default()
    {
        let _ = kill(Pid::from_raw(process), Signal::SIGKILL);
    }
}
