//! The agent's pool: whom to dial, and when; which connections to let go.
//!
//! The [tracker](crate::tracker) says whether one more connection is wanted. The pool chooses:
//!
//! - The first dial goes through a configured address, which may be a load balancer. The proxy that
//!   answers tells of all the others, and from then on dials are *directed*: to the advertised address
//!   of a desired proxy that is not connected, chosen by rendezvous hash, so that a fleet of agents
//!   spreads evenly. While directed dials fail, dials through the configured addresses go on.
//! - Whoever failed, or was reached twice, cools down on its own; the others go on. Dials under way
//!   are bounded. All waits grow exponentially and are drawn with full jitter.
//! - A proxy that drains is replaced before it is let go. A proxy of an old generation is let go when as
//!   many of the new one are connected and settled as old ones are held: a single canary of a new
//!   generation does not empty the fleet onto itself.
//! - When many agents lose a proxy at once, each waits for a random part of the time that proxies have
//!   announced, so that the survivors meet a rate that they chose.
//! - More connections than wanted are closed one by one, the slowest first, after the view has been
//!   stable for a while.
//!
//! A pure state machine: inputs are methods that take the time, [`Pool::poll`] gives what is to be
//! done, [`Pool::next_wake`] when to ask again. Every dial that it asks for must end in exactly one
//! of [`Pool::connected`] and [`Pool::failed`], and every connection in [`Pool::closed`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::name::{Generation, Group, NodeName};
use crate::time::Time;
use crate::tracker::{DEFAULT_TTL, LeaseId, Sighting, Tracker};

mod backoff;
mod rendezvous;
#[cfg(test)]
mod tests;

pub use backoff::Draw;
use backoff::{Backoff, Growth};

/// Waits and bounds of a pool.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Dials under way at one time.
    pub parallel_dials_max: usize,
    /// Proxies that are remembered; what is told beyond is ignored and counted.
    pub members_max: usize,
    /// The longest that one telling of a proxy is believed.
    pub ttl_max: Duration,
    /// The bound of the first wait after a dial through a configured address failed.
    pub backoff_first: Duration,
    /// The bound that those waits grow to; those of single proxies too.
    pub backoff_max: Duration,
    /// The bound of the first wait after a dial through a configured address has reached a proxy
    /// that was connected already.
    pub duplicate_first: Duration,
    /// The bound that those waits grow to.
    pub duplicate_max: Duration,
    /// A connection counts as settled when it has stood for this long.
    pub settle: Duration,
    /// Surplus is closed when the view has not changed for this long.
    pub stable: Duration,
    /// The longest wait that announcements of proxies can ask for.
    pub spread_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            parallel_dials_max: 4,
            members_max: 10_000,
            ttl_max: Duration::from_secs(3600),
            backoff_first: Duration::from_millis(500),
            backoff_max: Duration::from_secs(30),
            duplicate_first: Duration::from_millis(250),
            duplicate_max: Duration::from_secs(10),
            settle: Duration::from_secs(3),
            stable: Duration::from_secs(30),
            spread_max: Duration::from_secs(300),
        }
    }
}

/// What proxies tell of a proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub name: NodeName,
    /// Its deployment.
    pub group: Group,
    /// The rollout number of that deployment.
    pub generation: Generation,
    /// How often it has started.
    pub epoch: u64,
    /// Where agents may dial it directly; none when it does not say.
    pub addresses: Vec<String>,
    /// Whether it may be dialled.
    pub state: MemberState,
    /// How long this is to be believed; `None` is the default.
    pub ttl: Option<Duration>,
}

/// Whether a member may be dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberState {
    /// It serves, for all that is known.
    Alive,
    /// It is about to leave: replaced, then let go.
    Draining,
    /// It has left or is down.
    Gone,
}

/// What to dial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whom {
    /// Whoever answers at this configured address, from a fresh socket.
    Configured {
        /// As in the config.
        address: String,
    },
    /// This proxy and no other, at one of the addresses that it advertises.
    Directed {
        /// Its name.
        proxy: NodeName,
        /// Its addresses, to be tried in this order.
        addresses: Vec<String>,
    },
}

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

/// What the driver has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Dial.
    Dial {
        /// The lease under which it is dialled.
        lease: LeaseId,
        /// Whom.
        whom: Whom,
    },
    /// Let a connection go.
    LetGo {
        /// Its lease.
        lease: LeaseId,
        /// Why.
        why: LetGo,
    },
}

