//! What a node has of its own: certificate chain, private key, and its cluster's authority.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mesh_proto::name::Cluster;
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::server::WebPkiClientVerifier;
use rustls::sign::CertifiedKey;
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};

use crate::files::{self, FileError};
use crate::identity::{self, Identity, IdentityError, Kind};
use crate::tls::{provider, proxy_dns_name, proxy_server_name};
use crate::validity::{format_utc, unix_secs};

/// The most certificates in one file: a chain, or authorities while one is being replaced.
const CERTIFICATES_MAX: usize = 16;

/// A node's own certificate with its key, and the authority of its cluster; all checked to belong
/// together. Cloning is cheap.
#[derive(Clone)]
pub struct Credentials {
    identity: Identity,
    certified: Arc<CertifiedKey>,
    authorities: Arc<RootCertStore>,
    not_before: i64,
    not_after: i64,
    authority_not_after: i64,
    ca_path: PathBuf,
    cert_path: PathBuf,
}

impl Credentials {
    /// Reads three PEM files and checks them against each other and the system's clock.
    ///
    /// `ca` may hold several authorities of the cluster, while one is being replaced; `cert` the
    /// leaf and whatever intermediates it needs.
    ///
    /// # Errors
    /// See [`CredentialsError`]; each names the file and the remedy.
    pub fn load(ca: &Path, cert: &Path, key: &Path) -> Result<Self, CredentialsError> {
        let now = DefaultTimeProvider
            .current_time()
            .ok_or(CredentialsError::NoClock)?;
        let credentials = Self::check(&Pem::read(ca)?, &Pem::read(cert)?, &Pem::read(key)?)?;
        credentials.check_time(now)?;
        Ok(credentials)
    }

    /// From the contents of the three files, checked against each other but against no clock: see
    /// [`Self::check_time`].
    ///
    /// # Errors
    /// As [`Self::load`], with `ca.pem`, `cert.pem` and `key.pem` as the files' names.
    pub fn from_pem(ca: &[u8], cert: &[u8], key: &[u8]) -> Result<Self, CredentialsError> {
        let pem = |path: &str, content: &[u8]| Pem::of(Path::new(path), content);
        Self::check(
            &pem("ca.pem", ca),
            &pem("cert.pem", cert),
            &pem("key.pem", key),
        )
    }

    /// Says whether certificate and authority are valid at a time.
    ///
    /// # Errors
    /// [`CredentialsError::Expired`] or [`CredentialsError::NotYetValid`].
    pub fn check_time(&self, now: UnixTime) -> Result<(), CredentialsError> {
        let now = unix_secs(now);
        if now > self.authority_not_after {
            return Err(CredentialsError::Expired {
                path: self.ca_path.clone(),
                not_after: self.authority_not_after,
                until: format_utc(self.authority_not_after),
            });
        }
        if now > self.not_after {
            return Err(CredentialsError::Expired {
                path: self.cert_path.clone(),
                not_after: self.not_after,
                until: format_utc(self.not_after),
            });
        }
        if now < self.not_before {
            return Err(CredentialsError::NotYetValid {
                path: self.cert_path.clone(),
                from: format_utc(self.not_before),
                now: format_utc(now),
            });
        }
        Ok(())
    }

    /// Who this is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// When the certificate's chain expires, Unix seconds.
    #[must_use]
    pub fn not_after(&self) -> i64 {
        self.not_after
    }

    /// When the authority expires, Unix seconds; of several, the last one.
    #[must_use]
    pub fn authority_not_after(&self) -> i64 {
        self.authority_not_after
    }

