//! Datagrams to one receiver that go out in one call.
//!
//! The kernel takes up to 64 datagrams of one size, of which the last may be shorter, as one buffer
//! and splits it as late as it can (UDP GSO). quinn makes ten at a time at most; measured with bulk
//! at an MTU of 1,500, sending 44 at a time is a fifth faster than ten. The price is one copy more.

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};

use quinn::udp::{EcnCodepoint, Transmit};

/// Bytes of one call at most: what a UDP datagram can hold, less some room for IP options.
const BYTES_MAX: usize = 65_000;

/// So many datagrams at once are worth a copy in the hope that more follow: quinn hands over ten at
/// a time for as long as there are more.
const SEGMENTS_MIN: usize = 10;

/// Datagrams that wait for those behind them.
#[derive(Debug, Default)]
pub(super) struct Burst {
    contents: Vec<u8>,
    kind: Option<Kind>,
    /// How many were ever held.
    datagrams: u64,
}

/// What the datagrams of one call have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kind {
    destination: SocketAddr,
    ecn: Option<EcnCodepoint>,
    src_ip: Option<IpAddr>,
    segment_bytes: usize,
}

/// What became of datagrams that were to join a burst.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Joined {
    /// They are in it, and more may follow.
    More,
    /// They are in it, and it is to be sent.
    Last,
    /// They are not in it.
    No,
}

impl Kind {
    fn of(transmit: &Transmit<'_>) -> Self {
        Self {
            destination: transmit.destination,
            ecn: transmit.ecn,
            src_ip: transmit.src_ip,
            segment_bytes: transmit.segment_size.unwrap_or(transmit.contents.len()),
        }
    }

    /// How many datagrams of this kind go out at once; the kernel takes `segments_max`.
    fn fit(&self, segments_max: usize) -> usize {
        segments_max.min(BYTES_MAX / self.segment_bytes.max(1))
    }
}

impl Burst {
    /// How many datagrams were ever held: as long as it grows, more may follow.
    pub(super) fn datagrams(&self) -> u64 {
        self.datagrams
    }

    /// Adds `transmit` where it continues what is held.
    pub(super) fn join(&mut self, transmit: &Transmit<'_>, segments_max: usize) -> Joined {
        let Some(held) = self.kind else {
            return Joined::No;
        };
        let mut kind = Kind::of(transmit);
        if transmit.segment_size.is_none() && kind.segment_bytes < held.segment_bytes {
            // One datagram, which may be shorter: it is the last then.
            kind.segment_bytes = held.segment_bytes;
        }
        let bytes = self.contents.len() + transmit.contents.len();
        if kind != held || bytes.div_ceil(held.segment_bytes) > held.fit(segments_max) {
            return Joined::No;
        }
        self.add(transmit);
        let is_whole = bytes.is_multiple_of(held.segment_bytes);
        let is_long = transmit.contents.len() >= SEGMENTS_MIN * held.segment_bytes;
        let room = held.fit(segments_max) * held.segment_bytes - bytes;
        if is_whole && is_long && room >= held.segment_bytes {
            Joined::More
        } else {
            Joined::Last
        }
    }

    /// Holds `transmit` where more of its kind are likely to follow. Nothing must be held before.
    pub(super) fn begin(&mut self, transmit: &Transmit<'_>, segments_max: usize) -> bool {
        let kind = Kind::of(transmit);
        let bytes = transmit.contents.len();
        let is_whole = kind.segment_bytes > 0 && bytes.is_multiple_of(kind.segment_bytes);
        let segments = bytes / kind.segment_bytes.max(1);
        if !is_whole || segments < SEGMENTS_MIN || segments >= kind.fit(segments_max) {
            return false;
        }
        self.kind = Some(kind);
        self.contents = SPARE.take();
        self.add(transmit);
        true
    }

    /// What is held, as one call.
    pub(super) fn transmit(&self) -> Option<Transmit<'_>> {
        let kind = self.kind?;
        Some(Transmit {
            destination: kind.destination,
            ecn: kind.ecn,
            contents: &self.contents,
            segment_size: Some(kind.segment_bytes),
            src_ip: kind.src_ip,
        })
    }

    /// Forgets what is held: it was sent.
    pub(super) fn clear(&mut self) {
        self.kind = None;
        let mut contents = std::mem::take(&mut self.contents);
        contents.clear();
        SPARE.set(contents);
    }

    fn add(&mut self, transmit: &Transmit<'_>) {
        self.contents
            .reserve_exact(BYTES_MAX.saturating_sub(self.contents.len()));
        self.contents.extend_from_slice(transmit.contents);
        self.datagrams += 1;
    }
}

