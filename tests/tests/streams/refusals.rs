//! A dial that cannot succeed fails itself, with a typed reason, and touches nothing else.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use certs::Kind;
use mesh_proto::principal::Principal;
use mesh_proto::refusal::Reason;
use mesh_proto::wire::{ALPN_USER, Answer, Dial, Open};
use mesh_tests::Result;
use mesh_tests::fleet::{Node, http_ingress, service, tcp_ingress};
use mesh_tests::services::Service;
use mesh_tests::{binary, http, probe, quic};
use node::proxy::{Dialer, DialerError};
use tokio::net::TcpStream;

use crate::support::{Handled, endless, expect_broken, ping_pong};

/// The refusal of a dial that must be refused.
async fn refusal(dialer: &Dialer, target: &str) -> Result<(Reason, String)> {
    match dialer.dial(target).await {
        Ok(_) => bail!("the dial to {target} succeeded"),
        Err(DialerError::Dial(error)) => Ok((error.reason, error.message)),
        Err(DialerError::Target(error)) => bail!("{target} is no target: {error}"),
    }
}

fn dials(node: &Node, path: &str, reason: Reason) -> Result<f64> {
    node.metrics()?.get(&format!(
        r#"mesh_dials_total{{path="{path}",result="{reason}"}}"#
    ))
}

