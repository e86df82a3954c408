//! The proxies' view of each other, by gossip: who there is, who drains, who has died, and which
//! state of its routes each is at.
//!
//! # How
//!
//! SWIM with suspicion and incarnations (Das, Gupta, Motivala: "SWIM: Scalable Weakly-consistent
//! Infection-style Process Group Membership Protocol", 2002), as `foca` does it, in datagrams on the
//! connections between proxies. Each period every member probes another one, through three others
//! when it does not answer; one that answers neither way is suspected, is told so, and is taken for
//! dead unless it refutes that in time. Of Lifeguard (Dadgar, Phillips, Currey: "Lifeguard: Local
//! Health Awareness for More Accurate Failure Detection", 2018) it has the buddy system (whoever is
//! suspected hears of it first) and a doubt in itself: a process that was frozen neither counts the
//! time in which it was, nor trusts its own suspicions soon after.
//!
//! What this adds to foca:
//! - A proxy that **changes** (drains, say) becomes a new identity of the same name with a higher
//!   revision, and its old one is never told to be dead. Packets for an earlier revision are taken.
//! - A proxy that was **falsely taken for dead** renews its revision and is back. Two sides of a split
//!   hear of that when they connect again: see [`Standing::Dead`].
//! - A **connection that ends** is a suspicion at once; packets and hellos from a suspect put its
//!   death off, within a bound.
//! - The sender of a packet is who its **certificate** says; what is told of this proxy itself, or of
//!   more proxies than the bound, never reaches foca.
//! - **Two processes of one name** do not fight: the one that started earlier falls silent for good.
//! - **Route heads** travel beside, and each packet carries its sender's, so that one that was lost
//!   is made up for by the next packet.
//!
//! Members trust each other: who has a proxy's certificate can tell lies about others, from false
//! suspicions, which heal, to a later start of another's name, which silences that one. It can break
//! no bound and nothing else.
//!
//! # Use
//!
//! Call [`poll`](Membership::poll) until it returns `None` after every other call and at
//! [`next_wake`](Membership::next_wake). A datagram for a proxy without a connection is dropped. Most
//! proxies should be connected to most others: one that few can reach is suspected wrongly more often.
//! A connection is of one start of a proxy: when a later one shows ([`Event::Changed`] with a higher
//! epoch), the peer on it is told as for [`Standing::Older`].

mod dice;
mod engine;
mod outbox;
mod receive;
mod send;
mod timers;
mod types;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

pub use receive::GossipError;
pub use types::{Event, Output, Settings, Standing};
pub use view::Known;

use self::dice::Dice;
use self::engine::Engine;
use self::outbox::Outbox;
use self::timers::Timers;
use self::view::{Seen, Suspicion};
use crate::name::NodeName;
use crate::time::Time;
use crate::wire::{MemberHead, Profile, ProfileError, RoutesHead};

/// How many claims of others to its own name and epoch a proxy outbids before it gives in, in the time
/// in which the dead are remembered: at least this, and up to [`CLAIMS_MORE`] more by its seed, so that
/// of two clones hardly ever both give in.
const CLAIMS_MIN: u32 = 8;
const CLAIMS_MORE: usize = 64;

/// How far a told revision of this proxy may be ahead of its own to be believed. A proxy that has lost
/// its state must get above what others remember; nobody changes this often.
const REVISION_LEAD_MAX: u32 = 1 << 20;

/// Why nothing more will be said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Silence {
    Left,
    Superseded,
}

/// One proxy's view of all others.
pub struct Membership {
    settings: Settings,
    now: Time,
    own: Arc<Profile>,
    own_head: Option<RoutesHead>,
    /// The incarnation in the last packet, and of which revision.
    incarnation: (u32, u16),
    engine: Engine,
    timers: Timers,
    dice: Dice,
    view: BTreeMap<NodeName, Known>,
    seen: Vec<Seen>,
    heads: BTreeMap<NodeName, RoutesHead>,
    suspicions: BTreeMap<NodeName, Suspicion>,
    connected: BTreeSet<NodeName>,
    /// When the next of those taken for dead is talked to, while nobody is alive.
    lonely_at: Option<Time>,
    /// Until when own suspicions are doubted.
    doubt_until: Time,
    /// Others' claims to this proxy's name and epoch, and since when they are counted.
    claims: (u32, Time),
    claims_max: u32,
    silence: Option<Silence>,
    out: Outbox,
}

