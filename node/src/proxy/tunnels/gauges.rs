//! What is measured of tunnel resources and their store.

use std::sync::{Arc, Weak};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use super::{Resources, TunnelState};
use crate::metrics::{self, MetricsError};

/// What was asked of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    /// To be told of changes.
    Watch,
    /// What it holds.
    Read,
    /// To change something.
    Write,
}

impl Operation {
    const ALL: [Self; 3] = [Self::Watch, Self::Read, Self::Write];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Watch => "watch",
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

/// Counts what the store did not do.
#[derive(Debug, Clone)]
pub(super) struct Errors(IntCounterVec);

impl Errors {
    pub(super) fn new(registry: &Registry) -> Result<Self, MetricsError> {
        metrics::counter_vec(
            registry,
            "mesh_store_errors_total",
            "What the store of tunnels failed to do.",
            "operation",
            Operation::ALL.map(Operation::as_str),
        )
        .map(Self)
    }

    pub(super) fn count(&self, operation: Operation) {
        self.0.with_label_values(&[operation.as_str()]).inc();
    }
}

/// Gauges that are read off when somebody looks, so that nothing polls the tunnels' states.
pub(super) struct Gauges {
    /// The registry may outlive the proxy.
    resources: Weak<Resources>,
    tunnels: IntGaugeVec,
    connected: IntGauge,
}

impl Gauges {
    pub(super) fn register(
        registry: &Registry,
        resources: &Arc<Resources>,
    ) -> Result<(), MetricsError> {
        registry.register(Box::new(Self::new(Arc::downgrade(resources))?))
    }

    fn new(resources: Weak<Resources>) -> Result<Self, MetricsError> {
        Ok(Self {
            resources,
            tunnels: IntGaugeVec::new(
                Opts::new(
                    "mesh_tunnel_resources",
                    "Tunnels to other clusters, by how they are.",
                ),
                &["state"],
            )?,
            connected: IntGauge::new(
                "mesh_store_connected",
                "1 while what is known of the store of tunnels is up to date, 0 while it cannot be read.",
            )?,
        })
    }
}

/// The names of all of these, for the test that each is documented.
///
/// # Errors
/// When one is no name of a metric.
#[doc(hidden)]
pub fn metric_names() -> Result<Vec<String>, MetricsError> {
    let errors = Errors::new(&Registry::new())?;
    let gauges = Gauges::new(Weak::new())?;
    let all = errors.0.desc().into_iter().chain(gauges.desc());
    Ok(all.map(|desc| desc.fq_name.clone()).collect())
}

impl Collector for Gauges {
    fn desc(&self) -> Vec<&Desc> {
        [self.tunnels.desc(), self.connected.desc()].concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Some(resources) = self.resources.upgrade() else {
            return Vec::new();
        };
        for (state, count) in TunnelState::NAMES.iter().zip(resources.count_states()) {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.tunnels.with_label_values(&[*state]).set(count);
        }
        self.connected.set(i64::from(resources.is_up_to_date()));
        [self.tunnels.collect(), self.connected.collect()].concat()
    }
}
