//! Sockets and names, behind one trait.
//!
//! Everything that leaves the process goes through a [`Network`]: the roles are handed one and
//! know no other way out. [`SystemNetwork`] is the operating system's; a simulator brings its
//! own, so that a whole fleet runs in virtual time.

mod udp;

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

/// A boxed future, as the methods of object-safe traits return.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Size asked for UDP socket buffers, in bytes. The kernel grants at most `net.core.rmem_max`
/// and `wmem_max`; what it granted is read back and shown.
const UDP_BUFFER_BYTES: usize = 4 << 20;

/// Idle time before the kernel probes a TCP peer, so that one that vanished is noticed.
const TCP_KEEPALIVE_IDLE: Duration = Duration::from_secs(60);

/// Interval between those probes.
const TCP_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// Length of the queue of connections that were not accepted yet.
const TCP_BACKLOG: i32 = 1024;

/// A byte stream to a user or to a target.
pub trait Socket: AsyncRead + AsyncWrite + Send + Unpin + fmt::Debug {
    /// Chooses how the socket closes: with a reset, so that the other side sees a failure and
    /// never a short stream that looks whole, or in order, as it does at first.
    fn set_reset_on_close(&self, reset: bool);

    /// The other side, where it has a network address.
    fn peer_addr(&self) -> Option<SocketAddr>;

    /// Completes when the connection is known to be broken, for whom neither reads nor writes at
    /// the moment. By default it never does.
    fn broken(&self) -> BoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }

    /// Moves the socket to the runtime of the caller.
    ///
    /// # Errors
    /// When the operating system refuses; the socket is then closed.
    fn rehome(self: Box<Self>) -> io::Result<Box<dyn Socket>>;
}

/// A listener for [`Socket`]s.
pub trait Listener: Send + Sync + fmt::Debug {
    /// The next connection.
    fn accept(&self) -> BoxFuture<'_, io::Result<Box<dyn Socket>>>;

    /// The bound address.
    ///
    /// # Errors
    /// When the operating system does not tell.
    fn local_addr(&self) -> io::Result<SocketAddr>;
}

/// A bound UDP socket.
#[derive(Debug)]
pub struct UdpBinding {
    /// The socket, as quinn wants it.
    pub socket: Arc<dyn quinn::AsyncUdpSocket>,
    /// What the kernel granted for its receive buffer, in bytes.
    pub receive_buffer_bytes: usize,
}

/// The way out of the process.
pub trait Network: Send + Sync + fmt::Debug + 'static {
    /// Binds a UDP socket on the runtime of the caller. With `shared`, several sockets may be
    /// bound to one address and the kernel spreads the senders over them.
    ///
    /// # Errors
    /// When the address is in use, or not ours.
    fn bind_udp(&self, address: SocketAddr, shared: bool) -> io::Result<UdpBinding>;

    /// The runtime that quinn's timers and tasks use.
    fn quic_runtime(&self) -> Arc<dyn quinn::Runtime>;

    /// Listens on a TCP address.
    ///
    /// # Errors
    /// When the address is in use, or not ours.
    fn listen(&self, address: SocketAddr) -> io::Result<Box<dyn Listener>>;

    /// Listens on a Unix socket that only this user may connect to, and takes the place of one that
    /// nobody listens on any more. By default there are none.
    ///
    /// # Errors
    /// When the path is in use, or cannot be made.
    fn listen_unix(&self, path: &Path) -> io::Result<Box<dyn Listener>> {
        let _ = path;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Connects to a TCP address. The caller bounds the wait.
    fn connect(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn Socket>>>;

    /// Connects to a Unix socket. The caller bounds the wait.
    fn connect_unix<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<Box<dyn Socket>>>;

    /// All addresses of a host name, in the resolver's order; never an empty list. The caller
    /// bounds the wait.
    fn resolve<'a>(
        &'a self,
        host: &'a str,
        port: u16,
    ) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>>;
}

/// The addresses of `host:port`, in the resolver's order. The caller bounds the wait.
///
/// # Errors
/// When it is not written so, or the name has no address.
pub async fn resolve_address(network: &dyn Network, address: &str) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = address.parse() {
        return Ok(vec![address]);
    }
    let (host, port) = address
        .rsplit_once(':')
        .and_then(|(host, port)| Some((host, port.parse().ok()?)))
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not host:port"))?;
    network.resolve(host, port).await
}

/// The operating system's sockets and resolver, on tokio.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemNetwork;

