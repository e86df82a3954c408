//! A QUIC client that can misbehave: any certificate, any protocol, any bytes.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use certs::Credentials;
use mesh_proto::wire::{Answer, Frame, FrameHeader};
use quinn::{Connection, Endpoint, RecvStream, SendStream};

use crate::Result;

/// A connection and the endpoint under it.
pub struct Raw {
    /// The connection.
    pub connection: Connection,
    _endpoint: Endpoint,
}

/// Connects with an identity and a protocol of the mesh.
///
/// # Errors
/// When the handshake fails on this side; a proxy may still close the connection afterwards.
pub async fn connect(
    remote: SocketAddr,
    credentials: &Credentials,
    alpn: &[u8],
) -> Result<Raw> {
    let tls = certs::client_config(credentials, alpn, None, certs::system_time())?;
    let cluster = credentials.identity().cluster.proxy_dns_name();
    connect_tls(remote, tls, &cluster).await
}

/// Connects with any TLS configuration.
///
/// # Errors
/// When the handshake fails on this side.
pub async fn connect_tls(
    remote: SocketAddr,
    tls: rustls::ClientConfig,
    server_name: &str,
) -> Result<Raw> {
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls)?;
    let endpoint = Endpoint::client("127.0.0.1:0".parse()?)?;
    let client = quinn::ClientConfig::new(Arc::new(crypto));
    let connection = endpoint.connect_with(client, remote, server_name)?.await?;
    Ok(Raw { connection, _endpoint: endpoint })
}

/// Writes a frame.
///
/// # Errors
/// When the stream is gone.
pub async fn write<F: Frame>(stream: &mut SendStream, frame: &F) -> Result {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes)?;
    stream.write_all(&bytes).await?;
    Ok(())
}

/// Reads a frame of the kind that the other side should send.
///
/// # Errors
/// When the stream ends, or the frame is another one.
pub async fn read<F: Frame>(stream: &mut RecvStream) -> Result<F> {
    let mut header = [0; 6];
    stream.read_exact(&mut header).await?;
    let header = FrameHeader::decode(header, F::BODY_BYTES_MAX)?;
    let mut body = vec![0; header.body_bytes as usize];
    stream.read_exact(&mut body).await?;
    F::decode(header, &body)?.context("an unknown optional frame")
}

/// Opens a stream with `frame` and reads the answer.
///
/// # Errors
/// When the stream ends without one.
pub async fn ask<F: Frame>(
    connection: &Connection,
    frame: &F,
) -> Result<(Answer, SendStream, RecvStream)> {
    let (mut send, mut recv) = connection.open_bi().await?;
    write(&mut send, frame).await?;
    let answer = read(&mut recv).await?;
    Ok((answer, send, recv))
}
