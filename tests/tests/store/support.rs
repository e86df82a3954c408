//! The engines, as the tests see them.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use mesh_tests::Result;
use mesh_tests::probe::PATIENCE;
use mesh_tests::store::Memory;
use node::store::{
    Clock, Event, Listing, RedbLimits, RedbStore, Revision, Store, StoreError, Watch,
};
use tempfile::TempDir;

/// What a store says.
pub(crate) type Answer<T> = std::result::Result<T, StoreError>;

/// A store, and what a test can do to it from outside.
pub(crate) trait Engine: Sized + Send + Sync {
    /// A store with nothing in it.
    fn start() -> impl Future<Output = Result<Self>> + Send;

    /// The store.
    fn store(&self) -> &Arc<dyn Store>;

    /// Lets wall time pass, where the engine's is in the test's hands.
    fn pass(&self, time: Duration) -> impl Future<Output = Result> + Send;

    /// Makes it forget all changes up to now.
    fn compact(&self) -> impl Future<Output = Result> + Send;
}

/// One test of each engine.
#[macro_export]
macro_rules! over_engines {
    ($($(#[$doc:meta])* $name:ident;)*) => {
        mod redb {
            $($(#[$doc])* #[tokio::test]
            async fn $name() -> mesh_tests::Result {
                super::$name::<$crate::support::Redb>().await
            })*
        }

        mod memory {
            $($(#[$doc])* #[tokio::test]
            async fn $name() -> mesh_tests::Result {
                super::$name::<$crate::support::InMemory>().await
            })*
        }

        #[cfg(feature = "etcd")]
        mod etcd {
            $($(#[$doc])* #[tokio::test]
            async fn $name() -> mesh_tests::Result {
                super::$name::<$crate::etcd::support::OneEtcd>().await
            })*
        }
    };
}

/// A file, whose clock the test moves.
pub(crate) struct Redb {
    store: Arc<dyn Store>,
    now_ms: Arc<AtomicU64>,
    _dir: TempDir,
}

/// How many past changes it keeps.
const HISTORY_EVENTS_MAX: u64 = 2000;

impl Engine for Redb {
    async fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let now_ms = Arc::new(AtomicU64::new(1_763_700_000_000));
        let clock = now_ms.clone();
        let clock = Clock::new(move || clock.load(Ordering::SeqCst));
        let limits = RedbLimits {
            history_events_max: HISTORY_EVENTS_MAX,
            // A change has at least a byte of key, so it is this limit that forgets in `compact`.
            history_bytes_max: 1 << 20,
            ..RedbLimits::default()
        };
        let path = dir.path().join("store.redb");
        Ok(Self {
            store: Arc::new(RedbStore::open_with(&path, clock, limits).await?),
            now_ms,
            _dir: dir,
        })
    }

    fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    async fn pass(&self, time: Duration) -> Result {
        self.now_ms
            .fetch_add(u64::try_from(time.as_millis())?, Ordering::SeqCst);
        // What is over ends when somebody looks, or by a timer, which knows nothing of this clock.
        self.store.get("nothing").await?;
        Ok(())
    }

    async fn compact(&self) -> Result {
        // Twenty values of 64 KiB are more than it keeps.
        let mut revision = Revision::NONE;
        for _ in 0..20 {
            let value = Bytes::from(vec![b'x'; 64 << 10]);
            revision = self.store.put("zz/filler", value, revision, None).await?;
        }
        self.store.delete("zz/filler", Some(revision)).await?;
        Ok(())
    }
}

/// The one for simulations: what it does is what the others do.
pub(crate) struct InMemory {
    memory: Memory,
    store: Arc<dyn Store>,
    now_ms: Arc<AtomicU64>,
}

impl Engine for InMemory {
    async fn start() -> Result<Self> {
        let now_ms = Arc::new(AtomicU64::new(1_763_700_000_000));
        let clock = now_ms.clone();
        let memory = Memory::new(Clock::new(move || clock.load(Ordering::SeqCst)));
        Ok(Self {
            store: Arc::new(memory.clone()),
            memory,
            now_ms,
        })
    }

    fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    async fn pass(&self, time: Duration) -> Result {
        self.now_ms
            .fetch_add(u64::try_from(time.as_millis())?, Ordering::SeqCst);
        self.store.get("nothing").await?;
        Ok(())
    }

    async fn compact(&self) -> Result {
        self.memory.compact();
        Ok(())
    }
}

/// The next changes; a bound for what hangs, and no claim about speed.
pub(crate) async fn next(watch: &mut dyn Watch) -> Result<Vec<Event>> {
    let events = tokio::time::timeout(PATIENCE, watch.next())
        .await
        .context("no change came")??;
    anyhow::ensure!(!events.is_empty(), "an empty batch");
    Ok(events)
}

/// Changes until `count` have come.
pub(crate) async fn next_many(watch: &mut dyn Watch, count: usize) -> Result<Vec<Event>> {
    let mut events = Vec::new();
    while events.len() < count {
        events.extend(next(watch).await?);
    }
    anyhow::ensure!(events.len() == count, "more than {count}: {events:?}");
    Ok(events)
}

/// What a watch from there says first, wherever it says it.
pub(crate) async fn first_answer(
    store: &dyn Store,
    prefix: &str,
    after: Revision,
) -> Result<Answer<Vec<Event>>> {
    let mut watch = match store.watch(prefix, after).await {
        Ok(watch) => watch,
        Err(error) => return Ok(Err(error)),
    };
    tokio::time::timeout(PATIENCE, watch.next())
        .await
        .context("no answer came")
}

/// Keys and values of a list.
pub(crate) fn pairs(listing: &Listing) -> Vec<(&str, &[u8])> {
    listing
        .entries
        .iter()
        .map(|entry| (entry.key.as_str(), entry.value.as_ref()))
        .collect()
}

/// What an event says: key, and the value unless it was a deletion.
pub(crate) fn said(events: &[Event]) -> Vec<(&str, Option<&[u8]>)> {
    events
        .iter()
        .map(|event| match event {
            Event::Put(entry) => (entry.key.as_str(), Some(entry.value.as_ref())),
            Event::Delete { key, .. } => (key.as_str(), None),
        })
        .collect()
}
