//! Holes in a stream. quinn closes the whole connection when one stream has more than 1,024 pieces that
//! cannot be joined: a window must not have room for so many.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use mesh_tests::Result;
use mesh_tests::services::{Checksum, pattern};
use mesh_tests::sim::{Action, Link, Service, Transport, World, run_seeded};
use tokio::io::{AsyncRead, AsyncReadExt as _};

const MIB: u64 = 1 << 20;

/// The largest stream window that the config takes.
const WINDOW_BYTES: u32 = 4 << 20;

/// The longest body.
const BODY_BYTES: u64 = 80 * MIB;

/// Read before the first loss.
const WARM_UP_BYTES: u64 = 40 * MIB;

/// Read between two bad times.
const BETWEEN_BYTES: u64 = 8 * MIB;

/// One way: a window is on its way at one time, and the sender has sent all of it before it hears of
/// a loss.
const LATENCY: Duration = Duration::from_millis(100);

/// Reads so many bytes, as long as they come.
async fn read(
    stream: &mut (impl AsyncRead + Unpin),
    checksum: &mut Checksum,
    bytes: u64,
) -> Result {
    let mut buffer = vec![0; 64 << 10];
    let mut done = 0;
    while done < bytes {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            break;
        }
        checksum.update(&buffer[..read]);
        done += read as u64;
    }
    Ok(())
}

/// A body over a line on which, again and again, `bad` takes the place of the good link while a window is
/// under way. Returns how many packets were lost at most in one such time.
async fn body_over(world: &mut World, bad: Link) -> Result<u64> {
    let good = Link::latency(LATENCY);
    world.net().set_default_link(good.clone());
    let proxies = world
        .start_proxies_with(1, |_, plan| {
            plan.config.common.quic.stream_window_bytes = WINDOW_BYTES;
            Ok(())
        })
        .await?;
    let agents = world
        .start_agents_with(1, |_, plan| {
            plan.config.common.quic.stream_window_bytes = WINDOW_BYTES;
            plan.allow(&["127.0.0.1:7".into()])
        })
        .await?;
    world.serve_loopback(agents[0], 7, Service::Source(BODY_BYTES))?;
    world
        .until("the agent is connected", |w| w.all_hold(&agents, 1))
        .await?;
    let mut stream = world.dial(proxies[0], agents[0], "127.0.0.1:7").await?;
    let mut checksum = Checksum::default();
    // Slow start, until a whole window is under way.
    read(&mut stream, &mut checksum, WARM_UP_BYTES).await?;
    let mut most = 0;
    while checksum.bytes() < BODY_BYTES {
        // Nobody reads until the window is full, and then all of it: the next one comes at once.
        world.run_for(4 * LATENCY).await;
        let before = world.net().count(Transport::Udp, Action::Lost);
        world.net().set_link(agents[0], proxies[0], bad.clone());
        let reading = read(&mut stream, &mut checksum, WINDOW_BYTES.into());
        // What is behind the first hole cannot be read yet.
        if let Ok(broken) = tokio::time::timeout(2 * LATENCY, reading).await {
            broken?;
        }
        world.net().set_link(agents[0], proxies[0], good.clone());
        let lost = world.net().count(Transport::Udp, Action::Lost) - before;
        most = most.max(lost);
        let at = checksum.bytes();
        read(&mut stream, &mut checksum, BETWEEN_BYTES)
            .await
            .with_context(|| format!("after {at} bytes and {lost} lost packets"))?;
        ensure!(
            checksum.bytes() > at || at == BODY_BYTES,
            "the end came after {at} bytes"
        );
    }
    let sent = Checksum::of(&pattern(0, usize::try_from(BODY_BYTES)?));
    ensure!(checksum == sent, "{checksum} instead of {sent}");
    let connects = world
        .metrics(agents[0])?
        .get("mesh_agent_connects_total{result=\"ok\"}")?;
    ensure!(
        connects.to_bits() == 1f64.to_bits(),
        "the agent has connected {connects} times"
    );
    Ok(most)
}

/// Every other packet of a window is lost: as many holes as chance can make. How many are under way at
/// the time depends on the seed; with this one, all of a window.
#[test]
fn a_stream_full_of_holes_closes_nothing() -> Result {
    run_seeded("a_stream_full_of_holes_closes_nothing", 1, async |world| {
        let most = body_over(world, Link::latency(LATENCY).lossy(0.5)).await?;
        ensure!(
            most > 1_000,
            "no more than {most} packets were lost at a time"
        );
        Ok(())
    })
}

/// Packets overtake each other by whole windows, and some come twice.
#[test]
fn a_stream_out_of_order_closes_nothing() -> Result {
    run_seeded("a_stream_out_of_order_closes_nothing", 1, async |world| {
        let mut bad = Link::latency(LATENCY)
            .reordering(0.5)
            .duplicating(0.2)
            .lossy(0.05);
        bad.reorder_delay = 3 * LATENCY;
        body_over(world, bad).await.map(drop)
    })
}
