//! How proxies find each other: names, balancers, both families of addresses, and moves.

use anyhow::ensure;
use mesh_tests::Result;
use mesh_tests::sim::{Answer, Balancing, World, run};

use crate::support::{SECOND, connected_agent_at, is_meshed, mesh, peers, reaches};

/// Nobody says anything of a peer that is not so: each is connected once, and no proxy is known that
/// there is not.
async fn is_whole(world: &World, proxies: &[mesh_tests::sim::NodeId]) -> Result {
    world
        .within(30 * SECOND, "the proxies are a mesh", |w| {
            is_meshed(w, proxies)
        })
        .await?;
    world.run_for(60 * SECOND).await;
    for proxy in proxies {
        let known = peers(world, *proxy)?;
        ensure!(
            known.len() == proxies.len() - 1 && is_meshed(world, proxies),
            "{}: {known:?}",
            world.name(*proxy)
        );
    }
    Ok(())
}

/// All proxies have one config: a name that leads to all of them, themselves too.
#[test]
fn peers_behind_one_name() -> Result {
    for rotated in [false, true] {
        run("peers_behind_one_name", 1, async |world| {
            let proxies = world
                .start_proxies_with(4, |_, plan| {
                    plan.config.peers = vec!["proxies.example.com:7443".into()];
                    Ok(())
                })
                .await?;
            let addresses: Vec<_> = proxies.iter().map(|it| world.net().ip(*it)).collect();
            let answer = if rotated {
                Answer::Rotated(addresses)
            } else {
                Answer::Addresses(addresses)
            };
            world.net().set_name("proxies.example.com", answer);
            is_whole(world, &proxies).await
        })?;
    }
    Ok(())
}

/// The one address of the config is a balancer's: whoever it leads to tells of the others, which are
/// then dialled themselves, and it is asked again, for those that nobody has met.
#[test]
fn peers_behind_one_address() -> Result {
    for policy in [Balancing::RoundRobin, Balancing::FourTuple] {
        run("peers_behind_one_address", 1, async |world| {
            let balancer = world.net().add_balancer(7443, policy);
            let address = world.net().balancer_address(balancer).to_string();
            let proxies = world
                .start_proxies_with(5, |_, plan| {
                    plan.config.peers = vec![address.clone()];
                    Ok(())
                })
                .await?;
            for proxy in &proxies {
                let backend = world.quic_addr(*proxy);
                world.net().add_backend(balancer, backend);
            }
            is_whole(world, &proxies).await
        })?;
    }
    Ok(())
}

/// Peers that meet over IPv6, whose agents come over IPv4.
#[test]
fn peers_over_the_other_family() -> Result {
    run("peers_over_the_other_family", 1, async |world| {
        let proxies = world
            .start_proxies_with(3, |_, plan| {
                plan.config.common.quic.listen = "[::]:7443".parse()?;
                plan.config.peers = vec!["proxies.example.com:7443".into()];
                let name = plan.config.common.name.clone();
                plan.config.common.quic.peer_advertise = Some(format!("{name}.example.com:7443"));
                Ok(())
            })
            .await?;
        let mut all = Vec::new();
        for proxy in &proxies {
            let v6: Vec<_> = world
                .net()
                .ips(*proxy)
                .into_iter()
                .filter(|ip| ip.is_ipv6())
                .collect();
            let name = format!("{}.example.com", world.name(*proxy));
            world.net().set_name(&name, Answer::Addresses(v6.clone()));
            all.extend(v6);
        }
        world
            .net()
            .set_name("proxies.example.com", Answer::Addresses(all));
        is_whole(world, &proxies).await?;
        for proxy in &proxies {
            for peer in peers(world, *proxy)? {
                let remote = peer.connection.map(|connection| connection.remote);
                ensure!(
                    remote
                        .as_ref()
                        .is_some_and(|remote| remote.starts_with("[fd00:")),
                    "{remote:?}"
                );
            }
        }
        let (agent, echo) = connected_agent_at(world, proxies[0]).await?;
        for proxy in &proxies {
            reaches(world, *proxy, agent, &echo).await?;
        }
        Ok(())
    })
}

/// A proxy that comes back elsewhere is found there, though no config names the place.
#[test]
fn a_peer_that_moves_is_found() -> Result {
    run("a_peer_that_moves_is_found", 1, async |world| {
        let proxies = mesh(world, 3).await?;
        for port in [8001, 8002] {
            world.kill(proxies[1]);
            world.run_for(SECOND).await;
            let ip = world.net().ip(proxies[1]);
            let node::config::NodeConfig::Proxy(config) = world.config(proxies[1]) else {
                anyhow::bail!("no proxy")
            };
            config.common.quic.listen.set_port(port);
            config.common.quic.advertise = vec![format!("{ip}:{port}")];
            world.restart(proxies[1]).await?;
            is_whole(world, &proxies).await?;
            for proxy in [proxies[0], proxies[2]] {
                let addresses: Vec<_> = peers(world, proxy)?
                    .into_iter()
                    .filter(|peer| peer.name == "proxy-2")
                    .flat_map(|peer| peer.addresses)
                    .collect();
                ensure!(addresses == [format!("{ip}:{port}")], "{addresses:?}");
            }
        }
        Ok(())
    })
}
