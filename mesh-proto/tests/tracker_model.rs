//! The lease tracker against a naive model that restates the rules one by one, over random
//! operations, and its invariants.

use std::time::Duration;

use mesh_proto::time::Time;
use mesh_proto::tracker::{LeaseId, Sighting, Tracker};
use proptest::prelude::*;

const TTL: Duration = Duration::from_secs(180);

#[derive(Debug, Clone)]
enum Op {
    Count(u32),
    Track(Vec<(usize, usize, u64, Option<u64>)>),
    Advance(u64),
    Acquire,
    Claim(usize, usize, bool),
    Release(usize),
    Retire(usize),
}

/// Names share prefixes and suffixes with each other and with the cluster.
const NAMES: [&str; 6] = ["a", "b", "c", "a.test", "test", "d"];
const GROUPS: [&str; 2] = ["", "blue"];

fn op() -> impl Strategy<Value = Op> {
    let entry = (
        0..NAMES.len(),
        0..GROUPS.len(),
        0..3u64,
        proptest::option::of(0..200_000u64),
    );
    prop_oneof![
        1 => (0..4u32).prop_map(Op::Count),
        3 => proptest::collection::vec(entry, 0..4).prop_map(Op::Track),
        1 => prop_oneof![Just(0), Just(1), 0..200_000u64].prop_map(Op::Advance),
        6 => Just(Op::Acquire),
        5 => (0..40usize, 0..NAMES.len(), any::<bool>())
            .prop_map(|(lease, name, suffixed)| Op::Claim(lease, name, suffixed)),
        3 => (0..40usize).prop_map(Op::Release),
        1 => (0..NAMES.len()).prop_map(Op::Retire),
    ]
}

/// The rules, as they are written and with no thought of speed.
#[derive(Debug, Default)]
struct Model {
    count: u32,
    /// Name, group, generation, expiry.
    tracked: Vec<(String, String, u64, Time)>,
    /// Of each lease: whether it lives, and what it has claimed.
    leases: Vec<(bool, Option<String>)>,
}

impl Model {
    fn claimed(&self) -> Vec<&String> {
        self.leases
            .iter()
            .filter(|(lives, _)| *lives)
            .filter_map(|(_, name)| name.as_ref())
            .collect()
    }

    fn inflight(&self) -> usize {
        self.leases
            .iter()
            .filter(|(lives, name)| *lives && name.is_none())
            .count()
    }

    fn desired(&self) -> Vec<&String> {
        let mut desired = Vec::new();
        for (name, group, generation, _) in &self.tracked {
            let newer = self
                .tracked
                .iter()
                .any(|(_, other, newer, _)| other == group && newer > generation);
            if !newer {
                desired.push(name);
            }
        }
        desired
    }

    fn want(&self) -> usize {
        let desired = self.desired().len();
        if self.count == 0 {
            desired
        } else {
            desired.min(self.count as usize)
        }
    }

    fn held(&self) -> usize {
        let claimed = self.claimed();
        self.desired()
            .iter()
            .filter(|name| claimed.contains(name))
            .count()
    }

    fn acquire(&mut self, now: Time) -> bool {
        self.tracked.retain(|(_, _, _, expiry)| *expiry >= now);
        let first = self.inflight() == 0 && (self.claimed().is_empty() || self.tracked.is_empty());
        let granted = first || self.want() > self.held() + self.inflight();
        if granted {
            self.leases.push((true, None));
        }
        granted
    }

    fn resolve(&self, principal: &str) -> String {
        let known = self.tracked.iter().any(|(name, ..)| name == principal)
            || self.claimed().iter().any(|name| *name == principal);
        if known {
            principal.to_owned()
        } else {
            principal
                .strip_suffix(".test")
                .unwrap_or(principal)
                .to_owned()
        }
    }

    fn claim(&mut self, lease: usize, principal: &str) -> bool {
        let name = self.resolve(principal);
        let free = !name.is_empty() && !self.claimed().contains(&&name);
        match self.leases.get_mut(lease) {
            Some((true, held @ None)) if free => {
                *held = Some(name);
                true
            }
            _ => false,
        }
    }
}

