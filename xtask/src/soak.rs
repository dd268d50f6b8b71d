//! `cargo xtask soak`: the oracles with fresh seeds, round after round, until the time is over.
//!
//! Every round prints its seed; a failed one names the variables that repeat it.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::cargo::{build_programs, cargo};
use crate::output::{say, warn};
use crate::setup;
use crate::test::PROPERTY_SEED;

/// How long, and how much in a round.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Minutes after which no further round begins; the first always runs
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// Random worlds per round for compiler against evaluator, 60 flows each
    #[arg(long, default_value_t = 50_000)]
    cases: u64,
    /// Random walks per round for changes against the whole, and for the fake against the kernel
    #[arg(long, default_value_t = 2_000)]
    walks: u64,
    /// Packets per round for evaluator against kernel
    #[arg(long, default_value_t = 20_000)]
    probes: u64,
    /// Pods that start per round, without the chained plugin and with it
    #[arg(long, default_value_t = 1_000)]
    starts: u64,
    /// Seed of the first round; a fresh one each by default
    #[arg(long)]
    seed: Option<u64>,
}

/// A test program that a seed makes new.
struct Oracle {
    name: &'static str,
    package: &'static str,
    test: &'static str,
}

const ORACLES: [Oracle; 5] = [
    Oracle {
        name: "fake against kernel",
        package: "towpath-dataplane",
        test: "nft_walk",
    },
    Oracle {
        name: "compiler against evaluator",
        package: "towpath-core",
        test: "oracle",
    },
    Oracle {
        name: "changes against the whole",
        package: "towpath-core",
        test: "graph",
    },
    Oracle {
        name: "evaluator against kernel",
        package: "towpath-tests",
        test: "kernel_oracle",
    },
    Oracle {
        name: "pods that start",
        package: "towpath-tests",
        test: "pod_starts",
    },
];

/// Runs rounds until the time is over or one fails.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    setup::try_install();
    // The lab starts them.
    build_programs()?;
    let end = Duration::from_secs(arguments.minutes.saturating_mul(60));
    let started = Instant::now();
    let mut rounds = 0;
    while rounds == 0 || started.elapsed() < end {
        let seed = match arguments.seed {
            // Far apart: seeds count up within a round.
            Some(first) => first.saturating_add(rounds * 1_000_000_000),
            None => fresh_seed(),
        };
        for oracle in &ORACLES {
            if !round(oracle, arguments, seed)? {
                return Ok(ExitCode::FAILURE);
            }
        }
        rounds += 1;
    }
    say(&format!(
        "{rounds} rounds in {} s, no mismatch",
        started.elapsed().as_secs()
    ));
    Ok(ExitCode::SUCCESS)
}

/// A seed that nobody has tried, with room to count up from.
fn fresh_seed() -> u64 {
    // The only randomness of the standard library: keys of its hashes.
    RandomState::new().build_hasher().finish() >> 16
}

fn round(oracle: &Oracle, arguments: &Arguments, seed: u64) -> Result<bool> {
    let variables = [
        ("TOWPATH_SEED", seed),
        ("TOWPATH_CASES", arguments.cases),
        ("TOWPATH_WALKS", arguments.walks),
        ("TOWPATH_PROBES", arguments.probes),
        ("TOWPATH_STARTS", arguments.starts),
        (PROPERTY_SEED, seed),
        ("PROPTEST_CASES", arguments.walks),
    ];
    let pairs: Vec<String> = variables
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let pairs = pairs.join(" ");
    say(&format!("== {}: {pairs}", oracle.name));
    let mut command = cargo(&[
        "test",
        "--quiet",
        "--package",
        oracle.package,
        "--test",
        oracle.test,
    ]);
    command.args(["--", "--nocapture"]);
    for (name, value) in variables {
        command.env(name, value.to_string());
    }
    let status = command.status().context("cannot start cargo")?;
    if !status.success() {
        warn(&format!(
            "{} failed; repeat it with: {pairs} cargo test --package {} --test {}",
            oracle.name, oracle.package, oracle.test
        ));
    }
    Ok(status.success())
}
