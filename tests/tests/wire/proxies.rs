//! Proxies with a good certificate and bad manners.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use certs::Kind;
use mesh_proto::close::{CloseCode, ResetCode};
use mesh_proto::refusal::Reason;
use mesh_proto::wire::{
    ALPN_AGENT, AgentFrame, Answer, Draining, Open, OpenRoutes, Opened, ProxyFrame, ProxyHello,
    Refused, SKIPPED_FRAMES_MAX,
};
use mesh_tests::fleet::{Bystander, Node, agent_config};
use mesh_tests::hostile::Server;
use mesh_tests::pki::Pki;
use mesh_tests::{Result, logs, probe, quic};
use quinn::{Connection, ReadExactError, RecvStream, SendStream};
use tokio::sync::mpsc;

use crate::support::{after_optional, closed, control, dial, encoded, frame, malformed};

fn proxy_hello(name: &str, cluster: &str) -> Result<ProxyFrame> {
    Ok(ProxyFrame::Hello(ProxyHello {
        name: name.parse()?,
        cluster: cluster.parse()?,
        epoch: 1,
        group: "test".parse()?,
        generation: mesh_proto::name::Generation(0),
        agent_connection_count: None,
        version: "test".into(),
        ext: Vec::new(),
    }))
}

fn server_tls(pki: &Pki, name: &str) -> Result<rustls::ServerConfig> {
    let credentials = pki.issue(Kind::Proxy, name)?;
    Ok(certs::proxy_server_config(
        &credentials,
        &[ALPN_AGENT],
        certs::system_time(),
    )?)
}

/// An agent's opening and hello, as a proxy reads them.
async fn greeted(connection: &Connection) -> Result<(SendStream, RecvStream)> {
    let (send, mut recv) = connection.accept_bi().await?;
    let open: Open = quic::read(&mut recv).await?;
    ensure!(matches!(open, Open::Control(_)), "{open:?}");
    let hello: AgentFrame = quic::read(&mut recv).await?;
    ensure!(matches!(hello, AgentFrame::Hello(_)), "{hello:?}");
    Ok((send, recv))
}

