//! Agents and users with a good certificate and bad manners.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use certs::Kind;
use mesh_proto::close::{CloseCode, ResetCode};
use mesh_proto::refusal::Reason;
use mesh_proto::wire::{
    ALPN_AGENT, ALPN_USER, AgentFrame, Answer, Leaving, Open, OpenRoutes, ProxyFrame,
    SKIPPED_FRAMES_MAX, Services,
};
use mesh_tests::fleet::Bystander;
use mesh_tests::{Result, logs, probe, quic};
use quinn::{Connection, ReadExactError, RecvStream, SendStream};

use crate::support::{
    after_optional, closed, control, counter, dial, encoded, frame, hello, malformed, rises,
    session,
};

const PROTOCOL: &str = "mesh_proxy_handshakes_refused_total{reason=\"protocol\"}";
/// Streams that an agent may have open at one time.
const STREAMS_MAX: usize = 16;

const BROKEN: &str = "mesh_proxy_agent_disconnects_total{reason=\"protocol_error\"}";

/// Connections of agents that begin with anything but a hello.
pub(crate) async fn first_streams(bystander: &Bystander) -> Result {
    let logs = logs::capture();
    let opening = encoded(&control())?;
    let leaving = AgentFrame::Leaving(Leaving {
        deadline_ms: 0,
        ext: Vec::new(),
    });
    let behind_opening = |bytes: &[u8]| [&opening[..], bytes].concat();

    let mut cases = malformed(0x0001, &opening);
    cases.push((
        "half a header",
        opening[..3].to_vec(),
        "ended within a frame",
    ));
    cases.push((
        "half a body",
        frame(0x0002, false, &[0; 40])[..20].to_vec(),
        "ended within a frame",
    ));
    cases.push(("nothing", Vec::new(), "ended"));
    cases.push((
        "a dial",
        encoded(&dial("a1", &bystander.echo.rule())?)?,
        "not a control stream",
    ));
    cases.push(("no hello", opening.clone(), "ended"));
    cases.push((
        "another frame than a hello",
        behind_opening(&encoded(&leaving)?),
        "not a hello",
    ));
    cases.push(("two openings", behind_opening(&opening), "not known here"));
    for (what, bytes, why) in malformed(0x0201, &encoded(&hello())?) {
        cases.push((what, behind_opening(&bytes), why));
    }

    for (index, (what, bytes, why)) in cases.into_iter().enumerate() {
        let name = format!("first-{index}");
        let credentials = bystander.pair.pki.issue(Kind::Agent, &name)?;
        let before = counter(bystander, PROTOCOL)?;
        let raw = quic::connect(bystander.quic_addr()?, &credentials, ALPN_AGENT).await?;
        let (mut send, _recv) = raw.connection.open_bi().await?;
        // The proxy may have seen enough before it has seen all.
        let _ = send.write_all(&bytes).await;
        let _ = send.finish();
        let (code, told) = closed(&raw.connection).await.context(what)?;
        ensure!(
            code == u64::from(CloseCode::ProtocolError.code()) && told.contains(why),
            "{what}: {code} {told}"
        );
        rises(bystander, PROTOCOL, before).await.context(what)?;
        let agent = format!("\"agent\":\"{name}\"");
        let lines = || logs.lines_with(&[&agent]);
        probe::until("a log line", || !lines().is_empty()).await?;
        let lines = lines();
        let [line] = &lines[..] else {
            bail!("{what}: {lines:?}")
        };
        ensure!(
            line["level"] == "WARN" && line.to_string().contains(why),
            "{what}: {line}"
        );
        bystander.check().await.context(what)?;
    }
    ensure!(bystander.pair.proxy.as_proxy()?.sessions().len() == 1);

    // As many unknown frames as may be skipped, before each of the frames that are awaited.
    let first = [
        after_optional(SKIPPED_FRAMES_MAX, &opening),
        after_optional(SKIPPED_FRAMES_MAX, &encoded(&hello())?),
    ];
    let credentials = bystander.pair.pki.issue(Kind::Agent, "patient")?;
    let session = session(bystander, &credentials, &first.concat()).await?;
    bystander.pair.proxy.sessions(2).await?;
    session
        .raw
        .connection
        .close(CloseCode::Left.code().into(), b"");
    bystander.pair.proxy.sessions(1).await
}

