//! Random faults, and what must hold whatever happens.

use mesh_proto::pool::{Draw, Limits};

use super::world::{Balancer, Health, Rng, Setup, World, millis, seconds};

/// One world with everything going wrong for a while, then peace: all must be as it should be.
fn faults(seed: u64) {
    let mut rng = Rng(seed);
    let own_count = [None, None, Some(1), Some(2), Some(3)][rng.below(5)];
    let setup = Setup {
        seed,
        balancer: [
            Balancer::RoundRobin,
            Balancer::Random,
            Balancer::Sticky,
            Balancer::Always(0),
        ][rng.below(4)],
        spread: [seconds(0), seconds(0), seconds(5), seconds(20)][rng.below(4)],
        ttl: [seconds(180), seconds(30)][rng.below(2)],
        gossip: rng.up_to(seconds(3)),
        crash_noticed: rng.up_to(seconds(20)),
        latency: rng.between(millis(1), seconds(1)),
        hello: rng.up_to(seconds(1)),
        failures_per_mille: [0, 50, 300][rng.below(3)],
        linger: [millis(1), seconds(1), seconds(20)][rng.below(3)],
        limits: Limits {
            stable: seconds(10),
            ..Limits::default()
        },
        ..Setup::default()
    };
    let proxies = 1 + rng.below(5);
    let mut world = World::new(setup)
        .with_proxies(proxies)
        .with_agents(3, own_count);
    let mut generation = 1;
    for _ in 0..40 {
        world.run(rng.up_to(seconds(20)));
        let proxy = rng.below(world.proxies.len());
        match rng.below(8) {
            0 | 1 if world.proxies[proxy].health != Health::Down => world.crash(proxy),
            2 if world.proxies[proxy].health == Health::Up => {
                world.drain(proxy, rng.between(seconds(1), seconds(30)));
            }
            3 | 4 if world.proxies[proxy].health == Health::Down => world.start(proxy),
            5 if world.proxies.len() < 12 => {
                generation += u64::try_from(rng.below(2)).unwrap();
                let group = ["blue", "green"][rng.below(2)];
                world.add_proxy(group, generation);
            }
            6 => world.proxies[proxy].reachable = !world.proxies[proxy].reachable,
            // A restart that agents do not notice before it is over.
            7 if world.proxies[proxy].health == Health::Up => {
                world.crash(proxy);
                world.start(proxy);
            }
            _ => {}
        }
    }
    // Peace: what can be reached is reached, and stays.
    world.setup.failures_per_mille = 0;
    world.setup.balancer = Balancer::RoundRobin;
    for proxy in 0..world.proxies.len() {
        world.proxies[proxy].reachable = true;
        if world.proxies[proxy].health != Health::Up {
            world.proxies[proxy].health = Health::Down;
        }
    }
    if world.up().is_empty() {
        world.start(0);
    }
    world.run(seconds(600));
    let desired: Vec<usize> = world
        .up()
        .into_iter()
        .filter(|proxy| {
            let it = &world.proxies[*proxy];
            world.up().iter().all(|other| {
                let other = &world.proxies[*other];
                other.group != it.group || other.generation <= it.generation
            })
        })
        .collect();
    let wanted = own_count.map_or(desired.len(), |count| desired.len().min(count as usize));
    for agent in &world.agents {
        let serving: Vec<usize> = agent
            .serving()
            .into_iter()
            .filter(|proxy| desired.contains(proxy))
            .collect();
        assert_eq!(
            serving.len(),
            wanted,
            "seed {seed}: served by {:?}, desired {desired:?}",
            agent.serving()
        );
        let counts = agent.pool.counts(world.now);
        assert_eq!(
            (counts.desired, counts.connected),
            (wanted, wanted),
            "seed {seed}: {counts:?}"
        );
        assert_eq!(
            (counts.dialling, counts.cooling),
            (0, 0),
            "seed {seed}: {counts:?}"
        );
    }
    // Nothing moves any more.
    let dials: Vec<usize> = world.agents.iter().map(|agent| agent.dials()).collect();
    world.run(seconds(600));
    let later: Vec<usize> = world.agents.iter().map(|agent| agent.dials()).collect();
    assert_eq!(dials, later, "seed {seed}: dials in peace");
}

#[test]
fn random_faults() {
    for seed in 0..150 {
        faults(seed);
    }
}

/// Polling only when the pool asks for it gives what polling all the time gives.
#[test]
fn next_wake_misses_nothing() {
    let run = |seed: u64, step| {
        let mut rng = Rng(seed);
        let setup = Setup {
            seed,
            balancer: [Balancer::Random, Balancer::RoundRobin][rng.below(2)],
            spread: [seconds(0), seconds(7)][rng.below(2)],
            ttl: [seconds(180), seconds(20)][rng.below(2)],
            failures_per_mille: [0, 300][rng.below(2)],
            limits: Limits {
                stable: seconds(5),
                ..Limits::default()
            },
            grid: millis(10),
            step,
            ..Setup::default()
        };
        let own_count = [None, Some(2)][rng.below(2)];
        let mut world = World::new(setup).with_proxies(4).with_agents(1, own_count);
        world.proxies[1].reachable = false;
        for _ in 0..10 {
            // On the grid, as all of this world.
            world.run(millis(10) * u32::try_from(1 + rng.below(1000)).unwrap());
            let proxy = rng.below(world.proxies.len());
            match (rng.below(4), world.proxies[proxy].health) {
                (0 | 1, Health::Up) => world.crash(proxy),
                (2, Health::Up) => world.drain(proxy, seconds(10)),
                (3, _) if world.proxies.len() < 8 => {
                    world.add_proxy("blue", 1 + u64::try_from(rng.below(2)).unwrap());
                }
                (_, Health::Down) => world.start(proxy),
                _ => {}
            }
        }
        // Silence: what was told expires.
        for proxy in 0..world.proxies.len() {
            if world.proxies[proxy].health == Health::Up {
                world.crash(proxy);
            }
        }
        world.run(seconds(60));
        let agent = &world.agents[0];
        (agent.log.clone(), agent.wakes)
    };
    let (mut woken, mut stepped) = (0, 0);
    for seed in 0..24 {
        let (log, wakes) = run(seed, None);
        let (reference, steps) = run(seed, Some(millis(10)));
        assert!(log.len() > 4, "seed {seed}: {log:?}");
        for (index, action) in reference.iter().enumerate() {
            assert_eq!(log.get(index), Some(action), "seed {seed}, action {index}");
        }
        assert_eq!(log.len(), reference.len(), "seed {seed}");
        woken += wakes;
        stepped += steps;
    }
    println!("{woken} wakes do what {stepped} steps do");
    assert!(woken * 20 < stepped);
}

/// A proxy that had restarted was reached once more: the new connection was found not to be needed,
/// since the dead one counted, and then the dead one was let go as well.
#[test]
fn regression_the_last_connection_was_let_go_as_stale() {
    faults(1582);
}
