//! Users who lose their proxy: a client with local ports, in virtual time.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use certs::Kind;
use mesh_tests::Result;
use mesh_tests::services::pattern;
use mesh_tests::sim::{
    Action, Answer, HostId, Link, NodeId, Running, Service, Transport, World, echoes, run,
};
use node::clock::WallClock;
use node::net::{Network, Socket};
use node::random::Random;
use node::user::forward::Forwarder;
use node::user::spec::Local;
use node::user::{Event, UserClient, UserConfig, UserParts, Why};
use tokio::task::JoinSet;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// A user on a host, with one forward.
pub(crate) struct User {
    pub(crate) client: UserClient,
    forwarder: Forwarder,
    network: Arc<dyn Network>,
    local: SocketAddr,
    events: Arc<Mutex<Vec<Event>>>,
}

impl User {
    pub(crate) fn start(
        world: &World,
        host: HostId,
        proxies: Vec<String>,
        forward: &str,
    ) -> Result<Self> {
        let network: Arc<dyn Network> = world.net().network(host);
        let events = Arc::new(Mutex::new(Vec::new()));
        let told = events.clone();
        let mut config = UserConfig::new(world.pki().issue(Kind::User, "alice")?, proxies);
        config.quic.mtu_max = 1472;
        let parts = UserParts {
            network: network.clone(),
            random: Random::seeded(world.seed()),
            clock: WallClock::system(),
            on_event: Arc::new(move |event| told.lock().unwrap().push(event.clone())),
        };
        let client = UserClient::start(config, parts)?;
        let forwarder = Forwarder::start(&client, &*network, &[forward.parse()?], 1000)?;
        let Local::Tcp(local) = forwarder.listening()[0].local else {
            bail!("not TCP")
        };
        Ok(Self {
            client,
            forwarder,
            network,
            local,
            events,
        })
    }

    pub(crate) fn count(&self, wanted: impl Fn(&Event) -> bool) -> usize {
        let events = self.events.lock().unwrap();
        events.iter().filter(|event| wanted(event)).count()
    }

    /// The name of the proxy in use; empty when there is none.
    pub(crate) fn proxy(&self) -> String {
        self.client
            .proxy()
            .map(|(name, _)| name.to_string())
            .unwrap_or_default()
    }

    pub(crate) async fn connect(&self) -> Result<Box<dyn Socket>> {
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, self.local.port()));
        Ok(self.network.connect(local).await?)
    }

    /// Bytes there and back through a local connection.
    pub(crate) async fn echoes(&self, bytes: &[u8]) -> Result {
        echoes(self.connect().await?, bytes).await
    }

    pub(crate) async fn stop(self) -> usize {
        let cut = self.forwarder.shutdown(10 * SECOND).await;
        self.client.shutdown().await;
        cut
    }
}

/// So many proxies, one agent on all of them with an echo, and a host for the user.
pub(crate) async fn fleet(
    world: &mut World,
    proxies: usize,
) -> Result<(Vec<NodeId>, NodeId, Running, HostId)> {
    fleet_of(world, proxies, Duration::ZERO).await
}

/// The same, of proxies that serve for so long when they are asked to leave.
pub(crate) async fn fleet_of(
    world: &mut World,
    proxies: usize,
    drain_notice: Duration,
) -> Result<(Vec<NodeId>, NodeId, Running, HostId)> {
    let proxies = world
        .start_proxies_with(proxies, |_, plan| {
            plan.config.drain_notice = drain_notice;
            Ok(())
        })
        .await?;
    let target = world.net().add_host("services");
    let echo = world.serve(target, 7, Service::Echo)?;
    let agents = world
        .start_agents_with(1, |_, plan| plan.allow(&[echo.rule()]))
        .await?;
    world
        .until("the agent is connected", |w| {
            w.all_hold(&agents, proxies.len())
        })
        .await?;
    let host = world.net().add_host("user");
    Ok((proxies, agents[0], echo, host))
}

