//! Many probes of one state, with what should become of each.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use towpath_core::evaluate::Flow;
use towpath_core::model::Verdict;
use towpath_core::tables::Tables;

use super::fabric::{Place, Shot, Way};
use super::plan::{Cause, Expectation, Plan, Skip};

/// Of this many probes between neighbours on the bridge, one is routed.
const ROUTED: usize = 4;

/// Probes, and what may become of each: one of its expectations must hold.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) shots: Vec<Shot>,
    pub(crate) expectations: Vec<Vec<Expectation>>,
}

impl Batch {
    /// The flows that can be probed. Connections of earlier batches must have been forgotten.
    pub(crate) fn new(
        plan: &Plan<'_>,
        flows: impl IntoIterator<Item = Flow>,
        tally: &mut Tally,
    ) -> Self {
        let mut batch = Self::default();
        let mut unnamed = BTreeSet::new();
        for (index, flow) in flows.into_iter().enumerate() {
            let probe = plan
                .shot(&flow, index % ROUTED == 0)
                .and_then(|shot| Ok((shot, plan.expect(&shot)?)));
            match probe {
                Ok(_) if is_reply(&flow, &mut unnamed) => tally.skip(Skip::Reply),
                Ok((shot, expectation)) => {
                    batch.shots.push(shot);
                    batch.expectations.push(vec![expectation]);
                }
                Err(skip) => tally.skip(skip),
            }
        }
        batch
    }

    /// These probes while the state changes: at each end, what an earlier state says may hold too. Probes that this
    /// state would send otherwise are left out.
    pub(crate) fn since(&self, earlier: &Plan<'_>) -> Self {
        let mut batch = Self::default();
        for (shot, expectations) in self.shots.iter().zip(&self.expectations) {
            let is_same = |other: &Shot| (other.from, other.to) == (shot.from, shot.to);
            let before = earlier
                .shot(&shot.flow, shot.way == Way::Routed)
                .ok()
                .filter(is_same);
            if let Some(Ok(before)) = before.map(|_| earlier.expect(shot)) {
                batch.shots.push(*shot);
                let after = expectations.iter();
                let half = after.clone().flat_map(|after| {
                    [
                        Expectation::of(before.source.clone(), after.destination.clone()),
                        Expectation::of(after.source.clone(), before.destination.clone()),
                    ]
                });
                let mut possible: Vec<_> = half.collect();
                possible.push(before.clone());
                // The last one is what holds in the end.
                possible.extend(after.cloned());
                batch.expectations.push(possible);
            }
        }
        batch
    }

    /// The probes whose fate is no expected one.
    pub(crate) fn mismatches(&self, arrived: &[bool]) -> Vec<Mismatch> {
        assert_eq!(arrived.len(), self.shots.len(), "every probe has a fate");
        let mut mismatches = Vec::new();
        for ((shot, expectations), has_arrived) in
            self.shots.iter().zip(&self.expectations).zip(arrived)
        {
            let verdict = if *has_arrived {
                Verdict::Allow
            } else {
                Verdict::Deny
            };
            if !expectations
                .iter()
                .any(|expectation| expectation.verdict == verdict)
            {
                mismatches.push(Mismatch {
                    shot: *shot,
                    expectations: expectations.clone(),
                    has_arrived: *has_arrived,
                });
            }
        }
        mismatches
    }
}

/// Packets without ports or identifier are of one connection per pair of addresses: whether one of these flows the
/// other way was seen.
fn is_reply(flow: &Flow, seen: &mut BTreeSet<(u8, IpAddr, IpAddr)>) -> bool {
    if flow.port.is_some() || matches!(flow.protocol, 1 | 58) {
        return false;
    }
    seen.insert((flow.protocol, flow.source, flow.destination));
    seen.contains(&(flow.protocol, flow.destination, flow.source))
}

/// A probe whose fate is no expected one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mismatch {
    pub(crate) shot: Shot,
    pub(crate) expectations: Vec<Expectation>,
    pub(crate) has_arrived: bool,
}

/// What a run has covered.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) probes: usize,
    pub(crate) allowed: usize,
    skipped: BTreeMap<Skip, usize>,
    causes: BTreeMap<String, usize>,
    ways: BTreeMap<String, usize>,
    protocols: BTreeMap<String, usize>,
    tables: BTreeMap<&'static str, usize>,
}

