//! What several of these tests use.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};

use anyhow::{Context as _, bail, ensure};
use mesh_tests::Result;
use mesh_tests::fleet::Pair;
use mesh_tests::network::TestNetwork;
use mesh_tests::services::{Service, pattern};
use node::app::Parts;
use node::config::{AgentConfig, ProxyConfig};
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader,
    Interest,
};

/// MiB in bytes.
pub(crate) const MIB: usize = 1 << 20;

/// The longest body of these tests.
pub(crate) const BODY_BYTES: usize = 24 * MIB;

static BODY: LazyLock<Vec<u8>> = LazyLock::new(|| pattern(0, BODY_BYTES));

/// The first `bytes` of the pattern, made once.
pub(crate) fn body(bytes: usize) -> &'static [u8] {
    &BODY[..bytes]
}

/// Writes `bytes` in bursts of very different sizes.
pub(crate) async fn write_in_bursts<W>(to: &mut W, mut bytes: &[u8]) -> Result
where
    W: AsyncWrite + Unpin,
{
    let sizes = [1, 70_000, 7, 300_000, 1_400, 65_536, 3, 16_384];
    for size in sizes.into_iter().cycle() {
        if bytes.is_empty() {
            break;
        }
        let (burst, rest) = bytes.split_at(size.min(bytes.len()));
        to.write_all(burst).await?;
        bytes = rest;
        tokio::task::yield_now().await;
    }
    Ok(())
}

/// Reads to the end, which must come right after `expected`.
pub(crate) async fn expect_whole<R>(from: &mut R, expected: &[u8]) -> Result
where
    R: AsyncRead + Unpin,
{
    let at = expect_bytes(from, expected).await?;
    let more = from
        .read(&mut [0])
        .await
        .with_context(|| format!("after all {at} bytes"))?;
    ensure!(more == 0, "there is more than the {at} bytes expected");
    Ok(())
}

/// Reads as many bytes as `expected` has, which they must equal.
pub(crate) async fn expect_bytes<R>(from: &mut R, expected: &[u8]) -> Result<usize>
where
    R: AsyncRead + Unpin,
{
    let mut buffer = vec![0; 256 << 10];
    let mut at = 0;
    while at < expected.len() {
        let room = buffer.len().min(expected.len() - at);
        let read = from
            .read(&mut buffer[..room])
            .await
            .with_context(|| format!("at byte {at}"))?;
        ensure!(read > 0, "the end came at byte {at} of {}", expected.len());
        ensure!(
            buffer[..read] == expected[at..at + read],
            "wrong bytes in {at}..{}",
            at + read
        );
        at += read;
    }
    Ok(at)
}

/// Reads until the stream breaks; an end in order is the failure.
pub(crate) async fn expect_broken<R>(from: &mut R) -> Result<std::io::Error>
where
    R: AsyncRead + Unpin,
{
    let mut buffer = vec![0; 64 << 10];
    loop {
        match from.read(&mut buffer).await {
            Ok(0) => bail!("the stream ended as if it were whole"),
            Ok(_) => {}
            Err(error) => return Ok(error),
        }
    }
}

/// Sends `count` small messages to an echo, each after the answer to the last one.
pub(crate) async fn ping_pong<S>(stream: &mut S, count: u32) -> Result
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    for round in 0..count {
        stream.write_all(&round.to_be_bytes()).await?;
        let mut answer = [0; 4];
        stream
            .read_exact(&mut answer)
            .await
            .with_context(|| format!("round {round}"))?;
        ensure!(
            answer == round.to_be_bytes(),
            "round {round} was answered with {answer:?}"
        );
    }
    Ok(())
}

/// Writes without end and never reads.
pub(crate) async fn endless() -> Result<Service> {
    Service::start(|mut stream, stats| async move {
        let chunk = vec![7; 16 << 10];
        loop {
            stream.write_all(&chunk).await?;
            stats
                .written
                .fetch_add(chunk.len() as u64, Ordering::SeqCst);
        }
    })
    .await
}

/// Neither reads nor writes, and goes when its connection breaks.
pub(crate) async fn deaf() -> Result<Service> {
    Service::start(|stream, _| async move { stream.ready(Interest::ERROR).await.map(drop) }).await
}

/// Answers each request of a connection with what `page` makes of the connection's number.
pub(crate) async fn pages(page: impl Fn(usize) -> Vec<u8> + Send + 'static) -> Result<Service> {
    let connections = AtomicUsize::new(0);
    Service::start(move |stream, _| {
        let page = page(connections.fetch_add(1, Ordering::SeqCst));
        async move {
            let mut stream = BufReader::new(stream);
            let mut line = String::new();
            // The requests of these tests have no body: each ends with the empty line of its head.
            while stream.read_line(&mut line).await? > 0 {
                if line == "\r\n" {
                    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", page.len());
                    stream.write_all(head.as_bytes()).await?;
                    stream.write_all(&page).await?;
                }
                line.clear();
            }
            Ok(())
        }
    })
    .await
}

/// A proxy and an agent with a hand on their networks.
pub(crate) struct Handled {
    pub(crate) pair: Pair,
    pub(crate) proxy_net: TestNetwork,
    pub(crate) agent_net: TestNetwork,
}

impl Handled {
    /// As [`Pair::start_with`].
    pub(crate) async fn start(
        allow: &[String],
        proxy: impl FnOnce(&mut ProxyConfig),
        agent: impl FnOnce(&mut AgentConfig),
    ) -> Result<Self> {
        let (proxy_net, agent_net) = (TestNetwork::default(), TestNetwork::default());
        let parts = |network: &TestNetwork| Parts {
            network: Arc::new(network.clone()),
            ..Parts::current()
        };
        let pair =
            Pair::start_in(allow, proxy, agent, parts(&proxy_net), parts(&agent_net)).await?;
        Ok(Self {
            pair,
            proxy_net,
            agent_net,
        })
    }
}

/// Payload in bytes that a node has handed to QUIC.
pub(crate) fn sent(node: &mesh_tests::fleet::Node) -> Result<u64> {
    Ok(node
        .metrics()?
        .get(r#"mesh_stream_bytes_total{direction="sent"}"#)? as u64)
}

/// Payload in bytes that a node has taken from QUIC.
pub(crate) fn received(node: &mesh_tests::fleet::Node) -> Result<u64> {
    Ok(node
        .metrics()?
        .get(r#"mesh_stream_bytes_total{direction="received"}"#)? as u64)
}

/// Streams that a node has open.
pub(crate) fn streams_open(node: &mesh_tests::fleet::Node) -> Result<u64> {
    Ok(node.metrics()?.get("mesh_streams_open")? as u64)
}
