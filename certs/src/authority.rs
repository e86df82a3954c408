//! A cluster's certificate authority: created once, kept at home, issues and signs leaves.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use mesh_proto::name::{Cluster, NodeName};
use rcgen::{
    BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
    SanType,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::csr::{Asked, CsrError};
use crate::files::{self, Access, FileError, NewFile};
use crate::identity::{self, Identity, Kind};
use crate::keys::KeyKind;
use crate::leaf::{self, AltNameError, LeafError};
use crate::validity::{Validity, format_utc};

/// The authority's certificate, which every node has.
pub const AUTHORITY_CERT_FILE: &str = "ca.pem";

/// The authority's private key, which no node has.
pub const AUTHORITY_KEY_FILE: &str = "ca.key";

/// A certificate authority with its private key.
pub struct Authority {
    cluster: Cluster,
    validity: Validity,
    ca_pem: String,
    key_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A new authority for a cluster, with a new Ed25519 key.
    ///
    /// Its certificate names the cluster by the URI SAN `spiffe://<cluster>`, may sign leaves only
    /// (path length 0), and nothing else.
    ///
    /// # Errors
    /// [`AuthorityError::Generate`]: the system gave no key.
    pub fn create(cluster: Cluster, validity: &Validity) -> Result<Self, AuthorityError> {
        Self::create_with(cluster, validity, KeyKind::default())
    }

    /// As [`Self::create`], with a key of this kind.
    ///
    /// # Errors
    /// [`AuthorityError::Generate`]: the system gave no key.
    pub fn create_with(
        cluster: Cluster,
        validity: &Validity,
        key: KeyKind,
    ) -> Result<Self, AuthorityError> {
        let key = key.generate()?;
        let mut params = leaf::base_params(validity)?;
        params.distinguished_name = leaf::common_name("mesh authority");
        params.subject_alt_names =
            vec![SanType::URI(identity::authority_uri(&cluster).try_into()?)];
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let ca_pem = params.self_signed(&key)?.pem();
        let key_pem = key.serialize_pem();
        Ok(Self {
            cluster,
            validity: *validity,
            ca_pem,
            key_pem,
            issuer: Issuer::new(params, key),
        })
    }

    /// Reads `ca.pem` and `ca.key` from a directory.
    ///
    /// # Errors
    /// A file is missing or unreadable, is not what it should be, or the two do not belong together.
    pub fn load(dir: &Path) -> Result<Self, AuthorityError> {
        let (cert, key) = (dir.join(AUTHORITY_CERT_FILE), dir.join(AUTHORITY_KEY_FILE));
        let (ca_pem, key_pem) = (files::read_pem(&cert)?, files::read_pem(&key)?);
        Self::from_pem_at(&ca_pem, &key_pem, &cert, &key)
    }

    /// From the contents of `ca.pem` (its first certificate counts) and `ca.key`.
    ///
    /// # Errors
    /// One of them is not what it should be, or the two do not belong together.
    pub fn from_pem(ca_pem: &[u8], key_pem: &[u8]) -> Result<Self, AuthorityError> {
        Self::from_pem_at(
            ca_pem,
            key_pem,
            Path::new(AUTHORITY_CERT_FILE),
            Path::new(AUTHORITY_KEY_FILE),
        )
    }

    fn from_pem_at(
        ca_pem: &[u8],
        key_pem: &[u8],
        cert_path: &Path,
        key_path: &Path,
    ) -> Result<Self, AuthorityError> {
        let unusable = |path: &Path, why: String| AuthorityError::Unusable {
            path: path.to_owned(),
            why,
        };
        let der = CertificateDer::from_pem_slice(ca_pem).map_err(|e| {
            unusable(
                cert_path,
                format!("it holds no certificate in PEM (BEGIN CERTIFICATE): {e}"),
            )
        })?;
        let parsed = identity::parse(&der).map_err(|e| unusable(cert_path, e.to_string()))?;
        if !parsed.is_ca() {
            return Err(unusable(
                cert_path,
                "its certificate is a leaf, not an authority's".to_owned(),
            ));
        }
        let cluster = identity::authority_cluster(&parsed).ok_or_else(|| {
            unusable(cert_path, "its certificate names no cluster (URI SAN spiffe://<cluster>): authorities are made with `node certs init`".to_owned())
        })?;
        let validity = Validity::between(
            parsed.validity().not_before.timestamp(),
            parsed.validity().not_after.timestamp(),
        )
        .map_err(|e| unusable(cert_path, e.to_string()))?;
        let key_text = std::str::from_utf8(key_pem)
            .map_err(|_| unusable(key_path, "it is not PEM".to_owned()))?;
        let key = KeyPair::from_pem(key_text).map_err(|e| {
            unusable(
                key_path,
                format!("it holds no private key in PEM (BEGIN PRIVATE KEY): {e}"),
            )
        })?;
        if key.subject_public_key_info() != parsed.public_key().raw {
            return Err(AuthorityError::KeyMismatch {
                key: key_path.to_owned(),
                cert: cert_path.to_owned(),
            });
        }
        let key_pem = key.serialize_pem();
        let issuer = Issuer::from_ca_cert_der(&der, key)?;
        let ca_pem = String::from_utf8(ca_pem.to_vec())
            .map_err(|_| unusable(cert_path, "it is not PEM".to_owned()))?;
        Ok(Self {
            cluster,
            validity,
            ca_pem,
            key_pem,
            issuer,
        })
    }

    /// Writes `ca.pem` and `ca.key` (0600) into a directory; returns both paths in this order.
    ///
    /// # Errors
    /// One of them exists already or cannot be written; then neither is.
    pub fn save(&self, dir: &Path) -> Result<[PathBuf; 2], FileError> {
        let (cert, key) = (dir.join(AUTHORITY_CERT_FILE), dir.join(AUTHORITY_KEY_FILE));
        files::write_new(&[
            NewFile {
                path: key.clone(),
                content: self.key_pem.as_bytes(),
                access: Access::Private,
            },
            NewFile {
                path: cert.clone(),
                content: self.ca_pem.as_bytes(),
                access: Access::Public,
            },
        ])?;
        Ok([cert, key])
    }

    /// The cluster that it vouches for.
    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Its certificate, PEM.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// When it expires, Unix seconds.
    #[must_use]
    pub fn not_after(&self) -> i64 {
        self.validity.not_after()
    }

    /// Makes a key and issues its certificate. The certificate's life is cut to the authority's.
    ///
    /// # Errors
    /// A name does not do, or the authority is not valid at any of the requested time.
    pub fn issue(&self, request: &Request) -> Result<Issued, AuthorityError> {
        let identity = Identity {
            cluster: self.cluster.clone(),
            kind: request.kind,
            name: request.name.clone(),
        };
        let key = request.key.generate()?;
        let (params, validity) =
            self.leaf(&identity, &request.dns, &request.ips, &request.validity)?;
        let cert_pem = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Issued {
            identity,
            cert_pem,
            key_pem: key.serialize_pem(),
            validity,
        })
    }

    /// Signs a request (PEM) after checking that it is signed by its own key and asks for exactly
    /// one identity, in this cluster. Of the rest it takes the DNS names and addresses alone. The
    /// certificate's life is cut to the authority's.
    ///
    /// # Errors
    /// It is no request, asks for what is not signed, or for another cluster; or the authority is
    /// not valid at any of the requested time.
    pub fn sign(&self, csr_pem: &[u8], validity: &Validity) -> Result<Signed, AuthorityError> {
        let asked = Asked::from_pem(csr_pem)?;
        if asked.identity.cluster != self.cluster {
            return Err(AuthorityError::OtherCluster {
                asked: asked.identity,
                own: self.cluster.clone(),
            });
        }
        let (params, validity) = self.leaf(&asked.identity, &asked.dns, &asked.ips, validity)?;
        let cert_pem = params.signed_by(&asked.public_key, &self.issuer)?.pem();
        Ok(Signed {
            identity: asked.identity,
            cert_pem,
            validity,
            dns: asked.dns,
            ips: asked.ips,
        })
    }

    fn leaf(
        &self,
        identity: &Identity,
        dns: &[String],
        ips: &[IpAddr],
        asked: &Validity,
    ) -> Result<(CertificateParams, Validity), AuthorityError> {
        let validity = asked
            .intersect(&self.validity)
            .ok_or_else(|| AuthorityError::NotValid {
                not_before: format_utc(self.validity.not_before()),
                not_after: format_utc(self.validity.not_after()),
            })?;
        Ok((
            leaf::params(identity, leaf::alt_names(identity, dns, ips)?, &validity)?,
            validity,
        ))
    }

    /// For tests that need certificates which [`Self::issue`] would never make.
    #[cfg(test)]
    pub(crate) fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("cluster", &self.cluster)
            .field("validity", &self.validity)
            .finish_non_exhaustive()
    }
}

