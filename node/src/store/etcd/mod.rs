//! The engine `etcd://`: a cluster of etcd, for a fleet of proxies.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use etcd_client::{
    Compare, CompareOp, DeleteOptions, GetOptions, KeyValue, LeaseTimeToLiveOptions, PutOptions,
    SortOrder, SortTarget, Txn, TxnOp, TxnOpResponse, TxnResponse,
};

use super::{
    ENTRIES_MAX, Entry, EtcdUrl, Listing, Revision, Store, StoreError, Watch, check_key, check_put,
    whole_seconds, within,
};
use crate::net::BoxFuture;

mod connection;
mod failure;
mod watch;

use connection::{Connection, Done, REQUEST_TIMEOUT};
use watch::EtcdWatch;

/// How many entries one answer has; it must fit into gRPC's 4 MiB.
const PAGE_ENTRIES: i64 = 48;

/// How often a list begins anew when its revision is compacted under it.
const LIST_TRIES: usize = 4;

/// A store in etcd.
///
/// Everything goes to one member at a time; when that one fails, to the next. A change whose answer
/// was lost is asked for again, which is safe: it says what it replaces. Only when no member
/// answers within the deadline does it say that it does not know ([`StoreError::Unreachable`]).
pub struct EtcdStore {
    connection: Arc<Connection>,
}

impl fmt::Debug for EtcdStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("EtcdStore").field(&self.connection).finish()
    }
}

impl EtcdStore {
    /// Reads the files that the URL names. Connects when there is something to ask.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub async fn open(url: &EtcdUrl) -> Result<Self, StoreError> {
        Ok(Self {
            connection: Arc::new(Connection::new(url).await?),
        })
    }

    fn full_key(&self, key: &str) -> String {
        self.connection.full_key(key)
    }

    async fn txn(&self, txn: Txn) -> Result<Done<TxnResponse>, StoreError> {
        let work = move |client: etcd_client::Client| {
            let txn = txn.clone();
            async move { client.kv_client().txn(txn).await }
        };
        self.connection.write(work).await
    }

    /// A lease that ends by itself. Its time begins here, and the change that it is for may take as
    /// long as a request: with that, no life is shorter than asked for.
    async fn grant(&self, ttl: Duration) -> Result<i64, StoreError> {
        let ttl = whole_seconds(ttl.saturating_add(REQUEST_TIMEOUT));
        let seconds = i64::try_from(ttl).unwrap_or(i64::MAX);
        let work = move |client: etcd_client::Client| async move {
            client.lease_client().grant(seconds, None).await
        };
        Ok(self.connection.read(work).await?.id())
    }

    /// Gives a lease back that nothing is attached to any more, if there is one; otherwise it would
    /// stay until its time is over, and etcd keeps each of them in memory and on disk. Somebody who
    /// writes by hand may have more than one key on it. What fails here ends by itself.
    async fn give_back(&self, lease: i64) {
        if lease == 0 {
            return;
        }
        let asked = move |client: etcd_client::Client| async move {
            let options = LeaseTimeToLiveOptions::new().with_keys();
            let mut leases = client.lease_client();
            if leases
                .time_to_live(lease, Some(options))
                .await?
                .keys()
                .is_empty()
            {
                leases.revoke(lease).await?;
            }
            Ok(())
        };
        self.connection.try_once(asked).await;
    }

    async fn list_once(&self, prefix: &str) -> Result<Listing, StoreError> {
        let start = self.full_key(prefix);
        let end = end_of_prefix(start.as_bytes());
        let mut from = start.into_bytes();
        let mut revision = 0;
        let mut entries = Vec::new();
        loop {
            let options = GetOptions::new()
                .with_range(end.clone())
                .with_limit(PAGE_ENTRIES)
                .with_sort(SortTarget::Key, SortOrder::Ascend)
                .with_revision(revision);
            let key = from.clone();
            let work = move |client: etcd_client::Client| {
                let (key, options) = (key.clone(), options.clone());
                async move { client.kv_client().get(key, Some(options)).await }
            };
            let page = self.connection.read(work).await?;
            if revision == 0 {
                // All further pages are of the first one's revision.
                revision = page
                    .header()
                    .map_or(0, etcd_client::ResponseHeader::revision);
            }
            entries.extend(page.kvs().iter().filter_map(|kv| self.connection.entry(kv)));
            within("a list", "entries", entries.len(), ENTRIES_MAX)?;
            match page.kvs().last() {
                Some(last) if page.more() => {
                    from = last.key().to_vec();
                    from.push(0);
                }
                _ => break,
            }
        }
        Ok(Listing {
            entries,
            revision: to_revision(revision),
        })
    }
}

