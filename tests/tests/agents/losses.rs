//! Proxies that die, freeze, restart, return and are born.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::ensure;
use mesh_tests::Result;
use mesh_tests::sim::{Link, NodeId, World};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::support::{MS, SECOND, connects, seeds, whole};

/// Agents of the fleet in which four were once stuck.
const AGENTS: usize = 94;

/// Proxies that may be there at one time.
const PROXIES_MAX: usize = 6;

/// Deaths and births of one sequence.
const EVENTS: usize = 12;

/// By when all agents hold all living proxies: a dead one is noticed within the idle timeout of
/// 15 s, and a wait after failures is at most 30 s when, as here, the announced spread is shorter.
/// One such wait may be cut short by a dial that fails once more, after another 10 s.
const CONVERGED: Duration = Duration::from_secs(120);

#[test]
fn agents_survive_proxy_loss_and_return() -> Result {
    seeds("agents_survive_proxy_loss_and_return", 2, async |world| {
        let mut rng = StdRng::seed_from_u64(world.seed());
        let link = Link::latency(15 * MS).jittery(5 * MS).lossy(0.01);
        world.net().set_default_link(link);
        let mut living = world.start_proxies(3).await?;
        let agents = world.start_agents(AGENTS).await?;
        converge(world, &agents, &living).await?;
        let mut dead: Vec<NodeId> = Vec::new();
        for event in 0..EVENTS {
            happen(world, &mut rng, &mut living, &mut dead).await?;
            // Mostly the next one comes before the agents have got over this one.
            let pause = rng.random_range(0..40);
            world.run_for(SECOND * pause).await;
            if event % 4 == 3 {
                converge(world, &agents, &living).await?;
            }
        }
        Ok(())
    })
}

/// One death, in one of three ways, or one birth, of an old proxy or a new one.
async fn happen(
    world: &mut World,
    rng: &mut StdRng,
    living: &mut Vec<NodeId>,
    dead: &mut Vec<NodeId>,
) -> Result {
    let may_die = living.len() > 1;
    let may_be_born = living.len() < PROXIES_MAX;
    if may_die && (!may_be_born || rng.random_bool(0.5)) {
        let proxy = living.swap_remove(rng.random_range(0..living.len()));
        match rng.random_range(0..3) {
            0 => world.kill(proxy),
            1 => {
                world.stop(proxy).await?;
            }
            // It is back before anybody has noticed.
            _ => {
                world.kill(proxy);
                world
                    .run_for(rng.random_range(Duration::ZERO..3 * SECOND))
                    .await;
                world.restart(proxy).await?;
                living.push(proxy);
                return Ok(());
            }
        }
        dead.push(proxy);
    } else if !dead.is_empty() && rng.random_bool(0.6) {
        let proxy = dead.swap_remove(rng.random_range(0..dead.len()));
        world.restart(proxy).await?;
        living.push(proxy);
    } else {
        living.extend(world.start_proxies(1).await?);
    }
    Ok(())
}

/// Every agent comes to hold every living proxy, and nothing else, and so it stays.
async fn converge(world: &World, agents: &[NodeId], living: &[NodeId]) -> Result {
    let meshed = |w: &World| {
        let all_there = living
            .iter()
            .all(|proxy| w.sessions(*proxy) == agents.len());
        all_there && w.all_hold(agents, living.len())
    };
    // A proxy whose goodbye was lost is believed to live for as long as the idle timeout.
    let wants = |w: &World, agent: NodeId, series| {
        let metrics = w.metrics(agent).unwrap();
        whole(metrics.get(series).unwrap()) == living.len()
    };
    world
        .within(CONVERGED, "every agent holds every living proxy", |w| {
            meshed(w)
                && agents.iter().all(|agent| {
                    wants(w, *agent, "mesh_agent_desired_proxies")
                        && wants(w, *agent, "mesh_agent_connected_proxies")
                })
        })
        .await?;
    for _ in 0..5 {
        world.run_for(SECOND).await;
        ensure!(meshed(world), "the mesh does not last");
    }
    Ok(())
}

#[test]
fn silent_proxy_is_noticed() -> Result {
    let name = "silent_proxy_is_noticed";
    seeds(name, 2, frozen)?;
    for count in [1, 100, 300] {
        seeds(name, 1, async |world| restarted(world, count).await)?;
    }
    Ok(())
}

/// A proxy that says nothing more is given up within the idle timeout.
async fn frozen(world: &mut World) -> Result {
    world
        .net()
        .set_default_link(Link::latency(10 * MS).jittery(5 * MS));
    let proxies = world.start_proxies(2).await?;
    let agents = world.start_agents(10).await?;
    world
        .until("every agent holds every proxy", |w| w.all_hold(&agents, 2))
        .await?;
    let pause = StdRng::seed_from_u64(world.seed()).random_range(SECOND..10 * SECOND);
    world.run_for(pause).await;
    world.freeze(proxies[0]);
    let mut noticed: BTreeSet<NodeId> = BTreeSet::new();
    let time = world
        .within(15 * SECOND + 100 * MS, "the frozen one is given up", |w| {
            noticed.extend(agents.iter().filter(|agent| w.connections(**agent) == 1));
            noticed.len() == agents.len()
        })
        .await?;
    // Nobody gives up because of one keep-alive that is lost: they are 5 s apart.
    assert!(time > 9 * SECOND, "{time:?}");
    world.thaw(proxies[0]);
    world
        .until("it is back", |w| w.all_hold(&agents, 2))
        .await?;
    for agent in agents {
        assert_eq!(connects(world, agent, "ok")?, 3);
    }
    Ok(())
}

/// With a keep-alive of 2 s, a restarted proxy is noticed within 3 s: its answer to the keep-alive
/// is a stateless reset.
async fn restarted(world: &mut World, count: usize) -> Result {
    world
        .net()
        .set_default_link(Link::latency(10 * MS).jittery(5 * MS));
    let proxies = world.start_proxies(1).await?;
    let mut agents = Vec::new();
    for _ in 0..count {
        let agent = world.start_agents_with(1, |_, plan| {
            plan.config.common.quic.keepalive = 2 * SECOND;
            Ok(())
        });
        agents.extend(agent.await?);
        world.run_for(37 * MS).await;
    }
    world
        .until("every agent is connected", |w| w.all_hold(&agents, 1))
        .await?;
    world.run_for(10 * SECOND).await;
    world.kill(proxies[0]);
    world.run_for(200 * MS).await;
    world.restart(proxies[0]).await?;
    let mut noticed = BTreeSet::new();
    world
        .within(3 * SECOND, "every agent has noticed", |w| {
            // One that is back already has noticed, too.
            let has = |agent: &NodeId| {
                w.connections(*agent) == 0 || connects(w, *agent, "ok").unwrap() > 1
            };
            let more: Vec<NodeId> = agents
                .iter()
                .filter(|agent| !noticed.contains(*agent) && has(agent))
                .copied()
                .collect();
            noticed.extend(more);
            noticed.len() == agents.len()
        })
        .await?;
    world
        .within(20 * SECOND, "all are back", |w| {
            w.all_hold(&agents, 1) && w.sessions(proxies[0]) == count
        })
        .await?;
    for agent in agents {
        assert_eq!(connects(world, agent, "ok")?, 2);
    }
    Ok(())
}
