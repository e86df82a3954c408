//! Rates, numbers, times.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use certs::Kind;
use mesh_proto::close::CloseCode;
use mesh_proto::refusal::Reason;
use mesh_proto::wire::{ALPN_AGENT, ALPN_USER, Answer};
use mesh_tests::fleet::{Bystander, Node, agent_config};
use mesh_tests::hostile::{self, careless_tls, identity};
use mesh_tests::{Result, logs, probe, quic};
use quinn::ConnectionError;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

use crate::datagrams;
use crate::support::{closed, control, counter, dial, encoded, hello, nobody_is_left, rises};

const TIMEOUT: &str = "mesh_proxy_handshakes_refused_total{reason=\"timeout\"}";
const OVERLOADED: &str = "mesh_proxy_handshakes_refused_total{reason=\"overloaded\"}";

/// Whoever stops talking in the middle of anything is let go when its time is over.
#[tokio::test]
async fn silent_peers_run_out_of_time() -> Result {
    let logs = logs::capture();
    let short = |config: &mut node::config::ProxyConfig| {
        config.common.quic.handshake_timeout = Duration::from_millis(500);
    };
    let bystander = Bystander::start_with(short, |_| {}).await?;
    let pki = &bystander.pair.pki;
    let opening = encoded(&control())?;
    let first = [opening.clone(), encoded(&hello())?].concat();

    // Connected, and then nothing, or not enough.
    for (index, bytes) in [
        &b""[..],
        &opening[..3],
        &opening,
        &first[..opening.len() + 9],
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("silent-{index}");
        let before = counter(&bystander, TIMEOUT)?;
        let credentials = pki.issue(Kind::Agent, &name)?;
        let raw = quic::connect(bystander.quic_addr()?, &credentials, ALPN_AGENT).await?;
        let mut stream = None;
        if !bytes.is_empty() {
            let (mut send, recv) = raw.connection.open_bi().await?;
            send.write_all(bytes).await?;
            stream = Some((send, recv));
        }
        let (code, told) = closed(&raw.connection).await.context(name.clone())?;
        ensure!(
            code == u64::from(CloseCode::HandshakeTimeout.code())
                && told.contains("quic.handshake_timeout"),
            "{name}: {code} {told}"
        );
        rises(&bystander, TIMEOUT, before)
            .await
            .context(name.clone())?;
        let agent = format!("\"agent\":\"{name}\"");
        probe::until("a log line", || {
            logs.lines_with(&[&agent, "\"WARN\""]).len() == 1
        })
        .await?;
        drop(stream);
    }

    // The first flight of a handshake, and nothing more.
    let before = counter(&bystander, TIMEOUT)?;
    let socket = UdpSocket::bind("127.0.0.1:0").await?;
    for datagram in datagrams::first_flight(&bystander).await? {
        socket.send_to(&datagram, bystander.quic_addr()?).await?;
    }
    rises(&bystander, TIMEOUT, before).await?;
    let remote = format!("\"remote\":\"{}\"", socket.local_addr()?);
    probe::until("a log line", || {
        logs.lines_with(&[
            &remote,
            "refused a connection",
            "\"INFO\"",
            "quic.handshake_timeout",
        ])
        .len()
            == 1
    })
    .await?;

    // Streams of a user who may take its time between them.
    let credentials = pki.issue(Kind::User, "eve")?;
    let raw = quic::connect(bystander.quic_addr()?, &credentials, ALPN_USER).await?;
    let good = encoded(&dial("a1", &bystander.echo.rule())?)?;
    for bytes in [&good[..1], &good[..6], &good[..good.len() - 1]] {
        let (mut send, mut recv) = raw.connection.open_bi().await?;
        send.write_all(bytes).await?;
        match quic::read::<Answer>(&mut recv).await? {
            Answer::Refused(refused) if refused.reason == Reason::Timeout => {}
            other @ (Answer::Opened(_) | Answer::Refused(_)) => bail!("{other:?}"),
        }
    }
    let (answer, ..) = quic::ask(&raw.connection, &dial("a1", &bystander.echo.rule())?).await?;
    ensure!(matches!(answer, Answer::Opened(_)), "{answer:?}");
    raw.connection.close(0u32.into(), b"");
    nobody_is_left(&bystander).await?;
    bystander.stop().await;
    Ok(())
}

/// However many streams a user opens and says nothing on: no more than `streams_max` are held.
#[tokio::test]
async fn half_open_streams_are_bounded() -> Result {
    const STREAMS_MAX: u32 = 24;
    let config = |config: &mut node::config::ProxyConfig| {
        config.common.quic.handshake_timeout = Duration::from_millis(300);
        config.common.quic.streams_max = STREAMS_MAX;
    };
    let bystander = Bystander::start_with(config, |_| {}).await?;
    let credentials = bystander.pair.pki.issue(Kind::User, "eve")?;
    let raw = quic::connect(bystander.quic_addr()?, &credentials, ALPN_USER).await?;
    let mut streams = JoinSet::new();
    for _ in 0..5 * STREAMS_MAX {
        let connection = raw.connection.clone();
        streams.spawn(async move {
            let (mut send, mut recv) = connection.open_bi().await?;
            send.write_all(&[0, 0, 0]).await?;
            quic::read::<Answer>(&mut recv).await
        });
    }
    let mut most = 0f64;
    while !streams.is_empty() {
        most = most.max(counter(&bystander, "mesh_streams_open")?);
        bystander.check().await?;
        while let Some(answered) = streams.try_join_next() {
            match answered?? {
                Answer::Refused(refused) if refused.reason == Reason::Timeout => {}
                other @ (Answer::Opened(_) | Answer::Refused(_)) => bail!("{other:?}"),
            }
        }
    }
    // The bystander's own may be among them.
    ensure!(
        most > 0.0 && most <= f64::from(STREAMS_MAX + 1),
        "{most} streams at one time"
    );
    raw.connection.close(0u32.into(), b"");
    nobody_is_left(&bystander).await?;
    bystander.stop().await;
    Ok(())
}

