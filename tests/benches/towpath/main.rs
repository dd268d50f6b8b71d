//! `cargo xtask bench`: what the product costs, measured.
//!
//! Arms that are compared run in one process, rounds interleaved; figures are minimum, median and the ratio to the
//! control arm. `--gate` compares the ratios and ends with status 1 when one is missed. Needs root and nft; works in
//! network namespaces of its own.
#![forbid(unsafe_code)]

mod agent;
mod events;
mod namespace;
mod packet;
mod report;
mod worlds;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser as _;

use report::Report;

#[derive(clap::Parser)]
struct Arguments {
    /// Compare ratios with the gates.
    #[arg(long)]
    gate: bool,
    /// Only sections whose name contains this text.
    #[arg(long, default_value = "")]
    only: String,
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
    let is_chosen = |name: &str| name.contains(&arguments.only);
    if is_chosen("packet") {
        packet::run(&mut report).context("packet")?;
    }
    if is_chosen("events") {
        events::run(&mut report).context("events")?;
    }
    if is_chosen("agent") {
        let agent = agent_program().context("the agent is not built")?;
        agent::run(&mut report, &agent, arguments.starts).context("agent")?;
    }
    std::io::stdout().write_all(report.text().as_bytes())?;
    if let Some(path) = &arguments.json {
        let json = serde_json::to_vec_pretty(&report)?;
        std::fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(!arguments.gate || report.is_kept())
}

/// The agent that was built beside this program: `target/release/towpath`.
fn agent_program() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let folder = own
        .parent()
        .and_then(std::path::Path::parent)
        .context("this program lies in a folder")?;
    Ok(folder.join("towpath"))
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
