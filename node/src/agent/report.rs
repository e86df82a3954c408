//! What the admin API tells of an agent.

use std::sync::Arc;

use super::Shared;
use crate::report::{AgentStatus, Problem, Status};

/// A running agent, to look at.
#[derive(Debug, Clone)]
pub(crate) struct Observer {
    shared: Arc<Shared>,
}

impl Observer {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The whole at a glance.
    pub(crate) fn status(&self) -> Status {
        let shared = &self.shared;
        let common = &shared.config.common;
        let (counts, failing) = shared.pool.report();
        let leaves = shared.leaving.borrow().is_some();
        let mut problems = Vec::new();
        if !leaves && counts.connected < counts.desired {
            let why = failing.map_or_else(String::new, |why| format!(": {why}"));
            problems.push(Problem {
                what: format!(
                    "connected to {} of {} proxies{why}",
                    counts.connected, counts.desired
                ),
                remedy: "it goes on trying; see that the proxies run and that UDP reaches them, and read the log".into(),
            });
        }
        Status {
            role: "agent".into(),
            name: common.name.to_string(),
            cluster: common.cluster.to_string(),
            version: env!("CARGO_PKG_VERSION").into(),
            state: if leaves {
                "leaving"
            } else if *shared.connected.borrow() > 0 {
                "connected"
            } else {
                "connecting"
            }
            .into(),
            uptime_seconds: shared.started.elapsed().as_secs_f64(),
            problems,
            proxy: None,
            agent: Some(AgentStatus {
                desired: counts.desired,
                connected: counts.connected,
                held: counts.held,
                dialling: counts.dialling,
                streams: shared.node_metrics.streams_open(),
            }),
        }
    }
}
