//! Reading single values: each either is what it should be, or becomes an error with its place.

use std::fs::File;
use std::io::Read as _;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use mesh_proto::target::Target;

use crate::config::errors::{ConfigError, Place, Warning, nearest, quoted};
use crate::config::file::{Number, Size, Text, Time};
use crate::config::load::Origins;
use crate::config::tree::Report;
use crate::config::units::{format_duration, format_size, parse_duration, parse_size};

/// The findings of one validation, and where values are from.
pub(super) struct Checker<'a> {
    origins: &'a Origins,
    report: Report,
    warnings: Vec<(Place, String)>,
    /// Unix seconds, to judge certificates by.
    pub(super) now: i64,
}

impl<'a> Checker<'a> {
    /// Continues `report`, what the layers had to say.
    pub(super) fn new(origins: &'a Origins, report: Report, now: i64) -> Self {
        Self {
            origins,
            report,
            warnings: Vec::new(),
            now,
        }
    }

    /// The errors, and the warnings in the order of their places.
    pub(super) fn finish(self) -> (Vec<ConfigError>, Vec<String>) {
        let mut warnings = self.warnings;
        warnings.sort_by(|a, b| a.0.order().cmp(&b.0.order()));
        (
            self.report.errors,
            warnings.into_iter().map(|(_, line)| line).collect(),
        )
    }

    /// From now on nothing counts as missing: what it would be needed for is not known.
    pub(super) fn nothing_is_missing(&mut self) {
        self.report.incomplete = true;
    }

    /// Reports an error at `key`.
    pub(super) fn error(&mut self, key: &str, what: impl Into<String>, remedy: impl Into<String>) {
        let (place, key) = self.origins.find(key);
        self.report.faulty.insert(key.clone());
        self.report.errors.push(ConfigError {
            place,
            key,
            what: what.into(),
            remedy: remedy.into(),
        });
    }

