//! Which addresses are nodes' own, found from the whole state at once.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use rustc_hash::FxHashMap;

use crate::model::{Cluster, Node};

/// Who claims one address.
#[derive(Clone, Debug, Default)]
pub(super) struct Owners<'a> {
    /// The nodes that have it, by the rules of [`Node`].
    pub(super) sure: Vec<&'a Node>,
    /// Those that only say so.
    pub(super) doubtful: Vec<&'a Node>,
}

/// The owners of each address that any node claims.
pub(super) fn owners(cluster: &Cluster) -> FxHashMap<IpAddr, Owners<'_>> {
    let spans = Spans::new(cluster);
    let mut holders: FxHashMap<IpAddr, Vec<&str>> = FxHashMap::default();
    for node in cluster.nodes.values() {
        for address in node.addresses.iter().chain(&node.observed) {
            holders.entry(*address).or_default().push(&node.name);
        }
    }
    let is_held_by_another = |node: &Node, address: IpAddr| {
        let holders = holders.get(&address);
        holders.is_some_and(|names| names.iter().any(|name| *name != node.name))
    };
    let mut owners: FxHashMap<IpAddr, Owners<'_>> = FxHashMap::default();
    for node in cluster.nodes.values() {
        let mut sure: BTreeSet<IpAddr> = node.observed.iter().copied().collect();
        let listed = node.addresses.iter().copied();
        sure.extend(listed.filter(|address| !spans.hold(*address)));
        for cidr in &node.tunnel_cidrs {
            if !spans.dispute(node, cidr) {
                let own = Node::first_two(*cidr);
                sure.extend(own.filter(|address| !is_held_by_another(node, *address)));
            }
        }
        for address in node.claimed().collect::<BTreeSet<IpAddr>>() {
            let of_address = owners.entry(address).or_default();
            if sure.contains(&address) {
                of_address.sure.push(node);
            } else {
                of_address.doubtful.push(node);
            }
        }
    }
    owners
}

/// The pod CIDRs of all nodes as spans of addresses, sorted by their first one.
struct Spans<'a> {
    spans: Vec<(IpAddr, IpAddr, &'a str)>,
    /// The last address of each span and of all before it.
    reach: Vec<IpAddr>,
}

impl<'a> Spans<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        let nodes = cluster.nodes.values();
        let mut spans: Vec<_> = nodes
            .flat_map(|node| {
                let cidrs = node.pod_cidrs.iter().chain(&node.tunnel_cidrs);
                cidrs.map(|cidr| (cidr.network(), cidr.broadcast(), node.name.as_str()))
            })
            .collect();
        spans.sort_unstable();
        let mut reach: Vec<IpAddr> = Vec::with_capacity(spans.len());
        for (_, last, _) in &spans {
            let before = reach.last().copied();
            // Addresses of IPv6 sort after those of IPv4, so a span never reaches into the other family's.
            reach.push(before.map_or(*last, |before| before.max(*last)));
        }
        Self { spans, reach }
    }

    /// The spans that have an address of this range.
    fn meeting(
        &self,
        first: IpAddr,
        last: IpAddr,
    ) -> impl Iterator<Item = &(IpAddr, IpAddr, &'a str)> {
        let end = self.spans.partition_point(|(start, _, _)| *start <= last);
        let begin = self.reach.partition_point(|reached| *reached < first);
        // What ends before `first` begins before `last`, so `begin` is not behind `end`.
        let candidates = self.spans[begin..end].iter();
        candidates.filter(move |(_, until, _)| *until >= first)
    }

    fn hold(&self, address: IpAddr) -> bool {
        self.meeting(address, address).next().is_some()
    }

    /// Whether a CIDR of a node overlaps one of another node.
    fn dispute(&self, node: &Node, cidr: &IpNet) -> bool {
        let mut meeting = self.meeting(cidr.network(), cidr.broadcast());
        meeting.any(|(_, _, owner)| *owner != node.name)
    }
}