pub(crate) fn addresses(world: &World, proxies: &[NodeId]) -> Vec<String> {
    proxies
        .iter()
        .map(|proxy| world.quic_addr(*proxy).to_string())
        .collect()
}

#[test]
fn the_death_of_a_proxy_costs_an_idle_user_no_connection() -> Result {
    let name = "the_death_of_a_proxy_costs_an_idle_user_no_connection";
    run(name, 1, async |world| {
        world.net().set_default_link(Link::latency(20 * MS));
        let (proxies, _, echo, host) = fleet(world, 2).await?;
        let forward = format!("0:a-1/{}", echo.address);
        let user = User::start(world, host, addresses(world, &proxies), &forward)?;
        user.echoes(&pattern(0, 300_000)).await?;
        ensure!(user.proxy() == "proxy-1");
        world.run_for(60 * SECOND).await;
        world.kill(proxies[0]);
        // Nobody has noticed yet: they send at once, as clients do, and none is lost.
        let started = world.elapsed();
        let bytes = pattern(0, 50_000);
        let all = (0..20).map(|_| user.echoes(&bytes));
        for outcome in futures_util::future::join_all(all).await {
            outcome?;
        }
        let took = world.elapsed() - started;
        ensure!(took < 5 * SECOND, "took {took:?}");
        ensure!(user.proxy() == "proxy-2");
        let moved = |event: &Event| {
            matches!(
                event,
                Event::Moved {
                    why: Why::Silent,
                    ..
                }
            )
        };
        ensure!(user.count(moved) == 1);
        ensure!(user.count(|event| matches!(event, Event::Refused { .. })) == 0);
        ensure!(user.stop().await == 0);
        Ok(())
    })
}

#[test]
fn the_first_address_that_answers_is_taken() -> Result {
    run(
        "the_first_address_that_answers_is_taken",
        1,
        async |world| {
            world.net().set_default_link(Link::latency(20 * MS));
            let (proxies, _, echo, host) = fleet(world, 1).await?;
            // A host without a proxy, one that is off, and the only good one.
            let (empty, off) = (world.net().add_host("empty"), world.net().add_host("off"));
            world.net().kill(off);
            let ips = [empty, off, proxies[0].into()].map(|host| world.net().ip(host));
            world
                .net()
                .set_name("proxies.example.com", Answer::Addresses(ips.to_vec()));
            world.net().set_name("nowhere.example.com", Answer::Silence);
            let named = vec![
                "nowhere.example.com:7443".to_owned(),
                "proxies.example.com:7443".to_owned(),
            ];
            let user = User::start(world, host, named, &format!("0:a-1/{}", echo.address))?;
            let started = world.elapsed();
            user.echoes(b"hello").await?;
            let took = world.elapsed() - started;
            // A moment for each that does not answer, and not their handshake timeouts.
            ensure!(took < 4 * SECOND, "took {took:?}");
            ensure!(user.count(|event| matches!(event, Event::Unreachable { .. })) == 0);
            user.stop().await;
            Ok(())
        },
    )
}

