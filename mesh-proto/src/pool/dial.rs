//! Whom to dial next, and how long to wait before.

use std::time::Duration;

use crate::name::NodeName;
use crate::time::Time;

use super::backoff::{Draw, Growth};
use super::{Action, Link, Pool, Whom, rendezvous};

impl Pool {
    /// The next dial, if one more connection is wanted and somebody may be dialled.
    pub(super) fn poll_dial(&mut self, now: Time) -> Option<Action> {
        if now < self.paced_until {
            return None;
        }
        let whom = self.choose(now)?;
        let lease = self.tracker.acquire(now)?;
        let directed = match &whom {
            Whom::Directed { proxy, .. } => Some(proxy.clone()),
            Whom::Configured { .. } => {
                self.next_address = (self.next_address + 1) % self.addresses.len().max(1);
                None
            }
        };
        self.links.insert(lease, Link::Dialling(directed));
        Some(Action::Dial { lease, whom })
    }

    /// Whom to dial, if one more connection is wanted.
    fn choose(&self, now: Time) -> Option<Whom> {
        let under_way: Vec<&Option<NodeName>> = self
            .links
            .values()
            .filter_map(|link| match link {
                Link::Dialling(directed) => Some(directed),
                Link::Connected(_) => None,
            })
            .collect();
        if under_way.len() >= self.limits.parallel_dials_max {
            return None;
        }
        let is_dialled = |name: &NodeName| {
            under_way
                .iter()
                .any(|directed| directed.as_ref() == Some(name))
        };
        let best = self
            .tracker
            .desired()
            .filter(|name| !self.tracker.is_claimed(&[name]))
            .filter_map(|name| self.members.get_key_value(&**name))
            .filter(|(name, known)| {
                !known.addresses.is_empty() && known.backoff.until() <= now && !is_dialled(name)
            })
            .max_by_key(|(name, _)| (rendezvous::score(&self.agent, name), (*name).clone()));
        if let Some((name, known)) = best {
            return Some(Whom::Directed {
                proxy: name.clone(),
                addresses: known.addresses.clone(),
            });
        }
        // One at a time: two dials through one balancer may well reach one proxy.
        let waits = self
            .configured_failures
            .until()
            .max(self.duplicates.until());
        if now < waits || under_way.iter().any(|directed| directed.is_none()) {
            return None;
        }
        let address = self.addresses.get(self.next_address)?.clone();
        Some(Whom::Configured { address })
    }

    /// Dials nobody until the end of this wait. One under way is not prolonged: losses one after the
    /// other would keep the agent from dialling for as long as they go on.
    pub(super) fn pace(&mut self, now: Time, wait: Duration) {
        if self.paced_until <= now {
            self.paced_until = now + wait;
        }
    }

    pub(super) fn cool_down(&mut self, now: Time, proxy: &NodeName, draw: &mut dyn Draw) {
        let growth = self.failures_growth().up_to_twice(self.spread);
        if let Some(known) = self.members.get_mut(proxy) {
            known.backoff.fail(now, growth, draw);
        }
    }

    fn failures_growth(&self) -> Growth {
        Growth {
            first: self.limits.backoff_first,
            max: self.limits.backoff_max,
        }
    }

    /// An agent that has no connection at all hurries at first; others have time.
    pub(super) fn configured_growth(&self) -> Growth {
        let growth = self.failures_growth();
        if self.held().next().is_some() {
            growth.from_twice(self.spread)
        } else {
            growth.up_to_twice(self.spread)
        }
    }

    pub(super) fn duplicates_growth(&self) -> Growth {
        let growth = Growth {
            first: self.limits.duplicate_first,
            max: self.limits.duplicate_max,
        };
        growth.from_twice(self.spread)
    }
}
