//! The validated configuration of a node: what the rest of the crate works with.
//!
//! Nothing in here reads a file or an environment variable. [`super::load`] makes these from
//! files; an application that embeds a node builds them in code, starting from `new`, which
//! sets every default of the documentation.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use certs::{Credentials, ForeignAuthority};
use mesh_proto::allow::AllowList;
use mesh_proto::grant::Grant;
use mesh_proto::name::{AgentRef, Cluster, Generation, Group, NodeName, ServiceName};
use mesh_proto::target::Target;
use mesh_proto::wire::Protocol;

use super::secret::TokenTable;
use crate::store::StoreUrl;

/// A node's whole configuration, by role.
#[derive(Debug, Clone)]
pub enum NodeConfig {
    /// `role = "proxy"`.
    Proxy(Box<ProxyConfig>),
    /// `role = "agent"`.
    Agent(Box<AgentConfig>),
}

impl NodeConfig {
    /// What both roles have.
    #[must_use]
    pub fn common(&self) -> &CommonConfig {
        match self {
            Self::Proxy(proxy) => &proxy.common,
            Self::Agent(agent) => &agent.common,
        }
    }
}

/// What both roles have.
#[derive(Debug, Clone)]
pub struct CommonConfig {
    /// This node's name; it equals the name in its certificate.
    pub name: NodeName,
    /// The trust domain; it equals the cluster in the certificate.
    pub cluster: Cluster,
    /// The node's identity and the authority that it trusts.
    pub credentials: Arc<Credentials>,
    /// QUIC limits and timers.
    pub quic: QuicConfig,
    /// What is logged, and how.
    pub log: LogConfig,
    /// The metrics listener; none when absent.
    pub metrics: Option<MetricsConfig>,
    /// The admin listener; none when absent.
    pub admin: Option<AdminConfig>,
    /// After a signal, the time that everything together may take before what is left is cut.
    pub drain_deadline: Duration,
}

impl CommonConfig {
    /// A node with the identity in `credentials`, and the default of everything else.
    #[must_use]
    pub fn new(credentials: Arc<Credentials>) -> Self {
        Self {
            name: credentials.identity().name.clone(),
            cluster: credentials.identity().cluster.clone(),
            credentials,
            quic: QuicConfig::default(),
            log: LogConfig::default(),
            metrics: None,
            admin: None,
            drain_deadline: Duration::from_secs(30),
        }
    }
}

/// Configuration of a proxy.
#[derive(Debug, Clone)]
pub struct ProxyConfig {
    /// What both roles have.
    pub common: CommonConfig,
    /// The deployment that this proxy belongs to.
    pub group: Group,
    /// The rollout number of that deployment.
    pub generation: Generation,
    /// Other proxies to join, `host:port` each.
    pub peers: Vec<String>,
    /// How long `/readyz` waits for the agents of a peer, when there are `peers`.
    pub join_deadline: Duration,
    /// How long everything is still served after `/readyz` began to fail.
    pub drain_notice: Duration,
    /// The longest that a dial may take, from the user's request to the connected target.
    pub dial_deadline: Duration,
    /// The rate of agents that come back at which this proxy wants to be met.
    pub reconnects_per_second: u32,
    /// What happens to a second process of one name.
    pub duplicate_names: DuplicateNames,
    /// The connection count announced to agents; `None` announces nothing.
    pub agent_connection_count: Option<u32>,
    /// Where the epoch and the QUIC keys are kept; without it each start is a stranger to agents.
    pub state_dir: Option<PathBuf>,
    /// Where users arrive.
    pub ingresses: Vec<IngressConfig>,
    /// Who may do what, beside the defaults of [`mesh_proto::grant`].
    pub grants: Vec<Grant>,
    /// Where tunnel resources are kept; without it there are none.
    pub store: Option<StoreUrl>,
    /// What principals of this cluster may reach through this proxy itself.
    pub allow: AllowList,
    /// Other clusters, by their names: whose proxies may connect here, and be dialled.
    pub trust: Vec<TrustConfig>,
}