impl Membership {
    /// A view without members. `own.revision` is where it begins.
    ///
    /// # Errors
    /// When the profile breaks a bound.
    pub fn new(own: Profile, seed: u64, settings: Settings) -> Result<Self, ProfileError> {
        own.check()?;
        let settings = settings.mended();
        let own = Arc::new(own);
        let mut dice = Dice::new(!seed);
        let more = u32::try_from(dice.below(CLAIMS_MORE)).unwrap_or_default();
        Ok(Self {
            now: Time::ZERO,
            own_head: None,
            incarnation: (own.revision, 0),
            engine: Engine::new(Arc::clone(&own), Dice::new(seed), &settings),
            timers: Timers::default(),
            dice,
            view: BTreeMap::new(),
            seen: Vec::new(),
            heads: BTreeMap::new(),
            suspicions: BTreeMap::new(),
            connected: BTreeSet::new(),
            lonely_at: None,
            doubt_until: Time::ZERO,
            claims: (0, Time::ZERO),
            claims_max: CLAIMS_MIN + more,
            silence: None,
            out: Outbox::default(),
            own,
            settings,
        })
    }

    /// This proxy, with its current revision.
    #[must_use]
    pub fn own(&self) -> &Profile {
        &self.own
    }

    /// All others, by name.
    pub fn members(&self) -> impl Iterator<Item = &Known> {
        self.view.values()
    }

    /// One of the others.
    #[must_use]
    pub fn member(&self, name: &NodeName) -> Option<&Known> {
        self.view.get(name)
    }

    /// Where another proxy's routes are.
    #[must_use]
    pub fn head(&self, name: &NodeName) -> Option<RoutesHead> {
        self.heads.get(name).copied()
    }

