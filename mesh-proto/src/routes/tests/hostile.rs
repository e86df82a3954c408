//! Frames that no owner should send, by table: each has its error, and what is left afterwards.

use super::*;

const OWNER: &str = "p1";

fn copies() -> PeerRoutes {
    let mut copies = PeerRoutes::new(Limits {
        owners_max: 2,
        rows_per_owner_max: 4,
        rows_max: 6,
        ..Limits::default()
    });
    // Three of the six rows are another owner's.
    let other = name("other");
    copies.apply(&other, snapshot(1, 1, 3)).unwrap();
    let frame = chunk("a1/1 b1/1 m1/1", true);
    copies.apply(&other, frame).unwrap();
    copies
}

const OTHER: &str = "other:a1/1 other:b1/1 other:m1/1";

struct Case {
    what: &'static str,
    before: Vec<RoutesFrame>,
    hostile: RoutesFrame,
    error: RoutesError,
    /// The owner's rows afterwards, and the state of its copy if it is complete.
    rows: &'static str,
    have: Option<RoutesPosition>,
}

fn complete(text: &'static str) -> Vec<RoutesFrame> {
    let count = rows(text).len() as u64;
    vec![snapshot(2, 5, count), chunk(text, true)]
}

fn gap(have: Option<RoutesPosition>, epoch: u64, sequence: u64) -> RoutesError {
    let from = RoutesPosition { epoch, sequence };
    RoutesError::Gap { have, from }
}

fn order(agent: &str) -> RoutesError {
    RoutesError::Order { agent: name(agent) }
}

#[rustfmt::skip]
fn cases() -> Vec<Case> {
    let count = |announced, came| RoutesError::Count { announced, came };
    let of_owner = |rows| RoutesError::TooManyOfOwner { rows, rows_per_owner_max: 4 };
    let too_many = RoutesError::TooMany { rows_max: 6 };
    let reading = |count, text| vec![snapshot(2, 5, count), chunk(text, false)];
    let case = |what, before, hostile, error, rows, have| Case { what, before, hostile, error, rows, have };
    vec![
        // Out of turn.
        case("rows of a stranger", vec![], chunk("a1/1", true), RoutesError::NoSnapshot, "", None),
        case("a delta of a stranger", vec![], delta(1, 0, 1, "a1/1", ""), gap(None, 1, 0), "", None),
        case("rows after the last", complete("a1/1"), chunk("b1/1", true), RoutesError::NoSnapshot, "a1/1", at(2, 5)),
        case("a delta inside a snapshot", reading(2, "a1/1"), delta(2, 5, 6, "b1/1", ""), gap(None, 2, 5), "a1/1", None),
        case("a delta that skips", complete("a1/1"), delta(2, 6, 7, "b1/1", ""), gap(at(2, 5), 2, 6), "a1/1", at(2, 5)),
        case("a delta that was", complete("a1/1"), delta(2, 4, 5, "b1/1", ""), gap(at(2, 5), 2, 4), "a1/1", at(2, 5)),
        case("a delta of a later epoch", complete("a1/1"), delta(3, 5, 6, "b1/1", ""), gap(at(2, 5), 3, 5), "a1/1", at(2, 5)),
        case("a delta of an earlier epoch", complete("a1/1"), delta(1, 5, 6, "b1/1", ""), RoutesError::OldEpoch { known: 2, came: 1 }, "a1/1", at(2, 5)),
        case("a snapshot of an earlier epoch", complete("a1/1"), snapshot(1, 9, 0), RoutesError::OldEpoch { known: 2, came: 1 }, "a1/1", at(2, 5)),
        case("the same inside a snapshot", reading(2, "a1/1"), snapshot(1, 9, 0), RoutesError::OldEpoch { known: 2, came: 1 }, "a1/1", None),
        // Deltas that make no sense.
        case("backwards", complete("a1/1"), delta(2, 5, 4, "", ""), RoutesError::NotForward { from: 5, to: 4 }, "a1/1", at(2, 5)),
        case("to where it is", complete("a1/1"), delta(2, 5, 5, "b1/1", ""), RoutesError::NotForward { from: 5, to: 5 }, "a1/1", at(2, 5)),
        case("adds twice", complete("a1/1"), delta(2, 5, 6, "b1/1 b1/1", ""), order("b1"), "a1/1", at(2, 5)),
        case("adds backwards", complete("a1/1"), delta(2, 5, 6, "c1/1 b1/1", ""), order("b1"), "a1/1", at(2, 5)),
        case("removes twice", complete("a1/1"), delta(2, 5, 6, "", "a1/1 a1/1"), order("a1"), "a1/1", at(2, 5)),
        case("instances backwards", complete("a1/1"), delta(2, 5, 6, "b1/2 b1/1", ""), order("b1"), "a1/1", at(2, 5)),
        case("adds what is there", complete("a1/1"), delta(2, 5, 6, "a1/1", ""), RoutesError::RowHeld { agent: name("a1") }, "a1/1", None),
        case("adds and removes it", complete("a1/1"), delta(2, 5, 6, "a1/1", "a1/1"), RoutesError::RowHeld { agent: name("a1") }, "a1/1", None),
        case("removes the unknown", complete("a1/1"), delta(2, 5, 6, "c1/1", "a1/2"), RoutesError::RowUnknown { agent: name("a1") }, "a1/1", None),
        case("adds and removes the unknown", complete("a1/1"), delta(2, 5, 6, "c1/1", "c1/1"), RoutesError::RowUnknown { agent: name("c1") }, "a1/1", None),
        case("removes another's row", complete("a1/1"), delta(2, 5, 6, "", "m1/1"), RoutesError::RowUnknown { agent: name("m1") }, "a1/1", None),
        case("too many of one owner", complete("a1/1 b1/1 c1/1"), delta(2, 5, 6, "d1/1 e1/1 f1/1", "a1/1"), of_owner(5), "a1/1 b1/1 c1/1", at(2, 5)),
        case("too many altogether", complete("a1/1 b1/1 c1/1"), delta(2, 5, 6, "d1/1", ""), too_many.clone(), "a1/1 b1/1 c1/1", at(2, 5)),
        // Snapshots that do not keep what they announce.
        case("announces too many", complete("a1/1"), snapshot(2, 6, 5), of_owner(5), "a1/1", at(2, 5)),
        case("announces all there can be", vec![], snapshot(1, 0, u64::MAX), of_owner(u64::MAX), "", None),
        case("has more than announced", complete("z1/1").into_iter().chain(reading(1, "")).collect(), chunk("a1/1 b1/1", false), count(1, 2), "z1/1", None),
        case("has less than announced", complete("z1/1").into_iter().chain(reading(2, "")).collect(), chunk("a1/1", true), count(2, 1), "z1/1", None),
        case("ends with nothing", complete("z1/1").into_iter().chain(reading(2, "a1/1")).collect(), chunk("", true), count(2, 1), "a1/1 z1/1", None),
        case("rows twice", reading(3, "a1/1"), chunk("a1/1 b1/1", true), order("a1"), "a1/1", None),
        case("rows twice in one frame", reading(3, "a1/1"), chunk("b1/1 b1/1", true), order("b1"), "a1/1", None),
        case("rows backwards", reading(3, "b1/1"), chunk("a1/1 c1/1", true), order("a1"), "b1/1", None),
        case("too many with all others", vec![snapshot(2, 5, 4)], chunk("a1/1 b1/1 c1/1 d1/1", true), too_many, "a1/1 b1/1 c1/1", None),
    ]
}

