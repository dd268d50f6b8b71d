//! The compiler against the evaluator: random worlds, random flows, no mismatch; and every row of the specification
//! is met often enough for that to mean something.
//!
//! `TOWPATH_CASES` is the number of worlds (each is asked `PROBES` flows), `TOWPATH_SEED` the first seed. A world that
//! is judged differently is shrunk, with one flow; the line to add to `regressions/` is printed. What is kept there
//! runs first.

use towpath_core::calc::CalcGraph;
use towpath_core::evaluate::{Decision, Evaluator, Reason};
use towpath_core::generate::{
    Coverage, Kept, LOCAL_NODE, Probe, World, kept, line, sample, shrink,
};
use towpath_core::model::{
    Action, Cluster, Lifecycle, Peer, Peers, PortMatch, Ports, Rule, Verdict,
};
use towpath_core::tables::{Judgement, Tables};

/// Flows asked of each world.
const PROBES: usize = 60;

/// Worlds of a whole run; every row must be met `ROW` times in it.
const WORLDS: u64 = 30_000;
const ROW: u64 = 1_000;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

fn tables(world: &World) -> Tables {
    let mut graph = CalcGraph::new(LOCAL_NODE);
    for update in world.updates() {
        graph.apply(&update);
    }
    graph.flush();
    graph.tables()
}

/// What the tables make of a probe; an unknown address is dropped, a foreign one is left alone.
fn compiled(tables: &Tables, probe: &Probe, decision: &Decision) -> Verdict {
    let Probe {
        direction,
        endpoint,
        peer,
        protocol,
        port,
    } = *probe;
    match tables.judge(direction, endpoint, peer, protocol, port) {
        Judgement::Decided(verdict) => verdict,
        Judgement::Unknown if decision.reason == Reason::NotJudged => Verdict::Allow,
        Judgement::Unknown => Verdict::Deny,
    }
}

/// How tables and evaluator judge a probe differently, if they do. Probes are of this node's endpoints, and of what
/// is nobody's: others are judged on their own node.
fn mismatch(tables: &Tables, evaluator: &Evaluator, probe: &Probe) -> Option<String> {
    let decision = evaluator.judge(probe.direction, &probe.flow());
    let owner = decision.endpoint.as_ref();
    let owner = owner.and_then(|id| evaluator.cluster().endpoints.get(id));
    if owner.is_some_and(|owner| owner.node.as_deref() != Some(LOCAL_NODE)) {
        return None;
    }
    let found = compiled(tables, probe, &decision);
    (found != decision.verdict).then(|| {
        let class = tables.class_of(probe.peer);
        format!("the tables say {found} (class {class:?}), the evaluator {decision:?}")
    })
}

/// The state that the evaluator sees: the compiler's, unless it is made to see another.
type Seen = fn(Cluster) -> Cluster;

/// As [`mismatch`], from the beginning.
fn differs(world: &World, probe: &Probe, seen: Seen) -> Option<String> {
    let cluster = seen(world.cluster());
    mismatch(&tables(world), &Evaluator::new(&cluster), probe)
}

/// The least world in which a probe is judged differently, and the line that keeps it.
fn least(world: &World, probe: &Probe, seen: Seen) -> (World, String, String) {
    let least = shrink(world, |world| differs(world, probe, seen).is_some());
    let why = differs(&least, probe, seen).expect("a shrunk world still differs");
    let line = line(&(&least, probe), env!("CARGO_PKG_VERSION"), &why);
    (least, why, line)
}

/// Asks a world its flows.
fn check(world: &World, seed: u64, coverage: &mut Coverage) {
    let cluster = world.cluster();
    let (tables, evaluator) = (tables(world), Evaluator::new(&cluster));
    for probe in world.flows(seed, PROBES) {
        coverage.add(&evaluator, &probe);
        let Some(why) = mismatch(&tables, &evaluator, &probe) else {
            continue;
        };
        let (least, shrunk, line) = least(world, &probe, |cluster| cluster);
        let objects: Vec<String> = least.updates().iter().map(|o| format!("{o:?}")).collect();
        panic!(
            "seed {seed}: {why}\nshrunk: {shrunk}\n{probe:?}\n{}\nto keep it, add to \
             crates/core/tests/regressions/oracle.txt:\n{line}",
            objects.join("\n")
        );
    }
}

fn of_seed(seed: u64) -> World {
    sample(seed, 1).next().expect("one world")
}

