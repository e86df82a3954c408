//! A proxy and an agent of their own, on loopback, with targets that speak by script.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod endings;
mod forwarding;
mod secured;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use certs::{Authority, Credentials, Kind, Request, Validity};
use mesh_proto::allow::AllowList;
use mesh_proto::principal::Principal;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::Agent;
use crate::config::{AgentConfig, IngressConfig, IngressKind, ProxyConfig};
use crate::hooks::{DialInfo, Hooks};
use crate::proxy::{Proxy, ProxyParts};

/// How long anything may take here before it counts as hung.
const PATIENCE: Duration = Duration::from_secs(20);

struct Mesh {
    authority: Authority,
    proxy: Proxy,
    agent: Agent,
    ingress: SocketAddr,
    /// On whose behalf there were dials.
    principals: Arc<Mutex<Vec<Principal>>>,
}

impl Mesh {
    async fn start() -> Self {
        Self::start_with(|_, _| {}).await
    }

    /// `change` sees the authority and the ingress' config.
    async fn start_with(change: impl FnOnce(&Authority, &mut IngressConfig)) -> Self {
        let authority = Authority::create(
            "test.example.com".parse().unwrap(),
            &Validity::days(2).unwrap(),
        )
        .unwrap();
        let mut ingress = IngressConfig::new(
            ([127, 0, 0, 1], 0).into(),
            IngressKind::Http { upstream_ca: None },
        );
        change(&authority, &mut ingress);
        let mut config = ProxyConfig::new(
            credentials(&authority, Kind::Proxy, "p1"),
            "blue".parse().unwrap(),
        );
        config.common.quic.listen = ([127, 0, 0, 1], 0).into();
        config.common.drain_deadline = Duration::from_secs(5);
        config.drain_notice = Duration::ZERO;
        config.ingresses = vec![ingress];
        let principals = Arc::new(Mutex::new(Vec::new()));
        let seen = principals.clone();
        let authorizer = move |dial: &DialInfo| {
            seen.lock().unwrap().push(dial.principal.clone());
            Ok(())
        };
        let hooks = Hooks {
            authorizer: Some(Arc::new(authorizer)),
            ..Hooks::default()
        };
        let proxy = Proxy::start_with(
            config,
            ProxyParts {
                hooks,
                ..ProxyParts::new()
            },
        )
        .await
        .unwrap();
        let mut config = AgentConfig::new(
            credentials(&authority, Kind::Agent, "a1"),
            vec![proxy.quic_addr().to_string()],
        );
        config.common.drain_deadline = Duration::from_secs(1);
        config.allow = AllowList(vec![
            "127.0.0.1:*".parse().unwrap(),
            "localhost:*".parse().unwrap(),
        ]);
        let agent = Agent::start(config).await.unwrap();
        for _ in 0..500 {
            if !proxy.sessions().is_empty() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let ingress = proxy.ingress_addrs()[0];
        Self {
            authority,
            proxy,
            agent,
            ingress,
            principals,
        }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.ingress).await.unwrap()
    }

    /// Sends `request`, in which `TARGET` and `HOST` are filled in, and leaves the rest of the
    /// connection to the caller.
    async fn send(&self, target: SocketAddr, request: &str) -> TcpStream {
        let mut stream = self.connect().await;
        stream
            .write_all(self.fill(target, request).as_bytes())
            .await
            .unwrap();
        stream
    }

    fn fill(&self, target: SocketAddr, request: &str) -> String {
        request
            .replace("TARGET", &format!("/client/a1/http/{target}"))
            .replace("HOST", &format!("Host: {}", self.ingress))
    }

    /// Sends `request`, which asks to close, and reads the answer.
    async fn ask(&self, target: SocketAddr, request: &str) -> String {
        let mut stream = self.send(target, request).await;
        read_all(&mut stream).await.unwrap()
    }

    async fn stop(self) {
        self.agent.shutdown().await;
        self.proxy.shutdown().await;
    }
}

fn credentials(authority: &Authority, kind: Kind, name: &str) -> Arc<Credentials> {
    let request = Request::new(kind, name.parse().unwrap(), Validity::days(1).unwrap());
    let issued = authority.issue(&request).unwrap();
    let (ca, cert, key) = (authority.ca_pem(), &issued.cert_pem, &issued.key_pem);
    Arc::new(Credentials::from_pem(ca.as_bytes(), cert.as_bytes(), key.as_bytes()).unwrap())
}

/// Reads to the end; an error is one of the connection.
async fn read_all(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<String> {
    let mut text = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut text))
        .await
        .expect("no end")?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Reads until `end` has come.
async fn read_until(stream: &mut (impl AsyncRead + Unpin), end: &str) -> String {
    let mut text = String::new();
    while !text.ends_with(end) {
        let read = tokio::time::timeout(PATIENCE, stream.read_u8()).await;
        match read.unwrap_or_else(|_| panic!("no {end:?} in {text:?}")) {
            Ok(byte) => text.push(char::from(byte)),
            Err(error) => panic!("{error} in {text:?}, before {end:?}"),
        }
    }
    text
}

/// A target; dropping it ends it.
struct Target {
    addr: SocketAddr,
    accepted: Arc<Mutex<usize>>,
    _tasks: JoinSet<()>,
}

impl Target {
    /// Runs `serve` for each connection, with the connection's number from 0.
    async fn start<F, Fut>(serve: F) -> Self
    where
        F: Fn(TcpStream, usize) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let accepted = Arc::new(Mutex::new(0));
        let count = accepted.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let number = {
                    let mut count = count.lock().unwrap();
                    *count += 1;
                    *count - 1
                };
                connections.spawn(serve(stream, number));
            }
        });
        Self {
            addr,
            accepted,
            _tasks: tasks,
        }
    }

    /// Answers each request with its own head, as text, after `body_end` has come; keeps alive.
    async fn mirror(body_end: &'static str) -> Self {
        Self::start(move |mut stream, _| async move {
            loop {
                let mut request = String::new();
                while !request.ends_with(body_end) {
                    let Ok(byte) = stream.read_u8().await else {
                        return;
                    };
                    request.push(char::from(byte));
                }
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
                    request.len()
                );
                if stream
                    .write_all(format!("{head}{request}").as_bytes())
                    .await
                    .is_err()
                {
                    return;
                }
            }
        })
        .await
    }

    fn accepted(&self) -> usize {
        *self.accepted.lock().unwrap()
    }
}
