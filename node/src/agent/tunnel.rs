//! The pool of a proxy that is connected to another cluster as an agent is to its own.

use std::sync::Arc;

use mesh_proto::close::CloseCode;
use mesh_proto::pool::Counts;
use rand::rngs::StdRng;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::metrics::AgentMetrics;
use super::realm::{Other, Realm};
use super::{CLOSE_GRACE, Shared, links, pool};
use crate::clock::WallClock;
use crate::config::AgentConfig;
use crate::hooks::Hooks;
use crate::metrics::NodeMetrics;
use crate::net::Network;
use crate::quic::keys::EndpointKeys;
use crate::quic::stall::StallBudget;
use crate::random::Random;
use crate::tasks::Tasks;

/// What all pools of a proxy are made with.
#[derive(Debug, Clone)]
pub(crate) struct TunnelParts {
    pub(crate) network: Arc<dyn Network>,
    pub(crate) random: Random,
    pub(crate) clock: WallClock,
    pub(crate) hooks: Hooks,
    /// The other clusters' proxies know by this that the connections of one proxy belong together.
    pub(crate) instance: [u8; 16],
    pub(crate) keys: EndpointKeys,
    pub(crate) node_metrics: NodeMetrics,
    /// Registered nowhere: what they say would be of one pool or of another.
    pub(crate) metrics: AgentMetrics,
    pub(crate) budget: Arc<StallBudget>,
    pub(crate) shards: Vec<Handle>,
}

/// A running pool. Dropping it cuts everything at once; [`TunnelPool::leave`] leaves in order.
#[derive(Debug)]
pub(crate) struct TunnelPool {
    shared: Arc<Shared>,
    pool: Tasks,
}

/// A running pool, to look at.
#[derive(Debug, Clone)]
pub(crate) struct Look(Arc<Shared>);

impl TunnelPool {
    /// Starts a pool towards `other` on the runtime of the caller. It is cut with `cut`.
    pub(crate) fn start(
        parts: TunnelParts,
        config: AgentConfig,
        other: Other,
        cut: &CancellationToken,
    ) -> Self {
        let rng: StdRng = parts.random.generator();
        let shared = Arc::new(Shared {
            pool: Arc::new(pool::PoolState::new(
                pool::of_config(&config, &other.cluster),
                rng,
            )),
            realm: Realm::Other(other),
            network: parts.network,
            hooks: parts.hooks,
            instance: parts.instance,
            keys: parts.keys,
            links: Arc::<links::Links>::default(),
            random: parts.random,
            clock: parts.clock,
            budget: parts.budget,
            node_metrics: parts.node_metrics,
            metrics: parts.metrics,
            started: Instant::now(),
            connected: watch::Sender::new(0),
            down_since: std::sync::Mutex::new(Instant::now()),
            leaving: watch::Sender::new(None),
            cut: cut.child_token(),
            config,
        });
        let mut pool = Tasks::new("connection pool of a tunnel");
        pool.spawn(pool::run(shared.clone(), parts.shards));
        Self { shared, pool }
    }

    /// For looking at it while it runs.
    pub(crate) fn look(&self) -> Look {
        Look(self.shared.clone())
    }

    /// Completes when a connection stands.
    pub(crate) async fn connected(&self) {
        let mut connected = self.shared.connected.subscribe();
        // The sender lives as long as this.
        let _ = connected.wait_for(|connected| *connected > 0).await;
    }

    /// Completes when a connection stands, and then as many as are wanted.
    pub(crate) async fn stands(&self) {
        // Fewer may come to be wanted, without a connection that comes or goes.
        let mut steps = self.shared.pool.steps();
        self.connected().await;
        loop {
            let (counts, _) = self.shared.pool.report();
            if counts.connected > 0 && counts.connected >= counts.desired {
                return;
            }
            steps.changed().await;
        }
    }

    /// Closes the connections to whom the authority that is trusted now does not vouch for.
    pub(crate) fn judge(&self) {
        let Realm::Other(other) = &self.shared.realm else {
            return;
        };
        for connection in self.shared.links.connections() {
            if let Err(why) = other.judge(&connection) {
                tracing::warn!(cluster = %other.cluster, remote = %connection.remote_address(), why, "ending a connection of a tunnel");
                connection.close(CloseCode::Untrusted.code().into(), why.as_bytes());
            }
        }
    }

    /// Leaves in order: tells the proxies, lets streams end until then, cuts the rest.
    pub(crate) async fn leave(mut self, until: Instant) {
        self.shared.leaving.send_replace(Some(until));
        let _ = tokio::time::timeout_at(until, self.pool.join_all()).await;
        self.shared.cut.cancel();
        self.pool.shutdown(CLOSE_GRACE * 2).await;
    }
}

impl Drop for TunnelPool {
    fn drop(&mut self) {
        self.shared.cut.cancel();
    }
}

impl Look {
    /// Its counts, why the last attempt failed, and since when nothing is connected if that is so.
    pub(crate) fn report(&self) -> (Counts, Option<String>, Instant) {
        let (counts, _) = self.0.pool.report();
        (counts, self.0.pool.last_failure(), self.0.down_since())
    }
}
