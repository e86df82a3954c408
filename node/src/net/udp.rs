//! A UDP socket for quinn that asks the kernel as seldom as it can.
//!
//! Against tokio's own socket under quinn it saves three things, all of which are per packet:
//!
//! - It is registered for what arrives alone. tokio registers for room to send too, so that on a
//!   path as short as loopback each datagram that the other side takes wakes its sender for nothing.
//! - A read that filled less than it was given has emptied the queue; no second one asks again.
//! - quinn hands over ten datagrams at a time at most. Those that follow each other go out in one
//!   call, as many as the kernel takes at once, see [`Burst`].

mod burst;

use std::fmt;
use std::future::poll_fn;
use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use quinn::udp::{RecvMeta, Transmit, UdpSocketState};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use burst::{Burst, Joined};

/// When it is tried again to send, where no descriptor is left to wait with.
const RETRY: Duration = Duration::from_millis(1);

/// The socket of an endpoint.
#[derive(Debug)]
pub(super) struct QuicSocket {
    shared: Arc<Shared>,
    /// Where the task runs that sends what was held back; it is made when there is such a thing.
    runtime: Handle,
    flusher: OnceLock<AbortHandle>,
}

#[derive(Debug)]
struct Shared {
    socket: AsyncFd<UdpSocket>,
    state: UdpSocketState,
    held: Mutex<Burst>,
    /// Something is held back.
    holds: Notify,
    /// The kernel had no room for the last datagrams.
    is_blocked: AtomicBool,
    /// What those wait at who wait for room since then.
    waiting: Mutex<Weak<AsyncFd<UdpSocket>>>,
    /// Makes a second descriptor of the socket.
    duplicate: fn(&UdpSocket) -> io::Result<UdpSocket>,
}

impl QuicSocket {
    /// Takes a bound socket over, on the runtime of the caller.
    pub(super) fn new(socket: UdpSocket) -> io::Result<Self> {
        // Makes it non-blocking too.
        let state = UdpSocketState::new((&socket).into())?;
        Ok(Self {
            shared: Arc::new(Shared {
                socket: register(socket, Interest::READABLE)?,
                state,
                held: Mutex::default(),
                holds: Notify::new(),
                is_blocked: AtomicBool::new(false),
                waiting: Mutex::default(),
                duplicate: UdpSocket::try_clone,
            }),
            runtime: Handle::current(),
            flusher: OnceLock::new(),
        })
    }
}

impl Drop for QuicSocket {
    fn drop(&mut self) {
        if let Some(flusher) = self.flusher.get() {
            flusher.abort();
        }
        // Whoever closes the socket has closed its connections: their last datagrams are in here.
        let _ = self.shared.flush(&mut self.shared.held());
    }
}

