//! Which addresses are nodes' own.
//!
//! What a Node object says is only a claim. An address is an identity of a node
//!
//! 1. when the kernel there shows it,
//! 2. when its object lists it, and it lies in no pod CIDR of any node,
//! 3. when it is one of the first two of a CIDR that its tunnel and its bridge have, no other node's CIDR overlaps that,
//!    and no other node lists or shows the address.
//!
//! A claim that is not believed is not nothing: node matchers meet its address perhaps, so it can close and never open.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use smol_str::SmolStr;

use super::index::{add, remove, remove_at};
use crate::model::{Endpoint, Node};

/// A claim of a node that is not believed, or that others make, too. Of many alike one is told, with their number.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Doubt {
    /// Pod CIDRs of other nodes lie in one of this node: their first addresses are surely nobody's.
    Overlap {
        /// The wider one, and whose it is.
        outer: (IpNet, SmolStr),
        /// One that lies in it, and whose that is.
        inner: (IpNet, SmolStr),
        /// How many more CIDRs lie in it, and nodes have the same.
        others: usize,
    },
    /// Several have an address: a packet must be allowed for each of them.
    Shared {
        /// The address.
        address: IpAddr,
        /// Some of the nodes and live workloads that have it.
        owners: Vec<String>,
        /// How many more there are.
        others: usize,
    },
    /// The first address of a node's tunnel or bridge is one that another node lists or shows.
    Taken {
        /// The node with the tunnel.
        node: SmolStr,
        /// The address.
        address: IpAddr,
        /// The other one.
        by: SmolStr,
    },
    /// A node lists an address that lies in a pod CIDR.
    InPodCidr {
        /// The node.
        node: SmolStr,
        /// What it lists.
        address: IpAddr,
        /// The pod CIDR.
        cidr: IpNet,
    },
}

/// So many owners of an address are named.
const NAMED_OWNERS: usize = 4;

impl Doubt {
    /// What it is about, for those who tell some of each kind.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Overlap { .. } => "overlapping pod CIDRs",
            Self::Shared { .. } => "shared addresses of nodes",
            Self::Taken { .. } => "addresses of tunnels that other nodes have",
            Self::InPodCidr { .. } => "addresses of nodes in pod CIDRs",
        }
    }
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const OUTCOME: &str = "rules that accept nodes do not match, those that deny them do";
        match self {
            Self::Overlap {
                outer,
                inner,
                others,
            } => {
                write!(
                    f,
                    "the pod CIDR {} of node {} overlaps {} of node {}",
                    outer.0, outer.1, inner.0, inner.1
                )?;
                if *others > 0 {
                    write!(f, " and {others} more")?;
                }
                write!(f, "; for their first addresses {OUTCOME}")
            }
            Self::Shared {
                address,
                owners,
                others,
            } => {
                write!(f, "{address} is claimed by {}", owners.join(", "))?;
                if *others > 0 {
                    write!(f, " and {others} more")?;
                }
                f.write_str(": packets pass only if they may for each")
            }
            Self::Taken { node, address, by } => write!(
                f,
                "{address}, of the tunnel or bridge of node {node}, is an address of node {by}; {OUTCOME}"
            ),
            Self::InPodCidr {
                node,
                address,
                cidr,
            } => write!(
                f,
                "node {node} lists {address}, which lies in the pod CIDR {cidr}; {OUTCOME}"
            ),
        }
    }
}

/// Why an address would be a node's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Ground {
    Observed,
    Listed,
    Tunnel(IpNet),
}

/// The nodes that claim an address, each once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Owners<'a> {
    /// Whose it is.
    pub(super) sure: Vec<&'a SmolStr>,
    /// Who only says so.
    pub(super) doubtful: Vec<&'a SmolStr>,
}

