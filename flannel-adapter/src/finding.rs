//! Contradictions and gaps in what Flannel set up, for the operator. `towpath doctor` prints them.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use smol_str::SmolStr;
use towpath_core::model::MacAddress;

use crate::backend::BackendType;
use crate::node::NodeKey;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Worth knowing.
    Notice,
    /// Something works less well than it should.
    Warning,
    /// Pods do not get what they should, or policy cannot be right.
    Serious,
}

/// A contradiction or a gap. Its text says what is wrong and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// `subnet.env` is not there.
    SubnetEnvMissing,
    /// A node that Flannel works on has no pod network.
    PodNetworkMissing {
        /// The node.
        node: NodeKey,
    },
    /// A node without Flannel's mark.
    Unmanaged {
        /// The node.
        node: NodeKey,
    },
    /// `subnet.env` names another subnet than the Node object, or than the lease.
    SubnetDiffers {
        /// What `subnet.env` says.
        file: IpNet,
        /// What the Node object says.
        node: IpNet,
    },
    /// A node's pod network lies outside of Flannel's network.
    SubnetOutside {
        /// The node.
        node: NodeKey,
        /// Its pod network.
        subnet: IpNet,
    },
    /// Pod networks of two nodes overlap.
    SubnetsOverlap {
        /// One node and its network.
        first: (NodeKey, IpNet),
        /// The other.
        second: (NodeKey, IpNet),
    },
    /// The bridge has none of its subnet's addresses.
    BridgeAddressDiffers {
        /// The bridge.
        bridge: SmolStr,
        /// What it has, of that family.
        found: Vec<IpAddr>,
        /// What it should have.
        wanted: IpAddr,
    },
    /// An interface has another largest packet than `subnet.env` says.
    MtuDiffers {
        /// The interface.
        interface: SmolStr,
        /// What it has.
        found: u32,
        /// What `subnet.env` says.
        wanted: u32,
    },
    /// Flannel's device is not there.
    DeviceMissing {
        /// Its name.
        device: SmolStr,
    },
    /// The device's hardware address is not the one that other nodes use.
    VtepMacDiffers {
        /// The device.
        device: SmolStr,
        /// What it has.
        found: MacAddress,
        /// What the annotation says.
        told: MacAddress,
    },
    /// Configuration and node name different backends.
    BackendDiffers {
        /// What the configuration says.
        configured: BackendType,
        /// What the node says.
        found: BackendType,
    },
    /// The configuration names no backend.
    BackendByDefault,
    /// Two nodes have one public address.
    PublicAddressShared {
        /// One node.
        first: NodeKey,
        /// The other.
        second: NodeKey,
        /// The address.
        address: IpAddr,
    },
    /// What is told as a node's address lies in a pod network.
    AddressOfPods {
        /// The node.
        node: NodeKey,
        /// The address.
        address: IpAddr,
    },
    /// A route of Flannel's leads to no node's pods.
    StaleRoute {
        /// Where it leads.
        network: IpNet,
        /// By which device.
        device: SmolStr,
    },
}

impl Finding {
    /// How much it matters.
    pub fn severity(&self) -> Severity {
        match self {
            Self::SubnetEnvMissing
            | Self::PodNetworkMissing { .. }
            | Self::SubnetDiffers { .. }
            | Self::SubnetsOverlap { .. }
            | Self::BridgeAddressDiffers { .. }
            | Self::DeviceMissing { .. }
            | Self::VtepMacDiffers { .. }
            | Self::AddressOfPods { .. } => Severity::Serious,
            Self::SubnetOutside { .. }
            | Self::MtuDiffers { .. }
            | Self::BackendDiffers { .. }
            | Self::PublicAddressShared { .. }
            | Self::StaleRoute { .. } => Severity::Warning,
            Self::Unmanaged { .. } | Self::BackendByDefault => Severity::Notice,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SubnetEnvMissing => formatter.write_str(
                "subnet.env is missing, so new pods get no address; flanneld writes it once it runs: look at its log",
            ),
            Self::PodNetworkMissing { node } => write!(
                formatter,
                "{node} has no pod network; run the controller manager with --allocate-node-cidrs and a large enough --cluster-cidr"
            ),
            Self::Unmanaged { node } => write!(
                formatter,
                "{node} has no mark of Flannel; nothing carries packets to its pods unless somebody else does"
            ),
            Self::SubnetDiffers { file, node } => write!(
                formatter,
                "subnet.env says {file}, the node has {node}; restart flanneld, then the pods of the old subnet"
            ),
            Self::SubnetOutside { node, subnet } => write!(
                formatter,
                "{subnet} of {node} lies outside of Flannel's network; make net-conf.json and --cluster-cidr agree"
            ),
            Self::SubnetsOverlap { first, second } => write!(
                formatter,
                "{} of {} and {} of {} overlap; packets go to one of them only: remove the node that is gone, or give out other networks",
                first.1, first.0, second.1, second.0
            ),
            Self::BridgeAddressDiffers { bridge, found, wanted } => {
                let found: Vec<String> = found.iter().map(ToString::to_string).collect();
                let found = if found.is_empty() { "none".to_owned() } else { found.join(" ") };
                write!(
                    formatter,
                    "{bridge} should have the address {wanted} and has {found}; new pods fail until the bridge is removed (ip link delete {bridge}) and its pods restarted"
                )
            }
            Self::MtuDiffers { interface, found, wanted } => write!(
                formatter,
                "{interface} has an MTU of {found}, Flannel says {wanted}; large packets may be lost: restart flanneld and the pods after a change"
            ),
            Self::DeviceMissing { device } => write!(
                formatter,
                "Flannel's device {device} is missing, so no packet reaches other nodes; restart flanneld"
            ),
            Self::VtepMacDiffers { device, found, told } => write!(
                formatter,
                "{device} has the hardware address {found}, the other nodes were told {told}; restart flanneld"
            ),
            Self::BackendDiffers { configured, found } => write!(
                formatter,
                "net-conf.json says {configured}, the node runs {found}; restart flanneld on every node after a change"
            ),
            Self::BackendByDefault => formatter.write_str(
                "net-conf.json names no backend, so Flannel takes udp, the slowest; write \"Backend\": {\"Type\": \"vxlan\"}",
            ),
            Self::PublicAddressShared { first, second, address } => write!(
                formatter,
                "{first} and {second} both have the public address {address}; give flanneld the right interface (--iface)"
            ),
            Self::AddressOfPods { node, address } => write!(
                formatter,
                "{address}, told as an address of {node}, lies in a pod network and is not believed; correct the node's address or annotation"
            ),
            Self::StaleRoute { network, device } => write!(
                formatter,
                "the route to {network} by {device} leads to no node; flanneld kept it over a restart: remove it (ip route delete {network} dev {device})"
            ),
        }
    }
}
