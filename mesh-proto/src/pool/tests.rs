//! Single moments of a pool; `tests/pool_model.rs` has whole fleets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use super::*;
use crate::name::Generation;

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
    pool.announced(None, SECOND * 40);
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

#[test]
fn announcements_are_bounded() {
    let (mut pool, leases) = connected(None, 1, 1);
    pool.announced(None, Duration::MAX);
    pool.closed(at(10), leases[0], &mut Longest);
    assert_eq!(whom(&mut pool, at(309)), []);
    // The proxy is forgotten by now.
    assert_eq!(whom(&mut pool, at(310)), [None]);
}

#[test]
fn an_own_count_is_not_overruled() {
    let (mut own, _) = connected(Some(1), 1, 5);
    own.announced(Some(3), Duration::ZERO);
    assert_eq!(own.counts(at(0)).desired, 1);
    assert_eq!(whom(&mut own, at(0)), []);
    let (mut told, _) = connected(None, 1, 5);
    told.announced(Some(3), Duration::ZERO);
    assert_eq!(told.counts(at(0)).desired, 3);
    assert_eq!(dials(&mut told, at(0)).len(), 2);
}

/// What is told, and what becomes of it, while two proxies are known and the first is connected.
#[test]
fn what_is_told_of_a_proxy() {
    type Case = (&'static str, Option<usize>, Vec<Member>, usize);
    let with = |change: fn(&mut Member)| {
        let mut member = member(1);
        change(&mut member);
        member
    };
    // From nobody or from the proxy itself: what is told of proxy 1, and how many are then desired.
    let cases: Vec<Case> = vec![
        ("nothing", None, vec![], 2),
        ("the same", None, vec![member(1)], 2),
        ("drains", None, vec![drains(1)], 1),
        ("gone", None, vec![gone(1)], 1),
        ("gone, and back", None, vec![gone(1), member(1)], 2),
        (
            "an older start drains",
            None,
            vec![with(|it| {
                it.epoch = 0;
                it.state = MemberState::Draining;
            })],
            2,
        ),
        (
            "an older start is gone",
            None,
            vec![with(|it| {
                it.epoch = 0;
                it.state = MemberState::Gone;
            })],
            2,
        ),
        (
            "an older start was newer",
            None,
            vec![with(|it| {
                it.epoch = 0;
                it.generation = Generation(9);
            })],
            2,
        ),
        (
            "a new start is gone",
            None,
            vec![
                with(|it| {
                    it.epoch = 2;
                    it.state = MemberState::Gone;
                }),
                member(1),
            ],
            1,
        ),
        (
            "a new start of a new generation",
            None,
            vec![with(|it| {
                it.epoch = 2;
                it.generation = Generation(2);
            })],
            1,
        ),
        (
            "the same start went back",
            None,
            vec![with(|it| it.generation = Generation(0))],
            2,
        ),
        (
            "another group",
            None,
            vec![with(|it| {
                it.group = "green".parse().unwrap();
                it.epoch = 2;
            })],
            2,
        ),
        (
            "the connected one is of no generation",
            None,
            vec![Member {
                generation: Generation(0),
                ..member(0)
            }],
            2,
        ),
        (
            "the connected one says that it is old",
            Some(0),
            vec![Member {
                generation: Generation(0),
                ..member(0)
            }],
            1,
        ),
    ];
    for (what, from, view, desired) in cases {
        let (mut pool, leases) = connected(None, 1, 2);
        pool.members(at(1), from.map(|index| leases[index]), view);
        assert_eq!(pool.tracker().want(), desired, "{what}");
        assert_eq!(pool.tracker().desired().count(), desired, "{what}");
        poll(&mut pool, at(1));
    }
}

#[test]
fn its_own_word_on_draining_counts_more() {
    let (mut pool, leases) = connected(None, 2, 2);
    pool.draining(at(10), leases[1], SECOND * 30, &mut Longest);
    assert_eq!(pool.tracker().want(), 1);
    // Others have not heard yet.
    pool.members(at(10), Some(leases[0]), vec![member(0), member(1)]);
    assert_eq!(pool.tracker().want(), 1);
    // It has changed its mind.
    pool.members(at(11), Some(leases[1]), vec![member(1)]);
    assert_eq!(pool.tracker().want(), 2);
    assert_eq!(poll(&mut pool, at(20)), []);
    // A newer start of it is another matter, whoever tells.
    pool.draining(at(20), leases[1], SECOND * 30, &mut Longest);
    pool.members(
        at(21),
        Some(leases[0]),
        vec![Member {
            epoch: 2,
            ..member(1)
        }],
    );
    assert_eq!(pool.tracker().want(), 2);
    // And what its former start says now counts for nothing.
    pool.draining(at(22), leases[1], SECOND * 30, &mut Longest);
    assert_eq!(pool.tracker().want(), 2);
}

#[test]
fn a_drained_connection_goes_when_it_is_replaced() {
    let (mut pool, leases) = connected(Some(1), 1, 2);
    pool.announced(None, SECOND * 100);
    pool.draining(at(10), leases[0], SECOND * 30, &mut Longest);
    assert_eq!(poll(&mut pool, at(24)), []);
    // Half of the drain at most, however long the spread.
    let (lease, one) = dials(&mut pool, at(25))[0];
    assert_eq!(one, Some(1));
    keep(&mut pool, at(26), lease, reached(1));
    assert_eq!(poll(&mut pool, at(28)), [], "not settled yet");
    let why = LetGo::Drained;
    assert_eq!(
        poll(&mut pool, at(29)),
        [Action::LetGo {
            lease: leases[0],
            why
        }]
    );
    let counts = Counts {
        desired: 1,
        connected: 1,
        held: 2,
        ..Counts::default()
    };
    assert_eq!(pool.counts(at(29)), counts);
    // That it ends is no loss.
    pool.closed(at(30), leases[0], &mut Longest);
    assert_eq!(pool.counts(at(30)), Counts { held: 1, ..counts });
    assert_eq!(poll(&mut pool, at(30)), []);
    pool.closed(at(31), lease, &mut Longest);
    assert_eq!(whom(&mut pool, at(130)), []);
    assert_eq!(dials(&mut pool, at(131)).len(), 1, "the spread from now on");
}

/// A drain does not wait for what was to be waited for before.
#[test]
fn a_drain_is_in_a_hurry() {
    let (mut pool, leases) = connected(Some(2), 2, 4);
    pool.announced(None, SECOND * 100);
    pool.closed(at(10), leases[0], &mut Longest);
    pool.draining(at(10), leases[1], SECOND * 10, &mut Longest);
    assert_eq!(dials(&mut pool, at(14)), []);
    assert_eq!(dials(&mut pool, at(15)).len(), 2);
}

#[test]
fn a_wait_under_way_is_not_prolonged() {
    let (mut pool, leases) = connected(None, 4, 4);
    pool.announced(None, SECOND * 20);
    for (index, lease) in leases.iter().enumerate().skip(1) {
        pool.closed(at(5 * u64::try_from(index).unwrap()), *lease, &mut Longest);
    }
    assert_eq!(whom(&mut pool, at(24)), []);
    assert_eq!(whom(&mut pool, at(25)), [Some(1), Some(2), Some(3)]);
}

#[test]
fn a_newer_start_takes_over() {
    let (mut pool, leases) = connected(None, 2, 4);
    let under_way = dials(&mut pool, at(10));
    // The connection to its former start has not noticed yet.
    let again = |epoch| Reached {
        epoch,
        ..reached(1)
    };
    keep(&mut pool, at(10), under_way[0].0, again(2));
    let why = LetGo::Stale;
    let lease = leases[1];
    assert!(poll(&mut pool, at(10)).contains(&Action::LetGo { lease, why }));
    // One that is let go is not taken for the one that stands.
    let dial = dials(&mut pool, at(10)).pop().unwrap_or(under_way[1]);
    keep(&mut pool, at(11), dial.0, again(3));
    let lease = under_way[0].0;
    assert!(poll(&mut pool, at(11)).contains(&Action::LetGo { lease, why }));
    assert_eq!(pool.counts(at(11)).held, 4);
    assert_eq!(pool.tracker().claimed().count(), 2);
}

/// The old connection ends before the pool was asked: it was followed, so nothing is lost.
#[test]
fn the_end_of_a_stale_connection_is_no_loss() {
    let (mut pool, leases) = connected(None, 1, 1);
    pool.announced(None, SECOND * 100);
    pool.members(at(10), Some(leases[0]), vec![member(1)]);
    // Its turn comes within the spread.
    let (lease, _) = dials(&mut pool, at(110))[0];
    keep(
        &mut pool,
        at(110),
        lease,
        Reached {
            epoch: 2,
            ..reached(0)
        },
    );
    let before = pool.paced_until;
    pool.closed(at(110), leases[0], &mut Longest);
    assert_eq!(pool.counts(at(110)).held, 1);
    // Else nobody would be dialled for as long as the spread.
    assert_eq!(pool.paced_until, before);
    assert!(pool.tracker().is_claimed(&["proxy-0"]));
}

#[test]
fn an_older_start_never_replaces_a_newer() {
    let (mut pool, _) = connected(None, 1, 2);
    let (lease, _) = dials(&mut pool, at(0))[0];
    let older = Reached {
        epoch: 0,
        ..reached(0)
    };
    assert_eq!(
        pool.connected(at(0), lease, older, &mut Longest),
        Verdict::Duplicate
    );
    // It was to be proxy 1, which is left alone for a while.
    assert_eq!(pool.counts(at(0)).cooling, 1);
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

#[test]
fn times_to_live_are_bounded() {
    let told = |ttl| Member {
        ttl: Some(ttl),
        ..member(1)
    };
    for (ttl, until) in [
        (Duration::ZERO, Duration::ZERO),
        (SECOND * 20, SECOND * 20),
        (SECOND * 86_400 * 365 * 5, SECOND * 3600),
        (Duration::MAX, SECOND * 3600),
    ] {
        let (mut pool, _) = connected(None, 1, 1);
        pool.members(at(10), None, vec![told(ttl)]);
        let under_way = dials(&mut pool, at(10));
        assert_eq!(under_way.len(), 1);
        pool.failed(at(10), under_way[0].0, &mut Longest);
        assert!(pool.tracker().tracked().any(|name| &**name == "proxy-1"));
        let last = at(10) + until;
        pool.poll(last);
        assert!(
            pool.tracker().tracked().any(|name| &**name == "proxy-1"),
            "{ttl:?}"
        );
        pool.poll(last + Duration::from_nanos(1));
        assert!(
            !pool.tracker().tracked().any(|name| &**name == "proxy-1"),
            "{ttl:?}"
        );
    }
}

#[test]
fn members_without_addresses_are_dialled_through_the_balancer() {
    for addresses in [vec![], vec![String::new()]] {
        let (mut pool, _) = connected(None, 1, 1);
        pool.members(
            at(0),
            None,
            vec![Member {
                addresses,
                ..member(1)
            }],
        );
        assert_eq!(whom(&mut pool, at(0)), [None]);
    }
    let mut pool = Pool::new(
        "agent".parse().unwrap(),
        "example.com",
        vec![],
        None,
        Limits::default(),
    );
    assert_eq!(poll(&mut pool, at(0)), [], "nobody to dial");
}

#[test]
fn members_are_bounded() {
    let (mut pool, _) = connected(None, 1, 1);
    let max = Limits::default().members_max;
    pool.members(at(1), None, (0..max).map(member).collect());
    assert_eq!((pool.ignored_members(), pool.tracker().want()), (0, max));
    pool.members(at(1), None, vec![member(max), member(1), member(max + 1)]);
    assert_eq!((pool.ignored_members(), pool.tracker().want()), (2, max));
    let under_way = dials(&mut pool, at(1));
    assert_eq!(under_way.len(), 4);
    // One that was ignored is there all the same.
    keep(&mut pool, at(1), under_way[0].0, reached(max));
    assert_eq!(pool.ignored_members(), 3);
    // What has expired makes room.
    poll(&mut pool, at(200));
    pool.members(at(200), None, vec![member(max + 1)]);
    assert_eq!(pool.ignored_members(), 3);
}

/// Two proxies that differ about a third, over and over: no dial for each change of mind.
#[test]
fn a_flapping_view_is_not_followed_with_dials() {
    let (mut pool, _) = connected(None, 1, 2);
    let mut dialled = 0;
    for second in 0..100 {
        let elsewhere = Member {
            addresses: vec!["elsewhere:1".to_owned()],
            ..member(1)
        };
        for view in [gone(1), member(1), elsewhere, member(1)] {
            pool.members(at(second), None, vec![view]);
            for (lease, whom) in dials(&mut pool, at(second)) {
                dialled += usize::from(whom.is_some());
                pool.failed(at(second), lease, &mut Longest);
            }
        }
    }
    assert!(dialled < 12, "{dialled} dials in 100 s");
}

#[test]
fn a_restart_is_forgiven_what_failed_before() {
    let (mut pool, _) = connected(None, 1, 2);
    let (lease, _) = dials(&mut pool, at(0))[0];
    pool.failed(at(0), lease, &mut Longest);
    assert_eq!(whom(&mut pool, at(0)), [None]);
    pool.members(
        at(0),
        None,
        vec![Member {
            epoch: 2,
            ..member(1)
        }],
    );
    assert_eq!(pool.counts(at(0)).cooling, 0);
}

/// News that the whole fleet hears at once are not acted upon at once.
#[test]
fn news_are_paced() {
    let spread = SECOND * 100;
    for (what, news) in [
        ("a new proxy", member(5)),
        (
            "a restart",
            Member {
                epoch: 2,
                ..member(2)
            },
        ),
        (
            "a new generation",
            Member {
                generation: Generation(2),
                epoch: 2,
                ..member(5)
            },
        ),
    ] {
        let (mut pool, leases) = connected(None, 2, 2);
        pool.announced(None, spread);
        pool.members(at(10), Some(leases[0]), vec![news.clone()]);
        let turn = rendezvous::turn(&pool.agent, &news.name, news.epoch, spread);
        assert!(turn > SECOND);
        assert_eq!(dials(&mut pool, at(10)), [], "{what}");
        assert_eq!(dials(&mut pool, at(10) + (turn - SECOND)), [], "{what}");
        assert_eq!(dials(&mut pool, at(10) + turn).len(), 1, "{what}");
    }
    // Others tell that one is gone, or drains, before its connection says so.
    for news in [gone(0), drains(0)] {
        let (mut pool, leases) = connected(Some(2), 2, 4);
        pool.announced(None, spread);
        pool.members(at(10), Some(leases[1]), vec![news]);
        let turn = rendezvous::turn(&pool.agent, &name(0), 1, spread);
        assert_eq!(dials(&mut pool, at(10)), []);
        assert_eq!(dials(&mut pool, at(10) + turn).len(), 1);
    }
}

/// An old generation, reached by chance, is kept while there is nothing better, and not collected.
#[test]
fn undesired_proxies_are_not_collected() {
    let new = |index| Member {
        generation: Generation(2),
        addresses: vec![],
        ..member(index)
    };
    let mut pool = pool(None);
    let (lease, _) = dials(&mut pool, at(0))[0];
    keep(&mut pool, at(0), lease, reached(0));
    pool.members(
        at(0),
        Some(lease),
        vec![member(0), member(1), new(2), new(3)],
    );
    for (index, verdict) in [
        (1, Verdict::Keep),
        (4, Verdict::Duplicate),
        (5, Verdict::Duplicate),
    ] {
        let (now, lease) = next_dial(&mut pool, at(0));
        assert_eq!(
            pool.connected(now, lease, reached(index), &mut Longest),
            verdict,
            "{index}"
        );
    }
}

#[test]
fn reasons_have_names() {
    let all = [
        LetGo::Stale,
        LetGo::Drained,
        LetGo::OldGeneration,
        LetGo::Surplus,
    ];
    let names = ["stale", "drained", "old_generation", "surplus"];
    assert_eq!(all.map(LetGo::as_str), names);
}

/// The balancer may lead to a proxy that is known to drain: better than nothing, and no more.
#[test]
fn a_draining_proxy_is_better_than_nothing() {
    let told = vec![
        Member {
            addresses: vec![],
            ..drains(1)
        },
        Member {
            addresses: vec![],
            ..member(2)
        },
    ];
    let (mut pool, leases) = connected(None, 2, 2);
    pool.members(at(1), Some(leases[0]), told);
    let balanced = dials(&mut pool, at(1))[0].0;
    pool.closed(at(1), leases[1], &mut Longest);
    let again = reached(1);
    assert_eq!(
        pool.connected(at(2), balanced, again.clone(), &mut Longest),
        Verdict::Keep,
        "two are wanted and one is held"
    );
    assert_eq!(pool.tracker().want(), 2, "it is not desired");
    let balanced = next_dial(&mut pool, at(2));
    assert_eq!(
        pool.connected(balanced.0, balanced.1, again, &mut Longest),
        Verdict::Duplicate
    );
    let balanced = next_dial(&mut pool, balanced.0);
    keep(&mut pool, balanced.0, balanced.1, reached(2));
    let settled = balanced.0 + Limits::default().settle;
    let let_go = poll(&mut pool, settled);
    assert!(
        matches!(
            let_go[..],
            [Action::LetGo {
                why: LetGo::Drained,
                ..
            }]
        ),
        "{let_go:?}"
    );
}
