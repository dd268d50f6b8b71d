//! The calculation graph under any order of events, and what packets meet between its batches.
//!
//! A walk goes from one random world to the next by updates in any order. After each flush the tables that the
//! deltas built equal the tables that the graph wants, and those judge as the evaluator does. Between two batches a
//! packet reads each table with the newest generation: whatever the moment, it meets the old verdict or the new
//! one (edge case 7).
//!
//! `TOWPATH_WALKS` is the number of walks, `TOWPATH_SEED` the first seed. A walk that fails is shrunk; the line to
//! add to `regressions/` is printed. What is kept there runs first.

use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};

use towpath_core::calc::{BLOCK_ENTRIES, CalcGraph};
use towpath_core::evaluate::{Evaluator, Reason};
use towpath_core::generate::{
    Kept, LOCAL_NODE, Probe, Step, Walk, World, difference, flows, kept, line, sample, shrink,
};
use towpath_core::model::{
    Cluster, Direction, Endpoint, Object, ObjectKey, Protocol, Update, Verdict,
};
use towpath_core::tables::{
    ClassId, ClassKey, ClassProtocolKey, Delta, EndpointState, ExactKey, PortKey, Tables,
};

/// Flows asked after each flush.
const PROBES: usize = 60;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

/// What went wrong, and the packet that met it, if one did.
#[derive(Debug)]
struct Failure {
    why: String,
    probe: Option<Probe>,
}

/// Fails the walk unless a condition holds.
fn ensure(holds: bool, why: impl FnOnce() -> String) -> Result<(), Failure> {
    if holds {
        Ok(())
    } else {
        Err(Failure {
            why: why(),
            probe: None,
        })
    }
}

/// The reads of one packet, in order. Each takes the tables of its moment; the first to return a verdict decides.
struct Packet {
    direction: Direction,
    endpoint: IpAddr,
    peer: IpAddr,
    transport: Option<(Protocol, u16)>,
    class: ClassId,
}

impl Packet {
    const READS: usize = 8;

    fn read(&mut self, step: usize, tables: &Tables) -> Option<Verdict> {
        let side = tables.direction(self.direction);
        let (endpoint, class) = (self.endpoint, self.class);
        match step {
            0 => match side.state.get(&endpoint) {
                None => Some(Verdict::Deny),
                Some(EndpointState::Open) => Some(Verdict::Allow),
                Some(EndpointState::Restricted) => None,
            },
            1 => {
                self.class = tables.class_of(self.peer);
                None
            }
            2 => self.transport.and_then(|(protocol, port)| {
                side.exact
                    .get(&ExactKey {
                        endpoint,
                        class,
                        protocol,
                        port,
                    })
                    .copied()
            }),
            3 => self.transport.and_then(|(protocol, _)| {
                side.class_protocol
                    .get(&ClassProtocolKey {
                        endpoint,
                        class,
                        protocol,
                    })
                    .copied()
            }),
            4 => side.class_any.get(&ClassKey { endpoint, class }).copied(),
            5 => self.transport.and_then(|(protocol, port)| {
                side.any
                    .get(&PortKey {
                        endpoint,
                        protocol,
                        port,
                    })
                    .copied()
            }),
            6 => {
                let profile = tables.profiles.get(side.profile.get(&endpoint)?)?;
                let matching = profile.rules.iter().find(|rule| {
                    rule.classes
                        .as_ref()
                        .is_none_or(|classes| classes.contains(&class))
                        && rule.ports.as_ref().is_none_or(|ports| {
                            self.transport.is_some_and(|(protocol, port)| {
                                ports.protocol == protocol
                                    && ports.ranges.iter().any(|(a, b)| (*a..=*b).contains(&port))
                            })
                        })
                });
                matching.map(|rule| rule.verdict)
            }
            _ => Some(
                side.default
                    .get(&endpoint)
                    .copied()
                    .unwrap_or(Verdict::Deny),
            ),
        }
    }
}

/// The verdict of a packet whose first `split` reads see `before` and whose others see `after`.
fn straddle(probe: &Probe, before: &Tables, after: &Tables, split: usize) -> Verdict {
    let transport = Protocol::from_number(probe.protocol).map(|protocol| (protocol, probe.port));
    let mut packet = Packet {
        direction: probe.direction,
        endpoint: probe.endpoint,
        peer: probe.peer,
        transport,
        class: ClassId::NONE,
    };
    (0..Packet::READS)
        .find_map(|step| packet.read(step, if step < split { before } else { after }))
        .expect("the last read decides")
}

