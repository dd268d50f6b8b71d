//! `cargo xtask build`: the programs as they ship, static, so that they run on any node whatever its C library.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};

use crate::cargo::{cargo, root};
use crate::output::say;
use crate::setup;

/// Builds the agent and the CNI plugin, and says where they are.
pub(crate) fn run() -> Result<ExitCode> {
    say(&agent()?.display().to_string());
    say(&plugin()?.display().to_string());
    Ok(ExitCode::SUCCESS)
}

/// Builds the agent's program as it ships.
pub(crate) fn agent() -> Result<PathBuf> {
    built("towpath", "dist")
}

/// Builds the CNI plugin as it ships.
pub(crate) fn plugin() -> Result<PathBuf> {
    built("towpath-cni", "plugin")
}

fn built(program: &str, profile: &str) -> Result<PathBuf> {
    setup::install_static()?;
    let target = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    add_target(&target)?;
    let status = cargo(&["build", "--quiet", "--profile", profile, "--bin", program])
        .args(["--target", &target])
        .status()
        .context("cannot start cargo")?;
    if !status.success() {
        bail!("the build of {program} ended with {status}");
    }
    let folder =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    Ok(folder.join(target).join(profile).join(program))
}

/// Rust's own libraries for the target, which a new machine lacks.
fn add_target(target: &str) -> Result<()> {
    let folder = Command::new("rustc")
        .args(["--print", "target-libdir", "--target", target])
        .current_dir(root())
        .output()
        .context("cannot start rustc")?;
    let folder = String::from_utf8(folder.stdout)?;
    if PathBuf::from(folder.trim()).is_dir() {
        return Ok(());
    }
    say(&format!("adding Rust's target {target}"));
    let added = Command::new("rustup")
        .args(["target", "add", target])
        .current_dir(root())
        .status()
        .with_context(|| {
            format!("Rust's target {target} is missing, and there is no rustup to add it")
        })?;
    if !added.success() {
        bail!("rustup cannot add the target {target}: {added}");
    }
    Ok(())
}
