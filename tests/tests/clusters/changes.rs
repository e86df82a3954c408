//! Trust that is taken away, given back and replaced while connections stand, on either side.

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use certs::{ForeignAuthority, Kind, TrustedClusters};
use mesh_proto::name::Cluster;
use mesh_proto::refusal::Reason;
use mesh_proto::wire::{ALPN_AGENT, AgentFrame, Answer, Dial, Open};
use mesh_tests::hostile::Server;
use mesh_tests::pki::Pki;
use mesh_tests::quic;
use mesh_tests::rogue::welcome;
use mesh_tests::services::Service;
use mesh_tests::{Result, logs, probe};
use node::proxy::tunnels::TunnelState;

use crate::support::{A, B, Site, dial, ping, trust, tunnel};

struct Pair {
    a: Site,
    b: Site,
    echo: Service,
}

impl Pair {
    /// A with two proxies, B with one, connected.
    async fn start() -> Result<Self> {
        let echo = Service::echo().await?;
        let (a_pki, b_pki) = (Arc::new(Pki::new(A)?), Arc::new(Pki::new(B)?));
        let a = Site::start(&a_pki, 2, |_, config| {
            config.trust = vec![trust(&b_pki, &[])?];
            Ok(())
        })
        .await?;
        let b = Site::start(&b_pki, 1, |_, config| {
            config.trust = vec![trust(&a_pki, &[echo.rule()])?];
            Ok(())
        })
        .await?;
        b.apply(&[tunnel(A, &a.addresses()?, 0)?])?;
        let pair = Self { a, b, echo };
        pair.connected().await?;
        Ok(pair)
    }

    async fn connected(&self) -> Result {
        self.a.until_sessions(B, &["a1<b1", "a2<b1"]).await?;
        ensure!(
            dial(&self.a.proxies[0], B, &self.echo.rule())
                .await?
                .is_ok()
        );
        Ok(())
    }

    async fn stop(self) {
        self.b.stop().await;
        self.a.stop().await;
    }
}

#[tokio::test]
async fn trust_removed_where_it_is_dialled() -> Result {
    let logs = logs::capture();
    let pair = Pair::start().await?;
    let (a, b) = (&pair.a, &pair.b);
    let mut stream = a.proxies[0]
        .as_proxy()?
        .dialer(B)?
        .dial(&pair.echo.rule())
        .await?;
    ping(&mut stream).await?;

    for proxy in &a.proxies {
        let change = proxy.as_proxy()?.set_trust(Vec::new());
        ensure!(
            change.removed == [B.parse()?] && change.added.is_empty(),
            "{change:?}"
        );
        ensure!(proxy.as_proxy()?.set_trust(Vec::new()).is_empty());
    }
    a.until_sessions(B, &[]).await?;
    ensure!(
        ping(&mut stream).await.is_err(),
        "a stream outlives the trust"
    );
    let untrusted: f64 = a
        .proxies
        .iter()
        .map(|proxy| {
            let series = "mesh_proxy_agent_disconnects_total{reason=\"untrusted\"}";
            proxy.metrics()?.get(series)
        })
        .sum::<Result<f64>>()?;
    ensure!(untrusted == 2.0, "{untrusted}");
    let reason = format!("the cluster {B} is not trusted here any more");
    probe::until("both sides log the reason", || {
        !logs
            .lines_with(&["ended a session of another cluster", &reason])
            .is_empty()
            && !logs
                .lines_with(&["lost the connection to a proxy", &reason])
                .is_empty()
    })
    .await?;
    // It is no cluster any more, and its proxies are strangers.
    let (refused, why) = dial(&a.proxies[0], B, &pair.echo.rule())
        .await?
        .unwrap_err();
    ensure!(refused == Reason::NoAgent, "{refused}: {why}");
    probe::eventually("the tunnel fails, and says why", || async {
        match b.state(0)? {
            Some(TunnelState::Failing { why, .. }) if why.contains("trust") => Ok(()),
            state => anyhow::bail!("{state:?}"),
        }
    })
    .await?;

    for proxy in &a.proxies {
        let change = proxy.as_proxy()?.set_trust(vec![trust(&b.pki, &[])?]);
        ensure!(change.added == [B.parse()?], "{change:?}");
    }
    pair.connected().await.context("trusted again")?;
    pair.stop().await;
    Ok(())
}

#[tokio::test]
async fn trust_removed_where_the_tunnel_is() -> Result {
    let pair = Pair::start().await?;
    let (a, b) = (&pair.a, &pair.b);
    let proxy = b.proxies[0].as_proxy()?;
    proxy.set_trust(Vec::new());
    a.until_sessions(B, &[]).await?;
    let Some(TunnelState::Failing { why, .. }) = b.state(0)? else {
        anyhow::bail!("{:?}", b.state(0)?)
    };
    ensure!(why.contains("add a [[trust]]"), "{why}");
    let (refused, why) = dial(&a.proxies[0], B, &pair.echo.rule())
        .await?
        .unwrap_err();
    ensure!(
        refused == Reason::NoAgent && why.contains("no proxy of the cluster"),
        "{refused}: {why}"
    );

    // Back, with another list: connections stand, and what they may reach is another matter.
    proxy.set_trust(vec![trust(&a.pki, &[])?]);
    a.until_sessions(B, &["a1<b1", "a2<b1"]).await?;
    let (refused, _) = dial(&a.proxies[0], B, &pair.echo.rule())
        .await?
        .unwrap_err();
    ensure!(refused == Reason::NotAllowed, "{refused}");
    let ids = |site: &Site| -> Result<Vec<u64>> {
        let sessions = site.proxies[0].as_proxy()?.sessions();
        Ok(sessions.iter().map(|session| session.id).collect())
    };
    let before = ids(a)?;
    let change = proxy.set_trust(vec![trust(&a.pki, &[pair.echo.rule()])?]);
    ensure!(
        change.changed == [A.parse()?] && change.removed.is_empty(),
        "{change:?}"
    );
    ensure!(dial(&a.proxies[0], B, &pair.echo.rule()).await?.is_ok());
    ensure!(ids(a)? == before, "a list that changes costs a connection");
    pair.stop().await;
    Ok(())
}

