//! What of the blocks of policies is too much for one node, and is refused (edge case 6).
//!
//! Where blocks lie in each other, every piece lists all that hold it: a thousand blocks with a hole each, all in each
//! other, are two million entries. One policy is bounded where it is read; many policies together are bounded here.
//!
//! What is refused is closed: its addresses are met perhaps, and so by nobody in a rule that accepts, and by everybody
//! in one that denies. Namespaces whose own blocks overlap least are served first, so that one with many does not close
//! another. Which are refused follows from what is there, not from the order in which it came.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use rustc_hash::FxHashSet;
use smol_str::SmolStr;

use super::CalcGraph;
use super::cidr::bounds;
use super::compile::MatcherId;
use super::local::{Compiled, Resolved};
use super::matcher::Matcher;
use crate::model::{Direction, Peer, Peers, Policy, PolicyId};

/// Entries of all blocks that one node takes; see [`overlap`].
pub const BLOCK_ENTRIES: usize = 2_000_000;

/// How much blocks with holes, each different from the others, overlap: at each end of a block or hole, how many blocks
/// hold it. As many entries their disjoint pieces have at most.
pub fn overlap<'a>(blocks: impl Iterator<Item = (&'a IpNet, &'a [IpNet])>) -> usize {
    // How many blocks more there are from a number of a family on.
    let mut steps: Vec<(bool, u128, i32)> = Vec::new();
    for (block, holes) in blocks {
        let ends = std::iter::once((block, 1)).chain(holes.iter().map(|hole| (hole, 0)));
        for (network, step) in ends {
            let (is_v6, first, last) = bounds(network);
            steps.push((is_v6, first, step));
            steps.extend(last.checked_add(1).map(|next| (is_v6, next, -step)));
        }
    }
    steps.sort_unstable();
    let mut entries = 0_usize;
    for family in steps.chunk_by(|a, b| a.0 == b.0) {
        let mut depth = 0;
        for at in family.chunk_by(|a, b| a.1 == b.1) {
            depth += at.iter().map(|(_, _, step)| step).sum::<i32>();
            entries = entries.saturating_add(usize::try_from(depth).unwrap_or(0));
        }
    }
    entries
}

/// A namespace with the blocks of the rules on its endpoints.
struct Share<'a> {
    /// How much they overlap, without those of others.
    entries: usize,
    namespace: &'a SmolStr,
    blocks: FxHashSet<MatcherId>,
}

impl CalcGraph {
    /// Takes another bound than [`BLOCK_ENTRIES`], for smaller nodes and for tests.
    #[must_use]
    pub fn with_block_entries(mut self, most: usize) -> Self {
        self.block_entries = most;
        self
    }

    /// The policies of which blocks are refused, because all blocks of this node together overlap too much.
    pub fn refused(&self) -> Vec<&PolicyId> {
        if self.refused.is_empty() {
            return Vec::new();
        }
        let reader = self.reader();
        let selects = |policy: &Policy| {
            self.locals.keys().any(|address| {
                let endpoint = self.index.claimants(*address).first();
                endpoint.is_some_and(|endpoint| reader.is_selected(policy, endpoint))
            })
        };
        let policies = self.cluster.policies.values();
        policies
            .filter(|policy| {
                blocks_of(policy).any(|block| self.is_refused(block)) && selects(policy)
            })
            .map(|policy| &policy.id)
            .collect()
    }

    fn is_refused(&self, (cidr, except): (&IpNet, &[IpNet])) -> bool {
        let matcher = Matcher::Network {
            cidr: *cidr,
            except: except.to_vec(),
        };
        let number = self.matchers.number(&matcher);
        number.is_some_and(|id| self.refused.binary_search(&id).is_ok())
    }