#[test]
fn kept_worlds_are_judged_alike() {
    for (kept, why) in kept::<(World, Probe)>(include_str!("regressions/oracle.txt")) {
        match kept {
            Kept::Seed(seed) => check(&of_seed(seed), seed, &mut Coverage::default()),
            Kept::Case((world, probe)) => {
                assert_eq!(differs(&world, &probe, |cluster| cluster), None, "{why}");
            }
        }
    }
}

#[test]
fn compiler_and_evaluator_agree_on_every_row_of_the_specification() {
    let (first, worlds) = (number("TOWPATH_SEED", 1), number("TOWPATH_CASES", WORLDS));
    let mut coverage = Coverage::default();

    for seed in first..first + worlds {
        check(&of_seed(seed), seed, &mut coverage);
    }

    println!("{worlds} worlds from seed {first}\n{coverage}");
    // A shorter run has its share of every row, with room for chance.
    let wanted = if worlds < WORLDS {
        ROW * worlds / WORLDS / 2
    } else {
        ROW
    };
    assert_eq!(
        coverage.rows_below(wanted),
        [],
        "rows met by fewer than {wanted} probes"
    );
    assert!(
        coverage.allowed() * 4 >= coverage.probes(),
        "fewer than a quarter of the verdicts allow"
    );
    assert!(coverage.allowed() < coverage.probes(), "nothing is denied");
}

/// A state as an evaluator with a fault would see it.
fn with_rules(cluster: Cluster, change: impl Fn(&mut Vec<Rule>)) -> Cluster {
    let Cluster { policies, .. } = &cluster;
    let mut changed: Vec<_> = policies.values().cloned().collect();
    for policy in &mut changed {
        let lists = [&mut policy.ingress, &mut policy.egress];
        lists.into_iter().flatten().for_each(&change);
    }
    let mut cluster = cluster;
    cluster.policies.extend(changed);
    cluster
}

fn without_exceptions(cluster: Cluster) -> Cluster {
    with_rules(cluster, |rules| {
        for peers in rules.iter_mut().map(|rule| &mut rule.peers) {
            let Peers::Of(peers) = peers else { continue };
            for peer in peers {
                if let Peer::Network { except, .. } = peer {
                    except.clear();
                }
            }
        }
    })
}

fn without_passes(cluster: Cluster) -> Cluster {
    with_rules(cluster, |rules| {
        rules.retain(|rule| rule.action != Action::Pass);
    })
}

fn without_named_ports(cluster: Cluster) -> Cluster {
    with_rules(cluster, |rules| {
        for ports in rules.iter_mut().map(|rule| &mut rule.ports) {
            if let Ports::Of(ports) = ports {
                ports.retain(|port| !matches!(port, PortMatch::Named { .. }));
            }
        }
    })
}

fn with_finished_pods_alive(mut cluster: Cluster) -> Cluster {
    let mut endpoints: Vec<_> = cluster.endpoints.values().cloned().collect();
    for endpoint in &mut endpoints {
        endpoint.lifecycle = Lifecycle::Live;
    }
    cluster.endpoints.extend(endpoints);
    cluster
}

/// The oracle and the shrinker at work: each fault is found, and told by a handful of objects.
#[test]
fn a_faulty_judge_is_found_and_told_by_few_objects() {
    let faults: [(&str, Seen); 4] = [
        ("ignores exceptions", without_exceptions),
        ("ignores passes", without_passes),
        ("ignores named ports", without_named_ports),
        (
            "takes finished pods for live ones",
            with_finished_pods_alive,
        ),
    ];
    for (fault, seen) in faults {
        let mut found = (1..1_000).filter_map(|seed| {
            let world = of_seed(seed);
            let probes = world.flows(seed, PROBES);
            let cluster = seen(world.cluster());
            let (tables, evaluator) = (tables(&world), Evaluator::new(&cluster));
            let is_found = |probe: &Probe| mismatch(&tables, &evaluator, probe).is_some();
            let probe = probes.into_iter().find(is_found)?;
            Some((world, probe))
        });
        let (world, probe) = found.next().expect("a world in which the fault shows");

        let (least, why, line) = least(&world, &probe, seen);

        println!("{fault}: {line}");
        let told = least.updates();
        assert!(told.len() <= 5, "{fault}: {why}: {told:#?}");
        assert!(
            told.len() < world.updates().len(),
            "{fault}: nothing was taken out"
        );
        assert_eq!(differs(&least, &probe, |cluster| cluster), None, "{fault}");
    }
}
