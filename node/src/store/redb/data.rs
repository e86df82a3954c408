//! What is in the file: four tables, and what one transaction does to them.
//!
//! | table | key | value |
//! |---|---|---|
//! | `mesh-store` | text | format, revision, up to where history was forgotten, bytes of history |
//! | `entries` | key | revision of creation, of the value, end of life, value |
//! | `history` | revision | what that change was |
//! | `ends` | end of life, key | |

use std::path::Path;

use bytes::Bytes;
use redb::{
    Database, ReadTransaction, ReadableDatabase as _, ReadableTable, ReadableTableMetadata as _,
    Table, TableDefinition, WriteTransaction,
};

use crate::store::{Entry, Event, Listing, Revision, StoreError, within};

/// Its name tells a store from other files of redb.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new(META_NAME);
const ENTRIES: TableDefinition<'_, &str, EntryRow<'_>> = TableDefinition::new("entries");
const HISTORY: TableDefinition<'_, u64, HistoryRow<'_>> = TableDefinition::new("history");
const ENDS: TableDefinition<'_, (u64, &str), ()> = TableDefinition::new("ends");

pub(super) const META_NAME: &str = "mesh-store";

/// Created, modified, end of life (0: none), value.
type EntryRow<'a> = (u64, u64, u64, &'a [u8]);
/// Key, created (0: it was a deletion), value.
type HistoryRow<'a> = (&'a str, u64, &'a [u8]);

const FORMAT: u64 = 1;
/// The revision of a store in which nothing has happened, as etcd's.
const FIRST_REVISION: u64 = 1;

/// The most changes that a watch is told at once.
const EVENTS_AT_ONCE_MAX: usize = 256;
/// The most past changes that are looked at for them at once.
const SCANNED_AT_ONCE_MAX: usize = 4096;
/// The most lives that end in one transaction.
const ENDS_AT_ONCE_MAX: usize = 1024;

#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) entries_max: u64,
    pub(super) history_events_max: u64,
    pub(super) history_bytes_max: u64,
}

/// An open database, and what its operations need.
pub(super) struct Data<'a> {
    pub(super) database: &'a Database,
    pub(super) path: &'a Path,
    pub(super) limits: Limits,
}

/// Changes for a watch.
pub(super) struct Told {
    pub(super) events: Vec<Event>,
    /// All changes up to here were looked at.
    pub(super) up_to: Revision,
    /// There were no more.
    pub(super) is_all: bool,
}

