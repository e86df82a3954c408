//! foca's timers: one of each kind, since an earlier one of a kind is void when it starts another.

use std::time::Duration;

use foca::Timer;

use super::engine::Id;
use crate::time::Time;

/// A timer's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    // The order is that in which foca wants those of one instant.
    Indirect,
    Probe,
    Announce,
    Gossip,
    AnnounceDown,
}

#[derive(Debug, Default)]
pub(super) struct Timers([Option<(Time, Timer<Id>)>; 5]);

impl Timers {
    /// Takes the timer, unless it is of a kind that is not kept here: then gives it back.
    pub(super) fn start(&mut self, at: Time, timer: Timer<Id>) -> Option<Timer<Id>> {
        let slot = match timer {
            Timer::SendIndirectProbe { .. } => Slot::Indirect,
            Timer::ProbeRandomMember(_) => Slot::Probe,
            Timer::PeriodicAnnounce(_) => Slot::Announce,
            Timer::PeriodicGossip(_) => Slot::Gossip,
            Timer::PeriodicAnnounceDown(_) => Slot::AnnounceDown,
            Timer::ChangeSuspectToDown { .. } | Timer::RemoveDown(_) => return Some(timer),
        };
        if let Some(place) = self.0.get_mut(slot as usize) {
            *place = Some((at, timer));
        }
        None
    }

    pub(super) fn next(&self) -> Option<Time> {
        self.0.iter().flatten().map(|(at, _)| *at).min()
    }

    /// The first timer that is due.
    pub(super) fn pop(&mut self, now: Time) -> Option<Timer<Id>> {
        let due = self.next().filter(|due| *due <= now)?;
        let mut places = self.0.iter_mut();
        let place = places.find(|place| place.as_ref().is_some_and(|(at, _)| *at == due))?;
        place.take().map(|(_, timer)| timer)
    }

    pub(super) fn put_off(&mut self, by: Duration) {
        for (at, _) in self.0.iter_mut().flatten() {
            *at = *at + by;
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}
