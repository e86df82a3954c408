//! The engine `redb:`: a file, of one process at a time.
//!
//! redb blocks, so everything happens on tokio's blocking threads, one call after the other: the
//! file has one user at a time, who takes it along to that thread. A call that nobody waits for any
//! more still ends there.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Mutex;

use super::{
    Clock, Entry, Event, Listing, Revision, Store, StoreError, Watch, check_key, check_put,
    whole_seconds,
};
use crate::changes::{Changes, Watcher};
use crate::net::BoxFuture;
use crate::tasks::Tasks;

mod data;
mod file;
mod overlay;

use data::{Data, Limits};
use file::StoreFile;

/// How often the clock is looked at while something may end: it jumps when it is set.
const CLOCK_LOOK_MAX: Duration = Duration::from_secs(30);

/// The wait before the next try when what is over could not be written.
const EXPIRY_RETRY: Duration = Duration::from_secs(5);

/// How much a file store keeps.
#[derive(Debug, Clone, Copy)]
pub struct RedbLimits {
    /// The most entries.
    pub entries_max: usize,
    /// How many past changes are kept for watches that come back.
    pub history_events_max: u64,
    /// How much of their values, in bytes.
    pub history_bytes_max: u64,
}

impl Default for RedbLimits {
    fn default() -> Self {
        Self {
            entries_max: super::ENTRIES_MAX,
            history_events_max: 10_000,
            history_bytes_max: 16 << 20,
        }
    }
}

/// A store in a file.
///
/// A change that was acknowledged is on the disk. The file is locked against other processes. It is
/// checked as a whole when it is opened; one that is damaged, or of something else, is left as it is.
pub struct RedbStore {
    shared: Arc<Shared>,
    _tasks: Tasks,
}

struct Shared {
    path: PathBuf,
    clock: Clock,
    /// Who holds it uses the file.
    file: Arc<Mutex<Option<StoreFile>>>,
    limits: Limits,
    /// The store has changed, or was closed.
    changes: Changes,
    /// When the first life ends has changed.
    deadlines: Changes,
    /// When that is, in the clock's milliseconds; `u64::MAX` is never.
    next_end_ms: AtomicU64,
}

impl fmt::Debug for RedbStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RedbStore").field(&self.shared.path).finish()
    }
}

impl RedbStore {
    /// Opens the file, or makes it.
    ///
    /// # Errors
    /// [`StoreError::Foreign`], [`StoreError::Corrupt`] or [`StoreError::InUse`];
    /// [`StoreError::Unreachable`] when it cannot be read or made.
    pub async fn open(path: &Path, clock: Clock) -> Result<Self, StoreError> {
        Self::open_with(path, clock, RedbLimits::default()).await
    }

    /// Opens the file, or makes it, with other limits.
    ///
    /// # Errors
    /// As [`RedbStore::open`].
    pub async fn open_with(
        path: &Path,
        clock: Clock,
        limits: RedbLimits,
    ) -> Result<Self, StoreError> {
        let limits = Limits {
            entries_max: limits.entries_max as u64,
            history_events_max: limits.history_events_max.max(1),
            history_bytes_max: limits.history_bytes_max,
        };
        let opened = path.to_owned();
        let (file, next_end_ms) = blocking(path, move || {
            let mut file = StoreFile::open(&opened)?;
            let next_end_ms = file.data(limits)?.next_end_ms()?;
            Ok((file, next_end_ms))
        })
        .await?;
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            clock,
            file: Arc::new(Mutex::new(Some(file))),
            limits,
            changes: Changes::default(),
            deadlines: Changes::default(),
            next_end_ms: AtomicU64::new(next_end_ms),
        });
        let mut tasks = Tasks::new("expiry of the store");
        tasks.spawn(end_lives(shared.clone()));
        Ok(Self {
            shared,
            _tasks: tasks,
        })
    }
}

/// Runs on a blocking thread. What panics there met something that it did not expect in the file.
async fn blocking<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    #[expect(
        clippy::disallowed_methods,
        reason = "the edge where files are read and written"
    )]
    let joined = tokio::task::spawn_blocking(work).await;
    match joined {
        Ok(result) => result,
        Err(error) if error.is_panic() => Err(StoreError::Corrupt {
            path: path.to_owned(),
            what: "reading it met something impossible".to_owned(),
        }),
        Err(_) => Err(StoreError::unreachable("the node is ending")),
    }
}

