//! Events on pods whose traffic policy denies. Off unless asked for; how many there may be is `series`.

use std::fmt::Write as _;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use smol_str::SmolStr;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use towpath_core::model::PodUid;
use tracing::debug;

use super::series::{Due, Fate, Series};
use super::standing::{Standing, Teller};
use super::time::to_microsecond;
use crate::source::kubernetes::{Backoff, Change, Connection, Failure, random};

/// Bytes of an Event's note; the API takes 1,024.
const NOTE_BYTES: usize = 1_000;
/// Bytes of a pod's name in the name of an Event.
const NAME_BYTES: usize = 200;
/// How long it rests after a failure; meanwhile the queue takes what it can.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));
/// Without the right nothing is tried for so long.
const LOOK_AGAIN: Duration = Duration::from_mins(5);
/// Longest wait for something to do.
const IDLE: Duration = Duration::from_hours(1);
/// Who gives the right.
const MANIFEST: &str = "deploy/rbac-events.yaml";
/// Who tells.
const CONTROLLER: &str = "towpath.io/agent";

/// What an Event tells, and of which pod. Two that are equal are one series.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct DeniedNote {
    pub(crate) namespace: SmolStr,
    pub(crate) pod: SmolStr,
    pub(crate) uid: Option<PodUid>,
    /// Whether the packets were dropped; else they would be, if they were not audited.
    pub(crate) is_dropped: bool,
    /// Direction, peer, port and rule, in words.
    pub(crate) text: String,
}

/// Packets of a flow that were denied since the last look.
#[derive(Clone, Debug)]
pub(crate) struct Denial {
    pub(crate) note: DeniedNote,
    pub(crate) packets: u64,
}

/// A flow in words.
pub(crate) struct Flow<'a> {
    pub(crate) is_dropped: bool,
    /// `ingress` or `egress`.
    pub(crate) direction: &'a str,
    /// Name of the other end, if it has one, and address.
    pub(crate) peer: &'a str,
    pub(crate) protocol: &'a str,
    pub(crate) port: Option<u16>,
    /// Tier, object and rule.
    pub(crate) rule: &'a str,
}

impl Flow<'_> {
    /// The text, cut to what an Event can hold and without control characters: it quotes names that others chose.
    pub(crate) fn text(&self) -> String {
        let is_ingress = self.direction == "ingress";
        let verb = if self.is_dropped {
            "denied"
        } else {
            "would be denied"
        };
        let way = if is_ingress { "from" } else { "to" };
        let mut text = format!("{} {verb} {way} {}", self.direction, self.peer);
        // Writing to a String cannot fail.
        let _ = match self.port {
            Some(port) if is_ingress => write!(text, " at {port}/{}", self.protocol),
            Some(port) => write!(text, ", {port}/{}", self.protocol),
            None => write!(text, ", {}", self.protocol),
        };
        let _ = write!(text, ": {}", self.rule);
        cut(&text, NOTE_BYTES)
    }
}

/// At most so many bytes, at a character's border, on one line.
fn cut(text: &str, most: usize) -> String {
    let mut kept = String::with_capacity(text.len().min(most));
    for c in text.chars() {
        if kept.len() + c.len_utf8() > most {
            break;
        }
        kept.push(if c.is_control() { ' ' } else { c });
    }
    kept
}

/// Writes Events.
pub(super) struct EventWriter {
    pub(super) node: String,
    pub(super) notes: mpsc::Receiver<Denial>,
    pub(super) connection: Connection,
    pub(super) teller: Teller,
}

impl EventWriter {
    /// Works until the graph thread has gone.
    pub(super) async fn run(mut self) {
        let mut series = Series::new(Instant::now());
        let mut retry = Backoff::new(RETRY.0, RETRY.1);
        self.teller
            .stand(Standing::Working, "no pod's traffic was denied yet");
        loop {
            let now = Instant::now();
            let wait = series
                .next()
                .map_or(IDLE, |at| at.saturating_duration_since(now));
            let written = match timeout(wait, self.notes.recv()).await {
                Ok(None) => return,
                Ok(Some(denial)) => self.take(&mut series, denial).await,
                Err(_) => self.extend(&mut series).await,
            };
            match written {
                Ok(true) => {
                    retry.reset();
                    self.teller.done("Events tell of denied traffic");
                }
                Ok(false) => {}
                Err(failure) => {
                    self.teller.metrics.events_suppressed.inc();
                    let wait = retry.next(random()).max(failure.retry_after());
                    self.teller.failed(&failure, "");
                    let is_refused = matches!(failure, Failure::Refused { .. });
                    sleep(if is_refused { LOOK_AGAIN } else { wait }).await;
                    self.drop_old();
                }
            }
        }
    }

    /// Forgets what has waited meanwhile: an Event has the time at which it is written.
    fn drop_old(&mut self) {
        while self.notes.try_recv().is_ok() {
            self.teller.metrics.events_suppressed.inc();
        }
    }

    /// Whether something was written.
    async fn take(&self, series: &mut Series, denial: Denial) -> Result<bool, Failure> {
        let Denial { note, packets } = denial;
        let now = Instant::now();
        match series.take(&note, packets, now) {
            Fate::Counted => return Ok(false),
            Fate::Suppressed => {
                self.teller.metrics.events_suppressed.inc();
                return Ok(false);
            }
            Fate::Create => {}
        }
        let name = event_name(&note.pod);
        let event = self.event(&note, &name, packets);
        let uri = collection(&note);
        let created = self.write("POST", &uri, "application/json", &event).await;
        match created {
            Ok(()) => {
                series.created(note, name, packets, now);
                Ok(true)
            }
            // The namespace is going; nobody reads its Events.
            Err(failure) if is_of_the_pod(&failure) => {
                debug!(%failure, namespace = %note.namespace, pod = %note.pod, "no Event for this pod");
                self.teller.metrics.events_suppressed.inc();
                Ok(false)
            }
            Err(failure) => Err(failure),
        }
    }