fn run(ops: Vec<Op>) -> Result<(), TestCaseError> {
    let mut tracker = Tracker::new("test", TTL);
    let mut model = Model::default();
    let mut leases: Vec<LeaseId> = Vec::new();
    let mut now = Time::ZERO;
    let mut refused_and_unchanged = false;
    for op in ops {
        let acquires = matches!(op, Op::Acquire);
        match op {
            Op::Count(count) => {
                tracker.set_connection_count(count);
                model.count = count;
            }
            Op::Track(entries) => {
                for (name, group, generation, ttl) in &entries {
                    let (name, group) = (NAMES[*name].to_owned(), GROUPS[*group].to_owned());
                    let expiry = now + ttl.map_or(TTL, Duration::from_millis);
                    model.tracked.retain(|(other, ..)| *other != name);
                    model.tracked.push((name, group, *generation, expiry));
                }
                tracker.track(
                    now,
                    entries
                        .into_iter()
                        .map(|(name, group, generation, ttl)| Sighting {
                            name: NAMES[name].into(),
                            group: GROUPS[group].into(),
                            generation,
                            ttl: ttl.map(Duration::from_millis),
                        }),
                );
            }
            Op::Advance(ms) => now = now + Duration::from_millis(ms),
            Op::Acquire => {
                let inflight_before = tracker.inflight();
                let granted = tracker.acquire(now);
                prop_assert_eq!(granted.is_some(), model.acquire(now));
                prop_assert!(
                    !(refused_and_unchanged && granted.is_some()),
                    "granted after a refusal and no change"
                );
                refused_and_unchanged = granted.is_none();
                if let Some(lease) = granted {
                    leases.push(lease);
                    prop_assert_eq!(lease.get(), leases.len() as u64);
                    if inflight_before > 0 {
                        prop_assert!(
                            tracker.want() >= tracker.claimed_desired() + tracker.inflight()
                        );
                    }
                    if model.count > 0 && tracker.want() > 0 && inflight_before > 0 {
                        prop_assert!(
                            tracker.claimed_desired() + tracker.inflight() <= model.count as usize
                        );
                    }
                }
            }
            Op::Claim(lease, name, suffixed) => {
                let principal = if suffixed {
                    format!("{}.test", NAMES[name])
                } else {
                    NAMES[name].to_owned()
                };
                if let Some(id) = leases.get(lease) {
                    prop_assert_eq!(
                        tracker.claim(*id, &[&principal]),
                        model.claim(lease, &principal)
                    );
                }
            }
            Op::Release(lease) => {
                if let Some(id) = leases.get(lease) {
                    tracker.release(*id);
                    model.leases[lease].0 = false;
                }
            }
            Op::Retire(name) => {
                let claimed = tracker.is_claimed(&[NAMES[name]]);
                tracker.retire(NAMES[name]);
                model.tracked.retain(|(other, ..)| other != NAMES[name]);
                prop_assert!(
                    !claimed
                        || tracker.claimed().any(|held| &**held == NAMES[name])
                        || NAMES[name] == "a.test"
                );
            }
        }
        if !acquires {
            refused_and_unchanged = false;
        }
        let living = model.leases.iter().filter(|(lives, _)| *lives).count();
        let claimed: Vec<String> = tracker.claimed().map(|name| name.to_string()).collect();
        prop_assert_eq!(claimed.len() + tracker.inflight(), living);
        let mut expected: Vec<String> = model.claimed().into_iter().cloned().collect();
        expected.sort();
        prop_assert!(
            expected.windows(2).all(|pair| pair[0] != pair[1]),
            "claimed twice"
        );
        prop_assert_eq!(claimed, expected);
        let mut desired: Vec<String> = model.desired().into_iter().cloned().collect();
        desired.sort();
        prop_assert_eq!(
            tracker
                .desired()
                .map(|name| name.to_string())
                .collect::<Vec<_>>(),
            desired
        );
        prop_assert_eq!(tracker.want(), model.want());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn tracker_equals_its_model(ops in proptest::collection::vec(op(), 0..80)) {
        run(ops)?;
    }
}
