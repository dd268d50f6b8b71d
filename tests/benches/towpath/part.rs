//! The parts of the benchmark. `xtask` compiles this file too, so that its help names what exists.

/// A part that can be run alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Part {
    /// What a packet costs: new and established flows through a router
    Packet,
    /// What an event costs, from memory to committed, at 100,000 peers; cold load
    Events,
    /// Policies that could blow up: overlapping selectors, wide rules, port ranges, wide activation
    Expansion,
    /// What looking for pods costs: links and addresses behind 110 veths
    Links,
    /// The agent from start to enforced, its memory and the kernel's
    Agent,
}