    /// The certificate chain, leaf first.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    pub(crate) fn certified(&self) -> &Arc<CertifiedKey> {
        &self.certified
    }

    pub(crate) fn authorities(&self) -> &Arc<RootCertStore> {
        &self.authorities
    }

    fn check(ca: &Pem, cert: &Pem, key: &Pem) -> Result<Self, CredentialsError> {
        let authorities = Authorities::read(ca)?;
        let chain = cert.certificates()?;
        let invalid = |why: String| CredentialsError::BadCertificate {
            path: cert.path.clone(),
            why,
        };

        let identity = match chain.first() {
            Some(leaf) => {
                Identity::from_certificate(leaf).map_err(|source| CredentialsError::Identity {
                    path: cert.path.clone(),
                    source,
                })?
            }
            None => return Err(invalid("it is empty".to_owned())),
        };
        let (mut not_before, mut not_after) = (i64::MIN, i64::MAX);
        for certificate in &chain {
            let parsed = identity::parse(certificate).map_err(|e| invalid(e.to_string()))?;
            not_before = not_before.max(parsed.validity().not_before.timestamp());
            not_after = not_after.min(parsed.validity().not_after.timestamp());
        }
        if let Some(other) = authorities
            .clusters
            .iter()
            .find(|cluster| **cluster != identity.cluster)
        {
            return Err(CredentialsError::OtherCluster {
                ca: ca.path.clone(),
                ca_cluster: other.clone(),
                cert: cert.path.clone(),
                identity,
            });
        }

        let key_der = key.private_key()?;
        let signing_key = provider()
            .key_provider
            .load_private_key(key_der)
            .map_err(|e| CredentialsError::BadKey {
                path: key.path.clone(),
                why: e.to_string(),
            })?;
        let certified = CertifiedKey::new(chain, signing_key);
        match certified.keys_match() {
            Ok(()) => {}
            Err(rustls::Error::InconsistentKeys(_)) => {
                return Err(CredentialsError::KeyMismatch {
                    key: key.path.clone(),
                    cert: cert.path.clone(),
                });
            }
            Err(e) => return Err(invalid(e.to_string())),
        }

        let credentials = Self {
            identity,
            certified: Arc::new(certified),
            authorities: Arc::new(authorities.roots),
            not_before,
            not_after,
            authority_not_after: authorities.not_after,
            ca_path: ca.path.clone(),
            cert_path: cert.path.clone(),
        };
        credentials.check_chain()?;
        Ok(credentials)
    }

    /// Judges the own chain as peers will, at a time at which all of it is valid: whether that is
    /// now is another question.
    fn check_chain(&self) -> Result<(), CredentialsError> {
        let invalid = |why: String| CredentialsError::BadCertificate {
            path: self.cert_path.clone(),
            why,
        };
        let judged = |error: rustls::Error| {
            if is_wrong_authority(&error) {
                CredentialsError::WrongAuthority {
                    cert: self.cert_path.clone(),
                    ca: self.ca_path.clone(),
                    cluster: self.identity.cluster.clone(),
                }
            } else {
                invalid(error.to_string())
            }
        };
        let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(
            u64::try_from(self.not_before)
                .map_err(|_| invalid("it begins before 1970".to_owned()))?,
        ));
        let [leaf, intermediates @ ..] = self.chain() else {
            return Err(invalid("it is empty".to_owned()));
        };
        WebPkiClientVerifier::builder_with_provider(Arc::clone(&self.authorities), provider())
            .build()
            .map_err(|e| CredentialsError::BadAuthority {
                path: self.ca_path.clone(),
                why: e.to_string(),
            })?
            .verify_client_cert(leaf, intermediates, at)
            .map_err(judged)?;
        if self.identity.kind == Kind::Proxy {
            let name = proxy_server_name(&self.identity.cluster);
            WebPkiServerVerifier::builder_with_provider(Arc::clone(&self.authorities), provider())
                .build()
                .map_err(|e| CredentialsError::BadAuthority {
                    path: self.ca_path.clone(),
                    why: e.to_string(),
                })?
                .verify_server_cert(leaf, intermediates, &name, &[], at)
                .map_err(|error| {
                    if is_wrong_name(&error) {
                        invalid(format!(
                            "it is a proxy's, but lacks the DNS name {} by which clients know one",
                            proxy_dns_name(&self.identity.cluster)
                        ))
                    } else {
                        judged(error)
                    }
                })?;
        }
        Ok(())
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("identity", &self.identity)
            .field("not_after", &format_utc(self.not_after))
            .finish_non_exhaustive()
    }
}

