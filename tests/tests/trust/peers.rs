//! Which proxies are proxies of this mesh.

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use certs::Kind;
use mesh_proto::close::CloseCode;
use mesh_proto::name::NodeName;
use mesh_proto::refusal::Reason;
use mesh_proto::wire::{
    ALPN_AGENT, ALPN_PEER, Answer, Open, OpenControl, PeerFrame, PeerHello, Profile,
};
use mesh_tests::fleet::{Bystander, Node, proxy_config};
use mesh_tests::hostile::{careless_tls, identity};
use mesh_tests::logs::{self, Logs};
use mesh_tests::pki::Pki;
use mesh_tests::{Result, probe, quic};
use quinn::ConnectionError;
use rustls::client::ResolvesClientCert;

use crate::support::{
    CLUSTER, SERVER_NAME, dial_frame, expired, lure, refusal_line, refused, server_tls,
};

/// Proxies look as hard at each other as at everybody else, in both directions; whoever is refused
/// becomes no member, and the side that may know is told why.
#[tokio::test]
async fn peer_auth() -> Result {
    let logs = logs::capture();
    let bystander = Bystander::start().await?;
    certificates_of_those_who_dial(&logs, &bystander).await?;
    words_of_those_who_dial(&logs, &bystander).await?;
    let peers = bystander.pair.proxy.as_proxy()?.peers();
    ensure!(peers.len() == 1 && peers[0].name == "p9", "{peers:?}");
    those_who_are_dialled(&logs, &bystander.pair.pki).await?;
    bystander.check().await?;
    bystander.stop().await;
    Ok(())
}

/// What it is, whose certificate, and as what it counts.
type Case = (
    &'static str,
    Option<Arc<dyn ResolvesClientCert>>,
    &'static str,
);

async fn certificates_of_those_who_dial(logs: &Logs, bystander: &Bystander) -> Result {
    let pki = &bystander.pair.pki;
    let other = Pki::new("other.example.com")?;
    let namesake = Pki::new(CLUSTER)?;
    let proxy = format!("spiffe://{CLUSTER}/proxy/p9");
    let cases: [Case; 8] = [
        ("no certificate", None, "no_certificate"),
        (
            "an agent",
            Some(identity(&*pki.issue(Kind::Agent, "p9")?)?),
            "wrong_kind",
        ),
        (
            "a user",
            Some(identity(&*pki.issue(Kind::User, "p9")?)?),
            "wrong_kind",
        ),
        (
            "a proxy of another cluster",
            Some(identity(&*other.issue(Kind::Proxy, "p9")?)?),
            "bad_certificate",
        ),
        (
            "a proxy of a namesake of this cluster",
            Some(namesake.mint(&[&proxy], &[SERVER_NAME])? as _),
            "unknown_authority",
        ),
        (
            "below a proxy of this cluster",
            Some(pki.mint_below(Kind::Proxy, "p8", &[&proxy])? as _),
            "bad_certificate",
        ),
        (
            "a certificate for servers alone",
            Some(pki.mint_server(&[&proxy], &[SERVER_NAME])? as _),
            "bad_certificate",
        ),
        (
            "expired",
            Some(identity(&*pki.issue_for(
                Kind::Proxy,
                "p9",
                &expired()?,
            )?)?),
            "expired",
        ),
    ];
    for (what, identity, reason) in cases {
        let (tls, _) = careless_tls(identity, &[ALPN_PEER])?;
        let refused = refused(bystander, tls, reason).await.context(what)?;
        let line = refusal_line(logs, refused.local).await.context(what)?;
        ensure!(line["reason"] == reason, "{what}: {line}");
    }
    Ok(())
}

fn hello(name: &NodeName) -> Result<PeerFrame> {
    Ok(PeerFrame::Hello(PeerHello {
        profile: Profile {
            name: name.clone(),
            epoch: 1,
            revision: 0,
            group: "test".parse()?,
            generation: mesh_proto::name::Generation(1),
            addresses: vec!["127.0.0.1:9".into()],
            peer_addresses: Vec::new(),
            draining: false,
            ext: Vec::new(),
        },
        ext: Vec::new(),
    }))
}

