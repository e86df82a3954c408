//! What was measured: every value, medians, and ratios to the plain relay of the same round.

mod markdown;

use serde::Serialize;

use crate::machine::Machine;

/// One value.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Sample {
    pub(crate) round: usize,
    pub(crate) subject: String,
    pub(crate) load: String,
    pub(crate) metric: &'static str,
    pub(crate) value: f64,
}

/// All rounds of one value.
#[derive(Debug, Serialize)]
struct Summary<'a> {
    subject: &'a str,
    load: &'a str,
    metric: &'a str,
    median: f64,
    /// To the plain relay of the same round.
    ratio: Option<f64>,
    values: Vec<f64>,
}

/// A run.
#[derive(Debug)]
pub(crate) struct Report {
    machine: Machine,
    baseline: String,
    quick: bool,
    pub(crate) seconds: f64,
    pub(crate) rounds: usize,
    pub(crate) settings: Vec<String>,
    /// What could not be measured, and what a reader has to know.
    notes: Vec<String>,
    samples: Vec<Sample>,
}

impl Report {
    pub(crate) fn new(machine: Machine, baseline: &str, quick: bool, settings: &[String]) -> Self {
        Self {
            machine,
            baseline: baseline.to_owned(),
            quick,
            seconds: 0.0,
            rounds: 0,
            settings: settings.to_vec(),
            notes: Vec::new(),
            samples: Vec::new(),
        }
    }

    pub(crate) fn add(
        &mut self,
        round: usize,
        subject: &str,
        load: &str,
        values: &[(&'static str, f64)],
    ) {
        let shown: Vec<String> = values
            .iter()
            .map(|(metric, value)| format!("{metric} {value:.2}"))
            .collect();
        eprintln!("  {load:<24} {subject:<20} {}", shown.join(", "));
        for (metric, value) in values {
            self.samples.push(Sample {
                round,
                subject: subject.to_owned(),
                load: load.to_owned(),
                metric,
                value: *value,
            });
        }
    }

    /// Descriptors that this process may have.
    pub(crate) fn descriptors(&self) -> u64 {
        self.machine.descriptors
    }

    /// Says that something could not be measured. Logs are for who is there now.
    pub(crate) fn failed(&mut self, error: &anyhow::Error) {
        eprintln!("  {error:#}");
        let text = format!("{error:#}");
        let line = text.lines().next().unwrap_or_default();
        self.notes.push(format!("Not measured: {line}"));
    }

    /// Says something, once.
    pub(crate) fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            eprintln!("  {note}");
            self.notes.push(note);
        }
    }

    /// Subjects for which there is a value of such a load, in the order in which they came.
    fn subjects(&self, is_of: impl Fn(&str) -> bool) -> Vec<&str> {
        let mut subjects = Vec::new();
        for sample in &self.samples {
            if is_of(&sample.load) && !subjects.contains(&sample.subject.as_str()) {
                subjects.push(&sample.subject);
            }
        }
        subjects
    }

    fn values<'a>(
        &'a self,
        subject: &'a str,
        load: &'a str,
        metric: &'a str,
    ) -> impl Iterator<Item = (usize, f64)> + 'a {
        self.samples
            .iter()
            .filter(move |sample| {
                sample.subject == subject && sample.load == load && sample.metric == metric
            })
            .map(|sample| (sample.round, sample.value))
    }

    fn median(&self, subject: &str, load: &str, metric: &str) -> Option<f64> {
        median(
            self.values(subject, load, metric)
                .map(|(_, value)| value)
                .collect(),
        )
    }

    /// The median of the ratios to the baseline of the same round.
    fn ratio(&self, subject: &str, load: &str, metric: &str) -> Option<f64> {
        let ratios = self
            .values(subject, load, metric)
            .filter_map(|(round, value)| {
                let (_, base) = self
                    .values(&self.baseline, load, metric)
                    .find(|(of, _)| *of == round)?;
                (base > 0.0).then(|| value / base)
            });
        median(ratios.collect())
    }

    /// Everything, for programs.
    pub(crate) fn json(&self) -> anyhow::Result<String> {
        let mut summaries: Vec<Summary<'_>> = Vec::new();
        for sample in &self.samples {
            let is_same = |summary: &Summary<'_>| {
                (summary.subject, summary.load, summary.metric)
                    == (&*sample.subject, &*sample.load, sample.metric)
            };
            if summaries.iter().any(is_same) {
                continue;
            }
            let (subject, load, metric) = (&*sample.subject, &*sample.load, sample.metric);
            let values: Vec<f64> = self
                .values(subject, load, metric)
                .map(|(_, value)| value)
                .collect();
            summaries.push(Summary {
                subject,
                load,
                metric,
                median: median(values.clone()).unwrap_or(f64::NAN),
                ratio: self.ratio(subject, load, metric),
                values,
            });
        }
        Ok(serde_json::to_string_pretty(&serde_json::json!({
            "machine": self.machine,
            "quick": self.quick,
            "rounds": self.rounds,
            "seconds": self.seconds,
            "node_settings": self.settings,
            "baseline": self.baseline,
            "results": summaries,
            "notes": self.notes,
        }))?)
    }
}

/// The middle one, or the mean of the two in the middle.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        len if len % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn report() -> Report {
        let machine = Machine {
            cpu: "A CPU".into(),
            cpus: 2,
            memory_gib: 4,
            kernel: "6.1".into(),
            tcp_congestion: "cubic".into(),
            namespace: true,
            udp_rcvbuf_max_bytes: Some(212_992),
            descriptors: 1024,
            load_before: "0.10".into(),
        };
        let mut report = Report::new(machine, "plain relay", true, &[]);
        // The second round was slow for both.
        for (round, [plain, node]) in [[20.0, 10.0], [10.0, 6.0], [20.0, 8.0]].iter().enumerate() {
            report.add(
                round,
                "plain relay",
                "bulk down 1",
                &[("gbit_per_s", *plain)],
            );
            report.add(round, "node", "bulk down 1", &[("gbit_per_s", *node)]);
        }
        report
    }

    #[test]
    fn medians() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0]), Some(2.5));
    }

    #[test]
    fn ratios_are_of_the_same_round() {
        let report = report();
        let load = "bulk down 1";
        assert_eq!(report.median("node", load, "gbit_per_s"), Some(8.0));
        assert_eq!(report.ratio("node", load, "gbit_per_s"), Some(0.5));
        assert_eq!(report.ratio("plain relay", load, "gbit_per_s"), Some(1.0));
        assert_eq!(report.ratio("node", load, "cpu"), None);
    }

    #[test]
    fn json_has_medians_and_every_value() {
        let json: serde_json::Value = serde_json::from_str(&report().json().unwrap()).unwrap();
        let node = &json["results"][1];
        assert_eq!(node["subject"], "node");
        assert_eq!(node["median"], 8.0);
        assert_eq!(node["ratio"], 0.5);
        assert_eq!(node["values"].as_array().unwrap().len(), 3);
        assert_eq!(json["machine"]["tcp_congestion"], "cubic");
    }
}
