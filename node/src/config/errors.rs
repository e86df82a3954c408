//! What is wrong with a configuration: everything at once, each error with its place and remedy.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// The most errors of one load that are listed.
pub(super) const ERRORS_MAX: usize = 100;

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In a file.
    File {
        /// The file, as it was named.
        path: Arc<Path>,
        /// The line, from 1; `None` when it is about the file as a whole.
        line: Option<usize>,
    },
    /// In an environment variable of this name.
    Env(String),
    /// In a `--set` flag.
    Set,
    /// In the `--role` flag.
    RoleFlag,
    /// Nowhere: it was not written.
    Nowhere,
}

impl Place {
    /// What lists are sorted by: files by line, what a file lacks, environment, flags, the rest.
    pub(super) fn order(&self) -> (u8, usize, &str) {
        match self {
            Self::File { path: _, line } => (0, line.unwrap_or(usize::MAX), ""),
            Self::Env(name) => (1, 0, name),
            Self::Set => (2, 0, ""),
            Self::RoleFlag => (3, 0, ""),
            Self::Nowhere => (4, 0, ""),
        }
    }
}

/// One error of a configuration. `Display` is one line: place, key, what is wrong, what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// Where the value was written.
    pub place: Place,
    /// The key, as in `ingress[0].listen`; empty when the error is about no key.
    pub key: String,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_place(f, &self.place, &self.key)?;
        write!(f, "{}: {}", self.what, self.remedy)
    }
}

impl std::error::Error for ConfigError {}

/// Everything that is wrong with a configuration; never empty. `Display` is one error a line, in
/// the order in which they were written: file, environment, flags; what a file lacks comes after
/// what it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(Vec<ConfigError>);

impl ConfigErrors {
    /// The errors in their order, at most [`ERRORS_MAX`] of them; `None` when there are none.
    pub(super) fn new(mut errors: Vec<ConfigError>) -> Option<Self> {
        if errors.is_empty() {
            return None;
        }
        errors.sort_by(|a, b| a.place.order().cmp(&b.place.order()));
        errors.dedup();
        if errors.len() > ERRORS_MAX {
            let left_out = errors.len() - ERRORS_MAX;
            errors.truncate(ERRORS_MAX);
            errors.push(ConfigError {
                place: Place::Nowhere,
                key: String::new(),
                what: format!("{left_out} more errors are not listed"),
                remedy: "correct the ones above first".into(),
            });
        }
        Some(Self(errors))
    }

    /// One error alone.
    pub(super) fn of(error: ConfigError) -> Self {
        Self(vec![error])
    }

    /// The errors, in their order.
    pub fn iter(&self) -> std::slice::Iter<'_, ConfigError> {
        self.0.iter()
    }
}

impl<'a> IntoIterator for &'a ConfigErrors {
    type Item = &'a ConfigError;
    type IntoIter = std::slice::Iter<'a, ConfigError>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// A warning's line: place, key, text.
pub(super) struct Warning<'a> {
    pub(super) place: &'a Place,
    pub(super) key: &'a str,
    pub(super) text: &'a str,
}

impl fmt::Display for Warning<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_place(f, self.place, self.key)?;
        f.write_str(self.text)
    }
}

/// A text of the user's in quotes, escaped and cut to what a message should repeat.
pub(super) fn quoted(text: &str) -> String {
    const CHARS_MAX: usize = 80;
    if text.chars().nth(CHARS_MAX).is_none() {
        return format!("{text:?}");
    }
    let cut: String = text.chars().take(CHARS_MAX).collect();
    format!("{cut:?}…")
}

/// The one of `known` that `word` is most likely a misspelling of.
pub(super) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let edits_max = match word.chars().count() {
        0..=2 => 0,
        3..=5 => 1,
        6..=64 => 2,
        _ => return None,
    };
    known
        .into_iter()
        .map(|candidate| (edits(word, candidate), candidate))
        .filter(|(edits, _)| *edits <= edits_max)
        .min()
        .map(|(_, candidate)| candidate)
}

