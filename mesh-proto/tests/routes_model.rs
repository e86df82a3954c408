//! Routes against a naive model: owners that change, restart and forget their log, readers that read
//! when they like, streams that break. After every step each lookup is what the model says.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "routes_model/model.rs"]
mod model;
#[path = "routes_model/world.rs"]
mod world;

use proptest::collection::vec;
use proptest::prelude::*;

use world::{AGENTS, INSTANCES, OWNERS, Op, READERS, Setup, World};

fn op() -> impl Strategy<Value = Op> {
    let row = || (0..OWNERS, 0..AGENTS.len(), 0..INSTANCES);
    let stream = || (0..READERS, 0..OWNERS);
    prop_oneof![
        12 => row().prop_map(|(owner, agent, instance)| Op::Add { owner, agent, instance }),
        10 => row().prop_map(|(owner, agent, instance)| Op::Remove { owner, agent, instance }),
        3 => row().prop_map(|(owner, agent, instance)| Op::Flap { owner, agent, instance }),
        4 => stream().prop_map(|(reader, owner)| Op::Open { reader, owner }),
        14 => (stream(), 1..5usize).prop_map(|((reader, owner), frames)| Op::Tell { reader, owner, frames }),
        14 => (stream(), 1..5usize).prop_map(|((reader, owner), frames)| Op::Deliver { reader, owner, frames }),
        6 => stream().prop_map(|(reader, owner)| Op::Acknowledge { reader, owner }),
        2 => stream().prop_map(|(reader, owner)| Op::Break { reader, owner }),
        1 => (0..OWNERS).prop_map(|owner| Op::Restart { owner }),
        1 => stream().prop_map(|(reader, owner)| Op::Forget { reader, owner }),
        1 => Just(Op::Settle),
    ]
}

fn setup() -> impl Strategy<Value = Setup> {
    (prop_oneof![0..4usize, 8..60usize], 0..400usize).prop_map(|(log_rows_max, frame_bytes_max)| {
        Setup {
            log_rows_max,
            frame_bytes_max,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn copies_equal_their_model(setup in setup(), ops in vec(op(), 1..250)) {
        let mut world = World::new(&setup);
        for op in ops {
            world.step(&op);
            world.check();
        }
        world.step(&Op::Settle);
        world.check();
    }
}

/// What happens in the cases above, counted over fixed seeds: a model that never sees a chunk, or an
/// overflow of the log, would prove nothing of it.
#[test]
fn the_model_sees_what_it_is_for() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let mut seen = world::Seen::default();
    for _ in 0..200 {
        let case = (setup(), vec(op(), 100..250));
        let (setup, ops) = case.new_tree(&mut runner).unwrap().current();
        let mut world = World::new(&setup);
        for op in &ops {
            world.step(op);
        }
        seen.add(&world.seen);
    }
    for (what, count) in [
        ("snapshots", seen.snapshots),
        ("chunks that were not the last", seen.chunks),
        ("rows told as they were, not as they are", seen.undone),
        ("snapshots begun anew on a stream", seen.begun_anew),
        (
            "snapshots over a copy of another epoch",
            seen.over_an_old_epoch,
        ),
        ("snapshots over what a broken one left", seen.over_a_mixture),
        ("deltas", seen.deltas),
        ("deltas in several frames", seen.split_deltas),
        ("deltas of nothing", seen.empty_deltas),
        ("streams that went on where they broke", seen.resumed),
    ] {
        assert!(count >= 10, "{what}: {count}");
    }
}
