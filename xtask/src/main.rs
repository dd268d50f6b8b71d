//! Every command that a contributor or CI runs: `cargo xtask --help`.

#![forbid(unsafe_code)]

mod bench;
mod cargo;
mod demo;
mod dist;
mod interrupt;
mod lab;
mod mutants;
mod output;
mod setup;
mod skips;
mod soak;
mod test;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Builds, tests and shows towpath.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Installs the Debian packages that the lab and the tests use, and builds the servers of its cluster
    Setup,
    /// Builds the programs as they ship: static
    Build,
    /// Runs every check and test: formatting, lints, documentation, unit, property and kernel tests
    Test,
    /// Shows the main job on two nodes in namespaces, with real packets; with --kubernetes on a real cluster
    Demo(demo::Arguments),
    /// Measures; all arms in one process, interleaved
    Bench(bench::Arguments),
    /// Seeds faults into a copy of the sources and checks that the suite catches each
    Mutants {
        /// Only faults whose name contains this text
        filter: Option<String>,
    },
    /// Runs the oracles with fresh seeds, round after round
    Soak(soak::Arguments),
    /// A lab to play with
    Lab {
        #[command(subcommand)]
        command: lab::Verb,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            output::warn(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Setup => setup::run(),
        Verb::Build => dist::run(),
        Verb::Test => test::run(),
        Verb::Demo(arguments) => demo::run(&arguments),
        Verb::Bench(arguments) => bench::run(&arguments),
        Verb::Mutants { filter } => mutants::run(filter.as_deref()),
        Verb::Soak(arguments) => soak::run(&arguments),
        Verb::Lab { command } => lab::run(&command),
    }
}
