//! Bytes that a user sends before his dial is answered: they lose no round trip, and no byte.

use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use certs::Kind;
use mesh_proto::close::ResetCode;
use mesh_proto::refusal::Reason;
use mesh_proto::wire::{Answer, EARLY_BYTES_MAX, Opened, Refused};
use mesh_tests::Result;
use mesh_tests::fleet::{Node, Pair, agent_config, proxy_config, tcp_ingress};
use mesh_tests::network::TestNetwork;
use mesh_tests::pki::Pki;
use mesh_tests::services::{Checksum, Service};
use mesh_tests::{probe, quic};
use node::app::Parts;
use node::hooks::{Authorizer, DialInfo, Hooks};
use node::net::BoxFuture;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::support::{body, expect_broken, expect_bytes, expect_whole, ping_pong};

/// Holds dials back until it is opened.
struct Gate(watch::Receiver<bool>);

impl Authorizer for Gate {
    fn authorize<'a>(&'a self, _: &'a DialInfo) -> BoxFuture<'a, std::result::Result<(), String>> {
        let mut open = self.0.clone();
        Box::pin(async move {
            open.wait_for(|open| *open)
                .await
                .map(drop)
                .map_err(|error| error.to_string())
        })
    }
}

/// While the agent thinks about a dial, 16 KiB are on their way and the rest waits at the user's;
/// then all of it arrives, once, with windows that hold them and with ones that do not.
#[tokio::test]
async fn early_bytes_arrive_exactly_once() -> Result {
    const SENT: usize = 1 << 20;
    for window in [2 << 20, 64 << 10, 16 << 10, 4 << 10] {
        for (wanted, taken) in [(SENT, EARLY_BYTES_MAX), (100, 100)] {
            let sink = Service::sink().await?;
            let (open, gate) = watch::channel(false);
            let hooks = Hooks {
                authorizer: Some(Arc::new(Gate(gate))),
                ..Hooks::default()
            };
            let network = TestNetwork::default();
            let proxy_parts = Parts {
                network: Arc::new(network.clone()),
                ..Parts::current()
            };
            let ingress = tcp_ingress("a1", &sink.rule())?;
            let pair = Pair::start_in(
                &[sink.rule()],
                |config| config.ingresses = vec![ingress],
                |config| config.common.quic.stream_window_bytes = window,
                proxy_parts,
                Parts {
                    hooks,
                    ..Parts::current()
                },
            )
            .await?;
            let mut user = TcpStream::connect(pair.proxy.ingress(0)?).await?;
            let (mut read, mut write) = user.split();
            let upload = async {
                write.write_all(body(wanted)).await?;
                Ok(write.shutdown().await?)
            };
            let answer = async {
                let early = probe::plateau("the early bytes are read", || network.read()).await?;
                // One read may be in hand while the window is full.
                ensure!(
                    early <= taken as u64,
                    "{early} bytes were read before the answer"
                );
                let all = window as usize > EARLY_BYTES_MAX + 1024;
                ensure!(
                    !all || early == taken as u64,
                    "only {early} bytes were read"
                );
                ensure!(sink.accepted() == 0, "the agent did not wait");
                open.send_replace(true);
                let mut answer = String::new();
                read.read_to_string(&mut answer).await?;
                Ok(answer)
            };
            let ((), answer) = tokio::try_join!(upload, answer)?;
            let expected = Checksum::of(body(wanted)).to_string();
            ensure!(
                answer == expected,
                "window {window}: {answer} instead of {expected}"
            );
            ensure!(
                sink.accepted() == 1,
                "the target was dialled {} times",
                sink.accepted()
            );
        }
    }
    Ok(())
}

/// What the first session does with the dial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum First {
    Refuses(Reason),
    Resets,
}

/// A proxy with two sessions of one agent: the newer one is the test's, the older one real.
struct TwoSessions {
    proxy: Node,
    _real: Node,
    newest: quic::RawAgent,
}

impl TwoSessions {
    async fn start(service: &Service) -> Result<Self> {
        let pki = Pki::new("test.example.com")?;
        let mut config = proxy_config(&pki, "proxy-1")?;
        config.ingresses = vec![tcp_ingress("a1", &service.rule())?];
        let proxy = Node::proxy(config).await?;
        let config = agent_config(&pki, "a1", &[proxy.quic_addr()?], &[service.rule()])?;
        let real = Node::agent(config).await?;
        proxy.sessions(1).await?;
        let agent = pki.issue(Kind::Agent, "a1")?;
        let newest = quic::agent(proxy.quic_addr()?, &agent).await?;
        proxy.sessions(2).await?;
        Ok(Self {
            proxy,
            _real: real,
            newest,
        })
    }

