//! What goes out: foca's packets in the wire's form, and what is told besides.

use super::{Membership, Silence, engine};
use crate::name::NodeName;
use crate::wire::{
    Frame, Gossip, GossipKind, GossipMessage, MemberHead, MemberUpdate, Profile, ProfileId,
};

impl Membership {
    /// Sends what foca has put together, less what nobody needs: that an earlier revision of this
    /// proxy is dead, which foca says when it changes its identity.
    pub(super) fn send_packet(&mut self, to: NodeName, packet: &[u8]) {
        if self.silence == Some(Silence::Superseded) {
            return;
        }
        let Ok(mut parts) = engine::take_apart(packet) else {
            self.engine.faults = self.engine.faults.saturating_add(1);
            return;
        };
        let own = self.own.id();
        let leaving = self.silence == Some(Silence::Left);
        parts.updates.retain(|update| {
            update.profile.name != own.name || leaving && update.profile.id() == own
        });
        let to = self.redirected(to, &mut parts.message);
        self.incarnation = (parts.message.from.revision, parts.message.incarnation);
        self.send(to, parts.message, parts.updates, parts.heads);
    }

    /// News are for whoever can hear them: what foca would tell to a member without a connection, one
    /// that has one is told. Each is told so often only, and the rest must not be said in vain.
    fn redirected(&mut self, to: NodeName, message: &mut GossipMessage) -> NodeName {
        let news = matches!(message.kind, GossipKind::Tell | GossipKind::TellHeads);
        if !news || self.connected.contains(&to) {
            return to;
        }
        let known = self.connected.iter().filter_map(|name| self.view.get(name));
        let mut near: Vec<_> = known.filter(|known| !known.is_dead()).collect();
        if near.is_empty() {
            return to;
        }
        let chosen = near.swap_remove(self.dice.below(near.len()));
        message.to = chosen.id();
        chosen.profile.name.clone()
    }

    /// Tells one proxy something, and with it this proxy's own state.
    pub(super) fn tell(&mut self, to: ProfileId, updates: Vec<MemberUpdate>) {
        let (revision, incarnation) = self.incarnation;
        let message = GossipMessage {
            from: Profile::clone(&self.own),
            incarnation: if revision == self.own.revision {
                incarnation
            } else {
                0
            },
            to,
            kind: GossipKind::Tell,
            probe: 0,
            about: None,
        };
        self.send(message.to.name.clone(), message, updates, Vec::new());
    }

    fn send(
        &mut self,
        to: NodeName,
        message: GossipMessage,
        updates: Vec<MemberUpdate>,
        heads: Vec<MemberHead>,
    ) {
        let gossip = Gossip {
            message,
            head: self.own_head,
            updates,
            heads,
            ext: Vec::new(),
        };
        let mut datagram = Vec::new();
        match gossip.encode(&mut datagram) {
            Ok(()) => self.out.send(to, datagram),
            Err(_) => self.engine.faults = self.engine.faults.saturating_add(1),
        }
    }
}
