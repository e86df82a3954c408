//! UDP that is no QUIC of ours.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use certs::Kind;
use mesh_proto::wire::ALPN_AGENT;
use mesh_tests::Result;
use mesh_tests::fleet::Bystander;
use mesh_tests::hostile::{careless_tls, identity};
use mesh_tests::services::pattern;
use tokio::net::UdpSocket;

/// The smallest datagram in which a client may begin (RFC 9000, section 14.1), in bytes.
const INITIAL_BYTES: usize = 1200;

/// The first datagrams of an honest client.
pub(crate) async fn first_flight(bystander: &Bystander) -> Result<Vec<Vec<u8>>> {
    let credentials = bystander.pair.pki.issue(Kind::Agent, "unheard")?;
    let (tls, _) = careless_tls(Some(identity(&credentials)?), &[ALPN_AGENT])?;
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls)?;
    let trap = UdpSocket::bind("127.0.0.1:0").await?;
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse()?)?;
    let config = quinn::ClientConfig::new(Arc::new(crypto));
    let connecting = endpoint.connect_with(config, trap.local_addr()?, "proxy.test.example.com")?;
    // A post-quantum key share fills more than one of them.
    let mut flight = Vec::new();
    for _ in 0..2 {
        let mut buffer = vec![0; 2000];
        let length = trap.recv(&mut buffer).await?;
        buffer.truncate(length);
        flight.push(buffer);
    }
    drop(connecting);
    Ok(flight)
}

/// Sends every datagram and counts the bytes that went out.
async fn send_all(socket: &UdpSocket, to: SocketAddr, datagrams: &[Vec<u8>]) -> Result<usize> {
    let mut sent = 0;
    for datagram in datagrams {
        sent += socket.send_to(datagram, to).await?;
    }
    Ok(sent)
}

/// Counts the bytes that have come back.
fn received(socket: &UdpSocket) -> usize {
    let mut buffer = vec![0; 65_536];
    let mut received = 0;
    while let Ok((length, _)) = socket.try_recv_from(&mut buffer) {
        received += length;
    }
    received
}

pub(crate) async fn garbage(bystander: &Bystander) -> Result {
    let proxy = bystander.quic_addr()?;
    let socket = UdpSocket::bind("127.0.0.1:0").await?;

    // Noise of all sizes, with all the first bytes that mean something to QUIC.
    let mut noise = Vec::new();
    for (index, length) in (0..1480).step_by(7).enumerate() {
        for first in [0x00, 0x40, 0x7f, 0x80, 0xc0, 0xff] {
            let mut datagram = pattern(index as u64 * 10_000, length);
            if let Some(byte) = datagram.first_mut() {
                *byte = first;
            }
            noise.push(datagram);
        }
    }
    // What an honest client sends, with one byte changed somewhere.
    let flight = first_flight(bystander).await?;
    for (index, byte) in (0..INITIAL_BYTES).step_by(13).enumerate() {
        let mut datagram = flight[index % flight.len()].clone();
        let last = datagram.len() - 1;
        datagram[byte.min(last)] ^= 0x55;
        noise.push(datagram);
    }
    for chunk in noise.chunks(64) {
        let sent = send_all(&socket, proxy, chunk).await?;
        bystander.check().await?;
        let back = received(&socket);
        ensure!(back <= 3 * sent, "{back} bytes came back for {sent}");
    }

    // A version that is not spoken is answered with those that are (RFC 9000, section 6).
    let mut unknown = vec![0xc0, 0x1a, 0x2a, 0x3a, 0x4a, 8];
    unknown.extend_from_slice(b"destinat");
    unknown.push(8);
    unknown.extend_from_slice(b"ourselve");
    let too_short = unknown.clone();
    unknown.resize(INITIAL_BYTES, 0);
    let asking = UdpSocket::bind("127.0.0.1:0").await?;
    // Nobody answers what is too short to be the beginning of a connection, or the answer to the
    // one would be taken for the other's.
    asking.send_to(&too_short, proxy).await?;
    bystander.check().await?;
    ensure!(
        received(&asking) == 0,
        "an answer to a datagram that is too short"
    );
    asking.send_to(&unknown, proxy).await?;
    let mut answer = vec![0; 2000];
    let length = tokio::time::timeout(Duration::from_secs(30), asking.recv(&mut answer))
        .await
        .context("no version negotiation")??;
    let answer = &answer[..length];
    ensure!(
        answer[0] & 0x80 != 0 && answer[1..5] == [0; 4],
        "{answer:?}"
    );
    ensure!(
        answer[5] == 8 && answer[6..14] == *b"ourselve",
        "{answer:?}"
    );
    ensure!(
        answer.windows(4).any(|version| version == [0, 0, 0, 1]),
        "{answer:?}"
    );
    ensure!(length <= 3 * INITIAL_BYTES);
    bystander.check().await
}
