//! The layers of a configuration: file, environment, flags.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use ::config::{Config, ConfigError as MergeError, Map, Source, Value, ValueKind};

use super::errors::{ConfigError, ConfigErrors, Place, quoted};
use super::file::Shape;
use super::model::NodeConfig;
use super::tree::{self, Report, Spots, Step};
use super::{show, validate};

/// The largest config file, in bytes.
pub(super) const FILE_BYTES_MAX: u64 = 1 << 20;

/// What environment variables that are configuration begin with. Those with a single underscore
/// (`MESH_ADMIN` and the like) belong to the verbs of the command line.
const ENV_PREFIX: &str = "MESH__";

/// The most entries that a list may be given one by one, as in `ingress[3].listen`.
const INDEX_MAX: usize = 255;

/// The most steps of a key.
const STEPS_MAX: usize = 8;

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Role {
    /// Accepts agents and users.
    Proxy,
    /// Dials proxies, and targets for them.
    Agent,
}

impl Role {
    /// As it stands in a config.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Proxy => "proxy",
            Self::Agent => "agent",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A text that is no role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value} is no role: write proxy or agent")]
pub struct UnknownRole {
    /// The text, quoted and cut.
    value: String,
}

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        match text {
            "proxy" => Ok(Self::Proxy),
            "agent" => Ok(Self::Agent),
            _ => Err(UnknownRole {
                value: quoted(text),
            }),
        }
    }
}

/// Where a configuration comes from. All of it may be absent but not all at once.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// `--role`: overrides everything else.
    pub role: Option<Role>,
    /// `--config`: a TOML file of at most 1 MiB. Paths in it are relative to its directory.
    pub file: Option<PathBuf>,
    /// The environment; only variables that begin with `MESH__` are looked at. Paths in them are
    /// relative to the working directory.
    pub env: Vec<(String, String)>,
    /// `--set KEY=VALUE`, in their order. Paths in them are relative to the working directory.
    pub set: Vec<(String, String)>,
}

/// A configuration that holds together.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The configuration.
    pub config: NodeConfig,
    /// What is allowed but deserves a look, a line each with place and key.
    pub warnings: Vec<String>,
    effective: Shape,
}

impl Loaded {
    /// The effective configuration with all defaults, as a file that [`load`] reads to the same
    /// effect from any directory. Keys and tokens are in it as the paths of their files alone.
    ///
    /// # Errors
    /// When it cannot be written as TOML, which no loaded configuration causes.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(&self.effective)
    }
}

/// Reads all layers, merges them, and checks the whole.
///
/// # Errors
/// All errors of all layers at once.
pub fn load(sources: &Sources) -> Result<Loaded, ConfigErrors> {
    let now = certs::system_time()
        .current_time()
        .map_or(0, |time| time.as_secs());
    load_at(sources, i64::try_from(now).unwrap_or(i64::MAX))
}

/// As [`load`], at a time in Unix seconds.
pub(super) fn load_at(sources: &Sources, now: i64) -> Result<Loaded, ConfigErrors> {
    let mut layers = Layers::default();
    let mut report = Report::default();
    let mut text = String::new();
    let path: Option<Arc<Path>> = sources.file.as_deref().map(Into::into);
    if let Some(path) = &path {
        match read_text(path) {
            Ok(read) => text = read,
            Err((what, remedy)) => {
                report.incomplete = true;
                let place = Place::File {
                    path: path.clone(),
                    line: None,
                };
                report.errors.push(ConfigError {
                    place,
                    key: String::new(),
                    what,
                    remedy: remedy.into(),
                });
            }
        }
        layers.file(path, &text, &mut report);
    }
    let mut variables: Vec<(&str, &str)> = sources
        .env
        .iter()
        .filter(|(name, _)| name.starts_with(ENV_PREFIX))
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    variables.sort_unstable();
    for (name, value) in variables {
        layers.variable(name, value, &mut report);
    }
    for (key, value) in &sources.set {
        layers.flag(key, value, &mut report);
    }
    if let Some(role) = sources.role {
        layers.role(role);
    }
    let (shape, origins) = layers.merge(path, &mut report);
    let checked = validate::validate(shape, &origins, report, now)?;
    let effective = show::effective(&checked.config, &checked.shape, &origins);
    Ok(Loaded {
        config: checked.config,
        warnings: checked.warnings,
        effective,
    })
}

/// Where every value of the merged configuration was written.
#[derive(Debug, Default)]
pub(super) struct Origins {
    spots: Spots,
    by_key: BTreeMap<String, usize>,
    file: Option<Arc<Path>>,
}

