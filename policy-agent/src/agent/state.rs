//! What outlives the agent on disk: a lock against a second agent, and what the uninstall has to undo. The applier's
//! marker lies beside them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{self, Path, PathBuf};

use serde::{Deserialize, Serialize};
use towpath_dataplane::link::BridgeSettings;
use towpath_runtime::file;
use tracing::{info, warn};

use super::bypass::{ADDRESSES, BYPASSES};
use super::cni_store::{CLAIMS, CLAIMS_FRESH, QUEUE};
use crate::applier::MARKER;
use crate::cli::cni::RECORD;
use crate::snapshot::SNAPSHOT;

const LOCK: &str = "agent.lock";
const CHANGES: &str = "changes.json";
/// Everything that the agent keeps here, each written by way of a file of an unfinished name.
const KEPT: [&str; 8] = [
    CHANGES, MARKER, CLAIMS, QUEUE, SNAPSHOT, BYPASSES, ADDRESSES, LOCK,
];
/// What only the owner of a directory can do stands in these bits of its mode.
const OWNER_ONLY: u32 = 0o700;
/// Whoever is not the owner can write.
const OTHERS_WRITE: u32 = 0o022;
const STICKY: u32 = 0o1000;

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A file operation failed.
    #[error("cannot {action} {path}")]
    File {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The file is not what we wrote.
    #[error("cannot understand {path}; remove it if the bridge settings in it do not matter")]
    Content {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: serde_json::Error,
    },
    /// Another process holds the lock.
    #[error("another agent uses {path}; stop it first, or give this one its own --state-dir")]
    InUse {
        /// The directory.
        path: PathBuf,
    },
}

/// The state directory, held by this process alone.
#[derive(Debug)]
pub struct StateDirectory {
    path: PathBuf,
    changes: Changes,
    /// Something that was recorded is not on disk.
    is_unwritten: bool,
    /// Locked as long as it is open.
    _lock: File,
}

/// What we changed outside of our tables.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Changes {
    /// Settings of bridges from before, by name.
    bridges: BTreeMap<String, Settings>,
    /// The startup taint that the agent took from its Node, if it was to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    startup_taint: Option<String>,
    /// Directories that were not there before the agent made them for its socket.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    directories: BTreeSet<PathBuf>,
}

/// The settings of a bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Settings {
    nf_call_iptables: bool,
    nf_call_ip6tables: bool,
    /// Missing where an agent that did not change it wrote the file.
    no_linklocal_learn: Option<bool>,
}

