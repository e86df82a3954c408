//! Targets for agents: small TCP services with a known behaviour.

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::Result;

/// A service; dropping it ends it and its connections.
#[derive(Debug)]
pub struct Service {
    /// Where it listens.
    pub addr: SocketAddr,
    stats: Arc<Stats>,
    _tasks: JoinSet<()>,
}

/// What a service has seen.
#[derive(Debug, Default)]
pub struct Stats {
    accepted: AtomicUsize,
    open: AtomicUsize,
    /// Bytes that it has written; each service counts its own.
    pub written: AtomicU64,
    /// Bytes that it has read; each service counts its own.
    pub read: AtomicU64,
}

/// Counts a connection as open for as long as it lives.
struct Open(Arc<Stats>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Service {
    /// Starts a service that runs `serve` for each connection.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn start<F, Fut>(serve: F) -> Result<Self>
    where
        F: Fn(TcpStream, Arc<Stats>) -> Fut + Send + 'static,
        Fut: Future<Output = std::io::Result<()>> + Send + 'static,
    {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let addr = listener.local_addr()?;
        let stats = Arc::new(Stats::default());
        let mut tasks = JoinSet::new();
        let shared = stats.clone();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let Ok((stream, _)) = accepted else { break };
                        shared.accepted.fetch_add(1, Ordering::SeqCst);
                        shared.open.fetch_add(1, Ordering::SeqCst);
                        let open = Open(shared.clone());
                        let served = serve(stream, shared.clone());
                        connections.spawn(async move {
                            // A connection that breaks is for the test to judge.
                            let _ = served.await;
                            drop(open);
                        });
                    }
                    Some(_) = connections.join_next() => {}
                }
            }
        });
        Ok(Self {
            addr,
            stats,
            _tasks: tasks,
        })
    }

    /// Sends back what comes, until the end, and then ends.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn echo() -> Result<Self> {
        Self::start(|mut stream, stats| async move {
            let (mut read, mut write) = stream.split();
            let echoed = tokio::io::copy(&mut read, &mut write).await?;
            stats.read.fetch_add(echoed, Ordering::SeqCst);
            write.shutdown().await
        })
        .await
    }

    /// Sends `bytes` of [`pattern`] to whoever connects, and ends.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn source(bytes: u64) -> Result<Self> {
        Self::start(move |mut stream, stats| async move {
            let mut sent = 0;
            while sent < bytes {
                let chunk = pattern(
                    sent,
                    usize::try_from((bytes - sent).min(64 << 10)).unwrap_or(0),
                );
                stream.write_all(&chunk).await?;
                sent += chunk.len() as u64;
                stats
                    .written
                    .fetch_add(chunk.len() as u64, Ordering::SeqCst);
            }
            stream.shutdown().await
        })
        .await
    }

    /// Reads until the end, and answers with the number of bytes and their [`Checksum`] as text.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn sink() -> Result<Self> {
        Self::start(|mut stream, stats| async move {
            let mut checksum = Checksum::default();
            let mut buffer = vec![0; 64 << 10];
            loop {
                let read = stream.read(&mut buffer).await?;
                if read == 0 {
                    break;
                }
                checksum.update(&buffer[..read]);
                stats.read.fetch_add(read as u64, Ordering::SeqCst);
            }
            stream.write_all(checksum.to_string().as_bytes()).await?;
            stream.shutdown().await
        })
        .await
    }

    /// Accepts connections and never reads or writes.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn silent() -> Result<Self> {
        Self::start(|stream, _| async move {
            let _stream = stream;
            std::future::pending().await
        })
        .await
    }

    /// The allow rule that covers it.
    #[must_use]
    pub fn rule(&self) -> String {
        self.addr.to_string()
    }

    /// What it has seen.
    #[must_use]
    pub fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    /// Connections accepted so far.
    #[must_use]
    pub fn accepted(&self) -> usize {
        self.stats.accepted.load(Ordering::SeqCst)
    }

    /// Connections that are being served.
    #[must_use]
    pub fn open(&self) -> usize {
        self.stats.open.load(Ordering::SeqCst)
    }
}

/// Sends `bytes` to an echo behind `addr`, ends, and compares what comes back.
///
/// # Errors
/// When it is something else, or the connection breaks.
pub async fn echoes(addr: SocketAddr, bytes: &[u8]) -> Result {
    let mut stream = TcpStream::connect(addr).await?;
    stream.write_all(bytes).await?;
    stream.shutdown().await?;
    let mut back = Vec::new();
    stream.read_to_end(&mut back).await?;
    anyhow::ensure!(
        back == bytes,
        "{} bytes came back, not the {} sent",
        back.len(),
        bytes.len()
    );
    Ok(())
}

/// Bytes of a stream that repeats late (every 2^32 bytes): what is lost, doubled or moved shows.
#[must_use]
pub fn pattern(offset: u64, length: usize) -> Vec<u8> {
    let before = usize::try_from(offset % 8).unwrap_or(0);
    let mut bytes = Vec::with_capacity(before + length + 8);
    let mut word = offset / 8;
    while bytes.len() < before + length {
        let mixed = word.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(17);
        bytes.extend_from_slice(&mixed.to_le_bytes());
        word += 1;
    }
    bytes.truncate(before + length);
    bytes.drain(..before);
    bytes
}

/// Length and FNV-1a hash of what was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checksum {
    bytes: u64,
    hash: u64,
}

impl Default for Checksum {
    fn default() -> Self {
        Self {
            bytes: 0,
            hash: 0xcbf2_9ce4_8422_2325,
        }
    }
}

impl Checksum {
    /// Of one piece.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let mut checksum = Self::default();
        checksum.update(bytes);
        checksum
    }

    /// Adds a piece.
    pub fn update(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        for byte in bytes {
            self.hash = (self.hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    /// Bytes seen.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl std::fmt::Display for Checksum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:016x}", self.bytes, self.hash)
    }
}