impl Origins {
    /// Where `key` was written, and its key there; for one that was not, where it belongs: the
    /// table around it, or the file.
    pub(super) fn find(&self, key: &str) -> (Place, String) {
        let mut outer = key;
        loop {
            if let Some(spot) = self
                .by_key
                .get(outer)
                .and_then(|number| self.spots.get(*number))
            {
                let rest = key.get(outer.len()..).unwrap_or_default();
                return (spot.place.clone(), format!("{}{rest}", spot.key));
            }
            // A table that no layer wrote as such is where the first of its keys is.
            let within = |inner: &str| {
                inner
                    .strip_prefix(outer)
                    .is_some_and(|rest| rest.starts_with('.'))
            };
            if outer == key
                && let Some((_, number)) = self
                    .by_key
                    .range(outer.to_owned()..)
                    .take_while(|(inner, _)| inner.starts_with(outer))
                    .find(|(inner, _)| within(inner))
                && let Some(spot) = self.spots.get(*number)
            {
                return (spot.place.clone(), key.to_owned());
            }
            let Some(end) = outer.rfind(['.', '[']) else {
                break;
            };
            outer = outer.get(..end).unwrap_or_default();
        }
        let place = match &self.file {
            Some(path) => Place::File {
                path: path.clone(),
                line: None,
            },
            None => Place::Nowhere,
        };
        (place, key.to_owned())
    }

    /// A path as it was written under `key`, from the working directory: in a file paths are
    /// relative to the file's directory.
    pub(super) fn resolve(&self, key: &str, path: &str) -> PathBuf {
        match self.find(key).0 {
            Place::File { path: file, .. } => file.parent().unwrap_or(Path::new("")).join(path),
            Place::Env(_) | Place::Set | Place::RoleFlag | Place::Nowhere => PathBuf::from(path),
        }
    }
}

/// One layer, for the `config` crate.
#[derive(Debug, Clone)]
struct Layer(Map<String, Value>);

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, MergeError> {
        Ok(self.0.clone())
    }
}

/// The layers so far, lowest first.
#[derive(Debug, Default)]
struct Layers {
    layers: Vec<Layer>,
    origins: Origins,
}

impl Layers {
    fn file(&mut self, path: &Arc<Path>, text: &str, report: &mut Report) {
        let spots = &mut self.origins.spots;
        let mut table = tree::parse_file(path, text, spots, report);
        tree::fit(&mut table, spots, report);
        let layer = tree::layer(&table);
        // Merging gives tables no origin, and what is missing in one is said to be missing there.
        for (name, value) in &layer {
            if let (ValueKind::Table(_), Some(number)) = (&value.kind, number_of(value)) {
                self.origins.by_key.insert(name.clone(), number);
            }
        }
        self.layers.push(Layer(layer));
    }

    fn variable(&mut self, name: &str, value: &str, report: &mut Report) {
        let place = Place::Env(name.to_owned());
        let key: Option<Vec<Step>> = name
            .strip_prefix(ENV_PREFIX)
            .map(|rest| rest.split("__").map(variable_step).collect())
            .unwrap_or_default();
        match key {
            Some(steps) if matches!(steps[..], [Step::Key(_), ..]) && steps.len() <= STEPS_MAX => {
                self.single(&steps, value, &place, report);
            }
            Some(_) | None => report.errors.push(ConfigError {
                place,
                key: String::new(),
                what: "names no key".into(),
                remedy: "write MESH__SECTION__KEY, as in MESH__QUIC__LISTEN, or remove it".into(),
            }),
        }
    }

    fn flag(&mut self, key: &str, value: &str, report: &mut Report) {
        match flag_steps(key) {
            Some(steps) => self.single(&steps, value, &Place::Set, report),
            None => report.errors.push(ConfigError {
                place: Place::Set,
                key: quoted(key),
                what: "is no key".into(),
                remedy: "write --set KEY=VALUE, as in --set quic.listen=127.0.0.1:7443".into(),
            }),
        }
    }

    fn role(&mut self, role: Role) {
        let number = self.origins.spots.add(Place::RoleFlag, "role".into());
        let value = Value::new(Some(&number.to_string()), role.as_str());
        self.layers
            .push(Layer(Map::from([("role".to_owned(), value)])));
    }

    /// A layer of one value.
    fn single(&mut self, steps: &[Step], text: &str, place: &Place, report: &mut Report) {
        let spots = &mut self.origins.spots;
        let key = tree::key_of(steps);
        let value = tree::parse_value(text, place, &key, spots);
        let is_text = value.get_ref().is_str();
        let mut table = tree::nest(steps, value, place, spots);
        let mut trial = Report::default();
        tree::fit(&mut table, spots, &mut trial);
        if !trial.errors.is_empty() && !is_text {
            // A name such as `1234` is a text that happens to look like a number.
            let value = tree::text_value(text, place, &key, spots);
            let mut as_text = tree::nest(steps, value, place, spots);
            let mut second_trial = Report::default();
            tree::fit(&mut as_text, spots, &mut second_trial);
            if second_trial.errors.is_empty() {
                (table, trial) = (as_text, second_trial);
            }
        }
        report.errors.append(&mut trial.errors);
        report.faulty.append(&mut trial.faulty);
        if let Some(value) = tree::innermost(&table, steps) {
            self.layers
                .push(Layer(Map::from([(key, tree::layer_value(value))])));
        }
    }

