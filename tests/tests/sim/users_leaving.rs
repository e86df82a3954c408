//! Users, when something on their way leaves or ends: an agent, a proxy without another, they
//! themselves.

use std::time::Duration;

use anyhow::ensure;
use mesh_tests::Result;
use mesh_tests::sim::{Link, Service, World, run};
use node::user::Event;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::users::{User, addresses, fleet};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

fn draining(event: &Event) -> bool {
    matches!(event, Event::Refused { reason, .. } if *reason == "draining")
}

/// What it says is about the agent, and at once: the user neither waits for another proxy nor takes
/// one.
#[test]
fn an_agent_that_leaves_is_no_reason_to_leave_its_proxies() -> Result {
    for count in [1, 2] {
        let name = "an_agent_that_leaves_is_no_reason_to_leave_its_proxies";
        run(name, 1, async |world| {
            world.net().set_default_link(Link::latency(20 * MS));
            let (proxies, agent, echo, host) = fleet(world, count).await?;
            let forward = format!("0:a-1/{}", echo.address);
            let user = User::start(world, host, addresses(world, &proxies), &forward)?;
            let mut open = user.connect().await?;
            open.write_all(b"x").await?;
            open.read_exact(&mut [0]).await?;
            let used = user.proxy();
            // It stays for the stream that is open.
            let left = tokio::spawn(world.leave(agent)?);
            world.run_for(SECOND).await;
            for _ in 0..20 {
                let started = world.elapsed();
                ensure!(user.echoes(b"hello").await.is_err(), "it was served");
                let took = world.elapsed() - started;
                ensure!(took < SECOND, "{count} proxies: refused after {took:?}");
            }
            ensure!(user.proxy() == used, "at {} now", user.proxy());
            let others =
                |event: &Event| !draining(event) && !matches!(event, Event::Connected { .. });
            ensure!(user.count(draining) == 1 && user.count(others) == 0);
            drop(open);
            left.await?;
            user.stop().await;
            Ok(())
        })?;
    }
    Ok(())
}

/// A proxy that leaves, with no other to go to: its user hears when it is gone, and when it is back.
#[test]
fn the_end_of_a_proxy_without_another_is_told() -> Result {
    let name = "the_end_of_a_proxy_without_another_is_told";
    run(name, 1, async |world| {
        world.net().set_default_link(Link::latency(20 * MS));
        let (proxies, _, echo, host) = fleet(world, 1).await?;
        let forward = format!("0:a-1/{}", echo.address);
        let user = User::start(world, host, addresses(world, &proxies), &forward)?;
        let mut open = user.connect().await?;
        open.write_all(b"x").await?;
        open.read_exact(&mut [0]).await?;
        let lost = |event: &Event| matches!(event, Event::Lost { .. });
        let connected = |event: &Event| matches!(event, Event::Connected { .. });
        let left = tokio::spawn(world.leave(proxies[0])?);
        // By then it waits long between its attempts at another one.
        world.run_for(20 * SECOND).await;
        ensure!(user.proxy() == "proxy-1" && user.count(lost) == 0);
        drop(open);
        left.await?;
        world
            .within(SECOND, "the user knows", |_| user.proxy().is_empty())
            .await?;
        ensure!(user.count(lost) == 1, "told {} times", user.count(lost));

        world.kill(proxies[0]);
        world.restart(proxies[0]).await?;
        world
            .until("the user is back", |_| user.proxy() == "proxy-1")
            .await?;
        ensure!(user.count(lost) == 1 && user.count(connected) == 2);
        user.stop().await;
        Ok(())
    })
}

/// Whoever has gone is not dialled for: no node on the way waits on for the target.
#[test]
fn a_dial_of_a_user_who_has_gone_ends_on_the_whole_way() -> Result {
    let name = "a_dial_of_a_user_who_has_gone_ends_on_the_whole_way";
    run(name, 1, async |world| {
        world.net().set_default_link(Link::latency(20 * MS));
        let proxies = world.start_proxies(2).await?;
        let target = world.net().add_host("services");
        let echo = world.serve(target, 7, Service::Echo)?;
        let agents = world
            .start_agents_with(1, |_, plan| plan.allow(&[echo.rule()]))
            .await?;
        let agent = agents[0];
        world
            .until("the agent is connected", |w| w.all_hold(&agents, 2))
            .await?;
        let host = world.net().add_host("user");
        // It holds the other proxy alone: the dial takes the hop between the two.
        world.cut(agent, proxies[0]);
        world
            .until("one proxy is given up", |w| w.connections(agent) == 1)
            .await?;
        let forward = format!("0:a-1/{}", echo.address);
        let user = User::start(world, host, addresses(world, &proxies[..1]), &forward)?;
        user.echoes(b"hello").await?;
        ensure!(user.proxy() == "proxy-1");
        let nodes = [proxies[0], proxies[1], agent];
        let open = |w: &World| -> f64 {
            let of = |node| {
                let metrics = w.metrics(node);
                metrics.and_then(|m| m.get("mesh_streams_open"))
            };
            nodes.iter().map(|node| of(*node).unwrap()).sum()
        };
        world
            .until("all streams have ended", |w| open(w) < 0.5)
            .await?;
        // From now on the target does not answer.
        world.net().kill(target);
        let mut waiting = Vec::new();
        for _ in 0..10 {
            waiting.push(user.connect().await?);
        }
        world
            .within(SECOND, "the agent dials", |w| open(w) > 49.5)
            .await?;
        for socket in waiting {
            socket.set_reset_on_close(true);
            drop(socket);
        }
        world
            .within(SECOND, "nobody dials", |w| open(w) < 0.5)
            .await?;
        user.stop().await;
        Ok(())
    })
}
