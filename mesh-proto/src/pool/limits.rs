//! Waits and bounds of a pool.

use std::time::Duration;

use crate::wire::MEMBERS_MAX;

/// Waits and bounds of a pool.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Dials under way at one time.
    pub parallel_dials_max: usize,
    /// Proxies that are remembered, beside those that are connected; what is told beyond is ignored
    /// and counted.
    pub members_max: usize,
    /// The shortest that one telling of a proxy is believed: who forgets at once forgets the failures
    /// too, and dials again at once.
    pub ttl_min: Duration,
    /// The longest that one telling of a proxy is believed.
    pub ttl_max: Duration,
    /// The bound of the first wait after a dial failed, or twice the announced spread when that is
    /// longer.
    pub backoff_first: Duration,
    /// The bound that those waits grow to, or twice the announced spread when that is longer.
    pub backoff_max: Duration,
    /// The bound of the first wait after a dial through a configured address has reached a proxy
    /// that was connected already, or is not needed. It comes after the announced spread.
    pub duplicate_first: Duration,
    /// The bound that those waits grow to. They come after the announced spread.
    pub duplicate_max: Duration,
    /// A connection counts as settled when it has stood for this long.
    pub settle: Duration,
    /// Surplus is closed when the view has not changed for this long.
    pub stable: Duration,
    /// The longest spread that announcements of proxies can ask for.
    pub spread_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            parallel_dials_max: 4,
            // Twice the largest mesh: in a rollout, the old proxies are remembered beside the new ones.
            members_max: 2 * MEMBERS_MAX,
            ttl_min: Duration::from_secs(30),
            ttl_max: Duration::from_secs(3600),
            backoff_first: Duration::from_millis(500),
            backoff_max: Duration::from_secs(30),
            duplicate_first: Duration::from_millis(250),
            duplicate_max: Duration::from_secs(10),
            settle: Duration::from_secs(3),
            stable: Duration::from_secs(30),
            spread_max: Duration::from_secs(300),
        }
    }
}
