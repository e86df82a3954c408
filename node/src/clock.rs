//! The wall clock, which judges certificates. Everything else goes by the monotonic one, so that a
//! clock that is set changes nothing that stands.

use std::fmt;
use std::sync::Arc;

use rustls::time_provider::TimeProvider;

/// What a node takes for the time of day.
#[derive(Clone)]
pub struct WallClock(Arc<dyn TimeProvider>);

impl fmt::Debug for WallClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WallClock")
    }
}

impl WallClock {
    /// The operating system's.
    #[must_use]
    pub fn system() -> Self {
        Self(certs::system_time())
    }

    /// A clock of the caller's own.
    #[must_use]
    pub fn of(time: Arc<dyn TimeProvider>) -> Self {
        Self(time)
    }

    /// As rustls wants it.
    #[must_use]
    pub fn provider(&self) -> Arc<dyn TimeProvider> {
        self.0.clone()
    }

    /// Seconds since 1970-01-01 UTC; 0 when the clock is before that, or there is none.
    #[must_use]
    pub fn unix_seconds(&self) -> u64 {
        self.0.current_time().map_or(0, |time| time.as_secs())
    }
}
