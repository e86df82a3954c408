//! Who holds which agent: each proxy writes its own rows, and keeps copies of its peers' rows.
//!
//! A row says "proxy P holds agent A, process instance I". P alone writes it ([`OwnRoutes`]); its
//! peers read it over one stream each and keep it in one table ([`PeerRoutes`]).
//!
//! # States
//!
//! Each change of an owner's set of rows makes a new **state**, numbered by a sequence that begins
//! at 0 in each epoch. A reader is told
//!
//! - either a **snapshot**: all rows of one state, in ascending order, in frames of bounded size.
//!   Rows that change while it is being sent do not change what it says: what the table has lost or
//!   won since then is taken back by the log of changes. So a snapshot is exactly the state that its
//!   first frame names, and its count can be checked;
//! - or a **delta** from the state that it has to a later one: the difference of the two, so that a
//!   row that came and went in between is not in it.
//!
//! The log has a bound. A reader that has fallen out of it, in the middle of a snapshot too, is sent
//! a snapshot from the beginning.
//!
//! # What a reader sees
//!
//! A **complete** copy is, row for row, a state that its owner had. While a snapshot is being read,
//! each row up to the last one that has come is as the snapshot says, and each row behind it as it
//! was before. So a row that was there before and is there afterwards is never missing, nothing is
//! held twice, and no single frame brings more work than its own rows and those it replaces. The
//! copy is complete again, and is acknowledged, with the snapshot's last frame. Until then
//! [`PeerRoutes::have`] is `None`, and a stream that breaks makes the next one begin anew.
//!
//! A frame that is refused changes nothing, unless the error's text says otherwise. After any error
//! the stream is to be given up; the next one is opened with what [`PeerRoutes::have`] says then.
//!
//! # Heads
//!
//! Members tell each other their [`Head`]s by gossip. A reader whose copy
//! [is behind](PeerRoutes::is_behind) one, for longer than a stream takes, opens its stream anew.
//! The count shows a copy that has gone astray at the right sequence.

mod error;
mod own;
mod peers;
mod table;

#[cfg(test)]
mod tests;

pub use error::RoutesError;
pub use own::{Cursor, OwnRoutes};
pub use peers::PeerRoutes;

use crate::name::LABEL_BYTES_MAX;
use crate::wire::{CONTROL_BYTES_MAX, MEMBERS_MAX, RoutesPosition, Row};

/// Bounds of routes.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Changes of the own rows that are remembered. A reader that is further behind gets a snapshot;
    /// so does one that is slower to read a snapshot than this many changes are to come.
    pub log_rows_max: usize,
    /// The longest body of a frame that is made here, in bytes. Held between what one row takes and
    /// [`CONTROL_BYTES_MAX`].
    pub frame_bytes_max: usize,
    /// Owners of whom copies are kept.
    pub owners_max: usize,
    /// Rows that one owner may have.
    pub rows_per_owner_max: usize,
    /// Rows of all owners together.
    pub rows_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            log_rows_max: 65_536,
            // A quarter of what a reader takes: more would make single pauses longer and nothing
            // faster.
            frame_bytes_max: CONTROL_BYTES_MAX / 4,
            owners_max: MEMBERS_MAX,
            rows_per_owner_max: 2_000_000,
            rows_max: 2_000_000,
        }
    }
}

/// Where an owner's rows stand, or a complete copy of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// How often the owner has started.
    pub epoch: u64,
    /// How many changes its rows have had since.
    pub sequence: u64,
    /// How many rows there are.
    pub count: u64,
}

impl Head {
    /// The state, without its size.
    #[must_use]
    pub const fn position(self) -> RoutesPosition {
        RoutesPosition {
            epoch: self.epoch,
            sequence: self.sequence,
        }
    }
}

/// Everything in the body of a frame but its rows: three u64 of nine bytes, two counts of three, a
/// bool, an empty `ext`.
const ENVELOPE_BYTES_MAX: usize = 35;

/// The shortest limit of a body: an agent's row fits. One row goes into a frame whatever its length,
/// which is far below [`CONTROL_BYTES_MAX`] for the longest name of a cluster, too.
const FRAME_BYTES_MIN: usize = ENVELOPE_BYTES_MAX + 1 + LABEL_BYTES_MAX + INSTANCE_BYTES;

const INSTANCE_BYTES: usize = 16;

/// What a row takes on the wire: a name's length is below 251, and so one byte.
fn row_bytes(row: &Row) -> usize {
    1 + row.agent.as_str().len() + INSTANCE_BYTES
}