impl Shared {
    fn held(&self) -> MutexGuard<'_, Burst> {
        // What a panic left behind is at worst a burst that is lost, as datagrams may be.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let result = self.state.send(self.socket.get_ref().into(), transmit);
        if result.is_err() {
            self.is_blocked.store(true, Ordering::Relaxed);
            // Whoever has waited so far was told of room that is gone.
            *self.waiting() = Weak::new();
        }
        result
    }

    /// Sends what is held, unless the kernel has no room.
    fn flush(&self, held: &mut Burst) -> io::Result<()> {
        if let Some(transmit) = held.transmit() {
            self.send(&transmit)?;
            held.clear();
        }
        Ok(())
    }

    /// Sends `transmit` after what is held, or holds it back as well.
    /// Whether something is held back now.
    ///
    /// # Errors
    /// When the kernel has no room, and `transmit` is not taken.
    fn send_or_hold(&self, transmit: &Transmit<'_>) -> io::Result<bool> {
        let mut held = self.held();
        let segments_max = self.state.max_gso_segments();
        match held.join(transmit, segments_max) {
            Joined::More => Ok(true),
            // What finds no room is taken all the same, and sent later.
            Joined::Last => Ok(self.flush(&mut held).is_err()),
            Joined::No => {
                self.flush(&mut held)?;
                if held.begin(transmit, segments_max) {
                    return Ok(true);
                }
                drop(held);
                self.send(transmit).map(|()| false)
            }
        }
    }

    /// Sends what is held back once no more comes to it: after every connection that was about to
    /// run has run once more.
    async fn flush_held(&self) {
        loop {
            self.holds.notified().await;
            let mut grown = self.held().datagrams();
            loop {
                yield_to_ready().await;
                let blocked = {
                    let mut held = self.held();
                    let datagrams = held.datagrams();
                    if datagrams > grown {
                        grown = datagrams;
                        continue;
                    }
                    self.flush(&mut held).is_err()
                };
                if !blocked {
                    break;
                }
                self.room().await;
            }
        }
    }

    /// Completes when there may be room to send.
    async fn room(&self) {
        match self.writable() {
            Ok(writable) => {
                let _ = writable.writable().await;
            }
            // No descriptor is left. An error here would end the connection that waits.
            Err(_) => tokio::time::sleep(RETRY).await,
        }
        self.is_blocked.store(false, Ordering::Relaxed);
    }

    /// What becomes writable when there is room. It is registered while somebody waits, and not else;
    /// all who wait share it.
    fn writable(&self) -> io::Result<Arc<AsyncFd<UdpSocket>>> {
        let mut waiting = self.waiting();
        if let Some(shared) = waiting.upgrade() {
            return Ok(shared);
        }
        // A descriptor of its own: the socket's one is registered already.
        let socket = (self.duplicate)(self.socket.get_ref())?;
        let writable = Arc::new(register(socket, Interest::WRITABLE)?);
        *waiting = Arc::downgrade(&writable);
        Ok(writable)
    }

    fn waiting(&self) -> MutexGuard<'_, Weak<AsyncFd<UdpSocket>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Registers a socket for `interest` alone, which tokio's own sockets cannot be.
#[expect(
    deprecated,
    reason = "its successor is an unsafe function, for types whose descriptor may change; a UdpSocket \
              keeps its own until it is dropped"
)]
fn register(socket: UdpSocket, interest: Interest) -> io::Result<AsyncFd<UdpSocket>> {
    AsyncFd::with_interest(socket, interest)
}

/// Lets every task run that is ready now. tokio's own would look for I/O first.
async fn yield_to_ready() {
    let mut yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

impl AsyncUdpSocket for QuicSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Room {
            shared: self.shared.clone(),
            waiting: None,
        })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if self.shared.send_or_hold(transmit)? {
            self.flusher.get_or_init(|| {
                let shared = self.shared.clone();
                let flusher = async move { shared.flush_held().await };
                self.runtime.spawn(flusher).abort_handle()
            });
            self.shared.holds.notify_one();
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let Shared { socket, state, .. } = &*self.shared;
        loop {
            let mut guard = ready!(socket.poll_read_ready(cx))?;
            let received = guard.try_io(|socket| state.recv(socket.get_ref().into(), bufs, meta));
            if let Ok(result) = received {
                if result.as_ref().is_ok_and(|messages| *messages < bufs.len()) {
                    // The queue is empty. What arrives from here on is told anew.
                    guard.clear_ready();
                }
                return Poll::Ready(result);
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.shared.socket.get_ref().local_addr()
    }

    fn may_fragment(&self) -> bool {
        self.shared.state.may_fragment()
    }

    fn max_transmit_segments(&self) -> usize {
        self.shared.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.shared.state.gro_segments()
    }
}

/// Tells a connection that there is room to send.
struct Room {
    shared: Arc<Shared>,
    waiting: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
}

impl UdpPoller for Room {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let room = &mut *self;
        if room.waiting.is_none() && !room.shared.is_blocked.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        let waiting = room.waiting.get_or_insert_with(|| {
            let shared = room.shared.clone();
            Box::pin(async move { shared.room().await })
        });
        ready!(waiting.as_mut().poll(cx));
        room.waiting = None;
        Poll::Ready(Ok(()))
    }
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Room").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
