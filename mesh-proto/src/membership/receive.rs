//! What comes from the wire: judged here first, so that foca gets nothing it would trip over.

use std::collections::BTreeSet;

use foca::Member;

use super::engine::{self, Id};
use super::{Event, Membership};
use crate::name::NodeName;
use crate::time::Time;
use crate::wire::{
    About, GOSSIP_BYTES_MAX, Gossip, GossipKind, GossipMessage, MemberHead, MemberUpdate, WireError,
};

/// Why a datagram was not taken. The view is then as it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GossipError {
    /// It is longer than any gossip.
    #[error("a gossip datagram has {bytes} bytes, and at most {GOSSIP_BYTES_MAX} are allowed")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// It is not one frame of gossip.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// It says that it is from another proxy than its certificate says.
    #[error("{from} sent gossip in the name of {claimed}")]
    Lies {
        /// Who has sent it.
        from: NodeName,
        /// Who it says it is from.
        claimed: NodeName,
    },
    /// Its sender bears this proxy's own name.
    #[error("another proxy bears the name of this one, {0}")]
    SameName(NodeName),
    /// It is for another proxy.
    #[error("{from} sent gossip here that is for {to}")]
    Misaddressed {
        /// Who has sent it.
        from: NodeName,
        /// Whom it is for.
        to: NodeName,
    },
    /// It is of a kind of a later version.
    #[error("{from} sent gossip of the unknown kind {code}")]
    UnknownKind {
        /// Who has sent it.
        from: NodeName,
        /// The kind's code.
        code: u16,
    },
    /// It is part of an indirect probe, and about nobody, or about its sender or receiver.
    #[error("{from} sent a part of an indirect probe that makes no sense")]
    Senseless {
        /// Who has sent it.
        from: NodeName,
    },
    /// Its sender is new, and there are as many live members as there may be.
    #[error("{from} is one proxy too many: see members_max")]
    Full {
        /// Who has sent it.
        from: NodeName,
    },
}

/// How the sender of a packet stands.
enum Sender {
    Active,
    /// What it tells is not believed until it has renewed itself.
    Dead,
    /// A later start of its name is known.
    Older,
}

impl Membership {
    /// A datagram has come from the proxy that is `from` by its certificate.
    ///
    /// # Errors
    /// When it is not taken. Nothing has changed then.
    pub fn receive(
        &mut self,
        now: Time,
        from: &NodeName,
        datagram: &[u8],
    ) -> Result<(), GossipError> {
        self.tick(now);
        let bytes = datagram.len();
        if bytes > GOSSIP_BYTES_MAX {
            return Err(GossipError::TooLong { bytes });
        }
        let Some(gossip) = Gossip::from_datagram(datagram)? else {
            return Ok(());
        };
        self.check(from, &gossip.message)?;
        if self.silence.is_some() {
            return Ok(());
        }
        let sender = self.sender(&gossip.message)?;
        self.take(gossip, &sender);
        Ok(())
    }

    fn check(&self, from: &NodeName, message: &GossipMessage) -> Result<(), GossipError> {
        let from = from.clone();
        if message.from.name != from {
            let claimed = message.from.name.clone();
            return Err(GossipError::Lies { from, claimed });
        }
        if from == self.own.name {
            return Err(GossipError::SameName(from));
        }
        if message.to.name != self.own.name {
            let to = message.to.name.clone();
            return Err(GossipError::Misaddressed { from, to });
        }
        if let GossipKind::Other(code) = message.kind {
            return Err(GossipError::UnknownKind { from, code });
        }
        let about = message.about.as_ref().map(|about| &about.name);
        if message.kind.about() == About::Third
            && about.is_none_or(|about| *about == self.own.name || *about == from)
        {
            return Err(GossipError::Senseless { from });
        }
        Ok(())
    }

    fn sender(&mut self, message: &GossipMessage) -> Result<Sender, GossipError> {
        let from = &message.from;
        let Some(known) = self.view.get(&from.name) else {
            if self.make_room() {
                return Ok(Sender::Active);
            }
            let from = from.name.clone();
            return Err(GossipError::Full { from });
        };
        let id = known.id();
        Ok(if known.profile.epoch > from.epoch {
            Sender::Older
        } else if from.id() > id || from.id() == id && !known.is_dead() {
            Sender::Active
        } else {
            Sender::Dead
        })
    }

