//! Transport limits: what one connection may hold, and when it is given up.

use std::time::Duration;

use quinn::{IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};

use super::congestion;
use crate::config::QuicConfig;

/// Streams that a side accepts before it knows whom it talks to, and for good where the other
/// side opens few. quinn allocates for each, so that 1,000 would cost 116 KiB per idle connection.
pub const STREAMS_BEFORE_HELLO: u32 = 16;

/// The largest window of a stream, whatever an embedding application says. quinn closes the whole
/// connection when more than 1,024 pieces of one stream wait for those before them, which a lossy path
/// brings about in a window of 16 MiB.
const STREAM_WINDOW_BYTES_MAX: u32 = 4 << 20;

/// Stream windows that the connection window starts with; the rest comes with the hello.
const WINDOWS_BEFORE_HELLO: u64 = 4;

/// Stream windows of bytes that wait for an acknowledgement on one connection.
const SEND_WINDOWS: u64 = 4;

/// Bytes of datagrams that wait to be read, or to be sent, on one connection; older ones give way.
/// Gossip between proxies travels in them; agents and users have none.
const DATAGRAM_BYTES_MAX: usize = 128 << 10;

/// Limits for a new connection, either side.
#[must_use]
pub fn transport(config: &QuicConfig) -> TransportConfig {
    let window = config.stream_window_bytes.min(STREAM_WINDOW_BYTES_MAX);
    let stream_window = u64::from(window);
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(STREAMS_BEFORE_HELLO.min(config.streams_max).into())
        .max_concurrent_uni_streams(0u32.into())
        .stream_receive_window(window.into())
        .receive_window(var_int(stream_window * WINDOWS_BEFORE_HELLO))
        .send_window(stream_window * SEND_WINDOWS)
        .datagram_receive_buffer_size(Some(DATAGRAM_BYTES_MAX))
        .datagram_send_buffer_size(DATAGRAM_BYTES_MAX)
        .keep_alive_interval(Some(config.keepalive))
        .max_idle_timeout(IdleTimeout::try_from(silence(config)).ok())
        .congestion_controller_factory(congestion::factory(config.congestion));
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(config.mtu_max);
    transport.mtu_discovery_config(Some(discovery));
    transport
}

/// QUIC's own idle timeout. It starts anew with the first packet sent after one was received (RFC
/// 9000, section 10.1), which is a keepalive: so it is shorter by one, and a side that has fallen
/// silent is noticed within `idle_timeout`.
fn silence(config: &QuicConfig) -> Duration {
    config.idle_timeout.saturating_sub(config.keepalive)
}

/// Raises the limits of a connection once the other side is known: `streams` that it may open,
/// and a window in which `stalled_streams_max` of them can stand still without blocking the rest.
pub fn admit(connection: &quinn::Connection, config: &QuicConfig, streams: u32) {
    connection.set_max_concurrent_bi_streams(streams.into());
    connection.set_receive_window(var_int(connection_window_bytes(config)));
}

/// The streams that the other side of one connection may open, raised as it uses them: quinn sets
/// aside 116 bytes for each that is allowed, used or not, which would be most of what an idle
/// connection costs.
#[derive(Debug)]
pub(crate) struct StreamLimit {
    allowed: u32,
    max: u32,
}

impl StreamLimit {
    /// What is allowed at first.
    pub(crate) const FIRST: u32 = 64;

    /// By how much it is raised at a time. Every time costs whoever wants all of them a round trip.
    const GROWTH: u32 = 4;

    /// As [`admit`], with few streams at first and never more than `max`.
    pub(crate) fn admit(connection: &quinn::Connection, config: &QuicConfig, max: u32) -> Self {
        let allowed = Self::FIRST.min(max);
        admit(connection, config, allowed);
        Self { allowed, max }
    }

    /// So many are open. Once half of what is allowed is in use, more is.
    pub(crate) fn in_use(&mut self, connection: &quinn::Connection, open: usize) {
        if let Some(allowed) = self.raised(open) {
            self.allowed = allowed;
            connection.set_max_concurrent_bi_streams(allowed.into());
        }
    }

    fn raised(&self, open: usize) -> Option<u32> {
        let half = usize::try_from(self.allowed / 2).unwrap_or(usize::MAX);
        (open > half && self.allowed < self.max)
            .then(|| self.allowed.saturating_mul(Self::GROWTH).min(self.max))
    }
}

/// The connection's flow-control window in bytes: above what all stalled streams can hold.
#[must_use]
pub fn connection_window_bytes(config: &QuicConfig) -> u64 {
    // One window more than the stalled streams can fill, so that a fresh stream always has room;
    // and quinn announces credit when an eighth of the whole was read: the fresh stream must be
    // able to read that much before it runs out.
    let usable =
        u64::from(config.stream_window_bytes) * (u64::from(config.stalled_streams_max) + 1);
    (usable * 8).div_ceil(7)
}

fn var_int(value: u64) -> VarInt {
    VarInt::from_u64(value).unwrap_or(VarInt::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_allowed_as_they_are_used() {
        let mut limit = StreamLimit {
            allowed: StreamLimit::FIRST,
            max: 4096,
        };
        let mut steps = vec![limit.allowed];
        for open in 0..10_000 {
            if let Some(allowed) = limit.raised(open) {
                assert_eq!(open, limit.allowed as usize / 2 + 1);
                limit.allowed = allowed;
                steps.push(allowed);
            }
        }
        assert_eq!(steps, [64, 256, 1024, 4096]);
        let few = StreamLimit { allowed: 5, max: 5 };
        assert_eq!(few.raised(5), None);
    }

    #[test]
    fn connection_window_exceeds_what_stalled_streams_hold() {
        let config = QuicConfig::default();
        let stalled = u64::from(config.stream_window_bytes) * u64::from(config.stalled_streams_max);
        let window = connection_window_bytes(&config);
        assert!(window - window / 8 > stalled);
    }
}