    /// The matchers whose blocks are too much, sorted; none most of the time.
    pub(super) fn too_much(&self, next: &BTreeMap<IpAddr, Option<Resolved>>) -> Vec<MatcherId> {
        let entries = |is_kept: &dyn Fn(MatcherId) -> bool| {
            let blocks = self.matchers.networks().filter(|(id, ..)| is_kept(*id));
            overlap(blocks.map(|(_, cidr, except)| (cidr, except)))
        };
        if entries(&|_| true) <= self.block_entries {
            return Vec::new();
        }
        let shares = self.shares(next);
        let kept = |count: usize| -> FxHashSet<MatcherId> {
            let blocks = shares[..count].iter().flat_map(|share| &share.blocks);
            blocks.copied().collect()
        };
        let counts: Vec<usize> = (1..=shares.len()).collect();
        let fits = |count: &usize| {
            let kept = kept(*count);
            entries(&|id| kept.contains(&id)) <= self.block_entries
        };
        let kept = kept(counts.partition_point(fits));
        let all = self.matchers.networks().map(|(id, ..)| id);
        let mut refused: Vec<MatcherId> = all.filter(|id| !kept.contains(id)).collect();
        refused.sort_unstable();
        refused
    }

    /// The namespaces of programmed endpoints, those first whose blocks overlap least.
    fn shares(&self, next: &BTreeMap<IpAddr, Option<Resolved>>) -> Vec<Share<'_>> {
        let networks: FxHashSet<MatcherId> = self.matchers.networks().map(|(id, ..)| id).collect();
        let mut shares: BTreeMap<&SmolStr, FxHashSet<MatcherId>> = BTreeMap::new();
        let mut seen = FxHashSet::default();
        let mut add = |address: &IpAddr, rules: &Arc<Compiled>| {
            let Some(endpoint) = self.index.claimants(*address).first() else {
                return;
            };
            let namespace = &endpoint.id.namespace;
            if seen.insert((namespace, Arc::as_ptr(rules))) {
                let ids = rules.matchers.iter().filter(|id| networks.contains(id));
                shares.entry(namespace).or_default().extend(ids);
            }
        };
        for (address, local) in next {
            let rules = local.iter().flat_map(|local| &local.rules);
            rules.for_each(|rules| add(address, rules));
        }
        let rest = self.locals.iter();
        for (address, local) in rest.filter(|(address, _)| !next.contains_key(address)) {
            let rules = local.sides.iter().map(|side| self.sides.rules(*side));
            rules.for_each(|rules| add(address, rules));
        }
        let share = |(namespace, blocks): (_, FxHashSet<MatcherId>)| Share {
            entries: overlap(blocks.iter().filter_map(|id| self.matchers.network(*id))),
            namespace,
            blocks,
        };
        let mut shares: Vec<Share<'_>> = shares.into_iter().map(share).collect();
        shares.sort_by(|a, b| (a.entries, a.namespace).cmp(&(b.entries, b.namespace)));
        shares
    }

    /// Takes over what is refused from now on, and returns what lies in blocks that were not refused before, or no longer
    /// are; `None` where nothing changes.
    pub(super) fn refuse(&mut self, refused: Vec<MatcherId>) -> Option<BTreeSet<IpAddr>> {
        if refused == self.refused {
            return None;
        }
        let differs = |id: &&MatcherId| {
            self.refused.binary_search(id).is_ok() != refused.binary_search(id).is_ok()
        };
        let changed = self.refused.iter().chain(&refused).filter(differs);
        let blocks = changed.filter_map(|id| self.matchers.network(*id));
        let addresses = blocks
            .flat_map(|(cidr, _)| self.index.addresses_in(cidr))
            .collect();
        self.refused = refused;
        Some(addresses)
    }
}

fn blocks_of(policy: &Policy) -> impl Iterator<Item = (&IpNet, &[IpNet])> {
    let rules = Direction::BOTH.map(|direction| policy.rules(direction).unwrap_or_default());
    let peers = rules
        .into_iter()
        .flatten()
        .flat_map(|rule| match &rule.peers {
            Peers::Of(peers) => peers.as_slice(),
            Peers::Any => &[],
        });
    peers.filter_map(|peer| match peer {
        Peer::Network { cidr, except } => Some((cidr, except.as_slice())),
        _ => None,
    })
}
