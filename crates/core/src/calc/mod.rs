//! The calculation graph: updates in, table deltas out.

mod cidr;
mod compile;
mod difference;
mod encode;
mod matcher;
mod port_space;
mod whole;

use std::collections::BTreeSet;

use smol_str::SmolStr;

use crate::model::{Cluster, Update};
use crate::tables::{ClassId, Delta, Tables};
use whole::Registry;

/// Compiles all policies of one node.
#[derive(Debug)]
pub struct CalcGraph {
    cluster: Cluster,
    node: SmolStr,
    tables: Tables,
    registry: Registry,
    is_dirty: bool,
}

impl CalcGraph {
    /// An empty graph for the node of this name.
    pub fn new(node: impl Into<SmolStr>) -> Self {
        Self {
            cluster: Cluster::default(),
            node: node.into(),
            tables: Tables::default(),
            registry: Registry::default(),
            is_dirty: false,
        }
    }

    /// Takes one change of the state. Cheap; the work is done by [`Self::flush`].
    pub fn apply(&mut self, update: Update) {
        self.cluster.apply(update);
        self.is_dirty = true;
    }

    /// What has changed in the tables since the last flush.
    pub fn flush(&mut self) -> Delta {
        if !std::mem::take(&mut self.is_dirty) {
            return Delta::default();
        }
        let wanted = whole::compute(&self.cluster, &self.node, &mut self.registry);
        let delta = difference::between(&self.tables, &wanted);
        self.tables = wanted;
        delta
    }

    /// Removes what only packets in flight could still read (verdicts of classes that no address has any more).
    /// The caller leaves at least one second between the last flush and this.
    pub fn collect(&mut self) -> Delta {
        let in_use = |classes: &mut BTreeSet<ClassId>, tables: &Tables| {
            classes.extend(tables.peer_class.values());
            classes.extend(tables.cidr_class.values());
        };
        let mut used = BTreeSet::new();
        in_use(&mut used, &self.tables);
        self.registry.retain(&used);
        Delta::default()
    }

    /// The state that it has been told.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Name of the node it compiles for.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// The tables that are now wanted, whole.
    pub fn tables(&self) -> Tables {
        self.tables.clone()
    }
}
