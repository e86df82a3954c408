//! Every lease ends exactly once, whatever a driver does, sensible or not.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mesh_proto::name::Generation;
use mesh_proto::pool::{Action, Limits, Member, MemberState, Pool, Reached, Verdict};
use mesh_proto::time::Time;
use mesh_proto::tracker::LeaseId;
use proptest::prelude::*;

use super::world::{Rng, millis, seconds};

#[derive(Debug, Clone)]
struct Told {
    proxy: usize,
    group: usize,
    generation: u64,
    epoch: u64,
    addressed: bool,
    state: MemberState,
    ttl_ms: Option<u64>,
}

#[derive(Debug, Clone)]
enum Op {
    Advance(u64),
    Connected {
        lease: usize,
        proxy: usize,
        epoch: u64,
        generation: u64,
    },
    Failed(usize),
    Closed(usize),
    Members {
        from: Option<usize>,
        view: Vec<Told>,
    },
    Draining(usize, u64),
    Announced(Option<u32>, u64),
    Rtt(usize, u64),
}

const PROXIES: usize = 5;

fn told() -> impl Strategy<Value = Told> {
    let state = prop_oneof![
        6 => Just(MemberState::Alive),
        1 => Just(MemberState::Draining),
        1 => Just(MemberState::Gone),
    ];
    let ttl = prop_oneof![
        3 => Just(None),
        1 => Just(Some(0)),
        2 => (0..100_000u64).prop_map(Some),
        1 => Just(Some(u64::MAX)),
    ];
    (
        0..PROXIES,
        0..2usize,
        0..3u64,
        0..3u64,
        any::<bool>(),
        state,
        ttl,
    )
        .prop_map(
            |(proxy, group, generation, epoch, addressed, state, ttl_ms)| Told {
                proxy,
                group,
                generation,
                epoch,
                addressed,
                state,
                ttl_ms,
            },
        )
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => prop_oneof![0..2000u64, 0..200_000u64].prop_map(Op::Advance),
        6 => (0..30usize, 0..PROXIES, 0..3u64, 0..3u64).prop_map(
            |(lease, proxy, epoch, generation)| Op::Connected { lease, proxy, epoch, generation }
        ),
        2 => (0..30usize).prop_map(Op::Failed),
        2 => (0..30usize).prop_map(Op::Closed),
        4 => (proptest::option::of(0..30usize), proptest::collection::vec(told(), 0..5))
            .prop_map(|(from, view)| Op::Members { from, view }),
        1 => (0..30usize, 0..60_000u64).prop_map(|(lease, within)| Op::Draining(lease, within)),
        1 => (proptest::option::of(0..4u32), 0..400_000u64)
            .prop_map(|(count, spread)| Op::Announced(count, spread)),
        1 => (0..30usize, 0..1000u64).prop_map(|(lease, rtt)| Op::Rtt(lease, rtt)),
    ]
}

/// What a driver knows.
struct Driver {
    pool: Pool,
    now: Time,
    rng: Rng,
    /// Counted back from the newest, so that random indices hit living ones.
    leases: Vec<LeaseId>,
    dialling: BTreeSet<LeaseId>,
    /// What they reach, and whether they were let go.
    connected: BTreeMap<LeaseId, (usize, u64, bool)>,
}

impl Driver {
    fn lease(&self, index: usize) -> Option<LeaseId> {
        self.leases.iter().rev().nth(index).copied()
    }

    fn drive(&mut self) -> Result<(), TestCaseError> {
        for _ in 0..100 {
            match self.pool.poll(self.now) {
                None => return self.check(),
                Some(Action::Dial { lease, .. }) => {
                    prop_assert!(!self.leases.contains(&lease), "a lease is used twice");
                    self.leases.push(lease);
                    self.dialling.insert(lease);
                }
                Some(Action::LetGo { lease, why }) => {
                    let Some((_, _, let_go)) = self.connected.get_mut(&lease) else {
                        return Err(TestCaseError::fail("lets go what is not there"));
                    };
                    prop_assert!(!*let_go, "lets go twice");
                    *let_go = true;
                    prop_assert!(
                        self.connected.values().any(|(_, _, let_go)| !let_go),
                        "lets the last one go: {why:?}"
                    );
                }
            }
        }
        Err(TestCaseError::fail("no end of actions"))
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let tracker = self.pool.tracker();
        let counts = self.pool.counts(self.now);
        prop_assert_eq!(tracker.inflight(), self.dialling.len());
        prop_assert_eq!(counts.dialling, self.dialling.len());
        prop_assert_eq!(counts.held, self.connected.len());
        for (lease, (proxy, _, let_go)) in &self.connected {
            let claimed = tracker.claimed_by(*lease).map(|name| name.to_string());
            prop_assert_eq!(claimed, (!let_go).then(|| format!("proxy-{proxy}")));
        }
        let serving = self
            .connected
            .values()
            .filter(|(_, _, let_go)| !let_go)
            .count();
        prop_assert_eq!(tracker.claimed().count(), serving);
        prop_assert!(
            self.pool
                .next_wake(self.now)
                .is_none_or(|wake| wake > self.now)
        );
        Ok(())
    }

