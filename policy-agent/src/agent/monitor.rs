//! The thread that hears when others change our tables, where the kernel cannot keep them from it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::thread::JoinHandle;
use std::time::Duration;

use towpath_dataplane::nft::{Monitor, RulesetEvent};
use tracing::{error, warn};

use super::AgentError;
use super::event::Event;
use super::link::chain;
use super::thread::spawn;
use crate::layout::TableId;

/// Longest wait, and so the longest time that the end of the agent takes.
const WAIT: Duration = Duration::from_millis(250);

/// The running thread.
pub(super) struct MonitorThread {
    is_ended: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl MonitorThread {
    /// Starts to listen in the network namespace of the calling thread.
    pub(super) fn start(sender: SyncSender<Event>) -> Result<Self, AgentError> {
        let monitor = Monitor::open().map_err(AgentError::Backend)?;
        let is_ended = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&is_ended);
        let thread = spawn("monitor", sender.clone(), move || {
            run(monitor, &flag, &sender);
        })?;
        Ok(Self { is_ended, thread })
    }

    /// Ends the thread and waits for it.
    pub(super) fn end(self) {
        self.is_ended.store(true, Ordering::Release);
        if self.thread.join().is_err() {
            error!("the thread that hears of changes by others has panicked");
        }
    }
}

fn run(mut monitor: Monitor, is_ended: &AtomicBool, sender: &SyncSender<Event>) {
    while !is_ended.load(Ordering::Acquire) {
        match monitor.wait(WAIT) {
            Ok(events) => {
                if events.iter().any(concerns_us) && sender.send(Event::Tampered).is_err() {
                    return;
                }
            }
            Err(error) => {
                warn!(error = chain(&error), "cannot hear of changes by others");
                std::thread::sleep(WAIT);
            }
        }
    }
}

/// Whether somebody else may have changed our tables.
fn concerns_us(event: &RulesetEvent) -> bool {
    match event {
        RulesetEvent::Commit(commit) => {
            let is_ours = TableId::ALL
                .iter()
                .any(|id| commit.tables.contains(&id.table()));
            is_ours && !is_own_thread(commit.thread)
        }
        RulesetEvent::Overrun => true,
    }
}

/// Whether a thread is of this process. In a PID namespace the kernel's number is another one; then our own commits
/// are read back too, which costs time and changes nothing.
fn is_own_thread(thread: u32) -> bool {
    std::path::Path::new("/proc/self/task")
        .join(thread.to_string())
        .exists()
}