/// What to issue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Proxy, agent or user.
    pub kind: Kind,
    /// Its name.
    pub name: NodeName,
    /// DNS names besides `proxy.<cluster>`, which a proxy has anyway and nobody else may have.
    pub dns: Vec<String>,
    /// IP addresses.
    pub ips: Vec<IpAddr>,
    /// From when until when; cut to the authority's own.
    pub validity: Validity,
    /// The kind of the new key.
    pub key: KeyKind,
}

impl Request {
    /// Without further names, with a key of the default kind.
    #[must_use]
    pub fn new(kind: Kind, name: NodeName, validity: Validity) -> Self {
        Self {
            kind,
            name,
            dns: Vec::new(),
            ips: Vec::new(),
            validity,
            key: KeyKind::default(),
        }
    }
}

/// A new certificate with its key.
#[derive(Clone)]
pub struct Issued {
    /// Whose.
    pub identity: Identity,
    /// The certificate, PEM.
    pub cert_pem: String,
    /// The private key, PEM (PKCS #8).
    pub key_pem: String,
    /// From when until when, as it came out.
    pub validity: Validity,
}

impl Issued {
    /// Writes `NAME.pem` and `NAME.key` (0600) into a directory; returns both paths in this order.
    ///
    /// # Errors
    /// One of them exists already or cannot be written; then neither is.
    pub fn save(&self, dir: &Path) -> Result<[PathBuf; 2], FileError> {
        let cert = dir.join(format!("{}.pem", self.identity.name));
        let key = dir.join(format!("{}.key", self.identity.name));
        files::write_new(&[
            NewFile {
                path: key.clone(),
                content: self.key_pem.as_bytes(),
                access: Access::Private,
            },
            NewFile {
                path: cert.clone(),
                content: self.cert_pem.as_bytes(),
                access: Access::Public,
            },
        ])?;
        Ok([cert, key])
    }
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued")
            .field("identity", &self.identity)
            .field("validity", &self.validity)
            .finish_non_exhaustive()
    }
}

