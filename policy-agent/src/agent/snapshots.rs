//! The snapshot of an earlier run, in the place of a source that has not answered yet.

use std::time::Instant;

use rustc_hash::FxHashSet;
use towpath_core::model::{Cluster, EndpointKind, ObjectKey, Update};
use towpath_dataplane::nft::Backend;
use tracing::{info, warn};

use super::config::Config;
use crate::applier::Marker;
use crate::cli::arguments::SourceLocation;
use crate::layout::{Enforcement, TableId};
use crate::snapshot::{self, Snapshot, SnapshotWriter};

/// Reading and writing of snapshots; does nothing for a source that is always in reach.
#[derive(Debug, Default)]
pub(super) struct Snapshots {
    writer: Option<SnapshotWriter>,
    /// Objects to begin with.
    loaded: Option<Snapshot>,
    /// What the source has told since, as long as it is not in sync for the first time.
    told: Option<FxHashSet<ObjectKey>>,
}

impl Snapshots {
    /// Loads the snapshot where an earlier run has enforced policy and no table is there any more.
    pub(super) fn open(config: &Config, backend: &mut dyn Backend) -> Self {
        if !matches!(config.source, Some(SourceLocation::Kubernetes(_))) {
            return Self::default();
        }
        let directory = &config.state_directory;
        let writer = Some(SnapshotWriter::new(directory, config.node.as_str()));
        let are_tables_gone = TableId::ALL
            .map(TableId::table)
            .iter()
            .all(|table| backend.has_table(table).is_ok_and(|is_there| !is_there));
        let was_enforced = Marker::open(directory).is_ok_and(|(_, places)| places.is_some());
        let is_wanted = config.enforcement_here() == Enforcement::Enforce;
        let mut loaded = None;
        if are_tables_gone && was_enforced && is_wanted {
            match snapshot::load(directory, &config.node) {
                Ok(found) => loaded = found,
                Err(error) => warn!(
                    error = super::link::chain(&error),
                    "the snapshot is not used: pods stay closed until the API server answers"
                ),
            }
        }
        Self {
            writer,
            loaded,
            told: None,
        }
    }

    /// The snapshot to begin with, once. From now on what the source tells is compared with its objects.
    pub(super) fn begin(&mut self) -> Option<Snapshot> {
        let snapshot = self.loaded.take()?;
        info!(
            objects = snapshot.objects.len(),
            written_at = snapshot.written_at,
            "no table is there: beginning with the snapshot of an earlier run"
        );
        self.told = Some(FxHashSet::default());
        Some(snapshot)
    }

    /// Completes what the source tells: with its first whole state, what only the snapshot had goes.
    pub(super) fn complete(
        &mut self,
        updates: &mut Vec<Update>,
        is_in_sync: bool,
        known: &Cluster,
    ) {
        let Some(told) = &mut self.told else { return };
        for update in &*updates {
            match update {
                Update::Upsert(object) => told.insert(object.key()),
                Update::Remove(key) => told.remove(key),
            };
        }
        if !is_in_sync {
            return;
        }
        let namespaces = known.namespaces.keys().cloned().map(ObjectKey::Namespace);
        let nodes = known.nodes.keys().cloned().map(ObjectKey::Node);
        let policies = known
            .policies
            .values()
            .map(|policy| ObjectKey::Policy(policy.id.clone()));
        let endpoints = known
            .endpoints
            .values()
            .filter(|endpoint| endpoint.id.kind != EndpointKind::LocalService)
            .map(|endpoint| ObjectKey::Endpoint(endpoint.id.clone()));
        let stale = namespaces
            .chain(nodes)
            .chain(policies)
            .chain(endpoints)
            .filter(|key| !told.contains(key));
        let before = updates.len();
        updates.extend(stale.map(Update::Remove));
        info!(
            gone = updates.len() - before,
            "the source has taken the place of the snapshot"
        );
        self.told = None;
    }

    /// Notes that the state in sync has changed.
    pub(super) fn changed(&mut self, now: Instant) {
        if let Some(writer) = &mut self.writer {
            writer.changed(now);
        }
    }

    /// Writes what is due.
    pub(super) fn tick(&mut self, cluster: &Cluster, now: Instant) {
        if let Some(writer) = &mut self.writer {
            writer.tick(cluster, now);
        }
    }

    /// Whether the last one could not be written.
    pub(super) fn is_failing(&self) -> bool {
        let writer = self.writer.as_ref();
        writer.is_some_and(SnapshotWriter::is_failing)
    }

    /// Writes what has changed, at the end.
    pub(super) fn finish(&mut self, cluster: &Cluster) {
        if let Some(writer) = &mut self.writer {
            writer.finish(cluster);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use towpath_core::generate::world;
    use towpath_core::model::Object;

    use super::*;

    fn provisional() -> Snapshots {
        Snapshots {
            told: Some(FxHashSet::default()),
            ..Snapshots::default()
        }
    }

    proptest! {
        #[test]
        fn the_first_whole_state_replaces_the_snapshot(old in world(), new in world(), cut in any::<prop::sample::Index>()) {
            let (mut cluster, wanted) = (old.cluster(), new.cluster());
            cluster.interfaces.clear();
            let mut snapshots = provisional();
            let mut rest = new.updates();
            rest.retain(|update| !matches!(update, Update::Upsert(Object::Interface(_))));
            let mut first: Vec<Update> = rest.drain(..cut.index(rest.len() + 1)).collect();

            snapshots.complete(&mut first, false, &cluster);
            for update in first {
                cluster.apply(update);
            }
            snapshots.complete(&mut rest, true, &cluster);
            for update in rest {
                cluster.apply(update);
            }

            prop_assert_eq!(cluster, Cluster { interfaces: std::collections::BTreeMap::new(), ..wanted });
            prop_assert!(snapshots.told.is_none());
        }
    }
}
