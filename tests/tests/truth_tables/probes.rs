//! The probes of a step: sockets all at once, SCTP one by one by raw packets.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use towpath_tests::frame::{self, Capture};
use towpath_tests::lab::Pod;
use towpath_tests::probe::{Outcome, Patience, Target, probe_all};

use crate::bed::Bed;
use crate::case::{Family, Probe, Speech};

/// How long other programs, such as kube-proxy, may take.
const SETTLE: Duration = Duration::from_secs(20);
const SCTP: u8 = 132;
/// Next to this port the associations begin; each has its own.
const FIRST_PORT: u16 = 20_000;

/// One probe in one family.
#[derive(Debug)]
struct Check<'a> {
    line: &'a str,
    probe: Probe,
    family: Family,
    address: IpAddr,
}

/// What is not as it should be, a sentence each; and how many probes there were.
pub(crate) fn wrong(bed: &Bed, lines: &str, settles: bool) -> Result<(Vec<String>, usize)> {
    let mut checks = Vec::new();
    for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let probe: Probe = line.parse()?;
        for family in probe.families.clone() {
            let address = bed.address(&probe.to, family)?;
            let probe = probe.clone();
            checks.push(Check {
                line,
                probe,
                family,
                address,
            });
        }
    }
    let deadline = Instant::now() + SETTLE;
    loop {
        let (slow, mut faults): (Vec<_>, Vec<_>) = faults(bed, &checks, Patience::default())?
            .into_iter()
            .partition(|(check, _)| check.probe.is_open);
        // A loaded machine may be slow, but it never lets pass what is closed.
        let slow = slow.into_iter().map(|(check, _)| check);
        faults.extend(self::faults(bed, slow, Patience::LONG)?);
        if faults.is_empty() || !settles || Instant::now() > deadline {
            let told = faults.iter().map(|(check, outcome)| {
                format!(
                    "{} ({:?}, {}): {outcome}",
                    check.line, check.family, check.address
                )
            });
            return Ok((told.collect(), checks.len()));
        }
    }
}

/// The checks that come out otherwise than they should, each with what came out.
fn faults<'a, 'b>(
    bed: &Bed,
    checks: impl IntoIterator<Item = &'a Check<'b>>,
    patience: Patience,
) -> Result<Vec<(&'a Check<'b>, String)>> {
    let (mut by_source, mut faults) = (BTreeMap::<&str, Vec<_>>::new(), Vec::new());
    for check in checks {
        let Speech::Socket(protocol) = check.probe.speech else {
            let arrives = sctp_arrives(bed, check)?;
            if arrives != check.probe.is_open {
                let outcome = if arrives {
                    "it arrived"
                } else {
                    "it did not arrive"
                };
                faults.push((check, outcome.to_owned()));
            }
            continue;
        };
        let target = Target {
            address: check.address,
            port: check.probe.port,
            protocol,
        };
        let work = by_source.entry(&check.probe.from).or_default();
        work.push((check, target));
    }
    let mut work = Vec::new();
    for (from, checks) in &by_source {
        let targets = checks.iter().map(|(_, target)| *target).collect();
        work.push((bed.place(from)?, targets));
    }
    let outcomes = probe_all(&work, patience)?;
    for (checks, outcomes) in by_source.into_values().zip(outcomes) {
        for ((check, _), outcome) in checks.into_iter().zip(outcomes) {
            if !is_right(&check.probe, &outcome) {
                faults.push((check, format!("{outcome:?}")));
            }
        }
    }
    Ok(faults)
}

/// A denied probe times out: it is not refused, and nobody says that there is no way.
fn is_right(probe: &Probe, outcome: &Outcome) -> bool {
    let is_pod = probe.to.contains('/');
    match outcome {
        Outcome::Answered { by, .. } => {
            probe.is_open && (!is_pod || by.is_empty() || *by == probe.to)
        }
        Outcome::Refused { .. } => probe.is_open,
        Outcome::TimedOut => !probe.is_open,
        Outcome::Failed { .. } => false,
    }
}

/// Sends the first packet of an association to a pod on the same bridge, and sees whether it comes.
fn sctp_arrives(bed: &Bed, check: &Check<'_>) -> Result<bool> {
    let (from, to) = (
        bed.lab.pod(&check.probe.from)?,
        bed.lab.pod(&check.probe.to)?,
    );
    ensure!(
        from.spec.node == to.spec.node,
        "{}: SCTP is probed on one node only",
        check.line
    );
    let port = fresh_port();
    let init = frame::sctp_init(port, check.probe.port, 1);
    let source = bed.address(&check.probe.from, check.family)?;
    let packet = match (source, check.address) {
        (IpAddr::V4(source), IpAddr::V4(to)) => frame::ipv4(source, to, SCTP, &init),
        (IpAddr::V6(source), IpAddr::V6(to)) => frame::ipv6(source, to, SCTP, 64, &init),
        _ => unreachable!("both addresses are of the check's family"),
    };
    let ether_type = match check.family {
        Family::V4 => frame::IPV4,
        Family::V6 => frame::IPV6,
    };
    let sent = frame::ethernet(to.mac, from.mac, ether_type, &packet);
    let fence = fence(from, to, port)?;
    let mut capture = Capture::start(&to.namespace)?;
    frame::send(&from.namespace, "eth0", &[sent.clone(), fence.clone()])?;
    let seen = capture.until(|frame| frame == fence.as_slice())?;
    Ok(seen.contains(&sent))
}

/// An ARP packet that no system sends: the port stands in its padding. Policy does not ask about ARP.
fn fence(from: &Pod, to: &Pod, port: u16) -> Result<Vec<u8>> {
    let question = frame::arp(1, (from.mac, from.ipv4()?), ([0; 6], to.ipv4()?));
    let mut fence = frame::ethernet(to.mac, from.mac, frame::ARP, &question);
    fence.extend_from_slice(&port.to_be_bytes());
    Ok(fence)
}

/// A source port that no association has had, since connection tracking would remember it.
fn fresh_port() -> u16 {
    use std::sync::atomic::{AtomicU16, Ordering};
    static LAST: AtomicU16 = AtomicU16::new(FIRST_PORT);
    LAST.fetch_add(1, Ordering::Relaxed)
}