/// Claims of nodes to addresses, and what speaks against them.
///
/// Every insertion has one removal, made from the same version of the node.
#[derive(Clone, Debug, Default)]
pub(super) struct Identities {
    claims: BTreeMap<IpAddr, Vec<(SmolStr, Ground)>>,
    /// The pod CIDRs, and whose they are.
    networks: BTreeMap<IpNet, Vec<SmolStr>>,
    /// How many of `networks` have a prefix of this length; of IPv6 if `true`.
    lengths: BTreeMap<(bool, u8), u32>,
}

impl Identities {
    /// Takes a version of a node in.
    pub(super) fn add(&mut self, node: &Node) {
        for (address, ground) in claims(node) {
            let claim = (node.name.clone(), ground);
            add(self.claims.entry(address).or_default(), claim);
        }
        for network in networks(node) {
            if !self.networks.contains_key(&network) {
                *self.lengths.entry(length(&network)).or_insert(0) += 1;
            }
            add(self.networks.entry(network).or_default(), node.name.clone());
        }
    }

    /// Takes a version of a node out.
    pub(super) fn remove(&mut self, node: &Node) {
        for (address, ground) in claims(node) {
            let claim = (node.name.clone(), ground);
            remove_at!(self.claims, &address, &claim);
        }
        for network in networks(node) {
            if !self.networks.contains_key(&network) {
                // Listed twice.
                continue;
            }
            remove_at!(self.networks, &network, &node.name);
            if !self.networks.contains_key(&network)
                && let Some(count) = self.lengths.get_mut(&length(&network))
            {
                *count -= 1;
                if *count == 0 {
                    self.lengths.remove(&length(&network));
                }
            }
        }
    }

