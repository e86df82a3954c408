//! New generations of proxies, canaries, and proxies that leave in order.

use std::time::Duration;

use mesh_proto::Generation;
use mesh_tests::Result;
use mesh_tests::sim::{Link, NodeId, World};
use tokio::task::JoinHandle;

use super::support::{MS, SECOND, attempts, know_each_other, seeds};

const AGENTS: usize = 20;

/// The default of `proxy.drain_deadline`.
const DRAIN_DEADLINE: Duration = Duration::from_secs(30);

/// What a node takes to say goodbye when its drain is over.
const GOODBYE: Duration = Duration::from_secs(3);

/// Connection counts of the agents in turn: every proxy, one, two.
const COUNTS: [u32; 3] = [0, 1, 2];

/// Connections that an agent with this count keeps to so many proxies.
fn wanted(count: u32, proxies: usize) -> usize {
    match count {
        0 => proxies,
        count => proxies.min(count as usize),
    }
}

async fn start_generation(world: &mut World, generation: u64, count: usize) -> Result<Vec<NodeId>> {
    world
        .start_proxies_with(count, |_, plan| {
            plan.config.group = "blue".parse()?;
            plan.config.generation = Generation(generation);
            Ok(())
        })
        .await
}

/// A fleet of the first generation, every agent connected as it wants.
async fn start(
    world: &mut World,
    proxies: usize,
    count: u32,
) -> Result<(Vec<NodeId>, Vec<NodeId>)> {
    world
        .net()
        .set_default_link(Link::latency(10 * MS).jittery(3 * MS));
    let proxies = start_generation(world, 1, proxies).await?;
    know_each_other(world).await;
    let agents = world
        .start_agents_with(AGENTS, |_, plan| {
            plan.config.connection_count = Some(count);
            Ok(())
        })
        .await?;
    let wanted = wanted(count, proxies.len());
    world
        .until("every agent is connected", |w| w.all_hold(&agents, wanted))
        .await?;
    world.run_for(40 * SECOND).await;
    Ok((proxies, agents))
}

/// What no agent may leave, at any moment.
struct Bounds {
    least: usize,
    most: usize,
}

impl Bounds {
    fn check(&self, world: &World, agents: &[NodeId]) {
        for agent in agents {
            let held = world.connections(*agent);
            assert!(
                (self.least..=self.most).contains(&held),
                "{:?}: {} holds {held} connections, not {} to {}",
                world.elapsed(),
                world.name(*agent),
                self.least,
                self.most
            );
        }
    }

    /// Lets time pass until `condition` holds, and looks every 50 ms.
    async fn until(
        &self,
        world: &World,
        agents: &[NodeId],
        within: Duration,
        what: &str,
        mut condition: impl FnMut(&World) -> bool,
    ) -> Result<Duration> {
        world
            .within(within, what, |w| {
                self.check(w, agents);
                condition(w)
            })
            .await
    }

    async fn hold_for(&self, world: &World, agents: &[NodeId], time: Duration) -> Result {
        let end = world.elapsed() + time;
        self.until(world, agents, time + SECOND, "time to pass", |w| {
            w.elapsed() >= end
        })
        .await
        .map(drop)
    }
}

fn sessions(world: &World, proxies: &[NodeId]) -> usize {
    proxies.iter().map(|proxy| world.sessions(*proxy)).sum()
}

fn leave(world: &mut World, proxies: &[NodeId]) -> Result<Vec<JoinHandle<u64>>> {
    let leave = |proxy: &NodeId| Ok(tokio::spawn(world.leave(*proxy)?));
    proxies.iter().map(leave).collect()
}

fn all_gone(leaving: &[JoinHandle<u64>]) -> bool {
    leaving.iter().all(JoinHandle::is_finished)
}

#[test]
fn new_generation_drains_the_old() -> Result {
    let name = "new_generation_drains_the_old";
    for count in COUNTS {
        seeds(name, 1, async |world| follows_the_new(world, count).await)?;
        seeds(name, 1, async |world| old_leave_at_once(world, count).await)?;
        seeds(name, 1, async |world| one_by_one(world, count).await)?;
    }
    Ok(())
}

/// The new generation stands beside the old one: agents hold it before they let the old one go.
async fn follows_the_new(world: &mut World, count: u32) -> Result {
    let (old, agents) = start(world, 3, count).await?;
    let wanted = wanted(count, 3);
    let new = start_generation(world, 2, 3).await?;
    // As many new ones as are wanted come before the first old one goes, and no more.
    let bounds = Bounds {
        least: wanted,
        most: 2 * wanted,
    };
    let what = "the old have been let go";
    bounds
        .until(world, &agents, DRAIN_DEADLINE, what, |w| {
            sessions(w, &old) == 0 && w.all_hold(&agents, wanted)
        })
        .await?;
    assert_eq!(sessions(world, &new), AGENTS * wanted);
    // The old ones have nothing to wait for but their own notice.
    let bounds = Bounds {
        least: wanted,
        most: wanted,
    };
    let leaving = leave(world, &old)?;
    let what = "the old are gone";
    bounds
        .until(world, &agents, DRAIN_DEADLINE + GOODBYE, what, |_| {
            all_gone(&leaving)
        })
        .await?;
    bounds.hold_for(world, &agents, 200 * SECOND).await?;
    for agent in agents {
        assert_eq!(attempts(world, agent)?, 2 * wanted, "a dial too many");
    }
    Ok(())
}

