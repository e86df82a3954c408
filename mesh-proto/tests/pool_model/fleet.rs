//! Many agents: how they spread over proxies, and how they come back.

use std::time::Duration;

use super::world::{Agent, Balancer, Setup, World, millis, seconds};

fn spread_of(loads: &[usize]) -> f64 {
    let (max, min) = (loads.iter().max().unwrap(), loads.iter().min().unwrap());
    *max as f64 / *min as f64
}

#[test]
fn peering_spreads_evenly() {
    for balancer in [Balancer::Random, Balancer::Sticky] {
        let setup = Setup {
            balancer,
            checked: false,
            ..Setup::default()
        };
        let mut world = World::new(setup)
            .with_proxies(10)
            .with_agents(10_000, Some(3));
        world.run(seconds(20));
        assert!(
            world
                .agents
                .iter()
                .all(|agent| agent.serving().len() == 3 && agent.dials() == 3)
        );
        let loads = world.loads();
        println!("{balancer:?}: {loads:?}, {:.3}", spread_of(&loads));
        assert!(spread_of(&loads) < 1.10, "{balancer:?}: {loads:?}");
    }
}

/// Even a balancer that sends everybody to one proxy does not spoil what is chosen directly.
#[test]
fn peering_behind_a_stuck_balancer_skews_by_one_connection_only() {
    let setup = Setup {
        balancer: Balancer::Always(0),
        checked: false,
        ..Setup::default()
    };
    let mut world = World::new(setup)
        .with_proxies(10)
        .with_agents(2000, Some(3));
    world.run(seconds(20));
    let loads = world.loads();
    assert_eq!(loads[0], 2000);
    assert!(spread_of(&loads[1..]) < 1.25, "{loads:?}");
}

#[test]
fn agents_survive_proxy_loss_and_return() {
    let setup = Setup {
        spread: seconds(5),
        ..Setup::default()
    };
    let mut world = World::new(setup).with_proxies(5).with_agents(100, None);
    world.run_until(seconds(5), "a full mesh", World::is_full_mesh);
    for round in 0..4 {
        for proxy in 0..5 {
            world.crash(proxy);
            if round % 2 == 1 {
                world.crash((proxy + 1) % 5);
            }
            world.run(seconds(8));
            assert!(
                world.agents.iter().all(|agent| !agent.serving().is_empty()),
                "round {round}: an agent holds nothing"
            );
            world.start(proxy);
            if round % 2 == 1 {
                world.start((proxy + 1) % 5);
            }
            world.run(seconds(3));
        }
        let time = world.run_until(seconds(20), "a full mesh again", World::is_full_mesh);
        println!("round {round}: full mesh {time:?} after the last birth");
    }
    for death in 0..4 {
        world.crash(death);
    }
    world.run(seconds(300));
    assert!(world.is_full_mesh());
    assert!(
        world
            .agents
            .iter()
            .all(|agent| agent.pool.counts(world.now).desired == 1)
    );
}

/// A flapping proxy does not keep an agent from the others: a wait under way is not prolonged.
#[test]
fn losses_one_after_the_other_do_not_starve() {
    let setup = Setup {
        spread: seconds(20),
        ..Setup::default()
    };
    let mut world = World::new(setup).with_proxies(10).with_agents(50, None);
    world.run_until(seconds(5), "a full mesh", World::is_full_mesh);
    let (mut fewest, mut sum) = (10, 0);
    // Each comes back after 4 s, and a new one is lost every 5 s.
    for round in 0..60 {
        world.crash(round % 10);
        world.run(seconds(4));
        world.start(round % 10);
        world.run(seconds(1));
        for agent in &world.agents {
            fewest = agent.serving().len().min(fewest);
            sum += agent.serving().len();
        }
    }
    let mean = sum as f64 / 50.0 / 60.0;
    println!("of 10 an agent held {mean:.1} in the mean, and {fewest} at the worst moment");
    assert!(fewest >= 2 && mean > 6.5, "{fewest}, {mean}");
    // A dial that has failed waits for up to twice the spread.
    world.run_until(seconds(70), "a full mesh", World::is_full_mesh);
}

/// The most dials that a proxy saw in a second, the mean of its ten busiest seconds in a row, and
/// when the last came.
fn rates(world: &World, from: u64) -> Vec<(usize, f64, u64)> {
    let of = |proxy: &super::world::Proxy| {
        let last = proxy.arrivals.keys().copied().max().unwrap_or(0);
        let at = |second: u64| proxy.arrivals.get(&second).copied().unwrap_or(0);
        let most = (from..=last).map(at).max().unwrap_or(0);
        let window = |start: u64| (start..start + 10).map(at).sum::<usize>() as f64 / 10.0;
        (most, (from..=last).map(window).fold(0.0, f64::max), last)
    };
    world.proxies.iter().map(of).collect()
}

/// What a budget of so many dials a second must allow for: arrivals are random, so single seconds
/// exceed the mean; four standard deviations are more than any of a few thousand seconds shows.
fn noise(budget: f64) -> f64 {
    budget + 4.0 * budget.sqrt()
}

const AGENTS: usize = 1000;
const BUDGET: f64 = 20.0;

