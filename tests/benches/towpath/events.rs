//! Cost of an event: an object changes in memory, the kernel has committed it.
//!
//! Control arm: what others do for the same change, one `nft` process. All arms change the same loaded tables in
//! one namespace, rounds interleaved.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use policy_agent::applier::{Applier, Backlog, Step, whole};
use policy_agent::layout::LayoutOptions;
use towpath_core::calc::CalcGraph;
use towpath_core::model::{Object, ObjectKey, Update};
use towpath_core::tables::{Delta, Tables};
use towpath_dataplane::nft::netlink::NetlinkBackend;

use crate::namespace::fresh;
use crate::report::{Arm, Gate, Kind, Report, Section};
use crate::worlds::{self, Size};

/// Rounds of each arm.
const ROUNDS: u32 = 200;
/// How much faster than one `nft` process a pod event must be in the kernel.
const FASTER_THAN_NFT: f64 = 50.0;

/// An applier in the namespace of this thread that holds these tables.
pub(crate) fn load(tables: Tables) -> Result<Applier> {
    let mut backend = NetlinkBackend::open().context("cannot open netlink")?;
    let table_flags = backend.probe_features()?.table_flags();
    let options = LayoutOptions {
        table_flags,
        ..LayoutOptions::default()
    };
    let mut applier = Applier::new(Box::new(backend), options);
    commit(&mut applier, whole(tables))?;
    Ok(applier)
}

/// Brings a delta to the kernel.
pub(crate) fn commit(applier: &mut Applier, delta: Delta) -> Result<()> {
    let mut backlog = Backlog::default();
    backlog.push(1, delta);
    applier.enqueue(backlog);
    loop {
        match applier.step()? {
            Step::Idle | Step::Applied(_) => return Ok(()),
            Step::Retry(delay) if delay.as_secs() > 1 => {
                bail!("the kernel does not take the batch")
            }
            Step::Retry(delay) => std::thread::sleep(delay),
        }
    }
}

/// A graph with its applier.
struct Node {
    graph: CalcGraph,
    applier: Applier,
}

impl Node {
    /// Applies updates, commits what follows, and returns microseconds.
    fn change(&mut self, updates: impl IntoIterator<Item = Update>) -> Result<f64> {
        let began = Instant::now();
        for update in updates {
            self.graph.apply(&update);
        }
        let delta = self.graph.flush();
        ensure!(!delta.phases.is_empty(), "the event changes nothing");
        commit(&mut self.applier, delta)?;
        Ok(began.elapsed().as_secs_f64() * 1e6)
    }

    /// Tidies up until nothing comes, as the agent does in the seconds after a flush.
    fn collect(&mut self) -> Result<()> {
        loop {
            let delta = self.graph.collect();
            if delta.phases.is_empty() {
                return Ok(());
            }
            commit(&mut self.applier, delta)?;
        }
    }
}

/// Measures cold load and single events at 100,000 peers.
pub(crate) fn run(report: &mut Report) -> Result<()> {
    let namespace = fresh("e")?;
    namespace.enter(|| measure(report))?
}

fn measure(report: &mut Report) -> Result<()> {
    let size = Size::LARGE;
    let mut graph = CalcGraph::new(worlds::NODE);
    let began = Instant::now();
    worlds::updates(size).for_each(|update| graph.apply(&update));
    graph.apply(&Update::Upsert(Object::Policy(worlds::wide_policy())));
    let delta = graph.flush();
    let computed = began.elapsed();
    let tables = graph.tables();
    let began = Instant::now();
    let mut node = Node {
        graph,
        applier: load(tables.clone())?,
    };
    let loaded = began.elapsed();
    let mut cold = Section::new(
        "Cold load, 100k peers, 10k policies, 110 local",
        "s",
        vec![
            Arm::once("tables to the kernel, one batch", loaded.as_secs_f64()),
            Arm::once("objects to tables", computed.as_secs_f64()),
        ],
    );
    cold.notes.push(format!(
        "{} peer entries, {} blocks, {} exact entries, {} batches",
        tables.peer_class.len(),
        tables.cidr_class.len(),
        tables.ingress.exact.len() + tables.egress.exact.len(),
        delta.phases.len()
    ));
    report.gates.push(Gate::at_most(
        Kind::Mark,
        "cold load of 100k peers, s",
        loaded.as_secs_f64(),
        0.3,
    ));
    report.sections.push(cold);
    events(report, &mut node, size)
}

fn events(report: &mut Report, node: &mut Node, size: Size) -> Result<()> {
    let mut arms = vec![
        Arm::new("control: one nft process per change"),
        Arm::new("remote pod removed, right after that process"),
        Arm::new("remote pod removed"),
        Arm::new("remote pod added"),
        Arm::new("local pod removed"),
        Arm::new("local pod added"),
        Arm::new("policy removed"),
        Arm::new("policy added"),
    ];
    for round in 0..ROUNDS {
        arms[0].samples.push(nft_process()?);
        // The process has read the whole ruleset: the first event finds cold caches.
        let cold = worlds::pod(size, size.pods - 1 - ROUNDS - round);
        let gone = Update::Remove(ObjectKey::Endpoint(cold.id.clone()));
        arms[1].samples.push(node.change([gone])?);
        node.change([Update::Upsert(Object::Endpoint(cold))])?;
        let remote = worlds::pod(size, size.pods - 1 - round);
        let local = worlds::pod(size, round % size.local);
        // One that selects a pod of this node: application 0 of a namespace with a local pod.
        let policy = worlds::policy(size, round % 11 * 10);
        let objects = [
            Object::Endpoint(remote),
            Object::Endpoint(local),
            Object::Policy(policy),
        ];
        for (object, arms) in objects.into_iter().zip(arms[2..].chunks_mut(2)) {
            let gone = Update::Remove(object.key());
            arms[0].samples.push(node.change([gone])?);
            arms[1].samples.push(node.change([Update::Upsert(object)])?);
        }
        node.collect()?;
    }
    let control = arms[0].quantile(0.5);
    // The mark of the kind of object, removed and added.
    for (arm, goal) in arms[2..]
        .iter()
        .zip([50.0, 50.0, 300.0, 300.0, 1_000.0, 1_000.0])
    {
        let (name, median) = (&arm.name, arm.quantile(0.5));
        if name.contains("pod") {
            report.gates.push(Gate::at_least(
                format!("one nft process / {name}, committed (medians)"),
                control / median,
                FASTER_THAN_NFT,
            ));
        }
        let mark = format!("{name}, committed, us");
        report
            .gates
            .push(Gate::at_most(Kind::Mark, mark, median, goal));
    }
    report.sections.push(Section::new(
        "Event in memory to committed, 100k peers, 10k policies",
        "us",
        arms,
    ));
    Ok(())
}

/// What a program that starts `nft` for each change pays, on a table of its own.
fn nft_process() -> Result<f64> {
    let began = Instant::now();
    let text = "add table ip control; add set ip control peers { type ipv4_addr; }; \
                add element ip control peers { 192.0.2.1 }; delete element ip control peers { 192.0.2.1 }";
    let status = Command::new("nft")
        .arg(text)
        .status()
        .context("cannot start nft")?;
    ensure!(status.success(), "nft failed");
    Ok(began.elapsed().as_secs_f64() * 1e6)
}
