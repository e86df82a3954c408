//! How many dials it takes to hold every proxy: directly, and through balancers of all kinds.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::ensure;
use mesh_tests::Result;
use mesh_tests::sim::{BalancerId, Balancing, Link, NodeId, World, run};

use super::support::{
    MS, SECOND, advertise_nowhere, attempts, connects, gauge, know_each_other, seeds, whole,
};

/// Longer than any agent needs to meet ten proxies by chance.
const LONG: Duration = Duration::from_secs(4 * 3600);

/// A fleet behind a balancer.
struct Fleet {
    agents: Vec<NodeId>,
    balancer: BalancerId,
}

/// Starts proxies behind a balancer, and agents that know its address and nothing else.
async fn behind_balancer(
    world: &mut World,
    proxies: usize,
    agents: usize,
    policy: Balancing,
    reachable: bool,
) -> Result<Fleet> {
    let net = world.net().clone();
    net.set_default_link(Link::latency(10 * MS).jittery(3 * MS));
    let balancer = net.add_balancer(7443, policy);
    let proxies = world
        .start_proxies_with(proxies, |_, plan| {
            if !reachable {
                advertise_nowhere(plan);
            }
            Ok(())
        })
        .await?;
    for proxy in &proxies {
        net.add_backend(balancer, world.quic_addr(*proxy));
    }
    know_each_other(world).await;
    let address = net.balancer_address(balancer).to_string();
    let agents = world
        .start_agents_with(agents, |_, plan| {
            plan.config.proxies = vec![address.clone()];
            Ok(())
        })
        .await?;
    Ok(Fleet { agents, balancer })
}

/// Dials of one agent until it holds all proxies, their addresses being reachable.
async fn directed(world: &mut World, count: usize, policy: Balancing) -> Result<Vec<usize>> {
    let fleet = behind_balancer(world, count, 3, policy, true).await?;
    let time = world
        .within(5 * SECOND, "every agent holds every proxy", |w| {
            w.all_hold(&fleet.agents, count)
        })
        .await?;
    // A dial too many would come late: after a wait, or when a view has been told anew.
    world.run_for(100 * SECOND).await;
    ensure!(world.all_hold(&fleet.agents, count), "{time:?}");
    let mut dials = Vec::new();
    for agent in fleet.agents {
        assert_eq!(gauge(world, agent, "mesh_agent_desired_proxies")?, count);
        dials.push(attempts(world, agent)?);
    }
    Ok(dials)
}

/// Dials of each agent through the balancer until it held all proxies, and how long that took them
/// all, no advertised address being reachable.
async fn through_balancer_alone(
    world: &mut World,
    count: usize,
    agents: usize,
    policy: Balancing,
) -> Result<(Vec<usize>, Duration)> {
    let Fleet { agents, balancer } = behind_balancer(world, count, agents, policy, false).await?;
    let started = world.elapsed();
    world
        .within(LONG, "every agent holds every proxy", |w| {
            w.all_hold(&agents, count)
        })
        .await?;
    let took = world.elapsed() - started;
    let flows = world.net().balancer_flows(balancer);
    let mut dials = Vec::new();
    for agent in agents {
        let ok = connects(world, agent, "ok")?;
        let duplicate = connects(world, agent, "duplicate")?;
        let timeout = connects(world, agent, "timeout")?;
        assert_eq!(ok, count);
        // What was directed has led nowhere, and nothing else has failed.
        assert_eq!(attempts(world, agent)?, ok + duplicate + timeout);
        // Each dial through the balancer came from a port of its own, or it would be no flow of its own.
        let ip = world.net().ip(agent);
        let clients = flows.iter().map(|(client, _)| *client);
        let own: BTreeSet<_> = clients.filter(|client| client.ip() == ip).collect();
        assert_eq!(own.len(), ok + duplicate, "{own:?}");
        dials.push(ok + duplicate);
    }
    Ok((dials, took))
}

/// n times the nth harmonic number: how many throws of a fair coin with n sides show all of them.
fn fair_coin(sides: usize) -> f64 {
    let sides = sides as f64;
    let mut drawn = 1.0;
    let mut sum = 0.0;
    while drawn <= sides {
        sum += sides / drawn;
        drawn += 1.0;
    }
    sum
}

/// What the mean of so many agents may exceed the expectation by: four standard deviations. One
/// agent's is less than n pi / sqrt(6).
fn tolerance(proxies: usize, agents: usize) -> f64 {
    4.0 * 1.283 * proxies as f64 / (agents as f64).sqrt()
}

fn mean(dials: &[usize]) -> f64 {
    dials.iter().sum::<usize>() as f64 / dials.len() as f64
}

const POLICIES: [Balancing; 3] = [
    Balancing::RoundRobin,
    Balancing::FourTuple,
    Balancing::SourceAddress,
];

