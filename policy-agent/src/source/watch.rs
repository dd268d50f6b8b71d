//! Following a directory: events of the kernel in, batches out.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, CreateKind, ModifyKind, RemoveKind, RenameMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tracing::warn;

use super::debounce::{Change, Debounce, QUIET};
use super::directory::Identity;
use super::file::{FileSource, Step};
use super::{Batch, is_manifest};

/// Events that wait for our thread. With more, the whole directory is looked at.
const EVENTS: usize = 1_024;
/// Everything is looked at this often even without events: some file systems tell of nothing.
const HEAL: Duration = Duration::from_secs(30);
/// The same when events cannot be had at all.
const POLL: Duration = Duration::from_secs(1);
/// The same while the directory cannot be read.
const RETRY: Duration = Duration::from_millis(250);

enum Message {
    Event(notify::Result<Event>, Instant),
    Stop,
}

/// Ends the thread of a watch when dropped.
#[derive(Debug)]
pub struct WatchHandle {
    is_stopped: Arc<AtomicBool>,
    sender: SyncSender<Message>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Event(..) => "Event",
            Self::Stop => "Stop",
        })
    }
}

impl Drop for WatchHandle {
    fn drop(&mut self) {
        self.is_stopped.store(true, Ordering::Release);
        // A full queue wakes the thread as well.
        let _ = self.sender.try_send(Message::Stop);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported where it happened.
            let _ = thread.join();
        }
    }
}

/// Starts the thread.
pub(super) fn start(
    source: FileSource,
    emit: impl FnMut(Batch) + Send + 'static,
) -> io::Result<WatchHandle> {
    let (sender, receiver) = sync_channel(EVENTS);
    let is_stopped = Arc::new(AtomicBool::new(false));
    let has_overflown = Arc::new(AtomicBool::new(false));
    let watcher = open_watcher(sender.clone(), has_overflown.clone());
    let follower = Follower {
        source,
        emit,
        receiver,
        is_stopped: is_stopped.clone(),
        has_overflown,
        watches: Watches {
            watcher,
            watched: BTreeMap::new(),
        },
        debounce: Debounce::default(),
    };
    let thread = std::thread::Builder::new()
        .name("file-source".to_owned())
        .spawn(move || follower.run())?;
    Ok(WatchHandle {
        is_stopped,
        sender,
        thread: Some(thread),
    })
}

fn open_watcher(
    sender: SyncSender<Message>,
    has_overflown: Arc<AtomicBool>,
) -> Option<RecommendedWatcher> {
    let handler = move |event: notify::Result<Event>| {
        if let Ok(event) = &event
            && matches!(event.kind, EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write))
        {
            return;
        }
        if let Err(TrySendError::Full(_)) = sender.try_send(Message::Event(event, Instant::now())) {
            has_overflown.store(true, Ordering::Release);
        }
    };
    match notify::recommended_watcher(handler) {
        Ok(watcher) => Some(watcher),
        Err(error) => {
            warn!(%error, "file events cannot be had; looking at the directory every second");
            None
        }
    }
}

/// The directories that are watched. Each is watched by itself: a recursive watch would miss what is written
/// between the creation of a directory and the watch on it.
struct Watches {
    watcher: Option<RecommendedWatcher>,
    watched: BTreeMap<PathBuf, Identity>,
}

impl Watches {
    /// Called before a directory is listed.
    fn add(&mut self, path: &Path) {
        let Some(watcher) = &mut self.watcher else {
            return;
        };
        let Ok(metadata) = std::fs::metadata(path) else {
            return;
        };
        let identity = Identity::of(&metadata);
        if self.watched.get(path) == Some(&identity) {
            return;
        }
        if self.watched.remove(path).is_some() {
            // The old directory of this name is gone, and its watch with it.
            let _ = watcher.unwatch(path);
        }
        match watcher.watch(path, RecursiveMode::NonRecursive) {
            Ok(()) => {
                self.watched.insert(path.to_path_buf(), identity);
            }
            Err(error) => {
                warn!(path = %path.display(), %error, "a directory cannot be watched; looking at it every second");
                self.watcher = None;
            }
        }
    }

    /// Forgets a directory that was removed, so that a new one of its name is watched anew even if it gets the
    /// same inode.
    fn forget(&mut self, path: &Path) {
        if self.watched.remove(path).is_some()
            && let Some(watcher) = &mut self.watcher
        {
            let _ = watcher.unwatch(path);
        }
    }
}

