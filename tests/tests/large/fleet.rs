//! The fleet, and what must hold of it at every moment.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{bail, ensure};
use mesh_proto::name::AgentName;
use mesh_tests::Result;
use mesh_tests::sim::{Link, NodeId, Running, Service, World};
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use crate::load::{Ended, Load};

pub(crate) const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

/// Connections that every agent wants.
pub(crate) const WANTED: usize = 3;

/// Interval of the looks at the fleet.
const TICK: Duration = Duration::from_millis(200);

/// Dials that begin in each tick, for each hundred agents; and at least.
const DIALS: (usize, usize) = (1, 4);

/// The membership is whole again within this, after the network is back.
const HEALED: Duration = Duration::from_secs(10);

/// Within this after the last fault every agent has its connections again: the idle timeout (15 s),
/// until the loss of a proxy is noticed; the longest wait after a failure (30 s); one failed dial
/// (10 s), another wait.
const RECOVERED: Duration = Duration::from_secs(90);

/// How large a fleet is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) proxies: usize,
    pub(crate) agents: usize,
}

/// The nodes, the dials, and what has happened.
pub(crate) struct Fleet {
    pub(crate) rng: StdRng,
    pub(crate) proxies: Vec<NodeId>,
    pub(crate) agents: Vec<(NodeId, Running)>,
    pub(crate) load: Load,
    /// No fault is there, and the fleet has recovered from the last one.
    calm: bool,
    /// No proxy may take another one for dead.
    pub(crate) nobody_dies: bool,
}

/// The network when nothing is wrong with it.
pub(crate) fn healthy() -> Link {
    Link::latency(20 * MS).jittery(5 * MS)
}

impl Fleet {
    /// Starts a fleet and waits until it is whole.
    pub(crate) async fn grow(world: &mut World, size: Size) -> Result<Self> {
        world.net().set_default_link(healthy());
        let proxies = world.start_proxies(size.proxies).await?;
        let started = world
            .start_agents_with(size.agents, |_, plan| {
                plan.config.connection_count = Some(u32::try_from(WANTED)?);
                plan.allow(&["127.0.0.1:7".into()])
            })
            .await?;
        let mut agents = Vec::new();
        for agent in started {
            agents.push((agent, world.serve_loopback(agent, 7, Service::Echo)?));
        }
        let mut fleet = Self {
            rng: StdRng::seed_from_u64(world.seed()),
            proxies,
            agents,
            load: Load::new(world.seed()),
            calm: false,
            nobody_dies: false,
        };
        fleet.tell(
            world,
            format!(
                "seed {}: {} proxies, {} agents",
                world.seed(),
                size.proxies,
                size.agents
            ),
        );
        fleet.recover(world, RECOVERED).await?;
        Ok(fleet)
    }

    /// Says what happens, at once: a large fleet takes minutes.
    #[expect(clippy::print_stdout, reason = "what a failed or a long test says")]
    pub(crate) fn tell(&self, world: &World, what: impl std::fmt::Display) {
        println!("{:>9.3?} {what}", world.elapsed());
    }

    /// Says how dials have ended.
    pub(crate) fn tell_of_dials(&self, world: &World) {
        let Load { ended, longest, .. } = &self.load;
        self.tell(world, format!("dials: {ended:?}, the longest {longest:?}"));
    }

    // ---- time

    /// Lets a moment pass, with dials; then judges.
    async fn tick(&mut self, world: &World) -> Result {
        let everybody = (&self.proxies[..], &self.agents[..]);
        let dials = (DIALS.0 * self.agents.len() / 100).max(DIALS.1);
        self.load.begin(world, everybody, dials, self.calm)?;
        world.run_for(TICK).await;
        self.load.judge(self.calm)?;
        if self.calm {
            for (agent, _) in &self.agents {
                let held = world.connections(*agent);
                let name = world.name(*agent);
                ensure!(
                    held >= WANTED,
                    "nothing is wrong, and {name} has {held} connections"
                );
            }
        }
        if self.nobody_dies {
            for proxy in &self.proxies {
                for peer in world.proxy(*proxy)?.peers() {
                    let (taker, taken) = (world.name(*proxy), &peer.name);
                    ensure!(
                        peer.state != "down" && peer.state != "left",
                        "{taker} takes {taken} for {} at {:?}",
                        peer.state,
                        world.elapsed()
                    );
                }
            }
        }
        Ok(())
    }

