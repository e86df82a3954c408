//! Small requests at times that are fixed beforehand.
//!
//! A response that is late does not hold up the schedule: the requests behind it are sent late and
//! are measured from when they were due, so that a stall is seen by all whom it would have met
//! (no coordinated omission). Threads and blocking sockets: a runtime's timers are coarser than what
//! is measured here.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use hdrhistogram::Histogram;
use nix::sys::prctl;

use crate::service::{MESSAGE_BYTES, Mode};

/// How long a response may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long after the last request was due those that are late may still be sent.
const OVERTIME: Duration = Duration::from_secs(3);

/// From when the connections are there until the first request is due.
const LEAD: Duration = Duration::from_millis(20);

/// When requests are sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Schedule {
    pub(crate) connections: u32,
    /// Between two requests of one connection.
    pub(crate) interval: Duration,
    pub(crate) time: Duration,
}

/// What came of it, in nanoseconds.
#[derive(Debug)]
pub(crate) struct Latencies(Histogram<u64>);

impl Latencies {
    pub(crate) fn micros(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1e3
    }
}

/// Sends the requests and waits for all responses.
pub(crate) async fn run(entry: SocketAddr, schedule: Schedule) -> anyhow::Result<Latencies> {
    tokio::task::spawn_blocking(move || run_threads(entry, schedule)).await?
}

fn run_threads(entry: SocketAddr, schedule: Schedule) -> anyhow::Result<Latencies> {
    // All at once: where a round trip takes long, one after the other would take longer than the
    // measurement.
    let sockets: Vec<_> = (0..schedule.connections)
        .map(|_| thread::spawn(move || open(entry)))
        .collect();
    let sockets = sockets
        .into_iter()
        .map(joined)
        .collect::<anyhow::Result<Vec<_>>>()?;
    let begin = Instant::now() + LEAD;
    let threads: Vec<_> = (0..)
        .zip(sockets)
        .map(|(index, socket)| {
            // Spread evenly, so that requests do not queue behind each other by design.
            let offset = schedule.interval * index / schedule.connections;
            thread::spawn(move || requests(socket, begin + offset, schedule))
        })
        .collect();
    let mut all = histogram()?;
    for thread in threads {
        all.add(joined(thread)?)?;
    }
    ensure!(!all.is_empty(), "no request was due");
    Ok(Latencies(all))
}

fn joined<T>(thread: JoinHandle<anyhow::Result<T>>) -> anyhow::Result<T> {
    thread.join().map_err(|_| anyhow::anyhow!("a panic"))?
}

fn histogram() -> anyhow::Result<Histogram<u64>> {
    Ok(Histogram::new(3)?)
}

fn open(entry: SocketAddr) -> anyhow::Result<TcpStream> {
    let mut socket = TcpStream::connect_timeout(&entry, PATIENCE)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.write_all(&[Mode::Echo as u8])?;
    socket.read_exact(&mut [0])?;
    Ok(socket)
}

fn requests(
    mut socket: TcpStream,
    first: Instant,
    schedule: Schedule,
) -> anyhow::Result<Histogram<u64>> {
    // Sleeps end when they should, and not up to 50 us later.
    prctl::set_timerslack(1)?;
    let mut latencies = histogram()?;
    let mut message = [0x11; MESSAGE_BYTES];
    let end = first + schedule.time;
    let mut due = first;
    while due < end {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if Instant::now() < end + OVERTIME {
            socket.write_all(&message)?;
            socket.read_exact(&mut message).context("no response")?;
        }
        // Without a response it is at least this late.
        let latency = Instant::now().saturating_duration_since(due);
        latencies.record(u64::try_from(latency.as_nanos())?)?;
        due += schedule.interval;
    }
    Ok(latencies)
}
