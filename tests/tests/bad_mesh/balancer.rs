//! A balancer that leads to one proxy, always.

use anyhow::ensure;
use mesh_tests::Result;
use mesh_tests::sim::Balancing;

use crate::support::{MINUTE, SECOND, gauge, scenario, whole};

/// The agent reaches the others where they say they are, and stays with the one. Nor does the loss of
/// another one make it dial the balancer without end.
#[test]
fn a_balancer_to_one_proxy_is_enough() -> Result {
    scenario("a_balancer_to_one_proxy_is_enough", async |world, log| {
        let net = world.net().clone();
        let balancer = net.add_balancer(7443, Balancing::RoundRobin);
        let proxies = world.start_proxies(3).await?;
        net.add_backend(balancer, world.quic_addr(proxies[0]));
        world.run_for(5 * SECOND).await;
        let address = net.balancer_address(balancer).to_string();
        let agent = world
            .start_agents_with(1, |_, plan| {
                plan.config.proxies = vec![address.clone()];
                Ok(())
            })
            .await?[0];
        world
            .within(5 * SECOND, "all are held", |w| w.all_hold(&[agent], 3))
            .await?;
        let attempts = |world: &mesh_tests::sim::World| -> Result<usize> {
            Ok(whole(
                world.metrics(agent)?.sum("mesh_agent_connects_total"),
            ))
        };
        world.run_for(10 * MINUTE).await;
        assert_eq!(attempts(world)?, 3);
        assert_eq!(net.balancer_flows(balancer).len(), 1);
        assert_eq!(log.warnings(&[]).len(), 0);

        world.kill(proxies[2]);
        let mut most = 0;
        for _ in 0..20 {
            let before = attempts(world)?;
            for _ in 0..60 {
                world.run_for(SECOND).await;
                ensure!(world.sessions(proxies[0]) == 1 && world.sessions(proxies[1]) == 1);
                let inflight = gauge(world, agent, "mesh_agent_inflight_leases")?;
                ensure!(inflight <= 2, "{inflight} dials at once");
            }
            most = most.max(attempts(world)? - before);
        }
        // It is given up by its peers after a while; until then the balancer is asked, in vain.
        ensure!(most <= 40, "{most} dials in a minute");
        let before = attempts(world)?;
        world.run_for(5 * MINUTE).await;
        assert_eq!(attempts(world)?, before, "nobody is missing");
        log.says_once(&["lost the connection"], "proxy-3")?;
        ensure!(log.warnings(&["cannot connect"]).len() <= 1);

        world.restart(proxies[2]).await?;
        world
            .within(2 * MINUTE, "it is back", |w| w.all_hold(&[agent], 3))
            .await?;
        for proxy in &proxies[..2] {
            let ended = world.metrics(*proxy)?;
            let ended = whole(ended.sum("mesh_proxy_agent_disconnects_total"));
            assert_eq!(ended, 0, "{} was lost", world.name(*proxy));
        }
        Ok(())
    })
}
