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
use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue, Deserializer};

use super::errors::{ConfigError, ERRORS_MAX, Place, quoted};
use super::file::Shape;
use super::misfit::{self, Misfit, join};

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
    let mut syntax_errors: Vec<_> = syntax_errors
        .iter()
        .map(|error| (error.span().unwrap_or(0..0), error.message()))
        .collect();
    syntax_errors.sort_by_key(|(span, _)| span.start);
    let mut last_line = None;
    for (span, message) in syntax_errors {
        let (value, key) = spoilt
            .iter()
            .find(|(at, _)| touches(at, span.start))
            .map(|(at, key)| (text.get(at.clone()).unwrap_or_default(), key.clone()))
            .unwrap_or_default();
        let duplicate = message == "duplicate key";
        if key.is_empty() && !duplicate {
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
            misfit::syntax_text(message, value)
        };
        report.errors.push(ConfigError {
            place: Place::File {
                path: path.clone(),
                line: Some(line),
            },
            key,
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
        let attempt = <Shape as Deserialize>::deserialize(Deserializer::from(Spanned::new(
            usize::MAX..usize::MAX,
            table.clone(),
        )));
        let Err(error) = attempt else {
            return;
        };
        let number = error.span().map(|span| span.start);
        let spot = number.and_then(|number| spots.get(number));
        let removed = number.and_then(|number| remove(table, number));
        let (Some(spot), Some(removed)) = (spot, removed) else {
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
        let misfit = Misfit::of(error.message(), &spot.key, &removed);
        report.faulty.insert(spot.key.clone());
        report.faulty.extend(misfit.meant);
        report.errors.push(ConfigError {
            place: spot.place.clone(),
            key: spot.key.clone(),
            what: misfit.what,
            remedy: misfit.remedy,
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

/// Takes the value with this number, or whose key has it, out.
fn remove<'i>(table: &mut DeTable<'i>, number: usize) -> Option<DeValue<'i>> {
    let faulty = table
        .iter()
        .find(|(name, value)| name.span().start == number || value.span().start == number)
        .map(|(name, _)| name.get_ref().clone().into_owned());
    match faulty {
        Some(name) => table.remove(name.as_str()).map(Spanned::into_inner),
        None => table
            .iter_mut()
            .find_map(|(_, value)| remove_within(value.get_mut(), number)),
    }
}

fn remove_within<'i>(value: &mut DeValue<'i>, number: usize) -> Option<DeValue<'i>> {
    match value {
        DeValue::Table(table) => remove(table, number),
        DeValue::Array(list) => {
            if !list.iter().any(|element| element.span().start == number) {
                return list
                    .iter_mut()
                    .find_map(|element| remove_within(element.get_mut(), number));
            }
            let mut removed = None;
            let mut rest = DeArray::new();
            for element in list.iter() {
                if element.span().start == number {
                    removed = Some(element.get_ref().clone());
                } else {
                    rest.push(element.clone());
                }
            }
            *list = rest;
            removed
        }
        DeValue::String(_)
        | DeValue::Integer(_)
        | DeValue::Float(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_) => None,
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
