//! Single moments of a pool; `tests/pool_model.rs` has whole fleets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use super::*;
use crate::name::Generation;

mod let_go;
mod told;

/// Always draws the bound.
struct Longest;

impl Draw for Longest {
    fn up_to(&mut self, bound: Duration) -> Duration {
        bound
    }
}

const SECOND: Duration = Duration::from_secs(1);

fn at(seconds: u64) -> Time {
    Time::since_start(SECOND * u32::try_from(seconds).unwrap())
}

fn name(index: usize) -> NodeName {
    format!("proxy-{index}").parse().unwrap()
}

/// Alive, of the first generation and epoch, with an address.
fn member(index: usize) -> Member {
    Member {
        name: name(index),
        group: "blue".parse().unwrap(),
        generation: Generation(1),
        epoch: 1,
        addresses: vec![format!("proxy-{index}:7443")],
        state: MemberState::Alive,
        ttl: None,
    }
}

fn reached(index: usize) -> Reached {
    Reached {
        proxy: name(index),
        epoch: 1,
        group: "blue".parse().unwrap(),
        generation: Generation(1),
    }
}

fn gone(index: usize) -> Member {
    Member {
        state: MemberState::Gone,
        ..member(index)
    }
}

fn drains(index: usize) -> Member {
    Member {
        state: MemberState::Draining,
        ..member(index)
    }
}

fn pool(count: Option<u32>) -> Pool {
    let addresses = vec!["balancer:7443".to_owned()];
    Pool::new(
        "agent".parse().unwrap(),
        "example.com",
        addresses,
        count,
        Limits::default(),
    )
}

/// All that a pool wants to be done now.
fn poll(pool: &mut Pool, now: Time) -> Vec<Action> {
    let actions: Vec<Action> = std::iter::from_fn(|| pool.poll(now)).take(100).collect();
    assert!(
        actions.len() < 100,
        "no end of actions: {:?}",
        &actions[..5]
    );
    assert!(pool.next_wake(now).is_none_or(|wake| wake > now));
    actions
}

/// Who is dialled: `None` is a configured address.
fn dials(pool: &mut Pool, now: Time) -> Vec<(LeaseId, Option<usize>)> {
    let index = |proxy: NodeName| {
        proxy
            .as_str()
            .strip_prefix("proxy-")
            .unwrap()
            .parse()
            .unwrap()
    };
    let mut dials: Vec<_> = poll(pool, now)
        .into_iter()
        .map(|action| match action {
            Action::Dial {
                lease,
                whom: Whom::Configured { .. },
            } => (lease, None),
            Action::Dial {
                lease,
                whom: Whom::Directed { proxy, .. },
            } => (lease, Some(index(proxy))),
            Action::LetGo { .. } => panic!("not a dial: {action:?}"),
        })
        .collect();
    dials.sort_by_key(|(_, whom)| *whom);
    dials
}

fn whom(pool: &mut Pool, now: Time) -> Vec<Option<usize>> {
    dials(pool, now).into_iter().map(|(_, whom)| whom).collect()
}

fn keep(pool: &mut Pool, now: Time, lease: LeaseId, reached: Reached) {
    assert_eq!(
        pool.connected(now, lease, reached, &mut Longest),
        Verdict::Keep
    );
}

/// Connected to the first `held` of `known` proxies, at the start.
fn connected(count: Option<u32>, held: usize, known: usize) -> (Pool, Vec<LeaseId>) {
    let mut pool = pool(count);
    let (first, _) = dials(&mut pool, at(0))[0];
    keep(&mut pool, at(0), first, reached(0));
    let mut leases = vec![first];
    for index in 1..held {
        pool.members(at(0), Some(first), (0..=index).map(member).collect());
        let (lease, whom) = dials(&mut pool, at(0))[0];
        assert_eq!(whom, Some(index));
        keep(&mut pool, at(0), lease, reached(index));
        leases.push(lease);
    }
    pool.members(at(0), Some(first), (0..known).map(member).collect());
    (pool, leases)
}

