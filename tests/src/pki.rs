//! A throwaway authority and its identities.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use certs::{Authority, Credentials, Kind, Request, Validity};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::Result;

/// An authority in memory.
pub struct Pki {
    authority: Authority,
}

impl Pki {
    /// An authority for `cluster`.
    ///
    /// # Errors
    /// When the name is none.
    pub fn new(cluster: &str) -> Result<Self> {
        let authority = Authority::create(cluster.parse()?, &Validity::days(30)?)?;
        Ok(Self { authority })
    }

    /// The authority itself.
    #[must_use]
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// A new identity that is valid now.
    ///
    /// # Errors
    /// When the name is none.
    pub fn issue(&self, kind: Kind, name: &str) -> Result<Arc<Credentials>> {
        self.issue_for(kind, name, &Validity::days(7)?)
    }

    /// A new identity that is valid from when until when the caller says.
    ///
    /// # Errors
    /// When the name is none.
    pub fn issue_for(
        &self,
        kind: Kind,
        name: &str,
        validity: &Validity,
    ) -> Result<Arc<Credentials>> {
        let issued = self
            .authority
            .issue(&Request::new(kind, name.parse()?, *validity))?;
        Ok(Arc::new(Credentials::from_pem(
            self.authority.ca_pem().as_bytes(),
            issued.cert_pem.as_bytes(),
            issued.key_pem.as_bytes(),
        )?))
    }

    /// What another tool could make with this authority's key: a certificate, for clients and
    /// servers alike and valid now, that says whatever the caller likes.
    ///
    /// # Errors
    /// When a name cannot stand in a certificate at all.
    pub fn mint(&self, uris: &[&str], dns: &[&str]) -> Result<Minted> {
        mint(&self.issuer()?, &[], &FOR_BOTH, uris, dns)
    }

    /// As [`Pki::mint`], for servers alone.
    ///
    /// # Errors
    /// When a name cannot stand in a certificate at all.
    pub fn mint_server(&self, uris: &[&str], dns: &[&str]) -> Result<Minted> {
        mint(
            &self.issuer()?,
            &[],
            &[ExtendedKeyUsagePurpose::ServerAuth],
            uris,
            dns,
        )
    }

    fn issuer(&self) -> Result<Issuer<'static, KeyPair>> {
        // The authority gives its key to files alone.
        let dir = tempfile::tempdir()?;
        let [_, key] = self.authority.save(dir.path())?;
        let key = KeyPair::from_pem(&std::fs::read_to_string(key)?)?;
        Ok(Issuer::from_ca_cert_pem(self.authority.ca_pem(), key)?)
    }

    /// As [`Pki::mint`], but signed with the key of a new leaf of this authority, which is no
    /// authority itself.
    ///
    /// # Errors
    /// When a name cannot stand in a certificate at all.
    pub fn mint_below(&self, kind: Kind, name: &str, uris: &[&str]) -> Result<Minted> {
        let request = Request::new(kind, name.parse()?, Validity::days(7)?);
        let issued = self.authority.issue(&request)?;
        let leaf = CertificateDer::from_pem_slice(issued.cert_pem.as_bytes())?;
        let issuer = Issuer::from_ca_cert_der(&leaf, KeyPair::from_pem(&issued.key_pem)?)?;
        mint(&issuer, std::slice::from_ref(&leaf), &FOR_BOTH, uris, &[])
    }

    /// Writes `ca.pem`, and `NAME.pem` and `NAME.key` of a new identity, into `dir`.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(&self, dir: &Path, kind: Kind, name: &str) -> Result<PathBuf> {
        let request = Request::new(kind, name.parse()?, Validity::days(7)?);
        let [cert, _] = self.authority.issue(&request)?.save(dir)?;
        std::fs::write(dir.join("ca.pem"), self.authority.ca_pem())?;
        Ok(cert)
    }
}

/// A certificate with its key, ready for either side of a TLS connection.
pub type Minted = Arc<SingleCertAndKey>;

const FOR_BOTH: [ExtendedKeyUsagePurpose; 2] = [
    ExtendedKeyUsagePurpose::ClientAuth,
    ExtendedKeyUsagePurpose::ServerAuth,
];

fn mint(
    issuer: &Issuer<'_, KeyPair>,
    issuers: &[CertificateDer<'static>],
    usages: &[ExtendedKeyUsagePurpose],
    uris: &[&str],
    dns: &[&str],
) -> Result<Minted> {
    let mut params = CertificateParams::default();
    for uri in uris {
        params
            .subject_alt_names
            .push(SanType::URI((*uri).try_into()?));
    }
    for name in dns {
        params
            .subject_alt_names
            .push(SanType::DnsName((*name).try_into()?));
    }
    params.extended_key_usages = usages.to_vec();
    let key = KeyPair::generate()?;
    let mut chain = vec![params.signed_by(&key, issuer)?.der().clone()];
    chain.extend_from_slice(issuers);
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
    let key = certs::provider().key_provider.load_private_key(key)?;
    Ok(Arc::new(SingleCertAndKey::from(CertifiedKey::new(
        chain, key,
    ))))
}
