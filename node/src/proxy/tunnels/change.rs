//! Tunnels come, change and go.
//!
//! What a change replaces is read first, and the store changes it only if it is still that: of two
//! who change one tunnel at once, one is told of the other.

use std::collections::BTreeMap;
use std::time::Duration;

use mesh_proto::name::Cluster;
use mesh_proto::tunnel::{Draft, InvalidTunnel, Tunnel};

use super::Resources;
use super::gauges::Operation;
use crate::store::{Entry, Revision, StoreError};

/// How long an answer waits until this proxy itself has heard of the change.
const SEEN_WAIT: Duration = Duration::from_secs(2);

/// How often a tunnel is renewed again when somebody else has just renewed it.
const RENEWALS_MAX: usize = 16;

/// What somebody asks for, unchecked.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wish {
    /// The cluster at the other end.
    pub(crate) cluster: String,
    /// Where to dial it.
    pub(crate) addresses: Vec<String>,
    /// How many connections; 0 is each proxy to every proxy.
    pub(crate) connections: u64,
    /// Free text by key.
    pub(crate) labels: BTreeMap<String, String>,
    /// How long it is to last; without it, it stays.
    pub(crate) ttl: Option<Duration>,
    /// Only if this is its revision; 0: only if there is none.
    pub(crate) expected: Option<u64>,
}

/// What was changed.
#[derive(Debug, Clone)]
pub(crate) struct Changed {
    /// What there was, if it was a tunnel.
    pub(crate) before: Option<Tunnel>,
    /// What there is.
    pub(crate) after: Option<Tunnel>,
}

/// Nothing was changed, unless it says so.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum ChangeError {
    /// What is asked for is no tunnel.
    #[error("{0}")]
    Invalid(#[from] InvalidTunnel),
    /// It would lead here.
    #[error("cluster: {0} is this cluster itself, and a tunnel leads to another one")]
    Own(Cluster),
    /// There is none.
    #[error("there is no tunnel to {0}; `node tunnel ls` shows which there are")]
    Absent(String),
    /// Somebody else has changed it.
    #[error(
        "somebody else has just changed the tunnel to {cluster}: {now}; look at it with `node tunnel ls`, and ask again if that is still what you want"
    )]
    Conflict {
        /// Which.
        cluster: String,
        /// What there is instead of what was expected.
        now: String,
    },
    /// The store did not do it.
    #[error("{0}")]
    Store(StoreError),
}

