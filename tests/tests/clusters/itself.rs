//! What a proxy dials itself, for principals of its own cluster.

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use certs::Kind;
use mesh_proto::grant::{Grant, May};
use mesh_proto::refusal::Reason;
use mesh_proto::wire::{ALPN_USER, Answer, Dial, Open};
use mesh_tests::fleet::{Node, agent_config, tcp_ingress};
use mesh_tests::http::get;
use mesh_tests::pki::Pki;
use mesh_tests::services::{self, Service, pattern};
use mesh_tests::{Result, probe, quic, web};
use tokio::io::AsyncWriteExt as _;

use crate::support::{A, Site, dial, rules};

#[tokio::test]
async fn through_every_ingress() -> Result {
    let (echo, other, web) = (
        Service::echo().await?,
        Service::echo().await?,
        web::start().await?,
    );
    let pki = Arc::new(Pki::new(A)?);
    let site = Site::start(&pki, 2, |_, config| {
        config.allow = rules(&[echo.rule(), web.rule()])?;
        config.ingresses.push(tcp_ingress(A, &echo.rule())?);
        config.ingresses.push(tcp_ingress(A, &other.rule())?);
        Ok(())
    })
    .await?;
    for proxy in &site.proxies {
        ensure!(dial(proxy, A, &echo.rule()).await?.is_ok());
        let (reason, why) = dial(proxy, A, &other.rule()).await?.unwrap_err();
        ensure!(
            reason == Reason::NotAllowed && why.contains("proxy.allow"),
            "{why}"
        );
        services::echoes(proxy.ingress(1)?, &pattern(0, 1 << 20)).await?;
        ensure!(services::echoes(proxy.ingress(2)?, b"x").await.is_err());
    }
    ensure!(other.accepted() == 0);
    // Streams that a proxy has made itself are counted, and end.
    for proxy in &site.proxies {
        probe::eventually("no stream is open", || {
            let open = proxy
                .metrics()
                .and_then(|metrics| metrics.get("mesh_streams_open"));
            async move {
                let open = open?;
                ensure!(open == 0.0, "{open}");
                Ok(())
            }
        })
        .await?;
    }
    // HTTP keeps its connections for a while.
    for proxy in &site.proxies {
        let answer = get(
            proxy.ingress(0)?,
            &format!("/client/{A}/http/{}/source/5", web.rule()),
        )
        .await?;
        ensure!(
            answer.status == 200 && answer.body[..] == pattern(0, 5),
            "{}",
            answer.text()
        );
        let answer = get(
            proxy.ingress(0)?,
            &format!("/client/{A}/http/{}/", other.rule()),
        )
        .await?;
        ensure!(answer.mesh_error() == "not_allowed", "{}", answer.text());
    }
    ensure!(other.accepted() == 0);
    site.stop().await;
    Ok(())
}

/// What a proxy keeps to its own targets is no business of agents that leave.
#[tokio::test]
async fn kept_connections_outlive_agents() -> Result {
    let web = web::start().await?;
    let pki = Arc::new(Pki::new(A)?);
    let site = Site::start(&pki, 1, |_, config| {
        config.allow = rules(&[web.rule()])?;
        Ok(())
    })
    .await?;
    let proxy = &site.proxies[0];
    let quic = [proxy.quic_addr()?];
    let agent = Node::agent(agent_config(&pki, "a1", &quic, &[web.rule()])?).await?;
    proxy.sessions(1).await?;
    let ask = async |agent: &str| -> Result {
        let path = format!("/client/{agent}/http/{}/source/5", web.rule());
        let answer = get(proxy.ingress(0)?, &path).await?;
        ensure!(answer.status == 200, "{}", answer.text());
        Ok(())
    };
    ask(A).await?;
    ask("a1").await?;
    ensure!(web.accepted() == 2, "{} connections", web.accepted());
    // It ends when the proxy has closed what it kept of it.
    ensure!(agent.stop().await == 0, "a stream was cut");
    ask(A).await?;
    ensure!(web.accepted() == 2, "{} connections", web.accepted());
    site.stop().await;
    Ok(())
}

/// Users who come by QUIC may by default, agents need a grant; with none, nobody reaches anything.
#[tokio::test]
async fn users_and_agents() -> Result {
    let echo = Service::echo().await?;
    let pki = Arc::new(Pki::new(A)?);
    let site = Site::start(&pki, 1, |_, config| {
        config.allow = rules(&[echo.rule()])?;
        config.grants.push(Grant {
            who: vec!["agent:may".parse()?],
            may: [May::Dial].into(),
            agents: Some(vec![A.parse()?]),
            targets: None,
        });
        config.grants.push(Grant {
            who: vec!["agent:other".parse()?],
            may: [May::Dial].into(),
            agents: Some(vec!["*".parse()?]),
            targets: None,
        });
        Ok(())
    })
    .await?;
    let alice = pki.issue(Kind::User, "alice")?;
    let raw = quic::connect(site.proxies[0].quic_addr()?, &alice, ALPN_USER).await?;
    let open = Open::Dial(Dial {
        target: echo.rule().parse()?,
        agent: A.parse()?,
        principal: "user:alice".parse()?,
        hops_left: 0,
        deadline_ms: 10_000,
        trace: None,
        ext: Vec::new(),
    });
    let (answer, mut send, mut recv) = quic::ask(&raw.connection, &open).await?;
    ensure!(matches!(answer, Answer::Opened(_)), "{answer:?}");
    send.write_all(b"there").await?;
    send.shutdown().await?;
    ensure!(recv.read_to_end(100).await? == b"there");

    for (name, may) in [("may", true), ("other", false), ("stranger", false)] {
        let agent = site.agent(name, 0, &[]).await?;
        let dialer = agent.0.agent().context("an agent")?.dialer(A)?;
        let dialled = dialer.dial(&echo.rule()).await;
        ensure!(dialled.is_ok() == may, "{name}: {dialled:?}");
        drop(dialled);
        agent.stop().await;
    }
    site.stop().await;

    let bare = Site::start(&pki, 1, |_, _| Ok(())).await?;
    let (reason, _) = dial(&bare.proxies[0], A, &echo.rule()).await?.unwrap_err();
    ensure!(reason == Reason::NotAllowed);
    bare.stop().await;
    Ok(())
}