/// Who answered a dial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reached {
    /// Its name, as its certificate says.
    pub proxy: NodeName,
    /// How often it has started.
    pub epoch: u64,
    /// Its deployment.
    pub group: Group,
    /// The rollout number of that deployment.
    pub generation: Generation,
}

/// What becomes of a dial that was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The connection is kept.
    Keep,
    /// That proxy is connected already: close it. Its lease is given back.
    Duplicate,
}

/// How many connections there are, and should be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections wanted: the tracker's `want`, and one while nothing is known.
    pub desired: usize,
    /// Connected proxies that are desired.
    pub connected: usize,
    /// All connections, to old generations and draining proxies too.
    pub held: usize,
    /// Dials under way.
    pub dialling: usize,
    /// Proxies that cool down.
    pub cooling: usize,
}

#[derive(Debug)]
struct Known {
    group: Group,
    generation: Generation,
    epoch: u64,
    addresses: Vec<String>,
    expiry: Time,
    alive: bool,
    backoff: Backoff,
}

#[derive(Debug)]
enum Link {
    Dialling(Option<NodeName>),
    Connected(Connected),
}

#[derive(Debug)]
struct Connected {
    reached: Reached,
    since: Time,
    rtt: Duration,
    /// Asked to be let go.
    let_go: bool,
    /// It said itself that it drains.
    draining: bool,
}

/// The pool of one agent. See the module.
#[derive(Debug)]
pub struct Pool {
    agent: NodeName,
    limits: Limits,
    tracker: Tracker,
    own_count: Option<u32>,
    members: BTreeMap<NodeName, Known>,
    links: BTreeMap<LeaseId, Link>,
    addresses: Vec<String>,
    next_address: usize,
    configured_failures: Backoff,
    duplicates: Backoff,
    /// No dial before this, but for the first contact.
    paced_until: Time,
    spread: Duration,
    view_changed: Time,
    ignored_members: u64,
}

impl Pool {
    /// A pool that knows nothing but its configured addresses. With `connection_count`, what proxies
    /// announce is not heeded; 0 is a connection to every desired proxy.
    #[must_use]
    pub fn new(
        agent: NodeName,
        cluster: &str,
        addresses: Vec<String>,
        connection_count: Option<u32>,
        limits: Limits,
    ) -> Self {
        let mut tracker = Tracker::new(cluster, DEFAULT_TTL);
        tracker.set_connection_count(connection_count.unwrap_or(0));
        Self {
            agent,
            tracker,
            own_count: connection_count,
            members: BTreeMap::new(),
            links: BTreeMap::new(),
            addresses,
            next_address: 0,
            configured_failures: Backoff::new(Growth {
                first: limits.backoff_first,
                max: limits.backoff_max,
            }),
            duplicates: Backoff::new(Growth {
                first: limits.duplicate_first,
                max: limits.duplicate_max,
            }),
            paced_until: Time::ZERO,
            spread: Duration::ZERO,
            view_changed: Time::ZERO,
            ignored_members: 0,
            limits,
        }
    }

    /// What proxies announce: how many connections an agent without a wish of its own keeps, and
    /// over how long agents spread when they have lost one.
    pub fn announced(&mut self, connection_count: Option<u32>, spread: Duration) {
        if self.own_count.is_none() {
            self.tracker.set_connection_count(connection_count.unwrap_or(0));
        }
        self.spread = spread.min(self.limits.spread_max);
    }

    /// Hears of proxies from the one that the connection of `from` leads to, whose word about itself
    /// counts more than that of others.
    pub fn members(&mut self, now: Time, from: Option<LeaseId>, view: Vec<Member>) {
        let teller = from.and_then(|lease| self.connected_to(lease)).cloned();
        for member in view {
            self.member(now, member, teller.as_ref());
        }
    }

    fn member(&mut self, now: Time, member: Member, teller: Option<&NodeName>) {
        let of_itself = teller == Some(&member.name);
        let known = self.members.get(&member.name);
        // An older start of the same proxy is a leftover of somebody's memory.
        if known.is_some_and(|known| known.epoch > member.epoch) {
            return;
        }
        let self_draining = self.links.values().any(|link| match link {
            Link::Connected(link) => {
                link.draining
                    && link.reached.proxy == member.name
                    && link.reached.epoch >= member.epoch
            }
            Link::Dialling(_) => false,
        });
        // Others may not have heard yet.
        let state = match member.state {
            MemberState::Alive if self_draining && !of_itself => MemberState::Draining,
            state => state,
        };
        match state {
            MemberState::Alive => {
                if known.is_none() && self.members.len() >= self.limits.members_max {
                    self.ignored_members += 1;
                    return;
                }
                if of_itself {
                    self.set_draining(&member.name, false);
                }
                self.track(now, member);
            }
            MemberState::Draining | MemberState::Gone => {
                if known.is_some_and(|known| known.alive) {
                    self.view_changed = now;
                }
                self.tracker.retire(member.name.as_str());
                if state == MemberState::Draining {
                    self.set_draining(&member.name, true);
                    if let Some(known) = self.members.get_mut(&member.name) {
                        known.alive = false;
                        known.epoch = member.epoch;
                    }
                } else {
                    self.members.remove(&member.name);
                }
            }
        }
    }

