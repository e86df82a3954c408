//! Dials of agents through a fleet of proxies, in virtual time.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use mesh_proto::grant::{Grant, May};
use mesh_proto::refusal::Reason;
use mesh_tests::Result;
use mesh_tests::probe::Metrics;
use mesh_tests::services::pattern;
use mesh_tests::sim::{Link, NodeId, Service, World, echoes, run};
use node::agent::{Dialer, DialerError};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const MS: Duration = Duration::from_millis(1);

/// What an agent's dial may take by default.
const DEADLINE: Duration = Duration::from_secs(10);

/// Long enough that a dial's deadline passes before a connection is given up.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Streams that a proxy takes from an agent who may dial, but for its control stream.
const STREAMS: usize = 255;

fn everybody_dials() -> Result<Vec<Grant>> {
    Ok(vec![Grant {
        who: vec!["agent:*".parse()?],
        may: [May::Dial].into(),
        agents: None,
        targets: None,
    }])
}

struct Fleet {
    proxies: Vec<NodeId>,
    agents: Vec<NodeId>,
}

impl Fleet {
    /// Proxies, the first of which is the nearest to `a-1`, and two agents that hold all of them;
    /// each has a service `echo` on its own host.
    async fn start(world: &mut World, proxies: usize) -> Result<Self> {
        world.net().set_default_link(Link::latency(20 * MS));
        let proxies = world
            .start_proxies_with(proxies, |_, plan| {
                plan.config.grants = everybody_dials()?;
                plan.config.common.quic.idle_timeout = IDLE_TIMEOUT;
                Ok(())
            })
            .await?;
        let agents = world
            .start_agents_with(2, |_, plan| {
                plan.config.common.quic.streams_max = 1024;
                plan.config.common.quic.idle_timeout = IDLE_TIMEOUT;
                let address = "127.0.0.1:7".parse()?;
                plan.config
                    .services
                    .push(mesh_tests::fleet::service("echo", address)?);
                plan.allow(&["127.0.0.1:7".into()])
            })
            .await?;
        for agent in &agents {
            world.serve_loopback(*agent, 7, Service::Echo)?;
        }
        let count = proxies.len();
        world
            .until("every agent holds every proxy", |w| {
                w.all_hold(&agents, count)
            })
            .await?;
        for proxy in &proxies[1..] {
            let far = Link::latency(60 * MS);
            world.net().set_path(agents[0], *proxy, far);
        }
        let fleet = Self { proxies, agents };
        // Until the round-trip times tell the proxies apart.
        world.run_for(Duration::from_secs(120)).await;
        Ok(fleet)
    }

    fn dialer(&self, world: &World) -> Result<Dialer> {
        let agent = world.bound(self.agents[0])?.agent().context("an agent")?;
        Ok(agent.dialer("a-2")?)
    }

    /// Dials asked of each proxy.
    fn asked(&self, world: &World) -> Result<Vec<usize>> {
        self.proxies
            .iter()
            .map(|proxy| Ok(world.metrics(*proxy)?.sum("mesh_dials_total") as usize))
            .collect()
    }
}

fn reason(error: &DialerError) -> Option<Reason> {
    match error {
        DialerError::Refused(refused) => Some(refused.reason),
        DialerError::Target(_) | DialerError::NotConnected | DialerError::Leaving => None,
    }
}

/// The nearest proxy is asked, and byte for byte it is right on a bad network too.
#[test]
fn the_nearest_proxy_is_asked() -> Result {
    run("the_nearest_proxy_is_asked", 1, async |world| {
        let fleet = Fleet::start(world, 3).await?;
        let dialer = fleet.dialer(world)?;
        for _ in 0..3 {
            echoes(dialer.dial("service:echo").await?, &pattern(1, 50_000)).await?;
        }
        ensure!(
            fleet.asked(world)? == [3, 0, 0],
            "{:?}",
            fleet.asked(world)?
        );
        let bad = Link::latency(20 * MS)
            .jittery(10 * MS)
            .lossy(0.03)
            .reordering(0.1);
        for node in [fleet.agents[0], fleet.agents[1]] {
            world.net().set_path(node, fleet.proxies[0], bad.clone());
        }
        echoes(dialer.dial("service:echo").await?, &pattern(2, 600_000)).await
    })
}

