//! Rules one by one; the whole is held against a model in `tests/routes_model.rs`.

use super::*;
use crate::wire::{Ext, RoutesApplied, RoutesDelta, RoutesFrame, RoutesRows, RoutesSnapshot};

mod hostile;

fn name<T: std::str::FromStr<Err = crate::name::InvalidName>>(text: &str) -> T {
    text.parse().unwrap()
}

/// `a1/1`: that agent, an instance of that number throughout.
fn row(text: &str) -> Row {
    let (agent, instance) = text.split_once('/').unwrap();
    Row {
        agent: name(agent),
        instance: [instance.parse().unwrap(); 16],
    }
}

fn rows(text: &str) -> Vec<Row> {
    text.split_whitespace().map(row).collect()
}

fn snapshot(epoch: u64, sequence: u64, count: u64) -> RoutesFrame {
    RoutesFrame::Snapshot(RoutesSnapshot {
        epoch,
        sequence,
        count,
        ext: Ext::new(),
    })
}

fn chunk(text: &str, last: bool) -> RoutesFrame {
    RoutesFrame::Rows(RoutesRows {
        rows: rows(text),
        last,
        ext: Ext::new(),
    })
}

fn delta(epoch: u64, from: u64, to: u64, added: &str, removed: &str) -> RoutesFrame {
    RoutesFrame::Delta(RoutesDelta {
        epoch,
        from,
        to,
        added: rows(added),
        removed: rows(removed),
        ext: Ext::new(),
    })
}

fn applied(epoch: u64, sequence: u64) -> RoutesApplied {
    RoutesApplied {
        epoch,
        sequence,
        ext: Ext::new(),
    }
}

fn add(own: &mut OwnRoutes, text: &str) -> u64 {
    let Row { agent, instance } = row(text);
    own.add(agent, instance)
}

fn remove(own: &mut OwnRoutes, text: &str) -> u64 {
    let Row { agent, instance } = row(text);
    own.remove(&agent, &instance)
}

fn told(own: &OwnRoutes, cursor: &mut Cursor) -> Vec<RoutesFrame> {
    std::iter::from_fn(|| own.next_for(cursor)).collect()
}

fn at(epoch: u64, sequence: u64) -> Option<RoutesPosition> {
    Some(RoutesPosition { epoch, sequence })
}

/// All rows, as `owner:agent/instance`.
fn seen(copies: &PeerRoutes) -> String {
    let mut seen: Vec<String> = copies
        .agents(None, usize::MAX)
        .flat_map(|agent| {
            copies
                .instances(agent)
                .map(move |(owner, instance)| format!("{owner}:{agent}/{}", instance[0]))
        })
        .collect();
    seen.sort();
    seen.join(" ")
}

#[test]
fn sessions_of_one_instance_count_once() {
    let mut own = OwnRoutes::new(1, &Limits::default());
    assert_eq!(add(&mut own, "a1/1"), 1);
    assert_eq!(add(&mut own, "a1/1"), 1);
    assert_eq!(add(&mut own, "a1/2"), 2);
    assert_eq!(remove(&mut own, "a1/1"), 2);
    assert!(own.holds(&name("a1")));
    assert_eq!(remove(&mut own, "a1/1"), 3);
    assert_eq!(remove(&mut own, "a1/1"), 3, "there is none any more");
    assert!(own.holds(&name("a1")));
    assert_eq!(remove(&mut own, "a1/2"), 4);
    assert!(!own.holds(&name("a1")));
    let head = own.head();
    assert_eq!((head.epoch, head.sequence, head.count), (1, 4, 0));
}

#[test]
fn an_agent_is_not_held_for_a_longer_name() {
    let mut own = OwnRoutes::new(1, &Limits::default());
    add(&mut own, "a10/0");
    assert!(!own.holds(&name("a1")));
    assert!(own.holds(&name("a10")));
}

#[test]
fn a_reader_is_told_a_snapshot_and_then_deltas() {
    let mut own = OwnRoutes::new(4, &Limits::default());
    add(&mut own, "b2/1");
    add(&mut own, "a1/1");
    let mut cursor = own.cursor(None);
    assert_eq!(
        told(&own, &mut cursor),
        [snapshot(4, 2, 2), chunk("a1/1 b2/1", true)]
    );
    add(&mut own, "c3/1");
    remove(&mut own, "a1/1");
    assert_eq!(told(&own, &mut cursor), [delta(4, 2, 4, "c3/1", "a1/1")]);
    assert_eq!(told(&own, &mut cursor), []);
}

#[test]
fn no_rows_are_a_snapshot_too() {
    let own = OwnRoutes::new(4, &Limits::default());
    assert_eq!(
        told(&own, &mut own.cursor(None)),
        [snapshot(4, 0, 0), chunk("", true)]
    );
}

