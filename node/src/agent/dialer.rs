//! Dials that this agent makes itself, through one of its proxies, to targets of other agents.

use std::sync::Arc;
use std::time::Duration;

use mesh_proto::close::ResetCode;
use mesh_proto::name::AgentRef;
use mesh_proto::principal::Principal;
use mesh_proto::refusal::Reason;
use mesh_proto::target::{InvalidTarget, Target};
use mesh_proto::wire::{Answer, Dial, Open};
use quinn::RecvStream;
use tokio::time::Instant;

use super::Shared;
use super::links::Link;
use crate::metrics::StreamMeter;
use crate::quic::frames::{self, FrameError, FrameReader};
use crate::quic::{TunnelRecv, TunnelSend, TunnelStream};

/// How long a dial may take, unless [`Dialer::deadline`] says otherwise. The proxy's own
/// `dial_deadline` bounds it too.
const DEADLINE: Duration = Duration::from_secs(10);

/// How long a dial waits for a place among the streams of a connection that has all of them in use.
const STREAM_CREDIT_WAIT: Duration = Duration::from_secs(1);

/// Dials the targets of one agent on behalf of this one: see [`super::Agent::dialer`].
#[derive(Debug, Clone)]
pub struct Dialer {
    shared: Arc<Shared>,
    agent: AgentRef,
    deadline: Duration,
}

