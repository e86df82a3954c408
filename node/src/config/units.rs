//! Quantities as people write them: durations (`"30s"`) and sizes (`"4MiB"`).

use std::time::Duration;

/// The longest duration that a config may hold.
pub const DURATION_MAX: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// The units of sizes, largest first: suffix and bytes.
const SIZE_UNITS: [(&str, u64); 5] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

/// The units of durations, largest first: suffix and milliseconds.
const DURATION_UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1000),
    ("ms", 1),
];

/// Why a text is no quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// It is not a number with one of the units of a duration.
    #[error("{text:?} is not a duration")]
    NotADuration {
        /// The text, cut.
        text: String,
    },
    /// It is longer than [`DURATION_MAX`].
    #[error("{text:?} is longer than a year")]
    TooLong {
        /// The text, cut.
        text: String,
    },
    /// It is not a number with one of the units of a size.
    #[error("{text:?} is not a size")]
    NotASize {
        /// The text, cut.
        text: String,
    },
    /// It does not fit 64 bits.
    #[error("{text:?} is over the limit of 8388607TiB")]
    TooLarge {
        /// The text, cut.
        text: String,
    },
}

impl UnitError {
    /// What to write instead.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::NotADuration { .. } | Self::TooLong { .. } => {
                "write a whole number and a unit: ms, s, m, h or d, as in \"30s\" or \"1m30s\""
            }
            Self::NotASize { .. } | Self::TooLarge { .. } => {
                "write a whole number and a unit: B, KiB, MiB, GiB or TiB, as in \"4MiB\""
            }
        }
    }
}

/// Reads a duration: whole numbers with the units `ms`, `s`, `m`, `h` and `d`, added up, as in
/// `30s`, `1m30s` or `1h 30m`.
///
/// # Errors
/// When a unit is missing or unknown, and above [`DURATION_MAX`].
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let not_a_duration = || UnitError::NotADuration { text: cut(text) };
    let too_long = || UnitError::TooLong { text: cut(text) };
    let mut rest = text.trim();
    let mut total_ms: u64 = 0;
    if rest.is_empty() {
        return Err(not_a_duration());
    }
    while !rest.is_empty() {
        let (number, after) = split_at_end_of(rest, |c| c.is_ascii_digit());
        let (unit, after) = split_at_end_of(after.trim_start(), |c| c.is_ascii_alphabetic());
        let ms = DURATION_UNITS
            .iter()
            .find(|(suffix, _)| *suffix == unit)
            .map(|(_, ms)| *ms);
        let (Some(ms), false) = (ms, number.is_empty()) else {
            return Err(not_a_duration());
        };
        total_ms = number
            .parse::<u64>()
            .ok()
            .and_then(|count| count.checked_mul(ms))
            .and_then(|part| total_ms.checked_add(part))
            .ok_or_else(too_long)?;
        rest = after.trim_start();
    }
    let total = Duration::from_millis(total_ms);
    if total > DURATION_MAX {
        Err(too_long())
    } else {
        Ok(total)
    }
}

/// Reads a size in bytes: a whole number with one of the units `B`, `KiB`, `MiB`, `GiB`, `TiB`.
///
/// # Errors
/// When the unit is missing or unknown, or the size does not fit 63 bits.
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    let (number, unit) = split_at_end_of(text.trim(), |c| c.is_ascii_digit());
    let bytes = SIZE_UNITS
        .iter()
        .find(|(suffix, _)| *suffix == unit.trim_start())
        .map(|(_, bytes)| *bytes);
    let (Some(bytes), false) = (bytes, number.is_empty()) else {
        return Err(UnitError::NotASize { text: cut(text) });
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|count| count.checked_mul(bytes))
        .filter(|total| i64::try_from(*total).is_ok())
        .ok_or_else(|| UnitError::TooLarge { text: cut(text) })
}

/// Writes a duration so that [`parse_duration`] reads the same again, to the millisecond.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    let mut rest = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let mut out = String::new();
    for (suffix, ms) in DURATION_UNITS {
        let count = rest / ms;
        if count > 0 {
            out.push_str(&format!("{count}{suffix}"));
            rest %= ms;
        }
    }
    if out.is_empty() { "0s".into() } else { out }
}

