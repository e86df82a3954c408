//! Other clusters that a proxy trusts: the authority of each, for that cluster's proxies alone.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mesh_proto::name::Cluster;
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::credentials::{Authorities, Credentials, CredentialsError, Pem};
use crate::identity::{Identity, Kind};
use crate::tls::{provider, proxy_server_name};
use crate::validity::format_utc;
use crate::verifier::{Refused, unknown_issuer};

/// The authority of another cluster: it vouches for proxies of that cluster, and for nobody else.
/// Cloning is cheap.
#[derive(Clone)]
pub struct ForeignAuthority {
    cluster: Cluster,
    roots: Arc<RootCertStore>,
    clients: Arc<dyn ClientCertVerifier>,
    servers: Arc<WebPkiServerVerifier>,
    not_after: i64,
}

/// The clusters that are trusted now: asked anew with each handshake, so that the answer may change
/// while connections come and go.
pub trait TrustedClusters: fmt::Debug + Send + Sync {
    /// The authority of a trusted cluster.
    fn authority(&self, cluster: &Cluster) -> Option<ForeignAuthority>;
}

/// No other cluster is trusted.
impl TrustedClusters for () {
    fn authority(&self, _: &Cluster) -> Option<ForeignAuthority> {
        None
    }
}

impl ForeignAuthority {
    /// The authority of `cluster` in a PEM file, which may hold several while one is being replaced.
    /// `path` is for errors.
    ///
    /// # Errors
    /// [`ForeignAuthorityError`]; whether it has expired is [`Self::check_time`]'s matter.
    pub fn from_pem(
        cluster: &Cluster,
        path: &Path,
        pem: &[u8],
    ) -> Result<Self, ForeignAuthorityError> {
        let bad = |why: String| {
            ForeignAuthorityError::File(CredentialsError::BadAuthority {
                path: path.to_owned(),
                why,
            })
        };
        let authorities = Authorities::read(&Pem::of(path, pem))?;
        if let Some(other) = authorities.clusters.iter().find(|other| *other != cluster) {
            return Err(ForeignAuthorityError::OtherCluster {
                path: path.to_owned(),
                wanted: cluster.clone(),
                found: other.clone(),
            });
        }
        let roots = Arc::new(authorities.roots);
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), provider()).build();
        let servers =
            WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), provider()).build();
        Ok(Self {
            cluster: cluster.clone(),
            clients: clients.map_err(|error| bad(error.to_string()))?,
            servers: servers.map_err(|error| bad(error.to_string()))?,
            roots,
            not_after: authorities.not_after,
        })
    }

    /// Says whether it has expired at a time, in Unix seconds.
    ///
    /// # Errors
    /// [`ForeignAuthorityError::Expired`].
    pub fn check_time(&self, path: &Path, now: i64) -> Result<(), ForeignAuthorityError> {
        if now > self.not_after {
            return Err(ForeignAuthorityError::Expired {
                path: path.to_owned(),
                until: format_utc(self.not_after),
            });
        }
        Ok(())
    }

    /// The cluster for whose proxies it vouches.
    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// When it expires, Unix seconds; of several, the last one.
    #[must_use]
    pub fn not_after(&self) -> i64 {
        self.not_after
    }

    /// Whether both hold the very same authorities.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.cluster == other.cluster && self.roots.roots == other.roots.roots
    }

    /// Whether a key of the one is a key of the other: whoever has it speaks for both clusters.
    #[must_use]
    pub fn shares_key_with(&self, other: &Self) -> bool {
        share_key(&self.roots, &other.roots)
    }

    /// Whether a key of it is one of the own cluster's authority.
    #[must_use]
    pub fn shares_key_with_own(&self, own: &Credentials) -> bool {
        share_key(&self.roots, own.authorities())
    }

    /// Judges a chain, leaf first, as that of a proxy of this cluster that has dialled.
    ///
    /// # Errors
    /// Why it is none.
    pub fn judge_client(
        &self,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let (leaf, intermediates) = self.proxy(chain)?;
        let judged = self.clients.verify_client_cert(leaf, intermediates, now);
        judged.map(drop).map_err(unknown_issuer)
    }

    /// Judges a chain, leaf first, as that of a proxy of this cluster that was dialled.
    ///
    /// # Errors
    /// Why it is none.
    pub fn judge_server(
        &self,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let (leaf, intermediates) = self.proxy(chain)?;
        let name = proxy_server_name(&self.cluster);
        let judged = self
            .servers
            .verify_server_cert(leaf, intermediates, &name, &[], now);
        judged.map(drop).map_err(unknown_issuer)
    }

    pub(crate) fn roots(&self) -> &Arc<RootCertStore> {
        &self.roots
    }

    /// The leaf, if it says that it is a proxy of this cluster, and what stands behind it.
    fn proxy<'c, 'd>(
        &self,
        chain: &'c [CertificateDer<'d>],
    ) -> Result<(&'c CertificateDer<'d>, &'c [CertificateDer<'d>]), rustls::Error> {
        let [leaf, intermediates @ ..] = chain else {
            return Err(rustls::Error::NoCertificatesPresented);
        };
        let identity = Identity::from_certificate(leaf).map_err(Refused::Identity)?;
        if identity.cluster != self.cluster {
            return Err(Refused::UnknownCluster { identity }.into());
        }
        if identity.kind != Kind::Proxy {
            return Err(Refused::ForeignKind { identity }.into());
        }
        Ok((leaf, intermediates))
    }
}

impl fmt::Debug for ForeignAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForeignAuthority")
            .field("cluster", &self.cluster)
            .field("not_after", &format_utc(self.not_after))
            .finish_non_exhaustive()
    }
}

fn share_key(one: &RootCertStore, other: &RootCertStore) -> bool {
    let key = |root: &rustls_pki_types::TrustAnchor<'_>| root.subject_public_key_info.to_vec();
    one.roots
        .iter()
        .any(|root| other.roots.iter().any(|other| key(root) == key(other)))
}

/// A file holds no authority of the other cluster.
#[derive(Debug, thiserror::Error)]
pub enum ForeignAuthorityError {
    /// It cannot be used as an authority at all.
    #[error(transparent)]
    File(#[from] CredentialsError),
    /// It is that of another cluster than was meant.
    #[error("{}: is the authority of {found}, not of {wanted}", path.display())]
    OtherCluster {
        /// The file.
        path: PathBuf,
        /// The cluster that was meant.
        wanted: Cluster,
        /// The cluster that it names.
        found: Cluster,
    },
    /// It has expired.
    #[error("{}: expired at {until}", path.display())]
    Expired {
        /// The file.
        path: PathBuf,
        /// UTC, for people.
        until: String,
    },
}
