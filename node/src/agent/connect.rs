//! One attempt to connect: from an address to a proxy's hello.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mesh_proto::close::CloseCode;
use mesh_proto::name::{Cluster, NodeName};
use mesh_proto::pool::can_be_dialled;
use mesh_proto::wire::{
    AgentFrame, AgentHello, Answer, Open, OpenControl, ProxyFrame, ProxyHello, Refused, Service,
    WireError,
};
use quinn::{Connection, ConnectionError, Endpoint, RecvStream, SendStream};
use rand::seq::SliceRandom as _;
use tokio::time::Instant;

use super::Shared;
use super::failures::What;
use super::metrics::ConnectResult;
use super::realm::Realm;
use crate::net::resolve_address;
use crate::quic::endpoint::{self, BoundEndpoint, EndpointError, EndpointParts};
use crate::quic::frames::FrameReader;
use crate::quic::identity;
use crate::quic::transport::StreamLimit;

/// Addresses of one name that are tried in one attempt.
const ADDRESSES_MAX: usize = 16;

/// A connection whose hello has arrived.
pub(super) struct ProxyConnection {
    pub(super) endpoint: Endpoint,
    pub(super) connection: Connection,
    pub(super) stream_limit: StreamLimit,
    pub(super) control_send: SendStream,
    pub(super) control_recv: RecvStream,
    pub(super) reader: FrameReader,
    pub(super) hello: ProxyHello,
}

impl ProxyConnection {
    /// Closes a connection to a proxy that another one leads to already.
    pub(super) async fn close_duplicate(self) {
        self.connection
            .close(CloseCode::Superseded.code().into(), b"connected already");
        let _ = tokio::time::timeout(super::CLOSE_GRACE, self.endpoint.wait_idle()).await;
    }
}

/// An attempt failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error(
        "`{address}` cannot be resolved ({error}); check agent.proxies, or the tunnel's addresses, and the resolver of this host"
    )]
    Resolve { address: String, error: io::Error },
    #[error(
        "nothing answered at {remote} within quic.handshake_timeout ({timeout:?}); check that the proxy runs and that UDP reaches it"
    )]
    Timeout {
        remote: SocketAddr,
        timeout: Duration,
    },
    #[error(
        "the proxy at {remote} took the connection and said no hello within quic.handshake_timeout ({timeout:?}); is it overloaded, or waiting for its peers?"
    )]
    Silent {
        remote: SocketAddr,
        timeout: Duration,
    },
    #[error(
        "`{address}` resolves to no address that can be dialled, but to {found}; check agent.proxies, and what the proxies advertise"
    )]
    Undialable { address: String, found: SocketAddr },
    #[error(
        "{remote} and this agent do not trust each other ({error}); check both certificates with `node certs show`: the same cluster, the same authority, not expired; and of a tunnel, that each cluster has the other one in a [[trust]]"
    )]
    Untrusted {
        remote: SocketAddr,
        error: ConnectionError,
    },
    #[error(
        "the proxy at {remote} takes no connection now ({error}); this agent asks again, and others meanwhile"
    )]
    Refused { remote: SocketAddr, error: String },
    #[error("the connection to {remote} failed: {error}")]
    Connection {
        remote: SocketAddr,
        error: ConnectionError,
    },
    #[error("the proxy at {remote} broke the protocol: {error}")]
    Protocol { remote: SocketAddr, error: String },
    #[error("the cluster {cluster} is not trusted here any more (its [[trust]] is gone)")]
    NotTrusted { cluster: Cluster },
    #[error("it advertises no address")]
    NoAddress,
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
}

impl ConnectError {
    pub(super) fn result(&self) -> ConnectResult {
        match self {
            Self::Resolve { .. } | Self::Undialable { .. } => ConnectResult::ResolveFailed,
            Self::Timeout { .. } | Self::Silent { .. } => ConnectResult::Timeout,
            Self::Untrusted { .. } | Self::NotTrusted { .. } => ConnectResult::Untrusted,
            Self::Refused { .. } => ConnectResult::Refused,
            Self::Connection { .. }
            | Self::Protocol { .. }
            | Self::NoAddress
            | Self::Endpoint(_) => ConnectResult::Failed,
        }
    }

    /// What stays the same from one attempt to the next as long as the cause does; the text may
    /// tell the time, as that of an expired certificate.
    pub(super) fn gist(&self) -> String {
        if let Self::Untrusted { remote, error } = self {
            match error {
                ConnectionError::TransportError(error) => {
                    return format!("{remote}: {}", error.code);
                }
                ConnectionError::ConnectionClosed(close) => {
                    return format!("{remote}: by peer: {}", close.error_code);
                }
                ConnectionError::ApplicationClosed(_)
                | ConnectionError::VersionMismatch
                | ConnectionError::Reset
                | ConnectionError::TimedOut
                | ConnectionError::LocallyClosed
                | ConnectionError::CidsExhausted => {}
            }
        }
        self.to_string()
    }

