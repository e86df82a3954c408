//! Proxies that come.

use super::world::{Node, SECOND, World};

#[test]
fn all_find_each_other_through_one() {
    for (count, seed) in [(2, 1), (3, 2), (10, 3), (50, 4)] {
        for loss in [0, 50] {
            let mut world = World::new(seed);
            world.loss = loss;
            world.grow(count);
            let took = world.run_until(10 * SECOND, World::is_true);
            println!("{count} members at {loss}/1000 loss: {took:?}");
            assert!(world.deaths.is_empty(), "{:?}", world.deaths);
        }
    }
}

#[test]
fn gossip_alone_tells_of_everybody() {
    // Nobody dials whom it hears of: each has a connection to the first one and to two others.
    for seed in 0..3 {
        let mut world = World::new(seed);
        world.dials = false;
        world.loss = 50;
        world.grow(20);
        for index in 1..20 {
            world.connect(index, (index + 4) % 20);
        }
        world.run_until(5 * SECOND, |world| {
            let all = |node: &Node| node.membership.members().count() == 19;
            world.nodes.iter().all(all)
        });
    }
}

#[test]
fn one_more_is_known_to_all_soon() {
    let mut world = World::grown(5, 50);
    world.loss = 50;
    let new = world.start("new", 1);
    world.connect(17, new);
    let took = world.run_until(5 * SECOND, World::is_true);
    println!("one more of 50: {took:?}");
}
