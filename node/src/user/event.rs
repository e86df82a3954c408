//! What a client tells the application.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_proto::name::NodeName;

use super::connect::ConnectErrorKind;

/// Hears of events. It is called on the client's own task and must not block.
pub type OnEvent = Arc<dyn Fn(&Event) + Send + Sync>;

/// Something that a person at a terminal would want to know.
#[derive(Debug, Clone)]
pub enum Event {
    /// There was no connection, and now there is one.
    Connected {
        /// The proxy, by its certificate.
        proxy: NodeName,
        /// Its address.
        remote: SocketAddr,
    },
    /// New streams take another connection from now on; those of the old one go on.
    Moved {
        /// The former proxy.
        from: NodeName,
        /// The proxy, by its certificate.
        proxy: NodeName,
        /// Its address.
        remote: SocketAddr,
        /// What made it move.
        why: Why,
    },
    /// The connection is gone, and its streams with it.
    Lost {
        /// The former proxy.
        proxy: NodeName,
        /// How it ended.
        why: String,
    },
    /// No candidate could be connected to. Told at the first time, when the failures change, and
    /// now and then.
    Unreachable {
        /// What each candidate failed with.
        failures: Vec<Failure>,
        /// The next round of attempts.
        retry_in: Duration,
    },
    /// A local connection was closed because its dial failed. Told once for each forward and
    /// reason, and again when it still happens after a while.
    Refused {
        /// The local side of the forward.
        local: String,
        /// The agent's side, as it was written.
        remote: String,
        /// The reason, from a closed set.
        reason: &'static str,
        /// The same for people.
        message: String,
        /// Refusals of the same kind since the last one that was told, this one excluded.
        untold: u64,
    },
    /// A local listener cannot accept at the moment, and will go on trying.
    AcceptFailed {
        /// The local side of the forward.
        local: String,
        /// Why.
        error: String,
    },
}

/// One candidate that could not be connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The candidate: an address, or a name that did not resolve.
    pub at: String,
    /// What kind of failure.
    pub kind: ConnectErrorKind,
    /// The same for people, with what to do.
    pub message: String,
}

/// Why a connection is left while it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The proxy is about to leave: it has said so, or refuses new streams.
    Draining,
    /// Nothing comes back from it.
    Silent,
}

impl Why {
    /// Its name for programs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Draining => "draining",
            Self::Silent => "silent",
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Draining => "is about to leave",
            Self::Silent => "has fallen silent",
        })
    }
}
