//! Who a certificate is: its one URI SAN, `spiffe://<cluster>/<kind>/<name>`.

use std::fmt;
use std::str::FromStr;

use mesh_proto::name::{Cluster, NodeName};
use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;

/// How much of a refused value an error shows, in characters.
const SHOWN_CHARS_MAX: usize = 120;

/// Scheme and separator in front of the cluster.
const SCHEME: &str = "spiffe://";

/// What kind of node or person an identity is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A proxy: server to all, client to its peers.
    Proxy,
    /// An agent.
    Agent,
    /// A user.
    User,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Proxy, Self::Agent, Self::User];

    /// The kind as it stands in the identity: `proxy`, `agent` or `user`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Proxy => "proxy",
            Self::Agent => "agent",
            Self::User => "user",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The kind was none of `proxy`, `agent`, `user`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("kind {0:?} is unknown: it is one of `proxy`, `agent`, `user`")]
pub struct UnknownKind(
    /// The value, cut to a showable length.
    pub String,
);

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(s: &str) -> Result<Self, UnknownKind> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.as_str() == s)
            .ok_or_else(|| UnknownKind(cut(s)))
    }
}

/// A cluster's proxy, agent or user, as its certificate names it.
///
/// [`Display`](fmt::Display) and [`FromStr`] are exact inverses: one identity has one spelling.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// The trust domain.
    pub cluster: Cluster,
    /// Proxy, agent or user.
    pub kind: Kind,
    /// The name, unique for its kind and cluster.
    pub name: NodeName,
}

impl Identity {
    /// Reads the identity out of a certificate. This says who the certificate *claims* to be;
    /// whether that is so is for a verifier to say.
    ///
    /// # Errors
    /// The bytes are no certificate, or it has no URI SAN, several, or one that is no identity.
    pub fn from_certificate(certificate: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        Self::from_parsed(&parse(certificate)?)
    }

    /// As [`Self::from_certificate`], from a certificate that is parsed already.
    pub(crate) fn from_parsed(certificate: &X509Certificate<'_>) -> Result<Self, IdentityError> {
        Self::from_uris(&uris(certificate)?)
    }

    /// The identity in a list of URI SANs, which must have exactly one entry.
    pub(crate) fn from_uris(uris: &[impl AsRef<str>]) -> Result<Self, IdentityError> {
        match uris {
            [] => Err(IdentityError::NoUri),
            [uri] => uri.as_ref().parse(),
            _ => Err(IdentityError::SeveralUris { count: uris.len() }),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}/{}", self.cluster, self.kind, self.name)
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(uri: &str) -> Result<Self, IdentityError> {
        let refused = |why: String| IdentityError::NotAnIdentity { uri: cut(uri), why };
        let rest = uri
            .strip_prefix(SCHEME)
            .ok_or_else(|| refused(format!("it does not begin with {SCHEME}")))?;
        let parts: Vec<&str> = rest.splitn(4, '/').collect();
        let [cluster, kind, name] = parts[..] else {
            return Err(refused(
                "it is not of the form spiffe://<cluster>/<kind>/<name>".to_owned(),
            ));
        };
        let identity = Self {
            cluster: cluster
                .parse()
                .map_err(|e: <Cluster as FromStr>::Err| refused(e.to_string()))?,
            kind: kind
                .parse()
                .map_err(|e: UnknownKind| refused(e.to_string()))?,
            name: name
                .parse()
                .map_err(|e: <NodeName as FromStr>::Err| refused(e.to_string()))?,
        };
        // Names that a parser tidied up must not become a second spelling of one identity.
        if identity.to_string() != uri {
            return Err(refused(format!("its exact spelling would be {identity}")));
        }
        Ok(identity)
    }
}

/// A certificate does not say who it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The bytes are not one X.509 certificate.
    #[error("it is not an X.509 certificate: {why}")]
    NotACertificate {
        /// What the parser disliked.
        why: String,
    },
    /// There is no URI SAN.
    #[error("it has no URI SAN: an identity is one, spiffe://<cluster>/<kind>/<name>")]
    NoUri,
    /// There are several URI SANs.
    #[error("it has {count} URI SANs: an identity is exactly one")]
    SeveralUris {
        /// How many.
        count: usize,
    },
    /// The one URI SAN is no identity.
    #[error("its URI SAN {uri:?} is no identity: {why}")]
    NotAnIdentity {
        /// The URI, cut to a showable length.
        uri: String,
        /// The rule that it breaks.
        why: String,
    },
}

/// The URI SAN of an authority's own certificate: `spiffe://<cluster>`.
pub(crate) fn authority_uri(cluster: &Cluster) -> String {
    format!("{SCHEME}{cluster}")
}