impl Resources {
    /// Stores a tunnel, or renews the one that is there.
    pub(crate) async fn upsert(&self, wish: &Wish, who: &str) -> Result<Changed, ChangeError> {
        let now_ms = self.clock.unix_millis();
        let asked = Draft {
            cluster: wish.cluster.clone(),
            addresses: wish.addresses.clone(),
            connections: wish.connections,
            labels: wish.labels.clone(),
            created_ms: now_ms,
            expires_ms: wish.ttl.map(|ttl| {
                now_ms.saturating_add(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX))
            }),
        }
        .check()?;
        if *asked.cluster() == self.own {
            return Err(ChangeError::Own(self.own.clone()));
        }
        let key = Tunnel::key(asked.cluster());
        let mut there = self.get(&key).await?;
        for _ in 0..RENEWALS_MAX {
            let revision = there
                .as_ref()
                .map_or(Revision::NONE, |entry| entry.modified);
            if wish.expected.is_some_and(|expected| expected != revision.0) {
                return Err(self.conflict(asked.cluster().as_str(), there.as_ref()));
            }
            let before = there.as_ref().and_then(|entry| self.tunnel(entry));
            let wanted = match &before {
                Some(before) => asked.clone().created_at(before.created_ms()),
                None => asked.clone(),
            };
            let value = wanted.encode().into();
            match self.store.put(&key, value, revision, wish.ttl).await {
                Ok(written) => {
                    let after = wanted.at_revision(written.0);
                    log(
                        who,
                        "upsert",
                        after.cluster().as_str(),
                        before.as_ref(),
                        Some(&after),
                    );
                    self.seen(&key, Some(written), revision).await;
                    return Ok(Changed {
                        before,
                        after: Some(after),
                    });
                }
                Err(StoreError::Conflict { .. }) if wish.expected.is_none() => {
                    there = self.get(&key).await?;
                    // Two who wish for the same take nothing from each other.
                    let same = there.as_ref().and_then(|entry| self.tunnel(entry));
                    if !same.is_some_and(|same| same.wishes_the_same(&asked)) {
                        break;
                    }
                }
                Err(StoreError::Conflict { .. }) => {
                    there = self.get(&key).await?;
                    break;
                }
                Err(error) => return Err(self.store_failed(Operation::Write, error)),
            }
        }
        Err(self.conflict(asked.cluster().as_str(), there.as_ref()))
    }

    /// Removes a tunnel, or what is stored in its place. `name` need not be a cluster's.
    pub(crate) async fn delete(
        &self,
        name: &str,
        expected: Option<u64>,
        who: &str,
    ) -> Result<Changed, ChangeError> {
        let key = format!("{}{name}", mesh_proto::tunnel::KEY_PREFIX);
        let Some(there) = self.get(&key).await? else {
            return Err(ChangeError::Absent(name.to_owned()));
        };
        if expected.is_some_and(|expected| expected != there.modified.0) {
            return Err(self.conflict(name, Some(&there)));
        }
        match self.store.delete(&key, Some(there.modified)).await {
            Ok(_) => {
                let before = self.tunnel(&there);
                log(who, "delete", name, before.as_ref(), None);
                self.seen(&key, None, there.modified).await;
                Ok(Changed {
                    before,
                    after: None,
                })
            }
            Err(StoreError::Conflict { .. }) => {
                let now = self.get(&key).await?;
                Err(match now {
                    None => ChangeError::Absent(name.to_owned()),
                    Some(now) => self.conflict(name, Some(&now)),
                })
            }
            Err(error) => Err(self.store_failed(Operation::Write, error)),
        }
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, ChangeError> {
        let got = self.store.get(key).await;
        got.map_err(|error| self.store_failed(Operation::Read, error))
    }

    fn tunnel(&self, entry: &Entry) -> Option<Tunnel> {
        self.read(&entry.key, &entry.value, entry.modified).ok()
    }

    fn store_failed(&self, operation: Operation, error: StoreError) -> ChangeError {
        self.failed(operation, &error);
        ChangeError::Store(error)
    }

    fn conflict(&self, cluster: &str, there: Option<&Entry>) -> ChangeError {
        let now = match there {
            None => "it is gone".to_owned(),
            Some(entry) => match self.tunnel(entry) {
                Some(tunnel) => format!(
                    "it leads to {}, with the connection count {}, at revision {}",
                    listed(&tunnel),
                    tunnel.connections(),
                    tunnel.revision()
                ),
                None => format!("it is no tunnel any more, at revision {}", entry.modified),
            },
        };
        ChangeError::Conflict {
            cluster: cluster.to_owned(),
            now,
        }
    }

    /// Waits a little until this proxy has heard of the change, so that it tells of it at once.
    async fn seen(&self, key: &str, put: Option<Revision>, before: Revision) {
        let mut changes = self.changes.watch();
        let seen = async {
            loop {
                changes.mark_unchanged();
                if self.has_seen(key, put, before) {
                    return;
                }
                changes.changed().await;
            }
        };
        // The change is made, whether it has been heard of here or not.
        let _ = tokio::time::timeout(SEEN_WAIT, seen).await;
    }
}

fn listed(tunnel: &Tunnel) -> String {
    let addresses: Vec<String> = tunnel.addresses().iter().map(ToString::to_string).collect();
    addresses.join(",")
}

/// Who changed what: the stored forms before and after, on one line.
fn log(who: &str, action: &str, cluster: &str, before: Option<&Tunnel>, after: Option<&Tunnel>) {
    let form = |tunnel: Option<&Tunnel>| tunnel.map_or_else(|| "-".to_owned(), Tunnel::encode);
    tracing::info!(
        target: "audit",
        who,
        action,
        tunnel = cluster,
        before = form(before),
        after = form(after),
        "a tunnel was changed"
    );
}