    /// Takes the next dial and `early` bytes behind it, and no more; then does as it is told.
    async fn first_does(&self, what: First, early: &[u8]) -> Result {
        let (_, mut send, mut recv) = self.newest.dial().await?;
        expect_bytes(&mut recv, early)
            .await
            .context("at the newest session")?;
        match what {
            First::Refuses(reason) => {
                let refused = Refused::new(reason, "the test does not want it");
                quic::write(&mut send, &Answer::Refused(refused)).await?;
                send.finish()?;
                recv.stop(ResetCode::Refused.code().into())?;
            }
            First::Resets => {
                send.reset(ResetCode::Cancelled.code().into())?;
                recv.stop(ResetCode::Cancelled.code().into())?;
            }
        }
        Ok(())
    }
}

/// What one session refuses as draining or overloaded is tried on another one of that agent, with
/// the same early bytes: the target gets all of them, once.
#[tokio::test]
async fn refused_dial_is_retried_with_its_early_bytes() -> Result {
    let sink = Service::sink().await?;
    let sessions = TwoSessions::start(&sink).await?;
    let mut served = 0;
    for reason in [Reason::Draining, Reason::Overloaded] {
        for sent in [0, 1, 9_000, EARLY_BYTES_MAX, 300_000] {
            let user = async {
                let mut user = TcpStream::connect(sessions.proxy.ingress(0)?).await?;
                user.write_all(body(sent)).await?;
                user.shutdown().await?;
                let mut answer = String::new();
                user.read_to_string(&mut answer).await?;
                Ok(answer)
            };
            let early = body(sent.min(EARLY_BYTES_MAX));
            let first = sessions.first_does(First::Refuses(reason), early);
            let (answer, ()) = tokio::try_join!(user, first)?;
            let expected = Checksum::of(body(sent)).to_string();
            ensure!(
                answer == expected,
                "{reason}, {sent}: {answer} instead of {expected}"
            );
            served += 1;
            ensure!(
                sink.accepted() == served,
                "the target was dialled more than once"
            );
        }
    }
    Ok(())
}

/// Other refusals are the answer. A lost dial is tried again only when no byte went with it, for
/// the target may have seen them.
#[tokio::test]
async fn other_dials_are_not_sent_twice() -> Result {
    let echo = Service::echo().await?;
    let sessions = TwoSessions::start(&echo).await?;
    for what in [
        First::Refuses(Reason::Refused),
        First::Refuses(Reason::Timeout),
        First::Resets,
    ] {
        let user = async {
            let mut user = TcpStream::connect(sessions.proxy.ingress(0)?).await?;
            user.write_all(b"order!").await?;
            expect_broken(&mut user).await
        };
        tokio::try_join!(user, sessions.first_does(what, b"order!"))?;
        ensure!(echo.accepted() == 0, "{what:?}: the order went out twice");
    }
    let lost = sessions
        .proxy
        .metrics()?
        .get(r#"mesh_dials_total{path="local",result="lost"}"#)?;
    ensure!(lost == 1.0, "{lost} dials were lost");

    let user = async {
        let mut user = TcpStream::connect(sessions.proxy.ingress(0)?).await?;
        // Says nothing before the dial stands, and then it stands on the other session.
        probe::until("the target is dialled", || echo.accepted() == 1).await?;
        ping_pong(&mut user, 3).await
    };
    tokio::try_join!(user, sessions.first_does(First::Resets, b""))?;

    // A dial of this process has no early bytes.
    let dialer = sessions.proxy.as_proxy()?.dialer("a1")?;
    let dialled = async { Ok(dialer.dial(&echo.rule()).await?) };
    let (mut stream, ()) = tokio::try_join!(dialled, sessions.first_does(First::Resets, b""))?;
    ping_pong(&mut stream, 3).await
}

/// An agent may answer before it has taken the early bytes, and then take them.
#[tokio::test]
async fn early_bytes_wait_for_a_slow_agent() -> Result {
    let echo = Service::echo().await?;
    let sessions = TwoSessions::start(&echo).await?;
    let mut user = TcpStream::connect(sessions.proxy.ingress(0)?).await?;
    let (mut read, mut write) = user.split();
    let upload = async {
        write.write_all(body(8 << 20)).await?;
        Ok(write.shutdown().await?)
    };
    let agent = async {
        let (dial, mut send, mut recv) = sessions.newest.dial().await?;
        ensure!(
            dial.target == echo.rule().parse()?,
            "dialled {}",
            dial.target
        );
        quic::write(&mut send, &Answer::Opened(Opened::default())).await?;
        expect_whole(&mut recv, body(8 << 20)).await?;
        send.write_all(b"got it").await?;
        send.finish()?;
        Ok(send)
    };
    let ((), answered) = tokio::try_join!(upload, agent)?;
    let mut answer = String::new();
    read.read_to_string(&mut answer).await?;
    drop(answered);
    if answer != "got it" {
        bail!("the answer is {answer:?}");
    }
    Ok(())
}
