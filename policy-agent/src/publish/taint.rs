//! The startup taint: keeps pods from a fresh node until its policy is in force (edge case 21).
//!
//! Whoever makes nodes puts it on them. It goes as soon as the node is ready, and again whenever it is back while the
//! node is ready, as on a Node object that was made anew. The source hears of that; nothing is read for it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Serialize, Serializer};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::debug;

use super::standing::{Standing, Teller};
use crate::source::kubernetes::{Backoff, Change, Connection, Failure, OwnNode, random};

/// Shortest and longest wait before another try.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(2));
/// Least time between two removals.
const PAUSE: Duration = Duration::from_secs(1);
/// Who gives the right to it.
const MANIFEST: &str = "deploy/rbac-taint.yaml";

/// Key and effect of a taint. The two are what makes it one; its value does not matter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartupTaint {
    key: String,
    effect: String,
}

/// Why a text is no taint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartupTaintError {
    /// No effect, or one that nobody knows.
    #[error(
        "write KEY:EFFECT with NoSchedule, PreferNoSchedule or NoExecute, like towpath.io/not-ready:NoSchedule"
    )]
    Effect,
    /// The key is none.
    #[error(
        "the key of a taint is a name of at most 63 letters, digits, '-', '_' and '.', like towpath.io/not-ready; it has no value"
    )]
    Key,
}

impl FromStr for StartupTaint {
    type Err = StartupTaintError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (key, effect) = text.split_once(':').ok_or(StartupTaintError::Effect)?;
        if !["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect) {
            return Err(StartupTaintError::Effect);
        }
        let (prefix, name) = key.split_once('/').unwrap_or(("x", key));
        let is_name = |text: &str, most: usize| {
            let is_plain = |c: u8| c.is_ascii_alphanumeric() || b"-_.".contains(&c);
            (1..=most).contains(&text.len()) && text.bytes().all(is_plain)
        };
        if !is_name(prefix, 253) || !is_name(name, 63) {
            return Err(StartupTaintError::Key);
        }
        Ok(Self {
            key: key.to_owned(),
            effect: effect.to_owned(),
        })
    }
}

impl fmt::Display for StartupTaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.key, self.effect)
    }
}

impl Serialize for StartupTaint {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl StartupTaint {
    /// Whether a taint of a node is this one.
    pub(crate) fn is(&self, key: &str, effect: &str) -> bool {
        self.key == key && self.effect == effect
    }

    /// The patch that takes the taint at this place from this Node. Where the list has changed since, or the Node is
    /// another one, a test fails and nothing happens: no other taint is ever lost.
    fn removal(&self, uid: &str, place: usize) -> serde_json::Value {
        let path = |field: &str| format!("/spec/taints/{place}{field}");
        json!([
            { "op": "test", "path": "/metadata/uid", "value": uid },
            { "op": "test", "path": path("/key"), "value": self.key },
            { "op": "test", "path": path("/effect"), "value": self.effect },
            { "op": "remove", "path": path("") },
        ])
    }
}

/// Takes the taint away.
pub(super) struct TaintRemover {
    pub(super) taint: StartupTaint,
    pub(super) node: String,
    pub(super) own: watch::Receiver<Option<OwnNode>>,
    pub(super) ready: watch::Receiver<bool>,
    pub(super) connection: Connection,
    pub(super) teller: Teller,
}

impl TaintRemover {
    /// Works until the graph thread has gone.
    pub(super) async fn run(mut self) {
        let mut retry = Backoff::new(RETRY.0, RETRY.1);
        // The version of the Node that was patched already: the watch has not told of the patch yet.
        let mut patched = None;
        while let Some((node, place)) = self.next(patched).await {
            let failure = match self.remove(&node.uid, place).await {
                Ok(()) => {
                    self.teller
                        .done(&format!("{} was taken from this node", self.taint));
                    patched = Some(node.version);
                    retry.reset();
                    // Somebody who puts it back at once does not make this a race.
                    sleep(PAUSE).await;
                    continue;
                }
                Err(failure) => failure,
            };
            let wait = retry.next(random()).max(failure.retry_after());
            if is_outdated(&failure) {
                debug!(%failure, "the taints of this node have changed meanwhile");
            } else {
                self.teller.failed(&failure, "");
            }
            // Rights do not come by asking often.
            let is_refused = matches!(failure, Failure::Refused { .. });
            sleep(if is_refused {
                wait.max(RETRY.1 / 2)
            } else {
                wait
            })
            .await;
        }
    }

