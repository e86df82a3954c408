//! Gossip: what proxies tell each other of all proxies, one frame in one QUIC datagram.
//!
//! The sender's profile is in every datagram, so that whoever hears of a proxy at all hears its
//! present state. Others are addressed and asked about by [`ProfileId`] alone, which keeps a
//! datagram with the longest names and one whole profile more under [`GOSSIP_BYTES_MAX`].

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

use super::codec;
use super::frame::{Ext, Frame, FrameHeader, WireError};
use super::limits::{
    ADDRESSES_MAX, FRAME_HEADER_BYTES, GOSSIP_BYTES_MAX, GOSSIP_HEADS_MAX, GOSSIP_UPDATES_MAX,
    PROFILE_ADDRESSES_BYTES_MAX, PROFILE_EXT_BYTES_MAX,
};
use super::members::{self, Address, MemberState};
use crate::name::{Generation, Group, NodeName};

/// The frame's type.
pub(crate) const GOSSIP: u16 = 0x0501;

/// What an `ext` entry takes at most besides its value: three bytes of tag and one of length.
const EXT_ENTRY_BYTES: usize = 4;

/// What a proxy tells of itself. Rides in gossip and in the hellos between proxies. It is encoded
/// and decoded only within the bounds of [`check`](Self::check).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// Its name.
    pub name: NodeName,
    /// How often it has started.
    pub epoch: u64,
    /// How often it has changed what it tells since it has started.
    pub revision: u32,
    /// Its group.
    pub group: Group,
    /// The group's rollout number.
    pub generation: Generation,
    /// Where agents can dial it, `host:port` each.
    pub addresses: Vec<String>,
    /// Where other proxies can dial it; empty: the same.
    pub peer_addresses: Vec<String>,
    /// Whether it is about to leave.
    pub draining: bool,
    /// Entries of later versions.
    pub ext: Ext,
}

/// Which state of a proxy a [`Profile`] tells: of two with one name, the one with the higher epoch,
/// then with the higher revision, is the later one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProfileId {
    /// The proxy's name.
    pub name: NodeName,
    /// How often it has started.
    pub epoch: u64,
    /// How often it has changed what it tells since then.
    pub revision: u32,
}

/// Which state of its own routes a proxy is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RoutesHead {
    /// How often the proxy has started.
    pub epoch: u64,
    /// How many changes there were since then.
    pub sequence: u64,
    /// How many routes it has now.
    pub count: u32,
}

/// Why a [`Profile`] cannot be told to others.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    /// There are too many addresses.
    #[error("a proxy tells {count} addresses, and at most {ADDRESSES_MAX} are allowed")]
    AddressCount {
        /// How many there are in both lists.
        count: usize,
    },
    /// The addresses are too long.
    #[error(
        "the addresses of a proxy have {bytes} bytes together, and at most {PROFILE_ADDRESSES_BYTES_MAX} are allowed"
    )]
    AddressBytes {
        /// How long they are together.
        bytes: usize,
    },
    /// An address has characters that no address has.
    #[error("{0}")]
    Address(String),
    /// It cannot change any more under this epoch.
    #[error(
        "a proxy has changed what it tells {} times since its start and cannot again",
        u32::MAX
    )]
    Revisions,
    /// The entries of later versions are too long.
    #[error(
        "the ext entries of a proxy have {bytes} bytes together, and at most {PROFILE_EXT_BYTES_MAX} are allowed"
    )]
    Ext {
        /// How long they are together.
        bytes: usize,
    },
}

impl Profile {
    /// Which state this is.
    #[must_use]
    pub fn id(&self) -> ProfileId {
        ProfileId {
            name: self.name.clone(),
            epoch: self.epoch,
            revision: self.revision,
        }
    }

    /// Whether it is within the bounds of a gossip datagram.
    ///
    /// # Errors
    /// The first bound that it breaks.
    pub fn check(&self) -> Result<(), ProfileError> {
        let addresses = || self.addresses.iter().chain(&self.peer_addresses);
        let count = addresses().count();
        if count > ADDRESSES_MAX {
            return Err(ProfileError::AddressCount { count });
        }
        let bytes = addresses().map(String::len).sum();
        if bytes > PROFILE_ADDRESSES_BYTES_MAX {
            return Err(ProfileError::AddressBytes { bytes });
        }
        addresses()
            .try_for_each(|address| Address::check(address))
            .map_err(ProfileError::Address)?;
        let entries = self.ext.iter();
        let bytes = entries
            .map(|(_, value)| value.len() + EXT_ENTRY_BYTES)
            .sum();
        if bytes > PROFILE_EXT_BYTES_MAX {
            return Err(ProfileError::Ext { bytes });
        }
        Ok(())
    }
}

