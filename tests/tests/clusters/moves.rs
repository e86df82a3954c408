//! A tunnel that moves while not all that is wanted can be reached, in virtual time.

use std::time::Duration;

use certs::Kind;
use mesh_tests::Result;
use mesh_tests::pki::Pki;
use mesh_tests::sim::{self, NodeId, World};

use crate::support::{A, trust, tunnel};

/// Beyond what the former pool is kept for.
const BOUND: Duration = Duration::from_secs(90);

/// The keeper, a proxy of A that stands alone, and two of A that know each other.
async fn world_of(world: &mut World) -> Result<(NodeId, NodeId, [NodeId; 2])> {
    let pki = Pki::new(A)?;
    let of_a = trust(&pki, &[])?;
    let keeper = world
        .start_proxies_with(1, |_, plan| {
            plan.config.trust = vec![of_a.clone()];
            Ok(())
        })
        .await?[0];
    let own = trust(world.pki(), &[])?;
    let mut first: Option<String> = None;
    let proxies = world
        .start_proxies_with(3, |index, plan| {
            let config = &mut plan.config;
            let credentials = pki.issue(Kind::Proxy, &format!("a{index}"))?;
            config.common.name = credentials.identity().name.clone();
            config.common.cluster = credentials.identity().cluster.clone();
            config.common.credentials = credentials;
            config.peers = Vec::new();
            if index == 1 {
                first = config.common.quic.advertise.first().cloned();
            } else if index == 2 {
                config.peers.extend(first.clone());
            }
            config.trust = vec![own.clone()];
            Ok(())
        })
        .await?;
    Ok((keeper, proxies[0], [proxies[1], proxies[2]]))
}

/// One of the new proxies is never reachable: the former connection goes all the same, but not before
/// there is a new one.
#[test]
fn a_proxy_that_is_never_reached_keeps_nothing() -> Result {
    sim::run(
        "a_proxy_that_is_never_reached_keeps_nothing",
        1,
        async |world| {
            let (keeper, former, [reached, unreached]) = world_of(world).await?;
            world.cut(keeper, unreached);
            let apply = |world: &World, to: NodeId| -> Result {
                let wish = tunnel(A, &[world.quic_addr(to)], 0)?;
                world.proxy(keeper)?.tunnels().apply(vec![wish]);
                Ok(())
            };
            apply(world, former)?;
            world
                .until("the tunnel stands", |w| w.sessions(former) == 1)
                .await?;
            apply(world, reached)?;
            world
                .until("the new one stands beside the former", |w| {
                    w.sessions(reached) == 1 && w.sessions(former) == 1
                })
                .await?;
            world
                .within(BOUND, "the former one is left", |w| {
                    w.sessions(former) == 0 && w.sessions(reached) == 1
                })
                .await?;
            Ok(())
        },
    )
}

/// The other one goes for good, so that fewer are wanted, without a connection that comes or goes.
#[test]
fn fewer_that_are_wanted_are_enough() -> Result {
    sim::run("fewer_that_are_wanted_are_enough", 1, async |world| {
        let (keeper, former, [reached, unreached]) = world_of(world).await?;
        world.cut(keeper, unreached);
        let apply = |world: &World, to: NodeId, count: u64| -> Result {
            let wish = tunnel(A, &[world.quic_addr(to)], count)?;
            world.proxy(keeper)?.tunnels().apply(vec![wish]);
            Ok(())
        };
        apply(world, former, 0)?;
        world
            .until("the tunnel stands", |w| w.sessions(former) == 1)
            .await?;
        apply(world, reached, 0)?;
        world
            .until("the new one stands", |w| w.sessions(reached) == 1)
            .await?;
        world.stop(unreached).await?;
        // Well before the bound of a pool that lacks something.
        world
            .within(Duration::from_secs(40), "the former one is left", |w| {
                w.sessions(former) == 0 && w.sessions(reached) == 1
            })
            .await?;
        Ok(())
    })
}
