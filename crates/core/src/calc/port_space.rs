//! Sets of protocols and ports: what a rule matches, what a class may reach.

use crate::model::Protocol;

/// Sorted, disjoint, inclusive ranges that do not touch.
pub(super) type Ranges = Vec<(u16, u16)>;

/// Every port.
const ALL: (u16, u16) = (0, u16::MAX);

/// A set of (protocol, port) pairs, and whether it holds the protocols without ports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct PortSpace {
    /// Ports of TCP, UDP, SCTP, in the order of [`Protocol::ALL`].
    pub(super) ports: [Ranges; 3],
    /// Every other protocol.
    pub(super) other: bool,
}

impl PortSpace {
    /// Everything.
    pub(super) fn full() -> Self {
        Self {
            ports: [vec![ALL], vec![ALL], vec![ALL]],
            other: true,
        }
    }

    /// Ports `first..=last` of one protocol.
    pub(super) fn range(protocol: Protocol, first: u16, last: u16) -> Self {
        let mut space = Self::default();
        space.ports[index(protocol)].push((first, last));
        space
    }

    /// The union of many ranges, in any order.
    pub(super) fn of_ranges(mut ranges: Vec<(Protocol, u16, u16)>) -> Self {
        ranges.sort_unstable();
        let mut space = Self::default();
        for (protocol, first, last) in ranges {
            let ports = &mut space.ports[index(protocol)];
            match ports.last_mut() {
                Some(previous) if u32::from(first) <= u32::from(previous.1) + 1 => {
                    previous.1 = previous.1.max(last);
                }
                _ => ports.push((first, last)),
            }
        }
        space
    }

    /// The union of many, at once.
    pub(super) fn union_of(spaces: Vec<&Self>) -> Self {
        if let [single] = spaces.as_slice() {
            return (*single).clone();
        }
        let ranges = |space: &Self| {
            let of = |protocol| {
                space
                    .of(protocol)
                    .iter()
                    .map(move |(first, last)| (protocol, *first, *last))
            };
            Protocol::ALL.into_iter().flat_map(of).collect::<Vec<_>>()
        };
        let other = spaces.iter().any(|space| space.other);
        Self {
            other,
            ..Self::of_ranges(spaces.into_iter().flat_map(ranges).collect())
        }
    }

    /// The ports of one protocol.
    pub(super) fn of(&self, protocol: Protocol) -> &Ranges {
        &self.ports[index(protocol)]
    }

    /// Whether it holds everything.
    pub(super) fn is_full(&self) -> bool {
        self.other && self.ports.iter().all(|ranges| ranges[..] == [ALL])
    }

    /// Whether it holds nothing.
    pub(super) fn is_empty(&self) -> bool {
        !self.other && self.ports.iter().all(Vec::is_empty)
    }

    /// What is in either.
    pub(super) fn union(&self, other: &Self) -> Self {
        self.combine(other, |a, b| a || b)
    }

    /// What is in both.
    pub(super) fn intersection(&self, other: &Self) -> Self {
        self.combine(other, |a, b| a && b)
    }

    /// What is in this and not in the other.
    pub(super) fn difference(&self, other: &Self) -> Self {
        self.combine(other, |a, b| a && !b)
    }

    fn combine(&self, other: &Self, keep: impl Fn(bool, bool) -> bool + Copy) -> Self {
        let ports = [0, 1, 2].map(|i| combine(&self.ports[i], &other.ports[i], keep));
        Self {
            ports,
            other: keep(self.other, other.other),
        }
    }
}

/// Position of a protocol in [`PortSpace::ports`].
pub(super) fn index(protocol: Protocol) -> usize {
    match protocol {
        Protocol::Tcp => 0,
        Protocol::Udp => 1,
        Protocol::Sctp => 2,
    }
}

/// Ports in exactly one of the two.
pub(super) fn symmetric_difference(a: &Ranges, b: &Ranges) -> Ranges {
    combine(a, b, |a, b| a != b)
}

/// Whether `ranges` hold `port`.
pub(super) fn contains(ranges: &Ranges, port: u16) -> bool {
    ranges
        .iter()
        .any(|(first, last)| (*first..=*last).contains(&port))
}

/// The single ports of `ranges` when there are at most `limit`.
pub(super) fn points(ranges: &Ranges, limit: usize) -> Option<Vec<u16>> {
    let count: usize = ranges
        .iter()
        .map(|(first, last)| usize::from(last - first) + 1)
        .sum();
    (count <= limit).then(|| {
        ranges
            .iter()
            .flat_map(|(first, last)| *first..=*last)
            .collect()
    })
}

/// Sweeps both lists at once. `keep` must not hold for what is in neither.
fn combine(a: &Ranges, b: &Ranges, keep: impl Fn(bool, bool) -> bool) -> Ranges {
    debug_assert!(!keep(false, false), "a combination of nothing is nothing");
    let mut cuts: Vec<u32> = a
        .iter()
        .chain(b)
        .flat_map(|(first, last)| [u32::from(*first), u32::from(*last) + 1])
        .collect();
    cuts.sort_unstable();
    cuts.dedup();
    let mut result = Ranges::new();
    let (mut in_a, mut in_b) = (a.iter().peekable(), b.iter().peekable());
    for pair in cuts.windows(2) {
        let (Ok(first), Ok(last)) = (u16::try_from(pair[0]), u16::try_from(pair[1] - 1)) else {
            continue;
        };
        let holds = |ranges: &mut std::iter::Peekable<std::slice::Iter<'_, (u16, u16)>>| {
            while ranges.next_if(|range| range.1 < first).is_some() {}
            ranges.peek().is_some_and(|range| range.0 <= first)
        };
        if !keep(holds(&mut in_a), holds(&mut in_b)) {
            continue;
        }
        match result.last_mut() {
            Some(previous) if u32::from(previous.1) + 1 == u32::from(first) => previous.1 = last,
            _ => result.push((first, last)),
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn combines_ranges_exactly() {
        let a = vec![(10, 20), (30, 40)];
        let b = vec![(15, 35), (65_535, 65_535)];

        assert_eq!(
            combine(&a, &b, |a, b| a || b),
            vec![(10, 40), (65_535, 65_535)]
        );
        assert_eq!(combine(&a, &b, |a, b| a && b), vec![(15, 20), (30, 35)]);
        assert_eq!(combine(&a, &b, |a, b| a && !b), vec![(10, 14), (36, 40)]);
    }

    #[test]
    fn full_without_itself_is_empty() {
        let full = PortSpace::full();

        assert!(full.difference(&full).is_empty());
        assert!(full.difference(&PortSpace::default()).is_full());
    }
}
