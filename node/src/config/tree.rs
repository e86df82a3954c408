//! TOML with the place of every value, and the search for everything that does not fit the shape.
//!
//! Every value of every layer gets a number, its index in [`Spots`], which says where it was
//! written and under which key. The number takes the place of the span that `toml` keeps with a
//! value, so that an error of deserialization leads back to the layer, line and key it is about.
//! Deserialization stops at its first error: the faulty value is then reported and taken out, and
//! the rest is tried again, until it fits.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use ::config::{Map, Value, ValueKind};
use serde::Deserialize as _;
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue, Deserializer};

use super::errors::{ConfigError, ERRORS_MAX, Place, nearest, quoted};
use super::file::Shape;

/// What the documentation describes and this version does not do.
const UNSUPPORTED: [&str; 5] = [
    "store",
    "trust",
    "grant",
    "proxy.duplicate_names",
    "proxy.allow",
];

/// Where a value was written, and under which key.
#[derive(Debug, Clone)]
pub(super) struct Spot {
    pub(super) place: Place,
    pub(super) key: String,
}

/// The spots of all values of all layers.
#[derive(Debug, Default)]
pub(super) struct Spots(Vec<Spot>);

impl Spots {
    pub(super) fn add(&mut self, place: Place, key: String) -> usize {
        self.0.push(Spot { place, key });
        self.0.len() - 1
    }

    pub(super) fn get(&self, number: usize) -> Option<&Spot> {
        self.0.get(number)
    }
}

/// What was found so far.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) errors: Vec<ConfigError>,
    /// Keys with an error of their own: that they are missing is no further error.
    pub(super) faulty: BTreeSet<String>,
    /// Parts of a file could not be understood: what seems to be missing may stand there.
    pub(super) incomplete: bool,
}

/// Reads the text of a file; what is no TOML is reported and left out.
pub(super) fn parse_file<'i>(
    path: &Arc<Path>,
    text: &'i str,
    spots: &mut Spots,
    report: &mut Report,
) -> DeTable<'i> {
    let (root, syntax_errors) = DeTable::parse_recoverable(text);
    let lines = Lines::of(text);
    let place_at = |offset: usize| Place::File {
        path: path.clone(),
        line: Some(lines.line(offset)),
    };
    let bad: Vec<usize> = syntax_errors
        .iter()
        .filter_map(|error| Some(error.span()?.start))
        .collect();
    let mut numbering = Numbering {
        place_at: &place_at,
        bad: &bad,
        spots,
        spoilt: Vec::new(),
    };
    let table = numbering.table(root.into_inner(), "");
    let spoilt = numbering.spoilt;
    let mut last_line = None;
    for error in &syntax_errors {
        let span = error.span().unwrap_or(0..0);
        let key = spoilt
            .iter()
            .find(|(at, _)| touches(at, span.start))
            .map(|(_, key)| key.clone());
        let duplicate = error.message() == "duplicate key";
        if key.is_none() && !duplicate {
            report.incomplete = true;
        }
        // The parser stumbles several times over one mistake: the first on a line is the one.
        let line = lines.line(span.start);
        if last_line.replace(line) == Some(line) {
            continue;
        }
        let (what, remedy) = if duplicate {
            (
                format!(
                    "the key {} is written twice",
                    quoted(text.get(span).unwrap_or_default())
                ),
                "remove one of them".to_owned(),
            )
        } else {
            syntax_text(error.message())
        };
        report.errors.push(ConfigError {
            place: Place::File {
                path: path.clone(),
                line: Some(line),
            },
            key: key.unwrap_or_default(),
            what,
            remedy,
        });
    }
    report.faulty.extend(spoilt.into_iter().map(|(_, key)| key));
    table
}

/// Reads the value of a variable or flag: TOML where it is, else the text itself.
pub(super) fn parse_value<'i>(
    text: &'i str,
    place: &Place,
    key: &str,
    spots: &mut Spots,
) -> Spanned<DeValue<'i>> {
    match DeValue::parse(text) {
        Ok(value) => {
            let place_at = |_: usize| place.clone();
            let mut numbering = Numbering {
                place_at: &place_at,
                bad: &[],
                spots,
                spoilt: Vec::new(),
            };
            // Nothing is bad, so nothing is left out.
            numbering
                .value(value, key)
                .unwrap_or_else(|| text_value(text, place, key, spots))
        }
        Err(_) => text_value(text, place, key, spots),
    }
}

