//! Connections on which nothing comes back: dials go there last.

use std::sync::atomic::{AtomicU64, Ordering};

use quinn::Connection;

/// No silence was noted.
const NONE: u64 = u64::MAX;

/// Whether a connection fell silent while somebody waited for it, and has been since.
#[derive(Debug)]
pub(super) struct Silence {
    /// How many datagrams had come when the silence was noted.
    noted_at: AtomicU64,
}

impl Silence {
    pub(super) const fn new() -> Self {
        Self {
            noted_at: AtomicU64::new(NONE),
        }
    }

    /// Somebody has waited in vain.
    pub(super) fn note(&self, connection: &Connection) {
        let datagrams = connection.stats().udp_rx.datagrams;
        self.noted_at.store(datagrams, Ordering::Release);
    }

    /// Whether nothing has come since.
    pub(super) fn lasts(&self, connection: &Connection) -> bool {
        let noted_at = self.noted_at.load(Ordering::Acquire);
        if noted_at == NONE {
            return false;
        }
        let lasts = connection.stats().udp_rx.datagrams == noted_at;
        if !lasts {
            self.noted_at.store(NONE, Ordering::Release);
        }
        lasts
    }
}
