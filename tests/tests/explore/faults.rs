//! What happens to a fleet.

use anyhow::{Context as _, ensure};
use mesh_tests::Result;
use mesh_tests::sim::{NodeId, Service, World, echoes};
use rand::Rng as _;
use rand::seq::IndexedRandom as _;

use crate::fleet::{Fleet, SECOND};

/// Faults of one life.
const FAULTS: usize = 12;

impl Fleet {
    /// One fault after the other, with traffic between them.
    pub(crate) async fn suffer(&mut self, world: &mut World) -> Result {
        for _ in 0..FAULTS {
            self.fault(world).await?;
            for _ in 0..self.rng.random_range(0..20) {
                world.run_for(SECOND).await;
                self.bounds(world)?;
            }
            for _ in 0..self.rng.random_range(0..3) {
                self.traffic(world).await?;
            }
        }
        Ok(())
    }

    fn any(&mut self, nodes: &[NodeId]) -> Option<NodeId> {
        nodes.choose(&mut self.rng).copied()
    }

    async fn fault(&mut self, world: &mut World) -> Result {
        let proxies: Vec<NodeId> = self.proxies.clone();
        let agents: Vec<NodeId> = self.agents.iter().map(|(agent, _)| *agent).collect();
        let up: Vec<NodeId> = proxies
            .iter()
            .copied()
            .filter(|proxy| self.is_up(*proxy))
            .collect();
        let kind = self.rng.random_range(0..13);
        match kind {
            0 => {
                if let Some(proxy) = self.any(&up) {
                    self.tell(world, format!("kill {}", world.name(proxy)));
                    world.kill(proxy);
                    self.down.push(proxy);
                }
            }
            1 => {
                if let Some(proxy) = self.any(&up) {
                    self.tell(world, format!("stop {}", world.name(proxy)));
                    world.stop(proxy).await?;
                    self.down.push(proxy);
                }
            }
            2 | 3 => {
                let down = self.down.clone();
                if let Some(node) = self.any(&down) {
                    self.restart(world, node).await?;
                }
            }
            4 => {
                let nodes = [proxies, agents].concat();
                if let Some(node) = self.any(&nodes)
                    && self.is_up(node)
                {
                    self.tell(world, format!("freeze {}", world.name(node)));
                    world.freeze(node);
                    self.frozen.push(node);
                }
            }
            5 => self.thaw(world),
            6 | 7 => {
                let nodes = [proxies.clone(), agents].concat();
                if let (Some(a), Some(b)) = (self.any(&nodes), self.any(&proxies)) {
                    self.tell(world, format!("cut {} - {}", world.name(a), world.name(b)));
                    world.cut(a, b);
                }
            }
            8 => {
                if let (Some(a), Some(b)) = (self.any(&proxies), self.any(&agents)) {
                    self.tell(world, format!("cut {} -> {}", world.name(a), world.name(b)));
                    world.net().cut_one_way(a, b);
                }
            }
            9 => {
                self.tell(world, "heal all links");
                world.net().heal_all();
            }
            10 => {
                if let Some(nat) = self.nat {
                    self.tell(world, "the NAT forgets");
                    if self.rng.random_bool(0.5) {
                        world.net().flush_nat(nat);
                    } else {
                        world.net().rebind_nat(nat);
                    }
                }
            }
            11 => {
                if let Some(proxy) = self.any(&proxies) {
                    self.tell(world, format!("isolate {}", world.name(proxy)));
                    world.net().set_isolated(proxy, true);
                }
            }
            _ => {
                if let Some(agent) = self.any(&agents)
                    && self.is_up(agent)
                {
                    self.tell(world, format!("kill and start {}", world.name(agent)));
                    world.kill(agent);
                    self.restart(world, agent).await?;
                }
            }
        }
        Ok(())
    }

    async fn restart(&mut self, world: &mut World, node: NodeId) -> Result {
        self.tell(world, format!("start {}", world.name(node)));
        self.down.retain(|down| *down != node);
        world.restart(node).await?;
        if let Some(index) = self.agents.iter().position(|(agent, _)| *agent == node) {
            self.agents[index].1 = world.serve_loopback(node, 7, Service::Echo)?;
        }
        Ok(())
    }

    fn thaw(&mut self, world: &World) {
        for node in std::mem::take(&mut self.frozen) {
            self.tell(world, format!("thaw {}", world.name(node)));
            world.thaw(node);
        }
    }

    /// All faults end.
    pub(crate) async fn heal(&mut self, world: &mut World) -> Result {
        self.tell(world, "all faults end");
        world.net().heal_all();
        self.thaw(world);
        for node in self.down.clone() {
            self.restart(world, node).await?;
        }
        Ok(())
    }

    /// A dial from somewhere to somewhere: it succeeds, or ends with a refusal in time.
    async fn traffic(&mut self, world: &mut World) -> Result {
        let up: Vec<NodeId> = self
            .proxies
            .iter()
            .copied()
            .filter(|proxy| self.is_up(*proxy))
            .collect();
        let Some(proxy) = self.any(&up) else {
            return Ok(());
        };
        let index = self.rng.random_range(0..self.agents.len());
        let (agent, echo) = &self.agents[index];
        let started = world.elapsed();
        let dialled = world.dial(proxy, *agent, &echo.rule()).await;
        let took = world.elapsed() - started;
        // The deadline of a dial is 10 s.
        ensure!(
            took <= 11 * SECOND,
            "a dial through {} to {} took {took:?}",
            world.name(proxy),
            world.name(*agent)
        );
        if let Ok(tunnel) = dialled {
            // What breaks under it is for the user to see; what comes must be right.
            let _ = tokio::time::timeout(20 * SECOND, echoes(tunnel, b"are you there?")).await;
        }
        Ok(())
    }

    /// Every agent is reached through every proxy.
    pub(crate) async fn everybody_is_reached(&mut self, world: &World) -> Result {
        for proxy in &self.proxies {
            for (agent, echo) in &self.agents {
                let tunnel = world.dial(*proxy, *agent, &echo.rule()).await;
                let tunnel = tunnel.with_context(|| {
                    format!(
                        "{} through {} when all is over",
                        world.name(*agent),
                        world.name(*proxy)
                    )
                })?;
                echoes(tunnel, b"here").await?;
            }
        }
        Ok(())
    }
}
