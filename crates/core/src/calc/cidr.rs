//! Blocks with holes, refined into disjoint ranges.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::compile::MatcherId;
use crate::tables::AddressRange;

/// First and last address of a block as numbers, and its family.
pub(super) fn bounds(network: &IpNet) -> (bool, u128, u128) {
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
    /// Its addresses.
    pub(super) fn range(&self) -> AddressRange {
        range(self.is_v6, self.first, self.last)
    }
}

/// A stretch of addresses of one family.
fn range(is_v6: bool, first: u128, last: u128) -> AddressRange {
    let address = |number: u128| -> IpAddr {
        if is_v6 {
            return Ipv6Addr::from_bits(number).into();
        }
        let number = u32::try_from(number).expect("bounds of an IPv4 block fit 32 bits");
        Ipv4Addr::from_bits(number).into()
    };
    AddressRange::new(address(first), address(last)).expect("a stretch ends behind its beginning")
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
    /// Its addresses.
    pub(super) fn range(&self) -> AddressRange {
        range(self.is_v6, self.first, self.last)
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

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// A block with holes, of a matcher.
    type Block = (MatcherId, IpNet, Vec<IpNet>);

    fn partition(blocks: &[Block]) -> Partition {
        Partition::new(
            blocks
                .iter()
                .map(|(matcher, cidr, except)| (*matcher, cidr, except.as_slice())),
        )
    }

    fn net(text: &str) -> IpNet {
        text.parse().expect("a block")
    }

    fn block(matcher: MatcherId, cidr: &str, except: &[&str]) -> Block {
        (
            matcher,
            net(cidr),
            except.iter().map(|hole| net(hole)).collect(),
        )
    }

    /// All pieces, each with its matchers.
    fn listing(partition: &Partition) -> Vec<(String, Vec<MatcherId>)> {
        let pieces = partition.pieces().iter();
        pieces
            .map(|piece| (piece.range().to_string(), piece.matchers.clone()))
            .collect()
    }

    /// What the blocks say of one address, asked one after the other.
    fn naive(blocks: &[Block], address: IpAddr) -> Vec<MatcherId> {
        let of = |matcher: MatcherId| blocks.iter().filter(move |block| block.0 == matcher);
        let all: BTreeSet<MatcherId> = blocks.iter().map(|block| block.0).collect();
        let meets = |matcher: &MatcherId| {
            of(*matcher).any(|(_, cidr, _)| cidr.contains(&address))
                && !of(*matcher).any(|(_, _, except)| except.iter().any(|h| h.contains(&address)))
        };
        all.into_iter().filter(meets).collect()
    }

    /// The ends of both families, and both ends of every block and hole with their neighbours.
    fn turns(blocks: &[Block]) -> BTreeSet<IpAddr> {
        let mut addresses: BTreeSet<IpAddr> = [
            "0.0.0.0",
            "255.255.255.255",
            "::",
            "ffff:ffff::1",
            "::ffff:10.0.0.1",
        ]
        .iter()
        .map(|text| text.parse().expect("an address"))
        .collect();
        for network in blocks
            .iter()
            .flat_map(|(_, cidr, except)| except.iter().chain([cidr]))
        {
            for end in [network.network(), network.broadcast()] {
                addresses.extend(
                    [Some(end), beside(end, -1), beside(end, 1)]
                        .into_iter()
                        .flatten(),
                );
            }
        }
        addresses
    }

    fn beside(address: IpAddr, step: i8) -> Option<IpAddr> {
        match address {
            IpAddr::V4(address) => address
                .to_bits()
                .checked_add_signed(step.into())
                .map(|bits| Ipv4Addr::from_bits(bits).into()),
            IpAddr::V6(address) => address
                .to_bits()
                .checked_add_signed(step.into())
                .map(|bits| Ipv6Addr::from_bits(bits).into()),
        }
    }

    /// Blocks that often touch, hold and cut each other, at the ends of their family too. Host bits are not cleared.
    fn network() -> impl Strategy<Value = IpNet> {
        let base = prop_oneof![4 => Just(0x0a00_0000_u32), 1 => Just(0), 1 => Just(0xffff_ffe0)];
        let v4 = (base, 0..32u32, prop_oneof![1 => 0..=32u8, 5 => 27..=32u8]).prop_map(
            |(base, host, length)| IpNet::new(Ipv4Addr::from_bits(base | host).into(), length),
        );
        let base =
            prop_oneof![4 => Just(0xfd00_u128 << 112), 1 => Just(0), 1 => Just(u128::MAX ^ 31)];
        let v6 = (
            base,
            0..32u128,
            prop_oneof![1 => 0..=128u8, 5 => 123..=128u8],
        )
            .prop_map(|(base, host, length)| {
                IpNet::new(Ipv6Addr::from_bits(base | host).into(), length)
            });
        prop_oneof![v4, v6].prop_map(|network| network.expect("a length of the family"))
    }

    fn blocks() -> impl Strategy<Value = Vec<Block>> {
        vec((0..5u32, network(), vec(network(), 0..3)), 0..7)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn every_address_has_the_matchers_that_its_blocks_say(blocks in blocks()) {
            let partition = partition(&blocks);
            for address in turns(&blocks) {
                prop_assert_eq!(partition.matchers(address), naive(&blocks, address), "{}", address);
            }
        }

        #[test]
        fn pieces_are_sorted_disjoint_and_as_few_as_can_be(blocks in blocks()) {
            let partition = partition(&blocks);
            for piece in partition.pieces() {
                prop_assert!(!piece.matchers.is_empty() && piece.first <= piece.last);
            }
            for pair in partition.pieces().windows(2) {
                let (a, b) = (&pair[0], &pair[1]);
                prop_assert!((a.is_v6, a.last) < (b.is_v6, b.first));
                let touch = a.is_v6 == b.is_v6 && a.last + 1 == b.first;
                prop_assert!(!touch || a.matchers != b.matchers);
            }
        }

        #[test]
        fn overlaps_tell_the_old_and_the_new_piece_of_every_address(old in blocks(), new in blocks()) {
            let (before, after) = (partition(&old), partition(&new));
            let overlaps = before.overlaps(&after);
            for address in turns(&old).into_iter().chain(turns(&new)) {
                let wanted = (before.position(address), after.position(address));
                let holding = overlaps
                    .iter()
                    .filter(|overlap| overlap.range().contains(&address));
                let found: Vec<_> = holding.map(|overlap| (overlap.old, overlap.new)).collect();
                if wanted == (None, None) {
                    prop_assert_eq!(found, [], "{}", address);
                } else {
                    prop_assert_eq!(found, [wanted], "{}", address);
                }
            }
        }
    }

    #[test]
    fn a_block_of_length_0_is_its_whole_family_and_nothing_of_the_other() {
        let found = listing(&partition(&[block(1, "0.0.0.0/0", &[])]));
        assert_eq!(found, [("0.0.0.0/0".to_owned(), vec![1])]);

        let both = partition(&[block(1, "0.0.0.0/0", &[]), block(2, "::/0", &[])]);
        let wanted = [
            ("0.0.0.0/0".to_owned(), vec![1]),
            ("::/0".to_owned(), vec![2]),
        ];
        assert_eq!(listing(&both), wanted);
    }

    #[test]
    fn a_hole_of_one_address_splits_its_block_around_it() {
        let found = listing(&partition(&[block(1, "10.0.0.0/30", &["10.0.0.1/32"])]));

        let wanted = ["10.0.0.0/32", "10.0.0.2/31"].map(|text| (text.to_owned(), vec![1]));
        assert_eq!(found, wanted);
    }

    #[test]
    fn a_hole_as_wide_as_its_block_leaves_nothing() {
        for cidr in ["10.0.0.0/24", "0.0.0.0/0", "::/0", "fd00::1/128"] {
            assert_eq!(partition(&[block(1, cidr, &[cidr])]).pieces(), [], "{cidr}");
        }
    }

    #[test]
    fn a_hole_of_one_matcher_leaves_the_block_of_another() {
        let blocks = [
            block(1, "10.0.0.0/24", &["10.0.0.128/25"]),
            block(2, "10.0.0.0/24", &[]),
        ];

        let wanted = [
            ("10.0.0.0/25".to_owned(), vec![1, 2]),
            ("10.0.0.128/25".to_owned(), vec![2]),
        ];
        assert_eq!(listing(&partition(&blocks)), wanted);
    }

    #[test]
    fn neighbours_of_equal_matchers_are_one_piece_and_those_of_others_are_not() {
        let (low, high) = ("10.0.0.0/25", "10.0.0.128/25");

        let same = partition(&[block(1, low, &[]), block(1, high, &[])]);
        assert_eq!(listing(&same), [("10.0.0.0/24".to_owned(), vec![1])]);

        let others = partition(&[block(1, low, &[]), block(2, high, &[])]);
        let wanted = [(low.to_owned(), vec![1]), (high.to_owned(), vec![2])];
        assert_eq!(listing(&others), wanted);
    }

    #[test]
    fn host_bits_do_not_move_a_block() {
        let clear = partition(&[block(1, "10.0.0.0/29", &["10.0.0.4/31"])]);
        let dirty = partition(&[block(1, "10.0.0.7/29", &["10.0.0.5/31"])]);
        assert_eq!(clear, dirty);
    }

    #[test]
    fn families_do_not_meet_where_their_numbers_do() {
        // 0.0.0.1 and ::1 are the number 1 both; the last address of IPv4 is followed by nothing of IPv6.
        let blocks = [block(1, "0.0.0.1/32", &[]), block(2, "::1/128", &[])];
        let found = partition(&blocks);
        let at = |text: &str| found.matchers(text.parse().expect("an address")).to_vec();
        assert_eq!((at("0.0.0.1"), at("::1")), (vec![1], vec![2]));

        let ends = partition(&[block(1, "255.255.255.255/32", &[]), block(1, "::/128", &[])]);
        let wanted = ["255.255.255.255/32", "::/128"].map(|text| (text.to_owned(), vec![1]));
        assert_eq!(listing(&ends), wanted);
    }
}
