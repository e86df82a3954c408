//! A tunnel's stream: a QUIC stream whose every ending reaches the other side.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use mesh_proto::close::ResetCode;
use quinn::{ReadError, RecvStream, SendStream, VarInt, WriteError};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::stall::{RecvSlot, StallBudget};
use crate::metrics::StreamMeter;

/// Why a stream broke.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The other side reset it, or wants no more of it.
    #[error("the other side ended the stream: {}", reset_reason(*.0))]
    Reset(VarInt),
    /// The connection is gone.
    #[error("the connection was lost: {0}")]
    ConnectionLost(quinn::ConnectionError),
    /// This node cut it, see [`StallBudget`].
    #[error("nobody read the stream for too long while the node ran out of quic.buffer_bytes_max")]
    Stalled,
    /// It was ended on this side before.
    #[error("the stream was closed on this side")]
    Closed,
}

impl StreamError {
    /// The word for it in logs.
    #[must_use]
    pub fn cause(&self) -> &'static str {
        match self {
            Self::Reset(code) => u32::try_from(code.into_inner())
                .ok()
                .and_then(ResetCode::from_code)
                .map_or("reset", ResetCode::as_str),
            Self::ConnectionLost(_) => "lost",
            Self::Stalled => "stalled",
            Self::Closed => "closed",
        }
    }

    /// The broken stream behind an error of whoever has used it.
    pub(crate) fn behind<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(found) = error.downcast_ref() {
                return Some(found);
            }
            let inner = error
                .downcast_ref::<io::Error>()
                .and_then(io::Error::get_ref);
            // An `io::Error` names the source of what it wraps, and not what it wraps.
            next = match inner {
                Some(inner) => Some(inner),
                None => error.source(),
            };
        }
        None
    }
}

fn reset_reason(code: VarInt) -> String {
    u32::try_from(code.into_inner())
        .ok()
        .and_then(ResetCode::from_code)
        .map_or_else(|| format!("code {code}"), |code| code.as_str().to_owned())
}

impl From<WriteError> for StreamError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Stopped(code) => Self::Reset(code),
            WriteError::ConnectionLost(error) => Self::ConnectionLost(error),
            WriteError::ClosedStream | WriteError::ZeroRttRejected => Self::Closed,
        }
    }
}

impl From<ReadError> for StreamError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Reset(code) => Self::Reset(code),
            ReadError::ConnectionLost(error) => Self::ConnectionLost(error),
            ReadError::ClosedStream
            | ReadError::IllegalOrderedRead
            | ReadError::ZeroRttRejected => Self::Closed,
        }
    }
}

impl From<StreamError> for io::Error {
    fn from(error: StreamError) -> Self {
        let kind = match &error {
            StreamError::Reset(_) | StreamError::Stalled => io::ErrorKind::ConnectionReset,
            StreamError::ConnectionLost(_) => io::ErrorKind::ConnectionAborted,
            StreamError::Closed => io::ErrorKind::NotConnected,
        };
        Self::new(kind, error)
    }
}

/// Both directions of a tunnel's stream.
///
/// Dropping it resets the stream, unless [`AsyncWrite::poll_shutdown`] (or
/// [`TunnelSend::finish`]) has ended it in order.
#[derive(Debug)]
pub struct TunnelStream {
    /// Towards the other side.
    pub send: TunnelSend,
    /// From the other side.
    pub recv: TunnelRecv,
    /// The runtime of the shard that owns the connection, where forwarding costs the least.
    pub(crate) home: Option<Handle>,
}

impl TunnelStream {
    /// Wraps the halves of one QUIC stream, which `meter` counts and `budget` may cut.
    #[must_use]
    pub fn new(
        send: SendStream,
        recv: RecvStream,
        meter: Arc<StreamMeter>,
        budget: &Arc<StallBudget>,
    ) -> Self {
        Self::of(
            TunnelSend::new(send, meter.clone()),
            TunnelRecv::new(recv, meter, budget),
        )
    }

