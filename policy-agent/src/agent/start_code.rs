//! The code that only a start runs leaves memory once the agent is settled.

use std::time::{Duration, Instant};

use towpath_dataplane::program_text;
use tracing::{debug, warn};

/// How long after the first commit in sync the start counts as over.
const SETTLED_AFTER: Duration = Duration::from_secs(20);

/// When the code of the start is unmapped: once.
#[derive(Debug, Default)]
pub(super) enum StartCode {
    /// Not in sync, or nothing committed yet.
    #[default]
    Needed,
    /// Until then more of it may run.
    UnmappedAt(Instant),
    Unmapped,
}

impl StartCode {
    pub(super) fn tick(&mut self, is_enforcing: bool, now: Instant) {
        match *self {
            Self::Needed if is_enforcing => *self = Self::UnmappedAt(now + SETTLED_AFTER),
            Self::UnmappedAt(due) if due <= now => {
                *self = Self::Unmapped;
                match program_text::unmap_unused() {
                    Ok(bytes) => {
                        debug!(bytes, took = ?now.elapsed(), "unmapped the code of the start");
                    }
                    Err(error) => warn!(%error, "the code of the start stays in memory"),
                }
            }
            Self::Needed | Self::UnmappedAt(_) | Self::Unmapped => {}
        }
    }
}