#[test]
fn proxies_come_and_go_under_load() -> Result {
    run("proxies_come_and_go_under_load", 1, async |world| {
        world
            .net()
            .set_default_link(Link::latency(10 * MS).jittery(3 * MS).lossy(0.01));
        let (proxies, agent, echo, host) = fleet(world, 3).await?;
        let forward = format!("0:a-1/{}", echo.address);
        let user = Arc::new(User::start(
            world,
            host,
            addresses(world, &proxies),
            &forward,
        )?);
        user.client.connected().await?;
        let mut losses = 0;
        for round in 0..6 {
            // What is under way when the proxy goes may break. It must never look whole.
            let mut load = JoinSet::new();
            for worker in 0..20u64 {
                let user = user.clone();
                load.spawn(async move {
                    let bytes = pattern(worker, 200_000);
                    let mut broken = 0;
                    for _ in 0..5 {
                        if let Err(error) = user.echoes(&bytes).await {
                            ensure!(error.is::<std::io::Error>(), "round {round}: {error}");
                            broken += 1;
                        }
                    }
                    Ok(broken)
                });
            }
            world.run_for(150 * MS).await;
            let index: usize = user
                .proxy()
                .strip_prefix("proxy-")
                .context("none")?
                .parse()?;
            let used = proxies[index - 1];
            let drains = round % 3 == 2;
            match round % 3 {
                0 => world.kill(used),
                1 => world.net().freeze(used),
                _ => {
                    world.stop(used).await?;
                }
            }
            let mut broken = 0;
            while let Some(worker) = load.join_next().await {
                broken += worker??;
            }
            // Twenty at a time were under way; a few more may find out. In order, none is lost.
            ensure!(
                broken <= if drains { 0 } else { 40 },
                "round {round}: {broken} broken"
            );
            losses += broken;
            user.echoes(&pattern(0, 100_000)).await?;
            if round % 3 == 1 {
                world.net().thaw(used);
            } else {
                // As a process that ends: its sockets are gone, and soon what it held in memory.
                world.kill(used);
                world.run_for(SECOND).await;
                world.restart(used).await?;
            }
            world
                .until("the agent is back", |w| w.all_hold(&[agent], 3))
                .await?;
        }
        ensure!(losses > 0, "nothing was under way when the proxies went");
        let user = Arc::into_inner(user).context("a worker is left")?;
        ensure!(user.forwarder.open() == 0);
        user.stop().await;
        Ok(())
    })
}

#[test]
fn a_connection_waits_for_a_proxy_but_not_for_ever() -> Result {
    let name = "a_connection_waits_for_a_proxy_but_not_for_ever";
    run(name, 1, async |world| {
        let (proxies, agent, echo, host) = fleet(world, 1).await?;
        world.kill(proxies[0]);
        let forward = format!("0:a-1/{}", echo.address);
        let user = User::start(world, host, addresses(world, &proxies), &forward)?;
        let sent = world.net().count(Transport::Udp, Action::Sent);
        let started = world.elapsed();
        let error = user.echoes(b"anybody").await.expect_err("nobody");
        ensure!(error.is::<std::io::Error>(), "{error}");
        let waited = world.elapsed() - started;
        ensure!(waited >= 14 * SECOND && waited <= 16 * SECOND, "{waited:?}");
        let no_proxy = |event: &Event| {
            matches!(
                event,
                Event::Refused {
                    reason: "no_proxy",
                    ..
                }
            )
        };
        ensure!(user.count(no_proxy) == 1);
        // It goes on trying, says so now and then, and does not flood the network.
        world.run_for(600 * SECOND).await;
        let told = user.count(|event| matches!(event, Event::Unreachable { .. }));
        ensure!((5..=12).contains(&told), "told {told} times");
        let packets = world.net().count(Transport::Udp, Action::Sent) - sent;
        ensure!(packets < 2_000, "{packets} packets in ten minutes");

        world.restart(proxies[0]).await?;
        world
            .until("the agent is back", |w| w.all_hold(&[agent], 1))
            .await?;
        world
            .until("the user is back", |_| user.proxy() == "proxy-1")
            .await?;
        user.echoes(b"at last").await?;
        // One that arrives while there is none, and in time for the next.
        world.net().cut(host, proxies[0]);
        world
            .until("the user has noticed", |_| user.proxy().is_empty())
            .await?;
        let healed = async {
            world.run_for(3 * SECOND).await;
            world.net().heal(host, proxies[0]);
        };
        let bytes = pattern(0, 100_000);
        let (outcome, ()) = tokio::join!(user.echoes(&bytes), healed);
        outcome?;
        user.stop().await;
        Ok(())
    })
}

