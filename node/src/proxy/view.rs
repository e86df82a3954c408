//! The proxies of the cluster as this one knows them: itself, and those that it is connected to.
//! What it tells its agents.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mesh_proto::name::NodeName;
use mesh_proto::wire::{MEMBERS_MAX, Member, MemberState};
use tokio::sync::watch;
use tokio::time::Instant;

/// How long agents believe what they are told of a proxy.
pub(super) const MEMBER_TTL: Duration = Duration::from_secs(180);

/// How often agents are told anew, so that what they know never expires while they are connected.
pub(super) const REFRESH_INTERVAL: Duration = Duration::from_secs(60);

/// How long a proxy that is gone is still told of, so that every agent hears of its end.
const GONE_FOR: Duration = MEMBER_TTL;

/// All known proxies.
#[derive(Debug)]
pub(super) struct View {
    own: NodeName,
    members: Mutex<BTreeMap<NodeName, Known>>,
    /// Counts changes.
    version: watch::Sender<u64>,
}

#[derive(Debug)]
struct Known {
    member: Member,
    /// Connections over which it speaks for itself.
    connections: usize,
    gone_since: Option<Instant>,
}

impl View {
    /// Knows of this proxy alone.
    pub(super) fn new(own: Member) -> Self {
        let name = own.name.clone();
        let known = Known {
            member: own,
            connections: 1,
            gone_since: None,
        };
        Self {
            own: name.clone(),
            members: Mutex::new(BTreeMap::from([(name, known)])),
            version: watch::Sender::new(0),
        }
    }

    /// Hears of every change.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// This proxy, as it tells of itself.
    pub(super) fn own(&self) -> Option<Member> {
        self.lock().get(&self.own).map(|known| known.member.clone())
    }

    /// All of them, those that are gone too, in the order of their names.
    pub(super) fn members(&self) -> Vec<Member> {
        let now = Instant::now();
        let mut members = self.lock();
        members.retain(|_, known| known.gone_since.is_none_or(|since| now - since < GONE_FOR));
        members.values().map(|known| known.member.clone()).collect()
    }

    /// Whether another proxy serves, for all that is known.
    pub(super) fn others_serve(&self) -> bool {
        self.lock().iter().any(|(name, known)| {
            *name != self.own
                && match known.member.state {
                    MemberState::Alive | MemberState::Suspect | MemberState::Other(_) => true,
                    MemberState::Draining | MemberState::Left | MemberState::Down => false,
                }
        })
    }

    /// Where agents can dial this proxy.
    pub(super) fn set_own_addresses(&self, addresses: Vec<String>) {
        if let Some(known) = self.lock().get_mut(&self.own) {
            known.member.addresses = addresses;
        }
        self.changed();
    }

    /// This proxy's own state has changed.
    pub(super) fn set_own_state(&self, state: MemberState) {
        let mut members = self.lock();
        if let Some(known) = members.get_mut(&self.own)
            && known.member.state != state
        {
            known.member.state = state;
            drop(members);
            self.changed();
        }
    }

    /// A connection to a proxy stands, and this is what it tells of itself. `None` when an older
    /// start speaks of which a newer one is known, when it calls itself as this proxy is called, or
    /// when there are too many.
    pub(super) fn connected(&self, member: Member) -> Option<Presence<'_>> {
        if member.name == self.own {
            return None;
        }
        let name = member.name.clone();
        let mut members = self.lock();
        let full = members.len() >= MEMBERS_MAX;
        match members.get_mut(&name) {
            Some(known) if known.member.epoch > member.epoch => return None,
            Some(known) => {
                known.member = member;
                known.connections += 1;
                known.gone_since = None;
            }
            None if full => return None,
            None => {
                members.insert(
                    name.clone(),
                    Known {
                        member,
                        connections: 1,
                        gone_since: None,
                    },
                );
            }
        }
        drop(members);
        self.changed();
        Some(Presence { view: self, name })
    }

    fn changed(&self) {
        self.version.send_modify(|version| *version += 1);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeName, Known>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A proxy is known as living for as long as one of these is held.
#[derive(Debug)]
pub(super) struct Presence<'a> {
    view: &'a View,
    name: NodeName,
}

impl Presence<'_> {
    /// It tells something new of itself; `false` when that is of another name or an older start.
    pub(super) fn update(&self, member: Member) -> bool {
        let mut members = self.view.lock();
        let Some(known) = members.get_mut(&self.name) else {
            return false;
        };
        if member.name != self.name || member.epoch < known.member.epoch {
            return false;
        }
        if known.member != member {
            known.member = member;
            drop(members);
            self.view.changed();
        }
        true
    }
}

impl Drop for Presence<'_> {
    fn drop(&mut self) {
        let mut members = self.view.lock();
        let Some(known) = members.get_mut(&self.name) else {
            return;
        };
        known.connections -= 1;
        if known.connections > 0 {
            return;
        }
        known.gone_since = Some(Instant::now());
        // Who said that it would leave has left.
        known.member.state = match known.member.state {
            MemberState::Draining | MemberState::Left => MemberState::Left,
            MemberState::Alive
            | MemberState::Suspect
            | MemberState::Down
            | MemberState::Other(_) => MemberState::Down,
        };
        drop(members);
        self.view.changed();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn member(name: &str, epoch: u64) -> Member {
        Member {
            name: name.parse().unwrap(),
            group: "g".parse().unwrap(),
            generation: mesh_proto::Generation(0),
            epoch,
            addresses: Vec::new(),
            state: MemberState::Alive,
            ttl_ms: 180_000,
            ext: Vec::new(),
        }
    }

    fn states(view: &View) -> Vec<(String, MemberState)> {
        view.members()
            .into_iter()
            .map(|member| (member.name.to_string(), member.state))
            .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn proxies_come_and_go_with_their_connections() {
        let view = View::new(member("a", 1));
        let first = view.connected(member("b", 1)).unwrap();
        let second = view.connected(member("b", 1)).unwrap();
        drop(first);
        assert_eq!(states(&view)[1].1, MemberState::Alive);
        drop(second);
        assert_eq!(states(&view)[1].1, MemberState::Down);
        let back = view.connected(member("b", 2)).unwrap();
        assert!(view.connected(member("b", 1)).is_none(), "an older start");
        assert!(!back.update(member("c", 2)), "another's name");
        assert!(back.update(Member {
            state: MemberState::Draining,
            ..member("b", 2)
        }));
        drop(back);
        assert_eq!(states(&view)[1].1, MemberState::Left);
        tokio::time::advance(GONE_FOR).await;
        assert_eq!(states(&view).len(), 1);
        assert!(view.connected(member("a", 9)).is_none(), "its own name");
    }

    #[test]
    fn changes_are_noticed_once() {
        let view = View::new(member("a", 1));
        let mut changes = view.changes();
        view.set_own_state(MemberState::Alive);
        assert!(!changes.has_changed().unwrap());
        view.set_own_state(MemberState::Draining);
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        assert_eq!(view.own().unwrap().state, MemberState::Draining);
    }
}
