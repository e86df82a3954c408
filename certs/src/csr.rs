//! Certificate signing requests (PKCS #10, RFC 2986): the key stays where it was made, the request
//! travels to the authority, the certificate travels back.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, CertificateSigningRequestParams, PublicKey, SanType};
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;

use crate::files::{self, Access, FileError, NewFile};
use crate::identity::{Identity, IdentityError};
use crate::keys::KeyKind;
use crate::leaf::{self, AltNameError, LeafError};

/// A new key and the request for its certificate.
pub struct Csr {
    identity: Identity,
    csr_pem: String,
    key_pem: String,
}

impl Csr {
    /// Makes a key, and a request in which it asks to be `identity`, with further DNS names and
    /// addresses.
    ///
    /// # Errors
    /// A DNS name is invalid or reserved, there are too many, or no key could be made.
    pub fn generate(
        identity: Identity,
        dns: &[String],
        ips: &[IpAddr],
        key: KeyKind,
    ) -> Result<Self, CsrError> {
        let key = key
            .generate()
            .map_err(|e| CsrError::Generate { why: e.to_string() })?;
        let mut params = CertificateParams::default();
        params.distinguished_name = leaf::common_name(identity.name.as_str());
        params.subject_alt_names = leaf::alt_names(&identity, dns, ips)?;
        let csr_pem = params
            .serialize_request(&key)
            .and_then(|csr| csr.pem())
            .map_err(|e| CsrError::Generate { why: e.to_string() })?;
        Ok(Self {
            identity,
            csr_pem,
            key_pem: key.serialize_pem(),
        })
    }

    /// Who the request asks to be.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The request, PEM.
    #[must_use]
    pub fn csr_pem(&self) -> &str {
        &self.csr_pem
    }

    /// The private key, PEM (PKCS #8).
    #[must_use]
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// Writes `NAME.key` (0600) and `NAME.csr` into a directory; returns both paths in this order.
    ///
    /// # Errors
    /// One of them exists already or cannot be written; then neither is.
    pub fn save(&self, dir: &Path) -> Result<[PathBuf; 2], FileError> {
        let key = dir.join(format!("{}.key", self.identity.name));
        let csr = dir.join(format!("{}.csr", self.identity.name));
        files::write_new(&[
            NewFile {
                path: key.clone(),
                content: self.key_pem.as_bytes(),
                access: Access::Private,
            },
            NewFile {
                path: csr.clone(),
                content: self.csr_pem.as_bytes(),
                access: Access::Public,
            },
        ])?;
        Ok([key, csr])
    }
}

impl fmt::Debug for Csr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Csr")
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

/// A request could not be made, or is not one that is signed.
#[derive(Debug, thiserror::Error)]
pub enum CsrError {
    /// The names do not do.
    #[error(transparent)]
    AltName(#[from] AltNameError),
    /// It is no PEM of a certificate request, or its signature is not by its own key.
    #[error(
        "this is no certificate request that can be signed (PEM, BEGIN CERTIFICATE REQUEST): {why}; make one with `node certs csr`"
    )]
    NotACsr {
        /// What the parser disliked.
        why: String,
    },
    /// The identity that it asks for is none.
    #[error("the request cannot be signed: {0}")]
    Identity(#[from] IdentityError),
    /// It asks for a name that is no DNS name, address or URI.
    #[error(
        "the request asks for an alternative name of another kind than URI, DNS or IP: such are not signed"
    )]
    OtherName,
    /// No key or request could be made.
    #[error("cannot make a certificate request: {why}")]
    Generate {
        /// Why.
        why: String,
    },
}

impl From<LeafError> for CsrError {
    fn from(error: LeafError) -> Self {
        match error {
            LeafError::AltName(error) => Self::AltName(error),
            other @ (LeafError::Time { .. } | LeafError::NoRandomness | LeafError::Rcgen(_)) => {
                Self::Generate {
                    why: other.to_string(),
                }
            }
        }
    }
}

/// What a request asks for, its own signature checked.
pub(crate) struct Asked {
    pub(crate) identity: Identity,
    pub(crate) dns: Vec<String>,
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) public_key: PublicKey,
}

impl Asked {
    /// Reads a request. Of what it asks for, only the key and the alternative names matter: usages,
    /// subject and life are the authority's to decide.
    pub(crate) fn from_pem(csr_pem: &[u8]) -> Result<Self, CsrError> {
        let der = CertificateSigningRequestDer::from_pem_slice(csr_pem)
            .map_err(|e| CsrError::NotACsr { why: e.to_string() })?;
        Self::from_der(&der)
    }

    pub(crate) fn from_der(der: &CertificateSigningRequestDer<'_>) -> Result<Self, CsrError> {
        let csr = CertificateSigningRequestParams::from_der(der)
            .map_err(|e| CsrError::NotACsr { why: e.to_string() })?;
        let (mut uris, mut dns, mut ips) = (Vec::new(), Vec::new(), Vec::new());
        for name in &csr.params.subject_alt_names {
            match name {
                SanType::URI(uri) => uris.push(uri.as_str()),
                SanType::DnsName(name) => dns.push(name.as_str().to_owned()),
                SanType::IpAddress(ip) => ips.push(*ip),
                // The enum may grow: whatever else it holds is nothing that is signed.
                SanType::Rfc822Name(_) | SanType::OtherName(_) | _ => {
                    return Err(CsrError::OtherName);
                }
            }
        }
        Ok(Self {
            identity: Identity::from_uris(&uris)?,
            dns,
            ips,
            public_key: csr.public_key,
        })
    }
}
