//! Listeners where users arrive.

mod auth;
mod http;
mod tcp;
mod tls;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::{Phase, Shared};
use crate::config::{IngressConfig, IngressKind};
use crate::net::{Listener, Socket};
use crate::tasks::Tasks;

/// Pause after an accept that failed, which is mostly for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// An ingress could not start.
#[derive(Debug, thiserror::Error)]
pub enum IngressError {
    /// The listener.
    #[error("cannot listen for users on {address} (ingress[{index}].listen): {error}")]
    Bind {
        /// Which of the config's ingresses, from 0.
        index: usize,
        /// The address asked for.
        address: SocketAddr,
        /// Why not.
        error: io::Error,
    },
    /// TLS.
    #[error("cannot serve TLS on {address}: {why}")]
    Tls {
        /// The address.
        address: SocketAddr,
        /// Why not.
        why: String,
    },
}

/// Binds all listeners of the config and starts serving them on `runtime`; returns their addresses.
pub(super) fn start(
    shared: &Arc<Shared>,
    tasks: &mut Tasks,
    runtime: &Handle,
) -> Result<Vec<SocketAddr>, IngressError> {
    let _entered = runtime.enter();
    // All are bound before one is served, so that a port in use leaves nothing running.
    let mut bound = Vec::new();
    for (index, config) in shared.config.ingresses.iter().enumerate() {
        let bind_error = |error| IngressError::Bind {
            index,
            address: config.listen,
            error,
        };
        let listener = shared.network.listen(config.listen).map_err(bind_error)?;
        let address = listener.local_addr().map_err(bind_error)?;
        let tls = tls::acceptor(config, &shared.config.common.credentials, &shared.clock).map_err(
            |why| IngressError::Tls {
                address: config.listen,
                why,
            },
        )?;
        bound.push((config, listener, address, tls));
    }
    let mut addresses = Vec::new();
    for (config, listener, address, tls) in bound {
        if let Some(tls) = &config.tls {
            shared
                .node_metrics
                .cert_expiry
                .with_label_values(&[&format!("ingress:{}", config.listen)])
                .set(tls.not_after);
        }
        let ingress = Ingress {
            config: config.clone(),
            address,
            tls,
        };
        match &config.kind {
            IngressKind::Http { .. } => {
                let server = http::Server::new(shared.clone(), ingress.clone()).map_err(|why| {
                    IngressError::Tls {
                        address: config.listen,
                        why,
                    }
                })?;
                tasks.spawn_on(
                    serve(shared.clone(), listener, ingress, Arc::new(server)),
                    runtime,
                );
            }
            IngressKind::Tcp { agent, target } => {
                let server = tcp::Server::new(
                    shared.clone(),
                    ingress.clone(),
                    agent.clone(),
                    target.clone(),
                );
                tasks.spawn_on(
                    serve(shared.clone(), listener, ingress, Arc::new(server)),
                    runtime,
                );
            }
        }
        addresses.push(address);
    }
    Ok(addresses)
}

/// A bound ingress.
#[derive(Debug, Clone)]
struct Ingress {
    config: IngressConfig,
    address: SocketAddr,
    tls: Option<tls::Acceptor>,
}

/// What serves the connections of one ingress.
trait ServeConnection: Send + Sync + 'static {
    /// Serves one connection to its end. On [`Phase::Draining`] it ends as soon as it is idle.
    fn serve(self: Arc<Self>, socket: Box<dyn Socket>) -> impl Future<Output = ()> + Send;

    /// Runs beside the connections; ends with the last of them.
    fn background(self: Arc<Self>) -> impl Future<Output = ()> + Send;

    /// Waits for what the connections have left behind, when the last of them has ended.
    fn finish(self: Arc<Self>) -> impl Future<Output = ()> + Send;
}

/// Accepts until the proxy drains, then waits for the connections until they are cut.
async fn serve<S: ServeConnection>(
    shared: Arc<Shared>,
    listener: Box<dyn Listener>,
    ingress: Ingress,
    server: Arc<S>,
) {
    let places = Arc::new(Semaphore::new(ingress.config.connections_max as usize));
    let mut tasks = Tasks::new("connection of a user");
    let mut background = Tasks::new("ingress background");
    background.spawn(server.clone().background());
    let mut phase = shared.phase.subscribe();
    let draining = async {
        phase
            .wait_for(|phase| *phase == Phase::Draining)
            .await
            .map(drop)
    };
    tokio::pin!(draining);
    loop {
        let accepted = tokio::select! {
            biased;
            _ = &mut draining => break,
            () = shared.cut.cancelled() => break,
            () = tasks.reap() => continue,
            // Waiting for a place leaves the others in the kernel's queue, which pushes back.
            accepted = async {
                let place = places.clone().acquire_owned().await;
                (place, listener.accept().await)
            } => accepted,
        };
        match accepted {
            (Ok(place), Ok(socket)) => {
                let (server, cut) = (server.clone(), shared.cut.clone());
                tasks.spawn(async move {
                    cut.run_until_cancelled(server.serve(socket)).await;
                    drop(place);
                });
            }
            (Ok(_), Err(error)) => {
                tracing::warn!(listen = %ingress.address, %error, "cannot accept a connection of a user; is the limit of open files (ulimit -n) reached?");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
            // The semaphore is never closed.
            (Err(_), _) => break,
        }
    }
    drop(listener);
    tasks.join_all().await;
    background.shutdown(Duration::ZERO).await;
    server.finish().await;
}
