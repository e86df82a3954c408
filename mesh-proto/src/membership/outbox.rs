//! What waits for the driver: events first, then datagrams, both bounded.

use std::collections::VecDeque;

use super::{Event, Output};
use crate::name::NodeName;

/// How many datagrams wait at most. A driver that does not take them loses the oldest, as a network
/// would.
const DATAGRAMS_MAX: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Outbox {
    events: VecDeque<Event>,
    datagrams: VecDeque<(NodeName, Vec<u8>)>,
}

impl Outbox {
    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty() && self.datagrams.is_empty()
    }

    /// An event tells that something has changed, not what it was: one of a kind and name is enough.
    pub(super) fn tell(&mut self, event: Event) {
        self.events.retain(|waiting| !event.replaces(waiting));
        self.events.push_back(event);
    }

    pub(super) fn send(&mut self, to: NodeName, datagram: Vec<u8>) {
        if self.datagrams.len() == DATAGRAMS_MAX {
            self.datagrams.pop_front();
        }
        self.datagrams.push_back((to, datagram));
    }

    pub(super) fn drop_datagrams(&mut self) {
        self.datagrams.clear();
    }

    pub(super) fn pop(&mut self) -> Option<Output> {
        if let Some(event) = self.events.pop_front() {
            return Some(Output::Event(event));
        }
        let (to, datagram) = self.datagrams.pop_front()?;
        Some(Output::Send { to, datagram })
    }
}

impl Event {
    fn replaces(&self, waiting: &Self) -> bool {
        match (self, waiting) {
            (Self::Changed(name) | Self::Removed(name), Self::Changed(other))
            | (Self::Removed(name), Self::Removed(other) | Self::Head { name: other, .. })
            | (Self::Head { name, .. }, Self::Head { name: other, .. }) => name == other,
            (Self::Renewed, Self::Renewed) | (Self::Superseded { .. }, Self::Superseded { .. }) => {
                true
            }
            (
                Self::Changed(_)
                | Self::Removed(_)
                | Self::Head { .. }
                | Self::Renewed
                | Self::Superseded { .. },
                _,
            ) => false,
        }
    }
}
