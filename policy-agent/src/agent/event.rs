//! What the graph thread receives. One bounded queue, so that who is too fast waits.

use std::time::Instant;

use tokio::sync::oneshot;
use towpath_core::model::Update;
use towpath_dataplane::nflog::DeniedPacket;

use super::bypassing::BypassRequest;
use super::cni::CniRequest;
use super::interfaces::InterfaceChange;
use super::surroundings::Surroundings;
use crate::applier::{Applied, ApplyError, BypassOutcome, Drift};
use crate::source::{Tally, Versions};

use super::report::{Bypass, Class, Denied, Endpoint, Flannel, Policy, Problem, Status};

/// Events that may wait. Those of the source carry many changes each.
pub(super) const QUEUE: usize = 64;

/// An input of the graph thread.
#[derive(Debug)]
pub(super) enum Event {
    /// The source has read something.
    Source(SourceChange),
    /// Interfaces changed.
    Interfaces(InterfaceChange),
    /// The applier has done something.
    Applier(ApplierNews),
    /// Somebody else may have changed our tables.
    Tampered,
    /// Packets were denied, and so many were not heard of.
    Denied(Vec<DeniedPacket>, u64),
    /// The CNI plugin wants something.
    Cni(CniRequest),
    /// An operator wants to open enforcement for a while, or to close it again.
    Bypass(BypassRequest),
    /// What others set up on this node has changed.
    Surroundings(Box<Surroundings>),
    /// Somebody asks.
    Ask(Question),
    /// The agent is told to end.
    End,
    /// A thread of this name has panicked.
    Panicked(&'static str),
}

/// What the applier tells.
#[derive(Debug)]
pub(super) enum ApplierNews {
    /// A change is in force since then.
    Applied(Applied, Instant),
    /// Attempts failed: how many in a row, and the last failure.
    Retrying(u32, String),
    /// What became of a wish to open enforcement for a while, by its number.
    Bypassed(u64, BypassOutcome),
    /// What is noted on disk for the next start is up to date, or why not.
    Noted(Option<String>),
    /// The tables were read back, with this outcome.
    Verified(Drift),
    /// It has given up.
    Failed(ApplyError),
}

/// What the source has read.
#[derive(Debug)]
pub(super) struct SourceChange {
    pub(super) updates: Vec<Update>,
    /// All faults that there are now.
    pub(super) problems: Vec<Problem>,
    /// Whether the source is in sync; else why not.
    pub(super) sync: Result<(), String>,
    /// What is only counted.
    pub(super) tally: Tally,
    /// Up to which versions objects were told of.
    pub(super) versions: Versions,
    /// When the change was noticed.
    pub(super) at: Instant,
}

/// A question of the control socket. Who no longer waits for the answer has gone, which is no fault.
#[derive(Debug)]
pub(super) enum Question {
    Status(oneshot::Sender<Status>),
    Endpoints(oneshot::Sender<Vec<Endpoint>>),
    Policies(oneshot::Sender<Vec<Policy>>),
    Classes(oneshot::Sender<Vec<Class>>),
    Denied(oneshot::Sender<Vec<Denied>>),
    Bypasses(oneshot::Sender<Vec<Bypass>>),
    Flannel(oneshot::Sender<Option<Flannel>>),
}