/// A certificate signed from a request.
#[derive(Debug, Clone)]
pub struct Signed {
    /// Whose.
    pub identity: Identity,
    /// The certificate, PEM.
    pub cert_pem: String,
    /// From when until when, as it came out.
    pub validity: Validity,
    /// The DNS names that the request asked for and got.
    pub dns: Vec<String>,
    /// The addresses that the request asked for and got.
    pub ips: Vec<IpAddr>,
}

impl Signed {
    /// Writes `NAME.pem` into a directory; returns its path.
    ///
    /// # Errors
    /// It exists already or cannot be written.
    pub fn save(&self, dir: &Path) -> Result<PathBuf, FileError> {
        let cert = dir.join(format!("{}.pem", self.identity.name));
        files::write_new(&[NewFile {
            path: cert.clone(),
            content: self.cert_pem.as_bytes(),
            access: Access::Public,
        }])?;
        Ok(cert)
    }
}

/// An authority could not be created, loaded or made to sign. No file was changed.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file is there, but is not an authority's.
    #[error("{}: cannot be used as an authority: {why}", path.display())]
    Unusable {
        /// Which file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// Key and certificate are of two authorities.
    #[error("{}: this key is not that of {}: they must come from the same `node certs init`", key.display(), cert.display())]
    KeyMismatch {
        /// The key's file.
        key: PathBuf,
        /// The certificate's file.
        cert: PathBuf,
    },
    /// Nothing of what was asked for lies within the authority's own life.
    #[error(
        "the authority is valid from {not_before} to {not_after} only, which leaves nothing for this certificate: make a new authority"
    )]
    NotValid {
        /// UTC.
        not_before: String,
        /// UTC.
        not_after: String,
    },
    /// A DNS name or address does not do.
    #[error(transparent)]
    AltName(#[from] AltNameError),
    /// A request cannot be signed.
    #[error(transparent)]
    Csr(#[from] CsrError),
    /// A request asks for an identity of another cluster.
    #[error(
        "the request asks to be {asked}, but this is the authority of {own}: have it signed there, or make the request with --cluster {own}"
    )]
    OtherCluster {
        /// Who it asks to be.
        asked: Identity,
        /// The authority's cluster.
        own: Cluster,
    },
    /// Making a key or a certificate failed.
    #[error("cannot make the certificate: {why}")]
    Generate {
        /// Why.
        why: String,
    },
}

impl From<rcgen::Error> for AuthorityError {
    fn from(error: rcgen::Error) -> Self {
        Self::Generate {
            why: error.to_string(),
        }
    }
}

impl From<LeafError> for AuthorityError {
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

#[cfg(test)]
mod tests;
