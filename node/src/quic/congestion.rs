//! Congestion controllers, and one that tells loss from congestion.
//!
//! quinn's CUBIC (RFC 9438) takes every lost packet for a sign that the path is full. On a path that
//! loses one in a hundred by chance, as radio does, it keeps about one hundredth of the rate; and
//! quinn's BBR, which does not, floods slow links (docs/PERFORMANCE.md has the figures of both).
//! [`Tolerant`] is CUBIC which is not told of losses that no queue has caused.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::congestion::{BbrConfig, Controller, ControllerFactory, ControllerMetrics, CubicConfig};
use quinn_proto::RttEstimator;

use crate::config::Congestion;

/// On a shorter path CUBIC itself is back at its rate within milliseconds, and the buffers that
/// overflow there are too short to be seen in round-trip times.
const RTT_MIN: Duration = Duration::from_millis(5);

/// A queue shows when even the quickest packet of a round trip takes longer than the shortest one ever by
/// this share of it, within the bounds below: what HyStart++ takes for one (RFC 9406, section 4.3).
const QUEUE_SHARE: u32 = 8;
const QUEUE_MIN: Duration = Duration::from_millis(4);
const QUEUE_MAX: Duration = Duration::from_millis(16);

/// Packets of a round trip of which the quickest says something (RFC 9406: N_RTT_SAMPLE).
const SAMPLES_MIN: u32 = 8;

/// Where more than one in so many bytes is lost, the path is too full, queue or no queue: a
/// policer, or a buffer that is too short to be seen.
const LOSS_SHARE: u64 = 16;

/// Packets whose loss says nothing about its share yet.
const LOST_MIN: u64 = 30;

/// Packets over which the share of lost ones is counted: these, and as many before them.
const TALLY_PACKETS: u64 = 500;

/// What makes the controllers of connections.
pub(super) fn factory(congestion: Congestion) -> Arc<dyn ControllerFactory + Send + Sync> {
    match congestion {
        Congestion::Tolerant => Arc::new(TolerantConfig::default()),
        Congestion::Cubic => Arc::new(CubicConfig::default()),
        Congestion::Bbr => Arc::new(BbrConfig::default()),
    }
}

/// Makes [`Tolerant`] controllers.
#[derive(Debug, Default)]
struct TolerantConfig {
    inner: Arc<CubicConfig>,
}

impl ControllerFactory for TolerantConfig {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(Tolerant {
            inner: self.inner.clone().build(now, current_mtu),
            mtu: current_mtu.into(),
            shortest: Duration::MAX,
            round: Round::new(now),
            tallies: [Tally::default(); 2],
        })
    }
}

/// CUBIC that does not slow down for a loss unless there is a queue, or much is lost.
struct Tolerant {
    inner: Box<dyn Controller>,
    /// Bytes of a packet.
    mtu: u64,
    /// The shortest round trip of the path.
    shortest: Duration,
    round: Round,
    /// Of late, and before.
    tallies: [Tally; 2],
}

/// The round trip that is under way: it ends when a packet is acknowledged that was sent in it.
#[derive(Debug, Clone, Copy)]
struct Round {
    began: Instant,
    /// How long its quickest packet took, and of how many.
    quickest: Duration,
    samples: u32,
    /// The same of the last one that had enough of them.
    last: Option<Duration>,
}

/// Bytes that were acknowledged or lost.
#[derive(Debug, Default, Clone, Copy)]
struct Tally {
    lost: u64,
    all: u64,
}

impl Round {
    const fn new(began: Instant) -> Self {
        Self {
            began,
            quickest: Duration::MAX,
            samples: 0,
            last: None,
        }
    }

    fn add(&mut self, now: Instant, sent: Instant) {
        if sent >= self.began {
            *self = Self {
                last: self.quickest(),
                ..Self::new(now)
            };
        }
        self.quickest = self.quickest.min(now.saturating_duration_since(sent));
        self.samples = self.samples.saturating_add(1);
    }

    /// How long the quickest packet took of late, if enough of them were looked at.
    fn quickest(&self) -> Option<Duration> {
        if self.samples >= SAMPLES_MIN {
            return Some(self.quickest);
        }
        self.last
    }
}

/// Whether round trips say that packets wait in a queue; on short paths, and where they say nothing, it
/// is taken for sure.
fn has_queue(quickest: Option<Duration>, shortest: Duration) -> bool {
    let allowed = (shortest / QUEUE_SHARE).clamp(QUEUE_MIN, QUEUE_MAX);
    shortest < RTT_MIN || quickest.is_none_or(|quickest| quickest > shortest + allowed)
}

impl Tolerant {
    fn count(&mut self, lost: u64, all: u64) {
        let [late, before] = &mut self.tallies;
        if late.all >= TALLY_PACKETS * self.mtu {
            (*before, *late) = (*late, Tally::default());
        }
        late.lost += lost;
        late.all += all;
    }

    fn loses_much(&self) -> bool {
        let [late, before] = self.tallies;
        let (lost, all) = (late.lost + before.lost, late.all + before.all);
        lost >= LOST_MIN * self.mtu && lost * LOSS_SHARE > all
    }

    /// Whether a loss is taken for chance.
    fn is_chance(&self) -> bool {
        !has_queue(self.round.quickest(), self.shortest) && !self.loses_much()
    }
}

