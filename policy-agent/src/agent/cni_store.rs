//! What the plugin's claims leave on disk: the claims themselves, for an agent that starts again while a pod does, and
//! the queue of deletions that the plugin could not tell.
//!
//! The claims are a file of our own, and not what the runtime caches of results: that is written after the whole chain
//! has succeeded, so it lacks the very pods that wait, its place differs between runtimes, and it does not say which
//! addresses of the object were out of date. The file is written by a thread of its own and without a sync: it serves
//! an agent that ends, and pods do not outlive the kernel. Claims of an earlier boot are void.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::cni_claims::{Attachment, Claim, Kept, MOST_CLAIMS, pod_id};

/// Name of the claims' file in the state directory.
pub(super) const CLAIMS: &str = "cni-claims.json";
/// The same while it is being written.
pub(super) const CLAIMS_FRESH: &str = "cni-claims.json.new";
/// Name of the queue in the state directory; the plugin writes it.
pub const QUEUE: &str = "cni-deletions";
/// More than so many claims, or lines of the queue, can have.
const MOST_BYTES: u64 = 4 << 20;
const MOST_LINES: usize = 256;
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The file of claims.
#[derive(Clone, Debug)]
pub(super) struct ClaimStore {
    path: PathBuf,
    boot: String,
    slot: Arc<Slot>,
}

/// What is to be written: one slot, so that it cannot grow. The thread starts with the first claim.
#[derive(Debug, Default)]
struct Slot {
    wanted: Mutex<Wanted>,
    signal: Condvar,
}

#[derive(Debug, Default)]
struct Wanted {
    content: Option<Vec<Kept>>,
    is_running: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Content {
    boot: String,
    claims: Vec<Written>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    #[serde(flatten)]
    attachment: Attachment,
    namespace: String,
    name: String,
    uid: Option<String>,
    addresses: Vec<std::net::IpAddr>,
    host_interfaces: Vec<String>,
    replaced: Option<Vec<std::net::IpAddr>>,
}

impl From<&Kept> for Written {
    fn from(kept: &Kept) -> Self {
        let Kept { claim, replaced } = kept;
        Self {
            attachment: claim.attachment.clone(),
            namespace: claim.pod.namespace.to_string(),
            name: claim.pod.name.to_string(),
            uid: claim.uid.map(|uid| uid.to_string()),
            addresses: claim.addresses.clone(),
            host_interfaces: claim
                .host_interfaces
                .iter()
                .map(ToString::to_string)
                .collect(),
            replaced: replaced.clone(),
        }
    }
}

impl Written {
    fn kept(self) -> Option<Kept> {
        let names = self.host_interfaces.iter().map(|name| name.parse().ok());
        Some(Kept {
            claim: Claim {
                attachment: self.attachment,
                pod: pod_id(&self.namespace, &self.name),
                uid: self.uid.and_then(|text| text.parse().ok()),
                addresses: self.addresses,
                host_interfaces: names.collect::<Option<_>>()?,
            },
            replaced: self.replaced,
        })
    }
}

impl ClaimStore {
    /// The file of a state directory.
    pub(super) fn new(state_directory: &Path) -> Self {
        Self {
            path: state_directory.join(CLAIMS),
            boot: fs::read_to_string(BOOT_ID)
                .unwrap_or_default()
                .trim()
                .to_owned(),
            slot: Arc::default(),
        }
    }

    /// What an earlier run of this boot left, but for what was deleted meanwhile. A file that cannot be understood is
    /// none: then pods that are starting stay closed until their objects list their addresses.
    pub(super) fn load(&self) -> Vec<Kept> {
        let mut text = Vec::new();
        let read =
            File::open(&self.path).and_then(|file| file.take(MOST_BYTES).read_to_end(&mut text));
        match read {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
            Err(error) => {
                warn!(path = %self.path.display(), %error, "cannot read the claims of an earlier run");
                return Vec::new();
            }
            Ok(_) => {}
        }
        match serde_json::from_slice::<Content>(&text) {
            Ok(content) if content.boot == self.boot => {
                let claims = content.claims.into_iter().take(MOST_CLAIMS);
                claims.filter_map(Written::kept).collect()
            }
            Ok(_) => Vec::new(),
            Err(error) => {
                warn!(path = %self.path.display(), %error, "cannot understand the claims of an earlier run");
                Vec::new()
            }
        }
    }

