//! The agent: dials out to proxies, and reaches the targets that they ask for.

mod connect;
pub mod dialer;
mod ending;
mod failures;
mod links;
pub mod metrics;
mod pool;
pub(crate) mod realm;
mod report;
mod session;
mod target;
pub(crate) mod tunnel;

use std::sync::Arc;
use std::time::Duration;

use mesh_proto::name::{Cluster, InvalidName};
use prometheus::Registry;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use self::dialer::{DialRefused, Dialer, DialerError};
use self::metrics::AgentMetrics;
use self::realm::Realm;
pub(crate) use self::report::Observer;
use crate::clock::WallClock;
use crate::config::AgentConfig;
use crate::hooks::Hooks;
use crate::metrics::{MetricsError, NodeMetrics};
use crate::net::{Network, SystemNetwork};
use crate::quic::keys::EndpointKeys;
use crate::quic::stall::StallBudget;
use crate::random::Random;
use crate::tasks::Tasks;

/// How long closing connections may tell the other side before the sockets go.
const CLOSE_GRACE: Duration = Duration::from_secs(1);

/// What all parts of an agent share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: AgentConfig,
    /// Where the connections lead.
    pub(crate) realm: Realm,
    pub(crate) network: Arc<dyn Network>,
    pub(crate) random: Random,
    pub(crate) clock: WallClock,
    pub(crate) pool: Arc<pool::PoolState>,
    pub(crate) links: Arc<links::Links>,
    pub(crate) hooks: Hooks,
    /// Tells this process from another one with the same identity.
    pub(crate) instance: [u8; 16],
    pub(crate) keys: EndpointKeys,
    pub(crate) node_metrics: NodeMetrics,
    pub(crate) metrics: AgentMetrics,
    pub(crate) budget: Arc<StallBudget>,
    started: Instant,
    /// Connections whose hello has arrived.
    pub(crate) connected: watch::Sender<usize>,
    /// When the last of them ended, or it all began.
    down_since: std::sync::Mutex<Instant>,
    /// When the agent leaves: its deadline.
    pub(crate) leaving: watch::Sender<Option<Instant>>,
    /// Cancelled at the deadline: what still runs is cut.
    pub(crate) cut: CancellationToken,
}

impl Shared {
    /// The cluster of the proxies.
    pub(crate) fn cluster(&self) -> &Cluster {
        match &self.realm {
            Realm::Own => &self.config.common.cluster,
            Realm::Other(other) => &other.cluster,
        }
    }

    fn down_since(&self) -> Instant {
        *self
            .down_since
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn set_down(&self) {
        *self
            .down_since
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = Instant::now();
    }
}

/// An agent could not start. Nothing is left running.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The metrics.
    #[error("cannot register metrics: {0}; does the registry hold another node's?")]
    Metrics(#[from] MetricsError),
}

/// What an agent is made with, beside its config; the defaults are a real node's.
#[derive(Debug)]
pub struct AgentParts {
    /// The way out of the process.
    pub network: Arc<dyn Network>,
    /// Where the metrics are registered.
    pub registry: Registry,
    /// Where randomness comes from.
    pub random: Random,
    /// What certificates are judged by.
    pub clock: WallClock,
    /// The application's say.
    pub hooks: Hooks,
    /// The runtimes that connections are spread over.
    pub shards: Vec<Handle>,
}

impl AgentParts {
    /// The system's network and clock, no hooks, and the runtime of the caller.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn new() -> Self {
        Self {
            network: Arc::new(SystemNetwork),
            registry: Registry::new(),
            random: Random::system(),
            clock: WallClock::system(),
            hooks: Hooks::default(),
            shards: vec![Handle::current()],
        }
    }
}

impl Default for AgentParts {
    fn default() -> Self {
        Self::new()
    }
}

/// A running agent. Dropping it cuts everything at once; [`Agent::shutdown`] leaves in order.
#[derive(Debug)]
pub struct Agent {
    shared: Arc<Shared>,
    /// Instead of the config's.
    drain_deadline: Option<Duration>,
    pool: Tasks,
    background: Tasks,
}

