//! The proxy: agents connect to it, users arrive at it, and it brings them together.

mod accept;
mod administer;
mod control;
mod grants;
mod inbound;
pub mod ingress;
mod join;
mod mesh;
pub mod metrics;
mod peers;
mod report;
pub mod router;
mod routing;
pub mod session;
mod silence;
mod spread;
mod stream;
mod trusted;
pub mod tunnels;
mod users;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mesh_proto::close::CloseCode;
use mesh_proto::grant::Policy;
use mesh_proto::name::{AgentName, AgentRef, Cluster, InvalidName, NodeName};
use mesh_proto::principal::Principal;
use mesh_proto::target::Target;
use mesh_proto::wire::{ALPN_AGENT, ALPN_PEER, ALPN_USER, Profile, ProfileError};
use prometheus::Registry;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::accept::Admission;
pub(crate) use self::administer::Caller;
use self::mesh::Mesh;
use self::metrics::ProxyMetrics;
use self::peers::links::Links;
pub(crate) use self::report::Observer;
use self::router::{DialError, DialRequest, Misses, Reach};
use self::routing::{Of, Routing};
use self::session::{Session, Sessions};
pub use self::stream::{DirectStream, Stream};
use self::tunnels::{Resources, Tunnels};
use crate::clock::WallClock;
use crate::config::{ProxyConfig, TrustConfig};
use crate::hooks::Hooks;
use crate::metrics::{MetricsError, NodeMetrics};
use crate::net::{Network, SystemNetwork};
use crate::quic::endpoint::{self, EndpointError, EndpointParts};
use crate::quic::keys::{self, EndpointKeys, EndpointState, StateError};
use crate::quic::stall::StallBudget;
use crate::random::Random;
use crate::report::{Peer, Route, Status};
use crate::store::{self, StoreError};
use crate::tasks::Tasks;
use crate::trust::{Trust, TrustChange};

/// How long closing connections may tell the other side before the sockets go.
const CLOSE_GRACE: Duration = Duration::from_secs(1);

/// How long gossip is given to tell that the proxy has left.
const LAST_WORDS: Duration = Duration::from_millis(20);

/// How far the proxy is on its way in or out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It serves, but does not know all peers' agents yet: `/readyz` fails.
    Joining,
    /// It serves.
    Serving,
    /// It serves, but `/readyz` fails, so that balancers look elsewhere.
    Notice,
    /// New work is refused; what runs may end.
    Draining,
}

/// What all parts of a proxy share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: ProxyConfig,
    pub(crate) network: Arc<dyn Network>,
    pub(crate) hooks: Hooks,
    policy: Policy,
    pub(crate) random: Random,
    pub(crate) clock: WallClock,
    pub(crate) epoch: u64,
    started: Instant,
    /// Holds the state directory for as long as the proxy runs.
    _state_lock: Option<Arc<std::fs::File>>,
    mesh: Mesh,
    links: Links,
    routing: Arc<Routing>,
    /// The same of other clusters.
    cluster_routing: Arc<Routing>,
    pub(crate) trust: Arc<Trust>,
    misses: Misses,
    /// Where there is a store.
    tunnels: Option<Arc<Resources>>,
    /// What users are served who administer; from the time that the node has one.
    administration: administer::Administration,
    pub(crate) node_metrics: NodeMetrics,
    pub(crate) metrics: ProxyMetrics,
    pub(crate) budget: Arc<StallBudget>,
    sessions: Arc<Sessions>,
    /// How many shards there are.
    pub(crate) shards: usize,
    pub(crate) phase: watch::Sender<Phase>,
    /// Joining is over; changed within changes of `phase`.
    joined: AtomicBool,
    /// When what still runs is cut.
    drain_until: watch::Sender<Option<Instant>>,
    /// Whose pooled streams are to be closed, since a session of that agent ended.
    ended_sessions: tokio::sync::broadcast::Sender<AgentName>,
    admission: Admission,
    /// Cancelled at the drain deadline: what still runs is cut.
    pub(crate) cut: CancellationToken,
}

