//! A balancer: one virtual address before several backends, for UDP and TCP.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::link::nanos;

/// A flow that carried nothing for this long is forgotten.
const FLOW_IDLE: Duration = Duration::from_secs(120);

/// Flows after which idle ones are looked for.
const FLOWS_SWEPT_AT: usize = 10_000;

/// How a balancer chooses a backend for a new flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Balancing {
    /// By a hash of addresses and ports: a new source port is a new choice.
    FourTuple,
    /// By a hash of the source address: one host always comes to the same backend.
    SourceAddress,
    /// One after the other.
    RoundRobin,
}

#[derive(Debug)]
pub(super) struct Balancer {
    pub(super) address: SocketAddr,
    policy: Balancing,
    seed: u64,
    backends: Vec<Backend>,
    flows: BTreeMap<SocketAddr, Flow>,
    turn: usize,
}

#[derive(Debug)]
struct Backend {
    address: SocketAddr,
    healthy: bool,
}

#[derive(Debug, Clone, Copy)]
struct Flow {
    backend: SocketAddr,
    last_used: u64,
}

impl Balancer {
    pub(super) fn new(address: SocketAddr, policy: Balancing, seed: u64) -> Self {
        Self {
            address,
            policy,
            seed,
            backends: Vec::new(),
            flows: BTreeMap::new(),
            turn: 0,
        }
    }

    pub(super) fn add(&mut self, address: SocketAddr) {
        if !self
            .backends
            .iter()
            .any(|backend| backend.address == address)
        {
            self.backends.push(Backend {
                address,
                healthy: true,
            });
        }
    }

    /// Removes a backend and its flows.
    pub(super) fn remove(&mut self, address: SocketAddr) {
        self.backends.retain(|backend| backend.address != address);
        self.flows.retain(|_, flow| flow.backend != address);
    }

    /// An unhealthy backend keeps its flows and gets no new ones.
    pub(super) fn set_healthy(&mut self, address: SocketAddr, healthy: bool) {
        for backend in &mut self.backends {
            if backend.address == address {
                backend.healthy = healthy;
            }
        }
    }

    /// The backend for a packet from `client`.
    pub(super) fn choose(&mut self, client: SocketAddr, now: u64) -> Option<SocketAddr> {
        let idle = nanos(FLOW_IDLE);
        let known = self
            .flows
            .get(&client)
            .filter(|flow| flow.last_used + idle > now)
            .map(|flow| flow.backend);
        let backend = match known {
            Some(backend) => backend,
            None => self.new_flow(client)?,
        };
        if self.flows.len() >= FLOWS_SWEPT_AT {
            self.flows.retain(|_, flow| flow.last_used + idle > now);
        }
        let last_used = now;
        self.flows.insert(client, Flow { backend, last_used });
        Some(backend)
    }

    /// Whether a packet from `backend` to `client` belongs to a flow, and so bears the virtual
    /// address.
    pub(super) fn owns(&mut self, backend: SocketAddr, client: SocketAddr, now: u64) -> bool {
        match self.flows.get_mut(&client) {
            Some(flow) if flow.backend == backend => {
                flow.last_used = now;
                true
            }
            Some(_) | None => false,
        }
    }

    /// The flows that are remembered, idle ones too: client and backend.
    pub(super) fn flows(&self) -> Vec<(SocketAddr, SocketAddr)> {
        let flows = self.flows.iter();
        flows
            .map(|(client, flow)| (*client, flow.backend))
            .collect()
    }

    fn new_flow(&mut self, client: SocketAddr) -> Option<SocketAddr> {
        let healthy: Vec<SocketAddr> = self
            .backends
            .iter()
            .filter(|backend| backend.healthy)
            .map(|backend| backend.address)
            .collect();
        match self.policy {
            // The highest hash wins, so that a backend that comes or goes moves its own share only.
            Balancing::FourTuple => {
                let key = client.to_string();
                healthy
                    .into_iter()
                    .max_by_key(|backend| self.hash(&key, *backend))
            }
            Balancing::SourceAddress => {
                let key = client.ip().to_string();
                healthy
                    .into_iter()
                    .max_by_key(|backend| self.hash(&key, *backend))
            }
            Balancing::RoundRobin => {
                let turn = self.turn;
                self.turn += 1;
                healthy.get(turn % healthy.len().max(1)).copied()
            }
        }
    }

    fn hash(&self, client: &str, backend: SocketAddr) -> u64 {
        let text = format!("{client} {} {backend}", self.address);
        mix(text
            .bytes()
            .fold(self.seed, |hash, byte| mix(hash ^ u64::from(byte))))
    }
}

/// SplitMix64's finisher.
pub(super) fn mix(mut value: u64) -> u64 {
    value = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}
