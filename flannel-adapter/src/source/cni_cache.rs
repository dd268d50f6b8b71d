//! Results of CNI plugins that the container runtime keeps: who a pod is and which interface it has, in one file each.
//! A file is written after the whole chain succeeded, so not for a pod that is being plugged in.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;
use smol_str::SmolStr;
use towpath_core::model::MacAddress;
use tracing::debug;

use super::watched::{Happened, WatchedFolder};
use super::{Delta, EndpointSource, Identity, InterfaceRef, Observation, SourceError, SourceName};
use crate::fault::Fault;

/// Where containerd keeps them unless told otherwise.
pub const DEFAULT_FOLDER: &str = "/var/lib/cni/results";

/// A result is a few kilobytes; larger ones are not read.
const MOST_BYTES: u64 = 1024 * 1024;
/// Files that are read. A node has some hundred pods, with a file for each interface.
const MOST_FILES: usize = 8_192;
/// Addresses kept of one result.
const MOST_ADDRESSES: usize = 256;

/// Reads one file. `name` is that of the file; what is no kept result is a fault, what is none of a pod is `None`.
pub fn read(name: &str, text: &[u8]) -> Result<Option<Observation>, Fault> {
    let place = format!("CNI result {name}");
    let broken = |found: &str| {
        let wanted = "a result that the container runtime kept; it goes when the pod goes";
        Fault::malformed(&place, "the file", found, wanted)
    };
    let cached: Cached = serde_json::from_slice(text).map_err(|error| {
        let at = format!("broken at line {} column {}", error.line(), error.column());
        broken(&at)
    })?;
    if cached.kind != "cniCacheV1" {
        return Err(broken(&cached.kind));
    }
    let Some(identity) = cached.identity() else {
        return Ok(None);
    };
    let Some(result) = cached.result else {
        return Ok(None);
    };
    let (interface, pod_side) = result.interfaces();
    Ok(Some(Observation {
        key: name.into(),
        interface: interface.map(InterfaceRef::Name),
        addresses: result.addresses(),
        mac: pod_side.and_then(|side| side.mac.as_ref()?.parse::<MacAddress>().ok()),
        identity: Some(identity),
        ..Observation::default()
    }))
}

#[derive(Deserialize)]
struct Cached {
    #[serde(default)]
    kind: String,
    #[serde(default, rename = "containerId")]
    container_id: SmolStr,
    #[serde(default, rename = "cniArgs")]
    arguments: Vec<(String, SmolStr)>,
    result: Option<Kept>,
}

/// A result of CNI 0.3.0 to 1.1, or of 0.1 and 0.2, which know addresses only.
#[derive(Deserialize)]
struct Kept {
    #[serde(default)]
    interfaces: Vec<KeptInterface>,
    #[serde(default)]
    ips: Vec<KeptAddress>,
    ip4: Option<OldAddress>,
    ip6: Option<OldAddress>,
}

#[derive(Deserialize)]
struct KeptInterface {
    #[serde(default)]
    name: SmolStr,
    mac: Option<String>,
    #[serde(default)]
    sandbox: String,
}

#[derive(Deserialize)]
struct KeptAddress {
    address: String,
    interface: Option<i64>,
}

#[derive(Deserialize)]
struct OldAddress {
    ip: String,
}

impl Cached {
    /// The pod, from the arguments that kubelet's runtime gives. Namespace and name are both there, or it is no pod.
    fn identity(&self) -> Option<Identity> {
        let argument = |name: &str| {
            let found = self.arguments.iter().find(|(key, _)| key == name);
            found
                .map(|(_, value)| value.clone())
                .filter(|value| !value.is_empty())
        };
        Some(Identity::Pod {
            namespace: argument("K8S_POD_NAMESPACE")?,
            name: argument("K8S_POD_NAME")?,
            uid: argument("K8S_POD_UID"),
            sandbox: Some(self.container_id.clone()).filter(|id| !id.is_empty()),
        })
    }
}

