//! The product under test: the graph's tables, brought into the node's kernel by the agent's applier.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::{Context as _, Result, bail, ensure};
use policy_agent::applier::{Applied, Applier, Backlog, Drift, Step, uninstall};
use policy_agent::layout::{LayoutOptions, NodeFacts, TableId};
use policy_agent::render;
use towpath_core::calc::CalcGraph;
use towpath_core::generate::LOCAL_NODE;
use towpath_core::model::{Cluster, Node, Update};
use towpath_core::tables::{Delta, Tables};
use towpath_dataplane::nft::{
    Backend, ChainRules, CommitError, Element, Name, NetlinkBackend, Table, Transaction,
};
use towpath_tests::netns::{isolated, run};
use towpath_tests::wait::{PATIENCE, until_some};

use super::fabric::Fabric;

/// The agent's socket, which owns the tables, shared with the test: it alone may delete them.
#[derive(Clone, Debug)]
pub(crate) struct Kernel(Arc<Mutex<Held>>);

#[derive(Debug)]
struct Held {
    backend: NetlinkBackend,
    /// The first batch that the kernel did not take, and why.
    refused: Option<String>,
}

impl Kernel {
    /// Opens the socket in the node's namespace.
    pub(crate) fn open(fabric: &Fabric) -> Result<Self> {
        let backend = fabric.node.enter(NetlinkBackend::open)??;
        Ok(Self(Arc::new(Mutex::new(Held {
            backend,
            refused: None,
        }))))
    }

    /// Fails if the kernel has refused a batch, which the applier would mend by replacing the tables.
    pub(crate) fn has_taken_all(&self) -> Result<()> {
        match &self.held().refused {
            Some(refusal) => bail!("{refusal}"),
            None => Ok(()),
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.lock().expect("nobody panics while it commits")
    }

    /// Deletes the tables: nothing is enforced.
    pub(crate) fn remove_tables(&mut self) -> Result<()> {
        let removed = uninstall(self)?;
        ensure!(
            removed.len() == TableId::ALL.len(),
            "of our tables only {removed:?} were there"
        );
        Ok(())
    }
}

impl Backend for Kernel {
    fn commit(&mut self, transaction: &Transaction) -> Result<(), CommitError> {
        let mut held = self.held();
        let result = held.backend.commit(transaction);
        if let Err(error @ CommitError::Refused { source, .. }) = &result {
            held.refused
                .get_or_insert(format!("{error}: {source}, in {transaction:#?}"));
        }
        result
    }

    fn has_table(&mut self, table: &Table) -> Result<bool, CommitError> {
        self.held().backend.has_table(table)
    }

    fn elements(&mut self, table: &Table, set: &Name) -> Result<Option<Vec<Element>>, CommitError> {
        self.held().backend.elements(table, set)
    }

    fn different_chains(
        &mut self,
        table: &Table,
        wanted: &[ChainRules],
    ) -> Result<Vec<String>, CommitError> {
        self.held().backend.different_chains(table, wanted)
    }
}

/// Graph and applier of one node.
#[derive(Debug)]
pub(crate) struct Enforcer {
    pub(crate) graph: CalcGraph,
    applier: Applier,
    generation: u64,
    options: LayoutOptions,
}

impl Enforcer {
    /// A graph and an applier that have done nothing.
    pub(crate) fn new(kernel: &Kernel) -> Result<Self> {
        let options = LayoutOptions {
            table_flags: kernel.held().backend.probe_features()?.table_flags(),
            ..LayoutOptions::default()
        };
        Ok(Self {
            graph: CalcGraph::new(LOCAL_NODE),
            applier: Applier::new(Box::new(kernel.clone()), options.clone()),
            generation: 0,
            options,
        })
    }

    /// A first start with this state.
    pub(crate) fn start(kernel: &Kernel, updates: Vec<Update>) -> Result<Self> {
        let mut enforcer = Self::new(kernel)?;
        for update in updates {
            enforcer.graph.apply(&update);
        }
        let delta = enforcer.graph.flush();
        enforcer.commit(delta)?;
        Ok(enforcer)
    }

    /// Brings a delta into the kernel, and what the state says of nodes.
    pub(crate) fn commit(&mut self, delta: Delta) -> Result<Applied> {
        self.generation += 1;
        let mut backlog = Backlog {
            facts: Some(facts(self.graph.cluster())),
            ..Backlog::default()
        };
        backlog.push(self.generation, delta);
        self.applier.enqueue(backlog);
        self.finish()
    }

    /// Has the kernel compared with what it should hold, and repaired.
    pub(crate) fn verify(&mut self) -> Result<Drift> {
        let drift = self.applier.verify()?;
        if !drift.is_none() {
            self.finish()?;
        }
        Ok(drift)
    }

    fn finish(&mut self) -> Result<Applied> {
        until_some("the kernel takes a batch", PATIENCE, || {
            match self.applier.step()? {
                Step::Applied(applied) => Ok(Some(applied)),
                Step::Retry(_) => Ok(None),
                Step::Idle => bail!("the applier has nothing to do"),
            }
        })
    }

    /// What the kernel should hold.
    pub(crate) fn tables(&self) -> &Tables {
        self.applier.tables()
    }

    /// The chains of both tables as the kernel lists them: those that changes led to, and those of a fresh load of
    /// the same state.
    pub(crate) fn chains(&self, fabric: &Fabric) -> Result<[BTreeSet<String>; 2]> {
        let grown = fabric.node.run(&mut list())?;
        let facts = render::fact_sets(self.tables(), &facts(self.graph.cluster()));
        let (transaction, _) = render::replace(self.tables(), &facts, &self.options);
        let fresh = isolated(|| -> Result<String> {
            NetlinkBackend::open()?
                .commit(&transaction)
                .context("cannot load the tables afresh")?;
            run(&mut list())
        })??;
        Ok([grown, fresh].map(|text| chain_blocks(&text)))
    }
}

/// Lists everything but elements and counts.
fn list() -> Command {
    let mut command = Command::new("nft");
    command.args(["--stateless", "--terse", "list", "ruleset"]);
    command
}

/// The blocks of chains in a listing: the order in which they were made does not matter.
fn chain_blocks(listing: &str) -> BTreeSet<String> {
    let mut table = "";
    let mut blocks = BTreeSet::new();
    let mut block: Option<String> = None;
    for line in listing.lines() {
        if line.starts_with("table") {
            // The owner's name, which nft prints behind the brace, is not the table's.
            table = line.split(" {").next().unwrap_or_default();
        } else if line.starts_with("\tchain") {
            block = Some(format!("{table}\n{line}"));
        } else if line == "\t}" {
            blocks.extend(block.take());
        } else if let Some(block) = &mut block {
            block.push('\n');
            block.push_str(line);
        }
    }
    blocks
}

/// What the agent would observe of this node.
fn facts(cluster: &Cluster) -> NodeFacts {
    let name = |name: String| name.parse().expect("a good interface name");
    let nodes = cluster.nodes.values();
    NodeFacts {
        pod_interfaces: [name("cni0".to_owned())].into(),
        routed_interfaces: BTreeSet::new(),
        pod_ports: Fabric::pod_ports().map(name).collect(),
        node_addresses: Arc::new(nodes.flat_map(Node::claimed).collect()),
        audited: BTreeSet::new(),
        overlay_ports: None,
    }
}
