//! Calls of cargo, always in the workspace.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// The workspace's folder.
pub(crate) fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// A call of the cargo that runs us.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.args(arguments).current_dir(root());
    command
}

/// Builds the agent and the lab's prober, which the lab looks for beside this program.
pub(crate) fn build_programs() -> Result<()> {
    let status = cargo(&["build", "--quiet", "--bins"])
        .args([
            "--package",
            "policy-agent",
            "--package",
            "towpath-cni",
            "--package",
            "towpath-tests",
        ])
        .status()
        .context("cannot start cargo")?;
    if !status.success() {
        bail!("the build ended with {status}");
    }
    Ok(())
}
