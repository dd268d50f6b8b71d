//! A directory of manifests as a source.
//!
//! [`FileSource::load`] reads it once, for the command line; [`FileSource::watch`] follows it on a thread, for the
//! agent. Per file only what is needed to recognise a change is kept; texts and objects are not.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use towpath_api::Place;
use towpath_core::model::{Cluster, ObjectKey, Update};

use super::directory::{self, Identity, Listing, Obstacle, Signature};
use super::finding::Finding;
use super::ledger::{FileChange, Ledger, OBJECTS};
use super::namespaces::KeptNamespaces;
use super::read::{Content, FILE_BYTES, ReadFile, Seen, read_some};
use super::watch::{self, WatchHandle};
use super::{Batch, SourceState, Tally, Versions, is_manifest};

/// Findings in one batch.
const FINDINGS: usize = 1_000;

/// Files that are read before the first of them is entered.
const FILES_AT_ONCE: usize = 256;

/// What a source reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Errors and warnings.
    Problems,
    /// Notes as well.
    Everything,
}

/// A directory of `*.yaml`, `*.yml` and `*.json` files, with its subdirectories.
#[derive(Debug)]
pub struct FileSource {
    root: PathBuf,
    ledger: Ledger,
    namespaces: KeptNamespaces,
    files: BTreeMap<Arc<str>, Known>,
    /// The directories when they were last read, the root included.
    directories: BTreeMap<PathBuf, Identity>,
    /// The root could not be read since then.
    is_lost: bool,
    state: SourceState,
    /// What was wrong with the directory when it was last walked.
    trouble: Option<String>,
    /// Files that are there and cannot be read, with the reason.
    unreadable: BTreeMap<Arc<str>, Obstacle>,
    /// Files that somebody has open for writing.
    being_written: BTreeSet<Arc<str>>,
    /// Files that were written and, as far as events tell, not closed since; where the kernel cannot be asked.
    writers: BTreeSet<Arc<str>>,
    was_in_sync: bool,
    /// Findings about the directory itself.
    findings: Vec<Finding>,
}

/// How a file is recognised as unchanged.
#[derive(Clone, Copy, Debug)]
struct Known {
    /// `None`: to be read again even if it looks the same.
    signature: Option<Signature>,
    /// `None`: nothing of it is known.
    hash: Option<u64>,
}

/// What one step changed.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) updates: Vec<Update>,
    /// Whether findings or state may have changed as well.
    pub(super) is_news: bool,
}

/// What a directory says, all at once.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The objects in force.
    pub cluster: Cluster,
    /// Where each of them stands.
    pub places: BTreeMap<ObjectKey, Place>,
    /// What is wrong, sorted by place.
    pub findings: Vec<Finding>,
    /// Whether everything could be read.
    pub state: SourceState,
}

/// Reads a directory, or a single file, once.
pub fn load(root: &Path, detail: Detail) -> Loaded {
    let mut source = FileSource::open(root, detail);
    let batch = if root.is_file() {
        source.load_file()
    } else {
        source.load()
    };
    let Batch {
        updates,
        findings,
        state,
        ..
    } = batch;
    let mut cluster = Cluster::default();
    for update in updates {
        cluster.apply(update);
    }
    Loaded {
        cluster,
        places: source.places(),
        findings,
        state,
    }
}