    fn of(remote: SocketAddr, timeout: Duration, error: ConnectionError) -> Self {
        match &error {
            ConnectionError::TimedOut => Self::Timeout { remote, timeout },
            ended if identity::is_untrusted(ended) => Self::Untrusted { remote, error },
            ConnectionError::ConnectionClosed(close)
                if close.error_code == quinn::TransportErrorCode::CONNECTION_REFUSED =>
            {
                Self::Refused {
                    remote,
                    error: error.to_string(),
                }
            }
            ConnectionError::ApplicationClosed(close)
                if close.error_code == CloseCode::Draining.code().into()
                    || close.error_code == CloseCode::Overloaded.code().into()
                    || close.error_code == CloseCode::Superseded.code().into() =>
            {
                Self::Refused {
                    remote,
                    error: error.to_string(),
                }
            }
            ConnectionError::VersionMismatch
            | ConnectionError::TransportError(_)
            | ConnectionError::ConnectionClosed(_)
            | ConnectionError::ApplicationClosed(_)
            | ConnectionError::Reset
            | ConnectionError::LocallyClosed
            | ConnectionError::CidsExhausted => Self::Connection { remote, error },
        }
    }
}

/// Tries the addresses of `address` in the resolver's order, each from a socket of its own, until
/// one answers or the time is over.
pub(super) async fn connect(
    shared: &Arc<Shared>,
    address: &str,
    proxy: Option<&NodeName>,
    end: Instant,
) -> Result<ProxyConnection, ConnectError> {
    let timeout = shared.config.common.quic.handshake_timeout;
    let resolve_error = |error| ConnectError::Resolve {
        address: address.to_owned(),
        error,
    };
    let resolve_until = end.min(Instant::now() + timeout);
    let resolving = resolve_address(&*shared.network, address);
    let resolved = tokio::time::timeout_at(resolve_until, resolving)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(resolve_error)?;
    let remotes = choose(shared, address, &resolved);
    let mut last = resolved.first().map(|found| ConnectError::Undialable {
        address: address.to_owned(),
        found: *found,
    });
    for (index, remote) in remotes.iter().enumerate() {
        let until = share(end, remotes.len() - index).min(Instant::now() + timeout);
        match connect_to(shared, *remote, proxy, until).await {
            Ok(connected) => return Ok(connected),
            Err(error) => last = Some(error),
        }
        // To say goodbye takes its time, too.
        if Instant::now() >= end {
            break;
        }
    }
    Err(last.unwrap_or_else(|| resolve_error(io::ErrorKind::NotFound.into())))
}

/// When the first of so many must have ended for each to have as much of the time until `end`.
pub(super) fn share(end: Instant, shares: usize) -> Instant {
    let now = Instant::now();
    let shares = u32::try_from(shares.max(1)).unwrap_or(u32::MAX);
    now + end.saturating_duration_since(now) / shares
}

/// Which of the addresses that a name resolves to are tried.
fn choose(shared: &Shared, address: &str, resolved: &[SocketAddr]) -> Vec<SocketAddr> {
    let is_usable = |remote: &SocketAddr| can_be_dialled(*remote);
    let mut remotes: Vec<_> = resolved.iter().copied().filter(is_usable).collect();
    if remotes.len() > ADDRESSES_MAX {
        if shared.pool.is_news(address, What::Resolve, String::new()) {
            tracing::warn!(
                address,
                addresses = remotes.len(),
                "a name has more addresses than are tried in one attempt; {ADDRESSES_MAX} are drawn each time"
            );
        }
        // Those at the end of a resolver's fixed order must have their turn, too.
        remotes.shuffle(&mut shared.random.generator());
        remotes.truncate(ADDRESSES_MAX);
    }
    remotes
}

