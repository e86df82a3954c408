//! Tunnels to other clusters: which are wanted, as the store says, and how each of them is.
//!
//! | file | what |
//! |---|---|
//! | `resources.rs` | what the store holds, as far as it is known, and what is told of it |
//! | `watch.rs` | keeps that up to date, and hands it to whoever keeps the connections |
//! | `change.rs` | tunnels come, change and go |
//! | `gauges.rs` | what is measured of it |
//! | `pools.rs` | the tunnels that this proxy keeps: for each a pool of connections |
//! | `keep.rs` | one of them, from its first wish to its end |
//! | `answer.rs` | what the other cluster's proxies ask for |

mod answer;
mod change;
mod gauges;
mod keep;
mod pools;
mod resources;
mod watch;

use std::fmt;

use mesh_proto::name::Cluster;
use mesh_proto::tunnel::Tunnel;
use tokio::time::Instant;

pub(crate) use self::change::{ChangeError, Changed, Wish};
#[doc(hidden)]
pub use self::gauges::metric_names;
pub use self::pools::Tunnels;
pub(crate) use self::resources::Resources;
pub(super) use self::watch::run;

/// Whoever keeps connections to other clusters.
pub trait TunnelRunner: Send + Sync + fmt::Debug + 'static {
    /// From now on these are wanted and no others: what is new is begun, what changed goes on with as
    /// little loss as it can, what is missing ends. One of each cluster, in the order of their names.
    /// It must not block.
    fn apply(&self, wanted: Vec<Tunnel>);

    /// How those are that it keeps.
    fn states(&self) -> Vec<(Cluster, TunnelState)>;
}

/// How a tunnel is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TunnelState {
    /// No connection stands yet.
    Connecting,
    /// Connections stand.
    Connected {
        /// How many.
        connections: usize,
        /// How many there should be.
        wanted: usize,
    },
    /// No connection stands, and attempts fail.
    Failing {
        /// Why, and what to do.
        why: String,
        /// Since when.
        since: Instant,
    },
}

impl TunnelState {
    /// The states' names, in the API and as labels.
    pub(crate) const NAMES: [&str; 4] = ["connecting", "connected", "failing", INVALID];

    /// Its name.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Connected { .. } => "connected",
            Self::Failing { .. } => "failing",
        }
    }
}

/// The state of what is stored and is no tunnel.
pub(crate) const INVALID: &str = "invalid";
