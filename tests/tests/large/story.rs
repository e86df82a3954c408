//! What happens to the fleet, chapter by chapter.

use std::collections::BTreeSet;

use anyhow::ensure;
use mesh_tests::Result;
use mesh_tests::sim::{NodeId, World};
use rand::Rng as _;
use rand::seq::SliceRandom as _;

use crate::fleet::{Fleet, SECOND, healthy};
use crate::load::Ended;

/// A clock that is wrong by this much still takes all certificates for valid.
const HALF_AN_HOUR: i64 = 1_800;

/// Nobody's certificate is valid for a clock that is wrong by this much.
const A_YEAR: i64 = 365 * 86_400;

impl Fleet {
    /// One chapter after the other; after each, all is well again.
    pub(crate) async fn live(&mut self, world: &mut World) -> Result {
        self.split(world).await?;
        self.one_way(world).await?;
        self.some_pairs(world).await?;
        self.losses(world).await?;
        self.wrong_clocks(world).await?;
        self.restart_with_wrong_clocks(world).await?;
        self.everybody_is_reached(world).await
    }

    /// Half of the proxies and half of the agents see nothing of the others.
    async fn split(&mut self, world: &World) -> Result {
        self.trouble(world, "the network is split");
        let (left, right) = self.proxies.split_at(self.proxies.len() / 2);
        let (left, right) = (left.to_vec(), right.to_vec());
        let middle = self.agents.len() / 2;
        for (proxies, others, agents) in [
            (&left, &right, &self.agents[middle..]),
            (&right, &left, &self.agents[..middle]),
        ] {
            for proxy in proxies {
                for other in others {
                    world.cut(*proxy, *other);
                }
                for (agent, _) in agents {
                    world.cut(*proxy, *agent);
                }
            }
        }
        let sides = [left, right];
        let took = self
            .within(world, 60 * SECOND, "each side is alone", |_, world| {
                let [left, right] = &sides;
                are_down(world, left, right) && are_down(world, right, left)
            })
            .await?;
        self.tell(world, format!("each side is alone after {took:?}"));
        self.pass(world, 60 * SECOND).await?;
        // Each side serves its own.
        for (side, proxies) in sides.iter().enumerate() {
            let agents = if side == 0 {
                &self.agents[..middle]
            } else {
                &self.agents[middle..]
            };
            for (agent, echo) in agents.iter().take(50) {
                let at = self.rng.random_range(0..proxies.len());
                let tunnel = world.dial(proxies[at], *agent, &echo.rule()).await?;
                mesh_tests::sim::echoes(tunnel, b"on this side").await?;
            }
        }
        self.heal(world).await
    }

    /// Half of the proxies hear the others, and are not heard.
    async fn one_way(&mut self, world: &World) -> Result {
        self.trouble(world, "one half of the proxies does not hear the other");
        let (left, right) = self.proxies.split_at(self.proxies.len() / 2);
        for a in left {
            for b in right {
                world.net().cut_one_way(*a, *b);
            }
        }
        self.pass(world, 60 * SECOND).await?;
        self.heal(world).await
    }

    /// A fifth of all pairs of proxies, and of an agent and a proxy, see nothing of each other.
    async fn some_pairs(&mut self, world: &World) -> Result {
        self.trouble(world, "a fifth of all pairs is cut");
        for (index, a) in self.proxies.iter().enumerate() {
            let agents = self.agents.iter().map(|(agent, _)| agent);
            for b in self.proxies[index + 1..].iter().chain(agents) {
                if self.rng.random_bool(0.2) {
                    world.cut(*a, *b);
                }
            }
        }
        self.pass(world, 60 * SECOND).await?;
        self.heal(world).await
    }

    async fn losses(&mut self, world: &World) -> Result {
        self.trouble(world, "5 % of all packets are lost");
        world.net().set_default_link(healthy().lossy(0.05));
        self.nobody_dies = true;
        self.pass(world, 180 * SECOND).await?;
        self.nobody_dies = false;
        self.trouble(world, "20 % of all packets are lost");
        world.net().set_default_link(healthy().lossy(0.2));
        let before = self.load.share(Ended::Reached);
        self.pass(world, 120 * SECOND).await?;
        let after = self.load.share(Ended::Reached);
        let (reached, dials) = (after.0 - before.0, after.1 - before.1);
        self.tell(world, format!("{reached} of {dials} dials reached"));
        ensure!(reached * 2 > dials, "{reached} of {dials} dials reached");
        self.heal(world).await
    }

    /// Clocks are set forwards and backwards under nodes that run: nobody notices.
    async fn wrong_clocks(&mut self, world: &World) -> Result {
        self.tell(world, "the clocks of half the nodes jump");
        self.nobody_dies = true;
        let mut nodes = self.nodes();
        nodes.shuffle(&mut self.rng);
        nodes.truncate(nodes.len() / 2);
        for off in [HALF_AN_HOUR, -HALF_AN_HOUR, A_YEAR, -A_YEAR] {
            for node in &nodes {
                let off = if self.rng.random_bool(0.5) { off } else { 0 };
                world.set_clock_off(*node, off);
            }
            // No connection is lost, and every dial reaches its agent: see `tick`.
            self.pass(world, 20 * SECOND).await?;
        }
        self.nobody_dies = false;
        for node in nodes {
            world.set_clock_off(node, 0);
        }
        self.pass(world, 20 * SECOND).await
    }

    /// Proxies die while clocks are wrong: by little, and all recover; by much, and who cannot be
    /// trusted is left out until its clock is right.
    async fn restart_with_wrong_clocks(&mut self, world: &mut World) -> Result {
        self.trouble(
            world,
            "two proxies start again, their clocks half an hour off",
        );
        for (proxy, off) in self
            .proxies
            .clone()
            .into_iter()
            .zip([HALF_AN_HOUR, -HALF_AN_HOUR])
        {
            world.set_clock_off(proxy, off);
            restart(world, proxy).await?;
        }
        self.heal(world).await?;
        self.trouble(world, "one starts again, a year ahead");
        let proxy = self.proxies[0];
        world.set_clock_off(proxy, A_YEAR);
        restart(world, proxy).await?;
        self.pass(world, 60 * SECOND).await?;
        ensure!(
            world.sessions(proxy) == 0,
            "nobody's certificate is valid for it"
        );
        for proxy in self.nodes() {
            world.set_clock_off(proxy, 0);
        }
        self.tell(world, "its clock is right");
        self.recover(world, 60 * SECOND).await
    }

    fn nodes(&self) -> Vec<NodeId> {
        let agents = self.agents.iter().map(|(agent, _)| *agent);
        self.proxies.iter().copied().chain(agents).collect()
    }
}

/// Whether all of `those` take all of `others` for dead.
fn are_down(world: &World, those: &[NodeId], others: &[NodeId]) -> bool {
    those.iter().all(|proxy| {
        let peers = world.proxy(*proxy).map(|proxy| proxy.peers());
        let peers = peers.unwrap_or_default();
        let down: BTreeSet<&str> = peers
            .iter()
            .filter(|peer| peer.state == "down")
            .map(|peer| peer.name.as_str())
            .collect();
        others.iter().all(|other| down.contains(world.name(*other)))
    })
}

/// A proxy dies and is started again.
async fn restart(world: &mut World, proxy: NodeId) -> Result {
    world.kill(proxy);
    // What is left of the process lets go of the state directory.
    world.run_for(SECOND).await;
    world.restart(proxy).await
}
