//! The compiler against the evaluator: random worlds, random flows, no mismatch.
//!
//! `TOWPATH_CASES` is the number of worlds (each is asked `PROBES` flows), `TOWPATH_SEED` the first seed.

use towpath_core::calc::CalcGraph;
use towpath_core::evaluate::{Evaluator, Reason};
use towpath_core::generate::{Probe, World, sample};
use towpath_core::model::Verdict;
use towpath_core::tables::{Judgement, Tables};

/// Flows asked of each world.
const PROBES: usize = 200;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

/// What the tables make of a probe; an unknown address is dropped, a foreign one is left alone.
fn compiled(tables: &Tables, probe: &Probe, is_ours: bool) -> Verdict {
    let Probe {
        direction,
        endpoint,
        peer,
        protocol,
        port,
    } = *probe;
    match tables.judge(direction, endpoint, peer, protocol, port) {
        Judgement::Decided(verdict) => verdict,
        Judgement::Unknown if is_ours => Verdict::Deny,
        Judgement::Unknown => Verdict::Allow,
    }
}

fn check(world: &World, seed: u64) -> u64 {
    let cluster = world.cluster();
    let mut graph = CalcGraph::new("node-0");
    world
        .updates()
        .into_iter()
        .for_each(|update| graph.apply(&update));
    graph.flush();
    let tables = graph.tables();
    let evaluator = Evaluator::new(&cluster);
    let mut allowed = 0;
    for probe in world.flows(seed, PROBES) {
        let decision = evaluator.judge(probe.direction, &probe.flow());
        let is_ours = !matches!(decision.reason, Reason::NotJudged);
        let found = compiled(&tables, &probe, is_ours);
        assert_eq!(
            found,
            decision.verdict,
            "seed {seed}: {probe:?}\nevaluator: {decision:?}\nclass {:?}\nworld: {world:#?}",
            tables.class_of(probe.peer)
        );
        allowed += u64::from(found == Verdict::Allow);
    }
    allowed
}

#[test]
fn compiler_and_evaluator_agree() {
    let (first, worlds) = (number("TOWPATH_SEED", 1), number("TOWPATH_CASES", 5_000));
    let mut allowed = 0;
    for (index, world) in sample(first, usize::try_from(worlds).expect("a count")).enumerate() {
        allowed += check(&world, first + index as u64);
    }
    let asked = worlds * PROBES as u64;
    println!("{asked} flows in {worlds} worlds from seed {first}: {allowed} allowed");
    assert!(
        allowed * 4 >= asked,
        "too few flows are allowed for the comparison to mean something"
    );
    assert!(allowed < asked, "nothing is denied");
}
