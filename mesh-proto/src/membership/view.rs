//! What is known of the others: kept equal to foca's list, with suspicions and their deadlines.

use std::sync::Arc;
use std::time::Duration;

use foca::{Incarnation, Member, State, Timer};

use super::engine::{self, Id};
use super::{Event, Membership, Standing};
use crate::name::NodeName;
use crate::time::Time;
use crate::wire::{MemberState, MemberUpdate, Profile, ProfileId};

/// Another proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// What it tells of itself.
    pub profile: Arc<Profile>,
    /// How it is. One that drains is draining even while it is suspected, and has left when it is
    /// dead.
    pub state: MemberState,
    /// Since when it is in this state.
    pub since: Time,
    incarnation: Incarnation,
    swim: State,
}

impl Known {
    pub(super) fn id(&self) -> ProfileId {
        self.profile.id()
    }

    pub(super) fn is_dead(&self) -> bool {
        self.swim == State::Down
    }

    fn is(&self, epoch: u64, revision: u32) -> bool {
        self.profile.epoch == epoch && self.profile.revision == revision
    }

    fn member(&self, state: State) -> Member<Id> {
        Member::new(
            Id::known(Arc::clone(&self.profile)),
            self.incarnation,
            state,
        )
    }
}

/// What stood at one place of foca's list at the last look: most of it has not changed since, and
/// this is compared faster than a name is found.
#[derive(Debug)]
pub(super) struct Seen {
    profile: Arc<Profile>,
    incarnation: Incarnation,
    swim: State,
}

impl Seen {
    fn new(profile: &Arc<Profile>, incarnation: Incarnation, swim: State) -> Self {
        Self {
            profile: Arc::clone(profile),
            incarnation,
            swim,
        }
    }

    fn is(&self, profile: &Arc<Profile>, incarnation: Incarnation, swim: State) -> bool {
        Arc::ptr_eq(&self.profile, profile) && self.incarnation == incarnation && self.swim == swim
    }
}

/// Against one member, at one incarnation.
#[derive(Debug, Clone)]
pub(super) struct Suspicion {
    id: ProfileId,
    incarnation: Incarnation,
    /// When it is taken for dead.
    deadline: Time,
    /// However often it is heard of: it may talk and hear nothing.
    latest: Time,
    /// Whether this proxy has noticed it by itself. Hearsay gets twice the time, since whoever has
    /// noticed will say so in time.
    own: bool,
}

impl Suspicion {
    pub(super) fn put_off(&mut self, by: Duration) {
        self.deadline = self.deadline + by;
        self.latest = self.latest + by;
    }
}

impl Membership {
    /// Makes the view equal to foca's list.
    pub(super) fn refresh(&mut self) {
        let mut count = 0;
        for (place, member) in self.engine.members().enumerate() {
            let Some(profile) = &member.id().profile else {
                continue;
            };
            count = place + 1;
            let name = &profile.name;
            let (incarnation, swim) = (member.incarnation(), member.state());
            match self.seen.get_mut(place) {
                Some(seen) if seen.is(profile, incarnation, swim) => continue,
                Some(seen) => *seen = Seen::new(profile, incarnation, swim),
                None => self.seen.push(Seen::new(profile, incarnation, swim)),
            }
            let state = match (swim, profile.draining) {
                (State::Alive | State::Suspect, true) => MemberState::Draining,
                (State::Alive, false) => MemberState::Alive,
                (State::Suspect, false) => MemberState::Suspect,
                (State::Down, true) => MemberState::Left,
                (State::Down, false) => MemberState::Down,
            };
            let mut since = self.now;
            let mut shows = true;
            if let Some(known) = self.view.get(name) {
                let same = known.is(profile.epoch, profile.revision);
                if same && known.swim == swim && known.incarnation == incarnation {
                    continue;
                }
                if known.profile.epoch != profile.epoch {
                    self.heads.remove(name);
                }
                if known.state == state {
                    since = known.since;
                    shows = !same;
                }
            }
            let known = Known {
                profile: Arc::clone(profile),
                state,
                since,
                incarnation,
                swim,
            };
            if swim == State::Suspect {
                let suspicion = Suspicion {
                    id: known.id(),
                    incarnation,
                    deadline: self.now + 2 * self.settings.suspicion,
                    latest: self.now + 3 * self.settings.suspicion,
                    own: false,
                };
                self.suspicions.insert(name.clone(), suspicion);
            } else {
                self.suspicions.remove(name);
            }
            if shows {
                self.out.tell(Event::Changed(name.clone()));
            }
            self.view.insert(name.clone(), known);
        }
        self.seen.truncate(count);
    }

    /// foca's own probe has failed.
    pub(super) fn blame(&mut self, timer: Timer<Id>) {
        if let Timer::ChangeSuspectToDown {
            member_id,
            incarnation,
            ..
        } = timer
        {
            self.suspect_by_itself(&member_id.key, incarnation);
        }
        // The other timer that is not kept, when to forget the dead, follows from the view.
    }

    fn suspect_by_itself(&mut self, id: &ProfileId, incarnation: Incarnation) {
        let doubt = if self.now < self.doubt_until { 3 } else { 1 };
        let deadline = self.now + doubt * self.settings.suspicion;
        let Some(suspicion) = self.suspicions.get_mut(&id.name) else {
            return;
        };
        if suspicion.id == *id && suspicion.incarnation == incarnation && !suspicion.own {
            suspicion.own = true;
            suspicion.deadline = if doubt > 1 {
                deadline
            } else {
                suspicion.deadline.min(deadline)
            };
            suspicion.latest = suspicion.latest.max(deadline);
            self.warn(&id.name);
        }
    }

