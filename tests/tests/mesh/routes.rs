//! Where an agent is, as every proxy knows it.

use anyhow::ensure;
use mesh_tests::Result;
use mesh_tests::sim::{Link, run};
use node::proxy::Phase;

use crate::support::{MS, SECOND, agent_at, connected_agent_at, mesh, peers, reaches, route};

#[test]
fn route_appears_at_once() -> Result {
    run("route_appears_at_once", 1, async |world| {
        world
            .net()
            .set_default_link(Link::latency(30 * MS).jittery(10 * MS));
        let proxies = mesh(world, 4).await?;
        for round in 0..8 {
            let home = proxies[round % proxies.len()];
            let (agent, echo) = agent_at(world, home).await?;
            while world.connections(agent) == 0 {
                world.run_for(MS).await;
            }
            // The agent has just been answered: the first try succeeds everywhere.
            for proxy in &proxies {
                let dials = route(world, *proxy, agent)?;
                ensure!(dials.holders.len() == 1, "{dials:?}");
                ensure!(dials.holders[0].reachable, "{dials:?}");
                reaches(world, *proxy, agent, &echo).await?;
            }
        }
        Ok(())
    })
}

#[test]
fn every_proxy_reaches_every_agent() -> Result {
    run("every_proxy_reaches_every_agent", 1, async |world| {
        world
            .net()
            .set_default_link(Link::latency(10 * MS).jittery(5 * MS).lossy(0.02));
        let proxies = mesh(world, 3).await?;
        let mut agents = Vec::new();
        for index in 0..9 {
            agents.push(connected_agent_at(world, proxies[index % 3]).await?);
        }
        for proxy in &proxies {
            for (agent, echo) in &agents {
                reaches(world, *proxy, *agent, echo).await?;
            }
        }
        for proxy in &proxies {
            let metrics = world.metrics(*proxy)?;
            let local = metrics.get("mesh_dials_total{path=\"local\",result=\"ok\"}")?;
            let peer = metrics.get("mesh_dials_total{path=\"peer\",result=\"ok\"}")?;
            // Three of its users' dials end here, and three come from each of two peers.
            ensure!((local, peer) == (9.0, 6.0), "local {local}, peer {peer}");
        }
        Ok(())
    })
}

#[test]
fn ghost_route_ends() -> Result {
    run("ghost_route_ends", 1, async |world| {
        let proxies = mesh(world, 3).await?;
        let (agent, echo) = connected_agent_at(world, proxies[0]).await?;
        reaches(world, proxies[1], agent, &echo).await?;

        // The agent vanishes. Its proxy believes in it for a while, and the peers believe the proxy.
        world.kill(agent);
        let started = world.elapsed();
        let error = world.dial(proxies[1], agent, &echo.rule()).await;
        let took = world.elapsed() - started;
        ensure!(error.is_err(), "the agent is dead");
        ensure!(took <= 11 * SECOND, "{took:?}");
        let dials = |index: usize| -> Result<f64> {
            let metrics = world.metrics(proxies[index])?;
            Ok(metrics.sum("mesh_dials_total"))
        };
        // Asked once here, and passed on once: no circle.
        let before = [dials(0)?, dials(1)?, dials(2)?];
        ensure!(before[0] == 2.0 && before[1] == 2.0, "{before:?}");
        ensure!(before[2] == 0.0, "{before:?}");

        // Once it is given up, the answer is prompt, and the same everywhere.
        world
            .until("the route is gone", |w| {
                proxies.iter().all(|proxy| {
                    route(w, *proxy, agent).is_ok_and(|route| route.holders.is_empty())
                })
            })
            .await?;
        for proxy in &proxies {
            let started = world.elapsed();
            let Err(error) = world.dial(*proxy, agent, &echo.rule()).await else {
                anyhow::bail!("the agent is dead");
            };
            let took = world.elapsed() - started;
            ensure!(took < SECOND, "{took:?}");
            let text = format!("{error:#}");
            ensure!(text.contains("no_agent"), "{text}");
            ensure!(text.matches("no_agent").count() == 1, "said once: {text}");
        }
        Ok(())
    })
}

#[test]
fn removed_peer_is_gone() -> Result {
    run("removed_peer_is_gone", 1, async |world| {
        let proxies = mesh(world, 3).await?;
        let mut agents = Vec::new();
        for _ in 0..5 {
            agents.push(connected_agent_at(world, proxies[0]).await?.0);
        }
        let known = |w: &mesh_tests::sim::World| {
            agents
                .iter()
                .filter(|agent| {
                    route(w, proxies[1], **agent).is_ok_and(|route| !route.holders.is_empty())
                })
                .count()
        };
        ensure!(known(world) == 5, "all routes are known");
        world.kill(proxies[0]);
        // What it held goes with it, and not before it.
        let took = world
            .within(25 * SECOND, "the routes have gone with the peer", |w| {
                known(w) == 0
            })
            .await?;
        let state = peers(world, proxies[1])?
            .into_iter()
            .find(|peer| peer.name == world.name(proxies[0]))
            .map(|peer| peer.state);
        ensure!(state.as_deref() == Some("down"), "{state:?} after {took:?}");
        Ok(())
    })
}

#[test]
fn fresh_proxy_is_not_ready_too_soon() -> Result {
    run("fresh_proxy_is_not_ready_too_soon", 1, async |world| {
        world.net().set_default_link(Link::latency(50 * MS));
        let old = mesh(world, 2).await?;
        let mut agents = Vec::new();
        for index in 0..10 {
            agents.push(connected_agent_at(world, old[index % 2]).await?);
        }
        let fresh = world.start_proxies(1).await?[0];
        let mut phase = world.proxy(fresh)?.readiness();
        ensure!(*phase.borrow() == Phase::Joining, "not ready at once");
        let started = world.elapsed();
        phase.wait_for(|phase| *phase == Phase::Serving).await?;
        ensure!(
            world.elapsed() - started < 5 * SECOND,
            "by routes, not by the deadline"
        );
        // Agents of the peer whose routes have come are there; the rest is found by asking.
        for (agent, echo) in &agents {
            reaches(world, fresh, *agent, echo).await?;
        }
        Ok(())
    })
}

/// A proxy whose peers are all dead is ready when its patience is over.
#[test]
fn a_proxy_without_peers_is_ready_after_its_deadline() -> Result {
    run(
        "a_proxy_without_peers_is_ready_after_its_deadline",
        1,
        async |world| {
            let proxies = world.start_proxies(1).await?;
            world.kill(proxies[0]);
            let alone = world
                .start_proxies_with(1, |_, plan| {
                    plan.config.join_deadline = 4 * SECOND;
                    Ok(())
                })
                .await?[0];
            let mut phase = world.proxy(alone)?.readiness();
            let started = world.elapsed();
            phase.wait_for(|phase| *phase == Phase::Serving).await?;
            let took = world.elapsed() - started;
            ensure!(took >= 4 * SECOND && took < 5 * SECOND, "{took:?}");
            let problems = world.proxy(alone)?.status().problems;
            ensure!(
                problems
                    .iter()
                    .any(|problem| problem.what.contains("no peer is connected")),
                "{problems:?}"
            );
            Ok(())
        },
    )
}
