//! What a proxy tells an agent of all proxies: the whole view behind its hello, changes as they
//! happen, and a refresh well inside the shortest TTL.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

use super::codec;
use super::frame::Ext;
use super::limits::{ADDRESS_BYTES_MAX, ADDRESSES_MAX, MEMBERS_MAX};
use crate::name::{Generation, Group, NodeName};

/// A view of proxies, or the part of it that has changed. What is absent has not changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Members {
    /// Proxies: at most [`MEMBERS_MAX`].
    #[serde(with = "member_list")]
    pub members: Vec<Member>,
    /// How many proxies an agent without a wish of its own connects to; 0 is all that are desired.
    pub agent_connection_count: Option<u32>,
    /// Over how long agents spread their dials when they have lost a connection, in milliseconds.
    pub reconnect_spread_ms: u64,
    /// Entries of later versions.
    #[serde(with = "codec::ext")]
    pub ext: Ext,
}

/// A proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its name.
    pub name: NodeName,
    /// Its group.
    pub group: Group,
    /// The group's rollout number.
    pub generation: Generation,
    /// How often it has started.
    pub epoch: u64,
    /// Where agents can dial it, `host:port` each: at most [`ADDRESSES_MAX`], each at most
    /// [`ADDRESS_BYTES_MAX`] printable ASCII characters.
    #[serde(with = "addresses")]
    pub addresses: Vec<String>,
    /// Whether it serves.
    pub state: MemberState,
    /// How long this is to be believed, in milliseconds.
    pub ttl_ms: u64,
    /// Entries of later versions.
    #[serde(with = "codec::ext")]
    pub ext: Ext,
}

/// Whether a proxy serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MemberState {
    /// It serves.
    Alive,
    /// Nobody has heard of it for a while.
    Suspect,
    /// It is about to leave.
    Draining,
    /// It has left.
    Left,
    /// It is taken for dead.
    Down,
    /// A state of a later version, by its code.
    Other(u16),
}

impl MemberState {
    /// The code on the wire. A released code never changes.
    #[must_use]
    pub const fn code(self) -> u16 {
        match self {
            Self::Alive => 1,
            Self::Suspect => 2,
            Self::Draining => 3,
            Self::Left => 4,
            Self::Down => 5,
            Self::Other(code) => code,
        }
    }

    /// The state of a code, which may be one of a later version.
    #[must_use]
    pub const fn from_code(code: u16) -> Self {
        match code {
            1 => Self::Alive,
            2 => Self::Suspect,
            3 => Self::Draining,
            4 => Self::Left,
            5 => Self::Down,
            _ => Self::Other(code),
        }
    }
}

impl Serialize for MemberState {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u16(self.code())
    }
}

impl<'de> Deserialize<'de> for MemberState {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        u16::deserialize(deserializer).map(Self::from_code)
    }
}

/// The list of members, for `#[serde(with)]`.
mod member_list {
    use super::{Deserializer, MEMBERS_MAX, Member, Serializer, codec};

    pub(super) fn serialize<S: Serializer>(
        members: &[Member],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        codec::serialize_list(members, "members", MEMBERS_MAX, serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<Member>, D::Error> {
        codec::deserialize_list("members", MEMBERS_MAX, deserializer)
    }
}

/// An address, whose text is checked when it is dialled.
pub(in crate::wire) struct Address(String);

impl Address {
    pub(in crate::wire) fn check(text: &str) -> Result<(), String> {
        if text.len() <= ADDRESS_BYTES_MAX && text.bytes().all(|byte| matches!(byte, b'!'..=b'~')) {
            return Ok(());
        }
        Err(format!(
            "the address \"{}\" is not at most {ADDRESS_BYTES_MAX} printable ASCII characters",
            crate::text::quote(text)
        ))
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::check(&self.0).map_err(ser::Error::custom)?;
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <&str>::deserialize(deserializer)?;
        Self::check(text).map_err(de::Error::custom)?;
        Ok(Self(text.to_owned()))
    }
}

/// The list of addresses, for `#[serde(with)]`.
pub(in crate::wire) mod addresses {
    use super::{ADDRESSES_MAX, Address, Deserializer, Serializer, codec};

    pub(in crate::wire) fn serialize<S: Serializer>(
        addresses: &[String],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let addresses: Vec<Address> = addresses.iter().cloned().map(Address).collect();
        codec::serialize_list(&addresses, "addresses", ADDRESSES_MAX, serializer)
    }

    pub(in crate::wire) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<String>, D::Error> {
        let addresses: Vec<Address> =
            codec::deserialize_list("addresses", ADDRESSES_MAX, deserializer)?;
        Ok(addresses.into_iter().map(|Address(text)| text).collect())
    }
}
