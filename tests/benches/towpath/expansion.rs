//! What could blow up, measured (edge case 6): time of a flush, sizes, the kernel's memory.
//!
//! Each round builds every case anew and flushes once, then lets its event happen and end in a graph and a kernel
//! that stay from round to round. The event is one more policy or, for wide activation, the first local pod. A case
//! that has used up its time gets no further round, so the part ends within a minute whatever a case costs.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use policy_agent::applier::Applier;
use towpath_core::calc::CalcGraph;
use towpath_core::model::{Object, Update};
use towpath_core::tables::{Delta, DirectionTables, Tables};
use towpath_tests::netns::Namespace;

use crate::blow_up::{Case, cases};
use crate::events;
use crate::kernel_memory::{KernelMemory, METHOD, Share};
use crate::namespace::fresh;
use crate::report::{Arm, MIB, Report, Section};
use crate::worlds;

/// Most rounds of each case.
const ROUNDS: u32 = 20;
/// A case that has taken this long gets no further round.
const BUDGET: Duration = Duration::from_secs(3);

/// A case with what is measured of it.
struct Run {
    case: Case,
    graph: CalcGraph,
    applier: Applier,
    _namespace: Namespace,
    /// Batches of everything at once and of the event.
    batches: (usize, usize),
    /// What the tables are after the event.
    tables: Tables,
    classes: usize,
    /// Hash entries that stay when the event has ended.
    left: usize,
    spent: Duration,
    load: Arm,
    whole: Arm,
    event: Arm,
    commit: Arm,
    end: Arm,
}

/// Measures all cases, rounds interleaved.
pub(crate) fn run(report: &mut Report) -> Result<()> {
    let mut runs = Vec::new();
    for case in cases() {
        let name = case.name;
        runs.push(Run::new(case).context(name)?);
    }
    for _ in 0..ROUNDS {
        for run in runs.iter_mut().filter(|run| run.spent < BUDGET) {
            run.round().context(run.case.name)?;
        }
    }
    let mut kernel = KernelMemory::default();
    let mut notes = Vec::new();
    for run in &runs {
        let share = kernel.of(&run.tables).context(run.case.name)?;
        notes.push(run.sizes(share));
    }
    notes.push(METHOD.to_owned());
    let mut arms: [Vec<Arm>; 5] = Default::default();
    for run in runs {
        let of_run = [run.whole, run.load, run.event, run.commit, run.end];
        for (arms, arm) in arms.iter_mut().zip(of_run) {
            arms.push(arm);
        }
    }
    let [whole, load, event, commit, end] = arms;
    let mut first = Section::new("Blow-up: flush of the whole cluster", "ms", whole);
    first.notes = notes;
    report.sections.extend([
        first,
        Section::new(
            "Blow-up: whole tables to the kernel, without the event",
            "ms",
            load,
        ),
        Section::new("Blow-up: flush of one event", "ms", event),
        Section::new("Blow-up: the event's batches in the kernel", "ms", commit),
        Section::new("Blow-up: flush of its end", "ms", end),
    ]);
    Ok(())
}

impl Run {
    fn new(case: Case) -> Result<Self> {
        let mut graph = CalcGraph::new(worlds::NODE);
        apply(&mut graph, &case.objects);
        graph.flush();
        let namespace = fresh("b")?;
        let tables = graph.tables();
        let began = Instant::now();
        let applier = namespace.enter(|| events::load(tables))??;
        let load = Arm::once(case.name, milliseconds(began));
        let name = case.name;
        Ok(Self {
            case,
            graph,
            applier,
            _namespace: namespace,
            batches: (0, 0),
            tables: Tables::default(),
            classes: 0,
            left: 0,
            spent: Duration::ZERO,
            load,
            whole: Arm::new(name),
            event: Arm::new(name),
            commit: Arm::new(name),
            end: Arm::new(name),
        })
    }

