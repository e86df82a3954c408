//! Ways that are shut.

use super::world::{SECOND, World};

fn halves(count: usize) -> (Vec<usize>, Vec<usize>) {
    ((0..count / 2).collect(), (count / 2..count).collect())
}

#[test]
fn a_full_split_heals_within_ten_seconds_of_its_connections() {
    for (count, loss) in [(2, 0), (10, 0), (10, 50), (50, 50)] {
        for (tells, tells_dead) in [(true, true), (true, false), (false, true)] {
            let mut world = World::grown(count as u64, count);
            world.loss = loss;
            (world.tells, world.tells_dead) = (tells, tells_dead);
            let (left, right) = halves(count);
            world.split(&left, &right);
            world.run(60 * SECOND);
            for &one in &left {
                for &other in &right {
                    let state = world.seen(one, other);
                    assert_eq!(state, Some(mesh_proto::wire::MemberState::Down));
                }
            }
            world.heal();
            let took = world.run_until(10 * SECOND, World::is_true);
            println!("split of {count} at {loss}/1000, {tells}, {tells_dead}: {took:?}");
            world.deaths.clear();
            world.run(30 * SECOND);
            world.run_until(10 * SECOND, World::is_true);
            assert_eq!(world.deaths, []);
        }
    }
}

#[test]
fn one_who_is_heard_by_nobody_comes_back() {
    for (count, seed) in [(2, 1), (3, 2), (10, 3)] {
        let mut world = World::grown(seed, count);
        for other in 1..count {
            world.shut(0, other);
        }
        world.run(60 * SECOND);
        world.heal();
        world.run_until(15 * SECOND, World::is_true);
    }
}

#[test]
fn one_who_hears_nobody_comes_back() {
    for (count, seed) in [(2, 1), (3, 2), (10, 3)] {
        let mut world = World::grown(seed, count);
        for other in 1..count {
            world.shut(other, 0);
        }
        world.run(60 * SECOND);
        world.heal();
        world.run_until(15 * SECOND, World::is_true);
    }
}

#[test]
fn two_who_cannot_reach_each_other_live_for_all() {
    for seed in 0..3 {
        let mut world = World::grown(seed, 10);
        world.loss = 20;
        world.split(&[0], &[1]);
        world.split(&[2], &[3, 4]);
        world.run(600 * SECOND);
        world.run_until(10 * SECOND, World::is_true);
        assert_eq!(world.deaths, []);
    }
}

#[test]
fn packets_alone_heal_a_split_without_a_driver_that_helps() {
    // Shorter than it takes a connection to end, so that nobody says hello again; and nobody tells
    // anything on the control streams.
    for seed in 0..5 {
        let mut world = World::grown(seed, 10);
        (world.tells, world.tells_dead, world.dials) = (false, false, false);
        let (left, right) = halves(10);
        world.split(&left, &right);
        world.run(14 * SECOND);
        world.heal();
        assert!(!world.is_true());
        let took = world.run_until(60 * SECOND, World::is_true);
        println!("by packets alone: {took:?}");
    }
}
