//! A view of a prefix of a store that is kept up to date.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rand::Rng as _;
use rand::rngs::StdRng;
use tokio::time::Instant;

use super::{Entry, Event, Listing, Store, StoreError, Watch};
use crate::net::BoxFuture;

/// The bound of the first wait after a failure; it doubles with each further one.
const WAIT_FIRST: Duration = Duration::from_millis(200);
/// The longest wait between two tries.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// The entries below a prefix, as they are, or as they were when the store was last reached.
///
/// It has no task: it moves on while its owner awaits [`Watched::next`], which may be dropped at any
/// time. A store that cannot be reached changes nothing: the last known map stays, however long it
/// takes, and [`Watched::freshness`] says since when it is all that is known. It is then listed
/// anew, after waits that grow and are drawn with full jitter, and what differs is a change.
pub struct Watched {
    store: Arc<dyn Store>,
    prefix: Arc<str>,
    randomness: StdRng,
    entries: BTreeMap<String, Entry>,
    freshness: Freshness,
    failures: u32,
    hear_failure: Option<HearFailure>,
    /// When the watch began that runs.
    watching_since: Option<Instant>,
    step: Step,
}

/// Whether a view is up to date.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Freshness {
    /// It is what the store holds, but for what is on its way.
    UpToDate,
    /// It is what the store held when it was last reached.
    Stale {
        /// When it was last known to be up to date, or when the view was made.
        since: Instant,
        /// Why; `None` as long as the first answer has not come.
        error: Option<StoreError>,
    },
}

/// What has happened to a view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update {
    /// What changed, in order; none when only the freshness did.
    pub changes: Vec<Change>,
    /// How fresh the view is now.
    pub freshness: Freshness,
}

/// An entry that came, went or changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Its key, without what a store puts before it; with the prefix.
    pub key: String,
    /// What it was.
    pub before: Option<Entry>,
    /// What it is.
    pub after: Option<Entry>,
}

/// Hears why the store could not be read.
type HearFailure = Box<dyn Fn(&StoreError) + Send + Sync>;

/// What there was, and a watch from there.
type Listed = Result<(Listing, Box<dyn Watch>), StoreError>;

/// A watch, and what it told.
type Told = (Box<dyn Watch>, Result<Vec<Event>, StoreError>);

/// What is awaited. Each future owns all it needs, so that nothing is lost when the owner of the
/// view stops waiting in the middle.
enum Step {
    Wait(Instant),
    List(BoxFuture<'static, Listed>),
    Watch(BoxFuture<'static, Told>),
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched")
            .field("store", &self.store)
            .field("prefix", &self.prefix)
            .field("entries", &self.entries.len())
            .field("freshness", &self.freshness)
            .finish_non_exhaustive()
    }
}

impl Watched {
    /// A view of the keys that begin with `prefix`; nothing is known yet.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, prefix: &str, randomness: StdRng) -> Self {
        let prefix: Arc<str> = prefix.into();
        Self {
            step: list(store.clone(), prefix.clone()),
            store,
            prefix,
            randomness,
            entries: BTreeMap::new(),
            freshness: Freshness::Stale {
                since: Instant::now(),
                error: None,
            },
            failures: 0,
            hear_failure: None,
            watching_since: None,
        }
    }

    /// The entries by key, as far as they are known.
    #[must_use]
    pub fn entries(&self) -> &BTreeMap<String, Entry> {
        &self.entries
    }

    /// Whether they are what the store holds.
    #[must_use]
    pub fn freshness(&self) -> &Freshness {
        &self.freshness
    }

    /// The same view, which tells of each failure, where an update tells only of the first of several
    /// that are alike.
    #[must_use]
    pub fn on_failure(mut self, hear: impl Fn(&StoreError) + Send + Sync + 'static) -> Self {
        self.hear_failure = Some(Box::new(hear));
        self
    }

    /// The next thing that happens: entries change, or the freshness does. [`Watched::entries`] and
    /// [`Watched::freshness`] are then as the update says. The future may be dropped without loss.
    pub async fn next(&mut self) -> Update {
        loop {
            if let Some(update) = self.advance().await {
                return update;
            }
        }
    }