#[test]
fn an_agent_that_leaves_does_not_send_the_user_around() -> Result {
    let name = "an_agent_that_leaves_does_not_send_the_user_around";
    run(name, 1, async |world| {
        let (proxies, agent, echo, host) = fleet(world, 2).await?;
        let forward = format!("0:a-1/{}", echo.address);
        let user = User::start(world, host, addresses(world, &proxies), &forward)?;
        let mut open = user.connect().await?;
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        open.write_all(b"x").await?;
        open.read_exact(&mut [0]).await?;
        // It leaves, and stays for the stream until its drain deadline: 30 s.
        let dialling = async {
            tokio::time::sleep(SECOND).await;
            let mut refused = 0;
            for _ in 0..200 {
                refused += usize::from(user.echoes(b"hello").await.is_err());
                tokio::time::sleep(100 * MS).await;
            }
            refused
        };
        let (cut, refused) = tokio::join!(world.stop(agent), dialling);
        ensure!(cut? == 1 && refused > 0, "{refused} refused");
        let moves = user.count(|event| matches!(event, Event::Moved { .. }));
        ensure!(moves == 0, "moved {moves} times");
        user.stop().await;
        Ok(())
    })
}

/// A proxy tells its users in its notice that it is about to leave, so that they have gone before it
/// refuses anything; with nowhere to go, they stay for as long as it serves.
#[test]
fn users_go_while_their_proxy_still_serves() -> Result {
    run(
        "users_go_while_their_proxy_still_serves",
        1,
        async |world| {
            let (proxies, _, echo, host) = fleet_of(world, 2, 5 * SECOND).await?;
            let forward = format!("0:a-1/{}", echo.address);
            let user = User::start(world, host, addresses(world, &proxies), &forward)?;
            user.echoes(b"here").await?;
            ensure!(user.proxy() == "proxy-1");
            let left = tokio::spawn(world.leave(proxies[0])?);
            world
                .within(SECOND, "the user is elsewhere", |_| {
                    user.proxy() == "proxy-2"
                })
                .await?;
            let moved = |event: &Event| {
                matches!(
                    event,
                    Event::Moved {
                        why: Why::Draining,
                        ..
                    }
                )
            };
            ensure!(user.count(moved) == 1);
            user.echoes(b"there").await?;
            ensure!(left.await? == 0);

            let started = world.elapsed();
            let left = tokio::spawn(world.leave(proxies[1])?);
            while world.elapsed() - started < 4 * SECOND {
                user.echoes(b"still there").await?;
                tokio::time::sleep(100 * MS).await;
            }
            ensure!(user.proxy() == "proxy-2" && user.count(moved) == 1);
            ensure!(user.count(|event| matches!(event, Event::Refused { .. })) == 0);
            left.await?;
            user.stop().await;
            Ok(())
        },
    )
}

/// Streams are allowed as they are used: who wants many at once waits a few round trips for them,
/// and is not refused.
#[test]
fn many_connections_at_once_are_all_served() -> Result {
    let name = "many_connections_at_once_are_all_served";
    run(name, 1, async |world| {
        world.net().set_default_link(Link::latency(100 * MS));
        let proxies = world.start_proxies(1).await?;
        let target = world.net().add_host("services");
        let echo = world.serve(target, 7, Service::Echo)?;
        let agents = world
            .start_agents_with(1, |_, plan| {
                plan.config.common.quic.streams_max = 4096;
                plan.allow(&[echo.rule()])
            })
            .await?;
        world
            .until("the agent is connected", |w| w.all_hold(&agents, 1))
            .await?;
        let host = world.net().add_host("user");
        let forward = format!("0:a-1/{}", echo.address);
        let user = User::start(world, host, addresses(world, &proxies), &forward)?;
        user.client.connected().await?;
        let bytes = pattern(0, 1_000);
        let all = (0..1_000).map(|_| user.echoes(&bytes));
        let outcomes = futures_util::future::join_all(all).await;
        let failed = outcomes.iter().filter(|outcome| outcome.is_err()).count();
        ensure!(failed == 0, "{failed}: {:?}", user.events.lock().unwrap());
        user.stop().await;
        Ok(())
    })
}