impl FileSource {
    /// A source of this directory. Nothing is read yet; the directory need not be there.
    pub fn open(root: impl Into<PathBuf>, detail: Detail) -> Self {
        let reason = "the directory was not read yet".to_owned();
        Self {
            root: root.into(),
            ledger: Ledger::new(detail == Detail::Everything),
            namespaces: KeptNamespaces::default(),
            files: BTreeMap::new(),
            directories: BTreeMap::new(),
            is_lost: false,
            state: SourceState::NotInSync { reason },
            trouble: None,
            unreadable: BTreeMap::new(),
            being_written: BTreeSet::new(),
            writers: BTreeSet::new(),
            was_in_sync: false,
            findings: Vec::new(),
        }
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Looks at everything that changed since the last call; the first call reads everything.
    pub fn load(&mut self) -> Batch {
        let received = Instant::now();
        let (mut step, vanished) = self.scan(&BTreeSet::new(), &mut |_| {});
        if !vanished.is_empty() {
            let gone = self.take_in(
                &vanished
                    .into_iter()
                    .map(|name| (name, None))
                    .collect::<Vec<_>>(),
            );
            step.updates.extend(gone.updates);
        }
        self.batch(step.updates, received)
    }

    /// Reads the file that stands where the directory should.
    fn load_file(&mut self) -> Batch {
        let received = Instant::now();
        let name = Arc::from(self.root.to_string_lossy());
        let step = self.take_in(&[(name, None)]);
        self.batch(step.updates, received)
    }

    /// Follows the directory on a thread of its own. `emit` gets the whole state first (what [`Self::load`] has
    /// handed out is not repeated) and then every change; it may block. Dropping the handle ends the thread.
    pub fn watch(self, emit: impl FnMut(Batch) + Send + 'static) -> io::Result<WatchHandle> {
        watch::start(self, emit)
    }

    /// Where each object in force stands.
    pub fn places(&self) -> BTreeMap<ObjectKey, Place> {
        self.ledger.places()
    }

    pub(super) fn state(&self) -> &SourceState {
        &self.state
    }

    /// The present state as a batch around the updates of a step. Every step is to pass here, in order.
    pub(super) fn batch(&mut self, updates: Vec<Update>, received: Instant) -> Batch {
        let (mut findings, mut untold) = self.ledger.findings();
        findings.extend(self.findings.iter().cloned());
        findings.sort_by(|a, b| a.sort_key().cmp(&b.sort_key()));
        // A path may be told by the walk and by the reading of it.
        findings.dedup();
        untold += findings.len().saturating_sub(FINDINGS);
        findings.truncate(FINDINGS);
        if untold > 0 {
            let name = Arc::from(self.root.to_string_lossy());
            let message = format!("and {untold} more findings");
            findings.push(Finding::of_file(
                &name,
                message,
                "correct those above first",
            ));
        }
        Batch {
            updates: self.namespaces.pass(updates),
            findings,
            state: self.state.clone(),
            received,
            objects: self.ledger.len() + self.namespaces.kept(),
            files: self.files.len(),
            tally: Tally::default(),
            versions: Versions::default(),
        }
    }

    /// Looks at the whole directory, but not at `unfinished` files. Beside what changed it tells which files are
    /// not there any more; they stay in force until [`Self::scan_paths`] finds them gone too.
    pub(super) fn scan(
        &mut self,
        unfinished: &BTreeSet<PathBuf>,
        on_directory: &mut dyn FnMut(&Path),
    ) -> (Step, Vec<Arc<str>>) {
        let mut listing = match directory::walk(&self.root, on_directory) {
            Ok(listing) => listing,
            Err(error) => {
                self.is_lost = true;
                return (
                    self.lose(format!(
                        "cannot read {}: {error}",
                        Place::of_path(&self.root)
                    )),
                    Vec::new(),
                );
            }
        };
        // What is mounted there may be gone, or the directory was made anew. Its emptiness says nothing about the
        // objects.
        let is_another =
            self.is_lost || listing.directories.get(&self.root) != self.directories.get(&self.root);
        if is_another && listing.files.is_empty() && !self.files.is_empty() {
            let reason = format!(
                "{} is another directory than before, and empty; put the manifests there, or restart",
                Place::of_path(&self.root)
            );
            return (self.lose(reason), Vec::new());
        }
        self.is_lost = false;
        self.find_unmounted(&mut listing);
        self.directories = std::mem::take(&mut listing.directories);
        let mut to_read = Vec::new();
        for (name, signature) in &listing.files {
            let known = self.files.get(name);
            let is_same = known.is_some_and(|known| known.signature == Some(*signature));
            if !is_same && !unfinished.contains(Path::new(&**name)) {
                to_read.push((name.clone(), known.and_then(|known| known.hash)));
            }
        }
        let vanished = self.vanished(&listing, unfinished);
        self.look_at(&listing);
        (self.take_in(&to_read), vanished)
    }

    /// Finds directories in whose place an empty one of another file system stands: what was mounted there is away.
    /// They count as unreadable, and as what they were, until something stands in them again.
    fn find_unmounted(&self, listing: &mut Listing) {
        for (path, identity) in &mut listing.directories {
            let holds = |name: &Arc<str>| Path::new(&**name).starts_with(path);
            if let Some(before) = self.directories.get(path)
                && !before.shares_device(identity)
                && !listing.files.keys().any(holds)
                && self.files.keys().any(holds)
            {
                let obstacle = Obstacle::new(
                    "another file system stands here than before, and it is empty",
                    "mount the old one again, or restart",
                );
                listing.unreadable.push((path.clone(), obstacle));
                *identity = *before;
            }
        }
    }

    /// Files that a walk did not find although it should have.
    fn vanished(&self, listing: &Listing, unfinished: &BTreeSet<PathBuf>) -> Vec<Arc<str>> {
        if listing.is_too_large {
            return Vec::new();
        }
        let is_below = |name: &Path| {
            listing
                .unreadable
                .iter()
                .any(|(path, _)| name.starts_with(path))
        };
        let is_vanished = |name: &&Arc<str>| {
            let path = Path::new(&***name);
            !listing.files.contains_key(*name) && !unfinished.contains(path) && !is_below(path)
        };
        self.files.keys().filter(is_vanished).cloned().collect()
    }

    /// Looks at some files only.
    pub(super) fn scan_paths(&mut self, paths: &BTreeSet<PathBuf>) -> Step {
        // The directory itself may be gone, and its files with it.
        if std::fs::read_dir(&self.root).is_err() {
            return self.scan(paths, &mut |_| {}).0;
        }
        let names = paths
            .iter()
            .filter(|path| is_manifest(path))
            .filter_map(|path| path.to_str());
        let to_read: Vec<_> = names
            .map(|name| {
                let name: Arc<str> = name.into();
                let hash = self.files.get(&name).and_then(|known| known.hash);
                (name, hash)
            })
            .collect();
        self.take_in(&to_read)
    }

    /// An event told that bytes of the file changed.
    pub(super) fn note_writer(&mut self, path: &Path) {
        if let Some(name) = path.to_str()
            && self.writers.len() < directory::FILES
        {
            self.writers.insert(name.into());
        }
    }

    /// An event told that the file was closed after writing, moved or removed.
    pub(super) fn forget_writer(&mut self, path: &Path) {
        if let Some(name) = path.to_str() {
            self.writers.remove(name);
        }
    }

    /// Events were lost, and maybe those that tell of closed files.
    pub(super) fn forget_writers(&mut self) {
        self.writers.clear();
    }

    /// Keeps everything and is not in sync.
    fn lose(&mut self, reason: String) -> Step {
        self.trouble = Some(reason);
        Step {
            updates: Vec::new(),
            is_news: self.judge(),
        }
    }

    /// Sets the state; true if it is another than before.
    fn judge(&mut self) -> bool {
        let unread = || {
            let (name, obstacle) = self.unreadable.first_key_value()?;
            let name = Place::of_path(Path::new(&**name));
            Some(format!("cannot read {name}: {obstacle}"))
        };
        let crowded = || {
            (self.ledger.refused() > 0).then(|| format!("there are more than {OBJECTS} objects"))
        };
        // What a file held before stays in force while it is written; of one that was never read, nothing does.
        let awaited = || {
            let name = self.being_written.first()?;
            let name = Place::of_path(Path::new(&**name));
            (!self.was_in_sync)
                .then(|| format!("{name} is open for writing; it is read when it is closed"))
        };
        let reason = self.trouble.clone().or_else(unread).or_else(crowded);
        let state = match reason.or_else(awaited) {
            Some(reason) => SourceState::NotInSync { reason },
            None => SourceState::InSync,
        };
        self.was_in_sync |= state == SourceState::InSync;
        let is_news = state != self.state;
        self.state = state;
        is_news
    }

    /// Reads files and enters what they say, until nothing has to be read again.
    fn take_in(&mut self, to_read: &[(Arc<str>, Option<u64>)]) -> Step {
        let mut step = Step {
            updates: Vec::new(),
            is_news: false,
        };
        // Some files at a time: what was read of them lives until it is entered.
        for files in to_read.chunks(FILES_AT_ONCE) {
            self.take_in_some(files.to_vec(), &mut step);
        }
        step.is_news |= self.judge();
        if to_read.len() > FILES_AT_ONCE {
            keep_last(&mut step.updates);
        }
        step
    }

    fn take_in_some(&mut self, mut to_read: Vec<(Arc<str>, Option<u64>)>, step: &mut Step) {
        let mut updates = BTreeMap::new();
        // Every round reads files that the one before did not: a file comes into force once.
        for _ in 0..8 {
            let mut reread = BTreeSet::new();
            let mut rest = &to_read[..];
            while !rest.is_empty() {
                let files = read_some(rest);
                rest = &rest[files.len()..];
                let changes: Vec<_> = files
                    .into_iter()
                    .filter_map(|file| self.recognise(file))
                    .collect();
                step.is_news |= !changes.is_empty();
                let applied = self.ledger.apply(changes);
                if updates.is_empty() {
                    updates = applied.updates;
                } else {
                    updates.extend(applied.updates);
                }
                reread.extend(applied.reread);
            }
            to_read = reread.into_iter().map(|name| (name, None)).collect();
            if to_read.is_empty() {
                break;
            }
        }
        // What could not be settled (a file that changes all the time) is looked at again with the next scan.
        for (name, _) in to_read {
            self.files.insert(
                name,
                Known {
                    signature: None,
                    hash: None,
                },
            );
        }
        step.updates.extend(updates.into_values());
    }

    /// What a read file means for the ledger; `None` when it says what it said before.
    fn recognise(&mut self, file: ReadFile) -> Option<(Arc<str>, FileChange)> {
        let ReadFile {
            name,
            mut content,
            is_leased,
        } = file;
        if !is_leased && self.writers.contains(&name) && !matches!(content, Content::Gone) {
            content = Content::BeingWritten;
        }
        self.unreadable.remove(&name);
        self.being_written.remove(&name);
        let (known, change) = match content {
            Content::Documents(Seen { signature, hash }, documents) => (
                Known {
                    signature,
                    hash: Some(hash),
                },
                documents.map(FileChange::Read),
            ),
            Content::Empty(Seen { signature, hash }) => {
                let before = self.files.get(&name).and_then(|known| known.hash);
                let known = Known {
                    signature,
                    hash: Some(hash),
                };
                (known, (before != Some(hash)).then_some(FileChange::Empty))
            }
            Content::Gone => {
                self.files.remove(&name)?;
                return Some((name, FileChange::Gone));
            }
            Content::TooLarge(signature) => {
                let reason = format!("it has more than {FILE_BYTES} bytes");
                let obstacle = Obstacle::new(reason, "split it over several files");
                let finding = barred(&name, &obstacle);
                self.unreadable.insert(name.clone(), obstacle);
                let known = Known {
                    signature: Some(signature),
                    hash: None,
                };
                (known, Some(FileChange::Unreadable(finding)))
            }
            Content::BeingWritten => {
                let message =
                    "the file is open for writing; what it held stays in force".to_owned();
                let finding = Finding::of_file(&name, message, "close it: it is read then");
                self.being_written.insert(name.clone());
                let known = Known {
                    signature: None,
                    hash: None,
                };
                (known, Some(FileChange::Unreadable(finding)))
            }
            Content::Unreadable(obstacle) => {
                let finding = barred(&name, &obstacle);
                self.unreadable.insert(name.clone(), obstacle);
                (
                    Known {
                        signature: None,
                        hash: None,
                    },
                    Some(FileChange::Unreadable(finding)),
                )
            }
        };
        self.files.insert(name.clone(), known);
        change.map(|change| (name, change))
    }

    /// Notes what a walk says about the directory itself.
    fn look_at(&mut self, listing: &Listing) {
        let unnamed = |path: &PathBuf| {
            let message = "the name of the file is not UTF-8".to_owned();
            Finding::of_file(&Arc::from(path.to_string_lossy()), message, "rename it")
        };
        let unreadable =
            |(path, obstacle): &(PathBuf, _)| barred(&Arc::from(path.to_string_lossy()), obstacle);
        let unnamed = listing.unnamed.iter().map(unnamed);
        self.findings = unnamed
            .chain(listing.unreadable.iter().map(unreadable))
            .take(FINDINGS)
            .collect();
        self.trouble = if let Some((path, obstacle)) = listing.unreadable.first() {
            Some(format!("cannot read {}: {obstacle}", Place::of_path(path)))
        } else if listing.is_too_large {
            Some(format!(
                "there are more than {} manifest files",
                directory::FILES
            ))
        } else {
            None
        };
    }
}

/// What to say of a path that cannot be looked at.
fn barred(name: &Arc<str>, obstacle: &Obstacle) -> Finding {
    let Obstacle { reason, advice } = obstacle;
    Finding::of_file(name, format!("it cannot be read: {reason}"), advice)
}

/// Of several updates of one object only the last counts: with many files an object may leave one of them before it
/// is found in another.
fn keep_last(updates: &mut Vec<Update>) {
    if !updates
        .iter()
        .any(|update| matches!(update, Update::Remove(_)))
    {
        return;
    }
    let last: BTreeMap<ObjectKey, Update> = std::mem::take(updates)
        .into_iter()
        .map(|update| (key_of(&update), update))
        .collect();
    updates.extend(last.into_values());
}

fn key_of(update: &Update) -> ObjectKey {
    match update {
        Update::Upsert(object) => object.key(),
        Update::Remove(key) => key.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_leases_events_tell_that_a_file_is_being_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.yaml");
        let name: Arc<str> = path.to_str().unwrap().into();
        let mut source = FileSource::open(directory.path(), Detail::Problems);
        let change_of = |source: &mut FileSource| {
            let file = ReadFile {
                name: name.clone(),
                content: Content::Documents(
                    Seen {
                        signature: None,
                        hash: 1,
                    },
                    Some(Vec::new()),
                ),
                is_leased: false,
            };
            source.recognise(file).unwrap().1
        };

        source.note_writer(&path);
        assert!(matches!(change_of(&mut source), FileChange::Unreadable(_)));
        source.forget_writer(&path);
        assert!(matches!(change_of(&mut source), FileChange::Read(_)));
    }
}
