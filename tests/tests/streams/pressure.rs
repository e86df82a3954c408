//! What readers that stand still may hold, and whom they may hold up: nobody.

use std::sync::atomic::Ordering;

use anyhow::ensure;
use mesh_tests::Result;
use mesh_tests::fleet::{Pair, tcp_ingress};
use mesh_tests::logs;
use mesh_tests::probe::{self, Metrics};
use mesh_tests::services::Service;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::support::{
    Handled, MIB, body, endless, expect_broken, expect_whole, ping_pong, received, sent,
};

/// What a forwarder has in its hands beside QUIC's window, in bytes: the chunks of the one write
/// that waits for the socket (32 of at most 6,500 bytes).
const IN_HAND_BYTES: u64 = 32 * 6_500;

/// What is read from a socket at a time, in bytes, at most.
const BLOCK_BYTES: u64 = 256 << 10;

/// 1 GiB is offered, in either direction and to either kind of reader; what the nodes took and
/// have not given on stays under the stream window, and other streams live.
#[tokio::test]
async fn slow_reader_is_bounded() -> Result {
    const OFFERED: u64 = 1 << 30;
    let (source, silent, echo) = (
        Service::source(OFFERED).await?,
        Service::silent().await?,
        Service::echo().await?,
    );
    let ingresses = vec![
        tcp_ingress("a1", &source.rule())?,
        tcp_ingress("a1", &silent.rule())?,
        tcp_ingress("a1", &echo.rule())?,
    ];
    let allow = [source.rule(), silent.rule(), echo.rule()];
    let handled = Handled::start(&allow, |config| config.ingresses = ingresses, |_| {}).await?;
    let Handled {
        pair,
        proxy_net,
        agent_net,
    } = &handled;
    let window = u64::from(node::config::QuicConfig::default().stream_window_bytes);
    let proxy = &pair.proxy;
    let mut other = TcpStream::connect(proxy.ingress(2)?).await?;

    // A user in this process: nothing but QUIC's window is between the agent and him.
    let stream = proxy.as_proxy()?.dialer("a1")?.dial(&source.rule()).await?;
    let taken = probe::plateau("the agent has stopped reading", || agent_net.read()).await?;
    let over = sent(&pair.agent)?;
    ensure!(over <= window, "{over} bytes for a window of {window}");
    ensure!(
        over > window - BLOCK_BYTES,
        "{over} bytes are no full window"
    );
    ensure!(
        taken - over <= BLOCK_BYTES,
        "the agent holds {} bytes",
        taken - over
    );
    ping_pong(&mut other, 200).await?;
    drop(stream);
    probe::until("the stream is gone", || source.open() == 0).await?;

    // A user behind a socket.
    let base = (agent_net.read(), sent(&pair.agent)?, proxy_net.written());
    let client = TcpStream::connect(proxy.ingress(0)?).await?;
    probe::plateau("the agent has stopped reading", || agent_net.read()).await?;
    let (read, over, given) = (
        agent_net.read() - base.0,
        sent(&pair.agent)? - base.1,
        proxy_net.written() - base.2,
    );
    ensure!(
        over - given <= window + IN_HAND_BYTES,
        "the proxy holds {} bytes",
        over - given
    );
    ensure!(
        over - given > window / 2,
        "the proxy holds no more than {} bytes",
        over - given
    );
    ensure!(
        read - over <= BLOCK_BYTES,
        "the agent holds {} bytes",
        read - over
    );
    ping_pong(&mut other, 200).await?;
    drop(client);
    probe::until("the stream is gone", || source.open() == 0).await?;

    // And the other way: a service that never reads.
    let base = (proxy_net.read(), sent(proxy)?, agent_net.written());
    let mut client = TcpStream::connect(proxy.ingress(1)?).await?;
    let mut upload = JoinSet::new();
    upload.spawn(async move {
        let chunk = vec![1; 64 << 10];
        for _ in 0..OFFERED / chunk.len() as u64 {
            // It ends with the test.
            if client.write_all(&chunk).await.is_err() {
                break;
            }
        }
    });
    probe::plateau("the proxy has stopped reading", || proxy_net.read()).await?;
    let (read, over, given) = (
        proxy_net.read() - base.0,
        sent(proxy)? - base.1,
        agent_net.written() - base.2,
    );
    ensure!(
        over - given <= window + IN_HAND_BYTES,
        "the agent holds {} bytes",
        over - given
    );
    ensure!(
        over - given > window / 2,
        "the agent holds no more than {} bytes",
        over - given
    );
    ensure!(
        read - over <= BLOCK_BYTES,
        "the proxy holds {} bytes",
        read - over
    );
    ping_pong(&mut other, 200).await?;
    Ok(())
}

