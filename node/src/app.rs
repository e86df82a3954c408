//! The composition root: from a config to a running node, and back to nothing in order.

use std::net::SocketAddr;
use std::sync::Arc;

use mesh_proto::name::Cluster;
use prometheus::Registry;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::admin::{self, AdminError, DrainAsk, Readiness};
use crate::agent::{self, Agent, AgentParts};
use crate::clock::WallClock;
use crate::config::{ConfigErrors, NodeConfig};
use crate::hooks::Hooks;
use crate::metrics::MetricsError;
use crate::net::{Network, SystemNetwork};
use crate::proxy::{self, Proxy, ProxyParts};
use crate::random::Random;
use crate::tasks::Tasks;
use crate::trust::TrustChange;

/// The runtimes that a node runs on. It makes no threads of its own.
#[derive(Debug, Clone)]
pub struct Runtimes {
    /// One per shard: best a single-threaded one each, which is half as fast again as one with
    /// two workers.
    pub shards: Vec<Handle>,
    /// For the admin and metrics listeners, so that a scrape never waits for traffic, nor traffic
    /// for a scrape.
    pub admin: Handle,
}

impl Runtimes {
    /// Everything on the runtime of the caller.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn current() -> Self {
        Self {
            shards: vec![Handle::current()],
            admin: Handle::current(),
        }
    }
}

/// What a node is made with beside its config.
#[derive(Debug, Clone)]
pub struct Parts {
    /// Where it runs.
    pub runtimes: Runtimes,
    /// The way out of the process.
    pub network: Arc<dyn Network>,
    /// Where randomness comes from.
    pub random: Random,
    /// What certificates are judged by.
    pub clock: WallClock,
    /// The application's say.
    pub hooks: Hooks,
}

impl Parts {
    /// The runtime of the caller, the system's network and clock, no hooks.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn current() -> Self {
        Self {
            runtimes: Runtimes::current(),
            network: Arc::new(SystemNetwork),
            random: Random::system(),
            clock: WallClock::system(),
            hooks: Hooks::default(),
        }
    }
}

