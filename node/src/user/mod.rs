//! The client of a user: one connection to a proxy, kept; dials over it, with the user's own
//! identity.
//!
//! | file | what |
//! |---|---|
//! | `candidates.rs` | which address to try next |
//! | `connect.rs` | one attempt at one address |
//! | `race.rs` | one round of attempts at all of them |
//! | `keep.rs` | keeps one connection: moves on loss, draining and silence |
//! | `held.rs` | a connection, and how many streams use it |
//! | `dial.rs`, `early.rs` | a stream to a target, and the bytes that do not wait for its answer |
//! | `administer.rs` | a stream to the proxy's admin API |
//! | `event.rs` | what the application is told |
//! | `spec.rs` | how a forward and a proxy's address are written |
//! | `forward.rs`, `refusals.rs` | local ports that lead to targets |
//!
//! A connection that is left goes on carrying the streams that it has; what is new takes the next one.

mod administer;
mod candidates;
mod connect;
mod dial;
mod early;
mod event;
pub mod forward;
mod held;
mod keep;
mod race;
mod refusals;
pub mod spec;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use certs::{Credentials, Identity, Kind};
use prometheus::Registry;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use self::administer::AdminStream;
pub use self::connect::{ConnectError, ConnectErrorKind};
pub use self::dial::{DialError, Request};
pub use self::event::{Event, Failure, OnEvent, Why};
use self::held::Held;
use crate::clock::WallClock;
use crate::config::QuicConfig;
use crate::metrics::{MetricsError, NodeMetrics};
use crate::net::{Network, SystemNetwork};
use crate::quic::endpoint::{self, EndpointError, EndpointParts};
use crate::quic::keys::EndpointKeys;
use crate::quic::stall::StallBudget;
use crate::random::Random;
use crate::tasks::Tasks;

/// How long closing connections may tell the other side before the sockets go.
const CLOSE_GRACE: Duration = Duration::from_secs(1);

/// Whom a user's client connects to, as whom.
#[derive(Debug, Clone)]
pub struct UserConfig {
    /// Who the user is, and whom to trust.
    pub credentials: Arc<Credentials>,
    /// Candidates, `host:port` each; a name may have several addresses, which are one each.
    pub proxies: Vec<String>,
    /// Limits and timers.
    pub quic: QuicConfig,
    /// The longest that a proxy may take to answer a dial.
    pub dial_deadline: Duration,
    /// The longest that a dial waits for a connection to a proxy.
    pub wait_max: Duration,
    /// Whether a proxy that is about to leave will do: for whom it is the proxy itself that counts.
    pub takes_leaving: bool,
}

impl UserConfig {
    /// The identity in `credentials`, these proxies, and the default of everything else.
    #[must_use]
    pub fn new(credentials: Arc<Credentials>, proxies: Vec<String>) -> Self {
        Self {
            credentials,
            proxies,
            quic: QuicConfig::default(),
            dial_deadline: Duration::from_secs(10),
            wait_max: Duration::from_secs(15),
            takes_leaving: false,
        }
    }
}

/// What a client is made with, beside its config.
#[derive(Clone)]
pub struct UserParts {
    /// The way out of the process.
    pub network: Arc<dyn Network>,
    /// Where randomness comes from.
    pub random: Random,
    /// What certificates are judged by.
    pub clock: WallClock,
    /// Hears of what happens to the connection. Called on the client's task; must not block.
    pub on_event: OnEvent,
}

impl Default for UserParts {
    /// The system's network and clock, and nobody who listens.
    fn default() -> Self {
        Self {
            network: Arc::new(SystemNetwork),
            random: Random::system(),
            clock: WallClock::system(),
            on_event: Arc::new(|_| {}),
        }
    }
}

impl fmt::Debug for UserParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UserParts")
            .field("network", &self.network)
            .field("random", &self.random)
            .finish_non_exhaustive()
    }
}

/// A client could not start. Nothing is left running.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The identity is not a user's.
    #[error(
        "this certificate is {0}, and it takes a user's: issue one with `node certs issue user NAME`"
    )]
    NotAUser(Identity),
    /// There is nowhere to connect to.
    #[error("no proxy is named")]
    NoProxy,
    /// The TLS configuration.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The metrics.
    #[error("cannot make the metrics: {0}")]
    Metrics(#[from] MetricsError),
}

/// The client has given up: no further attempt can help.
#[derive(Debug, Clone, thiserror::Error)]
pub enum GaveUp {
    /// Before there was any connection: every proxy refused this identity, or is none of ours.
    #[error("{0}")]
    Untrusted(String),
    /// The user's certificate, or the authority, is not valid any more.
    #[error("{0}")]
    Expired(String),
}

/// What the client is at.
#[derive(Debug, Clone)]
enum State {
    Connecting,
    Connected(Arc<Held>),
    Failed(GaveUp),
}

/// What all parts of a client share.
struct Shared {
    config: UserConfig,
    network: Arc<dyn Network>,
    random: Random,
    clock: WallClock,
    on_event: OnEvent,
    keys: EndpointKeys,
    metrics: NodeMetrics,
    budget: Arc<StallBudget>,
    state: watch::Sender<State>,
    /// Cancelled when the client ends: what still runs is cut.
    cut: CancellationToken,
}

