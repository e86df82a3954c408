//! What an agent measures.

use mesh_proto::refusal::Reason;
use prometheus::{IntCounterVec, IntGauge, Registry};

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
    /// Another failure.
    Failed,
}

impl ConnectResult {
    const ALL: [Self; 6] = [
        Self::Ok,
        Self::ResolveFailed,
        Self::Timeout,
        Self::Untrusted,
        Self::Refused,
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
            Self::Failed => "failed",
        }
    }
}

/// What an agent measures.
#[derive(Debug, Clone)]
pub struct AgentMetrics {
    /// How many connections are wanted.
    pub desired_proxies: IntGauge,
    /// How many of them stand.
    pub connected_proxies: IntGauge,
    connects: IntCounterVec,
    dials: IntCounterVec,
}

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
            connects: metrics::counter_vec(
                registry,
                "mesh_agent_connects_total",
                "Attempts to connect to a proxy, by result.",
                "result",
                ConnectResult::ALL.map(ConnectResult::as_str),
            )?,
            dials: metrics::counter_vec(
                registry,
                "mesh_agent_dials_total",
                "Dials that proxies asked of this agent, by result.",
                "result",
                Reason::ALL.iter().map(|reason| reason.as_str()).chain(["ok"]),
            )?,
        })
    }

    pub(super) fn connect(&self, result: ConnectResult) {
        self.connects.with_label_values(&[result.as_str()]).inc();
    }

    pub(super) fn dialled(&self, result: Result<(), Reason>) {
        let result = match result {
            Ok(()) => "ok",
            Err(reason) => reason.as_str(),
        };
        self.dials.with_label_values(&[result]).inc();
    }
}
