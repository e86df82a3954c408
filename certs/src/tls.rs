//! The mesh's TLS configurations, one for each side.
//!
//! What both have in common, and why: TLS 1.3 alone; the crypto provider is named, never the
//! process's default; certificates on both sides. No resumption, since a resumed session brings
//! back the cached certificate without asking the verifier; so no tickets and no session store. No
//! early data, which could be replayed and comes before anybody is known.

use std::sync::Arc;

use mesh_proto::name::{Cluster, NodeName};
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, VerifierBuilderError};
use rustls::sign::SingleCertAndKey;
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::{DnsName, ServerName};

use crate::credentials::Credentials;
use crate::foreign::{ForeignAuthority, TrustedClusters};
use crate::verifier::{ClientVerifier, ProxyVerifier};

/// The configuration of a proxy's listening side, for all of its ALPN protocols. It accepts any
/// identity of its own cluster; whether the kind fits the negotiated protocol is for the caller to
/// check ([`crate::Identity::from_certificate`] on the peer's leaf) before anything is sent.
///
/// # Errors
/// [`TlsError`]: the credentials hold no authority that could verify.
pub fn proxy_server_config(
    credentials: &Credentials,
    alpn: &[&[u8]],
    time: Arc<dyn TimeProvider>,
) -> Result<ServerConfig, TlsError> {
    proxy_server_config_trusting(credentials, Arc::new(()), alpn, time)
}

/// The same for a proxy that other clusters connect to as well: of those that `trusted` knows it
/// accepts proxies too, each judged by the authority of its own cluster alone. What such a proxy may
/// speak is, again, for the caller to check.
///
/// # Errors
/// [`TlsError`]: the credentials hold no authority that could verify.
pub fn proxy_server_config_trusting(
    credentials: &Credentials,
    trusted: Arc<dyn TrustedClusters>,
    alpn: &[&[u8]],
    time: Arc<dyn TimeProvider>,
) -> Result<ServerConfig, TlsError> {
    let provider = provider();
    let verifier = client_judge(credentials, trusted, &provider)?;
    let mut config = ServerConfig::builder_with_details(provider, time)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(resolver(credentials));
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.send_half_rtt_data = false;
    Ok(config)
}

/// The judgement of [`proxy_server_config`] by itself, for a listener that lets in others too and
/// is to tell who of them has an identity of this cluster.
///
/// # Errors
/// [`TlsError`]: the credentials hold no authority that could verify.
pub fn client_verifier(credentials: &Credentials) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let verifier = client_judge(credentials, Arc::new(()), &provider())?;
    Ok(Arc::new(verifier))
}

fn client_judge(
    credentials: &Credentials,
    trusted: Arc<dyn TrustedClusters>,
    provider: &Arc<CryptoProvider>,
) -> Result<ClientVerifier, TlsError> {
    let own = credentials.identity().cluster.clone();
    let roots = Arc::clone(credentials.authorities());
    ClientVerifier::new(own, roots, trusted, provider)
}

/// The configuration with which an agent, a user or a proxy dials a proxy of its own cluster. With
/// `proxy`, a directed dial, the server must be that one. The server name to dial with is
/// [`proxy_server_name`]; any other is refused.
///
/// # Errors
/// [`TlsError`]: the credentials hold no authority that could verify.
pub fn client_config(
    credentials: &Credentials,
    alpn: &[u8],
    proxy: Option<&NodeName>,
    time: Arc<dyn TimeProvider>,
) -> Result<ClientConfig, TlsError> {
    let cluster = credentials.identity().cluster.clone();
    let roots = Arc::clone(credentials.authorities());
    dialling(credentials, cluster, roots, alpn, proxy, time)
}

/// The configuration with which a proxy dials a proxy of another cluster, and nobody else: who is
/// there is judged by that cluster's authority alone. The server name is that cluster's.
///
/// # Errors
/// [`TlsError`]: the authority cannot verify.
pub fn foreign_client_config(
    credentials: &Credentials,
    authority: &ForeignAuthority,
    alpn: &[u8],
    proxy: Option<&NodeName>,
    time: Arc<dyn TimeProvider>,
) -> Result<ClientConfig, TlsError> {
    let cluster = authority.cluster().clone();
    let roots = Arc::clone(authority.roots());
    dialling(credentials, cluster, roots, alpn, proxy, time)
}

fn dialling(
    credentials: &Credentials,
    cluster: Cluster,
    roots: Arc<RootCertStore>,
    alpn: &[u8],
    proxy: Option<&NodeName>,
    time: Arc<dyn TimeProvider>,
) -> Result<ClientConfig, TlsError> {
    let provider = provider();
    let verifier = ProxyVerifier::new(cluster, proxy.cloned(), roots, &provider)?;
    let mut config = ClientConfig::builder_with_details(provider, time)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        // "Dangerous" is rustls's word for any verifier of one's own; this one asks more, not less.
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(resolver(credentials));
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Ok(config)
}

/// The DNS name that every proxy of a cluster bears: `proxy.<cluster>`.
#[must_use]
pub fn proxy_dns_name(cluster: &Cluster) -> String {
    format!("proxy.{cluster}")
}

/// The server name with which a cluster's proxies are dialled: `proxy.<cluster>`.
#[must_use]
#[expect(
    clippy::missing_panics_doc,
    reason = "a cluster's rule includes that this is a DNS name"
)]
#[expect(
    clippy::expect_used,
    reason = "a cluster's rule includes that this is a DNS name"
)]
pub fn proxy_server_name(cluster: &Cluster) -> ServerName<'static> {
    ServerName::DnsName(
        DnsName::try_from(proxy_dns_name(cluster)).expect("`proxy.<cluster>` is a DNS name"),
    )
}

/// The system's clock, as rustls wants it.
#[must_use]
pub fn system_time() -> Arc<dyn TimeProvider> {
    Arc::new(DefaultTimeProvider)
}

/// The one crypto provider of the mesh: aws-lc-rs, post-quantum key exchange first.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// A TLS configuration could not be built.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The authority's certificates verify nothing.
    #[error("the authority cannot be used to verify peers: {0}; check the file `ca`")]
    Authority(#[from] VerifierBuilderError),
    /// rustls refused the combination.
    #[error("TLS cannot be set up: {0}")]
    Rustls(#[from] rustls::Error),
}

fn resolver(credentials: &Credentials) -> Arc<SingleCertAndKey> {
    Arc::new(SingleCertAndKey::from(
        credentials.certified().as_ref().clone(),
    ))
}