    /// Lets time pass.
    pub(crate) async fn pass(&mut self, world: &World, time: Duration) -> Result {
        let until = world.elapsed() + time;
        while world.elapsed() < until {
            self.tick(world).await?;
        }
        Ok(())
    }

    /// Lets time pass until `condition` holds; returns how long it took.
    pub(crate) async fn within(
        &mut self,
        world: &World,
        bound: Duration,
        what: &str,
        mut condition: impl FnMut(&Self, &World) -> bool,
    ) -> Result<Duration> {
        let started = world.elapsed();
        loop {
            if condition(self, world) {
                return Ok(world.elapsed() - started);
            }
            if world.elapsed() - started >= bound {
                bail!("waited {bound:?} of virtual time for: {what}");
            }
            self.tick(world).await?;
        }
    }

    // ---- states

    /// Whether every proxy is connected to every other, and takes it for alive.
    pub(crate) fn is_meshed(&self, world: &World) -> bool {
        self.proxies.iter().all(|proxy| {
            let peers = world.proxy(*proxy).map(|proxy| proxy.peers());
            let alive = peers.into_iter().flatten();
            let alive = alive.filter(|peer| peer.state == "alive" && peer.connection.is_some());
            alive.count() == self.proxies.len() - 1
        })
    }

    /// Whether every agent has its connections, and the proxies say so too: one that has died is
    /// noticed by the next packet to it, and counts until then.
    fn is_connected(&self, world: &World) -> bool {
        let mut sessions: BTreeMap<AgentName, usize> = BTreeMap::new();
        for proxy in &self.proxies {
            let held = world.proxy(*proxy).map(|proxy| proxy.sessions());
            for session in held.into_iter().flatten() {
                *sessions.entry(session.agent.clone()).or_default() += 1;
            }
        }
        self.agents.iter().all(|(agent, _)| {
            let held = world.connections(*agent);
            held >= WANTED && sessions.get(world.name(*agent)) == Some(&held)
        })
    }

    /// Something is about to go wrong.
    pub(crate) fn trouble(&mut self, world: &World, what: &str) {
        self.calm = false;
        self.tell(world, what);
    }

    /// All faults of a chapter have ended: soon the membership is whole, then every agent has its
    /// connections, and a while of peace follows.
    pub(crate) async fn heal(&mut self, world: &World) -> Result {
        world.net().heal_all();
        world.net().set_default_link(healthy());
        self.recover(world, HEALED).await
    }

    /// As [`Fleet::heal`], once nothing is wrong any more.
    pub(crate) async fn recover(&mut self, world: &World, bound: Duration) -> Result {
        let meshed = self
            .within(world, bound, "the proxies are a mesh", Self::is_meshed)
            .await?;
        let left = RECOVERED - meshed;
        let connected = self
            .within(
                world,
                left,
                "agents have their connections",
                Self::is_connected,
            )
            .await?;
        self.tell(
            world,
            format!(
                "whole after {meshed:?}, all agents connected after {:?}",
                meshed + connected
            ),
        );
        self.calm = true;
        self.pass(world, 20 * SECOND).await
    }

    /// Every proxy reaches agents, and every agent is reached: all pairs of a small fleet, a sample
    /// of a large one.
    pub(crate) async fn everybody_is_reached(&mut self, world: &World) -> Result {
        let before = self.load.share(Ended::Reached);
        let each = (PAIRS / self.proxies.len())
            .max(self.agents.len().div_ceil(self.proxies.len()))
            .min(self.agents.len());
        for (index, proxy) in self.proxies.iter().enumerate() {
            for turn in 0..each {
                let at = (index * each + turn) % self.agents.len();
                let way = (std::slice::from_ref(proxy), &self.agents[at..=at]);
                self.load.begin(world, way, 1, true)?;
            }
            world.run_for(TICK).await;
            self.load.judge(true)?;
        }
        self.load.settle().await?;
        let after = self.load.share(Ended::Reached);
        ensure!(
            after.0 - before.0 == after.1 - before.1,
            "not everybody is reached: {:?}",
            self.load.ended
        );
        self.tell(
            world,
            format!("{} pairs reach each other", after.0 - before.0),
        );
        Ok(())
    }
}

/// Pairs of a proxy and an agent that are tried at the end, if there are as many.
const PAIRS: usize = 4_000;
