//! Local ports that lead to targets of agents.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::dial::DialError;
use super::event::Event;
use super::refusals::Refusals;
use super::spec::{ForwardSpec, Local};
use super::{UserClient, UserDialer};
use crate::forward;
use crate::net::{Listener, Network, Socket};
use crate::tasks::Tasks;

/// After a failed accept (no file descriptor is left, mostly), before the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// How long connections that are cut may take to end.
const CUT_GRACE: Duration = Duration::from_secs(1);

/// A local side cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {local}: {error}{}", remedy(error))]
pub struct BindError {
    /// The local side.
    pub local: Local,
    /// Why not.
    pub error: io::Error,
}

fn remedy(error: &io::Error) -> &'static str {
    let kind = error.kind();
    if kind == io::ErrorKind::AddrInUse {
        "; choose another port, or 0 for a free one"
    } else if kind == io::ErrorKind::PermissionDenied {
        "; ports below 1024 take privileges: choose another"
    } else if kind == io::ErrorKind::AddrNotAvailable {
        "; the address is none of this host's"
    } else {
        ""
    }
}

/// A forward that is listened on.
#[derive(Debug, Clone)]
pub struct Listening {
    /// Where local programs connect: with the port that was chosen.
    pub local: Local,
    /// What they reach.
    pub spec: ForwardSpec,
}

/// Listeners whose connections lead to targets. Dropping it cuts everything.
pub struct Forwarder {
    shared: Arc<Shared>,
    listening: Vec<Listening>,
    tasks: Tasks,
}

struct Shared {
    dialer: UserDialer,
    connections: Arc<Semaphore>,
    connections_max: usize,
    /// Nothing new is accepted from here on.
    stop: CancellationToken,
    /// What still runs is cut.
    cut: CancellationToken,
}

impl fmt::Debug for Forwarder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Forwarder")
            .field("listening", &self.listening)
            .finish_non_exhaustive()
    }
}

impl Forwarder {
    /// Listens on every local side, and forwards at most `connections_max` connections at one time.
    ///
    /// # Errors
    /// [`BindError`]; then nothing is listened on.
    pub fn start(
        client: &UserClient,
        network: &dyn Network,
        specs: &[ForwardSpec],
        connections_max: usize,
    ) -> Result<Self, BindError> {
        let mut bound = Vec::new();
        for spec in specs {
            bound.push((bind(network, &spec.local)?, spec.clone()));
        }
        let shared = Arc::new(Shared {
            dialer: client.dialer(),
            connections: Arc::new(Semaphore::new(connections_max)),
            connections_max,
            stop: CancellationToken::new(),
            cut: CancellationToken::new(),
        });
        let mut listening = Vec::new();
        let mut tasks = Tasks::new("forward");
        for ((listener, local), spec) in bound {
            let forward = Arc::new(Forward {
                shared: shared.clone(),
                local: local.to_string(),
                spec: spec.clone(),
                refusals: Mutex::default(),
            });
            tasks.spawn(forward.run(listener));
            listening.push(Listening { local, spec });
        }
        Ok(Self {
            shared,
            listening,
            tasks,
        })
    }

    /// The forwards, in the order in which they were asked for.
    #[must_use]
    pub fn listening(&self) -> &[Listening] {
        &self.listening
    }

    /// Connections that are forwarded, or being dialled, now.
    #[must_use]
    pub fn open(&self) -> usize {
        self.shared.connections_max - self.shared.connections.available_permits()
    }

    /// Accepts nothing more from here on.
    pub fn stop(&self) {
        self.shared.stop.cancel();
    }

    /// Ends in order: accepts nothing more, lets connections end for at most `grace`, and cuts the
    /// rest. Returns how many were cut.
    pub async fn shutdown(mut self, grace: Duration) -> usize {
        self.stop();
        let until = Instant::now() + grace;
        let in_time = tokio::time::timeout_at(until, self.tasks.join_all()).await;
        let left = if in_time.is_ok() { 0 } else { self.open() };
        self.shared.cut.cancel();
        self.tasks.shutdown(CUT_GRACE).await;
        left
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.shared.cut.cancel();
    }
}

fn bind(network: &dyn Network, local: &Local) -> Result<(Box<dyn Listener>, Local), BindError> {
    let failed = |error| BindError {
        local: local.clone(),
        error,
    };
    match local {
        Local::Tcp(address) => {
            let listener = network.listen(*address).map_err(failed)?;
            let address: SocketAddr = listener.local_addr().map_err(failed)?;
            Ok((listener, Local::Tcp(address)))
        }
        Local::Unix(path) => {
            let listener = network.listen_unix(path).map_err(failed)?;
            Ok((listener, local.clone()))
        }
    }
}

/// One forward.
struct Forward {
    shared: Arc<Shared>,
    local: String,
    spec: ForwardSpec,
    refusals: Mutex<Refusals>,
}

impl Forward {
    async fn run(self: Arc<Self>, listener: Box<dyn Listener>) {
        let mut connections = Tasks::new("forwarded connection");
        let mut failing = false;
        loop {
            tokio::select! {
                biased;
                () = self.shared.stop.cancelled() => break,
                () = self.shared.cut.cancelled() => break,
                () = connections.reap() => {}
                accepted = listener.accept() => match accepted {
                    Ok(socket) => {
                        failing = false;
                        self.accepted(socket, &mut connections);
                    }
                    // The connection ended while it waited to be accepted.
                    Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                    Err(error) => {
                        if !std::mem::replace(&mut failing, true) {
                            self.shared.dialer.tell(&Event::AcceptFailed {
                                local: self.local.clone(),
                                error: error.to_string(),
                            });
                        }
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        }
        drop(listener);
        connections.join_all().await;
    }

    fn accepted(self: &Arc<Self>, socket: Box<dyn Socket>, connections: &mut Tasks) {
        // Whatever goes wrong until the tunnel stands, the local program sees a reset and not an
        // empty reply that looks whole.
        socket.set_reset_on_close(true);
        match self.shared.connections.clone().try_acquire_owned() {
            Ok(permit) => {
                let forward = self.clone();
                connections.spawn(async move {
                    let cut = forward.shared.cut.clone();
                    cut.run_until_cancelled(forward.serve(socket, permit)).await;
                });
            }
            Err(_) => self.refused(
                "overloaded",
                &format!(
                    "{} connections are forwarded already, as many as --connections-max allows",
                    self.shared.connections_max
                ),
            ),
        }
    }

    async fn serve(&self, mut socket: Box<dyn Socket>, permit: OwnedSemaphorePermit) {
        let dialled = self
            .shared
            .dialer
            .dial(&self.spec.request, Some(&mut *socket))
            .await;
        match dialled {
            Ok(tunnel) => {
                if let Err(error) = forward::socket(socket, tunnel).await {
                    tracing::debug!(local = self.local, %error, "a connection broke");
                }
            }
            // Whoever has gone is not waiting for a reason.
            Err(DialError::Local(error)) => {
                tracing::debug!(local = self.local, %error, "the local side went while it was dialled");
            }
            Err(error) => self.refused(error.reason(), &error.to_string()),
        }
        drop(permit);
    }

    fn refused(&self, reason: &'static str, message: &str) {
        let told = self
            .refusals
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .count(reason, Instant::now());
        if let Some(untold) = told {
            let request = &self.spec.request;
            self.shared.dialer.tell(&Event::Refused {
                local: self.local.clone(),
                remote: format!("{}/{}", request.agent, request.target),
                reason,
                message: message.to_owned(),
                untold,
            });
        }
    }
}
