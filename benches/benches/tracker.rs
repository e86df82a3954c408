//! The lease tracker, by the number of proxies: how the cost grows.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a bench that cannot go on should say so at once; criterion's macros document nothing"
)]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use mesh_proto::time::Time;
use mesh_proto::tracker::{DEFAULT_TTL, Sighting, Tracker};

fn sightings(proxies: usize) -> Vec<Sighting> {
    (0..proxies)
        .map(|index| Sighting {
            name: format!("proxy-{index}").into(),
            group: format!("group-{}", index % 3).into(),
            generation: (index % 2) as u64,
            ttl: None,
        })
        .collect()
}

fn tracker(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("tracker");
    for proxies in [10, 1_000, 100_000] {
        let view = sightings(proxies);
        let mut tracker = Tracker::new("example.com", DEFAULT_TTL);
        tracker.track(Time::ZERO, view.clone());
        group.bench_with_input(
            BenchmarkId::new("acquire_and_release", proxies),
            &(),
            |bencher, ()| {
                bencher.iter(|| {
                    if let Some(lease) = tracker.acquire(black_box(Time::ZERO)) {
                        tracker.release(lease);
                    }
                });
            },
        );
        group.bench_with_input(
            BenchmarkId::new("track", proxies),
            &view,
            |bencher, view| {
                bencher.iter(|| tracker.track(black_box(Time::ZERO), view.iter().cloned()));
            },
        );
    }
    group.finish();
}

criterion_group!(benches, tracker);
criterion_main!(benches);
