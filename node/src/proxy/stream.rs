//! What a dial comes to: a stream through the mesh, or a connection that this proxy has made itself.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::metrics::StreamMeter;
use crate::net::{BoxFuture, Socket};
use crate::quic::TunnelStream;

/// A connection to a target. Dropped before [`AsyncWrite::poll_shutdown`] has ended it in order, it
/// is reset.
#[derive(Debug)]
pub enum Stream {
    /// Through an agent, or another cluster.
    Tunnel(TunnelStream),
    /// From this proxy itself.
    Direct(DirectStream),
}

/// A connection that this proxy has made itself, counted as streams are.
#[derive(Debug)]
pub struct DirectStream {
    socket: Box<dyn Socket>,
    meter: Arc<StreamMeter>,
}

impl DirectStream {
    pub(super) fn new(socket: Box<dyn Socket>, meter: Arc<StreamMeter>) -> Self {
        // Until it has ended in order, its end is a failure.
        socket.set_reset_on_close(true);
        Self { socket, meter }
    }
}

impl AsyncRead for DirectStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut *this.socket).poll_read(cx, buf))?;
        this.meter.add_received(buf.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for DirectStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut *this.socket).poll_write(cx, buf))?;
        this.meter.add_sent(written);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut *this.socket).poll_write_vectored(cx, bufs))?;
        this.meter.add_sent(written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.get_mut().socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut *this.socket).poll_shutdown(cx))?;
        this.socket.set_reset_on_close(false);
        Poll::Ready(Ok(()))
    }
}

impl Socket for DirectStream {
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
        let Self { socket, meter } = *self;
        let socket = socket.rehome()?;
        Ok(Box::new(Self { socket, meter }))
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tunnel(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Direct(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tunnel(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Direct(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tunnel(stream) => Pin::new(stream).poll_flush(cx),
            Self::Direct(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tunnel(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Direct(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
