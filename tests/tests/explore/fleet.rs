//! A fleet that a seed decides.

use std::fmt::Write as _;
use std::time::Duration;

use mesh_tests::Result;
use mesh_tests::sim::{
    Answer, Balancing, Link, Mapping, NatConfig, NodeId, Running, Service, World,
};
use rand::Rng as _;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

pub(crate) const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

/// The reconnect budget of every proxy: agents that lose one come back at that rate.
pub(crate) const RECONNECTS_PER_SECOND: u32 = 50;

/// The nodes, and what has happened to them.
pub(crate) struct Fleet {
    pub(crate) rng: StdRng,
    pub(crate) proxies: Vec<NodeId>,
    pub(crate) agents: Vec<(NodeId, Running)>,
    /// Proxies and agents that are down.
    pub(crate) down: Vec<NodeId>,
    pub(crate) frozen: Vec<NodeId>,
    /// Connections that every agent wants; 0 is all.
    pub(crate) count: u32,
    pub(crate) nat: Option<mesh_tests::sim::NatId>,
    story: Vec<String>,
}

impl Fleet {
    /// Starts a fleet of whatever size and shape.
    pub(crate) async fn grow(world: &mut World) -> Result<Self> {
        let mut rng = StdRng::seed_from_u64(world.seed());
        let (proxies, agents) = (rng.random_range(1..=6), rng.random_range(3..=20));
        let count = rng.random_range(0..=2);
        let link = Link::latency(rng.random_range(1..=60) * MS)
            .jittery(rng.random_range(0..=20) * MS)
            .lossy(rng.random_range(0.0..0.08));
        world.net().set_default_link(link);
        let nat = rng.random_bool(0.5).then(|| {
            world.net().add_nat(NatConfig {
                mapping: if rng.random_bool(0.5) {
                    Mapping::PerDestination
                } else {
                    Mapping::PerSource
                },
                ..NatConfig::default()
            })
        });
        let balanced = rng.random_bool(0.4);
        let mut fleet = Self {
            rng,
            proxies: Vec::new(),
            agents: Vec::new(),
            down: Vec::new(),
            frozen: Vec::new(),
            count,
            nat,
            story: Vec::new(),
        };
        fleet.tell(
            world,
            format!(
                "{proxies} proxies, {agents} agents that want {count}, nat {}, balancer {balanced}",
                nat.is_some()
            ),
        );
        fleet.proxies = world
            .start_proxies_with(proxies, |_, plan| {
                plan.config.reconnects_per_second = RECONNECTS_PER_SECOND;
                plan.config.drain_notice = SECOND;
                plan.config.common.drain_deadline = 10 * SECOND;
                Ok(())
            })
            .await?;
        let net = world.net().clone();
        if balanced {
            let policy = if fleet.rng.random_bool(0.5) {
                Balancing::FourTuple
            } else {
                Balancing::RoundRobin
            };
            let balancer = net.add_balancer(7443, policy);
            for proxy in &fleet.proxies {
                net.add_backend(balancer, world.quic_addr(*proxy));
            }
            let address = net.balancer_address(balancer).ip();
            net.set_name("lb.example.com", Answer::Addresses(vec![address]));
        }
        let started = world
            .start_agents_with(agents, |_, plan| {
                plan.behind = nat;
                plan.config.connection_count = Some(count);
                plan.config.common.drain_deadline = 5 * SECOND;
                if balanced {
                    plan.config.proxies = vec!["lb.example.com:7443".into()];
                }
                plan.allow(&["127.0.0.1:7".into()])
            })
            .await?;
        for agent in started {
            let echo = world.serve_loopback(agent, 7, Service::Echo)?;
            fleet.agents.push((agent, echo));
        }
        fleet.whole(world, 120 * SECOND).await?;
        Ok(fleet)
    }

    /// Notes what happens, for the report of a failure.
    pub(crate) fn tell(&mut self, world: &World, what: impl std::fmt::Display) {
        self.story.push(format!("{:>9.3?} {what}", world.elapsed()));
    }

    /// What has happened.
    pub(crate) fn story(&self) -> String {
        let mut text = String::from("what happened:");
        for line in &self.story {
            let _ = write!(text, "\n  {line}");
        }
        text
    }

    /// Whether a node runs and can be spoken to.
    pub(crate) fn is_up(&self, node: NodeId) -> bool {
        !self.down.contains(&node) && !self.frozen.contains(&node)
    }
}