    async fn advance(&mut self) -> Option<Update> {
        match &mut self.step {
            Step::Wait(until) => {
                tokio::time::sleep_until(*until).await;
                self.step = list(self.store.clone(), self.prefix.clone());
                None
            }
            Step::List(listing) => match listing.await {
                Ok((listing, watch)) => {
                    self.step = next_of(watch);
                    self.watching_since = Some(Instant::now());
                    let changes = self.replace(listing);
                    let was_stale = self.freshness != Freshness::UpToDate;
                    self.freshness = Freshness::UpToDate;
                    (was_stale || !changes.is_empty()).then(|| self.update(changes))
                }
                Err(error) => self.fail(error),
            },
            Step::Watch(next) => {
                let (watch, told) = next.await;
                match told {
                    Ok(events) => {
                        self.step = next_of(watch);
                        let changes = self.apply(events);
                        (!changes.is_empty()).then(|| self.update(changes))
                    }
                    Err(error) => self.fail(error),
                }
            }
        }
    }

    /// Lists again after a while. Says so, unless that was known.
    fn fail(&mut self, error: StoreError) -> Option<Update> {
        let now = Instant::now();
        // A watch that breaks as soon as it stands is a failure like any other.
        let stood = self.watching_since.take().map(|since| now - since);
        if stood.is_some_and(|stood| stood >= WAIT_MAX) {
            self.failures = 0;
        }
        self.failures = self.failures.saturating_add(1);
        if let Some(hear) = &self.hear_failure {
            hear(&error);
        }
        let doublings = (self.failures - 1).min(16);
        let bound = WAIT_FIRST.saturating_mul(1 << doublings).min(WAIT_MAX);
        let wait = bound.mul_f64(self.randomness.random::<f64>());
        self.step = Step::Wait(now + wait);
        let since = match &self.freshness {
            Freshness::UpToDate => now,
            Freshness::Stale { since, error: told } => {
                if told.as_ref() == Some(&error) {
                    return None;
                }
                *since
            }
        };
        self.freshness = Freshness::Stale {
            since,
            error: Some(error),
        };
        Some(self.update(Vec::new()))
    }

    fn update(&self, changes: Vec<Change>) -> Update {
        Update {
            changes,
            freshness: self.freshness.clone(),
        }
    }

    /// The entries are now these.
    fn replace(&mut self, listing: Listing) -> Vec<Change> {
        let mut before = std::mem::take(&mut self.entries);
        let mut changes = Vec::new();
        for entry in listing.entries {
            let old = before.remove(&entry.key);
            // A store that was restored may bear another value under the same revision.
            if old.as_ref() != Some(&entry) {
                changes.push(Change {
                    key: entry.key.clone(),
                    before: old,
                    after: Some(entry.clone()),
                });
            }
            self.entries.insert(entry.key.clone(), entry);
        }
        // What goes comes first: places may be limited.
        let gone = before.into_iter().map(|(key, entry)| Change {
            key,
            before: Some(entry),
            after: None,
        });
        gone.chain(changes).collect()
    }

    fn apply(&mut self, events: Vec<Event>) -> Vec<Change> {
        let mut changes = Vec::new();
        for event in events {
            let (key, after) = match event {
                Event::Put(entry) => (entry.key.clone(), Some(entry)),
                Event::Delete { key, .. } => (key, None),
            };
            let before = match &after {
                Some(entry) => self.entries.insert(key.clone(), entry.clone()),
                None => self.entries.remove(&key),
            };
            if before != after {
                changes.push(Change { key, before, after });
            }
        }
        changes
    }
}

/// Lists, and begins to watch from there.
fn list(store: Arc<dyn Store>, prefix: Arc<str>) -> Step {
    Step::List(Box::pin(async move {
        let listing = store.list(&prefix).await?;
        let watch = store.watch(&prefix, listing.revision).await?;
        Ok((listing, watch))
    }))
}

fn next_of(mut watch: Box<dyn Watch>) -> Step {
    Step::Watch(Box::pin(async move {
        let told = watch.next().await;
        (watch, told)
    }))
}
