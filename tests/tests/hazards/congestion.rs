//! Congestion controllers on bad lines: slow they may be, stalled never.

use std::time::Duration;

use anyhow::ensure;
use mesh_tests::Result;
use mesh_tests::services::pattern;
use mesh_tests::sim::{Action, Link, Service, Transport, World, echoes, run};
use node::config::Congestion;

const MS: Duration = Duration::from_millis(1);
const BODY_BYTES: usize = 1 << 20;

/// How long the bodies may take in virtual time. That is 35 kbit/s, where the slowest of the lines has a
/// thousand times as much: a bound on standing still, not a claim about speed.
const TIME_MAX: Duration = Duration::from_secs(480);

fn lines() -> [(&'static str, Link, Action); 4] {
    let line = || Link::latency(25 * MS);
    let mut overtaking = line()
        .reordering(0.3)
        .jittery(10 * MS)
        .limited(50_000_000, 1 << 20);
    overtaking.reorder_delay = 60 * MS;
    [
        // Four packets wait at most. First, while the sender knows of no loss.
        (
            "a tiny queue",
            line().limited(20_000_000, 6_000),
            Action::QueueFull,
        ),
        ("3 % loss", line().lossy(0.03), Action::Lost),
        ("10 % loss", line().lossy(0.1), Action::Lost),
        ("reordering", overtaking.lossy(0.005), Action::Lost),
    ]
}

/// A body there and back over each kind of line, through a proxy and an agent that both use `congestion`.
async fn through_all(world: &mut World, congestion: Congestion) -> Result {
    world.net().set_default_link(Link::latency(25 * MS));
    let proxies = world
        .start_proxies_with(1, |_, plan| {
            plan.config.common.quic.congestion = congestion;
            Ok(())
        })
        .await?;
    let agents = world
        .start_agents_with(1, |_, plan| {
            plan.config.common.quic.congestion = congestion;
            plan.allow(&["127.0.0.1:7".into()])
        })
        .await?;
    world.serve_loopback(agents[0], 7, Service::Echo)?;
    world
        .until("the agent is connected", |w| w.all_hold(&agents, 1))
        .await?;
    let body = pattern(0, BODY_BYTES);
    for (name, line, harm) in lines() {
        world.net().set_path(proxies[0], agents[0], line);
        let harmed = world.net().count(Transport::Udp, harm);
        let tunnel = world.dial(proxies[0], agents[0], "127.0.0.1:7").await?;
        let echoed = tokio::time::timeout(TIME_MAX, echoes(tunnel, &body)).await;
        ensure!(echoed.is_ok(), "{congestion:?} stands still: {name}");
        echoed??;
        let harmed = world.net().count(Transport::Udp, harm) - harmed;
        ensure!(harmed > 0, "{name}: no packet was harmed");
    }
    let connects = world
        .metrics(agents[0])?
        .get("mesh_agent_connects_total{result=\"ok\"}")?;
    ensure!(
        connects.to_bits() == 1f64.to_bits(),
        "the agent has connected {connects} times"
    );
    Ok(())
}

#[test]
fn cubic_gets_through_bad_lines() -> Result {
    run("cubic_gets_through_bad_lines", 1, async |world| {
        through_all(world, Congestion::Cubic).await
    })
}

/// Its randomness is the thread's own: no two runs are alike.
#[test]
fn bbr_gets_through_bad_lines() -> Result {
    run("bbr_gets_through_bad_lines", 1, async |world| {
        through_all(world, Congestion::Bbr).await
    })
}
