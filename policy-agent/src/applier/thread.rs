//! The thread that runs the applier, and the mailbox in front of it.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use towpath_core::tables::Delta;
use towpath_dataplane::nft::CommitError;

use super::{Applied, Applier, ApplyError, Backlog, BypassOutcome, Drift, Step};
use crate::layout::NodeFacts;
use crate::render::Bypassed;

/// Longest time without a [`Report::Alive`].
const BEAT: Duration = Duration::from_secs(1);

/// What the thread tells its owner.
#[derive(Debug)]
pub enum Report {
    /// It runs. Comes at least every second, while no commit takes longer.
    Alive,
    /// A change is in force.
    Applied(Applied),
    /// An attempt failed and will be made again.
    Retrying {
        /// Failures in a row.
        failures: u32,
        /// The last one, in words.
        failure: String,
    },
    /// The tables were read back.
    Verified(Drift),
    /// A wish to open enforcement for a while was dealt with.
    Bypassed(u64, BypassOutcome),
    /// What is noted on disk is up to date again, or could not be written, in words. Told when it changes.
    Noted(Option<String>),
    /// The tables could not be read back.
    Unverified(CommitError),
    /// The applier has given up and the thread has ended: end the process.
    Failed(ApplyError),
}

/// Reaches the thread. Clones reach the same one.
#[derive(Clone, Debug)]
pub struct ApplierHandle {
    mailbox: Arc<Mailbox>,
}

#[derive(Debug, Default)]
struct Mailbox {
    inbox: Mutex<Inbox>,
    signal: Condvar,
}

#[derive(Debug, Default)]
struct Inbox {
    backlog: Backlog,
    verify: bool,
    end: bool,
}

impl Inbox {
    fn is_empty(&self) -> bool {
        self.backlog.is_empty() && !self.verify && !self.end
    }
}

impl ApplierHandle {
    /// Starts the thread. `report` is called on it.
    pub fn start(
        applier: Applier,
        report: impl FnMut(Report) + Send + 'static,
    ) -> std::io::Result<(Self, JoinHandle<()>)> {
        let mailbox = Arc::<Mailbox>::default();
        let thread = Runner {
            applier,
            mailbox: Arc::clone(&mailbox),
            report,
            is_remembered: false,
        };
        let thread = std::thread::Builder::new()
            .name("applier".to_owned())
            .spawn(move || thread.run())?;
        Ok((Self { mailbox }, thread))
    }

    /// Asks for a change; never waits. An empty delta is told as applied too.
    pub fn submit(&self, generation: u64, delta: Delta) {
        self.tell(|inbox| inbox.backlog.push(generation, delta));
    }

    /// Replaces the facts of this node; never waits.
    pub fn set_facts(&self, facts: NodeFacts) {
        self.tell(|inbox| inbox.backlog.facts = Some(facts));
    }

    /// Opens enforcement for just these from now on; never waits. What becomes of it is told under this number, or a
    /// later one.
    pub fn set_bypassed(&self, sequence: u64, bypassed: Bypassed) {
        self.tell(|inbox| inbox.backlog.bypassed = Some((sequence, bypassed)));
    }

    /// Asks for the tables to be read back and brought right.
    pub fn verify(&self) {
        self.tell(|inbox| inbox.verify = true);
    }

    /// Ends the thread after the attempt at hand. The rules stay.
    pub fn end(&self) {
        self.tell(|inbox| inbox.end = true);
    }

    fn tell(&self, change: impl FnOnce(&mut Inbox)) {
        change(&mut self.mailbox.lock());
        self.mailbox.signal.notify_one();
    }
}

impl Mailbox {
    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what is there, after at most a beat.
    fn take(&self) -> Inbox {
        let waited = self
            .signal
            .wait_timeout_while(self.lock(), BEAT, |inbox| inbox.is_empty());
        let mut inbox = waited.unwrap_or_else(PoisonError::into_inner).0;
        // An end stays told: whoever looks next must see it too.
        let end = inbox.end;
        std::mem::replace(
            &mut *inbox,
            Inbox {
                end,
                ..Inbox::default()
            },
        )
    }

    /// Waits for a time; returns early, with `true`, when the thread is to end.
    fn wait(&self, time: Duration) -> bool {
        let waited = self
            .signal
            .wait_timeout_while(self.lock(), time, |inbox| !inbox.end);
        waited.unwrap_or_else(PoisonError::into_inner).0.end
    }
}

struct Runner<R> {
    applier: Applier,
    mailbox: Arc<Mailbox>,
    report: R,
    /// This process has noted what is in force, or tried to.
    is_remembered: bool,
}

impl<R: FnMut(Report)> Runner<R> {
    fn run(mut self) {
        // What a start without tables needs does not wait for the first change.
        if !self.settle() {
            return;
        }
        loop {
            (self.report)(Report::Alive);
            if self.applier.must_remember() {
                self.remember();
            }
            let inbox = self.mailbox.take();
            if inbox.end {
                return;
            }
            self.applier.enqueue(inbox.backlog);
            if !self.settle() {
                return;
            }
            if inbox.verify {
                let report = self
                    .applier
                    .verify()
                    .map_or_else(Report::Unverified, Report::Verified);
                (self.report)(report);
                if !self.settle() {
                    return;
                }
            }
        }
    }

    /// Steps until nothing is left to do; `false` when the thread is to end.
    fn settle(&mut self) -> bool {
        loop {
            let step = self.applier.step();
            if let Some((sequence, outcome)) = self.applier.take_bypass_outcome() {
                (self.report)(Report::Bypassed(sequence, outcome));
            }
            match step {
                Ok(Step::Idle) => return true,
                Ok(Step::Applied(applied)) => {
                    // Who is told for the first time that policy is in force can rely on the note. Later ones do not
                    // wait for the disk.
                    if applied.generation > 0 && !self.is_remembered {
                        self.is_remembered = true;
                        self.remember();
                    }
                    (self.report)(Report::Applied(applied));
                    self.remember();
                }
                Ok(Step::Retry(wait)) => {
                    if let Some((failures, failure)) = self.applier.failure() {
                        let failure = failure.to_owned();
                        (self.report)(Report::Retrying { failures, failure });
                    }
                    if self.pause(wait) {
                        return false;
                    }
                }
                Err(error) => {
                    (self.report)(Report::Failed(error));
                    return false;
                }
            }
        }
    }

    /// Has the applier note what is in force, and tells when that begins or ends to fail.
    fn remember(&mut self) {
        if let Some(state) = self.applier.remember() {
            (self.report)(Report::Noted(state.err()));
        }
    }

    /// Waits, beating; `true` when the thread is to end.
    fn pause(&mut self, time: Duration) -> bool {
        let until = Instant::now() + time;
        loop {
            (self.report)(Report::Alive);
            let left = until.saturating_duration_since(Instant::now());
            if self.mailbox.wait(left.min(BEAT)) {
                return true;
            }
            if left <= BEAT {
                return false;
            }
        }
    }
}