/// The text of a variable or flag as a string.
pub(super) fn text_value<'i>(
    text: &'i str,
    place: &Place,
    key: &str,
    spots: &mut Spots,
) -> Spanned<DeValue<'i>> {
    spanned(
        spots.add(place.clone(), key.to_owned()),
        DeValue::String(Cow::Borrowed(text)),
    )
}

/// A step from a table or list to what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Key(String),
    Index(usize),
}

/// A table with `value` alone, at the end of `steps`. A list has but this element, whatever its
/// index: that is for the merging.
pub(super) fn nest<'i>(
    steps: &[Step],
    value: Spanned<DeValue<'i>>,
    place: &Place,
    spots: &mut Spots,
) -> DeTable<'i> {
    let mut nested = value;
    for depth in (0..steps.len()).rev() {
        let inner_key = key_of(&steps[..=depth]);
        let outer_key = key_of(&steps[..depth]);
        let wrapped = match &steps[depth] {
            Step::Key(name) => {
                let name_number = spots.add(place.clone(), inner_key);
                let mut table = DeTable::new();
                table.insert(spanned(name_number, Cow::Owned(name.clone())), nested);
                DeValue::Table(table)
            }
            Step::Index(_) => {
                let mut list = DeArray::new();
                list.push(nested);
                DeValue::Array(list)
            }
        };
        nested = spanned(spots.add(place.clone(), outer_key), wrapped);
    }
    match nested.into_inner() {
        DeValue::Table(table) => table,
        DeValue::String(_)
        | DeValue::Integer(_)
        | DeValue::Float(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_)
        | DeValue::Array(_) => DeTable::new(),
    }
}

/// Steps as they are written: `ingress[0].listen`.
pub(super) fn key_of(steps: &[Step]) -> String {
    let mut key = String::new();
    for step in steps {
        match step {
            Step::Key(name) => key = join(&key, name),
            Step::Index(index) => key.push_str(&format!("[{index}]")),
        }
    }
    key
}

/// Takes everything out of `table` that does not fit the shape, and reports it.
pub(super) fn fit(table: &mut DeTable<'_>, spots: &Spots, report: &mut Report) {
    let mut found = 0;
    loop {
        let attempt = Shape::deserialize(Deserializer::from(Spanned::new(
            usize::MAX..usize::MAX,
            table.clone(),
        )));
        let Err(error) = attempt else {
            return;
        };
        let number = error.span().map(|span| span.start);
        let spot = number.and_then(|number| spots.get(number));
        let removed = number.is_some_and(|number| remove(table, number));
        let (Some(spot), true) = (spot, removed) else {
            // Every value has a number, so this is about the root, which is always a table.
            report.incomplete = true;
            report.errors.push(ConfigError {
                place: Place::Nowhere,
                key: String::new(),
                what: error.message().to_owned(),
                remedy: "correct the configuration".into(),
            });
            *table = DeTable::new();
            return;
        };
        let mismatch = Mismatch::of(error.message(), &spot.key);
        report.faulty.insert(spot.key.clone());
        report.faulty.extend(mismatch.meant);
        report.errors.push(ConfigError {
            place: spot.place.clone(),
            key: spot.key.clone(),
            what: mismatch.what,
            remedy: mismatch.remedy,
        });
        found += 1;
        if found > ERRORS_MAX {
            report.incomplete = true;
            *table = DeTable::new();
            return;
        }
    }
}

/// The table as a layer of the `config` crate; the origin of each value is its number.
pub(super) fn layer(table: &DeTable<'_>) -> Map<String, Value> {
    table
        .iter()
        .map(|(name, value)| (name.get_ref().clone().into_owned(), layer_value(value)))
        .collect()
}

/// One value of a layer.
pub(super) fn layer_value(value: &Spanned<DeValue<'_>>) -> Value {
    let kind = match value.get_ref() {
        DeValue::String(text) => ValueKind::String(text.clone().into_owned()),
        DeValue::Integer(integer) => i64::from_str_radix(integer.as_str(), integer.radix())
            .map_or_else(
                |_| ValueKind::String(integer.as_str().to_owned()),
                ValueKind::I64,
            ),
        DeValue::Float(float) => ValueKind::String(float.as_str().to_owned()),
        DeValue::Boolean(flag) => ValueKind::Boolean(*flag),
        DeValue::Datetime(datetime) => ValueKind::String(datetime.to_string()),
        DeValue::Array(list) => ValueKind::Array(list.iter().map(layer_value).collect()),
        DeValue::Table(table) => ValueKind::Table(layer(table)),
    };
    Value::new(Some(&value.span().start.to_string()), kind)
}

