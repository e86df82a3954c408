//! One tunnel: its pool, the pool that it takes the place of, and what is trusted.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use certs::TrustedClusters as _;
use mesh_proto::name::Cluster;
use tokio::sync::watch;
use tokio::time::Instant;

use super::super::Shared;
use super::TunnelState;
use super::answer::Answerer;
use super::pools::Wish;
use crate::agent::realm::Other;
use crate::agent::tunnel::{Look, TunnelParts, TunnelPool};
use crate::config::{AgentConfig, CommonConfig};
use crate::tasks::Tasks;

/// For how long a pool must have what it wants before the one in whose place it is goes: the first
/// connection brings the view that says how many are wanted.
const SETTLE: Duration = Duration::from_secs(1);

/// For how long a pool that has connections, but not all that it wants, has the one before it stay:
/// one of the proxies may never be reachable.
const PATIENCE: Duration = Duration::from_secs(60);

/// How a tunnel is seen from outside.
#[derive(Debug)]
pub(super) struct Kept(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    pool: Option<Look>,
    former: Option<Look>,
    /// Why there is no pool at all, and since when.
    blocked: Option<(String, Instant)>,
}

impl Kept {
    pub(super) fn new() -> Self {
        Self(Mutex::default())
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn block(&self, why: String) {
        let mut seen = self.lock();
        let since = match &seen.blocked {
            Some((before, since)) if *before == why => *since,
            Some(_) | None => {
                tracing::warn!(why, "a tunnel cannot be kept");
                Instant::now()
            }
        };
        *seen = Seen {
            blocked: Some((why, since)),
            ..Seen::default()
        };
    }

    fn show(&self, pool: Option<&TunnelPool>, former: Option<&TunnelPool>) {
        *self.lock() = Seen {
            pool: pool.map(TunnelPool::look),
            former: former.map(TunnelPool::look),
            blocked: None,
        };
    }

    pub(super) fn state(&self) -> TunnelState {
        let seen = self.lock();
        if let Some((why, since)) = &seen.blocked {
            return TunnelState::Failing {
                why: why.clone(),
                since: *since,
            };
        }
        let Some(pool) = &seen.pool else {
            return TunnelState::Connecting;
        };
        let (counts, failing, since) = pool.report();
        if counts.held > 0 {
            return TunnelState::Connected {
                connections: counts.held,
                wanted: counts.desired,
            };
        }
        let Some(why) = failing else {
            return TunnelState::Connecting;
        };
        let former = seen.former.as_ref().map(|former| former.report().0.held);
        let meanwhile = match former {
            Some(held) if held > 0 => {
                format!("; meanwhile {held} connections by the former addresses are kept")
            }
            Some(_) | None => String::new(),
        };
        TunnelState::Failing {
            why: format!("{why}{meanwhile}"),
            since,
        }
    }
}

/// The pools of one tunnel.
struct Keeper {
    shared: Arc<Shared>,
    parts: TunnelParts,
    cluster: Cluster,
    kept: Arc<Kept>,
    current: Option<(Wish, TunnelPool)>,
    /// The pool before, until the current one stands.
    former: Option<TunnelPool>,
    /// Since when the current one has had a connection, while there is a former one.
    connected_since: Option<Instant>,
    /// Pools that end.
    leaving: Tasks,
}

/// Keeps a tunnel until it is not wished any more; then leaves it in order.
pub(super) async fn run(
    shared: Arc<Shared>,
    parts: TunnelParts,
    cluster: Cluster,
    mut wishes: watch::Receiver<Option<Wish>>,
    kept: Arc<Kept>,
) {
    let mut trust = shared.trust.changes();
    let mut keeper = Keeper {
        shared: shared.clone(),
        parts,
        cluster,
        kept,
        current: None,
        former: None,
        connected_since: None,
        leaving: Tasks::new("pool of a tunnel that is left"),
    };
    loop {
        trust.mark_unchanged();
        let Some(wish) = wishes.borrow_and_update().clone() else {
            break;
        };
        keeper.keep(wish);
        let Keeper {
            current,
            former,
            connected_since,
            leaving,
            ..
        } = &mut keeper;
        let moved = async {
            match (&current, &former) {
                (Some((_, pool)), Some(_)) => stands(pool, connected_since).await,
                _ => std::future::pending().await,
            }
        };
        let has_moved = tokio::select! {
            biased;
            () = shared.cut.cancelled() => break,
            changed = wishes.changed() => if changed.is_ok() { false } else { break },
            () = trust.changed() => false,
            () = leaving.reap() => false,
            () = moved => true,
        };
        if has_moved && let Some(former) = keeper.former.take() {
            keeper.leave(former);
        }
    }
    for pool in [
        keeper.current.take().map(|(_, pool)| pool),
        keeper.former.take(),
    ]
    .into_iter()
    .flatten()
    {
        keeper.leave(pool);
    }
    keeper.leaving.join_all().await;
}

/// Completes when a pool has had what it wants for a moment, or some of it for long.
async fn stands(pool: &TunnelPool, connected_since: &mut Option<Instant>) {
    pool.connected().await;
    let since = *connected_since.get_or_insert_with(Instant::now);
    let all = async {
        pool.stands().await;
        tokio::time::sleep(SETTLE).await;
        pool.stands().await;
    };
    let _ = tokio::time::timeout_at(since + PATIENCE, all).await;
    pool.connected().await;
}

impl Keeper {
    /// Sees to it that there is the pool that is wished for, as far as its cluster is trusted.
    fn keep(&mut self, wish: Wish) {
        if let Some(why) = self.why_not() {
            // Their connections first: the other side is to read the reason.
            for pool in self
                .current
                .iter()
                .map(|(_, pool)| pool)
                .chain(&self.former)
            {
                pool.judge();
            }
            let pools = [
                self.current.take().map(|(_, pool)| pool),
                self.former.take(),
            ];
            for pool in pools.into_iter().flatten() {
                self.leaving.spawn(pool.leave(Instant::now()));
            }
            self.kept.block(why);
            return;
        }
        for pool in self
            .current
            .iter()
            .map(|(_, pool)| pool)
            .chain(&self.former)
        {
            pool.judge();
        }
        if self.current.as_ref().is_none_or(|(now, _)| *now != wish) {
            if let Some((_, before)) = self.current.take() {
                // Of two that are to go, the one that has connections serves on until the new one stands.
                let goes = if before.look().report().0.held > 0 {
                    self.former.replace(before)
                } else if self.former.is_some() {
                    Some(before)
                } else {
                    self.former.replace(before)
                };
                if let Some(pool) = goes {
                    self.leave(pool);
                }
            }
            self.connected_since = None;
            let pool = self.start(&wish);
            self.current = Some((wish, pool));
        }
        let current = self.current.as_ref().map(|(_, pool)| pool);
        self.kept.show(current, self.former.as_ref());
    }

