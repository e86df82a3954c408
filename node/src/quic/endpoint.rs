//! Endpoints: a UDP socket with quinn on it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use certs::{Credentials, ForeignAuthority, TrustedClusters};
use mesh_proto::name::NodeName;
use mesh_proto::wire::{ALPN_AGENT, ALPN_PEER, ALPN_USER};
use quinn::{ConnectionId, EndpointConfig};

use super::connection_id::SignedConnectionIds;
use super::keys::EndpointKeys;
use super::transport::transport;
use crate::clock::WallClock;
use crate::config::QuicConfig;
use crate::net::Network;
use crate::random::Random;

/// Half-open connections at one time; further ones are refused at once.
const HALF_OPEN_MAX: usize = 4096;

/// Bytes kept of one connection that was not accepted yet.
const HALF_OPEN_BYTES_MAX: u64 = 64 << 10;

/// Bytes kept of all connections that were not accepted yet.
const HALF_OPEN_TOTAL_BYTES_MAX: u64 = 32 << 20;

/// The least time between two stateless resets. quinn's own 20 ms would let a restarted proxy answer
/// 50 agents a second, and the others would wait for their idle timeout. A reset is smaller than
/// the packet that asks for it, and only ids that bear this proxy's tag get one.
const RESET_INTERVAL_MIN: Duration = Duration::from_micros(100);

/// An endpoint could not be made.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The socket of a proxy.
    #[error("cannot listen for QUIC on udp {address} (quic.listen): {error}")]
    Bind {
        /// The address asked for.
        address: SocketAddr,
        /// Why not.
        error: io::Error,
    },
    /// The socket of an outgoing connection.
    #[error(
        "cannot open a UDP socket to dial from: {0}; is the limit of open files (ulimit -n) reached?"
    )]
    Socket(io::Error),
    /// The TLS configuration.
    #[error("cannot use the node's certificate for TLS: {0}")]
    Tls(#[from] certs::TlsError),
    /// The TLS configuration has no cipher suite that QUIC needs for its first packets.
    #[error(
        "the TLS provider lacks TLS13_AES_128_GCM_SHA256, which QUIC needs (RFC 9001, section 5)"
    )]
    NoInitialCipherSuite,
}

/// A bound endpoint.
#[derive(Debug)]
pub struct BoundEndpoint {
    /// quinn's endpoint.
    pub endpoint: quinn::Endpoint,
    /// What the kernel granted for the receive buffer, in bytes.
    pub receive_buffer_bytes: usize,
}

/// What endpoints of one node are made with.
#[derive(Debug, Clone, Copy)]
pub struct EndpointParts<'a> {
    /// The way out of the process.
    pub network: &'a dyn Network,
    /// Where randomness comes from.
    pub random: &'a Random,
    /// What certificates are judged by.
    pub clock: &'a WallClock,
    /// Who the node is.
    pub credentials: &'a Credentials,
    /// Limits and timers.
    pub config: &'a QuicConfig,
    /// Secrets.
    pub keys: &'a EndpointKeys,
}

/// Makes a proxy's endpoint on the runtime of the caller; `alpn` are the kinds of connections
/// that it serves, `trusted` the other clusters whose proxies it lets in, and `shared` whether other shards listen on the same address.
///
/// # Errors
/// [`EndpointError`].
pub fn listen(
    parts: &EndpointParts<'_>,
    address: SocketAddr,
    alpn: &[&[u8]],
    trusted: Arc<dyn TrustedClusters>,
    shared: bool,
) -> Result<BoundEndpoint, EndpointError> {
    let EndpointParts {
        credentials,
        clock,
        config,
        keys,
        ..
    } = *parts;
    let tls = certs::proxy_server_config_trusting(credentials, trusted, alpn, clock.provider())?;
    let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(tls)
        .map_err(|_| EndpointError::NoInitialCipherSuite)?;
    let token_key =
        aws_lc_rs::hkdf::Salt::new(aws_lc_rs::hkdf::HKDF_SHA256, &[]).extract(&keys.token);
    let mut server = quinn::ServerConfig::new(Arc::new(crypto), Arc::new(token_key));
    server
        .transport_config(Arc::new(transport(config)))
        .max_incoming(HALF_OPEN_MAX)
        .incoming_buffer_size(HALF_OPEN_BYTES_MAX)
        .incoming_buffer_size_total(HALF_OPEN_TOTAL_BYTES_MAX)
        .migration(true);

    bind(parts, Some(server), address, shared)
}

