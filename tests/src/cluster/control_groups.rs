//! Control groups of a run: one per machine in every hierarchy, named as the machine's network namespace.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::daemon::START_PATIENCE;
use crate::wait::until;

/// Where control groups are.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Removes the control groups whose names begin with a run's prefix. Their processes have ended or are about to.
pub(crate) fn remove(prefix: &str) -> Result<()> {
    until(
        &format!("control groups {prefix}* removed"),
        START_PATIENCE,
        || {
            let left = list(prefix)?;
            for group in &left {
                remove_tree(group);
            }
            Ok(list(prefix)?.is_empty())
        },
    )
}

fn list(prefix: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for hierarchy in hierarchies()? {
        for entry in fs::read_dir(&hierarchy)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(prefix) {
                found.push(entry.path());
            }
        }
    }
    Ok(found)
}

/// The one of version 2, or those of version 1.
fn hierarchies() -> Result<Vec<PathBuf>> {
    let top = Path::new(CGROUPS);
    if top.join("cgroup.controllers").exists() {
        return Ok(vec![top.to_owned()]);
    }
    if !top.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(top)? {
        let path = entry?.path();
        // Some are links to others.
        if path.is_dir() && !path.is_symlink() {
            found.push(path);
        }
    }
    Ok(found)
}

/// From the leaves. A group with processes stays for the next round.
fn remove_tree(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_tree(&entry.path());
        }
    }
    let _ = fs::remove_dir(group);
}

/// Makes one in every hierarchy.
pub(crate) fn make(name: &str) -> Result<()> {
    for hierarchy in hierarchies()? {
        let group = hierarchy.join(name);
        fs::create_dir_all(&group)
            .with_context(|| format!("cannot make control group {}", group.display()))?;
        // Version 1: a group of processors begins without any.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(value) = fs::read_to_string(hierarchy.join(file)) {
                fs::write(group.join(file), value.trim())?;
            }
        }
    }
    Ok(())
}