impl Shared {
    /// What endpoints are made of.
    fn endpoint_parts(&self) -> EndpointParts<'_> {
        EndpointParts {
            network: &*self.network,
            random: &self.random,
            credentials: &self.config.credentials,
            config: &self.config.quic,
            keys: &self.keys,
            clock: &self.clock,
        }
    }

    fn tell(&self, event: &Event) {
        (self.on_event)(event);
    }
}

/// A user's connection to a proxy, kept for as long as this lives. Dropping it cuts everything at
/// once; [`UserClient::shutdown`] says goodbye.
pub struct UserClient {
    shared: Arc<Shared>,
    tasks: Tasks,
}

impl fmt::Debug for UserClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UserClient")
            .field("proxies", &self.shared.config.proxies)
            .finish_non_exhaustive()
    }
}

impl UserClient {
    /// Starts a client on the runtime of the caller; it connects in the background.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(config: UserConfig, parts: UserParts) -> Result<Self, StartError> {
        let identity = config.credentials.identity();
        if identity.kind != Kind::User {
            return Err(StartError::NotAUser(identity.clone()));
        }
        if config.proxies.is_empty() {
            return Err(StartError::NoProxy);
        }
        let metrics = NodeMetrics::new(&Registry::new())?;
        let quic = &config.quic;
        let shared = Arc::new(Shared {
            network: parts.network,
            on_event: parts.on_event,
            keys: EndpointKeys::random(&mut parts.random.generator()),
            random: parts.random,
            clock: parts.clock,
            budget: StallBudget::new(
                quic.stream_window_bytes,
                quic.buffer_bytes_max,
                metrics.cut_as_stalled.clone(),
            ),
            metrics,
            state: watch::Sender::new(State::Connecting),
            cut: CancellationToken::new(),
            config,
        });
        // What every attempt will do: so a fault of ours is seen now.
        endpoint::user_client_config(&shared.endpoint_parts())?;
        let mut tasks = Tasks::new("connection of a user");
        tasks.spawn(keep::run(shared.clone()));
        let (cut, budget) = (shared.cut.clone(), shared.budget.clone());
        tasks.spawn(async move {
            cut.run_until_cancelled(budget.keep()).await;
        });
        Ok(Self { shared, tasks })
    }

    /// Waits for a connection to a proxy, for as long as it takes.
    ///
    /// # Errors
    /// [`GaveUp`].
    pub async fn connected(&self) -> Result<(), GaveUp> {
        let mut state = self.shared.state.subscribe();
        let reached = state
            .wait_for(|state| !matches!(state, State::Connecting))
            .await;
        match reached.as_deref() {
            Ok(State::Failed(gave_up)) => Err(gave_up.clone()),
            Ok(State::Connecting | State::Connected(_)) | Err(_) => Ok(()),
        }
    }

    /// Completes when the client has given up.
    pub async fn gave_up(&self) -> GaveUp {
        let mut state = self.shared.state.subscribe();
        let failed = state
            .wait_for(|state| matches!(state, State::Failed(_)))
            .await;
        if let Ok(State::Failed(gave_up)) = failed.as_deref() {
            return gave_up.clone();
        }
        std::future::pending().await
    }

    /// The name and the address of the proxy that new streams go through now, if there is one.
    #[must_use]
    pub fn proxy(&self) -> Option<(mesh_proto::name::NodeName, std::net::SocketAddr)> {
        match &*self.shared.state.borrow() {
            State::Connected(held) => Some((held.proxy.clone(), held.remote)),
            State::Connecting | State::Failed(_) => None,
        }
    }

    /// A handle with which others dial; it does not keep the client alive.
    #[must_use]
    pub fn dialer(&self) -> UserDialer {
        UserDialer(self.shared.clone())
    }

    /// Closes all connections and says goodbye; streams that are left are cut.
    pub async fn shutdown(mut self) {
        self.shared.cut.cancel();
        self.tasks.shutdown(CLOSE_GRACE * 2).await;
    }
}

impl Drop for UserClient {
    fn drop(&mut self) {
        self.shared.cut.cancel();
    }
}

/// Dials over a [`UserClient`]'s connection. Once the client has ended, every dial fails.
#[derive(Clone)]
pub struct UserDialer(Arc<Shared>);

impl fmt::Debug for UserDialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UserDialer")
    }
}

impl UserDialer {
    /// Connects a stream to a target of an agent; waits for a proxy for at most
    /// [`UserConfig::wait_max`].
    ///
    /// With `socket`, up to 16 KiB of what can be read from it go out without waiting for the
    /// answer, and are sent again where that is allowed.
    ///
    /// # Errors
    /// [`DialError`].
    pub async fn dial(
        &self,
        request: &Request,
        socket: Option<&mut dyn crate::net::Socket>,
    ) -> Result<crate::quic::TunnelStream, DialError> {
        dial::dial(&self.0, request, socket).await
    }

    /// Connects a stream to the admin API of the proxy: HTTP/1.1, one request. Also says which proxy
    /// it is.
    ///
    /// # Errors
    /// [`DialError`].
    pub async fn administer(&self) -> Result<(mesh_proto::name::NodeName, AdminStream), DialError> {
        administer::administer(&self.0).await
    }

    fn tell(&self, event: &Event) {
        self.0.tell(event);
    }
}
