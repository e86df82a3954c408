//! What is handed to a UDP socket, and what the socket is given. A batch of ten packets goes down in one
//! call and must fit into one datagram's 65,507 bytes, or the kernel refuses all of it and quinn-udp says
//! nothing: packets of 6,800 bytes moved a two-hundredth of what packets of 6,500 do.

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use anyhow::ensure;
use mesh_tests::Result;
use mesh_tests::fleet::{Pair, tcp_ingress};
use mesh_tests::probe;
use mesh_tests::services::{Service, echoes, pattern};
use node::app::Parts;
use node::config::QuicConfig;
use node::net::{BoxFuture, Listener, Network, Socket, SystemNetwork, UdpBinding};
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

/// The largest payload of an IPv4 datagram, and what the kernel takes of a batch at one time.
const DATAGRAM_BYTES_MAX: usize = 65_507;

/// What the socket's receive buffer is said to be: no kernel has ever granted it.
const GRANTED_BYTES: usize = 123_457;

/// The largest of what was handed to a node's sockets.
#[derive(Debug, Default)]
struct Largest {
    packet: AtomicUsize,
    batch: AtomicUsize,
    segments: AtomicUsize,
}

/// The system's network, which looks at each batch before it goes.
#[derive(Debug, Clone, Default)]
struct Watched(Arc<Largest>);

#[derive(Debug)]
struct WatchedSocket {
    socket: Arc<dyn AsyncUdpSocket>,
    largest: Arc<Largest>,
}

impl AsyncUdpSocket for WatchedSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.socket.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let bytes = transmit.contents.len();
        let packet = transmit.segment_size.unwrap_or(bytes);
        let Largest {
            packet: largest,
            batch,
            segments,
        } = &*self.largest;
        largest.fetch_max(packet, Ordering::Relaxed);
        batch.fetch_max(bytes, Ordering::Relaxed);
        segments.fetch_max(bytes.div_ceil(packet.max(1)), Ordering::Relaxed);
        self.socket.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.socket.poll_recv(cx, buffers, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.socket.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}

impl Network for Watched {
    fn bind_udp(&self, address: SocketAddr, shared: bool) -> io::Result<UdpBinding> {
        let UdpBinding { socket, .. } = SystemNetwork.bind_udp(address, shared)?;
        Ok(UdpBinding {
            socket: Arc::new(WatchedSocket {
                socket,
                largest: self.0.clone(),
            }),
            receive_buffer_bytes: GRANTED_BYTES,
        })
    }

    fn quic_runtime(&self) -> Arc<dyn quinn::Runtime> {
        SystemNetwork.quic_runtime()
    }

    fn listen(&self, address: SocketAddr) -> io::Result<Box<dyn Listener>> {
        SystemNetwork.listen(address)
    }

    fn connect(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn Socket>>> {
        SystemNetwork.connect(address)
    }

    fn connect_unix<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<Box<dyn Socket>>> {
        SystemNetwork.connect_unix(path)
    }

    fn resolve<'a>(
        &'a self,
        host: &'a str,
        port: u16,
    ) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
        SystemNetwork.resolve(host, port)
    }
}

fn parts(network: &Watched) -> Parts {
    Parts {
        network: Arc::new(network.clone()),
        ..Parts::current()
    }
}

/// With the defaults, on a path that takes packets of any size: discovery reaches the bound, and no batch
/// of packets of that size is too large.
#[tokio::test]
async fn the_largest_batches_fit_into_a_datagram() -> Result {
    let echo = Service::echo().await?;
    let (proxy_net, agent_net) = (Watched::default(), Watched::default());
    let pair = Pair::start_in(
        &[echo.rule()],
        |config| config.ingresses = vec![tcp_ingress("a1", &echo.rule()).expect("an ingress")],
        |_| {},
        parts(&proxy_net),
        parts(&agent_net),
    )
    .await?;
    let mtu = usize::from(QuicConfig::default().mtu_max);
    let body = pattern(0, 4 << 20);
    for net in [&proxy_net, &agent_net] {
        probe::eventually("packets of the largest size, in batches", || async {
            echoes(pair.proxy.ingress(0)?, &body).await?;
            let packet = net.0.packet.load(Ordering::Relaxed);
            let segments = net.0.segments.load(Ordering::Relaxed);
            ensure!(packet == mtu, "packets of {packet} bytes");
            ensure!(segments > 1, "packets go one by one");
            Ok(())
        })
        .await?;
        let segments = net.0.segments.load(Ordering::Relaxed);
        let batch = net.0.batch.load(Ordering::Relaxed);
        ensure!(batch <= DATAGRAM_BYTES_MAX, "a batch of {batch} bytes");
        // The largest that was seen need not be the largest that there can be.
        ensure!(
            segments * mtu <= DATAGRAM_BYTES_MAX,
            "{segments} packets of {mtu} bytes"
        );
    }
    pair.stop().await;
    Ok(())
}

/// What the network says that the kernel granted is what the metric says; and the system's network reads
/// it back from the socket, which may have been given less than was asked for.
#[tokio::test]
async fn the_granted_socket_buffer_is_told() -> Result {
    let gauge = "mesh_udp_rcvbuf_bytes";
    let said = Watched::default();
    let pair = Pair::start_in(&[], |_| {}, |_| {}, parts(&said), parts(&said)).await?;
    for node in [&pair.proxy, &pair.agent] {
        let told = node.metrics()?.get(gauge)?;
        ensure!(
            told.to_bits() == (GRANTED_BYTES as f64).to_bits(),
            "{told} bytes are told"
        );
    }
    pair.stop().await;

    let pair = Pair::start(&[], Vec::new()).await?;
    let asked = 4 << 20;
    let like = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    like.set_recv_buffer_size(asked)?;
    let granted = like.recv_buffer_size()?;
    for node in [&pair.proxy, &pair.agent] {
        let told = node.metrics()?.get(gauge)?;
        ensure!(
            told.to_bits() == (granted as f64).to_bits(),
            "{told} bytes are told of {granted}"
        );
    }
    pair.stop().await;
    Ok(())
}
