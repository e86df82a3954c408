//! From a dial request to a connected stream: whom to ask, in which order, for how long.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mesh_proto::name::AgentRef;
use mesh_proto::principal::Principal;
use mesh_proto::refusal::Reason;
use mesh_proto::target::Target;
use mesh_proto::wire::{Answer, Dial, EARLY_BYTES_MAX, Open, TraceContext};
use tokio::io::AsyncReadExt as _;
use tokio::time::Instant;

use super::metrics::Path;
use super::session::Session;
use super::{Phase, Shared, grants};
use crate::hooks::DialInfo;
use crate::metrics::{OnEnd, StreamMeter, StreamTotals};
use crate::net::Socket;
use crate::quic::frames::{self, FrameError, FrameReader};
use crate::quic::{StreamError, TunnelRecv, TunnelSend, TunnelStream};

/// How long a dial waits for a place among the streams of a session that has all of them in use.
const STREAM_CREDIT_WAIT: Duration = Duration::from_secs(1);

/// A dial that somebody asks of this proxy.
#[derive(Debug, Clone)]
pub struct DialRequest {
    /// Whose target.
    pub agent: AgentRef,
    /// What is to be reached.
    pub target: Target,
    /// On whose behalf.
    pub principal: Principal,
    /// The time that it may take altogether.
    pub deadline: Duration,
    /// The trace to which it belongs.
    pub trace: Option<TraceContext>,
}

/// A dial that did not succeed; nothing was changed by it, unless the reason is `lost`.
#[derive(Debug, Clone, thiserror::Error)]
#[error("cannot reach {target} through agent {agent}: {reason}: {message}")]
pub struct DialError {
    /// Whose target.
    pub agent: AgentRef,
    /// What was to be reached.
    pub target: Target,
    /// Why not.
    pub reason: Reason,
    /// The same for people, with what to do.
    pub message: String,
}

/// Why one session did not connect the stream.
#[derive(Debug)]
struct Refusal {
    reason: Reason,
    message: String,
}

impl Refusal {
    fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }
}

/// The first bytes of a user, sent behind `Open` so that they lose no round trip. They are kept
/// until the dial has succeeded, and sent again when it is tried elsewhere.
#[derive(Debug)]
pub(super) struct EarlyBytes<'a> {
    socket: &'a mut dyn Socket,
    kept: Vec<u8>,
    /// How many of the kept bytes this attempt has sent.
    sent: usize,
    /// Nothing more can be read; the forwarder will see why.
    ended: bool,
}

impl<'a> EarlyBytes<'a> {
    pub(super) fn of(socket: &'a mut dyn Socket) -> Self {
        Self {
            socket,
            kept: Vec::new(),
            sent: 0,
            ended: false,
        }
    }

    /// Reads what there is to read and sends it. Never completes but with an error of the stream.
    /// It may be dropped at any point: what was read is kept, and what was sent is counted.
    async fn pump(&mut self, send: &mut TunnelSend) -> StreamError {
        loop {
            if let Err(error) = self.send_kept(send).await {
                return error;
            }
            let room = EARLY_BYTES_MAX.saturating_sub(self.kept.len());
            if self.ended || room == 0 {
                return std::future::pending().await;
            }
            let mut buffer = [0; 2048];
            let room = buffer.len().min(room);
            match self.socket.read(&mut buffer[..room]).await {
                Ok(0) | Err(_) => self.ended = true,
                Ok(read) => self.kept.extend_from_slice(&buffer[..read]),
            }
        }
    }

    /// Sends what was kept and not sent yet.
    async fn send_kept(&mut self, send: &mut TunnelSend) -> Result<(), StreamError> {
        let mut rest = Bytes::copy_from_slice(&self.kept[self.sent..]);
        while !rest.is_empty() {
            poll_fn(|cx| send.poll_write_chunk(cx, &mut rest)).await?;
            self.sent = self.kept.len() - rest.len();
        }
        Ok(())
    }
}