/// Applies a delta to `tables`, checking every packet at every moment of it.
fn commit(tables: &mut Tables, delta: &Delta, probes: &[Probe]) -> Result<(), Failure> {
    let mut end = tables.clone();
    delta.phases.iter().for_each(|phase| end.apply(phase));
    for (index, phase) in delta.phases.iter().enumerate() {
        ensure(!phase.is_empty(), || format!("batch {index} is empty"))?;
        let before = tables.clone();
        tables.apply(phase);
        for probe in probes {
            let (old, last) = (
                straddle(probe, &before, &before, 0),
                straddle(probe, &end, &end, 0),
            );
            let third = verdicts(probe, &before, tables).find(|met| *met != old && *met != last);
            if let Some(met) = third {
                let why = format!(
                    "in batch {index} of {} a packet meets {met}, before it {old}, in the end {last}: {:#?}",
                    delta.phases.len(),
                    concerning(delta, probe)
                );
                return Err(Failure {
                    why,
                    probe: Some(*probe),
                });
            }
        }
    }
    Ok(())
}

/// Tidies up until nothing is left to do.
fn collect(graph: &mut CalcGraph, tables: &mut Tables, probes: &[Probe]) -> Result<(), Failure> {
    for _ in 0..10 {
        let delta = graph.collect();
        if delta == Delta::default() {
            return Ok(());
        }
        commit(tables, &delta, probes)?;
    }
    ensure(false, || "collecting does not end".to_owned())
}

/// The part of a delta that a packet could notice.
fn concerning(delta: &Delta, probe: &Probe) -> Vec<String> {
    let of = |phase: &towpath_core::tables::Phase| {
        let side = match probe.direction {
            Direction::Ingress => &phase.ingress,
            Direction::Egress => &phase.egress,
        };
        let e = probe.endpoint;
        let exact: Vec<_> = side
            .exact
            .iter()
            .filter(|(key, _)| key.endpoint == e)
            .collect();
        let protocol: Vec<_> = side
            .class_protocol
            .iter()
            .filter(|(key, _)| key.endpoint == e)
            .collect();
        let class: Vec<_> = side
            .class_any
            .iter()
            .filter(|(key, _)| key.endpoint == e)
            .collect();
        let any: Vec<_> = side
            .any
            .iter()
            .filter(|(key, _)| key.endpoint == e)
            .collect();
        format!(
            "peer {:?} blocks {:?} state {:?} exact {exact:?} protocol {protocol:?} class {class:?} any {any:?} \
             profile {:?} default {:?}",
            phase.peer_class.get(&probe.peer),
            phase
                .cidr_class
                .iter()
                .filter(|(net, _)| net.contains(&probe.peer))
                .collect::<Vec<_>>(),
            side.state.get(&e),
            side.profile.get(&e),
            side.default.get(&e)
        )
    };
    delta.phases.iter().map(of).collect()
}

/// What a packet meets whose reads straddle a batch at any point.
fn verdicts(probe: &Probe, before: &Tables, after: &Tables) -> impl Iterator<Item = Verdict> {
    (0..=Packet::READS).map(|split| straddle(probe, before, after, split))
}

/// A graph that was told only this state wants the same, but for the numbers of classes.
fn compare(found: &Tables, cluster: &Cluster, setup: Setup) -> Result<(), Failure> {
    let mut fresh = setup.graph();
    for update in difference(&Cluster::default(), cluster) {
        fresh.apply(&update);
    }
    fresh.flush();
    let wanted = fresh.tables();
    let shape = |tables: &Tables| {
        let sides = Direction::BOTH.map(|direction| {
            let side = tables.direction(direction);
            (
                side.state.clone(),
                side.default.clone(),
                side.any.clone(),
                side.profile.keys().copied().collect::<Vec<_>>(),
                [
                    side.exact.len(),
                    side.class_protocol.len(),
                    side.class_any.len(),
                ],
            )
        });
        let addresses: Vec<_> = tables.peer_class.keys().copied().collect();
        let blocks: Vec<_> = tables.cidr_class.keys().copied().collect();
        let (bindings, networks) = (tables.bindings.clone(), tables.pod_networks.clone());
        (sides, addresses, blocks, bindings, networks)
    };
    let (found, wanted) = (shape(found), shape(&wanted));
    ensure(found == wanted, || {
        format!("a fresh graph wants other tables:\nfound {found:#?}\nwanted {wanted:#?}")
    })
}

