//! An hour of short requests, while proxies are rolled.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use mesh_tests::Result;
use mesh_tests::services::pattern;
use mesh_tests::sim::{Link, NodeId, Service, World, echoes};
use node::proxy::Dialer;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::support::{MS, SECOND, gauge, seeds};

const HOUR: Duration = Duration::from_secs(3600);

/// Agents, and the connections that each of them keeps: 0 is to every proxy.
const COUNTS: [u32; 4] = [0, 0, 2, 2];

/// Through which proxies an agent can be dialled: what users know of readiness.
#[derive(Clone, Default)]
struct Doors(Arc<Mutex<Vec<(NodeId, Dialer)>>>);

impl Doors {
    fn with<T>(&self, act: impl FnOnce(&mut Vec<(NodeId, Dialer)>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Opens the proxies that hold this agent.
    fn open(&self, world: &World, agent: NodeId, proxies: &[NodeId]) -> Result {
        for proxy in proxies {
            let name = world.name(agent);
            let sessions = world.proxy(*proxy)?.sessions();
            let is_held = sessions.iter().any(|it| it.agent.as_str() == name);
            if is_held && !self.with(|doors| doors.iter().any(|(door, _)| door == proxy)) {
                let dialer = world.proxy(*proxy)?.dialer(name)?;
                self.with(|doors| doors.push((*proxy, dialer)));
            }
        }
        Ok(())
    }

    fn close(&self, proxy: NodeId) {
        self.with(|doors| doors.retain(|(door, _)| *door != proxy));
    }
}

/// Asks one request after the other until the hour is over; each is a dial of its own. Returns how
/// many there were.
async fn user(doors: Doors, target: String, seed: u64, until: Instant) -> Result<usize> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut requests = 0;
    while Instant::now() < until {
        let dialer = doors.with(|doors| {
            let index = rng.random_range(0..doors.len().max(1));
            doors.get(index).map(|(_, dialer)| dialer.clone())
        });
        let dialer = dialer.context("no proxy holds the agent")?;
        let bytes = pattern(requests, rng.random_range(1..4000));
        let what = || {
            format!(
                "request {requests}, {:?} before the end",
                until - Instant::now()
            )
        };
        let tunnel = dialer.dial(&target).await.with_context(what)?;
        echoes(tunnel, &bytes).await.with_context(what)?;
        requests += 1;
        let pause = rng.random_range(Duration::ZERO..2 * SECOND);
        tokio::time::sleep(pause).await;
    }
    Ok(usize::try_from(requests)?)
}

#[test]
fn short_request_churn() -> Result {
    seeds("short_request_churn", 1, churn)
}

async fn churn(world: &mut World) -> Result {
    world
        .net()
        .set_default_link(Link::latency(10 * MS).jittery(5 * MS).lossy(0.005));
    let proxies = world.start_proxies(3).await?;
    let agents = world
        .start_agents_with(COUNTS.len(), |index, plan| {
            plan.config.connection_count = Some(COUNTS[index]);
            plan.allow(&["10.0.0.0/8:7".into()])
        })
        .await?;
    let mut rng = StdRng::seed_from_u64(world.seed());
    let settled = |w: &World| {
        let wanted = [3, 3, 2, 2];
        let all = agents.iter().zip(wanted);
        all.into_iter()
            .all(|(agent, wanted)| w.connections(*agent) == wanted)
    };
    world.until("every agent is connected", settled).await?;
    let until = Instant::now() + HOUR;
    let mut users = JoinSet::new();
    let mut doors = Vec::new();
    for agent in &agents {
        let echo = world.serve(*agent, 7, Service::Echo)?;
        let its = Doors::default();
        its.open(world, *agent, &proxies)?;
        users.spawn(user(its.clone(), echo.rule(), rng.random(), until));
        doors.push(its);
    }
    let mut rolls = 0;
    while Instant::now() + 300 * SECOND < until {
        let quiet = rng.random_range(60 * SECOND..200 * SECOND);
        world.run_for(quiet).await;
        roll(world, &agents, &doors, proxies[rolls % 3], &mut rng).await?;
        world.until("every agent is connected", settled).await?;
        for (agent, doors) in agents.iter().zip(&doors) {
            doors.open(world, *agent, &proxies)?;
        }
        rolls += 1;
    }
    let mut requests = 0;
    while let Some(user) = users.join_next().await {
        requests += user??;
    }
    // Each agent was asked about once a second.
    ensure!(requests > 10_000 && rolls > 10, "{requests}, {rolls}");
    for agent in &agents {
        let metrics = world.metrics(*agent)?;
        let all = metrics.sum("mesh_agent_dials_total");
        assert_eq!(all, metrics.get("mesh_agent_dials_total{result=\"ok\"}")?);
        assert_eq!(gauge(world, *agent, "mesh_streams_open")?, 0);
    }
    Ok(())
}

/// Takes a proxy out of the way, as a balancer does that sees it drain, and starts it again.
async fn roll(
    world: &mut World,
    agents: &[NodeId],
    doors: &[Doors],
    proxy: NodeId,
    rng: &mut StdRng,
) -> Result {
    let leaving = tokio::spawn(world.leave(proxy)?);
    // The notice is 5 s long.
    let noticed = rng.random_range(Duration::ZERO..4900 * MS);
    world.run_for(noticed).await;
    let others: Vec<NodeId> = world
        .proxies()
        .iter()
        .copied()
        .filter(|it| *it != proxy)
        .collect();
    for (agent, doors) in agents.iter().zip(doors) {
        // Who holds no other one is reached through this one as long as it serves.
        doors.open(world, *agent, &others)?;
        doors.close(proxy);
    }
    ensure!(leaving.await? == 0, "streams were cut");
    let pause = rng.random_range(Duration::ZERO..60 * SECOND);
    world.run_for(pause).await;
    for (agent, doors) in agents.iter().zip(doors) {
        doors.open(world, *agent, &others)?;
    }
    world.restart(proxy).await
}
