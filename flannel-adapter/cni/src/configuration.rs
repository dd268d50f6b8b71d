//! The plugin's entry of a network configuration, as the runtime hands it over on standard input.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::error::{CniError, Code};
use crate::invocation::{is_container_id, is_interface_name};
use crate::version::Version;

/// Where an agent serves when nobody says otherwise.
const SOCKET: &str = "/run/towpath/towpath.sock";
/// Where what it could not be told is kept.
const QUEUE: &str = "/var/lib/towpath/cni-deletions";
const TIMEOUT_SECONDS: u64 = 8;
/// Runtimes give up soon after.
const MOST_SECONDS: u64 = 10;
/// Namespaces that a list may name.
const MOST_NAMESPACES: usize = 256;
/// Attachments that a GC may name: far more than a node has pods.
const MOST_ATTACHMENTS: usize = 16_384;

/// What happens to a pod while the agent does not answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum FailurePolicy {
    /// It does not start; the kubelet tries again.
    #[default]
    Closed,
    /// It starts. The kernel's rules are as they are.
    Open,
}

/// The configuration, checked.
#[derive(Clone, Debug)]
pub(crate) struct Configuration {
    pub(crate) version: Version,
    pub(crate) network: String,
    pub(crate) socket: PathBuf,
    pub(crate) queue: PathBuf,
    pub(crate) timeout: Duration,
    pub(crate) failure_policy: FailurePolicy,
    pub(crate) wait_exempt_namespaces: Vec<String>,
    pub(crate) previous: Option<Box<RawValue>>,
    /// Attachments that are still in use, of GC; nothing where the runtime does not say.
    pub(crate) valid: Option<Vec<ValidAttachment>>,
}

/// An attachment that is in use.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct ValidAttachment {
    #[serde(rename = "containerID")]
    pub(crate) container: String,
    #[serde(rename = "ifname")]
    pub(crate) interface: String,
}

/// As written. Keys of others are theirs.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    #[serde(default)]
    name: String,
    #[serde(default)]
    socket: Option<PathBuf>,
    #[serde(default)]
    queue: Option<PathBuf>,
    #[serde(default)]
    timeout_seconds: Option<u64>,
    #[serde(default)]
    failure_policy: FailurePolicy,
    #[serde(default)]
    wait_exempt_namespaces: Vec<String>,
    #[serde(default)]
    prev_result: Option<Box<RawValue>>,
    #[serde(rename = "cni.dev/valid-attachments", default)]
    valid_attachments: Attachments,
    /// The name that the specification had at first; some runtimes write both.
    #[serde(rename = "cni.dev/attachments", default)]
    attachments: Attachments,
}

/// A list that may be missing, which is not the same as an empty one. libcni writes null for an empty one.
#[derive(Default)]
struct Attachments(Option<Vec<ValidAttachment>>);

impl<'de> Deserialize<'de> for Attachments {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written: Option<Vec<ValidAttachment>> = Deserialize::deserialize(deserializer)?;
        Ok(Self(Some(written.unwrap_or_default())))
    }
}

/// The version alone: errors are to be in it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Versioned {
    #[serde(default)]
    cni_version: String,
}

/// The version that a configuration is written in.
pub(crate) fn version(input: &[u8]) -> Result<Version, CniError> {
    let Versioned { cni_version } = decode(input)?;
    Version::parse(&cni_version).ok_or_else(|| {
        let known = Version::ALL.map(Version::text).join(", ");
        CniError::new(
            Code::IncompatibleVersion,
            format!("version {cni_version:?} of the CNI specification is not supported"),
            format!("supported are {known}"),
        )
    })
}

