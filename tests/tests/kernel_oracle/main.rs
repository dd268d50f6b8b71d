//! The evaluator against the kernel: random worlds, real packets, no mismatch.
//!
//! Each world is compiled, brought into the kernel of a node by the agent's applier, and probed with the first
//! packets of random connections. A probe is sent once, and a fence behind it tells when it must have arrived.
//! What the evaluator says of the sides on this node is what must happen. Before the tables are loaded every probe
//! must arrive: so each one that is dropped later is dropped by the tables.
//!
//! `TOWPATH_PROBES` is the number of probes, `TOWPATH_SEED` the seed of the first world. A seed gives the same worlds
//! and probes everywhere.

mod batch;
mod control;
mod enforcer;
mod fabric;
mod packet;
mod plan;
mod report;
mod walk;
mod worlds;

use towpath_core::generate::{World, sample};

use plan::Plan;

/// A number that the environment may set.
fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")),
        Err(_) => default,
    }
}

/// Seed of the first world.
fn first_seed() -> u64 {
    number("TOWPATH_SEED", 1)
}

/// Worlds with their seeds, without those in which the fence would be a packet between pods.
fn worlds(first: u64, count: usize) -> impl Iterator<Item = (u64, World)> {
    let worlds = (first..).zip(sample(first, count));
    worlds.filter(|(_, world)| Plan::new(&world.cluster()).leaves_the_fence_alone())
}

/// How many probes one of several tests sends: its share of all, in tenths.
fn share_of_probes(tenths: usize) -> usize {
    let all = usize::try_from(number("TOWPATH_PROBES", 8_000)).expect("a count fits in memory");
    all * tenths / 10
}
