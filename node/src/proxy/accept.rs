//! Takes QUIC connections: limits their rate and number, and finds out who they are.

use std::sync::Arc;
use std::time::Duration;

use governor::{Quota, RateLimiter};
use mesh_proto::close::CloseCode;
use quinn::{Connection, ConnectionError, Incoming};
use tokio::time::Instant;

use super::control::Who;
use super::metrics::HandshakeRefusal;
use super::{Phase, Shared, control, peers, users};
use crate::quic::identity::{self, Purpose};
use crate::tasks::Tasks;

/// TLS alerts (RFC 8446, section 6), which QUIC carries as 0x100 + alert (RFC 9001, section 4.8).
mod alert {
    pub(super) const BAD_CERTIFICATE: u64 = 0x100 + 42;
    pub(super) const UNSUPPORTED_CERTIFICATE: u64 = 0x100 + 43;
    pub(super) const CERTIFICATE_EXPIRED: u64 = 0x100 + 45;
    pub(super) const CERTIFICATE_UNKNOWN: u64 = 0x100 + 46;
    pub(super) const UNKNOWN_CA: u64 = 0x100 + 48;
    pub(super) const ACCESS_DENIED: u64 = 0x100 + 49;
    pub(super) const DECRYPT_ERROR: u64 = 0x100 + 51;
    pub(super) const CERTIFICATE_REQUIRED: u64 = 0x100 + 116;
    pub(super) const NO_APPLICATION_PROTOCOL: u64 = 0x100 + 120;
}

/// tokio's clock for the rate limiter, so that it runs in virtual time too.
#[derive(Debug, Clone, Default)]
struct TokioClock;

impl governor::clock::Clock for TokioClock {
    type Instant = std::time::Instant;

    fn now(&self) -> Self::Instant {
        Instant::now().into_std()
    }
}

type HandshakeLimiter = RateLimiter<
    governor::state::NotKeyed,
    governor::state::InMemoryState,
    TokioClock,
    governor::middleware::NoOpMiddleware<std::time::Instant>,
>;

/// The listener's limits, one for all shards.
#[derive(Debug)]
pub(super) struct Admission {
    rate: HandshakeLimiter,
    connections_max: usize,
    live: Arc<tokio::sync::Semaphore>,
}

impl Admission {
    pub(super) fn new(handshakes_per_second: u32, connections_max: u32) -> Self {
        let per_second =
            std::num::NonZeroU32::new(handshakes_per_second).unwrap_or(std::num::NonZeroU32::MIN);
        let connections_max = connections_max as usize;
        Self {
            rate: RateLimiter::direct_with_clock(Quota::per_second(per_second), TokioClock),
            connections_max,
            live: Arc::new(tokio::sync::Semaphore::new(connections_max)),
        }
    }
}

/// Accepts connections of one shard until its endpoint closes; then waits for their tasks.
pub(super) async fn run(shared: Arc<Shared>, endpoint: quinn::Endpoint) {
    let mut tasks = Tasks::new("quic connection");
    loop {
        let incoming = tokio::select! {
            biased;
            incoming = endpoint.accept() => match incoming {
                Some(incoming) => incoming,
                None => break,
            },
            () = tasks.reap() => continue,
        };
        let admission = &shared.admission;
        if !incoming.remote_address_validated() && admission.rate.check().is_err() {
            shared.metrics.handshakes_retried.inc();
            // Fails only for an address that is validated already.
            let _ = incoming.retry();
            continue;
        }
        let permit = match admission.live.clone().try_acquire_owned() {
            Ok(permit) if *shared.phase.borrow() != Phase::Draining => permit,
            Ok(_) => {
                shared.metrics.refused(HandshakeRefusal::Overloaded);
                incoming.refuse();
                continue;
            }
            Err(_) => {
                shared.metrics.refused(HandshakeRefusal::Overloaded);
                tracing::warn!(
                    remote = %incoming.remote_address(), connections_max = admission.connections_max,
                    "refused a connection: quic.connections_max is reached"
                );
                incoming.refuse();
                continue;
            }
        };
        // Never awaited here: one slow handshake must not hold up the others.
        let shared = shared.clone();
        tasks.spawn(async move {
            serve(shared, incoming).await;
            drop(permit);
        });
    }
    tasks.join_all().await;
}

