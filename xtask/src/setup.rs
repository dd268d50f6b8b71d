//! What the lab and the tests need from Debian.

use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};
use nix::unistd::geteuid;
use towpath_tests::program;

use crate::output::{say, warn};

/// A program and the Debian package that brings it.
const PROGRAMS: [(&str, &str); 7] = [
    // Builds the agent's allocator.
    ("make", "make"),
    ("nft", "nftables"),
    ("ip", "iproute2"),
    ("conntrack", "conntrack"),
    ("ping", "iputils-ping"),
    ("tcpdump", "tcpdump"),
    ("ethtool", "ethtool"),
];

const PLUGINS: &str = "containernetworking-plugins";

/// `cargo xtask setup`.
pub(crate) fn run() -> Result<ExitCode> {
    if missing().is_empty() {
        say("all Debian packages that the lab uses are installed");
        return Ok(ExitCode::SUCCESS);
    }
    install()?;
    Ok(ExitCode::SUCCESS)
}

/// Installs what is missing, or says why not. For commands that can do part of their work without.
pub(crate) fn try_install() {
    if let Err(error) = install() {
        warn(&format!(
            "warning: {error:#}; tests that need it are skipped"
        ));
    }
}

/// Installs what is missing.
pub(crate) fn install() -> Result<()> {
    let packages = missing();
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    if !geteuid().is_root() {
        bail!("Debian packages are missing; run as root: apt-get install {list}");
    }
    say(&format!("installing missing Debian packages: {list}"));
    if apt_get(&["install", "--yes", "--no-install-recommends"], &packages).is_err() {
        // A new machine has no package lists, or old ones.
        apt_get(&["update"], &[])?;
        apt_get(&["install", "--yes", "--no-install-recommends"], &packages)?;
    }
    let still = missing();
    if !still.is_empty() {
        bail!(
            "apt-get succeeded, yet {} is not to be found",
            still.join(" ")
        );
    }
    Ok(())
}

fn missing() -> Vec<&'static str> {
    let mut packages: Vec<&str> = PROGRAMS
        .iter()
        .filter(|(name, _)| !program::is_installed(name))
        .map(|(_, package)| *package)
        .collect();
    if program::cni_folder().is_none() {
        packages.push(PLUGINS);
    }
    packages
}

fn apt_get(arguments: &[&str], packages: &[&str]) -> Result<()> {
    let output = Command::new("apt-get")
        .args(["--quiet", "--quiet"])
        .args(arguments)
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .output()
        .context(
            "cannot start apt-get; this is not Debian: install the packages' programs by hand",
        )?;
    if !output.status.success() {
        bail!(
            "apt-get {} failed: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}
