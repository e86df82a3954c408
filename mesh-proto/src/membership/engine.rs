//! foca, wrapped: its identities, its codec, and what it asks of its runtime.
//!
//! foca encodes for itself alone here: what it wants to send is taken apart again and leaves as a
//! [`Gossip`](crate::wire::Gossip), and what has come is decoded and filtered before foca sees it.

use std::num::{NonZeroU8, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut};
use foca::{
    BroadcastHandler, Codec, Config, Foca, Header, Identity, Invalidates, Member, Message,
    Notification, PeriodicParams, Runtime, Timer,
};

use super::Settings;
use super::dice::Dice;
use crate::name::NodeName;
use crate::wire::gossip::{self, GOSSIP};
use crate::wire::{
    GOSSIP_BYTES_MAX, GossipKind, GossipMessage, MemberHead, MemberState, MemberUpdate, Profile,
    ProfileId, WireError,
};

/// What a datagram has besides what foca counts: the frame's header (6), the sender's head (24),
/// the count of heads (3) and an empty `ext` (1). foca's own count of updates is never shorter.
const OVERHEAD_BYTES: usize = 34;

/// To how many members foca sends what is urgent, and how many it asks for an indirect probe.
const FANOUT: NonZeroUsize = NonZeroUsize::new(3).unwrap();
/// How often an update is told: above three times the logarithm of the largest view.
const TRANSMISSIONS: NonZeroU8 = NonZeroU8::new(15).unwrap();
const ONE: NonZeroUsize = NonZeroUsize::MIN;

/// foca's identity of a member. Which state of which proxy it is decides alone; a proxy that is only
/// addressed or asked about has no profile, and never gets into foca's list.
#[derive(Debug, Clone)]
pub(super) struct Id {
    pub(super) key: ProfileId,
    pub(super) profile: Option<Arc<Profile>>,
}

impl Id {
    pub(super) fn known(profile: Arc<Profile>) -> Self {
        Self {
            key: profile.id(),
            profile: Some(profile),
        }
    }

    pub(super) fn named(key: ProfileId) -> Self {
        Self { key, profile: None }
    }
}

impl PartialEq for Id {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl Eq for Id {}

impl Identity for Id {
    type Addr = NodeName;

    fn renew(&self) -> Option<Self> {
        let profile = self.profile.as_deref()?;
        let revision = profile.revision.checked_add(1)?;
        Some(Self::known(Arc::new(Profile {
            revision,
            ..profile.clone()
        })))
    }

    fn addr(&self) -> NodeName {
        self.key.name.clone()
    }

    fn win_addr_conflict(&self, other: &Self) -> bool {
        self.key > other.key
    }
}

/// What foca has asked for since the last look.
#[derive(Debug, Default)]
pub(super) struct Effects {
    pub(super) sends: Vec<(NodeName, Vec<u8>)>,
    pub(super) timers: Vec<(Timer<Id>, Duration)>,
    /// It has renewed itself, since it was taken for dead.
    pub(super) renewed: bool,
    /// It cannot renew itself any more.
    pub(super) defunct: bool,
}

impl Runtime<Id> for &mut Effects {
    fn notify(&mut self, notification: Notification<'_, Id>) {
        match notification {
            Notification::Rejoin(_) => self.renewed = true,
            Notification::Defunct => self.defunct = true,
            // The view is compared with foca's list instead, which also shows suspicions.
            Notification::MemberUp(_)
            | Notification::MemberDown(_)
            | Notification::Rename(..)
            | Notification::Active
            | Notification::Idle => {}
        }
    }

    fn send_to(&mut self, to: Id, data: &[u8]) {
        self.sends.push((to.key.name, data.to_vec()));
    }

    fn submit_after(&mut self, event: Timer<Id>, after: Duration) {
        self.timers.push((event, after));
    }
}

pub(super) struct Engine {
    foca: Foca<Id, Bincode, Dice, Heads>,
    pub(super) effects: Effects,
    /// How often foca has failed at something that cannot fail.
    pub(super) faults: u64,
}

impl Engine {
    pub(super) fn new(own: Arc<Profile>, dice: Dice, settings: &Settings) -> Self {
        let every = |frequency, num_members| {
            Some(PeriodicParams {
                frequency,
                num_members,
            })
        };
        let config = Config {
            probe_period: settings.probe_period,
            probe_rtt: settings.probe_rtt,
            num_indirect_probes: FANOUT,
            max_transmissions: TRANSMISSIONS,
            suspect_to_down_after: settings.suspicion,
            remove_down_after: Some(settings.remember),
            max_packet_size: NonZeroUsize::new(GOSSIP_BYTES_MAX - OVERHEAD_BYTES).unwrap_or(ONE),
            notify_down_members: true,
            periodic_announce: every(settings.announce_period, ONE),
            periodic_announce_to_down_members: every(settings.revive_period, ONE),
            periodic_gossip: every(settings.gossip_period, FANOUT),
        };
        Self {
            foca: Foca::with_custom_broadcast(Id::known(own), config, dice, Bincode, Heads),
            effects: Effects::default(),
            faults: 0,
        }
    }

