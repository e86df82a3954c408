//! The control stream between two proxies: each tells the other about itself.

use serde::{Deserialize, Serialize};

use super::codec;
use super::frame::{Ext, Frame, FrameHeader, WireError};
use super::gossip::Profile;
use super::limits::CONTROL_BYTES_MAX;

const PEER_HELLO: u16 = 0x0401;
const PEER_CHANGED: u16 = 0x0402;
const PEER_TAKEN_FOR_DEAD: u16 = 0x0403;

/// From either proxy to the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerFrame {
    /// First: who it is.
    Hello(PeerHello),
    /// Its state, or another thing about it, has changed.
    Changed(PeerChanged),
    /// The other one is held for dead, and is to say that it lives.
    TakenForDead(TakenForDead),
}

/// A proxy's first message to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerHello {
    /// What it tells of itself; the name is that of its certificate.
    pub profile: Profile,
    /// Entries of later versions.
    #[serde(with = "codec::ext")]
    pub ext: Ext,
}

/// What a proxy tells of itself from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerChanged {
    /// The same proxy, as it is now.
    pub profile: Profile,
    /// Entries of later versions.
    #[serde(with = "codec::ext")]
    pub ext: Ext,
}

/// Gossip has it that the other proxy is dead, at this revision or an earlier one: a later revision
/// says otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakenForDead {
    /// The start that is held for dead.
    pub epoch: u64,
    /// The revision that is held for dead.
    pub revision: u32,
    /// Entries of later versions.
    #[serde(with = "codec::ext")]
    pub ext: Ext,
}

impl Frame for PeerFrame {
    const BODY_BYTES_MAX: usize = CONTROL_BYTES_MAX;

    fn encode(&self, out: &mut Vec<u8>) -> Result<(), WireError> {
        match self {
            Self::Hello(body) => codec::encode_frame::<Self>(PEER_HELLO, body, out),
            Self::Changed(body) => codec::encode_frame::<Self>(PEER_CHANGED, body, out),
            Self::TakenForDead(body) => codec::encode_frame::<Self>(PEER_TAKEN_FOR_DEAD, body, out),
        }
    }

    fn decode(header: FrameHeader, body: &[u8]) -> Result<Option<Self>, WireError> {
        match header.kind {
            PEER_HELLO => {
                codec::decode_body::<Self, _>(header, body).map(|body| Some(Self::Hello(body)))
            }
            PEER_CHANGED => {
                codec::decode_body::<Self, _>(header, body).map(|body| Some(Self::Changed(body)))
            }
            PEER_TAKEN_FOR_DEAD => codec::decode_body::<Self, _>(header, body)
                .map(|body| Some(Self::TakenForDead(body))),
            _ => codec::unknown(header, body),
        }
    }
}
