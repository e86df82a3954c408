//! Connections to targets: dialled through agents, pooled, and never shared between principals.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{Extensions, Request, Response, Uri};
use hyper::body::Incoming;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::client::legacy::{self, Client};
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_proto::name::{AgentName, AgentRef};
use mesh_proto::principal::Principal;
use mesh_proto::refusal::Reason;
use mesh_proto::target::Target;
use mesh_proto::wire::TraceContext;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::body::RequestBody;
use super::executor::TrackedExecutor;
use super::path::Scheme;
use crate::clock::WallClock;
use crate::net::BoxFuture;
use crate::proxy::router::{self, DialError, DialRequest, Reach};
use crate::proxy::{Shared, Stream};

/// Pools at one time; of more, the one longest unused is dropped.
const POOLS_MAX: usize = 1024;

/// Idle connections of one pool.
const IDLE_CONNECTIONS_MAX: usize = 32;

/// How long a connection may be idle.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a target may take to close its side of a connection that is closed in order.
const LINGER: Duration = Duration::from_secs(1);

/// What hyper may buffer of a connection, in bytes; a response's head must fit.
const BUFFER_BYTES_MAX: usize = 256 << 10;

/// Header fields of a response.
const HEADERS_MAX: usize = 256;

tokio::task_local! {
    /// The trace of the request for which a connection is dialled: a connector is not told.
    static TRACE: Option<TraceContext>;
}

/// What connections are shared by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct PoolKey {
    pub(super) agent: AgentRef,
    pub(super) target: Target,
    pub(super) scheme: Scheme,
    pub(super) principal: Principal,
}

type HttpClient = Client<Connector, RequestBody>;

/// All pools of an ingress.
#[derive(Debug)]
pub(super) struct Upstream {
    shared: Arc<Shared>,
    tls: Arc<ClientConfig>,
    executor: TrackedExecutor,
    pools: Mutex<Pools>,
}

#[derive(Debug, Default)]
struct Pools {
    by_key: HashMap<PoolKey, (u64, HttpClient)>,
    /// Counts uses; the lowest was longest ago.
    uses: u64,
}

impl Upstream {
    pub(super) fn new(
        shared: Arc<Shared>,
        tls: Arc<ClientConfig>,
        executor: TrackedExecutor,
    ) -> Self {
        Self {
            shared,
            tls,
            executor,
            pools: Mutex::default(),
        }
    }

    /// Sends a request to the target of `key`, over a pooled connection or a new one.
    pub(super) async fn send(
        &self,
        key: PoolKey,
        request: Request<RequestBody>,
        trace: Option<TraceContext>,
    ) -> Result<Response<Incoming>, SendError> {
        let client = self.client(key);
        match TRACE.scope(trace, client.request(request)).await {
            Ok(response) => {
                if let Some(served) = response.extensions().get::<Served>() {
                    served.0.store(true, Ordering::Relaxed);
                }
                Ok(response)
            }
            Err(error) => Err(SendError {
                on_used: was_used(&error),
                error,
            }),
        }
    }

    /// Closes the idle connections through `agent`.
    pub(super) fn evict(&self, agent: &AgentName) {
        let is_of_agent = |key: &PoolKey| match self.shared.place(&key.agent) {
            // What this proxy reaches itself goes through no agent.
            Some(place) => place.name().is_some_and(|name| name == *agent),
            // What is nobody's any more, since its cluster is not trusted, goes as well.
            None => true,
        };
        let evicted: Vec<_> = self
            .lock()
            .by_key
            .extract_if(|key, _| is_of_agent(key))
            .collect();
        tracing::debug!(%agent, pools = evicted.len(), "closed the idle connections through an agent");
    }

    /// Closes all idle connections.
    pub(super) fn evict_all(&self) {
        let evicted = std::mem::take(&mut self.lock().by_key);
        drop(evicted);
    }

