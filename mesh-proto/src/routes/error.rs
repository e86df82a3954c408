//! Why a frame of routes was refused.

use crate::name::AgentName;
use crate::wire::RoutesPosition;

/// Why a frame of routes was refused. Whatever it is, the stream is to be given up; the next one is
/// opened with what [`have`](super::PeerRoutes::have) says then. Since the next one may end the same
/// way, with growing pauses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RoutesError {
    /// The frame is of an earlier life of its owner. Nothing changed.
    #[error("routes of epoch {came} came, and epoch {known} is known already")]
    OldEpoch {
        /// The epoch that is known.
        known: u64,
        /// The epoch of the frame.
        came: u64,
    },
    /// The delta does not begin where the copy ends, or there is no complete copy. Nothing changed:
    /// a complete copy is as good as it was.
    #[error("a delta from {from} came, and {}", copy(*.have))]
    Gap {
        /// The state of the complete copy, if there is one.
        have: Option<RoutesPosition>,
        /// Where the delta begins.
        from: RoutesPosition,
    },
    /// The delta leads nowhere, or back. Nothing changed.
    #[error("a delta leads from sequence {from} to {to}, and that is not forward")]
    NotForward {
        /// Where it begins.
        from: u64,
        /// Where it ends.
        to: u64,
    },
    /// Rows came and no snapshot had begun. Nothing changed.
    #[error("rows came, and no snapshot had begun")]
    NoSnapshot,
    /// Rows are not in ascending order, or one is there twice. A snapshot is given up; a delta
    /// changed nothing.
    #[error("the rows are not in ascending order at agent {agent}")]
    Order {
        /// The agent of the row that is not behind the one before it.
        agent: AgentName,
    },
    /// The snapshot has not as many rows as it announced. It is given up.
    #[error("a snapshot announced {announced} rows, and has {came} or more")]
    Count {
        /// What it announced.
        announced: u64,
        /// How many had come when that was known to be wrong.
        came: u64,
    },
    /// The delta adds a row that is there. Nothing changed but that the copy is no longer taken for
    /// complete.
    #[error("a delta adds a row of agent {agent} that the copy has already")]
    RowHeld {
        /// The agent.
        agent: AgentName,
    },
    /// The delta removes a row that is not there. Nothing changed but that the copy is no longer
    /// taken for complete.
    #[error("a delta removes a row of agent {agent} that the copy has not")]
    RowUnknown {
        /// The agent.
        agent: AgentName,
    },
    /// There are copies of too many owners. Nothing changed.
    #[error("copies of {owners_max} owners are kept, and that is the limit")]
    TooManyOwners {
        /// The limit.
        owners_max: usize,
    },
    /// The owner has too many rows. Nothing changed.
    #[error("the owner has {rows} rows, and at most {rows_per_owner_max} are allowed")]
    TooManyOfOwner {
        /// What it has, or says that it has.
        rows: u64,
        /// The limit.
        rows_per_owner_max: usize,
    },
    /// There would be too many rows altogether. A snapshot is given up where it is; a delta changed
    /// nothing.
    #[error("there would be more than {rows_max} rows altogether, and that is the limit")]
    TooMany {
        /// The limit.
        rows_max: usize,
    },
    /// The reader has acknowledged what it was not told. Nothing changed.
    #[error("the reader acknowledges {applied}, and {}", told_so_far(*.told))]
    NotTold {
        /// The last complete state that it was told.
        told: Option<RoutesPosition>,
        /// What it acknowledges.
        applied: RoutesPosition,
    },
}

fn copy(have: Option<RoutesPosition>) -> String {
    have.map_or_else(
        || "there is no complete copy".to_owned(),
        |have| format!("the copy is at {have}"),
    )
}

fn told_so_far(told: Option<RoutesPosition>) -> String {
    told.map_or_else(
        || "was told no complete state yet".to_owned(),
        |told| format!("was told up to {told}"),
    )
}
