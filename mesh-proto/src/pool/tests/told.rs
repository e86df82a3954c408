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
        (Duration::ZERO, SECOND * 30),
        (SECOND * 29, SECOND * 30),
        (SECOND * 40, SECOND * 40),
        (SECOND * 86_400 * 365 * 5, SECOND * 3600),
        (Duration::MAX, SECOND * 3600),
    ] {
        let (mut pool, _) = connected(None, 1, 1);
        let ignored = pool.members(at(10), None, vec![told(ttl)]);
        assert_eq!(ignored.get(Ignored::Ttl), u64::from(ttl != until));
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
    let over = |pool: &mut Pool, now, view| pool.members(now, None, view).get(Ignored::OverLimit);
    assert_eq!(over(&mut pool, at(1), (0..max).map(member).collect()), 0);
    assert_eq!(pool.tracker().want(), max);
    let view = vec![member(max), member(1), member(max + 1)];
    assert_eq!(over(&mut pool, at(1), view), 2);
    assert_eq!(pool.tracker().want(), max);
    let under_way = dials(&mut pool, at(1));
    assert_eq!(under_way.len(), 4);
    // One that was ignored is there all the same.
    keep(&mut pool, at(1), under_way[0].0, reached(max));
    assert_eq!(pool.tracker().want(), max + 1);
    assert_eq!(over(&mut pool, at(1), vec![member(max)]), 0);
    // What has expired makes room.
    poll(&mut pool, at(200));
    assert_eq!(over(&mut pool, at(200), vec![member(max + 1)]), 0);
}

/// What is ignored of a view is counted, each for its reason.
#[test]
fn what_is_ignored_is_counted() {
    let with = |change: fn(&mut Member)| {
        let mut member = member(1);
        change(&mut member);
        member
    };
    let older = |it: &mut Member| it.epoch = 0;
    let back = |it: &mut Member| it.generation = Generation(0);
    let garbage = |it: &mut Member| {
        it.addresses = ["0.0.0.0:1", "", "proxy-1:7443", "224.0.0.1:1", "a:0"]
            .map(str::to_owned)
            .to_vec();
    };
    for (what, view, expected) in [
        ("nothing odd", vec![member(0), member(1)], vec![]),
        ("itself missing", vec![member(1)], vec![]),
        (
            "a duplicate",
            vec![member(1), member(2), member(1), member(1)],
            vec![(Ignored::Duplicate, 2)],
        ),
        (
            "an older start",
            vec![with(older)],
            vec![(Ignored::Stale, 1)],
        ),
        (
            "the same start",
            vec![with(back)],
            vec![(Ignored::Stale, 1)],
        ),
        (
            "addresses",
            vec![with(garbage)],
            vec![(Ignored::Address, 4)],
        ),
        (
            "its own generation",
            vec![Member {
                generation: Generation(0),
                ..member(0)
            }],
            vec![(Ignored::Stale, 1)],
        ),
    ] {
        let (mut pool, leases) = connected(None, 1, 2);
        let ignored = pool.members(at(1), Some(leases[0]), view);
        assert_eq!(ignored.iter().collect::<Vec<_>>(), expected, "{what}");
    }
    let (mut pool, _) = connected(None, 1, 1);
    pool.members(at(1), None, vec![with(garbage)]);
    let known = &pool.members[&name(1)];
    assert_eq!(known.addresses, ["proxy-1:7443"]);
}

/// Restarts that somebody tells of, one after the other, are not followed with a dial each.
#[test]
fn restarts_without_end_are_not_followed_with_dials() {
    let (mut pool, _) = connected(None, 1, 2);
    let mut dialled = 0;
    for epoch in 2..1_000 {
        let now = at(0) + Duration::from_millis(100) * u32::try_from(epoch).unwrap();
        let restarted = Member { epoch, ..member(1) };
        pool.members(now, None, vec![restarted]);
        for (lease, whom) in dials(&mut pool, now) {
            dialled += usize::from(whom.is_some());
            pool.failed(now, lease, &mut Longest);
        }
    }
    // In 100 s, it is forgiven four times, and each time the waits begin with 500 ms.
    assert!((8..=28).contains(&dialled), "{dialled} dials");
}

/// A proxy that is told of with no time to live is dialled no more often than another.
#[test]
fn no_time_to_live_is_no_way_around_the_waits() {
    let (mut pool, _) = connected(None, 1, 1);
    let mut dialled = 0;
    for step in 0..3_000 {
        let now = at(0) + Duration::from_millis(100) * step;
        let brief = Member {
            ttl: Some(Duration::ZERO),
            ..member(1)
        };
        pool.members(now, None, vec![brief]);
        for (lease, whom) in dials(&mut pool, now) {
            dialled += usize::from(whom.is_some());
            pool.failed(now, lease, &mut Longest);
        }
    }
    assert!((5..25).contains(&dialled), "{dialled} dials in 300 s");
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