    /// Has these claims written, soon. Never waits.
    pub(super) fn save(&self, claims: Vec<Kept>) {
        let mut wanted = self.slot.lock();
        if !wanted.is_running {
            let store = self.clone();
            let started = Builder::new()
                .name("claims".to_owned())
                .spawn(move || store.run());
            if let Err(error) = started {
                warn!(%error, "cannot start the thread that writes claims");
                return;
            }
            wanted.is_running = true;
        }
        wanted.content = Some(claims);
        self.slot.signal.notify_one();
    }

    /// Writes what is wanted, for ever; the thread ends with the process, and a half-written file is not in place.
    fn run(&self) {
        loop {
            let waiting = self
                .slot
                .signal
                .wait_while(self.slot.lock(), |wanted| wanted.content.is_none());
            let mut wanted = waiting.unwrap_or_else(PoisonError::into_inner);
            let Some(claims) = wanted.content.take() else {
                continue;
            };
            drop(wanted);
            if let Err(error) = self.write(&claims) {
                warn!(path = %self.path.display(), %error, "cannot write the claims of starting pods");
            }
        }
    }

    fn write(&self, claims: &[Kept]) -> io::Result<()> {
        let content = Content {
            boot: self.boot.clone(),
            claims: claims.iter().map(Written::from).collect(),
        };
        let fresh = self.path.with_file_name(CLAIMS_FRESH);
        let mut file = File::options()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(&fresh)?;
        file.write_all(&serde_json::to_vec(&content)?)?;
        fs::rename(&fresh, &self.path)
    }
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes the deletions out of the queue that the plugin left. A line that cannot be understood is skipped: the kernel
/// tells of the interface that is gone.
pub(super) fn drain_queue(state_directory: &Path) -> io::Result<Vec<Attachment>> {
    let opened = File::options()
        .read(true)
        .write(true)
        .open(state_directory.join(QUEUE));
    let mut file = match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        opened => opened?,
    };
    // A plugin holds it for one line only; one that does not is no reason not to start.
    if file.try_lock().is_err() {
        return Ok(Vec::new());
    }
    let mut bytes = Vec::new();
    (&mut file).take(MOST_BYTES).read_to_end(&mut bytes)?;
    file.set_len(0)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines = text.lines().take(MOST_LINES);
    Ok(lines
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn kept(container: &str) -> Kept {
        Kept {
            claim: Claim {
                attachment: Attachment {
                    network: "cbr0".to_owned(),
                    container: container.to_owned(),
                    interface: "eth0".to_owned(),
                },
                pod: pod_id("shop", "web"),
                uid: "00000000-0000-4000-8000-000000000001".parse().ok(),
                addresses: vec![[10, 244, 1, 5].into()],
                host_interfaces: vec!["veth5".parse().unwrap()],
            },
            replaced: Some(vec![[10, 244, 1, 4].into()]),
        }
    }

    fn until_saved(store: &ClaimStore, expected: &[Kept]) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while store.load() != expected {
            assert!(Instant::now() < deadline, "never saved: {:?}", store.load());
            std::thread::yield_now();
        }
    }

    #[test]
    fn claims_of_this_boot_are_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let store = ClaimStore::new(folder.path());
        assert_eq!(store.load(), []);

        store.save(vec![kept("c1")]);
        store.save(vec![kept("c1"), kept("c2")]);
        until_saved(&store, &[kept("c1"), kept("c2")]);

        let later = ClaimStore {
            boot: "another".to_owned(),
            ..ClaimStore::new(folder.path())
        };
        assert_eq!(later.load(), []);
        fs::write(folder.path().join(CLAIMS), "{\"boot\":").unwrap();
        assert_eq!(store.load(), []);
    }

    #[test]
    fn the_queue_is_taken_once_whatever_is_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let gone = kept("c1").claim.attachment;
        let line = serde_json::to_string(&gone).unwrap();
        let text = format!("nonsense\n{line}\n{{\"network\":7}}\n\u{0}\n");
        assert_eq!(drain_queue(folder.path()).unwrap(), []);
        fs::write(folder.path().join(QUEUE), text).unwrap();

        assert_eq!(drain_queue(folder.path()).unwrap(), [gone]);
        assert_eq!(drain_queue(folder.path()).unwrap(), []);
    }
}