/// The cluster that an authority's certificate names; `None` when it names none, as one made by
/// other tools may.
pub(crate) fn authority_cluster(certificate: &X509Certificate<'_>) -> Option<Cluster> {
    let uris = uris(certificate).ok()?;
    let [uri] = uris[..] else { return None };
    let cluster: Cluster = uri.strip_prefix(SCHEME)?.parse().ok()?;
    (authority_uri(&cluster) == uri).then_some(cluster)
}

/// Parses DER that must be one certificate and nothing behind it.
pub(crate) fn parse<'a>(
    certificate: &'a CertificateDer<'_>,
) -> Result<X509Certificate<'a>, IdentityError> {
    let (rest, parsed) = x509_parser::parse_x509_certificate(certificate.as_ref())
        .map_err(|e| IdentityError::NotACertificate { why: e.to_string() })?;
    if !rest.is_empty() {
        return Err(IdentityError::NotACertificate {
            why: format!("{} bytes stand behind it", rest.len()),
        });
    }
    Ok(parsed)
}

/// All URI SANs, in order.
pub(crate) fn uris<'a>(
    certificate: &'a X509Certificate<'_>,
) -> Result<Vec<&'a str>, IdentityError> {
    let names =
        certificate
            .subject_alternative_name()
            .map_err(|e| IdentityError::NotACertificate {
                why: format!("its subject alternative names: {e}"),
            })?;
    let Some(names) = names else {
        return Ok(Vec::new());
    };
    Ok(names
        .value
        .general_names
        .iter()
        .filter_map(|name| {
            if let GeneralName::URI(uri) = name {
                Some(*uri)
            } else {
                None
            }
        })
        .collect())
}

/// Cuts what a stranger wrote to a length that fits in an error.
fn cut(s: &str) -> String {
    s.chars().take(SHOWN_CHARS_MAX).collect()
}

/// Spellings near to an identity, none of which is one; shared with the handshake tests.
#[cfg(test)]
pub(crate) const ODD_URIS: &[&str] = &[
    "spiffe://Example.com/agent/a1",
    "spiffe://example.com/Agent/a1",
    "spiffe://example.com/agent/A1",
    "SPIFFE://example.com/agent/a1",
    "spiffe://example.com:443/agent/a1",
    "spiffe://user@example.com/agent/a1",
    "spiffe://example.com./agent/a1",
    "spiffe://example.com/agent/a1/",
    "spiffe://example.com/agent/a1/x",
    "spiffe://example.com//agent/a1",
    "spiffe://example.com/agent//a1",
    "spiffe://example.com/agent/",
    "spiffe://example.com/agent",
    "spiffe://example.com/",
    "spiffe://example.com",
    "spiffe:///agent/a1",
    "spiffe://example.com/agent/a1?x=1",
    "spiffe://example.com/agent/a1#x",
    "spiffe://example.com/agent/%611",
    "spiffe://example.com/agent/a1 ",
    " spiffe://example.com/agent/a1",
    "spiffe://example.com/agent/a.1",
    "spiffe://example.com/agent/a_1",
    "spiffe://com/agent/a1",
    "spiffe://example.com/authority/a1",
    "spiffe:example.com/agent/a1",
    "https://example.com/agent/a1",
    "",
];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    #[test]
    fn display_and_parse_are_inverses() {
        for kind in Kind::ALL {
            let uri = format!("spiffe://example.com/{kind}/n-1");
            let identity: Identity = uri.parse().unwrap();
            assert_eq!(identity.kind, kind);
            assert_eq!(identity.cluster.as_str(), "example.com");
            assert_eq!(identity.name.as_str(), "n-1");
            assert_eq!(identity.to_string(), uri);
        }
    }

    #[test]
    fn odd_spellings_are_refused() {
        for uri in ODD_URIS {
            let error = uri.parse::<Identity>().unwrap_err();
            assert!(
                matches!(error, IdentityError::NotAnIdentity { .. }),
                "{uri}: {error}"
            );
        }
    }

    #[test]
    fn a_long_uri_is_cut_in_the_error() {
        let error = "x".repeat(10_000).parse::<Identity>().unwrap_err();
        assert!(error.to_string().len() < 400);
    }

    #[test]
    fn bytes_that_are_no_certificate() {
        for bytes in [
            &b""[..],
            b"\x30",
            b"-----BEGIN CERTIFICATE-----",
            &[0xff; 300],
        ] {
            let error = Identity::from_certificate(&CertificateDer::from(bytes)).unwrap_err();
            assert!(
                matches!(error, IdentityError::NotACertificate { .. }),
                "{error}"
            );
        }
    }
}
