//! Who owns which interface and which address on this node: many sources, one trait.
//!
//! A source tells what it has seen as [`Observation`]s, each under a key of its own, and what changed as [`Delta`]s. It
//! decides nothing: the [`crate::merger`] puts the observations together. A new kind of interface is a new module here and
//! a row in [`SourceName`].

pub mod cni_cache;
pub mod fdb;
pub mod fixed;
pub mod names;
pub mod netlink;
pub mod routes;
mod watched;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::ops::ControlFlow;
use std::time::Duration;

use smol_str::SmolStr;
use towpath_core::model::MacAddress;

/// A kind of source. Each has a rank: where two tell of the same, the higher one counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SourceName {
    /// The operator.
    Static,
    /// The chained CNI plugin, while a pod is plugged in.
    Cni,
    /// The container runtime, over its resource interface.
    Nri,
    /// Results that the container runtime keeps of CNI plugins.
    CniCache,
    /// The kernel's links and addresses.
    Netlink,
    /// Beginnings of the names of interfaces.
    Names,
    /// Routes to one address.
    Routes,
    /// What bridges have learnt, for taps.
    Fdb,
}

impl SourceName {
    /// All of them, highest rank first.
    pub const ALL: [Self; 8] = [
        Self::Static,
        Self::Cni,
        Self::Nri,
        Self::CniCache,
        Self::Netlink,
        Self::Names,
        Self::Routes,
        Self::Fdb,
    ];

    /// How much it counts.
    pub fn rank(self) -> u8 {
        match self {
            Self::Static => 110,
            Self::Cni => 100,
            Self::Nri => 90,
            Self::CniCache => 60,
            Self::Netlink => 50,
            Self::Names => 40,
            Self::Routes => 30,
            Self::Fdb => 20,
        }
    }

    /// Its name in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Static => "static",
            Self::Cni => "cni",
            Self::Nri => "nri",
            Self::CniCache => "cni-cache",
            Self::Netlink => "netlink",
            Self::Names => "names",
            Self::Routes => "routes",
            Self::Fdb => "fdb",
        }
    }
}

impl fmt::Display for SourceName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// What kind of interface it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum InterfaceKind {
    /// One end of a pair; the other is in the pod.
    Veth,
    /// A virtual machine's.
    Tap,
    /// Anything else, such as the host's own.
    Host,
}

/// What the kernel says of an interface of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceFacts {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: SmolStr,
    /// Its kind.
    pub kind: InterfaceKind,
    /// Name of the bridge that it is a port of.
    pub bridge: Option<SmolStr>,
    /// Whether the addresses behind it could be looked at. If so, an address that is not there is not there.
    pub is_seen_through: bool,
}

/// How an observation names an interface of this host.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum InterfaceRef {
    /// By its number.
    Index(u32),
    /// By its name.
    Name(SmolStr),
}

/// Who lives behind an interface.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Identity {
    /// A pod.
    Pod {
        /// Its namespace.
        namespace: SmolStr,
        /// Its name.
        name: SmolStr,
        /// Its uid, where it is known. Two pods of one name one after the other differ in it.
        uid: Option<SmolStr>,
        /// Id of its sandbox at the container runtime.
        sandbox: Option<SmolStr>,
    },
    /// A virtual machine.
    Machine {
        /// Its id at whoever runs it.
        id: SmolStr,
    },
    /// The host itself.
    Host {
        /// Name of the host endpoint.
        name: SmolStr,
    },
}

impl Identity {
    /// Whether both can mean the same: a uid that one of them does not know is no difference, nor is a sandbox.
    pub fn agrees_with(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::Pod {
                    namespace,
                    name,
                    uid,
                    ..
                },
                Self::Pod {
                    namespace: other_namespace,
                    name: other_name,
                    uid: other_uid,
                    ..
                },
            ) => {
                namespace == other_namespace
                    && name == other_name
                    && (uid.is_none() || other_uid.is_none() || uid == other_uid)
            }
            _ => self == other,
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod {
                namespace, name, ..
            } => write!(formatter, "pod {namespace}/{name}"),
            Self::Machine { id } => write!(formatter, "machine {id}"),
            Self::Host { name } => write!(formatter, "host endpoint {name}"),
        }
    }
}

