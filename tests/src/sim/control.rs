//! What a scenario does to the network.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::balancer::{Balancer, Balancing};
use super::dns::Answer;
use super::link::Link;
use super::nat::{Nat, NatConfig};
use super::network::SimNet;
use super::state::{BalancerId, HostId, NatId};
use super::trace::{Action, Record, Transport};

/// Hosts, NATs and balancers are numbered through in networks of their own.
fn numbered(base: [u8; 4], number: usize) -> IpAddr {
    let base = u32::from(Ipv4Addr::from(base));
    let number = u32::try_from(number + 1).unwrap_or(1);
    Ipv4Addr::from(base + number).into()
}

impl SimNet {
    /// Adds a host with an IPv4 and an IPv6 address that everybody can reach.
    #[must_use]
    pub fn add_host(&self, name: &str) -> HostId {
        self.with(|state| {
            let number = state.hosts.len();
            let low = u16::try_from(number + 1).unwrap_or(u16::MAX);
            let v6 = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, low);
            let addresses = vec![numbered([10, 0, 0, 0], number), v6.into()];
            state.add_host(name, addresses, None)
        })
    }

    /// Adds a host with an IPv4 address that only hosts behind the same NAT can reach.
    #[must_use]
    pub fn add_host_behind(&self, name: &str, nat: NatId) -> HostId {
        self.with(|state| {
            let address = numbered([172, 16, 0, 0], state.hosts.len());
            state.add_host(name, vec![address], Some(nat))
        })
    }

    /// Adds a NAT with a public address of its own.
    #[must_use]
    pub fn add_nat(&self, config: NatConfig) -> NatId {
        self.with(|state| {
            let public = numbered([198, 18, 0, 0], state.nats.len());
            state.add_nat(Nat::new(config, public), public)
        })
    }

    /// Adds a balancer without backends; its virtual address has this port.
    #[must_use]
    pub fn add_balancer(&self, port: u16, policy: Balancing) -> BalancerId {
        self.with(|state| {
            let id = BalancerId(state.balancers.len());
            let address = SocketAddr::new(numbered([198, 19, 0, 0], id.0), port);
            let seed = state.seed;
            state.balancers.push(Balancer::new(address, policy, seed));
            id
        })
    }

    /// The name of a host.
    #[must_use]
    pub fn name(&self, host: impl Into<HostId>) -> String {
        self.with(|state| state.host(host.into()).name.clone())
    }

    /// The first address of a host, an IPv4 one.
    #[must_use]
    pub fn ip(&self, host: impl Into<HostId>) -> IpAddr {
        self.ips(host)
            .first()
            .copied()
            .unwrap_or(Ipv4Addr::UNSPECIFIED.into())
    }

    /// All addresses of a host.
    #[must_use]
    pub fn ips(&self, host: impl Into<HostId>) -> Vec<IpAddr> {
        self.with(|state| state.host(host.into()).addresses.clone())
    }

    // ---- links

    /// What all links are like that were not set one by one.
    pub fn set_default_link(&self, link: Link) {
        self.with(|state| state.default_link = link);
    }

    /// What one direction is like.
    pub fn set_link(&self, from: impl Into<HostId>, to: impl Into<HostId>, link: Link) {
        self.with(|state| state.links.insert((from.into(), to.into()), link));
    }

    /// What both directions are like.
    pub fn set_path(&self, a: impl Into<HostId>, b: impl Into<HostId>, link: Link) {
        let (a, b) = (a.into(), b.into());
        self.set_link(a, b, link.clone());
        self.set_link(b, a, link);
    }

    /// Cuts both directions; what is under way is lost.
    pub fn cut(&self, a: impl Into<HostId>, b: impl Into<HostId>) {
        let (a, b) = (a.into(), b.into());
        self.with(|state| state.cuts.extend([(a, b), (b, a)]));
    }

    /// Cuts one direction.
    pub fn cut_one_way(&self, from: impl Into<HostId>, to: impl Into<HostId>) {
        self.with(|state| state.cuts.insert((from.into(), to.into())));
    }

    /// Restores both directions.
    pub fn heal(&self, a: impl Into<HostId>, b: impl Into<HostId>) {
        let (a, b) = (a.into(), b.into());
        self.with(|state| {
            state.cuts.remove(&(a, b));
            state.cuts.remove(&(b, a));
        });
    }

    /// Cuts a host off from all others, or no more.
    pub fn set_isolated(&self, host: impl Into<HostId>, isolated: bool) {
        self.with(|state| state.host(host.into()).isolated = isolated);
    }

    /// Restores everything that was cut.
    pub fn heal_all(&self) {
        self.with(|state| {
            state.cuts.clear();
            for host in &mut state.hosts {
                host.isolated = false;
            }
        });
    }

    // ---- hosts

    /// Takes a host down: its sockets vanish, nobody is told, packets to it are lost.
    pub fn kill(&self, host: impl Into<HostId>) {
        self.with(|state| state.kill(host.into()));
    }

    /// Brings a killed host up again, without a socket; [`SimNet::network`] gives its new handle.
    pub fn revive(&self, host: impl Into<HostId>) {
        self.with(|state| state.host(host.into()).up = true);
    }

    /// Stops a host: it sends nothing, and what comes to it waits.
    pub fn freeze(&self, host: impl Into<HostId>) {
        self.with(|state| state.host(host.into()).frozen = true);
    }

    /// Lets a frozen host go on.
    pub fn thaw(&self, host: impl Into<HostId>) {
        self.with(|state| state.thaw(host.into()));
    }

    // ---- NATs and balancers

    /// Forgets all mappings: the next packet outwards gets a new port, and what comes for an old
    /// one is lost.
    pub fn flush_nat(&self, nat: NatId) {
        self.with(|state| state.nats[nat.0].flush());
    }

    /// Gives each mapping another port.
    pub fn rebind_nat(&self, nat: NatId) {
        self.with(|state| {
            let now = state.now();
            state.nats[nat.0].rebind(now);
        });
    }

    /// How many mappings are open.
    #[must_use]
    pub fn nat_mappings(&self, nat: NatId) -> usize {
        self.with(|state| {
            let now = state.now();
            state.nats[nat.0].len(now)
        })
    }

    /// The virtual address of a balancer.
    #[must_use]
    pub fn balancer_address(&self, balancer: BalancerId) -> SocketAddr {
        self.with(|state| state.balancers[balancer.0].address)
    }

    /// Adds a backend.
    pub fn add_backend(&self, balancer: BalancerId, backend: SocketAddr) {
        self.with(|state| state.balancers[balancer.0].add(backend));
    }

    /// Removes a backend; its flows go to others.
    pub fn remove_backend(&self, balancer: BalancerId, backend: SocketAddr) {
        self.with(|state| state.balancers[balancer.0].remove(backend));
    }

    /// An unhealthy backend keeps its flows and gets no new ones.
    pub fn set_healthy(&self, balancer: BalancerId, backend: SocketAddr, healthy: bool) {
        self.with(|state| state.balancers[balancer.0].set_healthy(backend, healthy));
    }

    /// The flows that a balancer remembers: the client's address and the backend. Two dials from one
    /// socket are one flow.
    #[must_use]
    pub fn balancer_flows(&self, balancer: BalancerId) -> Vec<(SocketAddr, SocketAddr)> {
        self.with(|state| state.balancers[balancer.0].flows())
    }

    // ---- names

    /// What the resolver answers to a name, from now on.
    pub fn set_name(&self, name: &str, answer: Answer) {
        self.with(|state| state.names.set(name, answer));
    }

    /// How long the resolver takes.
    pub fn set_resolver_delay(&self, delay: Duration) {
        self.with(|state| state.names.delay = delay);
    }

    /// How often a name was asked for.
    #[must_use]
    pub fn questions(&self, name: &str) -> usize {
        self.with(|state| state.names.questions(name))
    }

    // ---- trace

    /// A hash of all that the network did so far: time, addresses, size and fate of each packet.
    #[must_use]
    pub fn trace_hash(&self) -> u64 {
        self.with(|state| state.trace.hash())
    }

    /// How many packets met with this fate.
    #[must_use]
    pub fn count(&self, transport: Transport, action: Action) -> u64 {
        self.with(|state| state.trace.count(transport, action))
    }

    /// How many packets met with which fate.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<(Transport, Action), u64> {
        self.with(|state| state.trace.counts())
    }

    /// The last few packets.
    #[must_use]
    pub fn recent(&self) -> Vec<Record> {
        self.with(|state| state.trace.recent())
    }
}