/// Another cluster that this one trusts.
#[derive(Debug, Clone)]
pub struct TrustConfig {
    /// Its name.
    pub cluster: Cluster,
    /// What vouches for its proxies.
    pub authority: ForeignAuthority,
    /// What it may reach through this cluster's proxies themselves.
    pub allow: AllowList,
}

impl ProxyConfig {
    /// A proxy with the identity in `credentials`, no ingress, and the default of everything else.
    #[must_use]
    pub fn new(credentials: Arc<Credentials>, group: Group) -> Self {
        Self {
            common: CommonConfig::new(credentials),
            group,
            generation: Generation(0),
            peers: Vec::new(),
            join_deadline: Duration::from_secs(10),
            drain_notice: Duration::from_secs(5),
            dial_deadline: Duration::from_secs(10),
            reconnects_per_second: 200,
            duplicate_names: DuplicateNames::Newest,
            agent_connection_count: None,
            state_dir: None,
            ingresses: Vec::new(),
            grants: Vec::new(),
            store: None,
            allow: AllowList::default(),
            trust: Vec::new(),
        }
    }
}

/// What happens when a second process of an agent's name connects while the first one lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DuplicateNames {
    /// Both are connected, and the newest session is dialled.
    Newest,
    /// The second one is refused until the first one has gone.
    Refuse,
}

/// Configuration of an agent.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// What both roles have.
    pub common: CommonConfig,
    /// Where to dial: `host:port` each.
    pub proxies: Vec<String>,
    /// Wanted connections: 0 is every desired proxy; `None` follows what the proxies announce.
    pub connection_count: Option<u32>,
    /// What this agent may be asked to reach. [`AgentConfig::new`] starts with nothing.
    pub allow: AllowList,
    /// The services that it announces.
    pub services: Vec<ServiceConfig>,
}

impl AgentConfig {
    /// An agent with the identity in `credentials` that dials `proxies` and serves nothing yet.
    #[must_use]
    pub fn new(credentials: Arc<Credentials>, proxies: Vec<String>) -> Self {
        Self {
            common: CommonConfig::new(credentials),
            proxies,
            connection_count: None,
            allow: AllowList::default(),
            services: Vec::new(),
        }
    }
}

/// A service that an agent announces by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceConfig {
    /// Users ask for `service:<name>`.
    pub name: ServiceName,
    /// What the agent dials for it; never itself a `service:`.
    pub address: Target,
    /// What is spoken there.
    pub protocol: Protocol,
}

/// Limits and timers of QUIC.
#[derive(Debug, Clone)]
pub struct QuicConfig {
    /// The UDP address of a proxy. An agent binds an ephemeral port per connection.
    pub listen: SocketAddr,
    /// Addresses handed to agents; empty: none but what they dialled.
    pub advertise: Vec<String>,
    /// The address for peers, where it differs.
    pub peer_advertise: Option<String>,
    /// Flow-control window of one stream, in bytes; at most 4 MiB.
    pub stream_window_bytes: u32,
    /// How many stalled streams one connection can hold without blocking the others: the
    /// connection's window is this times the stream's.
    pub stalled_streams_max: u32,
    /// Streams per connection, where they are accepted.
    pub streams_max: u32,
    /// What all stalled streams of the node may hold together, in bytes.
    pub buffer_bytes_max: u64,
    /// Interval of keep-alive packets.
    pub keepalive: Duration,
    /// A connection with no packet from the other side for this long is lost.
    pub idle_timeout: Duration,
    /// From the first packet to a complete hello.
    pub handshake_timeout: Duration,
    /// Handshakes per second above which new addresses are first asked to prove themselves (Retry).
    pub handshakes_per_second: u32,
    /// Connections of the node at one time.
    pub connections_max: u32,
    /// Upper bound of MTU discovery: UDP payload, in bytes; 1,200 to 6,500.
    pub mtu_max: u16,
    /// The congestion controller.
    pub congestion: Congestion,
    /// QUIC endpoints, each on a thread of its own.
    pub shards: u16,
}

