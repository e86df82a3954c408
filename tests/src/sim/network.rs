//! The simulated network as nodes see it: `node::net::Network`, one handle per host.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use node::net::{BoxFuture, Listener, Network, Socket, UdpBinding};
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::state::{HostId, SocketId, State};
use super::tcp::{CLIENT, Place, SERVER};

/// The network of one simulated world. Cloning it gives another handle to the same one.
#[derive(Clone)]
pub struct SimNet(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    changed: Notify,
}

impl fmt::Debug for SimNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SimNet")
    }
}

impl SimNet {
    /// An empty network; nothing moves until [`SimNet::drive`] is polled.
    pub(super) fn empty(seed: u64) -> Self {
        Self(Arc::new(Inner {
            state: Mutex::new(State::new(seed, Instant::now())),
            changed: Notify::new(),
        }))
    }

    /// Moves packets for as long as it is polled.
    pub(super) fn drive(&self) -> impl Future<Output = ()> + Send + 'static {
        let net = self.clone();
        async move {
            loop {
                let next = net.with(|state| {
                    state.advance();
                    state.next_due()
                });
                let changed = net.0.changed.notified();
                match next {
                    Some(due) => {
                        tokio::select! {
                            biased;
                            () = changed => {}
                            () = tokio::time::sleep_until(due) => {}
                        }
                    }
                    None => changed.await,
                }
            }
        }
    }

    /// Works on the state. Wakers run when the lock is released, since waking or dropping one may
    /// drop a task, and with it sockets of this network.
    pub(super) fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        let value = work(&mut state);
        let wake = std::mem::take(&mut state.wake);
        let discarded = std::mem::take(&mut state.discarded);
        let sooner = std::mem::take(&mut state.sooner);
        drop(state);
        for waker in wake {
            waker.wake();
        }
        drop(discarded);
        if sooner {
            self.0.changed.notify_one();
        }
        value
    }

    /// The way out of `host`, for a node or a service on it. After [`SimNet::kill`] it is of no
    /// more use.
    #[must_use]
    pub fn network(&self, host: HostId) -> Arc<HostNetwork> {
        let life = self.with(|state| state.host(host).life);
        Arc::new(HostNetwork {
            net: self.clone(),
            host,
            life,
        })
    }
}

/// The network as one host sees it, from its start until it is killed.
#[derive(Debug)]
pub struct HostNetwork {
    net: SimNet,
    host: HostId,
    life: u64,
}

impl HostNetwork {
    fn check(&self, state: &mut State) -> io::Result<()> {
        let host = state.host(self.host);
        if host.up && host.life == self.life {
            Ok(())
        } else {
            Err(io::ErrorKind::NetworkDown.into())
        }
    }

    /// The host.
    #[must_use]
    pub fn host(&self) -> HostId {
        self.host
    }

    /// Binds a UDP socket for plain datagrams.
    ///
    /// # Errors
    /// As [`Network::bind_udp`].
    pub fn datagrams(&self, address: SocketAddr) -> io::Result<Datagrams> {
        Ok(Datagrams(self.bind(address, false)?))
    }

    fn bind(&self, address: SocketAddr, shared: bool) -> io::Result<UdpSocket> {
        let bound = self.net.with(|state| {
            self.check(state)?;
            if !state.host(self.host).owns(address.ip()) {
                return Err(io::ErrorKind::AddrNotAvailable.into());
            }
            state
                .bind_udp(self.host, address, shared)
                .ok_or_else(|| io::Error::from(io::ErrorKind::AddrInUse))
        });
        let (id, local) = bound?;
        Ok(UdpSocket {
            net: self.net.clone(),
            id,
            local,
        })
    }

    fn listen_at(&self, place: Place) -> io::Result<SimListener> {
        let listening = self.net.with(|state| {
            self.check(state)?;
            state
                .listen(self.host, place)
                .ok_or_else(|| io::Error::from(io::ErrorKind::AddrInUse))
        });
        let (id, place) = listening?;
        Ok(SimListener {
            net: self.net.clone(),
            id,
            place,
        })
    }

