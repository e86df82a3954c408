//! Names without an address, with too many, and addresses of nobody.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::ensure;
use mesh_tests::Result;
use mesh_tests::rogue::{encoded, member, tells, view};
use mesh_tests::sim::{Answer, NodeId, World};

use crate::support::{MINUTE, Mesh, SECOND, gauge, lost_to_nobody, scenario};

const NAME: &str = "proxies.example.com";

fn connects(world: &World, agent: NodeId, result: &str) -> Result<usize> {
    let series = format!("mesh_agent_connects_total{{result=\"{result}\"}}");
    gauge(world, agent, &series)
}

/// An agent that dials these addresses.
async fn agent_of(world: &mut World, proxies: &[String]) -> Result<NodeId> {
    let agents = world
        .start_agents_with(1, |_, plan| {
            plan.config.proxies = proxies.to_vec();
            Ok(())
        })
        .await?;
    Ok(agents[0])
}

/// Addresses that nobody has.
fn nowhere(count: u8) -> Vec<IpAddr> {
    (0..count)
        .map(|low| Ipv4Addr::new(10, 99, 7, low).into())
        .collect()
}

/// A name that resolves to nothing usable, whatever the reason: asked for at the pace of the backoff,
/// said once; and what it leads to later is found. An agent with a second address lives on that one.
#[test]
fn names_without_addresses_are_asked_again() -> Result {
    let name = "names_without_addresses_are_asked_again";
    scenario(name, async |world, log| {
        let proxies = world.start_proxies(2).await?;
        world.run_for(5 * SECOND).await;
        let good: Vec<_> = proxies.iter().map(|proxy| world.net().ip(*proxy)).collect();
        let garbage = ["0.0.0.0", "224.0.0.1", "255.255.255.255", "::", "ff02::1"];
        let garbage = garbage
            .iter()
            .map(|ip| Ok(ip.parse()?))
            .collect::<Result<_>>()?;
        let cases = [
            ("empty", Answer::Empty, "has no address"),
            ("failure", Answer::Failure, "the resolver failed"),
            ("silence", Answer::Silence, "timed out"),
            (
                "garbage",
                Answer::Addresses(garbage),
                "no address that can be dialled",
            ),
        ];
        let mut agents = Vec::new();
        for (what, answer, _) in &cases {
            let bad = format!("{what}.example.com:7443");
            world
                .net()
                .set_name(&format!("{what}.example.com"), answer.clone());
            let alone = agent_of(world, std::slice::from_ref(&bad)).await?;
            let both = agent_of(world, &[bad, world.quic_addr(proxies[0]).to_string()]).await?;
            agents.push((alone, both));
        }
        for _ in 0..240 {
            world.run_for(SECOND).await;
            for (alone, both) in &agents {
                let inflight = gauge(world, *alone, "mesh_agent_inflight_leases")?;
                ensure!(inflight <= 1, "{inflight} dials at once");
                ensure!(world.elapsed() < 70 * SECOND || world.connections(*both) == 2);
            }
        }
        for ((what, _, why), (alone, _)) in cases.iter().zip(&agents) {
            let failed = connects(world, *alone, "resolve_failed")?;
            // Waits of 15 s in the mean, and for one that hangs the 10 s.
            ensure!((6..=45).contains(&failed), "{what}: {failed}");
            let address = format!("\"address\":\"{what}.example.com:7443\"");
            let lines = log.warnings(&[&address]);
            // One of each agent that has asked.
            ensure!((1..=2).contains(&lines.len()), "{what}: {lines:#?}");
            for line in lines {
                ensure!(line.to_string().contains(why), "{what}: {line}");
            }
            let host = format!("{what}.example.com");
            world.net().set_name(&host, Answer::Addresses(good.clone()));
        }
        assert_eq!(lost_to_nobody(world), 0);
        world
            .within(60 * SECOND, "all are connected", |w| {
                agents
                    .iter()
                    .all(|(alone, both)| w.all_hold(&[*alone, *both], 2))
            })
            .await?;
        world.run_for(20 * SECOND).await;
        for (alone, both) in agents {
            for agent in [alone, both] {
                assert_eq!(gauge(world, agent, "mesh_agent_inflight_leases")?, 0);
            }
        }
        Ok(())
    })
}

