//! How long to wait before the next try.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// Waits that double from the least to the most, each shortened by up to a half at random, so that a thousand nodes
/// do not come back at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    least: Duration,
    most: Duration,
    next: Duration,
}

impl Backoff {
    pub(crate) fn new(least: Duration, most: Duration) -> Self {
        Self {
            least,
            most,
            next: least,
        }
    }

    /// The next wait. `random` is from 0 to 1.
    pub(crate) fn next(&mut self, random: f64) -> Duration {
        let wait = self.next.mul_f64(1.0 - random.clamp(0.0, 1.0) / 2.0);
        self.next = self.next.saturating_mul(2).min(self.most);
        wait
    }

    /// It works again.
    pub(crate) fn reset(&mut self) {
        self.next = self.least;
    }
}

/// A number from 0 to 1, from the randomness that the standard library seeds its hashes with.
pub(crate) fn random() -> f64 {
    let number = RandomState::new().build_hasher().finish();
    f64::from(u32::try_from(number >> 32).unwrap_or_default()) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_most_and_start_again() {
        let seconds = Duration::from_secs;
        let mut backoff = Backoff::new(seconds(1), seconds(5));

        let waits: Vec<_> = (0..4).map(|_| backoff.next(0.0)).collect();
        assert_eq!(waits, [1, 2, 4, 5].map(seconds));
        assert_eq!(backoff.next(1.0), Duration::from_millis(2_500));

        backoff.reset();
        assert_eq!(backoff.next(0.0), seconds(1));
    }
}
