//! Many agents that lose a proxy at once, or hear of a new one.

use std::time::Duration;

use anyhow::ensure;
use mesh_tests::Result;
use mesh_tests::sim::{Link, NodeId, World};
use tokio::time::Instant;

use super::support::{Arrivals, MS, SECOND, attempts, know_each_other, seeds};

/// Agents of a herd; `MESH_SIM_HERD=10000` is the promise of this name.
fn herd_size() -> Result<usize> {
    Ok(match std::env::var("MESH_SIM_HERD") {
        Ok(text) => text.parse()?,
        Err(_) => 1000,
    })
}

/// The rate at which each proxy wants to be met: a thousand agents come back in half a minute.
const BUDGET: usize = 40;

/// Agents, and proxies with a budget, long after the start of all.
struct Herd {
    agents: Vec<NodeId>,
    proxies: Vec<NodeId>,
    arrivals: Vec<Arrivals>,
    /// Connections of each agent.
    wanted: usize,
    budget: usize,
}

impl Herd {
    async fn start(world: &mut World, proxies: usize, count: u32) -> Result<Self> {
        let size = herd_size()?;
        // Ten times the agents, ten times the budget: the same time.
        let budget = BUDGET * size.div_ceil(1000);
        world
            .net()
            .set_default_link(Link::latency(10 * MS).jittery(5 * MS));
        let arrivals: Vec<Arrivals> = (0..proxies).map(|_| Arrivals::default()).collect();
        let proxies = world
            .start_proxies_with(proxies, |index, plan| {
                arrivals[index].watch(plan);
                plan.config.reconnects_per_second = u32::try_from(budget)?;
                Ok(())
            })
            .await?;
        know_each_other(world).await;
        let agents = world
            .start_agents_with(size, |_, plan| {
                plan.config.connection_count = Some(count);
                Ok(())
            })
            .await?;
        let wanted = match count {
            0 => proxies.len(),
            count => usize::try_from(count)?,
        };
        world
            .until("every agent is connected", |w| w.all_hold(&agents, wanted))
            .await?;
        for agent in &agents {
            ensure!(attempts(world, *agent)? == wanted, "a dial too many");
        }
        // Proxies tell anew every minute over how long agents shall spread.
        world.run_for(61 * SECOND).await;
        Ok(Self {
            agents,
            proxies,
            arrivals,
            wanted,
            budget,
        })
    }

    /// All arrivals since then were within the budget, at every proxy and in every second.
    fn was_paced(&self, what: &str, since: Instant) {
        let all = self.proxies.iter().zip(&self.arrivals);
        let most: Vec<usize> = all.map(|(_, a)| a.most_in_a_second(since)).collect();
        let sum: Vec<usize> = self.arrivals.iter().map(|a| a.since(since).len()).collect();
        println!(
            "{what}: at most {most:?} a second, {sum:?} in all, budget {}",
            self.budget
        );
    }
}

/// A proxy dies: its agents move to those that survive, or wait for it.
async fn death(world: &mut World, proxies: usize, count: u32) -> Result {
    let herd = Herd::start(world, proxies, count).await?;
    let since = Instant::now();
    world.kill(herd.proxies[0]);
    let wanted = herd.wanted.min(proxies - 1);
    world
        .within(20 * SECOND, "the death is noticed", |w| {
            let held: usize = herd.agents.iter().map(|a| w.connections(*a)).sum();
            held < herd.agents.len() * herd.wanted
        })
        .await?;
    world.run_for(20 * SECOND).await;
    let time = world
        .within(300 * SECOND, "all are back", |w| {
            w.all_hold(&herd.agents, wanted)
        })
        .await?;
    println!("back {time:?}");
    // Longer than the dead one is remembered.
    world.run_for(200 * SECOND).await;
    herd.was_paced(&format!("{proxies} proxies, {count}: death"), since);
    if count == 0 {
        let since = Instant::now();
        world.restart(herd.proxies[0]).await?;
        let time = world
            .within(300 * SECOND, "all are back", |w| {
                w.all_hold(&herd.agents, herd.wanted)
            })
            .await?;
        println!("back {time:?}");
        herd.was_paced("return", since);
        let since = Instant::now();
        world.kill(herd.proxies[1]);
        world.run_for(3 * SECOND).await;
        world.restart(herd.proxies[1]).await?;
        world.run_for(10 * SECOND).await;
        let time = world
            .within(300 * SECOND, "all are back", |w| {
                w.all_hold(&herd.agents, herd.wanted)
            })
            .await?;
        println!("back {time:?}");
        herd.was_paced("second death", since);
    }
    Ok(())
}

#[test]
fn thundering_herd_is_paced() -> Result {
    for (proxies, count) in [(2, 1), (3, 2), (3, 0), (2, 0)] {
        seeds("thundering_herd_is_paced", 1, async |world| {
            death(world, proxies, count).await
        })?;
    }
    Ok(())
}
