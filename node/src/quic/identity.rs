//! Who is on the other side of a connection, and whether that kind may speak that protocol.

use certs::{Identity, Kind};
use mesh_proto::close::CloseCode;
use mesh_proto::name::Cluster;
use mesh_proto::wire::{ALPN_AGENT, ALPN_PEER, ALPN_USER};
use quinn::ConnectionError;
use quinn::crypto::rustls::HandshakeData;
use rustls_pki_types::CertificateDer;

/// What a connection is for, by its ALPN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// `mesh-agent/1`.
    Agent,
    /// `mesh-peer/1`.
    Peer,
    /// `mesh-user/1`.
    User,
}

/// A connection whose handshake was complete, and yet it cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The handshake ended without one of the mesh's protocols.
    #[error("no protocol of the mesh was agreed on")]
    NoPurpose,
    /// No certificate was seen; the TLS configuration demands one, so this is a defect.
    #[error("the connection carries no certificate")]
    NoCertificate,
    /// The certificate names nobody.
    #[error(transparent)]
    Certificate(#[from] certs::IdentityError),
    /// Somebody of another cluster who is no proxy, or wants to be more than an agent.
    #[error(
        "{identity} is of another cluster, of which proxies may connect as agents, and nothing else"
    )]
    OtherCluster {
        /// Who it is.
        identity: Identity,
    },
    /// A kind of identity that may not speak this protocol.
    #[error("{identity} may not connect as {wanted}: it takes a certificate of kind {wanted}")]
    WrongKind {
        /// Who it is.
        identity: Identity,
        /// Who it should be.
        wanted: Kind,
    },
}

/// Whether a connection has ended because one side does not trust the other's certificate: by a TLS
/// alert, ours or theirs (RFC 9001, section 4.8), or as the wrong kind behind the handshake.
pub(crate) fn is_untrusted(error: &ConnectionError) -> bool {
    const CRYPTO: std::ops::Range<u64> = 0x100..0x200;
    match error {
        ConnectionError::TransportError(error) => CRYPTO.contains(&error.code.into()),
        ConnectionError::ConnectionClosed(close) => CRYPTO.contains(&close.error_code.into()),
        ConnectionError::ApplicationClosed(close) => {
            close.error_code == CloseCode::WrongKind.code().into()
                || close.error_code == CloseCode::Untrusted.code().into()
        }
        ConnectionError::VersionMismatch
        | ConnectionError::Reset
        | ConnectionError::TimedOut
        | ConnectionError::LocallyClosed
        | ConnectionError::CidsExhausted => false,
    }
}

/// Reads the purpose of an established connection.
///
/// # Errors
/// [`IdentityError::NoPurpose`].
pub fn purpose(connection: &quinn::Connection) -> Result<Purpose, IdentityError> {
    let protocol = connection
        .handshake_data()
        .and_then(|data| data.downcast::<HandshakeData>().ok())
        .and_then(|data| data.protocol)
        .ok_or(IdentityError::NoPurpose)?;
    match protocol.as_slice() {
        ALPN_AGENT => Ok(Purpose::Agent),
        ALPN_PEER => Ok(Purpose::Peer),
        ALPN_USER => Ok(Purpose::User),
        _ => Err(IdentityError::NoPurpose),
    }
}

/// The identity in the other side's certificate, whose chain the handshake has verified.
///
/// # Errors
/// [`IdentityError`].
pub fn identity(connection: &quinn::Connection) -> Result<Identity, IdentityError> {
    let chain = connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok())
        .ok_or(IdentityError::NoCertificate)?;
    let leaf = chain.first().ok_or(IdentityError::NoCertificate)?;
    Ok(Identity::from_certificate(leaf)?)
}

/// The identity of a client of a proxy of the cluster `own`, whose kind must fit the purpose of the
/// connection. Of another cluster proxies alone are let in, and as agents alone.
///
/// # Errors
/// [`IdentityError`].
pub fn client(
    connection: &quinn::Connection,
    purpose: Purpose,
    own: &Cluster,
) -> Result<Identity, IdentityError> {
    fits(identity(connection)?, purpose, own)
}

fn fits(identity: Identity, purpose: Purpose, own: &Cluster) -> Result<Identity, IdentityError> {
    if identity.cluster != *own {
        return match (purpose, identity.kind) {
            (Purpose::Agent, Kind::Proxy) => Ok(identity),
            (Purpose::Agent | Purpose::Peer | Purpose::User, _) => {
                Err(IdentityError::OtherCluster { identity })
            }
        };
    }
    let wanted = match purpose {
        Purpose::Agent => Kind::Agent,
        Purpose::Peer => Kind::Proxy,
        Purpose::User => Kind::User,
    };
    if identity.kind != wanted {
        return Err(IdentityError::WrongKind { identity, wanted });
    }
    Ok(identity)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// Every kind, protocol and cluster.
    #[test]
    fn who_may_speak_what() {
        let own = "example.com".parse().unwrap();
        for cluster in ["example.com", "b.example.com"] {
            for kind in [Kind::Proxy, Kind::Agent, Kind::User] {
                for purpose in [Purpose::Agent, Purpose::Peer, Purpose::User] {
                    let identity = Identity {
                        cluster: cluster.parse().unwrap(),
                        kind,
                        name: "x1".parse().unwrap(),
                    };
                    let may = matches!(
                        (cluster, kind, purpose),
                        ("example.com", Kind::Agent, Purpose::Agent)
                            | ("example.com", Kind::Proxy, Purpose::Peer)
                            | ("example.com", Kind::User, Purpose::User)
                            | ("b.example.com", Kind::Proxy, Purpose::Agent)
                    );
                    let fits = fits(identity.clone(), purpose, &own);
                    assert_eq!(fits.is_ok(), may, "{identity} {purpose:?}");
                }
            }
        }
    }
}
