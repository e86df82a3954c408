//! Why a dial was refused: a closed set that travels from the agent to the user.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::text::quote;

/// Why a dial was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The target is not well formed, or the agent offers no such service.
    BadTarget,
    /// The principal may not, or the agent's own list does not allow the target.
    NotAllowed,
    /// No proxy holds an agent of that name.
    NoAgent,
    /// The target refused the connection.
    Refused,
    /// The target's host or network cannot be reached.
    Unreachable,
    /// The target's name does not resolve.
    ResolveFailed,
    /// The connection to the agent or the peer was lost before the answer.
    Lost,
    /// The other side does not know this request.
    Unsupported,
    /// The other side is leaving and takes no new work.
    Draining,
    /// The other side is at a limit.
    Overloaded,
    /// The deadline passed before the answer.
    Timeout,
    /// A fault of the mesh itself.
    Internal,
}

/// A text that is no [`Reason`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{value}\" is no refusal reason; the reasons are {}", names())]
pub struct UnknownReason {
    /// What was written, escaped and cut to 80 characters.
    pub value: String,
}

impl Reason {
    /// Every reason, in the order of the codes.
    pub const ALL: [Self; 12] = [
        Self::BadTarget,
        Self::NotAllowed,
        Self::NoAgent,
        Self::Refused,
        Self::Unreachable,
        Self::ResolveFailed,
        Self::Lost,
        Self::Unsupported,
        Self::Draining,
        Self::Overloaded,
        Self::Timeout,
        Self::Internal,
    ];

    /// The name in metrics, logs and `X-Mesh-Error`: snake case.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BadTarget => "bad_target",
            Self::NotAllowed => "not_allowed",
            Self::NoAgent => "no_agent",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::ResolveFailed => "resolve_failed",
            Self::Lost => "lost",
            Self::Unsupported => "unsupported",
            Self::Draining => "draining",
            Self::Overloaded => "overloaded",
            Self::Timeout => "timeout",
            Self::Internal => "internal",
        }
    }

    /// The code on the wire. A released code never changes.
    #[must_use]
    pub const fn code(self) -> u16 {
        match self {
            Self::BadTarget => 1,
            Self::NotAllowed => 2,
            Self::NoAgent => 3,
            Self::Refused => 4,
            Self::Unreachable => 5,
            Self::ResolveFailed => 6,
            Self::Lost => 7,
            Self::Unsupported => 8,
            Self::Draining => 9,
            Self::Overloaded => 10,
            Self::Timeout => 11,
            Self::Internal => 12,
        }
    }

    /// The reason of a code, or `None` for a code of a later version.
    #[must_use]
    pub fn from_code(code: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.code() == code)
    }

    /// The status with which an HTTP ingress answers (RFC 9110, section 15).
    #[must_use]
    pub const fn http_status(self) -> u16 {
        match self {
            Self::BadTarget => 400,
            Self::NotAllowed => 403,
            Self::Internal => 500,
            Self::NoAgent
            | Self::Refused
            | Self::Unreachable
            | Self::ResolveFailed
            | Self::Lost
            | Self::Unsupported => 502,
            Self::Draining | Self::Overloaded => 503,
            Self::Timeout => 504,
        }
    }

    /// Whether the dial is tried on another session or peer before the user hears of it: nothing was
    /// attempted, and another may have room.
    #[must_use]
    pub const fn may_try_elsewhere(self) -> bool {
        matches!(self, Self::Draining | Self::Overloaded)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.as_str())
    }
}

impl FromStr for Reason {
    type Err = UnknownReason;

    fn from_str(text: &str) -> Result<Self, UnknownReason> {
        Self::ALL
            .into_iter()
            .find(|reason| reason.as_str() == text)
            .ok_or_else(|| UnknownReason { value: quote(text) })
    }
}

/// Its name where people read (JSON, TOML), its code on the wire.
impl Serialize for Reason {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.serialize_str(self.as_str())
        } else {
            serializer.serialize_u16(self.code())
        }
    }
}

/// An unknown code is [`Reason::Internal`]: a later version refused for a reason that has no name
/// here, and the message says it.
impl<'de> Deserialize<'de> for Reason {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            crate::text::deserialize(deserializer, "a refusal reason")
        } else {
            Ok(Self::from_code(u16::deserialize(deserializer)?).unwrap_or(Self::Internal))
        }
    }
}

fn names() -> String {
    Reason::ALL.map(Reason::as_str).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_pinned() {
        let table: Vec<_> = Reason::ALL
            .map(|reason| {
                (
                    reason.code(),
                    reason.as_str(),
                    reason.http_status(),
                    reason.may_try_elsewhere(),
                )
            })
            .into();
        assert_eq!(
            table,
            [
                (1, "bad_target", 400, false),
                (2, "not_allowed", 403, false),
                (3, "no_agent", 502, false),
                (4, "refused", 502, false),
                (5, "unreachable", 502, false),
                (6, "resolve_failed", 502, false),
                (7, "lost", 502, false),
                (8, "unsupported", 502, false),
                (9, "draining", 503, true),
                (10, "overloaded", 503, true),
                (11, "timeout", 504, false),
                (12, "internal", 500, false),
            ]
        );
    }

    #[test]
    fn codes_and_names_lead_back() {
        for reason in Reason::ALL {
            assert_eq!(Reason::from_code(reason.code()), Some(reason));
            assert_eq!(reason.to_string().parse(), Ok(reason));
        }
        for code in [0, 13, u16::MAX] {
            assert_eq!(Reason::from_code(code), None);
        }
        let error = "Lost".parse::<Reason>().unwrap_err().to_string();
        assert!(
            error.starts_with("\"Lost\" is no refusal reason; the reasons are bad_target, "),
            "{error}"
        );
    }
}