/// Whatever a proxy answers to an agent's hello but its own, and a true one: the agent closes,
/// says once what it was, and keeps to the proxies that behave.
#[tokio::test]
async fn lying_proxies_are_left_alone() -> Result {
    let logs = logs::capture();
    let bystander = Bystander::start().await?;
    let pki = &bystander.pair.pki;
    let opened = encoded(&Answer::Opened(Opened::default()))?;
    let hello = encoded(&proxy_hello("liar", "test.example.com")?)?;
    let behind_opened = |bytes: &[u8]| [&opened[..], bytes].concat();
    let refused = Answer::Refused(Refused::new(Reason::Overloaded, "no more agents today"));
    let draining = ProxyFrame::Draining(Draining {
        deadline_ms: 0,
        ext: Vec::new(),
    });

    let mut cases = malformed(0x0102, &opened);
    cases.retain(|(what, ..)| *what != "an answer");
    for (what, bytes, why) in malformed(0x0301, &hello) {
        cases.push((what, behind_opened(&bytes), why));
    }
    cases.push(("nothing", Vec::new(), "ended"));
    cases.push((
        "half a hello",
        behind_opened(&hello[..hello.len() - 1]),
        "ended within a frame",
    ));
    cases.push(("a refusal", encoded(&refused)?, "no more agents today"));
    cases.push((
        "no hello",
        behind_opened(&encoded(&draining)?),
        "not a hello",
    ));
    cases.push((
        "another name",
        behind_opened(&encoded(&proxy_hello("proxy-1", "test.example.com")?)?),
        "it calls itself proxy-1 of test.example.com, but its certificate says spiffe://test.example.com/proxy/liar",
    ));
    cases.push((
        "another cluster",
        behind_opened(&encoded(&proxy_hello("liar", "other.example.com")?)?),
        "it calls itself liar of other.example.com",
    ));

    let mut servers = Vec::new();
    let (ends, mut ended) = mpsc::channel(1000);
    for (what, bytes, why) in cases {
        let (bytes, ends) = (Arc::new(bytes), ends.clone());
        let server = Server::start(server_tls(pki, "liar")?, move |connection| {
            let (bytes, ends) = (bytes.clone(), ends.clone());
            async move {
                let (mut send, _recv) = greeted(&connection).await?;
                let _ = send.write_all(&bytes).await;
                let _ = send.finish();
                ends.send((what, closed(&connection).await)).await?;
                Ok(())
            }
        })?;
        servers.push((what, why, server));
    }
    let mut agents = Vec::new();
    for (index, (_, _, server)) in servers.iter().enumerate() {
        let config = agent_config(pki, &format!("upright-{index}"), &[server.addr], &[])?;
        agents.push(Node::agent(config).await?);
    }
    for (what, why, server) in &servers {
        probe::until(&format!("{what}: two attempts"), || server.accepted() >= 2).await?;
        let address = format!("\"address\":\"{}\"", server.addr);
        let lines = || logs.lines_with(&["\"WARN\"", "cannot connect to a proxy", &address]);
        probe::until(&format!("{what}: a log line"), || !lines().is_empty()).await?;
        let lines = lines();
        let [line] = &lines[..] else {
            bail!("{what}: {lines:?}")
        };
        ensure!(line.to_string().contains(why), "{what}: {line}");
    }
    // Each was told why.
    for _ in 0..servers.len() {
        let (what, end) = ended.recv().await.context("an end")?;
        let (code, told) = end.context(what)?;
        // A proxy may refuse; all the rest is no protocol.
        let expected = match what {
            "a refusal" => CloseCode::Done,
            _ => CloseCode::ProtocolError,
        };
        ensure!(
            code == u64::from(expected.code()) && !told.is_empty(),
            "{what}: {code} {told}"
        );
    }
    for agent in agents {
        let metrics = agent.metrics()?;
        ensure!(metrics.get("mesh_agent_connections")?.to_bits() == 0f64.to_bits());
        let connected = metrics.get("mesh_agent_connects_total{result=\"ok\"}")?;
        ensure!(connected.to_bits() == 0f64.to_bits());
        agent.stop().await;
    }
    bystander.check().await?;
    bystander.stop().await;
    Ok(())
}

/// Whatever a proxy asks of an agent but a dial that it may ask for is refused, stream by stream.
#[tokio::test]
async fn hostile_requests_to_agents_are_refused() -> Result {
    let logs = logs::capture();
    let bystander = Bystander::start().await?;
    let pki = &bystander.pair.pki;
    let target = bystander.echo.rule();
    let (results, mut result) = mpsc::channel(10);
    let server = Server::start(server_tls(pki, "curious")?, {
        let target = target.clone();
        move |connection| {
            let (results, target) = (results.clone(), target.clone());
            async move {
                results.send(requests(&connection, &target).await).await?;
                connection.closed().await;
                Ok(())
            }
        }
    })?;
    let mut config = agent_config(pki, "asked", &[server.addr], &[target])?;
    config.common.quic.handshake_timeout = Duration::from_secs(1);
    let agent = Node::agent(config).await?;
    // The first connection ends by a second hello, the next by noise; both are made anew.
    for _ in 0..2 {
        result.recv().await.context("no connection")??;
        bystander.check().await?;
    }
    let lines = logs.lines_with(&["\"WARN\"", "\"proxy\":\"curious\"", "said hello twice"]);
    ensure!(!lines.is_empty());
    let metrics = agent.metrics()?;
    for (reason, least) in [
        ("unsupported", 6.0),
        ("internal", 10.0),
        ("timeout", 2.0),
        ("no_agent", 4.0),
        ("not_allowed", 4.0),
        ("ok", 4.0),
    ] {
        let count = metrics.get(&format!("mesh_agent_dials_total{{result=\"{reason}\"}}"))?;
        ensure!(count >= least, "{reason}: {count}");
    }
    agent.stop().await;
    bystander.stop().await;
    Ok(())
}