/// When and under which lease the pool dials next, if nothing happens before.
fn next_dial(pool: &mut Pool, mut now: Time) -> (Time, LeaseId) {
    for _ in 0..100 {
        if let Some((lease, _)) = dials(pool, now).first() {
            return (now, *lease);
        }
        now = pool.next_wake(now).unwrap();
    }
    panic!("never dials again: {pool:?}");
}

#[test]
fn the_first_dial_is_the_only_one_until_the_view_has_come() {
    let mut pool = pool(None);
    assert_eq!(
        pool.counts(at(0)),
        Counts {
            desired: 1,
            ..Counts::default()
        }
    );
    let first = dials(&mut pool, at(0));
    assert_eq!(first.len(), 1);
    assert_eq!(first[0].1, None);
    assert_eq!(whom(&mut pool, at(5)), []);
    keep(&mut pool, at(5), first[0].0, reached(0));
    assert_eq!(whom(&mut pool, at(5)), [], "a speculative dial");
    let counts = Counts {
        desired: 1,
        connected: 1,
        held: 1,
        ..Counts::default()
    };
    assert_eq!(pool.counts(at(5)), counts);
    pool.members(at(5), Some(first[0].0), (0..4).map(member).collect());
    assert_eq!(whom(&mut pool, at(5)), [Some(1), Some(2), Some(3)]);
    let counts = Counts {
        desired: 4,
        dialling: 3,
        ..counts
    };
    assert_eq!(pool.counts(at(5)), counts);
}

#[test]
fn dials_under_way_are_bounded() {
    let (mut pool, _) = connected(None, 1, 20);
    let under_way = dials(&mut pool, at(0));
    assert_eq!(under_way.len(), 4);
    pool.failed(at(1), under_way[0].0, &mut Longest);
    assert_eq!(dials(&mut pool, at(1)).len(), 1);
}

/// Many proxies that cannot be reached directly leave room for the balancer.
#[test]
fn directed_failures_do_not_starve_the_balancer() {
    let (mut pool, _) = connected(None, 1, 50);
    for (lease, _) in dials(&mut pool, at(0)) {
        pool.failed(at(1), lease, &mut Longest);
    }
    let next = whom(&mut pool, at(1));
    assert_eq!(next.len(), 4);
    assert_eq!(
        next[0], None,
        "the balancer, once all that was tried has failed: {next:?}"
    );
    assert!(
        next[1..].iter().all(Option::is_some),
        "but one dial alone: {next:?}"
    );
}

#[test]
fn one_failure_cools_down_one_proxy() {
    let (mut pool, _) = connected(None, 1, 3);
    let under_way = dials(&mut pool, at(0));
    pool.failed(at(1), under_way[0].0, &mut Longest);
    keep(&mut pool, at(1), under_way[1].0, reached(2));
    // The balancer instead.
    let (balanced, none) = dials(&mut pool, at(1))[0];
    assert_eq!(none, None);
    assert_eq!(pool.counts(at(1)).cooling, 1);
    assert_eq!(
        pool.connected(at(1), balanced, reached(2), &mut Longest),
        Verdict::Duplicate
    );
    assert_eq!(whom(&mut pool, at(1)), []);
    // 250 ms after the duplicate, the balancer once more; 500 ms after its failure, the proxy.
    let wake = pool.next_wake(at(1)).unwrap();
    assert_eq!(wake, at(1) + Duration::from_millis(250));
    let (balanced, none) = dials(&mut pool, wake)[0];
    assert_eq!(none, None);
    pool.failed(wake, balanced, &mut Longest);
    let wake = pool.next_wake(wake).unwrap();
    assert_eq!(wake, at(1) + Duration::from_millis(500));
    assert_eq!(whom(&mut pool, wake), [Some(1)]);
}

