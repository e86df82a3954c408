//! One attempt at one address: from a fresh UDP socket to a proxy that accepts this user.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use certs::{Identity, Kind};
use mesh_proto::close::CloseCode;
use mesh_proto::refusal::Reason;
use mesh_proto::wire::{Answer, Open, OpenControl, Refused};
use quinn::{Connection, ConnectionError};

use super::held::{Control, Held};
use super::{CLOSE_GRACE, Shared};
use crate::quic::endpoint::{self, EndpointError};
use crate::quic::frames::{self, FrameReader};
use crate::quic::{identity, transport};

/// Streams that a proxy may open towards a user; it has no reason to.
const INCOMING_STREAMS_MAX: u32 = 1;

/// The TLS alert no_application_protocol (RFC 8446, section 6), as QUIC carries it (RFC 9001,
/// section 4.8).
const NO_APPLICATION_PROTOCOL: u64 = 0x100 + 120;

/// An attempt failed.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The name has no address.
    #[error(
        "`{address}` cannot be resolved ({error}); check how it is spelled, and the resolver of this host"
    )]
    Resolve {
        /// The name with its port.
        address: String,
        /// Why.
        error: io::Error,
    },
    /// Nothing came back.
    #[error(
        "nothing answered within {timeout:?}; check that a proxy listens there, and that UDP reaches it"
    )]
    Timeout {
        /// How long it was waited for.
        timeout: Duration,
    },
    /// One side does not trust the other.
    #[error(
        "{identity} and whoever answered do not trust each other ({error}); check both certificates with `node certs show`: the same cluster, the same authority, not expired"
    )]
    Untrusted {
        /// Who the user is.
        identity: Identity,
        /// What was said.
        error: String,
    },
    /// Whoever answers there serves no users.
    #[error(
        "what answers there serves no users (mesh-user/1); is it a proxy of this mesh, and recent enough?"
    )]
    ServesNoUsers,
    /// The proxy takes no connection now.
    #[error("the proxy takes no connection now ({0}); it is full or about to leave")]
    Refused(String),
    /// The connection failed.
    #[error("the connection failed: {0}")]
    Connection(ConnectionError),
    /// The proxy did what the protocol does not allow.
    #[error("the proxy broke the protocol: {0}")]
    Protocol(String),
    /// There is no socket to dial from.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
}

/// What kind of failure an attempt ended with: the same from one attempt to the next for as long as
/// the cause is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConnectErrorKind {
    /// The name has no address.
    ResolveFailed,
    /// Nothing answered.
    Timeout,
    /// Wrong certificates, on either side. Trying again does not help.
    Untrusted,
    /// Full or about to leave.
    Refused,
    /// Anything else.
    Failed,
}

impl ConnectErrorKind {
    /// Its name for programs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ResolveFailed => "resolve_failed",
            Self::Timeout => "timeout",
            Self::Untrusted => "untrusted",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

impl ConnectError {
    /// What kind of failure it is.
    #[must_use]
    pub fn kind(&self) -> ConnectErrorKind {
        match self {
            Self::Resolve { .. } => ConnectErrorKind::ResolveFailed,
            Self::Timeout { .. } => ConnectErrorKind::Timeout,
            Self::Untrusted { .. } | Self::ServesNoUsers => ConnectErrorKind::Untrusted,
            Self::Refused(_) => ConnectErrorKind::Refused,
            Self::Connection(_) | Self::Protocol(_) | Self::Endpoint(_) => ConnectErrorKind::Failed,
        }
    }