/// Sessions that break the protocol on their control stream.
pub(crate) async fn control_streams(bystander: &Bystander) -> Result {
    let logs = logs::capture();
    let proxy = &bystander.pair.proxy;
    let first = [encoded(&control())?, encoded(&hello())?].concat();
    let services = encoded(&AgentFrame::Services(Services {
        services: Vec::new(),
        ext: Vec::new(),
    }))?;

    let mut cases = malformed(0x0202, &services);
    // A session may live for years and meet many frames of later versions.
    cases.retain(|(what, ..)| *what != "too many unknown frames");
    cases.push(("a second hello", encoded(&hello())?, "said hello twice"));
    cases.push(("a second opening", encoded(&control())?, "not known here"));
    cases.push((
        "half a frame",
        services[..4].to_vec(),
        "ended within a frame",
    ));
    cases.push(("the end", Vec::new(), "the stream ended"));
    for (index, (what, bytes, why)) in cases.into_iter().enumerate() {
        let name = format!("control-{index}");
        let credentials = bystander.pair.pki.issue(Kind::Agent, &name)?;
        let before = counter(bystander, BROKEN)?;
        let mut session = session(bystander, &credentials, &first)
            .await
            .context(what)?;
        let _ = session.send.write_all(&bytes).await;
        let _ = session.send.finish();
        let (code, told) = closed(&session.raw.connection).await.context(what)?;
        ensure!(
            code == u64::from(CloseCode::ProtocolError.code()),
            "{what}: {code} {told}"
        );
        rises(bystander, BROKEN, before).await.context(what)?;
        let agent = format!("\"agent\":\"{name}\"");
        for part in [why, "agent lost"] {
            let lines = || logs.lines_with(&[&agent, "\"WARN\"", part]);
            probe::until(&format!("{what}: a log line of `{part}`"), || {
                !lines().is_empty()
            })
            .await?;
            ensure!(lines().len() == 1, "{what}: {:?}", lines());
        }
        bystander.check().await.context(what)?;
    }
    proxy.sessions(1).await?;

    let credentials = bystander.pair.pki.issue(Kind::Agent, "talkative")?;
    let mut session = session(bystander, &credentials, &first).await?;
    session
        .send
        .write_all(&after_optional(20 * SKIPPED_FRAMES_MAX, &services))
        .await?;
    let leaving = AgentFrame::Leaving(Leaving {
        deadline_ms: 0,
        ext: Vec::new(),
    });
    quic::write(&mut session.send, &leaving).await?;
    released(&mut session.recv).await?;
    session
        .raw
        .connection
        .close(CloseCode::Left.code().into(), b"");
    proxy.sessions(1).await
}

/// Sessions that open streams: an agent may ask for dials alone, whom no grant lets dial none, and
/// its session goes on.
pub(crate) async fn further_streams(bystander: &Bystander) -> Result {
    let proxy = &bystander.pair.proxy;
    let first = [encoded(&control())?, encoded(&hello())?].concat();
    let credentials = bystander.pair.pki.issue(Kind::Agent, "forward")?;
    let mut session = session(bystander, &credentials, &first).await?;
    let connection = session.raw.connection.clone();
    let dial = encoded(&dial("a1", &bystander.echo.rule())?)?;
    for (what, bytes, expected) in [
        ("a dial", &dial[..], Reason::NotAllowed),
        (
            "a second control stream",
            &encoded(&control())?,
            Reason::Unsupported,
        ),
        ("noise", &[0xff; 1000], Reason::Internal),
        (
            "an unknown request",
            &frame(0x7abc, false, b"?"),
            Reason::Unsupported,
        ),
    ] {
        let (mut send, mut recv) = connection.open_bi().await?;
        let _ = send.write_all(bytes).await;
        let reason = refusal(&mut recv).await.context(what)?.0;
        ensure!(reason == expected, "{what}: {reason}");
        bystander.check().await.context(what)?;
    }
    // Refused and never ended by this side: at some point, no more can be opened. (quinn gives
    // back credit for those before in bundles of an eighth.)
    let mut held = Vec::new();
    while let Ok(opened) =
        tokio::time::timeout(Duration::from_millis(500), connection.open_bi()).await
    {
        let (mut send, mut recv) = opened?;
        send.write_all(&dial).await?;
        let (reason, _) = refusal(&mut recv).await?;
        ensure!(reason == Reason::NotAllowed, "{reason}");
        held.push((send, recv));
        ensure!(
            held.len() < STREAMS_MAX,
            "{} streams beside the control stream",
            held.len()
        );
    }
    ensure!(!held.is_empty());
    bystander.check().await?;
    drop(held);
    let (_send, mut recv) = ask(&connection, &dial).await?;
    ensure!(refusal(&mut recv).await?.0 == Reason::NotAllowed);
    // Proxies talk to each other in datagrams; an agent's are not read, and the last few of them kept.
    for _ in 0..2_000 {
        connection.send_datagram(vec![b'x'; 1000].into())?;
    }

    // The session is as good as before.
    let target = bystander.echo.rule();
    let dialer = proxy.as_proxy()?.dialer("forward")?;
    let dialled = tokio::join!(async { dialer.dial(&target).await.map(drop) }, async {
        let (mut send, mut recv) = connection.accept_bi().await?;
        let _: mesh_proto::wire::Open = quic::read(&mut recv).await?;
        let refused = mesh_proto::wire::Refused::new(Reason::Refused, "not today");
        quic::write(&mut send, &Answer::Refused(refused)).await
    });
    dialled.1?;
    let told = dialled
        .0
        .err()
        .context("the dial went through")?
        .to_string();
    ensure!(told.contains("not today"), "{told}");
    let leaving = AgentFrame::Leaving(Leaving {
        deadline_ms: 0,
        ext: Vec::new(),
    });
    quic::write(&mut session.send, &leaving).await?;
    released(&mut session.recv).await?;
    connection.close(CloseCode::Left.code().into(), b"");
    proxy.sessions(1).await
}

