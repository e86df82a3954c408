//! The model of the network, without nodes.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::ensure;
use mesh_tests::Result;
use mesh_tests::sim::{
    Action, Balancing, Datagrams, HostId, Link, Mapping, NatConfig, Transport, World, run,
};
use tokio::time::{Instant, timeout};

const MS: Duration = Duration::from_millis(1);

fn any() -> SocketAddr {
    "0.0.0.0:0".parse().unwrap()
}

fn port(port: u16) -> SocketAddr {
    SocketAddr::new("0.0.0.0".parse().unwrap(), port)
}

/// Two hosts with a socket each, and the address of the second one.
struct Two {
    hosts: [HostId; 2],
    a: Datagrams,
    b: Datagrams,
    to: SocketAddr,
}

fn two(world: &World) -> Result<Two> {
    let net = world.net();
    let hosts = [net.add_host("a"), net.add_host("b")];
    let a = net.network(hosts[0]).datagrams(any())?;
    let b = net.network(hosts[1]).datagrams(port(9))?;
    let to = SocketAddr::new(net.ip(hosts[1]), 9);
    Ok(Two { hosts, a, b, to })
}

/// Numbers that arrive until nothing has come for a second, and when.
async fn numbers(socket: &Datagrams) -> Vec<(u32, Instant)> {
    let mut seen = Vec::new();
    while let Ok(Ok((payload, _))) = timeout(1000 * MS, socket.recv_from()).await {
        let number = u32::from_be_bytes(payload[..4].try_into().unwrap());
        seen.push((number, Instant::now()));
    }
    seen
}

async fn nothing_comes(socket: &Datagrams) -> bool {
    timeout(5000 * MS, socket.recv_from()).await.is_err()
}

#[test]
fn latency_is_kept_and_time_is_virtual() -> Result {
    run("latency_is_kept_and_time_is_virtual", 1, async |world| {
        let Two { hosts, a, b, to } = two(world)?;
        world
            .net()
            .set_link(hosts[0], hosts[1], Link::latency(3_600_000 * MS));
        let sent = Instant::now();
        a.send_to(b"slow", to);
        let (payload, from) = b.recv_from().await?;
        assert_eq!(payload, b"slow");
        assert_eq!(
            from,
            SocketAddr::new(world.net().ip(hosts[0]), a.local_addr().port())
        );
        assert_eq!(sent.elapsed(), 3_600_000 * MS);
        Ok(())
    })
}

#[test]
fn jitter_keeps_the_order_and_stays_within_its_bound() -> Result {
    run(
        "jitter_keeps_the_order_and_stays_within_its_bound",
        1,
        async |world| {
            let Two { a, b, to, .. } = two(world)?;
            world
                .net()
                .set_default_link(Link::latency(10 * MS).jittery(50 * MS));
            let sent = Instant::now();
            for number in 0..200u32 {
                a.send_to(&number.to_be_bytes(), to);
            }
            let seen = numbers(&b).await;
            assert!(seen.iter().map(|(number, _)| *number).eq(0..200));
            for (_, at) in seen {
                assert!(
                    (10 * MS..=61 * MS).contains(&(at - sent)),
                    "{:?}",
                    at - sent
                );
            }
            Ok(())
        },
    )
}

#[test]
fn losses_duplicates_and_overtaking_come_at_their_rates() -> Result {
    run(
        "losses_duplicates_and_overtaking_come_at_their_rates",
        1,
        async |world| {
            let Two { hosts, a, b, to } = two(world)?;
            let link = Link::latency(10 * MS)
                .lossy(0.1)
                .duplicating(0.05)
                .reordering(0.2);
            world.net().set_link(hosts[0], hosts[1], link);
            const SENT: u32 = 10_000;
            let receive = numbers(&b);
            let send = async {
                for number in 0..SENT {
                    a.send_to(&number.to_be_bytes(), to);
                    tokio::time::sleep(MS).await;
                }
            };
            let (seen, ()) = tokio::join!(receive, send);
            let distinct: BTreeSet<u32> = seen.iter().map(|(number, _)| *number).collect();
            let lost = SENT as usize - distinct.len();
            assert!((900..1100).contains(&lost), "{lost} lost");
            let twice = seen.len() - distinct.len();
            assert!((380..520).contains(&twice), "{twice} twice");
            let overtaken = seen.windows(2).filter(|pair| pair[0].0 > pair[1].0).count();
            assert!((1000..3000).contains(&overtaken), "{overtaken} overtaken");
            assert_eq!(world.net().count(Transport::Udp, Action::Lost), lost as u64);
            Ok(())
        },
    )
}

