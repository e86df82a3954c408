//! Limits that cost memory before they are used, and windows that must hold what stands still.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use anyhow::ensure;
use certs::Kind;
use mesh_proto::wire::{ALPN_AGENT, ALPN_USER};
use mesh_tests::Result;
use mesh_tests::fleet::{Node, Pair, proxy_config};
use mesh_tests::pki::Pki;
use mesh_tests::services::Service;
use mesh_tests::{probe, quic};
use node::config::QuicConfig;
use node::quic::transport::connection_window_bytes;
use quinn::{Connection, SendStream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;

/// Streams that a proxy takes from whom it does not know yet, or from an agent who may not dial.
/// quinn sets aside memory for each, whether it is ever opened or not.
const STREAMS_MAX: usize = 64;

/// Streams opened at one time, all of them: many times what an agent allows at first.
const BURST: usize = 600;

/// As many streams as the other side allows by now, all of them open.
fn allowed(connection: &Connection) -> Result<Vec<SendStream>> {
    let mut context = Context::from_waker(Waker::noop());
    let mut streams = Vec::new();
    while streams.len() <= 100_000 {
        match pin!(connection.open_bi()).poll(&mut context) {
            Poll::Ready(stream) => streams.push(stream?.0),
            Poll::Pending => break,
        }
    }
    Ok(streams)
}

/// Though `streams_max` is 4,096: that is for the side that accepts dials.
#[tokio::test]
async fn a_proxy_allows_few_streams() -> Result {
    let pki = Pki::new("test.example.com")?;
    let proxy = Node::proxy(proxy_config(&pki, "proxy-1")?).await?;
    let address = proxy.quic_addr()?;
    for (kind, name, alpn) in [
        (Kind::Agent, "a1", ALPN_AGENT),
        (Kind::User, "alice", ALPN_USER),
    ] {
        let credentials = pki.issue(kind, name)?;
        let raw = quic::connect(address, &credentials, alpn).await?;
        let streams = allowed(&raw.connection)?.len();
        ensure!(
            (1..=STREAMS_MAX).contains(&streams),
            "{streams} streams for {name}"
        );
        raw.connection.close(0u32.into(), b"");
    }
    // An agent that has said who it is.
    let credentials = pki.issue(Kind::Agent, "a1")?;
    let agent = quic::agent(address, &credentials).await?;
    proxy.sessions(1).await?;
    let mut streams = 0;
    // The new limit may come behind the hello.
    let streams = probe::plateau("no more streams are allowed", || {
        streams = streams.max(allowed(&agent.raw.connection).map_or(0, |streams| streams.len()));
        streams
    })
    .await?;
    ensure!(streams <= STREAMS_MAX, "{streams} streams for an agent");
    Ok(())
}

/// An agent allows few streams at first, and more as they are used: a burst of many waits for that, and
/// none of it is refused.
#[tokio::test]
async fn an_agent_takes_a_burst_of_streams() -> Result {
    let echo = Service::echo().await?;
    let pair = Pair::start(&[echo.rule()], Vec::new()).await?;
    let dialer = pair.proxy.as_proxy()?.dialer("a1")?;
    let mut dials = JoinSet::new();
    for _ in 0..BURST {
        let (dialer, target) = (dialer.clone(), echo.rule());
        dials.spawn(async move { dialer.dial(&target).await });
    }
    let mut streams = Vec::new();
    while let Some(dialled) = dials.join_next().await {
        streams.push(dialled??);
    }
    // All of them at one time.
    for stream in &mut streams {
        stream.write_all(b"here").await?;
        stream.read_exact(&mut [0; 4]).await?;
    }
    drop(streams);
    pair.stop().await;
    Ok(())
}

/// Whatever the config says: `stalled_streams_max` streams that stand still leave room for one more, and
/// for what quinn wants read before it tells of new room.
#[test]
fn the_connection_window_holds_all_stalled_streams() {
    for stream_window_bytes in [64 << 10, 256 << 10, 2 << 20, 4 << 20] {
        for stalled_streams_max in [1, 16, 64, 128, 1000, 4096] {
            let config = QuicConfig {
                stream_window_bytes,
                stalled_streams_max,
                ..QuicConfig::default()
            };
            let stalled = u64::from(stream_window_bytes) * u64::from(stalled_streams_max);
            let window = connection_window_bytes(&config);
            assert!(
                window - window / 8 >= stalled + u64::from(stream_window_bytes),
                "{stalled_streams_max} streams of {stream_window_bytes} in {window}"
            );
        }
    }
}
