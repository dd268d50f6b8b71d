//! What outlives the agent on disk: a lock against a second agent, and the bridge settings to restore.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use towpath_dataplane::link::BridgeNetfilter;

const LOCK: &str = "agent.lock";
const CHANGES: &str = "changes.json";

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
    /// Locked as long as it is open.
    _lock: File,
}

/// What we changed outside of our tables.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Changes {
    /// Settings of bridges from before, by name.
    bridges: BTreeMap<String, Switches>,
}

/// The netfilter switches of a bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Switches {
    nf_call_iptables: bool,
    nf_call_ip6tables: bool,
}

impl StateDirectory {
    /// Makes the directory if need be, and takes the lock.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let failed = |action| {
            move |source| StateError::File {
                action,
                path: path.to_owned(),
                source,
            }
        };
        if !path.exists() {
            fs::create_dir_all(path).map_err(failed("make"))?;
            fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(failed("protect"))?;
        }
        let lock = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(false)
            .open(path.join(LOCK))
            .map_err(failed("make the lock in"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StateError::InUse {
                    path: path.to_owned(),
                });
            }
            Err(TryLockError::Error(source)) => return Err(failed("lock")(source)),
        }
        let changes = read(&path.join(CHANGES))?;
        Ok(Self {
            path: path.to_owned(),
            changes,
            _lock: lock,
        })
    }

    /// The settings of bridges from before the agent changed them.
    pub fn bridges(&self) -> impl Iterator<Item = (&str, BridgeNetfilter)> {
        self.changes.bridges.iter().map(|(name, switches)| {
            let ipv4 = switches.nf_call_iptables;
            let ipv6 = switches.nf_call_ip6tables;
            (name.as_str(), BridgeNetfilter { ipv4, ipv6 })
        })
    }

    /// Remembers the settings of a bridge from before its first change; later ones are our own.
    /// Called before the change, so that a crash in between loses nothing.
    pub fn record_bridge(&mut self, name: &str, before: BridgeNetfilter) -> Result<(), StateError> {
        if self.changes.bridges.contains_key(name) {
            return Ok(());
        }
        let switches = Switches {
            nf_call_iptables: before.ipv4,
            nf_call_ip6tables: before.ipv6,
        };
        self.changes.bridges.insert(name.to_owned(), switches);
        self.write()
    }

    /// Removes everything; for the uninstall.
    pub fn remove(self) -> Result<(), StateError> {
        for name in [CHANGES, LOCK] {
            let path = self.path.join(name);
            match fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(StateError::File {
                        action: "remove",
                        path,
                        source,
                    });
                }
                _ => {}
            }
        }
        // Files of somebody else keep the directory.
        fs::remove_dir(&self.path).ok();
        Ok(())
    }

    /// Replaces the file as a whole, so that a crash leaves the old one or the new one.
    fn write(&self) -> Result<(), StateError> {
        let path = self.path.join(CHANGES);
        let fresh = self.path.join("changes.json.new");
        let text =
            serde_json::to_vec_pretty(&self.changes).map_err(|source| StateError::Content {
                path: path.clone(),
                source,
            })?;
        let written = File::create(&fresh).and_then(|mut file| {
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&fresh, &path)
        });
        written.map_err(|source| StateError::File {
            action: "write",
            path,
            source,
        })
    }
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

    const OFF: BridgeNetfilter = BridgeNetfilter {
        ipv4: false,
        ipv6: false,
    };

    #[test]
    fn the_first_recorded_value_survives_restarts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        let mut first = StateDirectory::open(&path).unwrap();
        first.record_bridge("cni0", OFF).unwrap();
        drop(first);

        let mut second = StateDirectory::open(&path).unwrap();
        second.record_bridge("cni0", BridgeNetfilter::ON).unwrap();

        assert_eq!(second.bridges().collect::<Vec<_>>(), [("cni0", OFF)]);
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
