//! Sessions: the connections of agents to this proxy, by the agent's name.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use mesh_proto::close::CloseCode;
use mesh_proto::name::{AgentName, NodeName};
use mesh_proto::wire::Service;
use quinn::ConnectionError;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::Instant;

use super::metrics::ProxyMetrics;
use super::silence::Silence;

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The agent left in order.
    Left,
    /// This proxy drained.
    Drained,
    /// Nothing was heard from the agent for the idle timeout.
    IdleTimeout,
    /// The agent closed without leaving first.
    ClosedByAgent,
    /// The agent's host answered that it knows the connection no more.
    Reset,
    /// The agent broke the protocol.
    ProtocolError,
    /// QUIC failed otherwise.
    TransportError,
    /// Its cluster, or what vouched for its proxies, is trusted no more.
    Untrusted,
}

impl Ending {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Left,
        Self::Drained,
        Self::IdleTimeout,
        Self::ClosedByAgent,
        Self::Reset,
        Self::ProtocolError,
        Self::TransportError,
        Self::Untrusted,
    ];

    /// The value of the label `reason`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Left => "left",
            Self::Drained => "drained",
            Self::IdleTimeout => "idle_timeout",
            Self::ClosedByAgent => "closed_by_agent",
            Self::Reset => "reset",
            Self::ProtocolError => "protocol_error",
            Self::TransportError => "transport_error",
            Self::Untrusted => "untrusted",
        }
    }

    pub(super) fn of(error: &ConnectionError) -> Self {
        match error {
            ConnectionError::ApplicationClosed(close)
                if close.error_code == CloseCode::Left.code().into() =>
            {
                Self::Left
            }
            ConnectionError::ApplicationClosed(_) | ConnectionError::ConnectionClosed(_) => {
                Self::ClosedByAgent
            }
            ConnectionError::TimedOut => Self::IdleTimeout,
            ConnectionError::Reset => Self::Reset,
            ConnectionError::LocallyClosed => Self::Drained,
            ConnectionError::VersionMismatch
            | ConnectionError::TransportError(_)
            | ConnectionError::CidsExhausted => Self::TransportError,
        }
    }
}

/// One connection of an agent.
#[derive(Debug)]
pub struct Session {
    /// Counts up with each session of this proxy.
    pub id: u64,
    /// The agent, as its certificate names it; for a proxy of another cluster, that cluster.
    pub agent: AgentName,
    /// The proxy of another cluster that it is.
    pub proxy: Option<NodeName>,
    /// The agent's process.
    pub instance: [u8; 16],
    /// The agent's version.
    pub version: String,
    /// Where its packets came from when it connected.
    pub remote: SocketAddr,
    /// When its hello arrived.
    pub since: Instant,
    pub(super) connection: quinn::Connection,
    /// The runtime of the shard that owns the connection.
    pub(super) runtime: Handle,
    services: Mutex<Vec<Service>>,
    leaving: AtomicBool,
    /// Another process of the same name has lived beside it for a while.
    cloned: AtomicBool,
    /// Why it was ended by this proxy, if it was.
    untrusted: OnceLock<String>,
    silence: Silence,
    lost_packets: AtomicU64,
}

impl Session {
    /// The services that the agent announced.
    #[must_use]
    pub fn services(&self) -> Vec<Service> {
        self.services
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(super) fn set_services(&self, services: Vec<Service>) {
        *self.services.lock().unwrap_or_else(PoisonError::into_inner) = services;
    }

    /// From now on the agent is not dialled through this session.
    pub(super) fn set_leaving(&self) {
        self.leaving.store(true, Ordering::Release);
    }

    /// Somebody has waited in vain for a sign of life.
    pub(super) fn set_silent(&self) {
        self.silence.note(&self.connection);
    }

    /// Another process of the same name lives beside it, and not just for the moment of a restart.
    pub(super) fn set_cloned(&self) {
        self.cloned.store(true, Ordering::Release);
    }

    /// Whether that was so.
    pub(super) fn is_cloned(&self) -> bool {
        self.cloned.load(Ordering::Acquire)
    }

    /// Ends it, since its cluster is trusted no more; the other side reads why.
    pub(super) fn distrust(&self, why: &str) {
        let _ = self.untrusted.set(why.to_owned());
        let code = CloseCode::Untrusted.code().into();
        self.connection.close(code, why.as_bytes());
    }

    /// Why that was done, if it was.
    pub(super) fn distrusted(&self) -> Option<&str> {
        self.untrusted.get().map(String::as_str)
    }

    fn is_live(&self) -> bool {
        !self.leaving.load(Ordering::Acquire) && self.connection.close_reason().is_none()
    }

    /// Adds what was lost since the last call.
    pub(super) fn count_lost_packets(&self, metrics: &ProxyMetrics) {
        let lost = self.connection.stats().path.lost_packets;
        let before = self.lost_packets.fetch_max(lost, Ordering::Relaxed);
        metrics.lost_packets.inc_by(lost.saturating_sub(before));
    }
}

/// What an agent said in its hello, and how it came.
pub(super) struct NewSession {
    pub(super) agent: AgentName,
    pub(super) proxy: Option<NodeName>,
    pub(super) instance: [u8; 16],
    pub(super) version: String,
    pub(super) services: Vec<Service>,
    pub(super) connection: quinn::Connection,
    pub(super) runtime: Handle,
}

/// All sessions of a proxy.
#[derive(Debug)]
pub(super) struct Sessions {
    by_agent: RwLock<HashMap<AgentName, Vec<Arc<Session>>>>,
    next_id: AtomicU64,
    /// Which session of a cluster serves next: its proxies share the work.
    turn: AtomicUsize,
    count: watch::Sender<usize>,
    metrics: ProxyMetrics,
}

impl Sessions {
    pub(super) fn new(metrics: ProxyMetrics) -> Arc<Self> {
        Arc::new(Self {
            by_agent: RwLock::default(),
            next_id: AtomicU64::new(1),
            turn: AtomicUsize::new(0),
            count: watch::Sender::new(0),
            metrics,
        })
    }

