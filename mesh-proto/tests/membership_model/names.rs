//! Restarts, and processes that share a name.

use mesh_proto::wire::MemberState;

use super::world::{SECOND, World};

#[test]
fn a_restart_takes_the_place_of_what_was() {
    for loss in [0, 100] {
        for crash in [false, true] {
            let mut world = World::grown(1, 10);
            world.loss = loss;
            if crash {
                world.crash(4);
            } else {
                world.vanish(4);
            }
            world.run(SECOND);
            let new = world.start("p4", 2);
            world.connect(0, new);
            world.run_until(10 * SECOND, World::is_true);
            world.deaths.clear();
            world.run(60 * SECOND);
            world.run_until(10 * SECOND, World::is_true);
            assert_eq!(world.deaths, []);
        }
    }
}

#[test]
fn a_restart_that_has_lost_its_epoch_gets_above_what_others_remember() {
    let mut world = World::grown(2, 10);
    world.drain(4, true);
    world.drain(4, false);
    world.run(5 * SECOND);
    world.crash(4);
    world.run(SECOND);
    // The same epoch and a lower revision: its state directory is gone.
    let new = world.start("p4", 1);
    world.connect(0, new);
    world.run_until(10 * SECOND, World::is_true);
    assert!(world.nodes[new].membership.own().revision > 2);
    assert_eq!(world.nodes[new].superseded, None);
}

#[test]
fn the_earlier_start_of_a_name_falls_silent() {
    for seed in 0..5 {
        let mut world = World::grown(seed, 10);
        let new = world.start("p4", 7);
        world.connect(0, new);
        world.run_until(10 * SECOND, |world| {
            world.nodes[4].superseded == Some(7) && world.is_true()
        });
        world.deaths.clear();
        let packets = world.packets;
        world.run(60 * SECOND);
        world.assert_truth();
        assert_eq!(world.deaths, []);
        // Nobody fights: ten members at rest.
        let rate = (world.packets - packets) / 600;
        assert!(rate <= 5, "{rate} packets a second each");
    }
}

#[test]
fn one_of_two_clones_falls_silent() {
    for seed in 0..10 {
        let mut world = World::grown(seed, 10);
        let new = world.start("p4", 1);
        world.connect(0, new);
        world.run(240 * SECOND);
        let silent = [4, new].map(|index| world.nodes[index].superseded.is_some());
        assert_eq!(silent.into_iter().filter(|silent| *silent).count(), 1);
        // Outbidding each other ends.
        let renewals = world.nodes[4].renewals + world.nodes[new].renewals;
        assert!(renewals <= 300, "{renewals} renewals");
        world.run_until(15 * SECOND, World::is_true);
    }
}

#[test]
fn a_leftover_without_a_process_is_buried() {
    let mut world = World::grown(3, 3);
    let new = world.start("p2", 5);
    world.vanish(2);
    world.connect(0, new);
    world.run(2 * SECOND);
    world.vanish(new);
    world.run(15 * SECOND);
    assert_eq!(world.seen(0, new), Some(MemberState::Down));
    assert_eq!(world.seen(1, new), Some(MemberState::Down));
}
