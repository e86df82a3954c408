//! A stream to a target, over whichever connection is in use.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use mesh_proto::close::ResetCode;
use mesh_proto::name::{AgentRef, NodeName};
use mesh_proto::principal::Principal;
use mesh_proto::refusal::Reason;
use mesh_proto::target::Target;
use mesh_proto::wire::{Answer, Dial, Open};
use quinn::RecvStream;
use tokio::time::Instant;

use super::early::{EarlyBytes, EarlyEnd};
use super::event::Why;
use super::held::Use;
use super::{GaveUp, Shared, State};
use crate::metrics::StreamMeter;
use crate::net::Socket;
use crate::quic::frames::{self, FrameError, FrameReader};
use crate::quic::{StreamError, TunnelRecv, TunnelSend, TunnelStream};

/// Connections on which one dial is tried.
const ATTEMPTS_MAX: usize = 4;

/// How long a dial waits for a place among the streams of a connection that has all in use.
const STREAM_CREDIT_WAIT: Duration = Duration::from_secs(1);

/// A connection from which no packet has come for this long after a dial went out has fallen
/// silent: the dial is at least acknowledged, however long its answer takes.
const SILENCE: Duration = Duration::from_secs(3);

/// The proxy keeps the deadline and says what it was waiting for; only when that does not come
/// either does this side end the wait.
const DEADLINE_GRACE: Duration = Duration::from_secs(1);

/// What is to be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Whose target.
    pub agent: AgentRef,
    /// What the agent is asked for.
    pub target: Target,
}

/// A dial did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// A proxy or an agent has refused it.
    #[error("{message} (said by {proxy})")]
    Refused {
        /// The proxy that answered.
        proxy: NodeName,
        /// Why.
        reason: Reason,
        /// The same for people.
        message: String,
    },
    /// The connection to the proxy ended before the answer, and the dial may not be tried again.
    #[error("the connection to {proxy} was lost before it had answered: {error}; try again")]
    Lost {
        /// The proxy that was asked.
        proxy: NodeName,
        /// How it was lost.
        error: String,
    },
    /// There was no connection to a proxy.
    #[error("no proxy could be connected to within {waited:?}")]
    NoProxy {
        /// How long it was waited for.
        waited: Duration,
    },
    /// The client has given up, or has ended.
    #[error("{}", .0.as_ref().map_or_else(|| "the client has ended".to_owned(), ToString::to_string))]
    Ended(Option<GaveUp>),
    /// The local side broke meanwhile.
    #[error("the local side has gone: {0}")]
    Local(io::Error),
}

impl DialError {
    /// Its name for programs, of a closed set: a [`Reason`], `no_proxy`, `ended` or `local`.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Refused { reason, .. } => reason.as_str(),
            Self::Lost { .. } => Reason::Lost.as_str(),
            Self::NoProxy { .. } => "no_proxy",
            Self::Ended(_) => "ended",
            Self::Local(_) => "local",
        }
    }
}

/// Why one connection did not give a stream, and whether another may be asked.
struct Failed {
    error: DialError,
    elsewhere: bool,
}

impl Failed {
    fn for_good(error: DialError) -> Self {
        Self {
            error,
            elsewhere: false,
        }
    }
}

pub(super) async fn dial(
    shared: &Arc<Shared>,
    request: &Request,
    socket: Option<&mut dyn Socket>,
) -> Result<TunnelStream, DialError> {
    let config = &shared.config;
    let mut early = EarlyBytes::of(socket);
    let mut asked = None;
    let mut last = None;
    // All waits for a connection together.
    let wait_until = Instant::now() + config.wait_max;
    for _ in 0..ATTEMPTS_MAX {
        let waited = tokio::select! {
            biased;
            waited = tokio::time::timeout_at(wait_until, connection(shared, asked)) => waited,
            error = early.fill() => return Err(DialError::Local(error)),
        };
        let held = match waited {
            Ok(held) => held?,
            // A refusal says more than that there was nobody else to ask.
            Err(_) => {
                return Err(last.unwrap_or(DialError::NoProxy {
                    waited: config.wait_max,
                }));
            }
        };
        asked = Some(held.id);
        match open(shared, held, request, &mut early).await {
            Ok(stream) => return Ok(stream),
            Err(Failed { error, elsewhere }) if !elsewhere => return Err(error),
            Err(Failed { error, .. }) => last = Some(error),
        }
    }
    Err(last.unwrap_or(DialError::NoProxy {
        waited: config.wait_max,
    }))
}

/// Waits for a connection, but not the one that was asked before.
pub(super) async fn connection(shared: &Shared, asked: Option<u64>) -> Result<Use, DialError> {
    let mut state = shared.state.subscribe();
    let wanted = |state: &State| match state {
        State::Connecting => false,
        State::Connected(held) => held.is_open() && Some(held.id) != asked,
        State::Failed(_) => true,
    };
    tokio::select! {
        biased;
        () = shared.cut.cancelled() => Err(DialError::Ended(None)),
        state = state.wait_for(wanted) => match state.as_deref() {
            Ok(State::Connected(held)) => Ok(Use::of(held)),
            Ok(State::Failed(gave_up)) => Err(DialError::Ended(Some(gave_up.clone()))),
            Ok(State::Connecting) | Err(_) => Err(DialError::Ended(None)),
        },
    }
}