async fn connect_to(
    shared: &Arc<Shared>,
    remote: SocketAddr,
    proxy: Option<&NodeName>,
    until: Instant,
) -> Result<ProxyConnection, ConnectError> {
    let common = &shared.config.common;
    let parts = EndpointParts {
        network: &*shared.network,
        random: &shared.random,
        clock: &shared.clock,
        credentials: &common.credentials,
        config: &common.quic,
        keys: &shared.keys,
    };
    let BoundEndpoint {
        endpoint,
        receive_buffer_bytes,
    } = endpoint::dialling(&parts, remote)?;
    shared
        .node_metrics
        .udp_rcvbuf_bytes
        .set(i64::try_from(receive_buffer_bytes).unwrap_or(i64::MAX));
    let client = match &shared.realm {
        Realm::Own => endpoint::agent_client_config(&parts, proxy)?,
        Realm::Other(other) => {
            let authority = other.authority().ok_or_else(|| ConnectError::NotTrusted {
                cluster: other.cluster.clone(),
            })?;
            endpoint::tunnel_client_config(&parts, &authority, proxy)?
        }
    };
    let server_name = shared.cluster().proxy_dns_name();
    let timeout = common.quic.handshake_timeout;
    let connecting = endpoint
        .connect_with(client, remote, &server_name)
        .map_err(|error| ConnectError::Protocol {
            remote,
            error: error.to_string(),
        })?;
    let is_greeting = AtomicBool::new(false);
    let attempt = async {
        let connection = connecting
            .await
            .map_err(|error| ConnectError::of(remote, timeout, error))?;
        is_greeting.store(true, Ordering::Relaxed);
        match greet(shared, &connection).await {
            Ok((control_send, control_recv, reader, hello)) => {
                Ok((connection, control_send, control_recv, reader, hello))
            }
            // A proxy judges the certificate after the handshake is over for this side: the
            // connection's own end says more than the stream's.
            Err(error) => Err(match connection.close_reason() {
                Some(reason) => ConnectError::of(remote, timeout, reason),
                None => match error {
                    GreetError::Refused(error) => {
                        connection.close(CloseCode::Done.code().into(), b"refused");
                        ConnectError::Refused { remote, error }
                    }
                    GreetError::Protocol(error) => {
                        connection.close(CloseCode::ProtocolError.code().into(), error.as_bytes());
                        ConnectError::Protocol { remote, error }
                    }
                },
            }),
        }
    };
    let attempt = tokio::time::timeout_at(until, attempt)
        .await
        .unwrap_or_else(|_| {
            Err(if is_greeting.load(Ordering::Relaxed) {
                ConnectError::Silent { remote, timeout }
            } else {
                ConnectError::Timeout { remote, timeout }
            })
        });
    match attempt {
        Ok((connection, control_send, control_recv, reader, hello)) => {
            let streams = common.quic.streams_max;
            let stream_limit = StreamLimit::admit(&connection, &common.quic, streams);
            Ok(ProxyConnection {
                endpoint,
                stream_limit,
                connection,
                control_send,
                control_recv,
                reader,
                hello,
            })
        }
        Err(error) => {
            endpoint.close(CloseCode::Done.code().into(), b"");
            // Says goodbye; without it the proxy would keep the half-open connection for a while.
            let _ = tokio::time::timeout(super::CLOSE_GRACE, endpoint.wait_idle()).await;
            Err(error)
        }
    }
}

type Greeted = (SendStream, RecvStream, FrameReader, ProxyHello);

/// There was no hello.
enum GreetError {
    /// The proxy wants none of this agent, and says why.
    Refused(String),
    /// It said something else.
    Protocol(String),
}

async fn greet(shared: &Shared, connection: &Connection) -> Result<Greeted, GreetError> {
    let broken = |error: &dyn std::fmt::Display| GreetError::Protocol(error.to_string());
    let (mut send, mut recv) = connection.open_bi().await.map_err(|error| broken(&error))?;
    let hello = hello_bytes(shared).map_err(|error| broken(&error))?;
    send.write_all(&hello)
        .await
        .map_err(|error| broken(&error))?;
    let mut reader = FrameReader::default();
    let answer = reader.next::<Answer>(&mut recv).await;
    match answer.map_err(|error| broken(&error))? {
        Answer::Opened(_) => {}
        Answer::Refused(Refused {
            reason, message, ..
        }) => return Err(GreetError::Refused(format!("{reason}: {message}"))),
    }
    let frame = reader.next::<ProxyFrame>(&mut recv).await;
    let ProxyFrame::Hello(hello) = frame.map_err(|error| broken(&error))? else {
        return Err(broken(&"its first message is not a hello"));
    };
    // What the hello claims must be what the certificate proves.
    let identity = crate::quic::identity::identity(connection).map_err(|error| broken(&error))?;
    if identity.name != hello.name || identity.cluster != hello.cluster {
        return Err(GreetError::Protocol(format!(
            "it calls itself {} of {}, but its certificate says {identity}",
            hello.name, hello.cluster
        )));
    }
    reader.converse();
    Ok((send, recv, reader, hello))
}

fn hello_bytes(shared: &Shared) -> Result<Vec<u8>, WireError> {
    let services = shared
        .config
        .services
        .iter()
        .map(|service| Service {
            name: service.name.clone(),
            protocol: service.protocol,
            ext: Vec::new(),
        })
        .collect();
    let mut bytes = shared
        .hooks
        .encode(&Open::Control(OpenControl::default()))?;
    bytes.extend(shared.hooks.encode(&AgentFrame::Hello(AgentHello {
        instance: shared.instance,
        version: env!("CARGO_PKG_VERSION").into(),
        services,
        ext: Vec::new(),
    }))?);
    Ok(bytes)
}
