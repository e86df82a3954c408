//! Dials from one cluster into another.

use std::sync::Arc;

use anyhow::ensure;
use mesh_proto::grant::{Grant, May};
use mesh_proto::refusal::Reason;
use mesh_tests::http::get;
use mesh_tests::pki::Pki;
use mesh_tests::services::{Service, pattern};
use mesh_tests::{Result, logs, probe, web};
use node::config::ProxyConfig;

use crate::support::{A, B, Site, dial, trust, tunnel};

/// Cluster `who` may dial these agents.
fn grant(config: &mut ProxyConfig, who: &str, agents: &[&str]) -> Result {
    let agents: std::result::Result<_, _> = agents.iter().map(|agent| agent.parse()).collect();
    config.grants.push(Grant {
        who: vec![format!("cluster:{who}").parse()?],
        may: [May::Dial].into(),
        agents: Some(agents?),
        targets: None,
    });
    Ok(())
}

/// B has two proxies and the agent `db` at the second one; the tunnel is kept by the first one alone,
/// to one proxy of A: a dial takes a hop in A, one between the clusters, and one in B.
#[tokio::test]
async fn across_with_a_hop_on_each_side() -> Result {
    let logs = logs::capture();
    let (echo, web) = (Service::echo().await?, web::start().await?);
    let (a_pki, b_pki) = (Arc::new(Pki::new(A)?), Arc::new(Pki::new(B)?));
    let a = Site::start(&a_pki, 2, |_, config| {
        config.trust = vec![trust(&b_pki, &[])?];
        Ok(())
    })
    .await?;
    let b = Site::start(&b_pki, 2, |_, config| {
        config.trust = vec![trust(&a_pki, &[echo.rule(), web.rule()])?];
        grant(config, A, &["db"])
    })
    .await?;
    let db = b.agent("db", 1, &[echo.rule(), web.rule()]).await?;
    let wish = tunnel(A, &a.addresses()?[..1], 1)?;
    b.proxies[0].as_proxy()?.tunnels().apply(vec![wish]);
    probe::until("the tunnel stands", || a.sessions_of(B).len() == 1).await?;

    for proxy in &a.proxies {
        // B's proxies themselves, and an agent behind them, through either proxy of A.
        for agent in [B, "db.b.example.com"] {
            dial(proxy, agent, &echo.rule())
                .await?
                .map_err(|(reason, why)| anyhow::anyhow!("{agent}: {reason}: {why}"))?;
        }
        for agent in [B, "db.b.example.com"] {
            let path = format!("/client/{agent}/http/{}/source/9", web.rule());
            let answer = get(proxy.ingress(0)?, &path).await?;
            ensure!(
                answer.status == 200 && answer.body[..] == pattern(0, 9),
                "{}",
                answer.text()
            );
        }
    }
    // B judges the cluster, whoever it was there, in either of its proxies.
    let asked = b.asked();
    ensure!(
        asked
            .iter()
            .all(|line| line.starts_with("cluster:a.example.com ")),
        "{asked:?}"
    );
    for agent in [B, "db.b.example.com"] {
        let line = format!("cluster:a.example.com {agent}");
        ensure!(asked.contains(&line), "{line} in {asked:?}");
    }
    // And logs on whose behalf that was, as A says.
    let lines = logs.lines_with(&["\"access\"", "cluster:a.example.com", "ingress:embedded"]);
    ensure!(!lines.is_empty());
    db.stop().await;
    b.stop().await;
    a.stop().await;
    Ok(())
}

#[tokio::test]
async fn refusals_are_typed_and_say_who_refused() -> Result {
    let (echo, other) = (Service::echo().await?, Service::echo().await?);
    let closed = {
        let gone = Service::echo().await?;
        gone.rule()
    };
    let (a_pki, b_pki) = (Arc::new(Pki::new(A)?), Arc::new(Pki::new(B)?));
    let a = Site::start(&a_pki, 2, |_, config| {
        config.trust = vec![trust(&b_pki, &[])?];
        Ok(())
    })
    .await?;
    let b = Site::start(&b_pki, 2, |_, config| {
        let allow = [echo.rule(), closed.clone()];
        config.trust = vec![trust(&a_pki, &allow)?];
        grant(config, A, &["db", "gone"])
    })
    .await?;
    let db = b.agent("db", 0, &[echo.rule()]).await?;
    let private = b.agent("private", 0, &[echo.rule()]).await?;
    let no_tunnel = dial(&a.proxies[0], B, &echo.rule()).await?.unwrap_err();
    ensure!(
        no_tunnel.0 == Reason::NoAgent && no_tunnel.1.contains("tunnel"),
        "{no_tunnel:?}"
    );
    b.apply(&[tunnel(A, &a.addresses()?, 0)?])?;
    a.until_sessions(B, &["a1<b1", "a1<b2", "a2<b1", "a2<b2"])
        .await?;

    for proxy in &a.proxies {
        for (agent, target, reason, says) in [
            (
                B,
                other.rule(),
                Reason::NotAllowed,
                "[[trust]] of a.example.com",
            ),
            (
                B,
                "internal.invalid:80".into(),
                Reason::NotAllowed,
                "does not allow internal.invalid:80;",
            ),
            (
                B,
                closed.clone(),
                Reason::Refused,
                "refused the proxy's connection",
            ),
            (B, "service:db".into(), Reason::BadTarget, "has no service"),
            (
                "private.b.example.com",
                echo.rule(),
                Reason::NotAllowed,
                "cluster:a.example.com may not dial",
            ),
            (
                "db.b.example.com",
                other.rule(),
                Reason::NotAllowed,
                "the agent db does not allow",
            ),
            (
                "gone.b.example.com",
                echo.rule(),
                Reason::NoAgent,
                "no agent `gone`",
            ),
            (
                "x.c.example.com",
                echo.rule(),
                Reason::NoAgent,
                "nor of one that is connected",
            ),
            (
                "c.example.com",
                echo.rule(),
                Reason::NoAgent,
                "nor of one that is connected",
            ),
        ] {
            let (refused, why) = dial(proxy, agent, &target).await?.unwrap_err();
            ensure!(
                refused == reason && why.contains(says),
                "{agent} {target}: {refused}: {why}"
            );
        }
    }
    // What is not allowed is not even tried.
    ensure!(other.accepted() == 0);
    for node in [db, private] {
        node.stop().await;
    }
    b.stop().await;
    a.stop().await;
    Ok(())
}

