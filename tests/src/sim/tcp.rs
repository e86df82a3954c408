//! TCP as hosts see it: connections that are made, refused or time out, bytes that take their
//! time, half-closes and resets, and buffers with a bound.
//!
//! Segments are never lost; a loss makes them late. While the way is cut they are sent again, less
//! and less often, until the sender gives up.

mod connect;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use tokio::io::ReadBuf;

use super::link::nanos;
use super::state::{Happening, HostId, SocketId, State};
use super::trace::{Action, Transport};

/// Bytes of one direction that are under way or were not read yet.
const WINDOW_BYTES: usize = 256 << 10;

/// The largest segment, in bytes.
const SEGMENT_BYTES: usize = 64 << 10;

/// The first wait before a segment is sent again; each further one is twice as long.
const RETRY_FIRST: Duration = Duration::from_millis(200);

/// The longest wait before another attempt.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// After this long without progress, the sender gives up.
const GIVE_UP: Duration = Duration::from_secs(127);

/// The sides of a connection.
pub(super) const CLIENT: usize = 0;
pub(super) const SERVER: usize = 1;

/// Where somebody listens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// A TCP address.
    Address(SocketAddr),
    /// A Unix socket.
    Path(PathBuf),
}

#[derive(Debug, Default)]
pub(super) struct Tcp {
    connections: BTreeMap<SocketId, Connection>,
    listeners: BTreeMap<SocketId, Listening>,
}

#[derive(Debug)]
struct Listening {
    host: HostId,
    place: Place,
    backlog: VecDeque<SocketId>,
    waker: Option<Waker>,
}

#[derive(Debug)]
struct Connection {
    ends: [End; 2],
    place: Place,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Connecting,
    Open,
    Failed(io::ErrorKind),
}

#[derive(Debug)]
struct End {
    host: HostId,
    local: SocketAddr,
    peer: SocketAddr,
    /// A socket of a node refers to it, or it waits to be accepted.
    held: bool,
    phase: Phase,
    received: VecDeque<Bytes>,
    received_bytes: usize,
    /// The other side's end has arrived.
    ended: bool,
    in_flight: VecDeque<Segment>,
    in_flight_bytes: usize,
    last_due: u64,
    /// This side has ended its direction.
    shut: bool,
    reset_on_close: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

#[derive(Debug)]
struct Segment {
    due: u64,
    sent: u64,
    attempts: u32,
    /// `None` is the end.
    payload: Option<Bytes>,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum TcpEvent {
    Syn {
        id: SocketId,
        sent: u64,
        attempts: u32,
    },
    SynAck {
        id: SocketId,
        sent: u64,
        attempts: u32,
    },
    Segments {
        id: SocketId,
        side: usize,
    },
    /// `side` hears that the other one has reset or refused.
    Reset {
        id: SocketId,
        side: usize,
    },
}

impl End {
    fn new(host: HostId, local: SocketAddr, peer: SocketAddr, phase: Phase) -> Self {
        Self {
            host,
            local,
            peer,
            held: false,
            phase,
            received: VecDeque::new(),
            received_bytes: 0,
            ended: false,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            last_due: 0,
            shut: false,
            reset_on_close: false,
            reader: None,
            writer: None,
        }
    }

    fn fail(&mut self, kind: io::ErrorKind, wake: &mut Vec<Waker>) {
        if !matches!(self.phase, Phase::Failed(_)) {
            self.phase = Phase::Failed(kind);
        }
        self.in_flight.clear();
        self.in_flight_bytes = 0;
        wake.extend(self.reader.take());
        wake.extend(self.writer.take());
    }
}

fn park(slot: &mut Option<Waker>, cx: &Context<'_>, discarded: &mut Vec<Waker>) {
    if slot
        .as_ref()
        .is_none_or(|waker| !waker.will_wake(cx.waker()))
    {
        discarded.extend(slot.replace(cx.waker().clone()));
    }
}

fn retry(first: Duration, attempts: u32) -> u64 {
    nanos(
        first
            .saturating_mul(2u32.saturating_pow(attempts))
            .min(RETRY_MAX),
    )
}

impl State {
    pub(super) fn tcp_event(&mut self, event: TcpEvent) {
        match event {
            TcpEvent::Syn { id, sent, attempts } => self.syn(id, sent, attempts),
            TcpEvent::SynAck { id, sent, attempts } => self.syn_ack(id, sent, attempts),
            TcpEvent::Segments { id, side } => self.segments(id, side),
            TcpEvent::Reset { id, side } => self.reset_arrives(id, side),
        }
    }

