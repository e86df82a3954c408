//! The user's side of a connection: the socket as hyper sees it.
//!
//! hyper closes a connection in the same way whether a response was whole or not, takes a client
//! that has ended its half for one that has gone, and knows one time limit for an idle connection
//! and for a slow request head. [`UserIo`] makes up for that, knowing from [`ConnectionState`]
//! where the exchange of messages stands.

use std::future::Future as _;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::net::{BoxFuture, Socket};

/// From a request's first byte to the end of its head.
pub(super) const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a user that has ended its half of the connection may wait for something to be
/// written: such a user looks like one that has gone away.
const HALF_CLOSED_GRACE: Duration = Duration::from_secs(10);

/// The same while it is not known whether the request's body had ended before.
const HALF_CLOSED_GRACE_IN_BODY: Duration = Duration::from_secs(1);

/// How long what a user still sends is read away after the last response, so that the response is
/// not lost by the reset with which a host answers bytes for a closed socket.
const LINGER: Duration = Duration::from_secs(2);

/// Where a connection stands. For HTTP/2, whose frames tell a cut response from a whole one, only
/// the number of requests counts.
#[derive(Debug)]
pub(super) struct ConnectionState {
    http1: bool,
    /// Requests so far.
    begun: AtomicU64,
    /// Requests so far of which nothing is left.
    over: AtomicU64,
    request_ended: AtomicBool,
    response_ended: AtomicBool,
    /// A response is owed, or something of it has not been given to the socket.
    unflushed: AtomicBool,
    /// No HTTP any more, but bytes after an upgrade.
    upgraded: AtomicBool,
    /// The socket is closed.
    closed: AtomicBool,
    read_bytes: AtomicU64,
    written_bytes: AtomicU64,
}

impl ConnectionState {
    pub(super) fn new(http1: bool) -> Arc<Self> {
        Arc::new(Self {
            http1,
            begun: AtomicU64::new(0),
            over: AtomicU64::new(0),
            request_ended: AtomicBool::new(true),
            response_ended: AtomicBool::new(true),
            unflushed: AtomicBool::new(false),
            upgraded: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            read_bytes: AtomicU64::new(0),
            written_bytes: AtomicU64::new(0),
        })
    }

    /// A request's head has come; `bodyless`: and that is all of it.
    pub(super) fn request_began(&self, bodyless: bool) {
        self.request_ended.store(bodyless, Ordering::Release);
        self.response_ended.store(false, Ordering::Release);
        self.unflushed.store(true, Ordering::Release);
        self.begun.fetch_add(1, Ordering::AcqRel);
    }

    /// A request's body has come to its end.
    pub(super) fn request_ended(&self) {
        self.request_ended.store(true, Ordering::Release);
    }

    /// hyper has all of a response.
    pub(super) fn response_ended(&self) {
        self.response_ended.store(true, Ordering::Release);
    }

    /// Nothing is left of a request.
    pub(super) fn request_over(&self) {
        self.over.fetch_add(1, Ordering::AcqRel);
    }

    /// The number of requests so far when none is left, which grows with each; else `None`.
    pub(super) fn idle_since(&self) -> Option<u64> {
        let begun = self.begun.load(Ordering::Acquire);
        (begun == self.over.load(Ordering::Acquire)).then_some(begun)
    }

    /// From now on there are bytes instead of HTTP.
    pub(super) fn upgraded(&self) {
        self.upgraded.store(true, Ordering::Release);
    }

    /// Bytes written to and read from the user so far.
    pub(super) fn totals(&self) -> (u64, u64) {
        (
            self.written_bytes.load(Ordering::Relaxed),
            self.read_bytes.load(Ordering::Relaxed),
        )
    }

    /// Whether a request's body that ends now may have been cut: hyper ends it in order when it
    /// panics while it reads. A closed connection brings no answer to the user in any case.
    pub(super) fn may_cut_body(&self) -> bool {
        self.is_http1() && self.closed.load(Ordering::Acquire)
    }