/// Connects a stream to the target of `request`, and counts and logs the dial.
pub(super) async fn dial(
    shared: &Arc<Shared>,
    request: &DialRequest,
    early: Option<EarlyBytes<'_>>,
) -> Result<TunnelStream, DialError> {
    let started = Instant::now();
    let (path, result) = route(shared, request, early).await;
    shared
        .metrics
        .dial_duration
        .observe(started.elapsed().as_secs_f64());
    shared.metrics.dialled(
        path,
        result
            .as_ref()
            .map(|_| ())
            .map_err(|refusal| refusal.reason),
    );
    result.map_err(|Refusal { reason, message }| {
        log_dial(
            request,
            path,
            Some(reason),
            started,
            &StreamTotals::default(),
        );
        DialError {
            agent: request.agent.clone(),
            target: request.target.clone(),
            reason,
            message,
        }
    })
}

async fn route(
    shared: &Arc<Shared>,
    request: &DialRequest,
    mut early: Option<EarlyBytes<'_>>,
) -> (Path, Result<TunnelStream, Refusal>) {
    let until = Instant::now() + request.deadline;
    if *shared.phase.borrow() == Phase::Draining {
        let message = "this proxy is about to leave: try again, the balancer will choose another";
        return (Path::None, Err(Refusal::new(Reason::Draining, message)));
    }
    let info = DialInfo {
        agent: request.agent.clone(),
        target: request.target.clone(),
        principal: request.principal.clone(),
    };
    if let Err(why) = grants::check(&shared.policy, &info) {
        return (Path::None, Err(Refusal::new(Reason::NotAllowed, why)));
    }
    if let Err(why) = shared.hooks.authorize(&info).await {
        return (Path::None, Err(Refusal::new(Reason::NotAllowed, why)));
    }
    let cluster = &shared.config.common.cluster;
    let Some(agent) = request.agent.local_name(cluster) else {
        let message = format!(
            "`{}` is neither an agent of the cluster {cluster} nor of one that is connected to it",
            request.agent
        );
        return (Path::None, Err(Refusal::new(Reason::NoAgent, message)));
    };
    let sessions = shared.sessions.live(&agent);
    let mut last = None;
    for session in sessions {
        match open(shared, &session, request, until, early.as_mut()).await {
            Ok(stream) => return (Path::Local, Ok(stream)),
            Err(refusal) => {
                // A target may have seen the bytes behind `Open`, so that they go out once only.
                let resendable = early.as_ref().is_none_or(|early| early.kept.is_empty());
                let elsewhere = refusal.reason.may_try_elsewhere()
                    || (refusal.reason == Reason::Lost && resendable);
                last = Some(refusal);
                if !elsewhere || Instant::now() >= until {
                    break;
                }
            }
        }
    }
    match last {
        Some(refusal) => (Path::Local, Err(refusal)),
        None if shared.sessions.is_leaving(&agent) => {
            let message = format!("the agent {agent} is about to leave");
            (Path::Local, Err(Refusal::new(Reason::Draining, message)))
        }
        None => {
            let message = format!(
                "no agent `{agent}` is connected to the proxy {}; see that it runs, that it is spelled so, and read its log",
                shared.config.common.name
            );
            (Path::None, Err(Refusal::new(Reason::NoAgent, message)))
        }
    }
}

/// Asks one session.
async fn open(
    shared: &Arc<Shared>,
    session: &Session,
    request: &DialRequest,
    until: Instant,
    early: Option<&mut EarlyBytes<'_>>,
) -> Result<TunnelStream, Refusal> {
    let credit_until = until.min(Instant::now() + STREAM_CREDIT_WAIT);
    let (send, mut recv) = match tokio::time::timeout_at(credit_until, session.connection.open_bi())
        .await
    {
        Ok(Ok(halves)) => halves,
        Ok(Err(error)) => {
            return Err(Refusal::new(
                Reason::Lost,
                format!("the agent's connection was lost: {error}"),
            ));
        }
        Err(_) => {
            let message = "the agent has as many streams open as it takes (its quic.streams_max)";
            return Err(Refusal::new(Reason::Overloaded, message));
        }
    };
    let meter = StreamMeter::open(&shared.node_metrics);
    let mut send = TunnelSend::new(send, meter);

    let asked =
        tokio::time::timeout_at(until, ask(&mut send, &mut recv, request, until, early)).await;
    match asked {
        Ok(Ok(())) => {}
        Ok(Err(refusal)) => return Err(refusal),
        Err(_) => {
            send.reset(mesh_proto::close::ResetCode::DeadlinePassed);
            let message = format!("no answer from the agent within {:?}", request.deadline);
            return Err(Refusal::new(Reason::Timeout, message));
        }
    }
    shared
        .node_metrics
        .rtt
        .observe(session.connection.rtt().as_secs_f64());
    session.count_lost_packets(&shared.metrics);
    let recv = TunnelRecv::new(recv, send.meter().clone(), &shared.budget);
    send.meter().on_end(log_at_end(request));
    Ok(TunnelStream {
        home: Some(session.runtime.clone()),
        ..TunnelStream::of(send, recv)
    })
}