/// Above `handshakes_per_second` new addresses are asked to prove themselves, and honest ones do.
#[tokio::test]
async fn handshakes_above_the_rate_are_retried() -> Result {
    let config = |config: &mut node::config::ProxyConfig| {
        config.common.quic.handshakes_per_second = 1;
    };
    let bystander = Bystander::start_with(config, |_| {}).await?;
    let credentials = bystander.pair.pki.issue(Kind::User, "alice")?;
    let mut clients = JoinSet::new();
    for _ in 0..16 {
        let (remote, credentials) = (bystander.quic_addr()?, credentials.clone());
        let dial = dial("a1", &bystander.echo.rule())?;
        clients.spawn(async move {
            let raw = quic::connect(remote, &credentials, ALPN_USER).await?;
            let (answer, ..) = quic::ask(&raw.connection, &dial).await?;
            ensure!(matches!(answer, Answer::Opened(_)), "{answer:?}");
            Ok(())
        });
    }
    while let Some(connected) = clients.join_next().await {
        connected??;
    }
    let retried = counter(&bystander, "mesh_proxy_handshakes_retried_total")?;
    ensure!(retried >= 1.0, "{retried} were retried");
    let refused = bystander
        .pair
        .proxy
        .metrics()?
        .sum("mesh_proxy_handshakes_refused_total");
    ensure!(
        refused.to_bits() == 0f64.to_bits(),
        "{refused} were refused"
    );
    nobody_is_left(&bystander).await?;
    bystander.stop().await;
    Ok(())
}

/// Beyond `connections_max` nobody gets in until somebody has left.
#[tokio::test]
async fn connections_are_bounded() -> Result {
    let logs = logs::capture();
    let config = |config: &mut node::config::ProxyConfig| config.common.quic.connections_max = 3;
    let bystander = Bystander::start_with(config, |_| {}).await?;
    let pki = bystander.pair.pki.clone();
    let alice = pki.issue(Kind::User, "alice")?;
    let mut inside = Vec::new();
    for _ in 0..2 {
        inside.push(quic::connect(bystander.quic_addr()?, &alice, ALPN_USER).await?);
    }
    for _ in 0..3 {
        let before = counter(&bystander, OVERLOADED)?;
        let (tls, _) = careless_tls(Some(identity(&alice)?), &[ALPN_USER])?;
        let refused =
            hostile::refused(bystander.quic_addr()?, tls, "proxy.test.example.com").await?;
        ensure!(
            matches!(&refused.error, ConnectionError::ConnectionClosed(close)
                if close.error_code == quinn::TransportErrorCode::CONNECTION_REFUSED),
            "{:?}",
            refused.error
        );
        rises(&bystander, OVERLOADED, before).await?;
        let remote = format!("\"remote\":\"{}\"", refused.local);
        let lines = || logs.lines_with(&[&remote]);
        probe::until("a log line", || !lines().is_empty()).await?;
        let lines = lines();
        let [line] = &lines[..] else {
            bail!("{lines:?}")
        };
        ensure!(
            line["level"] == "WARN" && line.to_string().contains("quic.connections_max"),
            "{line}"
        );
        bystander.check().await?;
    }

    // An agent waits its turn, and says what it waits for.
    let agent = Node::agent(agent_config(&pki, "a2", &[bystander.quic_addr()?], &[])?).await?;
    let refused = "mesh_agent_connects_total{result=\"refused\"}";
    probe::until("the agent is refused", || {
        agent
            .metrics()
            .and_then(|metrics| metrics.get(refused))
            .is_ok_and(|count| count >= 1.0)
    })
    .await?;
    let address = format!("\"address\":\"{}\"", bystander.quic_addr()?);
    probe::until("the agent says so", || {
        !logs
            .lines_with(&[&address, "\"WARN\"", "takes no connection now"])
            .is_empty()
    })
    .await?;
    inside
        .pop()
        .context("a connection")?
        .connection
        .close(0u32.into(), b"");
    bystander.pair.proxy.sessions(2).await?;
    agent.stop().await;
    bystander.pair.proxy.sessions(1).await?;
    // The place of the agent is free again, too.
    probe::eventually("a user takes its place", || async {
        let raw = quic::connect(bystander.quic_addr()?, &alice, ALPN_USER).await?;
        let (answer, ..) = quic::ask(&raw.connection, &dial("a1", &bystander.echo.rule())?).await?;
        ensure!(matches!(answer, Answer::Opened(_)), "{answer:?}");
        Ok(())
    })
    .await?;
    drop(inside);
    nobody_is_left(&bystander).await?;
    bystander.stop().await;
    Ok(())
}