    fn track(&mut self, now: Time, member: Member) {
        let ttl = member.ttl.unwrap_or(DEFAULT_TTL).min(self.limits.ttl_max);
        self.tracker.track(
            now,
            [Sighting {
                name: Arc::from(member.name.as_str()),
                group: Arc::from(member.group.as_str()),
                generation: member.generation.0,
                ttl: Some(ttl),
            }],
        );
        let growth =
            Growth { first: self.limits.backoff_first, max: self.limits.backoff_max };
        let mut changed = false;
        let known = self.members.entry(member.name).or_insert_with(|| {
            changed = true;
            Known {
                group: member.group.clone(),
                generation: member.generation,
                epoch: member.epoch,
                addresses: Vec::new(),
                expiry: now + ttl,
                alive: true,
                backoff: Backoff::new(growth),
            }
        });
        changed |= !known.alive
            || known.epoch != member.epoch
            || known.generation != member.generation
            || known.group != member.group;
        if known.epoch != member.epoch || known.addresses != member.addresses {
            // It starts anew, or elsewhere: what failed before says nothing.
            known.backoff.reset();
        }
        known.group = member.group;
        known.generation = member.generation;
        known.epoch = member.epoch;
        known.addresses = member.addresses;
        known.expiry = now + ttl;
        known.alive = true;
        if changed {
            self.view_changed = now;
        }
    }

    fn set_draining(&mut self, proxy: &NodeName, draining: bool) {
        for link in self.links.values_mut() {
            if let Link::Connected(link) = link
                && link.reached.proxy == *proxy
            {
                link.draining = draining;
            }
        }
    }

    /// The proxy of this connection has said that it is about to leave, `within` this time.
    pub fn draining(&mut self, now: Time, lease: LeaseId, within: Duration, draw: &mut dyn Draw) {
        let Some(Link::Connected(link)) = self.links.get_mut(&lease) else { return };
        link.draining = true;
        let name = link.reached.proxy.clone();
        self.tracker.retire(name.as_str());
        if let Some(known) = self.members.get_mut(&name) {
            known.alive = false;
        }
        self.view_changed = now;
        // The replacement is wanted well before the end of the drain.
        self.pace(now, self.spread.min(within / 2), draw);
    }

    /// A dial was answered by `reached`.
    pub fn connected(
        &mut self,
        now: Time,
        lease: LeaseId,
        reached: Reached,
        draw: &mut dyn Draw,
    ) -> Verdict {
        let through_configured = match self.links.get(&lease) {
            Some(Link::Dialling(directed)) => directed.is_none(),
            Some(Link::Connected(_)) | None => return Verdict::Duplicate,
        };
        // A connection to a former start of the same proxy is dead, whatever it looks like.
        let stale = self.links.iter().find_map(|(lease, link)| match link {
            Link::Connected(link)
                if link.reached.proxy == reached.proxy && link.reached.epoch < reached.epoch =>
            {
                Some(*lease)
            }
            Link::Connected(_) | Link::Dialling(_) => None,
        });
        if let Some(stale) = stale {
            self.tracker.release(stale);
        }
        if !self.tracker.claim(lease, &[reached.proxy.as_str()]) {
            self.give_back(lease);
            if through_configured {
                self.duplicates.fail(now, draw);
            }
            return Verdict::Duplicate;
        }
        self.configured_failures.reset();
        self.duplicates.reset();
        if let Some(known) = self.members.get_mut(&reached.proxy) {
            known.backoff.reset();
        }
        let connected =
            Connected { reached, since: now, rtt: Duration::ZERO, let_go: false, draining: false };
        self.links.insert(lease, Link::Connected(connected));
        Verdict::Keep
    }

