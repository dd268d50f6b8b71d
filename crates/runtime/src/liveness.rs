//! Liveness: each critical loop beats, and a beat that is overdue makes the process not live.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// All beats of a process.
#[derive(Clone, Debug, Default)]
pub struct Liveness {
    beats: Vec<Beat>,
}

/// The beat of one loop. Cheap to clone and to beat.
#[derive(Clone, Debug)]
pub struct Beat {
    name: &'static str,
    deadline: Duration,
    start: Instant,
    /// Milliseconds from `start` to the last beat.
    last: Arc<AtomicU64>,
}

impl Liveness {
    /// Adds a loop that promises to beat at least once every `deadline` from `now` on.
    pub fn add(&mut self, name: &'static str, deadline: Duration, now: Instant) -> Beat {
        let beat = Beat {
            name,
            deadline,
            start: now,
            last: Arc::default(),
        };
        self.beats.push(beat.clone());
        beat
    }

    /// The loops whose beat is overdue at `now`, with how long they have been silent.
    pub fn overdue(&self, now: Instant) -> Vec<(&'static str, Duration)> {
        self.beats
            .iter()
            .map(|beat| (beat, beat.silence(now)))
            .filter(|(beat, silence)| *silence > beat.deadline)
            .map(|(beat, silence)| (beat.name, silence))
            .collect()
    }
}

impl Beat {
    /// The loop turns.
    pub fn beat(&self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.start).as_millis();
        self.last.store(
            u64::try_from(elapsed).unwrap_or(u64::MAX),
            Ordering::Relaxed,
        );
    }

    /// How often the loop should wake up when it has nothing to do.
    pub fn interval(&self) -> Duration {
        self.deadline / 4
    }

    fn silence(&self, now: Instant) -> Duration {
        let last = Duration::from_millis(self.last.load(Ordering::Relaxed));
        now.saturating_duration_since(self.start)
            .saturating_sub(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_loop_that_has_stopped() {
        let start = Instant::now();
        let mut liveness = Liveness::default();
        let turning = liveness.add("graph", Duration::from_secs(10), start);
        liveness.add("applier", Duration::from_secs(10), start);

        turning.beat(start + Duration::from_secs(8));

        assert_eq!(liveness.overdue(start + Duration::from_secs(9)), []);
        let overdue = liveness.overdue(start + Duration::from_secs(12));
        assert_eq!(overdue, [("applier", Duration::from_secs(12))]);
    }
}
