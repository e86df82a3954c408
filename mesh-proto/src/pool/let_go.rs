//! Which connections to let go: never before what replaces them stands.

use std::collections::{BTreeMap, BTreeSet};

use crate::name::{Generation, Group};
use crate::time::Time;
use crate::tracker::LeaseId;

use super::{Connected, Pool};

/// Why a connection is let go, in order: told to the proxy, and closed when its streams have ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LetGo {
    /// A newer start of the same proxy is connected.
    Stale,
    /// Its proxy drains and is replaced.
    Drained,
    /// A newer generation has taken over.
    OldGeneration,
    /// There are more than wanted, and this is the slowest.
    Surplus,
}

impl LetGo {
    /// For logs and metrics, snake case.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stale => "stale",
            Self::Drained => "drained",
            Self::OldGeneration => "old_generation",
            Self::Surplus => "surplus",
        }
    }
}

impl Pool {
    /// The next connection to be let go, if any.
    pub(super) fn find_let_go(&self, now: Time) -> Option<(LeaseId, LetGo)> {
        self.find_stale()
            .or_else(|| self.find_drained())
            .or_else(|| self.find_old())
            .or_else(|| self.find_surplus(now))
    }

    /// Whether a connection that was just made is of no use: its proxy is not desired, and as many are
    /// held without it as are wanted.
    pub(super) fn is_superfluous(&self, lease: LeaseId) -> bool {
        let others = self
            .held()
            .filter(|(held, _)| *held != lease && self.tracker.claimed_by(*held).is_some())
            .count();
        others >= self.tracker.want().max(1)
            && self
                .connected_to(lease)
                .is_some_and(|reached| !self.is_desired(&reached.proxy))
    }

    fn find_stale(&self) -> Option<(LeaseId, LetGo)> {
        self.held()
            .find(|(lease, _)| self.tracker.claimed_by(*lease).is_none())
            .map(|(lease, _)| (lease, LetGo::Stale))
    }

    fn find_drained(&self) -> Option<(LeaseId, LetGo)> {
        let (lease, _) = self.held().find(|(_, link)| link.draining)?;
        self.is_replaced().then_some((lease, LetGo::Drained))
    }

    fn find_old(&self) -> Option<(LeaseId, LetGo)> {
        self.newest_generations()
            .into_iter()
            .find_map(|(group, newest)| {
                let is_old = |link: &Connected| {
                    link.reached.group == *group
                        && link.reached.generation < newest
                        && !link.draining
                };
                let (lease, _) = self.held().find(|(_, link)| is_old(link))?;
                (self.has_taken_over(group, newest) && self.is_dispensable(lease))
                    .then_some((lease, LetGo::OldGeneration))
            })
    }

    fn find_surplus(&self, now: Time) -> Option<(LeaseId, LetGo)> {
        let want = self.tracker.want();
        if now < self.view_changed + self.limits.stable
            || want == 0
            || self.tracker.claimed_desired() <= want
        {
            return None;
        }
        let desired: BTreeSet<&str> = self.tracker.desired().map(|name| &**name).collect();
        self.held()
            .filter(|(_, link)| desired.contains(link.reached.proxy.as_str()))
            .max_by_key(|(lease, link)| (link.rtt, *lease))
            .map(|(lease, _)| (lease, LetGo::Surplus))
    }

    /// Whether as many desired proxies are settled as are wanted, none of which drains.
    fn is_replaced(&self) -> bool {
        let want = self.tracker.want();
        let settled: BTreeSet<&str> = self
            .held()
            .filter(|(_, link)| link.settled && !link.draining)
            .map(|(_, link)| link.reached.proxy.as_str())
            .collect();
        let desired = self.tracker.desired();
        want > 0 && desired.filter(|name| settled.contains(&***name)).count() >= want
    }

    /// Whether as many others have settled as are wanted: after a loss in the midst of a rollout, one
    /// new one is as many as the one old one that is left, and yet one too few.
    fn is_dispensable(&self, lease: LeaseId) -> bool {
        let others = self
            .held()
            .filter(|(other, link)| *other != lease && link.settled && !link.draining);
        others.count() >= self.tracker.want()
    }

    /// Whether a group in which an old generation is held needs the newest alone: as many of it are
    /// settled as old ones are held, and as many are known. The latter is for agents that hold but a few
    /// connections: one to a canary is as many as one to the old generation, and yet the canary
    /// alone must not serve the fleet.
    fn has_taken_over(&self, group: &Group, newest: Generation) -> bool {
        let (mut settled, mut old) = (0usize, 0usize);
        for (_, link) in self.held() {
            if link.reached.group != *group || link.draining {
                continue;
            }
            if link.reached.generation < newest {
                old += 1;
            } else if link.settled && link.reached.generation == newest {
                settled += 1;
            }
        }
        let (mut new_known, mut old_known) = (0usize, 0usize);
        for known in self.members.values() {
            if known.is_alive() && known.group == *group {
                if known.generation < newest {
                    old_known += 1;
                } else {
                    new_known += 1;
                }
            }
        }
        settled >= old && new_known >= old_known
    }

    fn newest_generations(&self) -> BTreeMap<&Group, Generation> {
        let mut newest = BTreeMap::new();
        for known in self.members.values().filter(|known| known.is_alive()) {
            let generation = newest.entry(&known.group).or_insert(known.generation);
            *generation = known.generation.max(*generation);
        }
        newest
    }
}