/// A node's certificate, key or authority does not do. Each says which file, why, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// A file is missing or cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file is not PEM, or not of the expected kind.
    #[error("{}: holds no {expected}{why}", path.display())]
    NotPem {
        /// Which file.
        path: PathBuf,
        /// What should be there.
        expected: &'static str,
        /// What is there instead, with a separator before it; empty when nothing is known.
        why: String,
    },
    /// The certificate does not say who it is.
    #[error("{}: {source}; issue one with `node certs issue`", path.display())]
    Identity {
        /// The certificate's file.
        path: PathBuf,
        /// What is wrong with its identity.
        source: IdentityError,
    },
    /// The certificate is of no use.
    #[error("{}: this certificate cannot be used: {why}; issue one with `node certs issue`", path.display())]
    BadCertificate {
        /// The certificate's file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The key is of no use.
    #[error("{}: this private key cannot be used: {why}; issue key and certificate anew with `node certs issue`", path.display())]
    BadKey {
        /// The key's file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The authority is none.
    #[error("{}: not a cluster's authority: {why}; copy ca.pem from where `node certs init` wrote it", path.display())]
    BadAuthority {
        /// The authority's file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// Key and certificate are not of one pair.
    #[error("{}: this key does not fit the certificate in {}: both must come from the same `node certs issue`, or from `csr` and `sign`", key.display(), cert.display())]
    KeyMismatch {
        /// The key's file.
        key: PathBuf,
        /// The certificate's file.
        cert: PathBuf,
    },
    /// Certificate and authority name two clusters.
    #[error("{}: this certificate is {identity}, but {} is the authority of {ca_cluster}: take both from one cluster", cert.display(), ca.display())]
    OtherCluster {
        /// The authority's file.
        ca: PathBuf,
        /// Its cluster.
        ca_cluster: Cluster,
        /// The certificate's file.
        cert: PathBuf,
        /// Who the certificate is.
        identity: Identity,
    },
    /// The certificate was not issued by the authority, whatever it says.
    #[error("{}: this certificate was not issued by the authority in {}, though it names {cluster}: was the authority made anew? Issue the certificate again, or copy the right ca.pem", cert.display(), ca.display())]
    WrongAuthority {
        /// The certificate's file.
        cert: PathBuf,
        /// The authority's file.
        ca: PathBuf,
        /// The cluster that both name.
        cluster: Cluster,
    },
    /// The certificate or the authority has expired.
    #[error("{}: expired at {until}; issue a new one with `node certs issue` (an authority: `node certs init`, then all certificates anew), or check this host's clock", path.display())]
    Expired {
        /// The file, the certificate's or the authority's.
        path: PathBuf,
        /// Unix seconds.
        not_after: i64,
        /// The same, UTC, for people.
        until: String,
    },
    /// The certificate is not valid yet.
    #[error("{}: valid from {from} only, and this host's clock says {now}: check the clock", path.display())]
    NotYetValid {
        /// The certificate's file.
        path: PathBuf,
        /// UTC.
        from: String,
        /// UTC.
        now: String,
    },
    /// The system's clock is before 1970.
    #[error("this host's clock is before 1970: set it, or no certificate can be judged")]
    NoClock,
}

/// A file's name and content.
pub(crate) struct Pem {
    path: PathBuf,
    content: Vec<u8>,
}

impl Pem {
    pub(crate) fn of(path: &Path, content: &[u8]) -> Self {
        Self {
            path: path.to_owned(),
            content: content.to_vec(),
        }
    }

    fn read(path: &Path) -> Result<Self, CredentialsError> {
        Ok(Self {
            path: path.to_owned(),
            content: files::read_pem(path)?,
        })
    }

    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, CredentialsError> {
        let not_pem = |why: String| CredentialsError::NotPem {
            path: self.path.clone(),
            expected: "certificate in PEM (BEGIN CERTIFICATE)",
            why,
        };
        let mut certificates = Vec::new();
        for certificate in CertificateDer::pem_slice_iter(&self.content) {
            certificates.push(certificate.map_err(|e| not_pem(format!(": {e}")))?);
            if certificates.len() > CERTIFICATES_MAX {
                return Err(not_pem(format!(
                    " list that ends: more than {CERTIFICATES_MAX} certificates"
                )));
            }
        }
        if certificates.is_empty() {
            let swapped = PrivateKeyDer::from_pem_slice(&self.content).is_ok();
            return Err(not_pem(
                if swapped {
                    ", but a private key: are `cert` and `key` swapped?"
                } else {
                    ""
                }
                .to_owned(),
            ));
        }
        Ok(certificates)
    }

    fn private_key(&self) -> Result<PrivateKeyDer<'static>, CredentialsError> {
        PrivateKeyDer::from_pem_slice(&self.content).map_err(|error| {
            let why = if CertificateDer::from_pem_slice(&self.content).is_ok() {
                ", but a certificate: are `cert` and `key` swapped?".to_owned()
            } else if self.content.windows(9).any(|text| text == b"ENCRYPTED") {
                ", but an encrypted one: store it decrypted, readable by the node alone".to_owned()
            } else {
                format!(": {error}")
            };
            CredentialsError::NotPem {
                path: self.path.clone(),
                expected: "private key in PEM (BEGIN PRIVATE KEY)",
                why,
            }
        })
    }
}

/// The content of a `ca` file.
pub(crate) struct Authorities {
    pub(crate) roots: RootCertStore,
    /// Those that the certificates name; one made by other tools may name none.
    pub(crate) clusters: Vec<Cluster>,
    pub(crate) not_after: i64,
}

impl Authorities {
    pub(crate) fn read(ca: &Pem) -> Result<Self, CredentialsError> {
        let bad = |why: String| CredentialsError::BadAuthority {
            path: ca.path.clone(),
            why,
        };
        let (mut roots, mut clusters, mut not_after) =
            (RootCertStore::empty(), Vec::new(), i64::MIN);
        for certificate in ca.certificates()? {
            let parsed = identity::parse(&certificate).map_err(|e| bad(e.to_string()))?;
            if !parsed.is_ca() {
                let who = Identity::from_parsed(&parsed)
                    .map_or_else(|_| parsed.subject().to_string(), |i| i.to_string());
                return Err(bad(format!("it holds the leaf certificate of {who}")));
            }
            clusters.extend(identity::authority_cluster(&parsed));
            not_after = not_after.max(parsed.validity().not_after.timestamp());
            roots
                .add(certificate.clone())
                .map_err(|e| bad(e.to_string()))?;
        }
        Ok(Self {
            roots,
            clusters,
            not_after,
        })
    }
}

fn is_wrong_authority(error: &rustls::Error) -> bool {
    use rustls::CertificateError::{BadSignature, UnknownIssuer};
    matches!(
        error,
        rustls::Error::InvalidCertificate(BadSignature | UnknownIssuer)
    )
}

fn is_wrong_name(error: &rustls::Error) -> bool {
    use rustls::CertificateError::{NotValidForName, NotValidForNameContext};
    matches!(
        error,
        rustls::Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. })
    )
}

#[cfg(test)]
mod tests;