    /// A dial has failed.
    pub fn failed(&mut self, now: Time, lease: LeaseId, draw: &mut dyn Draw) {
        let Some(Link::Dialling(directed)) = self.give_back(lease) else { return };
        match directed {
            Some(proxy) => {
                if let Some(known) = self.members.get_mut(&proxy) {
                    known.backoff.fail(now, draw);
                }
            }
            None => self.configured_failures.fail(now, draw),
        }
    }

    /// A connection has ended, however.
    pub fn closed(&mut self, now: Time, lease: LeaseId, draw: &mut dyn Draw) {
        let Some(Link::Connected(link)) = self.give_back(lease) else { return };
        if link.let_go {
            return;
        }
        // It may be a network's hiccup or a proxy's end, and a fleet must not answer either at once.
        if let Some(known) = self.members.get_mut(&link.reached.proxy) {
            known.backoff.fail(now, draw);
        } else {
            self.configured_failures.fail(now, draw);
        }
        self.pace(now, self.spread, draw);
    }

    /// A connection's round-trip time, as measured last.
    pub fn rtt(&mut self, lease: LeaseId, rtt: Duration) {
        if let Some(Link::Connected(link)) = self.links.get_mut(&lease) {
            link.rtt = rtt;
        }
    }

    /// What is to be done now; to be asked until there is nothing.
    pub fn poll(&mut self, now: Time) -> Option<Action> {
        self.members.retain(|_, known| known.expiry >= now);
        self.poll_let_go(now).or_else(|| self.poll_dial(now))
    }

    /// When [`Pool::poll`] may have something to do, if nothing is put in before.
    #[must_use]
    pub fn next_wake(&self, now: Time) -> Option<Time> {
        let cooling = self.members.values().filter(|known| known.alive).map(|known| known.backoff.until());
        let expiries = self.members.values().map(|known| known.expiry + Duration::from_millis(1));
        let settling = self.links.values().filter_map(|link| match link {
            Link::Connected(link) => Some(link.since + self.limits.settle),
            Link::Dialling(_) => None,
        });
        [
            self.paced_until,
            self.configured_failures.until(),
            self.duplicates.until(),
            self.view_changed + self.limits.stable,
        ]
        .into_iter()
        .chain(cooling)
        .chain(expiries)
        .chain(settling)
        .filter(|time| *time > now)
        .min()
    }

    /// How many connections there are, and should be.
    #[must_use]
    pub fn counts(&self, now: Time) -> Counts {
        let held = self.links.values().filter(|link| matches!(link, Link::Connected(_))).count();
        Counts {
            desired: self.tracker.want().max(1),
            connected: match self.tracker.want() {
                // Nothing is known but whom it is connected to.
                0 => held.min(1),
                _ => self.tracker.claimed_desired(),
            },
            held,
            dialling: self.links.len() - held,
            cooling: self.members.values().filter(|known| known.backoff.until() > now).count(),
        }
    }

    /// Until when no configured address is dialled, having failed.
    #[must_use]
    pub fn backoff_until(&self) -> Time {
        self.configured_failures.until()
    }

    /// Members that were told of and not remembered, [`Limits::members_max`] being reached.
    #[must_use]
    pub fn ignored_members(&self) -> u64 {
        self.ignored_members
    }

    /// The tracker, to look at.
    #[must_use]
    pub fn tracker(&self) -> &Tracker {
        &self.tracker
    }

    fn connected_to(&self, lease: LeaseId) -> Option<&NodeName> {
        match self.links.get(&lease)? {
            Link::Connected(link) => Some(&link.reached.proxy),
            Link::Dialling(_) => None,
        }
    }

    fn give_back(&mut self, lease: LeaseId) -> Option<Link> {
        self.tracker.release(lease);
        self.links.remove(&lease)
    }

    fn pace(&mut self, now: Time, over: Duration, draw: &mut dyn Draw) {
        self.paced_until = self.paced_until.max(now + draw.up_to(over));
    }

    fn poll_dial(&mut self, now: Time) -> Option<Action> {
        let under_way = |link: &&Link| matches!(link, Link::Dialling(_));
        if self.links.values().filter(under_way).count() >= self.limits.parallel_dials_max
            || now < self.paced_until
        {
            return None;
        }
        let lease = self.tracker.acquire(now)?;
        let Some(whom) = self.choose(now) else {
            // Wanted, but whoever could be dialled cools down.
            self.tracker.release(lease);
            return None;
        };
        let directed = match &whom {
            Whom::Directed { proxy, .. } => Some(proxy.clone()),
            Whom::Configured { .. } => None,
        };
        self.links.insert(lease, Link::Dialling(directed));
        Some(Action::Dial { lease, whom })
    }