/// The thread's state.
struct Follower<E> {
    source: FileSource,
    emit: E,
    receiver: Receiver<Message>,
    is_stopped: Arc<AtomicBool>,
    has_overflown: Arc<AtomicBool>,
    watches: Watches,
    debounce: Debounce,
}

impl<E: FnMut(Batch)> Follower<E> {
    fn run(mut self) {
        let started = Instant::now();
        let step = self.scan(&BTreeSet::new());
        (self.emit)(self.source.batch(step.updates, started));
        while !self.is_stopped.load(Ordering::Acquire) {
            if !self.receive() {
                return;
            }
            if let Some(work) = self.debounce.take(Instant::now()) {
                let step = match &work.paths {
                    Some(paths) => self.source.scan_paths(paths),
                    None => self.scan(&work.unfinished),
                };
                self.tell(step, work.received);
            }
        }
    }

    /// Looks at the whole directory. Files that are not there any more are looked at again after a moment: they may
    /// be on their way to another name, or their directory may be about to vanish.
    fn scan(&mut self, unfinished: &BTreeSet<PathBuf>) -> Step {
        let watches = &mut self.watches;
        let (step, vanished) = self.source.scan(unfinished, &mut |path| watches.add(path));
        let now = Instant::now();
        for name in vanished {
            self.debounce
                .add(PathBuf::from(&*name), Change::Removed, now);
        }
        step
    }

    fn tell(&mut self, step: Step, received: Instant) {
        if step.is_news || !step.updates.is_empty() {
            (self.emit)(self.source.batch(step.updates, received));
        }
    }

    /// Waits for events until something is due. False when there is nobody left to send any.
    fn receive(&mut self) -> bool {
        let now = Instant::now();
        let idle = if !self.source.state().is_in_sync() {
            RETRY
        } else if self.watches.watcher.is_none() {
            POLL
        } else {
            HEAL
        };
        let due = self.debounce.due();
        let wait = due.map_or(idle, |due| due.saturating_duration_since(now).min(idle));
        match self.receiver.recv_timeout(wait) {
            Ok(message) => self.take(message),
            Err(RecvTimeoutError::Timeout) if due.is_none() => {
                self.debounce.rescan(Instant::now(), Duration::ZERO);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return false,
        }
        // What is there already belongs to the same step.
        while let Ok(message) = self.receiver.try_recv() {
            self.take(message);
        }
        if self.has_overflown.swap(false, Ordering::AcqRel) {
            self.miss_events(Instant::now());
        }
        true
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Stop => {}
            Message::Event(Ok(event), received) => self.take_event(event, received),
            Message::Event(Err(error), received) => {
                warn!(%error, "file events failed; looking at the whole directory");
                self.miss_events(received);
            }
        }
    }

    /// Some events are lost: anything may have happened.
    fn miss_events(&mut self, now: Instant) {
        self.source.forget_writers();
        self.debounce.rescan(now, Duration::ZERO);
    }

    fn take_event(&mut self, event: Event, now: Instant) {
        if event.need_rescan() {
            self.miss_events(now);
        }
        for (path, change) in classify(event) {
            if path == self.source.root() {
                if change == Change::Removed {
                    self.watches.forget(&path);
                }
                self.debounce.rescan(now, QUIET);
            } else if is_manifest(&path) && !self.watches.watched.contains_key(&path) {
                match change {
                    Change::Written => self.source.note_writer(&path),
                    Change::Complete | Change::Removed => self.source.forget_writer(&path),
                    Change::Modified => {}
                }
                self.debounce.add(path, change, now);
            } else if is_directory_like(&path) {
                if change == Change::Removed {
                    self.watches.forget(&path);
                }
                let delay = if change == Change::Complete {
                    Duration::ZERO
                } else {
                    QUIET
                };
                self.debounce.rescan(now, delay);
            }
        }
    }
}

/// Whether a path that is no manifest may be a directory that holds some: not what editors leave, but the link by
/// which a mounted `ConfigMap` changes all its files at once.
fn is_directory_like(path: &Path) -> bool {
    let name = path
        .file_name()
        .map_or(&b""[..], |name| name.as_encoded_bytes());
    name == b"..data" || !matches!(name, [b'.' | b'#', ..] | [.., b'~'])
}

