//! Proxies that change: drains, addresses, routes, goodbyes.

use mesh_proto::wire::{MemberState, RoutesHead};

use super::world::{SECOND, World};

#[test]
fn a_drain_is_no_death() {
    for seed in 0..20 {
        let mut world = World::grown(seed, 10);
        // By gossip alone, with packets of before and after in any order.
        world.tells = seed % 2 == 0;
        world.loss = 100;
        for round in 0..10 {
            world.drain(3, round % 2 == 0);
            let pause = world.below(4000);
            world.run(std::time::Duration::from_millis(pause));
        }
        world.drain(3, true);
        world.run_until(10 * SECOND, World::is_true);
        assert_eq!(world.seen(0, 3), Some(MemberState::Draining));
        assert_eq!(world.deaths, [], "seed {seed}");
    }
}

#[test]
fn everybody_changes_at_once() {
    let mut world = World::grown(1, 50);
    world.loss = 50;
    for index in 0..50 {
        world.drain(index, true);
    }
    let took = world.run_until(10 * SECOND, World::is_true);
    println!("50 drain at once: {took:?}");
    assert_eq!(world.deaths, []);
}

#[test]
fn whoever_drains_and_dies_has_left() {
    let mut world = World::grown(2, 10);
    world.drain(3, true);
    world.run(5 * SECOND);
    world.vanish(3);
    world.run_until(15 * SECOND, World::is_true);
    for viewer in world.live() {
        assert_eq!(world.seen(viewer, 3), Some(MemberState::Left));
    }
}

#[test]
fn whoever_says_goodbye_has_left_at_once() {
    for seed in 0..5 {
        let mut world = World::grown(seed, 20);
        world.loss = 50;
        world.leave(3);
        let took = world.run_until(3 * SECOND, World::is_true);
        println!("gone everywhere after {took:?}");
        world.run(60 * SECOND);
        for viewer in world.live() {
            assert_eq!(world.seen(viewer, 3), Some(MemberState::Left));
        }
        assert!(world.deaths.iter().all(|death| death.2 == 3));
    }
}

#[test]
fn a_change_of_address_reaches_all() {
    let mut world = World::grown(3, 20);
    world.loss = 50;
    world.tells = false;
    let now = world.now;
    let membership = &mut world.nodes[4].membership;
    membership
        .update_own(now, |own| own.addresses = vec!["192.0.2.1:7443".into()])
        .unwrap();
    world.pump(4);
    let took = world.run_until(10 * SECOND, World::is_true);
    println!("an address by gossip alone: {took:?}");
}

fn heads_known(world: &World, index: usize, head: RoutesHead) -> bool {
    let name = &world.nodes[index].name;
    let live = world.live().into_iter().filter(|viewer| *viewer != index);
    live.map(|viewer| world.nodes[viewer].membership.head(name))
        .all(|held| held == Some(head))
}

#[test]
fn route_heads_reach_all() {
    for (count, loss) in [(3, 0), (10, 50), (50, 50), (10, 200)] {
        let mut world = World::grown(count as u64, count);
        world.loss = loss;
        let mut last = None;
        for sequence in 0..30 {
            for index in 0..count.min(5) {
                let head = RoutesHead {
                    epoch: 1,
                    sequence,
                    count: u32::try_from(sequence).unwrap(),
                };
                let now = world.now;
                world.nodes[index].membership.set_head(now, head);
                world.pump(index);
                last = Some(head);
            }
            world.run(SECOND / 4);
        }
        let took = world.run_until(60 * SECOND, |world| {
            (0..count.min(5)).all(|index| heads_known(world, index, last.unwrap()))
        });
        println!("heads among {count} at {loss}/1000: {took:?}");
        // And one that comes later hears of them too.
        let new = world.start("new", 1);
        world.connect(1, new);
        world.run_until(60 * SECOND, |world| {
            (0..count.min(5)).all(|index| heads_known(world, index, last.unwrap()))
        });
    }
}
