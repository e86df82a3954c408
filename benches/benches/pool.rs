//! The agent's pool, by the number of proxies that it knows: what one step of its driver costs. A
//! driver takes a step when a dial or a connection ends, a view comes, or a wait is over.
//!
//! `at_rest` holds every proxy; `dialling` holds all but ten, which have failed and cool down.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a bench that cannot go on should say so at once; criterion's macros document nothing"
)]

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use mesh_proto::NodeName;
use mesh_proto::name::Generation;
use mesh_proto::pool::{Action, Draw, Limits, Member, MemberState, Pool, Reached, Verdict, Whom};
use mesh_proto::time::Time;
use mesh_proto::tracker::LeaseId;

/// Every agent holds a connection to each: no fleet has 100,000 of them, and each step would take as long
/// as its bound says. The largest is there to see that nothing grows worse than evenly.
const PROXIES: [usize; 4] = [3, 50, 1_000, 10_000];

/// Proxies that fail, of those that there are.
const FAILING: usize = 10;

/// Always draws the bound.
struct Longest;

impl Draw for Longest {
    fn up_to(&mut self, bound: Duration) -> Duration {
        bound
    }
}

fn name(index: usize) -> NodeName {
    format!("proxy-{index}").parse().unwrap()
}

fn view(proxies: usize) -> Vec<Member> {
    (0..proxies)
        .map(|index| Member {
            name: name(index),
            group: "blue".parse().unwrap(),
            generation: Generation(1),
            epoch: 1,
            addresses: vec![format!("10.0.{}.{}:7443", index / 250, index % 250)],
            state: MemberState::Alive,
            ttl: None,
        })
        .collect()
}

fn reached(proxy: NodeName) -> Reached {
    Reached {
        proxy,
        epoch: 1,
        group: "blue".parse().unwrap(),
        generation: Generation(1),
    }
}

/// A pool at the start of its life that holds all of so many proxies but the last `failing`, each of
/// which has failed once.
fn pool(proxies: usize, failing: usize) -> (Pool, LeaseId) {
    let mut pool = Pool::new(
        "agent".parse().unwrap(),
        "example.com",
        vec!["balancer:7443".to_owned()],
        None,
        Limits::default(),
    );
    let mut first = None;
    let out_of_reach: Vec<NodeName> = (proxies - failing..proxies).map(name).collect();
    while let Some(action) = pool.poll(Time::ZERO) {
        let Action::Dial { lease, whom } = action else {
            continue;
        };
        match whom {
            Whom::Directed { proxy, .. } if out_of_reach.contains(&proxy) => {
                pool.failed(Time::ZERO, lease, &mut Longest);
            }
            Whom::Directed { proxy, .. } => {
                let verdict = pool.connected(Time::ZERO, lease, reached(proxy), &mut Longest);
                assert_eq!(verdict, Verdict::Keep);
            }
            Whom::Configured { .. } => {
                if pool.connected(Time::ZERO, lease, reached(name(0)), &mut Longest)
                    == Verdict::Keep
                {
                    first = Some(lease);
                    pool.members(Time::ZERO, first, view(proxies));
                }
            }
        }
    }
    let held = pool.counts(Time::ZERO).held;
    assert_eq!(held, proxies - failing);
    (pool, first.unwrap())
}

fn steps(criterion: &mut Criterion) {
    for (what, failing) in [("at_rest", 0), ("dialling", FAILING)] {
        let mut group = criterion.benchmark_group(format!("pool_{what}"));
        for proxies in PROXIES {
            let (mut pool, first) = pool(proxies, failing.min(proxies / 2));
            // Nobody's turn has come.
            let now = Time::since_start(Duration::from_millis(100));
            group.bench_function(BenchmarkId::new("next_wake", proxies), |bencher| {
                bencher.iter(|| pool.next_wake(black_box(now)));
            });
            group.bench_function(BenchmarkId::new("poll", proxies), |bencher| {
                bencher.iter(|| assert_eq!(pool.poll(black_box(now)), None));
            });
            // What the driver does after every event.
            group.bench_function(BenchmarkId::new("step", proxies), |bencher| {
                bencher.iter(|| {
                    assert_eq!(pool.poll(black_box(now)), None);
                    (pool.counts(now), pool.backoff_until(), pool.next_wake(now))
                });
            });
            let told = view(proxies);
            group.bench_function(BenchmarkId::new("members", proxies), |bencher| {
                bencher.iter(|| pool.members(black_box(now), Some(first), told.clone()));
            });
        }
        group.finish();
    }
}

criterion_group!(benches, steps);
criterion_main!(benches);
