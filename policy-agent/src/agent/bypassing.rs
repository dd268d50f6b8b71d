//! Break glass in the running agent: takes what an operator wants, tells the applier what is open, and answers when
//! the kernel has it. See `bypass` for what it means.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::bypass::{self, Book, Bypass, BypassScope, Bypasses, Clock, Opening, Owner};
use super::graph::GraphThread;
use super::report;
use crate::applier::BypassOutcome;
use crate::render::Bypassed;

/// Operators that may wait for an answer at once.
const MOST_WAITING: usize = 16;
/// How often the file that names the owners of addresses is written, and one that could not be written is tried again,
/// at most.
const FILE_INTERVAL: Duration = Duration::from_secs(5);

/// What an operator wants, and where the answer goes.
#[derive(Debug)]
pub(super) struct BypassRequest {
    pub(super) wish: Wish,
    pub(super) to: oneshot::Sender<Answer>,
}

/// What an operator wants.
#[derive(Debug)]
pub(super) enum Wish {
    Open(Opening),
    /// One scope, or all.
    Close(Option<BypassScope>),
}

/// An error says why nothing was changed.
pub(super) type Answer = Result<BypassAnswer, String>;

/// What has come of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BypassAnswer {
    /// What the kernel made of it.
    pub(crate) outcome: BypassOutcome,
    /// What is open now.
    pub(crate) bypasses: Vec<report::Bypass>,
    /// What was closed.
    pub(crate) closed: Vec<BypassScope>,
    /// What did not work and does not matter to the kernel.
    pub(crate) remarks: Vec<String>,
}

/// What is open, and how far the applier is.
#[derive(Debug)]
pub(super) struct Bypassing {
    directory: PathBuf,
    bypasses: Bypasses,
    /// Who had which address when an earlier run ended; until the source is in sync.
    left: Option<Book>,
    /// Why the file does not say what is open; it is written again until it does.
    fault: Option<String>,
    /// What stands in the file that names owners.
    book: Option<Book>,
    /// Whether that could not be written last time.
    is_book_failing: bool,
    /// When the files are looked at next.
    files_at: Instant,
    told: Bypassed,
    sequence: u64,
    waiting: Vec<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    sequence: u64,
    closed: Vec<BypassScope>,
    remarks: Vec<String>,
    to: oneshot::Sender<Answer>,
}

impl Bypassing {
    /// Reads what an earlier run, or an operator without an agent, has left. What cannot be read opens nothing.
    pub(super) fn open(directory: &Path, now: Instant) -> Self {
        let unread = |what: &str, error: std::io::Error| {
            let directory = directory.display();
            warn!(%error, %directory, "cannot read {what}");
        };
        let bypasses = Bypasses::load(directory, Clock::read()).unwrap_or_else(|error| {
            unread("what is bypassed", error);
            Bypasses::default()
        });
        let left = bypass::load_book(directory).unwrap_or_else(|error| {
            unread("who has which address", error);
            Book::new()
        });
        Self {
            directory: directory.to_owned(),
            bypasses,
            left: Some(left),
            fault: None,
            book: None,
            is_book_failing: false,
            files_at: now,
            told: Bypassed::default(),
            sequence: 0,
            waiting: Vec::new(),
        }
    }

    /// Writes what is open. What could not be written is tried again, and logged when that begins.
    fn store(&mut self) -> Option<&str> {
        let error = self.bypasses.store(&self.directory).err();
        let fault = error.map(|error| bypass::unnoted(&self.directory, &error));
        match (&fault, &self.fault) {
            (Some(fault), None) => warn!("{fault}"),
            (None, Some(_)) => info!("what is bypassed is noted again"),
            (Some(_), Some(_)) | (None, None) => {}
        }
        self.fault = fault;
        self.fault()
    }

    /// Why an agent that starts again would not go on with what is open now.
    pub(super) fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }
}

fn log_begin(bypass: &Bypass) {
    warn!(
        scope = %bypass.scope,
        reason = bypass.reason,
        seconds = bypass.until.saturating_sub(bypass.begun),
        until = bypass.until,
        "bypass begins: what policy denies here passes"
    );
}

fn log_end(bypass: &Bypass) {
    warn!(scope = %bypass.scope, reason = bypass.reason, "bypass ends: policy is in force again");
}

impl GraphThread {
    /// Goes on with what is open.
    pub(super) fn begin_with_bypasses(&mut self) {
        let ended = self.bypassing.bypasses.expire(Instant::now());
        ended.iter().for_each(log_end);
        for bypass in self.bypassing.bypasses.iter() {
            warn!(
                scope = %bypass.scope,
                reason = bypass.reason,
                until = bypass.until,
                "bypass goes on: what policy denies here passes"
            );
        }
        // What was read may have been counted anew, by a clock that was set back.
        if !ended.is_empty() || !self.bypassing.bypasses.is_empty() {
            self.bypassing.store();
        }
        self.set_bypass_gauge();
        self.follow_bypassed();
    }

