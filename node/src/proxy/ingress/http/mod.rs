//! HTTP: a user asks a proxy for `/client/<agent>/<http or https>/<host:port>/<path>`, and gets
//! what the agent's target answers to `<path>`.
//!
//! | file | subject |
//! |---|---|
//! | `path` | what a request asks for |
//! | `hosts` | under which names the ingress is served |
//! | `headers` | header fields on their way |
//! | `exchange` | one request and its response |
//! | `respond` | the mesh's own answers |
//! | `upstream` | connections to targets, pooled |
//! | `executor` | the tasks that hyper starts |
//! | `connection` | the user's socket as hyper sees it |
//! | `body` | bodies on their way |
//! | `upgrade` | what follows `101 Switching Protocols` |
//! | `access` | the access log |

mod access;
mod body;
mod connection;
mod exchange;
mod executor;
mod headers;
mod hosts;
mod path;
mod respond;
#[cfg(test)]
mod tests;
mod upgrade;
mod upstream;

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_proto::principal::Principal;
use tokio::io::AsyncReadExt as _;
use tokio::sync::broadcast::error::RecvError;

use self::connection::{ConnectionState, HEAD_TIMEOUT, UserIo};
use self::exchange::UserConnection;
use self::executor::TrackedExecutor;
use self::hosts::Hosts;
use self::upstream::Upstream;
use super::{Ingress, ServeConnection};
use crate::config::IngressKind;
use crate::net::Socket;
use crate::proxy::{Phase, Shared};

/// How long a user's connection may be idle between requests.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);

/// What hyper may buffer of a connection, in bytes; one read beyond it may happen.
const BUFFER_BYTES_MAX: usize = 64 << 10;

/// The longest head of a request, in bytes.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// Header fields of a request.
const HEADERS_MAX: usize = 128;

/// The longest head of an HTTP/2 request, in bytes.
const HTTP2_HEADER_BYTES_MAX: u32 = 64 << 10;

/// Requests at one time on an HTTP/2 connection.
const HTTP2_STREAMS_MAX: u32 = 256;

/// What a user may send ahead on one HTTP/2 stream, in bytes.
const HTTP2_STREAM_WINDOW_BYTES: u32 = 256 << 10;

/// The same on all streams of a connection, in bytes: several stalled uploads leave room.
const HTTP2_CONNECTION_WINDOW_BYTES: u32 = 4 << 20;

/// What waits for a user to take it, by HTTP/2 stream, in bytes.
const HTTP2_SEND_BUFFER_BYTES_MAX: usize = 256 << 10;

/// Interval of HTTP/2 pings, and how long an answer may take.
const HTTP2_PING: Duration = Duration::from_secs(20);

/// With what an HTTP/2 connection begins (RFC 9113, section 3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Serves an `http` ingress.
pub(super) struct Server {
    shared: Arc<Shared>,
    ingress: Ingress,
    hosts: Hosts,
    upstream: Upstream,
    executor: TrackedExecutor,
}

impl Server {
    /// # Errors
    /// Why `https` targets could not be verified.
    pub(super) fn new(shared: Arc<Shared>, ingress: Ingress) -> Result<Self, String> {
        let authorities = match &ingress.config.kind {
            IngressKind::Http { upstream_ca } => upstream_ca.as_deref(),
            IngressKind::Tcp { .. } => None,
        };
        let tls = Arc::new(upstream::client_config(authorities, &shared.clock)?);
        let executor = TrackedExecutor::new(shared.cut.clone());
        Ok(Self {
            hosts: Hosts::new(ingress.address, &ingress.config.hosts),
            upstream: Upstream::new(shared.clone(), tls, executor.clone()),
            executor,
            shared,
            ingress,
        })
    }

    async fn draining(&self) {
        let mut phase = self.shared.phase.subscribe();
        // Fails only when there is no proxy any more.
        let _ = phase.wait_for(|phase| *phase == Phase::Draining).await;
    }

