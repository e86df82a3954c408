//! Routes: what a dial pays for a lookup, a change on its way to a peer, and a peer that reads
//! everything. Every agent is at every one of ten proxies, as the design has it.
//!
//! What they take in memory and on the wire is counted by `mesh-proto/tests/routes_size.rs`.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a bench that cannot go on should say so at once; criterion's macros document nothing"
)]

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use mesh_proto::NodeName;
use mesh_proto::name::AgentName;
use mesh_proto::routes::{Cursor, Head, Limits, OwnRoutes, PeerRoutes};
use mesh_proto::wire::{FRAME_HEADER_BYTES, Frame, FrameHeader, RoutesFrame};

const AGENTS: [usize; 3] = [10, 1_000, 100_000];
const OWNERS: usize = 10;

fn agent(number: usize) -> AgentName {
    format!("agent-{number:06}").parse().unwrap()
}

fn owner(number: usize) -> NodeName {
    format!("proxy-{number}").parse().unwrap()
}

/// A process of an agent; the same at every proxy.
fn instance(number: usize) -> [u8; 16] {
    let spread = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (u128::from(spread) << 64 | u128::from(spread.rotate_left(29))).to_be_bytes()
}

fn own(agents: usize) -> OwnRoutes {
    let mut own = OwnRoutes::new(1, &Limits::default());
    for number in 0..agents {
        own.add(agent(number), instance(number));
    }
    own
}

/// The frames that a reader still has to be told, as they travel.
fn told(own: &OwnRoutes, cursor: &mut Cursor) -> Vec<Vec<u8>> {
    std::iter::from_fn(|| own.next_for(cursor))
        .map(|frame| {
            let mut bytes = Vec::new();
            frame.encode(&mut bytes).unwrap();
            bytes
        })
        .collect()
}

fn apply(copies: &mut PeerRoutes, owner: &NodeName, frames: &[Vec<u8>]) {
    for bytes in frames {
        let (header, body) = bytes.split_first_chunk::<FRAME_HEADER_BYTES>().unwrap();
        let header = FrameHeader::decode(*header, RoutesFrame::BODY_BYTES_MAX).unwrap();
        let frame = RoutesFrame::decode(header, body).unwrap().unwrap();
        copies.apply(owner, frame).unwrap();
    }
}

/// Copies of ten owners, all at the same rows.
fn copies(own: &OwnRoutes) -> PeerRoutes {
    let mut copies = PeerRoutes::new(Limits::default());
    let frames = told(own, &mut own.cursor(None));
    for number in 0..OWNERS {
        apply(&mut copies, &owner(number), &frames);
    }
    copies
}

fn lookups(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("routes_holders");
    group.throughput(Throughput::Elements(1));
    for agents in AGENTS {
        let copies = copies(&own(agents));
        let mut number = 0;
        let names: Vec<AgentName> = (0..agents).map(agent).collect();
        group.bench_function(BenchmarkId::new("hit", agents), |bencher| {
            bencher.iter(|| {
                // A step that is coprime to all three sizes: no two lookups near each other.
                number = (number + 7_919) % agents;
                copies.holders(black_box(&names[number])).count()
            });
        });
        let absent = "agent-05x".parse().unwrap();
        group.bench_function(BenchmarkId::new("miss", agents), |bencher| {
            bencher.iter(|| copies.holders(black_box(&absent)).count());
        });
    }
    group.finish();
}

/// One agent comes or goes at its proxy: from there to the peer's table, bytes and all.
fn delta_of_one(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("routes_delta_of_one");
    for agents in AGENTS {
        let mut own = own(agents);
        let mut copies = copies(&own);
        let owner = owner(3);
        let mut cursor = own.cursor(copies.have(&owner).map(Head::position));
        let newcomer: AgentName = "agent-050x".parse().unwrap();
        let mut held = false;
        group.bench_function(BenchmarkId::from_parameter(agents), |bencher| {
            bencher.iter(|| {
                if held {
                    own.remove(&newcomer, &[7; 16]);
                } else {
                    own.add(newcomer.clone(), [7; 16]);
                }
                held = !held;
                let frames = told(&own, &mut cursor);
                apply(&mut copies, &owner, &frames);
            });
        });
    }
    group.finish();
}

fn snapshots(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("routes_snapshot");
    group.sample_size(10);
    for agents in AGENTS {
        let own = own(agents);
        let frames = told(&own, &mut own.cursor(None));
        group.throughput(Throughput::Elements(agents as u64));
        group.bench_function(BenchmarkId::new("tell", agents), |bencher| {
            bencher.iter(|| told(&own, &mut own.cursor(None)));
        });
        group.bench_function(BenchmarkId::new("read_the_first", agents), |bencher| {
            bencher.iter_batched(
                || PeerRoutes::new(Limits::default()),
                |mut copies| {
                    apply(&mut copies, &owner(0), &frames);
                    copies
                },
                BatchSize::PerIteration,
            );
        });
        let mut copies = copies(&own);
        group.bench_function(BenchmarkId::new("read_again", agents), |bencher| {
            bencher.iter(|| apply(&mut copies, &owner(3), &frames));
        });
        group.bench_function(BenchmarkId::new("forget_and_read", agents), |bencher| {
            bencher.iter(|| {
                copies.forget(&owner(3));
                apply(&mut copies, &owner(3), &frames);
            });
        });
        // The longest that one frame, or the end of a member, keeps a shard.
        group.bench_function(BenchmarkId::new("apply_one_frame", agents), |bencher| {
            bencher.iter(|| apply(&mut copies, &owner(3), &frames[..2]));
        });
        apply(&mut copies, &owner(3), &frames);
        group.bench_function(BenchmarkId::new("forget", agents), |bencher| {
            bencher.iter_batched_ref(
                || {
                    let mut copies = PeerRoutes::new(Limits::default());
                    for number in 0..2 {
                        apply(&mut copies, &owner(number), &frames);
                    }
                    copies
                },
                |copies| copies.forget(&owner(0)),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, lookups, delta_of_one, snapshots);
criterion_main!(benches);