    /// Reports that `key` is not set, unless another error explains that.
    pub(super) fn missing(&mut self, key: &str, remedy: &str) {
        let (_, shown) = self.origins.find(key);
        let explained = self.report.faulty.iter().any(|faulty| {
            shown
                .strip_prefix(faulty.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        });
        if !self.report.incomplete && !explained {
            self.error(key, "is not set", remedy);
        }
    }

    /// Notes something at `key` that is allowed but deserves a look.
    pub(super) fn warn(&mut self, key: &str, text: &str) {
        let (place, key) = self.origins.find(key);
        let line = Warning {
            place: &place,
            key: &key,
            text,
        }
        .to_string();
        self.warnings.push((place, line));
    }

    /// The text at `key`, whose absence is an error.
    pub(super) fn required<'s>(
        &mut self,
        key: &str,
        value: Option<&'s Text>,
        remedy: &str,
    ) -> Option<&'s str> {
        if value.is_none() {
            self.missing(key, remedy);
        }
        value.map(|text| text.0.as_str())
    }

    /// Reads a text; `rule` says what the type's error says of it.
    pub(super) fn parse<T: FromStr>(
        &mut self,
        key: &str,
        text: &str,
        what: &str,
        rule: impl Fn(T::Err) -> String,
    ) -> Option<T> {
        match text.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.error(key, format!("{} is not {what}", quoted(text)), rule(error));
                None
            }
        }
    }

    /// One word of a closed set.
    pub(super) fn word<T: Copy>(
        &mut self,
        key: &str,
        text: &str,
        words: &[(&str, T)],
    ) -> Option<T> {
        let found = words
            .iter()
            .find(|(word, _)| *word == text)
            .map(|(_, value)| *value);
        if found.is_none() {
            let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            let remedy = match nearest(text, known.iter().copied()) {
                Some(meant) => format!("did you mean {meant:?}?"),
                None => format!("write one of {}", listed(&known)),
            };
            self.error(key, format!("{} is unknown", quoted(text)), remedy);
        }
        found
    }

    /// A number within bounds; `default` when it is absent, `None` after an error.
    pub(super) fn number<T: TryFrom<i64>>(
        &mut self,
        key: &str,
        value: Option<Number>,
        bounds: RangeInclusive<i64>,
        default: T,
        why: &str,
    ) -> Option<T> {
        let Some(Number(number)) = value else {
            return Some(default);
        };
        let (min, max) = bounds.into_inner();
        self.within(
            key,
            &number.to_string(),
            (number < min, &min.to_string()),
            (number > max, &max.to_string()),
            why,
        )?;
        T::try_from(number).ok()
    }

    /// A duration within bounds; `default` when it is absent, `None` after an error.
    pub(super) fn duration(
        &mut self,
        key: &str,
        value: Option<&Time>,
        bounds: RangeInclusive<Duration>,
        default: Duration,
        why: &str,
    ) -> Option<Duration> {
        let Some(Time(text)) = value else {
            return Some(default);
        };
        let duration = match parse_duration(text) {
            Ok(duration) => duration,
            Err(error) => {
                self.error(key, error.to_string(), error.remedy());
                return None;
            }
        };
        let (min, max) = bounds.into_inner();
        self.within(
            key,
            &quoted(text),
            (duration < min, &format_duration(min)),
            (duration > max, &format_duration(max)),
            why,
        )?;
        Some(duration)
    }

    /// A size in bytes within bounds; `default` when it is absent, `None` after an error.
    pub(super) fn size(
        &mut self,
        key: &str,
        value: Option<&Size>,
        bounds: RangeInclusive<u64>,
        default: u64,
        why: &str,
    ) -> Option<u64> {
        let Some(Size(text)) = value else {
            return Some(default);
        };
        let size = match parse_size(text) {
            Ok(size) => size,
            Err(error) => {
                self.error(key, error.to_string(), error.remedy());
                return None;
            }
        };
        let (min, max) = bounds.into_inner();
        self.within(
            key,
            &quoted(text),
            (size < min, &format_size(min)),
            (size > max, &format_size(max)),
            why,
        )?;
        Some(size)
    }

    /// An address to listen on.
    pub(super) fn listen_address(&mut self, key: &str, text: &str) -> Option<SocketAddr> {
        let Ok(address) = text.parse::<SocketAddr>() else {
            self.error(
                key,
                format!("{} is not an address to listen on", quoted(text)),
                "write IP:port, as in \"127.0.0.1:8123\", \"[::1]:8123\" or \"0.0.0.0:8123\" for all interfaces",
            );
            return None;
        };
        Some(address)
    }

    /// Addresses to dial, `host:port` each.
    pub(super) fn dial_addresses(
        &mut self,
        key: &str,
        texts: &[String],
        count_max: usize,
    ) -> Option<Vec<String>> {
        if texts.len() > count_max {
            self.error(
                key,
                format!("has {} entries, over the limit of {count_max}", texts.len()),
                "name a load balancer or a DNS name with several records instead",
            );
            return None;
        }
        let mut all_good = true;
        for (index, text) in texts.iter().enumerate() {
            all_good &= self.dial_address(&format!("{key}[{index}]"), text);
        }
        all_good.then(|| texts.to_vec())
    }

    /// Whether this is an address to dial, `host:port`; an error if not.
    pub(super) fn dial_address(&mut self, key: &str, text: &str) -> bool {
        let why = match text.parse::<Target>() {
            Ok(Target::Address(_) | Target::Host { .. }) => return true,
            Ok(Target::Unix(_) | Target::Service(_)) => String::new(),
            Err(error) => format!("{}; ", without_forms(&error.rule)),
        };
        self.error(
            key,
            format!("{} is not host:port", quoted(text)),
            format!("{why}write host:port or [v6]:port, as in \"lb.example.com:7443\""),
        );
        false
    }

    /// A path as it was written at `key`, from the working directory.
    pub(super) fn path(&self, key: &str, text: &str) -> PathBuf {
        self.origins.resolve(key, text)
    }

    /// The path at `key` and the content of that file, at most `bytes_max` of it.
    pub(super) fn read(
        &mut self,
        key: &str,
        text: &str,
        bytes_max: u64,
    ) -> Option<(PathBuf, Vec<u8>)> {
        let path = self.path(key, text);
        match read_bounded(&path, bytes_max) {
            Ok(bytes) => Some((path, bytes)),
            Err(why) => {
                let remedy = "check the path (a relative one starts at the directory of the file that names it) and its permissions";
                self.error(key, format!("{} {why}", path.display()), remedy);
                None
            }
        }
    }

    /// Bounds of an ordered value: the error, if it is past one.
    fn within(
        &mut self,
        key: &str,
        value: &str,
        (under, min): (bool, &str),
        (over, max): (bool, &str),
        why: &str,
    ) -> Option<()> {
        let what = if under {
            format!("{value} is under the minimum of {min}")
        } else if over {
            format!("{value} is over the limit of {max}")
        } else {
            return Some(());
        };
        self.error(key, what, format!("choose {min} to {max}; {why}"));
        None
    }
}

/// Reads a file, or says why not: "does not exist", "cannot be read: …", "is over the limit of …".
pub(in crate::config) fn read_bounded(path: &Path, bytes_max: u64) -> Result<Vec<u8>, String> {
    let failed = |error: std::io::Error| {
        if error.kind() == std::io::ErrorKind::NotFound {
            "does not exist".to_owned()
        } else {
            format!("cannot be read: {error}")
        }
    };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    // A pipe or device would be waited for, or never end.
    if !file.metadata().map_err(failed)?.is_file() {
        return Err("is not a file".to_owned());
    }
    file.take(bytes_max + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > bytes_max {
        return Err(format!(
            "is over the limit of {} for such a file",
            format_size(bytes_max)
        ));
    }
    Ok(bytes)
}

/// What a target breaks, without the list of all forms of targets: where not all of them will do,
/// the caller names its own.
pub(super) fn without_forms(rule: &str) -> &str {
    rule.split("; write ").next().unwrap_or(rule)
}

/// Words in quotes, with commas.
pub(super) fn listed(words: &[&str]) -> String {
    words
        .iter()
        .map(|word| quoted(word))
        .collect::<Vec<_>>()
        .join(", ")
}