impl Network for SystemNetwork {
    fn bind_udp(&self, address: SocketAddr, shared: bool) -> io::Result<UdpBinding> {
        let socket = socket2::Socket::new(
            socket2::Domain::for_address(address),
            socket2::Type::DGRAM,
            Some(socket2::Protocol::UDP),
        )?;
        if address.is_ipv6() {
            // `[::]` serves IPv4 too, whatever the system's default is.
            socket.set_only_v6(false)?;
        }
        if shared {
            socket.set_reuse_port(true)?;
        }
        // Best effort: the kernel caps silently, and what was granted is read back below.
        let _ = socket.set_recv_buffer_size(UDP_BUFFER_BYTES);
        let _ = socket.set_send_buffer_size(UDP_BUFFER_BYTES);
        socket.bind(&address.into())?;
        let receive_buffer_bytes = socket.recv_buffer_size()?;
        let socket = Arc::new(udp::QuicSocket::new(socket.into())?);
        Ok(UdpBinding {
            socket,
            receive_buffer_bytes,
        })
    }

    fn quic_runtime(&self) -> Arc<dyn quinn::Runtime> {
        Arc::new(quinn::TokioRuntime)
    }

    fn listen(&self, address: SocketAddr) -> io::Result<Box<dyn Listener>> {
        Ok(Box::new(SystemListener(bind_tcp(address)?)))
    }

    fn listen_unix(&self, path: &Path) -> io::Result<Box<dyn Listener>> {
        Ok(Box::new(SystemUnixListener::bind(path)?))
    }

    fn connect(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn Socket>>> {
        Box::pin(async move {
            let stream = tokio::net::TcpStream::connect(address).await?;
            configure_tcp(&SockRef::from(&stream));
            Ok(Box::new(SystemSocket::Tcp(SystemTcp::new(stream))) as Box<dyn Socket>)
        })
    }

    fn connect_unix<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<Box<dyn Socket>>> {
        Box::pin(async move {
            let stream = tokio::net::UnixStream::connect(path).await?;
            Ok(Box::new(SystemSocket::Unix(stream)) as Box<dyn Socket>)
        })
    }

    fn resolve<'a>(
        &'a self,
        host: &'a str,
        port: u16,
    ) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
        Box::pin(async move {
            let mut addresses: Vec<SocketAddr> = Vec::new();
            for mut address in tokio::net::lookup_host((host, port)).await? {
                address.set_ip(address.ip().to_canonical());
                // The resolver lists an address once per socket type on some systems.
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
            if addresses.is_empty() {
                return Err(io::Error::new(
                    io::ErrorKind::NotFound,
                    format!("the name {host} has no address"),
                ));
            }
            Ok(addresses)
        })
    }
}

fn bind_tcp(address: SocketAddr) -> io::Result<tokio::net::TcpListener> {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(address),
        socket2::Type::STREAM,
        Some(socket2::Protocol::TCP),
    )?;
    // A restarted proxy must not wait for old connections in TIME-WAIT.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    configure_tcp(&SockRef::from(&socket));
    socket.listen(TCP_BACKLOG)?;
    tokio::net::TcpListener::from_std(socket.into())
}

#[derive(Debug)]
struct SystemListener(tokio::net::TcpListener);

impl Listener for SystemListener {
    fn accept(&self) -> BoxFuture<'_, io::Result<Box<dyn Socket>>> {
        Box::pin(async move {
            let (stream, _) = self.0.accept().await?;
            Ok(Box::new(SystemSocket::Tcp(SystemTcp::new(stream))) as Box<dyn Socket>)
        })
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// Removes its path when it is dropped.
#[derive(Debug)]
struct SystemUnixListener {
    listener: tokio::net::UnixListener,
    path: PathBuf,
}

impl SystemUnixListener {
    fn bind(path: &Path) -> io::Result<Self> {
        let left_behind = std::fs::symlink_metadata(path)
            .is_ok_and(|found| found.file_type().is_socket())
            && std::os::unix::net::UnixStream::connect(path)
                .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
        if left_behind {
            std::fs::remove_file(path)?;
        }
        let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.bind(&socket2::SockAddr::unix(path)?)?;
        // Before it listens: nobody else has been let in.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        socket.listen(TCP_BACKLOG)?;
        Ok(Self {
            listener: tokio::net::UnixListener::from_std(socket.into())?,
            path: path.to_owned(),
        })
    }
}

impl Drop for SystemUnixListener {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Listener for SystemUnixListener {
    fn accept(&self) -> BoxFuture<'_, io::Result<Box<dyn Socket>>> {
        Box::pin(async move {
            let (stream, _) = self.listener.accept().await?;
            Ok(Box::new(SystemSocket::Unix(stream)) as Box<dyn Socket>)
        })
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[derive(Debug)]
enum SystemSocket {
    Tcp(SystemTcp),
    Unix(tokio::net::UnixStream),
}

#[derive(Debug)]
struct SystemTcp {
    stream: tokio::net::TcpStream,
    /// Whether closing it resets it now: so that what is set already costs no system call.
    resets: AtomicBool,
}

impl SystemTcp {
    fn new(stream: tokio::net::TcpStream) -> Self {
        Self {
            stream,
            resets: AtomicBool::new(false),
        }
    }

