//! The state of the simulated network: hosts, ways between them, and what is under way.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::task::Waker;

use tokio::time::Instant;

use super::balancer::Balancer;
use super::datagram::{Datagram, Udp};
use super::dns::Names;
use super::link::{Link, LinkState, nanos};
use super::nat::Nat;
use super::tcp::{Tcp, TcpEvent};
use super::trace::{Action, Record, Trace, Transport};

/// The first ephemeral port.
const FIRST_PORT: u16 = 32_768;

/// A host of the simulated network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostId(pub(super) usize);

impl HostId {
    pub(super) fn number(self) -> u64 {
        self.0 as u64
    }
}

/// A NAT of the simulated network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NatId(pub(super) usize);

/// A balancer of the simulated network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BalancerId(pub(super) usize);

/// A UDP or TCP socket, connection or listener.
pub(super) type SocketId = u64;

#[derive(Debug)]
pub(super) struct Host {
    pub(super) name: String,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) nat: Option<NatId>,
    pub(super) up: bool,
    pub(super) frozen: bool,
    pub(super) isolated: bool,
    /// How often it was killed: sockets of a former life are of no more use.
    pub(super) life: u64,
    next_port: u16,
    pub(super) ports: BTreeMap<u16, Vec<SocketId>>,
    pub(super) held: VecDeque<Datagram>,
    pub(super) held_bytes: usize,
}

impl Host {
    /// Its address for a packet to `to`.
    pub(super) fn source(&self, to: IpAddr) -> Option<IpAddr> {
        if to.is_loopback() {
            return Some(if to.is_ipv4() {
                Ipv4Addr::LOCALHOST.into()
            } else {
                Ipv6Addr::LOCALHOST.into()
            });
        }
        self.addresses
            .iter()
            .copied()
            .find(|address| address.is_ipv4() == to.is_ipv4())
    }

    /// Whether a socket may be bound to `ip`.
    pub(super) fn owns(&self, ip: IpAddr) -> bool {
        ip.is_unspecified() || ip.is_loopback() || self.addresses.contains(&ip)
    }

    pub(super) fn ephemeral_port(&mut self) -> u16 {
        loop {
            let port = self.next_port;
            self.next_port = port.checked_add(1).unwrap_or(FIRST_PORT);
            if !self.ports.contains_key(&port) {
                return port;
            }
        }
    }
}

#[derive(Debug)]
pub(super) enum Happening {
    Datagram(Box<Datagram>),
    Tcp(TcpEvent),
}

/// Something that is due at a time. Those of one time come in an order that does not depend on
/// which host was first to cause them.
#[derive(Debug)]
struct Event {
    due: u64,
    link: (HostId, HostId),
    number: u64,
    what: Happening,
}

impl Event {
    fn key(&self) -> (u64, (HostId, HostId), u64) {
        (self.due, self.link, self.number)
    }
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Event {}

impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Event {
    /// The earliest is the greatest, as `BinaryHeap` gives the greatest first.
    fn cmp(&self, other: &Self) -> Ordering {
        other.key().cmp(&self.key())
    }
}

#[derive(Debug, Clone, Copy)]
enum Owner {
    Host(HostId),
    Nat(NatId),
}

/// Where a packet goes, and how it looks there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Route {
    pub(super) to_host: HostId,
    /// The source that the receiver sees.
    pub(super) from: SocketAddr,
    /// The receiver's own address.
    pub(super) to: SocketAddr,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) seed: u64,
    start: Instant,
    pub(super) hosts: Vec<Host>,
    owners: BTreeMap<IpAddr, Owner>,
    pub(super) nats: Vec<Nat>,
    pub(super) balancers: Vec<Balancer>,
    pub(super) names: Names,
    pub(super) default_link: Link,
    pub(super) links: BTreeMap<(HostId, HostId), Link>,
    link_states: BTreeMap<(HostId, HostId), LinkState>,
    pub(super) cuts: BTreeSet<(HostId, HostId)>,
    events: BinaryHeap<Event>,
    /// The head of the events has changed: the driver must look again.
    pub(super) sooner: bool,
    pub(super) udp: BTreeMap<SocketId, Udp>,
    pub(super) tcp: Tcp,
    next_socket: SocketId,
    pub(super) trace: Trace,
    /// Wakers to wake, and to drop, when the lock is released: either may run a destructor that
    /// comes back here.
    pub(super) wake: Vec<Waker>,
    pub(super) discarded: Vec<Waker>,
}

