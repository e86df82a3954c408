//! Proxies that come, leave, die and are cut off.

use anyhow::ensure;
use mesh_tests::Result;
use mesh_tests::sim::{Link, World, run};

use crate::support::{MS, SECOND, connected_agent_at, is_meshed, mesh, peers, reaches};

fn state(world: &World, asked: mesh_tests::sim::NodeId, of: mesh_tests::sim::NodeId) -> String {
    let name = world.name(of).to_owned();
    peers(world, asked)
        .ok()
        .and_then(|peers| peers.into_iter().find(|peer| peer.name == name))
        .map_or_else(|| "unknown".into(), |peer| peer.state)
}

#[test]
fn one_connection_per_pair() -> Result {
    run("one_connection_per_pair", 1, async |world| {
        world.net().set_default_link(Link::latency(20 * MS));
        // Each names all others, so that every pair dials from both sides.
        let addresses: Vec<String> = (1..=4).map(|host| format!("10.0.0.{host}:7443")).collect();
        let proxies = world
            .start_proxies_with(4, |_, plan| {
                plan.config.peers.clone_from(&addresses);
                Ok(())
            })
            .await?;
        world
            .until("the proxies are a mesh", |w| is_meshed(w, &proxies))
            .await?;
        world.run_for(60 * SECOND).await;
        ensure!(is_meshed(world, &proxies), "and stay one");
        for proxy in &proxies {
            for peer in peers(world, *proxy)? {
                let age = peer
                    .connection
                    .map_or(0.0, |connection| connection.age_seconds);
                ensure!(age > 50.0, "the connection to {} is {age} s old", peer.name);
            }
        }
        Ok(())
    })
}

#[test]
fn a_proxy_that_joins_one_is_known_to_all() -> Result {
    run("a_proxy_that_joins_one_is_known_to_all", 1, async |world| {
        let mut proxies = mesh(world, 5).await?;
        let seed = world.quic_addr(proxies[0]).to_string();
        let fresh = world
            .start_proxies_with(1, |_, plan| {
                plan.config.peers = vec![seed.clone()];
                Ok(())
            })
            .await?;
        proxies.extend(fresh);
        world
            .within(5 * SECOND, "all know the new one", |w| {
                is_meshed(w, &proxies)
            })
            .await?;
        Ok(())
    })
}

#[test]
fn a_leave_is_no_death() -> Result {
    run("a_leave_is_no_death", 1, async |world| {
        let proxies = mesh(world, 4).await?;
        let mut seen = std::collections::BTreeSet::new();
        world.stop(proxies[3]).await?;
        for _ in 0..200 {
            for proxy in &proxies[..3] {
                seen.insert(state(world, *proxy, proxies[3]));
            }
            world.run_for(50 * MS).await;
        }
        ensure!(!seen.contains("down"), "{seen:?}");
        for proxy in &proxies[..3] {
            ensure!(state(world, *proxy, proxies[3]) == "left", "{seen:?}");
        }
        Ok(())
    })
}

#[test]
fn a_dead_proxy_is_noticed_and_its_return_too() -> Result {
    run(
        "a_dead_proxy_is_noticed_and_its_return_too",
        1,
        async |world| {
            let proxies = mesh(world, 3).await?;
            world.kill(proxies[0]);
            world
                .within(20 * SECOND, "it is down", |w| {
                    proxies[1..]
                        .iter()
                        .all(|proxy| state(w, *proxy, proxies[0]) == "down")
                })
                .await?;
            world.restart(proxies[0]).await?;
            world
                .within(10 * SECOND, "it is back", |w| is_meshed(w, &proxies))
                .await?;
            Ok(())
        },
    )
}

