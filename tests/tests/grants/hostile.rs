//! Lies, floods, and dials out of turn.

use std::collections::BTreeSet;
use std::future::Future as _;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use anyhow::{bail, ensure};
use certs::Kind;
use mesh_proto::close::CloseCode;
use mesh_proto::refusal::Reason;
use mesh_proto::wire::{ALPN_AGENT, AgentFrame, AgentHello, Answer, Open, OpenControl};
use mesh_tests::quic::{self, RawAgent};
use mesh_tests::services::pattern;
use mesh_tests::{Result, probe};
use quinn::{Connection, ConnectionError};

use crate::support::{Mesh, dial_frame, echoed, grant};

async fn agent(mesh: &Mesh, name: &str) -> Result<RawAgent> {
    let credentials = mesh.pki.issue(Kind::Agent, name)?;
    quic::agent(mesh.proxy.quic_addr()?, &credentials).await
}

async fn refusal(connection: &Connection, frame: &Open) -> Result<(Reason, String)> {
    match quic::ask(connection, frame).await?.0 {
        Answer::Opened(_) => bail!("it was opened"),
        Answer::Refused(refused) => Ok((refused.reason, refused.message)),
    }
}

/// Streams that can be opened now, without waiting for any to be allowed.
fn open_all(connection: &Connection) -> Vec<(quinn::SendStream, quinn::RecvStream)> {
    let mut context = Context::from_waker(Waker::noop());
    let mut opened = Vec::new();
    loop {
        let mut opening = std::pin::pin!(connection.open_bi());
        match opening.as_mut().poll(&mut context) {
            Poll::Ready(Ok(halves)) => opened.push(halves),
            Poll::Ready(Err(_)) | Poll::Pending => return opened,
        }
    }
}

/// Whatever principal a frame claims, it is the certificate's that counts.
#[tokio::test]
async fn a_claimed_principal_is_ignored() -> Result {
    let grants = vec![
        grant(&["agent:a1"], &[], &[])?,
        grant(&["user:alice"], &[], &[])?,
    ];
    let mesh = Mesh::start(grants, &["a1"]).await?;
    let mallory = agent(&mesh, "mallory").await?;
    for claim in [
        "agent:a1",
        "user:alice",
        "ingress:127.0.0.1:80",
        "token:ci",
        "cluster:test.example.com",
    ] {
        let frame = dial_frame("a1", "service:echo", claim)?;
        let (reason, message) = refusal(&mallory.raw.connection, &frame).await?;
        ensure!(
            reason == Reason::NotAllowed && message.starts_with("agent:mallory may not dial"),
            "{claim}: {reason}: {message}"
        );
    }
    ensure!(mesh.asked(0)? == 0.0 && mesh.echoes[0].accepted() == 0);

    // Nor does a claim take a right away; and hops are the proxy's matter.
    let a1 = agent(&mesh, "a1").await?;
    let Open::Dial(mut dial) = dial_frame("mallory", "service:any", "agent:mallory")? else {
        bail!("no dial")
    };
    dial.hops_left = 1;
    let frame = Open::Dial(dial);
    let (asked, seen) = tokio::join!(refusal(&a1.raw.connection, &frame), async {
        let (dial, mut send, _recv) = mallory.dial().await?;
        let refused = mesh_proto::wire::Refused::new(Reason::Refused, "not today");
        quic::write(&mut send, &Answer::Refused(refused)).await?;
        anyhow::Ok(dial)
    });
    ensure!(asked?.1 == "not today");
    let seen = seen?;
    ensure!(seen.principal.to_string() == "agent:a1", "{seen:?}");
    drop((mallory, a1));
    mesh.proxy.sessions(1).await?;
    mesh.stop().await
}