    fn round(&mut self) -> Result<()> {
        let began = Instant::now();
        let mut fresh = CalcGraph::new(worlds::NODE);
        apply(&mut fresh, &self.case.objects);
        apply(&mut fresh, &self.case.event);
        let whole = flush(&mut fresh, &mut self.whole);
        drop(fresh);
        apply(&mut self.graph, &self.case.event);
        let event = flush(&mut self.graph, &mut self.event);
        let is_first = self.end.samples.is_empty();
        if is_first {
            self.batches = (whole.phases.len(), event.phases.len());
            self.tables = self.graph.tables();
            self.classes = self.graph.class_count();
        }
        let sent = Instant::now();
        events::commit(&mut self.applier, event)?;
        self.commit.samples.push(milliseconds(sent));
        self.collect()?;
        for object in &self.case.event {
            self.graph.apply(&Update::Remove(object.key()));
        }
        let end = flush(&mut self.graph, &mut self.end);
        events::commit(&mut self.applier, end)?;
        self.collect()?;
        if is_first {
            self.left = Sizes::of(&self.graph.tables()).entries;
        }
        self.spent += began.elapsed();
        Ok(())
    }

    /// Tidies up until nothing comes, as the agent does in the seconds after a flush.
    fn collect(&mut self) -> Result<()> {
        loop {
            let delta = self.graph.collect();
            if delta.phases.is_empty() {
                return Ok(());
            }
            events::commit(&mut self.applier, delta)?;
        }
    }

    fn sizes(&self, share: Share) -> String {
        let sizes = Sizes::of(&self.tables);
        #[expect(
            clippy::cast_precision_loss,
            reason = "elements are counted in millions"
        )]
        let elements = (sizes.entries + sizes.elements) as f64;
        format!(
            "{}: {} classes; {} hash entries ({} after its end), {} set elements, {} profiles with {} rules; batches: {} at once, {} for \
             the event; kernel {:.2} MiB ({:.0} bytes an element), MemAvailable less by {:.2} MiB",
            self.case.name,
            self.classes,
            sizes.entries,
            self.left,
            sizes.elements,
            self.tables.profiles.len(),
            sizes.rules,
            self.batches.0,
            self.batches.1,
            share.bytes / MIB,
            share.bytes / elements,
            share.available / MIB,
        )
    }
}

/// How large tables are.
#[derive(Default)]
struct Sizes {
    /// Elements of hash maps and sets: addresses, verdicts, source checks.
    entries: usize,
    /// Elements of interval maps and of class lists.
    elements: usize,
    /// Rules of profiles.
    rules: usize,
}

impl Sizes {
    fn of(tables: &Tables) -> Self {
        let hashed = |tables: &DirectionTables| {
            tables.state.len()
                + tables.exact.len()
                + tables.class_protocol.len()
                + tables.class_any.len()
                + tables.any.len()
                + tables.profile.len()
                + tables.default.len()
        };
        let rules = || (tables.profiles.values()).flat_map(|profile| &profile.rules);
        let listed = rules().map(|rule| rule.classes.as_ref().map_or(0, |list| list.len()));
        Self {
            entries: tables.peer_class.len()
                + tables.bindings.len()
                + hashed(&tables.ingress)
                + hashed(&tables.egress),
            elements: tables.cidr_class.len() + listed.sum::<usize>(),
            rules: rules().count(),
        }
    }
}

fn apply(graph: &mut CalcGraph, objects: &[Object]) {
    for object in objects {
        graph.apply(&Update::Upsert(object.clone()));
    }
}

/// Flushes and adds the time that it took.
fn flush(graph: &mut CalcGraph, arm: &mut Arm) -> Delta {
    let began = Instant::now();
    let delta = graph.flush();
    arm.samples.push(milliseconds(began));
    delta
}

fn milliseconds(began: Instant) -> f64 {
    began.elapsed().as_secs_f64() * 1e3
}
