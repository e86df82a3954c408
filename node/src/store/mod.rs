//! Where tunnel resources are kept: one trait with etcd's semantics, and two engines.
//!
//! | module | what |
//! |---|---|
//! | [`url`](StoreUrl) | how a store is named in a config |
//! | [`redb`](RedbStore) | a file, of this process alone |
//! | `etcd` | an etcd cluster; cargo feature `etcd` |
//! | [`watched`](Watched) | a view of a prefix that is kept up to date |
//!
//! # Semantics
//!
//! A store is a map from keys to values, and a **revision** that counts its changes: each change
//! has one, and the revision of a value is that of the change that wrote it. Nothing overwrites
//! what it has not seen: [`Store::put`] says which revision it replaces. A watch tells every
//! change after a revision, in order, none twice and none left out, or says that it cannot
//! ([`StoreError::Compacted`]): the caller then lists again.
//!
//! A value with a time to live goes by itself, which is a change like a deletion. It lives at least
//! as long as was asked for; stores count in whole seconds, and etcd in no less than two.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::net::BoxFuture;

mod clock;
mod error;
#[cfg(feature = "etcd")]
mod etcd;
mod redb;
mod url;
mod watched;

pub use clock::Clock;
pub use error::StoreError;
#[cfg(feature = "etcd")]
pub use etcd::EtcdStore;
pub use redb::{RedbLimits, RedbStore};
pub use url::{EtcdUrl, InvalidStoreUrl, Password, StoreUrl, TlsFiles};
pub use watched::{Change, Freshness, Update, Watched};

/// The longest key, in bytes, without what a store puts before it.
pub const KEY_BYTES_MAX: usize = 512;
/// The largest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 64 << 10;
/// The most entries that one list may have.
pub const ENTRIES_MAX: usize = 10_000;
/// The longest time to live.
pub const TTL_MAX: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// How often a store has changed. 0 is before everything.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl Revision {
    /// Before everything; as what [`Store::put`] expects: that there is no such key.
    pub const NONE: Self = Self(0);
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A key and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Bytes,
    /// The change that made the key.
    pub created: Revision,
    /// The change that wrote this value.
    pub modified: Revision,
}

/// What a list found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// The entries, by key.
    pub entries: Vec<Entry>,
    /// What it is a list of: the store after this change. To watch on from here.
    pub revision: Revision,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A value was written.
    Put(Entry),
    /// A key was deleted, or its time was over.
    Delete {
        /// The key.
        key: String,
        /// The change.
        revision: Revision,
    },
}

impl Event {
    /// The key that changed.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Put(entry) => &entry.key,
            Self::Delete { key, .. } => key,
        }
    }

    /// The change.
    #[must_use]
    pub fn revision(&self) -> Revision {
        match self {
            Self::Put(entry) => entry.modified,
            Self::Delete { revision, .. } => *revision,
        }
    }
}

/// A map of keys to values that others change too.
///
/// Every method ends within a bound of the engine's own: a store that does not answer is
/// [`StoreError::Unreachable`]. A future may be dropped at any time; what it asked for may then
/// happen or not.
pub trait Store: Send + Sync + fmt::Debug + 'static {
    /// The entry of a key. It is at least as new as every change that was acknowledged before.
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, StoreError>>;

    /// Writes a value if the key's revision is `expected`; [`Revision::NONE`]: if there is no such
    /// key. Without `ttl` it stays, even if what it replaces had one. Returns the new revision.
    ///
    /// [`StoreError::Conflict`] says what the revision is instead.
    fn put<'a>(
        &'a self,
        key: &'a str,
        value: Bytes,
        expected: Revision,
        ttl: Option<Duration>,
    ) -> BoxFuture<'a, Result<Revision, StoreError>>;

    /// Deletes a key, if its revision is `expected` where one is given. Returns the revision of the
    /// change, or `None` if there was nothing to delete; with `expected`, that is a conflict.
    fn delete<'a>(
        &'a self,
        key: &'a str,
        expected: Option<Revision>,
    ) -> BoxFuture<'a, Result<Option<Revision>, StoreError>>;

    /// All entries whose key begins with `prefix`, as of one revision.
    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Listing, StoreError>>;

    /// Watches the keys that begin with `prefix`: every change after the revision `after`.
    ///
    /// [`StoreError::Compacted`] comes from here or from [`Watch::next`], also when the store has
    /// not come as far as `after`, as one that was restored from a backup.
    fn watch<'a>(
        &'a self,
        prefix: &'a str,
        after: Revision,
    ) -> BoxFuture<'a, Result<Box<dyn Watch>, StoreError>>;

    /// Lets go of files and connections, and waits until they are. Afterwards everything, watches
    /// too, is [`StoreError::Unreachable`].
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// Changes as they happen.
pub trait Watch: Send + fmt::Debug {
    /// The next changes, in order; never none. Changes of one revision come together.
    ///
    /// The future may be dropped without loss. After [`StoreError::Unreachable`] the watch can be
    /// asked again, and goes on where it was. After any other error it is over.
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<Event>, StoreError>>;
}

/// Opens the store that a URL names. `clock` is for stores that end lives by themselves.
///
/// # Errors
/// When a file cannot be opened, is none of a store, damaged, or in use; when certificates cannot be
/// read; when this build knows no such store. An etcd cluster need not be reachable.
pub async fn open(url: &StoreUrl, clock: Clock) -> Result<Arc<dyn Store>, StoreError> {
    match url {
        StoreUrl::Redb(path) => Ok(Arc::new(RedbStore::open(path, clock).await?)),
        #[cfg(feature = "etcd")]
        StoreUrl::Etcd(url) => Ok(Arc::new(EtcdStore::open(url).await?)),
        #[cfg(not(feature = "etcd"))]
        StoreUrl::Etcd(_) => {
            let _ = clock;
            Err(StoreError::Unsupported)
        }
    }
}

/// What a store takes.
fn check_key(key: &str) -> Result<(), StoreError> {
    if key.is_empty() || key.chars().any(char::is_control) {
        return Err(StoreError::BadKey {
            key: key.chars().take(80).collect(),
        });
    }
    within("a key", "bytes", key.len(), KEY_BYTES_MAX)
}

/// What a store takes.
fn check_put(key: &str, value: &[u8], ttl: Option<Duration>) -> Result<(), StoreError> {
    check_key(key)?;
    within("a value", "bytes", value.len(), VALUE_BYTES_MAX)?;
    let seconds = ttl.map_or(0, |ttl| {
        usize::try_from(ttl.as_secs()).unwrap_or(usize::MAX)
    });
    let seconds_max = usize::try_from(TTL_MAX.as_secs()).unwrap_or(usize::MAX);
    within("a time to live", "seconds", seconds, seconds_max)
}

fn within(
    what: &'static str,
    unit: &'static str,
    size: usize,
    max: usize,
) -> Result<(), StoreError> {
    if size > max {
        return Err(StoreError::TooLarge {
            what,
            unit,
            size,
            max,
        });
    }
    Ok(())
}

/// A time to live in whole seconds, never shorter than asked for and never none.
fn whole_seconds(ttl: Duration) -> u64 {
    let up = u64::from(ttl.subsec_nanos() > 0);
    ttl.as_secs().saturating_add(up).max(1)
}
