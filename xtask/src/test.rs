//! `cargo xtask test`: everything that must hold, with a count of what ran and what did not.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context as _, Result};
use towpath_tests::netns;
use towpath_tests::run::LAB_LOG;
use towpath_tests::skip::SKIP_LOG;
use towpath_tests::wait::{PATIENCE, until};

use crate::cargo::{build_programs, cargo, root};
use crate::output::{say, warn};
use crate::setup;
use crate::skips::{Expected, Skip, parse_log};

/// The variable with the seed of property tests. A fixed one: what a run finds is there in the next one too. Fresh seeds
/// are the soak's.
pub(crate) const PROPERTY_SEED: &str = "PROPTEST_RNG_SEED";

/// Runs every check to its end, so that one call shows all faults.
pub(crate) fn run() -> Result<ExitCode> {
    setup::try_install();
    let mut faults = Vec::new();
    for (name, mut command) in checks() {
        step(name);
        let status = command
            .status()
            .with_context(|| format!("cannot start {name}"))?;
        if !status.success() {
            faults.push(format!("{name} failed"));
        }
    }
    step("programs for the lab");
    if let Err(error) = build_programs() {
        faults.push(format!("{error:#}"));
    }
    let folder = tempfile::Builder::new().prefix("towpath-test-").tempdir()?;
    step("tests");
    let (counts, passed) = run_tests(folder.path())?;
    if !passed && counts.total().failed == 0 {
        faults.push("cargo test failed before or between the tests".to_owned());
    }
    faults.extend(leftovers(folder.path())?);
    let skips = parse_log(&read_if_any(&folder.path().join("skips"))?)?;
    let expected = Expected::parse(&read_if_any(&root().join("tests/expected-skips"))?)?;
    for skip in skips.iter().filter(|skip| !expected.allows(skip)) {
        faults.push(format!(
            "unexpected skip of {} ({}): {}",
            skip.test, skip.feature, skip.reason
        ));
    }
    Ok(report(counts, &skips, &faults))
}

fn checks() -> [(&'static str, Command); 3] {
    let mut rustdoc = cargo(&[
        "doc",
        "--quiet",
        "--workspace",
        "--no-deps",
        "--document-private-items",
    ]);
    rustdoc.env("RUSTDOCFLAGS", "-D warnings");
    [
        ("formatting", cargo(&["fmt", "--all", "--check"])),
        (
            "lints",
            cargo(&[
                "clippy",
                "--quiet",
                "--workspace",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ]),
        ),
        ("documentation", rustdoc),
    ]
}

fn step(name: &str) {
    say(&format!("== {name}"));
}

/// Runs `cargo test`, passes its output on and counts.
fn run_tests(folder: &Path) -> Result<(Counts, bool)> {
    let started = Instant::now();
    let (reader, writer) = std::io::pipe()?;
    let mut command = cargo(&["test", "--workspace", "--no-fail-fast"]);
    if std::env::var_os(PROPERTY_SEED).is_none() {
        command.env(PROPERTY_SEED, "1");
    }
    command
        .env(SKIP_LOG, folder.join("skips"))
        .env(LAB_LOG, folder.join("labs"))
        // One pipe, so that the names of test programs and their results come in order.
        .stdout(writer.try_clone()?)
        .stderr(writer);
    let mut child = command.spawn().context("cannot start cargo test")?;
    // The command holds the writing ends; while they are open the pipe does not end.
    drop(command);
    let mut counts = Counts::default();
    for line in BufReader::new(reader).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        say(&line);
        counts.read(&line);
    }
    let passed = child.wait()?.success();
    say(&format!("tests took {} s", started.elapsed().as_secs()));
    Ok((counts, passed))
}

/// Namespaces of this run's labs that are still there. What a test program's tests share ends with the program: its
/// keeper may still be at work.
fn leftovers(folder: &Path) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    let labs = read_if_any(&folder.join("labs"))?;
    for prefix in labs.lines().filter(|prefix| !prefix.is_empty()) {
        let gone = until("the end of the labs", PATIENCE, || {
            Ok(netns::list(prefix)?.is_empty())
        });
        let left = if gone.is_ok() {
            Vec::new()
        } else {
            netns::list(prefix)?
        };
        if !left.is_empty() {
            faults.push(format!(
                "network namespaces are left over: {}",
                left.join(" ")
            ));
        }
    }
    Ok(faults)
}