    /// The nodes that claim an address.
    pub(super) fn owners(&self, address: IpAddr) -> Owners<'_> {
        let mut owners = Owners::default();
        let claims = self.claims_to(address);
        for of_node in claims.chunk_by(|(one, _), (other, _)| one == other) {
            let is_sure = of_node
                .iter()
                .any(|(name, ground)| self.is_believed(address, name, *ground));
            let names = if is_sure {
                &mut owners.sure
            } else {
                &mut owners.doubtful
            };
            names.extend(of_node.first().map(|(name, _)| name));
        }
        owners
    }

    /// Sorted by the node's name.
    fn claims_to(&self, address: IpAddr) -> &[(SmolStr, Ground)] {
        self.claims.get(&address).map_or(&[], Vec::as_slice)
    }

    fn is_believed(&self, address: IpAddr, name: &SmolStr, ground: Ground) -> bool {
        match ground {
            Ground::Observed => true,
            Ground::Listed => self.holding(IpNet::from(address)).next().is_none(),
            Ground::Tunnel(network) => {
                !self.is_disputed(network, name) && self.other_holder(address, name).is_none()
            }
        }
    }

    /// Whether a CIDR of a node overlaps one of another node.
    fn is_disputed(&self, network: IpNet, name: &SmolStr) -> bool {
        let mut overlapping = self.holding(network).chain(self.within(network));
        overlapping.any(|(_, owners)| owners.iter().any(|owner| owner != name))
    }

    /// Another node that lists or shows an address.
    fn other_holder(&self, address: IpAddr, name: &SmolStr) -> Option<&SmolStr> {
        let mut claims = self.claims_to(address).iter();
        let is_other = |(other, ground): &&(SmolStr, Ground)| {
            other != name && matches!(ground, Ground::Listed | Ground::Observed)
        };
        claims.find(is_other).map(|(other, _)| other)
    }

    /// Whether any node claims an address, believed or not.
    pub(super) fn is_claimed(&self, address: IpAddr) -> bool {
        self.claims.contains_key(&address)
    }

    /// Every address that any node claims, believed or not.
    pub(super) fn claimed(&self) -> impl Iterator<Item = IpAddr> {
        self.claims.keys().copied()
    }

    /// Those that lie in a block.
    pub(super) fn claimed_in(&self, block: &IpNet) -> impl Iterator<Item = IpAddr> {
        let range = block.network()..=block.broadcast();
        self.claims.range(range).map(|(address, _)| *address)
    }

    /// The addresses of which a version of a node may change whose they are. Asked while it is in here.
    pub(super) fn concerned(&self, node: &Node) -> Vec<IpAddr> {
        let mut concerned: Vec<IpAddr> = claims(node).map(|(address, _)| address).collect();
        for network in networks(node) {
            concerned.extend(self.claimed_in(&network));
            let around = self.holding(network).map(|(network, _)| *network);
            concerned.extend(around.flat_map(Node::first_two));
        }
        concerned
    }

    /// What is doubtful about the claims, sorted. As many as there are claims and networks at most, whatever overlaps.
    pub(super) fn doubts<'e>(
        &self,
        workloads: impl Fn(IpAddr) -> &'e [Arc<Endpoint>],
    ) -> Vec<Doubt> {
        let mut doubts = self.overlaps();
        for (address, claims) in &self.claims {
            let owners = self.owners(*address);
            doubts.extend(shared(*address, &owners, workloads(*address)));
            let is_doubtful = |name: &SmolStr| owners.doubtful.contains(&name);
            for (node, ground) in claims.iter().filter(|(name, _)| is_doubtful(name)) {
                let doubt = match ground {
                    Ground::Observed => None,
                    Ground::Listed => {
                        let mut around = self.holding(IpNet::from(*address));
                        around.next().map(|(cidr, _)| Doubt::InPodCidr {
                            node: node.clone(),
                            address: *address,
                            cidr: *cidr,
                        })
                    }
                    // What overlaps is told of the network.
                    Ground::Tunnel(network) if self.is_disputed(*network, node) => None,
                    Ground::Tunnel(_) => self.other_holder(*address, node).map(|by| Doubt::Taken {
                        node: node.clone(),
                        address: *address,
                        by: by.clone(),
                    }),
                };
                doubts.extend(doubt);
            }
        }
        doubts.sort_unstable();
        doubts
    }

    /// One doubt for each CIDR that another node's lies in.
    fn overlaps(&self) -> Vec<Doubt> {
        let mut found: BTreeMap<&IpNet, Doubt> = BTreeMap::new();
        for (inner, owners) in &self.networks {
            for (outer, others) in self.holding(*inner) {
                let Some((of_outer, of_inner)) = first_pair(others, owners) else {
                    continue;
                };
                let same = if inner == outer { owners.len() - 2 } else { 0 };
                found
                    .entry(outer)
                    .and_modify(|doubt| {
                        if let Doubt::Overlap { others, .. } = doubt {
                            *others += 1 + same;
                        }
                    })
                    .or_insert_with(|| Doubt::Overlap {
                        outer: (*outer, of_outer.clone()),
                        inner: (*inner, of_inner.clone()),
                        others: same,
                    });
            }
        }
        found.into_values().collect()
    }

    /// The pod CIDRs that hold a network.
    fn holding(&self, inner: IpNet) -> impl Iterator<Item = (&IpNet, &Vec<SmolStr>)> {
        let (is_v6, longest) = length(&inner);
        let lengths = self.lengths.range((is_v6, 0)..=(is_v6, longest));
        lengths.filter_map(move |((_, length), _)| {
            let outer = IpNet::new(inner.network(), *length).ok()?.trunc();
            self.networks.get_key_value(&outer)
        })
    }

    /// The pod CIDRs that lie in a network.
    fn within(&self, outer: IpNet) -> impl Iterator<Item = (&IpNet, &Vec<SmolStr>)> {
        let last = IpNet::from(outer.broadcast());
        let from_first = self.networks.range(outer..=last);
        from_first.filter(move |(network, _)| outer.contains(*network))
    }
}

