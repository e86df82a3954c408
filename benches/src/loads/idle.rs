//! Streams that are open and have nothing to do, and what each costs in memory.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::open;
use crate::process::resident_bytes;
use crate::service::Mode;

/// Streams that are opened at one time.
const AT_ONCE: usize = 64;

/// Streams that are opened and closed before, so that what a tunnel has anyway is there.
pub(crate) const BEFORE: usize = 100;

/// From the last byte until the streams are idle.
const SETTLE: Duration = Duration::from_secs(1);

/// What each of `streams` costs, in bytes, in each of the two processes.
pub(crate) async fn memory(
    entry: SocketAddr,
    pids: [u32; 2],
    streams: usize,
) -> anyhow::Result<[f64; 2]> {
    drop(hold(entry, BEFORE).await?);
    tokio::time::sleep(SETTLE).await;
    let before = pids.map(resident_bytes);
    let held = hold(entry, streams).await?;
    tokio::time::sleep(SETTLE).await;
    let after = pids.map(resident_bytes);
    drop(held);
    let mut each = [0.0; 2];
    for ((each, before), after) in each.iter_mut().zip(before).zip(after) {
        *each = after?.saturating_sub(before?) as f64 / streams as f64;
    }
    Ok(each)
}

/// Downloads that nobody will read.
pub(crate) async fn unread(entry: SocketAddr, streams: usize) -> anyhow::Result<Vec<TcpStream>> {
    let mut held = Vec::with_capacity(streams);
    for _ in 0..streams {
        held.push(open(entry, Mode::Download).await?);
    }
    Ok(held)
}

/// Opens streams, each of which has moved a byte there and back.
async fn hold(entry: SocketAddr, streams: usize) -> anyhow::Result<Vec<TcpStream>> {
    let slots = Arc::new(Semaphore::new(AT_ONCE));
    let mut tasks = JoinSet::new();
    for _ in 0..streams {
        let slot = slots.clone().acquire_owned().await?;
        tasks.spawn(async move {
            let socket = open(entry, Mode::Echo).await;
            drop(slot);
            socket
        });
    }
    let mut held = Vec::with_capacity(streams);
    while let Some(socket) = tasks.join_next().await {
        held.push(socket?.with_context(|| format!("stream {} of {streams}", held.len() + 1))?);
    }
    Ok(held)
}
