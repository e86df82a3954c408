//! How long to wait before the next attempt.

use std::time::Duration;

use rand::{Rng, RngCore};

/// The bound of the first wait.
const FIRST: Duration = Duration::from_millis(500);

/// The bound that waits grow to.
const MAX: Duration = Duration::from_secs(30);

/// Exponential backoff with full jitter: each wait is drawn evenly from zero to a bound that
/// doubles with each failure, so that a fleet that lost one proxy does not come back in waves.
#[derive(Debug, Clone, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// An attempt has succeeded.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// An attempt has failed: the wait before the next one.
    pub(super) fn next(&mut self, rng: &mut dyn RngCore) -> Duration {
        let bound = FIRST.saturating_mul(2u32.saturating_pow(self.failures)).min(MAX);
        self.failures = self.failures.saturating_add(1);
        rng.random_range(Duration::ZERO..=bound)
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn bound_doubles_up_to_its_cap_and_resets() {
        let mut rng = rand::rngs::StdRng::seed_from_u64(7);
        let mut longest_at = |failures: u32| {
            (0..200)
                .map(|_| Backoff { failures }.next(&mut rng))
                .max()
                .unwrap_or_default()
        };
        for (failures, bound) in [(0, 0.5), (1, 1.0), (2, 2.0), (6, 30.0), (40, 30.0)] {
            let longest = longest_at(failures).as_secs_f64();
            assert!(longest <= bound && longest > bound * 0.9, "{failures}: {longest}");
        }
        let mut backoff = Backoff { failures: u32::MAX };
        assert!(backoff.next(&mut rng) <= MAX);
        backoff.reset();
        assert!(backoff.next(&mut rng) <= FIRST);
    }
}