    /// Whether the rules of HTTP/1 messages apply.
    fn is_http1(&self) -> bool {
        self.http1 && !self.upgraded.load(Ordering::Acquire)
    }

    /// Whether a response is owed or on its way.
    fn is_answering(&self) -> bool {
        self.unflushed.load(Ordering::Acquire)
    }
}

/// A user's socket.
#[derive(Debug)]
pub(super) struct UserIo {
    socket: Box<dyn Socket>,
    state: Arc<ConnectionState>,
    /// Read from the socket before, and to be read first.
    read_first: Bytes,
    /// To be written before anything else.
    write_first: Bytes,
    wait: Option<Wait>,
    ended: bool,
    lingering: Option<Pin<Box<Sleep>>>,
}

/// What is waited for, at most until when.
#[derive(Debug)]
struct Wait {
    until: Pin<Box<Sleep>>,
    what: For,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum For {
    /// The rest of the head of the request that follows this many.
    Head(u64),
    /// Something to be written to a user that has ended its half.
    Answer {
        /// The request's body had come to its end.
        whole: bool,
    },
}

impl UserIo {
    /// `read_first` was read from the socket already.
    pub(super) fn new(
        socket: Box<dyn Socket>,
        read_first: Bytes,
        state: Arc<ConnectionState>,
    ) -> Self {
        Self {
            socket,
            state,
            read_first,
            write_first: Bytes::new(),
            wait: None,
            ended: false,
            lingering: None,
        }
    }

    /// After an upgrade: what hyper has read of the user's bytes is to be read first, and
    /// `write_first` is to be written first.
    pub(super) fn after_upgrade(&mut self, read_first: Bytes, write_first: Bytes) {
        self.read_first = read_first;
        self.write_first = write_first;
        self.wait = None;
    }

    /// Notes that bytes were read, and when the rest of the head has to be there.
    fn note_read(&mut self, bytes: usize) {
        self.state
            .read_bytes
            .fetch_add(bytes as u64, Ordering::Relaxed);
        if !self.state.is_http1() || self.state.is_answering() {
            return;
        }
        let head = For::Head(self.state.begun.load(Ordering::Acquire));
        if self.wait.as_ref().is_none_or(|wait| wait.what != head) {
            self.wait = Some(Wait {
                until: Box::pin(tokio::time::sleep(HEAD_TIMEOUT)),
                what: head,
            });
        }
    }