async fn ask(
    send: &mut TunnelSend,
    recv: &mut quinn::RecvStream,
    request: &DialRequest,
    until: Instant,
    early: Option<&mut EarlyBytes<'_>>,
) -> Result<(), Refusal> {
    let remaining = until.saturating_duration_since(Instant::now());
    let open = Open::Dial(Dial {
        target: request.target.clone(),
        agent: request.agent.clone(),
        principal: request.principal.clone(),
        hops_left: 0,
        deadline_ms: u64::try_from(remaining.as_millis()).unwrap_or(u64::MAX),
        trace: request.trace,
        ext: Vec::new(),
    });
    let open = frames::encode(&open)
        .map_err(|error| Refusal::new(Reason::BadTarget, error.to_string()))?;
    let lost = |error: StreamError| match error {
        StreamError::Reset(_) => Refusal::new(
            Reason::Lost,
            "the agent ended the stream before it had answered; it may be restarting",
        ),
        StreamError::ConnectionLost(_) | StreamError::Stalled | StreamError::Closed => {
            Refusal::new(
                Reason::Lost,
                format!("the agent was lost before it had answered: {error}"),
            )
        }
    };
    send.write_frame(&open).await.map_err(lost)?;

    let mut reader = FrameReader::default();
    let answer = reader.next::<Answer>(recv);
    let mut early = early;
    if let Some(early) = &mut early {
        early.sent = 0;
    }
    let answer = match &mut early {
        Some(early) => tokio::select! {
            biased;
            answer = answer => answer,
            error = early.pump(send) => {
                // The agent wants no bytes: its answer says why, and is on its way.
                tracing::debug!(%error, "early bytes were not taken");
                return Err(match reader.next::<Answer>(recv).await {
                    Ok(Answer::Refused(refused)) => Refusal { reason: refused.reason, message: refused.message },
                    Ok(Answer::Opened(_)) | Err(_) => lost(error),
                });
            }
        },
        None => answer.await,
    };
    match answer {
        Ok(Answer::Opened(_)) => match early {
            Some(early) => early.send_kept(send).await.map_err(lost),
            None => Ok(()),
        },
        Ok(Answer::Refused(refused)) => Err(Refusal {
            reason: refused.reason,
            message: refused.message,
        }),
        Err(FrameError::Read(error)) => Err(lost(error.into())),
        Err(FrameError::Ended | FrameError::Truncated) => Err(Refusal::new(
            Reason::Lost,
            "the agent ended the stream before it had answered; it may be restarting",
        )),
        Err(FrameError::Wire(error)) => Err(Refusal::new(
            Reason::Internal,
            format!("the agent's answer is malformed: {error}"),
        )),
    }
}

fn log_at_end(request: &DialRequest) -> OnEnd {
    let request = request.clone();
    let started = Instant::now();
    Box::new(move |totals| log_dial(&request, Path::Local, None, started, totals))
}

fn log_dial(
    request: &DialRequest,
    path: Path,
    refused: Option<Reason>,
    started: Instant,
    totals: &StreamTotals,
) {
    tracing::info!(
        target: "access",
        kind = "dial",
        agent = %request.agent,
        target = %request.target,
        principal = %request.principal,
        path = path.as_str(),
        result = refused.map_or("ok", Reason::as_str),
        duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        sent_bytes = totals.sent_bytes,
        received_bytes = totals.received_bytes,
        trace = request.trace.map(|trace| trace.to_string()),
        "dial"
    );
}
