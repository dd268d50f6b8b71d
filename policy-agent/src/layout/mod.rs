//! The static nftables layout: tables, sets, maps, base chains and rules, as data built by one pure function.
//!
//! Policy is in the elements (see [`crate::render`]); nothing here depends on it. How a packet is judged stands in
//! `towpath_core::tables`; here is how the kernel does it.
//!
//! * `table inet towpath` judges the first packet of each connection in `forward` and `input`: established packets
//!   pass first, then `from_endpoint` looks at the source and `to_endpoint` at the destination.
//! * A verdict map holds `return` for "allowed" and `continue` for "go on with this rule", and the rule goes on with
//!   `goto`. A miss ends the rule. So a state, a denial or a default is plain data: no pod event makes the kernel
//!   validate the table, and denied packets are counted and logged like all others. Only profile elements jump.
//! * `accept` stands in base chains only; "allowed" is `return`. Every drop has a counter and a limited log.
//! * Audited: on an audited node every chain that drops ends in `return` instead. For an audited endpoint the chains
//!   `ingress_denied` and `egress_denied` ask set `audited` before they drop; only what is denied pays for that.
//! * Bypassed: right before they drop, the chains `*_denied`, `*_invalid` and `*_unknown` ask `bypassed` (addresses) and
//!   `bypassed_node`. The kernel itself removes each of their elements after its time.
//! * The class of the peer travels in `meta priority`, which is set back before `egress` and `ingress` return. Packets
//!   that are not judged keep theirs.
//! * `table bridge towpath` checks on the ports of pods that a packet's source is its sender's, ARP and neighbour
//!   discovery included.

mod bridge;
mod drop_reason;
mod inet;
mod rule;
mod set;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use towpath_core::model::{Direction, InterfaceName, Node};
use towpath_core::tables::ProfileId;
use towpath_dataplane::nft::{
    Chain, Family, Name, Operation, Rule, SetSpec, Table, TableFlags, Transaction,
};

pub use drop_reason::DropReason;
pub use set::{Capacities, IpVersion, SetId, VerdictMap};

pub(crate) use inet::goto_denied;
pub(crate) use rule::RuleBuilder;

/// UDP port of the overlay as long as nobody knows a better one: that of VXLAN in Linux, and of Flannel's.
pub(crate) const DEFAULT_OVERLAY_PORT: u16 = 8472;

/// Whether what is denied is dropped.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Enforcement {
    /// It is dropped.
    #[default]
    Enforce,
    /// It is counted and logged, and passes.
    Audit,
}

/// What the layout depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayoutOptions {
    /// Flags of our tables: owner and persist where the kernel has both.
    pub table_flags: TableFlags,
    /// Protocols whose ports conntrack does not know: judged packet by packet, apart from replies.
    pub stateless_protocols: BTreeSet<u8>,
    /// UDP ports of the overlay (8472 is Flannel's vxlan): pods may not send to them on a node.
    pub overlay_ports: BTreeSet<u16>,
    /// NFLOG group of dropped packets.
    pub log_group: u16,
    /// Logged packets per second and reason.
    pub log_rate: u64,
    /// Logged packets per reason at once.
    pub log_burst: u32,
    /// Whether pods get their addresses over DHCP.
    pub dhcp: bool,
    /// Whether there are pod interfaces without a bridge. Their sources are checked at a hook of its own, which every
    /// packet of the node pays for.
    pub routed_pods: bool,
    /// Whether this node drops anything.
    pub enforcement: Enforcement,
}

impl Default for LayoutOptions {
    fn default() -> Self {
        Self {
            table_flags: TableFlags::default(),
            stateless_protocols: BTreeSet::new(),
            overlay_ports: [DEFAULT_OVERLAY_PORT].into(),
            log_group: 100,
            log_rate: 100,
            log_burst: 100,
            dhcp: false,
            routed_pods: false,
            enforcement: Enforcement::default(),
        }
    }
}

