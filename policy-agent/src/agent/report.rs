//! What the agent tells about itself on its socket: the JSON of `towpath status` and `towpath get`.
//!
//! These types are the documented format (docs/json.md): fields are added, never renamed.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::bypass::BypassScope;
use crate::layout::Enforcement;
use crate::publish::standing::Standing;

/// Answer of `/status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Name of the node.
    pub node: String,
    /// Who carries pod traffic: `policy-only`, somebody else does.
    pub mode: String,
    /// Version of the agent.
    pub version: String,
    /// Seconds since the agent started.
    pub uptime_seconds: u64,
    /// `enforce`, or `audit`: what is denied is counted and logged, and passes.
    pub enforcement: Enforcement,
    /// Whether policy is in force for every pod of this node as the manifests say.
    pub enforced: bool,
    /// Conditions that do not hold yet, or no longer.
    pub awaited: Vec<Awaited>,
    /// What holds and hardly is meant, like a node of which no object speaks.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// For whom enforcement is open for a while.
    #[serde(default)]
    pub bypasses: Vec<Bypass>,
    /// What Flannel set up on this node, where it shows.
    #[serde(default)]
    pub flannel: Option<Flannel>,
    /// UDP ports of nodes to which pods may not send, since packets are unpacked there.
    #[serde(default)]
    pub overlay_ports: Vec<u16>,
    /// Whether the source has been read whole and can still be read.
    pub in_sync: bool,
    /// The kernel's side.
    pub commits: Commits,
    /// From an event's arrival to the end of its commit.
    pub latency: Latency,
    /// Endpoints of this node.
    pub endpoints: EndpointCounts,
    /// Policies known.
    pub policies: usize,
    /// Classes in use.
    pub classes: usize,
    /// Nodes known.
    pub nodes: usize,
    /// Endpoints of the whole cluster.
    pub cluster_endpoints: usize,
    /// Pod bridges and whether their traffic can be judged.
    pub bridges: Vec<Bridge>,
    /// Denied packets by reason, as far as they were logged.
    pub denied: Vec<DeniedCount>,
    /// Faults of manifests.
    pub problems: Vec<Problem>,
    /// What is told to the API server, and how that goes.
    #[serde(default)]
    pub publishing: Vec<Published>,
    /// Memory of the agent.
    pub memory: Memory,
}

/// Answer of `/flannel`: what Flannel set up on this node, as far as it shows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Flannel {
    /// With what it writes its rules: `iptables` or `nftables`; nothing before it runs.
    pub rules: Option<String>,
    /// How packets go from node to node: `vxlan`, `host-gw`, ...
    pub backend: Option<String>,
    /// Largest packet of this node's pods.
    pub mtu: Option<u32>,
    /// Networks of all pods.
    pub networks: Vec<String>,
    /// Networks of this node's pods.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<String>,
    /// Whether it masquerades what leaves the pods' networks.
    pub masquerades: Option<bool>,
    /// Its tunnels' ends on this node.
    pub tunnels: Vec<Tunnel>,
    /// What contradicts itself, in words.
    pub contradictions: Vec<String>,
}

/// The end of a tunnel on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tunnel {
    /// Name of the device.
    pub name: String,
    /// Its hardware address.
    pub mac: Option<String>,
    /// Its largest packet.
    pub mtu: u32,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// UDP port at which it listens, where the kernel tells one.
    pub udp_port: Option<u16>,
}

/// Something for which enforcement is open for a while.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bypass {
    /// What is open.
    pub scope: BypassScope,
    /// Why, in the words of whoever opened it.
    pub reason: String,
    /// Seconds since 1970 when it began.
    pub begun: u64,
    /// Seconds since 1970 when it ends.
    pub until: u64,
    /// Seconds until then.
    pub seconds_left: u64,
    /// Addresses that are open by it; none for the whole node.
    pub addresses: Vec<IpAddr>,
}

/// A condition that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Awaited {
    /// Its name.
    pub condition: String,
    /// What is missing.
    pub reason: String,
}

/// Commits to the kernel.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Commits {
    /// Generation of the state that is in force; counts up by one for each flush.
    pub generation: u64,
    /// Generation that is wanted; the same when nothing is pending.
    pub wanted_generation: u64,
    /// Commits that the kernel took since the start.
    pub done: u64,
    /// Failures in a row; 0 when the last commit worked.
    pub failed_in_a_row: u32,
    /// The last failure, if the last commit failed.
    pub error: Option<String>,
    /// Seconds since the last commit that the kernel took.
    pub last_seconds_ago: Option<f64>,
    /// Seconds that it took.
    pub last_duration_seconds: Option<f64>,
    /// Objects that were found changed by others and repaired.
    pub drift_repaired: u64,
}

/// Latencies of the last events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Latency {
    /// Events measured since the start.
    pub events: u64,
    /// Median of the last 1,024 events.
    pub p50_seconds: Option<f64>,
    /// 99 % of the last 1,024 events were no slower.
    pub p99_seconds: Option<f64>,
    /// The last event.
    pub last_seconds: Option<f64>,
}

/// Endpoints of this node by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointCounts {
    /// Their policy is in force.
    pub programmed: usize,
    /// Closed: no interface of this node shows the address.
    pub waiting_for_interface: usize,
    /// Closed: the Namespace object is missing.
    pub waiting_for_namespace: usize,
    /// Closed: the object has no address yet.
    pub waiting_for_address: usize,
    /// Closed: several live endpoints or interfaces claim the address.
    pub conflict: usize,
}

