//! Streams of one connection share it: what a large one has sent ahead of a small one is bounded, in
//! bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::ensure;
use mesh_tests::Result;
use mesh_tests::sim::{Action, Link, Service, Transport, World, run};
use node::proxy::Stream;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const MS: Duration = Duration::from_millis(1);

/// Bits per second of the line.
const RATE: u64 = 20_000_000;

const LATENCY: Duration = Duration::from_millis(10);

/// Bytes that may wait before the line.
const QUEUE_BYTES: usize = 64 << 10;

/// What is under way between the agent and the proxy at one time: what the line carries in a round trip,
/// and what waits before it.
const UNDER_WAY_BYTES: u64 = RATE / 8 * 2 * LATENCY.as_millis() as u64 / 1000 + QUEUE_BYTES as u64;

/// A request, or its answer, is behind what was under way when it came; so is its copy when it was lost,
/// as the full queue does to all streams alike; and that may be lost too. What the large stream had
/// buffered by then is many times as much: four windows of 2 MiB.
const AHEAD_BYTES_MAX: u64 = 4 * UNDER_WAY_BYTES;

/// UDP payload of a full packet.
const PACKET_BYTES: u64 = 1472;

const REQUESTS: usize = 50;

/// Counts what comes, for as long as it lives.
async fn count(mut stream: Stream, counter: Arc<AtomicU64>) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        counter.fetch_add(read as u64, Ordering::Relaxed);
    }
}

async fn requests_beside_bulk(world: &mut World) -> Result {
    world
        .net()
        .set_default_link(Link::latency(LATENCY).limited(RATE, QUEUE_BYTES));
    let proxies = world.start_proxies(1).await?;
    let agents = world
        .start_agents_with(1, |_, plan| plan.allow(&["127.0.0.1:*".into()]))
        .await?;
    world.serve_loopback(agents[0], 7, Service::Echo)?;
    world.serve_loopback(agents[0], 9, Service::Source(u64::MAX))?;
    world
        .until("the agent is connected", |w| w.all_hold(&agents, 1))
        .await?;
    let bulk = world.dial(proxies[0], agents[0], "127.0.0.1:9").await?;
    let arrived = Arc::new(AtomicU64::new(0));
    let reader = tokio::spawn(count(bulk, arrived.clone()));
    let mut small = world.dial(proxies[0], agents[0], "127.0.0.1:7").await?;
    world.run_for(Duration::from_secs(5)).await;

    // Counted on the wire: a reader gets a whole window at once when a hole is filled.
    let delivered = |w: &World| w.net().count(Transport::Udp, Action::Delivered) * PACKET_BYTES;
    let began = (arrived.load(Ordering::Relaxed), world.elapsed());
    let mut most = 0;
    for request in 0..REQUESTS {
        let before = delivered(world);
        small.write_all(&[7; 64]).await?;
        small.read_exact(&mut [0; 64]).await?;
        let ahead = delivered(world) - before;
        ensure!(
            ahead <= AHEAD_BYTES_MAX,
            "request {request}: {ahead} bytes came before its answer, over {AHEAD_BYTES_MAX}"
        );
        most = most.max(ahead);
        // Not always at the same place of the controller's round.
        world.run_for(13 * MS).await;
    }
    // The line was full all the while, or nothing was in anybody's way.
    let bytes = arrived.load(Ordering::Relaxed) - began.0;
    let carried = RATE / 8 * u64::try_from((world.elapsed() - began.1).as_millis())? / 1000;
    ensure!(bytes > carried / 2, "{bytes} bytes of {carried}");
    ensure!(most > 16 << 10, "no more than {most} bytes were ahead");
    reader.abort();
    Ok(())
}

#[test]
fn a_small_request_waits_for_few_bytes() -> Result {
    run(
        "a_small_request_waits_for_few_bytes",
        1,
        requests_beside_bulk,
    )
}
