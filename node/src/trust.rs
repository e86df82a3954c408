//! Other clusters that this one trusts: who vouches for their proxies, and what they may reach here.
//! It can be replaced while connections stand.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use certs::{ForeignAuthority, TrustedClusters};
use mesh_proto::allow::AllowList;
use mesh_proto::name::Cluster;
use rustls_pki_types::CertificateDer;

use crate::changes::{Changes, Watcher};
use crate::clock::WallClock;
use crate::config::TrustConfig;

/// What is trusted now.
#[derive(Debug)]
pub(crate) struct Trust {
    /// Replaced as a whole; the lock is held for a look, never across an await.
    clusters: RwLock<Arc<BTreeMap<Cluster, TrustConfig>>>,
    changes: Changes,
    clock: WallClock,
}

/// What a replacement has changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustChange {
    /// Clusters that were not trusted before.
    pub added: Vec<Cluster>,
    /// Clusters that are trusted no more.
    pub removed: Vec<Cluster>,
    /// Clusters whose authority or list is another one now.
    pub changed: Vec<Cluster>,
}

impl TrustChange {
    /// Whether everything is as before.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.changed.is_empty()
    }
}

/// Which side of a connection is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// It has dialled.
    Client,
    /// It was dialled.
    Server,
}

impl Trust {
    pub(crate) fn new(trust: Vec<TrustConfig>, clock: WallClock) -> Self {
        Self {
            clusters: RwLock::new(Arc::new(by_cluster(trust))),
            changes: Changes::default(),
            clock,
        }
    }

    fn now(&self) -> Arc<BTreeMap<Cluster, TrustConfig>> {
        self.clusters
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Replaces all of it. Whoever watches then sees to the connections that stand.
    pub(crate) fn replace(&self, trust: Vec<TrustConfig>) -> TrustChange {
        let new = Arc::new(by_cluster(trust));
        let old = std::mem::replace(
            &mut *self
                .clusters
                .write()
                .unwrap_or_else(PoisonError::into_inner),
            new.clone(),
        );
        let is_same = |one: &TrustConfig, other: &TrustConfig| {
            one.authority.is_same(&other.authority) && one.allow == other.allow
        };
        let change = TrustChange {
            added: missing(&new, &old),
            removed: missing(&old, &new),
            changed: new
                .iter()
                .filter(|(cluster, new)| old.get(*cluster).is_some_and(|old| !is_same(old, new)))
                .map(|(cluster, _)| cluster.clone())
                .collect(),
        };
        if !change.is_empty() {
            self.changes.notify();
        }
        change
    }

    /// Hears of every change.
    pub(crate) fn changes(&self) -> Watcher {
        self.changes.watch()
    }

    /// Whether a cluster is trusted.
    pub(crate) fn knows(&self, cluster: &Cluster) -> bool {
        self.now().contains_key(cluster)
    }

    /// Whether any cluster is trusted.
    pub(crate) fn knows_any(&self) -> bool {
        !self.now().is_empty()
    }

    /// What a cluster may reach through this cluster's proxies themselves; `None` when it is not
    /// trusted.
    pub(crate) fn allow(&self, cluster: &Cluster) -> Option<AllowList> {
        self.now().get(cluster).map(|trust| trust.allow.clone())
    }

    /// Whether the other side of a connection that stands, a proxy of that cluster, would still be
    /// let in.
    ///
    /// # Errors
    /// Why not, for both sides to read.
    pub(crate) fn judge(
        &self,
        cluster: &Cluster,
        connection: &quinn::Connection,
        side: Side,
    ) -> Result<(), String> {
        let Some(authority) = self.authority(cluster) else {
            return Err(format!(
                "the cluster {cluster} is not trusted here any more"
            ));
        };
        let chain = connection
            .peer_identity()
            .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok());
        let (Some(chain), Some(now)) = (chain, self.clock.provider().current_time()) else {
            return Err("there is nothing to judge it by".to_owned());
        };
        let judged = match side {
            Side::Client => authority.judge_client(&chain, now),
            Side::Server => authority.judge_server(&chain, now),
        };
        judged.map_err(|error| {
            format!("the authority of the cluster {cluster} that is trusted here now does not vouch for it: {error}")
        })
    }
}

impl TrustedClusters for Trust {
    fn authority(&self, cluster: &Cluster) -> Option<ForeignAuthority> {
        self.now().get(cluster).map(|trust| trust.authority.clone())
    }
}

fn by_cluster(trust: Vec<TrustConfig>) -> BTreeMap<Cluster, TrustConfig> {
    trust
        .into_iter()
        .map(|trust| (trust.cluster.clone(), trust))
        .collect()
}

fn missing(
    of: &BTreeMap<Cluster, TrustConfig>,
    from: &BTreeMap<Cluster, TrustConfig>,
) -> Vec<Cluster> {
    of.keys()
        .filter(|cluster| !from.contains_key(*cluster))
        .cloned()
        .collect()
}