/// The tables judge as the evaluator does. Where blocks are refused they may deny what it allows, never the reverse.
fn judge(
    tables: &Tables,
    cluster: &Cluster,
    probes: &[Probe],
    is_refusing: bool,
) -> Result<(), Failure> {
    let evaluator = Evaluator::new(cluster);
    for probe in probes {
        let decision = evaluator.judge(probe.direction, &probe.flow());
        let endpoint = decision.endpoint.as_ref();
        let endpoint = endpoint.and_then(|id| cluster.endpoints.get(id));
        let is_judged = match decision.reason {
            Reason::NotJudged => false,
            Reason::Unknown => endpoint.is_none_or(is_local),
            _ => endpoint.is_some_and(|endpoint| is_plugged(cluster, endpoint, probe.endpoint)),
        };
        let found = straddle(probe, tables, tables, 0);
        let is_closed = is_refusing && found == Verdict::Deny;
        if is_judged && found != decision.verdict && !is_closed {
            let why = format!("the tables say {found}, the evaluator {decision:?}");
            let probe = Some(*probe);
            return Err(Failure { why, probe });
        }
    }
    Ok(())
}

fn is_local(endpoint: &Endpoint) -> bool {
    endpoint.node.as_deref() == Some(LOCAL_NODE)
}

/// Whether one interface of this node, and no other, is the endpoint's beyond doubt. The evaluator does not look at
/// interfaces; the tables keep an endpoint closed until it has one.
fn is_plugged(cluster: &Cluster, endpoint: &Endpoint, address: IpAddr) -> bool {
    let mut having = cluster
        .interfaces
        .values()
        .filter(|interface| interface.addresses.contains(&address));
    let (Some(interface), None) = (having.next(), having.next()) else {
        return false;
    };
    let names_it = endpoint
        .interface
        .as_ref()
        .is_none_or(|name| *name == interface.name);
    is_local(endpoint) && names_it && interface.addresses == endpoint.addresses
}

/// What the graph hears of the updates: all of them, unless it is made to be hard of hearing.
type Heard = fn(&Update) -> bool;

/// The graph of a walk.
#[derive(Clone, Copy)]
struct Setup {
    is_heard: Heard,
    /// How many entries of blocks it takes.
    block_entries: usize,
}

impl Setup {
    const PLAIN: Self = Self {
        is_heard: |_| true,
        block_entries: BLOCK_ENTRIES,
    };

    fn graph(self) -> CalcGraph {
        CalcGraph::new(LOCAL_NODE).with_block_entries(self.block_entries)
    }
}

/// Walks. Packets come at each flush, random ones of the states before and after it, unless one is given.
fn run(walk: &Walk, seed: u64, packet: Option<Probe>, setup: Setup) -> Result<(), Failure> {
    let (mut graph, mut tables) = (setup.graph(), Tables::default());
    // What the graph was told, and what of it was there at the last flush.
    let (mut cluster, mut told) = (Cluster::default(), Cluster::default());
    let mut probes: Vec<Probe> = Vec::new();
    for (step, update) in walk.told() {
        if let Some(update) = update {
            if (setup.is_heard)(&update) {
                graph.apply(&update);
            }
            cluster.apply(update);
        }
        match step {
            Step::Upsert(..) | Step::Remove(..) => {}
            Step::Flush => {
                let random = || {
                    [
                        flows(&cluster, seed, PROBES),
                        flows(&told, seed, PROBES / 2),
                    ]
                };
                probes = packet.map_or_else(|| random().concat(), |packet| vec![packet]);
                told.clone_from(&cluster);
                commit(&mut tables, &graph.flush(), &probes)?;
                let wanted = graph.tables();
                ensure(tables == wanted, || "the deltas lead elsewhere".to_owned())?;
                let again = graph.flush();
                ensure(again == Delta::default(), || {
                    format!("a second flush changes something: {again:#?}")
                })?;
                judge(&tables, &cluster, &probes, !graph.refused().is_empty())?;
            }
            // Classes that nobody has any more may keep an endpoint from being open, until they are collected.
            Step::Collect => {
                commit(&mut tables, &graph.flush(), &probes)?;
                collect(&mut graph, &mut tables, &probes)?;
                let wanted = graph.tables();
                ensure(tables == wanted, || "collecting leads elsewhere".to_owned())?;
                compare(&tables, &cluster, setup)?;
                judge(&tables, &cluster, &probes, !graph.refused().is_empty())?;
                let has_rest = cluster == Cluster::default() && tables != Tables::default();
                ensure(!has_rest, || format!("something is left: {tables:#?}"))?;
            }
        }
    }
    Ok(())
}

/// As [`run`]; a panic is a failure too.
fn outcome(walk: &Walk, seed: u64, packet: Option<Probe>, setup: Setup) -> Result<(), Failure> {
    let walked = catch_unwind(AssertUnwindSafe(|| run(walk, seed, packet, setup)));
    walked.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        ensure(false, || format!("panic: {}", text.unwrap_or("no text")))
    })
}

