//! Users who vanish leave nothing behind, whatever their stream was doing.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::ensure;
use certs::Kind;
use mesh_proto::close::ResetCode;
use mesh_proto::principal::Principal;
use mesh_proto::wire::{ALPN_USER, Answer, Dial, Open};
use mesh_tests::Result;
use mesh_tests::fleet::{Pair, http_ingress, tcp_ingress};
use mesh_tests::services::Service;
use mesh_tests::{probe, quic};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::runtime::Handle;

use crate::support::{body, deaf, endless, streams_open};

/// Clients that vanish altogether.
const CLIENTS: usize = 1000;
/// Clients at one time: each has four sockets in this process, with their buffers.
const AT_ONCE: usize = 125;

/// What must return to where it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    tasks: usize,
    streams: (u64, u64),
    connections: usize,
}

impl Held {
    fn now(pair: &Pair, service: &Service) -> Self {
        Self {
            tasks: Handle::current().metrics().num_alive_tasks(),
            streams: (
                streams_open(&pair.proxy).unwrap_or(u64::MAX),
                streams_open(&pair.agent).unwrap_or(u64::MAX),
            ),
            connections: service.open(),
        }
    }

    async fn is_back(self, pair: &Pair, service: &Service) -> Result {
        let mut last = self;
        probe::until("all is as before", || {
            last = Self::now(pair, service);
            last == self
        })
        .await
        .map_err(|error| error.context(format!("{last:?} instead of {self:?}")))
    }
}

/// Connects with little room for what it does not read.
async fn connect(to: SocketAddr) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(16 << 10)?;
    Ok(socket.connect(to).await?)
}

/// Downloads that vanish in the middle, through each ingress and in this process.
#[tokio::test]
async fn reset_reaches_the_other_end() -> Result {
    let service = Service::start(|mut stream, _| async move {
        // A request's head or a word; who asks for nothing gets nothing.
        stream.read_exact(&mut [0; 4]).await?;
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000000\r\n\r\n")
            .await?;
        loop {
            stream.write_all(body(16 << 10)).await?;
        }
    })
    .await?;
    let ingresses = vec![tcp_ingress("a1", &service.rule())?, http_ingress()];
    let pair = Pair::start_with(
        &[service.rule()],
        |config| {
            config.ingresses = ingresses;
            config.common.quic.stream_window_bytes = 64 << 10;
        },
        |_| {},
    )
    .await?;
    let (tcp, http) = (pair.proxy.ingress(0)?, pair.proxy.ingress(1)?);
    let dialer = pair.proxy.as_proxy()?.dialer("a1")?;
    let request = format!(
        "GET /client/a1/http/{}/ HTTP/1.1\r\nhost: localhost\r\n\r\n",
        service.addr
    );
    let before = Held::now(&pair, &service);

    let mut vanished = 0;
    while vanished < CLIENTS {
        let mut sockets = Vec::new();
        let mut streams = Vec::new();
        for client in 0..AT_ONCE {
            match client % 4 {
                // Some have ended their own direction before.
                0 | 1 => {
                    let mut socket = connect(tcp).await?;
                    socket.write_all(b"GET ").await?;
                    if client % 8 == 0 {
                        socket.shutdown().await?;
                    }
                    sockets.push(socket);
                }
                2 => {
                    let mut socket = connect(http).await?;
                    socket.write_all(request.as_bytes()).await?;
                    sockets.push(socket);
                }
                _ => {
                    let mut stream = dialer.dial(&service.rule()).await?;
                    stream.write_all(b"GET ").await?;
                    streams.push(stream);
                }
            }
        }
        let mut part = [0; 1024];
        for socket in &mut sockets {
            socket.read_exact(&mut part).await?;
        }
        for stream in &mut streams {
            stream.read_exact(&mut part).await?;
        }
        vanished += sockets.len() + streams.len();
        ensure!(
            service.open() == before.connections + AT_ONCE,
            "{} are open",
            service.open()
        );
    }
    ensure!(
        service.accepted() == CLIENTS,
        "{} were served",
        service.accepted()
    );
    before.is_back(&pair, &service).await
}

/// Users who vanish while neither side says anything, and while their upload stands still, and
/// after they have ended their own direction.
#[tokio::test]
async fn silent_streams_are_given_up_too() -> Result {
    let silent = deaf().await?;
    let pair = Pair::start(&[silent.rule()], vec![tcp_ingress("a1", &silent.rule())?]).await?;
    let ingress = pair.proxy.ingress(0)?;
    let before = Held::now(&pair, &silent);

    let idle = TcpStream::connect(ingress).await?;
    let mut ended = TcpStream::connect(ingress).await?;
    ended.shutdown().await?;
    let mut upload = TcpStream::connect(ingress).await?;
    let full = tokio::time::timeout(Duration::from_secs(1), async {
        while upload.write_all(&[1; 64 << 10]).await.is_ok() {}
    });
    ensure!(full.await.is_err(), "the upload broke");
    probe::until("three are served", || silent.open() == 3).await?;

    for socket in [idle, ended, upload] {
        socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO))?;
    }
    before.is_back(&pair, &silent).await
}

/// A user who stops one of his QUIC streams and keeps his connection; the agent has said nothing
/// that could tell it that nobody listens any more.
#[tokio::test]
async fn stopped_stream_of_a_user_is_given_up() -> Result {
    let (silent, endless) = (deaf().await?, endless().await?);
    let pair = Pair::start(&[silent.rule(), endless.rule()], Vec::new()).await?;
    let alice = pair.pki.issue(Kind::User, "alice")?;
    let user = quic::connect(pair.proxy.quic_addr()?, &alice, ALPN_USER).await?;
    let dial = |service: &Service| -> Result<Open> {
        Ok(Open::Dial(Dial {
            target: service.rule().parse()?,
            agent: "a1".parse()?,
            principal: Principal::User("alice".parse()?),
            hops_left: 0,
            deadline_ms: 10_000,
            trace: None,
            ext: Vec::new(),
        }))
    };
    let before = Held::now(&pair, &silent);
    for finished in [false, true] {
        let (answer, mut send, mut recv) = quic::ask(&user.connection, &dial(&silent)?).await?;
        ensure!(matches!(answer, Answer::Opened(_)), "{answer:?}");
        probe::until("the stream stands", || silent.open() == 1).await?;
        if finished {
            send.finish()?;
            recv.stop(ResetCode::Cancelled.code().into())?;
        }
        drop((send, recv));
        before.is_back(&pair, &silent).await?;
    }
    let (answer, _send, mut recv) = quic::ask(&user.connection, &dial(&endless)?).await?;
    ensure!(matches!(answer, Answer::Opened(_)), "{answer:?}");
    recv.read_exact(&mut [0; 1000]).await?;
    recv.stop(ResetCode::Cancelled.code().into())?;
    before.is_back(&pair, &silent).await?;
    ensure!(
        user.connection.close_reason().is_none(),
        "the user's connection was closed"
    );
    Ok(())
}
