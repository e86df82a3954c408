//! Pools of tunnels: they start, share the work, move and end.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use mesh_tests::pki::Pki;
use mesh_tests::services::Service;
use mesh_tests::{Result, probe};
use node::config::DuplicateNames;
use node::proxy::Phase;
use node::proxy::tunnels::TunnelState;
use tokio::io::AsyncWriteExt as _;

use crate::support::{A, B, Site, dial, ping, trust, tunnel};

/// A with so many proxies, which may know each other, and B with so many.
async fn sites(echo: &Service, of_a: usize, of_b: usize, meshed: bool) -> Result<(Site, Site)> {
    let (a_pki, b_pki) = (Arc::new(Pki::new(A)?), Arc::new(Pki::new(B)?));
    let start_a = |count: usize| {
        let (a_pki, b_pki) = (a_pki.clone(), b_pki.clone());
        async move {
            Site::start(&a_pki, count, |_, config| {
                config.trust = vec![trust(&b_pki, &[])?];
                config.duplicate_names = DuplicateNames::Refuse;
                Ok(())
            })
            .await
        }
    };
    let a = if meshed {
        start_a(of_a).await?
    } else {
        let mut a = start_a(1).await?;
        for _ in 1..of_a {
            a.proxies.extend(start_a(1).await?.proxies);
        }
        a
    };
    let b = Site::start(&b_pki, of_b, |_, config| {
        config.trust = vec![trust(&a_pki, &[echo.rule()])?];
        Ok(())
    })
    .await?;
    Ok((a, b))
}

/// Every proxy of B to every one of A, found through one address; or as many as the count says. They
/// are one agent, though `duplicate_names` is "refuse", and nobody takes them for clones.
#[tokio::test]
async fn the_count_decides_and_nobody_is_a_clone() -> Result {
    let echo = Service::echo().await?;
    let (a, b) = sites(&echo, 2, 2, true).await?;
    let one = &a.addresses()?[..1];
    b.apply(&[tunnel(A, one, 0)?])?;
    a.until_sessions(B, &["a1<b1", "a1<b2", "a2<b1", "a2<b2"])
        .await?;
    for proxy in 0..2 {
        probe::until("the tunnel has all it wants", || {
            matches!(
                b.state(proxy),
                Ok(Some(TunnelState::Connected {
                    connections: 2,
                    wanted: 2
                }))
            )
        })
        .await?;
    }
    // Both of B's proxies share the work.
    for _ in 0..4 {
        ensure!(dial(&a.proxies[0], B, &echo.rule()).await?.is_ok());
    }
    for proxy in &b.proxies {
        let series = "mesh_dials_total{path=\"local\",result=\"ok\"}";
        let served = proxy.metrics()?.get(series)?;
        ensure!(served > 0.0, "a proxy of B has served nothing");
    }
    for proxy in &a.proxies {
        let proxy = proxy.as_proxy()?;
        ensure!(
            proxy.status().problems.is_empty(),
            "{:?}",
            proxy.status().problems
        );
        let route = proxy.route(&B.parse()?);
        ensure!(route.holders.len() == 2, "{route:?}");
        let named = route.holders[0].sessions.iter();
        let mut named: Vec<_> = named.filter_map(|session| session.proxy.clone()).collect();
        named.sort();
        ensure!(named == ["b1", "b2"], "{route:?}");
    }
    // Fewer: each proxy of B keeps one.
    b.apply(&[tunnel(A, one, 1)?])?;
    probe::until("each proxy of B holds one connection", || {
        let held = a.sessions_of(B);
        let of = |name: &str| held.iter().filter(|line| line.ends_with(name)).count();
        (of("<b1"), of("<b2")) == (1, 1)
    })
    .await
    .with_context(|| format!("{:?}", a.sessions_of(B)))?;
    b.stop().await;
    a.stop().await;
    Ok(())
}

