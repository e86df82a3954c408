//! Routes between proxies: an owner tells which agents it holds, a reader what it has applied.
//!
//! A stream that [`Open::Routes`](super::Open::Routes) opened carries, from the owner, a snapshot
//! when one is needed and then deltas for as long as the stream lives; and from the reader an
//! acknowledgement of each complete state. What they mean is in [`routes`](crate::routes).

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::codec;
use super::frame::{Ext, Frame, FrameHeader, WireError};
use super::limits::{CONTROL_BYTES_MAX, ROUTES_ROWS_MAX};
use crate::name::AgentName;

const ROUTES_SNAPSHOT: u16 = 0x0501;
const ROUTES_ROWS: u16 = 0x0502;
const ROUTES_DELTA: u16 = 0x0503;
const ROUTES_APPLIED: u16 = 0x0581;

/// "I hold this agent, this process of it." Rows are ordered by name, then instance.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Row {
    /// The agent.
    #[serde(serialize_with = "serialize_name")]
    pub agent: AgentName,
    /// Which process of that name: what its hello says.
    pub instance: [u8; 16],
}

/// A state of one owner's rows. The later one is the greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RoutesPosition {
    /// How often the owner has started.
    pub epoch: u64,
    /// How many changes its rows have had since.
    pub sequence: u64,
}

impl fmt::Display for RoutesPosition {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { epoch, sequence } = self;
        write!(formatter, "epoch {epoch}, sequence {sequence}")
    }
}

/// Asks a proxy for its routes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenRoutes {
    /// The state that the reader has a complete copy of, if it has one.
    pub have: Option<RoutesPosition>,
    /// Entries of later versions.
    #[serde(with = "codec::ext")]
    pub ext: Ext,
}

/// Asks a proxy whether it holds an agent itself. Answered by `Opened`, or refused as `no_agent`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenFind {
    /// The agent.
    #[serde(serialize_with = "serialize_name")]
    pub agent: AgentName,
    /// Entries of later versions.
    #[serde(with = "codec::ext")]
    pub ext: Ext,
}

/// From the owner of the rows to a reader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RoutesFrame {
    /// All rows of one state follow.
    Snapshot(RoutesSnapshot),
    /// A part of the snapshot.
    Rows(RoutesRows),
    /// What has changed between two states.
    Delta(RoutesDelta),
}

/// Begins a new copy. [`RoutesRows`] follow, the last of them marked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoutesSnapshot {
    /// The owner's epoch.
    pub epoch: u64,
    /// The state that the copy is of.
    pub sequence: u64,
    /// How many rows that state has.
    pub count: u64,
    /// Entries of later versions.
    #[serde(with = "codec::ext")]
    pub ext: Ext,
}

/// The next rows of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoutesRows {
    /// Rows in ascending order, each behind all that came before: at most [`ROUTES_ROWS_MAX`].
    #[serde(with = "rows")]
    pub rows: Vec<Row>,
    /// Whether the snapshot ends here.
    pub last: bool,
    /// Entries of later versions.
    #[serde(with = "codec::ext")]
    pub ext: Ext,
}

/// What leads from one state to a later one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoutesDelta {
    /// The owner's epoch.
    pub epoch: u64,
    /// The state that the reader has.
    pub from: u64,
    /// The state that it has then.
    pub to: u64,
    /// Rows of `to` that `from` has not, in ascending order: at most [`ROUTES_ROWS_MAX`].
    #[serde(with = "rows")]
    pub added: Vec<Row>,
    /// Rows of `from` that `to` has not, in ascending order: at most [`ROUTES_ROWS_MAX`].
    #[serde(with = "rows")]
    pub removed: Vec<Row>,
    /// Entries of later versions.
    #[serde(with = "codec::ext")]
    pub ext: Ext,
}

impl Frame for RoutesFrame {
    const BODY_BYTES_MAX: usize = CONTROL_BYTES_MAX;

    fn encode(&self, out: &mut Vec<u8>) -> Result<(), WireError> {
        match self {
            Self::Snapshot(body) => codec::encode_frame::<Self>(ROUTES_SNAPSHOT, body, out),
            Self::Rows(body) => codec::encode_frame::<Self>(ROUTES_ROWS, body, out),
            Self::Delta(body) => codec::encode_frame::<Self>(ROUTES_DELTA, body, out),
        }
    }

    fn decode(header: FrameHeader, body: &[u8]) -> Result<Option<Self>, WireError> {
        match header.kind {
            ROUTES_SNAPSHOT => {
                codec::decode_body::<Self, _>(header, body).map(|body| Some(Self::Snapshot(body)))
            }
            ROUTES_ROWS => {
                codec::decode_body::<Self, _>(header, body).map(|body| Some(Self::Rows(body)))
            }
            ROUTES_DELTA => {
                codec::decode_body::<Self, _>(header, body).map(|body| Some(Self::Delta(body)))
            }
            _ => codec::unknown(header, body),
        }
    }
}

/// From a reader to the owner of the rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RoutesReaderFrame {
    /// The reader's lookups see this state.
    Applied(RoutesApplied),
}

/// The reader's copy is complete, and of this state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoutesApplied {
    /// The owner's epoch.
    pub epoch: u64,
    /// The state.
    pub sequence: u64,
    /// Entries of later versions.
    #[serde(with = "codec::ext")]
    pub ext: Ext,
}

impl Frame for RoutesReaderFrame {
    const BODY_BYTES_MAX: usize = CONTROL_BYTES_MAX;

    fn encode(&self, out: &mut Vec<u8>) -> Result<(), WireError> {
        match self {
            Self::Applied(body) => codec::encode_frame::<Self>(ROUTES_APPLIED, body, out),
        }
    }

    fn decode(header: FrameHeader, body: &[u8]) -> Result<Option<Self>, WireError> {
        match header.kind {
            ROUTES_APPLIED => {
                codec::decode_body::<Self, _>(header, body).map(|body| Some(Self::Applied(body)))
            }
            _ => codec::unknown(header, body),
        }
    }
}

/// The same bytes as by `Display`, without a text made for each row.
fn serialize_name<S: Serializer>(name: &AgentName, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(name.as_str())
}

/// Lists of rows, for `#[serde(with)]`.
mod rows {
    use super::{Deserializer, ROUTES_ROWS_MAX, Row, Serializer, codec};

    pub(super) fn serialize<S: Serializer>(rows: &[Row], serializer: S) -> Result<S::Ok, S::Error> {
        codec::serialize_list(rows, "rows", ROUTES_ROWS_MAX, serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<Row>, D::Error> {
        codec::deserialize_list("rows", ROUTES_ROWS_MAX, deserializer)
    }
}