    pub(super) fn identity(&self) -> &Id {
        self.foca.identity()
    }

    pub(super) fn members(&self) -> impl Iterator<Item = &Member<Id>> {
        self.foca.iter_membership_state()
    }

    pub(super) fn is_alone(&self) -> bool {
        self.foca.num_members() == 0
    }

    pub(super) fn apply(&mut self, updates: impl IntoIterator<Item = Member<Id>>) {
        let result = self
            .foca
            .apply_many(updates.into_iter(), true, &mut self.effects);
        self.count(&result);
    }

    /// Reacts to a message whose updates have been applied.
    pub(super) fn handle(&mut self, message: &GossipMessage) {
        let result = gossip::encode_part(message)
            .map_err(|error| foca::Error::Encode(Box::new(error)))
            .and_then(|bytes| self.foca.handle_data(&bytes, &mut self.effects));
        self.count(&result);
    }

    /// Becomes `own`, which must be later than what it was.
    pub(super) fn rename(&mut self, own: Arc<Profile>) {
        let result = self.foca.change_identity(Id::known(own), &mut self.effects);
        self.count(&result);
        // foca stops probing when it changes its identity, until the next packet.
        self.apply([]);
    }

    pub(super) fn announce(&mut self, to: ProfileId) {
        let result = self.foca.announce(Id::named(to), &mut self.effects);
        self.count(&result);
    }

    pub(super) fn leave(&mut self) {
        let result = self.foca.leave_cluster(&mut self.effects);
        self.count(&result);
        // Last words are not repeated later, so they are said to more than the usual few.
        for _ in 0..2 {
            let result = self.foca.gossip(&mut self.effects);
            self.count(&result);
        }
    }

    pub(super) fn timer(&mut self, timer: Timer<Id>) {
        let result = self.foca.handle_timer(timer, &mut self.effects);
        self.count(&result);
    }

    pub(super) fn spread(&mut self, head: &MemberHead) {
        let result = gossip::encode_part(head)
            .map_err(|error| foca::Error::Encode(Box::new(error)))
            .and_then(|bytes| self.foca.add_broadcast(&bytes));
        self.count(&result.map(drop));
    }

    fn count(&mut self, result: &Result<(), foca::Error>) {
        if result.is_err() {
            self.faults = self.faults.saturating_add(1);
        }
    }
}

/// What foca has put into one packet.
pub(super) struct Parts {
    pub(super) message: GossipMessage,
    pub(super) updates: Vec<MemberUpdate>,
    pub(super) heads: Vec<MemberHead>,
}

/// Takes apart what foca wants to send: header, u16 count of updates, updates, then heads with
/// their length as u16 each.
pub(super) fn take_apart(packet: &[u8]) -> Result<Parts, WireError> {
    let (message, used) = gossip::decode_part(packet)?;
    let mut rest = packet.get(used..).unwrap_or_default();
    let mut parts = Parts {
        message,
        updates: Vec::new(),
        heads: Vec::new(),
    };
    let counted = !matches!(
        parts.message.kind,
        GossipKind::TellHeads | GossipKind::Announce | GossipKind::TurnUndead
    );
    let count = if counted && rest.len() >= 2 {
        rest.get_u16()
    } else {
        0
    };
    for _ in 0..count {
        let (update, used) = gossip::decode_part(rest)?;
        parts.updates.push(update);
        rest = rest.get(used..).unwrap_or_default();
    }
    while rest.len() > 2 {
        let length = usize::from(rest.get_u16());
        let (head, _) = gossip::decode_part(rest.get(..length).unwrap_or_default())?;
        parts.heads.push(head);
        rest = rest.get(length..).unwrap_or_default();
    }
    Ok(parts)
}

/// An update as foca takes it; `None` when its state means nothing here.
pub(super) fn member(update: &MemberUpdate) -> Option<Member<Id>> {
    let id = Id::known(Arc::new(update.profile.clone()));
    state(update.state).map(|state| Member::new(id, update.incarnation, state))
}

fn state(state: MemberState) -> Option<foca::State> {
    match state {
        MemberState::Alive => Some(foca::State::Alive),
        MemberState::Suspect => Some(foca::State::Suspect),
        MemberState::Down => Some(foca::State::Down),
        MemberState::Draining | MemberState::Left | MemberState::Other(_) => None,
    }
}

/// The code of foca's state.
pub(super) fn wire_state(state: foca::State) -> MemberState {
    match state {
        foca::State::Alive => MemberState::Alive,
        foca::State::Suspect => MemberState::Suspect,
        foca::State::Down => MemberState::Down,
    }
}

/// foca's codec over the parts of the wire's encoding.
struct Bincode;

impl Codec<Id> for Bincode {
    type Error = WireError;

