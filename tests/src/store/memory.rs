//! A store in memory, for fleets in virtual time: no thread, no file, the same every time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use node::net::BoxFuture;
use node::store::{
    Clock, Entry, Event, KEY_BYTES_MAX, Listing, Revision, Store, StoreError, TTL_MAX,
    VALUE_BYTES_MAX, Watch,
};
use tokio::sync::Notify;

/// A store in memory. It keeps all of its history until [`Memory::compact`].
///
/// Lives end when somebody looks, or waits in a watch while tokio's clock reaches their end: its
/// [`Clock`] is to go with that one, as [`super::virtual_clock`] does.
#[derive(Debug, Clone)]
pub struct Memory {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    clock: Clock,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    entries: BTreeMap<String, (Entry, Option<u64>)>,
    history: Vec<Event>,
    revision: Revision,
    forgotten: Revision,
    is_closed: bool,
}

impl Memory {
    /// With nothing in it.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        let state = State {
            entries: BTreeMap::new(),
            history: Vec::new(),
            revision: Revision(1),
            forgotten: Revision::NONE,
            is_closed: false,
        };
        Self {
            shared: Arc::new(Shared {
                clock,
                state: Mutex::new(state),
                changed: Notify::new(),
            }),
        }
    }

    /// Forgets all changes up to now.
    pub fn compact(&self) {
        let mut state = self.shared.lock();
        state.history.clear();
        state.forgotten = state.revision;
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, after what is over has ended.
    fn state(&self) -> Result<MutexGuard<'_, State>, StoreError> {
        let now_ms = self.clock.now_ms();
        let mut state = self.lock();
        if state.is_closed {
            return Err(unreachable("it was closed"));
        }
        let mut over: Vec<(u64, String)> = state
            .entries
            .iter()
            .filter_map(|(key, (_, end_ms))| Some(((*end_ms)?, key.clone())))
            .filter(|(end_ms, _)| *end_ms <= now_ms)
            .collect();
        over.sort();
        for (_, key) in over {
            state.remove(&key);
            self.changed.notify_waiters();
        }
        Ok(state)
    }

    /// How long until the next life ends.
    fn next_end(&self) -> Option<Duration> {
        let state = self.lock();
        let first = state
            .entries
            .values()
            .filter_map(|(_, end_ms)| *end_ms)
            .min()?;
        Some(Duration::from_millis(
            first.saturating_sub(self.clock.now_ms()),
        ))
    }
}

impl State {
    fn current(&self, key: &str) -> Revision {
        self.entries
            .get(key)
            .map_or(Revision::NONE, |(entry, _)| entry.modified)
    }

    fn advance(&mut self) -> Revision {
        self.revision.0 += 1;
        self.revision
    }

    fn remove(&mut self, key: &str) -> Revision {
        self.entries.remove(key);
        let revision = self.advance();
        self.history.push(Event::Delete {
            key: key.to_owned(),
            revision,
        });
        revision
    }

    fn check_known(&self, after: Revision) -> Result<(), StoreError> {
        if (self.forgotten..=self.revision).contains(&after) {
            Ok(())
        } else {
            Err(StoreError::Compacted)
        }
    }
}

fn unreachable(what: &str) -> StoreError {
    StoreError::Unreachable {
        what: what.to_owned(),
        maybe_done: false,
    }
}

fn check_key(key: &str) -> Result<(), StoreError> {
    if key.is_empty() || key.chars().any(char::is_control) {
        return Err(StoreError::BadKey {
            key: key.to_owned(),
        });
    }
    within("a key", key.len(), KEY_BYTES_MAX)
}

fn within(what: &'static str, size: usize, max: usize) -> Result<(), StoreError> {
    if size > max {
        let unit = "bytes";
        return Err(StoreError::TooLarge {
            what,
            unit,
            size,
            max,
        });
    }
    Ok(())
}

/// What is done at once, without waiting for anything.
fn done<'a, T: Send + 'a>(result: Result<T, StoreError>) -> BoxFuture<'a, Result<T, StoreError>> {
    Box::pin(std::future::ready(result))
}

impl Store for Memory {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, StoreError>> {
        done((|| {
            check_key(key)?;
            Ok(self
                .shared
                .state()?
                .entries
                .get(key)
                .map(|(entry, _)| entry.clone()))
        })())
    }

