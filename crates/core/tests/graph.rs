//! The calculation graph under any order of events, and what packets meet between its batches.
//!
//! A walk goes from one random world to the next by updates in any order. After each flush the tables that the
//! deltas built equal the tables that the graph wants, and those judge as a fresh graph's do. Between two batches a
//! packet reads each table with the newest generation: whatever the moment, it meets the old verdict or the new
//! one (edge case 7).

use std::net::IpAddr;

use towpath_core::calc::CalcGraph;
use towpath_core::evaluate::{Evaluator, Reason};
use towpath_core::generate::{LOCAL_NODE, Probe, World, difference, sample};
use towpath_core::model::{Cluster, Direction, Protocol, Update, Verdict};
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

/// Splitmix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).expect("below a usize")
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
fn commit(tables: &mut Tables, delta: &Delta, probes: &[Probe], what: &str) {
    let mut end = tables.clone();
    delta.phases.iter().for_each(|phase| end.apply(phase));
    for (index, phase) in delta.phases.iter().enumerate() {
        assert!(!phase.is_empty(), "{what}: batch {index} is empty");
        let before = tables.clone();
        tables.apply(phase);
        for probe in probes {
            let old = straddle(probe, &before, &before, 0);
            let (first, last) = (
                verdict(probe, &before, tables),
                straddle(probe, &end, &end, 0),
            );
            for found in first {
                assert!(
                    found == old || found == last,
                    "{what}: batch {index} of {}: {probe:?} meets {found}, before it {old}, in the end {last}\n\
                     {:#?}",
                    delta.phases.len(),
                    concerning(delta, probe)
                );
            }
        }
    }
}

