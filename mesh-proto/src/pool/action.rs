//! What the pool asks of its driver, and what the driver answers.

use crate::name::{Generation, Group, NodeName};
use crate::tracker::LeaseId;

use super::LetGo;

/// What to dial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whom {
    /// Whoever answers at this configured address, from a fresh socket.
    Configured {
        /// As in the config.
        address: String,
    },
    /// This proxy and no other, at one of the addresses that it advertises.
    Directed {
        /// Its name.
        proxy: NodeName,
        /// Its addresses, to be tried in this order.
        addresses: Vec<String>,
    },
}

/// What the driver has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Dial.
    Dial {
        /// The lease under which it is dialled.
        lease: LeaseId,
        /// Whom.
        whom: Whom,
    },
    /// Let a connection go.
    LetGo {
        /// Its lease.
        lease: LeaseId,
        /// Why.
        why: LetGo,
    },
}

/// Who answered a dial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reached {
    /// Its name, as its certificate says.
    pub proxy: NodeName,
    /// How often it has started.
    pub epoch: u64,
    /// Its deployment.
    pub group: Group,
    /// The rollout number of that deployment.
    pub generation: Generation,
}

/// What becomes of a dial that was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The connection is kept.
    Keep,
    /// That proxy is connected already, or is not needed: close it. Its lease is given back.
    Duplicate,
}

/// How many connections there are, and should be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections wanted: the tracker's `want`, and one while nothing is known.
    pub desired: usize,
    /// Connected proxies that are desired.
    pub connected: usize,
    /// All connections, to old generations and draining proxies too.
    pub held: usize,
    /// Dials under way.
    pub dialling: usize,
    /// Proxies that could be dialled, but cool down.
    pub cooling: usize,
}