/// As many streams stand still as the config allows, in each direction; a fresh one moves 16 MiB.
#[tokio::test]
async fn stalled_streams_do_not_stall_the_connection() -> Result {
    const STALLED: u32 = 64;
    const WINDOW: u32 = 256 << 10;
    let (endless, silent) = (endless().await?, Service::silent().await?);
    let (source, sink) = (
        Service::source(16 * MIB as u64).await?,
        Service::sink().await?,
    );
    let allow = [endless.rule(), silent.rule(), source.rule(), sink.rule()];
    let pair = Pair::start_with(
        &allow,
        |config| {
            config.common.quic.stream_window_bytes = WINDOW;
            config.common.quic.stalled_streams_max = STALLED;
        },
        |config| {
            config.common.quic.stream_window_bytes = WINDOW;
            config.common.quic.stalled_streams_max = STALLED;
        },
    )
    .await?;
    let dialer = pair.proxy.as_proxy()?.dialer("a1")?;

    let mut downloads = Vec::new();
    for _ in 0..STALLED {
        downloads.push(dialer.dial(&endless.rule()).await?);
    }
    let over = probe::plateau("the downloads stand still", || sent(&pair.agent).ok()).await?;
    let full = u64::from(STALLED) * u64::from(WINDOW - 4096);
    ensure!(
        over > Some(full),
        "{over:?} bytes are no {STALLED} full windows"
    );
    expect_whole(&mut dialer.dial(&source.rule()).await?, body(16 * MIB)).await?;

    let mut uploads = JoinSet::new();
    for _ in 0..STALLED {
        let mut stream = dialer.dial(&silent.rule()).await?;
        uploads.spawn(async move { while stream.write_all(&[1; 16 << 10]).await.is_ok() {} });
    }
    probe::plateau("the uploads stand still", || sent(&pair.proxy).ok()).await?;
    let mut stream = dialer.dial(&sink.rule()).await?;
    stream.write_all(body(16 * MIB)).await?;
    stream.shutdown().await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let expected = mesh_tests::services::Checksum::of(body(16 * MIB)).to_string();
    ensure!(answer == expected, "{answer} instead of {expected}");

    ensure!(
        endless.open() == STALLED as usize,
        "{} downloads are open",
        endless.open()
    );
    ensure!(
        silent.open() == STALLED as usize,
        "{} uploads are open",
        silent.open()
    );
    ensure!(uploads.try_join_next().is_none(), "an upload broke");
    Ok(())
}

/// One direction is full to the brim; seven bytes the other way arrive, from either side.
#[tokio::test]
async fn write_while_other_direction_is_full() -> Result {
    // Writes without end, and counts what it reads.
    let loud = Service::start(|mut stream, stats| async move {
        let (mut read, mut write) = stream.split();
        let shout = async {
            loop {
                write.write_all(&[7; 16 << 10]).await?;
                stats.written.fetch_add(16 << 10, Ordering::SeqCst);
            }
        };
        let listen = async {
            let mut seven = [0; 7];
            read.read_exact(&mut seven).await?;
            assert_eq!(&seven, b"arrived");
            stats.read.fetch_add(7, Ordering::SeqCst);
            std::future::pending::<std::io::Result<()>>().await
        };
        tokio::select! {
            broken = shout => broken,
            broken = listen => broken,
        }
    })
    .await?;
    // Reads nothing, and says seven bytes when it is told to.
    let (say, said) = tokio::sync::watch::channel(false);
    let deaf = Service::start(move |mut stream, _| {
        let mut said = said.clone();
        async move {
            let _ = said.wait_for(|said| *said).await;
            stream.write_all(b"arrived").await?;
            std::future::pending().await
        }
    })
    .await?;
    let ingresses = vec![
        tcp_ingress("a1", &loud.rule())?,
        tcp_ingress("a1", &deaf.rule())?,
    ];
    let pair = Pair::start(&[loud.rule(), deaf.rule()], ingresses).await?;

    let mut client = TcpStream::connect(pair.proxy.ingress(0)?).await?;
    let written = || loud.stats().written.load(Ordering::SeqCst);
    ensure!(
        probe::plateau("the download is full", written).await? > 0,
        "nothing was written"
    );
    client.write_all(b"arrived").await?;
    probe::until("the seven bytes are there", || {
        loud.stats().read.load(Ordering::SeqCst) == 7
    })
    .await?;

    let (mut read, mut write) = TcpStream::connect(pair.proxy.ingress(1)?)
        .await?
        .into_split();
    let mut upload = JoinSet::new();
    upload.spawn(async move { while write.write_all(&[1; 16 << 10]).await.is_ok() {} });
    probe::plateau("the upload is full", || sent(&pair.proxy).ok()).await?;
    say.send_replace(true);
    let mut seven = [0; 7];
    read.read_exact(&mut seven).await?;
    ensure!(&seven == b"arrived", "{seven:?}");
    Ok(())
}

