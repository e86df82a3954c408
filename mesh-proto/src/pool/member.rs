//! What the pool believes of proxies, out of what they tell of themselves and of each other.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::name::{Generation, Group, NodeName};
use crate::time::Time;
use crate::tracker::{DEFAULT_TTL, LeaseId, Sighting};

use super::backoff::Backoff;
use super::heard::is_address;
use super::{Ignored, IgnoredCounts, Link, Pool, Reached, rendezvous};

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

/// What is believed of a proxy. Those that drain or are gone are kept until what was told of them
/// expires: somebody may tell an older view, and must find the epoch and the failures.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) group: Group,
    pub(super) generation: Generation,
    pub(super) epoch: u64,
    pub(super) addresses: Vec<String>,
    pub(super) expiry: Time,
    pub(super) state: MemberState,
    pub(super) backoff: Backoff,
    /// Its failures were forgiven for a change that others tell of, and are not again before this.
    pub(super) forgiven_until: Time,
    /// The last directed dial has failed.
    pub(super) is_unreachable: bool,
}

impl Known {
    pub(super) fn is_alive(&self) -> bool {
        self.state == MemberState::Alive
    }
}

impl Pool {
    /// Hears of proxies from the one that the connection of `from` leads to, whose word about itself
    /// counts more than that of others. Returns what was ignored of it.
    pub fn members(
        &mut self,
        now: Time,
        from: Option<LeaseId>,
        view: Vec<Member>,
    ) -> IgnoredCounts {
        let teller = from.and_then(|lease| self.connected_to(lease)).cloned();
        let mut news = None;
        let mut ignored = IgnoredCounts::default();
        let names: BTreeSet<&NodeName> = view.iter().map(|member| &member.name).collect();
        ignored.add(Ignored::Duplicate, view.len() - names.len());
        for member in view {
            let about = (member.name.clone(), member.epoch);
            self.first_heard.get_or_insert(now);
            if self.member(now, member, teller.as_ref(), &mut ignored) && news.is_none() {
                news = Some(about);
            }
        }
        // What is told first is new to this agent alone. What is told later is heard by the whole fleet
        // at once, and must not bring all of it to one proxy in one moment.
        let is_first = self
            .first_heard
            .is_some_and(|first| now < first + self.limits.settle);
        if let Some((name, epoch)) = news
            && !is_first
        {
            let turn = rendezvous::turn(&self.agent, &name, epoch, self.spread);
            self.pace(now, turn);
        }
        ignored
    }

    /// Whether there is a dial to be made for it: to it, or for a replacement.
    fn member(
        &mut self,
        now: Time,
        mut member: Member,
        teller: Option<&Reached>,
        ignored: &mut IgnoredCounts,
    ) -> bool {
        let of_itself = teller
            .is_some_and(|teller| teller.proxy == member.name && teller.epoch == member.epoch);
        let link = self.link_to(&member.name);
        let known = self.members.get(&member.name);
        // An older start of the same proxy is a leftover of somebody's memory.
        if known.is_some_and(|known| known.epoch > member.epoch)
            || link.is_some_and(|link| link.reached.epoch > member.epoch)
        {
            ignored.add(Ignored::Stale, 1);
            return false;
        }
        match member.state {
            MemberState::Alive => {}
            MemberState::Draining | MemberState::Gone => {
                return self.member_leaves(now, &member);
            }
        }
        let is_back = known.is_some_and(|known| {
            known.epoch == member.epoch && known.generation > member.generation
        });
        if of_itself {
            ignored.add(Ignored::Stale, usize::from(is_back));
        } else {
            if let Some(link) = link
                && link.reached.epoch == member.epoch
            {
                if link.draining {
                    // Others may not have heard yet.
                    return false;
                }
                member.group = link.reached.group.clone();
                member.generation = link.reached.generation;
            } else if is_back {
                // Within one start it cannot have gone back: somebody's memory again.
                ignored.add(Ignored::Stale, 1);
                return false;
            }
        }
        if known.is_none() && self.members.len() >= self.limits.members_max {
            ignored.add(Ignored::OverLimit, 1);
            return false;
        }
        if of_itself {
            self.set_draining(&member.name, false);
        }
        self.member_is_alive(now, member, ignored)
    }

    fn member_leaves(&mut self, now: Time, member: &Member) -> bool {
        let was_alive = self.members.get(&member.name).is_some_and(Known::is_alive);
        if member.state == MemberState::Draining {
            self.set_draining(&member.name, true);
        }
        self.retire(now, &member.name, member.state);
        if let Some(known) = self.members.get_mut(&member.name) {
            known.epoch = member.epoch;
        }
        was_alive && self.tracker.is_claimed(&[member.name.as_str()])
    }