/// All that a proxy can ask on one connection; at the end it breaks the protocol.
async fn requests(connection: &Connection, target: &str) -> Result {
    let (mut control_send, _control_recv) = greeted(connection).await?;
    quic::write(&mut control_send, &Answer::Opened(Opened::default())).await?;
    quic::write(
        &mut control_send,
        &proxy_hello("curious", "test.example.com")?,
    )
    .await?;
    // Frames of later versions.
    control_send
        .write_all(&after_optional(20 * SKIPPED_FRAMES_MAX, b""))
        .await?;

    let good = encoded(&dial("asked", target)?)?;
    let mut cases = malformed(0x0002, &good);
    cases.push((
        "a control stream",
        encoded(&control())?,
        "has a control stream",
    ));
    let routes = Open::Routes(OpenRoutes::default());
    cases.push(("routes", encoded(&routes)?, "has no routes"));
    cases.push((
        "another agent",
        encoded(&dial("a1", target)?)?,
        "this is the agent asked, not a1",
    ));
    cases.push((
        "another cluster",
        encoded(&dial("asked.other.example.com", target)?)?,
        "not asked.other.example.com",
    ));
    cases.push((
        "a target that is not allowed",
        encoded(&dial("asked", "127.0.0.1:1")?)?,
        "agent.allow",
    ));
    cases.push((
        "metadata",
        encoded(&dial("asked", "169.254.169.254:80")?)?,
        "agent.allow",
    ));
    for (what, bytes, why) in cases {
        let (mut send, mut recv) = connection.open_bi().await?;
        let _ = send.write_all(&bytes).await;
        let answer = quic::read::<Answer>(&mut recv).await.context(what)?;
        let Answer::Refused(refused) = answer else {
            bail!("{what}: {answer:?}")
        };
        let expected = match what {
            "an unknown frame" | "an answer" | "a control stream" | "routes" => Reason::Unsupported,
            "another agent" | "another cluster" => Reason::NoAgent,
            "a target that is not allowed" | "metadata" => Reason::NotAllowed,
            _ => Reason::Internal,
        };
        ensure!(
            refused.reason == expected && refused.message.contains(why),
            "{what}: {}: {}",
            refused.reason,
            refused.message
        );
    }
    // Too early an end, and none at all.
    let (mut send, mut recv) = connection.open_bi().await?;
    send.write_all(&good[..9]).await?;
    send.finish()?;
    let read = recv.read_exact(&mut [0]).await;
    let cancelled = ResetCode::Cancelled.code().into();
    ensure!(
        matches!(&read, Err(ReadExactError::ReadError(quinn::ReadError::Reset(code))) if *code == cancelled),
        "{read:?}"
    );
    let (mut silent, mut answer) = connection.open_bi().await?;
    silent.write_all(&good[..9]).await?;

    // Meanwhile the good ones are served.
    for bytes in [good.clone(), after_optional(SKIPPED_FRAMES_MAX, &good)] {
        let (mut send, mut recv) = connection.open_bi().await?;
        send.write_all(&bytes).await?;
        send.write_all(b"served").await?;
        send.finish()?;
        let answer = quic::read::<Answer>(&mut recv).await?;
        ensure!(matches!(answer, Answer::Opened(_)), "{answer:?}");
        ensure!(recv.read_to_end(100).await? == b"served");
    }
    let answer = quic::read::<Answer>(&mut answer).await?;
    ensure!(
        matches!(&answer, Answer::Refused(refused) if refused.reason == Reason::Timeout),
        "{answer:?}"
    );

    // The end of this connection, in one of two ways.
    let twice = encoded(&proxy_hello("curious", "test.example.com")?)?;
    control_send.write_all(&twice).await?;
    let _ = control_send.write_all(&frame(0x7abc, false, b"")).await;
    let (code, told) = closed(connection).await?;
    ensure!(
        code == u64::from(CloseCode::ProtocolError.code()),
        "{code} {told}"
    );
    Ok(())
}
