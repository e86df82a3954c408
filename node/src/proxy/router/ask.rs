//! One stream, from `Open` to the answer.

use std::future::poll_fn;

use bytes::Bytes;
use mesh_proto::refusal::Reason;
use mesh_proto::wire::{Answer, Dial, EARLY_BYTES_MAX, Open};
use tokio::io::AsyncReadExt as _;
use tokio::time::Instant;

use super::way::Way;
use super::{DialRequest, Refusal};
use crate::net::Socket;
use crate::quic::frames::{self, FrameError, FrameReader};
use crate::quic::{StreamError, TunnelSend};

/// The first bytes of a user, sent behind `Open` so that they lose no round trip. They are kept
/// until the dial has succeeded, and sent again when it is tried elsewhere.
#[derive(Debug)]
pub(in crate::proxy) struct EarlyBytes<'a> {
    socket: &'a mut dyn Socket,
    kept: Vec<u8>,
    /// How many of the kept bytes this attempt has sent.
    sent: usize,
    /// Nothing more can be read; the forwarder will see why.
    ended: bool,
}

impl<'a> EarlyBytes<'a> {
    pub(in crate::proxy) fn of(socket: &'a mut dyn Socket) -> Self {
        Self {
            socket,
            kept: Vec::new(),
            sent: 0,
            ended: false,
        }
    }

    /// Whether nothing was sent yet that a target may have seen.
    pub(super) fn is_resendable(&self) -> bool {
        self.kept.is_empty()
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

/// Sends the request, with a user's first bytes behind it, and waits for the answer of `whom`.
pub(super) async fn ask(
    send: &mut TunnelSend,
    recv: &mut quinn::RecvStream,
    request: &DialRequest,
    until: Instant,
    way: &Way,
    early: Option<&mut EarlyBytes<'_>>,
) -> Result<(), Refusal> {
    let whom = &way.called();
    let remaining = until.saturating_duration_since(Instant::now());
    let open = Open::Dial(Dial {
        target: request.target.clone(),
        agent: request.agent.clone(),
        principal: request.principal.clone(),
        // Inside the other cluster one hop may follow; to an agent there is none, and a peer takes none.
        hops_left: u8::from(way.leads_to_cluster()),
        deadline_ms: u64::try_from(remaining.as_millis()).unwrap_or(u64::MAX),
        trace: request.trace,
        ext: Vec::new(),
    });
    let open = frames::encode(&open)
        .map_err(|error| Refusal::new(Reason::BadTarget, error.to_string()))?;
    let lost = |error: StreamError| match error {
        StreamError::Reset(_) => Refusal::new(
            Reason::Lost,
            format!("{whom} ended the stream before it had answered; it may be restarting"),
        ),
        StreamError::ConnectionLost(_) | StreamError::Stalled | StreamError::Closed => {
            Refusal::new(
                Reason::Lost,
                format!("{whom} was lost before it had answered: {error}"),
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
                    Ok(Answer::Refused(refused)) => way.refused(refused),
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
        Ok(Answer::Refused(refused)) => Err(way.refused(refused)),
        Err(FrameError::Read(error)) => Err(lost(error.into())),
        Err(FrameError::Ended | FrameError::Truncated) => Err(Refusal::new(
            Reason::Lost,
            format!("{whom} ended the stream before it had answered; it may be restarting"),
        )),
        Err(FrameError::Wire(error)) => Err(Refusal::new(
            Reason::Internal,
            format!("the answer of {whom} is malformed: {error}"),
        )),
    }
}
