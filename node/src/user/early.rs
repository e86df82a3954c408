//! The first bytes of a local connection, which need not wait for the answer to a dial.

use std::future::{pending, poll_fn};
use std::io;

use bytes::Bytes;
use mesh_proto::wire::EARLY_BYTES_MAX;
use tokio::io::AsyncReadExt as _;

use crate::net::Socket;
use crate::quic::{StreamError, TunnelSend};

/// Why reading ahead came to an end.
#[derive(Debug)]
pub(super) enum EarlyEnd {
    /// The local side has broken: the dial is of no use any more.
    Local(io::Error),
    /// The stream takes no bytes: its answer says why.
    Stream(StreamError),
}

/// Reads ahead from a local socket, keeps what was read until the dial has succeeded, and sends it
/// again when the dial is tried elsewhere.
#[derive(Debug)]
pub(super) struct EarlyBytes<'a> {
    socket: Option<&'a mut dyn Socket>,
    kept: Vec<u8>,
    /// How many of the kept bytes this attempt has sent.
    sent: usize,
    /// The local side has ended its direction; the forwarder will see it again.
    ended: bool,
}

impl<'a> EarlyBytes<'a> {
    pub(super) fn of(socket: Option<&'a mut dyn Socket>) -> Self {
        Self {
            socket,
            kept: Vec::new(),
            sent: 0,
            ended: false,
        }
    }

    /// Another attempt begins, which has sent nothing yet.
    pub(super) fn begin(&mut self) {
        self.sent = 0;
    }

    /// Whether this attempt has sent some: then a target may have seen them.
    pub(super) fn are_sent(&self) -> bool {
        self.sent > 0
    }

    /// Reads what there is to read. Completes only when the local side has broken. It may be dropped
    /// at any point: what was read is kept.
    pub(super) async fn fill(&mut self) -> io::Error {
        loop {
            if let Err(error) = self.read_some().await {
                return error;
            }
        }
    }

    /// Reads what there is to read and sends it. It may be dropped at any point: what was read is
    /// kept, and what was sent is counted.
    pub(super) async fn pump(&mut self, send: &mut TunnelSend) -> EarlyEnd {
        loop {
            if let Err(error) = self.send_kept(send).await {
                return EarlyEnd::Stream(error);
            }
            if let Err(error) = self.read_some().await {
                return EarlyEnd::Local(error);
            }
        }
    }

    /// Sends what was kept and not sent yet.
    pub(super) async fn send_kept(&mut self, send: &mut TunnelSend) -> Result<(), StreamError> {
        let mut rest = Bytes::copy_from_slice(&self.kept[self.sent..]);
        while !rest.is_empty() {
            poll_fn(|cx| send.poll_write_chunk(cx, &mut rest)).await?;
            self.sent = self.kept.len() - rest.len();
        }
        Ok(())
    }

    /// Never completes when there is nothing to read any more, or no room for it.
    async fn read_some(&mut self) -> io::Result<()> {
        let room = EARLY_BYTES_MAX.saturating_sub(self.kept.len());
        let Some(socket) = self.socket.as_mut().filter(|_| !self.ended && room > 0) else {
            return pending().await;
        };
        let mut buffer = [0; 2048];
        let room = buffer.len().min(room);
        // A failure shows once: read again, the socket would give an end that looks in order.
        match socket.read(&mut buffer[..room]).await? {
            0 => self.ended = true,
            read => self.kept.extend_from_slice(&buffer[..read]),
        }
        Ok(())
    }
}