    /// Waits until the node is ready and has the taint; nothing at the end.
    async fn next(&mut self, patched: Option<u64>) -> Option<(OwnNode, usize)> {
        loop {
            let is_ready = *self.ready.borrow_and_update();
            let node = self.own.borrow_and_update().clone();
            match node {
                None => self.wait("the API server has no Node of this name"),
                Some(OwnNode {
                    startup_taint: None,
                    ..
                }) => {
                    let text = format!("{} is not on this node", self.taint);
                    self.teller.stand(Standing::Working, &text);
                }
                Some(node) if patched == Some(node.version) => {}
                Some(
                    node @ OwnNode {
                        startup_taint: Some(place),
                        ..
                    },
                ) if is_ready => return Some((node, place)),
                Some(_) => self.wait("the node is not ready yet, so it keeps its taint"),
            }
            tokio::select! {
                changed = self.ready.changed() => changed.ok()?,
                changed = self.own.changed() => changed.ok()?,
            }
        }
    }

    fn wait(&self, reason: &str) {
        self.teller.stand(Standing::Waiting, reason);
    }

    async fn remove(&self, uid: &str, place: usize) -> Result<(), Failure> {
        let body = self.taint.removal(uid, place).to_string();
        let change = Change {
            method: "PATCH",
            uri: &format!("/api/v1/nodes/{}", self.node),
            content: "application/json-patch+json",
            body: body.into_bytes(),
            right: "patch nodes",
            manifest: MANIFEST,
        };
        self.connection.change(change).await
    }
}

/// Whether a test of the patch failed, or the Node is gone: the watch will tell what is there now.
fn is_outdated(failure: &Failure) -> bool {
    matches!(
        failure,
        Failure::NotFound { .. }
            | Failure::Status {
                code: 409 | 422,
                ..
            }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taint_is_a_key_and_an_effect() {
        let parse = |text: &str| text.parse::<StartupTaint>();
        for good in [
            "towpath.io/not-ready:NoSchedule",
            "starting:NoExecute",
            "a.b/c_d-e.f:PreferNoSchedule",
        ] {
            assert_eq!(parse(good).unwrap().to_string(), good);
        }
        for bad in ["towpath.io/not-ready", "a:", "a:Never", ""] {
            assert_eq!(parse(bad), Err(StartupTaintError::Effect), "{bad:?}");
        }
        for bad in [
            ":NoExecute",
            "a/:NoExecute",
            "a/b/c:NoExecute",
            "a=b:NoExecute",
        ] {
            assert_eq!(parse(bad), Err(StartupTaintError::Key), "{bad:?}");
        }
        let long = format!("{}:NoExecute", "x".repeat(64));
        assert_eq!(parse(&long), Err(StartupTaintError::Key));
    }

    #[test]
    fn the_patch_tests_what_it_removes() {
        let taint: StartupTaint = "towpath.io/not-ready:NoSchedule".parse().unwrap();

        let patch = taint.removal("1-2", 3);

        assert_eq!(
            patch,
            json!([
                { "op": "test", "path": "/metadata/uid", "value": "1-2" },
                { "op": "test", "path": "/spec/taints/3/key", "value": "towpath.io/not-ready" },
                { "op": "test", "path": "/spec/taints/3/effect", "value": "NoSchedule" },
                { "op": "remove", "path": "/spec/taints/3" },
            ])
        );
    }
}
