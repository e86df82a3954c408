//! The lease tracker: whether an agent should dial one more proxy.
//!
//! An agent learns of proxies from what they tell about each other, and holds at most one
//! connection to each. The tracker counts three things: the proxies that it has heard of
//! (*tracked*), those that a connection has reached (*claimed*), and permissions to dial that have
//! neither reached a proxy nor been given back (*in flight*). It says *whether* to dial; whom and
//! when is for the pool.
//!
//! The rules, which `tests/vectors/tracker/` pins call by call:
//!
//! 1. [`Tracker::acquire`] forgets what has expired and then grants a lease when nothing is in flight
//!    and either nothing is claimed or nothing is tracked, or when more connections are wanted than
//!    desired proxies are claimed and leases in flight.
//! 2. [`Tracker::track`] adds and renews; being absent from a message removes nothing.
//! 3. [`Tracker::claim`] binds a lease to the proxy that it has reached, unless that one is taken.
//! 4. [`Tracker::release`] gives a lease back, whatever it held.
//! 5. [`Tracker::retire`] forgets a proxy at once and leaves its connection claimed, so that a
//!    replacement is wanted before the connection is let go.
//!
//! *Desired* are the tracked proxies of the highest generation of their group.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::time::Time;

/// How long a proxy is tracked after it was last heard of, unless the entry says otherwise.
pub const DEFAULT_TTL: Duration = Duration::from_secs(180);

/// Permission to open one connection. Whoever holds it must [`release`](Tracker::release) it,
/// on every path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(u64);

impl LeaseId {
    /// Counts up from 1 with each lease of a tracker.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0
    }
}

/// A proxy as a message tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// Its name.
    pub name: Arc<str>,
    /// Its deployment.
    pub group: Arc<str>,
    /// The rollout number of that deployment.
    pub generation: u64,
    /// How long this is to be believed; `None` is the tracker's own time.
    pub ttl: Option<Duration>,
}

#[derive(Debug, Clone)]
struct Entry {
    group: Arc<str>,
    generation: u64,
    expiry: Time,
}

/// The tracker of one agent and one cluster. See the module.
#[derive(Debug, Clone)]
pub struct Tracker {
    /// `.<cluster>`, which a principal may end with.
    suffix: Box<str>,
    ttl: Duration,
    count: u32,
    tracked: BTreeMap<Arc<str>, Entry>,
    claimed: BTreeSet<Arc<str>>,
    /// Leases that were not released: what they have claimed, or nothing yet.
    leases: BTreeMap<LeaseId, Option<Arc<str>>>,
    last_lease: u64,
}

impl Tracker {
    /// Knows nothing yet, and wants every desired proxy. Names of `cluster` are also recognised
    /// with its name behind a dot.
    #[must_use]
    pub fn new(cluster: &str, ttl: Duration) -> Self {
        Self {
            suffix: format!(".{cluster}").into(),
            ttl,
            count: 0,
            tracked: BTreeMap::new(),
            claimed: BTreeSet::new(),
            leases: BTreeMap::new(),
            last_lease: 0,
        }
    }

    /// How many connections are wanted at most; 0 is one to every desired proxy. Revokes nothing.
    pub fn set_connection_count(&mut self, count: u32) {
        self.count = count;
    }

    /// Asks for permission to dial.
    pub fn acquire(&mut self, now: Time) -> Option<LeaseId> {
        self.tracked.retain(|_, entry| entry.expiry >= now);
        let inflight = self.inflight();
        let first_contact = inflight == 0 && (self.claimed.is_empty() || self.tracked.is_empty());
        let more_wanted = || self.want() > self.claimed_desired() + inflight;
        if !first_contact && !more_wanted() {
            return None;
        }
        self.last_lease += 1;
        let lease = LeaseId(self.last_lease);
        self.leases.insert(lease, None);
        Some(lease)
    }