/// A knows B alone and asks it for `c.b.example.com`, an agent by its looks. B knows a cluster of that
/// name, has it connected and would reach it for its own users; for A it does not.
#[tokio::test]
async fn no_transit() -> Result {
    const C: &str = "c.b.example.com";
    let echo = Service::echo().await?;
    let pkis = [A, B, C].map(Pki::new);
    let [a_pki, b_pki, c_pki] = pkis;
    let (a_pki, b_pki, c_pki) = (Arc::new(a_pki?), Arc::new(b_pki?), Arc::new(c_pki?));
    let a = Site::start(&a_pki, 1, |_, config| {
        config.trust = vec![trust(&b_pki, &[])?];
        Ok(())
    })
    .await?;
    let b = Site::start(&b_pki, 2, |_, config| {
        config.trust = vec![trust(&a_pki, &[echo.rule()])?, trust(&c_pki, &[])?];
        grant(config, A, &["*", "*.b.example.com", "*.c.b.example.com"])
    })
    .await?;
    let c = Site::start(&c_pki, 1, |_, config| {
        config.trust = vec![trust(&b_pki, &[echo.rule()])?];
        Ok(())
    })
    .await?;
    b.apply(&[tunnel(A, &a.addresses()?, 0)?])?;
    c.apply(&[tunnel(B, &b.addresses()?, 0)?])?;
    a.until_sessions(B, &["a1<b1", "a1<b2"]).await?;
    b.until_sessions(C, &["b1<c1", "b2<c1"]).await?;
    ensure!(dial(&b.proxies[0], C, &echo.rule()).await?.is_ok());
    ensure!(dial(&a.proxies[0], B, &echo.rule()).await?.is_ok());
    let reached = echo.accepted();
    for agent in [C, "x.c.b.example.com"] {
        let (reason, why) = dial(&a.proxies[0], agent, &echo.rule()).await?.unwrap_err();
        // A itself knows no cluster two labels below B's.
        let expected = if agent == C {
            Reason::NotAllowed
        } else {
            Reason::NoAgent
        };
        ensure!(reason == expected, "{agent}: {reason}: {why}");
        ensure!(agent != C || why.contains("passes nothing on"), "{why}");
    }
    ensure!(echo.accepted() == reached);
    for site in [c, b, a] {
        site.stop().await;
    }
    Ok(())
}

/// A cluster may be called like an agent of another one: each has a name of its own, and a grant for
/// the one does not lead to the other.
#[tokio::test]
async fn a_cluster_below_another_one() -> Result {
    const PARENT: &str = "example.com";
    let (here, there) = (Service::echo().await?, Service::echo().await?);
    let (parent_pki, a_pki) = (Arc::new(Pki::new(PARENT)?), Arc::new(Pki::new(A)?));
    let parent = Site::start(&parent_pki, 1, |_, config| {
        config.trust = vec![trust(&a_pki, &[])?];
        Ok(())
    })
    .await?;
    let a = Site::start(&a_pki, 1, |_, config| {
        config.trust = vec![trust(&parent_pki, &[there.rule()])?];
        Ok(())
    })
    .await?;
    let agent = parent.agent("a", 0, &[here.rule()]).await?;
    a.apply(&[tunnel(PARENT, &parent.addresses()?, 0)?])?;
    parent.until_sessions(A, &["e1<a1"]).await?;
    let proxy = &parent.proxies[0];
    for (name, target, reached) in [
        ("a", here.rule(), true),
        ("a", there.rule(), false),
        (A, there.rule(), true),
        (A, here.rule(), false),
    ] {
        let dialled = dial(proxy, name, &target).await?;
        ensure!(dialled.is_ok() == reached, "{name} {target}: {dialled:?}");
        // The same through HTTP, where connections are pooled by name.
        let answer = get(proxy.ingress(0)?, &format!("/client/{name}/http/{target}/")).await?;
        ensure!(
            (answer.mesh_error() == "not_allowed") != reached,
            "{name} {target}: {}",
            answer.text()
        );
    }
    agent.stop().await;
    a.stop().await;
    parent.stop().await;
    Ok(())
}