    /// Joins two halves.
    #[must_use]
    pub fn of(send: TunnelSend, recv: TunnelRecv) -> Self {
        Self {
            send,
            recv,
            home: None,
        }
    }

    /// What this stream has carried.
    #[must_use]
    pub fn meter(&self) -> &Arc<StreamMeter> {
        &self.send.meter
    }
}

/// The sending half. Dropped without [`TunnelSend::finish`], it resets: quinn alone would send
/// FIN, and a cut body would look whole.
#[derive(Debug)]
pub struct TunnelSend {
    stream: SendStream,
    finished: bool,
    blocked_since: Option<Instant>,
    meter: Arc<StreamMeter>,
}

impl TunnelSend {
    /// Wraps the sending half of a stream.
    #[must_use]
    pub fn new(stream: SendStream, meter: Arc<StreamMeter>) -> Self {
        Self {
            stream,
            finished: false,
            blocked_since: None,
            meter,
        }
    }

    /// Sends bytes of the protocol, which do not count as payload.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn write_frame(&mut self, frame: &[u8]) -> Result<(), StreamError> {
        Ok(self.stream.write_all(frame).await?)
    }

    /// Hands all chunks over, waiting for the other side's flow control; none is copied.
    ///
    /// # Errors
    /// [`StreamError`]; some of the chunks may have been sent.
    pub async fn write_all_chunks(&mut self, mut chunks: &mut [Bytes]) -> Result<(), StreamError> {
        while !chunks.is_empty() {
            let written = poll_fn(|cx| self.poll_write_chunks(cx, chunks)).await?;
            chunks = &mut chunks[written..];
        }
        Ok(())
    }

    /// Hands over as much of `chunk` as fits, and leaves the rest in it.
    pub(crate) fn poll_write_chunk(
        &mut self,
        cx: &mut Context<'_>,
        chunk: &mut Bytes,
    ) -> Poll<Result<(), StreamError>> {
        self.poll_write_chunks(cx, std::slice::from_mut(chunk))
            .map_ok(|_| ())
    }

    /// Hands over what fits, and leaves the rest in `chunks`: how many of them went whole.
    fn poll_write_chunks(
        &mut self,
        cx: &mut Context<'_>,
        chunks: &mut [Bytes],
    ) -> Poll<Result<usize, StreamError>> {
        // quinn keeps the waker with the stream, so that the future may be made anew for each poll.
        let polled = pin!(self.stream.write_chunks(chunks)).poll(cx);
        let written = ready!(self.count_blocked(polled))?;
        self.meter.add_sent(written.bytes);
        Poll::Ready(Ok(written.chunks))
    }

    /// Adds up the time between a write that had to wait and the one that went on.
    fn count_blocked<T>(&mut self, polled: Poll<T>) -> Poll<T> {
        if polled.is_pending() {
            self.blocked_since.get_or_insert_with(Instant::now);
        } else if let Some(since) = self.blocked_since.take() {
            self.meter.add_flow_blocked(since.elapsed());
        }
        polled
    }

    pub(crate) fn meter(&self) -> &Arc<StreamMeter> {
        &self.meter
    }

    /// Whether this direction has ended on this side.
    pub(crate) fn is_finished(&self) -> bool {
        self.finished
    }

    /// Ends this direction in order: the other side reads the end after the last byte.
    pub fn finish(&mut self) {
        if !self.finished {
            self.finished = true;
            // Fails when the other side has stopped the stream, which it then knows.
            let _ = self.stream.finish();
        }
    }

    /// Ends this direction as failed: the other side reads an error.
    pub fn reset(&mut self, code: ResetCode) {
        self.finished = true;
        let _ = self.stream.reset(code.code().into());
    }

    /// Completes when the other side wants no more of this direction, has received all of it, or
    /// is gone.
    pub(crate) fn stopped(&self) -> impl Future<Output = ()> + Send + 'static {
        let stopped = self.stream.stopped();
        async move {
            let _ = stopped.await;
        }
    }
}

