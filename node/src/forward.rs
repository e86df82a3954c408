//! Bytes between a tunnel's stream and a socket, or between two tunnels.
//!
//! From QUIC, chunks are taken as they arrived and handed on whole; from a socket, bytes are read
//! into large blocks that are shared with QUIC, not copied. A buffer is held only while there are
//! bytes in it, so that an idle stream costs its state and nothing more.
//!
//! How a direction ends is carried over. An end of file becomes FIN and FIN an end of file, and
//! the other direction goes on. A failure of either side fails both directions on the other: a TCP
//! connection cannot break in one direction alone.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use mesh_proto::close::ResetCode;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::sleep;

use crate::net::{BoxFuture, Socket};
use crate::quic::{StreamError, TunnelRecv, TunnelSend, TunnelStream};

/// Size of the blocks that sockets are read into, in bytes.
const BLOCK_BYTES: usize = 256 << 10;

/// The least room of a block that is worth a read, in bytes.
const READ_BYTES_MIN: usize = 64 << 10;

/// Buffer of each direction between two sockets, in bytes.
const SOCKET_BUFFER_BYTES: usize = 64 << 10;

/// Reads up to this many bytes are copied out of the block: a slice of it would keep the whole
/// block alive for as long as the other side does not acknowledge it.
const COPY_BYTES_MAX: usize = 8 << 10;

/// Chunks taken from QUIC, and handed to a socket in one vectored write.
const CHUNKS: usize = 32;

/// For how long a side that is not read may vanish unseen. Most are done by then, and watching costs
/// four system calls.
const UNWATCHED: Duration = Duration::from_millis(100);

/// Why forwarding ended before both directions had ended in order.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// The socket failed.
    #[error("the socket failed: {0}")]
    Socket(io::Error),
    /// The tunnel's stream failed.
    #[error("the tunnel stream failed: {0}")]
    Stream(#[from] StreamError),
}

impl ForwardError {
    /// What the side that did not fail is told.
    fn reset_code(&self) -> ResetCode {
        match self {
            Self::Socket(_) => ResetCode::SocketFailed,
            Self::Stream(StreamError::Reset(code)) => u32::try_from(code.into_inner())
                .ok()
                .and_then(ResetCode::from_code)
                .unwrap_or(ResetCode::Cancelled),
            Self::Stream(StreamError::Stalled) => ResetCode::StalledTooLong,
            Self::Stream(StreamError::ConnectionLost(_) | StreamError::Closed) => {
                ResetCode::Cancelled
            }
        }
    }
}

/// Forwards between `socket` and `tunnel` until both directions have ended, and all of it has
/// arrived at the tunnel's other side.
///
/// Dropping the future resets both, so that neither side takes what it got for the whole.
///
/// # Errors
/// [`ForwardError`], after both were reset.
pub async fn socket(mut socket: Box<dyn Socket>, tunnel: TunnelStream) -> Result<(), ForwardError> {
    // Until the end is known to be in order, closing the socket is a failure: so it is on every
    // path out of here, cancellation and panics among them.
    socket.set_reset_on_close(true);
    run(&mut socket, tunnel, |socket| socket.broken()).await?;
    socket.set_reset_on_close(false);
    Ok(())
}

/// Forwards between two sockets until both directions have ended.
///
/// Dropping the future resets both.
///
/// # Errors
/// [`ForwardError::Socket`], after both were reset.
pub async fn sockets(
    mut one: Box<dyn Socket>,
    mut other: Box<dyn Socket>,
) -> Result<(), ForwardError> {
    one.set_reset_on_close(true);
    other.set_reset_on_close(true);
    // While one side takes nothing, nothing is read from the other, which could vanish unseen.
    let (one_broken, other_broken) = (one.broken(), other.broken());
    let copied = async {
        tokio::io::copy_bidirectional_with_sizes(
            &mut one,
            &mut other,
            SOCKET_BUFFER_BYTES,
            SOCKET_BUFFER_BYTES,
        )
        .await
        .map(drop)
    };
    let broken = || Err(io::Error::from(io::ErrorKind::ConnectionReset));
    let result = tokio::select! {
        biased;
        result = copied => result,
        () = one_broken => broken(),
        () = other_broken => broken(),
    };
    result.map_err(ForwardError::Socket)?;
    one.set_reset_on_close(false);
    other.set_reset_on_close(false);
    Ok(())
}

/// Forwards between any byte stream and `tunnel` until both directions have ended.
///
/// # Errors
/// [`ForwardError`], after the tunnel was reset. The caller ends `io`.
pub async fn stream<S>(io: &mut S, tunnel: TunnelStream) -> Result<(), ForwardError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    run(io, tunnel, |_| Box::pin(std::future::pending())).await
}