impl Kept {
    /// The host's interface and the pod's. The pod's is the first one in a sandbox; the host's end stands right before it, since
    /// plugins list bridge, host's end and pod's end, and those of later plugins follow.
    fn interfaces(&self) -> (Option<SmolStr>, Option<&KeptInterface>) {
        let inside = self
            .interfaces
            .iter()
            .position(|interface| !interface.sandbox.is_empty());
        let host = match inside {
            Some(inside) => self.interfaces.get(..inside).and_then(<[_]>::last),
            None => self.interfaces.first(),
        };
        let host = host
            .map(|host| host.name.clone())
            .filter(|name| !name.is_empty());
        (host, inside.and_then(|inside| self.interfaces.get(inside)))
    }

    /// The addresses of the pod: those of its interface, and those of no interface.
    fn addresses(&self) -> Vec<IpAddr> {
        let is_in_sandbox = |index: i64| {
            let interface = usize::try_from(index)
                .ok()
                .and_then(|index| self.interfaces.get(index));
            interface.is_some_and(|interface| !interface.sandbox.is_empty())
        };
        let of_pod = self
            .ips
            .iter()
            .filter(|ip| ip.interface.is_none_or(is_in_sandbox));
        let old = self.ip4.iter().chain(&self.ip6).map(|old| old.ip.as_str());
        let mut addresses: Vec<IpAddr> = of_pod
            .map(|ip| ip.address.as_str())
            .chain(old)
            .filter_map(|text| Some(text.parse::<IpNet>().ok()?.addr()))
            .take(MOST_ADDRESSES)
            .collect();
        addresses.sort_unstable();
        addresses.dedup();
        addresses
    }
}

/// The folder of kept results.
#[derive(Debug)]
pub struct CniCacheSource {
    folder: WatchedFolder,
    faults: BTreeMap<SmolStr, Fault>,
}

impl CniCacheSource {
    /// Reads `folder`, which need not be there yet.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: WatchedFolder::new(folder.into()),
            faults: BTreeMap::new(),
        }
    }

    /// Files that cannot be read.
    pub fn faults(&self) -> impl Iterator<Item = &Fault> {
        self.faults.values()
    }

    /// What a file says now; nothing if it is gone or unreadable.
    fn look(&mut self, path: &Path) -> Option<(SmolStr, Option<Observation>)> {
        let name = SmolStr::new(path.file_name()?.to_str()?);
        self.faults.remove(&name);
        let seen = match bytes(path) {
            Some(text) => read(&name, &text).unwrap_or_else(|fault| {
                // It may be half written; its end is another event.
                debug!(%fault, "a kept CNI result cannot be read");
                if self.faults.len() < MOST_FILES {
                    self.faults.insert(name.clone(), fault);
                }
                None
            }),
            None => None,
        };
        Some((name, seen))
    }
}

/// Content of a plain file that is not too large.
fn bytes(path: &Path) -> Option<Vec<u8>> {
    let file = fs::File::open(path).ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut text = Vec::new();
    file.take(MOST_BYTES).read_to_end(&mut text).ok()?;
    Some(text)
}

impl EndpointSource for CniCacheSource {
    fn name(&self) -> SourceName {
        SourceName::CniCache
    }

    fn snapshot(&mut self) -> Result<Vec<Observation>, SourceError> {
        self.folder.open()?;
        self.faults.clear();
        let entries = match fs::read_dir(self.folder.path()) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => {
                return Err(SourceError::Read {
                    path: self.folder.path().to_owned(),
                    source,
                });
            }
        };
        let paths: Vec<PathBuf> = entries
            .flatten()
            .take(MOST_FILES)
            .map(|entry| entry.path())
            .collect();
        Ok(paths.iter().filter_map(|path| self.look(path)?.1).collect())
    }

    fn wait(&mut self, timeout: Duration) -> Result<Vec<Delta>, SourceError> {
        let paths = match self.folder.wait(timeout) {
            Happened::Nothing => return Ok(Vec::new()),
            Happened::Lagged => return Ok(vec![Delta::Lagged]),
            Happened::Paths(paths) => paths,
        };
        let looked = paths.iter().filter_map(|path| self.look(path));
        let deltas = looked.map(|(name, seen)| seen.map_or(Delta::Gone(name), Delta::seen));
        Ok(deltas.collect())
    }
}
