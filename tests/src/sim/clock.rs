//! The wall clocks of nodes: they go with virtual time, and a scenario may set each of them.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use rustls_pki_types::UnixTime;
use tokio::time::Instant;

/// The clock of one host.
#[derive(Debug)]
pub(super) struct Clock {
    /// What the machine's clock said when the world began: certificates are issued by it.
    began: Duration,
    started: Instant,
    /// By how much it is wrong, in seconds.
    off: AtomicI64,
}

impl Clock {
    pub(super) fn new(started: Instant) -> Self {
        let now = DefaultTimeProvider.current_time();
        let now = now.map_or(Duration::ZERO, |now| Duration::from_secs(now.as_secs()));
        Self {
            began: now.saturating_sub(started.elapsed()),
            started,
            off: AtomicI64::new(0),
        }
    }

    /// Makes it wrong by so many seconds, or right.
    pub(super) fn set(&self, off: i64) {
        self.off.store(off, Ordering::Relaxed);
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        let right = (self.began + self.started.elapsed()).as_secs();
        let shown = right.checked_add_signed(self.off.load(Ordering::Relaxed))?;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(shown)))
    }
}
