//! Which addresses get another class in a flush, and which classes there are then.
//!
//! Addresses that something was told about are judged anew. A new workload matcher concerns many others, of which
//! nothing is new but that they meet it: what they meet follows from their class.

use std::collections::BTreeMap;
use std::net::IpAddr;

use rustc_hash::{FxHashMap, FxHashSet};
use smol_str::SmolStr;

use super::cidr::Partition;
use super::class::is_nothing;
use super::compile::{Claimant, MatcherId, Signature};
use super::matcher::{Matcher, MatcherChanges, Met, is_served};
use super::{CalcGraph, Dirty, endpoints_of};
use crate::model::{Endpoint, NamespaceMatch};
use crate::tables::ClassId;

/// Where an address or block goes: first to a class with copies of its old verdicts, then to its own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    pub(super) first: ClassId,
    pub(super) last: ClassId,
}

/// The classes that one flush hands out.
#[derive(Debug, Default)]
pub(super) struct Moves {
    /// Two steps: rules change while addresses change class.
    pub(super) in_two_steps: bool,
    /// The class for an old class and a new one, and so which class was copied.
    assigned: FxHashMap<(ClassId, ClassId), ClassId>,
    /// Class whose verdicts each of these copies.
    pub(super) sources: BTreeMap<ClassId, ClassId>,
    /// Classes that did not exist before, or meant something else.
    pub(super) fresh: Vec<ClassId>,
    /// Addresses that may be written otherwise.
    pub(super) peers: Vec<(IpAddr, Target)>,
}

/// Addresses of one workload each that meet a new matcher, and of which nothing else has changed.
pub(super) type Gains = Vec<(IpAddr, MatcherId)>;

/// Addresses that had the same class and now meet the same.
struct Group {
    old: ClassId,
    /// Whether that class is their own, not their block's.
    is_own: bool,
    signature: Signature,
    /// Nothing but the signature may have changed.
    is_gain: bool,
    addresses: Vec<IpAddr>,
}

impl CalcGraph {
    /// Marks the addresses that a new matcher meets, and what lies in blocks that come or go. Returns those that need
    /// not be judged anew.
    pub(super) fn mark_met(&self, changes: &MatcherChanges, dirty: &mut Dirty) -> Gains {
        for (_, matcher) in &changes.added {
            match &**matcher {
                Matcher::Serving(served) => {
                    let endpoints = self.cluster.endpoints.values();
                    let met = endpoints.filter(|endpoint| is_served(endpoint, served));
                    dirty
                        .peers
                        .extend(met.flat_map(|endpoint| &endpoint.addresses));
                }
                Matcher::Nodes(_) => dirty.peers.extend(self.index.identities().claimed()),
                Matcher::Workloads { .. } => {
                    // Workloads of unknown namespaces are met perhaps, whatever they are.
                    let homeless = self.index.homeless(&self.cluster);
                    dirty
                        .peers
                        .extend(homeless.flat_map(|endpoint| &endpoint.addresses));
                }
                Matcher::Network { .. } => {}
            }
        }
        for (_, matcher) in changes.added.iter().chain(&changes.dropped) {
            if let Matcher::Network { cidr, .. } = &**matcher {
                dirty.peers.extend(self.index.addresses_in(cidr));
            }
        }
        let mut gains = Gains::new();
        for (id, matcher) in &changes.added {
            if let Matcher::Workloads {
                namespaces,
                pods,
                serves,
            } = &**matcher
            {
                let is_met = |endpoint: &Endpoint| {
                    pods.matches(&endpoint.labels)
                        && serves
                            .as_ref()
                            .is_none_or(|served| is_served(endpoint, served))
                };
                self.gain(*id, namespaces, is_met, &mut dirty.peers, &mut gains);
            }
        }
        gains
    }

    /// The addresses of workloads that meet a new matcher.
    fn gain(
        &self,
        id: MatcherId,
        namespaces: &NamespaceMatch,
        is_met: impl Fn(&Endpoint) -> bool,
        peers: &mut FxHashSet<IpAddr>,
        gains: &mut Gains,
    ) {
        for namespace in self.cluster.namespaces_matching(namespaces) {
            let endpoints = endpoints_of(&self.cluster, &namespace.name);
            for endpoint in endpoints.filter(|e| e.is_workload() && is_met(e)) {
                for address in &endpoint.addresses {
                    if self.index.is_contested(*address) {
                        peers.insert(*address);
                    } else if !peers.contains(address) {
                        gains.push((*address, id));
                    }
                }
            }
        }
    }

    /// The touched addresses with their new classes. Marks those that only change how they are written, too.
    pub(super) fn find_moves(
        &mut self,
        dirty: &Dirty,
        gains: Gains,
        partition: Option<&Partition>,
        rules_change: bool,
    ) -> Moves {
        let mut moves = Moves {
            in_two_steps: rules_change,
            ..Moves::default()
        };
        let mut groups = self.judged(dirty, partition.unwrap_or(self.blocks.partition()));
        groups.extend(self.gained(dirty, gains));
        moves.fresh = self.rename_classes(&groups);
        for group in groups {
            let target = self.target(&mut moves, group.old, &group.signature);
            let stays = target.first == group.old && target.last == group.old;
            if group.is_gain && group.is_own && stays {
                continue;
            }
            let peers = group.addresses.into_iter();
            moves.peers.extend(peers.map(|address| (address, target)));
        }
        moves
    }

    /// The class of an address so far, and whether it is its own.
    fn old_class(&self, address: IpAddr) -> (ClassId, bool) {
        match self.peer_class.get(&address) {
            Some(own) => (*own, true),
            None => (self.blocks.class_of(address), false),
        }
    }

