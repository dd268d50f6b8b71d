//! Break glass, as data: for whom an operator has opened enforcement of this node, until when, and why. Pure but for
//! reading and writing two files of the state directory: the bypasses, and who has which address here, so that pods
//! can be named while no agent runs.
//!
//! The kernel ends each by itself. Here they are kept so that tables that are made anew, by an agent that starts or
//! after a repair, open for the time that is left, and so that new pods of what is open are open too.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use smol_str::SmolStr;
use towpath_runtime::file;

use super::report;
use crate::render::Bypassed;

/// Name of the file with the bypasses.
pub(crate) const BYPASSES: &str = "bypass.json";
/// Name of the file that tells who has which address here.
pub(crate) const ADDRESSES: &str = "addresses.json";
/// Longest time of a bypass.
pub(crate) const MOST_TIME: Duration = Duration::from_hours(24);
/// Bypasses at once.
const MOST_BYPASSES: usize = 64;
/// Characters of a reason.
const MOST_REASON: usize = 200;
/// Bytes of a name in a scope: more than Kubernetes allows.
const MOST_NAME: usize = 253;
/// Bytes of a file that is read back.
const MOST_BYTES: u64 = 4 << 20;

/// What is opened.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase", deny_unknown_fields)]
pub enum BypassScope {
    /// All pods of this node. Those that no agent has seen yet can send nothing all the same: their sources are not known.
    Node,
    /// All pods of a namespace on this node.
    Namespace {
        /// Its name.
        namespace: String,
    },
    /// One pod.
    Pod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// One address, whoever has it.
    Address {
        /// The address.
        address: IpAddr,
    },
}

impl BypassScope {
    /// All kinds, for labels.
    pub(super) const KINDS: [&'static str; 4] = ["node", "namespace", "pod", "address"];

    /// Its kind.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Namespace { .. } => "namespace",
            Self::Pod { .. } => "pod",
            Self::Address { .. } => "address",
        }
    }

    /// Whether it names pods, so that their addresses must be known.
    fn names_pods(&self) -> bool {
        matches!(self, Self::Namespace { .. } | Self::Pod { .. })
    }

    /// Whether it is about an address and its owner.
    fn has(&self, address: IpAddr, owner: &Owner) -> bool {
        match self {
            Self::Node => false,
            Self::Namespace { namespace } => owner.namespace == namespace,
            Self::Pod { namespace, name } => owner.namespace == namespace && owner.name == name,
            Self::Address { address: wanted } => *wanted == address,
        }
    }
}

impl fmt::Display for BypassScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node => f.write_str("this node"),
            Self::Namespace { namespace } => write!(f, "namespace {namespace}"),
            Self::Pod { namespace, name } => write!(f, "pod {namespace}/{name}"),
            Self::Address { address } => write!(f, "address {address}"),
        }
    }
}

/// What an operator wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Opening {
    /// What is to be opened.
    pub(crate) scope: BypassScope,
    /// For how long: 1 to 86,400.
    pub(crate) seconds: u64,
    /// Why.
    pub(crate) reason: String,
}

impl Opening {
    /// Says what is wrong with it.
    pub(crate) fn check(&self) -> Result<(), String> {
        let is_name = |name: &str| {
            (1..=MOST_NAME).contains(&name.len()) && name.chars().all(|c| c.is_ascii_graphic())
        };
        if !(1..=MOST_TIME.as_secs()).contains(&self.seconds) {
            return Err("the time must be between 1 s and 24 h".to_owned());
        }
        if self.reason.trim().is_empty() {
            return Err("a reason is needed".to_owned());
        }
        if self.reason.chars().count() > MOST_REASON || self.reason.chars().any(char::is_control) {
            return Err(format!(
                "the reason must have at most {MOST_REASON} characters, on one line"
            ));
        }
        let are_names_good = match &self.scope {
            BypassScope::Node | BypassScope::Address { .. } => true,
            BypassScope::Namespace { namespace } => is_name(namespace),
            BypassScope::Pod { namespace, name } => is_name(namespace) && is_name(name),
        };
        if are_names_good {
            Ok(())
        } else {
            Err(format!(
                "{:?} is no name of an object",
                self.scope.to_string()
            ))
        }
    }
}

/// Who has an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Owner {
    pub(crate) namespace: SmolStr,
    pub(crate) name: SmolStr,
}

/// Who has which address on this node.
pub(crate) type Book = BTreeMap<IpAddr, Owner>;

/// Both clocks at one moment: files outlive a boot and have the time of day, a kernel's timeout does not.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    pub(crate) now: Instant,
    /// Seconds since 1970.
    pub(crate) wall: u64,
}

impl Clock {
    /// Now.
    pub(crate) fn read() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            now: Instant::now(),
            wall: since.map_or(0, |since| since.as_secs()),
        }
    }
}

/// Something that is open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Bypass {
    pub(crate) scope: BypassScope,
    pub(crate) reason: String,
    /// Seconds since 1970.
    pub(crate) begun: u64,
    /// Seconds since 1970.
    pub(crate) until: u64,
}

impl Bypass {
    /// Itself, by a clock that may have been set back since it began. Then it begins anew, once: else every start
    /// before its old end would give it the whole time again.
    fn counted_by(self, wall: u64) -> Self {
        if self.begun <= wall {
            return self;
        }
        let whole = self.until.saturating_sub(self.begun);
        Self {
            begun: wall,
            until: wall.saturating_add(whole),
            ..self
        }
    }

    /// What is left of it. A clock that was set back does not make it longer than it was meant to be.
    fn left(&self, wall: u64) -> Duration {
        let left = self.until.saturating_sub(wall);
        let whole = self.until.saturating_sub(self.begun);
        Duration::from_secs(left.min(whole)).min(MOST_TIME)
    }
}