    /// Why there can be no pool.
    fn why_not(&self) -> Option<String> {
        let cluster = &self.cluster;
        if *cluster == self.shared.config.common.cluster {
            return Some(format!(
                "{cluster} is this proxy's own cluster; delete the tunnel"
            ));
        }
        self.shared.trust.authority(cluster).is_none().then(|| {
            format!(
                "{cluster} is not trusted here: add a [[trust]] with its name and its authority to the config of each proxy"
            )
        })
    }

    fn start(&self, wish: &Wish) -> TunnelPool {
        let own = &self.shared.config.common;
        let mut config = AgentConfig::new(own.credentials.clone(), wish.addresses.clone());
        config.common = CommonConfig {
            quic: own.quic.clone(),
            drain_deadline: own.drain_deadline,
            ..config.common
        };
        config.connection_count = Some(wish.connections);
        let other = Other {
            cluster: self.cluster.clone(),
            trust: self.shared.trust.clone(),
            answers: Arc::new(Answerer {
                shared: self.shared.clone(),
                cluster: self.cluster.clone(),
            }),
        };
        TunnelPool::start(self.parts.clone(), config, other, &self.shared.cut)
    }

    /// Leaves a pool in order, within the drain deadline.
    fn leave(&mut self, pool: TunnelPool) {
        let own = Instant::now() + self.shared.config.common.drain_deadline;
        let until = self
            .shared
            .drain_until
            .borrow()
            .map_or(own, |all| all.min(own));
        self.leaving.spawn(pool.leave(until));
    }
}