    /// Hears of proxies. The last of several entries of one name counts.
    pub fn track(&mut self, now: Time, sightings: impl IntoIterator<Item = Sighting>) {
        for Sighting {
            name,
            group,
            generation,
            ttl,
        } in sightings
        {
            let expiry = now + ttl.unwrap_or(self.ttl);
            self.tracked.insert(
                name,
                Entry {
                    group,
                    generation,
                    expiry,
                },
            );
        }
    }

    /// Binds a lease to the proxy that one of `principals` names. `false`, and no change, when the
    /// lease was released or has claimed before, or when that proxy is claimed already or unnamed.
    pub fn claim(&mut self, lease: LeaseId, principals: &[&str]) -> bool {
        let Some(name) = self.resolve(principals) else {
            return false;
        };
        let Some(held @ None) = self.leases.get_mut(&lease) else {
            return false;
        };
        if !self.claimed.insert(name.clone()) {
            return false;
        }
        *held = Some(name);
        true
    }

    /// Gives a lease back, and frees the proxy that it had claimed. Acts once.
    pub fn release(&mut self, lease: LeaseId) {
        if let Some(Some(name)) = self.leases.remove(&lease) {
            self.claimed.remove(&name);
        }
    }

    /// Forgets a proxy at once; a connection to it stays claimed.
    pub fn retire(&mut self, name: &str) {
        self.tracked.remove(name);
    }

    /// Whether a connection holds the proxy that one of `principals` names.
    #[must_use]
    pub fn is_claimed(&self, principals: &[&str]) -> bool {
        self.resolve(principals)
            .is_some_and(|name| self.claimed.contains(&name))
    }

    /// What a lease has claimed.
    #[must_use]
    pub fn claimed_by(&self, lease: LeaseId) -> Option<&Arc<str>> {
        self.leases.get(&lease)?.as_ref()
    }

    /// Leases that have neither claimed nor been released.
    #[must_use]
    pub fn inflight(&self) -> usize {
        self.leases.len() - self.claimed.len()
    }

    /// The claimed proxies, in the order of their names.
    pub fn claimed(&self) -> impl Iterator<Item = &Arc<str>> {
        self.claimed.iter()
    }

    /// The tracked proxies, in the order of their names. What has expired is among them until the
    /// next [`Tracker::acquire`].
    pub fn tracked(&self) -> impl Iterator<Item = &Arc<str>> {
        self.tracked.keys()
    }

    /// The tracked proxies of the highest generation of each group, in the order of their names.
    pub fn desired(&self) -> impl Iterator<Item = &Arc<str>> {
        let mut newest: BTreeMap<&str, u64> = BTreeMap::new();
        for entry in self.tracked.values() {
            let newest = newest.entry(&entry.group).or_default();
            *newest = entry.generation.max(*newest);
        }
        self.tracked.iter().filter_map(move |(name, entry)| {
            (newest.get(&*entry.group) == Some(&entry.generation)).then_some(name)
        })
    }

    /// How many connections are wanted.
    #[must_use]
    pub fn want(&self) -> usize {
        let desired = self.desired().count();
        match self.count {
            0 => desired,
            count => desired.min(usize::try_from(count).unwrap_or(usize::MAX)),
        }
    }

    /// How many of the desired proxies are claimed.
    #[must_use]
    pub fn claimed_desired(&self) -> usize {
        self.desired()
            .filter(|name| self.claimed.contains(*name))
            .count()
    }

    /// The first principal that is a tracked or claimed name; failing that, the first one without
    /// the cluster's name behind it.
    fn resolve(&self, principals: &[&str]) -> Option<Arc<str>> {
        let known = principals.iter().find_map(|principal| {
            let tracked = self.tracked.get_key_value(*principal).map(|(name, _)| name);
            tracked.or_else(|| self.claimed.get(*principal)).cloned()
        });
        known.or_else(|| {
            let first = *principals.first()?;
            let name = first.strip_suffix(&*self.suffix).unwrap_or(first);
            (!name.is_empty()).then(|| name.into())
        })
    }
}