    /// How often something has failed that cannot: always 0, and worth a metric.
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.engine.faults
    }

    /// Changes what this proxy tells, and raises its revision if that is different. Name, epoch and
    /// revision are not for `change` to set.
    ///
    /// # Errors
    /// When the new profile breaks a bound; nothing has changed then.
    pub fn update_own(
        &mut self,
        now: Time,
        change: impl FnOnce(&mut Profile),
    ) -> Result<(), ProfileError> {
        self.tick(now);
        let mut own = Profile::clone(&self.own);
        change(&mut own);
        own.name = self.own.name.clone();
        own.epoch = self.own.epoch;
        own.revision = self.own.revision;
        if own == *self.own {
            return Ok(());
        }
        own.check()?;
        let revision = own.revision.checked_add(1);
        own.revision = revision.ok_or(ProfileError::Revisions)?;
        self.rename(own);
        Ok(())
    }

    /// A connection to a peer stands and its hello has come.
    pub fn connected(&mut self, now: Time, peer: Profile) -> Standing {
        self.tick(now);
        let id = peer.id();
        let standing = self.learn(peer, true);
        match standing {
            Standing::Taken | Standing::Dead { .. } if self.silence.is_none() => {
                self.connected.insert(id.name.clone());
                self.engine.announce(id);
                self.settle();
            }
            Standing::Taken
            | Standing::Dead { .. }
            | Standing::Older { .. }
            | Standing::SameName
            | Standing::Full
            | Standing::Invalid(_) => {}
        }
        standing
    }

    /// A peer tells on its control stream that its profile has changed.
    pub fn told(&mut self, now: Time, peer: Profile) -> Standing {
        self.tick(now);
        self.learn(peer, false)
    }

    /// The last connection to a peer of that name has ended, for whatever reason.
    pub fn closed(&mut self, now: Time, peer: &NodeName) {
        self.tick(now);
        self.connected.remove(peer);
        if self.silence.is_none() {
            self.suspect(peer);
        }
    }

    /// A peer says that it holds this proxy for dead.
    pub fn taken_for_dead(&mut self, now: Time, epoch: u64, revision: u32) {
        self.tick(now);
        if self.silence.is_some() || epoch < self.own.epoch {
            return;
        }
        if epoch > self.own.epoch {
            self.supersede(epoch);
        } else if revision > self.own.revision && self.give_in() {
            self.supersede(self.own.epoch);
        } else if revision >= self.own.revision {
            self.renew_above(revision);
        }
    }

    /// Says goodbye: others take this proxy for one that has left. Nothing is received or sent
    /// after what the following polls return.
    pub fn leave(&mut self, now: Time) {
        self.tick(now);
        if self.silence.is_some() {
            return;
        }
        if !self.own.draining {
            let mut own = Profile::clone(&self.own);
            own.draining = true;
            own.revision = own.revision.saturating_add(1);
            self.rename(own);
        }
        self.silence = Some(Silence::Left);
        self.engine.leave();
        self.settle();
        self.rest();
    }

    /// This proxy's routes have moved. Each call costs gossip: callers coalesce.
    pub fn set_head(&mut self, now: Time, head: RoutesHead) {
        self.tick(now);
        if self.own_head == Some(head) {
            return;
        }
        self.own_head = Some(head);
        if self.silence.is_none() {
            self.engine.spread(&MemberHead {
                name: self.own.name.clone(),
                head,
            });
        }
    }

    /// Does what is due, and returns what the driver has to do, one by one.
    pub fn poll(&mut self, now: Time) -> Option<Output> {
        self.tick(now);
        if self.silence.is_none() {
            self.run_due();
        }
        self.out.pop()
    }

    /// When to poll next, if nothing else happens before.
    #[must_use]
    pub fn next_wake(&self) -> Option<Time> {
        if !self.out.is_empty() {
            return Some(self.now);
        }
        if self.silence.is_some() {
            return None;
        }
        [
            self.timers.next(),
            self.next_suspicion(),
            self.next_forgotten(),
            self.lonely_at,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Notes the time. When this process was frozen, the time in which it was does not count: what
    /// has come meanwhile is read first, and nobody is blamed for it.
    fn tick(&mut self, now: Time) {
        self.now = self.now.max(now);
        let due = [self.timers.next(), self.next_suspicion()];
        let Some(due) = due.into_iter().flatten().min() else {
            return;
        };
        let late = self.now.since(due);
        if late <= self.settings.probe_period {
            return;
        }
        let by = late + self.settings.probe_rtt;
        self.timers.put_off(by);
        for suspicion in self.suspicions.values_mut() {
            suspicion.put_off(by);
        }
        self.doubt_until = self.now + 3 * self.settings.suspicion;
    }

    fn run_due(&mut self) {
        while let Some(timer) = self.timers.pop(self.now) {
            self.engine.timer(timer);
            self.settle();
        }
        self.bury();
        self.forget_old();
        if self.lonely_at.is_some_and(|at| at <= self.now) {
            self.lonely_at = Some(self.now + self.settings.revive_period);
            self.knock();
        }
    }

    /// Talks to one that is taken for dead, when nobody else is left to talk to.
    fn knock(&mut self) {
        let all = || self.view.values().map(Known::id);
        let near: Vec<_> = all()
            .filter(|id| self.connected.contains(&id.name))
            .collect();
        let mut choice = if near.is_empty() {
            all().collect()
        } else {
            near
        };
        if !choice.is_empty() {
            let id = choice.swap_remove(self.dice.below(choice.len()));
            self.engine.announce(id);
            self.settle();
        }
    }

    /// Takes over what foca wants after a call.
    fn settle(&mut self) {
        loop {
            let effects = std::mem::take(&mut self.engine.effects);
            if let Some(own) = &self.engine.identity().profile {
                self.own = Arc::clone(own);
            }
            for (to, packet) in effects.sends {
                self.send_packet(to, &packet);
            }
            self.refresh();
            for (timer, after) in effects.timers {
                if let Some(timer) = self.timers.start(self.now + after, timer) {
                    self.blame(timer);
                }
            }
            if effects.defunct && self.silence.is_none() {
                self.supersede(self.own.epoch);
            }
            if !effects.renewed || self.silence.is_some() {
                break;
            }
            self.engine.apply([]);
            self.renewed();
        }
        self.lonely_at = match (
            self.engine.is_alone() && !self.view.is_empty(),
            self.lonely_at,
        ) {
            (true, None) => Some(self.now + self.settings.revive_period),
            (true, at) => at,
            (false, _) => None,
        };
    }

    fn rename(&mut self, own: Profile) {
        self.engine.rename(Arc::new(own));
        self.settle();
    }

    /// Becomes a revision above `revision`, which others hold for dead.
    fn renew_above(&mut self, revision: u32) {
        if revision > self.own.revision.saturating_add(REVISION_LEAD_MAX) {
            return;
        }
        let mut own = Profile::clone(&self.own);
        let Some(revision) = revision.max(own.revision).checked_add(1) else {
            return self.supersede(self.own.epoch);
        };
        own.revision = revision;
        self.rename(own);
        self.renewed();
        self.settle();
    }

    /// Those on the other side of a split are held for dead here, too, and get no gossip.
    fn renewed(&mut self) {
        self.out.tell(Event::Renewed);
        let dead = self.view.values().filter(|known| known.is_dead());
        let near = dead.filter(|known| self.connected.contains(&known.profile.name));
        for id in near.map(Known::id).collect::<Vec<_>>() {
            self.engine.announce(id);
        }
    }

    /// Falls silent for good.
    fn supersede(&mut self, epoch: u64) {
        self.silence = Some(Silence::Superseded);
        self.out.drop_datagrams();
        self.rest();
        self.out.tell(Event::Superseded { epoch });
    }

    fn rest(&mut self) {
        self.timers.clear();
        self.suspicions.clear();
        self.lonely_at = None;
    }
}

impl fmt::Debug for Membership {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Membership")
            .field("own", &self.own)
            .field("view", &self.view)
            .field("heads", &self.heads)
            .field("silence", &self.silence)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