/// What an event says about each of its paths.
fn classify(event: Event) -> Vec<(PathBuf, Change)> {
    let change = match event.kind {
        EventKind::Access(_)
        | EventKind::Create(CreateKind::Folder)
        | EventKind::Modify(ModifyKind::Name(RenameMode::To)) => Change::Complete,
        EventKind::Modify(ModifyKind::Name(RenameMode::Both)) => return classify_move(event.paths),
        EventKind::Modify(ModifyKind::Name(RenameMode::From))
        | EventKind::Remove(
            RemoveKind::File | RemoveKind::Folder | RemoveKind::Any | RemoveKind::Other,
        ) => Change::Removed,
        EventKind::Modify(ModifyKind::Data(_)) => Change::Written,
        EventKind::Create(_) | EventKind::Modify(_) | EventKind::Any | EventKind::Other => {
            Change::Modified
        }
    };
    event.paths.into_iter().map(|path| (path, change)).collect()
}

/// A move of which both ends are known. The old name is gone for good if the new one is read as well; else this may
/// be an editor that puts its backup aside.
fn classify_move(paths: Vec<PathBuf>) -> Vec<(PathBuf, Change)> {
    let is_read = paths
        .last()
        .is_some_and(|path| is_manifest(path) || path.is_dir());
    let from = if is_read {
        Change::Complete
    } else {
        Change::Removed
    };
    let last = paths.len().saturating_sub(1);
    let classify = |(index, path)| {
        (
            path,
            if index == last {
                Change::Complete
            } else {
                from
            },
        )
    };
    paths.into_iter().enumerate().map(classify).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: EventKind, paths: &[&str]) -> Event {
        paths
            .iter()
            .fold(Event::new(kind), |event, path| event.add_path(path.into()))
    }

    fn name(mode: RenameMode) -> EventKind {
        EventKind::Modify(ModifyKind::Name(mode))
    }

    fn changes(event: Event) -> Vec<(String, Change)> {
        let show = |(path, change): (PathBuf, Change)| (path.display().to_string(), change);
        classify(event).into_iter().map(show).collect()
    }

    #[test]
    fn a_move_between_two_manifests_is_complete_at_both_ends() {
        let event = event(name(RenameMode::Both), &["d/a.yaml", "d/b.yaml"]);

        let expected = [
            ("d/a.yaml".to_owned(), Change::Complete),
            ("d/b.yaml".to_owned(), Change::Complete),
        ];
        assert_eq!(changes(event), expected);
    }

    #[test]
    fn an_editor_that_puts_a_backup_aside_has_not_removed_the_file_yet() {
        for backup in ["d/a.yaml~", "d/.a.yaml.bak"] {
            let event = event(name(RenameMode::Both), &["d/a.yaml", backup]);
            assert_eq!(changes(event)[0], ("d/a.yaml".to_owned(), Change::Removed));
        }
    }

    #[test]
    fn an_editor_that_saves_by_moving_and_writing_causes_one_look() {
        let start = Instant::now();
        let mut debounce = Debounce::default();
        let saved = [
            event(name(RenameMode::From), &["a.yaml"]),
            event(name(RenameMode::Both), &["a.yaml", "a.yaml~"]),
            event(EventKind::Create(CreateKind::File), &["a.yaml"]),
            event(EventKind::Modify(ModifyKind::Any), &["a.yaml"]),
            event(
                EventKind::Access(AccessKind::Close(AccessMode::Write)),
                &["a.yaml"],
            ),
        ];
        for (step, event) in (0..).zip(saved) {
            let now = start + Duration::from_millis(10) * step;
            assert_eq!(debounce.take(now), None);
            for (path, change) in classify(event)
                .into_iter()
                .filter(|(path, _)| is_manifest(path))
            {
                debounce.add(path, change, now);
            }
        }

        let work = debounce.take(start + Duration::from_millis(40)).unwrap();

        assert_eq!(work.paths, Some([PathBuf::from("a.yaml")].into()));
        assert_eq!(work.received, start);
    }

    #[test]
    fn only_what_may_hold_manifests_counts_as_a_directory() {
        for name in ["d/sub", "d/..data", "d/4913"] {
            assert!(is_directory_like(Path::new(name)), "{name}");
        }
        for name in ["d/.git", "d/..data_tmp", "d/a~", "d/#a#"] {
            assert!(!is_directory_like(Path::new(name)), "{name}");
        }
    }
}
