//! Every pod against every pod, at every port: what is, beside what should be.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::lab::{Lab, Pod};
use crate::probe::{Outcome, Patience, Target, probe_all};

/// One question to the expectation: may this pod reach that one there?
#[derive(Clone, Copy, Debug)]
pub struct Flow<'a> {
    /// Who asks.
    pub from: &'a Pod,
    /// Who is asked.
    pub to: &'a Pod,
    /// Where.
    pub target: Target,
}

/// One cell: what came back, and what should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// `namespace/name` of the pod that asks.
    pub from: String,
    /// `namespace/name` of the pod that is asked.
    pub to: String,
    /// Where.
    pub target: Target,
    /// Whether it should pass.
    pub expected: bool,
    /// What came back.
    pub outcome: Outcome,
}

impl Check {
    /// Whether it is as it should be; an answer by another pod is not.
    pub fn is_right(&self) -> bool {
        match &self.outcome {
            Outcome::Answered { by, .. } if *by != self.to => false,
            outcome => outcome.passed() == self.expected,
        }
    }

    /// The cell as a sentence.
    pub fn describe(&self) -> String {
        format!(
            "{} -> {} {}/{} at {}: {:?}, should {}",
            self.from,
            self.to,
            self.target.port,
            self.target.protocol,
            self.target.address,
            self.outcome,
            if self.expected { "pass" } else { "be closed" },
        )
    }
}

/// All pods against all pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matrix {
    /// Row by row.
    pub checks: Vec<Check>,
}

impl Matrix {
    /// Probes everything once. What should pass and does not gets a second, patient look: a loaded machine may be
    /// slow, but it never lets pass what is closed.
    pub fn probe(lab: &Lab, expected: impl Fn(&Flow<'_>) -> bool) -> Result<Self> {
        let pods: Vec<&Pod> = lab.pods().collect();
        let mut checks = Vec::new();
        for from in &pods {
            for to in pods.iter().filter(|to| to.id() != from.id()) {
                for target in to.targets() {
                    checks.push(Check {
                        from: from.id(),
                        to: to.id(),
                        target,
                        expected: expected(&Flow { from, to, target }),
                        outcome: Outcome::TimedOut,
                    });
                }
            }
        }
        let mut matrix = Self { checks };
        matrix.look(lab, Patience::default(), |_| true)?;
        let is_missing = |check: &Check| check.expected && !check.outcome.passed();
        if matrix.checks.iter().any(is_missing) {
            matrix.look(lab, Patience::LONG, is_missing)?;
        }
        Ok(matrix)
    }

    /// Probes until everything is as it should be; after `patience` an error that names what is not.
    pub fn settle(
        lab: &Lab,
        patience: Duration,
        expected: impl Fn(&Flow<'_>) -> bool,
    ) -> Result<Self> {
        let deadline = Instant::now() + patience;
        loop {
            let matrix = Self::probe(lab, &expected)?;
            if matrix.wrong().next().is_none() {
                return Ok(matrix);
            }
            if Instant::now() > deadline {
                let wrong: Vec<String> = matrix.wrong().map(Check::describe).collect();
                bail!(
                    "{} of {} cells are wrong after {patience:?}:\n{}\n{}",
                    wrong.len(),
                    matrix.checks.len(),
                    wrong.join("\n"),
                    matrix.render(Style::Plain),
                );
            }
        }
    }

    /// The cells that are not as they should be.
    pub fn wrong(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|check| !check.is_right())
    }

    /// How many cells pass.
    pub fn passed(&self) -> usize {
        self.checks
            .iter()
            .filter(|check| check.outcome.passed())
            .count()
    }

    /// The matrix as a table, one per address family: a port number answers, dots are closed, `!` marks what is
    /// not as it should be.
    pub fn render(&self, style: Style) -> String {
        let mut text = String::new();
        for is_ipv6 in [false, true] {
            let checks: Vec<&Check> = self
                .checks
                .iter()
                .filter(|check| check.target.address.is_ipv6() == is_ipv6)
                .collect();
            if !checks.is_empty() {
                if is_ipv6 {
                    text.push_str("IPv6\n");
                }
                render_family(&mut text, &checks, style);
            }
        }
        text
    }

    fn look(
        &mut self,
        lab: &Lab,
        patience: Patience,
        which: impl Fn(&Check) -> bool,
    ) -> Result<()> {
        let mut work = Vec::new();
        let mut places = Vec::new();
        for pod in lab.pods() {
            let id = pod.id();
            let mine: Vec<usize> = (0..self.checks.len())
                .filter(|&place| self.checks[place].from == id && which(&self.checks[place]))
                .collect();
            if mine.is_empty() {
                continue;
            }
            let targets = mine
                .iter()
                .map(|&place| self.checks[place].target)
                .collect();
            work.push((&pod.namespace, targets));
            places.push(mine);
        }
        let outcomes = probe_all(&work, patience).context("probing the matrix")?;
        for (places, outcomes) in places.into_iter().zip(outcomes) {
            for (place, outcome) in places.into_iter().zip(outcomes) {
                self.checks[place].outcome = outcome;
            }
        }
        Ok(())
    }
}

/// How a table is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Letters only.
    Plain,
    /// Green and red.
    Coloured,
}