impl Configuration {
    /// Reads a configuration of this version.
    pub(crate) fn read(input: &[u8], version: Version) -> Result<Self, CniError> {
        let written: Written = decode(input)?;
        let seconds = written.timeout_seconds.unwrap_or(TIMEOUT_SECONDS);
        if !(1..=MOST_SECONDS).contains(&seconds) {
            let message = format!("timeoutSeconds is {seconds}, not 1 to {MOST_SECONDS}");
            return Err(CniError::configuration(message));
        }
        if written.wait_exempt_namespaces.len() > MOST_NAMESPACES {
            let message = format!("waitExemptNamespaces has more than {MOST_NAMESPACES} names");
            return Err(CniError::configuration(message));
        }
        let socket = written.socket.unwrap_or_else(|| SOCKET.into());
        let queue = written.queue.unwrap_or_else(|| QUEUE.into());
        for (key, path) in [("socket", &socket), ("queue", &queue)] {
            if !path.is_absolute() {
                let message = format!("{key} is no absolute path");
                return Err(CniError::configuration(message));
            }
        }
        let valid = written.valid_attachments.0.or(written.attachments.0);
        check_attachments(valid.as_deref().unwrap_or_default())?;
        // A null is as good as nothing.
        let previous = written
            .prev_result
            .filter(|result| result.get().trim() != "null");
        Ok(Self {
            version,
            network: written.name,
            socket,
            queue,
            timeout: Duration::from_secs(seconds),
            failure_policy: written.failure_policy,
            wait_exempt_namespaces: written.wait_exempt_namespaces,
            previous,
            valid,
        })
    }

    /// Whether pods of a namespace start without waiting. They are as closed as others.
    pub(crate) fn is_exempt(&self, namespace: &str) -> bool {
        self.wait_exempt_namespaces
            .iter()
            .any(|exempt| exempt == namespace)
    }
}

fn check_attachments(valid: &[ValidAttachment]) -> Result<(), CniError> {
    if valid.len() > MOST_ATTACHMENTS {
        let message = format!("cni.dev/valid-attachments has more than {MOST_ATTACHMENTS} entries");
        return Err(CniError::configuration(message));
    }
    let is_good = |entry: &ValidAttachment| {
        is_container_id(&entry.container) && is_interface_name(&entry.interface)
    };
    if valid.iter().all(is_good) {
        return Ok(());
    }
    let message = "cni.dev/valid-attachments has an entry that is no attachment";
    Err(CniError::configuration(message))
}

fn decode<'a, T: Deserialize<'a>>(input: &'a [u8]) -> Result<T, CniError> {
    serde_json::from_slice(input)
        .map_err(|error| CniError::undecodable("the network configuration", &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Configuration, CniError> {
        let version = version(text.as_bytes())?;
        Configuration::read(text.as_bytes(), version)
    }

    #[test]
    fn what_is_not_written_has_a_default() {
        let found =
            read(r#"{"cniVersion":"0.3.1","name":"cbr0","type":"towpath-cni","foreign":{}}"#)
                .unwrap();

        assert_eq!(found.version, Version::V0_3_1);
        assert_eq!(found.network, "cbr0");
        assert_eq!(found.socket, PathBuf::from(SOCKET));
        assert_eq!(found.timeout, Duration::from_secs(8));
        assert_eq!(found.failure_policy, FailurePolicy::Closed);
        assert!(found.previous.is_none() && found.valid.is_none());
    }

    #[test]
    fn faults_have_the_codes_of_the_specification() {
        let deep = format!(
            r#"{{"cniVersion":"1.0.0","name":{}1{}}}"#,
            "[".repeat(100_000),
            "]".repeat(100_000)
        );
        for (text, code) in [
            ("", Code::Undecodable),
            ("[7]", Code::Undecodable),
            (r#"{"cniVersion":7}"#, Code::Undecodable),
            ("{}", Code::IncompatibleVersion),
            (r#"{"cniVersion":"0.2.0"}"#, Code::IncompatibleVersion),
            (r#"{"cniVersion":"2.0.0"}"#, Code::IncompatibleVersion),
            (&deep, Code::Undecodable),
            (
                r#"{"cniVersion":"1.0.0","timeoutSeconds":11}"#,
                Code::InvalidConfiguration,
            ),
            (
                r#"{"cniVersion":"1.0.0","timeoutSeconds":0}"#,
                Code::InvalidConfiguration,
            ),
            (
                r#"{"cniVersion":"1.0.0","timeoutSeconds":-1}"#,
                Code::Undecodable,
            ),
            (
                r#"{"cniVersion":"1.0.0","failurePolicy":"ajar"}"#,
                Code::Undecodable,
            ),
            (
                r#"{"cniVersion":"1.0.0","socket":"here"}"#,
                Code::InvalidConfiguration,
            ),
            (
                r#"{"cniVersion":"1.1.0","cni.dev/valid-attachments":[{"containerID":"../x","ifname":"eth0"}]}"#,
                Code::InvalidConfiguration,
            ),
        ] {
            let error = read(text).unwrap_err();
            let start: String = text.chars().take(60).collect();
            assert_eq!(error.code, code, "{start}: {error:?}");
        }
    }
}
