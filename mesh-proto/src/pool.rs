//! The agent's pool: whom to dial, and when; which connections to let go.
//!
//! The [tracker](crate::tracker) says whether one more connection is wanted. The pool chooses:
//!
//! - The first dial goes through a configured address, which may be a load balancer. The proxy that
//!   answers tells of all the others, and from then on dials are *directed*: to the advertised address
//!   of a desired proxy that is not connected, chosen by rendezvous hash, so that a fleet of agents
//!   spreads evenly. While directed dials fail, dials through the configured addresses go on.
//! - Whoever failed, or was reached twice, cools down on its own; the others go on. Dials under way
//!   are bounded. All waits grow exponentially and are drawn with full jitter; they are short again
//!   once a connection has settled, not when it is made: it may end at once, again and again.
//! - A proxy that drains is replaced before it is let go. A proxy of an old generation is let go when as
//!   many of the new one are connected and settled as old ones are held, and known as old ones are
//!   known, and as many as are wanted remain: a canary of a new generation does not empty the fleet onto itself.
//! - When many agents lose a proxy at once, or hear of a new one, each waits for a part of the time
//!   that proxies have announced, the *spread*: random for a loss, the agent's own for a new one. No
//!   wait after a failure is drawn from less than twice that time, and dials through configured
//!   addresses are that time apart while a connection stands. So proxies meet a rate that they chose.
//! - More connections than wanted are closed one by one, the slowest first, after the view has been
//!   stable for a while.
//!
//! A pure state machine: inputs are methods that take the time, [`Pool::poll`] gives what is to be
//! done, [`Pool::next_wake`] when to ask again. Every dial that it asks for must end in exactly one
//! of [`Pool::connected`] and [`Pool::failed`], and every connection that is kept in [`Pool::closed`].

use std::collections::BTreeMap;
use std::time::Duration;

use crate::name::NodeName;
use crate::time::Time;
use crate::tracker::{DEFAULT_TTL, LeaseId, Tracker};

mod action;
mod backoff;
mod dial;
mod heard;
mod let_go;
mod limits;
mod member;
mod rendezvous;
#[cfg(test)]
mod tests;

pub use action::{Action, Counts, Reached, Verdict, Whom};
use backoff::Backoff;
pub use backoff::Draw;
pub use heard::{Ignored, IgnoredCounts, can_be_dialled};
pub use let_go::LetGo;
pub use limits::Limits;
use member::Known;
pub use member::{Member, MemberState};

#[derive(Debug)]
enum Link {
    /// Under way: to this proxy, or to whoever answers.
    Dialling(Option<NodeName>),
    Connected(Connected),
}

