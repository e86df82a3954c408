//! What happens to packets between two hosts.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::state::HostId;
use super::trace::Action;

/// Bytes of the IP and UDP headers, which a link carries beside the payload.
const HEADER_BYTES: usize = 28;

/// How long a lost TCP segment waits for its retransmission.
const RETRANSMISSION: Duration = Duration::from_millis(200);

/// One direction between two hosts.
///
/// Packets stay in order unless [`Link::reorder`] says otherwise: jitter delays those behind, too.
#[derive(Debug, Clone, PartialEq)]
pub struct Link {
    /// From the sender to the receiver.
    pub latency: Duration,
    /// Added to the latency of each packet, drawn evenly from zero to this.
    pub jitter: Duration,
    /// The share of packets that vanish, 0 to 1.
    pub loss: f64,
    /// The share of packets that are overtaken by later ones, 0 to 1.
    pub reorder: f64,
    /// By how much longer those take, drawn evenly from zero to this.
    pub reorder_delay: Duration,
    /// The share of datagrams that arrive twice, 0 to 1.
    pub duplicate: f64,
    /// The largest UDP payload that passes, in bytes; larger ones vanish.
    pub datagram_bytes_max: usize,
    /// How fast it is; unlimited when absent.
    pub bandwidth: Option<Bandwidth>,
}

/// The speed of a link, and the queue before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bandwidth {
    /// Bits per second, headers included.
    pub bits_per_second: u64,
    /// Bytes that may wait; what comes to a full queue vanishes.
    pub queue_bytes: usize,
}

impl Default for Link {
    fn default() -> Self {
        Self {
            latency: Duration::from_millis(10),
            jitter: Duration::ZERO,
            loss: 0.0,
            reorder: 0.0,
            reorder_delay: Duration::from_millis(20),
            duplicate: 0.0,
            // An Ethernet frame's 1,500 bytes, less the headers of IPv4 and UDP.
            datagram_bytes_max: 1472,
            bandwidth: None,
        }
    }
}

impl Link {
    /// Between two sockets of one host.
    pub(super) fn local() -> Self {
        Self {
            latency: Duration::ZERO,
            datagram_bytes_max: 65_507,
            ..Self::default()
        }
    }

    /// A good line with this latency.
    #[must_use]
    pub fn latency(latency: Duration) -> Self {
        Self {
            latency,
            ..Self::default()
        }
    }

    /// The same, but this share of the packets vanishes.
    #[must_use]
    pub fn lossy(self, loss: f64) -> Self {
        Self { loss, ..self }
    }

    /// The same, with this much jitter.
    #[must_use]
    pub fn jittery(self, jitter: Duration) -> Self {
        Self { jitter, ..self }
    }

    /// The same, but this share of the packets is overtaken by others.
    #[must_use]
    pub fn reordering(self, reorder: f64) -> Self {
        Self { reorder, ..self }
    }

    /// The same, but this share of the datagrams arrives twice.
    #[must_use]
    pub fn duplicating(self, duplicate: f64) -> Self {
        Self { duplicate, ..self }
    }

    /// The same, but no faster than this.
    #[must_use]
    pub fn limited(self, bits_per_second: u64, queue_bytes: usize) -> Self {
        let bandwidth = Some(Bandwidth {
            bits_per_second,
            queue_bytes,
        });
        Self { bandwidth, ..self }
    }

    /// The same, but larger UDP payloads vanish.
    #[must_use]
    pub fn narrow(self, datagram_bytes_max: usize) -> Self {
        Self {
            datagram_bytes_max,
            ..self
        }
    }
}

/// When a datagram arrives, in nanoseconds of virtual time; the second one is a duplicate.
pub(super) type Arrivals = (u64, Option<u64>);

/// What a link remembers. Each has randomness of its own, so that the order in which two hosts
/// send within one instant changes nothing.
#[derive(Debug)]
pub(super) struct LinkState {
    rng: StdRng,
    next: u64,
    /// When the last packet that kept its place arrives.
    last_arrival: u64,
    /// When the last byte in the queue has left.
    busy_until: u64,
}

impl LinkState {
    pub(super) fn new(seed: u64, from: HostId, to: HostId) -> Self {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        key[8..16].copy_from_slice(&from.number().to_le_bytes());
        key[16..24].copy_from_slice(&to.number().to_le_bytes());
        Self {
            rng: StdRng::from_seed(key),
            next: 0,
            last_arrival: 0,
            busy_until: 0,
        }
    }

    /// Numbers the events of this link.
    pub(super) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// The fate of a datagram with `bytes` of payload.
    pub(super) fn datagram(
        &mut self,
        link: &Link,
        now: u64,
        bytes: usize,
    ) -> Result<Arrivals, Action> {
        if bytes > link.datagram_bytes_max {
            return Err(Action::TooBig);
        }
        if self.chance(link.loss) {
            return Err(Action::Lost);
        }
        let left = self.queue(link, now, bytes).ok_or(Action::QueueFull)?;
        let mut arrival = left + nanos(link.latency) + self.draw(link.jitter);
        if self.chance(link.reorder) {
            arrival += self.draw(link.reorder_delay);
        } else {
            arrival = arrival.max(self.last_arrival);
            self.last_arrival = arrival;
        }
        let duplicate = self
            .chance(link.duplicate)
            .then(|| arrival + self.draw(link.latency));
        Ok((arrival, duplicate))
    }

    /// When a TCP segment arrives: losses only delay it, and a full queue holds it up.
    pub(super) fn segment(&mut self, link: &Link, now: u64, bytes: usize) -> u64 {
        let mut start = now;
        while self.chance(link.loss.min(0.9)) {
            start += nanos(RETRANSMISSION);
        }
        let left = self
            .queue(link, start, bytes)
            .unwrap_or(self.busy_until.max(start));
        let jitter = self.draw(link.jitter);
        let late = if self.chance(link.reorder) {
            self.draw(link.reorder_delay)
        } else {
            0
        };
        left + nanos(link.latency) + jitter + late
    }

    /// When the packet's last byte has left the queue; `None` when there was no room.
    fn queue(&mut self, link: &Link, now: u64, bytes: usize) -> Option<u64> {
        let Some(bandwidth) = link.bandwidth else {
            return Some(now);
        };
        let rate = u128::from(bandwidth.bits_per_second.max(1));
        let start = self.busy_until.max(now);
        let waiting = u128::from(start - now) * rate / 8 / 1_000_000_000;
        if waiting > bandwidth.queue_bytes as u128 {
            return None;
        }
        let bits = (bytes + HEADER_BYTES) as u128 * 8;
        let takes = u64::try_from(bits * 1_000_000_000 / rate).unwrap_or(u64::MAX / 4);
        self.busy_until = start.saturating_add(takes);
        Some(self.busy_until)
    }

    fn chance(&mut self, share: f64) -> bool {
        share > 0.0 && self.rng.random_bool(share.min(1.0))
    }

    fn draw(&mut self, bound: Duration) -> u64 {
        if bound.is_zero() {
            return 0;
        }
        self.rng.random_range(0..=nanos(bound))
    }
}

pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX / 4)
}
