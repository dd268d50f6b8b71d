//! From a change of a file to the kernel, seen from outside and by the agent itself.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use towpath_tests::agent::Agent;
use towpath_tests::wait::PATIENCE;

const COMMITS: &str = "towpath_dataplane_commits_total";
const SUM: &str = "towpath_agent_programming_latency_seconds_sum";
const COUNT: &str = "towpath_agent_programming_latency_seconds_count";

/// What an agent had counted before the change.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reading {
    commits: f64,
    sum: f64,
    count: f64,
}

impl Reading {
    pub(super) fn take(agent: &Agent) -> Result<Self> {
        Ok(Self {
            commits: agent.metric(COMMITS).unwrap_or(0.0),
            sum: agent.metric(SUM)?,
            count: agent.metric(COUNT)?,
        })
    }

    /// Waits for the first commit after the change; how long that took since `changed`.
    ///
    /// The agent is asked again and again without a pause, so the figure is at most one question too high.
    pub(super) fn until_commit(self, agent: &Agent, changed: Instant) -> Result<Duration> {
        loop {
            if agent.metric(COMMITS).unwrap_or(0.0) > self.commits {
                return Ok(changed.elapsed());
            }
            if changed.elapsed() > PATIENCE {
                bail!(
                    "the agent of {} committed nothing after the change",
                    agent.node
                );
            }
        }
    }

    /// Mean of the agent's own measurements since the reading: from the arrival of an event to the end of its commit.
    pub(super) fn own_mean(self, agent: &Agent) -> Result<Duration> {
        let now = Self::take(agent)?;
        let events = now.count - self.count;
        if events < 1.0 {
            bail!(
                "the agent of {} measured nothing since the change",
                agent.node
            );
        }
        Ok(Duration::from_secs_f64((now.sum - self.sum) / events))
    }
}

/// `1.3 ms`.
pub(super) fn milliseconds(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1000.0)
}