    fn client(&self, key: PoolKey) -> HttpClient {
        let key = PoolKey {
            agent: match self.shared.place(&key.agent) {
                Some(place) => place.canonical(key.agent),
                None => key.agent,
            },
            ..key
        };
        let mut pools = self.lock();
        pools.uses += 1;
        let now = pools.uses;
        if let Some((used, client)) = pools.by_key.get_mut(&key) {
            *used = now;
            return client.clone();
        }
        let client = self.new_client(&key);
        let oldest = (pools.by_key.len() >= POOLS_MAX).then(|| {
            pools
                .by_key
                .iter()
                .min_by_key(|(_, (used, _))| *used)
                .map(|(key, _)| key.clone())
        });
        let evicted = oldest
            .flatten()
            .and_then(|oldest| pools.by_key.remove(&oldest));
        pools.by_key.insert(key, (now, client.clone()));
        drop(pools);
        drop(evicted);
        client
    }

    fn new_client(&self, key: &PoolKey) -> HttpClient {
        Client::builder(self.executor.clone())
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
            .http1_max_buf_size(BUFFER_BYTES_MAX)
            .http1_max_headers(HEADERS_MAX)
            .set_host(false)
            .build(Connector {
                shared: self.shared.clone(),
                tls: self.tls.clone(),
                key: key.clone(),
            })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Pools> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// No response came.
#[derive(Debug)]
pub(super) struct SendError {
    /// The connection had served a request before: the target may have closed it for being idle
    /// while this one was on its way.
    pub(super) on_used: bool,
    pub(super) error: legacy::Error,
}

/// Set once a connection has brought a response.
#[derive(Debug, Clone, Default)]
struct Served(Arc<AtomicBool>);

fn was_used(error: &legacy::Error) -> bool {
    let mut extensions = Extensions::new();
    if let Some(connection) = error.connect_info() {
        connection.get_extras(&mut extensions);
    }
    extensions
        .get::<Served>()
        .is_some_and(|served| served.0.load(Ordering::Relaxed))
}

/// How `https` targets are spoken to and verified: against `authorities`, or the system's.
///
/// # Errors
/// Why the authorities cannot be used.
pub(super) fn client_config(
    authorities: Option<&[rustls::pki_types::CertificateDer<'static>]>,
    clock: &WallClock,
) -> Result<ClientConfig, String> {
    let mut roots = rustls::RootCertStore::empty();
    match authorities {
        Some(authorities) => {
            for authority in authorities {
                roots.add(authority.clone()).map_err(|error| {
                    format!("upstream_ca has a certificate that cannot be used: {error}")
                })?;
            }
        }
        None => {
            let system = rustls_native_certs::load_native_certs();
            let (added, _) = roots.add_parsable_certificates(system.certs);
            if added == 0 {
                tracing::warn!(
                    errors = ?system.errors,
                    "this system has no certificate authorities: https targets are reached only with the ingress's upstream_ca"
                );
            }
        }
    }
    let mut config = ClientConfig::builder_with_details(certs::provider(), clock.provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Tickets are kept by the target's name, which means another host with each agent.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// Dials the target of one pool.
#[derive(Debug, Clone)]
struct Connector {
    shared: Arc<Shared>,
    tls: Arc<ClientConfig>,
    key: PoolKey,
}

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<UpstreamIo>;
    type Error = DialError;
    type Future = BoxFuture<'static, Result<Self::Response, DialError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), DialError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let trace = TRACE.try_with(|trace| *trace).ok().flatten();
        let connector = self.clone();
        Box::pin(async move { Ok(TokioIo::new(connector.connect(trace).await?)) })
    }
}

impl Connector {
    async fn connect(self, trace: Option<TraceContext>) -> Result<UpstreamIo, DialError> {
        let deadline = self.shared.config.dial_deadline;
        let until = Instant::now() + deadline;
        let PoolKey {
            agent,
            target,
            scheme,
            principal,
        } = self.key;
        let request = DialRequest {
            trace,
            ..DialRequest::new(agent, target, principal, deadline)
        };
        let tunnel = router::dial(&self.shared, &request, Reach::Mesh, None).await?;
        let served = Served::default();
        match scheme {
            Scheme::Http => Ok(UpstreamIo::new(Transport::Plain(tunnel), served)),
            Scheme::Https => {
                let refused = |reason, message| DialError {
                    agent: request.agent.clone(),
                    target: request.target.clone(),
                    reason,
                    message,
                    by_other_cluster: false,
                };
                let name =
                    server_name(&request.target).map_err(|why| refused(Reason::BadTarget, why))?;
                let handshake = TlsConnector::from(self.tls).connect(name, tunnel);
                match tokio::time::timeout_at(until, handshake).await {
                    Ok(Ok(stream)) => Ok(UpstreamIo::new(Transport::Tls(Box::new(stream)), served)),
                    Ok(Err(error)) => Err(refused(
                        Reason::Unreachable,
                        format!(
                            "TLS with the target failed: {error}; a target that speaks plain HTTP is asked for with `http`, and the authority of a certificate that the system does not know goes into the ingress's upstream_ca"
                        ),
                    )),
                    Err(_) => Err(refused(
                        Reason::Timeout,
                        format!(
                            "TLS with the target was not established within {deadline:?}; see whether the target is overloaded, or raise proxy.dial_deadline"
                        ),
                    )),
                }
            }
        }
    }
}

/// The name that a target's certificate has to bear.
fn server_name(target: &Target) -> Result<ServerName<'static>, String> {
    let name = match target {
        Target::Address(address) => return Ok(ServerName::IpAddress(address.ip().into())),
        Target::Host { host, .. } => host.to_string(),
        Target::Service(name) => name.to_string(),
        Target::Unix(_) => "localhost".to_owned(),
    };
    ServerName::try_from(name)
        .map_err(|error| format!("no certificate can bear the target's name: {error}"))
}

/// A connection to a target.
#[derive(Debug)]
pub(super) struct UpstreamIo {
    pub(super) transport: Transport,
    served: Served,
    lingering: Option<Pin<Box<Sleep>>>,
}

impl UpstreamIo {
    fn new(transport: Transport, served: Served) -> Self {
        Self {
            transport,
            served,
            lingering: None,
        }
    }
}

/// The bytes of a connection to a target.
#[derive(Debug)]
pub(super) enum Transport {
    /// As they come.
    Plain(Stream),
    /// In TLS.
    Tls(Box<TlsStream<Stream>>),
}

impl Connection for UpstreamIo {
    fn connected(&self) -> Connected {
        Connected::new().extra(self.served.clone())
    }
}

impl AsyncRead for UpstreamIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.get_mut().transport {
            Transport::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Transport::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for UpstreamIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().transport {
            Transport::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Transport::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().transport {
            Transport::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.lingering.is_none() {
            ready!(match &mut this.transport {
                Transport::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
                Transport::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            })?;
        }
        // A stream dropped before the target's end resets its connection, which its log would
        // show for every idle connection that is closed.
        let until = this
            .lingering
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER)));
        if until.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        // Anything but the end is of a response that nobody waits for: no more of it.
        let mut byte = [0];
        let read = Pin::new(&mut *this).poll_read(cx, &mut ReadBuf::new(&mut byte));
        read.map(|_| Ok(()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    #[test]
    fn names_of_certificates() {
        for (target, name) in [
            ("192.0.2.1:443", Some("192.0.2.1")),
            ("[2001:db8::1]:443", Some("2001:db8::1")),
            ("web.svc:443", Some("web.svc")),
            ("service:web", Some("web")),
            ("unix:/run/web.sock", Some("localhost")),
        ] {
            let found = server_name(&target.parse().unwrap()).ok();
            assert_eq!(
                found.as_ref().map(|name| name.to_str()).as_deref(),
                name,
                "{target}"
            );
        }
    }

    #[test]
    fn an_authority_that_is_none_is_refused() {
        let garbage = [rustls::pki_types::CertificateDer::from(vec![1, 2, 3])];
        assert!(
            client_config(Some(&garbage), &WallClock::system())
                .unwrap_err()
                .contains("upstream_ca")
        );
        assert!(client_config(None, &WallClock::system()).is_ok());
    }
}