    fn choose(&mut self, now: Time) -> Option<Whom> {
        let dialled = |name: &NodeName| {
            self.links.values().any(
                |link| matches!(link, Link::Dialling(Some(directed)) if directed == name),
            )
        };
        let best = self
            .tracker
            .desired()
            .filter(|name| !self.tracker.is_claimed(&[name]))
            .filter_map(|name| self.members.get_key_value(&**name))
            .filter(|(name, known)| {
                !known.addresses.is_empty() && known.backoff.until() <= now && !dialled(name)
            })
            .max_by_key(|(name, _)| (rendezvous::score(&self.agent, name), (*name).clone()));
        if let Some((name, known)) = best {
            return Some(Whom::Directed { proxy: name.clone(), addresses: known.addresses.clone() });
        }
        // One at a time: two dials through one balancer may well reach one proxy.
        let configured_under_way =
            self.links.values().any(|link| matches!(link, Link::Dialling(None)));
        let waits = self.configured_failures.until().max(self.duplicates.until());
        if configured_under_way || now < waits || self.addresses.is_empty() {
            return None;
        }
        let address = self.addresses[self.next_address % self.addresses.len()].clone();
        self.next_address = (self.next_address + 1) % self.addresses.len();
        Some(Whom::Configured { address })
    }

    fn poll_let_go(&mut self, now: Time) -> Option<Action> {
        let (lease, why) = self.find_let_go(now)?;
        if let Some(Link::Connected(link)) = self.links.get_mut(&lease) {
            link.let_go = true;
        }
        if why == LetGo::Surplus {
            // One by one: what is left may be needed before the next one goes.
            self.view_changed = now;
            self.tracker.release(lease);
        }
        Some(Action::LetGo { lease, why })
    }

    fn find_let_go(&self, now: Time) -> Option<(LeaseId, LetGo)> {
        let held = || {
            self.links.iter().filter_map(|(lease, link)| match link {
                Link::Connected(link) if !link.let_go => Some((*lease, link)),
                Link::Connected(_) | Link::Dialling(_) => None,
            })
        };
        let is_claimed_here =
            |lease: LeaseId| self.tracker.claimed_by(lease).is_some();
        if let Some((lease, _)) = held().find(|(lease, _)| !is_claimed_here(*lease)) {
            return Some((lease, LetGo::Stale));
        }
        let want = self.tracker.want();
        let settled = |name: &str| {
            held().any(|(_, link)| {
                link.reached.proxy.as_str() == name
                    && !link.draining
                    && link.since + self.limits.settle <= now
            })
        };
        let settled_desired = self.tracker.desired().filter(|name| settled(name)).count();
        if want > 0 && settled_desired >= want {
            let drained = held().find(|(_, link)| link.draining);
            if let Some((lease, _)) = drained {
                return Some((lease, LetGo::Drained));
            }
        }
        for group in self.groups() {
            let newest = self.newest_generation(group)?;
            let old: Vec<LeaseId> = held()
                .filter(|(_, link)| {
                    link.reached.group == *group && link.reached.generation < newest && !link.draining
                })
                .map(|(lease, _)| lease)
                .collect();
            let new_settled = held()
                .filter(|(_, link)| {
                    link.reached.group == *group
                        && link.reached.generation == newest
                        && settled(link.reached.proxy.as_str())
                })
                .count();
            if let Some(lease) = old.first()
                && new_settled >= old.len()
            {
                return Some((*lease, LetGo::OldGeneration));
            }
        }
        let surplus = self.tracker.claimed_desired().saturating_sub(want);
        if surplus > 0 && want > 0 && self.view_changed + self.limits.stable <= now {
            let desired = |link: &Connected| {
                self.tracker.desired().any(|name| **name == *link.reached.proxy.as_str())
            };
            let slowest = held()
                .filter(|(_, link)| desired(link))
                .max_by_key(|(lease, link)| (link.rtt, *lease))?;
            return Some((slowest.0, LetGo::Surplus));
        }
        None
    }

    fn groups(&self) -> impl Iterator<Item = &Group> {
        let groups: std::collections::BTreeSet<&Group> =
            self.members.values().filter(|known| known.alive).map(|known| &known.group).collect();
        groups.into_iter()
    }

    fn newest_generation(&self, group: &Group) -> Option<Generation> {
        self.members
            .values()
            .filter(|known| known.alive && known.group == *group)
            .map(|known| known.generation)
            .max()
    }
}