    fn link_of(&self, id: SocketId, from: usize) -> Option<(HostId, HostId)> {
        let ends = &self.tcp.connections.get(&id)?.ends;
        Some((ends[from].host, ends[1 - from].host))
    }

    fn send_control(&mut self, link: (HostId, HostId), event: TcpEvent) {
        let (now, properties) = (self.now(), self.link(link));
        let due = self.link_state(link).segment(&properties, now, 0);
        self.push_event(link, due, Happening::Tcp(event));
    }

    pub(super) fn poll_read(
        &mut self,
        (id, side): (SocketId, usize),
        cx: &Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(connection) = self.tcp.connections.get_mut(&id) else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        let end = &mut connection.ends[side];
        let mut read = 0;
        while buf.remaining() > 0
            && let Some(chunk) = end.received.front_mut()
        {
            let taken = chunk.len().min(buf.remaining());
            buf.put_slice(&chunk[..taken]);
            chunk.advance(taken);
            read += taken;
            if chunk.is_empty() {
                end.received.pop_front();
            }
        }
        if read > 0 {
            end.received_bytes -= read;
            self.wake.extend(connection.ends[1 - side].writer.take());
            return Poll::Ready(Ok(()));
        }
        if end.ended || buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if let Phase::Failed(kind) = end.phase {
            return Poll::Ready(Err(kind.into()));
        }
        park(&mut end.reader, cx, &mut self.discarded);
        Poll::Pending
    }