/// How many streams an agent can have open is bounded: few for one that may dial nothing, more for
/// one that may. A flood of them disturbs nobody, and their places come back.
#[tokio::test]
async fn streams_of_agents_are_bounded() -> Result {
    let mesh = Mesh::start(vec![grant(&["agent:may"], &["a1"], &[])?], &["a1"]).await?;
    for (name, bound) in [("may", 256), ("may-not", 16)] {
        let flooding = agent(&mesh, name).await?;
        let connection = &flooding.raw.connection;
        let reason = if name == "may" {
            None
        } else {
            Some(Reason::NotAllowed)
        };
        let mut held = Vec::new();
        // The limit is raised behind the hello, which may still be under way.
        probe::until("as many streams as are allowed", || {
            held.extend(open_all(connection));
            held.len() >= bound - 1
        })
        .await?;
        ensure!(
            held.len() == bound - 1,
            "{} beside the control stream",
            held.len()
        );
        let ids: BTreeSet<u64> = held.iter().map(|(send, _)| send.id().index()).collect();
        ensure!(ids.len() == held.len());
        let frame = dial_frame("a1", "service:echo", "user:alice")?;
        for (send, _) in &mut held {
            quic::write(send, &frame).await?;
        }
        for (_, recv) in &mut held {
            let answer = quic::read::<Answer>(recv).await?;
            let told = match &answer {
                Answer::Opened(_) => None,
                Answer::Refused(refused) => Some(refused.reason),
            };
            ensure!(told == reason, "{name}: {answer:?}");
        }
        ensure!(open_all(connection).is_empty(), "all are in use");

        // Somebody else is served meanwhile.
        let stream = mesh
            .proxy
            .as_proxy()?
            .dialer("a1")?
            .dial("service:echo")
            .await?;
        let (recv, send) = tokio::io::split(stream);
        echoed(recv, send, &pattern(1, 300_000)).await?;

        drop(held);
        probe::until("their places come back", || {
            !open_all(connection).is_empty()
        })
        .await?;
        drop(flooding);
        mesh.proxy.sessions(1).await?;
    }
    mesh.stop().await
}

/// A dial before the hello is none: as the first stream it ends the connection, and beside a control
/// stream without a hello it is not looked at.
#[tokio::test]
async fn a_dial_before_the_hello_is_not_served() -> Result {
    let mesh = Mesh::start_with(&["a1"], |config| {
        config.common.quic.handshake_timeout = Duration::from_secs(1);
        config.grants.extend(grant(&["agent:*"], &[], &[]));
    })
    .await?;
    let credentials = mesh.pki.issue(Kind::Agent, "early")?;
    let frame = dial_frame("a1", "service:echo", "agent:early")?;
    let closed = async |connection: &Connection| -> Result<u64> {
        let ended = connection.closed().await;
        let ConnectionError::ApplicationClosed(close) = ended else {
            bail!("{ended}")
        };
        Ok(close.error_code.into_inner())
    };

    let raw = quic::connect(mesh.proxy.quic_addr()?, &credentials, ALPN_AGENT).await?;
    let (mut send, _recv) = raw.connection.open_bi().await?;
    quic::write(&mut send, &frame).await?;
    let code = closed(&raw.connection).await?;
    ensure!(code == u64::from(CloseCode::ProtocolError.code()), "{code}");

    let raw = quic::connect(mesh.proxy.quic_addr()?, &credentials, ALPN_AGENT).await?;
    let (mut control, _recv) = raw.connection.open_bi().await?;
    quic::write(&mut control, &Open::Control(OpenControl::default())).await?;
    let (mut send, mut recv) = raw.connection.open_bi().await?;
    quic::write(&mut send, &frame).await?;
    let code = closed(&raw.connection).await?;
    ensure!(
        code == u64::from(CloseCode::HandshakeTimeout.code()),
        "{code}"
    );
    ensure!(quic::read::<Answer>(&mut recv).await.is_err());
    ensure!(mesh.asked(0)? == 0.0 && mesh.echoes[0].accepted() == 0);

    mesh.stop().await
}

/// A dial that comes before the hello on a later stream is served behind it.
#[tokio::test]
async fn a_dial_beside_the_hello_waits_for_it() -> Result {
    let mesh = Mesh::start(vec![grant(&["agent:early"], &[], &[])?], &["a1"]).await?;
    let credentials = mesh.pki.issue(Kind::Agent, "early")?;
    let frame = dial_frame("a1", "service:echo", "agent:early")?;
    let raw = quic::connect(mesh.proxy.quic_addr()?, &credentials, ALPN_AGENT).await?;
    let (mut control, mut told) = raw.connection.open_bi().await?;
    let (mut send, mut recv) = raw.connection.open_bi().await?;
    quic::write(&mut send, &frame).await?;
    quic::write(&mut control, &Open::Control(OpenControl::default())).await?;
    let hello = AgentHello {
        instance: [9; 16],
        version: "test".into(),
        services: Vec::new(),
        ext: Vec::new(),
    };
    quic::write(&mut control, &AgentFrame::Hello(hello)).await?;
    ensure!(matches!(
        quic::read::<Answer>(&mut told).await?,
        Answer::Opened(_)
    ));
    ensure!(matches!(
        quic::read::<Answer>(&mut recv).await?,
        Answer::Opened(_)
    ));
    echoed(recv, send, &pattern(2, 100_000)).await?;
    raw.connection.close(CloseCode::Left.code().into(), b"");
    mesh.proxy.sessions(1).await?;
    mesh.stop().await
}