    /// The addresses of which something is new, judged.
    fn judged(&self, dirty: &Dirty, partition: &Partition) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        let mut known: FxHashMap<(ClassId, bool, Signature), usize> = FxHashMap::default();
        let mut met = Met::default();
        for address in &dirty.peers {
            let (old, is_own) = self.old_class(*address);
            let signature = self.signature(*address, partition, &mut met);
            let key = (old, is_own, signature);
            let index = if let Some(index) = known.get(&key) {
                *index
            } else {
                groups.push(Group {
                    old,
                    is_own,
                    signature: key.2.clone(),
                    is_gain: false,
                    addresses: Vec::new(),
                });
                known.insert(key, groups.len() - 1);
                groups.len() - 1
            };
            groups[index].addresses.push(*address);
        }
        groups
    }

    /// The addresses of which nothing is new but that they meet more: what their class meets, and that.
    fn gained(&self, dirty: &Dirty, mut gains: Gains) -> Vec<Group> {
        if gains.first().map(|(_, id)| *id) != gains.last().map(|(_, id)| *id) {
            gains.sort_unstable();
        }
        let mut groups: Vec<Group> = Vec::new();
        let mut known: FxHashMap<(ClassId, bool, Vec<MatcherId>), usize> = FxHashMap::default();
        let mut key = (ClassId::NONE, false, Vec::new());
        for gains in gains.chunk_by(|(a, _), (b, _)| a == b) {
            let address = gains[0].0;
            // A later matcher may have shown that it is contested.
            if dirty.peers.contains(&address) {
                continue;
            }
            (key.0, key.1) = self.old_class(address);
            key.2.clear();
            key.2.extend(gains.iter().map(|(_, id)| *id));
            let index = if let Some(index) = known.get(&key) {
                *index
            } else {
                groups.push(Group {
                    old: key.0,
                    is_own: key.1,
                    signature: self.gained_signature(key.0, &key.2),
                    is_gain: true,
                    addresses: Vec::new(),
                });
                known.insert(key.clone(), groups.len() - 1);
                groups.len() - 1
            };
            groups[index].addresses.push(address);
        }
        groups
    }

    /// What the members of a class meet that meet these matchers, too.
    fn gained_signature(&self, class: ClassId, ids: &[MatcherId]) -> Signature {
        let old = self.classes.signature(class).and_then(|all| all.first());
        let mut met = old.cloned().unwrap_or_default();
        met.extend(ids.iter().map(|id| (*id, true)));
        met.sort_unstable();
        vec![met]
    }

    /// A class all of whose members get the same new signature keeps its number, and no member moves; returns these
    /// classes. So a rule about a whole namespace costs an element per class, not per address.
    fn rename_classes(&mut self, groups: &[Group]) -> Vec<ClassId> {
        let mut leaving: FxHashMap<(ClassId, &Signature), u64> = FxHashMap::default();
        for group in groups.iter().filter(|group| group.is_own) {
            *leaving.entry((group.old, &group.signature)).or_default() +=
                group.addresses.len() as u64;
        }
        let all = leaving.into_iter().filter(|((old, signature), count)| {
            *count == self.classes.members(*old)
                && !is_nothing(signature)
                && !self.classes.is_known(signature)
        });
        let mut all: Vec<_> = all.collect();
        // Of several classes with one new signature the largest keeps its number.
        all.sort_unstable_by_key(|((old, _), count)| (std::cmp::Reverse(*count), *old));
        let mut renamed = Vec::new();
        for ((old, signature), _) in all {
            if !self.classes.is_known(signature) {
                self.classes.rename(old, signature);
                renamed.push(old);
            }
        }
        renamed
    }

    /// The classes for something that has class `old` and now this signature.
    pub(super) fn target(
        &mut self,
        moves: &mut Moves,
        old: ClassId,
        signature: &Signature,
    ) -> Target {
        if self.classes.signature(old) == Some(signature) && !is_nothing(signature) {
            return Target {
                first: old,
                last: old,
            };
        }
        let (last, is_new) = self.classes.canonical(signature);
        if is_new {
            moves.fresh.push(last);
        }
        if !moves.in_two_steps {
            return Target { first: last, last };
        }
        if self.classes.are_alike(old, last) {
            // What told them apart goes with the old rules; until then the old class has the old verdicts.
            return Target { first: old, last };
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
    fn signature<'a>(
        &'a self,
        address: IpAddr,
        partition: &Partition,
        known: &mut Met<'a>,
    ) -> Signature {
        let mut common: Claimant = partition
            .matchers(address)
            .iter()
            .map(|id| (*id, true))
            .collect();
        let owners = self.index.identities().owners(address);
        let node = |name: &SmolStr| self.cluster.nodes.get(name);
        for node in owners.doubtful.into_iter().filter_map(node) {
            self.matchers.of_node(&node.labels, false, &mut common);
        }
        // Each node and each workload that has the address is one claimant; none has what another meets.
        let mut signature: Signature = owners
            .sure
            .into_iter()
            .filter_map(node)
            .map(|node| {
                let mut met = common.clone();
                self.matchers.of_node(&node.labels, true, &mut met);
                met
            })
            .collect();
        signature.extend(self.index.claimants(address).iter().map(|endpoint| {
            let mut met = common.clone();
            let is_known = self.index.is_namespace_known(&endpoint.id.namespace);
            self.matchers
                .of_workload(endpoint, is_known, known, &mut met);
            met
        }));
        if signature.is_empty() {
            signature.push(common);
        }
        for met in &mut signature {
            met.sort_unstable();
            met.dedup();
        }
        signature.sort_unstable();
        signature.dedup();
        signature
    }
}
