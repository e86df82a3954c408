//! Whom to dial next, and how long to wait before.

use std::time::Duration;

use crate::name::NodeName;
use crate::time::Time;

use super::backoff::{Draw, Growth};
use super::member::Known;
use super::{Action, Connected, Link, Pool, Whom, rendezvous};

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
        let candidates: Vec<(&NodeName, &Known)> = self
            .tracker
            .desired()
            .filter(|name| !self.tracker.is_claimed(&[name]))
            .filter_map(|name| self.members.get_key_value(&**name))
            .filter(|(_, known)| !known.addresses.is_empty())
            .collect();
        let best = |is_unreachable: bool| {
            candidates
                .iter()
                .filter(|(name, known)| {
                    known.is_unreachable == is_unreachable
                        && known.backoff.until() <= now
                        && !is_dialled(name)
                })
                .max_by_key(|(name, _)| (rendezvous::score(&self.agent, name), *name))
                .map(|(name, known)| Whom::Directed {
                    proxy: (*name).clone(),
                    addresses: known.addresses.clone(),
                })
        };
        let configured = || {
            // One at a time: two dials through one balancer may well reach one proxy.
            let is_under_way = under_way.iter().any(|directed| directed.is_none());
            let waits = self
                .configured_failures
                .until()
                .max(self.duplicates.until());
            let address = self.addresses.get(self.next_address)?;
            (!is_under_way && now >= waits).then(|| Whom::Configured {
                address: address.clone(),
            })
        };
        // Those that nobody knows to be out of reach come first. But when all that was tried is out of
        // reach, so may be the rest, and however many they are, trying them and trying them again must
        // leave room for the balancer.
        let unreachable = candidates
            .iter()
            .filter(|(_, known)| known.is_unreachable)
            .count();
        if unreachable >= self.limits.parallel_dials_max {
            configured().or_else(|| best(false)).or_else(|| best(true))
        } else {
            best(false).or_else(configured).or_else(|| best(true))
        }
    }

    /// Dials nobody until the end of this wait. One under way is not prolonged: losses one after the
    /// other would keep the agent from dialling for as long as they go on.
    pub(super) fn pace(&mut self, now: Time, wait: Duration) {
        if self.paced_until <= now {
            self.paced_until = now + wait;
        }
    }

    /// Leaves a proxy alone for a while, after a dial has failed.
    pub(super) fn cool_down(&mut self, now: Time, proxy: &NodeName, draw: &mut dyn Draw) {
        let growth = self.failures_growth().at_least_twice(self.spread);
        if let Some(known) = self.members.get_mut(proxy) {
            known.backoff.fail(now, growth, draw);
        }
    }

    /// Waits after a connection has ended that was not let go. It may be a network's hiccup or a
    /// proxy's end, and a fleet must not answer either at once. When the wait is over, that proxy is
    /// dialled first, and not the balancer, which would lead to those that are connected.
    pub(super) fn lost(&mut self, now: Time, link: &Connected, draw: &mut dyn Draw) {
        let growth = self.failures_growth();
        let known = self.members.get_mut(&link.reached.proxy);
        let is_known = known.is_some();
        if let Some(known) = known {
            known.backoff.fail(now, growth, draw);
        }
        if !is_known || (link.through_configured && !link.settled) {
            self.configured_failed(now, draw);
        }
        self.pace(now, draw.up_to(self.spread));
    }

    /// Leaves the configured addresses alone for a while, after a dial or what came of it has failed.
    /// An agent that has a connection has time; one that has none takes its chances.
    pub(super) fn configured_failed(&mut self, now: Time, draw: &mut dyn Draw) {
        let growth = self.failures_growth();
        if self.held().next().is_some() {
            self.configured_failures
                .fail(now + self.spread, growth, draw);
        } else {
            self.configured_failures
                .fail(now, growth.at_least_twice(self.spread), draw);
        }
    }

    /// Leaves the configured addresses alone for a while, after a dial that brought nothing new.
    pub(super) fn configured_duplicate(&mut self, now: Time, draw: &mut dyn Draw) {
        let growth = Growth {
            first: self.limits.duplicate_first,
            max: self.limits.duplicate_max,
        };
        self.duplicates.fail(now + self.spread, growth, draw);
    }

    fn failures_growth(&self) -> Growth {
        Growth {
            first: self.limits.backoff_first,
            max: self.limits.backoff_max,
        }
    }
}