fn read_if_any(path: &Path) -> Result<String> {
    match std::fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        text => text.with_context(|| format!("cannot read {}", path.display())),
    }
}

fn report(mut counts: Counts, skips: &[Skip], faults: &[String]) -> ExitCode {
    for skip in skips {
        counts.skip(&skip.area);
    }
    say("");
    say(&format!(
        "{:24} {:>6} {:>6} {:>7}",
        "area", "run", "failed", "skipped"
    ));
    for (area, count) in &counts.areas {
        if count.passed + count.failed + count.skipped > 0 {
            say(&format!(
                "{area:24} {:>6} {:>6} {:>7}",
                count.passed + count.failed,
                count.failed,
                count.skipped
            ));
        }
    }
    for skip in skips {
        say(&format!(
            "skipped {}: {}: {}",
            skip.test, skip.feature, skip.reason
        ));
    }
    for fault in faults {
        warn(&format!("fault: {fault}"));
    }
    let total = counts.total();
    let failed = total.failed + faults.len();
    say(&format!(
        "{} passed, {failed} failed, {} skipped",
        total.passed, total.skipped
    ));
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    passed: usize,
    failed: usize,
    skipped: usize,
}

/// What `cargo test` said, by area: a crate's own tests, or a file of integration tests.
#[derive(Debug, Default)]
struct Counts {
    areas: BTreeMap<String, Count>,
    area: String,
}

impl Counts {
    fn read(&mut self, line: &str) {
        let line = line.trim();
        if let Some(rest) = line.strip_prefix("Running ") {
            area_of(rest).clone_into(&mut self.area);
        } else if let Some(name) = line.strip_prefix("Doc-tests ") {
            short_name(name).clone_into(&mut self.area);
        } else if let Some(rest) = line.strip_prefix("test result: ") {
            let count = self.areas.entry(self.area.clone()).or_default();
            count.passed += number_before(rest, " passed");
            count.failed += number_before(rest, " failed");
            count.skipped += number_before(rest, " ignored");
        }
    }

    /// A test that skipped itself was counted as passed.
    fn skip(&mut self, area: &str) {
        if let Some(count) = self.areas.get_mut(area) {
            count.passed = count.passed.saturating_sub(1);
        }
        self.areas.entry(area.to_owned()).or_default().skipped += 1;
    }

    fn total(&self) -> Count {
        self.areas
            .values()
            .fold(Count::default(), |total, count| Count {
                passed: total.passed + count.passed,
                failed: total.failed + count.failed,
                skipped: total.skipped + count.skipped,
            })
    }
}

/// `unittests src/lib.rs (target/debug/deps/towpath_core-0123)` is core, `tests/lab.rs (...)` is lab.
fn area_of(running: &str) -> &str {
    let source = running.split(" (").next().unwrap_or_default();
    if let Some(file) = source.strip_prefix("tests/") {
        let name = file.strip_suffix(".rs").unwrap_or(file);
        return name.strip_suffix("/main").unwrap_or(name);
    }
    let program = running.rsplit('/').next().unwrap_or_default();
    short_name(program.rsplit_once('-').map_or(program, |(name, _)| name))
}

fn short_name(name: &str) -> &str {
    match name {
        "towpath" | "policy_agent" => "agent",
        "towpath_tests" | "towpath_probe" => "lab",
        _ => name.strip_prefix("towpath_").unwrap_or(name),
    }
}

fn number_before(text: &str, word: &str) -> usize {
    text.split(word)
        .next()
        .and_then(|head| head.rsplit(' ').next())
        .and_then(|digits| digits.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_kept_by_area() {
        let text = "\
     Running unittests src/lib.rs (target/debug/deps/towpath_core-0a1b)
test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s
     Running tests/lab.rs (target/debug/deps/lab-0a1b)
test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s
   Doc-tests towpath_core
test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
";
        let mut counts = Counts::default();

        text.lines().for_each(|line| counts.read(line));
        counts.skip("lab");

        let core = Count {
            passed: 13,
            failed: 0,
            skipped: 0,
        };
        let lab = Count {
            passed: 2,
            failed: 2,
            skipped: 1,
        };
        let expected: BTreeMap<String, Count> =
            [("core".to_owned(), core), ("lab".to_owned(), lab)].into();
        assert_eq!(counts.areas, expected);
    }
}
