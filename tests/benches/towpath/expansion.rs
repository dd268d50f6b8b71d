//! What could blow up, measured (edge case 6): time of a flush, sizes, the kernel's memory.
//!
//! Each round builds every case anew and flushes once, then lets its event happen and end in a graph and a kernel
//! that stay from round to round. The event is one more policy or, for wide activation, the first local pod.

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

/// Most rounds of each arm.
const ROUNDS: u32 = 10;
/// No further round is begun after this.
const BUDGET: Duration = Duration::from_secs(25);

/// A case with what is measured of it.
struct Run {
    case: Case,
    graph: CalcGraph,
    applier: Applier,
    _namespace: Namespace,
    /// Size of the first change and of the event.
    batches: (usize, usize),
    whole: Arm,
    event: Arm,
    commit: Arm,
    end: Arm,
}

/// Measures all cases, rounds interleaved.
pub(crate) fn run(report: &mut Report) -> Result<()> {
    let began = Instant::now();
    let mut runs = Vec::new();
    for case in cases() {
        runs.push(Run::new(case)?);
    }
    for round in 0..ROUNDS {
        if round > 0 && began.elapsed() > BUDGET {
            break;
        }
        for run in &mut runs {
            run.round().with_context(|| run.case.name)?;
        }
    }
    let mut kernel = KernelMemory::default();
    let mut notes = Vec::new();
    for run in &runs {
        let tables = run.graph.tables();
        let share = kernel.of(&tables).with_context(|| run.case.name)?;
        notes.push(run.sizes(&tables, share));
    }
    notes.push(METHOD.to_owned());
    let (mut whole, mut event, mut commit, mut end) = (vec![], vec![], vec![], vec![]);
    for run in runs {
        whole.push(run.whole);
        event.push(run.event);
        commit.push(run.commit);
        end.push(run.end);
    }
    let mut first = Section::new("Blow-up: flush of the whole cluster", "ms", whole);
    first.notes = notes;
    report.sections.extend([
        first,
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
        let delta = graph.flush();
        let namespace = fresh("b")?;
        let tables = graph.tables();
        let applier = namespace.enter(|| events::load(tables))??;
        let name = case.name;
        Ok(Self {
            case,
            graph,
            applier,
            _namespace: namespace,
            batches: (delta.phases.len(), 0),
            whole: Arm::new(name),
            event: Arm::new(name),
            commit: Arm::new(name),
            end: Arm::new(name),
        })
    }

    /// Leaves graph and kernel as they are after the event.
    fn round(&mut self) -> Result<()> {
        let mut fresh = CalcGraph::new(worlds::NODE);
        apply(&mut fresh, &self.case.objects);
        apply(&mut fresh, &self.case.event);
        flush(&mut fresh, &mut self.whole);
        drop(fresh);
        if self.batches.1 > 0 {
            for object in &self.case.event {
                self.graph.apply(&Update::Remove(object.key()));
            }
            let delta = flush(&mut self.graph, &mut self.end);
            events::commit(&mut self.applier, delta)?;
            let delta = self.graph.collect();
            events::commit(&mut self.applier, delta)?;
        }
        apply(&mut self.graph, &self.case.event);
        let delta = flush(&mut self.graph, &mut self.event);
        self.batches.1 = delta.phases.len();
        let began = Instant::now();
        events::commit(&mut self.applier, delta)?;
        self.commit.samples.push(milliseconds(began));
        let delta = self.graph.collect();
        events::commit(&mut self.applier, delta)
    }

    fn sizes(&self, tables: &Tables, share: Share) -> String {
        let sizes = Sizes::of(tables);
        #[expect(
            clippy::cast_precision_loss,
            reason = "elements are counted in millions"
        )]
        let elements = (sizes.entries + sizes.elements) as f64;
        format!(
            "{}: {} classes; {} hash entries, {} set elements, {} profiles with {} rules; {} batches at once, {} for \
             the event; kernel {:.2} MiB ({:.0} bytes an element), MemAvailable less by {:.2} MiB",
            self.case.name,
            self.graph.class_count(),
            sizes.entries,
            sizes.elements,
            tables.profiles.len(),
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