/// Reads until the proxy lets the agent go; what it has to tell meanwhile is of no interest.
async fn released(recv: &mut RecvStream) -> Result {
    while !matches!(
        quic::read::<ProxyFrame>(recv).await?,
        ProxyFrame::Released(_)
    ) {}
    Ok(())
}

/// A refused stream.
async fn refusal(recv: &mut RecvStream) -> Result<(Reason, String)> {
    match quic::read::<Answer>(recv).await? {
        Answer::Refused(refused) => Ok((refused.reason, refused.message)),
        Answer::Opened(_) => bail!("it was opened"),
    }
}

async fn ask(connection: &Connection, bytes: &[u8]) -> Result<(SendStream, RecvStream)> {
    let (mut send, recv) = connection.open_bi().await?;
    let _ = send.write_all(bytes).await;
    Ok((send, recv))
}

/// Users whose streams begin with anything but a dial; one connection outlives it all.
pub(crate) async fn users(bystander: &Bystander) -> Result {
    let credentials = bystander.pair.pki.issue(Kind::User, "eve")?;
    let raw = quic::connect(bystander.quic_addr()?, &credentials, ALPN_USER).await?;
    let good = encoded(&dial("a1", &bystander.echo.rule())?)?;
    let (_control, mut told) = ask(&raw.connection, &encoded(&control())?).await?;
    ensure!(matches!(
        quic::read::<Answer>(&mut told).await?,
        Answer::Opened(_)
    ));

    let mut cases = malformed(0x0002, &good);
    cases.push((
        "a second control stream",
        encoded(&control())?,
        "has a control stream already",
    ));
    let routes = Open::Routes(OpenRoutes::default());
    cases.push((
        "routes",
        encoded(&routes)?,
        "a user may dial and administer, and nothing else",
    ));
    cases.push((
        "no agent",
        encoded(&dial("nobody", "127.0.0.1:1")?)?,
        "no agent `nobody`",
    ));
    cases.push((
        "a target that is refused",
        encoded(&dial("a1", "127.0.0.1:1")?)?,
        "does not allow",
    ));
    for (what, bytes, why) in cases {
        let (_send, mut recv) = ask(&raw.connection, &bytes).await?;
        let (reason, message) = refusal(&mut recv).await.context(what)?;
        let expected = match what {
            "an unknown frame" | "an answer" | "a second control stream" | "routes" => {
                Reason::Unsupported
            }
            "no agent" => Reason::NoAgent,
            "a target that is refused" => Reason::NotAllowed,
            _ => Reason::Internal,
        };
        ensure!(
            reason == expected && message.contains(why),
            "{what}: {reason}: {message}"
        );
        bystander.check().await.context(what)?;
    }
    // Requests that end too early: there is nobody to answer.
    for (what, bytes) in [
        ("nothing", &b""[..]),
        ("half a header", &good[..3]),
        ("half a body", &good[..20]),
    ] {
        let (mut send, mut recv) = ask(&raw.connection, bytes).await?;
        send.finish()?;
        let read = recv.read_exact(&mut [0]).await;
        let cancelled = ResetCode::Cancelled.code().into();
        ensure!(
            matches!(&read, Err(ReadExactError::ReadError(quinn::ReadError::Reset(code))) if *code == cancelled),
            "{what}: {read:?}"
        );
    }
    // What may be skipped is skipped, and what follows the request is the target's.
    let mut bytes = after_optional(SKIPPED_FRAMES_MAX, &good);
    bytes.extend_from_slice(b"still good");
    let (mut send, mut recv) = ask(&raw.connection, &bytes).await?;
    send.finish()?;
    let answer = quic::read::<Answer>(&mut recv).await?;
    ensure!(matches!(answer, Answer::Opened(_)), "{answer:?}");
    ensure!(recv.read_to_end(100).await? == b"still good");
    ensure!(
        raw.connection.close_reason().is_none(),
        "{:?}",
        raw.connection.close_reason()
    );
    raw.connection.close(CloseCode::Done.code().into(), b"");
    Ok(())
}
