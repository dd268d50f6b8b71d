//! Interfaces, and what lives behind them.
//!
//! Pods are found over netlink alone: a veth names the namespace of its other end by a number, and the kernel lists the
//! links and addresses of a numbered namespace. No container runtime, no `/proc` of others, no entering of namespaces.
//!
//! The order of work: open a [`Scanner`], then a [`Watcher`], [`Scanner::discover`] into an [`Inventory`], then for
//! each event of [`Watcher::wait`] apply what [`Scanner::follow`] finds. Identity and policy are not known here.

mod bridge;
mod decode;
mod error;
mod inventory;
mod model;
mod neighbours;
mod offload;
mod programs;
mod scan;
pub(crate) mod socket;
mod tunnels;
pub(crate) mod wake;
mod watch;
pub(crate) mod wire;

pub use bridge::bridge_netfilter_available;
pub use error::NetlinkError;
pub use inventory::{Changes, Inventory, PodChange};
pub use model::{
    BridgeSettings, HostAddress, Interface, NamespaceId, Peer, PeerFacts, PodFilter, PodInterface,
    Scan, Snapshot,
};
pub use neighbours::{ForwardingEntry, Neighbour, Route};
pub use offload::offloads_checksums;
pub use programs::{AttachedProgram, ProgramHook};
pub use scan::Scanner;
pub use tunnels::VxlanDevice;
pub use wake::{Awake, Sleeper, Waker};
pub(crate) use watch::enlarge_buffer;
pub use watch::{Event, Wakeup, Watcher};
