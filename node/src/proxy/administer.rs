//! Users who administer the proxy: the admin API on a stream of theirs.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::{Extension, Router};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use mesh_proto::name::NodeName;
use mesh_proto::principal::Principal;
use mesh_proto::refusal::Reason;
use mesh_proto::wire::Refused;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Shared;
use super::inbound::Inbound;

/// Who asks for something over the admin API. An extension of each request.
#[derive(Debug, Clone)]
pub(crate) enum Caller {
    /// Whoever reaches the admin listener operates the node: how he came, for the log.
    Operator(String),
    /// By QUIC, with a certificate: what grants say.
    Remote(Principal),
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operator(way) => f.write_str(way),
            Self::Remote(principal) => principal.fmt(f),
        }
    }
}

/// From the request's first byte to the answer's last: no store takes longer.
const EXCHANGE_DEADLINE: Duration = Duration::from_secs(60);

/// How long the head of a request may take.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);

/// What is read ahead of a request, in bytes, and the longest head.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// Requests at one time. An answer waits in memory until it is read, and the largest are as large
/// as the mesh.
const EXCHANGES_MAX: usize = 32;

/// Of them, those of one connection.
const EXCHANGES_OF_ONE_MAX: usize = 4;

/// The admin API, as far as there is one. It looks at the proxy that serves it, which has to let go
/// of it when it ends.
#[derive(Debug)]
pub(super) struct Administration {
    routes: Mutex<Option<Router>>,
    exchanges: Arc<Semaphore>,
}

impl Default for Administration {
    fn default() -> Self {
        Self {
            routes: Mutex::default(),
            exchanges: Arc::new(Semaphore::new(EXCHANGES_MAX)),
        }
    }
}

impl Administration {
    /// Serves this from now on.
    pub(super) fn serve(&self, routes: Router) {
        *self.routes.lock().unwrap_or_else(PoisonError::into_inner) = Some(routes);
    }

    /// Serves nothing any more.
    pub(super) fn withdraw(&self) {
        // Dropped when the lock is not held any more.
        let _routes = self
            .routes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }

    fn routes(&self) -> Option<Router> {
        self.routes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// The requests of one connection.
#[derive(Debug)]
pub(super) struct Exchanges(Arc<Semaphore>);

impl Default for Exchanges {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(EXCHANGES_OF_ONE_MAX)))
    }
}

impl Exchanges {
    /// One more, for as long as this is held.
    fn begin(&self, administration: &Administration) -> Result<[OwnedSemaphorePermit; 2], Refused> {
        let overloaded = |what: String| Refused::new(Reason::Overloaded, &what);
        let of_one = self.0.clone().try_acquire_owned().map_err(|_| {
            overloaded(format!(
                "this connection has {EXCHANGES_OF_ONE_MAX} requests to the admin API open, which is the most: read their answers first"
            ))
        })?;
        let of_all = administration.exchanges.clone().try_acquire_owned().map_err(|_| {
            overloaded(format!(
                "this proxy answers {EXCHANGES_MAX} requests of users to its admin API already, which is the most: try again later"
            ))
        })?;
        Ok([of_one, of_all])
    }
}

/// Serves one request. What the user may ask for is decided there, by the route.
pub(super) async fn serve(
    shared: &Shared,
    user: &NodeName,
    exchanges: &Exchanges,
    inbound: Inbound,
) {
    let Some(routes) = shared.administration.routes() else {
        let what = "this proxy is part of an application that offers no administration";
        inbound
            .refuse(Refused::new(Reason::Unsupported, what))
            .await;
        return;
    };
    let _exchange = match exchanges.begin(&shared.administration) {
        Ok(exchange) => exchange,
        Err(refused) => {
            tracing::debug!(%user, why = %refused.message, "a request to the admin API was refused");
            inbound.refuse(refused).await;
            return;
        }
    };
    let Some((send, recv)) = inbound.opened().await else {
        return;
    };
    let caller = Caller::Remote(Principal::User(user.clone()));
    let service = TowerToHyperService::new(routes.layer(Extension(caller)));
    // An answer that is cut is seen as such by its length, however the stream ends.
    let io = TokioIo::new(tokio::io::join(recv, send));
    let served = hyper::server::conn::http1::Builder::new()
        .keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(io, service);
    match tokio::time::timeout(EXCHANGE_DEADLINE, served).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%user, %error, "a request to the admin API broke"),
        Err(_) => tracing::debug!(%user, "a request to the admin API took too long"),
    }
}