impl Default for QuicConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 7443)),
            advertise: Vec::new(),
            peer_advertise: None,
            stream_window_bytes: 2 << 20,
            stalled_streams_max: 128,
            streams_max: 4096,
            buffer_bytes_max: 1 << 30,
            keepalive: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(15),
            handshake_timeout: Duration::from_secs(10),
            handshakes_per_second: 200,
            connections_max: 20_000,
            mtu_max: 6500,
            congestion: Congestion::Tolerant,
            shards: 1,
        }
    }
}

/// Congestion controllers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Congestion {
    /// CUBIC that does not slow down for packets lost by chance.
    Tolerant,
    /// CUBIC, RFC 9438.
    Cubic,
    /// BBR, which keeps its rate on lossy links; called experimental by the authors of quinn.
    Bbr,
}

/// A listener on a proxy where users arrive.
#[derive(Debug, Clone)]
pub struct IngressConfig {
    /// The TCP address.
    pub listen: SocketAddr,
    /// Served over TLS with this certificate; plain when absent.
    pub tls: Option<IngressTls>,
    /// Who may use it.
    pub auth: IngressAuth,
    /// `Host` names that are served. Empty: on a loopback address the loopback names, elsewhere any.
    pub hosts: Vec<String>,
    /// Connections from users at one time.
    pub connections_max: u32,
    /// What is spoken there.
    pub kind: IngressKind,
}

impl IngressConfig {
    /// An ingress at `listen`, plain and open, for embedding and tests: choose `auth` before
    /// listening on an address that others can reach.
    #[must_use]
    pub fn new(listen: SocketAddr, kind: IngressKind) -> Self {
        Self {
            listen,
            tls: None,
            auth: IngressAuth::Open,
            hosts: Vec::new(),
            connections_max: 4096,
            kind,
        }
    }
}

/// What an ingress speaks.
#[derive(Debug, Clone)]
pub enum IngressKind {
    /// `/client/<agent>/<scheme>/<host:port>/<path>`.
    Http {
        /// Authorities (PEM) that `https` targets are verified against; `None`: the system's.
        upstream_ca: Option<Vec<rustls::pki_types::CertificateDer<'static>>>,
    },
    /// A port bound to one agent's target.
    Tcp {
        /// Whose target.
        agent: AgentRef,
        /// What is dialled there.
        target: Target,
    },
}

/// An ingress' own certificate, loaded and checked.
#[derive(Debug, Clone)]
pub struct IngressTls {
    /// The chain, leaf first.
    pub chain: Vec<rustls::pki_types::CertificateDer<'static>>,
    /// Its key.
    pub key: Arc<rustls::pki_types::PrivateKeyDer<'static>>,
    /// The leaf's end of life, Unix seconds.
    pub not_after: i64,
}

/// Who may use an ingress or the admin listener.
#[derive(Debug, Clone)]
pub enum IngressAuth {
    /// Everybody who reaches it.
    Open,
    /// Bearers of a token.
    Tokens(Arc<TokenTable>),
    /// Bearers of a certificate from this authority; needs `tls`.
    ClientCa(Vec<rustls::pki_types::CertificateDer<'static>>),
}

/// What is logged, and how.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// A level, or a filter as in `tracing`.
    pub filter: String,
    /// The form of a line.
    pub format: LogFormat,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            filter: "info".into(),
            format: LogFormat::Text,
        }
    }
}

/// The form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The metrics listener.
#[derive(Debug, Clone)]
pub struct MetricsConfig {
    /// Its TCP address.
    pub listen: SocketAddr,
}

/// The admin listener.
#[derive(Debug, Clone)]
pub struct AdminConfig {
    /// Where it listens.
    pub listen: AdminListen,
    /// Who may use it; on a loopback address or a Unix socket it may be open.
    pub auth: IngressAuth,
}

/// An address of the admin listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminListen {
    /// TCP.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}