/// Another authority under the same name: who was let in by the former one goes.
#[tokio::test]
async fn an_authority_replaced() -> Result {
    let pair = Pair::start().await?;
    let (a, b) = (&pair.a, &pair.b);
    let new_pki = Pki::new(B)?;
    for proxy in &a.proxies {
        let change = proxy.as_proxy()?.set_trust(vec![trust(&new_pki, &[])?]);
        ensure!(change.changed == [B.parse()?], "{change:?}");
    }
    a.until_sessions(B, &[]).await?;
    // With both in the file, as while one is replaced, those of either are let in.
    let pem = format!(
        "{}{}",
        new_pki.authority().ca_pem(),
        b.pki.authority().ca_pem()
    );
    for proxy in &a.proxies {
        let mut both = trust(&new_pki, &[])?;
        let path = std::path::Path::new("both.pem");
        both.authority = certs::ForeignAuthority::from_pem(&B.parse()?, path, pem.as_bytes())?;
        proxy.as_proxy()?.set_trust(vec![both]);
    }
    pair.connected().await?;
    pair.stop().await;
    Ok(())
}

/// A tunnel that is left has streams that run, and is judged as long as they do.
#[tokio::test]
async fn trust_removed_while_a_tunnel_is_left() -> Result {
    let pair = Pair::start().await?;
    let (a, b) = (&pair.a, &pair.b);
    let mut stream = a.proxies[0]
        .as_proxy()?
        .dialer(B)?
        .dial(&pair.echo.rule())
        .await?;
    ping(&mut stream).await?;
    b.apply(&[])?;
    // The other one has no stream.
    a.until_sessions(B, &["a1<b1"]).await?;
    ping(&mut stream).await?;
    let new_pki = Pki::new(A)?;
    let allow = [pair.echo.rule()];
    let change = b.proxies[0]
        .as_proxy()?
        .set_trust(vec![trust(&new_pki, &allow)?]);
    ensure!(change.changed == [A.parse()?], "{change:?}");
    a.until_sessions(B, &[]).await?;
    ensure!(
        ping(&mut stream).await.is_err(),
        "a stream outlives the trust"
    );
    pair.stop().await;
    Ok(())
}

/// The one cluster that is trusted.
#[derive(Debug)]
struct Trusted(ForeignAuthority);

impl TrustedClusters for Trusted {
    fn authority(&self, cluster: &Cluster) -> Option<ForeignAuthority> {
        (cluster.as_str() == B).then(|| self.0.clone())
    }
}

/// A proxy of another cluster that goes on dialling when it was told that the tunnel is left.
#[tokio::test]
async fn a_tunnel_that_is_left_takes_no_dials() -> Result {
    let echo = Service::echo().await?;
    let (a_pki, b_pki) = (Arc::new(Pki::new(A)?), Arc::new(Pki::new(B)?));
    let b = Site::start(&b_pki, 1, |_, config| {
        config.trust = vec![trust(&a_pki, &[echo.rule()])?];
        Ok(())
    })
    .await?;
    let (answers, mut answered) = tokio::sync::mpsc::channel(4);
    let open = Open::Dial(Dial {
        target: echo.rule().parse()?,
        agent: B.parse()?,
        principal: "user:alice".parse()?,
        hops_left: 0,
        deadline_ms: 10_000,
        trace: None,
        ext: Vec::new(),
    });
    let credentials = a_pki.issue(Kind::Proxy, "a1")?;
    let trusted = Arc::new(Trusted(trust(&b_pki, &[])?.authority));
    let tls = certs::proxy_server_config_trusting(
        &credentials,
        trusted,
        &[ALPN_AGENT],
        certs::system_time(),
    )?;
    let rogue = Server::start(tls, move |connection| {
        let (open, answers) = (open.clone(), answers.clone());
        async move {
            let (_send, mut recv) = welcome(&connection, A, "a1").await?;
            let (answer, ..) = quic::ask(&connection, &open).await?;
            answers.send(answer).await?;
            let frame: AgentFrame = quic::read(&mut recv).await?;
            ensure!(matches!(frame, AgentFrame::Leaving(_)), "{frame:?}");
            let (answer, ..) = quic::ask(&connection, &open).await?;
            answers.send(answer).await?;
            connection.closed().await;
            Ok(())
        }
    })?;
    b.apply(&[tunnel(A, &[rogue.addr], 0)?])?;
    let answer: Option<Answer> = answered.recv().await;
    ensure!(matches!(answer, Some(Answer::Opened(_))), "{answer:?}");
    b.apply(&[])?;
    let answer = answered.recv().await;
    let Some(Answer::Refused(refused)) = answer else {
        anyhow::bail!("{answer:?}")
    };
    ensure!(refused.reason == Reason::Draining, "{refused:?}");
    drop(rogue);
    b.stop().await;
    Ok(())
}