impl Shared {
    fn routes(&self, of: Of) -> &Arc<Routing> {
        match of {
            Of::Agents => &self.routing,
            Of::Clusters => &self.cluster_routing,
        }
    }

    /// The routes among which a name would be.
    fn routes_of(&self, agent: &AgentName) -> &Arc<Routing> {
        self.routes(if agent.is_cluster() {
            Of::Clusters
        } else {
            Of::Agents
        })
    }

    /// A member is gone, and all its rows with it.
    fn forget_routes(&self, owner: &NodeName) {
        self.routing.forget(owner);
        self.cluster_routing.forget(owner);
    }

    /// What the name of an agent stands for here; `None` when nobody is called so.
    fn place(&self, agent: &AgentRef) -> Option<router::Place> {
        router::place(&self.config.common.cluster, &self.trust, agent)
    }

    /// The processes of an agent that are connected, here or at peers.
    fn instances(&self, agent: &AgentName) -> BTreeSet<[u8; 16]> {
        let here = self.sessions.live(agent);
        let there = self.routes_of(agent).instances(agent);
        here.iter()
            .map(|session| session.instance)
            .chain(there.into_iter().map(|(_, instance)| instance))
            .collect()
    }

    /// Tells the holders of idle streams that a session of `agent` takes no more work.
    fn session_ended(&self, agent: &AgentName) {
        // Nobody listens when there is no ingress that pools.
        let _ = self.ended_sessions.send(agent.clone());
    }

    /// Over how long agents spread their dials when they have lost a proxy: if all agents of this
    /// one came to one other, it would meet at most its `reconnects_per_second`.
    fn reconnect_spread_ms(&self) -> u64 {
        let agents = u64::try_from(self.metrics.agents.get()).unwrap_or(0);
        spread::spread_ms(agents, self.config.reconnects_per_second)
    }

    /// Completes when the agents have found a replacement for this proxy, which drains, and left; or
    /// when no other proxy serves that could be one.
    async fn agents_have_left(&self) {
        let mut changes = self.mesh.changes();
        let left = self.sessions.none();
        tokio::pin!(left);
        while self.mesh.others_serve() {
            tokio::select! {
                biased;
                () = &mut left => return,
                () = changes.changed() => {}
            }
        }
    }

    /// The agents whose sessions end, from now on.
    pub(crate) fn ended_sessions(&self) -> tokio::sync::broadcast::Receiver<AgentName> {
        self.ended_sessions.subscribe()
    }
}