/// One gossip datagram.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gossip {
    /// From whom, to whom, and what it is about.
    pub message: GossipMessage,
    /// Where the sender's routes are, if it tells.
    pub head: Option<RoutesHead>,
    /// What has changed of other proxies: at most [`GOSSIP_UPDATES_MAX`].
    #[serde(with = "updates")]
    pub updates: Vec<MemberUpdate>,
    /// What has changed of other proxies' routes: at most [`GOSSIP_HEADS_MAX`].
    #[serde(with = "heads")]
    pub heads: Vec<MemberHead>,
    /// Entries of later versions.
    #[serde(with = "codec::ext")]
    pub ext: Ext,
}

/// The beginning of every gossip datagram.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GossipMessage {
    /// The sender as it is now.
    pub from: Profile,
    /// How often the sender has refuted suspicions of this revision.
    pub incarnation: u16,
    /// The addressee as the sender knows it.
    pub to: ProfileId,
    /// What the sender wants.
    pub kind: GossipKind,
    /// Tells a probe's answer from that of an earlier one; 0 where there is no probe.
    pub probe: u8,
    /// The third proxy of an indirect probe.
    pub about: Option<ProfileId>,
}

/// What the sender of a gossip datagram wants (SWIM, sections 3 and 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GossipKind {
    /// Is it alive? Answered by [`Ack`](Self::Ack).
    Ping,
    /// It is.
    Ack,
    /// Asks to ping a third one.
    PingReq,
    /// A ping for a third one, which asked for it.
    IndirectPing,
    /// The answer to that.
    IndirectAck,
    /// The answer, passed on to the third one.
    ForwardedAck,
    /// The sender is new: answered by [`Feed`](Self::Feed).
    Announce,
    /// Tells of live proxies.
    Feed,
    /// Tells what has changed.
    Tell,
    /// Tells what has changed of routes alone.
    TellHeads,
    /// The sender takes the addressee, in the state that it names, for dead.
    TurnUndead,
    /// A kind of a later version, by its code.
    Other(u16),
}

/// Whether a kind of message is about a third proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum About {
    /// It must name one.
    Third,
    /// It names none, or one that means nothing.
    Nobody,
}

impl GossipKind {
    /// Every kind that is known here.
    pub const ALL: [Self; 11] = [
        Self::Ping,
        Self::Ack,
        Self::PingReq,
        Self::IndirectPing,
        Self::IndirectAck,
        Self::ForwardedAck,
        Self::Announce,
        Self::Feed,
        Self::Tell,
        Self::TellHeads,
        Self::TurnUndead,
    ];

    /// The code on the wire. A released code never changes.
    #[must_use]
    pub const fn code(self) -> u16 {
        match self {
            Self::Ping => 1,
            Self::Ack => 2,
            Self::PingReq => 3,
            Self::IndirectPing => 4,
            Self::IndirectAck => 5,
            Self::ForwardedAck => 6,
            Self::Announce => 7,
            Self::Feed => 8,
            Self::Tell => 9,
            Self::TellHeads => 10,
            Self::TurnUndead => 11,
            Self::Other(code) => code,
        }
    }

    /// The kind of a code, which may be one of a later version.
    #[must_use]
    pub fn from_code(code: u16) -> Self {
        let mut kinds = Self::ALL.into_iter();
        kinds
            .find(|kind| kind.code() == code)
            .unwrap_or(Self::Other(code))
    }

    /// Whether it is about a third proxy.
    #[must_use]
    pub const fn about(self) -> About {
        match self {
            Self::PingReq | Self::IndirectPing | Self::IndirectAck | Self::ForwardedAck => {
                About::Third
            }
            Self::Ping
            | Self::Ack
            | Self::Announce
            | Self::Feed
            | Self::Tell
            | Self::TellHeads
            | Self::TurnUndead
            | Self::Other(_) => About::Nobody,
        }
    }
}

/// What is known of a proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberUpdate {
    /// The proxy.
    pub profile: Profile,
    /// How often it has refuted suspicions of this revision.
    pub incarnation: u16,
    /// `Alive`, `Suspect` or `Down`; others mean nothing here.
    pub state: MemberState,
}

/// Where a proxy's routes are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberHead {
    /// The proxy.
    pub name: NodeName,
    /// Its routes.
    pub head: RoutesHead,
}

/// The bytes of one part of a datagram, as foca counts and keeps them.
pub(crate) fn encode_part(part: &impl Serialize) -> Result<Vec<u8>, WireError> {
    codec::encode_part(GOSSIP, part)
}

