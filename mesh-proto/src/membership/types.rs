//! What goes in and comes out besides datagrams.

use std::time::Duration;

use crate::name::NodeName;
use crate::wire::{MEMBERS_MAX, ProfileError, RoutesHead};

/// How gossip goes about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How often a member is probed, and how late a timer may be before this process takes itself
    /// for frozen.
    pub probe_period: Duration,
    /// How long an answer may take before others are asked to probe; less than the period.
    pub probe_rtt: Duration,
    /// How long a suspect has to refute.
    pub suspicion: Duration,
    /// How long the dead are remembered.
    pub remember: Duration,
    /// How often news are told, while there are any.
    pub gossip_period: Duration,
    /// How often a member is asked for all that it knows to be alive.
    pub announce_period: Duration,
    /// How often one that is taken for dead is talked to nevertheless.
    pub revive_period: Duration,
    /// How many members there may be, this one included.
    pub members_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            probe_period: Duration::from_secs(1),
            probe_rtt: Duration::from_millis(400),
            suspicion: Duration::from_secs(4),
            remember: Duration::from_secs(600),
            gossip_period: Duration::from_millis(200),
            announce_period: Duration::from_secs(30),
            revive_period: Duration::from_secs(10),
            members_max: MEMBERS_MAX,
        }
    }
}

/// What has become of what a peer has told of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It is known, in this or a later state.
    Taken,
    /// It is held for dead, or for another, at this epoch and revision: tell it so, and it renews
    /// itself ([`Membership::taken_for_dead`]).
    ///
    /// [`Membership::taken_for_dead`]: super::Membership::taken_for_dead
    Dead {
        /// The epoch.
        epoch: u64,
        /// The revision that it must exceed.
        revision: u32,
    },
    /// A later start of that name is known: tell it so ([`Membership::taken_for_dead`] with that
    /// epoch), and it falls silent.
    ///
    /// [`Membership::taken_for_dead`]: super::Membership::taken_for_dead
    Older {
        /// Its epoch.
        epoch: u64,
    },
    /// It bears this proxy's own name.
    SameName,
    /// There are as many live members as there may be.
    Full,
    /// It breaks a bound.
    Invalid(ProfileError),
}

/// What the driver has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send a datagram on the connection to a proxy, if there is one.
    Send {
        /// To whom.
        to: NodeName,
        /// One frame, at most [`GOSSIP_BYTES_MAX`](crate::wire::GOSSIP_BYTES_MAX).
        datagram: Vec<u8>,
    },
    /// Something has changed.
    Event(Event),
}

/// What has changed. Of several changes of a kind to one member the last alone may be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A member is new, or its profile or state has changed.
    Changed(NodeName),
    /// A member that was dead or had left is forgotten.
    Removed(NodeName),
    /// A member's routes have moved.
    Head {
        /// The member.
        name: NodeName,
        /// Where they are now.
        head: RoutesHead,
    },
    /// Another start of this proxy's name is known, with this epoch. This one takes no part any
    /// more: it ends, or starts anew with a higher epoch.
    Superseded {
        /// The epoch.
        epoch: u64,
    },
    /// This proxy was taken for dead and has renewed itself: tell the peers its new profile.
    Renewed,
}

impl Settings {
    /// Durations that foca would trip over become the nearest that work.
    pub(super) fn mended(mut self) -> Self {
        let least = Duration::from_millis(1);
        self.probe_rtt = self.probe_rtt.max(least);
        self.probe_period = self.probe_period.max(self.probe_rtt + least);
        for duration in [
            &mut self.suspicion,
            &mut self.remember,
            &mut self.gossip_period,
            &mut self.announce_period,
            &mut self.revive_period,
        ] {
            *duration = (*duration).max(least);
        }
        self
    }
}
