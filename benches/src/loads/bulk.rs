//! Streams that move as many bytes as they can.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use tokio::task::JoinSet;

use super::open;
use crate::process::cpu_of;
use crate::service::{Counters, Mode, receive, send};

/// Which way the bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From the service to the user.
    Down,
    /// From the user to the service.
    Up,
}

/// What was moved in a time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moved {
    pub(crate) bytes: u64,
    pub(crate) time: Duration,
    /// What the processes of the tunnel took for it.
    pub(crate) cpu: Duration,
}

impl Moved {
    pub(crate) fn gbit_per_s(&self) -> f64 {
        self.bytes as f64 * 8e-9 / self.time.as_secs_f64()
    }

    pub(crate) fn cpu_s_per_gib(&self) -> f64 {
        self.cpu.as_secs_f64() * f64::from(1 << 30) / self.bytes as f64
    }
}

/// Streams that run until they are dropped.
#[derive(Debug)]
pub(crate) struct Bulk<'a> {
    direction: Direction,
    tasks: JoinSet<std::io::Result<()>>,
    here: Arc<AtomicU64>,
    service: &'a Counters,
}

impl<'a> Bulk<'a> {
    pub(crate) async fn start(
        entry: SocketAddr,
        direction: Direction,
        streams: usize,
        service: &'a Counters,
    ) -> anyhow::Result<Self> {
        let mut tasks = JoinSet::new();
        let here = Arc::new(AtomicU64::new(0));
        for _ in 0..streams {
            let mode = match direction {
                Direction::Down => Mode::Download,
                Direction::Up => Mode::Upload,
            };
            let mut socket = open(entry, mode).await?;
            // What is under way when a stream ends is of no interest to anybody.
            socket.set_zero_linger()?;
            let here = here.clone();
            tasks.spawn(async move {
                match direction {
                    Direction::Down => receive(&mut socket, &here).await,
                    Direction::Up => send(&mut socket, &here).await,
                }
            });
        }
        Ok(Self {
            direction,
            tasks,
            here,
            service,
        })
    }

    /// Bytes that have arrived.
    fn arrived(&self) -> u64 {
        match self.direction {
            Direction::Down => &self.here,
            Direction::Up => &self.service.received,
        }
        .load(Ordering::Relaxed)
    }

    /// Watches what arrives while `meanwhile` runs.
    pub(crate) async fn during<T>(
        &mut self,
        pids: &[u32],
        meanwhile: impl Future<Output = T>,
    ) -> anyhow::Result<(Moved, T)> {
        let (bytes, cpu, began) = (self.arrived(), cpu_of(pids)?, Instant::now());
        let result = meanwhile.await;
        let moved = Moved {
            bytes: self.arrived() - bytes,
            time: began.elapsed(),
            cpu: cpu_of(pids)?.saturating_sub(cpu),
        };
        if let Some(ended) = self.tasks.try_join_next() {
            ended?.context("a bulk stream has failed")?;
            bail!("a bulk stream has ended");
        }
        ensure!(moved.bytes > 0, "no byte arrived");
        Ok((moved, result))
    }

    /// Ends all streams, and waits until they are gone.
    pub(crate) async fn end(mut self) {
        self.tasks.shutdown().await;
        self.service.drained().await;
    }
}
