//! `towpath explain` as the story shows it.

use std::process::Command;

use anyhow::{Context as _, Result, bail};
use towpath_tests::lab::Lab;
use towpath_tests::program;

/// The command in short, and what it prints about a flow. Exit status 1 may mean a denied flow.
pub(super) fn explain(lab: &Lab, from: &str, to: &str, port: &str) -> Result<(String, String)> {
    let source = lab.source_on_host();
    let output = Command::new(program::towpath()?)
        .args([
            "explain", "--source", &source, "--from", from, "--to", to, "--port", port,
        ])
        .output()
        .context("cannot start towpath explain")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if text.is_empty() || !matches!(output.status.code(), Some(0 | 1)) {
        let words = String::from_utf8_lossy(&output.stderr);
        bail!(
            "towpath explain ended with {}: {}",
            output.status,
            words.trim()
        );
    }
    let shown = format!("towpath explain --from {from} --to {to} --port {port}");
    Ok((shown, text))
}
