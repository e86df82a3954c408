//! A stream to the proxy's admin API.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use mesh_proto::name::NodeName;
use mesh_proto::refusal::Reason;
use mesh_proto::wire::{Answer, Open, OpenAdmin};
use quinn::{RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Shared;
use super::dial::{self, DialError};
use super::held::Use;
use crate::quic::frames::{self, FrameReader};

/// How long a proxy may take to open the stream.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// A stream to a proxy's admin API. Its connection stays for as long as it lives.
#[derive(Debug)]
pub struct AdminStream {
    send: SendStream,
    recv: RecvStream,
    _held: Use,
}

pub(super) async fn administer(shared: &Shared) -> Result<(NodeName, AdminStream), DialError> {
    let wait_max = shared.config.wait_max;
    let held = tokio::time::timeout(wait_max, dial::connection(shared, None))
        .await
        .map_err(|_| DialError::NoProxy { waited: wait_max })??;
    let proxy = held.proxy.clone();
    let lost = |error: &dyn std::fmt::Display| DialError::Lost {
        proxy: proxy.clone(),
        error: error.to_string(),
    };
    let refused = |reason, message: String| DialError::Refused {
        proxy: proxy.clone(),
        reason,
        message,
    };
    let opening = async {
        let (mut send, mut recv) = held
            .connection
            .open_bi()
            .await
            .map_err(|error| lost(&error))?;
        let open = frames::encode(&Open::Admin(OpenAdmin::default()))
            .map_err(|error| refused(Reason::Internal, error.to_string()))?;
        // A refusal may overtake the rest of what is sent: its answer is what counts.
        let _ = send.write_all(&open).await;
        let answer = FrameReader::default()
            .next::<Answer>(&mut recv)
            .await
            .map_err(|error| lost(&error))?;
        match answer {
            Answer::Opened(_) => Ok((send, recv)),
            Answer::Refused(answer) => Err(refused(answer.reason, answer.message)),
        }
    };
    let (send, recv) = tokio::time::timeout(ANSWER_DEADLINE, opening)
        .await
        .unwrap_or_else(|_| {
            let message = format!("no answer within {ANSWER_DEADLINE:?}");
            Err(refused(Reason::Timeout, message))
        })?;
    held.mark_heard();
    let stream = AdminStream {
        send,
        recv,
        _held: held,
    };
    Ok((proxy, stream))
}

impl AsyncRead for AdminStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        AsyncRead::poll_read(Pin::new(&mut self.recv), cx, buffer)
    }
}

impl AsyncWrite for AdminStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write(Pin::new(&mut self.send), cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(&mut self.send), cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_shutdown(Pin::new(&mut self.send), cx)
    }
}
