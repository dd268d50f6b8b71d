//! Figures of one run: samples per arm, ratios to the control arm, gates over ratios.

use std::fmt::Write as _;

use serde::Serialize;

/// Bytes of a mebibyte.
pub(crate) const MIB: f64 = 1_048_576.0;

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
    /// Whether ratios to the control say something.
    pub(crate) has_ratios: bool,
    /// Facts beside the samples, for people: sizes, counts, bytes.
    pub(crate) notes: Vec<String>,
}

/// What a bound is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// A ratio of one run, a size, or a goal of `--kubernetes`: `--gate` fails when it is missed.
    Gate,
    /// An absolute time, which also says something of the machine: shown only (edge case 38).
    Mark,
}

/// A bound on what was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Gate {
    name: String,
    kind: Kind,
    measured: f64,
    limit: f64,
    /// Whether more is better.
    at_least: bool,
    /// What was measured over the limit.
    ratio: f64,
    is_kept: bool,
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
    /// Gates of the design that no arm measures yet, so that nobody takes their absence for a pass.
    pub(crate) unmeasured: Vec<&'static str>,
}

impl Arm {
    /// An arm without samples yet.
    pub(crate) fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            samples: Vec::new(),
        }
    }

    /// An arm with one sample.
    pub(crate) fn once(name: impl Into<String>, sample: f64) -> Self {
        Self {
            name: name.into(),
            samples: vec![sample],
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
    /// A bound from above.
    pub(crate) fn at_most(kind: Kind, name: impl Into<String>, measured: f64, limit: f64) -> Self {
        Self {
            name: name.into(),
            kind,
            measured,
            limit,
            at_least: false,
            ratio: measured / limit,
            // A figure that could not be taken is not a number, and keeps no bound.
            is_kept: measured <= limit,
        }
    }

    /// A ratio that must be at least this.
    pub(crate) fn at_least(name: impl Into<String>, measured: f64, limit: f64) -> Self {
        Self {
            name: name.into(),
            kind: Kind::Gate,
            measured,
            limit,
            at_least: true,
            ratio: measured / limit,
            is_kept: measured >= limit,
        }
    }

    fn text(&self) -> String {
        format!(
            "{:6}  {:4}  {:>10.3}  {} {:>8.3}  {:>6.2}  {}\n",
            if self.is_kept { "PASS" } else { "MISSED" },
            match self.kind {
                Kind::Gate => "gate",
                Kind::Mark => "mark",
            },
            self.measured,
            if self.at_least { ">=" } else { "<=" },
            self.limit,
            self.ratio,
            self.name
        )
    }
}

impl Section {
    /// A section whose first arm is the control.
    pub(crate) fn new(title: impl Into<String>, unit: &'static str, arms: Vec<Arm>) -> Self {
        Self {
            title: title.into(),
            unit,
            arms,
            has_ratios: true,
            notes: Vec::new(),
        }
    }

    /// A section whose arms stand side by side: figures near zero, or of different things.
    pub(crate) fn side_by_side(
        title: impl Into<String>,
        unit: &'static str,
        arms: Vec<Arm>,
    ) -> Self {
        Self {
            has_ratios: false,
            ..Self::new(title, unit, arms)
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
            let ratio = if self.has_ratios {
                format!("{:.4}", arm.minimum() / control)
            } else {
                String::new()
            };
            let _ = writeln!(
                text,
                "  {:width$}  {:>10.2} {:>10.2} {:>10.2} {ratio:>10}  {}",
                arm.name,
                arm.minimum(),
                arm.quantile(0.5),
                arm.quantile(0.99),
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
            let _ = write!(
                text,
                "\nGates, and marks (absolute times, shown only)\n  \
                 {:6}  {:4}  {:>10}  {:>11}  {:>6}\n",
                "", "", "figure", "limit", "ratio"
            );
        }
        for gate in &self.gates {
            let _ = write!(text, "  {}", gate.text());
        }
        for name in &self.unmeasured {
            let _ = writeln!(text, "  not measured  {name}");
        }
        text
    }

    /// Whether every gate is kept.
    pub(crate) fn is_kept(&self) -> bool {
        self.gates
            .iter()
            .filter(|gate| gate.kind == Kind::Gate)
            .all(|gate| gate.is_kept)
    }
}