    /// Brings a series up to date. Whether something was written.
    async fn extend(&self, series: &mut Series) -> Result<bool, Failure> {
        let Some(Due {
            note,
            name,
            packets,
        }) = series.due(Instant::now())
        else {
            return Ok(false);
        };
        let last = to_microsecond(SystemTime::now());
        let change = json!({ "series": { "count": packets, "lastObservedTime": last } });
        let uri = format!("{}/{name}", collection(&note));
        let content = "application/merge-patch+json";
        match self.write("PATCH", &uri, content, &change).await {
            Ok(()) => Ok(true),
            Err(Failure::NotFound { .. }) => {
                series.forget(&note);
                Ok(false)
            }
            Err(failure) if is_of_the_pod(&failure) => Ok(false),
            Err(failure) => Err(failure),
        }
    }

    fn event(&self, note: &DeniedNote, name: &str, packets: u64) -> Value {
        let now = to_microsecond(SystemTime::now());
        let mut event = json!({
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": { "name": name, "namespace": note.namespace },
            "eventTime": now,
            "reportingController": CONTROLLER,
            "reportingInstance": cut(&self.node, 128),
            "action": "Deny",
            "reason": if note.is_dropped { "PolicyDenied" } else { "PolicyWouldDeny" },
            "type": if note.is_dropped { "Warning" } else { "Normal" },
            "note": note.text,
            "regarding": {
                "apiVersion": "v1",
                "kind": "Pod",
                "namespace": note.namespace,
                "name": note.pod,
            },
        });
        if let Some(uid) = note.uid {
            event["regarding"]["uid"] = uid_text(uid).into();
        }
        if packets > 1 {
            event["series"] = json!({ "count": packets, "lastObservedTime": now });
        }
        event
    }

    async fn write(
        &self,
        method: &'static str,
        uri: &str,
        content: &'static str,
        body: &Value,
    ) -> Result<(), Failure> {
        let change = Change {
            method,
            uri,
            content,
            body: body.to_string().into_bytes(),
            right: "create and patch events.events.k8s.io",
            manifest: MANIFEST,
        };
        self.connection.change(change).await
    }
}

fn collection(note: &DeniedNote) -> String {
    format!(
        "/apis/events.k8s.io/v1/namespaces/{}/events",
        note.namespace
    )
}

/// The pod's name and something that no other Event has.
fn event_name(pod: &str) -> String {
    let pod = cut(pod, NAME_BYTES);
    let pod = pod.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
    let number = RandomState::new().hash_one(SystemTime::now());
    format!("{pod}.{number:016x}")
}

/// As the API has it. That of a static pod is a hash, without dashes, which `kubectl describe` looks for; all others
/// are of version 4.
fn uid_text(uid: PodUid) -> String {
    let digits = uid.to_string();
    if digits.as_bytes().get(12) != Some(&b'4') {
        return digits;
    }
    let parts = [0..8, 8..12, 12..16, 16..20, 20..32];
    parts.map(|part| digits[part].to_owned()).join("-")
}

/// Whether it is about this one Event: its namespace is going, or the text does not suit the API server.
fn is_of_the_pod(failure: &Failure) -> bool {
    match failure {
        Failure::Refused { message, .. } => message.contains("is being terminated"),
        Failure::NotFound { .. } => true,
        Failure::Status { code, .. } => [400, 409, 422].contains(code),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_says_who_could_not_reach_what_and_why() {
        let flow = Flow {
            is_dropped: true,
            direction: "ingress",
            peer: "shop/web (10.0.0.1)",
            protocol: "tcp",
            port: Some(80),
            rule: "isolated in tier NetworkPolicy by NetworkPolicy shop/closed; no rule matches",
        };
        assert_eq!(
            flow.text(),
            "ingress denied from shop/web (10.0.0.1) at 80/tcp: isolated in tier NetworkPolicy by NetworkPolicy shop/closed; no rule matches"
        );

        let audited = Flow {
            is_dropped: false,
            direction: "egress",
            port: None,
            protocol: "icmp",
            ..flow
        };
        assert!(
            audited
                .text()
                .starts_with("egress would be denied to shop/web (10.0.0.1), icmp: ")
        );
    }

    #[test]
    fn hostile_names_are_bounded() {
        let peer = "\u{1b}[31m\né".repeat(10_000);
        let flow = Flow {
            is_dropped: true,
            direction: "ingress",
            peer: &peer,
            protocol: "tcp",
            port: Some(1),
            rule: &peer,
        };

        let text = flow.text();

        assert!(text.len() <= NOTE_BYTES && text.len() > NOTE_BYTES - 4);
        assert!(!text.contains(char::is_control));
        let name = event_name(&"a-".repeat(126));
        assert!(name.len() <= 253, "{name}");
        assert!(name[..name.len() - 17].ends_with('a'), "{name}");
    }

    #[test]
    fn a_uid_is_written_as_the_api_has_it() {
        let text = "0a1b2c3d-1111-4222-8333-444455556666";
        assert_eq!(uid_text(text.parse().unwrap()), text);
        let hash = "0a1b2c3d111192228333444455556666";
        assert_eq!(uid_text(hash.parse().unwrap()), hash);
    }
}
