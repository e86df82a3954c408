//! Nodes that have frozen cost little.

use std::time::Duration;

use anyhow::ensure;
use certs::Kind;
use mesh_tests::Result;
use mesh_tests::sim::{NodeId, Running, Service, World, run};
use node::config::AgentConfig;

use crate::support::{SECOND, connected_agent_at, mesh, reaches};

/// Two processes with one identity, at these proxies, each with an echo service at its side that
/// both may reach.
async fn twins(world: &mut World, homes: [NodeId; 2]) -> Result<([NodeId; 2], Running)> {
    let credentials = world.pki().issue(Kind::Agent, "twin")?;
    let mut twins = Vec::new();
    for home in homes {
        let address = world.quic_addr(home).to_string();
        let started = world
            .start_agents_with(1, |_, plan| {
                let quic = plan.config.common.quic.clone();
                plan.config = AgentConfig::new(credentials.clone(), vec![address.clone()]);
                plan.config.common.quic = quic;
                plan.config.connection_count = Some(1);
                plan.allow(&["10.0.0.0/8:7".into()])
            })
            .await?;
        twins.extend(started.iter().copied());
        world
            .until("the twin is connected", |w| w.connections(started[0]) == 1)
            .await?;
    }
    // On a host of its own, so that it lives on when a twin is frozen.
    let host = world.net().add_host("service");
    let echo = world.serve(host, 7, Service::Echo)?;
    Ok(([twins[0], twins[1]], echo))
}

async fn dial(world: &World, proxy: NodeId, echo: &Running) -> Result<Duration> {
    let started = world.elapsed();
    let tunnel = world
        .proxy(proxy)?
        .dialer("twin")?
        .dial(&echo.rule())
        .await?;
    let took = world.elapsed() - started;
    mesh_tests::sim::echoes(tunnel, b"hello").await?;
    Ok(took)
}

#[test]
fn frozen_agent_is_passed_over() -> Result {
    run("frozen_agent_is_passed_over", 1, async |world| {
        let proxies = mesh(world, 2).await?;
        let ([_, newest], echo) = twins(world, [proxies[0], proxies[0]]).await?;
        dial(world, proxies[0], &echo).await?;
        world.freeze(newest);
        let first = dial(world, proxies[0], &echo).await?;
        ensure!(first < 10 * SECOND, "one dial deadline at most: {first:?}");
        // It costs that once.
        let second = dial(world, proxies[0], &echo).await?;
        ensure!(second < SECOND / 2, "{second:?}");
        let beyond = dial(world, proxies[1], &echo).await?;
        ensure!(beyond < SECOND / 2, "through the peer: {beyond:?}");
        world.thaw(newest);
        world.run_for(10 * SECOND).await;
        dial(world, proxies[0], &echo).await?;
        Ok(())
    })
}

/// The living twin is at another proxy.
#[test]
fn frozen_agent_is_passed_over_through_a_peer() -> Result {
    run(
        "frozen_agent_is_passed_over_through_a_peer",
        1,
        async |world| {
            let proxies = mesh(world, 3).await?;
            let ([frozen, _], echo) = twins(world, [proxies[0], proxies[1]]).await?;
            world.freeze(frozen);
            for proxy in &proxies {
                let took = dial(world, *proxy, &echo).await?;
                ensure!(
                    took < 10 * SECOND,
                    "{took:?} through {}",
                    world.name(*proxy)
                );
            }
            Ok(())
        },
    )
}

#[test]
fn lookup_never_waits_on_io() -> Result {
    run("lookup_never_waits_on_io", 1, async |world| {
        let proxies = mesh(world, 5).await?;
        let (near, near_echo) = connected_agent_at(world, proxies[0]).await?;
        let (far, far_echo) = connected_agent_at(world, proxies[1]).await?;
        for dead in &proxies[2..] {
            world.freeze(*dead);
        }
        // For as long as nobody knows that they are dead, and after.
        for _ in 0..40 {
            for (agent, echo) in [(near, &near_echo), (far, &far_echo)] {
                let started = world.elapsed();
                reaches(world, proxies[0], agent, echo).await?;
                let took = world.elapsed() - started;
                ensure!(took < SECOND / 2, "{took:?} after {:?}", world.elapsed());
            }
            world.run_for(SECOND / 2).await;
        }
        // A new agent is registered without waiting for the dead for long.
        let started = world.elapsed();
        connected_agent_at(world, proxies[0]).await?;
        ensure!(
            world.elapsed() - started < 2 * SECOND,
            "registration waited"
        );
        Ok(())
    })
}

/// The second process of a name is kept out until the first one has gone.
#[test]
fn clones_are_refused_where_the_config_says_so() -> Result {
    run(
        "clones_are_refused_where_the_config_says_so",
        1,
        async |world| {
            let proxies = world
                .start_proxies_with(2, |_, plan| {
                    plan.config.duplicate_names = node::config::DuplicateNames::Refuse;
                    Ok(())
                })
                .await?;
            let credentials = world.pki().issue(Kind::Agent, "twin")?;
            let mut twins = Vec::new();
            for home in &proxies {
                let address = world.quic_addr(*home).to_string();
                twins.extend(
                    world
                        .start_agents_with(1, |_, plan| {
                            let quic = plan.config.common.quic.clone();
                            plan.config =
                                AgentConfig::new(credentials.clone(), vec![address.clone()]);
                            plan.config.common.quic = quic;
                            plan.config.connection_count = Some(1);
                            Ok(())
                        })
                        .await?,
                );
                world.run_for(20 * SECOND).await;
            }
            ensure!(world.connections(twins[0]) == 1 && world.connections(twins[1]) == 0);
            let metrics = world.metrics(twins[1])?;
            ensure!(metrics.get("mesh_agent_connects_total{result=\"refused\"}")? >= 1.0);
            ensure!(metrics.get("mesh_agent_connects_total{result=\"failed\"}")? == 0.0);
            let refused = "mesh_proxy_handshakes_refused_total{reason=\"duplicate\"}";
            ensure!(world.metrics(proxies[1])?.get(refused)? >= 1.0);
            world.stop(twins[0]).await?;
            world
                .within(60 * SECOND, "the second one is let in", |w| {
                    w.connections(twins[1]) == 1
                })
                .await?;
            Ok(())
        },
    )
}

#[test]
fn cloned_agents_are_named() -> Result {
    run("cloned_agents_are_named", 1, async |world| {
        let proxies = mesh(world, 2).await?;
        twins(world, [proxies[0], proxies[1]]).await?;
        // A process that was restarted has two sessions for a moment, too.
        world.run_for(30 * SECOND).await;
        for proxy in &proxies {
            let status = world.proxy(*proxy)?.status();
            let named = status.problems.iter().any(|problem| {
                problem
                    .what
                    .contains("2 live processes call themselves agent twin")
            });
            ensure!(named, "{:?}", status.problems);
        }
        let cloned = |proxy: NodeId| world.metrics(proxy)?.get("mesh_proxy_agent_clones_total");
        ensure!(cloned(proxies[0])? + cloned(proxies[1])? >= 1.0, "counted");
        Ok(())
    })
}
