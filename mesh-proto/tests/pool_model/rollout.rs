//! New generations, canaries, drains and surplus.

use mesh_proto::pool::LetGo;

use super::world::{Agent, Balancer, Health, Setup, World, seconds};

fn serving_generation(world: &World, agent: &Agent, generation: u64) -> usize {
    agent
        .serving()
        .iter()
        .filter(|proxy| world.proxies[**proxy].generation == generation)
        .count()
}

fn meshed(proxies: usize, agents: usize, own_count: Option<u32>, setup: Setup) -> World {
    let mut world = World::new(setup)
        .with_proxies(proxies)
        .with_agents(agents, own_count);
    world.run(seconds(20));
    let wanted = own_count.map_or(proxies, |count| count as usize);
    assert!(
        world
            .agents
            .iter()
            .all(|agent| agent.serving().len() == wanted)
    );
    world
}

#[test]
fn new_generation_drains_the_old() {
    for own_count in [None, Some(1), Some(2)] {
        let setup = Setup {
            spread: seconds(5),
            ..Setup::default()
        };
        let mut world = meshed(3, 50, own_count, setup);
        for _ in 0..3 {
            world.add_proxy("blue", 2);
        }
        let wanted = own_count.map_or(3, |count| count as usize);
        let mut held_at_least = usize::MAX;
        for _ in 0..300 {
            world.run(seconds(1) / 10);
            for agent in &world.agents {
                let new = serving_generation(&world, agent, 2);
                let old = serving_generation(&world, agent, 1);
                // Never fewer of both together than there were.
                assert!(new + old >= wanted, "{new} new and {old} old");
                held_at_least = held_at_least.min(new + old);
                if old < wanted {
                    assert!(
                        new >= wanted,
                        "old ones let go with {new} of {wanted} new ones"
                    );
                }
            }
        }
        assert_eq!(held_at_least, wanted);
        for agent in &world.agents {
            assert_eq!(
                serving_generation(&world, agent, 1),
                0,
                "the old did not go"
            );
            assert_eq!(serving_generation(&world, agent, 2), wanted);
            assert_eq!(agent.connections.len(), wanted);
        }
        // And nothing is dialled once more.
        let dials: usize = world.agents.iter().map(Agent::dials).sum();
        assert_eq!(dials, 50 * 2 * wanted);
    }
}

/// A rollout as deployments do it: a new one starts, then an old one drains and goes.
#[test]
fn rolling_replacement_never_falls_below() {
    for own_count in [None, Some(2)] {
        let setup = Setup {
            spread: seconds(5),
            ..Setup::default()
        };
        let mut world = meshed(4, 50, own_count, setup);
        let wanted = own_count.map_or(4, |count| count as usize);
        for old in 0..4 {
            world.add_proxy("blue", 2);
            world.run(seconds(15));
            world.drain(old, seconds(30));
            for _ in 0..350 {
                world.run(seconds(1) / 10);
                for agent in &world.agents {
                    let live = agent.serving();
                    // Of the new generation there are as many as have started.
                    let least = wanted.min(old + 1);
                    assert!(live.len() >= least, "{live:?}");
                }
            }
        }
        world.run(seconds(60));
        for agent in &world.agents {
            assert_eq!(serving_generation(&world, agent, 2), wanted);
            assert_eq!(agent.connections.len(), wanted);
        }
    }
}

#[test]
fn canary_generation_keeps_the_old() {
    for own_count in [None, Some(1), Some(2)] {
        let mut world = meshed(4, 50, own_count, Setup::default());
        let canary = world.add_proxy("blue", 2);
        world.run(seconds(600));
        let wanted = own_count.map_or(4, |count| count as usize);
        for agent in &world.agents {
            assert_eq!(
                serving_generation(&world, agent, 1),
                wanted,
                "count {own_count:?}"
            );
            assert_eq!(serving_generation(&world, agent, 2), 1);
        }
        // The canary was bad, and goes: all is as before.
        let dials: usize = world.agents.iter().map(Agent::dials).sum();
        world.crash(canary);
        world.run(seconds(600));
        for agent in &world.agents {
            assert_eq!(serving_generation(&world, agent, 1), wanted);
            assert_eq!(agent.connections.len(), wanted);
        }
        let after: usize = world.agents.iter().map(Agent::dials).sum();
        println!(
            "{own_count:?}: {} dials for 50 agents after the canary died",
            after - dials
        );
    }
}

/// Groups roll out on their own: a new generation of one lets nothing of another go.
#[test]
fn groups_are_independent() {
    let mut world = World::new(Setup::default());
    let green: Vec<usize> = (0..2).map(|_| world.add_proxy("green", 7)).collect();
    for _ in 0..2 {
        world.add_proxy("blue", 1);
    }
    let mut world = world.with_agents(10, None);
    world.run(seconds(30));
    assert!(world.is_full_mesh());
    for _ in 0..2 {
        world.add_proxy("blue", 2);
    }
    world.run(seconds(30));
    for agent in &world.agents {
        let serving = agent.serving();
        assert!(green.iter().all(|proxy| serving.contains(proxy)));
        assert_eq!(serving.len(), 4);
        assert_eq!(serving_generation(&world, agent, 1), 0);
    }
}