#[test]
fn large_datagrams_vanish_and_the_queue_has_an_end() -> Result {
    run(
        "large_datagrams_vanish_and_the_queue_has_an_end",
        1,
        async |world| {
            let Two { a, b, to, .. } = two(world)?;
            // 1,000 bytes take 8 ms at a megabit per second.
            let link = Link::latency(10 * MS)
                .narrow(1200)
                .limited(1_000_000, 20_000);
            world.net().set_default_link(link);
            a.send_to(&[0; 1201], to);
            assert!(nothing_comes(&b).await);
            assert_eq!(world.net().count(Transport::Udp, Action::TooBig), 1);

            let sent = Instant::now();
            let mut payload = [0; 1000 - 28];
            for number in 0..100u32 {
                payload[..4].copy_from_slice(&number.to_be_bytes());
                a.send_to(&payload, to);
            }
            let seen = numbers(&b).await;
            assert_eq!(seen.len(), 21, "one under way, and 20,000 bytes behind it");
            assert_eq!(seen[0].1 - sent, 18 * MS);
            assert_eq!(seen[20].1 - sent, (10 + 21 * 8) * MS);
            assert_eq!(world.net().count(Transport::Udp, Action::QueueFull), 79);
            Ok(())
        },
    )
}

#[test]
fn cuts_are_one_way_or_both_and_take_what_is_under_way() -> Result {
    run(
        "cuts_are_one_way_or_both_and_take_what_is_under_way",
        1,
        async |world| {
            let Two { hosts, a, b, to } = two(world)?;
            let net = world.net();
            let back = SocketAddr::new(net.ip(hosts[0]), a.local_addr().port());
            net.cut_one_way(hosts[0], hosts[1]);
            a.send_to(b"there", to);
            b.send_to(b"back", back);
            assert_eq!(a.recv_from().await?.0, b"back");
            assert!(nothing_comes(&b).await);

            net.heal_all();
            a.send_to(b"there", to);
            net.cut(hosts[0], hosts[1]);
            assert!(nothing_comes(&b).await, "it was under way");
            b.send_to(b"back", back);
            assert!(nothing_comes(&a).await);

            net.heal(hosts[0], hosts[1]);
            net.set_isolated(hosts[1], true);
            a.send_to(b"there", to);
            assert!(nothing_comes(&b).await);
            net.heal_all();
            a.send_to(b"there", to);
            assert_eq!(b.recv_from().await?.0, b"there");
            Ok(())
        },
    )
}

#[test]
fn a_frozen_host_is_silent_and_a_killed_one_gone() -> Result {
    run(
        "a_frozen_host_is_silent_and_a_killed_one_gone",
        1,
        async |world| {
            let Two { hosts, a, b, to } = two(world)?;
            let net = world.net();
            net.freeze(hosts[1]);
            let back = SocketAddr::new(net.ip(hosts[0]), a.local_addr().port());
            b.send_to(b"unsaid", back);
            for number in 0..3u32 {
                a.send_to(&number.to_be_bytes(), to);
            }
            assert!(nothing_comes(&b).await);
            net.thaw(hosts[1]);
            let seen = numbers(&b).await;
            assert!(
                seen.iter().map(|(number, _)| *number).eq(0..3),
                "they waited"
            );
            assert!(nothing_comes(&a).await);

            let former = net.network(hosts[1]);
            net.kill(hosts[1]);
            a.send_to(b"nobody", to);
            assert!(nothing_comes(&b).await);
            assert!(former.datagrams(port(9)).is_err());
            net.revive(hosts[1]);
            assert!(former.datagrams(port(9)).is_err());
            let b = net.network(hosts[1]).datagrams(port(9))?;
            a.send_to(b"again", to);
            assert_eq!(b.recv_from().await?.0, b"again");
            Ok(())
        },
    )
}

#[test]
fn nat_translates_expires_rebinds_and_flushes() -> Result {
    run(
        "nat_translates_expires_rebinds_and_flushes",
        1,
        async |world| {
            let net = world.net();
            let nat = net.add_nat(NatConfig::default());
            let inside = net
                .network(net.add_host_behind("inside", nat))
                .datagrams(any())?;
            let neighbour = net
                .network(net.add_host_behind("neighbour", nat))
                .datagrams(any())?;
            let outside_host = net.add_host("outside");
            let outside = net.network(outside_host).datagrams(port(9))?;
            let stranger = net.network(outside_host).datagrams(port(10))?;
            let to = SocketAddr::new(net.ip(outside_host), 9);

            inside.send_to(b"hello", to);
            neighbour.send_to(b"hello", to);
            let (_, first) = outside.recv_from().await?;
            let (_, second) = outside.recv_from().await?;
            assert_eq!(first.ip(), second.ip());
            assert_ne!(first.port(), second.port());
            outside.send_to(b"welcome", first);
            assert_eq!(inside.recv_from().await?, (b"welcome".to_vec(), to));
            // Open to its destination alone, and nobody reaches the private address itself.
            stranger.send_to(b"intruder", first);
            let inside_host = SocketAddr::new("172.16.0.1".parse()?, inside.local_addr().port());
            stranger.send_to(b"intruder", inside_host);
            assert!(nothing_comes(&inside).await);
            assert_eq!(net.nat_mappings(nat), 2);

            // It expires when nothing goes outwards, whatever comes inwards.
            for _ in 0..3 {
                world.run_for(9_000 * MS).await;
                outside.send_to(b"still there?", first);
            }
            assert_eq!(numbers(&inside).await.len(), 2);
            assert_eq!(net.nat_mappings(nat), 0);
            inside.send_to(b"hello", to);
            let (_, third) = outside.recv_from().await?;
            assert_ne!(third, first);

            net.rebind_nat(nat);
            outside.send_to(b"too late", third);
            assert!(nothing_comes(&inside).await);
            inside.send_to(b"hello", to);
            let (_, fourth) = outside.recv_from().await?;
            assert_ne!(fourth, third);
            net.flush_nat(nat);
            assert_eq!(net.nat_mappings(nat), 0);
            outside.send_to(b"too late", fourth);
            assert!(nothing_comes(&inside).await);
            Ok(())
        },
    )
}

