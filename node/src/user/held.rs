//! A connection to a proxy, and how many streams use it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mesh_proto::close::CloseCode;
use mesh_proto::name::NodeName;
use mesh_proto::wire::ProxyFrame;
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use tokio::sync::watch;
use tokio::time::Instant;

use super::CLOSE_GRACE;
use super::event::Why;
use crate::quic::frames::FrameReader;

/// A connection that was heard of within this time is taken to be alive.
const FRESH: Duration = Duration::from_secs(2);

/// The stream by which the proxy showed that it accepts this user, and tells when it is about to
/// leave.
#[derive(Debug)]
pub(super) struct Control {
    /// A proxy that keeps it open must not see it reset.
    _send: SendStream,
    recv: RecvStream,
    reader: FrameReader,
    /// The proxy keeps it open, and tells by it.
    tells: bool,
}

impl Control {
    /// Its answer has been read.
    pub(super) fn new(
        send: SendStream,
        recv: RecvStream,
        mut reader: FrameReader,
        tells: bool,
    ) -> Self {
        reader.converse();
        Self {
            _send: send,
            recv,
            reader,
            tells,
        }
    }

    /// Completes when the proxy tells that it is about to leave. May be dropped at any time. An older
    /// proxy has refused this stream, and refuses dials when it leaves.
    pub(super) async fn draining(&mut self) {
        loop {
            match self.reader.next::<ProxyFrame>(&mut self.recv).await {
                Ok(ProxyFrame::Draining(_)) => return,
                Ok(ProxyFrame::Hello(_) | ProxyFrame::Released(_) | ProxyFrame::Members(_)) => {}
                Err(_) => std::future::pending().await,
            }
        }
    }
}

/// A connection that the proxy has accepted. The endpoint under it serves it alone.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) id: u64,
    pub(super) connection: Connection,
    pub(super) proxy: NodeName,
    pub(super) remote: SocketAddr,
    /// The proxy says of itself that it is about to leave. An older one only refuses dials.
    pub(super) tells: bool,
    endpoint: Endpoint,
    /// For whoever keeps the connection, once.
    control: Mutex<Option<Control>>,
    uses: watch::Sender<usize>,
    leave: watch::Sender<Option<Why>>,
    heard: Mutex<Instant>,
}

impl Held {
    pub(super) fn new(
        id: u64,
        (endpoint, connection): (Endpoint, Connection),
        (proxy, remote): (NodeName, SocketAddr),
        control: Control,
    ) -> Self {
        Self {
            id,
            connection,
            proxy,
            remote,
            tells: control.tells,
            endpoint,
            control: Mutex::new(Some(control)),
            uses: watch::Sender::new(0),
            leave: watch::Sender::new(None),
            heard: Mutex::new(Instant::now()),
        }
    }

    /// The proxy has answered something.
    pub(super) fn mark_heard(&self) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Whether the proxy has answered something lately, and is not to be left: a proxy that drains
    /// closes the connection as soon as it has no stream.
    pub(super) fn is_fresh(&self) -> bool {
        self.leave.borrow().is_none()
            && self
                .heard
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .elapsed()
                < FRESH
    }

    /// The control stream, for the first who asks.
    pub(super) fn take_control(&self) -> Option<Control> {
        self.control
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// Packets that have come so far.
    pub(super) fn packets_received(&self) -> u64 {
        self.connection.stats().udp_rx.datagrams
    }

    pub(super) fn is_open(&self) -> bool {
        self.connection.close_reason().is_none()
    }

    /// Asks whoever keeps the connection to take another one for what is new.
    pub(super) fn leave(&self, why: Why) {
        self.leave.send_if_modified(|asked| {
            let first = asked.is_none();
            asked.get_or_insert(why);
            first
        });
    }

    /// Completes when somebody has asked to leave it.
    pub(super) async fn asked_to_leave(&self) -> Why {
        let mut asked = self.leave.subscribe();
        loop {
            if let Some(why) = *asked.borrow_and_update() {
                return why;
            }
            // The sender lives as long as `self`.
            let _ = asked.changed().await;
        }
    }

    /// Completes when no stream uses it.
    pub(super) async fn unused(&self) {
        let _ = self.uses.subscribe().wait_for(|uses| *uses == 0).await;
    }

    /// Closes it, and waits a little for the goodbye to go out.
    pub(super) async fn close(&self) {
        self.connection
            .close(CloseCode::Done.code().into(), b"no longer needed");
        let _ = tokio::time::timeout(CLOSE_GRACE, self.endpoint.wait_idle()).await;
    }
}

/// Counts a stream, or a dial, as a use of its connection.
#[derive(Debug)]
pub(super) struct Use(Arc<Held>);

impl Use {
    pub(super) fn of(held: &Arc<Held>) -> Self {
        held.uses.send_modify(|uses| *uses += 1);
        Self(held.clone())
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        self.0.uses.send_modify(|uses| *uses -= 1);
    }
}

impl std::ops::Deref for Use {
    type Target = Held;

    fn deref(&self) -> &Held {
        &self.0
    }
}