/// An owner of one network and another one of the other.
fn first_pair<'a>(
    ones: &'a [SmolStr],
    others: &'a [SmolStr],
) -> Option<(&'a SmolStr, &'a SmolStr)> {
    let one = ones.first()?;
    let other = others.iter().find(|other| *other != one);
    let pair = other.map(|other| (one, other));
    // The others are of the first one alone.
    pair.or_else(|| Some((ones.get(1)?, others.first()?)))
}

fn shared(address: IpAddr, owners: &Owners<'_>, workloads: &[Arc<Endpoint>]) -> Option<Doubt> {
    let count = owners.sure.len() + workloads.len();
    if owners.sure.is_empty() || count < 2 {
        return None;
    }
    let nodes = owners.sure.iter().map(|name| format!("node {name}"));
    let workloads = workloads.iter().map(|workload| workload.id.to_string());
    Some(Doubt::Shared {
        address,
        owners: nodes.chain(workloads).take(NAMED_OWNERS).collect(),
        others: count.saturating_sub(NAMED_OWNERS),
    })
}

fn length(network: &IpNet) -> (bool, u8) {
    (network.addr().is_ipv6(), network.prefix_len())
}

fn networks(node: &Node) -> impl Iterator<Item = IpNet> {
    let cidrs = node.pod_cidrs.iter().chain(&node.tunnel_cidrs);
    cidrs.map(IpNet::trunc)
}

