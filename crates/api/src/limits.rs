//! How much one manifest may hold. What is larger is refused by name, never cut.

/// Bytes of one document.
pub const DOCUMENT_BYTES: usize = 4 << 20;
/// Values (texts, lists, maps) of one document, those that aliases repeat included.
pub const DOCUMENT_VALUES: usize = 400_000;
/// Bytes of texts that aliases of one document repeat.
pub const ALIAS_BYTES: usize = 1 << 20;
/// Nesting of lists and maps.
pub const DEPTH: usize = 64;
/// Rules of a NetworkPolicy in one direction.
pub const RULES: usize = 10_000;
/// Peers and ports of all rules of a policy together.
pub const CONDITIONS: usize = 100_000;
/// Requirements of one selector.
pub const REQUIREMENTS: usize = 256;
/// Values of one requirement of a selector.
pub const SELECTOR_VALUES: usize = 1_024;
/// Labels of one object.
pub const LABELS: usize = 512;
/// Addresses of one pod, workload endpoint or node.
pub const ADDRESSES: usize = 64;
/// Ports that one pod or workload endpoint declares.
pub const PORTS: usize = 1_024;
/// Holes in one address block.
pub const EXCEPTIONS: usize = 1_024;
/// How much the different blocks of a NetworkPolicy may overlap: at each end of a block or hole, how many blocks hold it,
/// all added up. So many entries the classes of their addresses take, of some 30 bytes each: 10,000 blocks beside each
/// other are 20,000, a hundred blocks in each other with a hundred holes each two million.
pub const OVERLAP: usize = 500_000;
/// Rules of a ClusterNetworkPolicy in one direction, peers and protocols of a rule, networks of a peer.
pub const CLUSTER_LIST: usize = 25;
/// Characters of the name of a ClusterNetworkPolicy's rule.
pub const RULE_NAME: usize = 100;
/// Faults told of one object; the rest is counted.
pub const FAULTS: usize = 20;