    pub(super) fn poll_write(
        &mut self,
        (id, side): (SocketId, usize),
        cx: &Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Some(connection) = self.tcp.connections.get_mut(&id) else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        let unread = connection.ends[1 - side].received_bytes;
        let end = &mut connection.ends[side];
        if let Phase::Failed(kind) = end.phase {
            return Poll::Ready(Err(kind.into()));
        }
        if end.shut {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let room = WINDOW_BYTES.saturating_sub(end.in_flight_bytes + unread);
        if room == 0 {
            park(&mut end.writer, cx, &mut self.discarded);
            return Poll::Pending;
        }
        let taken = bytes.len().min(room).min(SEGMENT_BYTES);
        self.send_segment(id, side, Some(Bytes::copy_from_slice(&bytes[..taken])));
        Poll::Ready(Ok(taken))
    }

    /// Ends a direction in order.
    pub(super) fn shut(&mut self, id: SocketId, side: usize) {
        let Some(connection) = self.tcp.connections.get_mut(&id) else {
            return;
        };
        let end = &mut connection.ends[side];
        if !end.shut && end.phase == Phase::Open {
            end.shut = true;
            self.send_segment(id, side, None);
        }
    }

    fn send_segment(&mut self, id: SocketId, side: usize, payload: Option<Bytes>) {
        let Some(link) = self.link_of(id, side) else {
            return;
        };
        let (now, properties) = (self.now(), self.link(link));
        let bytes = payload.as_ref().map_or(0, Bytes::len);
        let due = self.link_state(link).segment(&properties, now, bytes);
        let Some(connection) = self.tcp.connections.get_mut(&id) else {
            return;
        };
        let end = &mut connection.ends[side];
        let due = due.max(end.last_due);
        end.last_due = due;
        end.in_flight_bytes += bytes;
        end.in_flight.push_back(Segment {
            due,
            sent: now,
            attempts: 0,
            payload,
        });
        let addresses = (end.local, end.peer);
        self.record(Transport::Tcp, addresses, bytes, Action::Sent);
        self.push_event(link, due, Happening::Tcp(TcpEvent::Segments { id, side }));
    }

    /// Lets the segments from `side` arrive that are due.
    fn segments(&mut self, id: SocketId, side: usize) {
        let Some(link) = self.link_of(id, side) else {
            return;
        };
        let now = self.now();
        loop {
            let open = self.is_open(link);
            let Some(connection) = self.tcp.connections.get_mut(&id) else {
                return;
            };
            let [client, server] = &mut connection.ends;
            let (from, to) = if side == CLIENT {
                (client, server)
            } else {
                (server, client)
            };
            let Some(first) = from.in_flight.front_mut().filter(|first| first.due <= now) else {
                break;
            };
            if !open {
                if now.saturating_sub(first.sent) > nanos(GIVE_UP) {
                    return self.fail(id, side, io::ErrorKind::TimedOut);
                }
                first.due = now + retry(RETRY_FIRST, first.attempts);
                first.attempts += 1;
                let due = first.due;
                let again = TcpEvent::Segments { id, side };
                return self.push_event(link, due, Happening::Tcp(again));
            }
            let Some(segment) = from.in_flight.pop_front() else {
                break;
            };
            let bytes = segment.payload.as_ref().map_or(0, Bytes::len);
            from.in_flight_bytes -= bytes;
            let addresses = (from.local, from.peer);
            let gone = !to.held || matches!(to.phase, Phase::Failed(_));
            if gone {
                // Whoever ends in order wants no answer to its end.
                if segment.payload.is_some() {
                    self.send_control((link.1, link.0), TcpEvent::Reset { id, side });
                }
                self.record(Transport::Tcp, addresses, bytes, Action::NoSocket);
            } else {
                match segment.payload {
                    Some(payload) => {
                        to.received_bytes += bytes;
                        to.received.push_back(payload);
                    }
                    None => to.ended = true,
                }
                self.wake.extend(to.reader.take());
                self.record(Transport::Tcp, addresses, bytes, Action::Delivered);
            }
        }
        self.forget_if_done(id);
    }

    // ---- endings

    fn fail(&mut self, id: SocketId, side: usize, kind: io::ErrorKind) {
        if let Some(connection) = self.tcp.connections.get_mut(&id) {
            connection.ends[side].fail(kind, &mut self.wake);
        }
        self.forget_if_done(id);
    }

    pub(super) fn set_reset_on_close(&mut self, id: SocketId, side: usize, reset: bool) {
        if let Some(connection) = self.tcp.connections.get_mut(&id) {
            connection.ends[side].reset_on_close = reset;
        }
    }

    /// The node has dropped its socket.
    pub(super) fn close_tcp(&mut self, id: SocketId, side: usize) {
        let Some(connection) = self.tcp.connections.get_mut(&id) else {
            return;
        };
        let end = &mut connection.ends[side];
        end.held = false;
        self.discarded.extend(end.reader.take());
        self.discarded.extend(end.writer.take());
        let unread = end.received_bytes > 0;
        end.received.clear();
        end.received_bytes = 0;
        match end.phase {
            Phase::Failed(_) => {}
            // What was not read will never be: the other side must not take it for read.
            Phase::Open if !end.reset_on_close && !unread => self.shut(id, side),
            Phase::Open | Phase::Connecting => {
                end.fail(io::ErrorKind::ConnectionAborted, &mut self.wake);
                // A server that never heard of the connection need not hear of its end.
                if connection.ends[1 - side].held
                    && let Some(link) = self.link_of(id, side)
                {
                    self.send_control(link, TcpEvent::Reset { id, side: 1 - side });
                    return;
                }
            }
        }
        self.forget_if_done(id);
    }

    fn reset_arrives(&mut self, id: SocketId, side: usize) {
        let Some(link) = self.link_of(id, 1 - side) else {
            return;
        };
        if !self.is_open(link) {
            // One packet, and nobody sends it again.
            return self.forget_if_done(id);
        }
        let Some(connection) = self.tcp.connections.get_mut(&id) else {
            return;
        };
        let end = &mut connection.ends[side];
        let kind = match end.phase {
            Phase::Connecting => io::ErrorKind::ConnectionRefused,
            Phase::Open | Phase::Failed(_) => io::ErrorKind::ConnectionReset,
        };
        end.fail(kind, &mut self.wake);
        self.forget_if_done(id);
    }

    /// Connections of a killed host fail there; the other side hears nothing.
    pub(super) fn kill_tcp(&mut self, host: HostId) {
        let listeners: Vec<SocketId> = self
            .tcp
            .listeners
            .iter()
            .filter(|(_, listener)| listener.host == host)
            .map(|(id, _)| *id)
            .collect();
        for id in listeners {
            if let Some(listener) = self.tcp.listeners.remove(&id) {
                self.wake.extend(listener.waker);
                for connection in listener.backlog {
                    if let Some(connection) = self.tcp.connections.get_mut(&connection) {
                        connection.ends[SERVER].held = false;
                    }
                }
            }
        }
        let mut touched = Vec::new();
        for (id, connection) in &mut self.tcp.connections {
            for end in &mut connection.ends {
                if end.host == host {
                    end.fail(io::ErrorKind::ConnectionAborted, &mut self.wake);
                    touched.push(*id);
                }
            }
        }
        for id in touched {
            self.forget_if_done(id);
        }
    }

    fn forget_if_done(&mut self, id: SocketId) {
        let done = self.tcp.connections.get(&id).is_some_and(|connection| {
            let over = |end: &End| !end.held && end.in_flight.is_empty();
            connection.ends.iter().all(over)
        });
        if done {
            self.tcp.connections.remove(&id);
        }
    }

    pub(super) fn peer(&self, id: SocketId, side: usize) -> Option<SocketAddr> {
        let end = &self.tcp.connections.get(&id)?.ends[side];
        (end.peer.port() != 0).then_some(end.peer)
    }
}
