//! A stream that was cut never looks whole: not in any way of using it, not for any cause.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use mesh_tests::Result;
use mesh_tests::fleet::{Node, Pair, http_ingress, tcp_ingress};
use mesh_tests::http::Client;
use mesh_tests::network::{Fault, TestNetwork};
use mesh_tests::probe;
use mesh_tests::services::Service;
use node::proxy::Stream;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::support::{Handled, expect_broken};

/// Bytes of the body that arrive before the cut.
const PART_BYTES: usize = 100_000;

/// What cuts a stream in the middle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// The service resets a download; an upload's user vanishes.
    EndResets,
    AgentLosesItsSocket,
    AgentPanics,
    AgentIsDropped,
    AgentReachesItsDeadline,
    ProxyLosesItsSocket,
    ProxyPanics,
    ProxyIsDropped,
    ProxyReachesItsDeadline,
}

impl Cause {
    const ALL: [Self; 9] = [
        Self::EndResets,
        Self::AgentLosesItsSocket,
        Self::AgentPanics,
        Self::AgentIsDropped,
        Self::AgentReachesItsDeadline,
        Self::ProxyLosesItsSocket,
        Self::ProxyPanics,
        Self::ProxyIsDropped,
        Self::ProxyReachesItsDeadline,
    ];
}

/// How a user is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Library,
    Tcp,
    /// Over the http ingress, with a length or in chunks, or until the connection's end.
    Http(Body),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Body {
    Length,
    Chunked,
    UntilEnd,
}

impl Way {
    const ALL: [Self; 5] = [
        Self::Library,
        Self::Tcp,
        Self::Http(Body::Length),
        Self::Http(Body::Chunked),
        Self::Http(Body::UntilEnd),
    ];

    /// A user in the proxy's process has no socket there that could be lost.
    fn knows(self, cause: Cause) -> bool {
        self != Self::Library || !matches!(cause, Cause::ProxyLosesItsSocket | Cause::ProxyPanics)
    }

    /// What precedes the part of a response's body.
    fn response_head(self) -> &'static [u8] {
        match self {
            Self::Library | Self::Tcp => b"",
            Self::Http(Body::Length) => b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n",
            // One chunk of 100,000 bytes, and then the end is missing.
            Self::Http(Body::Chunked) => {
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n186a0\r\n"
            }
            Self::Http(Body::UntilEnd) => b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n",
        }
    }
}

/// A proxy and an agent in front of a service, to be broken.
struct Scene {
    proxy: Option<Node>,
    agent: Option<Node>,
    proxy_net: TestNetwork,
    agent_net: TestNetwork,
    service: Service,
}

impl Scene {
    async fn start(service: Service) -> Result<Self> {
        let ingresses = vec![tcp_ingress("a1", &service.rule())?, http_ingress()];
        // Long enough for nothing.
        let deadline = Duration::from_millis(20);
        let handled = Handled::start(
            &[service.rule()],
            |config| {
                config.ingresses = ingresses;
                config.common.drain_deadline = deadline;
            },
            |config| config.common.drain_deadline = deadline,
        )
        .await?;
        let Handled {
            pair: Pair { proxy, agent, .. },
            proxy_net,
            agent_net,
        } = handled;
        Ok(Self {
            proxy: Some(proxy),
            agent: Some(agent),
            proxy_net,
            agent_net,
            service,
        })
    }

    fn proxy(&self) -> Result<&Node> {
        self.proxy.as_ref().context("the proxy is gone")
    }

    /// The path of the service at the http ingress.
    fn path(&self) -> String {
        format!("/client/a1/http/{}/", self.service.addr)
    }

    async fn library(&self) -> Result<Stream> {
        Ok(self
            .proxy()?
            .as_proxy()?
            .dialer("a1")?
            .dial(&self.service.rule())
            .await?)
    }

    async fn tcp(&self) -> Result<TcpStream> {
        Ok(TcpStream::connect(self.proxy()?.ingress(0)?).await?)
    }

    fn http(&self) -> Result<SocketAddr> {
        self.proxy()?.ingress(1)
    }