impl Tally {
    fn skip(&mut self, skip: Skip) {
        *self.skipped.entry(skip).or_default() += 1;
    }

    /// Counts probes that were sent.
    pub(crate) fn add(&mut self, batch: &Batch) {
        for (shot, expectations) in batch.shots.iter().zip(&batch.expectations) {
            let expectation = expectations.last().expect("every probe has an expectation");
            self.probes += 1;
            self.allowed += usize::from(expectation.verdict == Verdict::Allow);
            for cause in expectation.source.iter().chain(&expectation.destination) {
                *self.causes.entry(short(cause)).or_default() += 1;
            }
            *self.ways.entry(way(shot)).or_default() += 1;
            let family = if shot.flow.source.is_ipv4() { 4 } else { 6 };
            let protocol = format!("{} over IPv{family}", shot.flow.protocol);
            *self.protocols.entry(protocol).or_default() += 1;
        }
    }

    /// Counts which tables hold anything.
    pub(crate) fn add_tables(&mut self, tables: &Tables) {
        let Tables {
            peer_class,
            cidr_class,
            ingress,
            egress,
            profiles,
            ..
        } = tables;
        let counts = [
            ("peer classes", peer_class.len()),
            ("block classes", cidr_class.len()),
            ("profiles", profiles.len()),
            ("ingress, exact", ingress.exact.len()),
            ("ingress, protocol of a class", ingress.class_protocol.len()),
            ("ingress, all of a class", ingress.class_any.len()),
            ("ingress, port for everybody", ingress.any.len()),
            ("ingress, profile", ingress.profile.len()),
            ("egress, exact", egress.exact.len()),
            ("egress, protocol of a class", egress.class_protocol.len()),
            ("egress, all of a class", egress.class_any.len()),
            ("egress, port for everybody", egress.any.len()),
            ("egress, profile", egress.profile.len()),
        ];
        for (table, count) in counts {
            *self.tables.entry(table).or_default() += count;
        }
    }

    /// Tables that never held anything.
    pub(crate) fn unused_tables(&self) -> Vec<&'static str> {
        let unused = self.tables.iter().filter(|(_, count)| **count == 0);
        unused.map(|(table, _)| *table).collect()
    }

    /// Probes that took a way whose name starts so.
    pub(crate) fn of_way(&self, start: &str) -> usize {
        let ways = self.ways.iter();
        ways.filter(|(way, _)| way.starts_with(start))
            .map(|(_, count)| count)
            .sum()
    }
}

fn short(cause: &Cause) -> String {
    use towpath_core::evaluate::Reason;
    match cause {
        Cause::Closed => "closed".to_owned(),
        Cause::Encapsulation => "encapsulation".to_owned(),
        Cause::Evaluator(_, Reason::Rule { tier, action, .. }) => {
            format!("{action} in tier {}", tier.name)
        }
        Cause::Evaluator(_, Reason::TierDefault { tier, .. }) => {
            format!("end of tier {}", tier.name)
        }
        Cause::Evaluator(_, reason) => reason.to_string(),
    }
}

fn way(shot: &Shot) -> String {
    let kind = |place| match place {
        Place::Pod(_) => "pod",
        Place::Stray => "stray",
        Place::Outside => "outside",
        Place::Node => "node",
    };
    let way = match shot.way {
        Way::Bridged => "bridged",
        Way::Routed => "routed",
    };
    format!("{} to {}, {way}", kind(shot.from), kind(shot.to))
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} probes, {} allowed", self.probes, self.allowed)?;
        for (title, counts) in [
            ("ways", &self.ways),
            ("protocols", &self.protocols),
            ("judgements", &self.causes),
        ] {
            writeln!(f, "{title}:")?;
            for (name, count) in counts {
                writeln!(f, "  {count:7} {name}")?;
            }
        }
        writeln!(f, "elements:")?;
        for (table, count) in &self.tables {
            writeln!(f, "  {count:7} {table}")?;
        }
        writeln!(f, "not probed:")?;
        for (skip, count) in &self.skipped {
            writeln!(f, "  {count:7} {skip:?}")?;
        }
        Ok(())
    }
}
