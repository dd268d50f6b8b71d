//! Walks from world to world by random updates, in a kernel that is never loaded afresh.

use anyhow::{Result, ensure};
use towpath_core::generate::{Probe, difference, flows};
use towpath_core::model::{Cluster, Update};
use towpath_core::tables::{Delta, Phase};
use towpath_tests::random::Random;
use towpath_tests::require;

use super::batch::{Batch, Mismatch, Tally};
use super::enforcer::{Enforcer, Kernel};
use super::fabric::Fabric;
use super::plan::Plan;
use super::report::report;
use super::{first_seed, share_of_probes};

/// Flows asked after each step.
const FLOWS: usize = 20;
/// Most updates that one step takes.
const MOST_UPDATES: usize = 6;
/// As many worlds in a row lend their policies to the first of them; then the kernel is compared with a fresh load.
const WORLDS_PER_LEG: usize = 5;

#[test]
fn every_batch_of_a_walk_leaves_the_old_or_the_new_verdicts() {
    require!("kernel_oracle", Root, BridgeNetfilter, Ipv6, Conntrack, Nft);
    let wanted = share_of_probes(3);
    let first = first_seed();
    let mut walk = Walk::new(first).unwrap();

    let worlds = super::worlds(first, wanted);
    let mut worlds = worlds.map(|(seed, world)| (seed, world.cluster()));
    while walk.tally.probes < wanted {
        let leg: Vec<(u64, Cluster)> = worlds.by_ref().take(WORLDS_PER_LEG).collect();
        let (_, ground) = leg.first().expect("more worlds than probes").clone();
        for (seed, cluster) in leg {
            // First everything changes, then the policies alone.
            let target = Cluster {
                policies: cluster.policies,
                ..ground.clone()
            };
            walk.to(&target, seed)
                .unwrap_or_else(|error| panic!("TOWPATH_SEED={first}, world {seed}:\n{error:#}"));
        }
        walk.compare_with_a_fresh_load().unwrap();
    }

    let (batches, replacements) = (walk.batches, walk.replacements);
    println!(
        "seed {first}: {batches} batches, {replacements} as replacements, {}",
        walk.tally
    );
    assert!(
        batches * 10 > walk.tally.probes / FLOWS,
        "the state hardly changed"
    );
    assert!(
        replacements * 4 < batches,
        "the tables were replaced rather than changed"
    );
}

struct Walk {
    fabric: Fabric,
    kernel: Kernel,
    enforcer: Enforcer,
    random: Random,
    tally: Tally,
    batches: usize,
    replacements: usize,
}

impl Walk {
    fn new(seed: u64) -> Result<Self> {
        let fabric = Fabric::new()?;
        let kernel = Kernel::open(&fabric)?;
        let enforcer = Enforcer::start(&kernel, Vec::new())?;
        Ok(Self {
            fabric,
            kernel,
            enforcer,
            random: Random::new(seed),
            tally: Tally::default(),
            batches: 0,
            replacements: 0,
        })
    }

    /// Walks to a state in random steps.
    fn to(&mut self, target: &Cluster, seed: u64) -> Result<()> {
        let mut updates = difference(self.enforcer.graph.cluster(), target);
        self.shuffle(&mut updates);
        let mut step = 0;
        while !updates.is_empty() {
            let count = (1 + self.random.below(MOST_UPDATES)).min(updates.len());
            let taken = updates.split_off(updates.len() - count);
            self.step(taken, seed ^ (step << 32))?;
            step += 1;
        }
        Ok(())
    }

    fn step(&mut self, updates: Vec<Update>, seed: u64) -> Result<()> {
        let before = self.enforcer.graph.cluster().clone();
        for update in updates {
            self.enforcer.graph.apply(&update);
        }
        let now = self.enforcer.graph.cluster().clone();
        let phases = self.enforcer.graph.flush().phases;
        // Most probes where something changes; a few to see that nothing did.
        let is_probed = !phases.is_empty() || self.random.once_in(4);
        let count = if is_probed { FLOWS / 2 } else { 0 };
        // What turned before the step and what turns after it.
        let flows = [&before, &now].map(|cluster| flows(cluster, seed, count));
        let flows = flows.iter().flatten().map(Probe::flow);
        let (earlier, plan) = (Plan::new(&before), Plan::new(&now));
        self.fabric.arrange(&plan.addresses)?;
        let batch = Batch::new(&plan, flows, &mut self.tally);
        let between = batch.since(&earlier);
        for phase in phases {
            self.commit(phase)?;
            self.shoot(&between, &now)?;
        }
        // Facts of the node change without a batch of the graph.
        self.enforcer.commit(Delta::default())?;
        self.shoot(&batch, &now)?;
        if self.random.once_in(3) {
            // No packet is on its way, so nothing is to be waited for.
            for phase in self.enforcer.graph.collect().phases {
                self.commit(phase)?;
            }
            self.shoot(&batch, &now)?;
        }
        Ok(())
    }

    fn commit(&mut self, phase: Phase) -> Result<()> {
        let applied = self.enforcer.commit(Delta {
            phases: vec![phase],
        })?;
        self.kernel.has_taken_all()?;
        // A set that has become too small is a reason, and the only one, to replace the tables.
        self.replacements += usize::from(applied.replaced);
        self.batches += 1;
        Ok(())
    }

    fn shoot(&mut self, batch: &Batch, cluster: &Cluster) -> Result<()> {
        self.fabric.forget_connections()?;
        let arrived = self.fabric.shoot(&batch.shots)?;
        self.tally.add(batch);
        let mismatches: Vec<Mismatch> = batch.mismatches(&arrived);
        if let Some(mismatch) = mismatches.first() {
            anyhow::bail!("{}", report(mismatch, cluster, self.enforcer.tables()));
        }
        Ok(())
    }

    /// What the kernel holds after all changes is what a fresh load of the same state would make.
    fn compare_with_a_fresh_load(&mut self) -> Result<()> {
        let [grown, fresh] = self.enforcer.chains(&self.fabric)?;
        let differing: Vec<&String> = grown.symmetric_difference(&fresh).collect();
        ensure!(
            differing.is_empty(),
            "chains differ from a fresh load: {differing:#?}"
        );
        ensure!(
            *self.enforcer.tables() == self.enforcer.graph.tables(),
            "applier and graph want different tables"
        );
        let drift = self.enforcer.verify()?;
        ensure!(
            drift.is_none(),
            "the kernel does not hold what it should: {drift:?}"
        );
        Ok(())
    }

    fn shuffle(&mut self, updates: &mut [Update]) {
        for index in (1..updates.len()).rev() {
            let other = self.random.below(index + 1);
            updates.swap(index, other);
        }
    }
}