/// A proxy that takes connections and ends them at once is not dialled in a loop.
#[test]
fn an_answer_is_not_yet_a_success() {
    let (mut pool, leases) = connected(None, 1, 1);
    pool.closed(at(0), leases[0], &mut Longest);
    let mut now = at(0);
    let mut dialled = 0;
    while now < at(600) {
        for (lease, whom) in dials(&mut pool, now) {
            dialled += 1;
            assert!(
                dialled < 100,
                "{dialled} dials until {now:?}, the last {whom:?}"
            );
            keep(&mut pool, now, lease, reached(0));
            pool.members(now, Some(lease), vec![member(0)]);
            pool.closed(now + Duration::from_millis(1), lease, &mut Longest);
        }
        now = pool.next_wake(now).unwrap();
    }
    assert!(dialled > 30);
}

/// Once a connection has settled, waits are short again.
#[test]
fn a_settled_connection_forgives() {
    let (mut pool, _) = connected(None, 1, 2);
    let mut now = at(0);
    for _ in 0..6 {
        for (lease, _) in dials(&mut pool, now) {
            pool.failed(now, lease, &mut Longest);
        }
        now = pool.next_wake(now).unwrap();
    }
    let now = at(30);
    let directed = dials(&mut pool, now);
    let (lease, _) = *directed
        .iter()
        .find(|(_, whom)| *whom == Some(1))
        .unwrap_or(&directed[0]);
    keep(&mut pool, now, lease, reached(1));
    assert_eq!(pool.next_wake(now), Some(at(33)));
    assert_eq!(poll(&mut pool, at(33)), []);
    pool.closed(at(40), lease, &mut Longest);
    assert_eq!(pool.counts(at(40)).cooling, 1);
    assert_eq!(
        pool.counts(at(40) + Limits::default().backoff_first)
            .cooling,
        0
    );
}

#[test]
fn a_duplicate_waits_at_least_for_the_spread() {
    let (mut pool, leases) = connected(None, 2, 2);
    pool.announced(None, None, SECOND * 40);
    pool.closed(at(100), leases[1], &mut Longest);
    assert_eq!(whom(&mut pool, at(100)), []);
    assert_eq!(whom(&mut pool, at(139)), []);
    let (directed, one) = dials(&mut pool, at(140))[0];
    assert_eq!(one, Some(1));
    pool.failed(at(141), directed, &mut Longest);
    let (balanced, none) = dials(&mut pool, at(141))[0];
    assert_eq!(none, None);
    assert_eq!(
        pool.connected(at(141), balanced, reached(0), &mut Longest),
        Verdict::Duplicate
    );
    let mut now = at(141);
    let again = loop {
        now = pool.next_wake(now).unwrap();
        if let Some((balanced, _)) = dials(&mut pool, now)
            .into_iter()
            .find(|(_, whom)| whom.is_none())
        {
            break balanced;
        }
    };
    assert_eq!(
        now,
        at(141) + SECOND * 40 + Limits::default().duplicate_first
    );
    // And after a failure while a connection stands.
    pool.failed(now, again, &mut Longest);
    assert!(pool.backoff_until() >= now + SECOND * 40);
}

/// A proxy that is back knows of few agents, and must not shorten the waits of them all.
#[test]
fn the_longest_announced_spread_counts() {
    let (mut pool, leases) = connected(None, 3, 3);
    pool.announced(Some(leases[0]), None, SECOND * 40);
    pool.announced(Some(leases[1]), None, SECOND);
    pool.closed(at(100), leases[2], &mut Longest);
    assert_eq!(whom(&mut pool, at(139)), []);
    assert_eq!(whom(&mut pool, at(140)), [Some(2)]);
    // Less, when the same proxy says so.
    let (mut pool, leases) = connected(None, 3, 3);
    pool.announced(Some(leases[0]), None, SECOND * 40);
    pool.announced(Some(leases[1]), None, SECOND);
    pool.announced(Some(leases[0]), None, SECOND * 2);
    pool.closed(at(100), leases[2], &mut Longest);
    assert_eq!(whom(&mut pool, at(101)), []);
    assert_eq!(whom(&mut pool, at(102)), [Some(2)]);
}

