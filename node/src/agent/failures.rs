//! What goes wrong again and again, said once: so that a proxy that fails for a day does not fill
//! the log, and one that is made to fail in ever new ways does not either.

use std::collections::BTreeMap;
use std::time::Duration;

use mesh_proto::pool::Ignored;
use mesh_proto::time::Time;

/// After how many failures the log says again that something fails.
const REPEAT_WARNING: u32 = 20;

/// And after which time at the earliest.
const REPEAT_AFTER: Duration = Duration::from_secs(300);

/// How many changes of what fails are said until it has worked again. The other side may choose
/// words that never repeat.
const CHANGES_MAX: u32 = 4;

/// What fails at one time, and is remembered.
const FAILING_MAX: usize = 64;

/// What has failed last so long ago is forgotten. Waits between attempts stay below.
const FORGET_AFTER: Duration = Duration::from_secs(900);

/// What can fail about a proxy, or about an address that leads to proxies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum What {
    /// To connect to it.
    Connect,
    /// To stay connected.
    Stay,
    /// To resolve to no more addresses than are tried.
    Resolve,
    /// To tell of proxies what can be believed.
    Tell(Ignored),
}

/// How a failure is to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Telling {
    /// It is news.
    News,
    /// It has been said.
    Repeated,
    /// So much fails that this is not remembered; nor are others like it, which is to be said now.
    TooMany,
}

#[derive(Debug)]
struct Failing {
    gist: String,
    /// Since it was said last.
    times: u32,
    said: u32,
    said_last: Time,
    last: Time,
}

/// What fails now.
#[derive(Debug, Default)]
pub(super) struct Failures {
    failing: BTreeMap<(String, What), Failing>,
    is_full: bool,
}

impl Failures {
    /// Something has failed; `gist` is what stays the same as long as the cause does.
    pub(super) fn failed(&mut self, now: Time, place: &str, what: What, gist: String) -> Telling {
        let key = (place.to_owned(), what);
        if let Some(failing) = self.failing.get_mut(&key)
            && now < failing.last + FORGET_AFTER
        {
            let is_change = failing.gist != gist && failing.said < CHANGES_MAX;
            let is_due = failing.times >= REPEAT_WARNING && failing.said_last + REPEAT_AFTER <= now;
            failing.gist = gist;
            failing.last = now;
            if !is_change && !is_due {
                failing.times = failing.times.saturating_add(1);
                return Telling::Repeated;
            }
            failing.times = 1;
            failing.said = failing.said.saturating_add(1);
            failing.said_last = now;
            return Telling::News;
        }
        if self.failing.len() >= FAILING_MAX {
            self.failing
                .retain(|_, failing| failing.last + FORGET_AFTER > now);
        }
        if self.failing.len() >= FAILING_MAX && !self.failing.contains_key(&key) {
            let was_full = std::mem::replace(&mut self.is_full, true);
            return if was_full {
                Telling::Repeated
            } else {
                Telling::TooMany
            };
        }
        self.is_full = false;
        let failing = Failing {
            gist,
            times: 1,
            said: 1,
            said_last: now,
            last: now,
        };
        self.failing.insert(key, failing);
        Telling::News
    }

    /// It has worked for a while.
    pub(super) fn worked(&mut self, place: &str) {
        for what in [What::Connect, What::Stay] {
            self.failing.remove(&(place.to_owned(), what));
        }
    }

    /// One of those that are not connected, and why.
    pub(super) fn example(&self) -> Option<String> {
        let is_connecting = |what| matches!(what, What::Connect | What::Stay);
        let mut failing = self.failing.iter().rev();
        let ((place, _), failing) = failing.find(|((_, what), _)| is_connecting(*what))?;
        Some(format!("{place}: {}", failing.gist))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::since_start(Duration::from_secs(seconds))
    }

    /// How many of `count` failures are said, one every `pause` seconds.
    fn said(
        failures: &mut Failures,
        count: u64,
        pause: u64,
        gist: impl Fn(u64) -> String,
    ) -> usize {
        let is_said = |index: &u64| {
            let telling = failures.failed(at(index * pause), "a", What::Connect, gist(*index));
            telling == Telling::News
        };
        (0..count).filter(is_said).count()
    }

    #[test]
    fn a_failure_is_said_once_and_then_rarely() {
        let same = |_| "x".to_owned();
        // Every 20th; of many in a moment none; of few in a long time all.
        for (count, pause, expected) in [(101, 30, 6), (10_000, 0, 1), (5, 900, 5), (5, 899, 1)] {
            let mut failures = Failures::default();
            assert_eq!(said(&mut failures, count, pause, same), expected, "{pause}");
        }
        let mut failures = Failures::default();
        assert_eq!(said(&mut failures, 1, 0, same), 1);
        assert_eq!(said(&mut failures, 1, 0, same), 0);
        // Another kind of failure is another matter.
        let stay = failures.failed(at(0), "a", What::Stay, "y".into());
        assert_eq!(stay, Telling::News);
        assert_eq!(failures.example().as_deref(), Some("a: y"));
        failures.worked("a");
        assert_eq!(failures.example(), None);
        assert_eq!(said(&mut failures, 1, 0, same), 1);
    }

    #[test]
    fn changes_are_said_but_not_without_end() {
        let change = |index| ["x", "y", "x", "z"][usize::try_from(index).unwrap()].to_owned();
        assert_eq!(said(&mut Failures::default(), 4, 1, change), 4);
        let ever_new = |index: u64| index.to_string();
        assert_eq!(said(&mut Failures::default(), 200, 1, ever_new), 4);
        // Within 3,000 s of it.
        assert_eq!(said(&mut Failures::default(), 100, 30, ever_new), 4 + 4);
    }

    #[test]
    fn ever_new_places_are_not_said_one_by_one() {
        let mut failures = Failures::default();
        let mut tellings = BTreeMap::<_, usize>::new();
        for index in 0..10_000u64 {
            let place = format!("proxy-{index}");
            let telling = failures.failed(at(index / 100), &place, What::Connect, "x".into());
            *tellings.entry(format!("{telling:?}")).or_default() += 1;
        }
        assert_eq!(tellings["News"], FAILING_MAX);
        assert_eq!(tellings["TooMany"], 1);
        // Those that nobody tells of any more make room.
        let later = failures.failed(at(2_000), "late", What::Connect, "x".into());
        assert_eq!(later, Telling::News);
    }
}
