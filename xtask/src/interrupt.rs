//! ctrl-C removes what was made, at once, and then ends the process.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use nix::sys::signal::{SigSet, Signal};
use towpath_tests::keeper::remove_everything;
use towpath_tests::run::Run;

use crate::output::warn;

/// Exit status of a program that SIGINT ended.
const STATUS: i32 = 130;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
static MADE: OnceLock<(String, PathBuf)> = OnceLock::new();

/// Takes SIGINT, SIGTERM and SIGHUP over. Call it before any other thread starts: threads inherit the mask.
pub(crate) fn watch() -> Result<()> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block()?;
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            if signals.wait().is_err() {
                return;
            }
            INTERRUPTED.store(true, Ordering::SeqCst);
            warn("\ninterrupted: removing everything that was made");
            // Whatever the other threads make meanwhile is removed by the keeper, once this process is gone.
            if let Some((prefix, folder)) = MADE.get()
                && let Err(error) = remove_everything(prefix, folder)
            {
                warn(&format!("error: {error:#}"));
            }
            std::process::exit(STATUS);
        })?;
    Ok(())
}

/// Tells the thread of [`watch`] what to remove.
pub(crate) fn clean_up_on_signal(run: &Run) {
    // There is one run per process.
    let _ = MADE.set((run.prefix().to_owned(), run.folder().to_owned()));
}

/// Waits for the end of the process when a signal came: errors of the other threads are then only its echo.
pub(crate) fn yield_to_signal() {
    while INTERRUPTED.load(Ordering::SeqCst) {
        std::thread::park();
    }
}