#[test]
fn full_cone_nat_answers_everybody() -> Result {
    run("full_cone_nat_answers_everybody", 1, async |world| {
        let net = world.net();
        let mapping = Mapping::PerSource;
        let nat = net.add_nat(NatConfig {
            mapping,
            ..NatConfig::default()
        });
        let inside = net
            .network(net.add_host_behind("inside", nat))
            .datagrams(any())?;
        let host = net.add_host("outside");
        let outside = net.network(host).datagrams(port(9))?;
        let other = net.network(host).datagrams(port(10))?;
        inside.send_to(b"hello", SocketAddr::new(net.ip(host), 9));
        let (_, seen) = outside.recv_from().await?;
        other.send_to(b"me too", seen);
        assert_eq!(inside.recv_from().await?.0, b"me too");
        Ok(())
    })
}

/// Sends one datagram from each of `clients` fresh sockets through a balancer; how many came to
/// which of the backends.
async fn spread(
    world: &World,
    client: HostId,
    to: SocketAddr,
    backends: &[Datagrams],
    clients: u32,
) -> Result<Vec<u32>> {
    let network = world.net().network(client);
    let mut sockets = Vec::new();
    for _ in 0..clients {
        let socket = network.datagrams(any())?;
        socket.send_to(b"who?", to);
        sockets.push(socket);
    }
    world.run_for(100 * MS).await;
    let mut counts = Vec::new();
    for backend in backends {
        let mut count = 0;
        while let Ok(received) = timeout(MS, backend.recv_from()).await {
            let (_, from) = received?;
            backend.send_to(b"me", from);
            count += 1;
        }
        counts.push(count);
    }
    for socket in &sockets {
        if let Ok(answer) = timeout(100 * MS, socket.recv_from()).await {
            let (_, from) = answer?;
            ensure!(from == to, "the answer came from {from}, not from {to}");
        }
    }
    Ok(counts)
}

#[test]
fn balancer_spreads_by_its_policy() -> Result {
    run("balancer_spreads_by_its_policy", 1, async |world| {
        let net = world.net().clone();
        let client = net.add_host("client");
        let mut backends = Vec::new();
        let mut addresses = Vec::new();
        for index in 0..4 {
            let host = net.add_host(&format!("backend-{index}"));
            addresses.push(SocketAddr::new(net.ip(host), 7443));
            backends.push(net.network(host).datagrams(port(7443))?);
        }
        let balancer = |policy, port| {
            let balancer = net.add_balancer(port, policy);
            for address in &addresses {
                net.add_backend(balancer, *address);
            }
            balancer
        };
        let hashing = balancer(Balancing::FourTuple, 1);
        let to = net.balancer_address(hashing);
        let counts = spread(world, client, to, &backends, 400).await?;
        assert!(
            counts.iter().all(|count| (60..140).contains(count)),
            "{counts:?}"
        );

        let sticky = balancer(Balancing::SourceAddress, 2);
        let counts = spread(world, client, net.balancer_address(sticky), &backends, 50).await?;
        assert_eq!(counts.iter().max(), Some(&50), "{counts:?}");

        let turns = balancer(Balancing::RoundRobin, 3);
        let counts = spread(world, client, net.balancer_address(turns), &backends, 40).await?;
        assert_eq!(counts, [10, 10, 10, 10]);

        // A flow stays where it is while its backend is there, and moves when that one is gone.
        let flow = net.network(client).datagrams(any())?;
        let mut at = Vec::new();
        for step in 0..3 {
            flow.send_to(b"who?", to);
            world.run_for(100 * MS).await;
            let mut found = None;
            for (index, backend) in backends.iter().enumerate() {
                if let Ok(received) = timeout(MS, backend.recv_from()).await {
                    received?;
                    found = Some(index);
                }
            }
            let index = found.unwrap();
            at.push(index);
            match step {
                0 => net.set_healthy(hashing, addresses[index], false),
                _ => net.remove_backend(hashing, addresses[index]),
            }
        }
        assert_eq!(at[0], at[1], "unhealthy is for new flows");
        assert_ne!(at[1], at[2]);
        for address in &addresses {
            net.set_healthy(hashing, *address, false);
        }
        let counts = spread(world, client, to, &backends, 10).await?;
        assert_eq!(counts, [0; 4]);
        assert_eq!(net.count(Transport::Udp, Action::NoBackend), 10);
        Ok(())
    })
}
