//! Codes with which streams are reset and connections closed. A released code never changes.

use std::fmt;

/// Defines a set of codes: the enum, `ALL`, `code`, `from_code`, `as_str` and `Display`.
macro_rules! codes {
    ($(#[$doc:meta])* $type:ident { $($(#[$variant_doc:meta])* $variant:ident = $code:literal, $text:literal;)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $type {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $type {
            /// Every code, in ascending order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The code on the wire.
            #[must_use]
            pub const fn code(self) -> u32 {
                match self {
                    $(Self::$variant => $code,)+
                }
            }

            /// The meaning of a code, or `None` for one of a later version.
            #[must_use]
            pub const fn from_code(code: u32) -> Option<Self> {
                match code {
                    $($code => Some(Self::$variant),)+
                    _ => None,
                }
            }

            /// The name in metrics and logs: snake case.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.pad(self.as_str())
            }
        }
    };
}

codes! {
    /// Why a stream is reset or its sender told to stop (RFC 9000, sections 19.4 and 19.5).
    ResetCode {
        /// Whoever wanted the stream has gone.
        Cancelled = 0, "cancelled";
        /// The socket behind the stream failed or was reset.
        SocketFailed = 1, "socket_failed";
        /// It stalled longest when the node's buffer budget was spent.
        StalledTooLong = 2, "stalled_too_long";
        /// The drain deadline came before its end.
        DrainDeadline = 3, "drain_deadline";
        /// The dial's deadline passed before the answer.
        DeadlinePassed = 4, "deadline_passed";
        /// The other side broke the protocol on this stream.
        ProtocolError = 5, "protocol_error";
        /// The stream was refused; the answer says why.
        Refused = 6, "refused";
    }
}

codes! {
    /// Why a connection is closed by the application (RFC 9000, section 19.19).
    CloseCode {
        /// It is no longer needed.
        Done = 0, "done";
        /// The certificate's kind does not fit the protocol that was asked for.
        WrongKind = 1, "wrong_kind";
        /// The other side broke the protocol.
        ProtocolError = 2, "protocol_error";
        /// The hello did not come in time.
        HandshakeTimeout = 3, "handshake_timeout";
        /// This side has drained.
        Draining = 4, "draining";
        /// This side is at a limit.
        Overloaded = 5, "overloaded";
        /// The agent has left, as it said it would.
        Left = 6, "left";
        /// A newer connection takes its place.
        Superseded = 7, "superseded";
        /// A fault of this side.
        Internal = 8, "internal";
        /// The other side's cluster, or the authority that vouched for it, is trusted no more.
        Untrusted = 9, "untrusted";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reset_codes_are_pinned() {
        let table: Vec<_> = ResetCode::ALL
            .iter()
            .map(|code| (code.code(), code.as_str()))
            .collect();
        assert_eq!(
            table,
            [
                (0, "cancelled"),
                (1, "socket_failed"),
                (2, "stalled_too_long"),
                (3, "drain_deadline"),
                (4, "deadline_passed"),
                (5, "protocol_error"),
                (6, "refused"),
            ]
        );
        for code in ResetCode::ALL {
            assert_eq!(ResetCode::from_code(code.code()), Some(*code));
        }
        assert_eq!(ResetCode::from_code(7), None);
    }

    #[test]
    fn close_codes_are_pinned() {
        let table: Vec<_> = CloseCode::ALL
            .iter()
            .map(|code| (code.code(), code.as_str()))
            .collect();
        assert_eq!(
            table,
            [
                (0, "done"),
                (1, "wrong_kind"),
                (2, "protocol_error"),
                (3, "handshake_timeout"),
                (4, "draining"),
                (5, "overloaded"),
                (6, "left"),
                (7, "superseded"),
                (8, "internal"),
                (9, "untrusted"),
            ]
        );
        for code in CloseCode::ALL {
            assert_eq!(CloseCode::from_code(code.code()), Some(*code));
        }
        assert_eq!(CloseCode::from_code(10), None);
    }
}