    /// Listens on a Unix socket of this host.
    ///
    /// # Errors
    /// When the path is in use.
    pub fn listen_unix(&self, path: &Path) -> io::Result<Box<dyn Listener>> {
        Ok(Box::new(self.listen_at(Place::Path(path.to_owned()))?))
    }

    async fn connect_to(&self, place: Place) -> io::Result<Box<dyn Socket>> {
        let id = self.net.with(|state| {
            self.check(state)?;
            state.connect(self.host, place)
        })?;
        // Dropped while it waits, the socket ends the attempt.
        let socket = SimSocket {
            net: self.net.clone(),
            id,
            side: CLIENT,
        };
        std::future::poll_fn(|cx| self.net.with(|state| state.poll_connected(id, cx))).await?;
        Ok(Box::new(socket))
    }
}

impl Network for HostNetwork {
    fn bind_udp(&self, address: SocketAddr, shared: bool) -> io::Result<UdpBinding> {
        Ok(UdpBinding {
            socket: Arc::new(self.bind(address, shared)?),
            receive_buffer_bytes: 4 << 20,
        })
    }

    fn quic_runtime(&self) -> Arc<dyn quinn::Runtime> {
        // Its clock is tokio's, which is virtual here.
        Arc::new(quinn::TokioRuntime)
    }

    fn listen(&self, address: SocketAddr) -> io::Result<Box<dyn Listener>> {
        Ok(Box::new(self.listen_at(Place::Address(address))?))
    }

    fn connect(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn Socket>>> {
        Box::pin(self.connect_to(Place::Address(address)))
    }

    fn connect_unix<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<Box<dyn Socket>>> {
        Box::pin(self.connect_to(Place::Path(path.to_owned())))
    }

    fn resolve<'a>(
        &'a self,
        host: &'a str,
        port: u16,
    ) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
        Box::pin(async move {
            if let Ok(ip) = host.parse::<IpAddr>() {
                return Ok(vec![SocketAddr::new(ip, port)]);
            }
            let delay = self.net.with(|state| state.names.delay);
            tokio::time::sleep(delay).await;
            match self.net.with(|state| state.names.resolve(host))? {
                Some(addresses) => Ok(addresses
                    .into_iter()
                    .map(|ip| SocketAddr::new(ip, port))
                    .collect()),
                None => std::future::pending().await,
            }
        })
    }
}

/// A UDP socket, as quinn wants it.
#[derive(Debug)]
struct UdpSocket {
    net: SimNet,
    id: SocketId,
    local: SocketAddr,
}

impl Drop for UdpSocket {
    fn drop(&mut self) {
        self.net.with(|state| state.close_udp(self.id));
    }
}