/// Forwards until both directions have ended; `watch` tells of a break that no read shows.
async fn run<S>(
    io: &mut S,
    mut tunnel: TunnelStream,
    watch: impl Fn(&S) -> BoxFuture<'static, ()>,
) -> Result<(), ForwardError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut up = Up::default();
    let mut down = Down::default();
    let (mut unread, mut broken) = (None, None);
    let cut = tunnel.recv.cut();
    let both = poll_fn(|cx| {
        let sent = up.poll(cx, io, &mut tunnel.send)?;
        let received = down.poll(cx, io, &mut tunnel)?;
        if sent.is_ready() && received.is_ready() {
            return Poll::Ready(Ok(()));
        }
        // While nothing is read from the other side of `io`, it could vanish unseen.
        if !up.is_reading() {
            let unread = unread.get_or_insert_with(|| Box::pin(sleep(UNWATCHED)));
            if broken.is_none() {
                ready!(unread.as_mut().poll(cx));
            }
            ready!(broken.get_or_insert_with(|| watch(io)).as_mut().poll(cx));
            let error = io::Error::from(io::ErrorKind::ConnectionReset);
            return Poll::Ready(Err(ForwardError::Socket(error)));
        }
        Poll::Pending
    });
    let result = tokio::select! {
        biased;
        result = both => result,
        () = cut => Err(ForwardError::Stream(StreamError::Stalled)),
    };
    match &result {
        // Whoever drains closes the connection once its streams have ended: what this side has
        // handed to QUIC and the other has not received yet would be lost with it.
        Ok(()) => tunnel.send.stopped().await,
        Err(error) => {
            let code = error.reset_code();
            tunnel.send.reset(code);
            tunnel.recv.stop(code);
        }
    }
    result
}

/// Forwards between two tunnels, chunk by chunk, until both directions have ended.
///
/// # Errors
/// [`ForwardError`], after both were reset.
pub async fn tunnels(mut a: TunnelStream, mut b: TunnelStream) -> Result<(), ForwardError> {
    let result = tokio::try_join!(
        relay(&mut a.recv, &mut b.send),
        relay(&mut b.recv, &mut a.send)
    );
    match &result {
        // As in `run`: the end is over when it has arrived.
        Ok(_) => {
            tokio::join!(a.send.stopped(), b.send.stopped());
        }
        Err(error) => {
            let code = error.reset_code();
            for tunnel in [&mut a, &mut b] {
                tunnel.send.reset(code);
                tunnel.recv.stop(code);
            }
        }
    }
    result.map(|_| ())
}

async fn relay(from: &mut TunnelRecv, to: &mut TunnelSend) -> Result<(), ForwardError> {
    let mut chunks = [const { Bytes::new() }; CHUNKS];
    let cut = from.cut();
    // Whoever waits for more to read would not notice that nobody wants it any more.
    let stopped = to.stopped();
    let copy = async {
        while let Some(filled) = from.read_chunks(&mut chunks).await? {
            to.write_all_chunks(&mut chunks[..filled]).await?;
        }
        to.finish();
        Ok(())
    };
    tokio::select! {
        biased;
        result = copy => result,
        () = cut => Err(StreamError::Stalled.into()),
        () = stopped => Err(StreamError::Closed.into()),
    }
}

/// From the socket to the tunnel.
#[derive(Debug, Default)]
struct Up {
    chunk: Bytes,
    end: End,
}

/// How far a direction has come.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum End {
    /// More may come.
    #[default]
    Open,
    /// The source has ended; what it gave is on its way.
    Ending,
    /// All is delivered, the end too.
    Done,
}

impl Up {
    /// Whether an end of the source would be noticed.
    fn is_reading(&self) -> bool {
        self.chunk.is_empty() && self.end == End::Open
    }

    fn poll<S: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut S,
        send: &mut TunnelSend,
    ) -> Result<Poll<()>, ForwardError> {
        loop {
            while !self.chunk.is_empty() {
                match send.poll_write_chunk(cx, &mut self.chunk) {
                    Poll::Ready(result) => result?,
                    Poll::Pending => return Ok(Poll::Pending),
                }
            }
            match self.end {
                End::Done => return Ok(Poll::Ready(())),
                End::Ending => {
                    send.finish();
                    self.end = End::Done;
                }
                End::Open => match poll_read_block(cx, io) {
                    Poll::Pending => return Ok(Poll::Pending),
                    Poll::Ready(Err(error)) => return Err(ForwardError::Socket(error)),
                    Poll::Ready(Ok(chunk)) if chunk.is_empty() => self.end = End::Ending,
                    Poll::Ready(Ok(chunk)) => self.chunk = chunk,
                },
            }
        }
    }
}