    /// Suspects a member without a probe.
    pub(super) fn suspect(&mut self, name: &NodeName) {
        let Some(known) = self.view.get(name).filter(|known| !known.is_dead()) else {
            return;
        };
        let (id, incarnation) = (known.id(), known.incarnation);
        let suspect = known.member(State::Suspect);
        self.engine.apply([suspect]);
        self.settle();
        self.suspect_by_itself(&id, incarnation);
    }

    /// A suspect hears of it from whoever suspects it, and can refute at once.
    fn warn(&mut self, name: &NodeName) {
        let Some(known) = self.view.get(name) else {
            return;
        };
        if known.swim == State::Suspect {
            let update = self.update(known);
            self.tell(known.id(), vec![update]);
        }
    }

    /// What is known of a member, as others are told.
    pub(super) fn update(&self, known: &Known) -> MemberUpdate {
        MemberUpdate {
            profile: Profile::clone(&known.profile),
            incarnation: known.incarnation,
            state: engine::wire_state(known.swim),
        }
    }

    /// A member has just said something itself: so it is alive. That is no refutation, which only
    /// the suspect can make for all, but a reason to give it more time, and to warn it.
    pub(super) fn heard(&mut self, id: &ProfileId) {
        let deadline = self.now + self.settings.suspicion;
        let Some(suspicion) = self.suspicions.get_mut(&id.name) else {
            return;
        };
        if suspicion.id == *id {
            suspicion.deadline = suspicion.deadline.max(deadline).min(suspicion.latest);
            self.warn(&id.name);
        }
    }

    /// Learns of a peer from itself.
    pub(super) fn learn(&mut self, peer: Profile, hello: bool) -> Standing {
        if let Err(error) = peer.check() {
            return Standing::Invalid(error);
        }
        if peer.name == self.own.name {
            if peer.epoch > self.own.epoch && self.silence.is_none() {
                self.supersede(peer.epoch);
            }
            return Standing::SameName;
        }
        if self.silence.is_some() {
            return Standing::Taken;
        }
        let id = peer.id();
        if let Some(known) = self.view.get(&peer.name) {
            if known.profile.epoch > peer.epoch {
                return Standing::Older {
                    epoch: known.profile.epoch,
                };
            }
            if known.is_dead() && known.id() >= id {
                return known.dead(0);
            }
            // A hello is of now. With an earlier revision, or the same and other contents, it is of a
            // start that has lost what it knew of earlier ones, or of a clone. What is told later,
            // gossip may have overtaken.
            if hello && known.id() > id {
                return known.dead(0);
            }
            if hello && known.id() == id && *known.profile != peer {
                return known.dead(1);
            }
            if known.id() > id {
                return Standing::Taken;
            }
        } else if !self.make_room() {
            return Standing::Full;
        }
        self.engine
            .apply([Member::alive(Id::known(Arc::new(peer)))]);
        self.settle();
        self.heard(&id);
        Standing::Taken
    }

    /// Takes those for dead that have not refuted in time.
    pub(super) fn bury(&mut self) {
        let due = |suspicion: &&Suspicion| suspicion.deadline <= self.now;
        let due: Vec<_> = self.suspicions.values().filter(due).cloned().collect();
        for suspicion in due {
            let name = &suspicion.id.name;
            self.suspicions.remove(name);
            if let Some(known) = self.view.get(name)
                && known.swim == State::Suspect
                && known.incarnation == suspicion.incarnation
                && known.id() == suspicion.id
            {
                let down = known.member(State::Down);
                self.engine.apply([down]);
                self.settle();
            }
        }
    }

    /// How many more members may be known before one that is dead has to make room.
    pub(super) fn room(&self) -> usize {
        let others_max = self.settings.members_max.saturating_sub(1);
        others_max.saturating_sub(self.view.len())
    }

    /// Whether one more member may be known, perhaps in the place of one that is dead.
    pub(super) fn make_room(&mut self) -> bool {
        self.room() > 0 || self.evict()
    }

    /// Forgets the member that has been dead the longest.
    pub(super) fn evict(&mut self) -> bool {
        let dead = self.view.values().filter(|known| known.is_dead());
        let oldest = dead.min_by_key(|known| known.since);
        let Some(name) = oldest.map(|known| known.profile.name.clone()) else {
            return false;
        };
        self.forget(&name);
        true
    }

    pub(super) fn forget_old(&mut self) {
        let remember = self.settings.remember;
        let old = self.view.values().filter(|known| known.is_dead());
        let old = old.filter(|known| known.since + remember <= self.now);
        for name in old
            .map(|known| known.profile.name.clone())
            .collect::<Vec<_>>()
        {
            self.forget(&name);
        }
    }

    fn forget(&mut self, name: &NodeName) {
        let Some(known) = self.view.remove(name) else {
            return;
        };
        self.heads.remove(name);
        self.engine
            .timer(Timer::RemoveDown(Id::known(known.profile)));
        self.out.tell(Event::Removed(name.clone()));
    }

    pub(super) fn next_suspicion(&self) -> Option<Time> {
        self.suspicions.values().map(|entry| entry.deadline).min()
    }

    pub(super) fn next_forgotten(&self) -> Option<Time> {
        let dead = self.view.values().filter(|known| known.is_dead());
        let next = dead.map(|known| known.since).min()?;
        Some(next + self.settings.remember)
    }
}

impl Known {
    /// A revision that is not the peer's own, `ahead` of what is known here, shows it that another
    /// one bears its name.
    fn dead(&self, ahead: u32) -> Standing {
        Standing::Dead {
            epoch: self.profile.epoch,
            revision: self.profile.revision.saturating_add(ahead),
        }
    }
}