/// A thousand addresses, none of which answers: sixteen of them in one attempt, within 40 s. And where
/// the one that answers comes last, always, it has its turn.
#[test]
fn a_thousand_addresses_are_tried_a_few_at_a_time() -> Result {
    let name = "a_thousand_addresses_are_tried_a_few_at_a_time";
    scenario(name, async |world, log| {
        let proxies = world.start_proxies(1).await?;
        let many: Vec<IpAddr> = (0..4)
            .flat_map(|high| (0..250).map(move |low| Ipv4Addr::new(10, 99, high, low).into()))
            .collect();
        assert_eq!(many.len(), 1_000);
        world.net().set_name(NAME, Answer::Addresses(many));
        let address = format!("{NAME}:7443");
        let agent = agent_of(world, std::slice::from_ref(&address)).await?;
        let sent = lost_to_nobody(world);
        world.run_for(10 * MINUTE).await;
        // 40 s, with a second to close each of sixteen, and the wait.
        let attempts = connects(world, agent, "timeout")?;
        ensure!((7..=15).contains(&attempts), "{attempts} attempts");
        let asked = world.net().questions(NAME);
        ensure!(
            asked - attempts <= 1,
            "{asked} questions, {attempts} attempts"
        );
        let packets = lost_to_nobody(world) - sent;
        ensure!(packets < 16 * 16 * 8, "{packets} packets");
        log.says_once(&["more addresses"], "\"addresses\":1000")?;
        ensure!(log.warnings(&["cannot connect"]).len() <= 4);

        let mut addresses = nowhere(30);
        addresses.push(world.net().ip(proxies[0]));
        world.net().set_name(NAME, Answer::Addresses(addresses));
        world
            .within(15 * MINUTE, "the last one is found", |w| {
                w.connections(agent) == 1
            })
            .await?;
        Ok(())
    })
}

/// Advertised addresses of nobody or of many get no packet; the proxy itself is looked for where the
/// configured addresses lead.
#[test]
fn garbage_addresses_are_not_dialled() -> Result {
    scenario("garbage_addresses_are_not_dialled", async |world, log| {
        let cluster = world.cluster();
        let garbage = [
            "0.0.0.0:7443",
            "[::]:7443",
            "224.0.0.1:7443",
            "[ff02::1]:7443",
            "255.255.255.255:7443",
            "[::ffff:0.0.0.0]:7443",
            "10.0.0.1:0",
            "10.0.0.1",
            "nonsense",
            "127.1:7443",
            "/:7443",
        ];
        let told = encoded(&view(vec![member("garbage", &garbage)?]))?;
        let rogues = vec![("teller", tells(cluster, "teller", told))];
        let mesh = Mesh::with(world, rogues).await?;
        mesh.live(world, 2 * MINUTE).await?;
        assert_eq!(mesh.ignored(world, "address")?, garbage.len());
        log.says_once(&["\"proxy\":\"teller\""], "quic.advertise")?;
        assert_eq!(log.warnings(&[]).len(), 1);
        assert_eq!(lost_to_nobody(world), 0);
        // What was told is believed but for the addresses.
        assert_eq!(mesh.gauge(world, "mesh_agent_desired_proxies")?, 5);
        let duplicates = mesh.connects(world, "duplicate")?;
        ensure!(
            (5..=60).contains(&duplicates),
            "{duplicates} through the balancer"
        );
        assert_eq!(mesh.attempts(world)?, 4 + duplicates);
        Ok(())
    })
}

/// Sixteen names for one proxy, each with sixteen addresses that swallow packets: one dial of it lasts
/// no longer than another, so that it does not keep the others from being dialled.
#[test]
fn addresses_without_end_hold_up_nobody() -> Result {
    let name = "addresses_without_end_hold_up_nobody";
    scenario(name, async |world, _| {
        world.net().set_name(NAME, Answer::Addresses(nowhere(16)));
        let mesh = Mesh::start(world, Vec::new()).await?;
        let addresses = [format!("{NAME}:7443"), format!("{NAME}:7444")];
        let addresses: Vec<&str> = addresses.iter().cycle().take(16).map(|a| &**a).collect();
        let mut told = mesh.good_view(world)?;
        for index in 0..8 {
            told.push(member(&format!("maze-{index}"), &addresses)?);
        }
        mesh.friend.tell(told.clone());
        mesh.live(world, 5 * MINUTE).await?;
        let timeouts = mesh.connects(world, "timeout")?;
        ensure!(timeouts >= 8, "{timeouts} dials have ended in 5 minutes");
        // One more that is in order has its turn soon.
        let late = world.start_proxies(1).await?[0];
        let address = world.quic_addr(late).to_string();
        told.push(member(world.name(late), &[&address])?);
        mesh.friend.tell(told);
        world
            .within(2 * MINUTE, "it is reached", |w| w.sessions(late) == 1)
            .await?;
        Ok(())
    })
}
