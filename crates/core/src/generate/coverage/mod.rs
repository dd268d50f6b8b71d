//! How often random probes meet each row of the specification, so that a green property test means something: the
//! counts and their table. Which rows a probe meets is told by `walk` and `rule`.

mod rule;
mod walk;

use std::fmt;

use super::{Probe, Row};
use crate::evaluate::Evaluator;
use crate::model::Verdict;

use walk::Hits;

/// Counts of verdicts and rows.
#[derive(Clone, Debug)]
pub struct Coverage {
    counts: Vec<u64>,
    allowed: u64,
    denied: u64,
}

impl Default for Coverage {
    fn default() -> Self {
        Self {
            counts: vec![0; Row::ALL.len()],
            allowed: 0,
            denied: 0,
        }
    }
}

impl Coverage {
    /// Counts one probe.
    pub fn add(&mut self, evaluator: &Evaluator, probe: &Probe) {
        let explanation = evaluator.explain(probe.direction, &probe.flow());
        match explanation.decision.verdict {
            Verdict::Allow => self.allowed += 1,
            Verdict::Deny => self.denied += 1,
        }
        let hits = Hits::of(&explanation, evaluator);
        for (count, hit) in self.counts.iter_mut().zip(hits) {
            *count += u64::from(hit);
        }
    }

    /// Probes counted.
    pub fn probes(&self) -> u64 {
        self.allowed + self.denied
    }

    /// Probes that were allowed.
    pub fn allowed(&self) -> u64 {
        self.allowed
    }

    /// Probes that met a row.
    pub fn count(&self, row: Row) -> u64 {
        self.counts[row as usize]
    }

    /// The rows that fewer probes met than `least`.
    pub fn rows_below(&self, least: u64) -> Vec<Row> {
        Row::ALL
            .iter()
            .copied()
            .filter(|row| self.count(*row) < least)
            .collect()
    }
}

impl fmt::Display for Coverage {
    /// The table.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:>9}  probes, {} of them allowed",
            self.probes(),
            self.allowed
        )?;
        Row::ALL
            .iter()
            .try_for_each(|row| writeln!(f, "{:>9}  {}", self.count(*row), row.text()))
    }
}