    fn member_is_alive(
        &mut self,
        now: Time,
        mut member: Member,
        ignored: &mut IgnoredCounts,
    ) -> bool {
        let told = member.ttl.unwrap_or(DEFAULT_TTL);
        let ttl = told.max(self.limits.ttl_min).min(self.limits.ttl_max);
        ignored.add(Ignored::Ttl, usize::from(ttl != told));
        let advertised = member.addresses.len();
        member.addresses.retain(|address| is_address(address));
        ignored.add(Ignored::Address, advertised - member.addresses.len());
        let forgiven_for = self.limits.backoff_max;
        let mut is_new = false;
        let known = self.members.entry(member.name.clone()).or_insert_with(|| {
            is_new = true;
            Known {
                group: member.group.clone(),
                generation: member.generation,
                epoch: member.epoch,
                addresses: Vec::new(),
                expiry: now,
                state: MemberState::Alive,
                backoff: Backoff::default(),
                forgiven_until: Time::ZERO,
                is_unreachable: false,
            }
        });
        let is_back = !known.is_alive();
        let is_restarted = known.epoch != member.epoch;
        let is_elsewhere = known.addresses != member.addresses;
        let is_changed = is_new
            || is_back
            || is_restarted
            || known.generation != member.generation
            || known.group != member.group;
        if (is_restarted || (is_back && is_elsewhere)) && known.forgiven_until <= now {
            // What failed before says nothing. Addresses alone do not count, since two proxies may
            // differ about them, and go on telling so. Nor does one restart after the other: whoever
            // tells of them would decide how often it is dialled.
            known.backoff.reset();
            known.is_unreachable = false;
            known.forgiven_until = now + forgiven_for;
        }
        known.group = member.group;
        known.generation = member.generation;
        known.epoch = member.epoch;
        known.addresses = member.addresses;
        known.expiry = now + ttl;
        known.state = MemberState::Alive;
        self.track(now, &member.name, ttl);
        if is_changed {
            self.view_changed = now;
        }
        is_changed && !self.tracker.is_claimed(&[member.name.as_str()])
    }

    /// A proxy that has just answered is known and alive, whatever others have told: so no dial is
    /// made for want of a view, before its own has come. No limit keeps it out: as many proxies as
    /// answer are there. `true` when it is known to drain.
    pub(super) fn meet(&mut self, now: Time, reached: &Reached) -> bool {
        let ttl = DEFAULT_TTL.min(self.limits.ttl_max);
        let Some(known) = self.members.get_mut(&reached.proxy) else {
            let known = Known {
                group: reached.group.clone(),
                generation: reached.generation,
                epoch: reached.epoch,
                addresses: Vec::new(),
                expiry: now + ttl,
                state: MemberState::Alive,
                backoff: Backoff::default(),
                forgiven_until: Time::ZERO,
                is_unreachable: false,
            };
            self.members.insert(reached.proxy.clone(), known);
            self.track(now, &reached.proxy, ttl);
            self.view_changed = now;
            return false;
        };
        if known.epoch > reached.epoch {
            // A leftover, or one that has lost its count: the newer one is forgotten in time when
            // nobody tells of it any more.
            return false;
        }
        let is_restarted = known.epoch < reached.epoch;
        if known.state == MemberState::Draining && !is_restarted {
            return true;
        }
        let is_changed = is_restarted
            || !known.is_alive()
            || known.generation != reached.generation
            || known.group != reached.group;
        known.group = reached.group.clone();
        known.generation = reached.generation;
        known.epoch = reached.epoch;
        if is_changed {
            known.state = MemberState::Alive;
            known.expiry = known.expiry.max(now + ttl);
            let ttl = known.expiry - now;
            self.track(now, &reached.proxy, ttl);
            self.view_changed = now;
        }
        false
    }

    /// Tells the tracker what is known of a proxy.
    fn track(&mut self, now: Time, name: &NodeName, ttl: Duration) {
        let Some(known) = self.members.get(name) else {
            return;
        };
        let sighting = Sighting {
            name: Arc::from(name.as_str()),
            group: Arc::from(known.group.as_str()),
            generation: known.generation.0,
            ttl: Some(ttl),
        };
        self.tracker.track(now, [sighting]);
    }

    /// A proxy is not to be dialled any more; its connection stays claimed.
    pub(super) fn retire(&mut self, now: Time, name: &NodeName, state: MemberState) {
        self.tracker.retire(name.as_str());
        if let Some(known) = self.members.get_mut(name) {
            if known.is_alive() {
                self.view_changed = now;
            }
            known.state = state;
        }
    }

    /// Forgets what was told too long ago.
    pub(super) fn expire(&mut self, now: Time) {
        let Self {
            members,
            tracker,
            view_changed,
            ..
        } = self;
        members.retain(|name, known| {
            let is_believed = known.expiry >= now;
            if !is_believed && known.is_alive() {
                tracker.retire(name.as_str());
                *view_changed = now;
            }
            is_believed
        });
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
}
