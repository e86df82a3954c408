//! Watching in etcd.

use std::fmt;
use std::sync::Arc;

use etcd_client::{EventType, WatchOptions, WatchResponse, WatchStream};

use super::connection::Connection;
use super::{end_of_prefix, to_revision};
use crate::net::BoxFuture;
use crate::store::{Event, Revision, StoreError, Watch};

/// The largest answer, in bytes. etcd tells up to 1,000 revisions at once.
const ANSWER_BYTES_MAX: usize = 96 << 20;

/// What the end of a watch says that was not allowed: a right that is missing; no user where the
/// cluster wants one. A token that is not known any more is none of these: a new one helps.
const DENIED: [&str; 2] = ["permission denied", "user name is empty"];

/// How often a member that has not come as far as the watch is asked again, at another member.
const BEHIND_TRIES: usize = 4;

/// A watch that goes on at another member when its own fails.
pub(super) struct EtcdWatch {
    connection: Arc<Connection>,
    prefix: String,
    /// All changes up to here were told.
    after: Revision,
    stream: Option<Stream>,
    /// It was begun anew, and nothing has come since.
    is_resumed: bool,
}

struct Stream {
    /// Of which member it is.
    turn: usize,
    stream: WatchStream,
}

impl fmt::Debug for EtcdWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdWatch")
            .field("connection", &self.connection)
            .field("prefix", &self.prefix)
            .field("after", &self.after)
            .finish_non_exhaustive()
    }
}

impl EtcdWatch {
    pub(super) async fn begin(
        connection: Arc<Connection>,
        prefix: &str,
        after: Revision,
    ) -> Result<Self, StoreError> {
        let mut watch = Self {
            prefix: prefix.to_owned(),
            after,
            connection,
            stream: None,
            is_resumed: false,
        };
        watch.connect().await?;
        Ok(watch)
    }

    async fn connect(&mut self) -> Result<(), StoreError> {
        for _ in 0..BEHIND_TRIES {
            let (stream, revision) = self.create().await?;
            if revision >= self.after {
                self.stream = Some(stream);
                return Ok(());
            }
            // That member lags behind, or the store was restored from a backup: the majority knows.
            let key = self.connection.full_key(&self.prefix);
            let work = move |client: etcd_client::Client| {
                let key = key.clone();
                async move { client.kv_client().get(key, None).await }
            };
            let answer = self.connection.read(work).await?;
            if to_revision(
                answer
                    .header()
                    .map_or(0, etcd_client::ResponseHeader::revision),
            ) < self.after
            {
                return Err(StoreError::Compacted);
            }
            self.connection.give_up(stream.turn);
        }
        Err(StoreError::unreachable("its members lag behind"))
    }

    /// Begins a watch at some member, and says how far that one has come.
    async fn create(&self) -> Result<(Stream, Revision), StoreError> {
        let key = self.connection.full_key(&self.prefix).into_bytes();
        let start = i64::try_from(self.after.0.saturating_add(1)).unwrap_or(i64::MAX);
        let options = WatchOptions::new()
            .with_range(end_of_prefix(&key))
            .with_start_revision(start)
            .with_progress_notify();
        let work = move |client: etcd_client::Client| {
            let (key, options) = (key.clone(), options.clone());
            async move {
                let mut client = client
                    .watch_client()
                    .max_decoding_message_size(ANSWER_BYTES_MAX);
                let mut stream = client.watch(key, Some(options)).await?;
                // The first answer says that it stands, and how far this member has come.
                let created = stream.message().await?;
                Ok((stream, created))
            }
        };
        // Which member answers is known only if no other call changes it meanwhile; a wrong turn
        // costs one that works its connection, and nothing else.
        let (stream, created) = self.connection.read(work).await?;
        let turn = self.connection.turn();
        let revision = match &created {
            Some(created) if created.canceled() => return Err(cancelled(created)),
            Some(created) => revision_of(created),
            None => return Err(StoreError::unreachable("the watch ended at once")),
        };
        Ok((Stream { turn, stream }, revision))
    }

    /// What an answer says; no events when it is nothing new.
    fn told(&mut self, answer: &WatchResponse) -> Result<Vec<Event>, StoreError> {
        if answer.canceled() {
            return Err(cancelled(answer));
        }
        let mut events = Vec::new();
        let mut up_to = self.after;
        for event in answer.events() {
            let Some(kv) = event.kv() else { continue };
            let revision = to_revision(kv.mod_revision());
            up_to = up_to.max(revision);
            let told = match event.event_type() {
                EventType::Put => self.connection.entry(kv).map(Event::Put),
                EventType::Delete => self
                    .connection
                    .own_key(kv.key())
                    .map(|key| Event::Delete { key, revision }),
            };
            events.extend(told);
        }
        if answer.events().is_empty() && !answer.created() {
            // Up to here, nothing was left out.
            up_to = up_to.max(revision_of(answer));
        }
        self.after = up_to;
        self.is_resumed = false;
        Ok(events)
    }
}

impl Watch for EtcdWatch {
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<Event>, StoreError>> {
        Box::pin(async move {
            loop {
                let Some(current) = &mut self.stream else {
                    self.connect().await?;
                    continue;
                };
                let connection = self.connection.clone();
                let answer = tokio::select! {
                    biased;
                    () = connection.until_closed() => {
                        self.stream = None;
                        return Err(StoreError::unreachable("it was closed"));
                    }
                    answer = current.stream.message() => answer,
                };
                let turn = current.turn;
                let broken = match answer {
                    Ok(Some(answer)) => match self.told(&answer) {
                        Ok(events) if events.is_empty() => continue,
                        Ok(events) => return Ok(events),
                        Err(error @ StoreError::Unreachable { .. }) => error,
                        Err(error) => return Err(error),
                    },
                    Ok(None) => StoreError::unreachable("the watch has ended"),
                    Err(error) => StoreError::unreachable(error.to_string()),
                };
                tracing::debug!(store = ?connection, error = %broken, "a watch broke; it goes on elsewhere");
                self.stream = None;
                connection.give_up(turn);
                if std::mem::replace(&mut self.is_resumed, true) {
                    // Twice in a row without anything between: somebody should wait a while.
                    self.is_resumed = false;
                    return Err(broken);
                }
            }
        })
    }
}

fn revision_of(answer: &WatchResponse) -> Revision {
    to_revision(
        answer
            .header()
            .map_or(0, etcd_client::ResponseHeader::revision),
    )
}

fn cancelled(answer: &WatchResponse) -> StoreError {
    let reason = answer.cancel_reason();
    if answer.compact_revision() > 0 {
        StoreError::Compacted
    } else if DENIED.iter().any(|denied| reason.contains(denied)) {
        let what = reason
            .rsplit_once("desc = ")
            .map_or(reason, |(_, what)| what);
        StoreError::Denied {
            what: what.to_owned(),
        }
    } else {
        StoreError::unreachable(format!("the watch was ended: {reason}"))
    }
}