fn write_place(f: &mut fmt::Formatter<'_>, place: &Place, key: &str) -> fmt::Result {
    match place {
        Place::File {
            path,
            line: Some(line),
        } => write!(f, "{}:{line}: ", path.display())?,
        Place::File { path, line: None } => write!(f, "{}: ", path.display())?,
        Place::Env(name) => write!(f, "{name}: ")?,
        Place::Set => f.write_str("--set ")?,
        Place::RoleFlag => f.write_str("--role: ")?,
        Place::Nowhere => {}
    }
    if !key.is_empty() {
        write!(f, "{key}: ")?;
    }
    Ok(())
}

/// The Levenshtein distance, in characters, where a swap of neighbours counts as one edit.
fn edits(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().collect();
    let b: Vec<char> = b.chars().collect();
    let mut before_last: Vec<usize> = vec![0; b.len() + 1];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.iter().enumerate() {
        let mut row = vec![i + 1; b.len() + 1];
        for (j, to) in b.iter().enumerate() {
            let substituted = last[j] + usize::from(from != to);
            row[j + 1] = substituted.min(last[j + 1] + 1).min(row[j] + 1);
            let swapped = i > 0 && j > 0 && a[i - 1] == *to && *from == b[j - 1];
            if swapped {
                row[j + 1] = row[j + 1].min(before_last[j - 1] + 1);
            }
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    #[test]
    fn misspellings_are_recognised() {
        let known = ["listen", "advertise", "stream_window", "streams_max", "ca"];
        for (word, meant) in [
            ("lisen", Some("listen")),
            ("listne", Some("listen")),
            ("strem_window", Some("stream_window")),
            ("streams_maxx", Some("streams_max")),
            ("colour", None),
            ("cb", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, known), meant, "{word}");
        }
        assert_eq!(nearest(&"x".repeat(1 << 20), known), None);
    }

    #[test]
    fn errors_are_one_a_line_in_the_order_of_their_places() {
        let path: Arc<Path> = Path::new("proxy.toml").into();
        let error = |place, key: &str| ConfigError {
            place,
            key: key.into(),
            what: "is wrong".into(),
            remedy: "correct it".into(),
        };
        let errors = ConfigErrors::new(vec![
            error(Place::Nowhere, "name"),
            error(Place::Set, "quic.listen"),
            error(Place::Env("MESH__ROLE".into()), "role"),
            error(
                Place::File {
                    path: path.clone(),
                    line: Some(12),
                },
                "quic.keepalive",
            ),
            error(
                Place::File {
                    path: path.clone(),
                    line: Some(2),
                },
                "tls.ca",
            ),
            error(Place::File { path, line: None }, ""),
        ])
        .unwrap();
        assert_eq!(
            errors.to_string(),
            "proxy.toml:2: tls.ca: is wrong: correct it\n\
             proxy.toml:12: quic.keepalive: is wrong: correct it\n\
             proxy.toml: is wrong: correct it\n\
             MESH__ROLE: role: is wrong: correct it\n\
             --set quic.listen: is wrong: correct it\n\
             name: is wrong: correct it"
        );
    }

    #[test]
    fn lists_are_bounded() {
        let error = |n: usize| ConfigError {
            place: Place::Set,
            key: format!("k{n:04}"),
            what: "is wrong".into(),
            remedy: "correct it".into(),
        };
        let errors = ConfigErrors::new((0..ERRORS_MAX + 7).map(error).collect()).unwrap();
        assert_eq!(errors.iter().count(), ERRORS_MAX + 1);
        assert!(
            errors
                .to_string()
                .ends_with("\n7 more errors are not listed: correct the ones above first")
        );
        assert!(ConfigErrors::new(Vec::new()).is_none());
    }

    #[test]
    fn quotes_are_escaped_and_cut() {
        assert_eq!(quoted("a\n\"b\""), r#""a\n\"b\"""#);
        assert!(quoted(&"x".repeat(1000)).chars().count() < 90);
    }
}
