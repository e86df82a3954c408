//! Stores of tunnel resources for tests: one in memory, and one that is cut off.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use node::net::BoxFuture;
use node::store::{Clock, Entry, Event, Listing, Revision, Store, StoreError, Watch};
use tokio::sync::watch;
use tokio::time::Instant;

mod memory;

pub use memory::Memory;

/// A store in front of another one, which can be cut off from it: everything, watches too, is then
/// unreachable. Who holds the other one itself still reaches it.
#[derive(Debug)]
pub struct Outages {
    store: Arc<dyn Store>,
    is_down: watch::Sender<bool>,
    asked: AtomicU64,
}

impl Outages {
    /// In front of `store`, and not cut off.
    #[must_use]
    pub fn new(store: Arc<dyn Store>) -> Arc<Self> {
        Arc::new(Self {
            store,
            is_down: watch::Sender::new(false),
            asked: AtomicU64::new(0),
        })
    }

    /// Cuts it off, or ends that.
    pub fn set_down(&self, is_down: bool) {
        self.is_down.send_replace(is_down);
    }

    /// How often it was asked for anything, cut off or not.
    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    fn check(&self) -> Result<(), StoreError> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        if *self.is_down.borrow() {
            return Err(cut_off());
        }
        Ok(())
    }
}

fn cut_off() -> StoreError {
    StoreError::Unreachable {
        what: "it is cut off".to_owned(),
        maybe_done: false,
    }
}

impl Store for Outages {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, StoreError>> {
        Box::pin(async move {
            self.check()?;
            self.store.get(key).await
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
            self.check()?;
            self.store.put(key, value, expected, ttl).await
        })
    }

    fn delete<'a>(
        &'a self,
        key: &'a str,
        expected: Option<Revision>,
    ) -> BoxFuture<'a, Result<Option<Revision>, StoreError>> {
        Box::pin(async move {
            self.check()?;
            self.store.delete(key, expected).await
        })
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Listing, StoreError>> {
        Box::pin(async move {
            self.check()?;
            self.store.list(prefix).await
        })
    }

    fn watch<'a>(
        &'a self,
        prefix: &'a str,
        after: Revision,
    ) -> BoxFuture<'a, Result<Box<dyn Watch>, StoreError>> {
        Box::pin(async move {
            self.check()?;
            let watch: Box<dyn Watch> = Box::new(CutWatch {
                watch: self.store.watch(prefix, after).await?,
                is_down: self.is_down.subscribe(),
            });
            Ok(watch)
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.store.close()
    }
}

#[derive(Debug)]
struct CutWatch {
    watch: Box<dyn Watch>,
    is_down: watch::Receiver<bool>,
}

impl Watch for CutWatch {
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<Event>, StoreError>> {
        Box::pin(async move {
            tokio::select! {
                biased;
                // Only its owner can drop the other end, and then nobody asks.
                _ = self.is_down.wait_for(|is_down| *is_down) => Err(cut_off()),
                events = self.watch.next() => events,
            }
        })
    }
}

/// Wall time that goes with tokio's clock, so that it stands still and jumps in virtual time.
#[must_use]
pub fn virtual_clock() -> Clock {
    let start = Instant::now();
    Clock::new(move || {
        let passed = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        1_763_700_000_000 + passed
    })
}
