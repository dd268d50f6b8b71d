//! Flushes that the kernel does not have yet: since when, and the events behind them.
//!
//! A kernel may be slow for minutes while events go on. What is kept here is bounded: flushes beyond some join the
//! newest one, as their changes join in the applier's backlog.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Flushes that are told apart.
const MOST_FLUSHES: usize = 64;
/// Arrival times that are kept of one flush; of more, the oldest ones are measured.
pub(super) const MOST_ARRIVALS: usize = 1_024;
/// A kernel that has not taken a flush for so long is too slow for what happens on this node. Commits take
/// milliseconds, those that replace large tables some hundred.
const SLOW: Duration = Duration::from_secs(3);

/// Flushes on their way to the kernel, oldest first.
#[derive(Debug, Default)]
pub(super) struct InFlight(VecDeque<Flush>);

#[derive(Debug)]
struct Flush {
    /// Done with the commit of this generation.
    generation: u64,
    since: Instant,
    /// When the events came that it contains, oldest first.
    arrivals: Vec<Instant>,
}

impl InFlight {
    /// A flush goes to the applier.
    pub(super) fn sent(&mut self, generation: u64, arrivals: Vec<Instant>, now: Instant) {
        if self.0.len() >= MOST_FLUSHES
            && let Some(newest) = self.0.back_mut()
        {
            newest.generation = generation;
            let room = MOST_ARRIVALS.saturating_sub(newest.arrivals.len());
            newest.arrivals.extend(arrivals.into_iter().take(room));
            return;
        }
        self.0.push_back(Flush {
            generation,
            since: now,
            arrivals,
        });
    }

    /// The kernel has everything up to this generation; returns the arrivals of the events in it.
    pub(super) fn applied(&mut self, generation: u64) -> Vec<Instant> {
        let mut arrivals = Vec::new();
        while let Some(oldest) = self.0.pop_front_if(|flush| flush.generation <= generation) {
            arrivals.extend(oldest.arrivals);
        }
        arrivals
    }

    /// When the oldest event came.
    pub(super) fn oldest_arrival(&self) -> Option<Instant> {
        let mut arrivals = self.0.iter().flat_map(|flush| &flush.arrivals);
        arrivals.next().copied()
    }

    /// Whether the kernel has been without the oldest flush for too long.
    pub(super) fn is_slow(&self, now: Instant) -> bool {
        let oldest = self.0.front();
        oldest.is_some_and(|flush| now.saturating_duration_since(flush.since) > SLOW)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_takes_nothing_costs_no_more_than_a_bound() {
        let start = Instant::now();
        let mut in_flight = InFlight::default();
        for generation in 1..=100_000 {
            in_flight.sent(generation, vec![start], start);
        }

        assert_eq!(in_flight.0.len(), MOST_FLUSHES);
        assert_eq!(in_flight.oldest_arrival(), Some(start));
        // The newest one is done when the last of those that joined it is.
        let early = in_flight.applied(99_999);
        assert_eq!(early.len(), MOST_FLUSHES - 1);
        let late = in_flight.applied(100_000);
        assert_eq!(late.len(), MOST_ARRIVALS);
        assert_eq!(in_flight.oldest_arrival(), None);
    }

    #[test]
    fn it_is_slow_while_the_oldest_flush_waits_for_long() {
        let start = Instant::now();
        let soon = start + SLOW;
        let later = soon + Duration::from_millis(1);
        let mut in_flight = InFlight::default();
        in_flight.sent(1, vec![start], start);
        in_flight.sent(2, Vec::new(), soon);

        assert!(!in_flight.is_slow(soon));
        assert!(in_flight.is_slow(later));
        assert_eq!(in_flight.applied(1), [start]);
        assert!(!in_flight.is_slow(later));
        assert!(in_flight.is_slow(later + SLOW));
    }
}
