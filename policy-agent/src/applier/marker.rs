//! The marker on disk by which a start knows that an earlier run has enforced policy, and where.
//!
//! Only what closes pods as a whole is kept, since it hardly changes: names of single ports and addresses of nodes
//! would be written with each pod and node, and say nothing after a reboot.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use towpath_runtime::file;
use tracing::{info, warn};

use super::PodPlaces;

/// Name of the file in the state directory.
pub const MARKER: &str = "enforced.json";
/// Raised when an older version would misunderstand the file.
const VERSION: u32 = 1;

/// The file, and what stands in it.
#[derive(Debug)]
pub struct Marker {
    path: PathBuf,
    written: Option<PodPlaces>,
    /// Why the last attempt to write failed.
    failure: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Content {
    version: u32,
    pod_networks: BTreeSet<String>,
    pod_interfaces: BTreeSet<String>,
}

impl Marker {
    /// The marker of a state directory, and where the pods of an earlier run were. A marker that cannot be understood
    /// is one nevertheless: it says that policy was enforced, and the caller closes what it knows itself.
    pub fn open(state_directory: &Path) -> io::Result<(Self, Option<PodPlaces>)> {
        let path = state_directory.join(MARKER);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok((Self::new(path, None), None));
            }
            Err(error) => return Err(error),
        };
        let written = parse(&text);
        if written.is_none() {
            let path = path.display();
            warn!(%path, "cannot understand what an earlier run left; closing what is configured");
        }
        let places = written.clone().unwrap_or_default();
        Ok((Self::new(path, written), Some(places)))
    }

    fn new(path: PathBuf, written: Option<PodPlaces>) -> Self {
        Self {
            path,
            written,
            failure: None,
        }
    }

    /// Notes that policy is enforced. Does nothing when that is known; a failure is tried again with the next call.
    /// Returns whether it is noted, or why not, when that is news: many commits on a full disk are one line in the log.
    pub fn note(&mut self, places: PodPlaces) -> Option<Result<(), String>> {
        let mut failure = None;
        if self.written.as_ref() != Some(&places) {
            match self.write(&places) {
                Ok(()) => self.written = Some(places),
                Err(error) => {
                    failure = Some(format!("cannot write {}: {error}", self.path.display()));
                }
            }
        }
        if failure == self.failure {
            return None;
        }
        self.failure.clone_from(&failure);
        let Some(failure) = failure else {
            info!("what could not be noted before is noted: policy is enforced");
            return Some(Ok(()));
        };
        warn!(
            failure,
            "cannot note that policy is enforced: after a reboot pods may be open until the first commit"
        );
        Some(Err(failure))
    }

    /// Whether the last attempt to write failed.
    pub fn is_failing(&self) -> bool {
        self.failure.is_some()
    }

    /// Replaces the file as a whole.
    fn write(&self, places: &PodPlaces) -> io::Result<()> {
        let content = Content {
            version: VERSION,
            pod_networks: places.networks.iter().map(IpNet::to_string).collect(),
            pod_interfaces: places
                .interfaces
                .iter()
                .map(|name| name.as_str().to_owned())
                .collect(),
        };
        let text = serde_json::to_vec_pretty(&content)?;
        file::replace(&self.path, 0o600, |file| file.write_all(&text))
    }
}

fn parse(text: &[u8]) -> Option<PodPlaces> {
    let content: Content = serde_json::from_slice(text).ok()?;
    let places = PodPlaces {
        networks: parse_all(&content.pod_networks)?,
        interfaces: parse_all(&content.pod_interfaces)?,
    };
    (content.version == VERSION).then_some(places)
}

fn parse_all<T: FromStr + Ord>(texts: &BTreeSet<String>) -> Option<BTreeSet<T>> {
    texts.iter().map(|text| text.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn places() -> PodPlaces {
        PodPlaces {
            networks: ["10.244.1.0/24", "fd00:1::/64"]
                .map(|network| network.parse().unwrap())
                .into(),
            interfaces: ["cni0", "veth1"].map(|name| name.parse().unwrap()).into(),
        }
    }

    #[test]
    fn what_was_noted_is_read_again_and_only_by_its_owner() {
        let directory = tempfile::tempdir().unwrap();
        let (mut first, before) = Marker::open(directory.path()).unwrap();
        // What a crash left.
        fs::write(file::unfinished(&directory.path().join(MARKER)), "{").unwrap();

        first.note(places());
        let (_, after) = Marker::open(directory.path()).unwrap();

        assert_eq!((before, after), (None, Some(places())));
        let metadata = fs::metadata(directory.path().join(MARKER)).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o7777, 0o600);
        let names: Vec<_> = fs::read_dir(directory.path()).unwrap().collect();
        assert_eq!(names.len(), 1, "{names:?}");
    }

    #[test]
    fn the_same_is_not_written_twice() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(MARKER);
        let (mut marker, _) = Marker::open(directory.path()).unwrap();
        marker.note(places());
        fs::remove_file(&path).unwrap();

        marker.note(places());
        assert!(!path.exists());
        marker.note(PodPlaces::default());

        assert!(path.exists());
    }

    #[test]
    fn a_marker_of_another_version_or_a_damaged_one_is_still_a_marker() {
        let directory = tempfile::tempdir().unwrap();
        for text in [
            "",
            "{",
            r#"{"version": 2, "podNetworks": [], "podInterfaces": ["cni0"]}"#,
            r#"{"version": 1, "podNetworks": [], "podInterfaces": ["a/b"]}"#,
        ] {
            fs::write(directory.path().join(MARKER), text).unwrap();

            let (_, places) = Marker::open(directory.path()).unwrap();

            assert_eq!(places, Some(PodPlaces::default()), "{text}");
        }
    }

    #[test]
    fn a_failure_is_tried_again() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        let (mut marker, _) = Marker::open(&state).unwrap();

        let failure = marker.note(places()).unwrap().unwrap_err();
        assert!(failure.contains(MARKER), "{failure}");
        assert!(marker.is_failing() && marker.note(places()).is_none());
        fs::create_dir(&state).unwrap();
        assert_eq!(marker.note(places()), Some(Ok(())));

        assert_eq!(Marker::open(&state).unwrap().1, Some(places()));
    }
}
