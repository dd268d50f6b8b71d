//! The source of objects as a feed of the graph.

use std::sync::mpsc::SyncSender;

use towpath_api::Severity;
use tracing::{info, warn};

use super::AgentError;
use super::event::{Event, SourceChange};
use super::report::Problem;
use super::thread::Guard;
use crate::cli::arguments::SourceLocation;
use crate::publish::Publisher;
use crate::source::kubernetes::{ConnectError, KubernetesHandle, KubernetesSource};
use crate::source::{Batch, Detail, FileSource, Finding, SourceState, WatchHandle};

/// A source that is not read yet.
pub(super) enum OpenedSource {
    File(FileSource),
    Kubernetes(KubernetesSource),
}

impl OpenedSource {
    /// Looks at the configuration of the source, not at its objects.
    pub(super) fn open(location: &SourceLocation) -> Result<Self, ConnectError> {
        Ok(match location {
            SourceLocation::File(directory) => {
                Self::File(FileSource::open(directory, Detail::Problems))
            }
            SourceLocation::Kubernetes(kubeconfig) => {
                Self::Kubernetes(KubernetesSource::open(kubeconfig.as_deref())?)
            }
        })
    }

    /// Starts to read and to follow, and to tell an API server what it is to be told. Changes wait in the feed's own thread while the graph has enough to do.
    pub(super) fn start(
        self,
        node: &str,
        publisher: Option<Publisher>,
        sender: SyncSender<Event>,
    ) -> Result<SourceFeed, AgentError> {
        let guard = Guard::new("source", sender.clone());
        let mut told = Vec::new();
        let emit = move |batch: Batch| {
            // Moved in whole, so that a panic of the thread is told.
            let _guard = &guard;
            log(&batch, &mut told);
            // When the graph is gone, the agent ends.
            sender.send(Event::Source(change(batch))).ok();
        };
        let handle = match self {
            Self::File(source) => source.watch(emit).map(SourceFeed::File),
            Self::Kubernetes(source) => source
                .publishing(publisher)
                .watch(node, emit)
                .map(SourceFeed::Kubernetes),
        };
        handle.map_err(|source| AgentError::Thread {
            name: "source",
            source,
        })
    }
}

/// The running feed; dropping it ends it.
pub(super) enum SourceFeed {
    File(#[expect(dead_code, reason = "held until it is dropped")] WatchHandle),
    Kubernetes(#[expect(dead_code, reason = "held until it is dropped")] KubernetesHandle),
}

/// One line for each new fault, and one for each that is gone.
fn log(batch: &Batch, told: &mut Vec<Finding>) {
    if batch.findings == *told {
        return;
    }
    for finding in batch
        .findings
        .iter()
        .filter(|finding| !told.contains(finding))
    {
        warn!(
            severity = %finding.severity,
            place = %finding.place,
            object = finding.object,
            path = finding.path,
            advice = finding.advice,
            "{}",
            finding.message
        );
    }
    let gone = told
        .iter()
        .filter(|finding| !batch.findings.contains(finding))
        .count();
    if gone > 0 {
        info!(
            gone,
            left = batch.findings.len(),
            "faults of manifests are gone"
        );
    }
    told.clone_from(&batch.findings);
}

fn change(batch: Batch) -> SourceChange {
    SourceChange {
        updates: batch.updates,
        problems: batch.findings.into_iter().map(problem).collect(),
        sync: match batch.state {
            SourceState::InSync => Ok(()),
            SourceState::NotInSync { reason } => Err(reason),
        },
        tally: batch.tally,
        versions: batch.versions,
        at: batch.received,
    }
}

fn problem(finding: Finding) -> Problem {
    Problem {
        severity: finding.severity.to_string(),
        file: finding.place.file.to_string(),
        line: finding.place.line,
        object: finding.object,
        path: Some(finding.path).filter(|path| !path.is_empty()),
        message: finding.message,
        advice: finding.advice,
    }
}

/// Kinds that problems are counted by; what has no such object is counted as `file`.
pub(super) const PROBLEM_KINDS: [&str; 7] = [
    "Namespace",
    "Node",
    "Pod",
    "WorkloadEndpoint",
    "NetworkPolicy",
    "ClusterNetworkPolicy",
    "file",
];

/// The kind that an error is counted by; warnings are not counted.
pub(super) fn problem_kind(problem: &Problem) -> Option<&'static str> {
    if problem.severity != Severity::Error.to_string() {
        return None;
    }
    let word = problem
        .object
        .as_deref()
        .and_then(|object| object.split(' ').next());
    let known = PROBLEM_KINDS.into_iter().find(|kind| Some(*kind) == word);
    Some(known.unwrap_or("file"))
}
