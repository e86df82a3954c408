//! Devices that stand between hosts and the network: address translation and balancing.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::link::nanos;

/// The first port that a NAT hands out.
const FIRST_PORT: u16 = 20_000;

/// How a NAT names what is behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mapping {
    /// One port per source and destination, open to that destination alone ("symmetric").
    PerDestination,
    /// One port per source, open to everybody ("full cone").
    PerSource,
}

/// A NAT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NatConfig {
    /// How it names what is behind it.
    pub mapping: Mapping,
    /// A mapping through which nothing was sent outwards for this long is forgotten.
    pub idle_timeout: Duration,
}

impl Default for NatConfig {
    fn default() -> Self {
        Self {
            mapping: Mapping::PerDestination,
            idle_timeout: Duration::from_secs(30),
        }
    }
}

type Key = (SocketAddr, Option<SocketAddr>);

#[derive(Debug)]
pub(super) struct Nat {
    config: NatConfig,
    public: IpAddr,
    next_port: u16,
    mappings: BTreeMap<Key, Open>,
    by_port: BTreeMap<u16, Key>,
}

#[derive(Debug, Clone, Copy)]
struct Open {
    port: u16,
    last_used: u64,
}

impl Nat {
    pub(super) fn new(config: NatConfig, public: IpAddr) -> Self {
        Self {
            config,
            public,
            next_port: FIRST_PORT,
            mappings: BTreeMap::new(),
            by_port: BTreeMap::new(),
        }
    }

    /// The source that the world sees. `None` when no port is left.
    pub(super) fn outward(
        &mut self,
        inside: SocketAddr,
        to: SocketAddr,
        now: u64,
    ) -> Option<SocketAddr> {
        let key = match self.config.mapping {
            Mapping::PerDestination => (inside, Some(to)),
            Mapping::PerSource => (inside, None),
        };
        let idle = nanos(self.config.idle_timeout);
        let live = self
            .mappings
            .get(&key)
            .filter(|open| open.last_used + idle > now)
            .map(|open| open.port);
        let port = match live {
            Some(port) => port,
            None => {
                self.forget(key);
                self.free_port(now)?
            }
        };
        let last_used = now;
        self.mappings.insert(key, Open { port, last_used });
        self.by_port.insert(port, key);
        Some(SocketAddr::new(self.public, port))
    }

    /// Who is behind `port`, for a packet from `from`.
    pub(super) fn inward(&self, port: u16, from: SocketAddr, now: u64) -> Option<SocketAddr> {
        let key = self.by_port.get(&port)?;
        let open = self.mappings.get(key)?;
        let is_open = open.last_used + nanos(self.config.idle_timeout) > now
            && key.1.is_none_or(|remote| remote == from);
        is_open.then_some(key.0)
    }

    /// Forgets all mappings: the next packet outwards gets a new port.
    pub(super) fn flush(&mut self) {
        self.mappings.clear();
        self.by_port.clear();
    }

    /// Gives each mapping another port at once.
    pub(super) fn rebind(&mut self, now: u64) {
        let before = std::mem::take(&mut self.mappings);
        let former_ports = std::mem::take(&mut self.by_port);
        for (key, open) in before {
            let mut port = self.free_port(now);
            // A port of before would be no change to whoever had it.
            while port.is_some_and(|port| former_ports.contains_key(&port)) {
                port = self.free_port(now);
            }
            if let Some(port) = port {
                self.mappings.insert(key, Open { port, ..open });
                self.by_port.insert(port, key);
            }
        }
    }

    /// Mappings that are open.
    pub(super) fn len(&self, now: u64) -> usize {
        let idle = nanos(self.config.idle_timeout);
        let open = |open: &&Open| open.last_used + idle > now;
        self.mappings.values().filter(open).count()
    }

    fn forget(&mut self, key: Key) {
        if let Some(open) = self.mappings.remove(&key) {
            self.by_port.remove(&open.port);
        }
    }

    fn free_port(&mut self, now: u64) -> Option<u16> {
        let idle = nanos(self.config.idle_timeout);
        for _ in FIRST_PORT..=u16::MAX {
            let port = self.next_port;
            self.next_port = port.checked_add(1).unwrap_or(FIRST_PORT);
            match self.by_port.get(&port).copied() {
                None => return Some(port),
                Some(key) => {
                    let expired = self
                        .mappings
                        .get(&key)
                        .is_none_or(|open| open.last_used + idle <= now);
                    if expired {
                        self.forget(key);
                        return Some(port);
                    }
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_mapping_is_kept_while_it_is_used_and_open_to_its_destination_alone() {
        let mut nat = Nat::new(NatConfig::default(), "198.51.100.1".parse().unwrap());
        let (inside, to, other) = (
            address("10.0.0.1:5000"),
            address("192.0.2.1:7443"),
            address("192.0.2.2:7443"),
        );
        let public = nat.outward(inside, to, 0).unwrap();
        assert_eq!(nat.outward(inside, to, 20 * SECOND).unwrap(), public);
        assert_ne!(nat.outward(inside, other, 20 * SECOND).unwrap(), public);
        assert_eq!(nat.inward(public.port(), to, 40 * SECOND), Some(inside));
        assert_eq!(nat.inward(public.port(), other, 40 * SECOND), None);
        assert_eq!(nat.inward(public.port(), to, 50 * SECOND), None);
        assert_eq!(nat.len(50 * SECOND), 0);
        assert_ne!(nat.outward(inside, to, 50 * SECOND).unwrap(), public);
    }

    #[test]
    fn rebinding_moves_and_flushing_forgets() {
        let config = NatConfig {
            mapping: Mapping::PerSource,
            ..NatConfig::default()
        };
        let mut nat = Nat::new(config, "198.51.100.1".parse().unwrap());
        let (inside, to, other) = (
            address("10.0.0.1:5000"),
            address("192.0.2.1:7443"),
            address("192.0.2.2:7443"),
        );
        let first = nat.outward(inside, to, 0).unwrap();
        assert_eq!(nat.outward(inside, other, 0).unwrap(), first);
        assert_eq!(nat.inward(first.port(), other, 0), Some(inside));
        nat.rebind(0);
        assert_eq!(nat.inward(first.port(), to, 0), None);
        let second = nat.outward(inside, to, 0).unwrap();
        assert_ne!(second, first);
        nat.flush();
        assert_eq!(nat.inward(second.port(), to, 0), None);
    }
}
