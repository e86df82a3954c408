//! The committed numbers, and how those of now compare.
//!
//! ```toml
//! [system_calls]
//! "proxy, per MiB down" = { value = 150.2, tolerance = 0.3 }
//! ```
//!
//! A number may grow by its tolerance, a part of the value. One that has shrunk by more is told of and
//! fails nothing; accepting it keeps what was won.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};
use mesh_tests::Result;

/// With this set to anything, the numbers of now become the baseline.
const ACCEPT_VARIABLE: &str = "MESH_COST_ACCEPT";

/// How to accept what was measured.
const HOW: &str = "if it is worth it, accept what it costs: tests/cost --accept";

/// What a number that is new may grow by.
const TOLERANCE: f64 = 0.25;

/// What was measured: the number, and what it consists of, for people.
#[derive(Debug, Default)]
pub(crate) struct Measured(BTreeMap<String, (f64, String)>);

impl Measured {
    pub(crate) fn add(&mut self, what: impl Into<String>, value: f64, detail: impl Into<String>) {
        self.0.insert(what.into(), (value, detail.into()));
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Entry {
    value: f64,
    tolerance: f64,
}

/// The file.
#[derive(Debug)]
pub(crate) struct Baseline {
    text: String,
    /// Where the numbers of now go, if they do.
    accept_at: Option<PathBuf>,
}

impl Baseline {
    /// The one of the repository.
    pub(crate) fn committed() -> Result<Self> {
        let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/cost.toml"));
        Ok(Self {
            text: std::fs::read_to_string(&path).with_context(|| path.display().to_string())?,
            accept_at: std::env::var_os(ACCEPT_VARIABLE).map(|_| path),
        })
    }

    /// Prints all numbers of a group, and fails when one is over; or has the file say them.
    pub(crate) fn judge(&self, group: &str, measured: &Measured) -> Result {
        let entries = self.entries(group)?;
        for (what, (value, detail)) in &measured.0 {
            let before = entries
                .get(what)
                .map_or_else(|| "nothing".to_owned(), |entry| shown(entry.value));
            println!(
                "{group}: {what}: {} (baseline {before})  {detail}",
                shown(*value)
            );
        }
        if let Some(path) = &self.accept_at {
            return Ok(std::fs::write(path, self.accepting(group, measured)?)?);
        }
        let Verdict { worse, better } = compare(&entries, measured);
        for what in better {
            println!("{group}: {what}\n  to keep it: tests/cost --accept");
        }
        ensure!(worse.is_empty(), "{group}: {}\n{HOW}", worse.join("\n"));
        Ok(())
    }

    fn entries(&self, group: &str) -> Result<BTreeMap<String, Entry>> {
        let table: toml::Table = self.text.parse()?;
        let Some(group) = table.get(group) else {
            return Ok(BTreeMap::new());
        };
        let group = group.as_table().context("a table of numbers")?;
        let mut entries = BTreeMap::new();
        for (what, entry) in group {
            let number = |key: &str| {
                entry
                    .get(key)
                    .and_then(|value| {
                        value
                            .as_float()
                            .or_else(|| value.as_integer().map(|whole| whole as f64))
                    })
                    .with_context(|| format!("{what:?} has no number `{key}`"))
            };
            let entry = Entry {
                value: number("value")?,
                tolerance: number("tolerance")?,
            };
            entries.insert(what.clone(), entry);
        }
        Ok(entries)
    }

    /// The file as it says what was measured: comments, tolerances and other groups stay.
    fn accepting(&self, group: &str, measured: &Measured) -> Result<String> {
        let entries = self.entries(group)?;
        let mut lines = String::new();
        for (what, (value, _)) in &measured.0 {
            let tolerance = entries.get(what).map_or(TOLERANCE, |entry| entry.tolerance);
            writeln!(
                lines,
                "{what:?} = {{ value = {}, tolerance = {tolerance} }}",
                shown(*value)
            )?;
        }
        let header = format!("[{group}]");
        let mut text = String::new();
        let mut here = false;
        let mut found = false;
        for line in self.text.lines() {
            if line.starts_with('[') {
                here = line == header;
            }
            // The numbers of the group come right behind its header, all of them anew.
            if here && line.starts_with('"') {
                continue;
            }
            text.push_str(line);
            text.push('\n');
            if line == header {
                ensure!(!found, "{header} is there twice");
                found = true;
                text.push_str(&lines);
            }
        }
        if !found {
            write!(text, "\n{header}\n{lines}")?;
        }
        if toml::Table::from_iter(text.parse::<toml::Table>()?).is_empty() {
            bail!("nothing was measured");
        }
        Ok(text)
    }
}

#[derive(Debug, Default, PartialEq)]
struct Verdict {
    worse: Vec<String>,
    better: Vec<String>,
}

fn compare(entries: &BTreeMap<String, Entry>, measured: &Measured) -> Verdict {
    let mut verdict = Verdict::default();
    for (what, (value, detail)) in &measured.0 {
        let Some(entry) = entries.get(what) else {
            verdict.worse.push(format!(
                "{what}: {} has no baseline in tests/cost.toml",
                shown(*value)
            ));
            continue;
        };
        let (least, most) = (
            entry.value * (1.0 - entry.tolerance),
            entry.value * (1.0 + entry.tolerance),
        );
        let change = format!(
            "{what}: {} where it was {} ({:+.0} %, tolerated are {:.0} %)",
            shown(*value),
            shown(entry.value),
            (value / entry.value - 1.0) * 100.0,
            entry.tolerance * 100.0
        );
        // What is no number is not fine either.
        if !value.is_finite() || *value > most {
            let now = if detail.is_empty() { "" } else { "\n  now: " };
            verdict.worse.push(format!("{change}{now}{detail}"));
        } else if *value < least {
            verdict.better.push(change);
        }
    }
    for what in entries
        .keys()
        .filter(|what| !measured.0.contains_key(*what))
    {
        verdict
            .worse
            .push(format!("{what}: in tests/cost.toml, and measured no more"));
    }
    verdict
}

/// With so many digits as mean something.
fn shown(value: f64) -> String {
    if value.abs() >= 1000.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# What the numbers are.\n\n[other]\n\"x\" = { value = 1, tolerance = 0.5 }\n\n\
        [here]\n\"a\" = { value = 100.0, tolerance = 0.2 }\n\"b\" = { value = 4, tolerance = 0 }\n\n\
        # Behind.\n";

    fn file() -> Baseline {
        Baseline {
            text: FILE.into(),
            accept_at: None,
        }
    }

    fn measured(numbers: &[(&str, f64)]) -> Measured {
        let mut measured = Measured::default();
        for (what, value) in numbers {
            measured.add(*what, *value, "this and that");
        }
        measured
    }

    fn verdict(numbers: &[(&str, f64)]) -> Verdict {
        compare(&file().entries("here").unwrap(), &measured(numbers))
    }

    #[test]
    fn what_is_within_the_tolerance_passes() {
        for a in [80.0, 100.0, 120.0] {
            assert_eq!(verdict(&[("a", a), ("b", 4.0)]), Verdict::default(), "{a}");
        }
        file()
            .judge("here", &measured(&[("a", 120.0), ("b", 4.0)]))
            .unwrap();
    }

    #[test]
    fn what_has_grown_fails_and_says_by_how_much() {
        let error = file()
            .judge("here", &measured(&[("a", 120.1), ("b", 4.0)]))
            .unwrap_err()
            .to_string();
        for part in [
            "here: a: 120.10 where it was 100.00 (+20 %, tolerated are 20 %)",
            "this and that",
            "tests/cost --accept",
        ] {
            assert!(error.contains(part), "{part:?} is not in {error:?}");
        }
        assert_eq!(verdict(&[("a", 100.0), ("b", 4.1)]).worse.len(), 1);
        assert_eq!(verdict(&[("a", f64::NAN), ("b", 4.0)]).worse.len(), 1);
        assert_eq!(verdict(&[("a", f64::INFINITY), ("b", 9.0)]).worse.len(), 2);
    }

    #[test]
    fn what_has_shrunk_is_told_and_fails_nothing() {
        let Verdict { worse, better } = verdict(&[("a", 79.0), ("b", 4.0)]);
        assert!(worse.is_empty());
        assert_eq!(
            better,
            ["a: 79.00 where it was 100.00 (-21 %, tolerated are 20 %)"]
        );
    }

    #[test]
    fn file_and_measurement_have_the_same_numbers() {
        let new = verdict(&[("a", 100.0), ("b", 4.0), ("c", 1.0)]).worse;
        assert_eq!(new, ["c: 1.00 has no baseline in tests/cost.toml"]);
        let gone = verdict(&[("a", 100.0)]).worse;
        assert_eq!(gone, ["b: in tests/cost.toml, and measured no more"]);
    }

    #[test]
    fn accepting_changes_the_numbers_of_one_group() {
        let text = file()
            .accepting("here", &measured(&[("a", 130.0), ("c", 5000.4)]))
            .unwrap();
        let expected = "# What the numbers are.\n\n[other]\n\"x\" = { value = 1, tolerance = 0.5 }\n\n\
            [here]\n\"a\" = { value = 130.00, tolerance = 0.2 }\n\"c\" = { value = 5000, tolerance = 0.25 }\n\n\
            # Behind.\n";
        assert_eq!(text, expected);
        let accepted = Baseline {
            text,
            accept_at: None,
        };
        let entries = accepted.entries("here").unwrap();
        let again = compare(&entries, &measured(&[("a", 130.0), ("c", 5000.4)]));
        assert_eq!(again, Verdict::default());
        let text = file().accepting("new", &measured(&[("n", 1.5)])).unwrap();
        assert!(text.starts_with(FILE), "{text}");
        let new = Baseline {
            text,
            accept_at: None,
        }
        .entries("new")
        .unwrap();
        let entry = Entry {
            value: 1.5,
            tolerance: TOLERANCE,
        };
        assert_eq!(new.get("n"), Some(&entry));
    }

    #[test]
    fn a_file_that_cannot_be_read_says_why() {
        for (text, why) in [
            ("[here]\n\"a\" = { value = 1 }", "tolerance"),
            ("[here]\n\"a\" = { value = \"1\", tolerance = 1 }", "value"),
            ("here = 1", "table"),
            ("[here", ""),
        ] {
            let file = Baseline {
                text: text.into(),
                accept_at: None,
            };
            let error = file.entries("here").unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