impl Controller for Tolerant {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        rtt: &RttEstimator,
    ) {
        self.count(0, bytes);
        self.shortest = rtt.min();
        self.round.add(now, sent);
        self.inner.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        largest_packet_num_acked: Option<u64>,
    ) {
        self.inner
            .on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        self.count(lost_bytes, lost_bytes);
        // No bytes were lost when a router has marked packets instead (ECN, RFC 3168).
        let is_loss = lost_bytes > 0 && !is_persistent_congestion;
        if is_loss && self.is_chance() {
            return;
        }
        self.inner
            .on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mtu = new_mtu.into();
        self.inner.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        self.inner.window()
    }

    fn metrics(&self) -> ControllerMetrics {
        self.inner.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self {
            inner: self.inner.clone_box(),
            ..*self
        })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    const MTU: u64 = 1_452;
    const LONG: Duration = Duration::from_millis(50);

    /// Counts what it is told of.
    #[derive(Debug, Clone, Default)]
    struct Told(Arc<AtomicU64>);

    impl Controller for Told {
        fn on_congestion_event(&mut self, _: Instant, _: Instant, _: bool, _: u64) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }

        fn on_mtu_update(&mut self, _: u16) {}

        fn window(&self) -> u64 {
            100 * MTU
        }

        fn clone_box(&self) -> Box<dyn Controller> {
            Box::new(self.clone())
        }

        fn initial_window(&self) -> u64 {
            10 * MTU
        }

        fn into_any(self: Box<Self>) -> Box<dyn Any> {
            self
        }
    }

    fn now() -> Instant {
        tokio::time::Instant::now().into_std()
    }

    struct Path {
        controller: Tolerant,
        told: Told,
    }

    impl Path {
        /// With round trips of so much.
        fn new(round_trip: Duration, shortest: Duration) -> Self {
            let told = Told::default();
            Self {
                controller: Tolerant {
                    inner: told.clone_box(),
                    mtu: MTU,
                    shortest,
                    round: Round {
                        last: Some(round_trip),
                        ..Round::new(now())
                    },
                    tallies: [Tally::default(); 2],
                },
                told,
            }
        }

        /// Of `packets`, each `nth` is lost; how often CUBIC was told.
        fn lose(&mut self, packets: u64, nth: u64) -> u64 {
            let (now, before) = (now(), self.told());
            for packet in 1..=packets {
                if packet % nth == 0 {
                    self.controller.on_congestion_event(now, now, false, MTU);
                } else {
                    self.controller.count(0, MTU);
                }
            }
            self.told() - before
        }

        fn told(&self) -> u64 {
            self.told.0.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn what_is_lost_without_a_queue_is_chance() {
        let calm = LONG + Duration::from_millis(6);
        for nth in [100, 33, 20] {
            assert_eq!(Path::new(calm, LONG).lose(10_000, nth), 0, "each {nth}th");
        }
    }

    #[test]
    fn what_is_lost_in_a_queue_is_not() {
        let queued = LONG + Duration::from_millis(7);
        assert_eq!(Path::new(queued, LONG).lose(1_000, 100), 10);
    }

    #[test]
    fn short_paths_are_left_to_cubic() {
        let short = Duration::from_millis(4);
        assert_eq!(Path::new(short, short).lose(1_000, 100), 10);
    }

    #[test]
    fn a_queue_is_neither_the_jitter_of_a_short_path_nor_a_long_wait_on_a_long_one() {
        for (shortest_ms, allowed_ms) in [(5, 4), (32, 4), (64, 8), (128, 16), (600, 16)] {
            let shortest = Duration::from_millis(shortest_ms);
            let allowed = shortest + Duration::from_millis(allowed_ms);
            let calm = Path::new(allowed, shortest).lose(1_000, 100);
            let beyond = allowed + Duration::from_micros(1);
            let queued = Path::new(beyond, shortest).lose(1_000, 100);
            assert_eq!((calm, queued), (0, 10), "{shortest_ms} ms");
        }
    }

    #[test]
    fn the_quickest_packet_of_a_round_trip_counts() {
        let start = now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut round = Round::new(start);
        assert_eq!(round.quickest(), None);
        assert!(has_queue(None, LONG), "nothing is known");
        // Sent before the round began, so that it goes on; the third is the quickest.
        let sent = start - Duration::from_millis(1);
        for ms in [80, 70, 59, 90, 80, 80, 80] {
            round.add(at(ms - 1), sent);
        }
        assert_eq!(round.quickest(), None, "seven are too few");
        round.add(at(79), sent);
        assert_eq!(round.quickest(), Some(Duration::from_millis(59)));
        // The next one, as long as it has fewer, does not count.
        round.add(at(100), at(95));
        assert_eq!(round.quickest(), Some(Duration::from_millis(59)));
        for _ in 0..SAMPLES_MIN {
            round.add(at(120), at(99));
        }
        assert_eq!(round.quickest(), Some(Duration::from_millis(5)));
    }

    #[test]
    fn much_loss_is_congestion_without_a_queue_too() {
        let mut path = Path::new(LONG, LONG);
        // A tenth: told once the loss is past doubt.
        assert_eq!(path.lose(1_000, 10), 100 - (LOST_MIN - 1));
        // It is over: the share falls within as many packets as are counted.
        path.lose(2 * TALLY_PACKETS, 100);
        assert_eq!(path.lose(1_000, 100), 0);
    }

    #[test]
    fn marks_and_silence_are_always_told() {
        let (mut path, now) = (Path::new(LONG, LONG), now());
        path.controller.on_congestion_event(now, now, false, 0);
        assert_eq!(path.told(), 1);
        path.controller.on_congestion_event(now, now, true, MTU);
        assert_eq!(path.told(), 2);
    }
}
