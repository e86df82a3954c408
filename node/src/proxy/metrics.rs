//! What a proxy measures.

use std::collections::BTreeMap;

use mesh_proto::refusal::Reason;
use mesh_proto::wire::MemberState;
use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use super::mesh::state_name;
use super::session::Ending;
use crate::metrics::{self, MetricsError, NETWORK_SECONDS};

/// Status codes that an ingress counts one by one; others are counted by their class.
const CODES: [&str; 21] = [
    "1xx", "200", "201", "204", "206", "2xx", "301", "302", "304", "3xx", "400", "401", "403",
    "404", "4xx", "500", "502", "503", "504", "5xx", "ok",
];

/// States of other proxies whose series exist from the start.
const MEMBER_STATES: [MemberState; 5] = [
    MemberState::Alive,
    MemberState::Suspect,
    MemberState::Draining,
    MemberState::Left,
    MemberState::Down,
];

/// What a proxy measures.
#[derive(Debug, Clone)]
pub struct ProxyMetrics {
    /// Connected sessions of agents.
    pub agents: IntGauge,
    disconnects: IntCounterVec,
    dials: IntCounterVec,
    /// From the request to the answer, refused dials too.
    pub dial_duration: Histogram,
    requests: IntCounterVec,
    handshakes_refused: IntCounterVec,
    /// Handshakes answered with Retry.
    pub handshakes_retried: IntCounter,
    /// Packets lost on connections.
    pub lost_packets: IntCounter,
    /// Sessions beside which another process of the same name lived.
    pub clones: IntCounter,
    members: IntGaugeVec,
    /// Packets of gossip that were not taken.
    pub gossip_refused: IntCounter,
}

/// Where a dial went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// To a session of this proxy.
    Local,
    /// To a session of a peer.
    Peer,
    /// Nowhere.
    None,
}

impl Path {
    const ALL: [Self; 3] = [Self::Local, Self::Peer, Self::None];

    /// The label's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Peer => "peer",
            Self::None => "none",
        }
    }
}

/// Why a connection was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandshakeRefusal {
    /// It asked for a protocol that the proxy does not speak.
    WrongProtocol,
    /// No certificate.
    NoCertificate,
    /// A certificate outside of its validity.
    Expired,
    /// A certificate from an authority that is not trusted.
    UnknownAuthority,
    /// Another fault of the certificate.
    BadCertificate,
    /// A kind of identity that may not speak this protocol.
    WrongKind,
    /// Not complete in time, the hello included.
    Timeout,
    /// Another failure of TLS or QUIC, or something else than a hello.
    Protocol,
    /// The other side gave up.
    Abandoned,
    /// Another process is connected under the agent's name.
    Duplicate,
    /// Too many connections, or the proxy drains.
    Overloaded,
}

impl HandshakeRefusal {
    const ALL: [Self; 11] = [
        Self::WrongProtocol,
        Self::NoCertificate,
        Self::Expired,
        Self::UnknownAuthority,
        Self::BadCertificate,
        Self::WrongKind,
        Self::Timeout,
        Self::Protocol,
        Self::Abandoned,
        Self::Duplicate,
        Self::Overloaded,
    ];

    /// The label's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::WrongProtocol => "wrong_protocol",
            Self::NoCertificate => "no_certificate",
            Self::Expired => "expired",
            Self::UnknownAuthority => "unknown_authority",
            Self::BadCertificate => "bad_certificate",
            Self::WrongKind => "wrong_kind",
            Self::Timeout => "timeout",
            Self::Protocol => "protocol",
            Self::Abandoned => "abandoned",
            Self::Duplicate => "duplicate",
            Self::Overloaded => "overloaded",
        }
    }
}

