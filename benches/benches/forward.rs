//! The forwarding loop between real sockets, there and back, in one thread: an ingress' end and an
//! agent's end of one QUIC connection on loopback, by message size and number of streams. An iteration
//! is one message on every stream, all at once, and all of them back.
//!
//! Encryption, QUIC and the kernel are in it; two processes and their scheduling are not. That is what
//! `mesh-benches compare` measures.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a bench that cannot go on should say so at once; criterion's macros document nothing"
)]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use certs::{Authority, Credentials, Kind, Request, Validity};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use mesh_proto::wire::ALPN_AGENT;
use node::clock::WallClock;
use node::config::QuicConfig;
use node::forward;
use node::metrics::{NodeMetrics, Registry, StreamMeter};
use node::net::{Network as _, SystemNetwork};
use node::quic::TunnelStream;
use node::quic::endpoint::{EndpointParts, agent_client_config, dialling, listen};
use node::quic::keys::EndpointKeys;
use node::quic::stall::StallBudget;
use node::quic::transport::admit;
use node::random::Random;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

const MESSAGES: [usize; 4] = [64, 1 << 10, 16 << 10, 1 << 20];
const STREAMS: [usize; 3] = [1, 8, 64];

/// Packets as on most of the internet.
const MTU: u16 = 1452;

fn loopback() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

fn credentials(authority: &Authority, kind: Kind, name: &str) -> Credentials {
    let request = Request::new(kind, name.parse().unwrap(), Validity::days(1).unwrap());
    let issued = authority.issue(&request).unwrap();
    Credentials::from_pem(
        authority.ca_pem().as_bytes(),
        issued.cert_pem.as_bytes(),
        issued.key_pem.as_bytes(),
    )
    .unwrap()
}

/// Wraps streams as the nodes do.
#[derive(Clone)]
struct Wrap {
    metrics: NodeMetrics,
    budget: Arc<StallBudget>,
}

impl Wrap {
    fn new(config: &QuicConfig) -> Self {
        let metrics = NodeMetrics::new(&Registry::new()).unwrap();
        let budget = StallBudget::new(
            config.stream_window_bytes,
            config.buffer_bytes_max,
            metrics.cut_as_stalled.clone(),
        );
        Self { metrics, budget }
    }

    fn stream(&self, (send, recv): (quinn::SendStream, quinn::RecvStream)) -> TunnelStream {
        TunnelStream::new(send, recv, StreamMeter::open(&self.metrics), &self.budget)
    }
}

/// Where a connection leads through the tunnel to a service that sends everything back. All of it runs
/// on the runtime of the caller, for as long as that runs.
async fn tunnel() -> SocketAddr {
    let authority = Authority::create(
        "bench.example.com".parse().unwrap(),
        &Validity::days(1).unwrap(),
    )
    .unwrap();
    let (random, clock) = (Random::system(), WallClock::system());
    let config = QuicConfig {
        mtu_max: MTU,
        ..QuicConfig::default()
    };
    let keys = EndpointKeys::random(&mut random.generator());
    let (near, far) = (
        credentials(&authority, Kind::Proxy, "proxy-1"),
        credentials(&authority, Kind::Agent, "a1"),
    );
    let parts = |credentials| EndpointParts {
        network: &SystemNetwork,
        random: &random,
        clock: &clock,
        credentials,
        config: &config,
        keys: &keys,
    };
    let proxy = listen(
        &parts(&near),
        loopback(),
        &[ALPN_AGENT],
        Arc::new(()),
        false,
    )
    .unwrap()
    .endpoint;
    let address = proxy.local_addr().unwrap();
    let agent = dialling(&parts(&far), address).unwrap().endpoint;
    let client = agent_client_config(&parts(&far), None).unwrap();
    let dialled = agent
        .connect_with(client, address, "proxy.bench.example.com")
        .unwrap();
    let accepted = async { proxy.accept().await.unwrap().await.unwrap() };
    let (far, near) = tokio::join!(dialled, accepted);
    let far = far.unwrap();
    for connection in [&far, &near] {
        admit(connection, &config, config.streams_max);
    }

    let wrap = Wrap::new(&config);
    let service = TcpListener::bind(loopback()).await.unwrap();
    let target = service.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = service.accept().await.unwrap();
            tokio::spawn(async move {
                socket.set_nodelay(true).unwrap();
                let (mut read, mut write) = socket.split();
                // Its end is that of the bench.
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    let wrap_far = wrap.clone();
    tokio::spawn(async move {
        // The endpoint ends with the task.
        let _agent = agent;
        while let Ok(stream) = far.accept_bi().await {
            let tunnel = wrap_far.stream(stream);
            tokio::spawn(async move {
                let socket = SystemNetwork.connect(target).await.unwrap();
                let _ = forward::socket(socket, tunnel).await;
            });
        }
    });
    let listener = SystemNetwork.listen(loopback()).unwrap();
    let entry = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let _proxy = proxy;
        loop {
            let socket = listener.accept().await.unwrap();
            let tunnel = wrap.stream(near.open_bi().await.unwrap());
            tokio::spawn(async move {
                let _ = forward::socket(socket, tunnel).await;
            });
        }
    });
    entry
}

/// A message there and back.
async fn exchange(mut socket: TcpStream, message: Arc<Vec<u8>>) -> TcpStream {
    let mut back = vec![0; message.len()];
    let (mut read, mut write) = socket.split();
    let (written, read) = tokio::join!(write.write_all(&message), read.read_exact(&mut back));
    written.unwrap();
    read.unwrap();
    socket
}

async fn round(sockets: Vec<TcpStream>, message: &Arc<Vec<u8>>) -> Vec<TcpStream> {
    let mut tasks = JoinSet::new();
    for socket in sockets {
        tasks.spawn(exchange(socket, message.clone()));
    }
    tasks.join_all().await
}

fn forwarding(criterion: &mut Criterion) {
    let runtime: Runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let entry = runtime.block_on(tunnel());
    for bytes in MESSAGES {
        let mut group = criterion.benchmark_group(format!("forward_{bytes}"));
        group.sample_size(if bytes * STREAMS[2] > 1 << 20 { 10 } else { 50 });
        let message = Arc::new(vec![0x5a; bytes]);
        for streams in STREAMS {
            group.throughput(Throughput::Bytes((2 * bytes * streams) as u64));
            let mut sockets = runtime.block_on(async {
                let mut sockets = Vec::new();
                for _ in 0..streams {
                    let socket = TcpStream::connect(entry).await.unwrap();
                    socket.set_nodelay(true).unwrap();
                    sockets.push(socket);
                }
                round(sockets, &message).await
            });
            group.bench_function(BenchmarkId::new("streams", streams), |bencher| {
                bencher.iter(|| {
                    let idle = std::mem::take(&mut sockets);
                    sockets = runtime.block_on(round(idle, &message));
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, forwarding);
criterion_main!(benches);
