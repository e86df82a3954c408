//! Random operations; once all is healed, every view is as things are.

use std::time::Duration;

use proptest::prelude::*;

use super::world::{SECOND, World};

#[derive(Debug, Clone)]
enum Op {
    Loss(u64),
    Run(u64),
    Vanish(usize),
    Crash(usize),
    Leave(usize),
    Restart(usize),
    Twin(usize),
    Drain(usize, bool),
    Shut(usize, usize),
    Split(u32),
    Close(usize, usize),
    Freeze(usize, u64),
    Heal,
    Tells(bool, bool),
}

fn op() -> impl Strategy<Value = Op> {
    let node = || 0..8usize;
    prop_oneof![
        1 => (0..300u64).prop_map(Op::Loss),
        8 => (0..20_000u64).prop_map(Op::Run),
        1 => node().prop_map(Op::Vanish),
        1 => node().prop_map(Op::Crash),
        1 => node().prop_map(Op::Leave),
        3 => node().prop_map(Op::Restart),
        1 => node().prop_map(Op::Twin),
        3 => (node(), any::<bool>()).prop_map(|(node, draining)| Op::Drain(node, draining)),
        3 => (node(), node()).prop_map(|(from, to)| Op::Shut(from, to)),
        1 => any::<u32>().prop_map(Op::Split),
        2 => (node(), node()).prop_map(|(one, other)| Op::Close(one, other)),
        1 => (node(), 0..90_000u64).prop_map(|(node, ms)| Op::Freeze(node, ms)),
        1 => Just(Op::Heal),
        1 => any::<(bool, bool)>().prop_map(|(tells, dead)| Op::Tells(tells, dead)),
    ]
}

fn apply(world: &mut World, op: &Op, epochs: &mut [u64; 8]) {
    // The process that bears a name last.
    let last = |world: &World, node: usize| {
        let name = format!("p{node}").parse().unwrap();
        world.last(&name)
    };
    match *op {
        Op::Loss(loss) => world.loss = loss,
        Op::Run(ms) => world.run(Duration::from_millis(ms)),
        Op::Vanish(node) => world.vanish(last(world, node)),
        Op::Crash(node) => world.crash(last(world, node)),
        Op::Leave(node) => {
            let node = last(world, node);
            if world.nodes[node].alive && !world.is_frozen(node) {
                world.leave(node);
            }
        }
        Op::Restart(node) | Op::Twin(node) => {
            if matches!(op, Op::Restart(_)) {
                world.crash(last(world, node));
            }
            epochs[node] += 1;
            let new = world.start(&format!("p{node}"), epochs[node]);
            world.connect(new, last(world, (node + 1) % 8));
        }
        Op::Drain(node, draining) => {
            let node = last(world, node);
            if world.nodes[node].alive && !world.is_frozen(node) {
                world.drain(node, draining);
            }
        }
        Op::Shut(from, to) => {
            let (from, to) = (last(world, from), last(world, to));
            world.shut(from, to);
        }
        Op::Split(sides) => {
            let (left, right): (Vec<usize>, Vec<usize>) =
                (0..world.nodes.len()).partition(|node| sides >> (node % 32) & 1 == 0);
            world.split(&left, &right);
        }
        Op::Close(one, other) => {
            let (one, other) = (last(world, one), last(world, other));
            world.close(one, other);
        }
        Op::Freeze(node, ms) => {
            let node = last(world, node);
            world.freeze(node, Duration::from_millis(ms));
        }
        Op::Heal => world.heal(),
        Op::Tells(tells, dead) => (world.tells, world.tells_dead) = (tells, dead),
    }
}

/// The operations, then a network without faults, in which everybody dials its neighbour once as a
/// configured peer would.
fn check(seed: u64, ops: &[Op]) {
    let mut world = World::new(seed);
    let mut epochs = [1; 8];
    world.grow(8);
    world.run(5 * SECOND);
    for op in ops {
        apply(&mut world, op, &mut epochs);
    }
    world.heal();
    world.loss = 0;
    (world.tells, world.tells_dead) = (true, true);
    for _ in 0..20 {
        let live = world.live();
        for pair in live.windows(2) {
            world.connect(pair[0], pair[1]);
            // Their hellos arrive before another start of one of the names takes its place.
            world.run(SECOND / 5);
        }
        world.run(5 * SECOND);
    }
    world.run_until(60 * SECOND, World::is_true);
    world.deaths.clear();
    world.run(30 * SECOND);
    world.assert_truth();
    assert_eq!(world.deaths, []);
}

proptest! {
    #[test]
    fn in_the_end_every_view_is_true(
        seed in any::<u64>(),
        ops in proptest::collection::vec(op(), 1..40),
    ) {
        check(seed, &ops);
    }
}