/// The pool's half of the promise: what is applied no more is left in order. A stream that runs ends
/// by itself, and nothing new comes through.
#[tokio::test]
async fn tunnel_removed_stops() -> Result {
    let echo = Service::echo().await?;
    let (a, b) = sites(&echo, 1, 1, true).await?;
    b.apply(&[tunnel(A, &a.addresses()?, 0)?])?;
    a.until_sessions(B, &["a1<b1"]).await?;
    let mut stream = a.proxies[0]
        .as_proxy()?
        .dialer(B)?
        .dial(&echo.rule())
        .await?;
    ping(&mut stream).await?;
    b.apply(&[])?;
    probe::until("no tunnel is kept", || matches!(b.state(0), Ok(None))).await?;
    probe::eventually("nothing new comes through", || async {
        let dialled = dial(&a.proxies[0], B, &echo.rule()).await?;
        ensure!(dialled.is_err());
        Ok(())
    })
    .await?;
    ping(&mut stream).await.context("a stream that ran")?;
    ensure!(a.sessions_of(B) == ["a1<b1"]);
    stream.shutdown().await?;
    drop(stream);
    a.until_sessions(B, &[]).await?;
    // It is gone for good: nobody dials.
    let left = "mesh_proxy_agent_disconnects_total{reason=\"left\"}";
    ensure!(a.proxies[0].metrics()?.get(left)? == 1.0);
    // And can be wished for again.
    b.apply(&[tunnel(A, &a.addresses()?, 0)?])?;
    a.until_sessions(B, &["a1<b1"]).await?;
    ensure!(dial(&a.proxies[0], B, &echo.rule()).await?.is_ok());
    b.stop().await;
    a.stop().await;
    Ok(())
}

/// Two proxies of A that do not know each other: a tunnel moves from the one to the other, and the
/// stream through the former one goes on. Addresses that lead nowhere move nothing.
#[tokio::test]
async fn moved_without_cutting() -> Result {
    let echo = Service::echo().await?;
    let (a, b) = sites(&echo, 2, 1, false).await?;
    let addresses = a.addresses()?;
    b.apply(&[tunnel(A, &addresses[..1], 0)?])?;
    let first = |count: usize| {
        a.proxies[0]
            .as_proxy()
            .is_ok_and(|p| p.sessions().len() == count)
    };
    let second = |count: usize| {
        a.proxies[1]
            .as_proxy()
            .is_ok_and(|p| p.sessions().len() == count)
    };
    probe::until("the first one is connected", || first(1)).await?;
    let mut stream = a.proxies[0]
        .as_proxy()?
        .dialer(B)?
        .dial(&echo.rule())
        .await?;
    ping(&mut stream).await?;

    let nowhere = {
        let gone = std::net::UdpSocket::bind("127.0.0.1:0")?;
        gone.local_addr()?
    };
    b.apply(&[tunnel(A, &[nowhere], 0)?])?;
    probe::eventually(
        "the new addresses fail, and the former connection stays",
        || async {
            match b.state(0)? {
                Some(TunnelState::Failing { why, .. })
                    if why.contains("1 connections by the former") =>
                {
                    Ok(())
                }
                state => anyhow::bail!("{state:?}"),
            }
        },
    )
    .await?;
    ensure!(dial(&a.proxies[0], B, &echo.rule()).await?.is_ok());

    b.apply(&[tunnel(A, &addresses[1..], 0)?])?;
    probe::until("the second one is connected", || second(1)).await?;
    probe::eventually("the first one is not dialled any more", || async {
        ensure!(dial(&a.proxies[0], B, &echo.rule()).await?.is_err());
        Ok(())
    })
    .await?;
    ensure!(dial(&a.proxies[1], B, &echo.rule()).await?.is_ok());
    ping(&mut stream)
        .await
        .context("the stream through the former one")?;
    ensure!(first(1));
    stream.shutdown().await?;
    drop(stream);
    probe::until("the former connection is left", || first(0)).await?;
    b.stop().await;
    a.stop().await;
    Ok(())
}