#[test]
fn hostile_frames_have_their_errors_and_do_no_harm() {
    let owner = name(OWNER);
    for case in cases() {
        let what = case.what;
        let mut copies = copies();
        for frame in case.before {
            copies.apply(&owner, frame).unwrap();
        }
        assert_eq!(
            copies.apply(&owner, case.hostile),
            Err(case.error),
            "{what}"
        );
        let mut expected: Vec<String> = case
            .rows
            .split_whitespace()
            .map(|row| format!("{OWNER}:{row}"))
            .collect();
        expected.insert(0, OTHER.to_owned());
        assert_eq!(seen(&copies), expected.join(" "), "{what}");
        assert_eq!(copies.have(&owner).map(Head::position), case.have, "{what}");
        assert_eq!(copies.len(), 3 + expected.len() - 1, "{what}");

        // An honest life of the owner puts everything right.
        copies.apply(&owner, snapshot(9, 1, 1)).unwrap();
        let result = copies.apply(&owner, chunk("c1/1", true));
        assert_eq!(result, Ok(Some(applied(9, 1))), "{what}");
        assert_eq!(seen(&copies), format!("{OTHER} {OWNER}:c1/1"), "{what}");
    }
}

#[test]
fn strangers_leave_nothing_behind() {
    let mut copies = PeerRoutes::new(Limits::default());
    for n in 0..10_000 {
        let stranger = name(&format!("p{n}"));
        assert!(copies.apply(&stranger, chunk("a1/1", true)).is_err());
        assert!(copies.apply(&stranger, delta(1, 0, 1, "a1/1", "")).is_err());
        assert!(copies.apply(&stranger, snapshot(1, 0, u64::MAX)).is_err());
    }
    assert_eq!(copies.owners().count(), 0);
    assert!(copies.is_empty());
}

#[test]
fn chunks_of_nothing_are_tolerated() {
    let mut copies = copies();
    let owner = name(OWNER);
    copies.apply(&owner, snapshot(1, 1, 1)).unwrap();
    for _ in 0..100 {
        assert_eq!(copies.apply(&owner, chunk("", false)), Ok(None));
    }
    assert_eq!(
        copies.apply(&owner, chunk("a1/1", true)),
        Ok(Some(applied(1, 1)))
    );
    assert_eq!(seen(&copies), format!("{OTHER} {OWNER}:a1/1"));
}