#[test]
fn a_split_heals() -> Result {
    run("a_split_heals", 1, async |world| {
        world
            .net()
            .set_default_link(Link::latency(20 * MS).lossy(0.01));
        let proxies = mesh(world, 6).await?;
        let (agent, echo) = connected_agent_at(world, proxies[0]).await?;
        let (left, right) = proxies.split_at(3);
        for a in left {
            for b in right {
                world.cut(*a, *b);
            }
        }
        // Long enough for both sides to have declared each other dead.
        world
            .within(60 * SECOND, "each side is alone", |w| {
                left.iter()
                    .all(|a| right.iter().all(|b| state(w, *a, *b) == "down"))
                    && right
                        .iter()
                        .all(|b| left.iter().all(|a| state(w, *b, *a) == "down"))
            })
            .await?;
        ensure!(
            world.dial(right[0], agent, &echo.rule()).await.is_err(),
            "nobody on the right side knows the agent"
        );
        world.net().heal_all();
        let took = world
            .within(10 * SECOND, "the mesh is whole again", |w| {
                is_meshed(w, &proxies)
            })
            .await?;
        println!("healed after {took:?}");
        for proxy in &proxies {
            reaches(world, *proxy, agent, &echo).await?;
        }
        Ok(())
    })
}

#[test]
fn loss_kills_nobody() -> Result {
    run("loss_kills_nobody", 1, async |world| {
        world
            .net()
            .set_default_link(Link::latency(20 * MS).jittery(10 * MS).lossy(0.05));
        let proxies = mesh(world, 8).await?;
        for _ in 0..600 {
            world.run_for(SECOND).await;
            for a in &proxies {
                for b in &proxies {
                    if a != b {
                        let state = state(world, *a, *b);
                        ensure!(
                            state != "down" && state != "left",
                            "{state} at {:?}",
                            world.elapsed()
                        );
                    }
                }
            }
        }
        Ok(())
    })
}

/// What a proxy tells of changes reaches the agents that hold it.
#[test]
fn agents_hear_of_proxies_within_two_seconds() -> Result {
    run(
        "agents_hear_of_proxies_within_two_seconds",
        1,
        async |world| {
            let mut proxies = mesh(world, 2).await?;
            let agents = world.start_agents(20).await?;
            world
                .until("every agent holds every proxy", |w| w.all_hold(&agents, 2))
                .await?;
            proxies.extend(world.start_proxies(1).await?);
            world
                .within(3 * SECOND, "every agent holds the new one", |w| {
                    w.all_hold(&agents, 3)
                })
                .await?;
            Ok(())
        },
    )
}

#[test]
fn two_proxies_of_one_name_are_told_apart() -> Result {
    run("two_proxies_of_one_name_are_told_apart", 1, async |world| {
        let proxies = mesh(world, 2).await?;
        let credentials = world.pki().issue(certs::Kind::Proxy, "proxy-1")?;
        // Its state directory is a copy that has counted on.
        let imposter = world
            .start_proxies_with(1, |_, plan| {
                let config = &mut plan.config;
                let (quic, peers, dir) = (
                    config.common.quic.clone(),
                    config.peers.clone(),
                    config.state_dir.clone(),
                );
                *config = node::config::ProxyConfig::new(credentials.clone(), "sim".parse()?);
                config.common.quic = quic;
                config.peers = peers;
                if let Some(dir) = &dir {
                    std::fs::create_dir_all(dir)?;
                    std::fs::write(dir.join("epoch"), "41\n")?;
                }
                config.state_dir = dir;
                Ok(())
            })
            .await?[0];
        world
            .within(20 * SECOND, "the older one steps back", |w| {
                w.proxy(proxies[0]).is_ok_and(|proxy| {
                    proxy.status().problems.iter().any(|problem| {
                        problem
                            .what
                            .contains("another proxy is in the mesh as proxy-1")
                    })
                })
            })
            .await?;
        world
            .within(20 * SECOND, "the newer one is in the mesh", |w| {
                let peers = peers(w, proxies[1]).unwrap_or_default();
                peers.iter().any(|peer| {
                    peer.name == "proxy-1"
                        && peer.epoch == 42
                        && peer.state == "alive"
                        && peer.connection.is_some()
                })
            })
            .await?;
        world.run_for(60 * SECOND).await;
        let status = world.proxy(imposter)?.status();
        ensure!(status.problems.is_empty(), "{:?}", status.problems);
        Ok(())
    })
}