/// `crash_noticed`: by peers, who tell of it.
fn herd(balancer: Balancer, proxies: usize, count: Option<u32>, crash_noticed: Duration) -> World {
    let setup = Setup {
        balancer,
        spread: seconds(50),
        checked: false,
        // Dials to the dead one do not fail soon.
        dial_timeout: seconds(5),
        crash_noticed,
        loss_noticed: seconds(15),
        ..Setup::default()
    };
    let mut world = World::new(setup)
        .with_proxies(proxies)
        .with_agents(AGENTS, count);
    world.run(seconds(60));
    assert!(
        world
            .agents
            .iter()
            .all(|agent| agent.dials() == agent.connections.len())
    );
    world
}

#[test]
fn thundering_herd_is_paced() {
    for (balancer, proxies, count, crash_noticed) in [
        (Balancer::Random, 2, None, 60),
        (Balancer::Random, 3, None, 60),
        (Balancer::Random, 10, Some(3), 60),
        (Balancer::Random, 3, Some(1), 60),
        (Balancer::Random, 4, Some(3), 2),
    ] {
        let mut world = herd(balancer, proxies, count, seconds(crash_noticed));
        let from = world.now.elapsed().as_secs() + 1;
        world.crash(0);
        // Longer than it takes until it is forgotten.
        world.run(seconds(400));
        let rates = rates(&world, from);
        println!(
            "{proxies} proxies, {count:?} connections, {balancer:?}: after a death {:.1?}",
            &rates[1..]
        );
        for (most, mean, _) in &rates[1..] {
            assert!(
                *mean <= BUDGET * 1.3,
                "{balancer:?}, {proxies} proxies: {rates:?}"
            );
            assert!(
                *most as f64 <= noise(BUDGET),
                "{balancer:?}, {proxies} proxies: {rates:?}"
            );
        }
        let wanted = count.map_or(proxies - 1, |count| count as usize);
        assert!(
            world
                .agents
                .iter()
                .all(|agent| agent.serving().len() == wanted)
        );

        // It comes back, and all hear of it in the same moment.
        let from = world.now.elapsed().as_secs();
        world.start(0);
        world.run(seconds(200));
        let rates = self::rates(&world, from);
        println!("{:>50}: after its return {:.1?}", "", &rates);
        for (most, mean, _) in &rates {
            assert!(
                *mean <= BUDGET * 1.3,
                "{balancer:?}, {proxies} proxies: {rates:?}"
            );
            assert!(
                *most as f64 <= noise(BUDGET),
                "{balancer:?}, {proxies} proxies: {rates:?}"
            );
        }
        if count.is_none() {
            assert!(world.is_full_mesh());
        }
    }
}

#[test]
fn full_outage_and_return() {
    for outage in [3, 30, 1200] {
        let mut world = herd(Balancer::Random, 4, None, seconds(60));
        for proxy in 0..4 {
            world.crash(proxy);
        }
        world.run(seconds(outage));
        assert!(
            world
                .agents
                .iter()
                .all(|agent| agent.connections.is_empty() || outage < 5)
        );
        for proxy in 0..4 {
            world.start(proxy);
        }
        let from = world.now.elapsed().as_secs();
        let time = world.run_until(seconds(220), "all are back", World::is_full_mesh);
        let rates = rates(&world, from);
        println!("after {outage} s of outage: all back in {time:?}; {rates:.1?}");
        for (most, mean, _) in &rates {
            assert!(*mean <= BUDGET * 2.0, "{rates:?}");
            assert!(*most as f64 <= noise(BUDGET * 2.0), "{rates:?}");
        }
    }
}

/// Without an announced spread a lone agent is back as soon as its proxy is.
#[test]
fn a_lone_agent_is_back_soon() {
    let setup = Setup {
        dial_timeout: millis(100),
        ..Setup::default()
    };
    let mut world = World::new(setup).with_proxies(1).with_agents(1, None);
    world.run(seconds(10));
    world.crash(0);
    world.run(seconds(2));
    world.start(0);
    let time = world.run_until(seconds(10), "connected again", World::is_full_mesh);
    println!("back after {time:?}");
    world.crash(0);
    world.run(seconds(3600));
    let dials = world.agents.iter().map(Agent::dials).sum::<usize>();
    // Waits of up to 30 s, drawn evenly.
    assert!((200..400).contains(&dials), "{dials}");
    world.start(0);
    world.run_until(seconds(31), "connected again", World::is_full_mesh);
}

/// What a rolling restart does to the loads of a fleet that holds a few connections each: whoever
/// returns gets agents only as others lose theirs. Nothing is rebalanced, and nothing is lost.
#[test]
fn a_rolling_restart_skews_loads() {
    let setup = Setup {
        checked: false,
        spread: seconds(2),
        ..Setup::default()
    };
    let mut world = World::new(setup).with_proxies(6).with_agents(600, Some(2));
    world.run(seconds(20));
    println!("before: {:?}", world.loads());
    for proxy in 0..6 {
        world.drain(proxy, seconds(20));
        world.run(seconds(30));
        world.start(proxy);
        world.run(seconds(30));
        assert!(world.agents.iter().all(|agent| agent.serving().len() == 2));
    }
    println!("after each was restarted: {:?}", world.loads());
    assert_eq!(world.loads().iter().sum::<usize>(), 1200);
}
