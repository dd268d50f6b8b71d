//! What was read of this node. Nothing here decides.

use std::collections::BTreeSet;
use std::net::IpAddr;

use flannel_adapter::FlannelFacts;
use flannel_adapter::detect::{ConfList, Detection};
use smol_str::SmolStr;
use towpath_core::model::MacAddress;
use towpath_dataplane::link::BridgeSettings;
use towpath_dataplane::nft::SurveyedTable;

use crate::agent::report::{Bypass, Status};
use crate::cli::cni::InstallationFault;

/// Something that was looked at, or why it could not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Look<T> {
    /// What was seen.
    Seen(T),
    /// Why nothing was seen.
    Unseen(String),
}

impl<T> Look<T> {
    /// What was seen, if anything was.
    pub fn get(&self) -> Option<&T> {
        match self {
            Self::Seen(value) => Some(value),
            Self::Unseen(_) => None,
        }
    }
}

/// Everything that was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// Interfaces.
    pub links: Look<Vec<LinkFacts>>,
    /// Names of the bridges whose ports are pods, whether or not they are there.
    pub pod_bridges: BTreeSet<SmolStr>,
    /// Whether the module `br_netfilter` is there.
    pub has_bridge_netfilter: Look<bool>,
    /// Tables and chains of nftables.
    pub tables: Look<Tables>,
    /// Who carries packets of pods, and what stands in the way.
    pub detection: Look<Detection>,
    /// What Flannel set up.
    pub flannel: Look<Flannel>,
    /// Whether Node objects were read, or why not.
    pub nodes: Look<usize>,
    /// The kernel's release, such as `6.1.0-18-amd64`.
    pub kernel: Look<String>,
    /// First line that `nft --version` prints, if there is one.
    pub nft_program: Option<String>,
    /// Settings of the kernel.
    pub settings: Settings,
    /// The folder of CNI configurations.
    pub cni: Look<Cni>,
    /// The agent of this node, if one answers.
    pub agent: Look<Option<Status>>,
    /// What an agent left on disk, if there is anything.
    pub state: Look<Option<State>>,
}

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkFacts {
    /// Its name.
    pub name: SmolStr,
    /// The kernel's word for its kind.
    pub kind: Option<SmolStr>,
    /// Name of the bridge that it is a port of.
    pub master: Option<SmolStr>,
    /// Its hardware address.
    pub mac: Option<MacAddress>,
    /// Largest packet in bytes.
    pub mtu: u32,
    /// Its addresses, without link-local ones.
    pub addresses: Vec<IpAddr>,
    /// The settings of a bridge.
    pub bridge: Option<BridgeSettings>,
    /// Whether it leaves checksums to hardware, where it says so.
    pub offloads_checksums: Option<bool>,
    /// `rp_filter`, the stricter of its own and the one for all.
    pub reverse_path: Option<u8>,
    /// Whether a default route goes by it.
    pub has_default_route: bool,
}

/// Tables of nftables, those that iptables makes included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// All of them.
    pub tables: Vec<SurveyedTable>,
    /// Base chains at the forward hook whose last rule drops whatever reaches it: family, table and chain.
    pub closing: BTreeSet<(&'static str, SmolStr, SmolStr)>,
    /// Tables that take packets out of connection tracking: family and table.
    pub untracking: BTreeSet<(&'static str, SmolStr)>,
    /// Tables of the old iptables, which nftables does not show.
    pub legacy: Vec<String>,
}

/// What Flannel set up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flannel {
    /// Whether there is any sign of Flannel.
    pub is_there: bool,
    /// What it says, and what does not fit.
    pub facts: FlannelFacts,
    /// Fields that could not be understood.
    pub faults: Vec<String>,
}

/// Settings of the kernel; none where the file is not there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Whether IPv4 packets are forwarded.
    pub forwards_ipv4: Option<bool>,
    /// Whether IPv6 packets are forwarded.
    pub forwards_ipv6: Option<bool>,
    /// Whether the inet hooks see IPv4 frames of every bridge.
    pub all_bridges_ipv4: Option<bool>,
    /// Whether the inet hooks see IPv6 frames of every bridge.
    pub all_bridges_ipv6: Option<bool>,
    /// Entries of connection tracking.
    pub connections: Option<u64>,
    /// Most entries.
    pub most_connections: Option<u64>,
    /// Seconds that an idle TCP connection is remembered.
    pub tcp_seconds: Option<u64>,
}

/// CNI configurations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cni {
    /// The folder.
    pub folder: String,
    /// Its configurations in the order in which runtimes look at them, or why one cannot be read.
    pub files: Vec<(SmolStr, Result<ConfList, String>)>,
    /// Networks for which our plugin lies in a folder of its own.
    pub drop_ins: Vec<SmolStr>,
    /// What is wrong with the plugin that `towpath cni install` put here, if anything is.
    pub fault: Option<InstallationFault>,
}

impl Cni {
    /// The one that the container runtime takes.
    pub fn chosen(&self) -> Option<&ConfList> {
        self.files.iter().find_map(|(_, file)| file.as_ref().ok())
    }

    /// Whether our plugin is in the chain of new pods.
    pub fn is_chained(&self) -> bool {
        self.chosen().is_some_and(|chosen| {
            chosen.plugins.iter().any(|plugin| plugin == "towpath-cni")
                || self.drop_ins.contains(&chosen.name)
        })
    }
}

/// What an agent left on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// The directory.
    pub folder: String,
    /// Whether policy was in force once.
    pub has_enforced: bool,
    /// Seconds since the newest file was written.
    pub seconds_ago: Option<u64>,
    /// For whom enforcement is open for a while, as it was noted.
    pub bypasses: Vec<Bypass>,
}
