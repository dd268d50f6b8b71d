//! One flush: from what was touched to the batches that bring the dataplane there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use rustc_hash::{FxHashMap, FxHashSet};

use super::cidr::Partition;
use super::compile::{Claimant, MatcherId};
use super::local::{Local, Reader, Resolved};
use super::matcher::MatcherChanges;
use super::moves::{Moves, Target};
use super::share::Compiler;
use super::side::Rewritten;
use super::transition::{Step, Written};
use super::{CalcGraph, Dirty};
use crate::model::Direction;
use crate::tables::{AddressRange, ClassId, Delta, Phase};

/// What was written of the touched local addresses, ingress and egress.
type Before = FxHashMap<IpAddr, [Arc<Written>; 2]>;

impl CalcGraph {
    /// What has changed in the tables since the last flush.
    pub fn flush(&mut self) -> Delta {
        let mut dirty = std::mem::take(&mut self.dirty);
        if dirty.peers.is_empty()
            && dirty.locals.is_empty()
            && !dirty.node
            && dirty.names.is_empty()
        {
            return Delta::default();
        }
        self.mark_users_of_names(&mut dirty);
        let mut changes = MatcherChanges::default();
        let next = self.resolve(&dirty, &mut changes);
        let dropped = changes.dropped_ids();
        if !dropped.is_empty() {
            self.classes.forget(&dropped);
        }
        let gains = self.mark_met(&changes, &mut dirty);
        let refusal = self.change_refused(&changes, &next);
        dirty.peers.extend(refusal.iter().flatten());
        let partition = (changes.concern_blocks() || refusal.is_some()).then(|| {
            let is_taken = |id: MatcherId| self.refused.binary_search(&id).is_err();
            Partition::new(self.matchers.networks().filter(|(id, ..)| is_taken(*id)))
        });
        let rules_change = refusal.is_some() || self.do_rules_change(&next);
        let mut moves = self.find_moves(&dirty, gains, partition.as_ref(), rules_change);
        let mut phases = Vec::new();
        let overlaps = partition
            .as_ref()
            .map(|new| self.blocks.overlaps(new))
            .unwrap_or_default();
        let block_targets: Vec<Target> = overlaps
            .iter()
            .map(|(_, old, signature)| self.target(&mut moves, *old, signature))
            .collect();
        if moves.in_two_steps {
            let mut blocks = BTreeMap::new();
            for ((overlap, ..), target) in overlaps.iter().zip(&block_targets) {
                if target.first != ClassId::NONE {
                    blocks.insert(overlap.range(), target.first);
                }
            }
            phases = self.copy_verdicts(&moves, partition.is_some().then_some(blocks));
        }
        phases.extend(self.change_verdicts(next, &moves, partition, dirty.node));
        Delta { phases }
    }

    /// Endpoints whose rules name a port that now stands for other numbers.
    fn mark_users_of_names(&self, dirty: &mut Dirty) {
        if dirty.names.is_empty() {
            return;
        }
        for (address, programmed) in &self.locals {
            let rules = programmed.sides.iter().map(|side| self.sides.rules(*side));
            let mut names = rules.flat_map(|rules| &rules.names);
            if names.any(|name| dirty.names.contains(name)) {
                dirty.locals.insert(*address);
            }
        }
    }

    /// Looks which blocks are too much now. Returns the addresses in those for which that changes, if any.
    fn change_refused(
        &mut self,
        changes: &MatcherChanges,
        next: &BTreeMap<IpAddr, Option<Resolved>>,
    ) -> Option<BTreeSet<IpAddr>> {
        // While some are refused, who else has them counts as well.
        if !changes.concern_blocks() && self.refused.is_empty() {
            return None;
        }
        let refused = self.too_much(next);
        self.refuse(refused)
    }

