//! What the scenarios share: seeds, what agents count, and when agents arrive.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mesh_tests::Result;
use mesh_tests::sim::{NodeId, ProxyPlan, World, run};
use tokio::time::Instant;

pub(crate) const MS: Duration = Duration::from_millis(1);
pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// An address that leads nowhere: what is sent there is lost.
const NOWHERE: &str = "10.99.0.1:7443";

/// Runs a scenario with several seeds; `MESH_SIM_SEEDS` says how many.
pub(crate) fn seeds<F>(name: &str, count: u64, mut scenario: F) -> Result
where
    F: AsyncFnMut(&mut World) -> Result + Send,
{
    let count = match std::env::var("MESH_SIM_SEEDS") {
        Ok(text) => text.parse()?,
        Err(_) => count,
    };
    for seed in 1..=count {
        run(name, seed, async |world| scenario(world).await)?;
    }
    Ok(())
}

/// How many connections an agent has tried to make with this result.
pub(crate) fn connects(world: &World, agent: NodeId, result: &str) -> Result<usize> {
    let series = format!("mesh_agent_connects_total{{result=\"{result}\"}}");
    Ok(whole(world.metrics(agent)?.get(&series)?))
}

/// How many connections an agent has tried to make.
pub(crate) fn attempts(world: &World, agent: NodeId) -> Result<usize> {
    Ok(whole(
        world.metrics(agent)?.sum("mesh_agent_connects_total"),
    ))
}

/// A gauge of an agent.
pub(crate) fn gauge(world: &World, node: NodeId, series: &str) -> Result<usize> {
    Ok(whole(world.metrics(node)?.get(series)?))
}

/// A count, out of the metrics' floating point.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts of a test are small and not negative"
)]
pub(crate) fn whole(value: f64) -> usize {
    value as usize
}

/// The proxy advertises an address that leads nowhere: agents reach it through a balancer alone.
pub(crate) fn advertise_nowhere(plan: &mut ProxyPlan) {
    plan.config.common.quic.advertise = vec![NOWHERE.into()];
}

/// Every proxy has heard of every other one, as agents are told.
pub(crate) async fn know_each_other(world: &World) {
    world.run_for(5 * SECOND).await;
}

/// When agents have arrived at a proxy, those that turned round at once too.
#[derive(Debug, Clone, Default)]
pub(crate) struct Arrivals(Arc<Mutex<Vec<Instant>>>);

impl Arrivals {
    /// Watches a proxy that is about to start.
    pub(crate) fn watch(&self, plan: &mut ProxyPlan) {
        let arrivals = self.0.clone();
        plan.hooks.on_connect = Some(Arc::new(move |_| {
            let mut arrivals = arrivals.lock().unwrap_or_else(PoisonError::into_inner);
            arrivals.push(Instant::now());
        }));
    }

    /// All of them since `from`.
    pub(crate) fn since(&self, from: Instant) -> Vec<Instant> {
        let arrivals = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let late = arrivals.iter().filter(|at| **at >= from);
        late.copied().collect()
    }

    /// The most since `from` in any window of a second, wherever it begins.
    pub(crate) fn most_in_a_second(&self, from: Instant) -> usize {
        let times = self.since(from);
        let mut first = 0;
        let mut most = 0;
        for (last, at) in times.iter().enumerate() {
            while *at - times[first] >= SECOND {
                first += 1;
            }
            most = most.max(last - first + 1);
        }
        most
    }
}
