//! The kernel's share of memory: what grows when tables are loaded into a fresh namespace.
//!
//! The kernel does not say what a table takes. Elements, rules and sets are unreclaimable slab (large ones
//! included), hash buckets are virtually contiguous pages, counters and statistics are per-cpu memory; the sum of
//! the three counters before and after is taken in one namespace after the other. Other work on the machine
//! disturbs it, hence three times and the median.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use towpath_core::tables::Tables;
use towpath_tests::netns::Namespace;

use crate::events;
use crate::namespace::fresh;
use crate::report::Arm;

/// How often the tables are loaded.
const ROUNDS: u32 = 3;
/// Tables that take this long are not loaded again.
const BUDGET: Duration = Duration::from_secs(3);
/// Two readings this far apart must agree: frees are late, by a grace period of the kernel.
const APART: Duration = Duration::from_millis(60);
/// Readings that differ by no more agree.
const NOISE: f64 = 64.0 * 1024.0;
/// A machine that never rests is measured all the same.
const PATIENCE: Duration = Duration::from_secs(2);

/// How it was measured, for the reader.
pub(crate) const METHOD: &str = "kernel: SUnreclaim + VmallocUsed + Percpu of /proc/meminfo before and after the load \
     into a fresh namespace, 3 times (once if that takes seconds), median; beside it the drop of MemAvailable, which counts the whole machine";

/// Measures tables. Its namespaces stay until it is dropped: their removal, which the kernel does later, would
/// disturb the next measurement.
#[derive(Debug, Default)]
pub(crate) struct KernelMemory {
    namespaces: Vec<Namespace>,
}

/// Bytes that tables take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Share {
    /// By the kernel's own counters.
    pub(crate) bytes: f64,
    /// By what the machine has less.
    pub(crate) available: f64,
}

/// Counters in bytes.
#[derive(Clone, Copy, Debug)]
struct Reading {
    kernel: f64,
    available: f64,
}

impl KernelMemory {
    /// What these tables take.
    pub(crate) fn of(&mut self, tables: &Tables) -> Result<Share> {
        let (mut bytes, mut available) = (Arm::new("kernel"), Arm::new("available"));
        let began = Instant::now();
        for round in 0..ROUNDS {
            if round > 0 && began.elapsed() > BUDGET {
                break;
            }
            let namespace = fresh("m")?;
            let tables = tables.clone();
            let before = settled()?;
            // The tables outlive the socket that made them.
            namespace.enter(|| events::load(tables).map(drop))??;
            let after = settled()?;
            self.namespaces.push(namespace);
            bytes.samples.push(after.kernel - before.kernel);
            available.samples.push(before.available - after.available);
        }
        Ok(Share {
            bytes: bytes.quantile(0.5),
            available: available.quantile(0.5),
        })
    }
}

/// A reading that the next one confirms.
fn settled() -> Result<Reading> {
    let began = Instant::now();
    let mut last = reading()?;
    loop {
        std::thread::sleep(APART);
        let next = reading()?;
        if (next.kernel - last.kernel).abs() <= NOISE || began.elapsed() > PATIENCE {
            return Ok(next);
        }
        last = next;
    }
}

fn reading() -> Result<Reading> {
    // Processors keep small differences to themselves; reading this file makes them add up. Without it the
    // figures are off by some hundred KiB.
    let _ = fs::read("/proc/sys/vm/stat_refresh");
    let text = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let figure = |key: &str| -> Result<f64> {
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        let kibibytes: f64 = line
            .and_then(|rest| rest.split_whitespace().next())
            .with_context(|| format!("no {key} in /proc/meminfo"))?
            .parse()?;
        Ok(kibibytes * 1024.0)
    };
    Ok(Reading {
        kernel: figure("SUnreclaim:")? + figure("VmallocUsed:")? + figure("Percpu:")?,
        available: figure("MemAvailable:")?,
    })
}
