//! `[quic]`

use std::time::Duration;

use mesh_proto::wire::PROFILE_ADDRESSES_BYTES_MAX;

use super::Role;
use super::checker::Checker;
use crate::config::file::QuicShape;
use crate::config::model::{Congestion, QuicConfig};
use crate::config::units::{format_duration, format_size};

const MIB: u64 = 1 << 20;
const SECOND: Duration = Duration::from_secs(1);

/// The most addresses that a proxy may advertise.
const ADVERTISE_MAX: usize = 16;

pub(super) fn quic(
    check: &mut Checker<'_>,
    shape: Option<&QuicShape>,
    role: Option<Role>,
) -> Option<QuicConfig> {
    let default = QuicConfig::default();
    let Some(shape) = shape else {
        return Some(default);
    };
    unused(check, shape, role);

    let listen = match &shape.listen {
        None => Some(default.listen),
        Some(text) => check.listen_address("quic.listen", &text.0),
    };
    let advertise = match &shape.advertise {
        None => Some(Vec::new()),
        Some(texts) => check.dial_addresses("quic.advertise", &texts.0, ADVERTISE_MAX),
    };
    let peer_advertise = match &shape.peer_advertise {
        None => Some(None),
        Some(text) => check
            .dial_address("quic.peer_advertise", &text.0)
            .then(|| Some(text.0.clone())),
    };
    if let (Some(advertise), Some(peer)) = (&advertise, &peer_advertise) {
        let bytes: usize = advertise.iter().chain(peer).map(String::len).sum();
        if bytes > PROFILE_ADDRESSES_BYTES_MAX {
            check.error(
                "quic.advertise",
                format!("is too long: with quic.peer_advertise it has {bytes} bytes, over the limit of {PROFILE_ADDRESSES_BYTES_MAX}"),
                "gossip tells of them in each of its packets: write fewer addresses, or one shorter name",
            );
            return None;
        }
    }

    let stream_window = check.size(
        "quic.stream_window",
        shape.stream_window.as_ref(),
        64 * 1024..=4 * MIB,
        u64::from(default.stream_window_bytes),
        "each node holds up to this much for a stream whose reader is slow",
    );
    let buffer_bytes_max = check.size(
        "quic.buffer_bytes_max",
        shape.buffer_bytes_max.as_ref(),
        64 * 1024..=16 * 1024 * 1024 * MIB,
        default.buffer_bytes_max,
        "this bounds what all stalled streams of the node hold together",
    );
    let mut consistent = true;
    if let (Some(window), Some(buffer)) = (stream_window, buffer_bytes_max)
        && buffer < window
    {
        consistent = false;
        check.error(
            "quic.buffer_bytes_max",
            format!(
                "{} is under quic.stream_window ({}), so that one stream would be over it",
                format_size(buffer),
                format_size(window)
            ),
            "raise it, or lower quic.stream_window",
        );
    }

    let keepalive = check.duration(
        "quic.keepalive",
        shape.keepalive.as_ref(),
        Duration::from_millis(100)..=Duration::from_secs(600),
        default.keepalive,
        "each connection sends a packet that often",
    );
    let idle_timeout = check.duration(
        "quic.idle_timeout",
        shape.idle_timeout.as_ref(),
        SECOND..=Duration::from_secs(3600),
        default.idle_timeout,
        "a connection that is silent for so long is lost",
    );
    if let (Some(keepalive), Some(idle)) = (keepalive, idle_timeout)
        && keepalive >= idle / 2
    {
        consistent = false;
        let key = if shape.keepalive.is_some() {
            "quic.keepalive"
        } else {
            "quic.idle_timeout"
        };
        check.error(
            key,
            format!("keepalive ({}) is not under half of idle_timeout ({})", format_duration(keepalive), format_duration(idle)),
            "lower keepalive or raise idle_timeout, so that one lost packet does not end a connection",
        );
    }
    let handshake_timeout = check.duration(
        "quic.handshake_timeout",
        shape.handshake_timeout.as_ref(),
        SECOND..=Duration::from_secs(60),
        default.handshake_timeout,
        "shorter cuts off distant agents, longer keeps half-open connections",
    );

    let stalled_streams_max = check.number(
        "quic.stalled_streams_max",
        shape.stalled_streams_max,
        1..=4096,
        default.stalled_streams_max,
        "a connection's window is this times quic.stream_window",
    );
    let streams_max = check.number(
        "quic.streams_max",
        shape.streams_max,
        1..=65_536,
        default.streams_max,
        "streams cost memory where they are accepted",
    );
    let handshakes_per_second = check.number(
        "quic.handshakes_per_second",
        shape.handshakes_per_second,
        1..=1_000_000,
        default.handshakes_per_second,
        "above it, new addresses are first asked to prove themselves",
    );
    let connections_max = check.number(
        "quic.connections_max",
        shape.connections_max,
        1..=1_000_000,
        default.connections_max,
        "connections beyond it are refused",
    );
    let mtu_max = check.number(
        "quic.mtu_max",
        shape.mtu_max,
        1200..=6500,
        default.mtu_max,
        "below 1200 QUIC does not work (RFC 9000, section 14), and beyond 6500 ten GSO segments exceed a UDP datagram and are silently dropped",
    );
    let shards = check.number(
        "quic.shards",
        shape.shards,
        1..=64,
        default.shards,
        "each is an endpoint with a thread of its own",
    );
    let congestion = match &shape.congestion {
        None => Some(default.congestion),
        Some(text) => check.word(
            "quic.congestion",
            &text.0,
            &[
                ("tolerant", Congestion::Tolerant),
                ("cubic", Congestion::Cubic),
                ("bbr", Congestion::Bbr),
            ],
        ),
    };
    if !consistent {
        return None;
    }
    Some(QuicConfig {
        listen: listen?,
        advertise: advertise?,
        peer_advertise: peer_advertise?,
        stream_window_bytes: u32::try_from(stream_window?).ok()?,
        stalled_streams_max: stalled_streams_max?,
        streams_max: streams_max?,
        buffer_bytes_max: buffer_bytes_max?,
        keepalive: keepalive?,
        idle_timeout: idle_timeout?,
        handshake_timeout: handshake_timeout?,
        handshakes_per_second: handshakes_per_second?,
        connections_max: connections_max?,
        mtu_max: mtu_max?,
        congestion: congestion?,
        shards: shards?,
    })
}

/// Says of which keys nothing comes in this role or version.
fn unused(check: &mut Checker<'_>, shape: &QuicShape, role: Option<Role>) {
    let (listen, advertise, peer) = (
        shape.listen.is_some(),
        shape.advertise.is_some(),
        shape.peer_advertise.is_some(),
    );
    match role {
        Some(Role::Agent) => {
            for (key, present) in [
                ("quic.listen", listen),
                ("quic.advertise", advertise),
                ("quic.peer_advertise", peer),
            ] {
                if present {
                    check.warn(
                        key,
                        "has no effect on an agent, which only dials: remove it",
                    );
                }
            }
        }
        Some(Role::Proxy) | None => {}
    }
}
