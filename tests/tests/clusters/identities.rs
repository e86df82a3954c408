//! At the door: every kind, every protocol, every cluster, by every authority.

use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use certs::Kind;
use mesh_proto::refusal::Reason;
use mesh_proto::wire::{
    ALPN_AGENT, ALPN_PEER, ALPN_USER, AgentFrame, AgentHello, Answer, Open, OpenControl, ProxyFrame,
};
use mesh_tests::pki::Pki;
use mesh_tests::services::Service;
use mesh_tests::{Result, hostile, quic};

use crate::support::{A, B, Site, dial, trust};

const C: &str = "c.example.com";

/// A client with any certificate, which takes any server.
fn client(
    signer: &Pki,
    cluster: &str,
    kind: Kind,
    name: &str,
    alpn: &[u8],
) -> Result<rustls::ClientConfig> {
    let uri = format!("spiffe://{cluster}/{kind}/{name}");
    let identity = signer.mint(&[&uri], &[])?;
    Ok(hostile::careless_tls(Some(identity), &[alpn])?.0)
}

/// A hello as agents say it; returns the connection when it was answered.
async fn hello(site: &Site, tls: rustls::ClientConfig) -> Result<quic::Raw> {
    let server_name = format!("proxy.{A}");
    let raw = quic::connect_tls(site.proxies[0].quic_addr()?, tls, &server_name).await?;
    let (mut send, mut recv) = raw.connection.open_bi().await?;
    quic::write(&mut send, &Open::Control(OpenControl::default())).await?;
    let hello = AgentHello {
        instance: node::random::Random::system().bytes(),
        version: "test".into(),
        services: Vec::new(),
        ext: Vec::new(),
    };
    quic::write(&mut send, &AgentFrame::Hello(hello)).await?;
    match quic::read::<Answer>(&mut recv).await? {
        Answer::Opened(_) => {}
        Answer::Refused(refused) => bail!("{}: {}", refused.reason, refused.message),
    }
    quic::read::<ProxyFrame>(&mut recv).await?;
    // The control stream lives as long as the connection.
    tokio::spawn(async move { (send.stopped().await, recv.read_to_end(1 << 20).await) });
    Ok(raw)
}

#[tokio::test]
async fn every_kind_protocol_and_cluster() -> Result {
    let pkis = [A, B, C].map(|cluster| Pki::new(cluster).map(Arc::new));
    let [a_pki, b_pki, c_pki] = pkis;
    let (a_pki, b_pki, c_pki) = (a_pki?, b_pki?, c_pki?);
    let site = Site::start(&a_pki, 1, |_, config| {
        config.trust = vec![trust(&b_pki, &[])?];
        Ok(())
    })
    .await?;
    let address = site.proxies[0].quic_addr()?;
    let server_name = format!("proxy.{A}");
    let mut refused = 0;
    for cluster in [A, B, C] {
        for signer in [&a_pki, &b_pki, &c_pki] {
            for kind in [Kind::Proxy, Kind::Agent, Kind::User] {
                for alpn in [ALPN_AGENT, ALPN_PEER, ALPN_USER] {
                    let by = signer.authority().cluster().as_str();
                    let may = by == cluster
                        && match (cluster, kind) {
                            (A, Kind::Proxy) => alpn == ALPN_PEER,
                            (A, Kind::Agent) => alpn == ALPN_AGENT,
                            (A, Kind::User) => alpn == ALPN_USER,
                            (B, Kind::Proxy) => alpn == ALPN_AGENT,
                            _ => false,
                        };
                    if may {
                        continue;
                    }
                    let tls = client(signer, cluster, kind, "x1", alpn)?;
                    hostile::refused(address, tls, &server_name)
                        .await
                        .with_context(|| format!("{cluster} {kind} by {by}"))?;
                    refused += 1;
                }
            }
        }
    }
    ensure!(refused == 81 - 4, "{refused}");
    let counted = site.proxies[0]
        .metrics()?
        .sum("mesh_proxy_handshakes_refused_total");
    ensure!(counted == f64::from(refused), "{counted}");
    ensure!(site.proxies[0].as_proxy()?.sessions().is_empty());

    // Those that may, under the names that their certificates give them.
    let agent = hello(&site, client(&a_pki, A, Kind::Agent, "x1", ALPN_AGENT)?).await?;
    let proxy = hello(&site, client(&b_pki, B, Kind::Proxy, "x1", ALPN_AGENT)?).await?;
    let names: Vec<_> = site.proxies[0]
        .as_proxy()?
        .sessions()
        .iter()
        .map(|session| (session.agent.to_string(), session.proxy.clone()))
        .collect();
    ensure!(
        names == [(B.to_owned(), Some("x1".parse()?)), ("x1".to_owned(), None)],
        "{names:?}"
    );
    drop((agent, proxy));
    site.stop().await;
    Ok(())
}

/// A proxy of a trusted cluster takes the place of no agent here and of no third cluster, whatever it
/// is called; nor may it dial.
#[tokio::test]
async fn a_trusted_proxy_takes_nobodys_place() -> Result {
    let echo = Service::echo().await?;
    let (a_pki, b_pki, c_pki) = (
        Arc::new(Pki::new(A)?),
        Arc::new(Pki::new(B)?),
        Arc::new(Pki::new(C)?),
    );
    let site = Site::start(&a_pki, 1, |_, config| {
        config.trust = vec![trust(&b_pki, &[echo.rule()])?, trust(&c_pki, &[])?];
        config.allow = crate::support::rules(&[echo.rule()])?;
        Ok(())
    })
    .await?;
    let false_agent = hello(&site, client(&b_pki, B, Kind::Proxy, "db", ALPN_AGENT)?).await?;
    for agent in ["db", "db.a.example.com", C, "db.c.example.com"] {
        let (reason, why) = dial(&site.proxies[0], agent, &echo.rule())
            .await?
            .unwrap_err();
        ensure!(reason == Reason::NoAgent, "{agent}: {reason}: {why}");
    }
    for agent in ["db", A, B, C] {
        let open = Open::Dial(mesh_proto::wire::Dial {
            target: echo.rule().parse()?,
            agent: agent.parse()?,
            principal: "user:alice".parse()?,
            hops_left: 1,
            deadline_ms: 10_000,
            trace: None,
            ext: Vec::new(),
        });
        let (answer, ..) = quic::ask(&false_agent.connection, &open).await?;
        let Answer::Refused(refused) = answer else {
            bail!("{agent}: a proxy of {B} has dialled into {A}")
        };
        ensure!(refused.reason == Reason::NotAllowed, "{refused:?}");
    }
    ensure!(echo.accepted() == 0);
    site.stop().await;
    Ok(())
}