/// With a good certificate, and another name in the mouth than in it; or with a wish before the
/// hello.
async fn words_of_those_who_dial(logs: &Logs, bystander: &Bystander) -> Result {
    let credentials = bystander.pair.pki.issue(Kind::Proxy, "p9")?;
    let own = bystander.pair.proxy.as_proxy()?.name().clone();
    let remote = bystander.quic_addr()?;
    for (what, name, says) in [
        (
            "another proxy's name",
            "p8".parse()?,
            "it calls itself p8, but its certificate says p9".to_owned(),
        ),
        (
            "this proxy's name",
            own.clone(),
            format!("it calls itself {own}, but its certificate says p9"),
        ),
    ] {
        let raw = quic::connect(remote, &credentials, ALPN_PEER).await?;
        let (mut send, _recv) = raw.connection.open_bi().await?;
        quic::write(&mut send, &Open::Control(OpenControl::default())).await?;
        quic::write(&mut send, &hello(&name)?).await?;
        is_refused(logs, &raw, &says).await.context(what)?;
    }
    let target = bystander.echo.rule().parse()?;
    let raw = quic::connect(remote, &credentials, ALPN_PEER).await?;
    let (mut send, mut recv) = raw.connection.open_bi().await?;
    quic::write(&mut send, &dial_frame(target, "a1")?).await?;
    let answer = quic::read::<Answer>(&mut recv).await;
    ensure!(answer.is_err(), "a dial before the hello: {answer:?}");
    is_refused(logs, &raw, "not a control stream").await?;

    // A dial in the name of somebody whom this proxy would not let: the original principal counts.
    let raw = quic::connect(remote, &credentials, ALPN_PEER).await?;
    let (mut send, mut recv) = raw.connection.open_bi().await?;
    quic::write(&mut send, &Open::Control(OpenControl::default())).await?;
    quic::write(&mut send, &hello(&"p9".parse()?)?).await?;
    quic::read::<Answer>(&mut recv).await?;
    let target = bystander.echo.rule().parse()?;
    let Open::Dial(mut dial) = dial_frame(target, "a1")? else {
        anyhow::bail!("no dial")
    };
    dial.principal = "agent:m1".parse()?;
    let (answer, _, _) = quic::ask(&raw.connection, &Open::Dial(dial)).await?;
    let Answer::Refused(refused) = answer else {
        anyhow::bail!("an agent whom no grant lets dial was let, by way of a peer")
    };
    ensure!(
        refused.reason == Reason::NotAllowed && refused.message.contains("agent:m1"),
        "{refused:?}"
    );
    raw.connection.close(CloseCode::Done.code().into(), b"");
    Ok(())
}

/// The connection is closed with the reason, which the proxy also logs, once.
async fn is_refused(logs: &Logs, raw: &quic::Raw, says: &str) -> Result {
    let closed = tokio::time::timeout(probe::PATIENCE, raw.connection.closed()).await?;
    let ConnectionError::ApplicationClosed(close) = &closed else {
        anyhow::bail!("{closed:?}")
    };
    ensure!(
        close.error_code == CloseCode::ProtocolError.code().into()
            && String::from_utf8_lossy(&close.reason).contains(says),
        "{closed}"
    );
    let remote = format!("\"remote\":\"{}\"", raw.local);
    let lines = || logs.lines_with(&["\"WARN\"", "a peer's connection ended", &remote]);
    probe::until("a line of the log", || !lines().is_empty()).await?;
    let lines = lines();
    ensure!(
        lines.len() == 1 && lines[0].to_string().contains(says),
        "{lines:?}"
    );
    Ok(())
}

/// A proxy that is told to dial somebody who is no proxy of its cluster goes without, says so once,
/// with the remedy, and tells of it in its status.
async fn those_who_are_dialled(logs: &Logs, pki: &Pki) -> Result {
    let other = Pki::new("other.example.com")?;
    let namesake = Pki::new(CLUSTER)?;
    let agent = format!("spiffe://{CLUSTER}/agent/m1");
    let proxy = format!("spiffe://{CLUSTER}/proxy/p7");
    let strangers = [
        server_tls(&other, None)?,
        server_tls(&namesake, None)?,
        server_tls(pki, Some(pki.mint(&[&agent], &[SERVER_NAME])?))?,
        server_tls(
            pki,
            Some(pki.mint(&[&proxy], &["proxy.other.example.com"])?),
        )?,
        // A proxy of this cluster that speaks with agents alone.
        server_tls(pki, None)?,
    ];
    for (index, mut tls) in strangers.into_iter().enumerate() {
        if index < 4 {
            tls.alpn_protocols = vec![ALPN_PEER.to_vec()];
        } else {
            tls.alpn_protocols = vec![ALPN_AGENT.to_vec()];
        }
        let stranger = lure(tls)?;
        let address = stranger.addr.to_string();
        let mut config = proxy_config(pki, &format!("dials-{index}"))?;
        config.peers = vec![address.clone()];
        let dialling = Node::proxy(config).await?;
        let lines = || {
            let address = format!("\"address\":\"{address}\"");
            logs.lines_with(&["\"WARN\"", "no connection to a peer", &address])
        };
        probe::until("the stranger is not trusted", || !lines().is_empty()).await?;
        let problem = || -> Result<bool> {
            let status = dialling.as_proxy()?.status();
            Ok(status
                .problems
                .iter()
                .any(|problem| problem.what.contains("no peer is connected")))
        };
        ensure!(problem()?, "the status tells nothing of it");
        let lines = lines();
        let text = lines[0].to_string();
        ensure!(
            lines.len() == 1
                && text.contains("do not trust each other")
                && text.contains("node certs show"),
            "{index}: {lines:?}"
        );
        ensure!(stranger.accepted() == 0 || index == 4);
        ensure!(dialling.as_proxy()?.peers().is_empty());
        dialling.stop().await;
    }
    Ok(())
}
