//! `cargo xtask bench`: builds the product and the benchmark for release and runs them.

use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};
use clap::ValueEnum as _;

use crate::cargo::cargo;
use crate::dist;
use crate::setup;

// The benchmark's own list, so that help and what exists are one.
#[path = "../../tests/benches/towpath/part.rs"]
mod part;

/// Micro-benchmarks: package and name. They measure pure functions, in no namespace.
const MICRO: [(&str, &str); 1] = [("towpath-core", "graph")];

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// End with status 1 when a gate is missed
    #[arg(long)]
    gate: bool,
    /// Only these parts
    #[arg(long, value_name = "PART", value_delimiter = ',')]
    only: Vec<part::Part>,
    /// The agent on a real API server instead, with 10,000 pods and 10,000 policies; its goals are the gate
    #[arg(long, conflicts_with_all = ["only", "micro"])]
    kubernetes: bool,
    /// Write everything as JSON to this file
    #[arg(long)]
    json: Option<std::path::PathBuf>,
    /// Run the micro-benchmarks of pure functions instead
    #[arg(long, conflicts_with_all = ["gate", "only", "json"])]
    micro: bool,
}

/// Runs the benchmark; its exit code is ours.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.micro {
        return run_micro();
    }
    setup::install()?;
    if arguments.kubernetes {
        setup::install_cluster()?;
    }
    let agent = dist::agent()?;
    let mut command = cargo(&[
        "bench",
        "--quiet",
        "--package",
        "towpath-tests",
        "--bench",
        "towpath",
        "--",
    ]);
    // What is measured is what ships.
    command.env("TOWPATH_BIN", agent);
    if arguments.gate {
        command.arg("--gate");
    }
    if arguments.kubernetes {
        command.env("TOWPATH_CNI_BIN", dist::plugin()?);
        command.arg("--kubernetes");
    }
    for part in &arguments.only {
        let name = part.to_possible_value().context("a part has a name")?;
        command.args(["--only", name.get_name()]);
    }
    if let Some(json) = &arguments.json {
        command.arg("--json").arg(std::path::absolute(json)?);
    }
    finished(&mut command)
}

fn run_micro() -> Result<ExitCode> {
    for (package, name) in MICRO {
        let arguments = ["bench", "--quiet", "--package", package, "--bench", name];
        if finished(&mut cargo(&arguments))? != ExitCode::SUCCESS {
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn finished(command: &mut Command) -> Result<ExitCode> {
    let status = command.status().context("cannot start the benchmark")?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
