//! Waiting for a condition, with a deadline that is an error and not a hang.

use std::io::Read as _;
use std::process::Child;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// How long anything in a lab may take before it counts as broken. Far above what it takes on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

const PAUSE: Duration = Duration::from_millis(5);

/// Asks until the answer is there; after `patience`, an error that says what was awaited.
pub fn until_some<T>(
    what: &str,
    patience: Duration,
    mut ask: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if Instant::now() >= deadline {
            bail!("waited {patience:?} in vain: {what}");
        }
        sleep(PAUSE);
    }
}

/// Asks until the condition holds.
pub fn until(what: &str, patience: Duration, mut ask: impl FnMut() -> Result<bool>) -> Result<()> {
    until_some(what, patience, || Ok(ask()?.then_some(())))
}

/// Reads the first line that a started process prints; its end before that is an error.
pub(crate) fn first_line(child: &mut Child, what: &str) -> Result<String> {
    let output = child.stdout.as_mut().context("stdout is not a pipe")?;
    let mut line = Vec::new();
    let mut byte = [0];
    // Byte by byte, because what follows belongs to somebody else.
    while output.read(&mut byte)? == 1 {
        if byte[0] == b'\n' {
            return Ok(String::from_utf8_lossy(&line).into_owned());
        }
        line.push(byte[0]);
    }
    let mut words = String::new();
    if let Some(error) = child.stderr.as_mut() {
        error.read_to_string(&mut words)?;
    }
    bail!("{what} ended before it was ready: {}", words.trim())
}
