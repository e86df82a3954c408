//! The system's network with a hand on it: counts bytes, breaks connections, swallows connects.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use node::net::{BoxFuture, Listener, Network, Socket, SystemNetwork, UdpBinding};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;

/// How a connection breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Its next read or write fails.
    Error,
    /// Whoever reads or writes next panics.
    Panic,
}

/// What a node is given as its network. Clones are one network.
#[derive(Debug, Clone, Default)]
pub struct TestNetwork(Arc<State>);

#[derive(Debug, Default)]
struct State {
    read: AtomicU64,
    written: AtomicU64,
    fault: watch::Sender<Option<Fault>>,
    silent: AtomicBool,
}

impl TestNetwork {
    /// Bytes that the node has read from its TCP and Unix sockets.
    #[must_use]
    pub fn read(&self) -> u64 {
        self.0.read.load(Ordering::SeqCst)
    }

    /// Bytes that the node has written to its TCP and Unix sockets.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.0.written.load(Ordering::SeqCst)
    }

    /// Breaks all sockets that the node has now.
    pub fn strike(&self, fault: Fault) {
        self.0.fault.send_replace(Some(fault));
    }

    /// Sockets made from now on work again.
    pub fn heal(&self) {
        self.0.fault.send_replace(None);
    }

    /// As behind a firewall that answers nothing: connects never complete, while it is so.
    pub fn set_silent(&self, silent: bool) {
        self.0.silent.store(silent, Ordering::SeqCst);
    }

    fn wrap(&self, socket: Box<dyn Socket>) -> Box<dyn Socket> {
        Box::new(TestSocket {
            socket,
            reader: Struck::new(&self.0.fault),
            writer: Struck::new(&self.0.fault),
            state: self.0.clone(),
        })
    }

    async fn swallow(&self) {
        if self.0.silent.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
    }
}

impl Network for TestNetwork {
    fn bind_udp(&self, address: SocketAddr, shared: bool) -> io::Result<UdpBinding> {
        SystemNetwork.bind_udp(address, shared)
    }

    fn quic_runtime(&self) -> Arc<dyn quinn::Runtime> {
        SystemNetwork.quic_runtime()
    }

    fn listen(&self, address: SocketAddr) -> io::Result<Box<dyn Listener>> {
        Ok(Box::new(TestListener {
            listener: SystemNetwork.listen(address)?,
            network: self.clone(),
        }))
    }

    fn connect(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn Socket>>> {
        Box::pin(async move {
            self.swallow().await;
            Ok(self.wrap(SystemNetwork.connect(address).await?))
        })
    }

    fn connect_unix<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<Box<dyn Socket>>> {
        Box::pin(async move {
            self.swallow().await;
            Ok(self.wrap(SystemNetwork.connect_unix(path).await?))
        })
    }

    /// Knows `localhost` and no other name, so that no test asks a real resolver.
    fn resolve<'a>(
        &'a self,
        host: &'a str,
        port: u16,
    ) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
        Box::pin(async move {
            if host == "localhost" {
                return Ok(vec![SocketAddr::from(([127, 0, 0, 1], port))]);
            }
            Err(io::Error::new(
                io::ErrorKind::NotFound,
                "the test network does not know this name",
            ))
        })
    }
}

#[derive(Debug)]
struct TestListener {
    listener: Box<dyn Listener>,
    network: TestNetwork,
}

impl Listener for TestListener {
    fn accept(&self) -> BoxFuture<'_, io::Result<Box<dyn Socket>>> {
        Box::pin(async move { Ok(self.network.wrap(self.listener.accept().await?)) })
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// Completes with the fault that strikes the socket.
struct Struck(Pin<Box<dyn Future<Output = Fault> + Send>>);

impl Struck {
    fn new(fault: &watch::Sender<Option<Fault>>) -> Self {
        let mut fault = fault.subscribe();
        Self(Box::pin(async move {
            match fault.wait_for(Option::is_some).await.map(|fault| *fault) {
                Ok(Some(fault)) => fault,
                // The network is gone, and with it whoever could strike.
                Ok(None) | Err(_) => std::future::pending().await,
            }
        }))
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.0.as_mut().poll(cx) {
            Poll::Pending => Ok(()),
            Poll::Ready(fault) => {
                // A struck socket stays so.
                self.0 = Box::pin(std::future::ready(fault));
                match fault {
                    Fault::Error => Err(io::Error::other("the test broke this socket")),
                    #[expect(clippy::panic, reason = "what the test asked for")]
                    Fault::Panic => panic!("the test asked for this panic"),
                }
            }
        }
    }
}

impl std::fmt::Debug for Struck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Struck(…)")
    }
}

#[derive(Debug)]
struct TestSocket {
    socket: Box<dyn Socket>,
    reader: Struck,
    writer: Struck,
    state: Arc<State>,
}

impl Socket for TestSocket {
    fn set_reset_on_close(&self, reset: bool) {
        self.socket.set_reset_on_close(reset);
    }

    fn peer_addr(&self) -> Option<SocketAddr> {
        self.socket.peer_addr()
    }

    fn broken(&self) -> BoxFuture<'static, ()> {
        self.socket.broken()
    }

    fn rehome(self: Box<Self>) -> io::Result<Box<dyn Socket>> {
        let Self {
            socket,
            reader,
            writer,
            state,
        } = *self;
        Ok(Box::new(Self {
            socket: socket.rehome()?,
            reader,
            writer,
            state,
        }))
    }
}

impl AsyncRead for TestSocket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.reader.poll(cx)?;
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.socket).poll_read(cx, buf))?;
        let read = buf.filled().len() - before;
        this.state.read.fetch_add(read as u64, Ordering::SeqCst);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TestSocket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.writer.poll(cx)?;
        let written = ready!(Pin::new(&mut this.socket).poll_write_vectored(cx, bufs))?;
        this.state
            .written
            .fetch_add(written as u64, Ordering::SeqCst);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(cx)
    }
}
