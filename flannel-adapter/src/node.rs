//! What is known of one node, whoever told.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use smol_str::SmolStr;
use towpath_core::model::{MacAddress, Node};

use crate::backend::BackendType;
use crate::family::{Addresses, Networks};

/// How a node is called.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NodeKey {
    /// By the name of its Node object.
    Node(SmolStr),
    /// By its subnets, where only Flannel's leases in etcd tell of it.
    Lease(SmolStr),
}

impl fmt::Display for NodeKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(name) => write!(formatter, "node {name}"),
            Self::Lease(subnets) => write!(formatter, "the node of {subnets}"),
        }
    }
}

/// The tunnel end of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Vtep {
    /// Number of the virtual network. Flannel keeps the lower 16 bits of the configured one.
    pub vni: u32,
    /// Hardware address of the tunnel's device.
    pub mac: MacAddress,
}

/// What Flannel, and Kubernetes for it, set up for one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    /// How it is called.
    pub key: NodeKey,
    /// Whether Flannel works there. Flannel leaves other nodes alone.
    pub is_managed: bool,
    /// How packets get to it.
    pub backend: Option<BackendType>,
    /// Its pods' networks.
    pub pod_networks: Networks,
    /// The addresses to which other nodes send.
    pub public: Addresses,
    /// Its tunnel for IPv4.
    pub vtep: Option<Vtep>,
    /// Its tunnel for IPv6.
    pub vtep_v6: Option<Vtep>,
    /// Addresses of the node that others tell of it.
    pub addresses: BTreeSet<IpAddr>,
}

impl NodeFacts {
    /// A node of which nothing is known but how it is called.
    pub fn new(key: NodeKey) -> Self {
        Self {
            key,
            is_managed: false,
            backend: None,
            pod_networks: Networks::default(),
            public: Addresses::default(),
            vtep: None,
            vtep_v6: None,
            addresses: BTreeSet::new(),
        }
    }

    /// Addresses with which the host itself, not a pod, sends and receives, as far as they can be told from afar.
    ///
    /// 1. What others tell of the node, and its public addresses.
    /// 2. Those of [`Self::bridge_identities`].
    /// 3. Nothing else of a pod network: with other backends and without a bridge these may be pods.
    pub fn host_identities(&self, has_bridge: bool) -> BTreeSet<IpAddr> {
        let mut identities = self.addresses.clone();
        identities.extend(self.public.iter());
        identities.extend(self.bridge_identities(has_bridge));
        identities
    }

    /// With `vxlan` and a bridge: the first address of each pod network, which the tunnel's device has and with which the
    /// host's own packets to pods elsewhere leave; and the next one, which the bridge has.
    pub(crate) fn bridge_identities(&self, has_bridge: bool) -> Vec<IpAddr> {
        if !has_bridge || self.backend != Some(BackendType::Vxlan) {
            return Vec::new();
        }
        let tunnels = [
            self.vtep.and(self.pod_networks.ipv4.map(IpNet::V4)),
            self.vtep_v6.and(self.pod_networks.ipv6.map(IpNet::V6)),
        ];
        tunnels
            .into_iter()
            .flatten()
            .flat_map(Node::first_two)
            .collect()
    }
}
