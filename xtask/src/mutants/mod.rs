//! `cargo xtask mutants`: seeds one fault after the other into a copy of the sources and checks that the suite
//! catches each (edge case 37).
//!
//! Faults of the layout are to be caught by packets in a kernel, not by a snapshot of the text; that takes root.
//!
//! A fault is a text that stands exactly once in a file, and what replaces it. A fault that does not apply or
//! does not compile is an error of the list, not a catch.

mod faults;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Output};

use anyhow::{Context as _, Result, ensure};

use nix::unistd::geteuid;

use faults::{FAULTS, Fault, Suite};

use crate::cargo::{cargo, root};
use crate::output::{say, warn};

/// What became of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Caught,
    Survived,
    /// It does not compile, so it says nothing.
    Broken,
}

impl Suite {
    /// Arguments of cargo that build and run the tests that ought to catch the fault.
    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Core => &["test", "--package", "towpath-core"],
            Self::Layout => &["test", "--package", "towpath-tests", "--test", "layout"],
        }
    }
}

/// Runs all faults, or those whose name contains `filter`.
pub(crate) fn run(filter: Option<&str>) -> Result<ExitCode> {
    ensure!(
        geteuid().is_root(),
        "run as root: faults of the layout are caught by packets in network namespaces"
    );
    let copy = Copy::new()?;
    let chosen: Vec<&Fault> = FAULTS
        .iter()
        .filter(|fault| filter.is_none_or(|text| fault.name.contains(text)))
        .collect();
    ensure!(!chosen.is_empty(), "no fault has such a name");
    let mut suites: Vec<Suite> = chosen.iter().map(|fault| fault.suite).collect();
    suites.sort_unstable();
    suites.dedup();
    for suite in suites {
        say(&format!("{suite:?} without a fault must pass"));
        ensure!(
            copy.test(suite)?.status.success(),
            "{suite:?} fails without a fault"
        );
    }
    let mut uncaught = Vec::new();
    for (index, fault) in chosen.iter().enumerate() {
        let fate = copy.seed(fault)?;
        say(&format!(
            "{:3}/{} {fate:?}: {}",
            index + 1,
            chosen.len(),
            fault.name
        ));
        if fate != Fate::Caught {
            uncaught.push(format!("{} ({fate:?})", fault.name));
        }
    }
    say(&format!(
        "{} faults, {} caught, {} not",
        chosen.len(),
        chosen.len() - uncaught.len(),
        uncaught.len()
    ));
    ensure!(uncaught.is_empty(), "not caught: {}", uncaught.join("; "));
    Ok(ExitCode::SUCCESS)
}

/// A copy of the sources, kept in the cache directory so that dependencies are built once.
struct Copy {
    sources: PathBuf,
    target: PathBuf,
}

impl Copy {
    fn new() -> Result<Self> {
        let root = root();
        let folder = cache_folder()?.join("mutants");
        let (sources, target) = (folder.join("sources"), folder.join("target"));
        if sources.exists() {
            fs::remove_dir_all(&sources)
                .with_context(|| format!("cannot empty {}", sources.display()))?;
        }
        let listing = Command::new("git")
            .args([
                "ls-files",
                "-z",
                "--cached",
                "--others",
                "--exclude-standard",
            ])
            .current_dir(root)
            .output()
            .context("cannot list the sources with git")?;
        ensure!(listing.status.success(), "git ls-files failed");
        for name in String::from_utf8(listing.stdout)?.split_terminator('\0') {
            let (from, to) = (root.join(name), sources.join(name));
            if !from.is_file() {
                continue;
            }
            fs::create_dir_all(to.parent().context("a file has a folder")?)?;
            fs::copy(&from, &to).with_context(|| format!("cannot copy {name}"))?;
        }
        Ok(Self { sources, target })
    }

    fn test(&self, suite: Suite) -> Result<Output> {
        cargo(suite.arguments())
            .current_dir(&self.sources)
            .env("CARGO_TARGET_DIR", &self.target)
            .env("INSTA_UPDATE", "no")
            .output()
            .context("cannot run cargo")
    }

    /// Seeds one fault, runs its suite, and takes the fault out again.
    fn seed(&self, fault: &Fault) -> Result<Fate> {
        let path = self.sources.join(fault.file);
        let original = fs::read_to_string(&path)
            .with_context(|| format!("{}: cannot read {}", fault.name, fault.file))?;
        let count = original.matches(fault.before).count();
        ensure!(
            count == 1,
            "{}: {} has the text {count} times, not once",
            fault.name,
            fault.file
        );
        fs::write(&path, original.replacen(fault.before, fault.after, 1))?;
        let output = self.test(fault.suite);
        fs::write(&path, original)?;
        Ok(judge(fault, &output?))
    }
}

fn judge(fault: &Fault, output: &Output) -> Fate {
    let errors = String::from_utf8_lossy(&output.stderr);
    if errors.contains("could not compile") {
        warn(&format!("{}: does not compile\n{errors}", fault.name));
        Fate::Broken
    } else if output.status.success() {
        Fate::Survived
    } else {
        Fate::Caught
    }
}

/// Where builds that outlive a checkout are kept.
fn cache_folder() -> Result<PathBuf> {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(home);
    Ok(cache
        .context("neither XDG_CACHE_HOME nor HOME is set")?
        .join("towpath"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_stands_once_in_its_file() {
        for fault in FAULTS {
            let text = fs::read_to_string(root().join(fault.file)).unwrap();
            let count = text.matches(fault.before).count();
            assert_eq!(count, 1, "{}: {}", fault.name, fault.file);
            assert_ne!(fault.before, fault.after, "{}", fault.name);
        }
    }

    #[test]
    fn names_are_not_given_twice() {
        let names: std::collections::BTreeSet<&str> =
            FAULTS.iter().map(|fault| fault.name).collect();
        assert_eq!(names.len(), FAULTS.len());
        assert!(FAULTS.len() >= 30, "edge case 37");
    }
}