    fn put<'a>(
        &'a self,
        key: &'a str,
        value: Bytes,
        expected: Revision,
        ttl: Option<Duration>,
    ) -> BoxFuture<'a, Result<Revision, StoreError>> {
        done((|| {
            check_key(key)?;
            within("a value", value.len(), VALUE_BYTES_MAX)?;
            let ttl_ms = ttl.map_or(0, |ttl| ttl.as_millis());
            let ttl_ms = usize::try_from(ttl_ms).unwrap_or(usize::MAX);
            within(
                "a time to live",
                ttl_ms,
                usize::try_from(TTL_MAX.as_millis()).unwrap_or(0),
            )?;
            let mut state = self.shared.state()?;
            let current = state.current(key);
            if current != expected {
                return Err(StoreError::Conflict { current });
            }
            let revision = state.advance();
            let created = state
                .entries
                .get(key)
                .map_or(revision, |(entry, _)| entry.created);
            let entry = Entry {
                key: key.to_owned(),
                value,
                created,
                modified: revision,
            };
            let end_ms = ttl.map(|_| self.shared.clock.now_ms().saturating_add(ttl_ms as u64));
            state.history.push(Event::Put(entry.clone()));
            state.entries.insert(key.to_owned(), (entry, end_ms));
            self.shared.changed.notify_waiters();
            Ok(revision)
        })())
    }

    fn delete<'a>(
        &'a self,
        key: &'a str,
        expected: Option<Revision>,
    ) -> BoxFuture<'a, Result<Option<Revision>, StoreError>> {
        done((|| {
            check_key(key)?;
            let mut state = self.shared.state()?;
            let current = state.current(key);
            if expected.is_some_and(|expected| expected != current) {
                return Err(StoreError::Conflict { current });
            }
            if current == Revision::NONE {
                return Ok(None);
            }
            let revision = state.remove(key);
            self.shared.changed.notify_waiters();
            Ok(Some(revision))
        })())
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Listing, StoreError>> {
        done(self.shared.state().map(|state| {
            let begins_so = |entry: &&Entry| entry.key.starts_with(prefix);
            let entries = state.entries.values().map(|(entry, _)| entry);
            Listing {
                entries: entries.filter(begins_so).cloned().collect(),
                revision: state.revision,
            }
        }))
    }

    fn watch<'a>(
        &'a self,
        prefix: &'a str,
        after: Revision,
    ) -> BoxFuture<'a, Result<Box<dyn Watch>, StoreError>> {
        done(self.shared.state().and_then(|state| {
            state.check_known(after)?;
            let watch: Box<dyn Watch> = Box::new(MemoryWatch {
                memory: Arc::clone(&self.shared),
                prefix: prefix.to_owned(),
                after,
            });
            Ok(watch)
        }))
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.shared.lock().is_closed = true;
        self.shared.changed.notify_waiters();
        Box::pin(std::future::ready(()))
    }
}

#[derive(Debug)]
struct MemoryWatch {
    memory: Arc<Shared>,
    prefix: String,
    after: Revision,
}

impl MemoryWatch {
    fn told(&mut self) -> Result<Vec<Event>, StoreError> {
        let state = self.memory.state()?;
        state.check_known(self.after)?;
        let from = state
            .history
            .partition_point(|event| event.revision() <= self.after);
        let begins_so = |event: &&Event| event.key().starts_with(&self.prefix);
        let events = state.history[from..]
            .iter()
            .filter(begins_so)
            .cloned()
            .collect();
        self.after = state.revision;
        Ok(events)
    }
}

impl Watch for MemoryWatch {
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<Event>, StoreError>> {
        Box::pin(async move {
            let memory = self.memory.clone();
            loop {
                let mut changed = std::pin::pin!(memory.changed.notified());
                // Before the look, so that no change falls between the two.
                changed.as_mut().enable();
                let events = self.told()?;
                if !events.is_empty() {
                    return Ok(events);
                }
                match memory.next_end() {
                    None => changed.await,
                    Some(end) => {
                        tokio::select! {
                            biased;
                            () = &mut changed => {}
                            () = tokio::time::sleep(end) => {}
                        }
                    }
                }
            }
        })
    }
}
