//! How connections to proxies end.

use mesh_proto::close::CloseCode;
use quinn::ConnectionError;

/// How a connection to a proxy has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// The agent has left the proxy, or has let it go.
    Left,
    /// The proxy has left, as it had said.
    ProxyLeft,
    /// Nothing was heard from the proxy for the idle timeout.
    IdleTimeout,
    /// The proxy closed without a word before.
    ClosedByProxy,
    /// The proxy's host answered that it knows the connection no more.
    Reset,
    /// The proxy broke the protocol.
    ProtocolError,
    /// QUIC failed otherwise.
    TransportError,
}

impl Ending {
    /// All of them.
    pub(super) const ALL: [Self; 7] = [
        Self::Left,
        Self::ProxyLeft,
        Self::IdleTimeout,
        Self::ClosedByProxy,
        Self::Reset,
        Self::ProtocolError,
        Self::TransportError,
    ];

    /// The value of the label `reason`.
    #[must_use]
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Left => "left",
            Self::ProxyLeft => "proxy_left",
            Self::IdleTimeout => "idle_timeout",
            Self::ClosedByProxy => "closed_by_proxy",
            Self::Reset => "reset",
            Self::ProtocolError => "protocol_error",
            Self::TransportError => "transport_error",
        }
    }

    pub(super) fn of(error: &ConnectionError) -> Self {
        match error {
            ConnectionError::ApplicationClosed(close)
                if close.error_code == CloseCode::Draining.code().into() =>
            {
                Self::ProxyLeft
            }
            ConnectionError::ApplicationClosed(_) | ConnectionError::ConnectionClosed(_) => {
                Self::ClosedByProxy
            }
            ConnectionError::TimedOut => Self::IdleTimeout,
            ConnectionError::Reset => Self::Reset,
            // Whatever else this side closes for is known where it does.
            ConnectionError::LocallyClosed => Self::Left,
            ConnectionError::VersionMismatch
            | ConnectionError::TransportError(_)
            | ConnectionError::CidsExhausted => Self::TransportError,
        }
    }
}