/// A node could not start. Nothing is left running.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// As a proxy.
    #[error(transparent)]
    Proxy(#[from] proxy::StartError),
    /// As an agent.
    #[error(transparent)]
    Agent(#[from] agent::StartError),
    /// Its admin or metrics listener.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// Its metrics.
    #[error("cannot register metrics: {0}")]
    Metrics(#[from] MetricsError),
}

/// A config that was read anew was not taken over; the node runs on as before.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// It does not hold together.
    #[error(transparent)]
    Config(ConfigErrors),
    /// It is of the other role.
    #[error("the role of a running node cannot change; restart it")]
    Role,
    /// It is of another cluster.
    #[error("the cluster of a running node cannot change from {was} to {is}; restart it")]
    Cluster {
        /// The running node's.
        was: Cluster,
        /// The config's.
        is: Cluster,
    },
}

/// A running node, all of whose listeners are bound.
#[derive(Debug)]
pub struct Bound {
    role: Role,
    registry: Registry,
    admin_addr: Option<SocketAddr>,
    metrics_addr: Option<SocketAddr>,
    servers: Tasks,
    stop_servers: CancellationToken,
    drain: DrainAsk,
}

#[derive(Debug)]
enum Role {
    Proxy(Box<Proxy>),
    Agent(Box<Agent>),
}

/// Starts a node on the runtime of the caller.
///
/// # Errors
/// [`BuildError`].
pub async fn build(config: NodeConfig) -> Result<Bound, BuildError> {
    build_with(config, Parts::current()).await
}

/// Starts a node with its own runtimes, network and hooks.
///
/// # Errors
/// [`BuildError`].
pub async fn build_with(config: NodeConfig, parts: Parts) -> Result<Bound, BuildError> {
    let Parts {
        runtimes,
        network,
        random,
        clock,
        hooks,
    } = parts;
    let registry = Registry::new();
    registry.register(Box::new(
        prometheus::process_collector::ProcessCollector::for_self(),
    ))?;
    // Bound before the role starts, so that a port in use is told before anything runs.
    let common = config.common().clone();
    let listeners = admin::bind(&common, &runtimes.admin).await?;
    let (role, readiness, node) = match config {
        NodeConfig::Proxy(config) => {
            let parts = ProxyParts {
                network,
                random,
                clock,
                registry: registry.clone(),
                hooks,
                shards: runtimes.shards,
            };
            let proxy = Proxy::start_with(*config, parts).await?;
            let readiness = Readiness::Proxy(proxy.readiness());
            let node = admin::Node::Proxy(proxy.observer());
            (Role::Proxy(Box::new(proxy)), readiness, node)
        }
        NodeConfig::Agent(config) => {
            let parts = AgentParts {
                network,
                random,
                clock,
                registry: registry.clone(),
                hooks,
                shards: runtimes.shards,
            };
            let agent = Agent::start_with(*config, parts).await?;
            let readiness = Readiness::Agent(agent.connected());
            let node = admin::Node::Agent(agent.observer());
            (Role::Agent(Box::new(agent)), readiness, node)
        }
    };
    let admin_addr = listeners.admin_addr();
    let metrics_addr = listeners.metrics_addr();
    let stop_servers = CancellationToken::new();
    let drain = DrainAsk::new();
    let api = admin::api(node, drain.clone());
    if let Role::Proxy(proxy) = &role {
        proxy.administer_by(api.clone());
    }
    let mut servers = Tasks::new("admin listener");
    listeners.serve(
        &mut servers,
        &runtimes.admin,
        &registry,
        &readiness,
        api,
        &stop_servers,
    );
    Ok(Bound {
        role,
        registry,
        admin_addr,
        metrics_addr,
        servers,
        stop_servers,
        drain,
    })
}

impl Bound {
    /// The proxy, if it is one.
    #[must_use]
    pub fn proxy(&self) -> Option<&Proxy> {
        match &self.role {
            Role::Proxy(proxy) => Some(proxy),
            Role::Agent(_) => None,
        }
    }

    /// The agent, if it is one.
    #[must_use]
    pub fn agent(&self) -> Option<&Agent> {
        match &self.role {
            Role::Agent(agent) => Some(agent),
            Role::Proxy(_) => None,
        }
    }

    /// The bound address of the admin listener; none when it is a Unix socket, or absent.
    #[must_use]
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.admin_addr
    }

    /// The bound address of the metrics listener.
    #[must_use]
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.metrics_addr
    }

    /// The node's metrics.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Completes when somebody asks over the admin API that the node drains. It can be taken back
    /// until [`Bound::notice`] has returned.
    pub async fn drain_asked(&self) {
        self.drain.asked().await;
    }

    /// Takes over what a running node can of a config that was read anew: a proxy, which other clusters
    /// it trusts. All else takes effect at the next start. An error leaves everything as it is.
    ///
    /// # Errors
    /// [`ReloadError`].
    pub fn reload(
        &self,
        loaded: Result<NodeConfig, ConfigErrors>,
    ) -> Result<TrustChange, ReloadError> {
        let result = match (&self.role, loaded) {
            (_, Err(errors)) => Err(ReloadError::Config(errors)),
            (Role::Proxy(proxy), Ok(NodeConfig::Proxy(config))) => {
                let (was, is) = (proxy.cluster(), &config.common.cluster);
                if was == is {
                    Ok(proxy.set_trust(config.trust))
                } else {
                    Err(ReloadError::Cluster {
                        was: was.clone(),
                        is: is.clone(),
                    })
                }
            }
            (Role::Agent(_), Ok(NodeConfig::Agent(_))) => Ok(TrustChange::default()),
            (Role::Proxy(_), Ok(NodeConfig::Agent(_)))
            | (Role::Agent(_), Ok(NodeConfig::Proxy(_))) => Err(ReloadError::Role),
        };
        match &self.role {
            Role::Proxy(proxy) => proxy.reloaded(result.is_ok()),
            Role::Agent(agent) => agent.reloaded(result.is_ok()),
        }
        result
    }

    /// The first part of a drain that was asked for: everything is served, but `/readyz` fails.
    /// `false` when the drain was taken back, and nothing has changed; otherwise
    /// [`Bound::shutdown`] is to follow.
    pub async fn notice(&mut self) -> bool {
        let deadline = self.drain.asked().await;
        match &mut self.role {
            Role::Proxy(proxy) => {
                proxy.set_drain_deadline(deadline);
                tokio::select! {
                    biased;
                    () = self.drain.cancelled() => {
                        proxy.cancel_notice();
                        return false;
                    }
                    () = proxy.notice() => {}
                }
            }
            Role::Agent(agent) => agent.set_drain_deadline(deadline),
        }
        let begun = self.drain.begin_asked().is_ok();
        if let (false, Role::Proxy(proxy)) = (begun, &mut self.role) {
            proxy.cancel_notice();
        }
        begun
    }

    /// Leaves in order, within the drain deadline; health and metrics are served until the end.
    /// Returns how many streams were cut at the deadline.
    pub async fn shutdown(mut self) -> u64 {
        self.drain.begin();
        let streams_cut = match self.role {
            Role::Proxy(proxy) => proxy.shutdown().await.streams_cut,
            Role::Agent(agent) => agent.shutdown().await,
        };
        self.stop_servers.cancel();
        self.servers.shutdown(admin::CLOSE_GRACE).await;
        streams_cut
    }
}