impl Agent {
    /// Starts an agent on the runtime of the caller. It connects in the background, for as long
    /// as it takes: [`Agent::connected`] tells.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(config: AgentConfig) -> Result<Self, StartError> {
        Self::start_with(config, AgentParts::new()).await
    }

    /// Starts an agent with its own network, registry, hooks and runtimes.
    ///
    /// # Errors
    /// [`StartError`].
    #[expect(
        clippy::unused_async,
        reason = "as Proxy::start_with: what a start waits for may change"
    )]
    pub async fn start_with(config: AgentConfig, parts: AgentParts) -> Result<Self, StartError> {
        let node_metrics = NodeMetrics::new(&parts.registry)?;
        node_metrics
            .cert_expiry
            .with_label_values(&["node"])
            .set(config.common.credentials.not_after());
        let metrics = AgentMetrics::new(&parts.registry)?;
        let quic = &config.common.quic;
        let shared = Arc::new(Shared {
            realm: Realm::Own,
            network: parts.network,
            hooks: parts.hooks,
            instance: parts.random.bytes(),
            keys: EndpointKeys::random(&mut parts.random.generator()),
            pool: Arc::new(pool::PoolState::new(
                pool::of_config(&config, &config.common.cluster),
                parts.random.generator(),
            )),
            links: Arc::default(),
            random: parts.random,
            clock: parts.clock,
            budget: StallBudget::new(
                quic.stream_window_bytes,
                quic.buffer_bytes_max,
                node_metrics.cut_as_stalled.clone(),
            ),
            node_metrics,
            metrics,
            started: Instant::now(),
            connected: watch::Sender::new(0),
            down_since: std::sync::Mutex::new(Instant::now()),
            leaving: watch::Sender::new(None),
            cut: CancellationToken::new(),
            config,
        });
        let first = parts
            .shards
            .first()
            .cloned()
            .unwrap_or_else(Handle::current);
        let mut background = Tasks::new("buffer budget");
        background.spawn_on(shared.budget.clone().keep(), &first);
        let mut pool = Tasks::new("connection pool");
        pool.spawn_on(pool::run(shared.clone(), parts.shards), &first);
        tracing::info!(
            agent = %shared.config.common.name, cluster = %shared.config.common.cluster,
            proxies = shared.config.proxies.join(","), "agent started"
        );
        Ok(Self {
            shared,
            drain_deadline: None,
            pool,
            background,
        })
    }

    /// How many connections stand: what `/readyz` tells.
    #[must_use]
    pub fn connected(&self) -> watch::Receiver<usize> {
        self.shared.connected.subscribe()
    }

    /// Notes whether a reload of the config went well.
    pub(crate) fn reloaded(&self, successful: bool) {
        let gauge = &self.shared.node_metrics.last_reload_successful;
        gauge.set(successful.into());
    }

    /// What the admin API tells of the agent.
    pub(crate) fn observer(&self) -> Observer {
        Observer::new(self.shared.clone())
    }

    /// The next drain has this deadline instead of the config's.
    pub fn set_drain_deadline(&mut self, deadline: Option<Duration>) {
        self.drain_deadline = deadline;
    }

    /// A dialler for the targets of `agent`, another one of this cluster, written as users write it.
    /// It dials through one of this agent's proxies, whose policy decides: by default, an agent may
    /// dial nothing.
    ///
    /// # Errors
    /// When that is no name of an agent.
    pub fn dialer(&self, agent: &str) -> Result<Dialer, InvalidName> {
        Ok(Dialer::new(self.shared.clone(), agent.parse()?))
    }

    /// Leaves in order: tells the proxies, lets streams end until `drain_deadline`, cuts the rest.
    /// All tasks are joined when it returns. Returns how many streams were cut.
    pub async fn shutdown(mut self) -> u64 {
        let deadline = self
            .drain_deadline
            .unwrap_or(self.shared.config.common.drain_deadline);
        let until = Instant::now() + deadline;
        tracing::info!(?deadline, "leaving");
        self.shared.node_metrics.draining.set(1);
        self.shared.leaving.send_replace(Some(until));
        let in_time = tokio::time::timeout_at(until, self.pool.join_all())
            .await
            .is_ok();
        let streams_cut = if in_time {
            0
        } else {
            u64::try_from(self.shared.node_metrics.streams_open()).unwrap_or(0)
        };
        if streams_cut > 0 {
            self.shared.node_metrics.set_drain_deadline_passed();
            self.shared
                .node_metrics
                .cut_at_drain_deadline
                .inc_by(streams_cut);
            tracing::warn!(
                streams_cut,
                "the drain deadline has passed: streams that were still open are cut; raise agent.drain_deadline if they should have longer"
            );
        }
        self.shared.cut.cancel();
        self.pool.shutdown(CLOSE_GRACE * 2).await;
        self.background.shutdown(Duration::ZERO).await;
        tracing::info!(streams_cut, "left");
        streams_cut
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.shared.cut.cancel();
    }
}