#[test]
fn what_came_and_went_costs_an_empty_delta() {
    let mut own = OwnRoutes::new(1, &Limits::default());
    let mut cursor = own.cursor(None);
    told(&own, &mut cursor);
    for _ in 0..10_000 {
        add(&mut own, "a1/1");
        remove(&mut own, "a1/1");
    }
    assert_eq!(told(&own, &mut cursor), [delta(1, 0, 20_000, "", "")]);
}

#[test]
fn what_a_reader_has_is_believed_if_the_log_reaches_it() {
    let limits = Limits {
        log_rows_max: 2,
        ..Limits::default()
    };
    let mut own = OwnRoutes::new(3, &limits);
    for text in ["a1/1", "b2/1", "c3/1"] {
        add(&mut own, text);
    }
    let everything = [snapshot(3, 3, 3), chunk("a1/1 b2/1 c3/1", true)];
    for (have, frames) in [
        (None, &everything[..]),
        (at(3, 3), &[]),
        (at(3, 2), &[delta(3, 2, 3, "c3/1", "")]),
        (at(3, 1), &[delta(3, 1, 3, "b2/1 c3/1", "")]),
        (at(3, 0), &everything),
        // Of another life, of a state that has not been, or nonsense.
        (at(2, 2), &everything),
        (at(4, 2), &everything),
        (at(3, 4), &everything),
        (at(3, u64::MAX), &everything),
    ] {
        let mut cursor = own.cursor(have);
        assert_eq!(told(&own, &mut cursor), frames, "{have:?}");
        assert_eq!(cursor.has_applied(1), frames != everything, "{have:?}");
    }
}

#[test]
fn a_snapshot_is_one_state_whatever_changes_meanwhile() {
    let limits = Limits {
        frame_bytes_max: 0,
        ..Limits::default()
    };
    let mut own = OwnRoutes::new(1, &limits);
    // One such row fits a frame of the least size.
    let agents = ["b", "d", "f"].map(|letter| format!("{}/1", letter.repeat(60)));
    for text in &agents {
        add(&mut own, text);
    }
    let mut cursor = own.cursor(None);
    assert_eq!(own.next_for(&mut cursor), Some(snapshot(1, 3, 3)));
    assert_eq!(own.next_for(&mut cursor), Some(chunk(&agents[0], false)));
    // Behind what was told, before it, one that was and is not, one that was not.
    remove(&mut own, &agents[0]);
    remove(&mut own, &agents[1]);
    add(&mut own, "a/1");
    add(&mut own, "c/1");
    add(&mut own, "z/1");
    remove(&mut own, "z/1");
    remove(&mut own, &agents[2]);
    add(&mut own, &agents[2]);
    assert_eq!(own.next_for(&mut cursor), Some(chunk(&agents[1], false)));
    assert_eq!(own.next_for(&mut cursor), Some(chunk(&agents[2], true)));
    // A frame has room for one row of 60 bytes, or for both short ones.
    assert_eq!(
        told(&own, &mut cursor),
        [
            delta(1, 3, 4, "", &agents[0]),
            delta(1, 4, 5, "", &agents[1]),
            delta(1, 5, 9, "a/1 c/1", ""),
            delta(1, 9, 11, "", ""),
        ]
    );
    let mut copies = PeerRoutes::new(limits);
    let owner = name("p1");
    let mut cursor = own.cursor(None);
    for frame in told(&own, &mut cursor) {
        copies.apply(&owner, frame).unwrap();
    }
    assert_eq!(copies.have(&owner), Some(own.head()));
}

#[test]
fn a_reader_that_the_log_has_left_behind_begins_anew() {
    let limits = Limits {
        log_rows_max: 3,
        frame_bytes_max: 0,
        ..Limits::default()
    };
    let mut own = OwnRoutes::new(1, &limits);
    for n in 1..=9 {
        add(&mut own, &format!("a{n}/1"));
    }
    let mut cursor = own.cursor(None);
    assert_eq!(own.next_for(&mut cursor), Some(snapshot(1, 9, 9)));
    assert!(matches!(own.next_for(&mut cursor), Some(RoutesFrame::Rows(rows)) if !rows.last));
    for _ in 0..2 {
        remove(&mut own, "a9/1");
        add(&mut own, "a9/1");
    }
    assert_eq!(own.next_for(&mut cursor), Some(snapshot(1, 13, 9)));
    told(&own, &mut cursor);
    for _ in 0..2 {
        remove(&mut own, "a9/1");
        add(&mut own, "a9/1");
    }
    assert_eq!(own.next_for(&mut cursor), Some(snapshot(1, 17, 9)));
}

