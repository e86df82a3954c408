//! Fleets that lose each other and come back.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::ensure;
use mesh_tests::Result;
use mesh_tests::services::pattern;
use mesh_tests::sim::{
    Action, Answer, Balancing, Link, NatConfig, Service, Transport, World, echoes, run, run_seeded,
};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// What a run leaves: its trace, the virtual time that it took, its packets.
type Traces = (u64, Duration, u64);

/// Three proxies, twenty agents, a bad network, traffic, a proxy that dies and returns, and one
/// that leaves in order.
async fn eventful(world: &mut World) -> Result<Traces> {
    let link = Link::latency(15 * MS).jittery(5 * MS).lossy(0.02);
    world.net().set_default_link(link);
    let proxies = world.start_proxies(3).await?;
    let agents = world
        .start_agents_with(20, |_, plan| plan.allow(&["10.0.0.0/8:7".into()]))
        .await?;
    let mut echoing = Vec::new();
    for agent in &agents {
        echoing.push(world.serve(agent, 7, Service::Echo)?);
    }
    world
        .until("every agent holds every proxy", |w| w.all_hold(&agents, 3))
        .await?;
    for round in 0..3 {
        for (index, agent) in agents.iter().enumerate() {
            let proxy = proxies[(index + round) % 3];
            let tunnel = world.dial(proxy, *agent, &echoing[index].rule()).await?;
            echoes(tunnel, &pattern(0, 20_000)).await?;
        }
    }
    world.kill(proxies[1]);
    world
        .until("its agents have noticed", |w| w.all_hold(&agents, 2))
        .await?;
    world.restart(proxies[1]).await?;
    world
        .until("every agent holds every proxy", |w| w.all_hold(&agents, 3))
        .await?;
    world.stop(proxies[2]).await?;
    world.run_for(20 * SECOND).await;
    let net = world.net();
    let packets = net.count(Transport::Udp, Action::Sent);
    Ok((net.trace_hash(), world.elapsed(), packets))
}

#[test]
fn same_seed_same_trace() -> Result {
    let name = "same_seed_same_trace";
    let first = run_seeded(name, 7, eventful)?;
    let again = run_seeded(name, 7, eventful)?;
    let other = run_seeded(name, 8, eventful)?;
    println!("{first:x?}\n{again:x?}\n{other:x?}");
    assert_eq!(first, again);
    assert_ne!(first.0, other.0);
    Ok(())
}

/// A few seeds by default; `MESH_SIM_SEEDS` says how many.
#[test]
fn every_seed_repeats() -> Result {
    let name = "every_seed_repeats";
    let mut traces = std::collections::BTreeSet::new();
    let seeds: u64 = std::env::var("MESH_SIM_SEEDS")
        .unwrap_or_else(|_| "5".into())
        .parse()?;
    for seed in 0..seeds {
        let first = run_seeded(name, seed, eventful)?;
        assert_eq!(first, run_seeded(name, seed, eventful)?, "seed {seed}");
        traces.insert(first.0);
    }
    assert_eq!(traces.len() as u64, seeds);
    Ok(())
}

#[test]
fn agents_survive_partition_and_loss() -> Result {
    run("agents_survive_partition_and_loss", 1, async |world| {
        world
            .net()
            .set_default_link(Link::latency(20 * MS).lossy(0.02));
        let proxies = world.start_proxies(3).await?;
        let agents = world.start_agents(200).await?;
        world
            .until("every agent holds every proxy", |w| w.all_hold(&agents, 3))
            .await?;

        let (left, right) = agents.split_at(100);
        for agent in left {
            world.cut(*agent, proxies[0]);
        }
        world
            .until("half of the agents have lost the first proxy", |w| {
                w.all_hold(left, 2) && w.sessions(proxies[0]) == 100
            })
            .await?;
        ensure!(world.all_hold(right, 3), "the others have not noticed");

        world.net().set_isolated(proxies[1], true);
        world
            .until("everybody has lost the second proxy", |w| {
                w.all_hold(left, 1) && w.all_hold(right, 2)
            })
            .await?;
        world.net().heal_all();
        let took = world
            .within(120 * SECOND, "all are back", |w| w.all_hold(&agents, 3))
            .await?;
        for proxy in &proxies {
            assert_eq!(world.sessions(*proxy), 200);
        }
        println!("all were back after {took:?}");
        Ok(())
    })
}