    fn apply(&mut self, op: Op) -> Result<(), TestCaseError> {
        let mut rng = self.rng.clone();
        match op {
            Op::Advance(ms) => self.now = self.now + millis(ms),
            Op::Connected {
                lease,
                proxy,
                epoch,
                generation,
            } => {
                let Some(lease) = self.lease(lease) else {
                    return Ok(());
                };
                let reached = Reached {
                    proxy: format!("proxy-{proxy}").parse().unwrap(),
                    epoch,
                    group: "blue".parse().unwrap(),
                    generation: Generation(generation),
                };
                let verdict = self.pool.connected(self.now, lease, reached, &mut rng);
                let was_dialling = self.dialling.remove(&lease);
                match verdict {
                    Verdict::Keep => {
                        prop_assert!(was_dialling);
                        self.connected.insert(lease, (proxy, epoch, false));
                    }
                    Verdict::Duplicate => {}
                }
            }
            // A driver may take the one for the other.
            Op::Failed(lease) => {
                let Some(lease) = self.lease(lease) else {
                    return Ok(());
                };
                self.pool.failed(self.now, lease, &mut rng);
                self.dialling.remove(&lease);
                self.connected.remove(&lease);
            }
            Op::Closed(lease) => {
                let Some(lease) = self.lease(lease) else {
                    return Ok(());
                };
                self.pool.closed(self.now, lease, &mut rng);
                self.dialling.remove(&lease);
                self.connected.remove(&lease);
            }
            Op::Members { from, view } => {
                let from = from.and_then(|from| self.lease(from));
                let member = |told: Told| Member {
                    name: format!("proxy-{}", told.proxy).parse().unwrap(),
                    group: ["blue", "green"][told.group].parse().unwrap(),
                    generation: Generation(told.generation),
                    epoch: told.epoch,
                    addresses: match told.addressed {
                        true => vec!["somewhere:1".to_owned()],
                        false => Vec::new(),
                    },
                    state: told.state,
                    ttl: told.ttl_ms.map(Duration::from_millis),
                };
                self.pool
                    .members(self.now, from, view.into_iter().map(member).collect());
            }
            Op::Draining(lease, within) => {
                let Some(lease) = self.lease(lease) else {
                    return Ok(());
                };
                self.pool
                    .draining(self.now, lease, millis(within), &mut rng);
            }
            Op::Announced(count, spread) => self.pool.announced(None, count, millis(spread)),
            Op::Rtt(lease, rtt) => {
                let Some(lease) = self.lease(lease) else {
                    return Ok(());
                };
                self.pool.rtt(lease, millis(rtt));
            }
        }
        self.rng = rng;
        self.drive()
    }

    /// With nothing put in, the pool asks for few wakes and then for none, or a distant one.
    fn fall_silent(&mut self) -> Result<(), TestCaseError> {
        let mut wakes = 0;
        while let Some(wake) = self.pool.next_wake(self.now) {
            wakes += 1;
            prop_assert!(
                wakes < 60,
                "{wakes} wakes with nothing to do: {:?}",
                self.pool
            );
            prop_assert!(wake > self.now);
            if wake > self.now + seconds(86_400) {
                break;
            }
            self.now = wake;
            self.drive()?;
        }
        Ok(())
    }
}

fn run(own_count: Option<u32>, ops: Vec<Op>) -> Result<(), TestCaseError> {
    let mut driver = Driver {
        pool: Pool::new(
            "agent".parse().unwrap(),
            "example.com",
            vec!["balancer:7443".to_owned()],
            own_count,
            Limits {
                members_max: 4,
                stable: seconds(20),
                ..Limits::default()
            },
        ),
        now: Time::ZERO,
        rng: Rng(7),
        leases: Vec::new(),
        dialling: BTreeSet::new(),
        connected: BTreeMap::new(),
    };
    driver.drive()?;
    for op in ops {
        driver.apply(op)?;
    }
    driver.fall_silent()?;
    // All ends; then no lease is left, and a pool that is asked dials again.
    for lease in driver.leases.clone() {
        driver
            .pool
            .closed(driver.now, lease, &mut driver.rng.clone());
        driver
            .pool
            .failed(driver.now, lease, &mut driver.rng.clone());
    }
    prop_assert_eq!(driver.pool.tracker().inflight(), 0);
    prop_assert_eq!(driver.pool.tracker().claimed().count(), 0);
    driver.dialling.clear();
    driver.connected.clear();
    driver.now = driver.now + seconds(3600);
    driver.drive()?;
    prop_assert!(!driver.dialling.is_empty(), "never dials again");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn lease_is_never_leaked(
        own_count in proptest::option::of(0..4u32),
        ops in proptest::collection::vec(op(), 0..80),
    ) {
        run(own_count, ops)?;
    }
}
