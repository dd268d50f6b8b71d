//! `cargo xtask bench`: what the product costs, measured.
//!
//! Arms that are compared run in one process, rounds interleaved; figures are minimum, median and the ratio to the
//! control arm. Bounds are shown with them; `--gate` ends with status 1 when a gate is missed. Needs root and nft; works in
//! network namespaces of its own.
#![forbid(unsafe_code)]

mod agent;
mod blow_up;
mod events;
mod expansion;
mod kernel_memory;
mod kubernetes;
mod links;
mod namespace;
mod packet;
mod part;
mod pods;
mod report;
mod worlds;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser as _, ValueEnum as _};

use part::Part;
use report::Report;
use towpath_tests::program;

#[derive(clap::Parser)]
struct Arguments {
    /// End with status 1 when a gate is missed.
    #[arg(long)]
    gate: bool,
    /// Only these parts.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Part>,
    /// The agent on a real API server instead.
    #[arg(long, conflicts_with = "only")]
    kubernetes: bool,
    /// Write everything as JSON to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Starts of the agent.
    #[arg(long, default_value_t = 3)]
    starts: u32,
    /// Cargo says so.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every gate that counts is kept.
fn run(arguments: &Arguments) -> Result<bool> {
    let mut report = Report {
        machine: machine(),
        ..Report::default()
    };
    if arguments.kubernetes {
        kubernetes::run(&mut report)?;
    }
    for part in Part::value_variants() {
        let is_wanted = arguments.only.is_empty() || arguments.only.contains(part);
        if is_wanted && !arguments.kubernetes {
            measure(*part, arguments, &mut report).with_context(|| format!("part {part:?}"))?;
        }
    }
    std::io::stdout().write_all(report.text().as_bytes())?;
    if let Some(path) = &arguments.json {
        let json = serde_json::to_vec_pretty(&report)?;
        std::fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(!arguments.gate || report.is_kept())
}

fn measure(part: Part, arguments: &Arguments, report: &mut Report) -> Result<()> {
    match part {
        Part::Packet => packet::run(report),
        Part::Events => events::run(report),
        Part::Expansion => expansion::run(report),
        Part::Links => links::run(report),
        Part::Agent => {
            let agent = program::towpath()?;
            agent::run(report, &agent, arguments.starts)
        }
    }
}

/// Kernel, processor and cores, for the reader.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let load = read("/proc/loadavg");
    format!(
        "Linux {}, {cores} cores of {}, load {}",
        read("/proc/sys/kernel/osrelease").trim(),
        model.unwrap_or("an unknown processor"),
        load.split(' ').next().unwrap_or_default()
    )
}
