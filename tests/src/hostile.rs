//! Peers that misbehave: clients and servers with any certificate or none, that check nothing.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context as _;
use certs::Credentials;
use node::net::{Network, SystemNetwork};
use quinn::{Connection, ConnectionError, Endpoint, EndpointConfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::{DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::task::JoinSet;

use crate::Result;
use crate::probe::PATIENCE;
use crate::quic::client_config;

/// An attempt to connect that was refused.
pub struct Refused {
    /// How the connection ended here.
    pub error: ConnectionError,
    /// This side's address, as the other side logs it.
    pub local: SocketAddr,
    _endpoint: Endpoint,
}

/// Connects and waits for the other side to refuse: a proxy judges a client's certificate when the
/// handshake is over for the client.
///
/// # Errors
/// When it does not refuse.
pub async fn refused(
    remote: SocketAddr,
    tls: rustls::ClientConfig,
    server_name: &str,
) -> Result<Refused> {
    let endpoint = Endpoint::client("127.0.0.1:0".parse()?)?;
    let local = endpoint.local_addr()?;
    let connecting = endpoint.connect_with(client_config(tls)?, remote, server_name)?;
    let refusal = async {
        match connecting.await {
            Ok(connection) => connection.closed().await,
            Err(error) => error,
        }
    };
    let error = tokio::time::timeout(PATIENCE, refusal)
        .await
        .context("nobody refused")?;
    Ok(Refused {
        error,
        local,
        _endpoint: endpoint,
    })
}

/// The TLS of a client that trusts every server and would take every shortcut that it is offered:
/// any identity or none, any protocols.
///
/// # Errors
/// Never, but for a defect of the harness.
pub fn careless_tls(
    identity: Option<Arc<dyn ResolvesClientCert>>,
    alpn: &[&[u8]],
) -> Result<(rustls::ClientConfig, Arc<Careless>)> {
    let verifier = Arc::new(Careless::default());
    let builder = rustls::ClientConfig::builder_with_provider(certs::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier.clone());
    let mut tls = match identity {
        Some(identity) => builder.with_client_cert_resolver(identity),
        None => builder.with_no_client_auth(),
    };
    tls.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    tls.resumption = Resumption::in_memory_sessions(16);
    tls.enable_early_data = true;
    Ok((tls, verifier))
}

/// The identity in credentials, for [`careless_tls`].
///
/// # Errors
/// Never, but for a defect of the harness.
pub fn identity(credentials: &Credentials) -> Result<Arc<dyn ResolvesClientCert>> {
    let tls = certs::client_config(credentials, b"", None, certs::system_time())?;
    Ok(tls.client_auth_cert_resolver)
}

/// Accepts every server and counts how often it was asked: a resumed session does not ask.
#[derive(Debug, Default)]
pub struct Careless(AtomicUsize);

impl Careless {
    /// Full handshakes so far.
    #[must_use]
    pub fn asked(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl ServerCertVerifier for Careless {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        certs::provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// A server that stands where a proxy should; dropping it ends it.
pub struct Server {
    /// Where it listens.
    pub addr: SocketAddr,
    accepted: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Server {
    /// Starts a server that runs `serve` for each connection whose handshake succeeds.
    ///
    /// # Errors
    /// When the TLS configuration does not do for QUIC.
    pub fn start<F, Fut>(tls: rustls::ServerConfig, serve: F) -> Result<Self>
    where
        F: Fn(Connection) -> Fut + Send + 'static,
        Fut: Future<Output = Result> + Send + 'static,
    {
        Self::start_on(&SystemNetwork, "127.0.0.1:0".parse()?, tls, serve)
    }

    /// As [`Server::start`], at an address of any network.
    ///
    /// # Errors
    /// When the TLS configuration does not do for QUIC, or the address is in use.
    pub fn start_on<F, Fut>(
        network: &dyn Network,
        address: SocketAddr,
        tls: rustls::ServerConfig,
        serve: F,
    ) -> Result<Self>
    where
        F: Fn(Connection) -> Fut + Send + 'static,
        Fut: Future<Output = Result> + Send + 'static,
    {
        let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(tls)?;
        let config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        let endpoint = Endpoint::new_with_abstract_socket(
            EndpointConfig::default(),
            Some(config),
            network.bind_udp(address, false)?.socket,
            network.quic_runtime(),
        )?;
        let addr = endpoint.local_addr()?;
        let accepted = Arc::new(AtomicUsize::new(0));
        let counter = accepted.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Some(incoming) = endpoint.accept().await {
                match incoming.await {
                    Ok(connection) => {
                        counter.fetch_add(1, Ordering::SeqCst);
                        // What it comes to is for the test to see on the other side.
                        let served = serve(connection);
                        connections.spawn(async move { drop(served.await) });
                    }
                    // The other side has refused this one.
                    Err(_) => while connections.try_join_next().is_some() {},
                }
            }
        });
        Ok(Self {
            addr,
            accepted,
            _tasks: tasks,
        })
    }

    /// Handshakes that succeeded on this side so far.
    #[must_use]
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}