    /// Whether an address that stays gets other rules. Many have the same, which are compared once.
    fn do_rules_change(&self, next: &BTreeMap<IpAddr, Option<Resolved>>) -> bool {
        let mut compared = FxHashSet::default();
        next.iter().any(|(address, new)| {
            let (Some(old), Some(new)) = (self.locals.get(address), new) else {
                return false;
            };
            let mut pairs = old.sides.iter().zip(&new.rules);
            pairs.any(|(old, new)| {
                compared.insert((*old, Arc::as_ptr(new))) && self.sides.rules(*old) != new
            })
        })
    }

    /// What the touched local addresses shall be. References to matchers pass from the old rules to the new.
    fn resolve(
        &mut self,
        dirty: &Dirty,
        changes: &mut MatcherChanges,
    ) -> BTreeMap<IpAddr, Option<Resolved>> {
        let reader = Reader {
            cluster: &self.cluster,
            node: &self.node,
            index: &self.index,
        };
        let mut next = BTreeMap::new();
        let mut compiler = Compiler::new(&reader, &mut self.matchers, changes);
        for address in &dirty.locals {
            let local = reader.resolve(*address).map(|(endpoint, binding)| {
                let rules = Direction::BOTH.map(|direction| compiler.compile(endpoint, direction));
                Resolved { binding, rules }
            });
            next.insert(*address, local);
        }
        compiler.finish();
        for address in next.keys() {
            let old = self.locals.get(address).into_iter();
            for side in old.flat_map(|local| &local.sides) {
                for id in &self.sides.rules(*side).matchers {
                    self.matchers.release(*id, changes);
                }
            }
        }
        next
    }

    /// First step: what moves gets classes with copies of its old verdicts.
    fn copy_verdicts(
        &mut self,
        moves: &Moves,
        blocks: Option<BTreeMap<AddressRange, ClassId>>,
    ) -> Vec<Phase> {
        let rewritten = self.sides.copy(&moves.sources);
        let mut profiles = std::mem::take(&mut self.profiles);
        let mut step = Step::new(&mut profiles);
        self.rewrite(&mut step, &rewritten, |_| true);
        if let Some(blocks) = blocks {
            step.last.cidr_class.extend(self.blocks.write(blocks));
        }
        for (address, target) in &moves.peers {
            if moves.sources.contains_key(&target.first) {
                step.last.peer_class.insert(*address, Some(target.first));
            }
        }
        let phases = step.finish();
        self.profiles = profiles;
        phases
    }

    /// Writes the changes of sides for the endpoints that have them.
    pub(super) fn rewrite(
        &self,
        step: &mut Step<'_>,
        rewritten: &Rewritten,
        is_concerned: impl Fn(&IpAddr) -> bool,
    ) {
        if rewritten.is_empty() {
            return;
        }
        for (address, local) in self
            .locals
            .iter()
            .filter(|(address, _)| is_concerned(address))
        {
            for (direction, side) in Direction::BOTH.into_iter().zip(local.sides) {
                if let Some(before) = rewritten.get(&side) {
                    let after = self.sides.written(side);
                    step.change(direction, *address, Some(before), Some(after));
                }
            }
        }
    }

    /// Second (or only) step: the new rules, and the final classes.
    fn change_verdicts(
        &mut self,
        next: BTreeMap<IpAddr, Option<Resolved>>,
        moves: &Moves,
        partition: Option<Partition>,
        is_node_changed: bool,
    ) -> Vec<Phase> {
        let mut profiles = std::mem::take(&mut self.profiles);
        let mut step = Step::new(&mut profiles);
        let before = self.written_before(next.keys());
        let mut rewritten = self.sides.refuse(&self.refused, &self.classes);
        if !moves.fresh.is_empty() {
            for (side, before) in self.sides.judge(&moves.fresh, &self.classes) {
                rewritten.entry(side).or_insert(before);
            }
        }
        self.rewrite(&mut step, &rewritten, |address| !next.contains_key(address));
        for (address, local) in next {
            self.replace_local(&mut step, address, local, &before);
        }
        if let Some(partition) = partition {
            self.replace_blocks(&mut step, partition);
        }
        for (address, target) in &moves.peers {
            let is_copied = moves.sources.contains_key(&target.first);
            self.settle(&mut step, *address, *target, is_copied);
        }
        if is_node_changed {
            self.replace_pod_networks(&mut step);
        }
        let phases = step.finish();
        self.profiles = profiles;
        phases
    }