/// What stands at the end of `steps` in a table that [`nest`] made.
pub(super) fn innermost<'t, 'i>(
    table: &'t DeTable<'i>,
    steps: &[Step],
) -> Option<&'t Spanned<DeValue<'i>>> {
    let (first, rest) = steps.split_first()?;
    let Step::Key(name) = first else {
        return None;
    };
    let mut value = table.get(name.as_str())?;
    for step in rest {
        value = match step {
            Step::Key(name) => value.get_ref().as_table()?.get(name.as_str())?,
            Step::Index(_) => value.get_ref().as_array()?.first()?,
        };
    }
    Some(value)
}

/// Gives every value its number, and leaves out what an error of syntax touches.
struct Numbering<'a> {
    place_at: &'a dyn Fn(usize) -> Place,
    bad: &'a [usize],
    spots: &'a mut Spots,
    /// What was left out: where it stands, and its key.
    spoilt: Vec<(Range<usize>, String)>,
}

impl Numbering<'_> {
    fn table<'i>(&mut self, table: DeTable<'i>, key: &str) -> DeTable<'i> {
        let mut numbered = DeTable::new();
        for (name, value) in table {
            let inner_key = join(key, name.get_ref());
            let name_number = self
                .spots
                .add((self.place_at)(name.span().start), inner_key.clone());
            if let Some(value) = self.value(value, &inner_key) {
                numbered.insert(spanned(name_number, name.into_inner()), value);
            }
        }
        numbered
    }

    fn value<'i>(
        &mut self,
        value: Spanned<DeValue<'i>>,
        key: &str,
    ) -> Option<Spanned<DeValue<'i>>> {
        let span = value.span();
        let tables_alone = match value.get_ref() {
            DeValue::Table(_) => true,
            DeValue::Array(list) => {
                !list.is_empty() && list.iter().all(|element| element.get_ref().is_table())
            }
            DeValue::String(_)
            | DeValue::Integer(_)
            | DeValue::Float(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_) => false,
        };
        if !tables_alone && self.bad.iter().any(|offset| touches(&span, *offset)) {
            self.spoilt.push((span, key.to_owned()));
            return None;
        }
        let number = self.spots.add((self.place_at)(span.start), key.to_owned());
        let value = match value.into_inner() {
            DeValue::Table(table) => DeValue::Table(self.table(table, key)),
            DeValue::Array(list) => {
                let mut numbered = DeArray::new();
                for (index, element) in list.into_iter().enumerate() {
                    if let Some(element) = self.value(element, &format!("{key}[{index}]")) {
                        numbered.push(element);
                    }
                }
                DeValue::Array(numbered)
            }
            scalar @ (DeValue::String(_)
            | DeValue::Integer(_)
            | DeValue::Float(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_)) => scalar,
        };
        Some(spanned(number, value))
    }
}

/// What an error of deserialization says, in the words of this crate.
struct Mismatch {
    what: String,
    remedy: String,
    /// The key that a misspelt one stands for.
    meant: Option<String>,
}

impl Mismatch {
    fn of(message: &str, key: &str) -> Self {
        if let Some(rest) = message.strip_prefix("unknown field ") {
            return Self::unknown(rest, key);
        }
        if let Some((found, expected)) = message
            .strip_prefix("invalid type: ")
            .and_then(|rest| rest.split_once(", expected "))
        {
            let remedy = match (found, expected) {
                ("map", "a sequence") => format!("write [[{key}]], since there may be several"),
                (_, "a sequence") => format!("write it as tables, [[{key}]]"),
                (_, _) => format!("write {expected}"),
            };
            return Self {
                what: format!("{} does not fit", found_text(found)),
                remedy,
                meant: None,
            };
        }
        Self {
            what: cut(message),
            remedy: "correct the value".into(),
            meant: None,
        }
    }

