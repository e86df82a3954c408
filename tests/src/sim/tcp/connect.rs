//! How connections are made, refused, and time out.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::task::{Context, Poll};
use std::time::Duration;

use super::{CLIENT, Connection, End, GIVE_UP, Listening, Phase, Place, SERVER, TcpEvent};
use super::{park, retry};
use crate::sim::link::nanos;
use crate::sim::state::{Happening, HostId, SocketId, State};
use crate::sim::trace::Transport;

/// Connections that wait to be accepted; further ones are left to try again.
const BACKLOG: usize = 1024;

/// The first wait before a SYN is sent again.
const SYN_RETRY_FIRST: Duration = Duration::from_secs(1);

impl State {
    /// Listens; `None` when the place is taken.
    pub(in crate::sim) fn listen(
        &mut self,
        host: HostId,
        mut place: Place,
    ) -> Option<(SocketId, Place)> {
        if let Place::Address(address) = &mut place
            && address.port() == 0
        {
            address.set_port(self.host(host).ephemeral_port());
        }
        let taken = self
            .tcp
            .listeners
            .values()
            .any(|other| other.host == host && covers(&other.place, &place));
        if taken {
            return None;
        }
        let id = self.socket_id();
        self.tcp.listeners.insert(
            id,
            Listening {
                host,
                place: place.clone(),
                backlog: VecDeque::new(),
                waker: None,
            },
        );
        Some((id, place))
    }

    pub(in crate::sim) fn close_listener(&mut self, id: SocketId) {
        let Some(listener) = self.tcp.listeners.remove(&id) else {
            return;
        };
        self.discarded.extend(listener.waker);
        for connection in listener.backlog {
            self.set_reset_on_close(connection, SERVER, true);
            self.close_tcp(connection, SERVER);
        }
    }

    pub(in crate::sim) fn poll_accept(
        &mut self,
        id: SocketId,
        cx: &Context<'_>,
    ) -> Poll<io::Result<SocketId>> {
        let Some(listener) = self.tcp.listeners.get_mut(&id) else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        match listener.backlog.pop_front() {
            Some(connection) => Poll::Ready(Ok(connection)),
            None => {
                park(&mut listener.waker, cx, &mut self.discarded);
                Poll::Pending
            }
        }
    }

    /// Starts to connect; [`State::poll_connected`] tells how it ends.
    pub(in crate::sim) fn connect(&mut self, host: HostId, place: Place) -> io::Result<SocketId> {
        let unreachable = || io::Error::from(io::ErrorKind::HostUnreachable);
        let (to_host, client, server) = match &place {
            Place::Address(to) => {
                let to = SocketAddr::new(to.ip().to_canonical(), to.port());
                let own = self.host(host);
                let ip = own.source(to.ip()).ok_or_else(unreachable)?;
                let from = SocketAddr::new(ip, own.ephemeral_port());
                let route = match self.route(host, from, to) {
                    Ok(route) => route,
                    Err(action) => {
                        self.record(Transport::Tcp, (from, to), 0, action);
                        return Err(unreachable());
                    }
                };
                let client = End::new(host, from, to, Phase::Connecting);
                let server = End::new(route.to_host, route.to, route.from, Phase::Connecting);
                (route.to_host, client, server)
            }
            Place::Path(_) => {
                let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
                let end = || End::new(host, nowhere, nowhere, Phase::Connecting);
                (host, end(), end())
            }
        };
        let id = self.socket_id();
        let place = match place {
            Place::Address(_) => Place::Address(server.local),
            path @ Place::Path(_) => path,
        };
        let mut ends = [client, server];
        ends[CLIENT].held = true;
        self.tcp.connections.insert(id, Connection { ends, place });
        let (link, sent) = ((host, to_host), self.now());
        self.send_control(
            link,
            TcpEvent::Syn {
                id,
                sent,
                attempts: 0,
            },
        );
        Ok(id)
    }

