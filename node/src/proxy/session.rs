//! Sessions: the connections of agents to this proxy, by the agent's name.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use mesh_proto::close::CloseCode;
use mesh_proto::name::NodeName;
use mesh_proto::wire::Service;
use quinn::ConnectionError;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::metrics::ProxyMetrics;
use super::view::View;

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
}

impl Ending {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Left,
        Self::Drained,
        Self::IdleTimeout,
        Self::ClosedByAgent,
        Self::Reset,
        Self::ProtocolError,
        Self::TransportError,
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
    /// The agent, as its certificate names it.
    pub agent: NodeName,
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
    pub(super) agent: NodeName,
    pub(super) instance: [u8; 16],
    pub(super) version: String,
    pub(super) services: Vec<Service>,
    pub(super) connection: quinn::Connection,
    pub(super) runtime: Handle,
}

/// All sessions of a proxy.
#[derive(Debug)]
pub(super) struct Sessions {
    by_agent: RwLock<HashMap<NodeName, Vec<Arc<Session>>>>,
    next_id: AtomicU64,
    /// A session has ended.
    ended: Notify,
    metrics: ProxyMetrics,
}

impl Sessions {
    pub(super) fn new(metrics: ProxyMetrics) -> Arc<Self> {
        Arc::new(Self {
            by_agent: RwLock::default(),
            next_id: AtomicU64::new(1),
            ended: Notify::new(),
            metrics,
        })
    }

    /// Adds a session; it is there until the guard drops.
    pub(super) fn register(self: &Arc<Self>, new: NewSession) -> Registration {
        let session = Arc::new(Session {
            id: self.next_id.fetch_add(1, Ordering::Relaxed),
            agent: new.agent,
            instance: new.instance,
            version: new.version,
            remote: new.connection.remote_address(),
            since: Instant::now(),
            connection: new.connection,
            runtime: new.runtime,
            services: Mutex::new(new.services),
            leaving: AtomicBool::new(false),
            lost_packets: AtomicU64::new(0),
        });
        self.by_agent
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(session.agent.clone())
            .or_default()
            .push(session.clone());
        self.metrics.agents.inc();
        Registration {
            sessions: self.clone(),
            session,
            ending: Ending::TransportError,
        }
    }

    /// The sessions through which an agent can be dialled, newest first.
    pub(super) fn live(&self, agent: &NodeName) -> Vec<Arc<Session>> {
        let by_agent = self.by_agent.read().unwrap_or_else(PoisonError::into_inner);
        let Some(sessions) = by_agent.get(agent) else {
            return Vec::new();
        };
        sessions
            .iter()
            .rev()
            .filter(|session| session.is_live())
            .cloned()
            .collect()
    }

    /// Whether the agent is connected and about to leave.
    pub(super) fn is_leaving(&self, agent: &NodeName) -> bool {
        let by_agent = self.by_agent.read().unwrap_or_else(PoisonError::into_inner);
        let leaves = |session: &Arc<Session>| session.leaving.load(Ordering::Acquire);
        by_agent
            .get(agent)
            .is_some_and(|sessions| sessions.iter().any(leaves))
    }

    /// Completes when the agents of this proxy, which drains, have found a replacement and left; or when
    /// no other proxy serves that could be one.
    pub(super) async fn have_moved(&self, view: &View) {
        let mut changes = view.changes();
        let mut none = pin!(self.none());
        while view.others_serve() {
            tokio::select! {
                () = &mut none => return,
                changed = changes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Completes when there is no session.
    async fn none(&self) {
        loop {
            let mut ended = pin!(self.ended.notified());
            ended.as_mut().enable();
            if self.is_empty() {
                return;
            }
            ended.await;
        }
    }

    fn is_empty(&self) -> bool {
        let by_agent = self.by_agent.read().unwrap_or_else(PoisonError::into_inner);
        by_agent.is_empty()
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
        self.sessions.ended.notify_waiters();
        self.session.count_lost_packets(&self.sessions.metrics);
        self.sessions.metrics.agents.dec();
        self.sessions.metrics.disconnected(self.ending);
    }
}
