//! TLS between users and an ingress.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use certs::{Credentials, Identity, Kind};
use mesh_proto::name::Cluster;
use mesh_proto::principal::Principal;
use rustls::pki_types::CertificateDer;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::time_provider::TimeProvider;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::clock::WallClock;
use crate::config::{IngressAuth, IngressConfig, IngressKind};
use crate::net::{BoxFuture, Socket};

/// From the accepted connection to the end of the handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// What an `http` ingress speaks over TLS, the preferred first.
const HTTP_ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Takes connections over TLS.
#[derive(Clone)]
pub(super) struct Acceptor {
    acceptor: TlsAcceptor,
    /// Who of those with a certificate is a user of this cluster.
    users: Option<Arc<Users>>,
}

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acceptor")
            .field("client_ca", &self.users.is_some())
            .finish_non_exhaustive()
    }
}

/// Makes the acceptor of an ingress; `None` for one without TLS. `credentials` are the proxy's.
///
/// # Errors
/// Why certificate, key or authorities cannot be used.
pub(super) fn acceptor(
    config: &IngressConfig,
    credentials: &Credentials,
    clock: &WallClock,
) -> Result<Option<Acceptor>, String> {
    let Some(tls) = &config.tls else {
        return Ok(None);
    };
    let time = clock.provider();
    let builder = ServerConfig::builder_with_details(certs::provider(), time.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let (builder, users) = match &config.auth {
        IngressAuth::ClientCa(authorities) => {
            let verifier = client_verifier(authorities)?;
            let users = Users {
                cluster: credentials.identity().cluster.clone(),
                verifier: certs::client_verifier(credentials).map_err(|error| error.to_string())?,
                time,
            };
            (
                builder.with_client_cert_verifier(verifier),
                Some(Arc::new(users)),
            )
        }
        IngressAuth::Open | IngressAuth::Tokens(_) => (builder.with_no_client_auth(), None),
    };
    let mut server = builder
        .with_single_cert(tls.chain.clone(), tls.key.clone_key())
        .map_err(|error| format!("the certificate and the key cannot be used: {error}"))?;
    match config.kind {
        IngressKind::Http { .. } => {
            server.alpn_protocols = HTTP_ALPN.iter().map(|protocol| protocol.to_vec()).collect();
        }
        IngressKind::Tcp { .. } => {}
    }
    // Early data could be replayed.
    server.max_early_data_size = 0;
    if users.is_some() {
        // A resumed session brings back the cached certificate and asks no verifier.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
    }
    Ok(Some(Acceptor {
        acceptor: TlsAcceptor::from(Arc::new(server)),
        users,
    }))
}

/// Asks for a certificate of one of these authorities.
fn client_verifier(
    authorities: &[CertificateDer<'static>],
) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority.clone()).map_err(|error| {
            format!("auth.client_ca has a certificate that cannot be used: {error}")
        })?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), certs::provider())
        .build()
        .map_err(|error| format!("auth.client_ca cannot be used: {error}"))
}

impl Acceptor {
    /// Does the handshake, for at most 10 s. The principal is there when the client has shown a
    /// certificate of a user of this proxy's own cluster.
    ///
    /// # Errors
    /// When the handshake fails or takes too long.
    pub(super) async fn accept(
        &self,
        socket: Box<dyn Socket>,
    ) -> Result<(Box<dyn Socket>, Option<Principal>), io::Error> {
        // The alert that says why is to arrive.
        socket.set_reset_on_close(false);
        let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, self.acceptor.accept(socket));
        let stream = handshake.await.map_err(|_| {
            let why = format!("the TLS handshake was not complete within {HANDSHAKE_TIMEOUT:?}");
            io::Error::new(io::ErrorKind::TimedOut, why)
        })??;
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let principal = self.users.as_ref().and_then(|users| users.principal(chain));
        Ok((Box::new(TlsSocket(stream)), principal))
    }
}

/// Tells the users of this cluster from others to whom `client_ca` has issued a certificate.
struct Users {
    cluster: Cluster,
    /// The cluster's own authority: another one may write any name in a certificate.
    verifier: Arc<dyn ClientCertVerifier>,
    time: Arc<dyn TimeProvider>,
}

impl Users {
    fn principal(&self, chain: &[CertificateDer<'_>]) -> Option<Principal> {
        let (leaf, intermediates) = chain.split_first()?;
        let identity = Identity::from_certificate(leaf).ok()?;
        if identity.kind != Kind::User || identity.cluster != self.cluster {
            return None;
        }
        let now = self.time.current_time()?;
        self.verifier
            .verify_client_cert(leaf, intermediates, now)
            .ok()?;
        Some(Principal::User(identity.name))
    }
}

/// A user's socket with TLS around it.
#[derive(Debug)]
struct TlsSocket(TlsStream<Box<dyn Socket>>);

impl Socket for TlsSocket {
    fn set_reset_on_close(&self, reset: bool) {
        self.0.get_ref().0.set_reset_on_close(reset);
    }

    fn peer_addr(&self) -> Option<SocketAddr> {
        self.0.get_ref().0.peer_addr()
    }

    fn broken(&self) -> BoxFuture<'static, ()> {
        self.0.get_ref().0.broken()
    }

    fn rehome(self: Box<Self>) -> io::Result<Box<dyn Socket>> {
        // The session cannot be parted from its socket, which serves any runtime from where it is.
        Ok(self)
    }
}

impl AsyncRead for TlsSocket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_read(cx, buf)
    }
}

impl AsyncWrite for TlsSocket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_shutdown(cx)
    }
}
