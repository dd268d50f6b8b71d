//! The cases as they stand in the YAML files: what is applied, and which probes pass then.

use std::collections::BTreeSet;
use std::str::FromStr;

use anyhow::{Context as _, Error, Result, bail, ensure};
use serde::Deserialize;
use towpath_tests::probe::Protocol;

/// One behaviour of a row.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Case {
    /// The row of the table.
    pub(crate) row: String,
    #[serde(rename = "case")]
    pub(crate) behaviour: String,
    /// The only way between nodes for which it holds; without one, for all.
    #[serde(default)]
    pub(crate) between_nodes: Option<BetweenNodes>,
    pub(crate) steps: Vec<Step>,
}

impl Case {
    /// For messages.
    pub(crate) fn name(&self) -> String {
        format!("{}: {}", self.row, self.behaviour)
    }
}

/// What becomes of packets on their way between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum BetweenNodes {
    /// They travel in a tunnel; those of a node itself have its tunnel's address.
    Tunnel,
    /// They are routed as they are.
    Routes,
}

/// Changes, and what holds after them. All changes of a step come before its probes.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Step {
    /// Manifests, as `kubectl apply --server-side` takes them. They are deleted at the end of the case.
    pub(crate) apply: Vec<String>,
    /// A manifest that the API server must refuse, for this reason.
    pub(crate) refused: Option<Refused>,
    /// Fields that are merged into objects.
    pub(crate) merge: Vec<Merge>,
    /// Paths of objects that are deleted.
    pub(crate) delete: Vec<String>,
    /// Whether programs of others need time to follow; then the probes are asked until they are right.
    pub(crate) settles: bool,
    /// One probe a line.
    pub(crate) probes: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Refused {
    pub(crate) manifest: String,
    /// Words of the answer.
    pub(crate) because: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Merge {
    pub(crate) path: String,
    /// JSON.
    pub(crate) fields: String,
}

/// What a probe speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speech {
    /// By a socket.
    Socket(Protocol),
    /// The first packet of an association, by hand.
    Sctp,
}

/// `FROM TO PROTOCOL/PORT VERDICT [FAMILY]`: who asks whom, and what must come of it. Without a family, in both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Probe {
    /// `namespace/name` of a pod, `node-a`, `node-b`, or `outside`.
    pub(crate) from: String,
    /// The same, or `service:NAME` of namespace x.
    pub(crate) to: String,
    pub(crate) speech: Speech,
    pub(crate) port: u16,
    /// Open: an answer by the pod that was asked, or a refusal, which came from there too. Closed: silence.
    pub(crate) is_open: bool,
    pub(crate) families: Vec<Family>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl FromStr for Probe {
    type Err = Error;

    fn from_str(line: &str) -> Result<Self> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [from, to, speech, verdict, family @ ..] = words.as_slice() else {
            bail!("{line:?} is no probe");
        };
        let (protocol, port) = speech.split_once('/').unwrap_or((speech, "0"));
        let speech = match protocol {
            "tcp" => Speech::Socket(Protocol::Tcp),
            "udp" => Speech::Socket(Protocol::Udp),
            "icmp" => Speech::Socket(Protocol::Icmp),
            "sctp" => Speech::Sctp,
            _ => bail!("{line:?} has no known protocol"),
        };
        let families = match family {
            [] => vec![Family::V4, Family::V6],
            ["ipv4"] => vec![Family::V4],
            ["ipv6"] => vec![Family::V6],
            _ => bail!("{line:?} has no known family"),
        };
        Ok(Self {
            from: (*from).to_owned(),
            to: (*to).to_owned(),
            speech,
            port: port.parse().with_context(|| line.to_owned())?,
            is_open: match *verdict {
                "open" => true,
                "closed" => false,
                _ => bail!("{line:?} has no known verdict"),
            },
            families,
        })
    }
}

/// Reads a table. Each of its rows must have a case, be it one of `elsewhere`, and no case is of another row.
pub(crate) fn read(texts: &[&str], rows: &[&str], elsewhere: &[&str]) -> Result<Vec<Case>> {
    let mut cases: Vec<Case> = Vec::new();
    for text in texts {
        cases.extend(serde_saphyr::from_str::<Vec<Case>>(text)?);
    }
    let found = cases.iter().map(|case| case.row.as_str());
    let found: BTreeSet<&str> = found.chain(elsewhere.iter().copied()).collect();
    let wanted: BTreeSet<&str> = rows.iter().copied().collect();
    ensure!(
        found == wanted,
        "rows without a case, or cases without a row: {:?}",
        found.symmetric_difference(&wanted).collect::<Vec<_>>()
    );
    Ok(cases)
}