/// The counterpart of [`encode_part`]; also tells how many bytes the part had.
pub(crate) fn decode_part<'de, T: Deserialize<'de>>(
    bytes: &'de [u8],
) -> Result<(T, usize), WireError> {
    codec::decode_part(GOSSIP, bytes)
}

impl Gossip {
    /// Reads a datagram. `Ok(None)`: of a later version and optional, skip it.
    ///
    /// # Errors
    /// When it is not exactly one frame of a known type within its bounds.
    pub fn from_datagram(datagram: &[u8]) -> Result<Option<Self>, WireError> {
        let Some((header, body)) = datagram.split_first_chunk::<FRAME_HEADER_BYTES>() else {
            return Err(WireError::Malformed {
                kind: GOSSIP,
                why: "the datagram is shorter than a frame's header".to_owned(),
            });
        };
        Self::decode(FrameHeader::decode(*header, Self::BODY_BYTES_MAX)?, body)
    }
}

impl Frame for Gossip {
    const BODY_BYTES_MAX: usize = GOSSIP_BYTES_MAX - FRAME_HEADER_BYTES;

    fn encode(&self, out: &mut Vec<u8>) -> Result<(), WireError> {
        codec::encode_frame::<Self>(GOSSIP, self, out)
    }

    fn decode(header: FrameHeader, body: &[u8]) -> Result<Option<Self>, WireError> {
        match header.kind {
            GOSSIP => codec::decode_body::<Self, _>(header, body).map(Some),
            _ => codec::unknown(header, body),
        }
    }
}

impl Serialize for GossipKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u16(self.code())
    }
}

impl<'de> Deserialize<'de> for GossipKind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        u16::deserialize(deserializer).map(Self::from_code)
    }
}

/// A profile's encoding.
#[derive(Serialize)]
struct ProfileOut<'a> {
    name: &'a NodeName,
    epoch: u64,
    revision: u32,
    group: &'a Group,
    generation: Generation,
    #[serde(serialize_with = "members::addresses::serialize")]
    addresses: &'a [String],
    #[serde(serialize_with = "members::addresses::serialize")]
    peer_addresses: &'a [String],
    draining: bool,
    #[serde(serialize_with = "codec::ext::serialize")]
    ext: &'a Ext,
}

/// The same, read.
#[derive(Deserialize)]
struct ProfileIn {
    name: NodeName,
    epoch: u64,
    revision: u32,
    group: Group,
    generation: Generation,
    #[serde(deserialize_with = "members::addresses::deserialize")]
    addresses: Vec<String>,
    #[serde(deserialize_with = "members::addresses::deserialize")]
    peer_addresses: Vec<String>,
    draining: bool,
    #[serde(deserialize_with = "codec::ext::deserialize")]
    ext: Ext,
}

impl Serialize for Profile {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.check().map_err(ser::Error::custom)?;
        ProfileOut {
            name: &self.name,
            epoch: self.epoch,
            revision: self.revision,
            group: &self.group,
            generation: self.generation,
            addresses: &self.addresses,
            peer_addresses: &self.peer_addresses,
            draining: self.draining,
            ext: &self.ext,
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Profile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let read = ProfileIn::deserialize(deserializer)?;
        let profile = Self {
            name: read.name,
            epoch: read.epoch,
            revision: read.revision,
            group: read.group,
            generation: read.generation,
            addresses: read.addresses,
            peer_addresses: read.peer_addresses,
            draining: read.draining,
            ext: read.ext,
        };
        profile.check().map_err(de::Error::custom)?;
        Ok(profile)
    }
}

/// The list of updates, for `#[serde(with)]`.
mod updates {
    use super::{Deserializer, GOSSIP_UPDATES_MAX, MemberUpdate, Serializer, codec};

    pub(super) fn serialize<S: Serializer>(
        updates: &[MemberUpdate],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        codec::serialize_list(updates, "updates", GOSSIP_UPDATES_MAX, serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<MemberUpdate>, D::Error> {
        codec::deserialize_list("updates", GOSSIP_UPDATES_MAX, deserializer)
    }
}

/// The list of route heads, for `#[serde(with)]`.
mod heads {
    use super::{Deserializer, GOSSIP_HEADS_MAX, MemberHead, Serializer, codec};

    pub(super) fn serialize<S: Serializer>(
        heads: &[MemberHead],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        codec::serialize_list(heads, "route heads", GOSSIP_HEADS_MAX, serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<MemberHead>, D::Error> {
        codec::deserialize_list("route heads", GOSSIP_HEADS_MAX, deserializer)
    }
}
