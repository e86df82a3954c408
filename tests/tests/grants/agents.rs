//! Dials of agents.

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use mesh_proto::refusal::Reason;
use mesh_proto::wire::Answer;
use mesh_tests::fleet::Node;
use mesh_tests::services::pattern;
use mesh_tests::{Result, probe, quic};
use node::agent::DialerError;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;

use crate::support::{Mesh, dial_frame, echoed, grant, refused};

/// Without a grant an agent may dial nothing, hears which one to add, and the other agent hears
/// nothing of it.
#[tokio::test]
async fn agents_may_dial_nothing_by_default() -> Result {
    let mesh = Mesh::start(Vec::new(), &["a1", "a2"]).await?;
    for target in ["service:echo", &mesh.echoes[1].rule()] {
        let (reason, message) = refused(mesh.dial(0, "a2", target).await?)?;
        let add = format!(
            "[[grant]] who = [\"agent:a1\"], may = [\"dial\"], agents = [\"a2\"], targets = [\"{target}\"]"
        );
        ensure!(
            reason == Reason::NotAllowed && message.ends_with(&add),
            "{reason}: {message}"
        );
    }
    // Nor does it learn whether an agent of a name is there.
    let (reason, _) = refused(mesh.dial(0, "nobody", "service:echo").await?)?;
    ensure!(reason == Reason::NotAllowed, "{reason}");
    ensure!(mesh.asked(1)? == 0.0 && mesh.echoes[1].accepted() == 0);
    let own = r#"mesh_agent_own_dials_total{result="not_allowed"}"#;
    ensure!(mesh.agents[0].metrics()?.get(own)? == 3.0);
    let counted = r#"mesh_dials_total{path="none",result="not_allowed"}"#;
    ensure!(mesh.proxy.metrics()?.get(counted)? == 3.0);
    mesh.stop().await
}

/// A grant opens what it says, to whom it says, and the other agent's list has the last word.
#[tokio::test]
async fn a_grant_lets_an_agent_dial() -> Result {
    let grants = vec![grant(
        &["agent:a1"],
        &["a2"],
        &["service:*", "127.0.0.1:*"],
    )?];
    let mesh = Mesh::start(grants, &["a1", "a2", "a3"]).await?;
    let echo = mesh.echoes[1].rule();
    for agent in ["a2", "a2.test.example.com"] {
        for target in ["service:echo", echo.as_str()] {
            let stream = mesh.dial(0, agent, target).await?;
            let stream = stream.with_context(|| format!("{agent} {target}"))?;
            echoed(stream.recv, stream.send, &pattern(3, 300_000)).await?;
        }
    }
    ensure!(mesh.asked(1)? == 4.0);
    for (from, to, target) in [
        (0, "a3", "service:echo"),
        (0, "a2", "localhost:80"),
        (2, "a2", "service:echo"),
        (1, "a1", "service:echo"),
    ] {
        let (reason, message) = refused(mesh.dial(from, to, target).await?)?;
        ensure!(
            reason == Reason::NotAllowed && message.contains("[[grant]]"),
            "{from} {to} {target}: {reason}: {message}"
        );
    }
    ensure!(mesh.asked(1)? == 4.0, "the proxy has refused the rest");
    let (reason, message) = refused(mesh.dial(0, "a2", &mesh.echoes[2].rule()).await?)?;
    ensure!(
        reason == Reason::NotAllowed && message.contains("agent.allow"),
        "{reason}: {message}"
    );
    // What is refused behind the policy has its own reason.
    let (reason, _) = refused(mesh.dial(0, "a2", "service:other").await?)?;
    ensure!(reason == Reason::BadTarget, "{reason}");
    mesh.stop().await
}