    fn written_before<'k>(&self, addresses: impl Iterator<Item = &'k IpAddr>) -> Before {
        let written = addresses.filter_map(|address| {
            let sides = self.locals.get(address)?.sides;
            Some((*address, sides.map(|side| self.sides.written(side).clone())))
        });
        written.collect()
    }

    /// A touched address gets its new rules, or is no longer programmed.
    fn replace_local(
        &mut self,
        step: &mut Step<'_>,
        address: IpAddr,
        resolved: Option<Resolved>,
        before: &Before,
    ) {
        let new = resolved.map(|Resolved { binding, rules }| Local {
            binding,
            sides: rules.map(|rules| self.sides.acquire(&rules, &self.classes)),
        });
        let old = self.locals.remove(&address);
        for (index, direction) in Direction::BOTH.into_iter().enumerate() {
            let before = before.get(&address).map(|written| &*written[index]);
            let after = new
                .as_ref()
                .map(|new| &**self.sides.written(new.sides[index]));
            step.change(direction, address, before, after);
        }
        for side in old.iter().flat_map(|old| old.sides) {
            self.sides.release(side);
        }
        let before = old.map(|old| old.binding);
        let after = new.as_ref().map(|new| new.binding.clone());
        if before != after {
            step.last
                .bindings
                .extend(before.map(|binding| (binding, None)));
            step.last
                .bindings
                .extend(after.map(|binding| (binding, Some(()))));
        }
        if let Some(new) = new {
            self.locals.insert(address, new);
        }
    }

    fn replace_blocks(&mut self, step: &mut Step<'_>, partition: Partition) {
        let mut classes = Vec::new();
        for piece in partition.pieces() {
            let met: Claimant = piece.matchers.iter().map(|id| (*id, true)).collect();
            classes.push(self.classes.canonical(&vec![met]).0);
        }
        for class in &classes {
            self.classes.join(*class);
        }
        for class in self.blocks.classes() {
            self.classes.leave(*class);
        }
        self.blocks.replace(partition, classes);
        let wanted = self.blocks.wanted();
        step.last.cidr_class.extend(self.blocks.write(wanted));
    }

    /// An address gets its final class. One that is like its block needs no entry of its own.
    fn settle(&mut self, step: &mut Step<'_>, address: IpAddr, target: Target, is_copied: bool) {
        let block = self.blocks.class_of(address);
        let wanted = (!self.classes.are_alike(target.last, block)).then_some(target.last);
        let before = match wanted {
            Some(class) => self.peer_class.insert(address, class),
            None => self.peer_class.remove(&address),
        };
        if let Some(class) = wanted {
            self.classes.join(class);
        }
        if let Some(class) = before {
            self.classes.leave(class);
        }
        let written = if is_copied {
            Some(target.first)
        } else {
            before
        };
        if written != wanted {
            step.last.peer_class.insert(address, wanted);
        }
    }

    fn replace_pod_networks(&mut self, step: &mut Step<'_>) {
        let node = self.cluster.nodes.get(&self.node);
        let wanted: BTreeSet<IpNet> = node
            .into_iter()
            .flat_map(|node| node.pod_cidrs.iter().copied())
            .collect();
        let networks = &mut step.last.pod_networks;
        networks.extend(
            wanted
                .difference(&self.pod_networks)
                .map(|net| (*net, Some(()))),
        );
        networks.extend(
            self.pod_networks
                .difference(&wanted)
                .map(|net| (*net, None)),
        );
        self.pod_networks = wanted;
    }
}