#[test]
fn announcements_are_bounded() {
    let (mut pool, leases) = connected(None, 1, 1);
    pool.announced(None, None, Duration::MAX);
    pool.closed(at(10), leases[0], &mut Longest);
    assert_eq!(whom(&mut pool, at(309)), []);
    // The proxy is forgotten by now.
    assert_eq!(whom(&mut pool, at(310)), [None]);
}

#[test]
fn an_own_count_is_not_overruled() {
    let (mut own, _) = connected(Some(1), 1, 5);
    own.announced(None, Some(3), Duration::ZERO);
    assert_eq!(own.counts(at(0)).desired, 1);
    assert_eq!(whom(&mut own, at(0)), []);
    let (mut told, _) = connected(None, 1, 5);
    told.announced(None, Some(3), Duration::ZERO);
    assert_eq!(told.counts(at(0)).desired, 3);
    assert_eq!(dials(&mut told, at(0)).len(), 2);
}

#[test]
fn a_wait_under_way_is_not_prolonged() {
    let (mut pool, leases) = connected(None, 4, 4);
    pool.announced(None, None, SECOND * 20);
    for (index, lease) in leases.iter().enumerate().skip(1) {
        pool.closed(at(5 * u64::try_from(index).unwrap()), *lease, &mut Longest);
    }
    assert_eq!(whom(&mut pool, at(24)), []);
    assert_eq!(whom(&mut pool, at(25)), [Some(1), Some(2), Some(3)]);
}

#[test]
fn every_lease_ends_once_whatever_the_driver_calls_it() {
    let (mut pool, leases) = connected(None, 1, 2);
    let (lease, _) = dials(&mut pool, at(0))[0];
    pool.closed(at(0), lease, &mut Longest);
    assert_eq!(
        (pool.tracker().inflight(), pool.counts(at(0)).cooling),
        (0, 1)
    );
    for _ in 0..2 {
        pool.failed(at(0), leases[0], &mut Longest);
        assert_eq!(pool.tracker().claimed().count(), 0);
    }
    pool.closed(at(0), leases[0], &mut Longest);
    pool.draining(at(0), leases[0], SECOND, &mut Longest);
    pool.rtt(leases[0], SECOND);
    for lease in [lease, leases[0]] {
        assert_eq!(
            pool.connected(at(1), lease, reached(1), &mut Longest),
            Verdict::Duplicate
        );
    }
    assert_eq!(pool.counts(at(1)).held, 0);
}

/// Whom a directed dial has reached is dialled directly again, before the balancer.
#[test]
fn a_directed_success_makes_reachable() {
    let (mut pool, _) = connected(None, 1, 2);
    pool.duplicates.wait_until(at(100));
    for _ in 0..2 {
        let (now, lease) = next_dial(&mut pool, at(0));
        pool.failed(now, lease, &mut Longest);
    }
    let (now, lease) = next_dial(&mut pool, at(10));
    keep(&mut pool, now, lease, reached(1));
    pool.closed(at(110), lease, &mut Longest);
    assert_eq!(whom(&mut pool, at(111)), [Some(1)]);
}

/// Dials through the balancer are the spread apart while a connection stands, the lucky ones too.
#[test]
fn lucky_dials_are_paced_too() {
    let (mut pool, leases) = connected(None, 1, 1);
    pool.announced(None, None, SECOND * 40);
    let hidden = |index| Member {
        addresses: vec![],
        ..member(index)
    };
    pool.members(at(0), Some(leases[0]), (1..4).map(hidden).collect());
    for index in 1..4 {
        let start = at(40 * u64::try_from(index - 1).unwrap());
        let (now, lease) = next_dial(&mut pool, at(0));
        assert_eq!(now, start);
        keep(&mut pool, now, lease, reached(index));
    }
}
