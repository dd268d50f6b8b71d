//! The positive control: a prober that cannot see an opening proves nothing by seeing none.

use towpath_core::evaluate::Flow;
use towpath_core::generate::Probe;
use towpath_core::model::Verdict;
use towpath_tests::require;

use super::batch::{Batch, Tally};
use super::enforcer::{Enforcer, Kernel};
use super::fabric::{Fabric, Shot};
use super::first_seed;
use super::plan::Plan;
use super::worlds::insertions;

/// Forbidden probes that this test asks for.
const LEAST: usize = 20;

#[test]
fn prober_sees_an_instant_without_enforcement() {
    require!("kernel_oracle", Root, BridgeNetfilter, Ipv6, Conntrack);
    let mut fabric = Fabric::new().unwrap();
    let mut kernel = Kernel::open(&fabric).unwrap();
    let first = first_seed();
    let (cluster, forbidden) = super::worlds(first, 1_000)
        .map(|(seed, world)| {
            let cluster = world.cluster();
            let flows = world.flows(seed, 200);
            let forbidden = forbidden(&Plan::new(&cluster), flows.iter().map(Probe::flow));
            (cluster, forbidden)
        })
        .find(|(_, forbidden)| forbidden.len() >= LEAST)
        .expect("a world that forbids some flows");
    fabric.arrange(&Plan::new(&cluster).addresses).unwrap();
    let mut enforcer = Enforcer::start(&kernel, insertions(&cluster)).unwrap();
    let arrivals = |fabric: &mut Fabric| {
        let arrived = fabric.shoot(&forbidden).unwrap();
        fabric.forget_connections().unwrap();
        arrived.into_iter().filter(|arrived| *arrived).count()
    };

    let before = arrivals(&mut fabric);
    kernel.remove_tables().unwrap();
    let during = arrivals(&mut fabric);
    let drift = enforcer.verify().unwrap();
    let after = arrivals(&mut fabric);

    assert!(
        drift.is_torn,
        "the applier noticed that its tables were gone"
    );
    assert_eq!((before, during, after), (0, forbidden.len(), 0));
}

fn forbidden(plan: &Plan<'_>, flows: impl Iterator<Item = Flow>) -> Vec<Shot> {
    let batch = Batch::new(plan, flows, &mut Tally::default());
    let probes = batch.shots.iter().zip(&batch.expectations);
    probes
        .filter(|(_, expectations)| expectations.iter().all(|one| one.verdict == Verdict::Deny))
        .map(|(shot, _)| *shot)
        .collect()
}