/// Each way to fail, by each way to dial: in this process, as a QUIC user, over the http ingress,
/// over a tcp one.
#[tokio::test]
async fn refused_dial_reaches_caller() -> Result {
    let echo = Service::echo().await?;
    let closed = binary::free_port()?;
    let forbidden = Service::echo().await?;
    let allow = [
        echo.rule(),
        closed.to_string(),
        "224.0.0.1:9".into(),
        "nowhere.invalid:*".into(),
        "unix:/nowhere/at/all.sock".into(),
    ];
    let ingresses = vec![
        http_ingress(),
        tcp_ingress("a1", &closed.to_string())?,
        tcp_ingress("nobody", &echo.rule())?,
    ];
    let handled = Handled::start(
        &allow,
        |config| config.ingresses = ingresses,
        |config| config.services.extend(service("web", closed)),
    )
    .await?;
    let pair = &handled.pair;
    let proxy = pair.proxy.as_proxy()?;
    let alice = pair.pki.issue(Kind::User, "alice")?;
    let user = quic::connect(proxy.quic_addr(), &alice, ALPN_USER).await?;
    let mut live = proxy.dialer("a1")?.dial(&echo.rule()).await?;

    // Who refuses, and what his message tells.
    let cases = [
        (
            "a1",
            closed.to_string(),
            Reason::Refused,
            "refused the agent's connection",
        ),
        (
            "a1",
            "service:web".into(),
            Reason::Refused,
            "refused the agent's connection",
        ),
        (
            "a1",
            "224.0.0.1:9".into(),
            Reason::Unreachable,
            "cannot reach 224.0.0.1:9",
        ),
        (
            "a1",
            "unix:/nowhere/at/all.sock".into(),
            Reason::Unreachable,
            "/nowhere/at/all.sock",
        ),
        ("a1", forbidden.rule(), Reason::NotAllowed, "agent.allow"),
        (
            "a1",
            "unix:/etc/passwd".into(),
            Reason::NotAllowed,
            "agent.allow",
        ),
        (
            "a1",
            "nowhere.invalid:80".into(),
            Reason::ResolveFailed,
            "nowhere.invalid",
        ),
        (
            "a1",
            "service:nope".into(),
            Reason::BadTarget,
            "[[service]]",
        ),
        ("nobody", echo.rule(), Reason::NoAgent, "nobody"),
        (
            "a1.other.example.com",
            echo.rule(),
            Reason::NoAgent,
            "a1.other.example.com",
        ),
    ];
    for (agent, target, reason, text) in &cases {
        let named = || format!("{agent} {target}");
        let path = if *reason == Reason::NoAgent {
            "none"
        } else {
            "local"
        };
        let before = dials(&pair.proxy, path, *reason)?;

        let refused = refusal(&proxy.dialer(agent)?, target)
            .await
            .with_context(named)?;
        ensure!(refused.0 == *reason, "{agent} {target}: {refused:?}");
        ensure!(refused.1.contains(text), "{agent} {target}: {}", refused.1);

        let dial = Dial {
            target: target.parse()?,
            agent: agent.parse()?,
            principal: Principal::User("alice".parse()?),
            hops_left: 0,
            deadline_ms: 10_000,
            trace: None,
            ext: Vec::new(),
        };
        match quic::ask(&user.connection, &Open::Dial(dial))
            .await
            .with_context(named)?
            .0
        {
            Answer::Opened(_) => bail!("the user's dial to {target} succeeded"),
            Answer::Refused(refused) => {
                ensure!(refused.reason == *reason, "{agent} {target}: {refused:?}");
                ensure!(
                    refused.message.contains(text),
                    "{target}: {}",
                    refused.message
                );
            }
        }

        let after = dials(&pair.proxy, path, *reason)?;
        ensure!(
            after == before + 2.0,
            "{target}: {after} dials instead of {before} and 2"
        );
        // Where a path of the http ingress can say it.
        if !target.contains('/') {
            let path = format!("/client/{agent}/http/{target}/");
            let answer = http::get(proxy.ingress_addrs()[0], &path).await?;
            let expected = (reason.http_status(), reason.as_str());
            ensure!(
                (answer.status, answer.mesh_error()) == expected,
                "{path}: {answer:?}"
            );
        }
    }
    // What is no target at all is refused before anybody is asked.
    for target in [
        "127.1:80",
        "127.0.0.1:0",
        "127.0.0.1",
        "unix:relative",
        "service:",
    ] {
        let error = proxy.dialer("a1")?.dial(target).await;
        ensure!(
            matches!(error, Err(DialerError::Target(_))),
            "{target}: {error:?}"
        );
    }
    // A user who has no way to read a reason sees a failure, and no empty reply.
    for (ingress, code) in [(1, "502"), (2, "502")] {
        expect_broken(&mut TcpStream::connect(proxy.ingress_addrs()[ingress]).await?).await?;
        let series = format!(r#"mesh_ingress_requests_total{{code="{code}",kind="tcp"}}"#);
        let counted = pair.proxy.metrics()?.get(&series)?;
        ensure!(
            counted == ingress as f64,
            "{counted} refused connections were counted"
        );
    }

    // Targets that do not answer: nobody waits longer than the deadline.
    handled.agent_net.set_silent(true);
    let dialer = proxy.dialer("a1")?.deadline(Duration::from_millis(200));
    let (reason, message) = refusal(&dialer, &echo.rule()).await?;
    ensure!(reason == Reason::Timeout, "{reason}: {message}");
    handled.agent_net.set_silent(false);
    ensure!(
        dials(&pair.proxy, "local", Reason::Timeout)? == 1.0,
        "the timeout was not counted"
    );

    ping_pong(&mut live, 10).await?;
    ensure!(
        forbidden.accepted() == 0,
        "the agent dialled what it does not allow"
    );
    ensure!(proxy.sessions().len() == 1, "the session was lost");
    let connects = pair
        .agent
        .metrics()?
        .get(r#"mesh_agent_connects_total{result="ok"}"#)?;
    ensure!(connects == 1.0, "the agent had to connect {connects} times");
    drop(live);
    probe::until("no stream is left", || {
        let open = |node| crate::support::streams_open(node).unwrap_or(u64::MAX);
        open(&pair.proxy) + open(&pair.agent) == 0
    })
    .await
}

/// A refusal ends its own stream and no other.
#[tokio::test]
async fn denied_dial_is_isolated() -> Result {
    let (echo, forbidden, endless) = (
        Service::echo().await?,
        Service::echo().await?,
        endless().await?,
    );
    let handled = Handled::start(&[echo.rule(), endless.rule()], |_| {}, |_| {}).await?;
    let proxy = handled.pair.proxy.as_proxy()?;
    let dialer = proxy.dialer("a1")?;
    let session = proxy.sessions().first().context("no session")?.id;
    let mut lives = dialer.dial(&echo.rule()).await?;
    let mut flows = dialer.dial(&endless.rule()).await?;
    for _ in 0..100 {
        let (reason, message) = refusal(&dialer, &forbidden.rule()).await?;
        ensure!(reason == Reason::NotAllowed, "{reason}: {message}");
        ensure!(message.contains("agent.allow"), "{message}");
        ping_pong(&mut lives, 1).await?;
        tokio::io::AsyncReadExt::read_exact(&mut flows, &mut vec![0; 100_000]).await?;
    }
    ensure!(
        forbidden.accepted() == 0,
        "the agent dialled what it does not allow"
    );
    let sessions: Vec<_> = proxy.sessions().iter().map(|session| session.id).collect();
    ensure!(
        sessions == [session],
        "the sessions are {sessions:?} instead of {session}"
    );
    Ok(())
}

/// Who is about to leave says so: an agent with a running stream, and a proxy.
#[tokio::test]
async fn leaving_nodes_refuse_as_draining() -> Result {
    let echo = Service::echo().await?;
    let handled = Handled::start(
        &[echo.rule()],
        |config| config.ingresses = vec![http_ingress()],
        |config| config.common.drain_deadline = Duration::from_secs(60),
    )
    .await?;
    let Handled { pair, .. } = handled;
    let dialer = pair.proxy.as_proxy()?.dialer("a1")?;
    let mut running = dialer.dial(&echo.rule()).await?;
    let mut leaving = tokio::task::JoinSet::new();
    leaving.spawn(pair.agent.stop());
    probe::eventually("the agent leaves", || async {
        match dialer.dial(&echo.rule()).await {
            Ok(_) => bail!("it still serves"),
            Err(error) => Ok(error),
        }
    })
    .await?;
    // For as long as it has a stream, it is there and leaving, and is not said to be unknown.
    for _ in 0..20 {
        let (reason, message) = refusal(&dialer, &echo.rule()).await?;
        ensure!(reason == Reason::Draining, "{reason}: {message}");
        ping_pong(&mut running, 1).await?;
    }
    let path = format!("/client/a1/http/{}/", echo.addr);
    let answer = http::get(pair.proxy.ingress(0)?, &path).await?;
    ensure!(
        (answer.status, answer.mesh_error()) == (503, "draining"),
        "{answer:?}"
    );
    drop(running);
    let cut = leaving.join_next().await.context("no agent")??;
    ensure!(cut == 0, "the agent cut {cut} streams");
    pair.proxy.sessions(0).await?;
    let (reason, message) = refusal(&dialer, &echo.rule()).await?;
    ensure!(reason == Reason::NoAgent, "{reason}: {message}");
    Ok(())
}

/// An agent takes as many streams as its config says; the next dial is refused as overloaded, and
/// as one ends, there is a place again.
#[tokio::test]
async fn agent_takes_streams_up_to_its_maximum() -> Result {
    // Below and above what every connection starts with.
    for streams_max in [3, 24] {
        let echo = Service::echo().await?;
        let handled = Handled::start(
            &[echo.rule()],
            |_| {},
            |config| config.common.quic.streams_max = streams_max,
        )
        .await?;
        let dialer = handled.pair.proxy.as_proxy()?.dialer("a1")?;
        let mut streams = Vec::new();
        for _ in 0..streams_max {
            streams.push(dialer.dial(&echo.rule()).await?);
        }
        let (reason, message) = refusal(&dialer, &echo.rule()).await?;
        ensure!(reason == Reason::Overloaded, "{reason}: {message}");
        ensure!(message.contains("quic.streams_max"), "{message}");
        for stream in &mut streams {
            ping_pong(stream, 2).await?;
        }
        // QUIC tells of free places when more than an eighth of all is free.
        for _ in 0..=streams_max / 8 {
            streams.pop();
        }
        ping_pong(&mut dialer.dial(&echo.rule()).await?, 2).await?;
    }
    Ok(())
}