impl Data<'_> {
    /// Makes the tables of an empty store.
    pub(super) fn initialise(&self) -> Result<(), StoreError> {
        self.write(|tx| {
            let mut meta = self.open(tx.open_table(META))?;
            self.ok(meta.insert("format", FORMAT))?;
            self.ok(meta.insert("revision", FIRST_REVISION))?;
            self.ok(meta.insert("forgotten", 0))?;
            self.ok(meta.insert("history_bytes", 0))?;
            self.open(tx.open_table(ENTRIES))?;
            self.open(tx.open_table(HISTORY))?;
            self.open(tx.open_table(ENDS))?;
            Ok(())
        })
    }

    /// Reads everything, and checks that it fits together.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        let tx = self.reading()?;
        let mut names = self.ok(tx.list_tables())?;
        if !names.any(|table| redb::TableHandle::name(&table) == META_NAME) {
            return Err(self.foreign("it is a redb file of another program"));
        }
        let meta = self.open(tx.open_table(META))?;
        let format = self.meta(&meta, "format")?;
        if format != FORMAT {
            return Err(self.foreign(&format!(
                "it is of format {format}, and this version reads format {FORMAT}"
            )));
        }
        let revision = self.meta(&meta, "revision")?;
        let forgotten = self.meta(&meta, "forgotten")?;
        let entries = self.open(tx.open_table(ENTRIES))?;
        let ends = self.open(tx.open_table(ENDS))?;
        let mut with_end = 0;
        for row in self.ok(entries.iter())? {
            let (key, row) = self.ok(row)?;
            let (created, modified, end_ms, _) = row.value();
            if created > modified || modified > revision {
                return Err(self.corrupt("an entry is newer than the store"));
            }
            if end_ms != 0 {
                with_end += 1;
                if self.ok(ends.get((end_ms, key.value())))?.is_none() {
                    return Err(self.corrupt("an entry has an end that is not noted"));
                }
            }
        }
        if self.ok(ends.len())? != with_end {
            return Err(self.corrupt("an end is noted of no entry"));
        }
        let history = self.open(tx.open_table(HISTORY))?;
        let (mut bytes, mut next) = (0, forgotten.max(FIRST_REVISION) + 1);
        for row in self.ok(history.iter())? {
            let (number, row) = self.ok(row)?;
            let (key, _, value) = row.value();
            if number.value() != next {
                return Err(self.corrupt("a past change is missing"));
            }
            next += 1;
            bytes += history_bytes(key, value);
        }
        if next != revision + 1 || bytes != self.meta(&meta, "history_bytes")? {
            return Err(self.corrupt("the past changes do not lead to the present"));
        }
        Ok(())
    }

    pub(super) fn revision(&self) -> Result<u64, StoreError> {
        let tx = self.reading()?;
        let meta = self.open(tx.open_table(META))?;
        self.meta(&meta, "revision")
    }

    /// When the first life ends; `u64::MAX` is never.
    pub(super) fn next_end_ms(&self) -> Result<u64, StoreError> {
        let tx = self.reading()?;
        let ends = self.open(tx.open_table(ENDS))?;
        let first = self.ok(ends.first())?;
        Ok(first.map_or(u64::MAX, |(key, _)| key.value().0))
    }

    pub(super) fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let tx = self.reading()?;
        let entries = self.open(tx.open_table(ENTRIES))?;
        let row = self.ok(entries.get(key))?;
        Ok(row.map(|row| entry(key, row.value())))
    }

    pub(super) fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        let tx = self.reading()?;
        let meta = self.open(tx.open_table(META))?;
        let table = self.open(tx.open_table(ENTRIES))?;
        let mut entries = Vec::new();
        for row in self.ok(table.range(prefix..))? {
            let (key, row) = self.ok(row)?;
            if !key.value().starts_with(prefix) {
                break;
            }
            entries.push(entry(key.value(), row.value()));
        }
        Ok(Listing {
            entries,
            revision: Revision(self.meta(&meta, "revision")?),
        })
    }

    pub(super) fn put(
        &self,
        key: &str,
        value: &[u8],
        expected: Revision,
        end_ms: Option<u64>,
    ) -> Result<Revision, StoreError> {
        self.write(|tx| {
            let mut entries = self.open(tx.open_table(ENTRIES))?;
            let before = self.ok(entries.get(key))?.map(|row| {
                let (created, modified, end_ms, _) = row.value();
                (created, modified, end_ms)
            });
            let current = Revision(before.map_or(0, |(_, modified, _)| modified));
            if current != expected {
                return Err(StoreError::Conflict { current });
            }
            if before.is_none() {
                let count = usize::try_from(self.ok(entries.len())?).unwrap_or(usize::MAX);
                let max = usize::try_from(self.limits.entries_max).unwrap_or(usize::MAX);
                within("a store", "entries", count.saturating_add(1), max)?;
            }
            let mut ends = self.open(tx.open_table(ENDS))?;
            if let Some((_, _, old_end_ms @ 1..)) = before {
                self.ok(ends.remove((old_end_ms, key)))?;
            }
            // Zero is no end; the first millisecond of 1970 is over anyway.
            let end_ms = end_ms.map_or(0, |end_ms| end_ms.max(1));
            if end_ms != 0 {
                self.ok(ends.insert((end_ms, key), ()))?;
            }
            let revision = self.change(tx, key, before.map(|(created, ..)| created), value)?;
            let created = before.map_or(revision, |(created, ..)| created);
            self.ok(entries.insert(key, (created, revision, end_ms, value)))?;
            Ok(Revision(revision))
        })
    }

    pub(super) fn delete(
        &self,
        key: &str,
        expected: Option<Revision>,
    ) -> Result<Option<Revision>, StoreError> {
        let current = self
            .get(key)?
            .map_or(Revision::NONE, |entry| entry.modified);
        if expected.is_some_and(|expected| expected != current) {
            return Err(StoreError::Conflict { current });
        }
        if current == Revision::NONE {
            return Ok(None);
        }
        self.write(|tx| self.remove(tx, key).map(Revision).map(Some))
    }

    /// Deletes what is over at `now_ms`.
    pub(super) fn end_lives(&self, now_ms: u64) -> Result<(), StoreError> {
        while self.next_end_ms()? <= now_ms {
            self.write(|tx| {
                let over: Vec<String> = {
                    let ends = self.open(tx.open_table(ENDS))?;
                    self.ok(ends.range(..=(now_ms, "\u{10ffff}")))?
                        .take(ENDS_AT_ONCE_MAX)
                        .map(|row| Ok(self.ok(row)?.0.value().1.to_owned()))
                        .collect::<Result<_, StoreError>>()?
                };
                for key in over {
                    self.remove(tx, &key)?;
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Whether all changes after that one can be told.
    pub(super) fn check_history(&self, after: Revision) -> Result<(), StoreError> {
        let tx = self.reading()?;
        let meta = self.open(tx.open_table(META))?;
        self.check_known(&meta, after)
    }

    fn check_known(
        &self,
        meta: &impl ReadableTable<&'static str, u64>,
        after: Revision,
    ) -> Result<(), StoreError> {
        let known = self.meta(meta, "forgotten")?..=self.meta(meta, "revision")?;
        if known.contains(&after.0) {
            Ok(())
        } else {
            Err(StoreError::Compacted)
        }
    }

    pub(super) fn changes_after(&self, prefix: &str, after: Revision) -> Result<Told, StoreError> {
        let tx = self.reading()?;
        let meta = self.open(tx.open_table(META))?;
        self.check_known(&meta, after)?;
        let history = self.open(tx.open_table(HISTORY))?;
        let mut told = Told {
            events: Vec::new(),
            up_to: after,
            is_all: true,
        };
        for (scanned, row) in self
            .ok(history.range(after.0.saturating_add(1)..))?
            .enumerate()
        {
            if told.events.len() == EVENTS_AT_ONCE_MAX || scanned == SCANNED_AT_ONCE_MAX {
                told.is_all = false;
                break;
            }
            let (number, row) = self.ok(row)?;
            let revision = Revision(number.value());
            told.up_to = revision;
            let (key, created, value) = row.value();
            if !key.starts_with(prefix) {
                continue;
            }
            told.events.push(match created {
                0 => Event::Delete {
                    key: key.to_owned(),
                    revision,
                },
                _ => Event::Put(entry(key, (created, revision.0, 0, value))),
            });
        }
        Ok(told)
    }

    /// Removes an entry that is there. Returns the revision of the change.
    fn remove(&self, tx: &WriteTransaction, key: &str) -> Result<u64, StoreError> {
        let mut entries = self.open(tx.open_table(ENTRIES))?;
        let end_ms = match self.ok(entries.remove(key))? {
            Some(row) => row.value().2,
            None => return Err(self.corrupt("an end is noted of no entry")),
        };
        if end_ms != 0 {
            let mut ends = self.open(tx.open_table(ENDS))?;
            self.ok(ends.remove((end_ms, key)))?;
        }
        let mut meta = self.open(tx.open_table(META))?;
        self.note(tx, &mut meta, (key, 0, &[]))
    }

    /// Notes that a value is written. `created` is when the key was made, if it is there.
    fn change(
        &self,
        tx: &WriteTransaction,
        key: &str,
        created: Option<u64>,
        value: &[u8],
    ) -> Result<u64, StoreError> {
        let mut meta = self.open(tx.open_table(META))?;
        let revision = self.meta(&meta, "revision")?.saturating_add(1);
        self.note(tx, &mut meta, (key, created.unwrap_or(revision), value))
    }

    /// The next revision, and what it is; forgets what is too long ago.
    fn note(
        &self,
        tx: &WriteTransaction,
        meta: &mut Table<'_, &'static str, u64>,
        row: HistoryRow<'_>,
    ) -> Result<u64, StoreError> {
        let revision = self.meta(meta, "revision")?.saturating_add(1);
        let mut bytes = self.meta(meta, "history_bytes")? + history_bytes(row.0, row.2);
        let mut history = self.open(tx.open_table(HISTORY))?;
        self.ok(history.insert(revision, row))?;
        while self.ok(history.len())? > self.limits.history_events_max
            || bytes > self.limits.history_bytes_max
        {
            let Some((number, gone)) = self.ok(history.pop_first())? else {
                break;
            };
            let (key, _, value) = gone.value();
            bytes = bytes.saturating_sub(history_bytes(key, value));
            self.ok(meta.insert("forgotten", number.value()))?;
        }
        self.ok(meta.insert("history_bytes", bytes))?;
        self.ok(meta.insert("revision", revision))?;
        Ok(revision)
    }

    fn reading(&self) -> Result<ReadTransaction, StoreError> {
        self.ok(self.database.begin_read())
    }

    /// One transaction, on the disk before this returns; nothing of it when `work` fails.
    fn write<T>(
        &self,
        work: impl FnOnce(&WriteTransaction) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let tx = self.ok(self.database.begin_write())?;
        let done = work(&tx)?;
        tx.commit().map_err(|error| {
            let mut error = self.failed(&error.into());
            if let StoreError::Unreachable { maybe_done, .. } = &mut error {
                *maybe_done = true;
            }
            error
        })?;
        Ok(done)
    }

    fn meta(
        &self,
        meta: &impl ReadableTable<&'static str, u64>,
        name: &str,
    ) -> Result<u64, StoreError> {
        match self.ok(meta.get(name))? {
            Some(number) => Ok(number.value()),
            None => Err(self.corrupt(&format!("it has no {name}"))),
        }
    }

    /// A table; one that is missing or of another kind is not of this program.
    fn open<T>(&self, table: Result<T, redb::TableError>) -> Result<T, StoreError> {
        table.map_err(|error| {
            if let redb::TableError::Storage(error) = error {
                self.failed(&error.into())
            } else {
                self.corrupt(&error.to_string())
            }
        })
    }

    fn ok<T, E: Into<redb::Error>>(&self, result: Result<T, E>) -> Result<T, StoreError> {
        result.map_err(|error| self.failed(&error.into()))
    }

    fn failed(&self, error: &redb::Error) -> StoreError {
        super::file::failed(self.path, error)
    }

    fn corrupt(&self, what: &str) -> StoreError {
        StoreError::Corrupt {
            path: self.path.to_owned(),
            what: what.to_owned(),
        }
    }

    fn foreign(&self, what: &str) -> StoreError {
        StoreError::Foreign {
            path: self.path.to_owned(),
            what: what.to_owned(),
        }
    }
}

/// What a past change counts for.
fn history_bytes(key: &str, value: &[u8]) -> u64 {
    (key.len() + value.len()) as u64
}

fn entry(key: &str, (created, modified, _, value): EntryRow<'_>) -> Entry {
    Entry {
        key: key.to_owned(),
        value: Bytes::copy_from_slice(value),
        created: Revision(created),
        modified: Revision(modified),
    }
}
