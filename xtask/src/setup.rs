//! What the lab and the tests need from Debian, and the test bed's tools that are built from Go modules.

use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};
use nix::unistd::geteuid;
use towpath_tests::{program, tools};

use crate::output::{say, warn};

/// Programs and the Debian packages that bring them.
type Programs = &'static [(&'static str, &'static str)];

/// What every lab needs.
const LAB: Programs = &[
    // Builds the agent's allocator.
    ("make", "make"),
    ("nft", "nftables"),
    ("ip", "iproute2"),
    ("conntrack", "conntrack"),
    ("ping", "iputils-ping"),
    ("tcpdump", "tcpdump"),
    ("ethtool", "ethtool"),
];

/// What a real cluster needs beside.
const CLUSTER: Programs = &[
    ("etcd", "etcd-server"),
    // flanneld and kube-proxy call it in their iptables mode.
    ("iptables", "iptables"),
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("umoci", "umoci"),
    ("skopeo", "skopeo"),
    // Builds flanneld, a part of which is C.
    ("gcc", "gcc"),
];

/// What static programs need.
const STATIC: Programs = &[("musl-gcc", "musl-tools")];

/// Packages that bring a service with the program.
const SERVICES: [&str; 2] = ["etcd-server", "containerd"];

const PLUGINS: &str = "containernetworking-plugins";
/// Its program has the same name as the one that is not static.
const BUSYBOX: &str = "busybox-static";

/// What is to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extent {
    Lab,
    Cluster,
    Static,
}

/// `cargo xtask setup`.
pub(crate) fn run() -> Result<ExitCode> {
    if missing(Extent::Cluster).is_empty() && tools::missing().is_empty() {
        say("all Debian packages and tools that the lab uses are there");
        return Ok(ExitCode::SUCCESS);
    }
    install_cluster()?;
    Ok(ExitCode::SUCCESS)
}

/// Installs what is missing, or says why not. For commands that can do part of their work without.
pub(crate) fn try_install() {
    for error in [install(), install_cluster()]
        .into_iter()
        .filter_map(Result::err)
    {
        warn(&format!(
            "warning: {error:#}; tests that need it are skipped"
        ));
    }
}

/// Installs what is missing for a lab without Kubernetes.
pub(crate) fn install() -> Result<()> {
    install_packages(Extent::Lab)
}

/// Installs what is missing for a cluster, and builds the tools that are not built yet.
pub(crate) fn install_cluster() -> Result<()> {
    install_packages(Extent::Cluster)?;
    tools::build_missing(say)
}

/// Installs what is missing to build static programs.
pub(crate) fn install_static() -> Result<()> {
    install_packages(Extent::Static)
}

fn install_packages(extent: Extent) -> Result<()> {
    let packages = missing(extent);
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
    if packages.iter().any(|package| SERVICES.contains(package)) {
        say(
            "etcd-server and containerd may have started services of this machine; the lab does not use those, and you \
             may stop them: systemctl disable --now etcd containerd",
        );
    }
    let still = missing(extent);
    if !still.is_empty() {
        bail!(
            "apt-get succeeded, yet {} is not to be found",
            still.join(" ")
        );
    }
    Ok(())
}

fn missing(extent: Extent) -> Vec<&'static str> {
    let programs: &[Programs] = match extent {
        Extent::Lab => &[LAB],
        Extent::Cluster => &[LAB, CLUSTER],
        Extent::Static => &[STATIC],
    };
    let mut packages: Vec<&str> = programs
        .iter()
        .copied()
        .flatten()
        .filter(|(name, _)| !program::is_installed(name))
        .map(|(_, package)| *package)
        .collect();
    if extent == Extent::Static {
        return packages;
    }
    if program::cni_folder().is_none() {
        packages.push(PLUGINS);
    }
    if extent == Extent::Cluster && !program::has_static_busybox() {
        packages.push(BUSYBOX);
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
