//! Frames that are off, and sessions made by hand.

use anyhow::{Context as _, bail, ensure};
use certs::Credentials;
use mesh_proto::target::Target;
use mesh_proto::wire::{
    ALPN_AGENT, AgentFrame, AgentHello, Answer, Dial, Frame, FrameHeader, Open, OpenControl,
    ProxyFrame, SKIPPED_FRAMES_MAX,
};
use mesh_tests::fleet::Bystander;
use mesh_tests::quic::{self, Raw};
use mesh_tests::services::pattern;
use mesh_tests::{Result, probe};
use quinn::{ConnectionError, RecvStream, SendStream};

/// A frame of any type with any body.
pub(crate) fn frame(kind: u16, optional: bool, body: &[u8]) -> Vec<u8> {
    let body_bytes = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let mut bytes = FrameHeader {
        kind,
        optional,
        body_bytes,
    }
    .encode()
    .to_vec();
    bytes.extend_from_slice(body);
    bytes
}

/// The bytes of a well-formed frame.
pub(crate) fn encoded(frame: &impl Frame) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes)?;
    Ok(bytes)
}

/// Unknown frames that may be skipped, and then `rest`.
pub(crate) fn after_optional(count: usize, rest: &[u8]) -> Vec<u8> {
    let mut bytes = frame(0x7abc, true, b"of a later version").repeat(count);
    bytes.extend_from_slice(rest);
    bytes
}

/// What is wrong with any frame in the place of `good`, an encoded frame of type `kind`: what it
/// is, its bytes, and what whoever reads it says about it.
pub(crate) fn malformed(kind: u16, good: &[u8]) -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let mut longer = good.to_vec();
    longer.extend_from_slice(b"\0\0");
    let body_bytes = u32::try_from(longer.len() - 6).unwrap_or(u32::MAX);
    longer[..4].copy_from_slice(&body_bytes.to_be_bytes());
    // Lengths in bincode's variable form: of 2^32 - 1 and of 2^64 - 1.
    let bomb = |tag: u8, bytes: usize| {
        let mut body = vec![tag];
        body.resize(1 + bytes, 0xff);
        body
    };
    let thirteen = [bomb(0xfc, 4), vec![0xff, 0xff]].concat();
    vec![
        ("noise", pattern(8, 64 << 10), "at most"),
        ("a length beyond all bounds", vec![0xff; 64], "at most"),
        (
            "a length above the limit",
            [&[0, 4, 0, 1], &kind.to_be_bytes()[..]].concat(),
            "at most",
        ),
        ("bytes behind the body", longer, "too many"),
        ("an empty body", frame(kind, false, b""), "malformed"),
        (
            "thirteen bytes that claim 4 GiB",
            frame(kind, false, &thirteen),
            "malformed",
        ),
        (
            "a claim of 16 EiB",
            frame(kind, false, &bomb(0xfd, 8)),
            "malformed",
        ),
        (
            "noise in a body",
            frame(kind, false, &[0xff; 60_000]),
            "malformed",
        ),
        (
            "too many unknown frames",
            after_optional(SKIPPED_FRAMES_MAX + 1, good),
            "unknown frames were skipped",
        ),
        (
            "an unknown frame",
            frame(0x7abc, false, b"of a later version"),
            "not known here",
        ),
        ("an answer", frame(0x0101, false, b"\0"), "not known here"),
    ]
}

/// An agent's hello.
pub(crate) fn hello() -> AgentFrame {
    AgentFrame::Hello(AgentHello {
        instance: [7; 16],
        version: "test".into(),
        services: Vec::new(),
        ext: Vec::new(),
    })
}

/// What opens a control stream.
pub(crate) fn control() -> Open {
    Open::Control(OpenControl::default())
}

/// A request for `target` of `agent`.
pub(crate) fn dial(agent: &str, target: &str) -> Result<Open> {
    let target: Target = target.parse()?;
    Ok(Open::Dial(Dial {
        target,
        agent: agent.parse()?,
        principal: "user:nobody".parse()?,
        hops_left: 0,
        deadline_ms: 30_000,
        trace: None,
        ext: Vec::new(),
    }))
}

/// A session of an agent, made by hand.
pub(crate) struct Session {
    pub(crate) raw: Raw,
    pub(crate) send: SendStream,
    pub(crate) recv: RecvStream,
}

/// Connects and sends `first` on the first stream; the proxy must answer with its hello.
pub(crate) async fn session(
    bystander: &Bystander,
    credentials: &Credentials,
    first: &[u8],
) -> Result<Session> {
    let raw = quic::connect(bystander.quic_addr()?, credentials, ALPN_AGENT).await?;
    let (mut send, mut recv) = raw.connection.open_bi().await?;
    send.write_all(first).await?;
    match quic::read::<Answer>(&mut recv).await? {
        Answer::Opened(_) => {}
        Answer::Refused(refused) => bail!("{}: {}", refused.reason, refused.message),
    }
    let frame = quic::read::<ProxyFrame>(&mut recv).await?;
    let ProxyFrame::Hello(hello) = frame else {
        bail!("{frame:?}")
    };
    ensure!(hello.name.as_str() == "proxy-1", "{hello:?}");
    Ok(Session { raw, send, recv })
}

/// The code and the text with which the other side has closed a connection.
pub(crate) async fn closed(connection: &quinn::Connection) -> Result<(u64, String)> {
    let closed = tokio::time::timeout(probe::PATIENCE, connection.closed()).await;
    let closed = closed.context("the connection was not closed")?;
    let ConnectionError::ApplicationClosed(close) = closed else {
        bail!("it ended otherwise: {closed}")
    };
    let why = String::from_utf8_lossy(&close.reason).into_owned();
    Ok((close.error_code.into_inner(), why))
}

/// Waits until a counter of the proxy is up by one since `before`.
pub(crate) async fn rises(bystander: &Bystander, series: &str, before: f64) -> Result {
    let proxy = &bystander.pair.proxy;
    probe::eventually(&format!("{series} rises"), || async {
        let risen = proxy.metrics()?.get(series)? - before;
        ensure!(risen.to_bits() == 1f64.to_bits(), "by {risen}");
        Ok(())
    })
    .await
}

/// A counter of the proxy, now.
pub(crate) fn counter(bystander: &Bystander, series: &str) -> Result<f64> {
    bystander.pair.proxy.metrics()?.get(series)
}

/// The proxy has no session but the bystander's, and no stream.
pub(crate) async fn nobody_is_left(bystander: &Bystander) -> Result {
    let proxy = &bystander.pair.proxy;
    proxy.sessions(1).await?;
    probe::eventually("all streams have ended", || async {
        let open = proxy.metrics()?.get("mesh_streams_open")?;
        ensure!(open.to_bits() == 0f64.to_bits(), "{open} are open");
        Ok(())
    })
    .await?;
    bystander.check().await
}