impl State {
    pub(super) fn new(seed: u64, start: Instant) -> Self {
        Self {
            seed,
            start,
            hosts: Vec::new(),
            owners: BTreeMap::new(),
            nats: Vec::new(),
            balancers: Vec::new(),
            names: Names::default(),
            default_link: Link::default(),
            links: BTreeMap::new(),
            link_states: BTreeMap::new(),
            cuts: BTreeSet::new(),
            events: BinaryHeap::new(),
            sooner: false,
            udp: BTreeMap::new(),
            tcp: Tcp::default(),
            next_socket: 1,
            trace: Trace::default(),
            wake: Vec::new(),
            discarded: Vec::new(),
        }
    }

    /// Virtual nanoseconds since the world began.
    pub(super) fn now(&self) -> u64 {
        nanos(Instant::now().saturating_duration_since(self.start))
    }

    pub(super) fn host(&mut self, host: HostId) -> &mut Host {
        &mut self.hosts[host.0]
    }

    pub(super) fn socket_id(&mut self) -> SocketId {
        self.next_socket += 1;
        self.next_socket
    }

    pub(super) fn add_host(
        &mut self,
        name: &str,
        addresses: Vec<IpAddr>,
        nat: Option<NatId>,
    ) -> HostId {
        let host = HostId(self.hosts.len());
        for address in &addresses {
            self.owners.insert(*address, Owner::Host(host));
        }
        self.hosts.push(Host {
            name: name.to_owned(),
            addresses,
            nat,
            up: true,
            frozen: false,
            isolated: false,
            life: 0,
            next_port: FIRST_PORT,
            ports: BTreeMap::new(),
            held: VecDeque::new(),
            held_bytes: 0,
        });
        host
    }

    pub(super) fn add_nat(&mut self, nat: Nat, public: IpAddr) -> NatId {
        let id = NatId(self.nats.len());
        self.owners.insert(public, Owner::Nat(id));
        self.nats.push(nat);
        id
    }

    // ---- events

    pub(super) fn next_due(&self) -> Option<Instant> {
        let due = self.events.peek()?.due;
        Some(self.start + std::time::Duration::from_nanos(due))
    }

    pub(super) fn push_event(&mut self, link: (HostId, HostId), due: u64, what: Happening) {
        let number = self.link_state(link).number();
        if self.events.peek().is_none_or(|next| due < next.due) {
            self.sooner = true;
        }
        self.events.push(Event {
            due,
            link,
            number,
            what,
        });
    }

    /// Lets everything happen that is due.
    pub(super) fn advance(&mut self) {
        let now = self.now();
        while self.events.peek().is_some_and(|next| next.due <= now) {
            let Some(event) = self.events.pop() else {
                break;
            };
            match event.what {
                Happening::Datagram(datagram) => self.arrive(*datagram),
                Happening::Tcp(what) => self.tcp_event(what),
            }
        }
        self.sooner = false;
    }

    // ---- links

    pub(super) fn link_state(&mut self, link: (HostId, HostId)) -> &mut LinkState {
        let seed = self.seed;
        self.link_states
            .entry(link)
            .or_insert_with(|| LinkState::new(seed, link.0, link.1))
    }

    pub(super) fn link(&self, (from, to): (HostId, HostId)) -> Link {
        if from == to {
            return Link::local();
        }
        self.links
            .get(&(from, to))
            .unwrap_or(&self.default_link)
            .clone()
    }

