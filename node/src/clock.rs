//! The wall clock, which judges certificates. Everything else goes by the monotonic one, so that a
//! clock that is set changes nothing that stands.

use std::fmt;
use std::sync::Arc;

use rustls::time_provider::TimeProvider;

use crate::store::Clock;

/// What a node takes for the time of day.
#[derive(Clone)]
pub struct WallClock {
    time: Arc<dyn TimeProvider>,
    is_system: bool,
}

impl fmt::Debug for WallClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WallClock")
    }
}

impl WallClock {
    /// The operating system's.
    #[must_use]
    pub fn system() -> Self {
        Self {
            time: certs::system_time(),
            is_system: true,
        }
    }

    /// A clock of the caller's own.
    #[must_use]
    pub fn of(time: Arc<dyn TimeProvider>) -> Self {
        Self {
            time,
            is_system: false,
        }
    }

    /// As rustls wants it.
    #[must_use]
    pub fn provider(&self) -> Arc<dyn TimeProvider> {
        self.time.clone()
    }

    /// Seconds since 1970-01-01 UTC; 0 when the clock is before that, or there is none.
    #[must_use]
    pub fn unix_seconds(&self) -> u64 {
        self.time.current_time().map_or(0, |time| time.as_secs())
    }

    /// Milliseconds since 1970-01-01 UTC. A clock of the caller's own counts in whole seconds.
    #[must_use]
    pub fn unix_millis(&self) -> u64 {
        if self.is_system {
            Clock::system().now_ms()
        } else {
            self.unix_seconds().saturating_mul(1000)
        }
    }

    /// The same, as a store wants it.
    #[must_use]
    pub fn for_store(&self) -> Clock {
        let clock = self.clone();
        Clock::new(move || clock.unix_millis())
    }
}
