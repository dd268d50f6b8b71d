//! `cargo xtask bench`: builds the product and the benchmark for release and runs them.

use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

use crate::cargo::cargo;
use crate::setup;

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Compare ratios with the gates; exit status 1 when one is missed
    #[arg(long)]
    gate: bool,
    /// Only sections whose name contains this text: packet, events, agent, expansion
    #[arg(long)]
    only: Option<String>,
    /// Write everything as JSON to this file
    #[arg(long)]
    json: Option<std::path::PathBuf>,
}

/// Runs the benchmark; its exit code is ours.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    setup::install()?;
    let built = cargo(&["build", "--quiet", "--release", "--package", "policy-agent"])
        .status()
        .context("cannot start cargo")?;
    if !built.success() {
        bail!("the build ended with {built}");
    }
    let mut command = cargo(&[
        "bench",
        "--quiet",
        "--package",
        "towpath-tests",
        "--bench",
        "towpath",
        "--",
    ]);
    if arguments.gate {
        command.arg("--gate");
    }
    if let Some(only) = &arguments.only {
        command.args(["--only", only]);
    }
    if let Some(json) = &arguments.json {
        command.arg("--json").arg(std::path::absolute(json)?);
    }
    let status = command.status().context("cannot start the benchmark")?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