/// A proxy that has fallen silent costs one deadline; then the next is tried first, at once.
#[test]
fn a_silent_proxy_costs_one_deadline() -> Result {
    run("a_silent_proxy_costs_one_deadline", 1, async |world| {
        let fleet = Fleet::start(world, 2).await?;
        let dialer = fleet.dialer(world)?;
        world.freeze(fleet.proxies[0]);
        let started = world.elapsed();
        let error = dialer.dial("service:echo").await.err().context("refused")?;
        ensure!(reason(&error) == Some(Reason::Timeout), "{error}");
        ensure!(world.elapsed() - started <= DEADLINE + 10 * MS);
        ensure!(world.connections(fleet.agents[0]) == 2, "not noticed yet");
        let started = world.elapsed();
        echoes(dialer.dial("service:echo").await?, &pattern(1, 50_000)).await?;
        ensure!(world.elapsed() - started < Duration::from_secs(2));
        ensure!(fleet.asked(world)? == [0, 1]);

        // When it is back and has answered one, it is the nearest again.
        world.thaw(fleet.proxies[0]);
        world
            .until("both are held", |w| w.all_hold(&fleet.agents, 2))
            .await
    })
}

/// A connection that is lost before the answer: the dial goes on through another proxy.
#[test]
fn a_dial_lost_before_the_answer_goes_elsewhere() -> Result {
    run(
        "a_dial_lost_before_the_answer_goes_elsewhere",
        1,
        async |world| {
            let fleet = Fleet::start(world, 2).await?;
            let dialer = fleet.dialer(world)?.deadline(Duration::from_secs(60));
            world.kill(fleet.proxies[0]);
            // Nobody tells: the connection ends by its idle timeout while the dial waits for an answer.
            let stream = dialer.dial("service:echo").await?;
            echoes(stream, &pattern(1, 50_000)).await?;
            let own = world.metrics(fleet.agents[0])?;
            ensure!(own.get(r#"mesh_agent_own_dials_total{result="ok"}"#)? == 1.0);
            Ok(())
        },
    )
}

/// As many streams as the nearest proxy takes, and the next one goes through another; without
/// another it is refused as `overloaded`, soon, and a place that is given back is used.
#[test]
fn a_full_proxy_is_passed_over() -> Result {
    run("a_full_proxy_is_passed_over", 1, async |world| {
        let fleet = Fleet::start(world, 2).await?;
        let dialer = fleet.dialer(world)?;
        let mut held = Vec::new();
        for _ in 0..STREAMS {
            held.push(dialer.dial("service:echo").await?);
        }
        ensure!(
            fleet.asked(world)? == [STREAMS, 0],
            "{:?}",
            fleet.asked(world)?
        );
        let started = world.elapsed();
        let passed = dialer.dial("service:echo").await?;
        ensure!(world.elapsed() - started < Duration::from_secs(2));
        ensure!(fleet.asked(world)? == [STREAMS, 1]);
        echoes(passed, &pattern(1, 50_000)).await?;

        world.kill(fleet.proxies[1]);
        world
            .until("it is noticed", |w| w.connections(fleet.agents[0]) == 1)
            .await?;
        let error = dialer.dial("service:echo").await.err().context("refused")?;
        ensure!(reason(&error) == Some(Reason::Overloaded), "{error}");
        // quinn gives credit back in bundles.
        held.truncate(STREAMS / 2);
        world.run_for(Duration::from_secs(1)).await;
        echoes(dialer.dial("service:echo").await?, &pattern(2, 50_000)).await?;
        echoes(held.pop().context("one is held")?, &pattern(3, 50_000)).await
    })
}

/// A proxy that drains is not asked any more while it waits for the streams that it has, and these
/// go on.
#[test]
fn a_draining_proxy_is_tried_last() -> Result {
    run("a_draining_proxy_is_tried_last", 1, async |world| {
        let fleet = Fleet::start(world, 2).await?;
        let dialer = fleet.dialer(world)?;
        let mut held = dialer.dial("service:echo").await?;
        ensure!(fleet.asked(world)? == [1, 0]);
        let (agents, other) = (fleet.agents.clone(), fleet.proxies[1]);
        let drained = world.bound(fleet.proxies[0])?.registry().clone();
        let stopped = world.stop(fleet.proxies[0]);
        let dialling = async {
            // Past the notice, all agents have heard of it.
            tokio::time::sleep(Duration::from_secs(8)).await;
            for _ in 0..3 {
                echoes(dialer.dial("service:echo").await?, &pattern(1, 50_000)).await?;
            }
            held.write_all(b"still here").await?;
            let mut back = [0; 10];
            held.read_exact(&mut back).await?;
            ensure!(&back == b"still here");
            held.shutdown().await?;
            ensure!(held.read(&mut back).await? == 0);
            drop(held);
            anyhow::Ok(())
        };
        let (cut, dialled) = tokio::join!(stopped, dialling);
        dialled?;
        ensure!(cut? == 0, "the drain has waited for the stream");
        let asked = world.metrics(other)?.sum("mesh_dials_total");
        ensure!(asked == 3.0, "{asked}");
        let asked = Metrics::gather(&drained)?.sum("mesh_dials_total");
        ensure!(asked == 1.0, "the draining proxy was asked {asked} times");
        let own = world.metrics(agents[0])?;
        ensure!(own.get(r#"mesh_agent_own_dials_total{result="ok"}"#)? == 4.0);
        Ok(())
    })
}