/// A dial did not succeed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DialerError {
    /// The target is not written as one.
    #[error(transparent)]
    Target(#[from] InvalidTarget),
    /// There is no way to dial through. `Agent::connected` tells when there is one.
    #[error("this agent is connected to no proxy now; it goes on connecting by itself")]
    NotConnected,
    /// This agent is about to leave, and dials no more.
    #[error("this agent is about to leave")]
    Leaving,
    /// The dial was refused, or lost before it was answered.
    #[error(transparent)]
    Refused(#[from] DialRefused),
}

/// A dial was refused; nothing was changed by it, unless the reason is `lost` or `timeout`.
#[derive(Debug, Clone, thiserror::Error)]
#[error("cannot reach {target} through agent {agent}: {reason}: {message}")]
pub struct DialRefused {
    /// Whose target.
    pub agent: AgentRef,
    /// What was to be reached.
    pub target: Target,
    /// Why not.
    pub reason: Reason,
    /// The same for people, with what to do.
    pub message: String,
}

/// Why one connection did not lead there.
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

impl Dialer {
    pub(super) fn new(shared: Arc<Shared>, agent: AgentRef) -> Self {
        Self {
            shared,
            agent,
            deadline: DEADLINE,
        }
    }

    /// Dials with this deadline instead of 10 s, all attempts together.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Connects to `target`, written as in the config: `host:port`, `unix:/path`, `service:name`.
    /// The stream is connected when this returns. Dropping the future ends the attempt.
    ///
    /// # Errors
    /// [`DialerError`].
    pub async fn dial(&self, target: &str) -> Result<TunnelStream, DialerError> {
        self.dial_target(target.parse()?).await
    }

    /// Connects to a target that was parsed before.
    ///
    /// # Errors
    /// [`DialerError`].
    pub async fn dial_target(&self, target: Target) -> Result<TunnelStream, DialerError> {
        let result = self.connect(target).await;
        self.shared.metrics.dialled_out(match &result {
            Ok(_) => "ok",
            Err(DialerError::Refused(refused)) => refused.reason.as_str(),
            Err(DialerError::Leaving) => Reason::Draining.as_str(),
            Err(DialerError::Target(_)) => Reason::BadTarget.as_str(),
            Err(DialerError::NotConnected) => super::metrics::NOT_CONNECTED,
        });
        if let Err(error) = &result {
            tracing::debug!(agent = %self.agent, %error, "a dial of this agent failed");
        }
        result
    }

    async fn connect(&self, target: Target) -> Result<TunnelStream, DialerError> {
        let until = Instant::now() + self.deadline;
        if self.shared.leaving.borrow().is_some() {
            return Err(DialerError::Leaving);
        }
        let mut last = None;
        for link in self.shared.links.in_order() {
            let refusal = match self.through(&link, &target, until).await {
                Ok(stream) => return Ok(stream),
                Err(refusal) => refusal,
            };
            // Nothing is sent behind `Open` here, so that a target has seen no bytes of a lost dial.
            let elsewhere = refusal.reason.may_try_elsewhere() || refusal.reason == Reason::Lost;
            last = Some(refusal);
            if !elsewhere || Instant::now() >= until {
                break;
            }
        }
        let Some(Refusal { reason, message }) = last else {
            return Err(DialerError::NotConnected);
        };
        Err(DialerError::Refused(DialRefused {
            agent: self.agent.clone(),
            target,
            reason,
            message,
        }))
    }

    /// Asks one proxy.
    async fn through(
        &self,
        link: &Arc<Link>,
        target: &Target,
        until: Instant,
    ) -> Result<TunnelStream, Refusal> {
        let shared = &self.shared;
        let Some(in_use) = link.take() else {
            let message = format!("this agent is leaving the proxy {}", link.proxy);
            return Err(Refusal::new(Reason::Draining, message));
        };
        let credit_until = until.min(Instant::now() + STREAM_CREDIT_WAIT);
        let opened = tokio::time::timeout_at(credit_until, link.connection.open_bi()).await;
        let (send, mut recv) = match opened {
            Ok(Ok(halves)) => halves,
            Ok(Err(error)) => return Err(lost(link, &error.to_string())),
            Err(_) => {
                let message = format!(
                    "this agent has as many streams open as the proxy {} lets it",
                    link.proxy
                );
                return Err(Refusal::new(Reason::Overloaded, message));
            }
        };
        let meter = StreamMeter::open(&shared.node_metrics);
        // However the stream ends, the connection is then free to be left.
        meter.on_end(Box::new(move |_| drop(in_use)));
        let mut send = TunnelSend::new(send, meter.clone());
        let asked = self.ask(link, &mut send, &mut recv, target, until);
        match tokio::time::timeout_at(until, asked).await {
            Ok(answered) => {
                link.set_silent(false);
                answered?;
            }
            Err(_) => {
                link.set_silent(true);
                send.reset(ResetCode::DeadlinePassed);
                let message = format!(
                    "no answer from the proxy {} within {:?}",
                    link.proxy, self.deadline
                );
                return Err(Refusal::new(Reason::Timeout, message));
            }
        }
        shared
            .node_metrics
            .rtt
            .observe(link.connection.rtt().as_secs_f64());
        let recv = TunnelRecv::new(recv, meter, &shared.budget);
        Ok(TunnelStream {
            home: Some(link.runtime.clone()),
            ..TunnelStream::of(send, recv)
        })
    }

    async fn ask(
        &self,
        link: &Link,
        send: &mut TunnelSend,
        recv: &mut RecvStream,
        target: &Target,
        until: Instant,
    ) -> Result<(), Refusal> {
        // Less by a round trip, so that a proxy that gives up can still say so in time.
        let remaining = until
            .saturating_duration_since(Instant::now())
            .saturating_sub(link.connection.rtt());
        let open = Open::Dial(Dial {
            target: target.clone(),
            agent: self.agent.clone(),
            principal: Principal::Agent(self.shared.config.common.name.clone()),
            hops_left: 0,
            deadline_ms: u64::try_from(remaining.as_millis()).unwrap_or(u64::MAX),
            trace: None,
            ext: Vec::new(),
        });
        let open = frames::encode(&open)
            .map_err(|error| Refusal::new(Reason::BadTarget, error.to_string()))?;
        if let Err(error) = send.write_frame(&open).await {
            return Err(lost(link, &error.to_string()));
        }
        match FrameReader::default().next::<Answer>(recv).await {
            Ok(Answer::Opened(_)) => Ok(()),
            Ok(Answer::Refused(refused)) => Err(Refusal::new(refused.reason, refused.message)),
            Err(FrameError::Wire(error)) => {
                let message = format!(
                    "the answer of the proxy {} is malformed: {error}",
                    link.proxy
                );
                Err(Refusal::new(Reason::Internal, message))
            }
            Err(error @ (FrameError::Read(_) | FrameError::Ended | FrameError::Truncated)) => {
                Err(lost(link, &error.to_string()))
            }
        }
    }
}

fn lost(link: &Link, why: &str) -> Refusal {
    let message = format!(
        "the proxy {} was lost before it had answered: {why}",
        link.proxy
    );
    Refusal::new(Reason::Lost, message)
}
