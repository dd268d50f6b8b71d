//! Worlds that are loaded whole.

use anyhow::{Result, ensure};
use towpath_core::evaluate::Flow;
use towpath_core::generate::Probe;
use towpath_core::model::{Cluster, Object, ObjectKey, Update};
use towpath_tests::require;

use super::batch::{Batch, Mismatch, Tally};
use super::enforcer::{Enforcer, Kernel};
use super::fabric::Fabric;
use super::plan::Plan;
use super::report::report;
use super::{first_seed, share_of_probes};

/// Flows asked of one world.
const FLOWS: usize = 60;

#[test]
fn kernel_and_evaluator_agree() {
    require!("kernel_oracle", Root, BridgeNetfilter, Ipv6, Conntrack);
    let wanted = share_of_probes(7);
    let first = first_seed();
    let mut fabric = Fabric::new().unwrap();
    let mut kernel = Kernel::open(&fabric).unwrap();
    let mut tally = Tally::default();

    // More worlds than are needed: the probes decide when it is enough.
    for (seed, world) in super::worlds(first, wanted) {
        if tally.probes >= wanted {
            break;
        }
        let cluster = world.cluster();
        let flows: Vec<Flow> = world.flows(seed, FLOWS).iter().map(Probe::flow).collect();
        let mismatches = check(&mut fabric, &mut kernel, &cluster, &flows, &mut tally);
        if let Some(mismatch) = mismatches.unwrap().first() {
            let text = shrunk_report(&mut fabric, &mut kernel, cluster, mismatch).unwrap();
            panic!("TOWPATH_SEED={first}, world {seed}:\n{text}");
        }
    }

    println!("seed {first}: {tally}");
    assert!(
        tally.probes >= wanted,
        "only {} of {wanted} probes were sent",
        tally.probes
    );
    assert!(
        tally.allowed * 4 >= tally.probes,
        "fewer than a quarter of the probes are allowed"
    );
    assert!(
        tally.allowed * 4 <= tally.probes * 3,
        "fewer than a quarter of the probes are denied"
    );
    for way in WAYS {
        assert!(tally.of_way(way) > 0, "no probe went from {way}");
    }
    assert_eq!(
        tally.unused_tables(),
        [] as [&str; 0],
        "no world filled these"
    );
}

/// Every way between a pod and the rest must have been probed, neighbours both directly and through the node.
const WAYS: [&str; 8] = [
    "outside to pod, routed",
    "outside to stray, routed",
    "pod to node, routed",
    "pod to outside, routed",
    "pod to pod, bridged",
    "pod to pod, routed",
    "pod to stray, bridged",
    "stray to pod, bridged",
];

/// Probes a state twice: without tables every probe arrives, with them those that may.
fn check(
    fabric: &mut Fabric,
    kernel: &mut Kernel,
    cluster: &Cluster,
    flows: &[Flow],
    tally: &mut Tally,
) -> Result<Vec<Mismatch>> {
    let plan = Plan::new(cluster);
    fabric.arrange(&plan.addresses)?;
    let batch = Batch::new(&plan, flows.iter().copied(), tally);
    let control = fabric.shoot(&batch.shots)?;
    for (shot, has_arrived) in batch.shots.iter().zip(control) {
        ensure!(has_arrived, "without tables {shot:?} must arrive");
    }
    let enforcer = Enforcer::start(kernel, insertions(cluster))?;
    tally.add_tables(enforcer.tables());
    let arrived = fabric.shoot(&batch.shots)?;
    kernel.remove_tables()?;
    fabric.forget_connections()?;
    tally.add(&batch);
    Ok(batch.mismatches(&arrived))
}

/// Takes objects out as long as the mismatch stays, and tells of what is left.
fn shrunk_report(
    fabric: &mut Fabric,
    kernel: &mut Kernel,
    mut cluster: Cluster,
    mismatch: &Mismatch,
) -> Result<String> {
    let flows = [mismatch.shot.flow];
    let mut last = mismatch.clone();
    let mut find = |cluster: &Cluster| -> Result<Option<Mismatch>> {
        // The first flow that could go directly is routed instead: asking twice tries both.
        let twice = [flows[0], flows[0]];
        let found = check(fabric, kernel, cluster, &twice, &mut Tally::default())?;
        Ok(found.into_iter().next())
    };
    let mut is_smaller = true;
    while is_smaller {
        is_smaller = false;
        for key in keys(&cluster) {
            let mut smaller = cluster.clone();
            smaller.apply(Update::Remove(key));
            if let Some(mismatch) = find(&smaller)? {
                last = mismatch;
                cluster = smaller;
                is_smaller = true;
            }
        }
    }
    let enforcer = Enforcer::start(kernel, insertions(&cluster))?;
    let listing = fabric
        .node
        .run(std::process::Command::new("nft").args(["list", "ruleset"]));
    kernel.remove_tables()?;
    let text = report(&last, &cluster, enforcer.tables());
    let path = std::env::temp_dir().join("towpath-oracle-ruleset.nft");
    std::fs::write(&path, listing?)?;
    Ok(format!("{text}the ruleset is in {}", path.display()))
}

pub(crate) fn keys(cluster: &Cluster) -> Vec<ObjectKey> {
    objects(cluster).map(|object| object.key()).collect()
}

/// The updates that make a state of nothing.
pub(crate) fn insertions(cluster: &Cluster) -> Vec<Update> {
    objects(cluster).map(Update::Upsert).collect()
}

fn objects(cluster: &Cluster) -> impl Iterator<Item = Object> {
    let policies = cluster.policies.values().cloned().map(Object::Policy);
    let interfaces = cluster.interfaces.values().cloned().map(Object::Interface);
    let endpoints = cluster.endpoints.values().cloned().map(Object::Endpoint);
    let nodes = cluster.nodes.values().cloned().map(Object::Node);
    let namespaces = cluster.namespaces.values().cloned().map(Object::Namespace);
    policies
        .chain(interfaces)
        .chain(endpoints)
        .chain(nodes)
        .chain(namespaces)
}
