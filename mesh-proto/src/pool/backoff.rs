//! Waits that grow exponentially, drawn with full jitter.

use std::time::Duration;

use crate::time::Time;

/// Draws random durations; the pool has no randomness of its own.
pub trait Draw {
    /// A duration from zero to `bound`, all equally likely.
    fn up_to(&mut self, bound: Duration) -> Duration;
}

/// Between which bounds waits grow.
#[derive(Debug, Clone, Copy)]
pub(super) struct Growth {
    pub(super) first: Duration,
    pub(super) max: Duration,
}

/// How long somebody is left alone after failures.
#[derive(Debug, Clone)]
pub(super) struct Backoff {
    growth: Growth,
    failures: u32,
    until: Time,
}

impl Backoff {
    pub(super) fn new(growth: Growth) -> Self {
        Self { growth, failures: 0, until: Time::ZERO }
    }

    /// Left alone until then.
    pub(super) fn until(&self) -> Time {
        self.until
    }

    pub(super) fn reset(&mut self) {
        self.failures = 0;
        self.until = Time::ZERO;
    }

    /// The bound doubles with each failure; the wait is drawn from zero to it.
    pub(super) fn fail(&mut self, now: Time, draw: &mut dyn Draw) {
        let doubled = 2u32.saturating_pow(self.failures);
        let bound = self.growth.first.saturating_mul(doubled).min(self.growth.max);
        self.failures = self.failures.saturating_add(1);
        self.until = now + draw.up_to(bound);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Always draws the bound.
    struct Longest;

    impl Draw for Longest {
        fn up_to(&mut self, bound: Duration) -> Duration {
            bound
        }
    }

    #[test]
    fn bounds_double_up_to_the_cap() {
        let growth = Growth { first: Duration::from_millis(500), max: Duration::from_secs(30) };
        let mut backoff = Backoff::new(growth);
        let mut bounds = Vec::new();
        for _ in 0..9 {
            backoff.fail(Time::ZERO, &mut Longest);
            bounds.push(backoff.until().elapsed().as_millis());
        }
        assert_eq!(bounds, [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000]);
        backoff.failures = u32::MAX;
        backoff.fail(Time::ZERO, &mut Longest);
        assert_eq!(backoff.until().elapsed(), growth.max);
        backoff.reset();
        assert_eq!(backoff.until(), Time::ZERO);
    }
}
