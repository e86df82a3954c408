//! What the network did, packet by packet, and a hash of it.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

/// Records kept for a failure's report.
const RECENT: usize = 64;

/// What travelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// A datagram.
    Udp,
    /// A segment of a TCP connection.
    Tcp,
}

/// What the network did with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// It is under way.
    Sent,
    /// It has arrived at a socket.
    Delivered,
    /// The link lost it.
    Lost,
    /// It was larger than the link takes.
    TooBig,
    /// The link's queue was full.
    QueueFull,
    /// The link is cut.
    Cut,
    /// Nobody has that address.
    NoRoute,
    /// A NAT has no mapping for it.
    NatClosed,
    /// A balancer has no healthy backend.
    NoBackend,
    /// The sender, or the receiver for too long, is frozen.
    Frozen,
    /// The host is down.
    Down,
    /// No socket is bound to that port.
    NoSocket,
    /// The socket's receive buffer was full.
    BufferFull,
}

/// One thing that the network did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Record {
    /// Virtual nanoseconds since the world began.
    pub at: u64,
    /// From where, as the sender sees itself.
    pub from: SocketAddr,
    /// To where, as the sender wrote it.
    pub to: SocketAddr,
    /// Payload.
    pub bytes: usize,
    /// What it was.
    pub transport: Transport,
    /// What became of it.
    pub action: Action,
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = Duration::from_nanos(self.at).as_secs_f64();
        write!(
            f,
            "{at:>10.3}s {:?} {} -> {} {} bytes: {:?}",
            self.transport, self.from, self.to, self.bytes, self.action
        )
    }
}

/// All records so far: their hash, their number by action, and the last ones.
///
/// Records of one instant (virtual time moves in steps of a millisecond) are hashed in sorted
/// order: tokio wakes the tasks that watch one value in an order of its own choice, which is
/// drawn anew in each run.
#[derive(Debug)]
pub(super) struct Trace {
    hash: u64,
    instant: Vec<Record>,
    counts: BTreeMap<(Transport, Action), u64>,
    recent: VecDeque<Record>,
}

impl Default for Trace {
    fn default() -> Self {
        Self {
            hash: 0xcbf2_9ce4_8422_2325,
            instant: Vec::new(),
            counts: BTreeMap::new(),
            recent: VecDeque::new(),
        }
    }
}

impl Trace {
    pub(super) fn push(&mut self, record: Record) {
        if self
            .instant
            .first()
            .is_some_and(|first| first.at != record.at)
        {
            self.hash = fold(self.hash, &mut self.instant);
            self.instant.clear();
        }
        self.instant.push(record);
        *self
            .counts
            .entry((record.transport, record.action))
            .or_default() += 1;
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(record);
    }

    pub(super) fn hash(&self) -> u64 {
        fold(self.hash, &mut self.instant.clone())
    }

    pub(super) fn count(&self, transport: Transport, action: Action) -> u64 {
        self.counts.get(&(transport, action)).copied().unwrap_or(0)
    }

    pub(super) fn counts(&self) -> BTreeMap<(Transport, Action), u64> {
        self.counts.clone()
    }

    pub(super) fn recent(&self) -> Vec<Record> {
        self.recent.iter().copied().collect()
    }
}

fn fold(mut hash: u64, records: &mut [Record]) -> u64 {
    records.sort_unstable();
    let mut add = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    for record in records {
        add(&record.at.to_le_bytes());
        for address in [record.from, record.to] {
            match address.ip() {
                std::net::IpAddr::V4(ip) => add(&ip.octets()),
                std::net::IpAddr::V6(ip) => add(&ip.octets()),
            }
            add(&address.port().to_le_bytes());
        }
        add(&(record.bytes as u64).to_le_bytes());
        add(&[record.transport as u8, record.action as u8]);
    }
    hash
}