    /// Adds a session; it is there until the guard drops.
    pub(super) fn register(self: &Arc<Self>, new: NewSession) -> Registration {
        let session = Arc::new(Session {
            id: self.next_id.fetch_add(1, Ordering::Relaxed),
            agent: new.agent,
            proxy: new.proxy,
            instance: new.instance,
            version: new.version,
            remote: new.connection.remote_address(),
            since: Instant::now(),
            connection: new.connection,
            runtime: new.runtime,
            services: Mutex::new(new.services),
            leaving: AtomicBool::new(false),
            cloned: AtomicBool::new(false),
            untrusted: OnceLock::new(),
            silence: Silence::new(),
            lost_packets: AtomicU64::new(0),
        });
        self.by_agent
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(session.agent.clone())
            .or_default()
            .push(session.clone());
        self.metrics.agents.inc();
        self.count.send_modify(|count| *count += 1);
        Registration {
            sessions: self.clone(),
            session,
            ending: Ending::TransportError,
        }
    }

    /// The sessions through which an agent can be dialled, newest first, and last those on which
    /// nothing came back. Those of a cluster, which are of several proxies, in turn.
    pub(super) fn live(&self, agent: &AgentName) -> Vec<Arc<Session>> {
        let by_agent = self.by_agent.read().unwrap_or_else(PoisonError::into_inner);
        let Some(sessions) = by_agent.get(agent) else {
            return Vec::new();
        };
        let mut live: Vec<_> = sessions
            .iter()
            .rev()
            .filter(|session| session.is_live())
            .cloned()
            .collect();
        if agent.is_cluster() && !live.is_empty() {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed) % live.len();
            live.rotate_left(turn);
        }
        live.sort_by_key(|session| session.silence.lasts(&session.connection));
        live
    }

    /// Whether the agent is connected and about to leave.
    pub(super) fn is_leaving(&self, agent: &AgentName) -> bool {
        let by_agent = self.by_agent.read().unwrap_or_else(PoisonError::into_inner);
        let leaves = |session: &Arc<Session>| session.leaving.load(Ordering::Acquire);
        by_agent
            .get(agent)
            .is_some_and(|sessions| sessions.iter().any(leaves))
    }

    /// Completes when no agent is connected.
    pub(super) async fn none(&self) {
        let mut count = self.count.subscribe();
        // The sender lives as long as this.
        let _ = count.wait_for(|count| *count == 0).await;
    }

    /// All sessions, by name and then oldest first.
    pub(super) fn all(&self) -> Vec<Arc<Session>> {
        let mut all: Vec<_> = self
            .by_agent
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .flatten()
            .cloned()
            .collect();
        all.sort_by(|a, b| (&a.agent, a.id).cmp(&(&b.agent, b.id)));
        all
    }
}

/// Holds a session in [`Sessions`], and counts its end exactly once.
#[derive(Debug)]
pub(super) struct Registration {
    sessions: Arc<Sessions>,
    pub(super) session: Arc<Session>,
    /// What will be counted.
    pub(super) ending: Ending,
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut by_agent = self
            .sessions
            .by_agent
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(of_agent) = by_agent.get_mut(&self.session.agent) {
            of_agent.retain(|session| session.id != self.session.id);
            if of_agent.is_empty() {
                by_agent.remove(&self.session.agent);
            }
        }
        drop(by_agent);
        self.session.count_lost_packets(&self.sessions.metrics);
        self.sessions.metrics.agents.dec();
        self.sessions.count.send_modify(|count| *count -= 1);
        self.sessions.metrics.disconnected(self.ending);
    }
}