impl Style {
    /// Coloured on a terminal, unless `NO_COLOR` is set (<https://no-color.org>).
    pub fn of_stdout() -> Self {
        use std::io::IsTerminal as _;
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        if std::io::stdout().is_terminal() && !refused {
            Self::Coloured
        } else {
            Self::Plain
        }
    }

    /// Text in an ANSI colour, such as `32` for green, where colours are wanted.
    pub fn paint(self, code: &str, text: &str) -> String {
        match self {
            Self::Plain => text.to_owned(),
            Self::Coloured => format!("\x1b[{code}m{text}\x1b[0m"),
        }
    }
}

fn render_family(text: &mut String, checks: &[&Check], style: Style) {
    let mut names: Vec<&str> = Vec::new();
    for check in checks {
        for name in [check.from.as_str(), check.to.as_str()] {
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    names.sort_unstable();
    let in_cell = |from: &str, to: &str| -> Vec<&Check> {
        checks
            .iter()
            .filter(|check| check.from == from && check.to == to)
            .copied()
            .collect()
    };
    let width_of = |to: &str| {
        let widest = names
            .iter()
            .map(|from| {
                in_cell(from, to)
                    .iter()
                    .map(|check| label(check).len() + 2)
                    .sum()
            })
            .max()
            .unwrap_or(0);
        usize::max(widest, 4)
    };
    let heading = r"from \ to";
    let longest = names.iter().map(|name| name.len()).max().unwrap_or(0);
    let left = usize::max(longest + 3, heading.len());
    let mut lines = vec![format!("{heading:left$}  ")];
    for (number, name) in names.iter().enumerate() {
        let _ = write!(lines[0], "  {:<width$}", number + 1, width = width_of(name));
    }
    for (number, from) in names.iter().enumerate() {
        let mut line = format!("{:2} {from:width$}  ", number + 1, width = left - 3);
        for to in &names {
            let cells = in_cell(from, to);
            let used: usize = cells.iter().map(|check| label(check).len() + 2).sum();
            line.push_str("  ");
            for check in cells {
                line.push_str(&cell(check, style));
            }
            line.push_str(&" ".repeat(width_of(to).saturating_sub(used)));
        }
        lines.push(line);
    }
    for line in lines {
        text.push_str(line.trim_end());
        text.push('\n');
    }
}

fn label(check: &Check) -> String {
    check.target.port.to_string()
}

/// The port or dots, then `!` when wrong, then a space.
fn cell(check: &Check, style: Style) -> String {
    let label = label(check);
    let passed = check.outcome.passed();
    let shown = if passed {
        label.clone()
    } else {
        ".".repeat(label.len())
    };
    let (code, mark) = match (check.is_right(), passed) {
        (true, true) => ("32", " "),
        (true, false) => ("31", " "),
        (false, _) => ("1;97;41", "!"),
    };
    format!("{}{mark} ", style.paint(code, &shown))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::Protocol;

    fn check(from: &str, to: &str, port: u16, expected: bool, passed: bool) -> Check {
        let outcome = if passed {
            Outcome::Answered {
                by: to.to_owned(),
                micros: 1,
            }
        } else {
            Outcome::TimedOut
        };
        let address = "10.244.1.2".parse().unwrap();
        Check {
            from: from.to_owned(),
            to: to.to_owned(),
            target: Target {
                address,
                port,
                protocol: Protocol::Tcp,
            },
            expected,
            outcome,
        }
    }

    #[test]
    fn table_shows_open_closed_and_wrong_cells() {
        let matrix = Matrix {
            checks: vec![
                check("a/web", "b/db", 80, true, true),
                check("a/web", "b/db", 5432, false, false),
                check("b/db", "a/web", 80, false, true),
            ],
        };

        let table = matrix.render(Style::Plain);

        let expected = "\
from \\ to    1     2
 1 a/web           80  ....
 2 b/db      80!
";
        assert_eq!(table, expected);
    }

    #[test]
    fn answer_by_another_pod_is_wrong() {
        let mut check = check("a/web", "b/db", 80, true, true);
        check.outcome = Outcome::Answered {
            by: "b/other".to_owned(),
            micros: 1,
        };

        assert!(!check.is_right());
    }

    #[test]
    fn refusal_means_that_the_packet_passed() {
        let mut check = check("a/web", "b/db", 80, false, false);
        check.outcome = Outcome::Refused { micros: 1 };

        assert!(!check.is_right());
    }
}
