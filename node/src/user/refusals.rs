//! Tells of refused connections once for each reason, and not for each connection.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

/// Refusals of one kind are told again after this time.
pub(super) const TELL_AGAIN: Duration = Duration::from_secs(30);

/// What was told, by reason; the reasons are a closed set, which bounds it.
#[derive(Debug, Default)]
pub(super) struct Refusals(BTreeMap<&'static str, Told>);

#[derive(Debug)]
struct Told {
    at: Instant,
    untold: u64,
}

impl Refusals {
    /// A connection was refused: whether to tell of it, and then how many were not told of since the
    /// last time.
    pub(super) fn count(&mut self, reason: &'static str, now: Instant) -> Option<u64> {
        match self.0.get_mut(reason) {
            None => {
                self.0.insert(reason, Told { at: now, untold: 0 });
                Some(0)
            }
            Some(told) if now.duration_since(told.at) >= TELL_AGAIN => {
                told.at = now;
                Some(std::mem::take(&mut told.untold))
            }
            Some(told) => {
                told.untold += 1;
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn once_for_each_reason_and_again_after_a_while() {
        let mut refusals = Refusals::default();
        let now = Instant::now();
        assert_eq!(refusals.count("no_agent", now), Some(0));
        for _ in 0..1000 {
            assert_eq!(refusals.count("no_agent", now), None);
        }
        assert_eq!(refusals.count("refused", now), Some(0));
        let later = now + TELL_AGAIN;
        assert_eq!(refusals.count("no_agent", later), Some(1000));
        assert_eq!(refusals.count("no_agent", later), None);
        assert_eq!(refusals.count("refused", later), Some(0));
    }
}
