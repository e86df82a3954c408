//! Streams that others open to this proxy: users, agents, peers. What they ask for, and the answer.

use std::sync::Arc;
use std::time::Duration;

use mesh_proto::close::ResetCode;
use mesh_proto::principal::Principal;
use mesh_proto::refusal::Reason;
use mesh_proto::wire::{Answer, Dial, Open, Opened, Refused, WireError};
use quinn::{RecvStream, SendStream};

use super::router::{self, DialRequest, Reach};
use super::stream::Stream;
use super::{Phase, Shared};
use crate::forward;
use crate::hooks::Hooks;
use crate::metrics::StreamMeter;
use crate::quic::frames::{self, FrameError, FrameReader};
use crate::quic::{TunnelRecv, TunnelSend, TunnelStream};

/// A stream whose first frame has not been answered yet.
pub(super) struct Inbound {
    send: SendStream,
    recv: RecvStream,
    /// Counted while it waits, and for as long as bytes are forwarded.
    meter: Arc<StreamMeter>,
    /// Who opened it, for the log.
    who: String,
    hooks: Hooks,
}

impl Inbound {
    /// A stream that `who` has opened.
    pub(super) fn new(shared: &Shared, who: String, send: SendStream, recv: RecvStream) -> Self {
        let meter = StreamMeter::open(&shared.node_metrics);
        Self {
            send,
            recv,
            meter,
            who,
            hooks: shared.hooks.clone(),
        }
    }

    /// Reads what it is for. `None` when nothing comes of it; whoever opened it then knows why, if
    /// he is still there.
    pub(super) async fn open(mut self, shared: &Shared) -> Option<(Self, Open)> {
        let timeout = shared.config.common.quic.handshake_timeout;
        let mut reader = FrameReader::default();
        let read = tokio::time::timeout(timeout, reader.next::<Open>(&mut self.recv)).await;
        let refused = match read {
            Ok(Ok(open)) => return Some((self, open)),
            Ok(Err(FrameError::Wire(error @ WireError::UnknownFrame { .. }))) => Refused::new(
                Reason::Unsupported,
                &format!(
                    "this proxy does not know that request ({error}); it may be older than the program that asks"
                ),
            ),
            Ok(Err(FrameError::Wire(error))) => {
                tracing::info!(who = self.who, %error, "a malformed request");
                Refused::new(
                    Reason::Internal,
                    &format!("the request is malformed: {error}"),
                )
            }
            Ok(Err(FrameError::Ended | FrameError::Truncated | FrameError::Read(_))) => {
                // Not an end that looks like an answer.
                let _ = self.send.reset(ResetCode::Cancelled.code().into());
                return None;
            }
            Err(_) => Refused::new(Reason::Timeout, "no request came on the stream"),
        };
        self.refuse(refused).await;
        None
    }

    /// Answers that it is not done, and why.
    pub(super) async fn refuse(mut self, refused: Refused) {
        if let Ok(answer) = self.hooks.encode(&Answer::Refused(refused))
            && self.send.write_all(&answer).await.is_ok()
        {
            // Fails only for a stream that was ended already.
            let _ = self.send.finish();
        }
        let _ = self.recv.stop(ResetCode::Refused.code().into());
    }

    /// Answers that it is done. The halves then carry whatever was asked for, and are no more among
    /// the streams that a drain waits for.
    pub(super) async fn opened(mut self) -> Option<(SendStream, RecvStream)> {
        let answer = self.hooks.encode(&Answer::Opened(Opened::default())).ok()?;
        self.send.write_all(&answer).await.ok()?;
        Some((self.send, self.recv))
    }

    /// Dials for whoever opened the stream, and forwards until one side ends it.
    pub(super) async fn dial(
        self,
        shared: &Arc<Shared>,
        dial: Dial,
        principal: Principal,
        reach: Reach,
    ) {
        let deadline = Duration::from_millis(dial.deadline_ms).min(shared.config.dial_deadline);
        let claimed = matches!(principal, Principal::Cluster(_)).then_some(dial.principal);
        let request = DialRequest {
            trace: dial.trace,
            claimed,
            ..DialRequest::new(dial.agent, dial.target, principal, deadline)
        };
        let Self {
            send,
            recv,
            meter,
            who,
            hooks: _,
        } = self;
        let mut send = TunnelSend::new(send, meter.clone());
        // A dial of somebody who has gone meanwhile must not go on.
        let dialled = tokio::select! {
            biased;
            dialled = router::dial(shared, &request, reach, None) => dialled,
            () = send.stopped() => {
                tracing::debug!(who, agent = %request.agent, "whoever asked for a dial has gone");
                return;
            }
        };
        match dialled {
            Ok(tunnel) => {
                let opened = frames::encode(&Answer::Opened(Opened::default()));
                let Ok(answer) = opened else {
                    return;
                };
                if send.write_frame(&answer).await.is_err() {
                    return;
                }
                let recv = TunnelRecv::new(recv, meter, &shared.budget);
                let asked = TunnelStream::of(send, recv);
                let forwarded = match tunnel {
                    Stream::Tunnel(tunnel) => forward::tunnels(asked, tunnel).await,
                    Stream::Direct(socket) => forward::socket(Box::new(socket), asked).await,
                };
                if let Err(error) = forwarded {
                    tracing::debug!(who, %error, "a stream broke");
                }
            }
            Err(error) => {
                let mut refused = Refused::new(error.reason, &error.message);
                if error.by_other_cluster {
                    refused = refused.by_other_cluster();
                }
                if *shared.phase.borrow() == Phase::Draining {
                    refused = refused.by_leaving_proxy();
                }
                if let Ok(answer) = frames::encode(&Answer::Refused(refused))
                    && send.write_frame(&answer).await.is_ok()
                {
                    send.finish();
                }
                let mut recv = recv;
                let _ = recv.stop(ResetCode::Refused.code().into());
            }
        }
    }
}
