//! One flush: from what was touched to the batches that bring the dataplane there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use rustc_hash::{FxHashMap, FxHashSet};

use super::cidr::Partition;
use super::class::is_nothing;
use super::compile::{Claimant, Signature, allowed, is_met};
use super::local::{Compiled, Local, Reader};
use super::matcher::{Matcher, MatcherChanges, is_served, selects};
use super::port_space::PortSpace;
use super::transition::{Step, Written};
use super::{CalcGraph, Dirty, Programmed, Side, endpoints_of};
use crate::model::{Direction, NamespaceMatch};
use crate::tables::{ClassId, Delta, Phase};

/// Where an address or block goes: first to a class with copies of its old verdicts, then to its own.
#[derive(Clone, Copy, Debug)]
struct Target {
    first: ClassId,
    last: ClassId,
}

/// The classes that one flush hands out.
#[derive(Debug, Default)]
struct Moves {
    /// Two steps: rules change while addresses change class.
    in_two_steps: bool,
    /// The class for an old class and a new one, and so which class was copied.
    assigned: FxHashMap<(ClassId, ClassId), ClassId>,
    /// Class whose verdicts each of these copies.
    sources: BTreeMap<ClassId, ClassId>,
    /// Classes that did not exist before.
    fresh: Vec<ClassId>,
    peers: Vec<(IpAddr, Target)>,
}

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
        let partition = self.mark_met(&changes, &mut dirty);
        let rules_change = next.iter().any(|(address, local)| {
            let old = self
                .locals
                .get(address)
                .map(|programmed| &programmed.local.compiled);
            matches!((old, local), (Some(old), Some(new)) if *old != new.compiled)
        });
        let mut moves = self.find_moves(&dirty, partition.as_ref(), rules_change);
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
                    blocks.extend(overlap.networks().into_iter().map(|n| (n, target.first)));
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
            let mut names = programmed
                .local
                .compiled
                .iter()
                .flat_map(|compiled| &compiled.names);
            if names.any(|name| dirty.names.contains(name)) {
                dirty.locals.insert(*address);
            }
        }
    }

    /// What the touched local addresses shall be. References to matchers pass from the old rules to the new.
    fn resolve(
        &mut self,
        dirty: &Dirty,
        changes: &mut MatcherChanges,
    ) -> BTreeMap<IpAddr, Option<Local>> {
        let reader = Reader {
            cluster: &self.cluster,
            node: &self.node,
            index: &self.index,
        };
        let mut next = BTreeMap::new();
        for address in &dirty.locals {
            let local = reader.resolve(*address).map(|(endpoint, binding)| {
                let compiled = Direction::BOTH.map(|direction| {
                    Arc::new(reader.compile(endpoint, direction, &mut self.matchers, changes))
                });
                Local { binding, compiled }
            });
            next.insert(*address, local);
        }
        for address in next.keys() {
            let old = self
                .locals
                .get(address)
                .into_iter()
                .flat_map(|p| &p.local.compiled);
            for id in old.flat_map(|compiled| &compiled.matchers) {
                self.matchers.release(*id, changes);
            }
        }
        next
    }

    /// Marks every address that a new or dropped matcher meets; the new partition when blocks changed.
    fn mark_met(&self, changes: &MatcherChanges, dirty: &mut Dirty) -> Option<Partition> {
        let mut blocks = Vec::new();
        for matcher in &changes.changed {
            match matcher {
                Matcher::Workloads {
                    namespaces, pods, ..
                } => {
                    self.mark_workloads(namespaces, &mut dirty.peers, |e| pods.matches(&e.labels));
                }
                Matcher::Serving(served) => {
                    let endpoints = self.cluster.endpoints.values();
                    let met = endpoints.filter(|endpoint| is_served(endpoint, served));
                    dirty
                        .peers
                        .extend(met.flat_map(|endpoint| &endpoint.addresses));
                }
                Matcher::Nodes(_) => dirty.peers.extend(self.index.node_addresses()),
                Matcher::Network { cidr, .. } => blocks.push(cidr),
            }
        }
        if blocks.is_empty() {
            return None;
        }
        for block in blocks {
            dirty.peers.extend(self.index.addresses_in(block));
        }
        Some(Partition::new(self.matchers.networks()))
    }

    fn mark_workloads(
        &self,
        namespaces: &NamespaceMatch,
        peers: &mut FxHashSet<IpAddr>,
        is_met: impl Fn(&crate::model::Endpoint) -> bool,
    ) {
        let selected = self
            .cluster
            .namespaces
            .values()
            .filter(|namespace| selects(namespaces, namespace));
        for namespace in selected {
            let met =
                endpoints_of(&self.cluster, &namespace.name).filter(|endpoint| is_met(endpoint));
            peers.extend(met.flat_map(|endpoint| &endpoint.addresses));
        }
        // Workloads of unknown namespaces are met perhaps, whatever they are.
        for endpoint in self.index.homeless(&self.cluster) {
            peers.extend(endpoint.addresses.iter().copied());
        }
    }

    /// The touched addresses with their new classes. Marks those that only change how they are written, too.
    fn find_moves(
        &mut self,
        dirty: &Dirty,
        partition: Option<&Partition>,
        rules_change: bool,
    ) -> Moves {
        let mut moves = Moves {
            in_two_steps: rules_change,
            ..Moves::default()
        };
        for address in &dirty.peers {
            let signature = self.signature(*address, partition.unwrap_or(self.blocks.partition()));
            let target = self.target(&mut moves, self.class_of(*address), &signature);
            moves.peers.push((*address, target));
        }
        moves
    }

    /// The classes for something that has class `old` and now this signature.
    fn target(&mut self, moves: &mut Moves, old: ClassId, signature: &Signature) -> Target {
        let (last, is_new) = self.classes.canonical(signature);
        if is_new {
            moves.fresh.push(last);
        }
        if old == last || !moves.in_two_steps {
            return Target { first: last, last };
        }
        let first = *moves.assigned.entry((old, last)).or_insert_with(|| {
            let class = if is_new {
                last
            } else {
                self.classes.fresh(signature)
            };
            moves.sources.insert(class, old);
            class
        });
        if first != last && !moves.fresh.contains(&first) {
            moves.fresh.push(first);
        }
        Target { first, last }
    }

    /// What an address meets.
    fn signature(&self, address: IpAddr, partition: &Partition) -> Signature {
        let mut common: Claimant = partition
            .matchers(address)
            .iter()
            .map(|id| (*id, true))
            .collect();
        for name in self.index.nodes(address) {
            if let Some(node) = self.cluster.nodes.get(name) {
                self.matchers.of_node(&node.labels, &mut common);
            }
        }
        let claimant = |endpoint: Option<&crate::model::Endpoint>| {
            let mut met = common.clone();
            if let Some(endpoint) = endpoint {
                let is_known = self.cluster.namespaces.contains_key(&endpoint.id.namespace);
                self.matchers.of_workload(endpoint, is_known, &mut met);
            }
            met.sort_unstable();
            met.dedup();
            met
        };
        let claimants = self.index.claimants(address);
        if claimants.is_empty() {
            return vec![claimant(None)];
        }
        let mut signature: Signature = claimants
            .iter()
            .map(|id| claimant(self.cluster.endpoints.get(id)))
            .collect();
        signature.sort_unstable();
        signature.dedup();
        signature
    }

    /// First step: what moves gets classes with copies of its old verdicts.
    fn copy_verdicts(
        &mut self,
        moves: &Moves,
        blocks: Option<BTreeMap<IpNet, ClassId>>,
    ) -> Vec<Phase> {
        let mut step = Step::new(&mut self.profiles);
        for (address, programmed) in &mut self.locals {
            for (direction, side) in Direction::BOTH.into_iter().zip(&mut programmed.sides) {
                let before = side.allowed.len();
                for (copy, source) in &moves.sources {
                    if let Some(allowed) = side.allowed.get(source).cloned() {
                        side.allowed.insert(*copy, allowed);
                    }
                }
                if side.allowed.len() > before {
                    let written = Written::of(&side.base, &side.allowed);
                    step.change(direction, *address, Some(&side.written), Some(&written));
                    side.written = written;
                }
            }
        }
        if let Some(blocks) = blocks {
            step.last.cidr_class.extend(self.blocks.write(blocks));
        }
        for (address, target) in &moves.peers {
            if target.first != target.last || moves.sources.contains_key(&target.first) {
                step.last.peer_class.insert(*address, Some(target.first));
            }
        }
        step.finish()
    }

    /// Second (or only) step: the new rules, and the final classes.
    fn change_verdicts(
        &mut self,
        next: BTreeMap<IpAddr, Option<Local>>,
        moves: &Moves,
        partition: Option<Partition>,
        is_node_changed: bool,
    ) -> Vec<Phase> {
        let mut profiles = std::mem::take(&mut self.profiles);
        let mut step = Step::new(&mut profiles);
        self.judge_fresh_classes(&mut step, &next, &moves.fresh);
        for (address, local) in next {
            self.replace_local(&mut step, address, local);
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

    /// Endpoints whose rules stay learn the classes that are new.
    fn judge_fresh_classes(
        &mut self,
        step: &mut Step<'_>,
        next: &BTreeMap<IpAddr, Option<Local>>,
        fresh: &[ClassId],
    ) {
        if fresh.is_empty() {
            return;
        }
        for (address, programmed) in &mut self.locals {
            if next.contains_key(address) {
                continue;
            }
            for (index, side) in programmed.sides.iter_mut().enumerate() {
                let compiled = &programmed.local.compiled[index];
                let mut is_changed = false;
                for class in fresh {
                    is_changed |= side.judge(compiled, *class, self.classes.signature(*class));
                }
                if is_changed {
                    let written = Written::of(&side.base, &side.allowed);
                    let direction = Direction::BOTH[index];
                    step.change(direction, *address, Some(&side.written), Some(&written));
                    side.written = written;
                }
            }
        }
    }

    /// A touched address gets its new rules, or is no longer programmed.
    fn replace_local(&mut self, step: &mut Step<'_>, address: IpAddr, local: Option<Local>) {
        let new = local.map(|local| {
            let sides = [0, 1].map(|index| Side::new(&local.compiled[index], &self.classes));
            Programmed { local, sides }
        });
        let old = self.locals.remove(&address);
        for (index, direction) in Direction::BOTH.into_iter().enumerate() {
            let before = old.as_ref().map(|old| &old.sides[index].written);
            let after = new.as_ref().map(|new| &new.sides[index].written);
            step.change(direction, address, before, after);
        }
        let before = old.map(|old| old.local.binding);
        let after = new.as_ref().map(|new| new.local.binding.clone());
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
        let wanted = (target.last != self.blocks.class_of(address)).then_some(target.last);
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

impl Side {
    /// Judges every class by these rules.
    fn new(compiled: &Compiled, classes: &super::class::Classes) -> Self {
        let base = allowed(&compiled.tiers, &Signature::new());
        let mut side = Self {
            base,
            allowed: BTreeMap::new(),
            written: Written::Open,
        };
        for (class, signature) in classes.iter() {
            side.judge(compiled, class, Some(signature));
        }
        side.written = Written::of(&side.base, &side.allowed);
        side
    }

    /// Judges one class; returns whether that changed anything.
    fn judge(
        &mut self,
        compiled: &Compiled,
        class: ClassId,
        signature: Option<&Signature>,
    ) -> bool {
        let relevant = signature
            .filter(|signature| !is_nothing(signature) && is_met(signature, &compiled.matchers));
        let new: Option<PortSpace> = relevant
            .map(|signature| allowed(&compiled.tiers, signature))
            .filter(|allowed| *allowed != self.base);
        match new {
            Some(new) => {
                let is_changed = self.allowed.get(&class).is_none_or(|old| **old != new);
                if is_changed {
                    self.allowed.insert(class, Arc::new(new));
                }
                is_changed
            }
            None => self.allowed.remove(&class).is_some(),
        }
    }
}