    /// `rest` is as in "`lisen`, expected one of `listen`, `advertise`".
    fn unknown(rest: &str, key: &str) -> Self {
        if UNSUPPORTED.contains(&key) {
            return Self {
                what: "is not supported by this version of node".into(),
                remedy: "remove it".into(),
                meant: None,
            };
        }
        let known: Vec<&str> = rest
            .rsplit_once(", expected ")
            .map(|(_, known)| known.split('`').skip(1).step_by(2).collect())
            .unwrap_or_default();
        let (table, name) = key.rsplit_once('.').unwrap_or(("", key));
        let meant = nearest(name, known.iter().copied());
        let remedy = match meant {
            Some(meant) => format!("did you mean {meant:?}?"),
            None => format!("known here are {}", known.join(", ")),
        };
        Self {
            what: "unknown key".into(),
            remedy,
            meant: meant.map(|meant| join(table, meant)),
        }
    }
}

/// What was found, as `serde` names it, in words.
fn found_text(found: &str) -> String {
    match found {
        "map" => "a table".into(),
        "sequence" => "a list".into(),
        other => {
            let (kind, value) = other.split_once(' ').unwrap_or((other, ""));
            let kind = match kind {
                "integer" => "the number",
                "boolean" => "the value",
                "string" => "the text",
                "floating" => {
                    return format!(
                        "the number {}",
                        cut(value.trim_start_matches("point ").trim_matches('`'))
                    );
                }
                unnamed => unnamed,
            };
            format!("{kind} {}", cut(value.trim_matches('`')))
        }
    }
}

/// What is wrong with the syntax, and what to do.
fn syntax_text(message: &str) -> (String, String) {
    let unquoted = [
        "string values must be quoted",
        "invalid float",
        "invalid boolean",
        "invalid integer",
        "invalid datetime",
    ]
    .iter()
    .any(|start| message.starts_with(start));
    let remedy = if unquoted {
        "put a text in quotes; write numbers, true and false without"
    } else {
        "correct the line"
    };
    (
        format!("not valid TOML ({})", cut(message)),
        remedy.to_owned(),
    )
}

/// As much of a message as is worth showing.
fn cut(message: &str) -> String {
    const CHARS_MAX: usize = 120;
    if message.chars().nth(CHARS_MAX).is_none() {
        return message.to_owned();
    }
    let start: String = message.chars().take(CHARS_MAX).collect();
    format!("{start}…")
}

/// Takes the key or value with this number out; whether it was there.
fn remove(table: &mut DeTable<'_>, number: usize) -> bool {
    let faulty = table
        .iter()
        .find(|(name, value)| name.span().start == number || value.span().start == number)
        .map(|(name, _)| name.get_ref().clone().into_owned());
    match faulty {
        Some(name) => table.remove(name.as_str()).is_some(),
        None => table
            .iter_mut()
            .any(|(_, value)| remove_within(value.get_mut(), number)),
    }
}

fn remove_within(value: &mut DeValue<'_>, number: usize) -> bool {
    match value {
        DeValue::Table(table) => remove(table, number),
        DeValue::Array(list) => {
            if !list.iter().any(|element| element.span().start == number) {
                return list
                    .iter_mut()
                    .any(|element| remove_within(element.get_mut(), number));
            }
            let mut rest = DeArray::new();
            for element in list.iter().filter(|element| element.span().start != number) {
                rest.push(element.clone());
            }
            *list = rest;
            true
        }
        DeValue::String(_)
        | DeValue::Integer(_)
        | DeValue::Float(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_) => false,
    }
}

fn join(table: &str, name: &str) -> String {
    let bare = !name.is_empty()
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    let name = if bare { name.to_owned() } else { quoted(name) };
    if table.is_empty() {
        name
    } else {
        format!("{table}.{name}")
    }
}

fn spanned<T>(number: usize, value: T) -> Spanned<T> {
    Spanned::new(number..number, value)
}

fn touches(span: &Range<usize>, offset: usize) -> bool {
    span.start <= offset && offset <= span.end
}

/// The starts of the lines of a text.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Self {
        Self(
            std::iter::once(0)
                .chain(text.match_indices('\n').map(|(at, _)| at + 1))
                .collect(),
        )
    }

    /// The line that an offset lies on, from 1.
    fn line(&self, offset: usize) -> usize {
        self.0.partition_point(|start| *start <= offset).max(1)
    }
}
