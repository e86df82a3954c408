//! A QUIC client that can misbehave: any certificate, any protocol, any bytes.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use certs::Credentials;
use mesh_proto::wire::{
    ALPN_AGENT, AgentFrame, AgentHello, Answer, Dial, Frame, FrameHeader, Open, OpenControl,
    ProxyFrame,
};
use quinn::{Connection, Endpoint, RecvStream, SendStream};

use crate::Result;

/// A connection and the endpoint under it.
pub struct Raw {
    /// The connection.
    pub connection: Connection,
    /// This side's address, as the other side logs it.
    pub local: SocketAddr,
    _endpoint: Endpoint,
}

/// Connects with an identity and a protocol of the mesh.
///
/// # Errors
/// When the handshake fails on this side; a proxy may still close the connection afterwards.
pub async fn connect(remote: SocketAddr, credentials: &Credentials, alpn: &[u8]) -> Result<Raw> {
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
    let endpoint = Endpoint::client("127.0.0.1:0".parse()?)?;
    let local = endpoint.local_addr()?;
    let connection = endpoint
        .connect_with(client_config(tls)?, remote, server_name)?
        .await?;
    Ok(Raw {
        connection,
        local,
        _endpoint: endpoint,
    })
}

pub(crate) fn client_config(tls: rustls::ClientConfig) -> Result<quinn::ClientConfig> {
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls)?;
    Ok(quinn::ClientConfig::new(Arc::new(crypto)))
}

/// Connects as an agent does and says hello; from then on the proxy dials through it, and the
/// test answers as it likes.
///
/// # Errors
/// When the proxy does not take it for an agent.
pub async fn agent(remote: SocketAddr, credentials: &Credentials) -> Result<RawAgent> {
    let raw = connect(remote, credentials, ALPN_AGENT).await?;
    let (mut send, mut recv) = raw.connection.open_bi().await?;
    write(&mut send, &Open::Control(OpenControl::default())).await?;
    let hello = AgentHello {
        instance: node::random::Random::system().bytes(),
        version: "test".into(),
        services: Vec::new(),
        ext: Vec::new(),
    };
    write(&mut send, &AgentFrame::Hello(hello)).await?;
    match read::<Answer>(&mut recv).await? {
        Answer::Opened(_) => {}
        Answer::Refused(refused) => bail!("{}: {}", refused.reason, refused.message),
    }
    read::<ProxyFrame>(&mut recv).await?;
    Ok(RawAgent {
        raw,
        _control: (send, recv),
    })
}

/// An agent that answers dials as the test likes.
pub struct RawAgent {
    /// The connection.
    pub raw: Raw,
    _control: (SendStream, RecvStream),
}

impl RawAgent {
    /// The next dial, and the stream on which it came.
    ///
    /// # Errors
    /// When the connection ends, or the proxy asks for something else.
    pub async fn dial(&self) -> Result<(Dial, SendStream, RecvStream)> {
        let (send, mut recv) = self.raw.connection.accept_bi().await?;
        match read::<Open>(&mut recv).await? {
            Open::Dial(dial) => Ok((dial, send, recv)),
            other @ (Open::Control(_)
            | Open::Routes(_)
            | Open::Find(_)
            | Open::Admin(_)
            | Open::ClusterRoutes(_)) => {
                bail!("the proxy opened {other:?}")
            }
        }
    }
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