/// A proxy could not start. Nothing is left running.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The QUIC endpoint.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// An ingress.
    #[error(transparent)]
    Ingress(#[from] ingress::IngressError),
    /// What it would tell of itself.
    #[error("quic.advertise and quic.peer_advertise are more than gossip can carry: {0}")]
    Profile(#[from] ProfileError),
    /// The store of tunnel resources.
    #[error("store.url: {0}")]
    Store(#[from] StoreError),
    /// The metrics.
    #[error("cannot register metrics: {0}; does the registry hold another node's?")]
    Metrics(#[from] MetricsError),
}

/// What a proxy is made with, beside its config; the defaults are a real node's.
#[derive(Debug)]
pub struct ProxyParts {
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
    /// One runtime per shard; the first one also serves the ingress listeners.
    pub shards: Vec<Handle>,
}

impl ProxyParts {
    /// The system's network and clock, no hooks, and one shard on the runtime of the caller.
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

impl Default for ProxyParts {
    fn default() -> Self {
        Self::new()
    }
}

/// A running proxy. Dropping it cuts everything at once; [`Proxy::shutdown`] leaves in order.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    quic_addr: SocketAddr,
    ingress_addrs: Vec<SocketAddr>,
    /// Instead of the config's.
    drain_deadline: Option<Duration>,
    /// When the drain began, with its notice.
    drain_since: Option<Instant>,
    endpoints: Vec<quinn::Endpoint>,
    connections: Tasks,
    listeners: Tasks,
    background: Tasks,
    tunnels: Arc<Tunnels>,
    tunnel_tasks: Tasks,
}

/// What a drain had to leave behind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DrainReport {
    /// Streams that were still open at the deadline and were cut.
    pub streams_cut: u64,
}

impl Proxy {
    /// Starts a proxy on the runtime of the caller. All its listeners are bound when it returns.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(config: ProxyConfig) -> Result<Self, StartError> {
        Self::start_with(config, ProxyParts::new()).await
    }

    /// Starts a proxy with its own network, registry, hooks and runtimes.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start_with(config: ProxyConfig, parts: ProxyParts) -> Result<Self, StartError> {
        let state = match &config.state_dir {
            Some(dir) => keys::load(dir, &mut parts.random.generator())?,
            // Without a state directory nothing tells this start from another but the time.
            None => EndpointState {
                epoch: parts.clock.unix_seconds(),
                keys: EndpointKeys::random(&mut parts.random.generator()),
                lock: None,
            },
        };
        let node_metrics = NodeMetrics::new(&parts.registry)?;
        node_metrics
            .cert_expiry
            .with_label_values(&["node"])
            .set(config.common.credentials.not_after());
        let metrics = ProxyMetrics::new(&parts.registry)?;
        let tunnels = tunnels(&config, &parts).await?;
        let quic = &config.common.quic;
        let shared = Arc::new(Shared {
            mesh: Mesh::new(
                Profile {
                    name: config.common.name.clone(),
                    epoch: state.epoch,
                    revision: 0,
                    group: config.group.clone(),
                    generation: config.generation,
                    addresses: Vec::new(),
                    peer_addresses: quic.peer_advertise.iter().cloned().collect(),
                    draining: false,
                    ext: Vec::new(),
                },
                u64::from_be_bytes(parts.random.bytes()),
            )?,
            links: Links::new(config.common.name.clone()),
            routing: Arc::new(Routing::new(state.epoch, Of::Agents)),
            cluster_routing: Arc::new(Routing::new(state.epoch, Of::Clusters)),
            trust: Arc::new(Trust::new(config.trust.clone(), parts.clock.clone())),
            misses: Misses::new(),
            tunnels,
            administration: administer::Administration::default(),
            epoch: state.epoch,
            _state_lock: state.lock,
            random: parts.random.clone(),
            clock: parts.clock.clone(),
            network: parts.network,
            hooks: parts.hooks,
            policy: Policy::new(config.common.cluster.clone(), config.grants.clone()),
            budget: StallBudget::new(
                quic.stream_window_bytes,
                quic.buffer_bytes_max,
                node_metrics.cut_as_stalled.clone(),
            ),
            sessions: Sessions::new(metrics.clone()),
            shards: parts.shards.len(),
            node_metrics,
            metrics,
            phase: watch::Sender::new(if config.peers.is_empty() {
                Phase::Serving
            } else {
                Phase::Joining
            }),
            joined: AtomicBool::new(config.peers.is_empty()),
            drain_until: watch::Sender::new(None),
            started: Instant::now(),
            ended_sessions: tokio::sync::broadcast::Sender::new(256),
            admission: Admission::new(quic.handshakes_per_second, quic.connections_max),
            cut: CancellationToken::new(),
            config,
        });

        let mut endpoints = Vec::new();
        let mut address = shared.config.common.quic.listen;
        let several = parts.shards.len() > 1;
        for shard in &parts.shards {
            // On the shard's own runtime: the endpoint's socket and driver stay where they are made.
            let bound = {
                let _entered = shard.enter();
                let endpoint_parts = EndpointParts {
                    network: &*shared.network,
                    random: &parts.random,
                    clock: &parts.clock,
                    credentials: &shared.config.common.credentials,
                    config: &shared.config.common.quic,
                    keys: &state.keys,
                };
                endpoint::listen(
                    &endpoint_parts,
                    address,
                    &[ALPN_AGENT, ALPN_PEER, ALPN_USER],
                    shared.trust.clone(),
                    several,
                )?
            };
            shared
                .node_metrics
                .udp_rcvbuf_bytes
                .set(i64::try_from(bound.receive_buffer_bytes).unwrap_or(i64::MAX));
            // With port 0, the first shard chooses and the others follow.
            address = bound
                .endpoint
                .local_addr()
                .map_err(|error| EndpointError::Bind { address, error })?;
            endpoints.push(bound.endpoint);
        }
        shared.mesh.update_own(|own| {
            own.addresses = advertised(&shared.config.common.quic.advertise, address);
        })?;
        let mut listeners = Tasks::new("ingress");
        let first = parts
            .shards
            .first()
            .cloned()
            .unwrap_or_else(Handle::current);
        let ingress_addrs = ingress::start(&shared, &mut listeners, &first)?;

        let mut connections = Tasks::new("quic listener");
        for (shard, endpoint) in parts.shards.iter().zip(&endpoints) {
            connections.spawn_on(accept::run(shared.clone(), endpoint.clone()), shard);
        }
        let mut background = Tasks::new("background work of a proxy");
        background.spawn_on(shared.budget.clone().keep(), &first);
        background.spawn_on(trusted::enforce(shared.clone()), &first);
        let tunnels = Tunnels::new(&shared, state.keys, parts.shards.clone())?;
        let mut tunnel_tasks = Tasks::new("tunnels");
        tunnel_tasks.spawn_on(tunnels.clone().run(shared.clone()), &first);
        if let Some(resources) = &shared.tunnels {
            let runner = shared.hooks.tunnels.clone();
            resources.keep_with(runner.unwrap_or_else(|| tunnels.clone()));
            let watch = tunnels::run(resources.clone(), parts.random.generator());
            background.spawn_on(watch, &first);
        }
        if let Some(endpoint) = endpoints.first() {
            background.spawn_on(peers::run(shared.clone(), endpoint.clone()), &first);
            background.spawn_on(mesh::run(shared.clone()), &first);
            background.spawn_on(routing::announce(shared.clone()), &first);
            if !shared.config.peers.is_empty() {
                background.spawn_on(join::run(shared.clone()), &first);
            }
        }
        tracing::info!(
            proxy = %shared.config.common.name, cluster = %shared.config.common.cluster,
            group = %shared.config.group, generation = %shared.config.generation, epoch = shared.epoch,
            quic = %address, "proxy started"
        );
        Ok(Self {
            shared,
            quic_addr: address,
            ingress_addrs,
            drain_deadline: None,
            drain_since: None,
            endpoints,
            connections,
            listeners,
            background,
            tunnels,
            tunnel_tasks,
        })
    }

    /// The proxy's name.
    #[must_use]
    pub fn name(&self) -> &NodeName {
        &self.shared.config.common.name
    }

    /// The proxy's cluster.
    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        &self.shared.config.common.cluster
    }

    /// The bound UDP address.
    #[must_use]
    pub fn quic_addr(&self) -> SocketAddr {
        self.quic_addr
    }

    /// The bound addresses of the ingresses, in the order of the config.
    #[must_use]
    pub fn ingress_addrs(&self) -> &[SocketAddr] {
        &self.ingress_addrs
    }

    /// The sessions of agents, by name and then oldest first.
    #[must_use]
    pub fn sessions(&self) -> Vec<Arc<Session>> {
        self.shared.sessions.all()
    }

    /// Whether the proxy accepts work: what `/readyz` tells.
    #[must_use]
    pub fn readiness(&self) -> watch::Receiver<Phase> {
        self.shared.phase.subscribe()
    }

    /// A dialler for the targets of `agent`, written as users write it.
    ///
    /// # Errors
    /// When that is no name of an agent.
    pub fn dialer(&self, agent: &str) -> Result<Dialer, InvalidName> {
        Ok(Dialer {
            shared: self.shared.clone(),
            agent: agent.parse()?,
            principal: Principal::Ingress("embedded".into()),
            deadline: self.shared.config.dial_deadline,
        })
    }

    /// The tunnels to other clusters that this proxy keeps.
    #[must_use]
    pub fn tunnels(&self) -> Arc<Tunnels> {
        self.tunnels.clone()
    }

    /// From now on these other clusters are trusted, and no others. Connections to those that are not
    /// any more, or whose authority does not vouch for them any more, are closed with the reason.
    pub fn set_trust(&self, trust: Vec<TrustConfig>) -> TrustChange {
        self.shared.trust.replace(trust)
    }

    /// Notes whether a reload of the config went well.
    pub(crate) fn reloaded(&self, successful: bool) {
        let gauge = &self.shared.node_metrics.last_reload_successful;
        gauge.set(successful.into());
    }

    /// How the proxy is, and what is wrong: as `node status` tells.
    #[must_use]
    pub fn status(&self) -> Status {
        self.observer().status()
    }

    /// The other proxies, as `node peers` tells.
    #[must_use]
    pub fn peers(&self) -> Vec<Peer> {
        self.observer().peers()
    }

    /// Who holds an agent, as `node routes` tells.
    #[must_use]
    pub fn route(&self, agent: &AgentName) -> Route {
        self.observer().route(agent)
    }

    /// What the store holds of tunnels, as `node tunnel ls` tells; `None` without a store.
    #[must_use]
    pub fn tunnel_resources(&self) -> Option<crate::report::Tunnels> {
        let resources = self.shared.tunnels.as_ref()?;
        Some(resources.report())
    }

    /// What the admin API tells of the proxy.
    pub(crate) fn observer(&self) -> Observer {
        Observer::new(self.shared.clone(), self.ingress_addrs.clone())
    }

    /// Serves users who administer by this, with who asks among the extensions of each request.
    pub(crate) fn administer_by(&self, routes: axum::Router) {
        self.shared.administration.serve(routes);
    }

    /// The next drain has this deadline instead of the config's.
    pub fn set_drain_deadline(&mut self, deadline: Option<Duration>) {
        self.drain_deadline = deadline;
    }

    /// The first part of a drain: all is served for `drain_notice`, while `/readyz` fails.
    /// Dropped before its end, it is to be followed by [`Proxy::cancel_notice`] or
    /// [`Proxy::shutdown`].
    pub async fn notice(&mut self) {
        let config = &self.shared.config;
        let deadline = self.drain_deadline.unwrap_or(config.common.drain_deadline);
        let notice = config.drain_notice.min(deadline);
        let since = match self.drain_since {
            Some(since) => since,
            None => {
                tracing::info!(?notice, ?deadline, "draining");
                self.shared.node_metrics.draining.set(1);
                self.shared.phase.send_replace(Phase::Notice);
                *self.drain_since.insert(Instant::now())
            }
        };
        tokio::time::sleep_until(since + notice).await;
    }

    /// Takes a notice back: the proxy is ready again, unless it has not joined yet.
    pub fn cancel_notice(&mut self) {
        self.drain_since = None;
        self.drain_deadline = None;
        self.shared.node_metrics.draining.set(0);
        self.shared.phase.send_modify(|phase| {
            *phase = if self.shared.joined.load(Ordering::Relaxed) {
                Phase::Serving
            } else {
                Phase::Joining
            };
        });
        tracing::info!("the drain was cancelled");
    }

    /// Leaves in order: `/readyz` fails for `drain_notice`, then new work is refused and what
    /// runs may end until `drain_deadline`, counted from the beginning of the notice; the rest is
    /// cut. All tasks are joined when it returns.
    pub async fn shutdown(mut self) -> DrainReport {
        self.notice().await;
        let deadline = self
            .drain_deadline
            .unwrap_or(self.shared.config.common.drain_deadline);
        let until = self.drain_since.unwrap_or_else(Instant::now) + deadline;
        self.shared.drain_until.send_replace(Some(until));
        self.shared.phase.send_replace(Phase::Draining);
        self.shared.mesh.drain();
        let listeners_done = tokio::time::timeout_at(until, async {
            self.listeners.join_all().await;
            // They leave the other clusters as agents do, each in its own time.
            self.tunnel_tasks.join_all().await;
            self.shared.agents_have_left().await;
            self.shared.node_metrics.no_streams().await;
        });
        let streams_cut = match listeners_done.await {
            Ok(()) => 0,
            Err(_) => u64::try_from(self.shared.node_metrics.streams_open()).unwrap_or(0),
        };
        if streams_cut > 0 {
            self.shared.node_metrics.set_drain_deadline_passed();
            self.shared
                .node_metrics
                .cut_at_drain_deadline
                .inc_by(streams_cut);
            tracing::warn!(
                streams_cut,
                "the drain deadline has passed: streams that were still open are cut; raise proxy.drain_deadline if they should have longer"
            );
        }
        self.shared.mesh.leave();
        // Until the last words are on their way.
        tokio::time::sleep(LAST_WORDS).await;
        self.shared.cut.cancel();
        self.listeners.shutdown(CLOSE_GRACE).await;
        self.tunnel_tasks.shutdown(CLOSE_GRACE * 2).await;
        for endpoint in &self.endpoints {
            endpoint.close(CloseCode::Draining.code().into(), b"the proxy has left");
        }
        self.connections.shutdown(CLOSE_GRACE).await;
        for endpoint in &self.endpoints {
            let _ = tokio::time::timeout(CLOSE_GRACE, endpoint.wait_idle()).await;
        }
        self.background.shutdown(Duration::ZERO).await;
        self.shared.administration.withdraw();
        if let Some(resources) = &self.shared.tunnels {
            resources.close().await;
        }
        tracing::info!(streams_cut, "drained");
        DrainReport { streams_cut }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.administration.withdraw();
        self.shared.cut.cancel();
        for endpoint in &self.endpoints {
            endpoint.close(CloseCode::Done.code().into(), b"the proxy was dropped");
        }
    }
}