    pub(super) fn is_cut(&self, (from, to): (HostId, HostId)) -> bool {
        from != to
            && (self.cuts.contains(&(from, to))
                || self.hosts[from.0].isolated
                || self.hosts[to.0].isolated)
    }

    /// Whether packets pass now.
    pub(super) fn is_open(&self, (from, to): (HostId, HostId)) -> bool {
        let works = |host: HostId| self.hosts[host.0].up && !self.hosts[host.0].frozen;
        works(from) && works(to) && !self.is_cut((from, to))
    }

    pub(super) fn route(
        &mut self,
        from_host: HostId,
        from: SocketAddr,
        to: SocketAddr,
    ) -> Result<Route, Action> {
        let now = self.now();
        if to.ip().is_loopback() || self.hosts[from_host.0].addresses.contains(&to.ip()) {
            return Ok(Route {
                to_host: from_host,
                from,
                to,
            });
        }
        let mut seen = from;
        let own_nat = self.hosts[from_host.0].nat;
        if let Some(nat) = own_nat {
            let is_inside = match self.owners.get(&to.ip()) {
                Some(Owner::Host(host)) => self.hosts[host.0].nat == own_nat,
                Some(Owner::Nat(_)) | None => false,
            };
            if !is_inside {
                seen = self.nats[nat.0]
                    .outward(from, to, now)
                    .ok_or(Action::NatClosed)?;
            }
        }
        for balancer in &mut self.balancers {
            if balancer.owns(seen, to, now) {
                seen = balancer.address;
                break;
            }
        }
        let balancer = self
            .balancers
            .iter_mut()
            .find(|balancer| balancer.address == to);
        let to = match balancer {
            Some(balancer) => balancer.choose(seen, now).ok_or(Action::NoBackend)?,
            None => to,
        };
        match self.owners.get(&to.ip()).copied() {
            Some(Owner::Host(host)) => {
                let nat = self.hosts[host.0].nat;
                if nat.is_some() && nat != own_nat {
                    return Err(Action::NoRoute);
                }
                Ok(Route {
                    to_host: host,
                    from: seen,
                    to,
                })
            }
            Some(Owner::Nat(nat)) => {
                let inside = self.nats[nat.0]
                    .inward(to.port(), seen, now)
                    .ok_or(Action::NatClosed)?;
                match self.owners.get(&inside.ip()) {
                    Some(Owner::Host(host)) => Ok(Route {
                        to_host: *host,
                        from: seen,
                        to: inside,
                    }),
                    Some(Owner::Nat(_)) | None => Err(Action::NoRoute),
                }
            }
            None => Err(Action::NoRoute),
        }
    }

    pub(super) fn record(
        &mut self,
        transport: Transport,
        (from, to): (SocketAddr, SocketAddr),
        bytes: usize,
        action: Action,
    ) {
        let at = self.now();
        self.trace.push(Record {
            at,
            from,
            to,
            bytes,
            transport,
            action,
        });
    }

    // ---- hosts

    /// Takes a host down: all its sockets vanish, and nobody is told.
    pub(super) fn kill(&mut self, host: HostId) {
        let down = self.host(host);
        down.up = false;
        down.frozen = false;
        down.life += 1;
        down.ports.clear();
        down.held.clear();
        down.held_bytes = 0;
        let gone: Vec<SocketId> = self
            .udp
            .iter()
            .filter(|(_, socket)| socket.host == host)
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            if let Some(socket) = self.udp.remove(&id) {
                self.wake.extend(socket.waker);
            }
        }
        self.kill_tcp(host);
    }

    /// Lets a frozen host go on: what had arrived meanwhile is there.
    pub(super) fn thaw(&mut self, host: HostId) {
        let thawed = self.host(host);
        thawed.frozen = false;
        thawed.held_bytes = 0;
        for datagram in std::mem::take(&mut thawed.held) {
            self.arrive(datagram);
        }
    }
}