thread_local! {
    /// The buffer of the next burst of this thread: a socket has one only while it holds something.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT_BYTES: usize = 1_452;
    /// As many as the kernel takes; 44 of the above fit into one call.
    const KERNEL_MAX: usize = 64;

    fn to(port: u16, contents: &[u8], segment_size: Option<usize>) -> Transmit<'_> {
        Transmit {
            destination: ([127, 0, 0, 1], port).into(),
            ecn: None,
            contents,
            segment_size,
            src_ip: None,
        }
    }

    fn ten(port: u16) -> Transmit<'static> {
        to(port, &[7; 10 * SEGMENT_BYTES], Some(SEGMENT_BYTES))
    }

    fn begun() -> Burst {
        let mut burst = Burst::default();
        assert!(burst.begin(&ten(1), KERNEL_MAX));
        burst
    }

    #[test]
    fn what_follows_joins_as_long_as_it_fits() {
        let mut burst = begun();
        for _ in 0..3 {
            assert_eq!(burst.join(&ten(1), KERNEL_MAX), Joined::More);
        }
        assert_eq!(
            burst.join(&ten(1), KERNEL_MAX),
            Joined::No,
            "50 are too many"
        );
        let held = burst.transmit().expect("40 are held");
        assert_eq!(held.contents.len(), 40 * SEGMENT_BYTES);
        assert_eq!(held.segment_size, Some(SEGMENT_BYTES));
        let four = to(1, &[7; 4 * SEGMENT_BYTES], Some(SEGMENT_BYTES));
        assert_eq!(burst.join(&four, KERNEL_MAX), Joined::Last);
        burst.clear();
        assert!(burst.transmit().is_none());
        assert_eq!(
            burst.join(&ten(1), KERNEL_MAX),
            Joined::No,
            "nothing is held"
        );
    }

    #[test]
    fn the_last_one_may_be_shorter_and_no_other() {
        let size = Some(SEGMENT_BYTES);
        for (contents, segment_size, joined) in [
            (&[7; 10 * SEGMENT_BYTES - 1][..], size, Joined::Last),
            (&[7; 2 * SEGMENT_BYTES], size, Joined::Last),
            (&[7; SEGMENT_BYTES], None, Joined::Last),
            (&[7; 40], None, Joined::Last),
            (&[7; SEGMENT_BYTES + 1], None, Joined::No),
            (&[7; 10 * 1_200], Some(1_200), Joined::No),
            (&[7; 10 * 1_500], Some(1_500), Joined::No),
        ] {
            let transmit = to(1, contents, segment_size);
            let label = format!("{} of {segment_size:?}", contents.len());
            assert_eq!(begun().join(&transmit, KERNEL_MAX), joined, "{label}");
        }
    }

    #[test]
    fn other_kinds_do_not_join() {
        assert_eq!(begun().join(&ten(2), KERNEL_MAX), Joined::No);
        let marked = Transmit {
            ecn: Some(EcnCodepoint::Ect0),
            ..ten(1)
        };
        assert_eq!(begun().join(&marked, KERNEL_MAX), Joined::No);
        let from = Transmit {
            src_ip: Some([127, 0, 0, 2].into()),
            ..ten(1)
        };
        assert_eq!(begun().join(&from, KERNEL_MAX), Joined::No);
    }

    #[test]
    fn only_what_more_is_likely_to_follow_is_held() {
        let size = Some(SEGMENT_BYTES);
        for (contents, segment_size, kernel_max, held) in [
            (&[7; 10 * SEGMENT_BYTES][..], size, 64, true),
            (&[7; 9 * SEGMENT_BYTES], size, 64, false),
            (&[7; 10 * SEGMENT_BYTES - 1], size, 64, false),
            (&[7; SEGMENT_BYTES], None, 64, false),
            // A kernel without segmentation, and datagrams of which no more fit.
            (&[7; 10 * SEGMENT_BYTES], size, 1, false),
            (&[7; 65_000], Some(6_500), 64, false),
            (&[], None, 64, false),
            (&[], Some(0), 64, false),
        ] {
            let mut burst = Burst::default();
            let label = format!("{} of {segment_size:?}", contents.len());
            let transmit = to(1, contents, segment_size);
            assert_eq!(burst.begin(&transmit, kernel_max), held, "{label}");
            assert_eq!(burst.transmit().is_some(), held, "{label}");
        }
    }
}