async fn serve(shared: Arc<Shared>, incoming: Incoming) {
    let remote = incoming.remote_address();
    let timeout = shared.config.common.quic.handshake_timeout;
    let (connection, purpose) = match handshake(incoming, timeout).await {
        Ok(connected) => connected,
        Err(Failure { refusal, why }) => {
            shared.metrics.refused(refusal);
            match refusal {
                // Somebody holds a certificate that he believes to be good: an operator must act.
                HandshakeRefusal::Expired
                | HandshakeRefusal::UnknownAuthority
                | HandshakeRefusal::BadCertificate
                | HandshakeRefusal::WrongKind => tracing::warn!(
                    %remote, reason = refusal.as_str(), why,
                    "refused a connection: check that node's certificate with `node certs show`"
                ),
                // Anybody on the network can cause these.
                HandshakeRefusal::WrongProtocol
                | HandshakeRefusal::NoCertificate
                | HandshakeRefusal::Timeout
                | HandshakeRefusal::Protocol
                | HandshakeRefusal::Abandoned
                | HandshakeRefusal::Duplicate
                | HandshakeRefusal::Overloaded => {
                    tracing::info!(%remote, reason = refusal.as_str(), why, "refused a connection");
                }
            }
            return;
        }
    };
    let own = &shared.config.common.cluster;
    match identity::client(&connection, purpose, own) {
        Ok(identity) => match purpose {
            Purpose::Agent => {
                let who = if identity.cluster == *own {
                    Who {
                        agent: identity.name.into(),
                        proxy: None,
                    }
                } else {
                    Who {
                        agent: identity.cluster.into(),
                        proxy: Some(identity.name),
                    }
                };
                control::serve(shared, connection, who).await;
            }
            Purpose::User => users::serve(shared, connection, identity.name).await,
            Purpose::Peer => peers::serve(shared, connection).await,
        },
        Err(error) => {
            shared.metrics.refused(HandshakeRefusal::WrongKind);
            tracing::warn!(
                %remote, reason = HandshakeRefusal::WrongKind.as_str(), %error,
                "refused a connection: check that node's certificate with `node certs show`"
            );
            connection.close(
                CloseCode::WrongKind.code().into(),
                error.to_string().as_bytes(),
            );
        }
    }
}

struct Failure {
    refusal: HandshakeRefusal,
    why: String,
}

async fn handshake(
    incoming: Incoming,
    timeout: Duration,
) -> Result<(Connection, Purpose), Failure> {
    let protocol_failure = |error: ConnectionError| Failure {
        refusal: classify(&error),
        why: error.to_string(),
    };
    let connecting = incoming.accept().map_err(protocol_failure)?;
    // Not into_0rtt: before the client's Finished, nobody is authenticated and nothing may be sent.
    let connection = tokio::time::timeout(timeout, connecting)
        .await
        .map_err(|_| Failure {
            refusal: HandshakeRefusal::Timeout,
            why: format!("the handshake took longer than quic.handshake_timeout ({timeout:?})"),
        })?
        .map_err(protocol_failure)?;
    match identity::purpose(&connection) {
        Ok(purpose) => Ok((connection, purpose)),
        Err(error) => {
            connection.close(
                CloseCode::WrongKind.code().into(),
                error.to_string().as_bytes(),
            );
            Err(Failure {
                refusal: HandshakeRefusal::WrongProtocol,
                why: error.to_string(),
            })
        }
    }
}

fn classify(error: &ConnectionError) -> HandshakeRefusal {
    match error {
        ConnectionError::TransportError(error) => match u64::from(error.code) {
            alert::NO_APPLICATION_PROTOCOL => HandshakeRefusal::WrongProtocol,
            alert::CERTIFICATE_REQUIRED => HandshakeRefusal::NoCertificate,
            alert::CERTIFICATE_EXPIRED => HandshakeRefusal::Expired,
            alert::UNKNOWN_CA => HandshakeRefusal::UnknownAuthority,
            // A usage that it lacks is "unsupported"; a key that is not the certificate's shows as
            // a signature that cannot be "decrypted".
            alert::BAD_CERTIFICATE
            | alert::UNSUPPORTED_CERTIFICATE
            | alert::CERTIFICATE_UNKNOWN
            | alert::ACCESS_DENIED
            | alert::DECRYPT_ERROR => HandshakeRefusal::BadCertificate,
            _ => HandshakeRefusal::Protocol,
        },
        ConnectionError::TimedOut => HandshakeRefusal::Timeout,
        ConnectionError::ConnectionClosed(_)
        | ConnectionError::ApplicationClosed(_)
        | ConnectionError::Reset => HandshakeRefusal::Abandoned,
        ConnectionError::VersionMismatch
        | ConnectionError::LocallyClosed
        | ConnectionError::CidsExhausted => HandshakeRefusal::Protocol,
    }
}
