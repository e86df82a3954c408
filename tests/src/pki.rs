//! A throwaway authority and its identities.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use certs::{Authority, Credentials, Kind, Request, Validity};

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
        let issued = self.authority.issue(&Request::new(kind, name.parse()?, validity.clone()))?;
        Ok(Arc::new(Credentials::from_pem(
            self.authority.ca_pem().as_bytes(),
            issued.cert_pem.as_bytes(),
            issued.key_pem.as_bytes(),
        )?))
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