/// A proxy of B that ends leaves the tunnel as agents leave: the others take over, and no dial fails.
#[tokio::test]
async fn a_proxy_that_drains_is_replaced() -> Result {
    let echo = Service::echo().await?;
    let (a, mut b) = sites(&echo, 1, 2, true).await?;
    b.apply(&[tunnel(A, &a.addresses()?, 0)?])?;
    a.until_sessions(B, &["a1<b1", "a1<b2"]).await?;
    let leaving = b.proxies.remove(0);
    let stopped = tokio::spawn(leaving.stop());
    while !stopped.is_finished() {
        let dialled = dial(&a.proxies[0], B, &echo.rule()).await?;
        ensure!(dialled.is_ok(), "{dialled:?}");
    }
    ensure!(stopped.await? == 0, "streams were cut");
    a.until_sessions(B, &["a1<b2"]).await?;
    ensure!(dial(&a.proxies[0], B, &echo.rule()).await?.is_ok());
    b.stop().await;
    a.stop().await;
    Ok(())
}

/// What cannot be kept says so, and why.
#[tokio::test]
async fn what_cannot_be_kept() -> Result {
    let echo = Service::echo().await?;
    let (a, b) = sites(&echo, 1, 1, true).await?;
    let proxy = b.proxies[0].as_proxy()?;
    let somewhere = a.addresses()?;
    proxy.tunnels().apply(vec![
        tunnel(B, &somewhere, 0)?,
        tunnel("c.example.com", &somewhere, 0)?,
    ]);
    probe::eventually("both fail", || async {
        let states = proxy.tunnels().states();
        let [
            (b_name, TunnelState::Failing { why: own, .. }),
            (c, TunnelState::Failing { why: stranger, .. }),
        ] = &states[..]
        else {
            anyhow::bail!("{states:?}")
        };
        ensure!((b_name.as_str(), c.as_str()) == (B, "c.example.com"));
        ensure!(own.contains("own cluster"), "{own}");
        ensure!(stranger.contains("add a [[trust]]"), "{stranger}");
        Ok(())
    })
    .await?;
    ensure!(a.sessions_of(B).is_empty());
    b.stop().await;
    a.stop().await;
    Ok(())
}

/// As many streams as somebody wants, and not the few that a connection allows at first.
#[tokio::test]
async fn a_connection_of_a_tunnel_carries_many_streams() -> Result {
    let echo = Service::echo().await?;
    let (a, b) = sites(&echo, 1, 1, true).await?;
    b.apply(&[tunnel(A, &a.addresses()?, 0)?])?;
    a.until_sessions(B, &["a1<b1"]).await?;
    let mut streams = Vec::new();
    let dialer = a.proxies[0].as_proxy()?.dialer(B)?;
    for number in 0..300 {
        let stream = dialer.dial(&echo.rule()).await;
        streams.push(stream.with_context(|| format!("stream {number}"))?);
    }
    for stream in &mut streams {
        ping(stream).await?;
    }
    Ok(())
}

/// Who does not know yet where agents are would refuse dials that another proxy can serve.
#[tokio::test]
async fn a_proxy_that_joins_keeps_no_tunnel_yet() -> Result {
    let echo = Service::echo().await?;
    let (a, mut b) = sites(&echo, 1, 0, true).await?;
    let (trusted, dead) = (trust(&a.pki, &[])?, mesh_tests::binary::free_port()?);
    let joining = Site::start(&b.pki, 1, |_, config| {
        config.trust = vec![trusted.clone()];
        config.peers = vec![dead.to_string()];
        config.join_deadline = Duration::from_secs(2);
        Ok(())
    })
    .await?;
    b.proxies.extend(joining.proxies);
    b.apply(&[tunnel(A, &a.addresses()?, 0)?])?;
    let phase = b.proxies[0].as_proxy()?.readiness();
    ensure!(
        *phase.borrow() == Phase::Joining,
        "it joins for two seconds"
    );
    probe::until("it has joined", || {
        let connected = !a.sessions_of(B).is_empty();
        let joins = *phase.borrow() == Phase::Joining;
        assert!(!connected || !joins, "connected before it has joined");
        !joins
    })
    .await?;
    a.until_sessions(B, &["a1<b1"]).await
}