/// Everything that is open, with the moment at which each ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bypasses(Vec<(Bypass, Instant)>);

impl Bypasses {
    /// Whether nothing is open.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is open.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Bypass> {
        self.0.iter().map(|(bypass, _)| bypass)
    }

    /// Opens something; what was open with the same scope is replaced.
    pub(crate) fn open(&mut self, opening: Opening, clock: Clock) -> Result<&Bypass, String> {
        opening.check()?;
        let Opening {
            scope,
            seconds,
            reason,
        } = opening;
        self.0.retain(|(known, _)| known.scope != scope);
        if self.0.len() >= MOST_BYPASSES {
            return Err(format!(
                "{MOST_BYPASSES} things are open already; open a namespace or the node instead"
            ));
        }
        let bypass = Bypass {
            scope,
            reason: reason.trim().to_owned(),
            begun: clock.wall,
            until: clock.wall.saturating_add(seconds),
        };
        self.add(bypass, clock);
        self.iter().last().ok_or_else(String::new)
    }

    fn add(&mut self, bypass: Bypass, clock: Clock) {
        let ends = clock.now + bypass.left(clock.wall);
        self.0.push((bypass, ends));
    }

    /// Closes one scope, or all; gives what was open.
    pub(crate) fn close(&mut self, scope: Option<&BypassScope>) -> Vec<Bypass> {
        self.take(|bypass, _| scope.is_none_or(|scope| bypass.scope == *scope))
    }

    /// Removes what is over.
    pub(crate) fn expire(&mut self, now: Instant) -> Vec<Bypass> {
        self.take(|_, ends| ends <= now)
    }

    fn take(&mut self, is_gone: impl Fn(&Bypass, Instant) -> bool) -> Vec<Bypass> {
        let gone = self
            .0
            .extract_if(.., |(bypass, ends)| is_gone(bypass, *ends));
        gone.map(|(bypass, _)| bypass).collect()
    }

    /// Whether pods must be known to say what is open.
    pub(crate) fn name_pods(&self) -> bool {
        self.iter().any(|bypass| bypass.scope.names_pods())
    }

    /// What the kernel should hold. Of two that open one address, the later end counts.
    pub(crate) fn bypassed(&self, book: &Book) -> Bypassed {
        let mut bypassed = Bypassed::default();
        for (bypass, ends) in &self.0 {
            match &bypass.scope {
                BypassScope::Node => bypassed.node = bypassed.node.max(Some(*ends)),
                BypassScope::Address { address } => bypassed.open(*address, *ends),
                scope => {
                    for (address, owner) in book {
                        if scope.has(*address, owner) {
                            bypassed.open(*address, *ends);
                        }
                    }
                }
            }
        }
        bypassed
    }

    /// For people and programs.
    pub(crate) fn report(&self, book: &Book, now: Instant) -> Vec<report::Bypass> {
        let one = |(bypass, ends): &(Bypass, Instant)| report::Bypass {
            scope: bypass.scope.clone(),
            reason: bypass.reason.clone(),
            begun: bypass.begun,
            until: bypass.until,
            seconds_left: ends.saturating_duration_since(now).as_secs(),
            addresses: match &bypass.scope {
                BypassScope::Address { address } => vec![*address],
                scope => book
                    .iter()
                    .filter(|(address, owner)| scope.has(**address, owner))
                    .map(|(address, _)| *address)
                    .collect(),
            },
        };
        self.0.iter().map(one).collect()
    }

    /// Reads the file; one that is not there is nothing. To be stored again: see [`Bypass::counted_by`].
    pub(crate) fn load(directory: &Path, clock: Clock) -> io::Result<Self> {
        let bypasses: Vec<Bypass> = read(&directory.join(BYPASSES))?.unwrap_or_default();
        let mut loaded = Self::default();
        for bypass in bypasses.into_iter().take(MOST_BYPASSES) {
            loaded.add(bypass.counted_by(clock.wall), clock);
        }
        Ok(loaded)
    }

    /// Replaces the file, or removes it when nothing is open.
    pub(crate) fn store(&self, directory: &Path) -> io::Result<()> {
        let path = directory.join(BYPASSES);
        if self.is_empty() {
            return file::remove(&path);
        }
        let bypasses: Vec<&Bypass> = self.iter().collect();
        write(&path, &bypasses)
    }
}

/// What it means that the file could not be written: the old one stands, whatever it says.
pub(crate) fn unnoted(directory: &Path, error: &io::Error) -> String {
    let file = directory.join(BYPASSES);
    format!(
        "cannot note what is bypassed in {}, so an agent that starts goes by what it says: {error}",
        file.display()
    )
}

/// Reads who has which address; empty when nobody wrote it.
pub(crate) fn load_book(directory: &Path) -> io::Result<Book> {
    Ok(read(&directory.join(ADDRESSES))?.unwrap_or_default())
}

/// Writes who has which address.
pub(crate) fn store_book(directory: &Path, book: &Book) -> io::Result<()> {
    write(&directory.join(ADDRESSES), book)
}

fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> io::Result<Option<T>> {
    let file = match fs::File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut text = Vec::new();
    // What is longer ends in the middle, which is no JSON.
    file.take(MOST_BYTES).read_to_end(&mut text)?;
    serde_json::from_slice(&text).map(Some).map_err(Into::into)
}

fn write<T: Serialize + ?Sized>(path: &Path, content: &T) -> io::Result<()> {
    let text = serde_json::to_vec_pretty(content)?;
    file::replace(path, 0o600, |file| file.write_all(&text))
}

#[cfg(test)]
mod tests;
