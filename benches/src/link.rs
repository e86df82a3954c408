//! A link as the internet has them: delay, a rate, a queue of so many bytes, and loss.
//!
//! [`Wire`] is one direction of it, as a calculation; [`tun`] carries the packets of two network
//! namespaces over two of them, [`udp`] the datagrams of two sockets.

pub(crate) mod tun;
pub(crate) mod udp;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// What a link does to packets, in each direction.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LinkConfig {
    /// One way.
    pub(crate) delay: Duration,
    pub(crate) bits_per_s: u64,
    pub(crate) queue_bytes: u64,
    /// Of one packet.
    pub(crate) loss: f64,
    /// Of one packet, to arrive later by [`LATE`] than its place in the queue says.
    pub(crate) late: f64,
}

/// How much later a packet arrives that those behind it pass.
pub(crate) const LATE: Duration = Duration::from_millis(10);

/// One direction of a link. It reads no clock: times are handed in.
#[derive(Debug)]
pub(crate) struct Wire {
    config: LinkConfig,
    random: StdRng,
    /// When the last packet that was taken has left the queue.
    free_at: Option<Instant>,
    under_way: VecDeque<(Instant, Vec<u8>)>,
}

impl Wire {
    pub(crate) fn new(config: LinkConfig, seed: u64) -> Self {
        Self {
            config,
            random: StdRng::seed_from_u64(seed),
            free_at: None,
            under_way: VecDeque::new(),
        }
    }

    /// Takes a packet, or loses it: because the queue is full, or by chance.
    pub(crate) fn push(&mut self, now: Instant, packet: &[u8]) {
        let bytes = packet.len() as u64;
        let free_at = self.free_at.map_or(now, |free_at| free_at.max(now));
        let waiting = self.bytes_in(free_at - now);
        if waiting + bytes > self.config.queue_bytes {
            return;
        }
        let left_at = free_at + self.time_for(bytes);
        self.free_at = Some(left_at);
        // What is lost was sent: it took its time.
        if self.random.random_bool(self.config.loss) {
            return;
        }
        let mut arrives_at = left_at + self.config.delay;
        if self.random.random_bool(self.config.late) {
            arrives_at += LATE;
        }
        // Almost always behind the last one.
        let ahead = self.under_way.iter().rev();
        let passed = ahead.take_while(|(at, _)| *at > arrives_at).count();
        let place = self.under_way.len() - passed;
        self.under_way.insert(place, (arrives_at, packet.to_vec()));
    }

    /// When the next packet arrives.
    pub(crate) fn next_at(&self) -> Option<Instant> {
        self.under_way.front().map(|(at, _)| *at)
    }

    /// The next packet, if it has arrived.
    pub(crate) fn pop(&mut self, now: Instant) -> Option<Vec<u8>> {
        if self.next_at()? > now {
            return None;
        }
        self.under_way.pop_front().map(|(_, packet)| packet)
    }

    fn time_for(&self, bytes: u64) -> Duration {
        Duration::from_nanos(bytes * 8 * 1_000_000_000 / self.config.bits_per_s)
    }

    fn bytes_in(&self, time: Duration) -> u64 {
        (time.as_secs_f64() * self.config.bits_per_s as f64 / 8.0) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: LinkConfig = LinkConfig {
        delay: Duration::from_millis(25),
        bits_per_s: 8_000_000,
        queue_bytes: 10_000,
        loss: 0.0,
        late: 0.0,
    };

    #[test]
    fn packets_take_their_time_one_after_the_other() {
        let (mut wire, now) = (Wire::new(CONFIG, 1), Instant::now());
        wire.push(now, &[1; 1000]);
        wire.push(now, &[2; 1000]);
        // A megabyte a second: a thousand bytes are a millisecond.
        let first = now + Duration::from_millis(26);
        assert_eq!(wire.next_at(), Some(first));
        assert_eq!(wire.pop(first - Duration::from_nanos(1)), None);
        assert_eq!(wire.pop(first), Some(vec![1; 1000]));
        assert_eq!(wire.pop(first), None);
        assert_eq!(wire.next_at(), Some(first + Duration::from_millis(1)));
    }

    #[test]
    fn a_full_queue_takes_no_more() {
        let (mut wire, now) = (Wire::new(CONFIG, 1), Instant::now());
        for _ in 0..20 {
            wire.push(now, &[0; 1000]);
        }
        assert_eq!(wire.under_way.len(), 10);
        // Half of them have left the queue; they are still under way.
        wire.push(now + Duration::from_millis(5), &[0; 5000]);
        wire.push(now + Duration::from_millis(5), &[0; 1]);
        assert_eq!(wire.under_way.len(), 11);
    }

    #[test]
    fn a_share_is_lost() {
        let config = LinkConfig {
            loss: 0.03,
            queue_bytes: u64::MAX,
            ..CONFIG
        };
        let (mut wire, now) = (Wire::new(config, 1), Instant::now());
        for _ in 0..10_000 {
            wire.push(now, &[0; 100]);
        }
        let lost = 10_000 - wire.under_way.len();
        assert!((250..350).contains(&lost), "{lost}");
    }

    #[test]
    fn a_share_is_passed_by_those_behind() {
        let config = LinkConfig {
            late: 0.5,
            queue_bytes: u64::MAX,
            ..CONFIG
        };
        let (mut wire, now) = (Wire::new(config, 1), Instant::now());
        for number in 0..200 {
            wire.push(now, &[number; 100]);
        }
        let end = now + Duration::from_secs(1);
        let arrived: Vec<u8> = std::iter::from_fn(|| wire.pop(end))
            .map(|packet| packet[0])
            .collect();
        assert_eq!(arrived.len(), 200);
        let (on_time, late): (Vec<_>, Vec<_>) =
            arrived.windows(2).partition(|pair| pair[0] < pair[1]);
        assert!(on_time.len() > 20 && late.len() > 20, "{arrived:?}");
    }
}
