//! Services on simulated hosts, for agents to reach.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use anyhow::ensure;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use node::net::{Listener, Network as _, Socket};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::task::JoinSet;

use super::network::HostNetwork;
use crate::Result;
use crate::services::{Checksum, pattern};

/// What a service does with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// Sends back what comes, until the end, and then ends.
    Echo,
    /// Sends this many bytes of [`pattern`], and ends.
    Source(u64),
    /// Reads until the end, and answers with the [`Checksum`] as text.
    Sink,
    /// Neither reads nor writes.
    Silent,
    /// Answers each HTTP/1.1 request with its own body.
    HttpEcho,
}

/// What a service has seen.
#[derive(Debug, Default)]
pub struct Stats {
    accepted: AtomicUsize,
    open: AtomicUsize,
    read: AtomicU64,
}

impl Stats {
    /// Connections accepted so far.
    #[must_use]
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    /// Connections that are being served.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    /// Bytes that echoes and sinks have read.
    #[must_use]
    pub fn read(&self) -> u64 {
        self.read.load(Ordering::SeqCst)
    }
}

/// Counts a connection as open for as long as it lives.
struct Open(Arc<Stats>);

impl Open {
    fn new(stats: &Arc<Stats>) -> Self {
        stats.accepted.fetch_add(1, Ordering::SeqCst);
        stats.open.fetch_add(1, Ordering::SeqCst);
        Self(stats.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A running service.
#[derive(Debug, Clone)]
pub struct Running {
    /// Where it listens.
    pub address: SocketAddr,
    /// What it has seen.
    pub stats: Arc<Stats>,
}

impl Running {
    /// The allow rule that covers it.
    #[must_use]
    pub fn rule(&self) -> String {
        self.address.to_string()
    }
}

/// Starts a service at `address` of a host; it ends with the host or with `tasks`.
///
/// # Errors
/// When the address is taken.
pub(super) fn start(
    network: &HostNetwork,
    address: SocketAddr,
    service: Service,
    tasks: &mut JoinSet<()>,
) -> Result<Running> {
    let listener = network.listen(address)?;
    let address = listener.local_addr()?;
    let stats = Arc::new(Stats::default());
    tasks.spawn(accept(listener, service, stats.clone()));
    Ok(Running { address, stats })
}

/// Starts a service on a Unix socket of a host.
///
/// # Errors
/// When the path is taken.
pub(super) fn start_unix(
    network: &HostNetwork,
    path: &Path,
    service: Service,
    tasks: &mut JoinSet<()>,
) -> Result<Arc<Stats>> {
    let listener = network.listen_unix(path)?;
    let stats = Arc::new(Stats::default());
    tasks.spawn(accept(listener, service, stats.clone()));
    Ok(stats)
}

async fn accept(listener: Box<dyn Listener>, service: Service, stats: Arc<Stats>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => {
                // The host was killed.
                let Ok(socket) = accepted else { break };
                let stats = stats.clone();
                connections.spawn(async move {
                    let open = Open::new(&stats);
                    // A connection that breaks is for the test to judge.
                    let _ = serve(service, socket, &stats).await;
                    drop(open);
                });
            }
        }
    }
}

async fn serve(service: Service, mut socket: Box<dyn Socket>, stats: &Stats) -> io::Result<()> {
    let mut buffer = vec![0; 16 << 10];
    match service {
        Service::Echo => {
            loop {
                let read = socket.read(&mut buffer).await?;
                if read == 0 {
                    break;
                }
                stats.read.fetch_add(read as u64, Ordering::SeqCst);
                socket.write_all(&buffer[..read]).await?;
            }
            socket.shutdown().await
        }
        Service::Source(bytes) => {
            let mut sent = 0;
            while sent < bytes {
                let length = usize::try_from((bytes - sent).min(64 << 10)).unwrap_or(0);
                socket.write_all(&pattern(sent, length)).await?;
                sent += length as u64;
            }
            socket.shutdown().await
        }
        Service::Sink => {
            let mut checksum = Checksum::default();
            loop {
                let read = socket.read(&mut buffer).await?;
                if read == 0 {
                    break;
                }
                checksum.update(&buffer[..read]);
                stats.read.fetch_add(read as u64, Ordering::SeqCst);
            }
            socket.write_all(checksum.to_string().as_bytes()).await?;
            socket.shutdown().await
        }
        Service::Silent => std::future::pending().await,
        Service::HttpEcho => {
            let echo = |request: Request<Incoming>| async {
                Ok::<_, Infallible>(Response::new(request.into_body()))
            };
            hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(socket), service_fn(echo))
                .await
                .map_err(io::Error::other)
        }
    }
}

/// Sends `bytes` to an echo, ends, and compares what comes back.
///
/// # Errors
/// When it is something else, or the stream breaks.
pub async fn echoes<S: AsyncRead + AsyncWrite>(stream: S, bytes: &[u8]) -> Result {
    let (mut read, mut write) = tokio::io::split(stream);
    let send = async {
        write.write_all(bytes).await?;
        write.shutdown().await
    };
    let mut back = Vec::new();
    let receive = read.read_to_end(&mut back);
    tokio::try_join!(send, receive)?;
    ensure!(
        back == bytes,
        "{} bytes came back, not the {} sent",
        back.len(),
        bytes.len()
    );
    Ok(())
}
