//! When the snapshot is written: soon after the first sync, then at most once a minute, and at the end.

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use towpath_core::model::Cluster;
use tracing::{debug, warn};

use super::{SNAPSHOT, save};

/// How long changes wait after the first one, so that a rollout is one snapshot.
const SETTLE: Duration = Duration::from_secs(5);
/// Least time between two snapshots: what a node writes to its disk is bounded by its objects, not by events.
const INTERVAL: Duration = Duration::from_mins(1);

/// Writes snapshots on a thread of its own, one at a time. The objects are shared with the graph, not copied.
#[derive(Debug)]
pub struct SnapshotWriter {
    directory: PathBuf,
    node: String,
    /// When what has changed is to be written.
    due: Option<Instant>,
    /// Not before then.
    earliest: Option<Instant>,
    /// Returns whether it could write.
    running: Option<JoinHandle<bool>>,
    is_failing: bool,
}

impl SnapshotWriter {
    /// A writer of the snapshot of `node` in this state directory.
    pub fn new(directory: impl Into<PathBuf>, node: impl Into<String>) -> Self {
        Self {
            directory: directory.into(),
            node: node.into(),
            due: None,
            earliest: None,
            running: None,
            is_failing: false,
        }
    }

    /// Whether the last snapshot could not be written.
    pub fn is_failing(&self) -> bool {
        self.is_failing
    }

    /// Notes that the state has changed.
    pub fn changed(&mut self, now: Instant) {
        if self.due.is_none() {
            let settled = now + SETTLE;
            self.due = Some(self.earliest.map_or(settled, |at| at.max(settled)));
        }
    }

    /// Starts to write if that is due and nothing is being written. What could not be written is due again.
    pub fn tick(&mut self, cluster: &Cluster, now: Instant) {
        if self
            .running
            .as_ref()
            .is_some_and(|running| !running.is_finished())
        {
            return;
        }
        self.join(now);
        if self.due.is_none_or(|due| due > now) {
            return;
        }
        self.due = None;
        self.earliest = Some(now + INTERVAL);
        let (directory, node) = (self.directory.clone(), self.node.clone());
        let cluster = without_interfaces(cluster);
        let started = std::thread::Builder::new()
            .name("snapshot".to_owned())
            .spawn(move || write(&directory, &node, &cluster));
        match started {
            Ok(running) => self.running = Some(running),
            Err(error) => {
                warn!(%error, "cannot start to write the snapshot");
                self.changed(now);
            }
        }
    }

    /// Writes what has changed since the last snapshot, at the end of the process.
    pub fn finish(&mut self, cluster: &Cluster) {
        self.join(Instant::now());
        if self.due.take().is_some() {
            write(&self.directory, &self.node, cluster);
        }
    }

    fn join(&mut self, now: Instant) {
        let Some(running) = self.running.take() else {
            return;
        };
        let is_written = running.join().unwrap_or_else(|_| {
            warn!("writing the snapshot has panicked");
            false
        });
        self.is_failing = !is_written;
        if !is_written {
            self.changed(now);
        }
    }
}

/// What the source has told, without what this node knows by itself.
fn without_interfaces(cluster: &Cluster) -> Cluster {
    Cluster {
        namespaces: cluster.namespaces.clone(),
        nodes: cluster.nodes.clone(),
        endpoints: cluster.endpoints.clone(),
        policies: cluster.policies.clone(),
        interfaces: std::collections::BTreeMap::new(),
    }
}

/// Whether it could be written; says why not.
fn write(directory: &Path, node: &str, cluster: &Cluster) -> bool {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let outcome = save(directory, node, cluster, now);
    match &outcome {
        Ok(()) => debug!("the snapshot is written"),
        Err(error) => warn!(
            path = %directory.join(SNAPSHOT).display(),
            %error,
            "cannot write the snapshot: after a reboot pods stay closed until the API server answers"
        ),
    }
    outcome.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_one_snapshot_and_the_next_waits() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(SNAPSHOT);
        let mut writer = SnapshotWriter::new(directory.path(), "n");
        let (start, cluster) = (Instant::now(), Cluster::default());

        writer.tick(&cluster, start);
        writer.changed(start);
        writer.changed(start + SETTLE);
        writer.tick(&cluster, start + SETTLE / 2);
        writer.join(start);
        let is_early = path.exists();
        writer.tick(&cluster, start + SETTLE);
        writer.join(start);
        let is_written = path.exists();
        std::fs::remove_file(&path).unwrap();
        writer.changed(start + SETTLE);
        writer.tick(&cluster, start + 3 * SETTLE);
        writer.join(start);
        let is_again = path.exists();
        writer.finish(&cluster);

        assert_eq!((is_early, is_written, is_again), (false, true, false));
        assert!(path.exists());
    }

    #[test]
    fn what_could_not_be_written_is_tried_again() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("state");
        let mut writer = SnapshotWriter::new(&directory, "n");
        let (start, cluster) = (Instant::now(), Cluster::default());
        writer.changed(start);
        writer.tick(&cluster, start + SETTLE);
        writer.join(start + SETTLE);
        assert!(writer.is_failing());
        std::fs::create_dir(&directory).unwrap();

        writer.tick(&cluster, start + SETTLE + INTERVAL);
        writer.join(start + SETTLE + INTERVAL);

        assert!(directory.join(SNAPSHOT).exists() && !writer.is_failing());
    }
}