/// The old ones are told to leave as soon as the new ones run.
async fn old_leave_at_once(world: &mut World, count: u32) -> Result {
    let (old, agents) = start(world, 3, count).await?;
    let wanted = wanted(count, 3);
    let new = start_generation(world, 2, 3).await?;
    let leaving = leave(world, &old)?;
    let bounds = Bounds {
        least: wanted,
        most: 2 * wanted,
    };
    let what = "the old are gone";
    bounds
        .until(world, &agents, DRAIN_DEADLINE + GOODBYE, what, |_| {
            all_gone(&leaving)
        })
        .await?;
    assert_eq!(sessions(world, &new), AGENTS * wanted);
    for leaving in leaving {
        assert_eq!(leaving.await?, 0, "streams were cut");
    }
    let bounds = Bounds {
        least: wanted,
        most: wanted,
    };
    bounds.hold_for(world, &agents, 60 * SECOND).await
}

/// As deployments do it: a new one comes, an old one leaves.
async fn one_by_one(world: &mut World, count: u32) -> Result {
    let (old, agents) = start(world, 3, count).await?;
    let mut before = wanted(count, 3);
    for (index, proxy) in old.iter().enumerate() {
        start_generation(world, 2, 1).await?;
        // Desired is the new generation alone. The old one serves beside it as long as there are more
        // of it; when there are not, the new ones are all that is wanted.
        let (new, old) = (index + 1, old.len() - index);
        let after = if new < old {
            before
        } else {
            wanted(count, new)
        };
        let bounds = Bounds {
            least: before.min(after),
            most: before + wanted(count, new),
        };
        bounds.hold_for(world, &agents, 2 * SECOND).await?;
        let leaving = leave(world, &[*proxy])?;
        let what = "the old one is gone";
        bounds
            .until(world, &agents, DRAIN_DEADLINE + GOODBYE, what, |_| {
                all_gone(&leaving)
            })
            .await?;
        for leaving in leaving {
            assert_eq!(leaving.await?, 0, "streams were cut");
        }
        bounds.hold_for(world, &agents, 10 * SECOND).await?;
        before = after;
    }
    let wanted = wanted(count, 3);
    assert!(world.all_hold(&agents, wanted));
    assert_eq!(sessions(world, &world.proxies()[3..]), AGENTS * wanted);
    Ok(())
}

#[test]
fn canary_generation_keeps_the_old() -> Result {
    let name = "canary_generation_keeps_the_old";
    for count in COUNTS {
        seeds(name, 1, async |world| canary(world, count, false).await)?;
        seeds(name, 1, async |world| canary(world, count, true).await)?;
    }
    Ok(())
}

async fn canary(world: &mut World, count: u32, is_good: bool) -> Result {
    let (mut old, agents) = start(world, 4, count).await?;
    let held = wanted(count, 4);
    let canary = start_generation(world, 2, 1).await?;
    let bounds = Bounds {
        least: held,
        most: held + 1,
    };
    // All come to the canary, and nobody lets an old one go for its sake.
    bounds.hold_for(world, &agents, 600 * SECOND).await?;
    assert_eq!(sessions(world, &canary), AGENTS);
    assert_eq!(sessions(world, &old), AGENTS * held);
    if !is_good {
        let leaving = leave(world, &canary)?;
        let what = "the canary is gone";
        bounds
            .until(world, &agents, DRAIN_DEADLINE + GOODBYE, what, |_| {
                all_gone(&leaving)
            })
            .await?;
        bounds.hold_for(world, &agents, 60 * SECOND).await?;
        assert_eq!(sessions(world, &old), AGENTS * held);
        for agent in agents {
            assert_eq!(attempts(world, agent)?, held + 1, "a dial too many");
        }
        return Ok(());
    }
    // An old one drains: its agents let it go, and it alone.
    let first = old.remove(0);
    let theirs = world.sessions(first);
    let leaving = leave(world, &[first])?;
    let bounds = Bounds {
        least: held,
        most: held + 1,
    };
    let what = "the old one is gone";
    bounds
        .until(world, &agents, DRAIN_DEADLINE + GOODBYE, what, |_| {
            all_gone(&leaving)
        })
        .await?;
    assert_eq!(sessions(world, &old), AGENTS * held - theirs);
    // The rest of the new generation comes, and now the old ones are let go.
    let rest = start_generation(world, 2, 3).await?;
    let bounds = Bounds {
        least: held,
        most: 2 * held,
    };
    let what = "the old have been let go";
    bounds
        .until(world, &agents, DRAIN_DEADLINE, what, |w| {
            sessions(w, &old) == 0 && w.all_hold(&agents, held)
        })
        .await?;
    assert_eq!(
        sessions(world, &canary) + sessions(world, &rest),
        AGENTS * held
    );
    Ok(())
}
