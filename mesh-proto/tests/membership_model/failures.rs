//! Proxies that die, and some that only seem to.

use std::time::Duration;

use mesh_proto::wire::MemberState;

use super::world::{MS, SECOND, World};

fn dead_everywhere(world: &World, index: usize, state: MemberState) -> bool {
    let mut live = world.live().into_iter();
    live.all(|viewer| world.seen(viewer, index) == Some(state))
}

#[test]
fn one_that_vanishes_is_down_everywhere_within_ten_seconds() {
    let mut worst = Duration::ZERO;
    for seed in 0..10 {
        let mut world = World::grown(seed, 50);
        world.vanish(7);
        let took = world.run_until(12 * SECOND, |world| {
            dead_everywhere(world, 7, MemberState::Down)
        });
        worst = worst.max(took);
        assert!(world.deaths.iter().all(|death| death.2 == 7));
    }
    println!("down everywhere of 50 after {worst:?} at worst");
    assert!(worst <= 10 * SECOND, "{worst:?}");
}

#[test]
fn several_that_vanish_at_once_with_loss() {
    for seed in 0..5 {
        let mut world = World::grown(seed, 20);
        world.loss = 50;
        for index in [3, 9, 11, 15] {
            world.vanish(index);
        }
        world.run_until(25 * SECOND, World::is_true);
        let false_death = |death: &&(_, _, usize, _)| ![3, 9, 11, 15].contains(&death.2);
        assert_eq!(world.deaths.iter().find(false_death), None);
    }
}

#[test]
fn one_whose_connections_end_is_down_sooner() {
    for seed in 0..5 {
        let mut world = World::grown(seed, 10);
        world.crash(4);
        let took = world.run_until(6 * SECOND, |world| {
            dead_everywhere(world, 4, MemberState::Down)
        });
        // The time to refute, and the way of a message.
        assert!(took <= 4200 * MS, "{took:?}");
    }
}

#[test]
fn a_connection_that_ends_is_no_death() {
    let mut world = World::grown(3, 10);
    world.loss = 50;
    for round in 0..50 {
        world.close(round % 10, (round + 3) % 10);
        world.run(SECOND);
    }
    world.run_until(10 * SECOND, World::is_true);
    assert_eq!(world.deaths, []);
    // Nor when the two never find each other again, and others see both.
    world.dials = false;
    world.close(0, 1);
    world.run(60 * SECOND);
    world.run_until(10 * SECOND, World::is_true);
    assert_eq!(world.deaths, []);
}

#[test]
fn two_alone_get_over_a_lost_connection() {
    let mut world = World::grown(4, 2);
    for _ in 0..20 {
        world.close(0, 1);
        world.run(7 * SECOND);
        world.assert_truth();
    }
    assert_eq!(world.deaths, []);
}

#[test]
fn nobody_dies_of_five_percent_loss() {
    for (count, seeds) in [(3, 4), (10, 4), (50, 2)] {
        for seed in 0..seeds {
            let mut world = World::grown(seed, count);
            world.loss = 50;
            world.run(1800 * SECOND);
            assert_eq!(world.deaths, [], "{count} members, seed {seed}");
            world.run_until(10 * SECOND, World::is_true);
        }
    }
}

#[test]
fn a_fifth_lost_does_no_lasting_harm() {
    for seed in 0..4 {
        let mut world = World::grown(seed, 20);
        world.loss = 200;
        world.run(600 * SECOND);
        println!("20 % loss for 600 s: {} deaths shown", world.deaths.len());
        world.run_until(30 * SECOND, World::is_true);
    }
}

#[test]
fn false_deaths_heal() {
    let mut deaths = 0;
    for seed in 0..4 {
        let mut world = World::grown(seed, 20);
        world.loss = 700;
        world.run(120 * SECOND);
        deaths += world.deaths.len();
        world.loss = 50;
        let took = world.run_until(30 * SECOND, World::is_true);
        println!("70 % loss for 120 s: {deaths} deaths shown, healed after {took:?}");
    }
    assert!(deaths > 0);
}

#[test]
fn a_frozen_process_blames_nobody() {
    for seconds in [2, 10, 60, 3600] {
        let mut world = World::grown(6, 10);
        world.freeze(2, seconds * SECOND);
        world.run(seconds * SECOND);
        world.deaths.clear();
        let took = world.run_until(15 * SECOND, World::is_true);
        println!("frozen for {seconds} s: {took:?} until all is true");
        let blamed = world.deaths.iter().filter(|death| death.2 != 2);
        assert_eq!(blamed.count(), 0, "{:?}", world.deaths);
        world.run(30 * SECOND);
        world.assert_truth();
    }
}

#[test]
fn a_clock_that_jumps_kills_nobody() {
    // All at once, with nothing else wrong: as a paused virtual machine host would.
    let mut world = World::grown(6, 10);
    for index in 0..10 {
        world.freeze(index, 60 * SECOND);
    }
    world.run(90 * SECOND);
    world.assert_truth();
    assert_eq!(world.deaths, []);
}

#[test]
fn the_dead_are_forgotten_after_ten_minutes() {
    let mut world = World::grown(7, 5);
    world.vanish(1);
    world.leave(2);
    world.run(300 * SECOND);
    assert!(dead_everywhere(&world, 1, MemberState::Down));
    assert!(dead_everywhere(&world, 2, MemberState::Left));
    world.run(330 * SECOND);
    for viewer in world.live() {
        assert_eq!(world.nodes[viewer].membership.members().count(), 2);
    }
}