/// A connection. While it is held it claims its proxy, unless a newer start of that has claimed it;
/// from when it is let go it claims nothing.
#[derive(Debug)]
struct Connected {
    reached: Reached,
    since: Time,
    rtt: Duration,
    through_configured: bool,
    /// Has stood for a while.
    settled: bool,
    /// Asked to be let go.
    let_go: bool,
    /// What its proxy has announced.
    spread: Duration,
    /// Its proxy is about to leave, as it said itself or was told of it.
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
    /// No dial before this.
    paced_until: Time,
    spread: Duration,
    /// When the members or the number of wanted connections changed last.
    view_changed: Time,
    wanted: usize,
    /// When a proxy was told of for the first time.
    first_heard: Option<Time>,
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
        // A fleet with one list must not begin at the first of it all together.
        let next_address = rendezvous::first(&agent, addresses.len());
        Self {
            agent,
            limits,
            tracker,
            own_count: connection_count,
            members: BTreeMap::new(),
            links: BTreeMap::new(),
            addresses,
            next_address,
            configured_failures: Backoff::default(),
            duplicates: Backoff::default(),
            paced_until: Time::ZERO,
            spread: Duration::ZERO,
            view_changed: Time::ZERO,
            wanted: 0,
            first_heard: None,
        }
    }

    /// What the proxy at the other end of `from` announces: how many connections an agent without a
    /// wish of its own keeps, and over how long agents spread when they have lost one. The longest
    /// spread of all connections counts: a proxy that has just started knows of few agents.
    pub fn announced(
        &mut self,
        from: Option<LeaseId>,
        connection_count: Option<u32>,
        spread: Duration,
    ) {
        if self.own_count.is_none() {
            self.tracker
                .set_connection_count(connection_count.unwrap_or(0));
        }
        let spread = spread.min(self.limits.spread_max);
        if let Some(Link::Connected(link)) = from.and_then(|lease| self.links.get_mut(&lease)) {
            link.spread = spread;
        }
        let others = self.links.values().filter_map(|link| match link {
            Link::Connected(link) => Some(link.spread),
            Link::Dialling(_) => None,
        });
        // A lost connection's is heeded until somebody announces anew.
        self.spread = others.max().unwrap_or_default().max(spread);
    }

    /// The proxy of this connection has said that it is about to leave, `within` this time.
    pub fn draining(&mut self, now: Time, lease: LeaseId, within: Duration, draw: &mut dyn Draw) {
        let Some(Link::Connected(link)) = self.links.get_mut(&lease) else {
            return;
        };
        link.draining = true;
        let (name, epoch) = (link.reached.proxy.clone(), link.reached.epoch);
        let known = self.members.get(&name);
        if known.is_some_and(|known| known.epoch > epoch) {
            // A former start of a proxy that has long been back.
            return;
        }
        self.retire(now, &name, MemberState::Draining);
        // The replacement is wanted well before the end of the drain, whatever else is waited for.
        let turn = now + draw.up_to(self.spread.min(within / 2));
        if now < self.paced_until {
            self.paced_until = self.paced_until.min(turn);
        } else {
            self.paced_until = turn;
        }
    }

    /// A dial was answered by `reached`.
    pub fn connected(
        &mut self,
        now: Time,
        lease: LeaseId,
        reached: Reached,
        draw: &mut dyn Draw,
    ) -> Verdict {
        let Some(Link::Dialling(directed)) = self.links.get(&lease) else {
            return Verdict::Duplicate;
        };
        let directed = directed.clone();
        let others_stand = self.held().next().is_some();
        let proxy = reached.proxy.clone();
        self.supersede(&reached);
        let link = Connected {
            draining: self.meet(now, &reached),
            reached,
            since: now,
            rtt: Duration::ZERO,
            through_configured: directed.is_none(),
            settled: false,
            let_go: false,
            spread: Duration::ZERO,
        };
        let is_claimed = self.tracker.claim(lease, &[proxy.as_str()]);
        if is_claimed {
            self.links.insert(lease, Link::Connected(link));
        }
        if !is_claimed || self.is_superfluous(lease) {
            self.give_back(lease);
            match directed {
                Some(directed) if !self.tracker.is_claimed(&[directed.as_str()]) => {
                    self.cool_down(now, &directed, draw);
                }
                Some(_) => {}
                None => self.configured_duplicate(now, draw),
            }
            return Verdict::Duplicate;
        }
        if let Some(known) = self.members.get_mut(&proxy) {
            known.backoff.lift();
            known.is_unreachable &= directed.is_none();
        }
        match directed {
            Some(directed) if directed != proxy => self.cool_down(now, &directed, draw),
            Some(_) => {}
            None => {
                self.configured_failures.lift();
                if self.is_desired(&proxy) {
                    self.duplicates.reset();
                    if others_stand {
                        self.duplicates.wait_until(now + self.spread);
                    }
                } else if others_stand {
                    // It is held, and brings the mesh no nearer.
                    self.configured_duplicate(now, draw);
                }
            }
        }
        Verdict::Keep
    }

    /// A dial has failed.
    pub fn failed(&mut self, now: Time, lease: LeaseId, draw: &mut dyn Draw) {
        self.ended(now, lease, draw);
    }

    /// A connection has ended, however.
    pub fn closed(&mut self, now: Time, lease: LeaseId, draw: &mut dyn Draw) {
        self.ended(now, lease, draw);
    }

    /// Tells the two apart by what it knows, so that a driver that takes one for the other, in a race
    /// of its own, neither leaks a lease nor escapes a wait.
    fn ended(&mut self, now: Time, lease: LeaseId, draw: &mut dyn Draw) {
        self.settle(now);
        let was_claimed = self.tracker.claimed_by(lease).is_some();
        match self.give_back(lease) {
            None => {}
            Some(Link::Dialling(Some(proxy))) => {
                if let Some(known) = self.members.get_mut(&proxy) {
                    known.is_unreachable = true;
                }
                self.cool_down(now, &proxy, draw);
            }
            Some(Link::Dialling(None)) => {
                self.configured_failed(now, draw);
            }
            // Let go, or followed by a newer start: its end is no loss.
            Some(Link::Connected(_)) if !was_claimed => {}
            Some(Link::Connected(link)) => self.lost(now, &link, draw),
        }
    }

    /// A connection's round-trip time, as measured last.
    pub fn rtt(&mut self, lease: LeaseId, rtt: Duration) {
        if let Some(Link::Connected(link)) = self.links.get_mut(&lease) {
            link.rtt = rtt;
        }
    }

    /// What is to be done now; to be asked until there is nothing.
    pub fn poll(&mut self, now: Time) -> Option<Action> {
        self.expire(now);
        self.settle(now);
        let want = self.tracker.want();
        if want != self.wanted {
            self.wanted = want;
            self.view_changed = now;
        }
        self.poll_let_go(now).or_else(|| self.poll_dial(now))
    }

    /// When [`Pool::poll`] may have something to do, if nothing is put in before.
    #[must_use]
    pub fn next_wake(&self, now: Time) -> Option<Time> {
        let cooling = self
            .members
            .values()
            .filter(|known| known.is_alive())
            .map(|known| known.backoff.until());
        // What is told is believed up to and with its last moment.
        let expiries = self
            .members
            .values()
            .map(|known| known.expiry + Duration::from_nanos(1));
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
        let connected = |link: &&Link| matches!(link, Link::Connected(_));
        let held = self.links.values().filter(connected).count();
        let want = self.tracker.want();
        Counts {
            desired: want.max(1),
            connected: match want {
                // Nothing is known but whom it is connected to.
                0 => self.held().count().min(1),
                _ => self.tracker.claimed_desired(),
            },
            held,
            dialling: self.links.len() - held,
            cooling: self
                .members
                .iter()
                .filter(|(name, known)| {
                    known.is_alive()
                        && known.backoff.until() > now
                        && !self.tracker.is_claimed(&[name.as_str()])
                })
                .count(),
        }
    }

    /// Until when no configured address is dialled, having failed.
    #[must_use]
    pub fn backoff_until(&self) -> Time {
        self.configured_failures.until()
    }

    /// The tracker, to look at.
    #[must_use]
    pub fn tracker(&self) -> &Tracker {
        &self.tracker
    }

    /// The connections that are not let go.
    fn held(&self) -> impl Iterator<Item = (LeaseId, &Connected)> {
        self.links.iter().filter_map(|(lease, link)| match link {
            Link::Connected(link) if !link.let_go => Some((*lease, link)),
            Link::Connected(_) | Link::Dialling(_) => None,
        })
    }

    fn connected_to(&self, lease: LeaseId) -> Option<&Reached> {
        match self.links.get(&lease)? {
            Link::Connected(link) => Some(&link.reached),
            Link::Dialling(_) => None,
        }
    }

    fn is_desired(&self, proxy: &NodeName) -> bool {
        self.tracker
            .desired()
            .any(|desired| **desired == *proxy.as_str())
    }

    /// The connection to the newest start of a proxy, even if it is let go.
    fn link_to(&self, proxy: &NodeName) -> Option<&Connected> {
        self.links
            .values()
            .filter_map(|link| match link {
                Link::Connected(link) => (link.reached.proxy == *proxy).then_some(link),
                Link::Dialling(_) => None,
            })
            .max_by_key(|link| (link.reached.epoch, !link.let_go))
    }

    fn give_back(&mut self, lease: LeaseId) -> Option<Link> {
        self.tracker.release(lease);
        self.links.remove(&lease)
    }

    /// A connection to a former start of the same proxy is dead, whatever it looks like.
    fn supersede(&mut self, reached: &Reached) {
        for (lease, link) in &self.links {
            if let Link::Connected(link) = link
                && link.reached.proxy == reached.proxy
                && link.reached.epoch < reached.epoch
            {
                self.tracker.release(*lease);
            }
        }
    }

    /// Notes which connections have stood for so long that the failures before them are forgiven.
    fn settle(&mut self, now: Time) {
        for link in self.links.values_mut() {
            if let Link::Connected(link) = link
                && !link.settled
                && link.since + self.limits.settle <= now
            {
                link.settled = true;
                if let Some(known) = self.members.get_mut(&link.reached.proxy) {
                    known.backoff.reset();
                }
                if link.through_configured {
                    self.configured_failures.reset();
                }
            }
        }
    }

    fn poll_let_go(&mut self, now: Time) -> Option<Action> {
        let (lease, why) = self.find_let_go(now)?;
        if let Some(Link::Connected(link)) = self.links.get_mut(&lease) {
            link.let_go = true;
        }
        // What is claimed is what serves. Should its proxy be wanted once more while the last streams
        // end, it is dialled anew.
        self.tracker.release(lease);
        if why == LetGo::Surplus {
            // One by one: what is left may be needed before the next one goes.
            self.view_changed = now;
        }
        Some(Action::LetGo { lease, why })
    }
}
