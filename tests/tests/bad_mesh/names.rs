//! Names that resolve to nothing, to too much, or never; balancers that lead nowhere else.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::ensure;
use mesh_tests::sim::{Answer, Balancing, World, run};
use mesh_tests::{Result, logs};

use crate::support::{HOUR, SECOND, attempts, connects, gauge, warnings};

/// An agent that knows a name alone, which is no good for an hour: it asks for it within bounds, says
/// so once in a while, and is there soon after the name is good.
async fn hour_of(world: &mut World, name: &str, answer: Answer, result: &str) -> Result<usize> {
    let logs = logs::capture();
    let proxy = world.start_proxies(1).await?[0];
    world.net().set_name(name, answer);
    let agent = world
        .start_agents_with(1, |_, plan| {
            plan.config.proxies = vec![format!("{name}:7443")];
            Ok(())
        })
        .await?[0];
    let started = world.elapsed();
    while world.elapsed() - started < HOUR {
        world.run_for(5 * SECOND).await;
        ensure!(gauge(world, agent, "mesh_agent_inflight_leases")? <= 4);
    }
    let dials = attempts(world, agent)?;
    ensure!(connects(world, agent, result)? == dials, "{name}: {dials}");
    let lines = warnings(&logs, &format!("\"address\":\"{name}:7443\""));
    ensure!(
        !lines.is_empty() && lines.len() <= dials / 20 + 10,
        "{name}: {} lines for {dials} dials: {:?}",
        lines.len(),
        lines.first()
    );
    let good = Answer::Addresses(vec![world.net().ip(proxy)]);
    world.net().set_name(name, good);
    world
        .within(200 * SECOND, "the agent is there", |w| {
            w.sessions(proxy) == 1
        })
        .await?;
    ensure!(gauge(world, agent, "mesh_agent_inflight_leases")? == 0);
    Ok(dials)
}

#[test]
fn names_that_are_no_good() -> Result {
    let nowhere = |count: u32| -> Vec<IpAddr> {
        let base = u32::from(Ipv4Addr::new(10, 95, 0, 1));
        (0..count)
            .map(|it| Ipv4Addr::from(base + it).into())
            .collect()
    };
    let group = vec![
        IpAddr::from([0, 0, 0, 0]),
        IpAddr::from([224, 0, 0, 1]),
        IpAddr::from([255, 255, 255, 255]),
    ];
    for (name, answer, result, least, most) in [
        (
            "empty.example.com",
            Answer::Empty,
            "resolve_failed",
            100,
            600,
        ),
        (
            "failing.example.com",
            Answer::Failure,
            "resolve_failed",
            100,
            600,
        ),
        (
            "silent.example.com",
            Answer::Silence,
            "resolve_failed",
            50,
            600,
        ),
        // Some of them in one attempt.
        (
            "thousand.example.com",
            Answer::Addresses(nowhere(1000)),
            "timeout",
            10,
            150,
        ),
        (
            "group.example.com",
            Answer::Addresses(group),
            "resolve_failed",
            100,
            600,
        ),
    ] {
        let dials = run("names_that_are_no_good", 1, async |world| {
            hour_of(world, name, answer, result).await
        })?;
        ensure!(
            (least..=most).contains(&dials),
            "{name}: {dials} dials in an hour"
        );
    }
    Ok(())
}

/// A balancer that always leads to the same of three proxies, which cannot be reached otherwise: the
/// agent keeps the one, and asks for the others within bounds. When they can be, it holds all.
#[test]
fn a_balancer_that_always_leads_to_one() -> Result {
    for reachable in [false, true] {
        run("a_balancer_that_always_leads_to_one", 1, async |world| {
            let net = world.net().clone();
            let balancer = net.add_balancer(7443, Balancing::SourceAddress);
            let proxies = world
                .start_proxies_with(3, |_, plan| {
                    if !reachable {
                        plan.config.common.quic.advertise = vec!["10.99.0.1:7443".into()];
                        let own = plan.config.common.name.to_string();
                        plan.config.common.quic.peer_advertise = Some(format!("{own}.peers:7443"));
                    }
                    Ok(())
                })
                .await?;
            for proxy in &proxies {
                let peers = format!("{}.peers", world.name(*proxy));
                net.set_name(&peers, Answer::Addresses(vec![net.ip(*proxy)]));
                net.add_backend(balancer, world.quic_addr(*proxy));
            }
            world.run_for(10 * SECOND).await;
            let address = net.balancer_address(balancer).to_string();
            let agent = world
                .start_agents_with(1, |_, plan| {
                    plan.config.proxies = vec![address.clone()];
                    Ok(())
                })
                .await?[0];
            let wanted = if reachable { 3 } else { 1 };
            world
                .within(60 * SECOND, "the agent holds what it can", |w| {
                    w.connections(agent) == wanted
                })
                .await?;
            let before = attempts(world, agent)?;
            let started = world.elapsed();
            while world.elapsed() - started < HOUR {
                world.run_for(5 * SECOND).await;
                ensure!(gauge(world, agent, "mesh_agent_inflight_leases")? <= 4);
            }
            let dials = attempts(world, agent)? - before;
            ensure!(world.connections(agent) == wanted, "it lost what it had");
            if reachable {
                ensure!(dials == 0, "{dials} dials for nothing");
            } else {
                let duplicates = connects(world, agent, "duplicate")?;
                ensure!(
                    (50..=2000).contains(&dials) && duplicates > 20,
                    "{dials} dials in an hour, {duplicates} of them duplicates"
                );
                ensure!(gauge(world, agent, "mesh_agent_desired_proxies")? == 3);
            }
            Ok(())
        })?;
    }
    Ok(())
}
