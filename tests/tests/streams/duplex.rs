//! Both directions at once, each to its own end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::ensure;
use mesh_tests::Result;
use mesh_tests::fleet::{Pair, tcp_ingress};
use mesh_tests::probe;
use mesh_tests::services::Service;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::support::{BODY_BYTES, MIB, body, expect_bytes, expect_whole, write_in_bursts};

/// Sends the whole body and reads as much at the same time; `whole` counts who got it right.
async fn both_ways(mut stream: TcpStream, whole: Arc<AtomicUsize>) -> Result {
    let (mut read, mut write) = stream.split();
    let send = async {
        write_in_bursts(&mut write, body(BODY_BYTES)).await?;
        Ok(write.shutdown().await?)
    };
    tokio::try_join!(send, expect_whole(&mut read, body(BODY_BYTES)))?;
    whole.fetch_add(1, Ordering::SeqCst);
    Ok(())
}

/// 24 MiB each way, in bursts, on one stream and on twelve: byte-exact at both ends.
#[tokio::test]
async fn duplex_bursty() -> Result {
    let at_service = Arc::new(AtomicUsize::new(0));
    let whole = at_service.clone();
    let service = Service::start(move |stream, _| {
        let whole = whole.clone();
        async move {
            both_ways(stream, whole)
                .await
                .map_err(std::io::Error::other)
        }
    })
    .await?;
    let pair = Pair::start(&[service.rule()], vec![tcp_ingress("a1", &service.rule())?]).await?;
    let ingress = pair.proxy.ingress(0)?;

    let at_client = Arc::new(AtomicUsize::new(0));
    for streams in [1, 12] {
        let mut clients = JoinSet::new();
        for _ in 0..streams {
            clients.spawn(both_ways(
                TcpStream::connect(ingress).await?,
                at_client.clone(),
            ));
        }
        while let Some(client) = clients.join_next().await {
            client??;
        }
    }
    ensure!(
        at_client.load(Ordering::SeqCst) == 13,
        "not every client got its body"
    );
    probe::until("every connection of the service got its body", || {
        at_service.load(Ordering::SeqCst) == 13
    })
    .await?;
    Ok(())
}

/// Two bodies above every buffer on one connection, the later one read first.
#[tokio::test]
async fn exceed_buffer() -> Result {
    let source = Service::source(16 * MIB as u64).await?;
    let pair = Pair::start(&[source.rule()], vec![tcp_ingress("a1", &source.rule())?]).await?;
    let dialer = pair.proxy.as_proxy()?.dialer("a1")?;
    let mut earlier = dialer.dial(&source.rule()).await?;
    let mut later = dialer.dial(&source.rule()).await?;
    expect_whole(&mut later, body(16 * MIB)).await?;
    expect_whole(&mut earlier, body(16 * MIB)).await?;

    let mut earlier = TcpStream::connect(pair.proxy.ingress(0)?).await?;
    probe::until("the earlier one is served", || source.accepted() == 3).await?;
    let mut later = TcpStream::connect(pair.proxy.ingress(0)?).await?;
    expect_whole(&mut later, body(16 * MIB)).await?;
    expect_whole(&mut earlier, body(16 * MIB)).await?;
    ensure!(
        pair.proxy.as_proxy()?.sessions().len() == 1,
        "there is more than one connection"
    );
    Ok(())
}

/// Each direction ends alone: a client that has said all gets the whole reply, and one whose
/// service has said all can still send.
#[tokio::test]
async fn half_close() -> Result {
    // Answers after the end of the request.
    let after_end = Service::start(|mut stream, _| async move {
        let mut request = Vec::new();
        stream.read_to_end(&mut request).await?;
        assert_eq!(request, b"all of the request");
        stream.write_all(body(8 * MIB)).await?;
        stream.shutdown().await
    })
    .await?;
    // Ends at once, and then reads to the end.
    let before_end = Service::start(|mut stream, stats| async move {
        stream.write_all(b"that is all").await?;
        stream.shutdown().await?;
        expect_whole(&mut stream, body(8 * MIB))
            .await
            .map_err(std::io::Error::other)?;
        stats.read.fetch_add(8 * MIB as u64, Ordering::SeqCst);
        Ok(())
    })
    .await?;
    let ingresses = vec![
        tcp_ingress("a1", &after_end.rule())?,
        tcp_ingress("a1", &before_end.rule())?,
    ];
    let pair = Pair::start(&[after_end.rule(), before_end.rule()], ingresses).await?;
    let dialer = pair.proxy.as_proxy()?.dialer("a1")?;

    let mut client = TcpStream::connect(pair.proxy.ingress(0)?).await?;
    client.write_all(b"all of the request").await?;
    client.shutdown().await?;
    expect_whole(&mut client, body(8 * MIB)).await?;

    let mut stream = dialer.dial(&after_end.rule()).await?;
    stream.write_all(b"all of the request").await?;
    stream.shutdown().await?;
    expect_whole(&mut stream, body(8 * MIB)).await?;
    drop(stream);

    let read = || before_end.stats().read.load(Ordering::SeqCst);
    let mut client = TcpStream::connect(pair.proxy.ingress(1)?).await?;
    expect_bytes(&mut client, b"that is all").await?;
    ensure!(
        client.read(&mut [0]).await? == 0,
        "the service's end is missing"
    );
    client.write_all(body(8 * MIB)).await?;
    client.shutdown().await?;
    probe::until("the service has all", || read() == 8 * MIB as u64).await?;

    let mut stream = dialer.dial(&before_end.rule()).await?;
    expect_whole(&mut stream, b"that is all").await?;
    stream.write_all(body(8 * MIB)).await?;
    stream.shutdown().await?;
    probe::until("the service has all", || read() == 16 * MIB as u64).await?;
    drop(stream);
    probe::until("nothing is left", || {
        after_end.open() + before_end.open() == 0
            && crate::support::streams_open(&pair.proxy).is_ok_and(|open| open == 0)
    })
    .await?;
    Ok(())
}
