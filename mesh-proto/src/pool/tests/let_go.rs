//! What follows what: drains, newer starts, old generations.

use super::*;

#[test]
fn a_drained_connection_goes_when_it_is_replaced() {
    let (mut pool, leases) = connected(Some(1), 1, 2);
    pool.announced(None, None, SECOND * 100);
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
    pool.announced(None, None, SECOND * 100);
    pool.closed(at(10), leases[0], &mut Longest);
    pool.draining(at(10), leases[1], SECOND * 10, &mut Longest);
    assert_eq!(dials(&mut pool, at(14)), []);
    assert_eq!(dials(&mut pool, at(15)).len(), 2);
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
    pool.announced(None, None, SECOND * 100);
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
    let mut before = at(0);
    for (index, verdict) in [
        (1, Verdict::Keep),
        (4, Verdict::Duplicate),
        (5, Verdict::Duplicate),
    ] {
        let (now, lease) = next_dial(&mut pool, before);
        assert!(now > before || index == 1, "at once after {index}");
        before = now;
        assert_eq!(
            pool.connected(now, lease, reached(index), &mut Longest),
            verdict,
            "{index}"
        );
    }
}

/// What was lost in the midst of a rollout is replaced before the last old one goes.
#[test]
fn the_new_generation_takes_over_when_there_are_enough_of_it() {
    let new = |index| Member {
        generation: Generation(2),
        ..member(index)
    };
    let (mut pool, leases) = connected(Some(2), 2, 2);
    pool.closed(at(10), leases[1], &mut Longest);
    pool.members(at(10), Some(leases[0]), vec![new(2), new(3)]);
    let new_dials = dials(&mut pool, at(10));
    assert_eq!(new_dials.len(), 2);
    let reached = |index| Reached {
        generation: Generation(2),
        ..reached(index)
    };
    keep(&mut pool, at(10), new_dials[0].0, reached(2));
    assert_eq!(poll(&mut pool, at(19)), [], "one is too few");
    keep(&mut pool, at(20), new_dials[1].0, reached(3));
    assert_eq!(poll(&mut pool, at(20)), [], "it has not settled");
    let let_go = Action::LetGo {
        lease: leases[0],
        why: LetGo::OldGeneration,
    };
    assert_eq!(poll(&mut pool, at(23)), [let_go]);
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
