//! Many agents that lose a proxy at once, or hear of one that is back.

use std::time::Duration;

use anyhow::ensure;
use mesh_tests::Result;
use mesh_tests::sim::{Link, NodeId, World};
use tokio::time::Instant;

use super::support::{Arrivals, MS, SECOND, attempts, know_each_other, seeds, whole};

/// The rate at which each proxy wants to be met by a thousand agents.
const BUDGET: usize = 40;

/// A proxy is dead for longer than anybody needs to get over it.
const LONG: Duration = Duration::from_secs(300);

/// Agents of a herd; `MESH_SIM_HERD` says how many.
fn size() -> Result<usize> {
    Ok(match std::env::var("MESH_SIM_HERD") {
        Ok(text) => text.parse()?,
        Err(_) => 1000,
    })
}

/// Agents, and proxies with a budget, long after the start of all.
struct Herd {
    agents: Vec<NodeId>,
    proxies: Vec<NodeId>,
    arrivals: Vec<Arrivals>,
    budget: usize,
    /// Handshakes that each proxy had refused by then.
    refused: Vec<usize>,
}

impl Herd {
    /// Each agent holds `count` proxies; 0 is all of them.
    async fn start(world: &mut World, proxies: usize, count: u32) -> Result<Self> {
        let size = size()?;
        // Ten times the agents, ten times the budget: the same time.
        let budget = (BUDGET * size).div_ceil(1000);
        world
            .net()
            .set_default_link(Link::latency(10 * MS).jittery(5 * MS));
        let arrivals: Vec<Arrivals> = (0..proxies).map(|_| Arrivals::default()).collect();
        let proxies = world
            .start_proxies_with(proxies, |index, plan| {
                arrivals[index].watch(plan);
                plan.config.reconnects_per_second = u32::try_from(budget)?;
                // The herd that is watched is not asked to prove its addresses.
                let quic = &mut plan.config.common.quic;
                quic.handshakes_per_second =
                    quic.handshakes_per_second.max(u32::try_from(2 * budget)?);
                Ok(())
            })
            .await?;
        know_each_other(world).await;
        let mut agents = Vec::new();
        while agents.len() < size {
            if !agents.is_empty() {
                // Proxies take no more than so many that have not proved their addresses at one time.
                world.run_for(5 * SECOND).await;
            }
            let some = (size - agents.len()).min(1000);
            let started = world
                .start_agents_with(some, |_, plan| {
                    plan.config.connection_count = Some(count);
                    Ok(())
                })
                .await?;
            agents.extend(started);
        }
        let wanted = match count {
            0 => proxies.len(),
            count => usize::try_from(count)?,
        };
        world
            .until("every agent is connected", |w| w.all_hold(&agents, wanted))
            .await?;
        let mut dials = 0;
        for agent in &agents {
            dials += attempts(world, *agent)?;
        }
        // Of a large herd, a few find nobody who has time for them.
        let most = wanted * size + if size > 1000 { size / 100 } else { 0 };
        ensure!(dials <= most, "{dials} dials, and {most} would do");
        // By then proxies have told anew over how long agents shall spread.
        world.run_for(61 * SECOND).await;
        let refused = proxies.iter().map(|it| refused(world, *it)).collect();
        Ok(Self {
            refused,
            agents,
            proxies,
            arrivals,
            budget,
        })
    }

    /// Kills a proxy, and waits until all its agents have noticed.
    async fn kill(&self, world: &mut World, proxy: usize) -> Result {
        let held: usize = self.held(world);
        let lost = world.sessions(self.proxies[proxy]);
        world.kill(self.proxies[proxy]);
        world
            .within(16 * SECOND, "the death is noticed", |w| self.held(w) < held)
            .await?;
        ensure!(lost > 0, "nobody was there");
        world.run_for(16 * SECOND).await;
        Ok(())
    }

    fn held(&self, world: &World) -> usize {
        let held = |agent: &NodeId| world.connections(*agent);
        self.agents.iter().map(held).sum()
    }