/// What one source has seen of one thing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observation {
    /// What it is an observation of, in the words of its source; a later one of the same key replaces it.
    pub key: SmolStr,
    /// The interface.
    pub interface: Option<InterfaceRef>,
    /// What the kernel says of the interface; from netlink only.
    pub facts: Option<InterfaceFacts>,
    /// Addresses behind the interface, or of the identity where no interface is named.
    pub addresses: Vec<IpAddr>,
    /// Hardware address behind the interface.
    pub mac: Option<MacAddress>,
    /// Who it is.
    pub identity: Option<Identity>,
    /// Which provider makes such interfaces, such as `calico`.
    pub provider: Option<SmolStr>,
}

/// A change of what a source sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delta {
    /// It sees this now.
    Seen(Box<Observation>),
    /// It does not see that any more.
    Gone(SmolStr),
    /// It has missed something; ask for a snapshot.
    Lagged,
}

impl Delta {
    /// That a source sees this now.
    pub fn seen(observation: Observation) -> Self {
        Self::Seen(Box::new(observation))
    }
}

/// Why a source cannot tell.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The kernel cannot be asked.
    #[error(transparent)]
    Netlink(#[from] towpath_dataplane::link::NetlinkError),
    /// A folder cannot be watched.
    #[error("cannot watch {path}")]
    Watch {
        /// The folder.
        path: std::path::PathBuf,
        /// Why not.
        source: notify::Error,
    },
    /// A folder or file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Which.
        path: std::path::PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

/// Something that sees endpoints.
///
/// It is not asynchronous: the sources are netlink sockets and inotify, and the parts of the agent are threads. One thread
/// asks a source for a snapshot, then waits for its changes; [`Delta::Lagged`] means a new snapshot.
pub trait EndpointSource: Send {
    /// Which kind it is.
    fn name(&self) -> SourceName;

    /// Everything that it sees now.
    fn snapshot(&mut self) -> Result<Vec<Observation>, SourceError>;

    /// Waits for changes, at most so long. None is no fault.
    fn wait(&mut self, timeout: Duration) -> Result<Vec<Delta>, SourceError>;
}

/// What changed from one list of observations to another.
pub(crate) fn difference(before: &[Observation], now: &[Observation]) -> Vec<Delta> {
    let by_key = |list| -> BTreeMap<&SmolStr, &Observation> {
        let list: &[Observation] = list;
        list.iter().map(|seen| (&seen.key, seen)).collect()
    };
    let (before, now) = (by_key(before), by_key(now));
    let gone = before.keys().filter(|key| !now.contains_key(*key));
    let mut deltas: Vec<Delta> = gone.map(|key| Delta::Gone((*key).clone())).collect();
    let news = now
        .iter()
        .filter(|(key, seen)| before.get(*key) != Some(*seen));
    deltas.extend(news.map(|(_, seen)| Delta::seen((*seen).clone())));
    deltas
}

/// What a thread that follows a source tells.
#[derive(Debug)]
pub enum News {
    /// This is all that the source sees.
    Snapshot(Vec<Observation>),
    /// This changed.
    Changes(Vec<Delta>),
    /// The source cannot tell for now; what it told counts until it can.
    Failed(SourceError),
}

/// Follows a source until `tell` says that nobody listens: a snapshot, then changes, and after a failure or a gap another
/// snapshot. `tell` is called at least every `interval`, with no changes if there are none.
pub fn feed(
    source: &mut dyn EndpointSource,
    interval: Duration,
    mut tell: impl FnMut(News) -> ControlFlow<()>,
) {
    let mut is_whole = false;
    loop {
        let told = if is_whole {
            source.wait(interval).map(News::Changes)
        } else {
            source.snapshot().map(News::Snapshot)
        };
        let news = match told {
            Ok(News::Changes(deltas)) if deltas.contains(&Delta::Lagged) => {
                is_whole = false;
                News::Changes(Vec::new())
            }
            Ok(news) => {
                is_whole = true;
                news
            }
            Err(error) => {
                is_whole = false;
                if tell(News::Failed(error)).is_break() {
                    return;
                }
                std::thread::sleep(interval);
                continue;
            }
        };
        if tell(news).is_break() {
            return;
        }
    }
}