/// A pod bridge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bridge {
    /// Its name.
    pub name: String,
    /// Whether traffic between its ports passes policy.
    pub is_filtered: bool,
}

/// Denied packets of one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeniedCount {
    /// The reason.
    pub reason: String,
    /// Logged packets.
    pub packets: u64,
}

/// A fault of a manifest, as `towpath lint` prints it too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// `error`: the object is not in force as written. `warning`: it is, and probably means something else.
    pub severity: String,
    /// File.
    pub file: String,
    /// Line, from 1; 0 is the file as a whole.
    pub line: u32,
    /// The object, as far as it is known.
    pub object: Option<String>,
    /// The field.
    pub path: Option<String>,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub advice: String,
}

/// Memory of the agent's process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Memory {
    /// Resident bytes.
    pub resident_bytes: u64,
    /// Most resident bytes so far.
    pub peak_bytes: u64,
}

/// State of an endpoint of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndpointState {
    /// Its policy is in force.
    Programmed,
    /// No interface of this node shows the address.
    WaitingForInterface,
    /// The Namespace object is missing.
    WaitingForNamespace,
    /// The object has no address yet.
    WaitingForAddress,
    /// Several live endpoints or interfaces claim the address.
    Conflict,
}

impl EndpointState {
    /// All states.
    pub const ALL: [Self; 5] = [
        Self::Programmed,
        Self::WaitingForInterface,
        Self::WaitingForNamespace,
        Self::WaitingForAddress,
        Self::Conflict,
    ];

    /// As in JSON and metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Programmed => "programmed",
            Self::WaitingForInterface => "waiting-for-interface",
            Self::WaitingForNamespace => "waiting-for-namespace",
            Self::WaitingForAddress => "waiting-for-address",
            Self::Conflict => "conflict",
        }
    }

    /// For people.
    pub fn text(self) -> &'static str {
        match self {
            Self::Programmed => "programmed",
            Self::WaitingForInterface => "waiting for interface",
            Self::WaitingForNamespace => "waiting for namespace",
            Self::WaitingForAddress => "waiting for address",
            Self::Conflict => "conflict",
        }
    }
}

/// One item of `/endpoints`: an endpoint of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// `Pod` or `WorkloadEndpoint`.
    pub kind: String,
    /// All addresses of the object.
    pub addresses: Vec<IpAddr>,
    /// State; the worst of its addresses.
    pub state: EndpointState,
    /// Why it is not programmed.
    pub reason: Option<String>,
    /// Host-side interface that it is bound to.
    pub interface: Option<String>,
    /// Hardware address of the pod's side.
    pub mac: Option<String>,
    /// Policies that select it for ingress, in order.
    pub ingress_policies: Vec<String>,
    /// Policies that select it for egress, in order.
    pub egress_policies: Vec<String>,
}

/// One item of `/policies`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    /// `NetworkPolicy` or `ClusterNetworkPolicy`.
    pub kind: String,
    /// Namespace; empty for a cluster-wide one.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Tier.
    pub tier: String,
    /// Order in the tier; lower first.
    pub order: i32,
    /// Rules for ingress; nothing when it does not apply to ingress.
    pub ingress_rules: Option<usize>,
    /// Rules for egress; nothing when it does not apply to egress.
    pub egress_rules: Option<usize>,
    /// Endpoints that it selects, in the whole cluster.
    pub selected: usize,
    /// Endpoints of this node that it selects.
    pub selected_here: usize,
    /// Why the object could not be read whole: what is in force is a closed stand-in for it.
    pub invalid: Option<String>,
}

/// One item of `/classes`: peers that no policy of this node tells apart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Class {
    /// Number; it differs from run to run.
    pub id: u32,
    /// Single addresses.
    pub addresses: Vec<IpAddr>,
    /// Blocks.
    pub blocks: Vec<String>,
}

/// One item of `/denied`: packets of one flow that were dropped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Denied {
    /// Seconds since 1970 of the last packet.
    pub at: u64,
    /// Logged packets of this flow since it entered the list.
    pub packets: u64,
    /// Why: `policy`, `unknown`, `spoofed`, ...
    pub reason: String,
    /// Whether it passed all the same, since its node or endpoint is audited.
    pub audited: bool,
    /// Whether it passed all the same, since enforcement is open for its node or endpoint for a while.
    #[serde(default)]
    pub bypassed: bool,
    /// Direction that was judged, where the reason is policy.
    pub direction: Option<String>,
    /// Source address.
    pub source: IpAddr,
    /// Source endpoint.
    pub from: Option<String>,
    /// Destination address.
    pub destination: IpAddr,
    /// Destination endpoint.
    pub to: Option<String>,
    /// Protocol name or number.
    pub protocol: String,
    /// Destination port.
    pub port: Option<u16>,
    /// What decided: tier, policy, rule.
    pub rule: Option<String>,
    /// Host-side interface on which the packet came in.
    pub interface: Option<String>,
}

/// Something that is told to the API server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Published {
    /// `startup-taint`, `node-status` or `denied-events`.
    pub what: String,
    /// How it does.
    pub standing: Standing,
    /// In words, with what to do if that is needed.
    pub detail: String,
}