    fn set_reset_on_close(&self, reset: bool) {
        if self.resets.swap(reset, Ordering::Relaxed) != reset {
            // A zero linger time makes close(2) send RST (RFC 9293, section 3.10.5, ABORT).
            let linger = reset.then_some(Duration::ZERO);
            let _ = SockRef::from(&self.stream).set_linger(linger);
        }
    }

    fn rehome(self) -> io::Result<Self> {
        Ok(Self {
            stream: tokio::net::TcpStream::from_std(self.stream.into_std()?)?,
            resets: self.resets,
        })
    }
}

/// What every TCP connection is to have. Those that are accepted take it over from their listener,
/// which saves four system calls for each.
fn configure_tcp(socket: &SockRef<'_>) {
    // Best effort: a socket that refuses an option still carries bytes.
    let _ = socket.set_tcp_nodelay(true);
    let keepalive = TcpKeepalive::new()
        .with_time(TCP_KEEPALIVE_IDLE)
        .with_interval(TCP_KEEPALIVE_INTERVAL);
    let _ = socket.set_tcp_keepalive(&keepalive);
}

impl Socket for SystemSocket {
    fn set_reset_on_close(&self, reset: bool) {
        match self {
            Self::Tcp(tcp) => tcp.set_reset_on_close(reset),
            // A Unix socket has no reset; the reader sees the end.
            Self::Unix(_) => {}
        }
    }

    fn peer_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(tcp) => tcp.stream.peer_addr().ok(),
            Self::Unix(_) => None,
        }
    }

    fn broken(&self) -> BoxFuture<'static, ()> {
        // A second descriptor of the same socket: the first is for whoever reads and writes.
        let watched = match self {
            Self::Tcp(tcp) => tcp.stream.as_fd().try_clone_to_owned(),
            // Breaks in no other way than by its end.
            Self::Unix(_) => return Box::pin(std::future::pending()),
        };
        Box::pin(async move {
            // Where no descriptor is left, a failure is noticed at the next read or write.
            if let Ok(watched) = watched
                && let Ok(watched) = tokio::net::TcpStream::from_std(watched.into())
                && watched.ready(Interest::ERROR).await.is_ok()
            {
                return;
            }
            std::future::pending::<()>().await;
        })
    }

    fn rehome(self: Box<Self>) -> io::Result<Box<dyn Socket>> {
        let moved = match *self {
            Self::Tcp(tcp) => Self::Tcp(tcp.rehome()?),
            Self::Unix(stream) => Self::Unix(tokio::net::UnixStream::from_std(stream.into_std()?)?),
        };
        Ok(Box::new(moved))
    }
}

impl AsyncRead for SystemSocket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(&mut tcp.stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for SystemSocket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(&mut tcp.stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(&mut tcp.stream).poll_write_vectored(cx, bufs),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(&mut tcp.stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(&mut tcp.stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn accepted_connections_have_the_options_of_their_listener() {
        let listener = bind_tcp(([127, 0, 0, 1], 0).into()).expect("a free port");
        let address = listener.local_addr().expect("bound");
        let dialled = tokio::net::TcpStream::connect(address);
        let (dialled, accepted) = tokio::join!(dialled, listener.accept());
        let (accepted, _) = accepted.expect("accepted");
        let socket = SockRef::from(&accepted);
        assert!(socket.tcp_nodelay().expect("an option"));
        assert!(socket.keepalive().expect("an option"));
        let idle = socket.tcp_keepalive_time().expect("an option");
        assert_eq!(idle, TCP_KEEPALIVE_IDLE);
        let interval = socket.tcp_keepalive_interval().expect("an option");
        assert_eq!(interval, TCP_KEEPALIVE_INTERVAL);
        drop(dialled);
    }

    #[tokio::test]
    async fn a_reset_is_set_and_taken_back() {
        let listener = bind_tcp(([127, 0, 0, 1], 0).into()).expect("a free port");
        let address = listener.local_addr().expect("bound");
        let stream = tokio::net::TcpStream::connect(address).await;
        let tcp = SystemTcp::new(stream.expect("connected"));
        for reset in [true, true, false, false, true] {
            tcp.set_reset_on_close(reset);
            let linger = SockRef::from(&tcp.stream).linger().expect("an option");
            assert_eq!(linger, reset.then_some(Duration::ZERO));
        }
    }
}