#[test]
fn acknowledgements_count_for_what_was_told() {
    let mut own = OwnRoutes::new(2, &Limits::default());
    let sequence = add(&mut own, "a1/1");
    let mut cursor = own.cursor(None);
    let error = cursor.applied(&applied(2, 0)).unwrap_err().to_string();
    assert_eq!(
        error,
        "the reader acknowledges epoch 2, sequence 0, and was told no complete state yet"
    );
    own.next_for(&mut cursor);
    assert!(cursor.applied(&applied(2, 1)).is_err(), "a part was told");
    own.next_for(&mut cursor);
    for wrong in [applied(2, 2), applied(1, 1), applied(3, 1)] {
        let error = cursor.applied(&wrong).unwrap_err().to_string();
        assert!(
            error.ends_with("was told up to epoch 2, sequence 1"),
            "{error}"
        );
    }
    assert!(!cursor.has_applied(sequence));
    cursor.applied(&applied(2, 1)).unwrap();
    assert!(cursor.has_applied(sequence));
    // An older one takes nothing back.
    cursor.applied(&applied(2, 0)).unwrap();
    assert!(cursor.has_applied(sequence));
    assert!(!cursor.has_applied(sequence + 1));
}

#[test]
fn heads_show_who_is_behind() {
    let mut copies = PeerRoutes::new(Limits::default());
    let owner = name("p1");
    let head = |epoch, sequence, count| Head {
        epoch,
        sequence,
        count,
    };
    assert!(copies.is_behind(&owner, head(1, 0, 0)), "nothing is known");
    copies.apply(&owner, snapshot(2, 5, 1)).unwrap();
    assert!(copies.is_behind(&owner, head(2, 5, 1)), "not complete");
    assert!(!copies.is_behind(&owner, head(1, 9, 9)), "of a former life");
    copies.apply(&owner, chunk("a1/1", true)).unwrap();
    for (heard, behind) in [
        (head(2, 5, 1), false),
        (head(2, 6, 1), true),
        (head(3, 0, 0), true),
        (head(2, 5, 2), true),
        (head(2, 5, 0), true),
        // Gossip is older than the stream.
        (head(2, 4, 7), false),
        (head(1, 9, 9), false),
    ] {
        assert_eq!(copies.is_behind(&owner, heard), behind, "{heard:?}");
    }
}

#[test]
fn numbers_of_forgotten_owners_are_used_again() {
    let mut copies = PeerRoutes::new(Limits {
        owners_max: 2,
        ..Limits::default()
    });
    for text in ["p1", "p2"] {
        copies.apply(&name(text), snapshot(1, 1, 1)).unwrap();
        copies.apply(&name(text), chunk("a1/1", true)).unwrap();
    }
    assert_eq!(seen(&copies), "p1:a1/1 p2:a1/1");
    let full = RoutesError::TooManyOwners { owners_max: 2 };
    assert_eq!(copies.apply(&name("p3"), snapshot(1, 1, 0)), Err(full));
    copies.forget(&name("p3"));
    copies.forget(&name("p1"));
    assert_eq!(seen(&copies), "p2:a1/1");
    assert_eq!(copies.have(&name("p1")), None);
    copies.apply(&name("p3"), snapshot(1, 1, 1)).unwrap();
    copies.apply(&name("p3"), chunk("b2/1", true)).unwrap();
    assert_eq!(seen(&copies), "p2:a1/1 p3:b2/1");
    let owners: Vec<_> = copies
        .owners()
        .map(|(owner, rows, _)| (owner.as_str(), rows))
        .collect();
    assert_eq!(owners, [("p2", 1), ("p3", 1)]);
}

#[test]
fn lists_are_in_order_and_bounded() {
    let mut copies = PeerRoutes::new(Limits::default());
    copies.apply(&name("p1"), snapshot(1, 1, 4)).unwrap();
    let frame = chunk("a1/1 a1/2 a2/1 b1/1", true);
    copies.apply(&name("p1"), frame).unwrap();
    let page = |after: Option<&str>, agents_max| {
        let after = after.map(name);
        let page: Vec<_> = copies
            .agents(after.as_ref(), agents_max)
            .map(ToString::to_string)
            .collect();
        page.join(" ")
    };
    assert_eq!(page(None, 2), "a1 a2");
    assert_eq!(page(Some("a2"), 2), "b1");
    assert_eq!(page(Some("a11"), 9), "a2 b1");
    assert_eq!(page(None, 0), "");
    assert_eq!((copies.len(), copies.agents_len()), (4, 3));
    assert_eq!(
        copies.holders(&name("a1")).count(),
        1,
        "one owner of two instances"
    );
    assert_eq!(copies.instances(&name("a1")).count(), 2);
    assert_eq!(copies.holders(&name("c1")).count(), 0);
}
