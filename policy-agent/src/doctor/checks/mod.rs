//! The checks, by subject. Each is a function from what was read to what is to be said.

mod agent;
mod cni;
mod filters;
mod flannel;
mod host;

use super::Check;

/// All checks, in the order in which they are told.
pub(super) const ALL: &[Check] = &[
    Check {
        id: "agent",
        examine: agent::agent,
    },
    Check {
        id: "leftovers",
        examine: agent::leftovers,
    },
    Check {
        id: "kernel",
        examine: host::kernel,
    },
    Check {
        id: "nft-program",
        examine: host::nft_program,
    },
    Check {
        id: "bridge-netfilter",
        examine: host::bridge_netfilter,
    },
    Check {
        id: "past-policy",
        examine: filters::past_policy,
    },
    Check {
        id: "forward-drop",
        examine: filters::forward_drop,
    },
    Check {
        id: "other-policy",
        examine: filters::other_policy,
    },
    Check {
        id: "local-dns",
        examine: filters::local_dns,
    },
    Check {
        id: "client-address",
        examine: filters::client_address,
    },
    Check {
        id: "forwarding",
        examine: host::forwarding,
    },
    Check {
        id: "reverse-path",
        examine: host::reverse_path,
    },
    Check {
        id: "conntrack",
        examine: host::conntrack,
    },
    Check {
        id: "nodes",
        examine: flannel::nodes,
    },
    Check {
        id: "flannel",
        examine: flannel::configuration,
    },
    Check {
        id: "pod-network",
        examine: flannel::pod_network,
    },
    Check {
        id: "bridge-address",
        examine: flannel::bridge_address,
    },
    Check {
        id: "vtep",
        examine: flannel::vtep,
    },
    Check {
        id: "stale-routes",
        examine: flannel::stale_routes,
    },
    Check {
        id: "mtu",
        examine: flannel::mtu,
    },
    Check {
        id: "vxlan-checksum",
        examine: flannel::checksum,
    },
    Check {
        id: "cni",
        examine: cni::configurations,
    },
];
