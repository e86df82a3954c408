//! Datagrams: sockets, and the way from one to the other.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::task::Waker;

use bytes::Bytes;
use quinn::udp::EcnCodepoint;

use super::balancer::mix;
use super::state::{Happening, HostId, SocketId, State};
use super::trace::{Action, Transport};

/// Bytes of datagrams that one socket, or a frozen host, keeps; further ones are dropped.
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;

#[derive(Debug)]
pub(super) struct Udp {
    pub(super) host: HostId,
    pub(super) local: SocketAddr,
    shared: bool,
    pub(super) queue: VecDeque<Datagram>,
    pub(super) queue_bytes: usize,
    pub(super) waker: Option<Waker>,
}

#[derive(Debug)]
pub(super) struct Datagram {
    from_host: HostId,
    to_host: HostId,
    /// The source that the receiver sees.
    pub(super) from: SocketAddr,
    /// The receiver's own address.
    pub(super) to: SocketAddr,
    pub(super) ecn: Option<EcnCodepoint>,
    pub(super) payload: Bytes,
    /// As the sender wrote it, for the trace.
    sent: (SocketAddr, SocketAddr),
}

impl State {
    /// Binds a UDP socket; `None` when the port is taken.
    pub(super) fn bind_udp(
        &mut self,
        host: HostId,
        mut local: SocketAddr,
        shared: bool,
    ) -> Option<(SocketId, SocketAddr)> {
        if local.port() == 0 {
            local.set_port(self.host(host).ephemeral_port());
        }
        let sockets = &self.udp;
        let taken = self.hosts[host.0]
            .ports
            .get(&local.port())
            .into_iter()
            .flatten()
            .filter_map(|id| sockets.get(id))
            .any(|other| {
                let clash = other.local.ip() == local.ip()
                    || other.local.ip().is_unspecified()
                    || local.ip().is_unspecified();
                clash && !(shared && other.shared)
            });
        if taken {
            return None;
        }
        let id = self.socket_id();
        self.host(host)
            .ports
            .entry(local.port())
            .or_default()
            .push(id);
        self.udp.insert(
            id,
            Udp {
                host,
                local,
                shared,
                queue: VecDeque::new(),
                queue_bytes: 0,
                waker: None,
            },
        );
        Some((id, local))
    }

    pub(super) fn close_udp(&mut self, id: SocketId) {
        let Some(socket) = self.udp.remove(&id) else {
            return;
        };
        let ports = &mut self.host(socket.host).ports;
        if let Some(sockets) = ports.get_mut(&socket.local.port()) {
            sockets.retain(|other| *other != id);
            if sockets.is_empty() {
                ports.remove(&socket.local.port());
            }
        }
        self.discarded.extend(socket.waker);
    }

    pub(super) fn send_datagram(
        &mut self,
        socket: SocketId,
        to: SocketAddr,
        source: Option<IpAddr>,
        ecn: Option<EcnCodepoint>,
        payload: &[u8],
    ) {
        // A socket of a killed host sends nothing.
        let Some(udp) = self.udp.get(&socket) else {
            return;
        };
        let (host, local) = (udp.host, udp.local);
        let to = SocketAddr::new(to.ip().to_canonical(), to.port());
        let own = &self.hosts[host.0];
        let ip = source
            .map(|ip| ip.to_canonical())
            .filter(|ip| own.owns(*ip) && !ip.is_unspecified())
            .or_else(|| (!local.ip().is_unspecified()).then(|| local.ip()))
            .or_else(|| own.source(to.ip()));
        let from = SocketAddr::new(ip.unwrap_or(local.ip()), local.port());
        let sent = (from, to);
        let bytes = payload.len();
        if own.frozen {
            return self.record(Transport::Udp, sent, bytes, Action::Frozen);
        }
        if ip.is_none() {
            return self.record(Transport::Udp, sent, bytes, Action::NoRoute);
        }
        let route = match self.route(host, from, to) {
            Ok(route) => route,
            Err(action) => return self.record(Transport::Udp, sent, bytes, action),
        };
        let link = (host, route.to_host);
        if self.is_cut(link) {
            return self.record(Transport::Udp, sent, bytes, Action::Cut);
        }
        let now = self.now();
        let properties = self.link(link);
        let (arrival, duplicate) = match self.link_state(link).datagram(&properties, now, bytes) {
            Ok(arrivals) => arrivals,
            Err(action) => return self.record(Transport::Udp, sent, bytes, action),
        };
        self.record(Transport::Udp, sent, bytes, Action::Sent);
        let payload = Bytes::copy_from_slice(payload);
        for due in [Some(arrival), duplicate].into_iter().flatten() {
            let datagram = Datagram {
                from_host: host,
                to_host: route.to_host,
                from: route.from,
                to: route.to,
                ecn,
                payload: payload.clone(),
                sent,
            };
            self.push_event(link, due, Happening::Datagram(Box::new(datagram)));
        }
    }

    pub(super) fn arrive(&mut self, datagram: Datagram) {
        let (sent, bytes) = (datagram.sent, datagram.payload.len());
        if self.is_cut((datagram.from_host, datagram.to_host)) {
            return self.record(Transport::Udp, sent, bytes, Action::Cut);
        }
        let host = &mut self.hosts[datagram.to_host.0];
        if !host.up {
            return self.record(Transport::Udp, sent, bytes, Action::Down);
        }
        if host.frozen {
            if host.held_bytes + bytes > RECEIVE_BUFFER_BYTES {
                return self.record(Transport::Udp, sent, bytes, Action::Frozen);
            }
            host.held_bytes += bytes;
            host.held.push_back(datagram);
            return;
        }
        let mut matching: Vec<SocketId> = Vec::new();
        for id in host.ports.get(&datagram.to.port()).into_iter().flatten() {
            let Some(socket) = self.udp.get(id) else {
                continue;
            };
            let bound = socket.local.ip();
            let fits = bound == datagram.to.ip()
                || (bound.is_unspecified() && (bound.is_ipv6() || datagram.to.is_ipv4()));
            if fits {
                matching.push(*id);
            }
        }
        // Several sockets share an address: the sender's chooses, as the kernel does.
        let choice = match matching.len() {
            0 => return self.record(Transport::Udp, sent, bytes, Action::NoSocket),
            1 => 0,
            several => {
                let text = datagram.from.to_string();
                let hash = text
                    .bytes()
                    .fold(self.seed, |hash, byte| mix(hash ^ u64::from(byte)));
                usize::try_from(hash % several as u64).unwrap_or(0)
            }
        };
        let Some(socket) = self.udp.get_mut(&matching[choice]) else {
            return;
        };
        if socket.queue_bytes + bytes > RECEIVE_BUFFER_BYTES {
            return self.record(Transport::Udp, sent, bytes, Action::BufferFull);
        }
        socket.queue_bytes += bytes;
        socket.queue.push_back(datagram);
        self.wake.extend(socket.waker.take());
        self.record(Transport::Udp, sent, bytes, Action::Delivered);
    }
}
