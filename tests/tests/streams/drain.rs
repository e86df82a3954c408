//! Nodes that leave, in order and not, and come back.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use certs::Kind;
use mesh_proto::principal::Principal;
use mesh_proto::refusal::Reason;
use mesh_proto::wire::{ALPN_USER, Answer, Dial, Open};
use mesh_tests::Result;
use mesh_tests::fleet::{Node, Pair, agent_config, http_ingress, proxy_config, tcp_ingress};
use mesh_tests::pki::Pki;
use mesh_tests::probe::Metrics;
use mesh_tests::services::Service;
use mesh_tests::{binary, http, probe, quic};
use node::proxy::{DialerError, Phase};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::support::{
    MIB, body, endless, expect_broken, expect_bytes, expect_whole, pages, ping_pong,
};

const LONG: Duration = Duration::from_secs(120);

/// A draining proxy lets a running download end, refuses new dials as draining, and cuts nothing.
#[tokio::test]
async fn drain_lets_a_download_end() -> Result {
    const DOWNLOAD: usize = 24 * MIB;
    let source = Service::source(DOWNLOAD as u64).await?;
    let ingresses = vec![tcp_ingress("a1", &source.rule())?, http_ingress()];
    let pair = Pair::start_with(
        &[source.rule()],
        |config| {
            config.ingresses = ingresses;
            config.common.drain_deadline = LONG;
        },
        |_| {},
    )
    .await?;
    let Pair { pki, proxy, agent } = pair;
    let (ingress, dialer) = (proxy.ingress(0)?, proxy.as_proxy()?.dialer("a1")?);
    let mut readiness = proxy.as_proxy()?.readiness();
    let registry = proxy.0.registry().clone();
    let alice = pki.issue(Kind::User, "alice")?;
    let user = quic::connect(proxy.quic_addr()?, &alice, ALPN_USER).await?;
    let mut download = TcpStream::connect(ingress).await?;
    expect_bytes(&mut download, body(1000)).await?;
    let mut embedded = dialer.dial(&source.rule()).await?;
    expect_bytes(&mut embedded, body(1000)).await?;

    let mut leaving = JoinSet::new();
    leaving.spawn(proxy.stop());
    readiness
        .wait_for(|phase| *phase == Phase::Draining)
        .await?;
    ensure!(
        Metrics::gather(&registry)?.get("mesh_draining")? == 1.0,
        "it does not drain"
    );
    match dialer.dial(&source.rule()).await {
        Err(DialerError::Dial(error)) => {
            ensure!(error.reason == Reason::Draining, "{error}");
        }
        other => bail!("{other:?}"),
    }
    let dial = Dial {
        target: source.rule().parse()?,
        agent: "a1".parse()?,
        principal: Principal::User("alice".parse()?),
        hops_left: 0,
        deadline_ms: 10_000,
        trace: None,
        ext: Vec::new(),
    };
    match quic::ask(&user.connection, &Open::Dial(dial)).await?.0 {
        Answer::Refused(refused) => {
            ensure!(refused.reason == Reason::Draining, "{refused:?}");
        }
        Answer::Opened(_) => bail!("the user's dial succeeded"),
    }
    let newcomer = pki.issue(Kind::User, "bob")?;
    let refused = quic::connect(user.connection.remote_address(), &newcomer, ALPN_USER).await;
    ensure!(refused.is_err(), "a new connection was taken");
    probe::eventually("the ingress is closed", || async {
        match TcpStream::connect(ingress).await {
            Ok(_) => bail!("it still listens"),
            Err(_) => Ok(()),
        }
    })
    .await?;

    ensure!(leaving.try_join_next().is_none(), "the proxy did not wait");
    expect_whole(&mut download, &body(DOWNLOAD)[1000..]).await?;
    ensure!(
        leaving.try_join_next().is_none(),
        "the proxy did not wait for both"
    );
    expect_whole(&mut embedded, &body(DOWNLOAD)[1000..]).await?;
    drop((download, embedded));
    let cut = leaving.join_next().await.context("no proxy")??;
    ensure!(cut == 0, "{cut} streams were cut");
    let metrics = Metrics::gather(&registry)?;
    ensure!(
        metrics.get(r#"mesh_streams_cut_total{reason="drain_deadline"}"#)? == 0.0,
        "counted"
    );
    drop(agent);
    Ok(())
}

/// What still runs at the deadline is cut and counted, and its reader sees an error: whichever of
/// the two nodes leaves.
#[tokio::test]
async fn the_deadline_of_a_drain_cuts_and_counts() -> Result {
    for proxy_leaves in [true, false] {
        let endless = endless().await?;
        let ingress = tcp_ingress("a1", &endless.rule())?;
        let deadline = Duration::from_millis(100);
        let pair = Pair::start_with(
            &[endless.rule()],
            |config| {
                config.ingresses = vec![ingress];
                config.common.drain_deadline = deadline;
            },
            |config| config.common.drain_deadline = deadline,
        )
        .await?;
        let Pair { proxy, agent, .. } = pair;
        let address = proxy.ingress(0)?;
        let dialer = proxy.as_proxy()?.dialer("a1")?;
        let mut embedded = dialer.dial(&endless.rule()).await?;
        let mut downloads = Vec::new();
        for _ in 0..4 {
            let mut download = TcpStream::connect(address).await?;
            download.read_exact(&mut [0; 1000]).await?;
            downloads.push(download);
        }
        let (leaver, stayer) = if proxy_leaves {
            (proxy, agent)
        } else {
            (agent, proxy)
        };
        let registry = leaver.0.registry().clone();
        let cut = leaver.stop().await;
        ensure!(cut == 5, "{cut} streams were cut");
        let series = r#"mesh_streams_cut_total{reason="drain_deadline"}"#;
        ensure!(
            Metrics::gather(&registry)?.get(series)? == 5.0,
            "they were not counted"
        );
        for download in &mut downloads {
            expect_broken(download).await?;
        }
        expect_broken(&mut embedded).await?;
        probe::until("the service hears of it", || endless.open() == 0).await?;
        drop((embedded, stayer));
    }
    Ok(())
}

/// A proxy and an agent that are dropped in the middle of everything leave no task, no port and no
/// connection behind, and the same again that leave in order.
#[tokio::test]
async fn dropped_nodes_release_everything() -> Result {
    let (endless, echo) = (endless().await?, Service::echo().await?);
    let page = pages(|_| b"ok".to_vec()).await?;
    let tasks = || Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    let pki = Pki::new("test.example.com")?;
    for in_order in [false, true, false] {
        let mut config = proxy_config(&pki, "proxy-1")?;
        config.common.drain_deadline = Duration::from_millis(20);
        config.ingresses = vec![http_ingress(), tcp_ingress("a1", &endless.rule())?];
        let proxy = Node::proxy(config).await?;
        let quic = proxy.quic_addr()?;
        let allow = [endless.rule(), echo.rule(), page.rule()];
        let mut config = agent_config(&pki, "a1", &[quic], &allow)?;
        config.common.drain_deadline = Duration::from_millis(20);
        let agent = Node::agent(config).await?;
        proxy.sessions(1).await?;
        let ingresses = [proxy.ingress(0)?, proxy.ingress(1)?];

        let path = format!("/client/a1/http/{}/", page.addr);
        ensure!(
            http::get(ingresses[0], &path).await?.text() == "ok",
            "no page"
        );
        let mut download = TcpStream::connect(ingresses[1]).await?;
        download.read_exact(&mut [0; 1000]).await?;
        let mut stream = proxy.as_proxy()?.dialer("a1")?.dial(&echo.rule()).await?;
        ping_pong(&mut stream, 3).await?;

        if in_order {
            proxy.stop().await;
            agent.stop().await;
        } else {
            drop((proxy, agent));
        }
        expect_broken(&mut download).await?;
        expect_broken(&mut stream).await?;
        drop((download, stream));
        probe::until("the services are left", || {
            endless.open() + echo.open() + page.open() == 0
        })
        .await?;
        probe::until("no task is left", || tasks() == before)
            .await
            .with_context(|| format!("in order: {in_order}; {} of {before} tasks", tasks()))?;
        tokio::net::UdpSocket::bind(quic)
            .await
            .context("the QUIC port")?;
        for ingress in ingresses {
            ensure!(
                TcpStream::connect(ingress).await.is_err(),
                "{ingress} still listens"
            );
        }
    }
    Ok(())
}

/// A proxy that is started again on its port is found by its agent, whether it left in order or
/// not.
#[tokio::test]
async fn restarted_proxy_is_found_again() -> Result {
    let echo = Service::echo().await?;
    let pki = Pki::new("test.example.com")?;
    let state = tempfile::tempdir()?;
    let listen = binary::free_port()?;
    let ingress = tcp_ingress("a1", &echo.rule())?;
    let start = || async {
        let mut config = proxy_config(&pki, "proxy-1")?;
        config.common.quic.listen = listen;
        config.state_dir = Some(state.path().to_owned());
        config.ingresses = vec![ingress.clone()];
        // A dropped proxy's socket is there until its last packet is out.
        let config = &config;
        probe::eventually("the port is free", || Node::proxy(config.clone())).await
    };
    let agent = Node::agent(agent_config(&pki, "a1", &[listen], &[echo.rule()])?).await?;
    for (round, in_order) in [true, false, true].into_iter().enumerate() {
        let proxy = start().await?;
        proxy.sessions(1).await?;
        let mut user = TcpStream::connect(proxy.ingress(0)?).await?;
        ping_pong(&mut user, 10).await?;
        drop(user);
        let connects = agent
            .metrics()?
            .get(r#"mesh_agent_connects_total{result="ok"}"#)?;
        ensure!(
            connects == (round + 1) as f64,
            "{connects} connections in round {round}"
        );
        if in_order {
            proxy.stop().await;
        } else {
            drop(proxy);
        }
        let agent = agent.0.agent().context("no agent")?;
        agent
            .connected()
            .wait_for(|connected| *connected == 0)
            .await?;
    }
    Ok(())
}
