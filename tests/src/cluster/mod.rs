//! A real Kubernetes cluster in namespaces: servers built from Go modules, Debian's etcd and containerd.
//!
//! * [`ControlPlane`]: etcd, API server, controllers, scheduler; [`Alone`] when a test needs no nodes.
//! * [`Cluster`]: what a [`Lab`](crate::lab::Lab) with Kubernetes has beside its nodes: Flannel, kube-proxy, accounts.
//! * [`Crowd`]: thousands of nodes and pods that are objects only.
//! * [`Machine`]: containerd and kubelet around a node.
//! * [`Api`]: the lab's own requests; [`Authority`]: certificates.
//! * [`Daemon`]: a server with its log.

mod api;
mod certificates;
pub(crate) mod control_groups;
mod control_plane;
mod crowd;
mod daemon;
mod images;
pub mod machine;
mod nodes;
mod pods;

pub use api::{Answer, Api, objects};
pub use certificates::{Authority, Identity};

pub use control_plane::{Alone, ControlPlane, ControlPlaneConfig, Credential, View};
pub use crowd::Crowd;
pub use daemon::{Daemon, Recipe, START_PATIENCE};
pub use images::{LAB, PAUSE};
pub use machine::Machine;
pub use nodes::{Cluster, KubernetesConfig, Rules};
