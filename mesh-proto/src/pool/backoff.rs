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

impl Growth {
    /// Of a fleet whose agents each wait for times drawn from zero to a bound, twice its size arrives
    /// in every such time. So waits up to twice the spread give the rate that proxies ask for.
    pub(super) fn at_least_twice(self, spread: Duration) -> Self {
        let twice = spread.saturating_mul(2);
        Self {
            first: self.first.max(twice),
            max: self.max.max(twice),
        }
    }
}

/// How long somebody is left alone after failures.
#[derive(Debug, Clone, Default)]
pub(super) struct Backoff {
    failures: u32,
    until: Time,
}

impl Backoff {
    /// Left alone until then.
    pub(super) fn until(&self) -> Time {
        self.until
    }

    /// Forgets all failures.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }

    /// Ends the wait, but remembers the failures: an answer is not yet a success.
    pub(super) fn lift(&mut self) {
        self.until = Time::ZERO;
    }

    /// Waits, though nothing has failed.
    pub(super) fn wait_until(&mut self, until: Time) {
        self.until = until;
    }

    /// The bound doubles with each failure; the wait is drawn from zero to it.
    pub(super) fn fail(&mut self, now: Time, growth: Growth, draw: &mut dyn Draw) {
        let doubled = 2u32.saturating_pow(self.failures);
        let bound = growth.first.saturating_mul(doubled).min(growth.max);
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

    const GROWTH: Growth = Growth {
        first: Duration::from_millis(500),
        max: Duration::from_secs(30),
    };

    fn bounds(growth: Growth, count: usize) -> Vec<u128> {
        let mut backoff = Backoff::default();
        std::iter::repeat_with(|| {
            backoff.fail(Time::ZERO, growth, &mut Longest);
            backoff.until().elapsed().as_millis()
        })
        .take(count)
        .collect()
    }

    #[test]
    fn bounds_double_up_to_the_cap() {
        assert_eq!(
            bounds(GROWTH, 9),
            [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000]
        );
    }

    #[test]
    fn a_spread_raises_the_bounds() {
        let spread = Duration::from_secs(20);
        assert_eq!(bounds(GROWTH.at_least_twice(spread), 2), [40000, 40000]);
        assert_eq!(
            bounds(GROWTH.at_least_twice(Duration::from_secs(1)), 3),
            [2000, 4000, 8000]
        );
        assert_eq!(
            bounds(GROWTH.at_least_twice(Duration::ZERO), 2),
            [500, 1000]
        );
        assert!(bounds(GROWTH.at_least_twice(Duration::MAX), 1)[0] > 1 << 60);
    }

    #[test]
    fn failures_without_end_do_not_overflow() {
        let mut backoff = Backoff {
            failures: u32::MAX,
            until: Time::ZERO,
        };
        backoff.fail(Time::ZERO, GROWTH, &mut Longest);
        assert_eq!(backoff.until().elapsed(), GROWTH.max);
        backoff.lift();
        assert_eq!(backoff.until(), Time::ZERO);
        backoff.fail(Time::ZERO, GROWTH, &mut Longest);
        assert_eq!(
            backoff.until().elapsed(),
            GROWTH.max,
            "a lifted wait forgot the failures"
        );
        backoff.reset();
        assert_eq!(backoff.until(), Time::ZERO);
        backoff.fail(Time::ZERO, GROWTH, &mut Longest);
        assert_eq!(backoff.until().elapsed(), GROWTH.first);
    }
}