    async fn cut(&mut self, cause: Cause) -> Result {
        match cause {
            Cause::EndResets => {}
            Cause::AgentLosesItsSocket => self.agent_net.strike(Fault::Error),
            Cause::AgentPanics => self.agent_net.strike(Fault::Panic),
            Cause::ProxyLosesItsSocket => self.proxy_net.strike(Fault::Error),
            Cause::ProxyPanics => self.proxy_net.strike(Fault::Panic),
            Cause::AgentIsDropped => drop(self.agent.take()),
            Cause::ProxyIsDropped => drop(self.proxy.take()),
            Cause::AgentReachesItsDeadline => {
                let agent = self.agent.take().context("the agent is gone")?;
                let cut = agent.stop().await;
                ensure!(cut == 1, "the agent cut {cut} streams");
            }
            Cause::ProxyReachesItsDeadline => {
                let proxy = self.proxy.take().context("the proxy is gone")?;
                let cut = proxy.stop().await;
                ensure!(cut == 1, "the proxy cut {cut} streams");
            }
        }
        Ok(())
    }

    /// After what struck single streams, both nodes serve on.
    async fn serves_on(&self) -> Result {
        self.proxy_net.heal();
        self.agent_net.heal();
        if self.proxy.is_some() && self.agent.is_some() {
            ensure!(
                self.proxy()?.as_proxy()?.sessions().len() == 1,
                "the session was lost"
            );
            self.library().await?.write_all(b"next").await?;
        }
        Ok(())
    }
}

/// A download: the user has read a part when the stream is cut.
async fn cut_download(way: Way, cause: Cause) -> Result {
    let (word, heard) = watch::channel(false);
    let service = Service::start(move |mut stream, _| {
        let mut heard = heard.clone();
        async move {
            // Somebody asks.
            stream.read_exact(&mut [0; 4]).await?;
            stream.write_all(way.response_head()).await?;
            stream.write_all(&[b'x'; PART_BYTES]).await?;
            let _ = heard.wait_for(|reset| *reset).await;
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))
        }
    })
    .await?;
    let mut scene = Scene::start(service).await?;
    let mut part = vec![0; PART_BYTES];
    match way {
        Way::Library => {
            let mut stream = scene.library().await?;
            stream.write_all(b"GET ").await?;
            stream.read_exact(&mut part).await?;
            word.send_replace(cause == Cause::EndResets);
            scene.cut(cause).await?;
            expect_broken(&mut stream).await?;
        }
        Way::Tcp => {
            let mut stream = scene.tcp().await?;
            stream.write_all(b"GET ").await?;
            stream.read_exact(&mut part).await?;
            word.send_replace(cause == Cause::EndResets);
            scene.cut(cause).await?;
            expect_broken(&mut stream).await?;
        }
        Way::Http(_) => {
            let mut client = Client::connect(scene.http()?).await?;
            let request = Request::get(scene.path()).body(Full::<Bytes>::default())?;
            let mut body = client.send(request).await?.into_body();
            read_part(&mut body).await?;
            word.send_replace(cause == Cause::EndResets);
            scene.cut(cause).await?;
            match body.collect().await {
                Ok(_) => bail!("the body ended as if it were whole"),
                Err(_broken) => {}
            }
        }
    }
    scene.serves_on().await
}

async fn read_part(body: &mut Incoming) -> Result {
    let mut read = 0;
    while read < PART_BYTES {
        let frame = body
            .frame()
            .await
            .context("the body ended before it was cut")??;
        read += frame.data_ref().map_or(0, Bytes::len);
    }
    Ok(())
}

