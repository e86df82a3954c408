//! What must hold: always, and again when the faults have ended.

use std::time::Duration;

use anyhow::ensure;
use mesh_tests::Result;
use mesh_tests::sim::{NodeId, World};

use crate::fleet::{Fleet, RECONNECTS_PER_SECOND, SECOND};

/// Within this after the last fault every agent has its connections again: the idle timeout (15 s),
/// until the loss of a proxy is noticed; the longest wait after a failure (30 s); one failed dial to a
/// proxy that is not back yet (10 s), and another wait.
const RECOVERY: Duration = Duration::from_secs(90);

/// Surplus goes and leases come back when nothing has changed for this long.
const QUIET: Duration = Duration::from_secs(60);

/// Dials that an agent may have under way at one time.
const PARALLEL_DIALS_MAX: f64 = 4.0;

/// Dials of one agent in a minute of whatever trouble.
const DIALS_PER_MINUTE_MAX: f64 = 240.0;

impl Fleet {
    /// What holds at every moment.
    pub(crate) fn bounds(&self, world: &World) -> Result {
        let minutes = (world.elapsed().as_secs_f64() / 60.0).max(1.0);
        for (agent, _) in &self.agents {
            if self.down.contains(agent) {
                continue;
            }
            let metrics = world.metrics(*agent)?;
            let name = world.name(*agent);
            let leases = metrics.get("mesh_agent_inflight_leases")?;
            ensure!(
                (0.0..=PARALLEL_DIALS_MAX).contains(&leases),
                "{name} has {leases} leases in flight"
            );
            let dials = metrics.sum("mesh_agent_dials_total");
            ensure!(
                dials <= DIALS_PER_MINUTE_MAX * minutes,
                "{name} has made {dials} dials in {minutes:.1} minutes"
            );
            let connected = metrics.get("mesh_agent_connected_proxies")?;
            ensure!(
                connected <= metrics.get("mesh_agent_connections")?,
                "{name} claims {connected} proxies with fewer connections"
            );
        }
        Ok(())
    }

    fn wanted(&self) -> usize {
        match self.count {
            0 => self.proxies.len(),
            count => self.proxies.len().min(count as usize),
        }
    }

    /// Waits until every agent has what it wants, and every proxy knows every other.
    pub(crate) async fn whole(&mut self, world: &World, bound: Duration) -> Result {
        let wanted = self.wanted();
        let agents: Vec<NodeId> = self.agents.iter().map(|(agent, _)| *agent).collect();
        let is_connected = |agent: &NodeId| {
            world.metrics(*agent).is_ok_and(|metrics| {
                metrics
                    .get("mesh_agent_connected_proxies")
                    .is_ok_and(|connected| connected >= wanted as f64)
            })
        };
        let took = world
            .within(bound, "every agent has its connections", |_| {
                agents.iter().all(is_connected)
            })
            .await?;
        let others = self.proxies.len() - 1;
        world
            .within(bound, "the proxies are a mesh", |w| {
                self.proxies.iter().all(|proxy| {
                    w.proxy(*proxy).is_ok_and(|proxy| {
                        let peers = proxy.peers();
                        let alive = peers
                            .iter()
                            .filter(|peer| peer.state == "alive" && peer.connection.is_some());
                        alive.count() == others
                    })
                })
            })
            .await?;
        self.tell(world, format!("whole, after {took:?}"));
        Ok(())
    }

    /// The faults end; within a bound everything is as it should be, and stays so.
    pub(crate) async fn recover(&mut self, world: &mut World) -> Result {
        self.heal(world).await?;
        self.whole(world, RECOVERY).await?;
        world.run_for(QUIET).await;
        self.bounds(world)?;
        self.everybody_is_reached(world).await?;

        let wanted = self.wanted();
        let mut held = 0;
        for (agent, _) in &self.agents {
            let metrics = world.metrics(*agent)?;
            let name = world.name(*agent);
            for (series, value) in [
                ("mesh_agent_inflight_leases", 0.0),
                ("mesh_agent_connections", wanted as f64),
                ("mesh_agent_connected_proxies", wanted as f64),
                ("mesh_agent_desired_proxies", wanted as f64),
            ] {
                let is = metrics.get(series)?;
                ensure!(is == value, "{series} of {name} is {is}, not {value}");
            }
            held += world.connections(*agent);
        }
        let believed: usize = self
            .proxies
            .iter()
            .map(|proxy| world.sessions(*proxy))
            .sum();
        ensure!(
            believed == held,
            "proxies believe in {believed} sessions, agents hold {held} connections"
        );

        // Nobody dials without need: a quiet minute makes no dial.
        let dials = |world: &World| -> Result<f64> {
            let mut sum = 0.0;
            for (agent, _) in &self.agents {
                sum += world.metrics(*agent)?.sum("mesh_agent_dials_total");
            }
            Ok(sum)
        };
        let before = dials(world)?;
        world.run_for(QUIET).await;
        let idle = dials(world)? - before;
        ensure!(idle == 0.0, "{idle} dials in a quiet minute");

        // One more proxy is lost: who comes to the survivors, comes within their budget.
        if self.count > 0 && self.proxies.len() > 2 {
            let lost = self.proxies[0];
            let moving = world.sessions(lost);
            self.tell(
                world,
                format!("{} dies, of {moving} sessions", world.name(lost)),
            );
            world.kill(lost);
            let mut before: Vec<usize> = Vec::new();
            for _ in 0..60 {
                world.run_for(SECOND).await;
                let now: Vec<usize> = self.proxies[1..]
                    .iter()
                    .map(|proxy| world.sessions(*proxy))
                    .collect();
                for (now, before) in now.iter().zip(&before) {
                    ensure!(
                        now.saturating_sub(*before) <= RECONNECTS_PER_SECOND as usize,
                        "{} agents came to one proxy in a second",
                        now - before
                    );
                }
                before = now;
            }
            let after: usize = before.iter().sum();
            ensure!(after == held, "{after} sessions of {held} are back");
        }
        Ok(())
    }
}
