//! From when until when a certificate holds.

use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use rustls_pki_types::UnixTime;
use time::OffsetDateTime;
use time::macros::format_description;

/// How long a leaf lives by default, in days: short enough that a forgotten key does not live for
/// ever, long enough to be renewed by hand once a quarter.
pub const LEAF_DAYS: u32 = 90;

/// How long an authority lives by default, in days (ten years): to replace it, every node must be
/// told.
pub const AUTHORITY_DAYS: u32 = 3650;

/// The longest life that may be asked for, in days (a hundred years).
pub const DAYS_MAX: u32 = 36_500;

/// How far the beginning lies in the past, in seconds (one hour): a peer's clock may be slow.
pub const BACKDATED_SECS: i64 = 3600;

const DAY_SECS: i64 = 86_400;

/// The latest time that a certificate can state: 9999-12-31T23:59:59Z (RFC 5280, 4.1.2.5).
const LATEST_UNIX_SECS: i64 = 253_402_300_799;

/// A time span, both ends included, in seconds since 1970-01-01 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    not_before: i64,
    not_after: i64,
}

impl Validity {
    /// From now by the system's clock, backdated by [`BACKDATED_SECS`], for `days` days.
    ///
    /// # Errors
    /// `days` is not within 1..=[`DAYS_MAX`], or the system's clock is before 1970.
    pub fn days(days: u32) -> Result<Self, InvalidValidity> {
        let now = DefaultTimeProvider
            .current_time()
            .ok_or(InvalidValidity::NoClock)?;
        Self::starting(now, days)
    }

    /// From `now`, backdated by [`BACKDATED_SECS`], for `days` days.
    ///
    /// # Errors
    /// `days` is not within 1..=[`DAYS_MAX`], or the end is past the year 9999.
    pub fn starting(now: UnixTime, days: u32) -> Result<Self, InvalidValidity> {
        if !(1..=DAYS_MAX).contains(&days) {
            return Err(InvalidValidity::Days { days });
        }
        let now = unix_secs(now);
        Self::between(
            now.saturating_sub(BACKDATED_SECS).max(0),
            now.saturating_add(i64::from(days) * DAY_SECS),
        )
    }

    /// From `not_before` to `not_after`, Unix seconds.
    ///
    /// # Errors
    /// The end is not after the beginning, or one of them is not within 1970..=9999.
    pub fn between(not_before: i64, not_after: i64) -> Result<Self, InvalidValidity> {
        if not_before < 0 || not_after > LATEST_UNIX_SECS || not_before >= not_after {
            return Err(InvalidValidity::Span {
                not_before,
                not_after,
            });
        }
        Ok(Self {
            not_before,
            not_after,
        })
    }

    /// The beginning, Unix seconds.
    #[must_use]
    pub const fn not_before(&self) -> i64 {
        self.not_before
    }

    /// The end, Unix seconds.
    #[must_use]
    pub const fn not_after(&self) -> i64 {
        self.not_after
    }

    /// What both spans have in common; `None` when nothing.
    pub(crate) fn intersect(&self, other: &Self) -> Option<Self> {
        Self::between(
            self.not_before.max(other.not_before),
            self.not_after.min(other.not_after),
        )
        .ok()
    }
}

/// A validity that no certificate can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidValidity {
    /// Too few or too many days.
    #[error("{days} days is no life for a certificate: choose 1 to {DAYS_MAX}")]
    Days {
        /// What was asked for.
        days: u32,
    },
    /// An empty span, or one outside of 1970..=9999.
    #[error(
        "no certificate can be valid from {not_before} to {not_after} (Unix seconds): the end must be after the beginning, both within the years 1970 to 9999"
    )]
    Span {
        /// Unix seconds.
        not_before: i64,
        /// Unix seconds.
        not_after: i64,
    },
    /// The system's clock is before 1970.
    #[error("the system's clock is before 1970: set it first")]
    NoClock,
}

/// `2026-11-20T23:00:00Z` for Unix seconds; the bare number when no year of four digits holds it.
#[must_use]
pub fn format_utc(unix_secs: i64) -> String {
    OffsetDateTime::from_unix_timestamp(unix_secs)
        .ok()
        .and_then(|t| {
            t.format(format_description!(
                "[year]-[month]-[day]T[hour]:[minute]:[second]Z"
            ))
            .ok()
        })
        .unwrap_or_else(|| unix_secs.to_string())
}

/// Unix seconds, signed as certificates count them.
pub(crate) fn unix_secs(time: UnixTime) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use std::time::Duration;

    use super::*;

    fn at(secs: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(secs))
    }

    #[test]
    fn days_count_from_now_and_the_beginning_is_backdated() {
        let validity = Validity::starting(at(1_000_000), 2).unwrap();
        assert_eq!(validity.not_before(), 1_000_000 - 3600);
        assert_eq!(validity.not_after(), 1_000_000 + 2 * 86_400);
    }

    #[test]
    fn bounds() {
        assert!(matches!(
            Validity::starting(at(0), 0),
            Err(InvalidValidity::Days { days: 0 })
        ));
        assert!(matches!(
            Validity::starting(at(0), DAYS_MAX + 1),
            Err(InvalidValidity::Days { .. })
        ));
        assert!(Validity::starting(at(0), DAYS_MAX).is_ok());
        assert!(matches!(
            Validity::starting(at(u64::MAX), 1),
            Err(InvalidValidity::Span { .. })
        ));
        assert!(Validity::between(5, 5).is_err());
        assert!(Validity::between(-1, 5).is_err());
    }

    #[test]
    fn utc() {
        assert_eq!(format_utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(format_utc(LATEST_UNIX_SECS), "9999-12-31T23:59:59Z");
        assert_eq!(format_utc(i64::MAX), i64::MAX.to_string());
    }
}
