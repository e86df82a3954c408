//! Health and metrics over HTTP: the metrics listener for everybody, the admin listener for
//! whoever operates the node, with the API beside them.

mod api;
mod drain;
mod guard;
mod rights;
mod tunnels;

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use prometheus::Registry;
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub(crate) use self::api::{Node, routes as api};
pub use self::drain::{DrainAsk, NotNow};
use self::guard::Guard;
use crate::config::{AdminListen, CommonConfig};
use crate::proxy::{Caller, Phase};
use crate::tasks::Tasks;

/// How long a request that is being answered may go on when the node has ended.
pub(crate) const CLOSE_GRACE: Duration = Duration::from_secs(1);

/// A listener could not start.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// A TCP listener.
    #[error("cannot listen on {address} ({key}): {error}")]
    Bind {
        /// The address asked for.
        address: SocketAddr,
        /// The key of the config that asks for it.
        key: &'static str,
        /// Why not.
        error: io::Error,
    },
    /// The Unix socket.
    #[error("cannot listen on unix:{path} (admin.listen): {error}")]
    Unix {
        /// Its path.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
}

/// What `/readyz` tells.
#[derive(Debug, Clone)]
pub(crate) enum Readiness {
    /// A proxy is ready while it serves and no balancer should look elsewhere.
    Proxy(watch::Receiver<Phase>),
    /// An agent is ready while it holds at least one connection.
    Agent(watch::Receiver<usize>),
}

impl Readiness {
    fn check(&self) -> Result<&'static str, &'static str> {
        match self {
            Self::Proxy(phase) => match *phase.borrow() {
                Phase::Serving => Ok("ready\n"),
                Phase::Joining => Err("joining: the agents of all peers are not known yet\n"),
                Phase::Notice | Phase::Draining => Err("draining\n"),
            },
            Self::Agent(connected) => {
                if *connected.borrow() > 0 {
                    Ok("ready\n")
                } else {
                    Err("not connected to any proxy; the log says why\n")
                }
            }
        }
    }
}

/// Bound listeners that do not serve yet.
#[derive(Debug)]
pub(crate) struct Listeners {
    metrics: Option<(TcpListener, SocketAddr)>,
    admin: Option<AdminListener>,
}

#[derive(Debug)]
enum AdminListener {
    Tcp(TcpListener, SocketAddr, Guard),
    Unix(UnixListener, SocketFile),
}

/// Removes the socket's file when the listener goes.
#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Binds the listeners of the config, on `runtime`.
pub(crate) async fn bind(config: &CommonConfig, runtime: &Handle) -> Result<Listeners, AdminError> {
    let _entered = runtime.enter();
    let metrics = match &config.metrics {
        Some(metrics) => Some(tcp(metrics.listen, "metrics.listen")?),
        None => None,
    };
    let admin = match &config.admin {
        Some(admin) => Some(match &admin.listen {
            AdminListen::Tcp(address) => {
                let (listener, address) = tcp(*address, "admin.listen")?;
                AdminListener::Tcp(listener, address, Guard::new(address, admin.auth.clone()))
            }
            AdminListen::Unix(path) => AdminListener::Unix(unix(path)?, SocketFile(path.clone())),
        }),
        None => None,
    };
    Ok(Listeners { metrics, admin })
}

fn tcp(address: SocketAddr, key: &'static str) -> Result<(TcpListener, SocketAddr), AdminError> {
    let bound = || {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let bound = listener.local_addr()?;
        Ok((TcpListener::from_std(listener)?, bound))
    };
    bound().map_err(|error| AdminError::Bind {
        address,
        key,
        error,
    })
}

fn unix(path: &Path) -> Result<UnixListener, AdminError> {
    let bound = || {
        // What a killed process left behind; a living one answers.
        if std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket()) {
            match std::os::unix::net::UnixStream::connect(path) {
                Ok(_) => return Err(io::ErrorKind::AddrInUse.into()),
                Err(_) => std::fs::remove_file(path)?,
            }
        }
        let listener = UnixListener::bind(path)?;
        // Whoever may connect is the operator.
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        Ok(listener)
    };
    bound().map_err(|error| AdminError::Unix {
        path: path.to_owned(),
        error,
    })
}

impl Listeners {
    pub(crate) fn admin_addr(&self) -> Option<SocketAddr> {
        match &self.admin {
            Some(AdminListener::Tcp(_, address, _)) => Some(*address),
            Some(AdminListener::Unix(..)) | None => None,
        }
    }

    pub(crate) fn metrics_addr(&self) -> Option<SocketAddr> {
        self.metrics.as_ref().map(|(_, address)| *address)
    }

    /// Serves until `stop`.
    pub(crate) fn serve(
        self,
        tasks: &mut Tasks,
        runtime: &Handle,
        registry: &Registry,
        readiness: &Readiness,
        api: Router,
        stop: &CancellationToken,
    ) {
        let routes = routes(registry, readiness);
        let all = routes.clone().merge(api);
        if let Some((listener, _)) = self.metrics {
            let server = axum::serve(listener, routes)
                .with_graceful_shutdown(stop.clone().cancelled_owned());
            tasks.spawn_on(async move { report("metrics", server.await) }, runtime);
        }
        match self.admin {
            Some(AdminListener::Tcp(listener, _, guard)) => {
                let server = axum::serve(listener, guard.protect(all))
                    .with_graceful_shutdown(stop.clone().cancelled_owned());
                tasks.spawn_on(async move { report("admin", server.await) }, runtime);
            }
            Some(AdminListener::Unix(listener, file)) => {
                // Whoever may open the socket's file.
                let caller = Caller::Operator("admin socket".to_owned());
                let server = axum::serve(listener, all.layer(Extension(caller)))
                    .with_graceful_shutdown(stop.clone().cancelled_owned());
                let served = async move {
                    report("admin", server.await);
                    drop(file);
                };
                tasks.spawn_on(served, runtime);
            }
            None => {}
        }
    }
}

fn report(listener: &str, ended: io::Result<()>) {
    if let Err(error) = ended {
        tracing::error!(listener, %error, "a listener has ended; restart the node to have it back");
    }
}

/// What both listeners serve.
fn routes(registry: &Registry, readiness: &Readiness) -> Router {
    let (registry, readiness) = (registry.clone(), readiness.clone());
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route(
            "/readyz",
            get(async move || match readiness.check() {
                Ok(ready) => ready.into_response(),
                Err(why) => (StatusCode::SERVICE_UNAVAILABLE, why).into_response(),
            }),
        )
        .route("/metrics", get(async move || metrics(&registry)))
}

fn metrics(registry: &Registry) -> Response {
    match crate::metrics::encode(registry) {
        Ok(text) => {
            let content_type = "text/plain; version=0.0.4; charset=utf-8";
            ([(header::CONTENT_TYPE, content_type)], text).into_response()
        }
        Err(error) => {
            tracing::error!(%error, "metrics cannot be encoded: this is a defect of the program");
            (
                StatusCode::INTERNAL_SERVER_ERROR,
                "metrics cannot be encoded\n",
            )
                .into_response()
        }
    }
}