    /// All layers as one, and where each value is from.
    fn merge(self, path: Option<Arc<Path>>, report: &mut Report) -> (Shape, Origins) {
        let mut origins = Origins {
            file: path,
            ..self.origins
        };
        let mut builder = Config::builder();
        for layer in self.layers {
            builder = builder.add_source(layer);
        }
        let merged = builder.build().and_then(|mut merged| {
            find_origins(&mut merged.cache, "", &mut origins, report);
            merged.try_deserialize::<Shape>()
        });
        let shape = merged.unwrap_or_else(|error| {
            report.incomplete = true;
            report.errors.push(ConfigError {
                place: Place::Nowhere,
                key: String::new(),
                what: format!("file, environment and flags do not go together: {error}"),
                remedy: "give the whole of it in one of them".into(),
            });
            Shape::default()
        });
        (shape, origins)
    }
}

/// Notes where the merged values are from, and takes out gaps in lists.
fn find_origins(value: &mut Value, key: &str, origins: &mut Origins, report: &mut Report) {
    if let Some(number) = number_of(value) {
        origins.by_key.insert(key.to_owned(), number);
    }
    match &mut value.kind {
        ValueKind::Table(table) => {
            for (name, inner) in table.iter_mut() {
                let inner_key = if key.is_empty() {
                    name.clone()
                } else {
                    format!("{key}.{name}")
                };
                find_origins(inner, &inner_key, origins, report);
            }
        }
        ValueKind::Array(list) => {
            for (index, inner) in list.iter_mut().enumerate() {
                let inner_key = format!("{key}[{index}]");
                if matches!(inner.kind, ValueKind::Nil) {
                    report.incomplete = true;
                    report.errors.push(ConfigError {
                        place: Place::Nowhere,
                        key: inner_key,
                        what: "is not set, though a later one is".into(),
                        remedy: "number the entries from 0 without a gap".into(),
                    });
                } else {
                    find_origins(inner, &inner_key, origins, report);
                }
            }
            list.retain(|inner| !matches!(inner.kind, ValueKind::Nil));
        }
        ValueKind::Nil
        | ValueKind::Boolean(_)
        | ValueKind::I64(_)
        | ValueKind::I128(_)
        | ValueKind::U64(_)
        | ValueKind::U128(_)
        | ValueKind::Float(_)
        | ValueKind::String(_) => {}
    }
}

fn number_of(value: &Value) -> Option<usize> {
    value.origin()?.parse().ok()
}

/// `STREAM_WINDOW` or `0`, between the double underscores of a variable's name.
fn variable_step(part: &str) -> Option<Step> {
    if let Some(index) = index_of(part) {
        return Some(Step::Index(index));
    }
    is_name(part).then(|| Step::Key(part.to_ascii_lowercase()))
}

/// `ingress[0].listen` in its steps.
fn flag_steps(key: &str) -> Option<Vec<Step>> {
    let mut steps = Vec::new();
    for part in key.split('.') {
        let (name, mut indexes) = part.split_at(part.find('[').unwrap_or(part.len()));
        if !is_name(name) {
            return None;
        }
        steps.push(Step::Key(name.to_owned()));
        while !indexes.is_empty() {
            let (index, rest) = indexes.strip_prefix('[')?.split_once(']')?;
            steps.push(Step::Index(index_of(index)?));
            indexes = rest;
        }
        if steps.len() > STEPS_MAX {
            return None;
        }
    }
    Some(steps)
}

fn is_name(part: &str) -> bool {
    part.starts_with(|c: char| c.is_ascii_alphabetic())
        && part.len() <= 64
        && part
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn index_of(part: &str) -> Option<usize> {
    if part.is_empty() || !part.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    part.parse().ok().filter(|index| *index <= INDEX_MAX)
}

/// A config file's text, or what is wrong with it and what to do.
fn read_text(path: &Path) -> Result<String, (String, &'static str)> {
    let bytes = validate::read_bounded(path, FILE_BYTES_MAX)
        .map_err(|why| (why, "check the path given with --config"))?;
    String::from_utf8(bytes).map_err(|_| {
        (
            "is not UTF-8 text".to_owned(),
            "check that --config names a TOML file",
        )
    })
}