/// An agent that is granted itself reaches itself, over the one connection.
#[tokio::test]
async fn an_agent_dials_itself() -> Result {
    let mesh = Mesh::start(vec![grant(&["agent:a1"], &["a1"], &[])?], &["a1"]).await?;
    let mut dials = JoinSet::new();
    for number in 0..4 {
        let dialer = mesh.agent(0)?.dialer("a1")?;
        dials.spawn(async move {
            let stream = dialer.dial("service:echo").await?;
            echoed(stream.recv, stream.send, &pattern(number, 2 << 20)).await
        });
    }
    for dialled in dials.join_all().await {
        dialled?;
    }
    ensure!(mesh.asked(0)? == 4.0);
    ensure!(
        mesh.agents[0]
            .metrics()?
            .get(r#"mesh_agent_own_dials_total{result="ok"}"#)?
            == 4.0
    );
    mesh.stop().await
}

/// Streams that both ends of a connection open at the same time, to and fro: four of each agent to
/// the other, and four of a user to each.
#[tokio::test]
async fn dial_from_both_ends() -> Result {
    const BYTES: usize = 1 << 20;
    const ROUNDS: u64 = 4;
    let grants = vec![
        grant(&["agent:*"], &[], &["service:echo"])?,
        grant(&["user:alice"], &[], &[])?,
    ];
    let mesh = Mesh::start(grants, &["a1", "a2"]).await?;
    let alice = Arc::new(mesh.user("alice").await?);
    let mut dials: JoinSet<Result> = JoinSet::new();
    for round in 0..ROUNDS {
        for (number, (from, to)) in (0..).zip([(0, "a2"), (1, "a1")]) {
            let dialer = mesh.agent(from)?.dialer(to)?;
            dials.spawn(async move {
                let stream = dialer.dial("service:echo").await?;
                let bytes = pattern(round * 4 + number, BYTES);
                echoed(stream.recv, stream.send, &bytes).await
            });
        }
        for (number, to) in (2..).zip(["a1", "a2"]) {
            let alice = alice.clone();
            dials.spawn(async move {
                let frame = dial_frame(to, "service:echo", "user:alice")?;
                let (answer, send, recv) = quic::ask(&alice.connection, &frame).await?;
                ensure!(matches!(answer, Answer::Opened(_)), "{answer:?}");
                echoed(recv, send, &pattern(round * 4 + number, BYTES)).await
            });
        }
    }
    for dialled in dials.join_all().await {
        dialled?;
    }
    for agent in [0, 1] {
        ensure!(mesh.asked(agent)? == 8.0, "{}", mesh.asked(agent)?);
        let metrics = mesh.agents[agent].metrics()?;
        ensure!(metrics.get(r#"mesh_agent_connects_total{result="ok"}"#)? == 1.0);
        ensure!(metrics.get(r#"mesh_agent_own_dials_total{result="ok"}"#)? == 4.0);
    }
    mesh.stop().await
}

/// An agent that leaves lets the streams end that it has dialled, and dials no more.
#[tokio::test]
async fn a_leaving_agent_waits_for_its_own_dials() -> Result {
    let mut mesh = Mesh::start(vec![grant(&["agent:a1"], &[], &[])?], &["a1", "a2"]).await?;
    let dialer = mesh.agent(0)?.dialer("a2")?;
    let mut stream = dialer.dial("service:echo").await?;
    stream.write_all(b"before").await?;
    let mut back = [0; 6];
    stream.read_exact(&mut back).await?;

    let leaving = tokio::spawn(mesh.agents.remove(0).stop());
    // The proxy answers that it has heard of it, and only the open dial holds the connection.
    probe::eventually("the agent leaves", || async {
        match dialer.dial("service:echo").await {
            Err(DialerError::Leaving) => Ok(()),
            other => anyhow::bail!("{other:?}"),
        }
    })
    .await?;
    stream.write_all(b"during").await?;
    stream.read_exact(&mut back).await?;
    ensure!(&back == b"during");
    stream.shutdown().await?;
    ensure!(stream.read(&mut back).await? == 0);
    ensure!(!leaving.is_finished(), "the stream is still there");
    drop(stream);
    ensure!(leaving.await? == 0, "nothing was cut");
    mesh.echoes.remove(0);
    mesh.stop().await
}

/// At its drain deadline an agent cuts what it has dialled, and counts it.
#[tokio::test]
async fn own_dials_are_cut_at_the_drain_deadline() -> Result {
    use std::time::Duration;
    let mesh = Mesh::start(vec![grant(&["agent:a1"], &[], &[])?], &["a2"]).await?;
    let mut config =
        mesh_tests::fleet::agent_config(&mesh.pki, "a1", &[mesh.proxy.quic_addr()?], &[])?;
    config.common.drain_deadline = Duration::from_millis(200);
    let agent = Node::agent(config).await?;
    let dialer = agent.0.agent().context("an agent")?.dialer("a2")?;
    let mut stream = probe::eventually("a dial", || async {
        Ok(dialer.dial("service:echo").await?)
    })
    .await?;
    ensure!(agent.stop().await == 1);
    let mut buffer = [0; 1];
    ensure!(
        stream.read(&mut buffer).await.is_err(),
        "it does not look whole"
    );
    drop(stream);
    ensure!(matches!(
        dialer.dial("service:echo").await,
        Err(DialerError::Leaving)
    ));
    mesh.stop().await
}

/// Errors before a proxy is asked have names of their own.
#[tokio::test]
async fn dials_without_a_proxy_say_so() -> Result {
    let mesh = Mesh::start(Vec::new(), &[]).await?;
    let nobody = mesh_tests::fleet::any_port();
    let config = mesh_tests::fleet::agent_config(&mesh.pki, "a1", &[nobody], &[])?;
    let agent = Node::agent(config).await?;
    let dialer = agent.0.agent().context("an agent")?.dialer("a2")?;
    let told = dialer.dial("service:echo").await;
    ensure!(matches!(told, Err(DialerError::NotConnected)), "{told:?}");
    let told = dialer.dial("nonsense").await;
    ensure!(matches!(told, Err(DialerError::Target(_))), "{told:?}");
    ensure!(
        agent
            .0
            .agent()
            .context("an agent")?
            .dialer("no name")
            .is_err()
    );
    agent.stop().await;
    mesh.stop().await
}