    fn encode_header(&mut self, header: &Header<Id>, buf: impl BufMut) -> Result<(), WireError> {
        let (kind, probe, about) = kind(&header.message);
        let message = GossipMessage {
            from: full(&header.src)?,
            incarnation: header.src_incarnation,
            to: header.dst.key.clone(),
            kind,
            probe,
            about,
        };
        put(&gossip::encode_part(&message)?, buf)
    }

    fn decode_header(&mut self, mut buf: impl Buf) -> Result<Header<Id>, WireError> {
        let (message, used) = gossip::decode_part::<GossipMessage>(buf.chunk())?;
        buf.advance(used);
        Ok(Header {
            message: foca_message(&message)?,
            src: Id::known(Arc::new(message.from)),
            src_incarnation: message.incarnation,
            dst: Id::named(message.to),
        })
    }

    fn encode_member(&mut self, member: &Member<Id>, buf: impl BufMut) -> Result<(), WireError> {
        let update = MemberUpdate {
            profile: full(member.id())?,
            incarnation: member.incarnation(),
            state: wire_state(member.state()),
        };
        put(&gossip::encode_part(&update)?, buf)
    }

    fn decode_member(&mut self, mut buf: impl Buf) -> Result<Member<Id>, WireError> {
        let (update, used) = gossip::decode_part::<MemberUpdate>(buf.chunk())?;
        buf.advance(used);
        member(&update).ok_or_else(|| fault("it has a state that foca does not know"))
    }
}

fn put(bytes: &[u8], mut buf: impl BufMut) -> Result<(), WireError> {
    if bytes.len() > buf.remaining_mut() {
        return Err(fault("it does not fit the rest of the datagram"));
    }
    buf.put_slice(bytes);
    Ok(())
}

fn full(id: &Id) -> Result<Profile, WireError> {
    id.profile
        .as_deref()
        .cloned()
        .ok_or_else(|| fault("it has no profile"))
}

fn fault(why: &str) -> WireError {
    WireError::Malformed {
        kind: GOSSIP,
        why: why.to_owned(),
    }
}

fn kind(message: &Message<Id>) -> (GossipKind, u8, Option<ProfileId>) {
    let third = |id: &Id| Some(id.key.clone());
    match message {
        Message::Ping(probe) => (GossipKind::Ping, *probe, None),
        Message::Ack(probe) => (GossipKind::Ack, *probe, None),
        Message::PingReq {
            target,
            probe_number,
        } => (GossipKind::PingReq, *probe_number, third(target)),
        Message::IndirectPing {
            origin,
            probe_number,
        } => (GossipKind::IndirectPing, *probe_number, third(origin)),
        Message::IndirectAck {
            target,
            probe_number,
        } => (GossipKind::IndirectAck, *probe_number, third(target)),
        Message::ForwardedAck {
            origin,
            probe_number,
        } => (GossipKind::ForwardedAck, *probe_number, third(origin)),
        Message::Announce => (GossipKind::Announce, 0, None),
        Message::Feed => (GossipKind::Feed, 0, None),
        Message::Gossip => (GossipKind::Tell, 0, None),
        Message::Broadcast => (GossipKind::TellHeads, 0, None),
        Message::TurnUndead => (GossipKind::TurnUndead, 0, None),
    }
}

fn foca_message(message: &GossipMessage) -> Result<Message<Id>, WireError> {
    let probe_number = message.probe;
    let third = || {
        let about = message.about.clone();
        about
            .map(Id::named)
            .ok_or_else(|| fault("an indirect probe is about nobody"))
    };
    Ok(match message.kind {
        GossipKind::Ping => Message::Ping(probe_number),
        GossipKind::Ack => Message::Ack(probe_number),
        GossipKind::PingReq => Message::PingReq {
            target: third()?,
            probe_number,
        },
        GossipKind::IndirectPing => Message::IndirectPing {
            origin: third()?,
            probe_number,
        },
        GossipKind::IndirectAck => Message::IndirectAck {
            target: third()?,
            probe_number,
        },
        GossipKind::ForwardedAck => Message::ForwardedAck {
            origin: third()?,
            probe_number,
        },
        GossipKind::Announce => Message::Announce,
        GossipKind::Feed => Message::Feed,
        GossipKind::Tell => Message::Gossip,
        GossipKind::TellHeads => Message::Broadcast,
        GossipKind::TurnUndead => Message::TurnUndead,
        GossipKind::Other(_) => return Err(fault("it is of a kind that is not known here")),
    })
}

/// Route heads on their way to others. Which are new is decided before foca gets them.
struct Heads;

/// A head on its way is replaced by the next one of the same proxy.
struct HeadOf(NodeName);

impl Invalidates for HeadOf {
    fn invalidates(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl BroadcastHandler<Id> for Heads {
    type Key = HeadOf;
    type Error = WireError;

    fn receive_item(&mut self, data: &[u8], _: Option<&Id>) -> Result<Option<HeadOf>, WireError> {
        let (head, _) = gossip::decode_part::<MemberHead>(data)?;
        Ok(Some(HeadOf(head.name)))
    }
}