/// Makes an endpoint for one outgoing connection, on the runtime of the caller. Each attempt has
/// its own, so that a balancer that hashes addresses and ports can choose anew.
///
/// # Errors
/// [`EndpointError`].
pub fn dialling(
    parts: &EndpointParts<'_>,
    remote: SocketAddr,
) -> Result<BoundEndpoint, EndpointError> {
    let address: SocketAddr = if remote.is_ipv6() {
        (std::net::Ipv6Addr::UNSPECIFIED, 0).into()
    } else {
        (std::net::Ipv4Addr::UNSPECIFIED, 0).into()
    };
    bind(parts, None, address, false)
}

/// The client side of a connection from an agent; with `proxy`, only to the proxy of that name.
///
/// # Errors
/// [`EndpointError`].
pub fn agent_client_config(
    parts: &EndpointParts<'_>,
    proxy: Option<&NodeName>,
) -> Result<quinn::ClientConfig, EndpointError> {
    let time = parts.clock.provider();
    let tls = certs::client_config(parts.credentials, ALPN_AGENT, proxy, time)?;
    client_config(tls, parts.config, parts.random)
}

/// The client side of a connection to another cluster, as its agents have; with `proxy`, only to the
/// proxy of that name.
///
/// # Errors
/// [`EndpointError`].
pub fn tunnel_client_config(
    parts: &EndpointParts<'_>,
    authority: &ForeignAuthority,
    proxy: Option<&NodeName>,
) -> Result<quinn::ClientConfig, EndpointError> {
    let time = parts.clock.provider();
    let tls = certs::foreign_client_config(parts.credentials, authority, ALPN_AGENT, proxy, time)?;
    client_config(tls, parts.config, parts.random)
}

/// The client side of a connection between proxies; with `name`, only to the proxy of that name.
///
/// # Errors
/// [`EndpointError`].
pub fn peer_client_config(
    credentials: &Credentials,
    config: &QuicConfig,
    name: Option<&NodeName>,
    random: &Random,
    clock: &WallClock,
) -> Result<quinn::ClientConfig, EndpointError> {
    let tls = certs::client_config(credentials, ALPN_PEER, name, clock.provider())?;
    client_config(tls, config, random)
}

/// The client side of a user's connection to whichever proxy of the cluster answers.
///
/// # Errors
/// [`EndpointError`].
pub fn user_client_config(parts: &EndpointParts<'_>) -> Result<quinn::ClientConfig, EndpointError> {
    let time = parts.clock.provider();
    let tls = certs::client_config(parts.credentials, ALPN_USER, None, time)?;
    client_config(tls, parts.config, parts.random)
}

fn client_config(
    tls: rustls::ClientConfig,
    config: &QuicConfig,
    random: &Random,
) -> Result<quinn::ClientConfig, EndpointError> {
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls)
        .map_err(|_| EndpointError::NoInitialCipherSuite)?;
    let mut client = quinn::ClientConfig::new(Arc::new(crypto));
    client.transport_config(Arc::new(transport(config)));
    let random = random.clone();
    // Longer than the 8 bytes that RFC 9000, section 7.2, asks for.
    client.initial_dst_cid_provider(Arc::new(move || ConnectionId::new(&random.bytes::<16>())));
    Ok(client)
}

fn bind(
    parts: &EndpointParts<'_>,
    server: Option<quinn::ServerConfig>,
    address: SocketAddr,
    shared: bool,
) -> Result<BoundEndpoint, EndpointError> {
    let EndpointParts {
        network,
        random,
        config,
        keys,
        ..
    } = *parts;
    let reset_key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &keys.reset);
    let mut endpoint = EndpointConfig::new(Arc::new(reset_key));
    let (connection_id_key, ids_random) = (keys.connection_id, random.clone());
    endpoint.cid_generator(move || {
        Box::new(SignedConnectionIds::new(
            connection_id_key,
            ids_random.generator(),
        ))
    });
    endpoint.rng_seed(Some(random.bytes()));
    endpoint.min_reset_interval(RESET_INTERVAL_MIN);
    // MTU discovery finds nothing above what the receiving endpoint says it takes. The value is
    // in range by the bounds of the config (1,200 to 6,500).
    let _ = endpoint.max_udp_payload_size(config.mtu_max);
    let listens = server.is_some();
    let bind_error = |error| {
        if listens {
            EndpointError::Bind { address, error }
        } else {
            EndpointError::Socket(error)
        }
    };
    let binding = network.bind_udp(address, shared).map_err(bind_error)?;
    let endpoint = quinn::Endpoint::new_with_abstract_socket(
        endpoint,
        server,
        binding.socket,
        network.quic_runtime(),
    )
    .map_err(bind_error)?;
    Ok(BoundEndpoint {
        endpoint,
        receive_buffer_bytes: binding.receive_buffer_bytes,
    })
}
