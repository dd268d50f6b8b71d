//! Probes many targets at once from one thread.

use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use towpath_tests::probe::{Outcome, Patience, Request, Target};

use crate::attempt::Attempt;

/// Sockets open at a time: far below the usual limit of 1,024 descriptors.
const AT_ONCE: usize = 500;

/// Reads a [`Request`] as JSON, probes, prints the outcomes as JSON.
pub(crate) fn run() -> Result<()> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    let request: Request = serde_json::from_str(&text).context("cannot read the request")?;
    ensure!(request.patience.attempts > 0, "at least one attempt");
    let mut outcomes = Vec::with_capacity(request.targets.len());
    for targets in request.targets.chunks(AT_ONCE) {
        outcomes.extend(probe(targets, request.patience)?);
    }
    writeln!(std::io::stdout(), "{}", serde_json::to_string(&outcomes)?)?;
    Ok(())
}

fn probe(targets: &[Target], patience: Patience) -> Result<Vec<Outcome>> {
    let mut outcomes = vec![Outcome::TimedOut; targets.len()];
    let mut silent: Vec<usize> = (0..targets.len()).collect();
    for round in 0..patience.attempts {
        let last = round + 1 == patience.attempts;
        attempt_once(targets, &silent, round, patience.millis, &mut outcomes)?;
        // "No way" may be a neighbour that did not answer in time, so it is tried again as silence is.
        silent.retain(|&index| !outcomes[index].passed());
        if silent.is_empty() || last {
            break;
        }
    }
    Ok(outcomes)
}

fn attempt_once(
    targets: &[Target],
    indexes: &[usize],
    round: u32,
    millis: u64,
    outcomes: &mut [Outcome],
) -> Result<()> {
    let mut waiting = Vec::with_capacity(indexes.len());
    for &index in indexes {
        outcomes[index] = Outcome::TimedOut;
        match Attempt::start(targets[index], tag(index, round)) {
            Ok(attempt) => waiting.push((index, attempt)),
            Err(outcome) => outcomes[index] = outcome,
        }
    }
    // Counted from the last packet sent, so that the first ones have more time, never less.
    let deadline = Instant::now() + Duration::from_millis(millis);
    while !waiting.is_empty() {
        let ready = wait(&waiting, deadline)?;
        if ready.is_empty() {
            return Ok(());
        }
        let mut place = 0;
        waiting.retain_mut(|(index, attempt)| {
            let is_ready = ready[place];
            place += 1;
            if !is_ready {
                return true;
            }
            match attempt.advance() {
                Some(outcome) => {
                    outcomes[*index] = outcome;
                    false
                }
                None => true,
            }
        });
    }
    Ok(())
}

/// Which attempts have an event; empty when the time is over.
fn wait(waiting: &[(usize, Attempt)], deadline: Instant) -> Result<Vec<bool>> {
    let mut descriptors: Vec<PollFd<'_>> = waiting
        .iter()
        .map(|(_, attempt)| {
            let (socket, flags) = attempt.interest();
            PollFd::new(socket, flags)
        })
        .collect();
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
    let count = poll(&mut descriptors, timeout)?;
    if count == 0 {
        return Ok(Vec::new());
    }
    Ok(descriptors
        .iter()
        .map(|descriptor| {
            !descriptor
                .revents()
                .unwrap_or(PollFlags::empty())
                .is_empty()
        })
        .collect())
}

/// Differs between targets and rounds; the process id keeps probers of one pod apart.
fn tag(index: usize, round: u32) -> u16 {
    let seed = u64::from(std::process::id()) * 7919 + index as u64 * 8 + u64::from(round);
    u16::try_from(seed % 0xffff).unwrap_or(0)
}
