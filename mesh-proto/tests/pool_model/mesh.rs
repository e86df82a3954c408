//! How many dials it takes to reach every proxy.

use std::time::Duration;

use super::world::{Balancer, Setup, World, seconds};

/// Dials until a lone agent is connected to all of `count` proxies, and how long that took.
fn dials_to_mesh(
    count: usize,
    balancer: Balancer,
    reachable: bool,
    seed: u64,
) -> (usize, Duration) {
    let mut world = World::new(Setup {
        seed,
        balancer,
        ..Setup::default()
    })
    .with_proxies(count);
    for proxy in &mut world.proxies {
        proxy.reachable = reachable;
    }
    world.add_agent(None);
    let time = world.run_until(seconds(6 * 3600), "a full mesh", World::is_full_mesh);
    let agent = &world.agents[0];
    let dials = if reachable {
        agent.dials()
    } else {
        agent.dials_configured
    };
    (dials, time)
}

#[test]
fn no_redundant_dial() {
    for balancer in [
        Balancer::RoundRobin,
        Balancer::Random,
        Balancer::Sticky,
        Balancer::Always(0),
    ] {
        for count in [1, 2, 3, 5, 10, 50] {
            for seed in 0..20 {
                let (dials, time) = dials_to_mesh(count, balancer, true, seed);
                assert_eq!(dials, count, "{balancer:?}, seed {seed}");
                assert!(
                    time < seconds(2),
                    "{count} proxies, {balancer:?}, seed {seed}: {time:?}"
                );
            }
        }
    }
}

/// Also when a spread is announced: what a first view tells is new to one agent alone.
#[test]
fn a_first_view_is_not_paced() {
    let setup = Setup {
        spread: seconds(300),
        ..Setup::default()
    };
    let mut world = World::new(setup).with_proxies(10).with_agents(1, None);
    world.run_until(seconds(2), "a full mesh", World::is_full_mesh);
    assert_eq!(world.agents[0].dials(), 10);
    world.run(seconds(600));
    assert_eq!(world.agents[0].dials(), 10);
}

#[test]
fn an_idle_pool_costs_nothing() {
    let mut world = World::new(Setup::default())
        .with_proxies(5)
        .with_agents(1, None);
    world.run(seconds(60));
    let wakes = world.agents[0].wakes;
    world.run(seconds(3600));
    assert_eq!(world.agents[0].dials(), 5);
    assert!(
        world.agents[0].wakes - wakes <= 2,
        "{}",
        world.agents[0].wakes - wakes
    );
}

#[test]
fn mesh_through_round_robin_lb() {
    for count in [1, 2, 3, 4, 5, 10, 50] {
        for seed in 0..20 {
            let (dials, _) = dials_to_mesh(count, Balancer::RoundRobin, true, seed);
            assert!(dials <= count + 1, "{count} proxies: {dials} dials");
        }
    }
    // A lone agent behind a round robin gets all of them in turn, even without direct addresses.
    for count in [2, 3, 4, 10] {
        let (dials, _) = dials_to_mesh(count, Balancer::RoundRobin, false, 1);
        assert!(
            dials <= count + 1,
            "{count} proxies: {dials} dials through the balancer"
        );
    }
}

/// n times the nth harmonic number: the coupon collector's expectation.
fn fair_coins(count: u32) -> f64 {
    (1..=count)
        .map(|drawn| f64::from(count) / f64::from(drawn))
        .sum()
}

#[test]
fn dials_to_full_mesh() {
    println!(
        "proxies  directed  balancer alone  fair coin  time (directed)  time (balancer alone)"
    );
    for (count, runs) in [(2u32, 500u32), (3, 500), (5, 300), (10, 100), (50, 20)] {
        let mean = |reachable| {
            let (dials, time) = (0..runs).fold((0, Duration::ZERO), |(dials, time), seed| {
                let balancer = Balancer::Random;
                let (more, longer) =
                    dials_to_mesh(count as usize, balancer, reachable, seed.into());
                (dials + more, time + longer)
            });
            (dials as f64 / f64::from(runs), time / runs)
        };
        let (directed, time_directed) = mean(true);
        let (balanced, time_balanced) = mean(false);
        let expected = fair_coins(count);
        println!(
            "{count:7}  {directed:8.2}  {balanced:14.2}  {expected:9.2}  {time_directed:15.1?}  \
             {time_balanced:21.1?}"
        );
        assert!((directed - f64::from(count)).abs() < 1e-9);
        // The deviation of a coupon collector is at most n pi / sqrt(6).
        let deviation = f64::from(count) * 1.283 / f64::from(runs).sqrt();
        assert!(
            balanced < expected + 3.0 * deviation,
            "{count} proxies: {balanced} dials, expected {expected}"
        );
    }
}

/// A balancer that always gives the same proxy cannot lead to a mesh; it must not be hammered either.
#[test]
fn a_sticky_balancer_is_left_alone() {
    for balancer in [Balancer::Sticky, Balancer::Always(1)] {
        let mut world = World::new(Setup {
            balancer,
            ..Setup::default()
        })
        .with_proxies(4);
        for proxy in &mut world.proxies {
            proxy.reachable = false;
        }
        world.add_agent(None);
        world.run(seconds(3600));
        let agent = &world.agents[0];
        assert_eq!(agent.connections.len(), 1);
        // Waits of up to 10 s, drawn evenly, and the dials in between.
        assert!(
            (400..1000).contains(&agent.dials_configured),
            "{}",
            agent.dials_configured
        );
        assert!(agent.dials_directed < 1200, "{}", agent.dials_directed);
    }
}

/// Proxies behind one address that know nothing of each other are no reason to dial on and on.
#[test]
fn a_proxy_that_stands_alone_is_dialled_once() {
    let mut world = World::new(Setup::default())
        .with_proxies(1)
        .with_agents(1, None);
    world.run(seconds(3600));
    assert_eq!(world.agents[0].dials(), 1);
}

/// Some addresses are reachable and some are not: directed where possible, else the balancer.
#[test]
fn unreachable_addresses_are_reached_through_the_balancer() {
    for seed in 0..20 {
        let setup = Setup {
            seed,
            balancer: Balancer::Random,
            ..Setup::default()
        };
        let mut world = World::new(setup).with_proxies(6);
        for proxy in [1, 4] {
            world.proxies[proxy].reachable = false;
        }
        world.add_agent(None);
        world.run_until(seconds(900), "a full mesh", World::is_full_mesh);
    }
}