#[test]
fn no_redundant_dial() -> Result {
    let name = "no_redundant_dial";
    seeds(name, 2, async |world| {
        let policy = POLICIES[whole(world.seed() as f64) % 3];
        let dials = directed(world, 4, policy).await?;
        assert_eq!(dials, [4, 4, 4], "{policy:?}");
        Ok(())
    })?;
    // As many as are wanted, be it the agent's own wish or what the proxies announce.
    seeds(name, 2, async |world| {
        world.net().set_default_link(Link::latency(10 * MS));
        world
            .start_proxies_with(5, |_, plan| {
                plan.config.agent_connection_count = Some(3);
                Ok(())
            })
            .await?;
        know_each_other(world).await;
        let agents = world
            .start_agents_with(8, |index, plan| {
                plan.config.connection_count = [None, Some(0), Some(1), Some(2)][index % 4];
                Ok(())
            })
            .await?;
        let wanted = [3, 5, 1, 2];
        world.run_for(100 * SECOND).await;
        for (index, agent) in agents.into_iter().enumerate() {
            let wanted = wanted[index % 4];
            assert_eq!(world.connections(agent), wanted);
            assert_eq!(attempts(world, agent)?, wanted);
            assert_eq!(connects(world, agent, "ok")?, wanted);
        }
        Ok(())
    })
}

#[test]
fn mesh_through_round_robin_lb() -> Result {
    let name = "mesh_through_round_robin_lb";
    for count in [2, 3, 5, 10] {
        for policy in POLICIES {
            seeds(name, 1, async |world| {
                let dials = directed(world, count, policy).await?;
                let most = dials.iter().copied().max();
                assert!(most <= Some(count + 1), "{policy:?}, {count}: {dials:?}");
                Ok(())
            })?;
        }
    }
    // A lone agent behind a round robin meets all in turn, were they even or odd.
    for count in [2, 3, 4] {
        seeds(name, 1, async |world| {
            let policy = Balancing::RoundRobin;
            let (dials, _) = through_balancer_alone(world, count, 1, policy).await?;
            assert!(dials[0] <= count + 1, "{count} proxies: {dials:?} dials");
            Ok(())
        })?;
    }
    for policy in [Balancing::RoundRobin, Balancing::FourTuple] {
        for (count, agents) in [(2, 24), (3, 16), (4, 16), (10, 6)] {
            seeds(name, 1, async |world| {
                let (dials, _) = through_balancer_alone(world, count, agents, policy).await?;
                let (mean, bound) = (mean(&dials), fair_coin(count) + tolerance(count, agents));
                assert!(mean <= bound, "{policy:?}, {count}: {mean} > {bound}");
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// A balancer that gives every host one proxy for ever cannot lead to a mesh; nor is it hammered,
/// and what happens is counted.
#[test]
fn sticky_balancer_is_left_alone() -> Result {
    seeds("sticky_balancer_is_left_alone", 2, async |world| {
        let policy = Balancing::SourceAddress;
        let fleet = behind_balancer(world, 4, 5, policy, false).await?;
        world
            .until("every agent holds its proxy", |w| {
                w.all_hold(&fleet.agents, 1)
            })
            .await?;
        let count = |world: &World| -> Result<Vec<(usize, usize)>> {
            let of = |agent: &NodeId| {
                let duplicates = connects(world, *agent, "duplicate")?;
                Ok((duplicates, attempts(world, *agent)?))
            };
            fleet.agents.iter().map(of).collect()
        };
        let mut before = count(world)?;
        for minute in 0..20 {
            world.run_for(60 * SECOND).await;
            let after = count(world)?;
            for (before, after) in before.iter().zip(&after) {
                // Waits of up to 10 s, drawn evenly, and in between three directed dials of 10 s.
                let duplicates = after.0 - before.0;
                let attempts = after.1 - before.1;
                assert!((1..30).contains(&duplicates), "{minute}: {duplicates}");
                assert!(attempts < 50, "minute {minute}: {attempts} dials");
            }
            before = after;
        }
        for agent in &fleet.agents {
            assert_eq!(world.connections(*agent), 1);
            assert_eq!(connects(world, *agent, "ok")?, 1, "it stood all the time");
        }
        Ok(())
    })
}

/// What docs/ARCHITECTURE.md tells of dials: `MESH_SIM_MESH=2,3,5,10,50` measures all of it. Each
/// number is the mean of so many agents as are named there.
#[test]
fn measure_dials_to_mesh() -> Result {
    let counts = std::env::var("MESH_SIM_MESH").unwrap_or_else(|_| "2".into());
    println!("proxies  agents  directed  round robin alone  4-tuple alone  fair coin");
    for count in counts.split(',') {
        let count: usize = count.parse()?;
        let agents = (400 / (count * count)).clamp(4, 60);
        let name = "measure_dials_to_mesh";
        let direct = run(name, 1, async |w| {
            directed(w, count, Balancing::FourTuple).await
        })?;
        let alone = |policy| {
            run(name, 1, async |w| {
                let (dials, took) = through_balancer_alone(w, count, agents, policy).await?;
                Ok(format!("{:.2} ({took:.0?})", mean(&dials)))
            })
        };
        println!(
            "{count:7}  {agents:6}  {:8.2}  {:>17}  {:>13}  {:9.2}",
            mean(&direct),
            alone(Balancing::RoundRobin)?,
            alone(Balancing::FourTuple)?,
            fair_coin(count),
        );
    }
    Ok(())
}
