//! Where the programs are that the lab starts: ours in the target directory, the CNI plugins in the system.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// Folders in which distributions and Kubernetes put CNI plugins.
pub const CNI_FOLDERS: [&str; 2] = ["/opt/cni/bin", "/usr/lib/cni"];

/// The agent and command line: `TOWPATH_BIN`, else the one built beside this program.
pub fn towpath() -> Result<PathBuf> {
    ours("towpath", "TOWPATH_BIN", "policy-agent")
}

/// The prober: `TOWPATH_PROBE_BIN`, else the one built beside this program.
pub fn probe() -> Result<PathBuf> {
    ours("towpath-probe", "TOWPATH_PROBE_BIN", "towpath-tests")
}

/// The chained CNI plugin: `TOWPATH_CNI_BIN`, else the one built beside the agent.
pub fn plugin() -> Result<PathBuf> {
    let variable = "TOWPATH_CNI_BIN";
    if let Some(path) = std::env::var_os(variable) {
        return Ok(PathBuf::from(path));
    }
    let path = towpath()?.with_file_name("towpath-cni");
    if is_program(&path) {
        return Ok(path);
    }
    bail!(
        "there is no {}; run cargo build --package towpath-cni, or set {variable}",
        path.display()
    )
}

/// The folder that holds the CNI plugins `bridge` and `host-local`.
pub fn cni_folder() -> Option<PathBuf> {
    CNI_FOLDERS
        .iter()
        .map(PathBuf::from)
        .find(|folder| folder.join("bridge").exists() && folder.join("host-local").exists())
}

/// Whether a system program can be found on PATH.
pub fn is_installed(name: &str) -> bool {
    on_path(name).is_some()
}

/// Where a system program is, on PATH or where only root looks.
pub fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|path| path.exists())
}

/// Where Debian has busybox, static or not.
pub const BUSYBOX: &str = "/bin/busybox";

/// Whether busybox is there and needs no libraries, so that an image may consist of it.
pub fn has_static_busybox() -> bool {
    // A program that needs libraries names its loader.
    std::fs::read(BUSYBOX).is_ok_and(|program| {
        let loader = b"/ld-linux";
        !program.windows(loader.len()).any(|part| part == loader)
    })
}

fn ours(name: &str, variable: &str, package: &str) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Ok(PathBuf::from(path));
    }
    let this = std::env::current_exe()?;
    // Tests stand one folder deeper than programs: target/debug/deps/lab-0123, target/debug/towpath.
    for folder in this.ancestors().skip(1).take(2) {
        let path = folder.join(name);
        if is_program(&path) {
            return Ok(path);
        }
    }
    bail!(
        "program {name} is not beside {}; run cargo build --package {package} --bins, or set {variable}",
        this.display()
    )
}

fn is_program(path: &Path) -> bool {
    path.is_file()
}