/// A simulated socket takes every datagram at once: what does not fit the link is lost on it.
#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncUdpSocket for UdpSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let segment = transmit
            .segment_size
            .unwrap_or(transmit.contents.len())
            .max(1);
        self.net.with(|state| {
            for payload in transmit.contents.chunks(segment) {
                state.send_datagram(
                    self.id,
                    transmit.destination,
                    transmit.src_ip,
                    transmit.ecn,
                    payload,
                );
            }
        });
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.net.with(|state| {
            // After a kill nothing comes any more, and nobody is told.
            let Some(socket) = state.udp.get_mut(&self.id) else {
                return Poll::Pending;
            };
            let mut filled = 0;
            for (buf, meta) in bufs.iter_mut().zip(meta) {
                let Some(datagram) = socket.queue.pop_front() else {
                    break;
                };
                let len = datagram.payload.len();
                socket.queue_bytes -= len;
                let len = len.min(buf.len());
                buf[..len].copy_from_slice(&datagram.payload[..len]);
                *meta = RecvMeta {
                    addr: as_seen_at(self.local, datagram.from),
                    len,
                    stride: len,
                    ecn: datagram.ecn,
                    dst_ip: Some(datagram.to.ip()),
                };
                filled += 1;
            }
            if filled > 0 {
                return Poll::Ready(Ok(filled));
            }
            if socket
                .waker
                .as_ref()
                .is_none_or(|waker| !waker.will_wake(cx.waker()))
            {
                let former = socket.waker.replace(cx.waker().clone());
                state.discarded.extend(former);
            }
            Poll::Pending
        })
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local)
    }

    fn max_transmit_segments(&self) -> usize {
        1
    }

    fn max_receive_segments(&self) -> usize {
        1
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

/// A socket of IPv6 sees IPv4 senders as mapped addresses (RFC 4291, section 2.5.5.2).
fn as_seen_at(local: SocketAddr, from: SocketAddr) -> SocketAddr {
    match from.ip() {
        IpAddr::V4(ip) if local.is_ipv6() => {
            SocketAddr::new(ip.to_ipv6_mapped().into(), from.port())
        }
        IpAddr::V4(_) | IpAddr::V6(_) => from,
    }
}

/// A UDP socket for plain datagrams.
#[derive(Debug)]
pub struct Datagrams(UdpSocket);

impl Datagrams {
    /// The bound address.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.0.local
    }

    /// Sends one datagram.
    pub fn send_to(&self, payload: &[u8], destination: SocketAddr) {
        self.0.net.with(|state| {
            state.send_datagram(self.0.id, destination, None, None, payload);
        });
    }

    /// The next datagram and its sender.
    ///
    /// # Errors
    /// None; a killed host's socket waits for ever.
    pub async fn recv_from(&self) -> io::Result<(Vec<u8>, SocketAddr)> {
        let mut buffer = vec![0; 65_536];
        let mut meta = [RecvMeta::default()];
        std::future::poll_fn(|cx| {
            let mut slices = [IoSliceMut::new(&mut buffer)];
            self.0.poll_recv(cx, &mut slices, &mut meta)
        })
        .await?;
        buffer.truncate(meta[0].len);
        Ok((buffer, meta[0].addr))
    }
}

#[derive(Debug)]
struct SimListener {
    net: SimNet,
    id: SocketId,
    place: Place,
}

impl Drop for SimListener {
    fn drop(&mut self) {
        self.net.with(|state| state.close_listener(self.id));
    }
}

impl Listener for SimListener {
    fn accept(&self) -> BoxFuture<'_, io::Result<Box<dyn Socket>>> {
        Box::pin(async move {
            let accepted =
                std::future::poll_fn(|cx| self.net.with(|state| state.poll_accept(self.id, cx)));
            let socket = SimSocket {
                id: accepted.await?,
                net: self.net.clone(),
                side: SERVER,
            };
            Ok(Box::new(socket) as Box<dyn Socket>)
        })
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        match &self.place {
            Place::Address(address) => Ok(*address),
            Place::Path(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

#[derive(Debug)]
struct SimSocket {
    net: SimNet,
    id: SocketId,
    side: usize,
}

impl Drop for SimSocket {
    fn drop(&mut self) {
        self.net.with(|state| state.close_tcp(self.id, self.side));
    }
}

impl Socket for SimSocket {
    fn set_reset_on_close(&self, reset: bool) {
        self.net
            .with(|state| state.set_reset_on_close(self.id, self.side, reset));
    }

    fn peer_addr(&self) -> Option<SocketAddr> {
        self.net.with(|state| state.peer(self.id, self.side))
    }

    fn rehome(self: Box<Self>) -> io::Result<Box<dyn Socket>> {
        Ok(self)
    }
}

impl AsyncRead for SimSocket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let end = (self.id, self.side);
        self.net.with(|state| state.poll_read(end, cx, buf))
    }
}

impl AsyncWrite for SimSocket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let end = (self.id, self.side);
        self.net.with(|state| state.poll_write(end, cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.net.with(|state| state.shut(self.id, self.side));
        Poll::Ready(Ok(()))
    }
}
