//! Proxies that leave a mesh.

use anyhow::ensure;
use mesh_tests::Result;
use mesh_tests::sim::run;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{SECOND, agent_at, is_meshed, mesh, reaches};

/// What a drain may take beyond its deadline, to close connections and sockets.
const GRACE: std::time::Duration = SECOND.saturating_mul(5);

/// A proxy through which a peer and a user of its own have streams that never end has left soon after
/// its drain deadline: the streams are cut and counted, their ends hear an error, and the mesh takes
/// it for gone at once.
#[test]
fn drain_is_bounded() -> Result {
    run("drain_is_bounded", 1, async |world| {
        let proxies = world
            .start_proxies_with(3, |_, plan| {
                plan.config.common.drain_deadline = 20 * SECOND;
                plan.config.drain_notice = 5 * SECOND;
                Ok(())
            })
            .await?;
        world
            .until("the proxies are a mesh", |w| is_meshed(w, &proxies))
            .await?;
        let (agent, echo) = agent_at(world, proxies[0]).await?;
        world
            .until("the agent is connected", |w| w.connections(agent) == 1)
            .await?;
        let mut streams = Vec::new();
        for proxy in [proxies[0], proxies[1]] {
            let mut stream = world.dial(proxy, agent, &echo.rule()).await?;
            stream.write_all(b"x").await?;
            stream.read_exact(&mut [0]).await?;
            streams.push(stream);
        }
        let started = world.elapsed();
        let cut = world.stop(proxies[0]).await?;
        let took = world.elapsed() - started;
        // One to the agent for its own user; for the peer, one on either side.
        ensure!(cut == 3, "{cut} streams were cut");
        ensure!(
            took >= 20 * SECOND && took <= 20 * SECOND + GRACE,
            "it took {took:?}"
        );
        for stream in &mut streams {
            let end = stream.read_to_end(&mut Vec::new()).await;
            ensure!(end.is_err(), "a stream that was cut has ended as if whole");
        }
        world
            .within(SECOND, "the others know that it has left", |w| {
                is_meshed(w, &proxies[1..])
            })
            .await?;
        Ok(())
    })
}

/// Nothing holds up a proxy that has nothing to wait for, and its agents are elsewhere by then.
#[test]
fn a_drain_without_streams_waits_for_the_agents_alone() -> Result {
    let name = "a_drain_without_streams_waits_for_the_agents_alone";
    run(name, 1, async |world| {
        let proxies = mesh(world, 3).await?;
        let (agent, echo) = agent_at(world, proxies[0]).await?;
        world
            .until("the agent is connected", |w| w.connections(agent) == 1)
            .await?;
        reaches(world, proxies[1], agent, &echo).await?;
        let started = world.elapsed();
        ensure!(world.stop(proxies[0]).await? == 0);
        let took = world.elapsed() - started;
        // Far below the drain deadline.
        ensure!(took < 10 * SECOND, "it took {took:?}");
        ensure!(world.connections(agent) == 1, "the agent has no proxy");
        for proxy in &proxies[1..] {
            reaches(world, *proxy, agent, &echo).await?;
        }
        Ok(())
    })
}
