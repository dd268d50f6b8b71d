//! The agent on a real API server, with as many objects as the goals name: latencies of real packets, start, processor
//! time, memory.
//!
//! Everything runs on this machine, the servers too, while in a cluster they have machines of their own. Beside each
//! latency stands a control: when a bare watch in this process saw the same event.

mod bed;
mod cni;
mod latency;
mod metrics;
mod start;
mod traffic;
mod watch;

use std::time::{Duration, Instant};

use anyhow::Result;

use self::bed::Bed;
use self::latency::Goals;
use self::metrics::Process as _;
use crate::report::{Arm, Gate, Kind, Report, Section};

/// Memory is read this long after sync (edge case 38).
const SETTLED: Duration = Duration::from_mins(1);
/// Pods and policies of the smaller load.
const SMALL: (u32, u32) = (4_000, 2_000);
/// Pods and policies of the load of the goals.
const FULL: (u32, u32) = (10_000, 10_000);
/// Each pod is written twice: it is created, and its status tells its address.
const WRITES_PER_POD: f64 = 2.0;

/// Says how far it is.
fn say(text: &str) {
    eprintln!("kubernetes: {text}");
}

/// Measures everything on a cluster that it makes and removes.
pub(crate) fn run(report: &mut Report) -> Result<()> {
    say("starting etcd, API server, flanneld");
    let mut bed = Bed::new()?;
    say(&format!("{} nodes, {} local pods", bed::NODES, bed::LOCAL));
    bed.enter_places()?;
    say(&format!("{} pods, {} policies", SMALL.0, SMALL.1));
    bed.enter(bed::LOCAL..SMALL.0, 0..SMALL.1)?;
    bed.start_agent()?;

    let small = Goals {
        title: "4,000 pods, 2,000 policies",
        median: Some(2.0),
        worst: 8.0,
        // The goals of the agent's own share are for the full load.
        is_inside_bound: false,
    };
    latency::measure(report, &bed, &small)?;
    grow(report, &mut bed)?;
    let enforced = start::measure(report, &mut bed)?;
    let full = Goals {
        title: "10,000 pods, 10,000 policies",
        median: None,
        worst: 50.0,
        is_inside_bound: true,
    };
    latency::measure(report, &bed, &full)?;
    memory(report, &bed, enforced)?;
    // Behind it: starts of pods touch code that an agent at rest does not keep in memory.
    cni::measure(report, &bed, full.title)
}

/// What pods that come cost the agent, while it follows.
fn grow(report: &mut Report, bed: &mut Bed) -> Result<()> {
    say(&format!(
        "{} pods and {} policies more",
        FULL.0 - SMALL.0,
        FULL.1 - SMALL.1
    ));
    let (before, began) = (bed.agent()?.processor_seconds()?, Instant::now());
    bed.enter(SMALL.0..FULL.0, 0..0)?;
    bed.await_pods(FULL.0)?;
    let (after, took) = (bed.agent()?.processor_seconds()?, began.elapsed());
    bed.enter(0..0, SMALL.1..FULL.1)?;
    let events = f64::from(FULL.0 - SMALL.0) * WRITES_PER_POD;
    let thousand = |seconds: f64| seconds / events * 1e6;
    let [own, kernel] = [0, 1].map(|part| thousand(after[part] - before[part]));
    report.gates.push(Gate::at_most(
        Kind::Gate,
        "processor time of the agent for 1,000 pod events, ms",
        own + kernel,
        100.0,
    ));
    let mut section = Section::side_by_side(
        "Processor time of the agent for 1,000 pod events",
        "ms",
        vec![
            Arm::once("pods created and given an address", own + kernel),
            Arm::once("of it in the process", own),
            Arm::once("of it in the kernel", kernel),
        ],
    );
    let seconds = took.as_secs_f64();
    section.notes.push(format!(
        "{events} events in {seconds:.1} s, {:.0} a second",
        events / seconds
    ));
    report.sections.push(section);
    Ok(())
}

fn memory(report: &mut Report, bed: &Bed, enforced: Instant) -> Result<()> {
    let left = SETTLED.saturating_sub(enforced.elapsed());
    say(&format!("memory, in {} s", left.as_secs()));
    std::thread::sleep(left);
    let agent = bed.agent()?;
    let (resident, peak) = (
        agent.process_figure("VmRSS:")?,
        agent.process_figure("VmHWM:")?,
    );
    for (name, measured, limit) in [
        ("resident 60 s after the start, MiB", resident, 30.0),
        ("high-water mark, MiB", peak, 64.0),
    ] {
        report
            .gates
            .push(Gate::at_most(Kind::Gate, name, measured, limit));
    }
    let arms = vec![
        Arm::once("resident", resident),
        Arm::once("of it the agent's own", agent.process_figure("RssAnon:")?),
        Arm::once("of it pages of files", agent.process_figure("RssFile:")?),
        Arm::once("high-water mark", peak),
    ];
    let mut section = Section::side_by_side(
        "Memory of the agent at 10,000 pods, 10,000 policies",
        "MiB",
        arms,
    );
    section
        .notes
        .push("from the last cold start on, the latencies at this size included".to_owned());
    section
        .notes
        .push("the kernel's share: cargo xtask bench --only agent".to_owned());
    report.sections.push(section);
    Ok(())
}
