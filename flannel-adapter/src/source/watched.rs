//! A folder that inotify watches, there or not there yet.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};

use super::SourceError;

/// Events that may wait. When there are more, something is told to be missed.
const QUEUE: usize = 1024;
/// How often a folder that is not there is looked for.
const RETRY: Duration = Duration::from_secs(5);

/// What happened in a folder.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Happened {
    /// Nothing.
    Nothing,
    /// These files may have come, changed or gone.
    Paths(Vec<PathBuf>),
    /// Anything may have happened.
    Lagged,
}

/// The watch of one folder.
#[derive(Debug)]
pub(super) struct WatchedFolder {
    path: PathBuf,
    watch: Option<(RecommendedWatcher, Receiver<notify::Result<Event>>)>,
}

impl WatchedFolder {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, watch: None }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Begins to watch, if the folder is there. To be called before it is read, so that nothing falls in between.
    pub(super) fn open(&mut self) -> Result<(), SourceError> {
        self.watch = None;
        if !self.path.is_dir() {
            return Ok(());
        }
        let failed = |source| SourceError::Watch {
            path: self.path.clone(),
            source,
        };
        let (sender, receiver) = sync_channel(QUEUE);
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            let is_read = matches!(&event, Ok(event) if matches!(event.kind, EventKind::Access(notify::event::AccessKind::Open(_) | notify::event::AccessKind::Read)));
            if !is_read {
                // Who then reads a full queue knows that there may have been more.
                drop(sender.try_send(event));
            }
        })
        .map_err(failed)?;
        watcher
            .watch(&self.path, RecursiveMode::NonRecursive)
            .map_err(failed)?;
        self.watch = Some((watcher, receiver));
        Ok(())
    }

    /// Waits for something to happen.
    pub(super) fn wait(&mut self, timeout: Duration) -> Happened {
        let Some((_, receiver)) = &self.watch else {
            // Nothing can tell of a folder that is not there.
            std::thread::sleep(timeout.min(RETRY));
            return if self.path.is_dir() {
                Happened::Lagged
            } else {
                Happened::Nothing
            };
        };
        let mut paths = Vec::new();
        let mut next = receiver.recv_timeout(timeout);
        let mut count = 0;
        loop {
            match next {
                Ok(Ok(event)) => {
                    count += 1;
                    if event.need_rescan() || self.concerns_folder(&event) || count >= QUEUE {
                        return Happened::Lagged;
                    }
                    paths.extend(event.paths);
                }
                Ok(Err(_)) | Err(RecvTimeoutError::Disconnected) => return Happened::Lagged,
                Err(RecvTimeoutError::Timeout) => break,
            }
            next = receiver.try_recv().map_err(|_| RecvTimeoutError::Timeout);
        }
        if paths.is_empty() {
            return Happened::Nothing;
        }
        paths.sort_unstable();
        paths.dedup();
        Happened::Paths(paths)
    }

    /// Whether the folder itself went away or was replaced.
    fn concerns_folder(&self, event: &Event) -> bool {
        matches!(
            event.kind,
            EventKind::Remove(_) | EventKind::Modify(notify::event::ModifyKind::Name(_))
        ) && event.paths.contains(&self.path)
    }
}