/// Asks for a stream on one connection.
async fn open(
    shared: &Arc<Shared>,
    held: Use,
    request: &Request,
    early: &mut EarlyBytes<'_>,
) -> Result<TunnelStream, Failed> {
    let deadline = shared.config.dial_deadline;
    let (send, mut recv) =
        match tokio::time::timeout(STREAM_CREDIT_WAIT.min(deadline), held.connection.open_bi())
            .await
        {
            Ok(Ok(halves)) => halves,
            Ok(Err(error)) => return Err(lost(&held, &error, true)),
            Err(_) => {
                return Err(Failed::for_good(DialError::Refused {
                    proxy: held.proxy.clone(),
                    reason: Reason::Overloaded,
                    message: "the proxy takes no more streams of this user at one time".into(),
                }));
            }
        };
    let mut send = TunnelSend::new(send, StreamMeter::open(&shared.metrics));
    early.begin();
    let asked = ask(shared, &held, request, early, &mut send, &mut recv);
    match tokio::time::timeout(deadline + DEADLINE_GRACE, asked).await {
        Ok(asked) => asked?,
        Err(_) => {
            send.reset(ResetCode::DeadlinePassed);
            return Err(Failed::for_good(DialError::Refused {
                proxy: held.proxy.clone(),
                reason: Reason::Timeout,
                message: format!("no answer within {deadline:?}"),
            }));
        }
    }
    let recv = TunnelRecv::new(recv, send.meter().clone(), &shared.budget);
    // The connection stays for as long as the stream does.
    send.meter().on_end(Box::new(move |_| drop(held)));
    Ok(TunnelStream::of(send, recv))
}

async fn ask(
    shared: &Shared,
    held: &Use,
    request: &Request,
    early: &mut EarlyBytes<'_>,
    send: &mut TunnelSend,
    recv: &mut RecvStream,
) -> Result<(), Failed> {
    let open = Open::Dial(Dial {
        target: request.target.clone(),
        agent: request.agent.clone(),
        principal: Principal::User(shared.config.credentials.identity().name.clone()),
        hops_left: 1,
        deadline_ms: u64::try_from(shared.config.dial_deadline.as_millis()).unwrap_or(u64::MAX),
        trace: None,
        ext: Vec::new(),
    });
    let open = frames::encode(&open).map_err(|error| {
        Failed::for_good(DialError::Refused {
            proxy: held.proxy.clone(),
            reason: Reason::BadTarget,
            message: error.to_string(),
        })
    })?;
    // On a connection that may be dead, nothing follows `Open`: so the dial can be tried elsewhere.
    let is_fresh = held.is_fresh();
    let packets = held.packets_received();
    if let Err(error) = send.write_frame(&open).await {
        return Err(lost(held, &error, true));
    }
    let mut reader = FrameReader::default();
    let mut silence = std::pin::pin!(tokio::time::sleep(SILENCE));
    let mut watching = true;
    let mut taken = true;
    let answer = loop {
        let ahead = async {
            match (is_fresh, taken) {
                (true, true) => early.pump(send).await,
                (true, false) => std::future::pending().await,
                (false, _) => EarlyEnd::Local(early.fill().await),
            }
        };
        tokio::select! {
            biased;
            answer = reader.next::<Answer>(recv) => break answer,
            end = ahead => match end {
                EarlyEnd::Local(error) => return Err(Failed::for_good(DialError::Local(error))),
                // The other side wants no bytes: its answer says why, and is on its way.
                EarlyEnd::Stream(StreamError::Reset(_)) => taken = false,
                EarlyEnd::Stream(error) => return Err(lost(held, &error, !early.are_sent())),
            },
            () = &mut silence, if watching => {
                watching = false;
                if held.packets_received() == packets {
                    held.leave(Why::Silent);
                    if !early.are_sent() {
                        return Err(lost(held, &"it has fallen silent", true));
                    }
                }
            }
        }
    };
    match answer {
        Ok(Answer::Opened(_)) => {
            held.mark_heard();
            early
                .send_kept(send)
                .await
                .map_err(|error| lost(held, &error, false))
        }
        Ok(Answer::Refused(refused)) => {
            held.mark_heard();
            // An agent that is about to leave does not come back through another proxy.
            let elsewhere = refused.reason == Reason::Draining
                && (refused.is_by_leaving_proxy() || !held.tells);
            if elsewhere {
                held.leave(Why::Draining);
            }
            Err(Failed {
                error: DialError::Refused {
                    proxy: held.proxy.clone(),
                    reason: refused.reason,
                    message: refused.message,
                },
                elsewhere,
            })
        }
        Err(FrameError::Wire(error)) => Err(Failed::for_good(DialError::Refused {
            proxy: held.proxy.clone(),
            reason: Reason::Internal,
            message: format!("the proxy's answer is malformed: {error}"),
        })),
        Err(error @ (FrameError::Read(_) | FrameError::Ended | FrameError::Truncated)) => {
            Err(lost(held, &error, !early.are_sent()))
        }
    }
}

/// The stream or its connection ended before the answer. A target may have seen bytes that were sent
/// behind `Open`, so that they go out once only.
fn lost(held: &Use, error: &dyn std::fmt::Display, elsewhere: bool) -> Failed {
    Failed {
        error: DialError::Lost {
            proxy: held.proxy.clone(),
            error: error.to_string(),
        },
        elsewhere,
    }
}