    /// Who has which address here: those that are programmed, and what the objects of this node list.
    fn owners(&self) -> Book {
        let cluster = self.graph.cluster();
        let here = cluster.endpoints.values().filter(|endpoint| {
            endpoint.is_workload() && endpoint.node.as_deref() == Some(self.node.as_str())
        });
        let listed = here.flat_map(|endpoint| {
            let addresses = endpoint.addresses.iter();
            addresses.map(|address| (*address, &endpoint.id))
        });
        let mut book: Book = listed
            .chain(self.graph.bound_addresses())
            .map(|(address, id)| {
                let owner = Owner {
                    namespace: id.namespace.clone(),
                    name: id.name.clone(),
                };
                (address, owner)
            })
            .collect();
        for (address, owner) in self.bypassing.left.iter().flatten() {
            book.entry(*address).or_insert_with(|| owner.clone());
        }
        book
    }

    fn owners_if_needed(&self) -> Book {
        if self.bypassing.bypasses.name_pods() {
            self.owners()
        } else {
            Book::new()
        }
    }

    /// Tells the applier what is open, when that has changed. Called after a flush.
    pub(super) fn follow_bypassed(&mut self) {
        if self.is_in_sync {
            self.bypassing.left = None;
        }
        if self.bypassing.bypasses.is_empty() && self.bypassing.told == Bypassed::default() {
            return;
        }
        let bypassed = self.bypassing.bypasses.bypassed(&self.owners_if_needed());
        if bypassed != self.bypassing.told {
            self.tell_bypassed(bypassed);
        }
    }

    fn tell_bypassed(&mut self, bypassed: Bypassed) {
        self.bypassing.sequence += 1;
        self.bypassing.told.clone_from(&bypassed);
        let sequence = self.bypassing.sequence;
        self.parts.applier.set_bypassed(sequence, bypassed);
    }

    /// Opens or closes, and lets the operator wait for the kernel.
    pub(super) fn take_bypass(&mut self, BypassRequest { wish, to }: BypassRequest) {
        self.bypassing
            .waiting
            .retain(|waiting| !waiting.to.is_closed());
        if self.bypassing.waiting.len() >= MOST_WAITING {
            drop(to.send(Err("too many wait for the kernel".to_owned())));
            return;
        }
        let bypasses = &mut self.bypassing.bypasses;
        let mut closed = Vec::new();
        match wish {
            Wish::Open(opening) => match bypasses.open(opening, Clock::read()) {
                Ok(bypass) => log_begin(bypass),
                Err(reason) => {
                    drop(to.send(Err(reason)));
                    return;
                }
            },
            Wish::Close(scope) => {
                let ended = bypasses.close(scope.as_ref());
                ended.iter().for_each(log_end);
                closed = ended.into_iter().map(|bypass| bypass.scope).collect();
            }
        }
        let fault = self.bypassing.store();
        let remarks = fault.map(str::to_owned).into_iter().collect();
        self.set_bypass_gauge();
        let bypassed = self.bypassing.bypasses.bypassed(&self.owners_if_needed());
        self.tell_bypassed(bypassed);
        self.bypassing.waiting.push(Waiting {
            sequence: self.bypassing.sequence,
            closed,
            remarks,
            to,
        });
    }

    /// Answers those who waited for it.
    pub(super) fn take_bypass_outcome(&mut self, sequence: u64, outcome: &BypassOutcome) {
        if !matches!(outcome, BypassOutcome::InForce) {
            warn!(?outcome, "the kernel did not take what is bypassed");
        }
        let waiting = &mut self.bypassing.waiting;
        let done: Vec<Waiting> = waiting
            .extract_if(.., |waiting| waiting.sequence <= sequence)
            .collect();
        for Waiting {
            closed,
            remarks,
            to,
            ..
        } in done
        {
            let answer = BypassAnswer {
                outcome: outcome.clone(),
                bypasses: self.bypass_report(),
                closed,
                remarks,
            };
            // Who asked may have gone.
            drop(to.send(Ok(answer)));
        }
    }

    /// What is open, for people.
    pub(super) fn bypass_report(&self) -> Vec<report::Bypass> {
        if self.bypassing.bypasses.is_empty() {
            return Vec::new();
        }
        let book = self.owners_if_needed();
        self.bypassing.bypasses.report(&book, Instant::now())
    }

    /// Says what has ended by itself, and notes who has which address for a time without an agent.
    pub(super) fn tick_bypasses(&mut self, now: Instant) {
        let ended = self.bypassing.bypasses.expire(now);
        if !ended.is_empty() {
            ended.iter().for_each(log_end);
            self.bypassing.store();
            self.set_bypass_gauge();
            self.follow_bypassed();
        }
        if now >= self.bypassing.files_at {
            self.bypassing.files_at = now + FILE_INTERVAL;
            if self.bypassing.fault.is_some() {
                self.bypassing.store();
            }
            if self.is_in_sync {
                self.note_owners();
            }
        }
    }

    fn note_owners(&mut self) {
        let book = self.owners();
        if self.bypassing.book.as_ref() == Some(&book) {
            return;
        }
        let written = bypass::store_book(&self.bypassing.directory, &book);
        let was_failing = std::mem::replace(&mut self.bypassing.is_book_failing, written.is_err());
        match written {
            Ok(()) => self.bypassing.book = Some(book),
            // What stands there names other owners: it is written again, whether they change or not.
            Err(error) if !was_failing => warn!(%error, "cannot note who has which address"),
            Err(_) => {}
        }
    }

    fn set_bypass_gauge(&self) {
        let scopes = self.bypassing.bypasses.iter().map(|bypass| &bypass.scope);
        self.parts.metrics.set_bypasses(scopes);
    }
}