impl Store for EtcdStore {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, StoreError>> {
        Box::pin(async move {
            check_key(key)?;
            let full_key = self.full_key(key);
            let work = move |client: etcd_client::Client| {
                let key = full_key.clone();
                async move { client.kv_client().get(key, None).await }
            };
            let answer = self.connection.read(work).await?;
            Ok(answer
                .kvs()
                .first()
                .and_then(|kv| self.connection.entry(kv)))
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
            let key = self.full_key(key);
            let lease = match ttl {
                Some(ttl) => Some(self.grant(ttl).await?),
                None => None,
            };
            let options = PutOptions::new()
                .with_prev_key()
                .with_lease(lease.unwrap_or(0));
            let txn = Txn::new()
                .when([unchanged(&key, expected)])
                .and_then([TxnOp::put(key.clone(), value.to_vec(), Some(options))])
                .or_else([TxnOp::get(key, None)]);
            let done = self.txn(txn).await?;
            if done.answer.succeeded() {
                self.give_back(lease_before(&done.answer)).await;
                return Ok(header_revision(&done.answer));
            }
            let current = found(&done.answer);
            // Ours already, by an attempt whose answer was lost.
            if let Some(kv) = &current
                && done.maybe_before
                && kv.value() == value.as_ref()
                && kv.lease() == lease.unwrap_or(0)
                && to_revision(kv.mod_revision()) > expected
            {
                return Ok(to_revision(kv.mod_revision()));
            }
            self.give_back(lease.unwrap_or(0)).await;
            Err(conflict(current.as_ref()))
        })
    }

    fn delete<'a>(
        &'a self,
        key: &'a str,
        expected: Option<Revision>,
    ) -> BoxFuture<'a, Result<Option<Revision>, StoreError>> {
        Box::pin(async move {
            check_key(key)?;
            let key = self.full_key(key);
            let compare = match expected {
                Some(expected) => unchanged(&key, expected),
                None => Compare::mod_revision(key.clone(), CompareOp::Greater, 0),
            };
            let options = DeleteOptions::new().with_prev_key();
            let txn = Txn::new()
                .when([compare])
                .and_then([TxnOp::delete(key.clone(), Some(options))])
                .or_else([TxnOp::get(key, None)]);
            let done = self.txn(txn).await?;
            let revision = header_revision(&done.answer);
            if done.answer.succeeded() {
                self.give_back(lease_before(&done.answer)).await;
                // What was expected not to be there was not.
                return Ok((expected != Some(Revision::NONE)).then_some(revision));
            }
            let current = found(&done.answer);
            match (expected, &current) {
                // Gone already, by an attempt whose answer was lost or by somebody else.
                (_, None) if done.maybe_before => Ok(Some(revision)),
                (None, None) => Ok(None),
                _ => Err(conflict(current.as_ref())),
            }
        })
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Listing, StoreError>> {
        Box::pin(async move {
            for _ in 1..LIST_TRIES {
                match self.list_once(prefix).await {
                    Err(StoreError::Compacted) => {}
                    other => return other,
                }
            }
            self.list_once(prefix).await
        })
    }

    fn watch<'a>(
        &'a self,
        prefix: &'a str,
        after: Revision,
    ) -> BoxFuture<'a, Result<Box<dyn Watch>, StoreError>> {
        Box::pin(async move {
            let watch = EtcdWatch::begin(self.connection.clone(), prefix, after).await?;
            let watch: Box<dyn Watch> = Box::new(watch);
            Ok(watch)
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async { self.connection.close() })
    }
}

/// That nobody has changed it since.
fn unchanged(key: &str, expected: Revision) -> Compare {
    let expected = i64::try_from(expected.0).unwrap_or(i64::MAX);
    Compare::mod_revision(key, CompareOp::Equal, expected)
}

/// What a failed comparison found instead.
fn found(answer: &TxnResponse) -> Option<KeyValue> {
    answer
        .op_responses()
        .into_iter()
        .find_map(|response| match response {
            TxnOpResponse::Get(get) => get.kvs().first().cloned(),
            TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) | TxnOpResponse::Txn(_) => None,
        })
}

/// The lease of the value that was replaced or deleted; 0 when there is none.
fn lease_before(answer: &TxnResponse) -> i64 {
    answer
        .op_responses()
        .into_iter()
        .find_map(|response| match response {
            TxnOpResponse::Put(put) => put.prev_key().map(KeyValue::lease),
            TxnOpResponse::Delete(delete) => delete.prev_kvs().first().map(KeyValue::lease),
            TxnOpResponse::Get(_) | TxnOpResponse::Txn(_) => None,
        })
        .unwrap_or(0)
}

fn conflict(current: Option<&KeyValue>) -> StoreError {
    StoreError::Conflict {
        current: current.map_or(Revision::NONE, |kv| to_revision(kv.mod_revision())),
    }
}

fn header_revision(answer: &TxnResponse) -> Revision {
    to_revision(
        answer
            .header()
            .map_or(0, etcd_client::ResponseHeader::revision),
    )
}

fn to_revision(revision: i64) -> Revision {
    Revision(u64::try_from(revision).unwrap_or(0))
}

/// The first key behind all that begin so.
fn end_of_prefix(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    // Behind every key, as etcd writes it.
    vec![0]
}