    pub(in crate::sim) fn poll_connected(
        &mut self,
        id: SocketId,
        cx: &Context<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(connection) = self.tcp.connections.get_mut(&id) else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        let end = &mut connection.ends[CLIENT];
        match end.phase {
            Phase::Open => Poll::Ready(Ok(())),
            Phase::Failed(kind) => Poll::Ready(Err(kind.into())),
            Phase::Connecting => {
                park(&mut end.writer, cx, &mut self.discarded);
                Poll::Pending
            }
        }
    }

    pub(super) fn syn(&mut self, id: SocketId, sent: u64, attempts: u32) {
        let Some(link) = self.link_of(id, CLIENT) else {
            return;
        };
        let now = self.now();
        let place = match self.tcp.connections.get(&id) {
            Some(connection) if connection.ends[CLIENT].held => connection.place.clone(),
            Some(_) | None => return,
        };
        let open = self.is_open(link);
        let listener = self
            .tcp
            .listeners
            .values_mut()
            .find(|listener| listener.host == link.1 && covers(&listener.place, &place));
        let full = listener
            .as_ref()
            .is_some_and(|listener| listener.backlog.len() >= BACKLOG);
        if full || !open {
            if now.saturating_sub(sent) > nanos(GIVE_UP) {
                self.fail(id, CLIENT, io::ErrorKind::TimedOut);
                return;
            }
            let due = now + retry(SYN_RETRY_FIRST, attempts);
            let attempts = attempts + 1;
            self.push_event(
                link,
                due,
                Happening::Tcp(TcpEvent::Syn { id, sent, attempts }),
            );
            return;
        }
        match listener {
            Some(listener) => {
                listener.backlog.push_back(id);
                self.wake.extend(listener.waker.take());
                if let Some(connection) = self.tcp.connections.get_mut(&id) {
                    connection.ends[SERVER].held = true;
                    connection.ends[SERVER].phase = Phase::Open;
                }
                let back = (link.1, link.0);
                self.send_control(
                    back,
                    TcpEvent::SynAck {
                        id,
                        sent: now,
                        attempts: 0,
                    },
                );
            }
            None => {
                let back = (link.1, link.0);
                self.send_control(back, TcpEvent::Reset { id, side: CLIENT });
            }
        }
    }

    pub(super) fn syn_ack(&mut self, id: SocketId, sent: u64, attempts: u32) {
        let Some(link) = self.link_of(id, SERVER) else {
            return;
        };
        let now = self.now();
        if !self.is_open(link) {
            if now.saturating_sub(sent) > nanos(GIVE_UP) {
                self.fail(id, SERVER, io::ErrorKind::TimedOut);
                self.fail(id, CLIENT, io::ErrorKind::TimedOut);
                return;
            }
            let due = now + retry(SYN_RETRY_FIRST, attempts);
            let attempts = attempts + 1;
            self.push_event(
                link,
                due,
                Happening::Tcp(TcpEvent::SynAck { id, sent, attempts }),
            );
            return;
        }
        let Some(connection) = self.tcp.connections.get_mut(&id) else {
            return;
        };
        let end = &mut connection.ends[CLIENT];
        if end.phase == Phase::Connecting {
            end.phase = Phase::Open;
            self.wake.extend(end.writer.take());
        }
    }
}

/// Whether a listener at `listening` takes connections to `place`.
fn covers(listening: &Place, place: &Place) -> bool {
    match (listening, place) {
        (Place::Address(listening), Place::Address(place)) => {
            let any = listening.ip().is_unspecified()
                && (listening.is_ipv6() || place.is_ipv4() || place.ip().is_unspecified());
            listening.port() == place.port()
                && (any || listening.ip() == place.ip() || place.ip().is_unspecified())
        }
        (Place::Path(listening), Place::Path(place)) => listening == place,
        (Place::Address(_), Place::Path(_)) | (Place::Path(_), Place::Address(_)) => false,
    }
}