    fn take(&mut self, gossip: Gossip, sender: &Sender) {
        let mut message = gossip.message;
        let from = message.from.id();
        match sender {
            Sender::Active => {}
            Sender::Dead => {
                // foca answers that it is dead.
                self.address(&mut message);
                self.engine.handle(&message);
                return self.settle();
            }
            Sender::Older => {
                let known = self.view.get(&from.name);
                let update = known.map(|known| self.update(known));
                return self.tell(from, update.into_iter().collect());
            }
        }
        let (mine, others): (Vec<_>, Vec<_>) = gossip
            .updates
            .into_iter()
            .partition(|update| update.profile.name == self.own.name);
        let Some(mut updates) = self.hear_of_itself(&message, &mine) else {
            return;
        };
        let sender = Id::known(message.from.clone().into());
        updates.insert(
            0,
            Member::new(sender, message.incarnation, foca::State::Alive),
        );
        self.engine.apply(updates);
        self.settle();
        let others = self.within_bounds(&others);
        self.engine.apply(others);
        self.settle();
        self.take_heads(&from.name, gossip.head, gossip.heads);
        self.address(&mut message);
        self.engine.handle(&message);
        self.engine.apply([]);
        self.settle();
        self.heard(&from);
    }

    /// What is said of others, less what is of a later version, and less those that are too many.
    fn within_bounds(&mut self, updates: &[MemberUpdate]) -> Vec<Member<Id>> {
        let mut room = self.room();
        let mut new = BTreeSet::new();
        let mut taken = Vec::new();
        for update in updates {
            let name = &update.profile.name;
            let Some(member) = engine::member(update) else {
                continue;
            };
            if !self.view.contains_key(name) && !new.contains(name) {
                if room > 0 {
                    room -= 1;
                } else if !self.evict() {
                    continue;
                }
                new.insert(name);
            }
            taken.push(member);
        }
        taken
    }

    /// A packet for an earlier revision of this proxy is for this proxy: its sender has not heard
    /// of the change yet. That an earlier revision is dead is of no interest.
    fn address(&self, message: &mut GossipMessage) {
        let own = self.own.id();
        if message.kind != GossipKind::TurnUndead && message.to < own {
            message.to = own;
        }
    }

    /// What is said of this proxy itself. Returns what foca has to react to; `None` when this
    /// proxy has fallen silent.
    fn hear_of_itself(
        &mut self,
        message: &GossipMessage,
        updates: &[MemberUpdate],
    ) -> Option<Vec<Member<Id>>> {
        let mut for_foca = Vec::new();
        let mut behind = false;
        let mut above = None;
        let mut claimed = false;
        let told = updates.iter().map(|update| update.profile.id());
        for id in told.chain([message.to.clone()]) {
            if id.epoch > self.own.epoch {
                self.supersede(id.epoch);
                return None;
            }
            if id.epoch == self.own.epoch && id.revision > self.own.revision {
                above = above.max(Some(id.revision));
                claimed = true;
            }
        }
        for update in updates {
            let id = update.profile.id();
            if id != self.own.id() {
                behind |= id < self.own.id();
            } else if update.profile != *self.own {
                above = above.max(Some(id.revision));
                claimed = true;
            } else if let Some(member) = engine::member(update) {
                for_foca.push(member);
            }
        }
        if claimed && self.give_in() {
            self.supersede(self.own.epoch);
            return None;
        }
        if let Some(revision) = above {
            self.renew_above(revision);
            for_foca.clear();
        }
        if behind && self.silence.is_none() {
            self.tell(message.from.id(), Vec::new());
        }
        self.silence.is_none().then_some(for_foca)
    }

    /// Whether somebody else outbids this proxy's name and epoch again and again.
    pub(super) fn give_in(&mut self) -> bool {
        let (count, since) = self.claims;
        self.claims = if self.now.since(since) > self.settings.remember {
            (1, self.now)
        } else {
            (count + 1, since)
        };
        self.claims.0 > self.claims_max
    }

    fn take_heads(
        &mut self,
        from: &NodeName,
        head: Option<crate::wire::RoutesHead>,
        heads: Vec<MemberHead>,
    ) {
        let name = from.clone();
        let first = head.map(|head| MemberHead { name, head });
        for MemberHead { name, head } in first.into_iter().chain(heads) {
            let of_now = self
                .view
                .get(&name)
                .is_some_and(|known| known.profile.epoch == head.epoch);
            let news = self
                .heads
                .get(&name)
                .is_none_or(|held| held.epoch != head.epoch || held.sequence < head.sequence);
            if of_now && news {
                self.heads.insert(name.clone(), head);
                self.out.tell(Event::Head {
                    name: name.clone(),
                    head,
                });
                self.engine.spread(&MemberHead { name, head });
            }
        }
    }
}
