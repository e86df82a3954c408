//! New connections: connect, a byte there and back, close, and again.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::open;
use crate::service::Mode;

/// Connections that are under way at one time.
pub(crate) const AT_ONCE: usize = 64;

/// What became of them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Made {
    pub(crate) per_s: f64,
    pub(crate) failed: u64,
}

/// Makes connections for `warm_up`, and then counts them for `time`.
pub(crate) async fn run(entry: SocketAddr, warm_up: Duration, time: Duration) -> Made {
    let (made, failed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut tasks = JoinSet::new();
    for _ in 0..AT_ONCE {
        let (made, failed) = (made.clone(), failed.clone());
        tasks.spawn(async move {
            loop {
                let counter = match open(entry, Mode::Echo).await {
                    Ok(_) => &made,
                    Err(_) => &failed,
                };
                counter.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    tokio::time::sleep(warm_up).await;
    let (before, began) = (made.load(Ordering::Relaxed), Instant::now());
    tokio::time::sleep(time).await;
    let per_s = (made.load(Ordering::Relaxed) - before) as f64 / began.elapsed().as_secs_f64();
    tasks.shutdown().await;
    Made {
        per_s,
        failed: failed.load(Ordering::Relaxed),
    }
}