/// Tidies up until nothing is left to do.
fn collect(graph: &mut CalcGraph, tables: &mut Tables, probes: &[Probe], what: &str) {
    for round in 0.. {
        assert!(round < 10, "{what}: collecting does not end");
        let delta = graph.collect();
        if delta == Delta::default() {
            return;
        }
        commit(tables, &delta, probes, what);
    }
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

fn verdict(probe: &Probe, before: &Tables, after: &Tables) -> Vec<Verdict> {
    (0..=Packet::READS)
        .map(|split| straddle(probe, before, after, split))
        .collect()
}

/// A graph that was told only this state wants the same, but for the numbers of classes.
fn compare(graph: &CalcGraph, cluster: &Cluster, what: &str) {
    let mut fresh = CalcGraph::new(LOCAL_NODE);
    for update in difference(&Cluster::default(), cluster) {
        fresh.apply(&update);
    }
    fresh.flush();
    let (found, wanted) = (graph.tables(), fresh.tables());
    for direction in Direction::BOTH {
        let (found, wanted) = (found.direction(direction), wanted.direction(direction));
        assert_eq!(found.state, wanted.state, "{what}");
        assert_eq!(found.default, wanted.default, "{what}");
        assert_eq!(found.any, wanted.any, "{what}");
        assert_eq!(found.exact.len(), wanted.exact.len(), "{what}");
        assert_eq!(
            found.class_protocol.len(),
            wanted.class_protocol.len(),
            "{what}"
        );
        assert_eq!(found.class_any.len(), wanted.class_any.len(), "{what}");
        assert_eq!(
            found.profile.keys().collect::<Vec<_>>(),
            wanted.profile.keys().collect::<Vec<_>>()
        );
    }
    assert_eq!(found.bindings, wanted.bindings, "{what}");
    assert_eq!(found.pod_networks, wanted.pod_networks, "{what}");
    let addresses = |tables: &Tables| tables.peer_class.keys().copied().collect::<Vec<_>>();
    assert_eq!(addresses(&found), addresses(&wanted), "{what}");
    let blocks = |tables: &Tables| tables.cidr_class.keys().copied().collect::<Vec<_>>();
    assert_eq!(blocks(&found), blocks(&wanted), "{what}");
}

/// The tables judge as the evaluator does.
fn judge(tables: &Tables, cluster: &Cluster, probes: &[Probe], what: &str) {
    let evaluator = Evaluator::new(cluster);
    for probe in probes {
        let decision = evaluator.judge(probe.direction, &probe.flow());
        if decision.reason != Reason::NotJudged {
            assert_eq!(
                straddle(probe, tables, tables, 0),
                decision.verdict,
                "{what}: {probe:?}"
            );
        }
    }
}

/// The same change told in another way: shuffled, with duplicates, with removals in between.
fn tell(random: &mut Random, from: &Cluster, to: &Cluster) -> Vec<Update> {
    let mut updates = difference(from, to);
    for index in (1..updates.len()).rev() {
        updates.swap(index, random.below(index + 1));
    }
    let mut told = Vec::new();
    for update in updates {
        match random.below(4) {
            0 => told.extend([update.clone(), update]),
            1 => {
                if let Update::Upsert(object) = &update {
                    told.push(Update::Remove(object.key()));
                }
                told.push(update);
            }
            _ => told.push(update),
        }
    }
    told
}

fn walk(seed: u64, worlds: &[World]) {
    let mut random = Random(seed);
    let mut graph = CalcGraph::new(LOCAL_NODE);
    let mut cluster = Cluster::default();
    let mut tables = Tables::default();
    for (index, world) in worlds.iter().enumerate() {
        let what = format!("seed {seed}, world {index}");
        let wanted = world.cluster();
        let probes = world.flows(seed, PROBES);
        // Squashed into one flush, or split into several.
        let pieces = [1, 1, 3, 100][random.below(4)];
        for (position, update) in tell(&mut random, &cluster, &wanted).into_iter().enumerate() {
            graph.apply(&update);
            if pieces > 1 && position % pieces == 0 {
                commit(&mut tables, &graph.flush(), &probes, &what);
            }
        }
        commit(&mut tables, &graph.flush(), &probes, &what);
        assert_eq!(tables, graph.tables(), "{what}: the deltas lead elsewhere");
        assert_eq!(
            graph.flush(),
            Delta::default(),
            "{what}: a second flush changes something"
        );
        judge(&graph.tables(), &wanted, &probes, &what);
        // Classes that nobody has any more may keep an endpoint from being open, until they are collected.
        if random.below(2) == 0 {
            collect(&mut graph, &mut tables, &probes, &what);
            assert_eq!(tables, graph.tables(), "{what}: collecting leads elsewhere");
            compare(&graph, &wanted, &what);
            judge(&tables, &wanted, &probes, &what);
        }
        cluster = wanted;
    }
    // Nothing is left of an empty world.
    for update in tell(&mut random, &cluster, &Cluster::default()) {
        graph.apply(&update);
    }
    commit(&mut tables, &graph.flush(), &[], "emptied");
    collect(&mut graph, &mut tables, &[], "emptied");
    assert_eq!(tables, Tables::default(), "seed {seed}: something is left");
}

#[test]
fn any_order_of_events_leads_to_the_same_tables_and_no_packet_meets_a_third_verdict() {
    let first = number("TOWPATH_SEED", 1);
    for seed in first..first + number("TOWPATH_WALKS", 400) {
        let worlds: Vec<World> = sample(seed, 5).collect();
        walk(seed, &worlds);
    }
}

/// Small steps: one policy or one pod changes at a time.
#[test]
fn single_changes_of_one_world_hold_as_well() {
    let first = number("TOWPATH_SEED", 1);
    for seed in first..first + number("TOWPATH_WALKS", 400) {
        let mut random = Random(seed);
        let world = sample(seed, 1).next().expect("one world");
        let whole = world.cluster();
        let probes = world.flows(seed, PROBES);
        let mut graph = CalcGraph::new(LOCAL_NODE);
        let mut tables = Tables::default();
        world
            .updates()
            .into_iter()
            .for_each(|update| graph.apply(&update));
        commit(&mut tables, &graph.flush(), &probes, "start");
        let all = difference(&Cluster::default(), &whole);
        for _ in 0..8 {
            let what = format!("seed {seed}");
            let chosen = &all[random.below(all.len())];
            let other = &all[random.below(all.len())];
            for update in [chosen, other] {
                let Update::Upsert(object) = update else {
                    continue;
                };
                graph.apply(&Update::Remove(object.key()));
            }
            commit(&mut tables, &graph.flush(), &probes, &what);
            graph.apply(chosen);
            graph.apply(other);
            commit(&mut tables, &graph.flush(), &probes, &what);
            assert_eq!(tables, graph.tables(), "{what}");
        }
        judge(&tables, &whole, &probes, "end");
    }
}
