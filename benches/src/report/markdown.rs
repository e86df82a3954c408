//! The report as Markdown.

use std::fmt::Write as _;

use comfy_table::{Table, presets};

use super::Report;

/// A column: one metric of one load.
struct Column {
    heading: String,
    load: String,
    metric: &'static str,
    decimals: usize,
    ratio: bool,
}

fn column(heading: &str, load: &str, metric: &'static str, decimals: usize, ratio: bool) -> Column {
    Column {
        heading: heading.to_owned(),
        load: load.to_owned(),
        metric,
        decimals,
        ratio,
    }
}

impl Report {
    /// Everything, for people.
    pub(crate) fn markdown(&self) -> String {
        let mut text = self.heading();
        for (title, columns) in tables() {
            let table = self.table(&columns);
            if let Some(table) = table {
                let _ = write!(text, "\n**{title}**\n\n{table}\n");
            }
        }
        if !self.notes.is_empty() {
            text.push('\n');
        }
        for note in &self.notes {
            let _ = writeln!(text, "- {note}");
        }
        text
    }

    fn heading(&self) -> String {
        let machine = &self.machine;
        let mut text = format!(
            "{} x {}, {} GiB, Linux {}; loopback TCP with {}{}",
            machine.cpus,
            machine.cpu,
            machine.memory_gib,
            machine.kernel,
            machine.tcp_congestion.to_uppercase(),
            if machine.namespace {
                ", in a network namespace of its own"
            } else {
                ""
            },
        );
        if let Some(bytes) = machine.udp_rcvbuf_max_bytes {
            let _ = write!(text, "; net.core.rmem_max {} KiB", bytes >> 10);
        }
        let _ = writeln!(
            text,
            ". Load generator, service and both processes of a subject share the CPUs; load \
             average before: {}. {} in {:.0} s{}. Medians; in brackets the ratio to the {} of the \
             same round.",
            machine.load_before,
            match self.rounds {
                0 => "No rounds".to_owned(),
                1 => "One round".to_owned(),
                rounds => format!("{rounds} interleaved rounds"),
            },
            self.seconds,
            if self.quick { " (quick)" } else { "" },
            self.baseline
        );
        if !self.settings.is_empty() {
            let _ = writeln!(text, "`node` with {}.", self.settings.join(", "));
        }
        text
    }

    /// Nothing when nobody has a value for it.
    fn table(&self, columns: &[Column]) -> Option<String> {
        let columns: Vec<&Column> = columns
            .iter()
            .filter(|column| {
                let subjects = self.subjects(|load| load == column.load);
                subjects
                    .iter()
                    .any(|subject| self.median(subject, &column.load, column.metric).is_some())
            })
            .collect();
        let subjects = self.subjects(|load| columns.iter().any(|column| column.load == load));
        if subjects.is_empty() {
            return None;
        }
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN);
        table.set_header(
            std::iter::once("").chain(columns.iter().map(|column| column.heading.as_str())),
        );
        for subject in subjects {
            let cells = columns.iter().map(|column| self.cell(subject, column));
            table.add_row(std::iter::once(subject.to_owned()).chain(cells));
        }
        let lines = table.lines().map(|line| line.trim_end().to_owned());
        Some(lines.collect::<Vec<_>>().join("\n"))
    }

    fn cell(&self, subject: &str, column: &Column) -> String {
        let Some(median) = self.median(subject, &column.load, column.metric) else {
            return "–".into();
        };
        let value = format!("{median:.*}", column.decimals);
        match self.ratio(subject, &column.load, column.metric) {
            Some(ratio) if column.ratio => format!("{value} ({ratio:.2})"),
            _ => value,
        }
    }
}

fn tables() -> Vec<(String, Vec<Column>)> {
    const LOADS: [(&str, &str); 6] = [
        ("down 1", "bulk down 1"),
        ("down 8", "bulk down 8"),
        ("down 64", "bulk down 64"),
        ("up 1", "bulk up 1"),
        ("up 8", "bulk up 8"),
        ("up 64", "bulk up 64"),
    ];
    let bulk = |metric, decimals| {
        let columns = LOADS.map(|(heading, load)| column(heading, load, metric, decimals, true));
        Vec::from(columns)
    };
    let latency = |load: &str| {
        vec![
            column("p50", load, "p50_us", 0, true),
            column("p99", load, "p99_us", 0, true),
            column("p99.9", load, "p999_us", 0, true),
        ]
    };
    let mut beside = latency("latency beside bulk");
    beside.push(column(
        "bulk Gbit/s",
        "latency beside bulk",
        "gbit_per_s",
        1,
        true,
    ));
    let mut tables = vec![
        ("Bulk, Gbit/s, by streams".into(), bulk("gbit_per_s", 1)),
        (
            "CPU of the tunnel's two processes, seconds per GiB".into(),
            bulk("cpu_s_per_gib", 2),
        ),
        (
            "Small requests, nothing else going on, µs".into(),
            latency("latency idle"),
        ),
        ("Small requests beside one bulk download, µs".into(), beside),
        (
            "Small requests beside 64 downloads that nobody reads, µs".into(),
            latency("latency 64 stalled"),
        ),
        (
            "New connections, 64 at once".into(),
            vec![
                column("per second", "connections", "per_s", 0, true),
                column("failed", "connections", "failed", 0, false),
            ],
        ),
        (
            "Memory of an idle stream, KiB resident, near the user / near the service".into(),
            vec![
                column("1,000: near user", "streams 1000", "near_kib", 1, true),
                column("near service", "streams 1000", "far_kib", 1, true),
                column("10,000: near user", "streams 10000", "near_kib", 1, true),
                column("near service", "streams 10000", "far_kib", 1, true),
            ],
        ),
    ];
    let mut agents = Vec::new();
    for count in [100, 1_000, 10_000] {
        let load = format!("agents {count}");
        let heading = |what: &str| format!("{count}: {what}");
        agents.push(column(
            &heading("KiB at the proxy"),
            &load,
            "near_kib",
            1,
            false,
        ));
        agents.push(column(
            &heading("KiB at the agents"),
            &load,
            "far_kib",
            1,
            false,
        ));
        agents.push(column(&heading("connected, s"), &load, "seconds", 1, false));
    }
    tables.push(("Memory of an idle agent, KiB resident".into(), agents));
    for percent in [0, 1, 3] {
        let load = format!("link {percent}");
        tables.push((
            format!("RTT 50 ms, 200 Mbit/s, queue 1.25 MB, MTU 1500, {percent} % loss each way"),
            vec![
                column("bulk Mbit/s", &load, "mbit_per_s", 1, false),
                column("small requests p50, ms", &load, "p50_ms", 0, false),
                column("p99, ms", &load, "p99_ms", 0, false),
            ],
        ));
    }
    tables
}

#[cfg(test)]
mod tests {
    use super::super::tests::report;

    #[test]
    fn a_table_has_what_was_measured_and_no_more() {
        let mut report = report();
        report.rounds = 3;
        report.note("nothing else was measured".into());
        let text = report.markdown();
        assert!(text.contains("2 x A CPU, 4 GiB, Linux 6.1; loopback TCP with CUBIC"));
        assert!(text.contains("3 interleaved rounds"));
        let rows: Vec<String> = text
            .lines()
            .filter(|line| line.starts_with('|'))
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(rows.len(), 4);
        assert_eq!(rows[0], "| | down 1 |");
        assert_eq!(rows[2], "| plain relay | 20.0 (1.00) |");
        assert_eq!(rows[3], "| node | 8.0 (0.50) |");
        assert!(text.ends_with("- nothing else was measured\n"));
    }
}
