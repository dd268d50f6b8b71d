//! Which paths to look at, and when: events are merged by path until a change is complete.
//!
//! A file that was closed after writing, or moved into place, is complete at once. A file that is only being
//! modified is looked at when it has been quiet for a moment, and read if nobody has it open for writing. A removal waits as long, since many programs save by
//! removing and creating, and since files also vanish one by one when their directory does.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long a path must be quiet.
pub(super) const QUIET: Duration = Duration::from_millis(50);
/// A path that never is quiet is looked at after this time.
const PATIENCE: Duration = Duration::from_secs(1);
/// With more paths than this the whole directory is looked at instead.
const PATHS: usize = 4_096;

/// What happened at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// A new content is complete.
    Complete,
    /// Something about it changed.
    Modified,
    /// Bytes of it changed, and whoever wrote them has not closed it yet.
    Written,
    /// It went away.
    Removed,
}

#[derive(Clone, Copy, Debug)]
struct Wait {
    first: Instant,
    due: Instant,
}

/// Paths that wait to be looked at.
#[derive(Debug, Default)]
pub(super) struct Debounce {
    paths: BTreeMap<PathBuf, Wait>,
    rescan: Option<Wait>,
}

/// What to look at now.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Work {
    /// These files, or with `None` the whole directory.
    pub(super) paths: Option<BTreeSet<PathBuf>>,
    /// Files that are not to be looked at yet.
    pub(super) unfinished: BTreeSet<PathBuf>,
    /// When the first event behind this work was received.
    pub(super) received: Instant,
}

impl Debounce {
    /// Notes a change of a manifest file.
    pub(super) fn add(&mut self, path: PathBuf, change: Change, now: Instant) {
        if self.paths.len() >= PATHS && !self.paths.contains_key(&path) {
            self.paths.clear();
            self.rescan(now, QUIET);
            return;
        }
        let wait = self.paths.entry(path).or_insert(Wait {
            first: now,
            due: now,
        });
        wait.due = match change {
            Change::Complete => now,
            Change::Modified | Change::Written | Change::Removed => {
                (now + QUIET).min(wait.first + PATIENCE)
            }
        };
    }

    /// Notes that the whole directory is to be looked at after `delay`.
    pub(super) fn rescan(&mut self, now: Instant, delay: Duration) {
        let due = now + delay;
        let wait = self.rescan.get_or_insert(Wait { first: now, due });
        wait.due = wait.due.min(due);
    }

    /// When there is something to do next.
    pub(super) fn due(&self) -> Option<Instant> {
        self.paths
            .values()
            .chain(&self.rescan)
            .map(|wait| wait.due)
            .min()
    }

    /// Takes what is due. What waits beside it must not be looked at yet: it is still being written, or seems to be
    /// removed.
    pub(super) fn take(&mut self, now: Instant) -> Option<Work> {
        if self.due()? > now {
            return None;
        }
        let is_rescan = self.rescan.is_some_and(|wait| wait.due <= now);
        let taken: Vec<_> = self
            .paths
            .extract_if(.., |_, wait| wait.due <= now)
            .collect();
        let rescan = if is_rescan { self.rescan.take() } else { None };
        let received = taken
            .iter()
            .map(|(_, wait)| wait.first)
            .chain(rescan.map(|wait| wait.first))
            .min();
        let paths = (!is_rescan).then(|| taken.into_iter().map(|(path, _)| path).collect());
        let unfinished = self.paths.keys().cloned().collect();
        Some(Work {
            paths,
            unfinished,
            received: received.unwrap_or(now),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn paths(names: &[&str]) -> BTreeSet<PathBuf> {
        names.iter().map(PathBuf::from).collect()
    }

    #[test]
    fn a_complete_file_is_due_at_once() {
        let start = Instant::now();
        let mut debounce = Debounce::default();
        debounce.add("a".into(), Change::Modified, start);
        debounce.add("a".into(), Change::Complete, start + 3 * MS);

        let work = debounce.take(start + 3 * MS).unwrap();

        let expected = Work {
            paths: Some(paths(&["a"])),
            unfinished: paths(&[]),
            received: start,
        };
        assert_eq!(work, expected);
        assert_eq!(debounce.due(), None);
    }

    #[test]
    fn a_file_that_is_written_waits_for_quiet() {
        let start = Instant::now();
        let mut debounce = Debounce::default();
        for step in 0..10 {
            debounce.add("a".into(), Change::Modified, start + step * 20 * MS);
        }

        assert_eq!(debounce.take(start + 200 * MS), None);
        assert_eq!(debounce.due(), Some(start + 180 * MS + QUIET));
        assert_eq!(debounce.take(start + 230 * MS).unwrap().received, start);
    }

    #[test]
    fn patience_ends() {
        let start = Instant::now();
        let mut debounce = Debounce::default();
        for step in 0..100 {
            debounce.add("a".into(), Change::Modified, start + step * 20 * MS);
        }

        assert_eq!(debounce.due(), Some(start + PATIENCE));
    }

    #[test]
    fn a_removal_waits_while_other_files_come() {
        let start = Instant::now();
        let mut debounce = Debounce::default();
        debounce.add("old".into(), Change::Removed, start);
        debounce.add("half".into(), Change::Modified, start);
        debounce.add("new".into(), Change::Complete, start + MS);

        let work = debounce.take(start + MS).unwrap();

        assert_eq!(work.paths, Some(paths(&["new"])));
        assert_eq!(work.unfinished, paths(&["half", "old"]));
        assert_eq!(
            debounce.take(start + QUIET).unwrap().paths,
            Some(paths(&["half", "old"]))
        );
    }

    #[test]
    fn a_file_that_comes_back_is_no_removal() {
        let start = Instant::now();
        let mut debounce = Debounce::default();
        debounce.add("a".into(), Change::Removed, start);
        debounce.add("a".into(), Change::Modified, start + MS);
        debounce.add("b".into(), Change::Complete, start + 2 * MS);

        let work = debounce.take(start + 2 * MS).unwrap();

        assert_eq!(
            (work.paths, work.unfinished),
            (Some(paths(&["b"])), paths(&["a"]))
        );
    }

    #[test]
    fn a_rescan_leaves_unfinished_files_alone() {
        let start = Instant::now();
        let mut debounce = Debounce::default();
        debounce.add("half".into(), Change::Modified, start);
        debounce.add("done".into(), Change::Complete, start);
        debounce.rescan(start, Duration::ZERO);

        let work = debounce.take(start).unwrap();

        assert_eq!((work.paths, work.unfinished), (None, paths(&["half"])));
    }

    #[test]
    fn floods_become_one_rescan() {
        let start = Instant::now();
        let mut debounce = Debounce::default();
        for number in 0..100_000 {
            debounce.add(number.to_string().into(), Change::Modified, start);
            assert!(debounce.paths.len() <= PATHS);
        }

        assert_eq!(debounce.take(start + QUIET).unwrap().paths, None);
    }
}
