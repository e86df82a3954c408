//! What is told of proxies, and what becomes of it.

use super::*;

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
fn times_to_live_are_bounded() {
    let told = |ttl| Member {
        ttl: Some(ttl),
        ..member(1)
    };
    for (ttl, until) in [
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
        pool.announced(None, None, spread);
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
        pool.announced(None, None, spread);
        pool.members(at(10), Some(leases[1]), vec![news]);
        let turn = rendezvous::turn(&pool.agent, &name(0), 1, spread);
        assert_eq!(dials(&mut pool, at(10)), []);
        assert_eq!(dials(&mut pool, at(10) + turn).len(), 1);
    }
}

#[test]
fn who_answers_is_not_gone() {
    let (mut pool, leases) = connected(None, 1, 2);
    let directed = dials(&mut pool, at(0))[0].0;
    pool.members(at(0), Some(leases[0]), vec![gone(1)]);
    assert_eq!(pool.tracker().want(), 1);
    keep(&mut pool, at(1), directed, reached(1));
    assert_eq!(pool.tracker().want(), 2);
    assert_eq!(poll(&mut pool, at(10)), []);
}