/// An upload: the service has read a part when the stream is cut; it has answered before that, or
/// it has not.
async fn cut_upload(way: Way, cause: Cause, answered: bool) -> Result {
    // Counts as written what ended as if it were whole.
    let service = Service::start(move |mut stream, stats| async move {
        let mut answer: &[u8] = if answered { way.response_head() } else { b"" };
        let mut buffer = vec![0; 64 << 10];
        let mut tail = Vec::new();
        loop {
            let read = stream.read(&mut buffer).await?;
            stats.read.fetch_add(read as u64, Ordering::SeqCst);
            stream.write_all(std::mem::take(&mut answer)).await?;
            tail.extend_from_slice(&buffer[..read]);
            tail.drain(..tail.len().saturating_sub(16));
            let whole = match way {
                Way::Library | Way::Tcp => read == 0,
                // Its length, or the chunk that is the last, tells, and the connection's end does not.
                Way::Http(_) => tail.ends_with(b"\r\n0\r\n\r\n"),
            };
            if whole {
                stats.written.fetch_add(1, Ordering::SeqCst);
            }
            if whole || read == 0 {
                return Ok(());
            }
        }
    })
    .await?;
    let mut scene = Scene::start(service).await?;
    let stats = scene.service.stats().clone();
    let arrived = move || stats.read.load(Ordering::SeqCst) >= PART_BYTES as u64;
    match way {
        Way::Library => {
            let mut stream = scene.library().await?;
            stream.write_all(&[b'x'; PART_BYTES]).await?;
            probe::until("the part is there", arrived).await?;
            if cause == Cause::EndResets {
                drop(stream);
            } else {
                scene.cut(cause).await?;
                expect_broken(&mut stream).await?;
            }
        }
        Way::Tcp | Way::Http(_) => {
            let mut stream = match way {
                Way::Tcp => scene.tcp().await?,
                Way::Library | Way::Http(_) => TcpStream::connect(scene.http()?).await?,
            };
            let framing = match way {
                Way::Http(Body::Length) => "content-length: 1000000\r\n\r\n",
                Way::Http(Body::Chunked) => "transfer-encoding: chunked\r\n\r\n186a0\r\n",
                Way::Library | Way::Tcp | Way::Http(Body::UntilEnd) => "",
            };
            if !framing.is_empty() {
                let head = format!(
                    "POST {} HTTP/1.1\r\nhost: localhost\r\n{framing}",
                    scene.path()
                );
                stream.write_all(head.as_bytes()).await?;
            }
            stream.write_all(&[b'x'; PART_BYTES]).await?;
            probe::until("the part is there", arrived).await?;
            if cause == Cause::EndResets {
                // In chunks, even an end in order of the user's connection is a cut body.
                if way == Way::Tcp {
                    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
                }
                drop(stream);
            } else {
                scene.cut(cause).await?;
                let _user = stream;
                probe::until("the service hears of it", || scene.service.open() == 0).await?;
            }
        }
    }
    probe::until("the service hears of it", || scene.service.open() == 0).await?;
    let whole = scene.service.stats().written.load(Ordering::SeqCst);
    ensure!(whole == 0, "the upload ended as if it were whole");
    scene.serves_on().await
}

/// Scenes that are played at one time.
const SCENES: usize = 12;

/// Every cause, every way, both directions: the reader sees an error.
#[tokio::test]
async fn cut_body_is_not_whole() -> Result {
    let mut scenes: Vec<Pin<Box<dyn Future<Output = Result>>>> = Vec::new();
    for cause in Cause::ALL {
        for way in Way::ALL.into_iter().filter(|way| way.knows(cause)) {
            scenes.push(Box::pin(async move {
                let named = || format!("{cause:?}, {way:?}");
                cut_download(way, cause)
                    .await
                    .with_context(named)
                    .context("download")?;
                // A request has no body that lasts until the connection's end.
                if way == Way::Http(Body::UntilEnd) {
                    return Ok(());
                }
                cut_upload(way, cause, false)
                    .await
                    .with_context(named)
                    .context("upload")?;
                if matches!(way, Way::Http(_)) {
                    let result = cut_upload(way, cause, true).await;
                    result
                        .with_context(named)
                        .context("upload that was answered")?;
                }
                Ok(())
            }));
        }
    }
    futures_util::stream::iter(scenes)
        .buffer_unordered(SCENES)
        .try_collect()
        .await
}

/// A stream that its user drops without ending it is no whole upload; one that he ends is, though
/// he drops it right after.
#[tokio::test]
async fn dropped_library_stream_resets_and_finished_one_ends() -> Result {
    let ends = Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = ends.clone();
    let service = Service::start(move |mut stream, _| {
        let seen = seen.clone();
        async move {
            let result = stream.read_to_end(&mut Vec::new()).await;
            let end = result.as_ref().ok().copied();
            seen.lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .push(end);
            result.map(drop)
        }
    })
    .await?;
    let scene = Scene::start(service).await?;
    let ended = || ends.lock().map(|ends| ends.clone()).unwrap_or_default();

    let mut stream = scene.library().await?;
    stream.write_all(&[0; PART_BYTES]).await?;
    drop(stream);
    probe::until("the service hears of the drop", || ended() == [None]).await?;

    let mut stream = scene.library().await?;
    stream.write_all(&[0; PART_BYTES]).await?;
    stream.shutdown().await?;
    probe::until("the service has read all", || {
        ended() == [None, Some(PART_BYTES)]
    })
    .await?;
    drop(stream);
    Ok(())
}
