//! The calculation graph: updates in, table deltas out.

use smol_str::SmolStr;

use crate::model::{Cluster, Update};
use crate::tables::{Delta, Tables};

/// Compiles all policies of one node, incrementally.
#[derive(Debug)]
pub struct CalcGraph {
    cluster: Cluster,
    node: SmolStr,
}

impl CalcGraph {
    /// An empty graph for the node of this name.
    pub fn new(node: impl Into<SmolStr>) -> Self {
        Self { cluster: Cluster::default(), node: node.into() }
    }

    /// Takes one change of the state. Cheap; the work is done by [`Self::flush`].
    pub fn apply(&mut self, update: Update) {
        self.cluster.apply(update);
    }

    /// What has changed in the tables since the last flush.
    pub fn flush(&mut self) -> Delta {
        Delta::default()
    }

    /// Removes what only packets in flight could still read (verdicts of classes that no address has any more).
    /// The caller leaves at least one second between the last flush and this.
    pub fn collect(&mut self) -> Delta {
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
        Tables::default()
    }
}