/// A walk that fails, shrunk.
struct Least {
    walk: Walk,
    /// The one packet, if the walk fails without the others.
    packet: Option<Probe>,
    why: String,
    line: String,
}

/// The least walk that fails, if this one does.
fn least(walk: &Walk, seed: u64, setup: Setup) -> Option<Least> {
    let failure = outcome(walk, seed, None, setup).err()?;
    let fails_alone = |probe: &Probe| outcome(walk, seed, Some(*probe), setup).is_err();
    let packet = failure.probe.filter(fails_alone);
    let walk = shrink(walk, |walk| outcome(walk, seed, packet, setup).is_err());
    let why = outcome(&walk, seed, packet, setup).expect_err("a shrunk walk still fails");
    let why = why.why;
    let first_line = why.lines().next().unwrap_or_default();
    let line = line(
        &(&walk, seed, packet),
        env!("CARGO_PKG_VERSION"),
        first_line,
    );
    Some(Least {
        walk,
        packet,
        why,
        line,
    })
}

/// Walks; a walk that fails is told in its least form.
fn check(walk: &Walk, seed: u64, setup: Setup) {
    let Some(least) = least(walk, seed, setup) else {
        return;
    };
    let steps: Vec<String> = least.walk.told().map(|told| format!("{told:?}")).collect();
    panic!(
        "seed {seed}: {}\npacket: {:?}\nsteps:\n{}\nto keep it, add to \
         crates/core/tests/regressions/graph.txt:\n{}",
        least.why,
        least.packet,
        steps.join("\n"),
        least.line
    );
}

fn through(seed: u64) -> Walk {
    let worlds: Vec<World> = sample(seed, 5).collect();
    Walk::through(worlds, seed)
}

#[test]
fn kept_walks_hold() {
    let kept = kept::<(Walk, u64, Option<Probe>)>(include_str!("regressions/graph.txt"));
    for (kept, why) in kept {
        match kept {
            Kept::Seed(seed) => check(&through(seed), seed, Setup::PLAIN),
            Kept::Case((walk, seed, packet)) => {
                let outcome = outcome(&walk, seed, packet, Setup::PLAIN);
                outcome.unwrap_or_else(|failure| panic!("{why}: {failure:?}"));
            }
        }
    }
}

#[test]
fn any_order_of_events_leads_to_the_same_tables_and_no_packet_meets_a_third_verdict() {
    let first = number("TOWPATH_SEED", 1);
    for seed in first..first + number("TOWPATH_WALKS", 400) {
        check(&through(seed), seed, Setup::PLAIN);
    }
}

/// A graph that takes few blocks refuses many, whose addresses then are met perhaps.
#[test]
fn a_graph_that_refuses_blocks_stays_closed_and_goes_by_the_state_alone() {
    let first = number("TOWPATH_SEED", 1);
    for seed in first..first + number("TOWPATH_WALKS", 400) {
        let setup = Setup {
            block_entries: usize::try_from(seed % 12).expect("below 12"),
            ..Setup::PLAIN
        };
        check(&through(seed), seed, setup);
    }
}

/// Small steps: two objects go and come back at a time.
#[test]
fn single_changes_of_one_world_hold_as_well() {
    let first = number("TOWPATH_SEED", 1);
    for seed in first..first + number("TOWPATH_WALKS", 400) {
        let world = sample(seed, 1).next().expect("one world");
        check(&Walk::around(world, 8, seed), seed, Setup::PLAIN);
    }
}

/// The walks and the shrinker at work: what a graph does not hear is found, and told by a few steps.
#[test]
fn a_graph_that_is_hard_of_hearing_is_found_and_told_by_few_steps() {
    let faults: [(&str, Heard); 3] = [
        ("misses that a namespace is gone", |update| {
            !matches!(update, Update::Remove(ObjectKey::Namespace(_)))
        }),
        ("misses that a policy is gone", |update| {
            !matches!(update, Update::Remove(ObjectKey::Policy(_)))
        }),
        ("misses nodes", |update| {
            !matches!(update, Update::Upsert(Object::Node(_)))
        }),
    ];
    for (fault, is_heard) in faults {
        let setup = Setup {
            is_heard,
            ..Setup::PLAIN
        };
        let found = (1..100).find_map(|seed| least(&through(seed), seed, setup));
        let least = found.expect("a walk in which the fault shows");

        println!("{fault}: {}", least.line);
        assert!(
            least.walk.steps.len() <= 8,
            "{fault}: {:#?}",
            least.walk.steps
        );
    }
}