impl Shared {
    /// Does `work` on the file, after ending the lives that are over. What comes of it is told from
    /// there: whoever asked may have gone when it is done.
    async fn with<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Data<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let now_ms = self.clock.now_ms();
        let shared = self.clone();
        let mut held = self.file.clone().lock_owned().await;
        blocking(&self.path, move || {
            let Some(file) = held.as_mut() else {
                return Err(StoreError::unreachable(format!(
                    "{} was closed",
                    shared.path.display()
                )));
            };
            let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| {
                let data = file.data(shared.limits)?;
                let before = data.revision()?;
                let ended = data.end_lives(now_ms);
                let done = ended.and_then(|()| work(&data));
                Ok((done, before != data.revision()?, data.next_end_ms()?))
            }));
            let result = match outcome {
                Ok(result) => result,
                Err(panic) => {
                    file.forget_handle();
                    std::panic::resume_unwind(panic)
                }
            };
            let error = match &result {
                Ok((done, ..)) => done.as_ref().err(),
                Err(error) => Some(error),
            };
            // redb goes on after a failed write only when it is opened anew.
            if matches!(
                error,
                Some(StoreError::Unreachable { .. } | StoreError::Corrupt { .. })
            ) {
                file.forget_handle();
            }
            let (done, changed, next_end_ms) = result?;
            if shared.next_end_ms.swap(next_end_ms, Ordering::AcqRel) != next_end_ms {
                shared.deadlines.notify();
            }
            if changed {
                shared.changes.notify();
            }
            done
        })
        .await
    }
}

/// Ends lives when they are over, as long as there are any.
async fn end_lives(shared: Arc<Shared>) {
    let mut deadlines = shared.deadlines.watch();
    loop {
        deadlines.mark_unchanged();
        let next_end_ms = shared.next_end_ms.load(Ordering::Acquire);
        if next_end_ms == u64::MAX {
            deadlines.changed().await;
            continue;
        }
        let left = Duration::from_millis(next_end_ms.saturating_sub(shared.clock.now_ms()));
        if left.is_zero() {
            if let Err(error) = shared.with(|_| Ok(())).await {
                tracing::warn!(path = %shared.path.display(), %error, "cannot end what is over in the store; trying again");
                tokio::time::sleep(EXPIRY_RETRY).await;
            }
            continue;
        }
        tokio::select! {
            biased;
            () = deadlines.changed() => {}
            () = tokio::time::sleep(left.min(CLOCK_LOOK_MAX)) => {}
        }
    }
}

impl Store for RedbStore {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, StoreError>> {
        Box::pin(async move {
            check_key(key)?;
            let key = key.to_owned();
            self.shared.with(move |data| data.get(&key)).await
        })
    }

    fn put<'a>(
        &'a self,
        key: &'a str,
        value: Bytes,
        expected: Revision,
        ttl: Option<Duration>,
    ) -> BoxFuture<'a, Result<Revision, StoreError>> {
        Box::pin(async move {
            check_put(key, &value, ttl)?;
            let key = key.to_owned();
            let now_ms = self.shared.clock.now_ms();
            let end_ms =
                ttl.map(|ttl| now_ms.saturating_add(whole_seconds(ttl).saturating_mul(1000)));
            self.shared
                .with(move |data| data.put(&key, &value, expected, end_ms))
                .await
        })
    }

    fn delete<'a>(
        &'a self,
        key: &'a str,
        expected: Option<Revision>,
    ) -> BoxFuture<'a, Result<Option<Revision>, StoreError>> {
        Box::pin(async move {
            check_key(key)?;
            let key = key.to_owned();
            self.shared
                .with(move |data| data.delete(&key, expected))
                .await
        })
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Listing, StoreError>> {
        Box::pin(async move {
            let prefix = prefix.to_owned();
            self.shared.with(move |data| data.list(&prefix)).await
        })
    }

    fn watch<'a>(
        &'a self,
        prefix: &'a str,
        after: Revision,
    ) -> BoxFuture<'a, Result<Box<dyn Watch>, StoreError>> {
        Box::pin(async move {
            self.shared
                .with(move |data| data.check_history(after))
                .await?;
            let watch: Box<dyn Watch> = Box::new(RedbWatch {
                prefix: prefix.to_owned(),
                after,
                watcher: self.shared.changes.watch(),
                shared: self.shared.clone(),
            });
            Ok(watch)
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let shared = self.shared.clone();
            let mut held = shared.file.clone().lock_owned().await;
            // Closing writes what makes the next start fast; nothing is lost when it cannot.
            let _ = blocking(&self.shared.path, move || {
                *held = None;
                shared.next_end_ms.store(u64::MAX, Ordering::Release);
                shared.changes.notify();
                Ok(())
            })
            .await;
        })
    }
}

struct RedbWatch {
    shared: Arc<Shared>,
    prefix: String,
    /// All changes up to here have been told.
    after: Revision,
    watcher: Watcher,
}

impl fmt::Debug for RedbWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedbWatch")
            .field("prefix", &self.prefix)
            .field("after", &self.after)
            .finish_non_exhaustive()
    }
}

impl Watch for RedbWatch {
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<Event>, StoreError>> {
        Box::pin(async move {
            loop {
                // Before the look, so that no change falls between the two.
                self.watcher.mark_unchanged();
                let (prefix, after) = (self.prefix.clone(), self.after);
                let told = self
                    .shared
                    .with(move |data| data.changes_after(&prefix, after))
                    .await?;
                self.after = told.up_to;
                if !told.events.is_empty() {
                    return Ok(told.events);
                }
                if told.is_all {
                    self.watcher.changed().await;
                }
            }
        })
    }
}