#[test]
fn drain_is_make_before_break_and_paced() {
    let setup = Setup {
        spread: seconds(50),
        checked: false,
        ..Setup::default()
    };
    let mut world = meshed(6, 1000, Some(2), setup);
    let before = world.loads()[0];
    let from = world.now.elapsed().as_secs();
    world.drain(0, seconds(30));
    // Before the drain's end all have a replacement, and nobody ever had fewer than two.
    for _ in 0..280 {
        world.run(seconds(1) / 10);
        assert!(world.agents.iter().all(|agent| agent.serving().len() >= 2));
    }
    assert_eq!(world.loads()[0], 0, "not all have let go in time");
    assert_eq!(world.proxies[0].health, Health::Draining);
    let arrivals: Vec<usize> = (from..from + 16)
        .map(|second| {
            world
                .proxies
                .iter()
                .filter_map(|proxy| proxy.arrivals.get(&second))
                .sum()
        })
        .collect();
    println!("{before} agents of a draining proxy dial others, by second: {arrivals:?}");
    assert_eq!(arrivals.iter().sum::<usize>(), before);
    // Spread over half of the drain.
    let mean = before as f64 / 15.0;
    assert!(
        arrivals
            .iter()
            .all(|count| (*count as f64) < mean + 4.0 * mean.sqrt())
    );
    assert!(
        world
            .agents
            .iter()
            .all(|agent| agent.pool.counts(world.now).connected == 2)
    );
}

/// The last proxy drains: there is nothing better, so it is held until it goes.
#[test]
fn the_last_proxy_is_held_to_the_end() {
    let mut world = meshed(1, 3, None, Setup::default());
    world.drain(0, seconds(30));
    world.run(seconds(29));
    assert_eq!(world.loads(), [3]);
    world.run(seconds(5));
    assert_eq!(world.loads(), [0]);
    world.start(0);
    world.run_until(seconds(60), "all are back", World::is_full_mesh);
}

#[test]
fn surplus_closes_slowest_first_only_after_stable() {
    let setup = Setup {
        count: Some(5),
        ..Setup::default()
    };
    let mut world = meshed(5, 1, None, setup);
    // The proxies are told to want three connections of each agent.
    let leases: Vec<_> = world.agents[0].connections.keys().copied().collect();
    for (index, lease) in leases.iter().enumerate() {
        let rtt = seconds(1) * [30, 50, 10, 40, 20][index];
        world.agents[0].pool.rtt(*lease, rtt);
    }
    world.run(seconds(60));
    assert_eq!(world.agents[0].serving().len(), 5);
    world.setup.count = Some(3);
    let told = world.now;
    world.agents[0].pool.announced(None, Some(3), seconds(0));
    world.drive(0);
    world.run(seconds(29));
    assert_eq!(world.agents[0].serving().len(), 5, "too soon");
    world.run(seconds(2));
    assert_eq!(world.agents[0].serving().len(), 4);
    world.run(seconds(28));
    assert_eq!(world.agents[0].serving().len(), 4, "not one by one");
    world.run(seconds(200));
    let let_go: Vec<_> = world.agents[0]
        .log
        .iter()
        .filter(|(at, action)| *at >= told && action.contains("Surplus"))
        .collect();
    assert_eq!(let_go.len(), 2, "{let_go:?}");
    for (index, slowest) in [1, 3].into_iter().enumerate() {
        assert!(
            let_go[index].1.contains(&format!("{:?}", leases[slowest])),
            "{let_go:?}"
        );
    }
    assert_eq!(world.agents[0].serving().len(), 3);
    assert_eq!(LetGo::Surplus.as_str(), "surplus");
}

/// While members come and go, surplus stays: it may be needed in a moment.
#[test]
fn surplus_stays_while_the_view_changes() {
    let setup = Setup {
        count: Some(4),
        ..Setup::default()
    };
    let mut world = meshed(4, 1, None, setup);
    world.setup.count = Some(2);
    let flapping = world.add_proxy("blue", 1);
    for _ in 0..20 {
        world.crash(flapping);
        world.run(seconds(10));
        world.start(flapping);
        world.run(seconds(10));
        assert!(world.agents[0].serving().len() >= 4);
    }
    world.run(seconds(300));
    assert_eq!(world.agents[0].serving().len(), 2);
}

/// Proxies of the new generation cannot be reached directly, and the balancer gives old ones too:
/// those must neither be dialled and let go in a loop, nor taken for progress.
#[test]
fn a_balancer_over_two_generations_is_not_hammered() {
    for seed in 0..10 {
        let setup = Setup {
            seed,
            balancer: Balancer::Random,
            ..Setup::default()
        };
        let mut world = meshed(4, 1, Some(2), setup);
        for _ in 0..4 {
            let proxy = world.add_proxy("blue", 2);
            world.proxies[proxy].reachable = false;
        }
        let before = world.agents[0].dials_configured;
        world.run(seconds(600));
        let agent = &world.agents[0];
        assert_eq!(serving_generation(&world, agent, 2), 2);
        assert_eq!(serving_generation(&world, agent, 1), 0);
        assert!(
            agent.dials_configured - before < 30,
            "{}",
            agent.dials_configured - before
        );
    }
    // The new generation is known, but no dial leads to it.
    let mut world = meshed(2, 1, None, Setup::default());
    for _ in 0..2 {
        let proxy = world.add_proxy("blue", 2);
        world.proxies[proxy].reachable = false;
    }
    world.setup.balancer = Balancer::Always(0);
    let before = world.agents[0].dials_configured;
    world.run(seconds(3600));
    let dials = world.agents[0].dials_configured - before;
    assert!(dials < 1000, "{dials} dials in an hour");
    assert_eq!(world.agents[0].serving(), [0, 1]);
}
