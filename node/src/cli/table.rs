//! Tables and durations for a terminal.

use comfy_table::{Table, presets};

/// Rows under their headings, in columns without lines.
pub(super) fn table<const N: usize>(
    headings: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(headings);
    for row in rows {
        table.add_row(row);
    }
    // No column has anything to its left.
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
        .lines()
        .map(|line| line.trim_end().to_owned() + "\n")
        .collect()
}

/// A time in two units at most, as in `3h 20m`.
pub(super) fn span(seconds: f64) -> String {
    let total = seconds.max(0.0) as u64;
    let (days, hours, minutes, rest) = (
        total / 86_400,
        total / 3600 % 24,
        total / 60 % 60,
        total % 60,
    );
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{rest}s"),
        (0, 0, _) => format!("{minutes}m {rest}s"),
        (0, _, _) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

/// A round-trip time.
pub(super) fn millis(seconds: f64) -> String {
    format!("{:.1}ms", seconds * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_two_units_at_most() {
        let table = [0.4, 59.9, 61.0, 3600.0, 90_061.0].map(span);
        assert_eq!(table, ["0s", "59s", "1m 1s", "1h 0m", "1d 1h"]);
    }

    #[test]
    fn tables_are_columns() {
        let rows = [
            ["a".to_owned(), "1".to_owned()],
            ["long".to_owned(), "2".to_owned()],
        ];
        assert_eq!(table(["NAME", "N"], rows), "NAME  N\na     1\nlong  2\n");
    }
}
