//! Cost of looking for pods: lists of links and addresses over namespace ids.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use towpath_dataplane::link::{Scan, Scanner};

use crate::pods::Pods;
use crate::report::{Arm, Report, Section};
use crate::worlds;

/// Rounds of each arm.
const ROUNDS: usize = 100;
/// Local pods, each behind a veth of its own.
const PODS: u32 = 110;

/// Measures the scanner of the agent on a node with 110 veths.
pub(crate) fn run(report: &mut Report) -> Result<()> {
    let pods = Pods::new(PODS)?;
    let section = pods.enter(measure)??;
    report.sections.push(section);
    Ok(())
}

fn measure() -> Result<Section> {
    let mut scanner = Scanner::open().context("cannot open a scanner")?;
    let all = scanner.discover()?;
    ensure!(
        all.peers.len() == PODS as usize,
        "{} of {PODS} pods found",
        all.peers.len()
    );
    let name = worlds::interface(0).name.to_string();
    let one = (all.interfaces.iter().find(|link| link.name == name))
        .with_context(|| format!("no interface {name}"))?;
    let peer = one.peer.context("a veth has another end")?;
    let mut arms = vec![
        Arm::new("control: addresses of the host, one list"),
        Arm::new("event of a link: it and its other end"),
        Arm::new("event of a namespace: its links and addresses"),
        Arm::new("everything: 110 veths and what is behind them"),
    ];
    for _ in 0..ROUNDS {
        arms[0].samples.push(micros(|| {
            ensure!(!scanner.host_addresses()?.is_empty(), "no address");
            Ok(())
        })?);
        arms[1].samples.push(micros(|| {
            let scan = scanner.rescan_link(one.index)?;
            ensure!(
                matches!(
                    scan,
                    Scan::Link {
                        found: Some((_, Some(_))),
                        ..
                    }
                ),
                "no other end"
            );
            Ok(())
        })?);
        arms[2].samples.push(micros(|| {
            let scan = scanner.rescan_namespace(peer.nsid)?;
            ensure!(
                matches!(scan, Scan::Namespace { ref members, .. } if members.len() == 1),
                "not the one pod"
            );
            Ok(())
        })?);
        arms[3].samples.push(micros(|| {
            ensure!(scanner.discover()? == all, "something has changed");
            Ok(())
        })?);
    }
    let mut section = Section::new("Looking for pods behind 110 veths", "us", arms);
    section.notes.push(format!(
        "{} interfaces, {} addresses of the host, {} pods",
        all.interfaces.len(),
        all.host_addresses.len(),
        all.peers.len()
    ));
    Ok(section)
}

fn micros(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let began = Instant::now();
    work()?;
    Ok(began.elapsed().as_secs_f64() * 1e6)
}
