//! The thread that hears when others change our tables, where the kernel cannot keep them from it.

use std::sync::mpsc::SyncSender;
use std::thread::JoinHandle;
use std::time::Duration;

use towpath_dataplane::link::Waker;
use towpath_dataplane::nft::{Monitor, RulesetEvent};
use tracing::{error, warn};

use super::AgentError;
use super::event::Event;
use super::link::chain;
use super::thread::spawn;
use crate::layout::TableId;

/// Longest wait; a waker ends it earlier.
const WAIT: Duration = Duration::from_mins(1);

/// Failures in a row after which the socket is given up: no retry helps it.
const MOST_FAILURES: u32 = 8;

/// The running thread.
pub(super) struct MonitorThread {
    waker: Waker,
    thread: JoinHandle<()>,
}

impl MonitorThread {
    /// Starts to listen in the network namespace of the calling thread. Commits of the socket with the number
    /// `own_port` are our own.
    pub(super) fn start(own_port: u32, sender: SyncSender<Event>) -> Result<Self, AgentError> {
        let monitor = Monitor::open().map_err(AgentError::Monitor)?;
        let waker = monitor.waker();
        let thread = spawn("monitor", sender.clone(), move || {
            run(monitor, own_port, &sender);
        })?;
        Ok(Self { waker, thread })
    }

    /// Ends the thread and waits for it.
    pub(super) fn end(self) {
        self.waker.wake();
        if self.thread.join().is_err() {
            error!("the thread that hears of changes by others has panicked");
        }
    }
}

fn run(mut monitor: Monitor, own_port: u32, sender: &SyncSender<Event>) {
    let mut failures = 0;
    loop {
        let is_tampered = match monitor.wait(WAIT) {
            Ok(heard) if heard.is_woken => return,
            Ok(heard) => {
                failures = 0;
                heard
                    .events
                    .iter()
                    .any(|event| concerns_us(event, own_port))
            }
            Err(error) => {
                failures += 1;
                let error = chain(&error);
                if failures == MOST_FAILURES {
                    error!(
                        error,
                        "cannot hear of changes by others; the sets are still read back from time to time"
                    );
                    return;
                }
                warn!(error, "cannot hear of changes by others; trying again");
                true
            }
        };
        if is_tampered && sender.send(Event::Tampered).is_err() {
            return;
        }
    }
}

/// Whether somebody else may have changed our tables. The port of a socket is its own as long as it is open; a thread's
/// number is not ours in a PID namespace, and foreign programs may run on threads of ours.
fn concerns_us(event: &RulesetEvent, own_port: u32) -> bool {
    match event {
        RulesetEvent::Commit(commit) => {
            let is_ours = TableId::ALL
                .iter()
                .any(|id| commit.tables.contains(&id.table()));
            is_ours && commit.port != own_port
        }
        RulesetEvent::Overrun => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use towpath_dataplane::nft::{Commit, Family, Table};

    const OURS: u32 = 4711;

    fn commit(port: u32, thread: u32, table: Table) -> RulesetEvent {
        RulesetEvent::Commit(Commit {
            generation: 7,
            port,
            thread,
            tables: [table].into(),
        })
    }

    #[test]
    fn the_port_says_whose_a_commit_is_and_the_thread_does_not() {
        let own_thread = std::process::id();
        let table = || TableId::Bridge.table();

        assert!(!concerns_us(&commit(OURS, 1, table()), OURS));
        assert!(concerns_us(&commit(OURS + 1, own_thread, table()), OURS));
    }

    #[test]
    fn tables_of_others_do_not_concern_us() {
        let other = Table {
            family: Family::Inet,
            name: "other".parse().unwrap(),
        };

        assert!(!concerns_us(&commit(1, 1, other), OURS));
        assert!(concerns_us(&RulesetEvent::Overrun, OURS));
    }
}