impl StateDirectory {
    /// Makes the directory if need be, and takes the lock. A directory that holds nothing of others is closed to them.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let failed = |action| {
            move |source| StateError::File {
                action,
                path: path.to_owned(),
                source,
            }
        };
        if path.exists() {
            close(path);
        } else {
            fs::create_dir_all(path).map_err(failed("make"))?;
            fs::set_permissions(path, Permissions::from_mode(OWNER_ONLY))
                .map_err(failed("protect"))?;
        }
        let lock = open_lock(&path.join(LOCK)).map_err(failed("make the lock in"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StateError::InUse {
                    path: path.to_owned(),
                });
            }
            Err(TryLockError::Error(source)) => return Err(failed("lock")(source)),
        }
        // An earlier agent may have made it for all to read. Nothing stands in it.
        if let Err(error) = lock.set_permissions(Permissions::from_mode(0o600)) {
            info!(%error, "the lock of the state directory keeps its rights");
        }
        let changes = read(&path.join(CHANGES))?;
        Ok(Self {
            path: path.to_owned(),
            changes,
            is_unwritten: false,
            _lock: lock,
        })
    }

    /// The settings of bridges from before the agent changed them.
    pub fn bridges(&self) -> impl Iterator<Item = (&str, BridgeSettings)> {
        self.changes.bridges.iter().map(|(name, settings)| {
            let before = BridgeSettings {
                nf_call_iptables: settings.nf_call_iptables,
                nf_call_ip6tables: settings.nf_call_ip6tables,
                // The kernel's default.
                no_linklocal_learn: settings.no_linklocal_learn.unwrap_or(false),
            };
            (name.as_str(), before)
        })
    }

    /// Remembers the settings of a bridge from before its first change; later ones are our own.
    /// Called before the change, so that a crash in between loses nothing. After an error it is remembered all the same,
    /// and to be written: see [`Self::is_unwritten`].
    pub fn record_bridge(&mut self, name: &str, before: BridgeSettings) -> Result<(), StateError> {
        let learn = Some(before.no_linklocal_learn);
        match self.changes.bridges.get_mut(name) {
            Some(known) if known.no_linklocal_learn.is_some() => return Ok(()),
            Some(known) => known.no_linklocal_learn = learn,
            None => {
                let settings = Settings {
                    nf_call_iptables: before.nf_call_iptables,
                    nf_call_ip6tables: before.nf_call_ip6tables,
                    no_linklocal_learn: learn,
                };
                self.changes.bridges.insert(name.to_owned(), settings);
            }
        }
        self.write()
    }

    /// The startup taint that was configured last: whoever puts it on nodes must hear of the uninstall.
    pub fn startup_taint(&self) -> Option<&str> {
        self.changes.startup_taint.as_deref()
    }

    /// Remembers the startup taint that is configured, or that there is none.
    pub fn record_startup_taint(&mut self, taint: Option<String>) -> Result<(), StateError> {
        if self.changes.startup_taint == taint {
            return Ok(());
        }
        self.changes.startup_taint = taint;
        self.write()
    }

    /// Directories that the agent made for its socket, those within others first.
    pub fn directories(&self) -> impl Iterator<Item = &Path> {
        self.changes.directories.iter().rev().map(PathBuf::as_path)
    }

    /// Remembers those directories of a socket that are not there yet. Called before they are made.
    pub fn record_directories(&mut self, socket: &Path) -> Result<(), StateError> {
        let whole = path::absolute(socket).map_err(|source| StateError::File {
            action: "find",
            path: socket.to_owned(),
            source,
        })?;
        let missing: Vec<&Path> = whole
            .ancestors()
            .skip(1)
            .take_while(|directory| !directory.exists())
            .filter(|directory| !self.changes.directories.contains(*directory))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let missing = missing.into_iter().map(Path::to_owned);
        self.changes.directories.extend(missing);
        self.write()
    }

    /// Removes everything; for the uninstall.
    pub fn remove(self) -> Result<(), StateError> {
        let kept = KEPT.map(|name| self.path.join(name));
        let left = kept.iter().map(|path| file::unfinished(path));
        let left = left.chain([self.path.join(CLAIMS_FRESH)]);
        for path in left.chain(kept.iter().cloned()) {
            file::remove(&path).map_err(|source| StateError::File {
                action: "remove",
                path,
                source,
            })?;
        }
        // Files of somebody else keep the directory.
        fs::remove_dir(&self.path).ok();
        Ok(())
    }

    /// Whether something that was recorded is not on disk.
    pub fn is_unwritten(&self) -> bool {
        self.is_unwritten
    }

    /// Writes what is recorded. Replaces the file as a whole, so that a crash leaves the old one or the new one.
    pub fn write(&mut self) -> Result<(), StateError> {
        let written = self.try_write();
        self.is_unwritten = written.is_err();
        written
    }

    fn try_write(&self) -> Result<(), StateError> {
        let path = self.path.join(CHANGES);
        let text =
            serde_json::to_vec_pretty(&self.changes).map_err(|source| StateError::Content {
                path: path.clone(),
                source,
            })?;
        let written = file::replace(&path, 0o600, |file| file.write_all(&text));
        written.map_err(|source| StateError::File {
            action: "write",
            path,
            source,
        })
    }
}

/// The lock's file. On a disk that cannot be written, one of an earlier run serves as well: an agent that does not start
/// protects nobody.
fn open_lock(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).write(true).truncate(false).mode(0o600);
    match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            warn!(lock = %path.display(), "the state directory cannot be written");
            File::open(path)
        }
        opened => opened,
    }
}

/// Takes a directory that was there before from everybody but its owner, if that is us. One that holds anything else
/// may be in use by others, as `/var/lib` is, and is left; the agent's own files are private anyway.
fn close(path: &Path) {
    match try_close(path) {
        Ok(()) => {}
        Err(error) => {
            warn!(directory = %path.display(), %error, "cannot see to the rights of the state directory");
        }
    }
}

fn try_close(path: &Path) -> io::Result<()> {
    let metadata = fs::metadata(path)?;
    let mode = metadata.mode() & 0o7777;
    if mode & 0o777 == mode & OWNER_ONLY {
        return Ok(());
    }
    let is_shared = mode & STICKY != 0 || holds_foreign(path)?;
    if metadata.uid() == nix::unistd::geteuid().as_raw() && !is_shared {
        fs::set_permissions(path, Permissions::from_mode(mode & OWNER_ONLY))?;
        let before = format!("{mode:o}");
        info!(directory = %path.display(), before, "closed the state directory to others");
    } else if mode & OTHERS_WRITE != 0 {
        warn!(
            directory = %path.display(),
            mode = format!("{mode:o}"),
            "others can write in the state directory and remove what the agent needs; give it one of its own"
        );
    }
    Ok(())
}