/// What a node claims, and why.
fn claims(node: &Node) -> impl Iterator<Item = (IpAddr, Ground)> {
    let observed = node.observed.iter().map(|own| (*own, Ground::Observed));
    let listed = node.addresses.iter().map(|own| (*own, Ground::Listed));
    let tunnels = node.tunnel_cidrs.iter().map(IpNet::trunc);
    let tunnels = tunnels.flat_map(|network| {
        Node::first_two(network).map(move |own| (own, Ground::Tunnel(network)))
    });
    observed.chain(listed).chain(tunnels)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn identities(nodes: &[(&str, &[&str], &[&str])]) -> Identities {
        let mut identities = Identities::default();
        for (name, listed, cidrs) in nodes {
            identities.add(&node(name, listed, cidrs));
        }
        identities
    }

    fn node(name: &str, listed: &[&str], cidrs: &[&str]) -> Node {
        let cidrs: Vec<IpNet> = cidrs.iter().map(|text| text.parse().unwrap()).collect();
        Node {
            name: name.into(),
            addresses: listed.iter().map(|text| text.parse().unwrap()).collect(),
            tunnel_cidrs: cidrs.clone(),
            pod_cidrs: cidrs,
            ..Node::default()
        }
    }

    fn doubts(identities: &Identities) -> Vec<String> {
        let doubts = identities.doubts(|_| &[]);
        doubts.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn doubts_are_told_once_each() {
        let found = identities(&[
            ("a", &["192.0.2.1", "10.1.0.7"], &["10.1.0.0/24"]),
            ("b", &["192.0.2.1"], &["10.1.0.0/16", "10.2.0.0/24"]),
            ("c", &["192.0.2.3"], &["10.2.0.0/24", "10.2.0.0/24"]),
            ("d", &["192.0.2.4"], &["192.0.2.3/32"]),
        ]);

        assert_eq!(
            doubts(&found),
            [
                "the pod CIDR 10.1.0.0/16 of node b overlaps 10.1.0.0/24 of node a; for their first addresses rules that accept nodes do not match, those that deny them do",
                "the pod CIDR 10.2.0.0/24 of node b overlaps 10.2.0.0/24 of node c; for their first addresses rules that accept nodes do not match, those that deny them do",
                "192.0.2.1 is claimed by node a, node b: packets pass only if they may for each",
                "192.0.2.3, of the tunnel or bridge of node d, is an address of node c; rules that accept nodes do not match, those that deny them do",
                "node a lists 10.1.0.7, which lies in the pod CIDR 10.1.0.0/16; rules that accept nodes do not match, those that deny them do",
                "node c lists 192.0.2.3, which lies in the pod CIDR 192.0.2.3/32; rules that accept nodes do not match, those that deny them do",
            ]
        );
    }

    /// Each of many equal claims against each other would be the square of their number.
    #[test]
    fn many_nodes_with_one_cidr_are_one_doubt() {
        let names: Vec<String> = (0..500).map(|number| format!("n{number:03}")).collect();
        let mut found = Identities::default();
        for name in &names {
            found.add(&node(name, &[], &["10.1.0.0/24"]));
        }

        let [doubt] = &doubts(&found)[..] else {
            panic!("{:?}", doubts(&found).len());
        };
        assert!(
            doubt.starts_with("the pod CIDR 10.1.0.0/24 of node n000 overlaps 10.1.0.0/24 of node n001 and 498 more;"),
            "{doubt}"
        );
    }

    #[test]
    fn what_the_kernel_shows_is_in_no_doubt() {
        let mut own = node("a", &["10.1.0.1"], &["10.1.0.0/24"]);
        own.observed = own.addresses.clone();
        let mut found = Identities::default();
        found.add(&own);

        assert_eq!(doubts(&found), Vec::<String>::new());
    }

    #[test]
    fn what_is_taken_out_leaves_nothing_behind() {
        let nodes = [
            node(
                "a",
                &["192.0.2.1", "192.0.2.1"],
                &["10.1.0.0/24", "10.1.0.0/24"],
            ),
            node("b", &["192.0.2.1"], &["10.1.0.0/24", "10.1.0.0/16"]),
        ];
        let mut found = Identities::default();
        for node in &nodes {
            found.add(node);
            found.add(node);
        }
        for node in &nodes {
            found.remove(node);
        }

        assert!(
            found.claims.is_empty() && found.networks.is_empty() && found.lengths.is_empty(),
            "{found:?}"
        );
    }

    /// Nodes of few addresses, whose CIDRs often lie in each other.
    fn crowded() -> impl Strategy<Value = Node> {
        let address = || (0..16u8).prop_map(|last| IpAddr::from([10, 0, 0, last]));
        let cidr = (address(), 27..=32u8)
            .prop_map(|(address, length)| IpNet::new(address, length).expect("a length").trunc());
        let cidrs = vec((cidr, any::<bool>()), 0..3);
        let name = prop::sample::select(vec!["a", "b", "c"]);
        (name, vec(address(), 0..2), vec(address(), 0..2), cidrs).prop_map(
            |(name, addresses, observed, cidrs)| {
                let tunnels = cidrs.iter().filter(|(_, has_tunnel)| *has_tunnel);
                Node {
                    name: name.into(),
                    addresses,
                    observed,
                    tunnel_cidrs: tunnels.map(|(cidr, _)| *cidr).collect(),
                    pod_cidrs: cidrs.iter().map(|(cidr, _)| *cidr).collect(),
                    ..Node::default()
                }
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn a_node_that_comes_or_goes_concerns_all_whose_owners_change(
            others in vec(crowded(), 1..4),
            node in crowded(),
        ) {
            let mut found = Identities::default();
            for other in others.iter().filter(|other| other.name != node.name) {
                found.add(other);
            }
            let addresses: Vec<IpAddr> = (0..32).map(|last| [10, 0, 0, last].into()).collect();
            let without = found.clone();

            found.add(&node);
            let concerned = found.concerned(&node);

            for address in addresses {
                let differs = without.owners(address) != found.owners(address);
                prop_assert!(!differs || concerned.contains(&address), "{address}");
            }
        }
    }

    #[test]
    fn a_node_does_not_dispute_with_itself() {
        let found = identities(&[("a", &[], &["10.1.0.0/24", "10.1.0.0/16"])]);

        assert_eq!(doubts(&found), Vec::<String>::new());
        assert_eq!(found.owners("10.1.0.1".parse().unwrap()).sure, ["a"]);
    }
}
