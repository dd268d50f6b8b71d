//! Blocks with holes, refined into disjoint blocks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};

use super::compile::MatcherId;

/// First and last address of a block as numbers, and its family.
fn bounds(network: &IpNet) -> (bool, u128, u128) {
    match network {
        IpNet::V4(net) => (
            false,
            u128::from(u32::from(net.network())),
            u128::from(u32::from(net.broadcast())),
        ),
        IpNet::V6(net) => (true, u128::from(net.network()), u128::from(net.broadcast())),
    }
}

/// Number of an address, and its family.
fn number(address: IpAddr) -> (bool, u128) {
    match address {
        IpAddr::V4(address) => (false, u128::from(u32::from(address))),
        IpAddr::V6(address) => (true, u128::from(address)),
    }
}

/// A stretch of addresses of one family that meet the same matchers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    is_v6: bool,
    first: u128,
    last: u128,
    /// The matchers, sorted.
    pub(super) matchers: Vec<MatcherId>,
}

impl Piece {
    /// The piece as blocks.
    pub(super) fn networks(&self) -> Vec<IpNet> {
        networks(self.is_v6, self.first, self.last)
    }
}

/// A stretch of addresses as blocks.
fn networks(is_v6: bool, first: u128, last: u128) -> Vec<IpNet> {
    if is_v6 {
        let subnets = Ipv6Subnets::new(Ipv6Addr::from(first), Ipv6Addr::from(last), 0);
        return subnets.map(IpNet::V6).collect();
    }
    let address = |number: u128| {
        Ipv4Addr::from(u32::try_from(number).expect("bounds of an IPv4 block fit 32 bits"))
    };
    Ipv4Subnets::new(address(first), address(last), 0)
        .map(IpNet::V4)
        .collect()
}

/// A stretch of addresses that lies in one piece (or none) of an old partition and of a new one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Overlap {
    is_v6: bool,
    first: u128,
    last: u128,
    /// Index of the old piece.
    pub(super) old: Option<usize>,
    /// Index of the new piece.
    pub(super) new: Option<usize>,
}

impl Overlap {
    /// The stretch as blocks.
    pub(super) fn networks(&self) -> Vec<IpNet> {
        networks(self.is_v6, self.first, self.last)
    }
}

/// Weight of a hole: more than all blocks of one matcher together.
const HOLE: i64 = 1 << 32;

/// Disjoint pieces, sorted, each with at least one matcher.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Partition {
    pieces: Vec<Piece>,
}

impl Partition {
    /// Refines blocks (with holes), each of a matcher.
    pub(super) fn new<'a>(
        blocks: impl Iterator<Item = (MatcherId, &'a IpNet, &'a [IpNet])>,
    ) -> Self {
        // At a position, matchers whose level changes: +1 for a block, minus much for a hole.
        let mut changes: BTreeMap<(bool, u128), Vec<(MatcherId, i64)>> = BTreeMap::new();
        for (matcher, cidr, except) in blocks {
            let mut edge = |network: &IpNet, weight: i64| {
                let (is_v6, first, last) = bounds(network);
                changes
                    .entry((is_v6, first))
                    .or_default()
                    .push((matcher, weight));
                if let Some(next) = last.checked_add(1) {
                    changes
                        .entry((is_v6, next))
                        .or_default()
                        .push((matcher, -weight));
                }
            };
            edge(cidr, 1);
            for hole in except {
                edge(hole, -HOLE);
            }
        }
        let mut levels: BTreeMap<MatcherId, i64> = BTreeMap::new();
        let mut inside: BTreeSet<MatcherId> = BTreeSet::new();
        let mut pieces: Vec<Piece> = Vec::new();
        let mut family = false;
        let positions: Vec<(bool, u128)> = changes.keys().copied().collect();
        for (index, position) in positions.iter().enumerate() {
            if position.0 != family {
                family = position.0;
                levels.clear();
                inside.clear();
            }
            for (matcher, weight) in &changes[position] {
                let level = levels.entry(*matcher).or_default();
                *level += weight;
                if *level > 0 {
                    inside.insert(*matcher)
                } else {
                    inside.remove(matcher)
                };
            }
            let maximum = if family {
                u128::MAX
            } else {
                u128::from(u32::MAX)
            };
            let last = match positions.get(index + 1) {
                Some(next) if next.0 == family => next.1 - 1,
                _ => maximum,
            };
            if inside.is_empty() || position.1 > maximum {
                continue;
            }
            let matchers: Vec<MatcherId> = inside.iter().copied().collect();
            match pieces.last_mut() {
                Some(piece)
                    if piece.is_v6 == family
                        && piece.last.checked_add(1) == Some(position.1)
                        && piece.matchers == matchers =>
                {
                    piece.last = last;
                }
                _ => pieces.push(Piece {
                    is_v6: family,
                    first: position.1,
                    last,
                    matchers,
                }),
            }
        }
        Self { pieces }
    }

    /// The pieces, sorted.
    pub(super) fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// The index of the piece that holds an address.
    pub(super) fn position(&self, address: IpAddr) -> Option<usize> {
        let (is_v6, position) = number(address);
        self.piece_at(is_v6, position)
    }

    /// The matchers of an address.
    pub(super) fn matchers(&self, address: IpAddr) -> &[MatcherId] {
        self.position(address)
            .map_or(&[], |index| &self.pieces[index].matchers)
    }

    fn piece_at(&self, is_v6: bool, position: u128) -> Option<usize> {
        let after = self
            .pieces
            .partition_point(|piece| (piece.is_v6, piece.first) <= (is_v6, position));
        let index = after.checked_sub(1)?;
        let piece = &self.pieces[index];
        (piece.is_v6 == is_v6 && position <= piece.last).then_some(index)
    }

    /// The common refinement with a newer partition, where either has a piece.
    pub(super) fn overlaps(&self, new: &Self) -> Vec<Overlap> {
        let pieces = || self.pieces.iter().chain(&new.pieces);
        let mut cuts: BTreeSet<(bool, u128)> = BTreeSet::new();
        for piece in pieces() {
            cuts.insert((piece.is_v6, piece.first));
            cuts.extend(piece.last.checked_add(1).map(|next| (piece.is_v6, next)));
        }
        let ends: BTreeSet<(bool, u128)> =
            pieces().map(|piece| (piece.is_v6, piece.last)).collect();
        let mut overlaps = Vec::new();
        let mut cuts = cuts.into_iter().peekable();
        while let Some((is_v6, first)) = cuts.next() {
            let (old, current) = (self.piece_at(is_v6, first), new.piece_at(is_v6, first));
            if old.is_none() && current.is_none() {
                continue;
            }
            // The last piece of a family may end where no number follows.
            let last = match cuts.peek() {
                Some((family, next)) if *family == is_v6 => next - 1,
                _ => ends
                    .range(..=(is_v6, u128::MAX))
                    .next_back()
                    .map_or(first, |(_, last)| *last),
            };
            overlaps.push(Overlap {
                is_v6,
                first,
                last,
                old,
                new: current,
            });
        }
        overlaps
    }
}
