//! What the tunnels lead to: a service that sends, takes or sends back, in this process, so that
//! bytes are counted where they arrive.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;

/// The first byte of a connection: what it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Mode {
    /// The service sends for as long as the other side is there.
    Download = b'D',
    /// The service takes whatever comes.
    Upload = b'U',
    /// The service sends back what comes, this byte included.
    Echo = b'E',
}

/// Bytes of one read or write of a bulk stream.
pub(crate) const BULK_BYTES: usize = 256 << 10;

/// Bytes of a small request, and of its response.
pub(crate) const MESSAGE_BYTES: usize = 64;

/// How long former streams may take to be gone.
const DRAIN_PATIENCE: Duration = Duration::from_secs(5);

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 4096;

/// What goes through the service in bulk streams.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) sent: AtomicU64,
    pub(crate) received: AtomicU64,
    open: AtomicUsize,
}

impl Counters {
    /// Waits until what former bulk streams have left in the tunnels is gone, which else would be
    /// counted, and be carried, with what is measured next.
    pub(crate) async fn drained(&self) {
        let began = Instant::now();
        while self.open.load(Ordering::Relaxed) > 0 && began.elapsed() < DRAIN_PATIENCE {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// A running service. It lives as long as the process.
#[derive(Debug)]
pub(crate) struct Service {
    addr: SocketAddr,
    light: Handle,
    counters: Arc<Counters>,
    bulk: Handle,
}

impl Service {
    /// Starts it on loopback. Bulk streams run on `bulk`; small messages have a thread of their
    /// own, so that they wait for the tunnel and not for this process.
    pub(crate) fn start(bulk: Handle) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let light = runtime.handle().clone();
        thread::Builder::new()
            .name("service".into())
            .spawn(move || runtime.block_on(std::future::pending::<()>()))?;
        let mut service = Self {
            addr: ([127, 0, 0, 1], 0).into(),
            light,
            counters: Arc::default(),
            bulk,
        };
        service.addr = service.listen(service.addr)?;
        Ok(service)
    }

    /// Where it listens on loopback.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Listens on one address more.
    pub(crate) fn listen(&self, addr: SocketAddr) -> anyhow::Result<SocketAddr> {
        let _runtime = self.light.enter();
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(addr).with_context(|| addr.to_string())?;
        let listener = socket.listen(BACKLOG)?;
        let addr = listener.local_addr()?;
        let (counters, bulk) = (self.counters.clone(), self.bulk.clone());
        self.light.spawn(accept(listener, counters, bulk));
        Ok(addr)
    }
}

async fn accept(listener: TcpListener, counters: Arc<Counters>, bulk: Handle) {
    loop {
        match listener.accept().await {
            Ok((socket, _)) => {
                let (counters, bulk) = (counters.clone(), bulk.clone());
                // An error is the end of one connection; whoever measures it sees that.
                tokio::spawn(async move {
                    let _ = serve(socket, counters, bulk).await;
                });
            }
            Err(error) => eprintln!("the service cannot accept: {error}"),
        }
    }
}

async fn serve(
    mut socket: TcpStream,
    counters: Arc<Counters>,
    bulk: Handle,
) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    let mode = socket.read_u8().await?;
    if mode == Mode::Echo as u8 {
        socket.write_u8(mode).await?;
        let mut message = [0; MESSAGE_BYTES];
        loop {
            match socket.read(&mut message).await? {
                0 => return Ok(()),
                read => socket.write_all(&message[..read]).await?,
            }
        }
    }
    let socket = socket.into_std()?;
    counters.open.fetch_add(1, Ordering::Relaxed);
    bulk.spawn(async move {
        let served = async {
            let mut socket = TcpStream::from_std(socket)?;
            if mode == Mode::Download as u8 {
                send(&mut socket, &counters.sent).await
            } else {
                receive(&mut socket, &counters.received).await
            }
        };
        let served = served.await;
        counters.open.fetch_sub(1, Ordering::Relaxed);
        served
    });
    Ok(())
}

/// Sends for as long as the other side takes it.
pub(crate) async fn send(socket: &mut TcpStream, sent: &AtomicU64) -> std::io::Result<()> {
    let block = vec![0x5a; BULK_BYTES];
    loop {
        let written = socket.write(&block).await?;
        sent.fetch_add(written as u64, Ordering::Relaxed);
    }
}

/// Takes what comes, to the end.
pub(crate) async fn receive(socket: &mut TcpStream, received: &AtomicU64) -> std::io::Result<()> {
    let mut block = vec![0; BULK_BYTES];
    loop {
        match socket.read(&mut block).await? {
            0 => return Ok(()),
            read => received.fetch_add(read as u64, Ordering::Relaxed),
        };
    }
}
