//! The command line as the story uses it.

use std::collections::BTreeMap;
use std::process::{Command, Output};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use towpath_tests::lab::Lab;
use towpath_tests::matrix::Check;
use towpath_tests::program;

/// One line of `towpath simulate -o json`.
#[derive(Debug, Deserialize)]
struct Simulated {
    from: String,
    to: String,
    port: u16,
    protocol: String,
    verdict: String,
}

/// What `towpath simulate` says of the lab's manifests, by from, to, port and protocol: whether it passes.
pub(super) struct Simulation(BTreeMap<(String, String, u16, String), bool>);

impl Simulation {
    pub(super) fn run(lab: &Lab) -> Result<Self> {
        let output = towpath(&["simulate", "--source", &source(lab), "-o", "json"])?;
        let text = String::from_utf8_lossy(&output.stdout);
        let lines: Vec<Simulated> = serde_json::from_str(&text)
            .with_context(|| format!("towpath simulate printed {text}{}", words(&output)))?;
        let verdicts = lines.into_iter().map(|line| {
            let passes = line.verdict == "allow";
            (
                (line.from, line.to, line.port, line.protocol.to_lowercase()),
                passes,
            )
        });
        Ok(Self(verdicts.collect()))
    }

    /// Compares its verdicts with what the kernel did.
    pub(super) fn compare(&self, checks: &[Check]) -> Result<usize> {
        for check in checks {
            let protocol = check.target.protocol.to_string();
            let key = (
                check.from.clone(),
                check.to.clone(),
                check.target.port,
                protocol,
            );
            match self.0.get(&key) {
                Some(passes) if *passes == check.outcome.passed() => {}
                Some(passes) => bail!(
                    "towpath simulate says {passes}, the kernel: {}",
                    check.describe()
                ),
                None => bail!("towpath simulate says nothing of {key:?}"),
            }
        }
        Ok(checks.len())
    }
}

/// What `towpath explain` prints about a flow.
pub(super) fn explain(lab: &Lab, from: &str, to: &str, port: &str) -> Result<(String, String)> {
    let source = source(lab);
    let arguments = [
        "explain", "--source", &source, "--from", from, "--to", to, "--port", port,
    ];
    let output = towpath(&arguments)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if text.is_empty() {
        bail!("towpath explain printed nothing: {}", words(&output));
    }
    let shown = format!("towpath explain --from {from} --to {to} --port {port}");
    Ok((shown, text))
}

fn source(lab: &Lab) -> String {
    format!("file:{}", lab.manifests.folder().display())
}

/// Runs the command line. Exit status 1 may mean a denied flow; 2 and more are faults.
fn towpath(arguments: &[&str]) -> Result<Output> {
    let output = Command::new(program::towpath()?)
        .args(arguments)
        .output()
        .context("cannot start towpath")?;
    if !matches!(output.status.code(), Some(0 | 1)) {
        bail!(
            "towpath {} ended with {}: {}",
            arguments.join(" "),
            output.status,
            words(&output)
        );
    }
    Ok(output)
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).trim().to_owned()
}
