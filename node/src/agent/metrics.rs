//! What an agent measures.

use std::time::Duration;

use mesh_proto::pool::{Counts, Ignored, IgnoredCounts};
use mesh_proto::refusal::Reason;
use prometheus::{Gauge, IntCounterVec, IntGauge, Registry};

use super::ending::Ending;
use crate::metrics::{self, MetricsError};

/// How an attempt to connect ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectResult {
    /// The proxy's hello has arrived.
    Ok,
    /// The name has no address.
    ResolveFailed,
    /// Nothing answered in time.
    Timeout,
    /// Somebody answered who could not be trusted, or did not trust this agent.
    Untrusted,
    /// The proxy takes no connections now.
    Refused,
    /// A proxy was reached that is connected already.
    Duplicate,
    /// Another failure.
    Failed,
}

impl ConnectResult {
    const ALL: [Self; 7] = [
        Self::Ok,
        Self::ResolveFailed,
        Self::Timeout,
        Self::Untrusted,
        Self::Refused,
        Self::Duplicate,
        Self::Failed,
    ];

    /// The label's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::ResolveFailed => "resolve_failed",
            Self::Timeout => "timeout",
            Self::Untrusted => "untrusted",
            Self::Refused => "refused",
            Self::Duplicate => "duplicate",
            Self::Failed => "failed",
        }
    }
}

/// What an agent measures.
#[derive(Debug, Clone)]
pub struct AgentMetrics {
    desired_proxies: IntGauge,
    connected_proxies: IntGauge,
    connections: IntGauge,
    inflight_leases: IntGauge,
    cooling_proxies: IntGauge,
    backoff_seconds: Gauge,
    connects: IntCounterVec,
    disconnects: IntCounterVec,
    ignored_members: IntCounterVec,
    dials: IntCounterVec,
    own_dials: IntCounterVec,
}

/// The result of a dial of this agent when it had no proxy to dial through.
pub(super) const NOT_CONNECTED: &str = "not_connected";

impl AgentMetrics {
    /// Makes the metrics and registers them.
    ///
    /// # Errors
    /// When the registry has them already.
    pub fn new(registry: &Registry) -> Result<Self, MetricsError> {
        Ok(Self {
            desired_proxies: metrics::gauge(
                registry,
                "mesh_agent_desired_proxies",
                "Proxies that this agent wants to be connected to.",
            )?,
            connected_proxies: metrics::gauge(
                registry,
                "mesh_agent_connected_proxies",
                "Desired proxies that this agent is connected to.",
            )?,
            connections: metrics::gauge(
                registry,
                "mesh_agent_connections",
                "All connections to proxies, those to draining proxies and old generations too.",
            )?,
            inflight_leases: metrics::gauge(
                registry,
                "mesh_agent_inflight_leases",
                "Dials of proxies that are under way.",
            )?,
            cooling_proxies: metrics::gauge(
                registry,
                "mesh_agent_cooling_proxies",
                "Proxies that are not dialled for a while, having failed.",
            )?,
            backoff_seconds: metrics::registered(
                registry,
                Gauge::new(
                    "mesh_agent_backoff_seconds",
                    "Time until a configured address is dialled again, having failed; as of the last change.",
                )?,
            )?,
            connects: metrics::counter_vec(
                registry,
                "mesh_agent_connects_total",
                "Attempts to connect to a proxy, by result.",
                "result",
                ConnectResult::ALL.map(ConnectResult::as_str),
            )?,
            disconnects: metrics::counter_vec(
                registry,
                "mesh_agent_disconnects_total",
                "Connections to proxies that have ended, by reason.",
                "reason",
                Ending::ALL.map(Ending::as_str),
            )?,
            ignored_members: metrics::counter_vec(
                registry,
                "mesh_agent_members_ignored_total",
                "What proxies told of proxies and was ignored, by reason.",
                "reason",
                Ignored::ALL.map(Ignored::as_str),
            )?,
            dials: metrics::counter_vec(
                registry,
                "mesh_agent_dials_total",
                "Dials that proxies asked of this agent, by result.",
                "result",
                Reason::ALL
                    .iter()
                    .map(|reason| reason.as_str())
                    .chain(["ok"]),
            )?,
            own_dials: metrics::counter_vec(
                registry,
                "mesh_agent_own_dials_total",
                "Dials of other agents' targets that this agent asked of its proxies, by result.",
                "result",
                Reason::ALL
                    .iter()
                    .map(|reason| reason.as_str())
                    .chain(["ok", NOT_CONNECTED]),
            )?,
        })
    }

    pub(super) fn pool(&self, counts: &Counts, backoff: Duration) {
        let set =
            |gauge: &IntGauge, count: usize| gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        set(&self.desired_proxies, counts.desired);
        set(&self.connected_proxies, counts.connected);
        set(&self.connections, counts.held);
        set(&self.inflight_leases, counts.dialling);
        set(&self.cooling_proxies, counts.cooling);
        self.backoff_seconds.set(backoff.as_secs_f64());
    }

    pub(super) fn connect(&self, result: ConnectResult) {
        self.connects.with_label_values(&[result.as_str()]).inc();
    }

    /// A dial of this agent has ended so.
    pub(super) fn dialled_out(&self, result: &str) {
        self.own_dials.with_label_values(&[result]).inc();
    }

    pub(super) fn disconnect(&self, ending: Ending) {
        self.disconnects.with_label_values(&[ending.as_str()]).inc();
    }

    pub(super) fn ignored(&self, ignored: &IgnoredCounts) {
        for (why, count) in ignored.iter() {
            self.ignored_members
                .with_label_values(&[why.as_str()])
                .inc_by(count);
        }
    }

    pub(super) fn dialled(&self, result: Result<(), Reason>) {
        let result = match result {
            Ok(()) => "ok",
            Err(reason) => reason.as_str(),
        };
        self.dials.with_label_values(&[result]).inc();
    }
}