#[test]
fn rebound_nat_keeps_the_connection() -> Result {
    run("rebound_nat_keeps_the_connection", 1, async |world| {
        let nat = world.net().add_nat(NatConfig::default());
        let proxies = world.start_proxies(1).await?;
        let agents = world
            .start_agents_with(3, |_, plan| {
                plan.behind = Some(nat);
                plan.allow(&["127.0.0.1:7".into()])
            })
            .await?;
        let host = agents[0];
        world.serve_loopback(host, 7, Service::Echo)?;
        world
            .until("all are connected", |w| w.all_hold(&agents, 1))
            .await?;
        for round in 0..4 {
            if round % 2 == 0 {
                world.net().rebind_nat(nat);
            } else {
                world.net().flush_nat(nat);
            }
            // The agent's next keep-alive shows the proxy its new address.
            world.run_for(10 * SECOND).await;
            let tunnel = world.dial(proxies[0], host, "127.0.0.1:7").await?;
            echoes(tunnel, &pattern(0, 100_000)).await?;
        }
        for agent in agents {
            let metrics = world.metrics(agent)?;
            assert_eq!(
                metrics.get("mesh_agent_connects_total{result=\"ok\"}")?,
                1.0
            );
        }
        Ok(())
    })
}

#[test]
fn balancer_behind_a_name_spreads_the_agents() -> Result {
    run(
        "balancer_behind_a_name_spreads_the_agents",
        1,
        async |world| {
            let proxies = world.start_proxies(3).await?;
            let net = world.net().clone();
            let balancer = net.add_balancer(7443, Balancing::FourTuple);
            for proxy in &proxies {
                net.add_backend(balancer, world.quic_addr(*proxy));
            }
            let address = net.balancer_address(balancer).ip();
            net.set_name("lb.example.com", Answer::Addresses(vec![address]));
            let nat = net.add_nat(NatConfig::default());
            let agents = world
                .start_agents_with(30, |_, plan| {
                    plan.behind = Some(nat);
                    plan.config.proxies = vec!["lb.example.com:7443".into()];
                    plan.config.connection_count = Some(1);
                    Ok(())
                })
                .await?;
            world
                .until("all are connected", |w| w.all_hold(&agents, 1))
                .await?;
            let sessions: Vec<usize> = proxies.iter().map(|proxy| world.sessions(*proxy)).collect();
            assert!(sessions.iter().all(|count| *count >= 3), "{sessions:?}");

            // A dead backend that the balancer still believes in is met again, until it is taken out.
            world.kill(proxies[0]);
            net.remove_backend(balancer, world.quic_addr(proxies[0]));
            world
                .until("its agents have come to the others", |w| {
                    w.all_hold(&agents, 1) && w.sessions(proxies[1]) + w.sessions(proxies[2]) == 30
                })
                .await?;
            world.run_for(60 * SECOND).await;
            assert!(
                world.all_hold(&agents, 1),
                "keep-alives hold the mappings open"
            );
            Ok(())
        },
    )
}

#[test]
fn both_address_families_lead_to_one_proxy() -> Result {
    run(
        "both_address_families_lead_to_one_proxy",
        1,
        async |world| {
            let proxies = world
                .start_proxies_with(1, |_, plan| {
                    plan.config.common.quic.listen = "[::]:7443".parse()?;
                    Ok(())
                })
                .await?;
            let addresses: Vec<String> = world
                .net()
                .ips(proxies[0])
                .into_iter()
                .map(|ip| SocketAddr::new(ip, 7443).to_string())
                .collect();
            assert_eq!(addresses.len(), 2);
            let agents = world
                .start_agents_with(1, |_, plan| {
                    plan.config.proxies = addresses.clone();
                    Ok(())
                })
                .await?;
            world
                .until("one proxy, once", |w| {
                    w.sessions(proxies[0]) == 1 && w.all_hold(&agents, 1)
                })
                .await?;
            world.run_for(60 * SECOND).await;
            assert_eq!(world.sessions(proxies[0]), 1);
            Ok(())
        },
    )
}