    async fn serve_http1(
        self: &Arc<Self>,
        socket: Box<dyn Socket>,
        first: Bytes,
        identity: Option<Principal>,
    ) {
        let state = ConnectionState::new(true);
        let user = Arc::new(UserConnection::new(
            state.clone(),
            socket.peer_addr(),
            identity,
        ));
        let io = TokioIo::new(UserIo::new(socket, first, state.clone()));
        let service = self.service(&user);
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            // For want of another limit, of the time between requests; `UserIo` has one for heads.
            .header_read_timeout(IDLE_TIMEOUT)
            .max_buf_size(BUFFER_BYTES_MAX)
            .max_header_size(HEAD_BYTES_MAX)
            .max_headers(HEADERS_MAX)
            .serve_connection(io, service)
            .with_upgrades();
        {
            let mut connection = pin!(connection);
            let served = tokio::select! {
                served = connection.as_mut() => served,
                () = self.draining() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = served {
                self.broke(&user, &error);
            }
        }
        if let Some(upgrade) = user.take_upgrade() {
            upgrade.forward(&state).await;
        }
    }

    async fn serve_http2(
        self: &Arc<Self>,
        socket: Box<dyn Socket>,
        first: Bytes,
        identity: Option<Principal>,
    ) {
        let state = ConnectionState::new(false);
        let user = Arc::new(UserConnection::new(
            state.clone(),
            socket.peer_addr(),
            identity,
        ));
        let io = TokioIo::new(UserIo::new(socket, first, state.clone()));
        let connection = http2::Builder::new(self.executor.clone())
            .timer(TokioTimer::new())
            .max_header_list_size(HTTP2_HEADER_BYTES_MAX)
            .max_concurrent_streams(HTTP2_STREAMS_MAX)
            .initial_stream_window_size(HTTP2_STREAM_WINDOW_BYTES)
            .initial_connection_window_size(HTTP2_CONNECTION_WINDOW_BYTES)
            .max_send_buf_size(HTTP2_SEND_BUFFER_BYTES_MAX)
            .keep_alive_interval(HTTP2_PING)
            .keep_alive_timeout(HTTP2_PING)
            .serve_connection(io, self.service(&user));
        let mut connection = pin!(connection);
        let served = tokio::select! {
            served = connection.as_mut() => served,
            () = async {
                tokio::select! {
                    () = self.draining() => {}
                    () = idle(&state) => {}
                }
            } => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = served {
            self.broke(&user, &error);
        }
    }

    fn service(
        self: &Arc<Self>,
        user: &Arc<UserConnection>,
    ) -> impl hyper::service::Service<
        http::Request<hyper::body::Incoming>,
        Response = http::Response<body::ResponseBody>,
        Error = Infallible,
        Future: Send + 'static,
    > + Send
    + 'static {
        let (server, user) = (self.clone(), user.clone());
        service_fn(move |request| {
            let (server, user) = (server.clone(), user.clone());
            Box::pin(async move { Ok(server.answer(&user, request).await) })
        })
    }

    /// A connection ended otherwise than in order.
    fn broke(&self, user: &UserConnection, error: &hyper::Error) {
        if error.is_parse() {
            // hyper has answered by itself.
            self.shared
                .metrics
                .http_request(if error.is_parse_too_large() { 431 } else { 400 });
        }
        tracing::debug!(listen = %self.ingress.address, peer = ?user.peer, %error, "a connection of a user broke");
    }
}

/// Completes when an HTTP/2 connection has had no request for a while.
async fn idle(state: &ConnectionState) {
    loop {
        let before = state.idle_since();
        tokio::time::sleep(IDLE_TIMEOUT).await;
        if before.is_some() && before == state.idle_since() {
            return;
        }
    }
}

/// Reads until it is clear which HTTP this is: what was read, and whether it is HTTP/2; `None`
/// when there is nothing.
async fn preface(socket: &mut dyn Socket) -> io::Result<Option<(Bytes, bool)>> {
    let mut read = BytesMut::with_capacity(8 << 10);
    loop {
        let ended = socket.read_buf(&mut read).await? == 0;
        if read.is_empty() {
            return Ok(None);
        }
        let compared = read.len().min(HTTP2_PREFACE.len());
        let is_http2 = read[..compared] == HTTP2_PREFACE[..compared];
        if ended || !is_http2 || compared == HTTP2_PREFACE.len() {
            return Ok(Some((
                read.freeze(),
                is_http2 && compared == HTTP2_PREFACE.len(),
            )));
        }
    }
}

impl ServeConnection for Server {
    async fn serve(self: Arc<Self>, mut socket: Box<dyn Socket>) {
        let peer = socket.peer_addr();
        let mut identity = None;
        if let Some(tls) = &self.ingress.tls {
            (socket, identity) = match tls.accept(socket).await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::info!(listen = %self.ingress.address, ?peer, %error, "TLS with a user failed");
                    return;
                }
            };
        }
        let preface = tokio::select! {
            biased;
            () = self.draining() => return,
            preface = tokio::time::timeout(HEAD_TIMEOUT, preface(&mut *socket)) => preface,
        };
        match preface {
            Ok(Ok(Some((first, true)))) => {
                Box::pin(self.serve_http2(socket, first, identity)).await;
            }
            Ok(Ok(Some((first, false)))) => {
                Box::pin(self.serve_http1(socket, first, identity)).await;
            }
            // Connected and said nothing, as probes do.
            Ok(Ok(None)) => {}
            Ok(Err(error)) => {
                tracing::debug!(listen = %self.ingress.address, ?peer, %error, "a connection of a user broke");
            }
            Err(_) => {
                tracing::debug!(listen = %self.ingress.address, ?peer, "a user connected and sent no request");
            }
        }
    }

    async fn background(self: Arc<Self>) {
        let mut ended = self.shared.ended_sessions();
        let mut draining = pin!(self.draining());
        loop {
            tokio::select! {
                () = &mut draining => break,
                agent = ended.recv() => match agent {
                    Ok(agent) => self.upstream.evict(&agent),
                    Err(RecvError::Lagged(_)) => self.upstream.evict_all(),
                    Err(RecvError::Closed) => break,
                },
            }
        }
        self.upstream.evict_all();
    }

    async fn finish(self: Arc<Self>) {
        self.upstream.evict_all();
        self.executor.join().await;
    }
}