impl Drop for TunnelSend {
    fn drop(&mut self) {
        if !self.finished {
            self.reset(self.meter.drop_code());
        }
    }
}

/// The receiving half. Dropped before its end, it tells the other side to stop.
#[derive(Debug)]
pub struct TunnelRecv {
    slot: Arc<RecvSlot>,
    meter: Arc<StreamMeter>,
}

impl TunnelRecv {
    /// Wraps the receiving half of a stream.
    #[must_use]
    pub fn new(stream: RecvStream, meter: Arc<StreamMeter>, budget: &Arc<StallBudget>) -> Self {
        Self {
            slot: budget.watch(stream),
            meter,
        }
    }

    /// The next chunks as they arrived, none copied, in order: how many of `chunks` were filled;
    /// `None` at the end of the stream.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn read_chunks(
        &mut self,
        chunks: &mut [Bytes],
    ) -> Result<Option<usize>, StreamError> {
        poll_fn(|cx| self.poll_read_chunks(cx, chunks)).await
    }

    pub(crate) fn poll_read_chunks(
        &mut self,
        cx: &mut Context<'_>,
        chunks: &mut [Bytes],
    ) -> Poll<Result<Option<usize>, StreamError>> {
        if self.slot.is_cut() {
            return Poll::Ready(Err(self.broken(StreamError::Stalled)));
        }
        let mut stream = self.slot.stream();
        // quinn keeps the waker with the stream, so that the future may be made anew for each poll.
        let polled = pin!(stream.read_chunks(chunks)).poll(cx);
        drop(stream);
        match polled {
            Poll::Pending => {
                self.slot.mark_waiting();
                Poll::Pending
            }
            Poll::Ready(Ok(Some(filled))) => {
                self.slot.mark_holding();
                self.meter
                    .add_received(chunks[..filled].iter().map(Bytes::len).sum());
                Poll::Ready(Ok(Some(filled)))
            }
            Poll::Ready(Ok(None)) => {
                self.slot.mark_waiting();
                Poll::Ready(Ok(None))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(self.broken(error))),
        }
    }

    /// Notes why nothing more comes.
    fn broken(&self, error: impl Into<StreamError>) -> StreamError {
        let error = error.into();
        self.meter.note_cut(error.cause());
        error
    }

    /// Completes when the node's budget has cut this half; a reader that waits for something else
    /// than this stream watches it.
    pub(crate) fn cut(&self) -> impl Future<Output = ()> + Send + 'static {
        let slot = self.slot.clone();
        async move { slot.cut().await }
    }

    /// Tells the other side that nothing more is wanted, and why.
    pub fn stop(&mut self, code: ResetCode) {
        let _ = self.slot.stream().stop(code.code().into());
    }
}

impl AsyncRead for TunnelRecv {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.slot.is_cut() {
            return Poll::Ready(Err(this.broken(StreamError::Stalled).into()));
        }
        let before = buf.filled().len();
        let polled = this.slot.stream().poll_read_buf(cx, buf);
        match polled {
            Poll::Pending => {
                this.slot.mark_waiting();
                Poll::Pending
            }
            Poll::Ready(Ok(())) => {
                let read = buf.filled().len() - before;
                if read == 0 {
                    this.slot.mark_waiting();
                } else {
                    this.slot.mark_holding();
                    this.meter.add_received(read);
                }
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(this.broken(error).into())),
        }
    }
}

impl AsyncWrite for TunnelSend {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_write(cx, buf);
        match this.count_blocked(polled) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(written)) => {
                this.meter.add_sent(written);
                Poll::Ready(Ok(written))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(StreamError::from(error).into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // quinn sends by itself.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().finish();
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for TunnelStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().recv).poll_read(cx, buf)
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().send).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().send).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().send).poll_shutdown(cx)
    }
}