    /// Waits until every agent holds so many proxies, and checks that all arrivals since then were
    /// within the budget: at every proxy and in every second.
    async fn comes_back(&self, world: &World, what: &str, since: Instant, wanted: usize) -> Result {
        world
            .within(LONG, what, |w| w.all_hold(&self.agents, wanted))
            .await?;
        let sum: usize = self.arrivals.iter().map(|at| at.since(since).len()).sum();
        let most: Vec<usize> = self
            .arrivals
            .iter()
            .map(|arrivals| arrivals.most_in_a_second(since))
            .collect();
        ensure!(
            most.iter().all(|most| *most <= self.budget),
            "{what}: {sum} arrivals, up to {most:?} in a second, not {}",
            self.budget
        );
        Ok(())
    }

    /// No handshake was refused or broken off since the start: all that came were counted as arrivals.
    fn all_were_counted(&self, world: &World) {
        for (proxy, before) in self.proxies.iter().zip(&self.refused) {
            let refused = refused(world, *proxy);
            assert!(
                refused <= *before,
                "{refused} handshakes, and {before} at the start"
            );
        }
    }
}

/// Handshakes that a proxy refused; none when it does not run. At the start, when all come at once and
/// are asked to prove their addresses, the halves of a long hello may be answered apart: the second
/// one ends nowhere, and counts.
fn refused(world: &World, proxy: NodeId) -> usize {
    let metrics = world.metrics(proxy);
    metrics.map_or(0, |it| whole(it.sum("mesh_proxy_handshakes_refused_total")))
}

#[test]
fn thundering_herd_is_paced() -> Result {
    let name = "thundering_herd_is_paced";
    for (proxies, count) in [(2, 1), (3, 2)] {
        seeds(name, 1, async |world| moves(world, proxies, count).await)?;
    }
    seeds(name, 1, full_mesh)
}

/// A proxy dies, and all its agents move to those that survive.
async fn moves(world: &mut World, proxies: usize, count: u32) -> Result {
    let herd = Herd::start(world, proxies, count).await?;
    let wanted = usize::try_from(count)?;
    let theirs = world.sessions(herd.proxies[0]);
    let since = Instant::now();
    herd.kill(world, 0).await?;
    herd.comes_back(world, "all have moved", since, wanted)
        .await?;
    // Whoever was left alone for having failed is tried again meanwhile, and then forgotten.
    world.run_for(200 * SECOND).await;
    herd.comes_back(world, "all stay", since, wanted).await?;
    let arrived: usize = herd.arrivals.iter().map(|at| at.since(since).len()).sum();
    assert!(arrived >= theirs, "{arrived} of {theirs}");
    // Some meet a proxy that they hold, while the dead one is believed to live. They are few.
    assert!(arrived <= theirs + theirs / 4, "{arrived} of {theirs}");
    herd.all_were_counted(world);
    Ok(())
}

/// Agents that hold every proxy have nowhere to move: they leave the others in peace, and come back
/// with the proxy. It happens again at once, while the first one has hardly told of its agents.
async fn full_mesh(world: &mut World) -> Result {
    let herd = Herd::start(world, 2, 0).await?;
    for proxy in [0, 1] {
        let since = Instant::now();
        herd.kill(world, proxy).await?;
        world.restart(herd.proxies[proxy]).await?;
        herd.comes_back(world, "all are back", since, 2).await?;
        let others = herd.arrivals[1 - proxy].since(since).len();
        assert!(others <= herd.agents.len() / 10, "{others} at the survivor");
        assert!(herd.arrivals[proxy].since(since).len() >= herd.agents.len());
    }
    let since = Instant::now();
    herd.kill(world, 0).await?;
    world.run_for(200 * SECOND).await;
    herd.comes_back(world, "the others stay", since, 1).await?;
    herd.all_were_counted(world);
    Ok(())
}