/// Over the budget, the longest-stalled streams are reset, with the reason, counted and logged;
/// the others, and streams that are read, live on.
#[tokio::test]
async fn buffer_budget_cuts_the_longest_stalled() -> Result {
    const WINDOW: u32 = 128 << 10;
    let logs = logs::capture();
    let (endless, echo) = (endless().await?, Service::echo().await?);
    let ingresses = vec![
        tcp_ingress("a1", &endless.rule())?,
        tcp_ingress("a1", &echo.rule())?,
    ];
    let pair = Pair::start_with(
        &[endless.rule(), echo.rule()],
        |config| {
            config.ingresses = ingresses;
            config.common.quic.stream_window_bytes = WINDOW;
            // An odd number, for the test to find in the log.
            config.common.quic.buffer_bytes_max = 3 * u64::from(WINDOW) + 4321;
        },
        |_| {},
    )
    .await?;
    let dialer = pair.proxy.as_proxy()?.dialer("a1")?;
    let mut live = TcpStream::connect(pair.proxy.ingress(1)?).await?;

    // Two users behind sockets stand still, then two in this process, of whom one never read at all.
    let mut first = TcpStream::connect(pair.proxy.ingress(0)?).await?;
    probe::plateau("the first stands still", || received(&pair.proxy).ok()).await?;
    let mut second = TcpStream::connect(pair.proxy.ingress(0)?).await?;
    probe::plateau("the second stands still", || received(&pair.proxy).ok()).await?;
    ensure!(
        endless.open() == 2,
        "{} streams are open within the budget",
        endless.open()
    );
    let mut third = dialer.dial(&endless.rule()).await?;
    third.read_exact(&mut [0; 1000]).await?;
    let mut fourth = dialer.dial(&endless.rule()).await?;

    let cut = || {
        let metrics = Metrics::gather(pair.proxy.0.registry())?;
        metrics.get(r#"mesh_streams_cut_total{reason="stalled"}"#)
    };
    probe::until("one stream is cut", || cut().is_ok_and(|cut| cut >= 1.0)).await?;
    probe::until("the service hears of it", || endless.open() == 3).await?;
    expect_broken(&mut first).await?;
    ping_pong(&mut live, 50).await?;

    // The fifth is one too many again, and the second is the oldest now.
    let mut fifth = dialer.dial(&endless.rule()).await?;
    probe::until("two streams are cut", || cut().is_ok_and(|cut| cut >= 2.0)).await?;
    expect_broken(&mut second).await?;
    // One more, and a reader in this process reads the reason.
    let mut sixth = dialer.dial(&endless.rule()).await?;
    probe::until("three streams are cut", || {
        cut().is_ok_and(|cut| cut >= 3.0)
    })
    .await?;
    let why = expect_broken(&mut third).await?.to_string();
    ensure!(why.contains("quic.buffer_bytes_max"), "{why}");

    for stream in [&mut fourth, &mut fifth, &mut sixth] {
        stream.read_exact(&mut vec![0; 4 * WINDOW as usize]).await?;
    }
    ping_pong(&mut live, 50).await?;
    ensure!(cut()? == 3.0, "{} streams were cut", cut()?);
    let budget = (3 * u64::from(WINDOW) + 4321).to_string();
    let lines = logs.lines_with(&["longest-stalled", &budget]);
    ensure!(!lines.is_empty(), "no log line tells of the cut streams");
    Ok(())
}