impl ProxyMetrics {
    /// Makes the metrics and registers them.
    ///
    /// # Errors
    /// When the registry has them already.
    pub fn new(registry: &Registry) -> Result<Self, MetricsError> {
        let dials = metrics::registered(
            registry,
            IntCounterVec::new(
                Opts::new(
                    "mesh_dials_total",
                    "Dials asked of this proxy, by the way they went and their result.",
                ),
                &["path", "result"],
            )?,
        )?;
        for path in Path::ALL.map(Path::as_str) {
            for result in Reason::ALL
                .iter()
                .map(|reason| reason.as_str())
                .chain(["ok"])
            {
                dials.with_label_values(&[path, result]);
            }
        }
        let requests = metrics::registered(
            registry,
            IntCounterVec::new(
                Opts::new(
                    "mesh_ingress_requests_total",
                    "HTTP requests by status code, or by class where the code is rare; connections of a \
                     tcp ingress as `ok` or as the refusal's status.",
                ),
                &["kind", "code"],
            )?,
        )?;
        for kind in ["http", "tcp"] {
            for code in CODES {
                requests.with_label_values(&[kind, code]);
            }
        }
        let members = metrics::registered(
            registry,
            IntGaugeVec::new(
                Opts::new(
                    "mesh_proxy_members",
                    "Other proxies of the cluster that this one knows of, by state. Those that have left or are down are forgotten in time.",
                ),
                &["state"],
            )?,
        )?;
        for state in MEMBER_STATES.map(state_name) {
            members.with_label_values(&[state]);
        }
        Ok(Self {
            members,
            clones: metrics::counter(
                registry,
                "mesh_proxy_agent_clones_total",
                "Sessions of agents beside which another live process had the same identity.",
            )?,
            gossip_refused: metrics::counter(
                registry,
                "mesh_proxy_gossip_refused_total",
                "Packets of gossip that were malformed, or bore another sender than the certificate.",
            )?,
            agents: metrics::gauge(
                registry,
                "mesh_proxy_agents",
                "Sessions of agents that are connected to this proxy.",
            )?,
            disconnects: metrics::counter_vec(
                registry,
                "mesh_proxy_agent_disconnects_total",
                "Ended sessions of agents, by reason.",
                "reason",
                Ending::ALL.map(Ending::as_str),
            )?,
            dials,
            dial_duration: metrics::histogram(
                registry,
                "mesh_dial_duration_seconds",
                "From the request of a dial to its answer, refused ones too.",
                NETWORK_SECONDS,
            )?,
            requests,
            handshakes_refused: metrics::counter_vec(
                registry,
                "mesh_proxy_handshakes_refused_total",
                "QUIC connections that were not taken, by reason.",
                "reason",
                HandshakeRefusal::ALL.map(HandshakeRefusal::as_str),
            )?,
            handshakes_retried: metrics::counter(
                registry,
                "mesh_proxy_handshakes_retried_total",
                "QUIC handshakes answered with Retry, being over quic.handshakes_per_second.",
            )?,
            lost_packets: metrics::counter(
                registry,
                "mesh_quic_lost_packets_total",
                "Packets that QUIC connections of this node sent and declared lost, added when a stream opens and when a connection ends.",
            )?,
        })
    }

    /// Sets how many other proxies are known in which state.
    pub(super) fn members(&self, states: impl Iterator<Item = MemberState>) {
        let mut counts = BTreeMap::from(MEMBER_STATES.map(|state| (state_name(state), 0)));
        for state in states {
            *counts.entry(state_name(state)).or_default() += 1;
        }
        for (state, count) in counts {
            self.members.with_label_values(&[state]).set(count);
        }
    }

    pub(super) fn dialled(&self, path: Path, result: Result<(), Reason>) {
        let result = match result {
            Ok(()) => "ok",
            Err(reason) => reason.as_str(),
        };
        self.dials.with_label_values(&[path.as_str(), result]).inc();
    }

    pub(super) fn disconnected(&self, ending: Ending) {
        self.disconnects.with_label_values(&[ending.as_str()]).inc();
    }

    pub(super) fn refused(&self, refusal: HandshakeRefusal) {
        self.handshakes_refused
            .with_label_values(&[refusal.as_str()])
            .inc();
    }

    /// Counts a request of the `http` ingress.
    pub(super) fn http_request(&self, status: u16) {
        let code = status.to_string();
        let code = if CODES.contains(&code.as_str()) {
            code
        } else {
            format!("{}xx", (status / 100).clamp(1, 5))
        };
        self.requests.with_label_values(&["http", &code]).inc();
    }

    /// Counts a connection of the `tcp` ingress.
    pub(super) fn tcp_connection(&self, result: Result<(), Reason>) {
        match result {
            Ok(()) => self.requests.with_label_values(&["tcp", "ok"]).inc(),
            Err(reason) => self
                .requests
                .with_label_values(&["tcp", &reason.http_status().to_string()])
                .inc(),
        }
    }
}