    fn of(shared: &Shared, error: ConnectionError) -> Self {
        match &error {
            ConnectionError::TimedOut => Self::Timeout {
                timeout: shared.config.quic.handshake_timeout,
            },
            ConnectionError::ConnectionClosed(close)
                if u64::from(close.error_code) == NO_APPLICATION_PROTOCOL =>
            {
                Self::ServesNoUsers
            }
            ended if identity::is_untrusted(ended) => Self::Untrusted {
                identity: shared.config.credentials.identity().clone(),
                error: error.to_string(),
            },
            ConnectionError::ConnectionClosed(close) => {
                if close.error_code == quinn::TransportErrorCode::CONNECTION_REFUSED {
                    Self::Refused(error.to_string())
                } else {
                    Self::Connection(error)
                }
            }
            ConnectionError::ApplicationClosed(close) => {
                let code = u32::try_from(close.error_code.into_inner()).ok();
                match code.and_then(CloseCode::from_code) {
                    Some(CloseCode::Draining | CloseCode::Overloaded) => {
                        Self::Refused(error.to_string())
                    }
                    Some(
                        CloseCode::Done
                        | CloseCode::ProtocolError
                        | CloseCode::HandshakeTimeout
                        | CloseCode::WrongKind
                        | CloseCode::Untrusted
                        | CloseCode::Left
                        | CloseCode::Superseded
                        | CloseCode::Internal,
                    )
                    | None => Self::Connection(error),
                }
            }
            ConnectionError::VersionMismatch
            | ConnectionError::TransportError(_)
            | ConnectionError::Reset
            | ConnectionError::LocallyClosed
            | ConnectionError::CidsExhausted => Self::Connection(error),
        }
    }
}

/// Connects to `remote`; `id` tells this connection from all others of the client.
pub(super) async fn attempt(
    shared: &Arc<Shared>,
    remote: SocketAddr,
    id: u64,
) -> Result<Held, ConnectError> {
    let config = &shared.config;
    let parts = shared.endpoint_parts();
    let client = endpoint::user_client_config(&parts)?;
    let endpoint = endpoint::dialling(&parts, remote)?.endpoint;
    let server_name = config.credentials.identity().cluster.proxy_dns_name();
    let connecting = endpoint
        .connect_with(client, remote, &server_name)
        .map_err(|error| ConnectError::Protocol(error.to_string()))?;
    let accepted = async {
        let connection = connecting
            .await
            .map_err(|error| ConnectError::of(shared, error))?;
        match accepted(&connection, config.takes_leaving).await {
            Ok(control) => Ok((connection, control)),
            // The proxy judges our certificate after the handshake is over for this side: the
            // connection's own end says more than the stream's.
            Err(error) => Err(match connection.close_reason() {
                Some(reason) => ConnectError::of(shared, reason),
                None => error,
            }),
        }
    };
    let timeout = config.quic.handshake_timeout;
    let outcome = tokio::time::timeout(timeout, accepted)
        .await
        .unwrap_or(Err(ConnectError::Timeout { timeout }))
        .and_then(|(connection, control)| {
            let proxy = identity::identity(&connection)
                .map_err(|error| ConnectError::Protocol(error.to_string()))?;
            // The verifier has seen to it; nothing below must depend on that.
            if proxy.kind != Kind::Proxy {
                return Err(ConnectError::Protocol(format!("it is {proxy}")));
            }
            Ok((connection, control, proxy))
        });
    match outcome {
        Ok((connection, control, proxy)) => {
            transport::admit(&connection, &config.quic, INCOMING_STREAMS_MAX);
            Ok(Held::new(
                id,
                (endpoint, connection),
                (proxy.name, remote),
                control,
            ))
        }
        Err(error) => {
            endpoint.close(CloseCode::Done.code().into(), b"");
            // Says goodbye; without it the proxy would keep the half-open connection for a while.
            let _ = tokio::time::timeout(CLOSE_GRACE, endpoint.wait_idle()).await;
            Err(error)
        }
    }
}

/// Waits for a sign that the proxy has accepted this user's certificate. There is no hello for
/// users; a proxy answers a control stream all the same, an older one with the refusal that it does
/// not support it, and it answers nobody whom it did not accept.
async fn accepted(connection: &Connection, takes_leaving: bool) -> Result<Control, ConnectError> {
    let protocol = |error: &dyn std::fmt::Display| ConnectError::Protocol(error.to_string());
    let (mut send, mut recv) = connection
        .open_bi()
        .await
        .map_err(|error| protocol(&error))?;
    let open =
        frames::encode(&Open::Control(OpenControl::default())).map_err(|error| protocol(&error))?;
    // A refusal may overtake the rest of what is sent: its answer is what counts.
    let _ = send.write_all(&open).await;
    let mut reader = FrameReader::default();
    let answer = reader
        .next::<Answer>(&mut recv)
        .await
        .map_err(|error| protocol(&error))?;
    match answer {
        Answer::Refused(Refused {
            reason: Reason::Draining,
            ..
        }) if takes_leaving => Ok(Control::new(send, recv, reader, false)),
        Answer::Refused(Refused {
            reason: reason @ (Reason::Draining | Reason::Overloaded),
            message,
            ..
        }) => Err(ConnectError::Refused(format!("{reason}: {message}"))),
        Answer::Opened(_) => Ok(Control::new(send, recv, reader, true)),
        Answer::Refused(_) => Ok(Control::new(send, recv, reader, false)),
    }
}
