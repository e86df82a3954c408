//! Judging a peer's certificate.
//!
//! The leaf's one URI SAN says which cluster it claims, and that cluster's authority alone decides:
//! never one store of all known authorities, for then another cluster's authority could mint our
//! names.

use std::fmt;
use std::sync::Arc;

use mesh_proto::name::{Cluster, NodeName};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::foreign::TrustedClusters;
use crate::identity::{Identity, IdentityError, Kind};
use crate::tls::{TlsError, proxy_server_name};

/// A proxy's judgement of who connects to it.
pub(crate) struct ClientVerifier {
    own: Cluster,
    authority: Arc<dyn ClientCertVerifier>,
    /// Of other clusters, proxies alone are let in.
    trusted: Arc<dyn TrustedClusters>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClientVerifier {
    /// Knows the authority of the own cluster and those of trusted ones, each for its own cluster
    /// alone.
    pub(crate) fn new(
        own: Cluster,
        roots: Arc<RootCertStore>,
        trusted: Arc<dyn TrustedClusters>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, TlsError> {
        Ok(Self {
            own,
            authority: WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(provider))
                .build()?,
            trusted,
            algorithms: provider.signature_verification_algorithms,
        })
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        true
    }

    /// No hints: a node has one certificate, and a stranger need not learn whom we trust.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let identity = Identity::from_certificate(end_entity).map_err(Refused::Identity)?;
        if identity.cluster == self.own {
            return self
                .authority
                .verify_client_cert(end_entity, intermediates, now)
                .map_err(unknown_issuer);
        }
        let authority = self
            .trusted
            .authority(&identity.cluster)
            .ok_or(Refused::UnknownCluster { identity })?;
        let mut chain = vec![end_entity.clone()];
        chain.extend_from_slice(intermediates);
        authority.judge_client(&chain, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl fmt::Debug for ClientVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientVerifier")
            .field("cluster", &self.own)
            .field("trusted", &self.trusted)
            .finish_non_exhaustive()
    }
}

/// A client's judgement of the proxy that it reached: one of the cluster that was meant and, in a directed
/// dial, the one that was meant.
pub(crate) struct ProxyVerifier {
    cluster: Cluster,
    proxy: Option<NodeName>,
    server_name: ServerName<'static>,
    authority: Arc<WebPkiServerVerifier>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ProxyVerifier {
    pub(crate) fn new(
        cluster: Cluster,
        proxy: Option<NodeName>,
        roots: Arc<RootCertStore>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, TlsError> {
        let authority =
            WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(provider)).build()?;
        Ok(Self {
            server_name: proxy_server_name(&cluster),
            cluster,
            proxy,
            authority,
            algorithms: provider.signature_verification_algorithms,
        })
    }
}

impl ServerCertVerifier for ProxyVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        // The caller's name is what went out as SNI. Another one would be a mistake of ours, and
        // must not widen what is accepted.
        if *server_name != self.server_name {
            return Err(Refused::ServerName {
                asked: server_name.to_str().into_owned(),
            }
            .into());
        }
        let identity = Identity::from_certificate(end_entity).map_err(Refused::Identity)?;
        if identity.cluster != self.cluster {
            return Err(Refused::UnknownCluster { identity }.into());
        }
        let verified = self
            .authority
            .verify_server_cert(
                end_entity,
                intermediates,
                &self.server_name,
                ocsp_response,
                now,
            )
            .map_err(unknown_issuer)?;
        if identity.kind != Kind::Proxy {
            return Err(Refused::NotAProxy { identity }.into());
        }
        match &self.proxy {
            Some(wanted) if *wanted != identity.name => Err(Refused::AnotherProxy {
                wanted: wanted.clone(),
                identity,
            }
            .into()),
            Some(_) | None => Ok(verified),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl fmt::Debug for ProxyVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxyVerifier")
            .field("cluster", &self.cluster)
            .field("proxy", &self.proxy)
            .finish_non_exhaustive()
    }
}

/// Why a certificate was refused before, or although, its authority vouched for it.
#[derive(thiserror::Error)]
pub(crate) enum Refused {
    #[error(transparent)]
    Identity(IdentityError),
    #[error("{identity} is of a cluster whose authority is not known here")]
    UnknownCluster { identity: Identity },
    #[error("{identity} is of another cluster, of which proxies alone are let in")]
    ForeignKind { identity: Identity },
    #[error("the server is {identity}, not a proxy")]
    NotAProxy { identity: Identity },
    #[error("the server is {identity}, but proxy {wanted} was dialled")]
    AnotherProxy {
        wanted: NodeName,
        identity: Identity,
    },
    #[error("server name {asked:?} is not that of this cluster's proxies")]
    ServerName { asked: String },
}

/// rustls shows this error by `Debug` alone, which therefore reads as `Display` does.
impl fmt::Debug for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refused))))
    }
}

/// All authorities of the mesh have one subject, so that a chain to another one is found by its
/// name and then fails at the signature; to whoever reads of it, the issuer is unknown.
pub(crate) fn unknown_issuer(error: Error) -> Error {
    if error == Error::InvalidCertificate(CertificateError::BadSignature) {
        return Error::InvalidCertificate(CertificateError::UnknownIssuer);
    }
    error
}

fn no_tls12() -> Error {
    Error::General("TLS 1.2 is not spoken here".to_owned())
}

#[cfg(test)]
mod tests;
