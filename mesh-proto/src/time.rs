//! Points in time, as the state machines of this crate take them.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

/// A reading of a monotonic clock: the time since a start that whoever drives a state machine has
/// chosen once. Additions saturate.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(Duration);

impl Time {
    /// The start.
    pub const ZERO: Self = Self(Duration::ZERO);

    /// A reading of the clock.
    #[must_use]
    pub const fn since_start(since_start: Duration) -> Self {
        Self(since_start)
    }

    /// The time since the start.
    #[must_use]
    pub const fn elapsed(self) -> Duration {
        self.0
    }

    /// The time since `earlier`, and zero when that is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Time {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }
}

impl Sub for Time {
    type Output = Duration;

    fn sub(self, earlier: Self) -> Duration {
        self.since(earlier)
    }
}

impl fmt::Debug for Time {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "t+{:?}", self.0)
    }
}