/// From the tunnel to the socket.
#[derive(Default)]
struct Down {
    chunks: [Bytes; CHUNKS],
    /// The chunks from here to `filled` wait for the socket.
    next: usize,
    filled: usize,
    unflushed: bool,
    end: End,
    /// While nothing is read from the tunnel, nothing but this tells that the other side has gone
    /// away: when this direction is over, and when the socket takes no more.
    stopped: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Down {
    fn poll<S: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut S,
        tunnel: &mut TunnelStream,
    ) -> Result<Poll<()>, ForwardError> {
        loop {
            match self.poll_write(cx, io) {
                Poll::Ready(result) => result.map_err(ForwardError::Socket)?,
                Poll::Pending => {
                    self.check_stopped(cx, &tunnel.send)?;
                    return Ok(Poll::Pending);
                }
            }
            match self.end {
                End::Done => {
                    self.check_stopped(cx, &tunnel.send)?;
                    return Ok(Poll::Ready(()));
                }
                End::Ending => match Pin::new(&mut *io).poll_shutdown(cx) {
                    Poll::Ready(result) => {
                        result.map_err(ForwardError::Socket)?;
                        self.end = End::Done;
                    }
                    Poll::Pending => return Ok(Poll::Pending),
                },
                End::Open => match tunnel.recv.poll_read_chunks(cx, &mut self.chunks) {
                    Poll::Ready(Ok(Some(filled))) => (self.next, self.filled) = (0, filled),
                    Poll::Ready(Ok(None)) => self.end = End::Ending,
                    Poll::Ready(Err(error)) => return Err(error.into()),
                    Poll::Pending => {
                        // A socket with a buffer of its own (TLS) may hold the end of a message.
                        if self.unflushed {
                            match Pin::new(&mut *io).poll_flush(cx) {
                                Poll::Ready(result) => {
                                    result.map_err(ForwardError::Socket)?;
                                    self.unflushed = false;
                                }
                                Poll::Pending => {}
                            }
                        }
                        return Ok(Poll::Pending);
                    }
                },
            }
        }
    }

    /// Fails when the other side has gone away, and else has it wake this task.
    fn check_stopped(
        &mut self,
        cx: &mut Context<'_>,
        send: &TunnelSend,
    ) -> Result<(), ForwardError> {
        // A finished direction is stopped in order, as soon as all of it has arrived.
        if send.is_finished() {
            return Ok(());
        }
        let stopped = self.stopped.get_or_insert_with(|| Box::pin(send.stopped()));
        match stopped.as_mut().poll(cx) {
            Poll::Ready(()) => Err(StreamError::Closed.into()),
            Poll::Pending => Ok(()),
        }
    }

    fn poll_write<S: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut S,
    ) -> Poll<io::Result<()>> {
        while self.next < self.filled {
            let mut slices = [IoSlice::new(&[]); CHUNKS];
            let waiting = &self.chunks[self.next..self.filled];
            for (slice, chunk) in slices.iter_mut().zip(waiting) {
                *slice = IoSlice::new(chunk);
            }
            let slices = &slices[..waiting.len()];
            let mut written = ready!(Pin::new(&mut *io).poll_write_vectored(cx, slices))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unflushed = true;
            while written > 0 {
                let chunk = &mut self.chunks[self.next];
                let taken = written.min(chunk.len());
                chunk.advance(taken);
                written -= taken;
                if chunk.is_empty() {
                    // Frees quinn's packet buffer now, not when the slot is filled anew.
                    *chunk = Bytes::new();
                    self.next += 1;
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

thread_local! {
    /// The block that the next read of this thread goes into. One per thread serves all streams,
    /// since a poll that finds nothing to read leaves it as it was.
    static BLOCK: RefCell<BytesMut> = RefCell::new(BytesMut::new());
}

/// Reads what there is; empty at the end of the stream.
fn poll_read_block<S: AsyncRead + Unpin>(
    cx: &mut Context<'_>,
    io: &mut S,
) -> Poll<io::Result<Bytes>> {
    BLOCK.with_borrow_mut(|block| {
        if block.capacity() < READ_BYTES_MIN {
            // Takes the former block anew when nothing of it is in use any more.
            block.reserve(BLOCK_BYTES);
        }
        let read = ready!(tokio_util::io::poll_read_buf(Pin::new(io), cx, block))?;
        Poll::Ready(Ok(if read <= COPY_BYTES_MAX {
            let copy = Bytes::copy_from_slice(block);
            block.clear();
            copy
        } else {
            block.split().freeze()
        }))
    })
}
