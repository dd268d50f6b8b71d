//! Latencies of the last events, for status; the histogram of all events is a metric.

use std::time::Duration;

use super::report::Latency;

/// How many events are remembered.
const KEPT: usize = 1_024;

/// The last latencies in the order of their coming, as a ring.
#[derive(Clone, Debug, Default)]
pub(super) struct Latencies {
    ring: Vec<Duration>,
    next: usize,
    count: u64,
    last: Option<Duration>,
}

impl Latencies {
    pub(super) fn add(&mut self, latency: Duration) {
        if self.ring.len() < KEPT {
            self.ring.push(latency);
        } else {
            self.ring[self.next] = latency;
            self.next = (self.next + 1) % KEPT;
        }
        self.count += 1;
        self.last = Some(latency);
    }

    pub(super) fn report(&self) -> Latency {
        let mut sorted = self.ring.clone();
        sorted.sort_unstable();
        let at = |percent: usize| {
            let index = (sorted.len() * percent / 100).min(sorted.len().checked_sub(1)?);
            sorted.get(index).map(Duration::as_secs_f64)
        };
        Latency {
            events: self.count,
            p50_seconds: at(50),
            p99_seconds: at(99),
            last_seconds: self.last.map(|last| last.as_secs_f64()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_reported_of_nothing() {
        assert_eq!(Latencies::default().report(), Latency::default());
    }

    #[test]
    fn old_events_leave_the_percentiles_but_not_the_count() {
        let mut latencies = Latencies::default();
        latencies.add(Duration::from_secs(100));
        for milliseconds in 1..=1_024 {
            latencies.add(Duration::from_millis(milliseconds));
        }

        let report = latencies.report();

        let expected = Latency {
            events: 1_025,
            p50_seconds: Some(0.513),
            p99_seconds: Some(1.014),
            last_seconds: Some(1.024),
        };
        assert_eq!(report, expected);
    }
}
