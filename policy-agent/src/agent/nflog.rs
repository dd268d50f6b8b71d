//! The thread that hears of denied packets. It adds nothing to a verdict: what is not heard is dropped all the same.

use std::sync::mpsc::{SyncSender, TrySendError};
use std::thread::JoinHandle;
use std::time::Duration;

use towpath_dataplane::link::{NetlinkError, Waker};
use towpath_dataplane::nflog::NflogReader;
use tracing::{error, warn};

use super::AgentError;
use super::event::Event;
use super::link::chain;
use super::thread::spawn;

/// Longest wait; a waker ends it earlier.
const WAIT: Duration = Duration::from_mins(1);
/// Pause after a failure.
const RETRY: Duration = Duration::from_secs(1);
/// Packets in one event; the rest of a burst is counted only.
const MOST_PACKETS: usize = 256;

/// The running thread.
pub(super) struct NflogThread {
    waker: Waker,
    thread: JoinHandle<()>,
}

impl NflogThread {
    /// Binds the group and starts to read, in the network namespace of the calling thread. `None` when the group
    /// cannot be bound: enforcement does not depend on it.
    pub(super) fn start(group: u16, sender: SyncSender<Event>) -> Result<Option<Self>, AgentError> {
        let reader = match NflogReader::bind(group) {
            Ok(reader) => reader,
            Err(error) => {
                let error = chain(&error);
                warn!(
                    group,
                    error, "denied packets are not reported: cannot read their log"
                );
                return Ok(None);
            }
        };
        let waker = reader.waker();
        let thread = spawn("nflog", sender.clone(), move || run(reader, &sender))?;
        Ok(Some(Self { waker, thread }))
    }

    /// Ends the thread and waits for it.
    pub(super) fn end(self) {
        self.waker.wake();
        if self.thread.join().is_err() {
            error!("the thread of denied packets has panicked");
        }
    }
}

fn run(mut reader: NflogReader, sender: &SyncSender<Event>) {
    // Packets that were logged and that the graph has not heard of.
    let mut untold = 0;
    loop {
        let mut batch = match reader.wait(WAIT) {
            Ok(batch) => batch,
            Err(error) => {
                warn!(
                    error = chain(&error),
                    "cannot read the log of denied packets"
                );
                if is_ended(&mut reader, &error) {
                    return;
                }
                continue;
            }
        };
        if batch.is_woken {
            return;
        }
        untold += batch.lost;
        untold += u64::try_from(batch.packets.len().saturating_sub(MOST_PACKETS)).unwrap_or(0);
        batch.packets.truncate(MOST_PACKETS);
        if batch.packets.is_empty() {
            continue;
        }
        let count = batch.packets.len();
        match sender.try_send(Event::Denied(batch.packets, untold)) {
            Ok(()) => untold = 0,
            // Policy changes go before the news of what it denies.
            Err(TrySendError::Full(_)) => untold += u64::try_from(count).unwrap_or(0),
            Err(TrySendError::Disconnected(_)) => return,
        }
    }
}

/// Pauses after a failure. No retry helps against a socket that is refused for good.
fn is_ended(reader: &mut NflogReader, error: &NetlinkError) -> bool {
    !error.is_retryable() || reader.wait(RETRY).is_ok_and(|batch| batch.is_woken)
}