/// What the store holds, where there is one.
async fn tunnels(
    config: &ProxyConfig,
    parts: &ProxyParts,
) -> Result<Option<Arc<Resources>>, StartError> {
    let (store, place) = match (&parts.hooks.store, &config.store) {
        (Some(store), _) => (store.clone(), None),
        (None, Some(url)) => {
            let store = store::open(url, parts.clock.for_store()).await?;
            (store, Some(url.to_string()))
        }
        (None, None) => return Ok(None),
    };
    let resources = Resources::new(
        store,
        place,
        config.common.cluster.clone(),
        parts.clock.clone(),
        &parts.registry,
    )?;
    Ok(Some(resources))
}

/// Where agents are told to dial this proxy: as the config says, or where it listens, if that is an
/// address that another host can use.
fn advertised(configured: &[String], bound: SocketAddr) -> Vec<String> {
    if configured.is_empty() && !bound.ip().is_unspecified() {
        return vec![bound.to_string()];
    }
    configured.to_vec()
}

/// Dials the targets of one agent through a proxy in this process.
#[derive(Debug, Clone)]
pub struct Dialer {
    shared: Arc<Shared>,
    agent: AgentRef,
    principal: Principal,
    deadline: Duration,
}

/// An embedded dial failed.
#[derive(Debug, thiserror::Error)]
pub enum DialerError {
    /// The target is not written as one.
    #[error(transparent)]
    Target(#[from] mesh_proto::target::InvalidTarget),
    /// The dial was refused.
    #[error(transparent)]
    Dial(#[from] DialError),
}

impl Dialer {
    /// Dials on behalf of `principal`, instead of the embedding application as such.
    #[must_use]
    pub fn on_behalf_of(mut self, principal: Principal) -> Self {
        self.principal = principal;
        self
    }

    /// Dials with this deadline instead of the proxy's `dial_deadline`.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Connects to `target`, written as in the config: `host:port`, `unix:/path`, `service:name`.
    /// The stream is connected when this returns.
    ///
    /// # Errors
    /// [`DialerError`], with the reason of the refusal.
    pub async fn dial(&self, target: &str) -> Result<Stream, DialerError> {
        Ok(self.dial_target(target.parse()?).await?)
    }

    /// Connects to a target that was parsed before.
    ///
    /// # Errors
    /// [`DialError`].
    pub async fn dial_target(&self, target: Target) -> Result<Stream, DialError> {
        let request = DialRequest::new(
            self.agent.clone(),
            target,
            self.principal.clone(),
            self.deadline,
        );
        router::dial(&self.shared, &request, Reach::Mesh, None).await
    }
}