/// Writes a size in the largest unit that divides it.
#[must_use]
pub fn format_size(bytes: u64) -> String {
    let (suffix, unit) = SIZE_UNITS
        .into_iter()
        .find(|(_, unit)| bytes >= *unit && bytes.is_multiple_of(*unit))
        .unwrap_or(("B", 1));
    format!("{}{suffix}", bytes / unit)
}

/// `text` split after its leading characters that satisfy `belongs`.
fn split_at_end_of(text: &str, belongs: impl Fn(char) -> bool) -> (&str, &str) {
    let end = text.find(|c| !belongs(c)).unwrap_or(text.len());
    text.split_at(end)
}

/// As much of a text as a message should repeat.
fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations() {
        for (text, ms) in [
            ("0s", 0),
            ("0ms", 0),
            ("250ms", 250),
            ("30s", 30_000),
            ("5m", 300_000),
            ("2h", 7_200_000),
            ("1d", 86_400_000),
            ("1m30s", 90_000),
            ("1h 30m", 5_400_000),
            (" 10 s ", 10_000),
            ("366d", 366 * 86_400_000),
        ] {
            assert_eq!(
                parse_duration(text).unwrap(),
                Duration::from_millis(ms),
                "{text}"
            );
        }
        for text in [
            "",
            " ",
            "5",
            "s",
            "-5s",
            "+5s",
            "1.5s",
            "5 sec",
            "5S",
            "5s,",
            "s5",
            "5s5",
            "١s",
            "5µs",
            "30parsecs",
        ] {
            assert!(
                matches!(parse_duration(text), Err(UnitError::NotADuration { .. })),
                "{text}"
            );
        }
        for text in [
            "367d",
            "99999999999999999999s",
            "18446744073709551615d",
            "366d1ms",
        ] {
            assert!(
                matches!(parse_duration(text), Err(UnitError::TooLong { .. })),
                "{text}"
            );
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0B", 0),
            ("1500B", 1500),
            ("64KiB", 65_536),
            ("4MiB", 4 << 20),
            ("1GiB", 1 << 30),
            ("2TiB", 2 << 40),
            (" 1 KiB ", 1024),
        ] {
            assert_eq!(parse_size(text).unwrap(), bytes, "{text}");
        }
        for text in [
            "", "5", "MiB", "-1B", "1.5MiB", "4MB", "4M", "4mib", "4MiBs", "4 4MiB", "0x4B",
        ] {
            assert!(
                matches!(parse_size(text), Err(UnitError::NotASize { .. })),
                "{text}"
            );
        }
        for text in [
            "8388608TiB",
            "99999999999999999999B",
            "18446744073709551615TiB",
        ] {
            assert!(
                matches!(parse_size(text), Err(UnitError::TooLarge { .. })),
                "{text}"
            );
        }
    }

    #[test]
    fn formats() {
        assert_eq!(format_duration(Duration::ZERO), "0s");
        assert_eq!(format_duration(Duration::from_millis(90_500)), "1m30s500ms");
        assert_eq!(format_size(0), "0B");
        assert_eq!(format_size(1 << 30), "1GiB");
        assert_eq!(format_size((1 << 20) + 1), "1048577B");
    }

    #[test]
    fn messages_are_cut() {
        let long = "x".repeat(10_000);
        assert!(parse_size(&long).unwrap_err().to_string().len() < 120);
        assert!(parse_duration(&long).unwrap_err().to_string().len() < 120);
    }

    proptest! {
        #[test]
        fn durations_round_trip(ms in 0..=31_622_400_000_u64) {
            let duration = Duration::from_millis(ms);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }

        #[test]
        fn sizes_round_trip(bytes in 0..=i64::MAX.unsigned_abs()) {
            prop_assert_eq!(parse_size(&format_size(bytes)), Ok(bytes));
        }

        #[test]
        fn no_text_panics(text in "\\PC*") {
            let _ = parse_duration(&text);
            let _ = parse_size(&text);
        }
    }
}