    /// Nothing is there to be read: fails when the head takes too long.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(Wait {
            until,
            what: For::Head(begun),
        }) = &mut self.wait
        else {
            return Poll::Pending;
        };
        if *begun != self.state.begun.load(Ordering::Acquire) || !self.state.is_http1() {
            self.wait = None;
            return Poll::Pending;
        }
        ready!(until.as_mut().poll(cx));
        let why = format!("the request's head was not complete within {HEAD_TIMEOUT:?}");
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, why)))
    }

    /// The user has ended its half: completes when hyper is to know.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.state.is_http1() || !self.state.is_answering() {
            return Poll::Ready(());
        }
        loop {
            let whole = self.state.request_ended.load(Ordering::Acquire);
            match &mut self.wait {
                Some(Wait {
                    until,
                    what:
                        For::Answer {
                            whole: waited_as_whole,
                        },
                }) => {
                    ready!(until.as_mut().poll(cx));
                    if *waited_as_whole || !whole {
                        return Poll::Ready(());
                    }
                    *waited_as_whole = true;
                    until.as_mut().reset(Instant::now() + HALF_CLOSED_GRACE);
                }
                _ => {
                    let grace = if whole {
                        HALF_CLOSED_GRACE
                    } else {
                        HALF_CLOSED_GRACE_IN_BODY
                    };
                    let until = Box::pin(tokio::time::sleep(grace));
                    self.wait = Some(Wait {
                        until,
                        what: For::Answer { whole },
                    });
                }
            }
        }
    }

    fn note_written(&mut self, bytes: usize) {
        self.state
            .written_bytes
            .fetch_add(bytes as u64, Ordering::Relaxed);
        if let Some(Wait {
            until,
            what: For::Answer { .. },
        }) = &mut self.wait
        {
            until.as_mut().reset(Instant::now() + HALF_CLOSED_GRACE);
        }
    }

    fn poll_write_first(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.write_first.is_empty() {
            let written = ready!(Pin::new(&mut *self.socket).poll_write(cx, &self.write_first))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.write_first.advance(written);
            self.note_written(written);
            if self.write_first.is_empty() {
                ready!(Pin::new(&mut *self.socket).poll_flush(cx))?;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for UserIo {
    fn drop(&mut self) {
        self.state.closed.store(true, Ordering::Release);
        // A response that is cut must not look whole, and one that ends with the connection would.
        if self.state.is_http1() && self.state.is_answering() {
            self.socket.set_reset_on_close(true);
        }
    }
}

impl AsyncRead for UserIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.write_first.is_empty()
            && let Poll::Ready(Err(error)) = this.poll_write_first(cx)
        {
            return Poll::Ready(Err(error));
        }
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if !this.read_first.is_empty() {
            let taken = this.read_first.len().min(buf.remaining());
            buf.put_slice(&this.read_first[..taken]);
            this.read_first.advance(taken);
            this.note_read(taken);
            return Poll::Ready(Ok(()));
        }
        if !this.ended {
            let before = buf.filled().len();
            match Pin::new(&mut *this.socket).poll_read(cx, buf) {
                Poll::Pending => return this.poll_head(cx),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Ready(Ok(())) => {
                    let read = buf.filled().len() - before;
                    if read > 0 {
                        this.note_read(read);
                        return Poll::Ready(Ok(()));
                    }
                    this.ended = true;
                }
            }
        }
        this.poll_end(cx).map(Ok)
    }
}

impl AsyncWrite for UserIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_write_first(cx))?;
        let written = ready!(Pin::new(&mut *this.socket).poll_write(cx, buf))?;
        this.note_written(written);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_write_first(cx))?;
        let written = ready!(Pin::new(&mut *this.socket).poll_write_vectored(cx, bufs))?;
        this.note_written(written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_write_first(cx))?;
        // hyper flushes the socket when it has written all that it has.
        let ended = this.state.response_ended.load(Ordering::Acquire);
        ready!(Pin::new(&mut *this.socket).poll_flush(cx))?;
        if ended {
            this.state.unflushed.store(false, Ordering::Release);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_write_first(cx))?;
        if this.lingering.is_none() {
            ready!(Pin::new(&mut *this.socket).poll_shutdown(cx))?;
            let head = matches!(&this.wait, Some(Wait { what: For::Head(begun), .. })
                if *begun == this.state.begun.load(Ordering::Acquire));
            let all_read = this.state.request_ended.load(Ordering::Acquire) && !head;
            if this.ended || all_read || !this.state.is_http1() {
                return Poll::Ready(Ok(()));
            }
        }
        let until = this
            .lingering
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER)));
        if until.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        let mut away = [0; 8 << 10];
        // As often as a task may do without yielding.
        for _ in 0..16 {
            let mut away = ReadBuf::new(&mut away);
            match ready!(Pin::new(&mut *this.socket).poll_read(cx, &mut away)) {
                Ok(()) if !away.filled().is_empty() => {}
                // The end, or an error: there is no more to read.
                Ok(()) | Err(_) => {
                    this.ended = true;
                    return Poll::Ready(Ok(()));
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Socket for UserIo {
    fn set_reset_on_close(&self, reset: bool) {
        self.socket.set_reset_on_close(reset);
    }

    fn peer_addr(&self) -> Option<SocketAddr> {
        self.socket.peer_addr()
    }

    fn broken(&self) -> BoxFuture<'static, ()> {
        self.socket.broken()
    }

    fn rehome(self: Box<Self>) -> io::Result<Box<dyn Socket>> {
        // Timers and messages under way belong to the runtime where it was made.
        Ok(self)
    }
}
