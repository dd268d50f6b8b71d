//! Figures of one run: samples per arm, ratios to the control arm, gates over ratios.

use std::fmt::Write as _;

use serde::Serialize;

/// Samples of one arm, in the unit of its [`Section`].
#[derive(Debug, Serialize)]
pub(crate) struct Arm {
    /// What was done.
    pub(crate) name: String,
    /// One figure a round, in the order in which they were taken.
    pub(crate) samples: Vec<f64>,
}

/// A group of arms that were measured together, interleaved.
#[derive(Debug, Serialize)]
pub(crate) struct Section {
    /// What is compared.
    pub(crate) title: String,
    /// Unit of every sample.
    pub(crate) unit: &'static str,
    /// The arms; the first one is the control.
    pub(crate) arms: Vec<Arm>,
    /// Facts beside the samples, for people: sizes, counts, bytes.
    pub(crate) notes: Vec<String>,
}

/// A bound on a ratio or on a size.
#[derive(Debug, Serialize)]
pub(crate) struct Gate {
    /// What must hold.
    pub(crate) name: String,
    /// What was measured.
    pub(crate) measured: f64,
    /// The bound.
    pub(crate) limit: f64,
    /// Whether more is better.
    pub(crate) at_least: bool,
    /// Compared by `--gate`. The others are goals in absolute figures, shown and not enforced.
    pub(crate) enforced: bool,
}

/// Everything that one run found.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    /// The machine, for the reader.
    pub(crate) machine: String,
    /// Measurements.
    pub(crate) sections: Vec<Section>,
    /// Bounds.
    pub(crate) gates: Vec<Gate>,
}

impl Arm {
    /// An arm without samples yet.
    pub(crate) fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            samples: Vec::new(),
        }
    }

    /// The smallest sample.
    pub(crate) fn minimum(&self) -> f64 {
        self.samples.iter().copied().fold(f64::INFINITY, f64::min)
    }

    /// The sample at this fraction of the sorted ones (0.5 is the median).
    pub(crate) fn quantile(&self, fraction: f64) -> f64 {
        let mut sorted = self.samples.clone();
        sorted.sort_by(f64::total_cmp);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an index of a sample list"
        )]
        let index = (fraction * (sorted.len().max(1) - 1) as f64).round() as usize;
        sorted.get(index).copied().unwrap_or(f64::NAN)
    }
}

impl Gate {
    /// Whether the bound is kept. A figure that could not be taken is not.
    pub(crate) fn is_kept(&self) -> bool {
        if self.at_least {
            self.measured >= self.limit
        } else {
            self.measured <= self.limit
        }
    }
}

impl Section {
    /// A section whose first arm is the control.
    pub(crate) fn new(title: impl Into<String>, unit: &'static str, arms: Vec<Arm>) -> Self {
        Self {
            title: title.into(),
            unit,
            arms,
            notes: Vec::new(),
        }
    }

    /// The table of this section as text.
    fn text(&self) -> String {
        let mut text = format!("\n{}  [{}]\n", self.title, self.unit);
        let width = self
            .arms
            .iter()
            .map(|arm| arm.name.len())
            .max()
            .unwrap_or(0);
        let control = self.arms.first().map_or(f64::NAN, Arm::minimum);
        let _ = writeln!(
            text,
            "  {:width$}  {:>10} {:>10} {:>10} {:>10}  rounds",
            "", "min", "median", "p99", "ratio"
        );
        for arm in &self.arms {
            let _ = writeln!(
                text,
                "  {:width$}  {:>10.2} {:>10.2} {:>10.2} {:>10.4}  {}",
                arm.name,
                arm.minimum(),
                arm.quantile(0.5),
                arm.quantile(0.99),
                arm.minimum() / control,
                arm.samples.len()
            );
        }
        for note in &self.notes {
            let _ = writeln!(text, "  {note}");
        }
        text
    }
}

impl Report {
    /// The whole report as text.
    pub(crate) fn text(&self) -> String {
        let mut text = format!("{}\n", self.machine);
        for section in &self.sections {
            text.push_str(&section.text());
        }
        if !self.gates.is_empty() {
            text.push_str("\nGates and goals\n");
        }
        for gate in &self.gates {
            let _ = writeln!(
                text,
                "  {:6} {:5} {}: {:.3} ({} {:.3})",
                if gate.is_kept() { "kept" } else { "MISSED" },
                if gate.enforced { "gate" } else { "goal" },
                gate.name,
                gate.measured,
                if gate.at_least { "at least" } else { "at most" },
                gate.limit
            );
        }
        text
    }

    /// Whether every enforced gate is kept.
    pub(crate) fn is_kept(&self) -> bool {
        self.gates
            .iter()
            .filter(|gate| gate.enforced)
            .all(Gate::is_kept)
    }
}