/// Facts of this node that are no policy. The agent observes them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Interfaces behind which there are only pods, as the inet hooks see them: pod bridges and routed pod
    /// interfaces.
    pub pod_interfaces: BTreeSet<InterfaceName>,
    /// Those of `pod_interfaces` that are no bridges: a packet's source is checked where it enters.
    pub routed_interfaces: BTreeSet<InterfaceName>,
    /// All ports of pod bridges but the configured uplinks.
    pub pod_ports: BTreeSet<InterfaceName>,
    /// Addresses of nodes, this one and others: pods may not send encapsulated packets there. They are many and seldom
    /// change, so one list is shared by all facts until they do.
    pub node_addresses: Arc<BTreeSet<IpAddr>>,
    /// Addresses of endpoints of this node that are audited: what policy denies them passes.
    pub audited: BTreeSet<IpAddr>,
    /// UDP ports of the overlay in place of those of [`LayoutOptions::overlay_ports`], once they are known. A change
    /// replaces the tables.
    pub overlay_ports: Option<BTreeSet<u16>>,
}

impl NodeFacts {
    /// What a node takes for its own, whether or not its object says so: its addresses, and of each pod network that
    /// of its bridge, the one of the network (a broadcast address to older kernels, anycast to IPv6 routers) and the
    /// broadcast address.
    pub fn addresses_of(node: &Node) -> impl Iterator<Item = IpAddr> {
        let of_network = |cidr: &IpNet| {
            // A network of one or two addresses is of pods only.
            let is_wide = cidr.max_prefix_len() - cidr.prefix_len() > 1;
            let [bridge, broadcast] = match cidr {
                IpNet::V4(cidr) => {
                    let found = [cidr.hosts().next(), Some(cidr.broadcast())];
                    found.map(|address| address.map(IpAddr::V4))
                }
                // The address of an IPv6 network counts as one of its hosts.
                IpNet::V6(cidr) => [cidr.hosts().nth(1).map(IpAddr::V6), None],
            };
            let found = [Some(cidr.network()), bridge, broadcast];
            found.into_iter().flatten().filter(move |_| is_wide)
        };
        let networks = node.pod_cidrs.iter().flat_map(of_network);
        node.claimed().chain(networks)
    }
}

/// One of our two tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TableId {
    /// `table inet towpath`.
    Inet,
    /// `table bridge towpath`.
    Bridge,
}

impl TableId {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Inet, Self::Bridge];

    /// Family and name: how a restarted agent, or an uninstall, recognises the table as ours.
    pub fn table(self) -> Table {
        let family = match self {
            Self::Inet => Family::Inet,
            Self::Bridge => Family::Bridge,
        };
        Table {
            family,
            name: name("towpath"),
        }
    }
}

/// A chain with its rules.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ChainLayout {
    chain: Chain,
    rules: Vec<Rule>,
}

/// Adds both tables with all static sets, chains and rules, no elements. Nothing of them may exist.
pub fn layout(options: &LayoutOptions, capacities: &Capacities) -> Transaction {
    let mut transaction = Transaction::new();
    for (id, chains) in [
        (TableId::Inet, inet::chains(options)),
        (TableId::Bridge, bridge::chains(options)),
    ] {
        let table = id.table();
        transaction.push(Operation::AddTable(table.clone(), options.table_flags));
        for set in SetId::all().filter(|set| set.table() == id) {
            let spec: SetSpec = set.spec(capacities.of(set));
            transaction.push(Operation::AddSet(table.clone(), spec));
        }
        for layout in &chains {
            transaction.push(Operation::AddChain(table.clone(), layout.chain.clone()));
        }
        for ChainLayout { chain, rules } in chains {
            for rule in rules {
                let operation = Operation::AddRule(table.clone(), chain.name.clone(), rule);
                transaction.push(operation);
            }
        }
    }
    transaction
}

/// The chain of a profile in one direction. Its rules end in [`profile_end`].
pub(crate) fn profile_chain(direction: Direction, id: ProfileId) -> Name {
    let letter = match direction {
        Direction::Ingress => 'i',
        Direction::Egress => 'e',
    };
    made_name(&format!("{letter}profile_{:016x}", id.0))
}

/// Where a profile's chain goes when no rule decided: the endpoint's default.
pub(crate) fn profile_end(direction: Direction) -> Name {
    made_name(&format!("{direction}_end"))
}

/// A name that stands in this program's text.
fn name(text: &'static str) -> Name {
    made_name(text)
}

/// A name made of our words and numbers.
pub(crate) fn made_name(text: &str) -> Name {
    text.parse()
        .expect("names of the layout are short, lower case and not reserved")
}

#[cfg(test)]
mod tests;