/// Whether anything stands here that is not of the agent or its chained plugin.
fn holds_foreign(directory: &Path) -> io::Result<bool> {
    let is_ours = |name: &Path| {
        let mut known = KEPT.iter().chain([&CLAIMS_FRESH, &RECORD]).map(Path::new);
        known.any(|known| name == known || name == file::unfinished(known))
    };
    for entry in fs::read_dir(directory)? {
        if !is_ours(Path::new(&entry?.file_name())) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn read(path: &Path) -> Result<Changes, StateError> {
    match fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).map_err(|source| StateError::Content {
            path: path.to_owned(),
            source,
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Changes::default()),
        Err(source) => Err(StateError::File {
            action: "read",
            path: path.to_owned(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFF: BridgeSettings = BridgeSettings {
        nf_call_iptables: false,
        nf_call_ip6tables: false,
        no_linklocal_learn: false,
    };

    #[test]
    fn the_first_recorded_value_survives_restarts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        let mut first = StateDirectory::open(&path).unwrap();
        first.record_bridge("cni0", OFF).unwrap();
        drop(first);

        let mut second = StateDirectory::open(&path).unwrap();
        second
            .record_bridge("cni0", BridgeSettings::ENFORCING)
            .unwrap();

        assert_eq!(second.bridges().collect::<Vec<_>>(), [("cni0", OFF)]);
    }

    #[test]
    fn a_setting_that_an_older_agent_left_alone_is_recorded_later() {
        let directory = tempfile::tempdir().unwrap();
        let text = r#"{"bridges":{"cni0":{"nfCallIptables":true,"nfCallIp6tables":false}}}"#;
        fs::write(directory.path().join(CHANGES), text).unwrap();
        let mut state = StateDirectory::open(directory.path()).unwrap();

        state
            .record_bridge("cni0", BridgeSettings::ENFORCING)
            .unwrap();
        drop(state);
        let state = StateDirectory::open(directory.path()).unwrap();

        let before = BridgeSettings {
            nf_call_iptables: true,
            nf_call_ip6tables: false,
            no_linklocal_learn: true,
        };
        assert_eq!(state.bridges().collect::<Vec<_>>(), [("cni0", before)]);
    }

    #[test]
    fn the_startup_taint_is_known_to_the_uninstall() {
        let directory = tempfile::tempdir().unwrap();
        let taint = Some("towpath.io/not-ready:NoSchedule".to_owned());
        let mut state = StateDirectory::open(directory.path()).unwrap();
        state.record_startup_taint(taint.clone()).unwrap();
        drop(state);

        let mut state = StateDirectory::open(directory.path()).unwrap();
        assert_eq!(state.startup_taint(), taint.as_deref());
        state.record_startup_taint(None).unwrap();
        drop(state);

        let state = StateDirectory::open(directory.path()).unwrap();
        assert_eq!(state.startup_taint(), None);
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn what_is_kept_is_for_the_owner_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        fs::create_dir(&path).unwrap();
        fs::write(path.join(LOCK), "").unwrap();
        fs::write(path.join(RECORD), "{}").unwrap();
        for name in [LOCK, "."] {
            fs::set_permissions(path.join(name), Permissions::from_mode(0o775)).unwrap();
        }

        let mut state = StateDirectory::open(&path).unwrap();
        state.record_bridge("cni0", OFF).unwrap();

        assert_eq!(mode(&path), 0o700);
        for name in [LOCK, CHANGES] {
            assert_eq!(mode(&path.join(name)), 0o600, "{name}");
        }
    }

    #[test]
    fn a_directory_that_others_use_stays_open_to_them() {
        let directory = tempfile::tempdir().unwrap();
        for (name, before) in [("lib", 0o755), ("tmp", 0o1777)] {
            let path = directory.path().join(name);
            fs::create_dir(&path).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(before)).unwrap();
            if name == "lib" {
                fs::write(path.join("of-somebody-else"), "").unwrap();
            }

            let state = StateDirectory::open(&path).unwrap();

            assert_eq!(mode(&path), before, "{name}");
            assert_eq!(mode(&path.join(LOCK)), 0o600);
            drop(state);
        }
    }

    #[test]
    fn only_directories_that_were_missing_are_recorded() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("a/b/s");
        let mut state = StateDirectory::open(&directory.path().join("state")).unwrap();
        state.record_directories(&socket).unwrap();
        fs::create_dir_all(directory.path().join("a/b")).unwrap();
        drop(state);

        let mut state = StateDirectory::open(&directory.path().join("state")).unwrap();
        // The next start finds them.
        state.record_directories(&socket).unwrap();

        let expected = [directory.path().join("a/b"), directory.path().join("a")];
        assert_eq!(state.directories().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_second_agent_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let first = StateDirectory::open(directory.path()).unwrap();

        let error = StateDirectory::open(directory.path()).unwrap_err();

        assert!(matches!(error, StateError::InUse { .. }), "{error}");
        drop(first);
        assert!(StateDirectory::open(directory.path()).is_ok());
    }

    #[test]
    fn removal_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        let mut state = StateDirectory::open(&path).unwrap();
        state.record_bridge("cni0", OFF).unwrap();
        for name in [MARKER, CLAIMS, QUEUE, SNAPSHOT] {
            fs::write(path.join(name), "{}").unwrap();
            fs::write(file::unfinished(&path.join(name)), "{").unwrap();
        }
        fs::write(path.join(CLAIMS_FRESH), "{").unwrap();

        state.remove().unwrap();

        assert!(!path.exists());
    }

    #[test]
    fn a_damaged_file_is_an_error_that_names_it() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(CHANGES), "{").unwrap();

        let error = StateDirectory::open(directory.path()).unwrap_err();

        assert!(error.to_string().contains("changes.json"), "{error}");
    }
}
