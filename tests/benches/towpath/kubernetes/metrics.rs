//! What the agent says of itself: metrics in the Prometheus text format, and `/proc`.

use std::fs;

use anyhow::{Context as _, Result};
use nix::unistd::{SysconfVar, sysconf};
use towpath_tests::agent::Agent;

/// A histogram's buckets: upper bounds and cumulative counts.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Histogram {
    buckets: Vec<(f64, f64)>,
}

/// Sum of all samples of a metric.
pub(super) fn value(text: &str, name: &str) -> Result<f64> {
    let samples = text.lines().filter_map(|line| line.strip_prefix(name));
    let samples = samples.filter(|rest| rest.starts_with([' ', '{']));
    let values: Vec<f64> = samples
        .filter_map(|rest| rest.rsplit(' ').next()?.parse().ok())
        .collect();
    (!values.is_empty())
        .then(|| values.iter().sum())
        .with_context(|| format!("no metric {name}"))
}

impl Histogram {
    /// A histogram out of all metrics.
    pub(super) fn parse(text: &str, name: &str) -> Result<Self> {
        let prefix = format!("{name}_bucket{{le=\"");
        let buckets = text.lines().filter_map(|line| {
            let (bound, count) = line.strip_prefix(&prefix)?.split_once("\"} ")?;
            Some((
                bound.replace("+Inf", "inf").parse().ok()?,
                count.parse().ok()?,
            ))
        });
        let buckets: Vec<(f64, f64)> = buckets.collect();
        anyhow::ensure!(!buckets.is_empty(), "no histogram {name}");
        Ok(Self { buckets })
    }

    /// What came since an earlier look.
    pub(super) fn since(&self, earlier: &Self) -> Self {
        let pairs = self.buckets.iter().zip(&earlier.buckets);
        let buckets = pairs
            .map(|((bound, now), (_, then))| (*bound, now - then))
            .collect();
        Self { buckets }
    }

    pub(super) fn count(&self) -> f64 {
        self.buckets.last().map_or(0.0, |(_, count)| *count)
    }

    /// The value under which this fraction lies; within a bucket, values are taken as evenly spread.
    pub(super) fn quantile(&self, fraction: f64) -> f64 {
        let wanted = fraction * self.count();
        let (mut low, mut below) = (0.0, 0.0);
        for &(bound, count) in &self.buckets {
            if count >= wanted && count > below {
                return low + (bound - low) * (wanted - below) / (count - below);
            }
            (low, below) = (bound, count);
        }
        f64::NAN
    }
}

/// Figures of a process.
pub(super) trait Process {
    /// A figure of `/proc/PID/status` in MiB.
    fn process_figure(&self, key: &str) -> Result<f64>;
    /// Time on processors so far, in seconds: the process' own, and the kernel's for it.
    fn processor_seconds(&self) -> Result<[f64; 2]>;
}

impl Process for Agent {
    fn process_figure(&self, key: &str) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        let kibibytes = line.and_then(|rest| rest.split_whitespace().next());
        let kibibytes: f64 = kibibytes.with_context(|| format!("no {key}"))?.parse()?;
        Ok(kibibytes / 1024.0)
    }

    fn processor_seconds(&self) -> Result<[f64; 2]> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.id()))?;
        // The name, in parentheses, may have spaces; utime and stime are the 12th and 13th behind it.
        let behind = stat.rsplit_once(')').context("no name in stat")?.1;
        let mut fields = behind.split_whitespace().skip(11);
        let second = sysconf(SysconfVar::CLK_TCK)?.context("no clock ticks")?;
        #[expect(
            clippy::cast_precision_loss,
            reason = "ticks in a second are a hundred or a thousand"
        )]
        let mut next = || -> Result<f64> {
            let ticks: f64 = fields.next().context("stat is short")?.parse()?;
            Ok(ticks / second as f64)
        };
        Ok([next()?, next()?])
    }
}
