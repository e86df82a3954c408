//! What a certificate file holds, for `certs show`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use mesh_proto::name::Cluster;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;

use crate::files::{self, FileError};
use crate::identity::{self, Identity};
use crate::validity::format_utc;

/// The most certificates that are told of in one file.
const CERTIFICATES_MAX: usize = 64;

/// Whose certificate it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// A leaf with an identity of the mesh.
    Identity(Identity),
    /// An authority; with the cluster that it names, if it names one.
    Authority(Option<Cluster>),
    /// A leaf without a usable identity, and why it has none.
    Stranger(String),
}

/// The facts of one certificate. Nothing here is verified: it is what the certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// Whose.
    pub subject: Subject,
    /// The URI SANs.
    pub uris: Vec<String>,
    /// The DNS SANs.
    pub dns: Vec<String>,
    /// The IP SANs.
    pub ips: Vec<IpAddr>,
    /// Extended key usages: `server`, `client`, `any`, or an object identifier.
    pub usages: Vec<String>,
    /// The issuer's distinguished name.
    pub issuer: String,
    /// Unix seconds.
    pub not_before: i64,
    /// Unix seconds.
    pub not_after: i64,
    /// Serial number, hexadecimal with colons.
    pub serial: String,
    /// Key algorithm: `Ed25519`, `ECDSA`, `RSA`, or an object identifier.
    pub key: String,
    /// SHA-256 of the certificate, hexadecimal with colons, as `openssl x509 -fingerprint` has it.
    pub sha256: String,
}

impl Inspection {
    /// The facts of one certificate in DER.
    ///
    /// # Errors
    /// [`InspectError::NotACertificate`].
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, InspectError> {
        let unreadable = |why: String| InspectError::NotACertificate { why };
        let parsed = identity::parse(certificate).map_err(|e| unreadable(e.to_string()))?;
        let subject = if parsed.is_ca() {
            Subject::Authority(identity::authority_cluster(&parsed))
        } else {
            match Identity::from_parsed(&parsed) {
                Ok(identity) => Subject::Identity(identity),
                Err(error) => Subject::Stranger(error.to_string()),
            }
        };
        let (mut uris, mut dns, mut ips) = (Vec::new(), Vec::new(), Vec::new());
        let names = parsed
            .subject_alternative_name()
            .map_err(|e| unreadable(e.to_string()))?;
        for name in names.iter().flat_map(|names| &names.value.general_names) {
            if let GeneralName::URI(uri) = name {
                uris.push((*uri).to_owned());
            } else if let GeneralName::DNSName(name) = name {
                dns.push((*name).to_owned());
            } else if let GeneralName::IPAddress(bytes) = name {
                ips.extend(ip_address(bytes));
            }
        }
        Ok(Self {
            subject,
            uris,
            dns,
            ips,
            usages: usages(&parsed),
            issuer: parsed.issuer().to_string(),
            not_before: parsed.validity().not_before.timestamp(),
            not_after: parsed.validity().not_after.timestamp(),
            serial: parsed.raw_serial_as_string(),
            key: key_algorithm(&parsed),
            sha256: fingerprint(certificate),
        })
    }

    /// [`Self::not_before`], UTC, for people.
    #[must_use]
    pub fn valid_from(&self) -> String {
        format_utc(self.not_before)
    }

    /// [`Self::not_after`], UTC, for people.
    #[must_use]
    pub fn valid_until(&self) -> String {
        format_utc(self.not_after)
    }

    /// How many whole days are left at `now` (Unix seconds); negative when it has expired.
    #[must_use]
    pub fn days_left(&self, now: i64) -> i64 {
        self.not_after.saturating_sub(now).div_euclid(86_400)
    }
}

/// All certificates of a PEM file, in order.
///
/// # Errors
/// The file cannot be read, or holds no certificate.
pub fn inspect_file(path: &Path) -> Result<Vec<Inspection>, InspectError> {
    inspect_pem(&files::read_pem(path)?).map_err(|error| InspectError::InFile {
        path: path.to_owned(),
        source: Box::new(error),
    })
}

/// All certificates in a PEM text, in order.
///
/// # Errors
/// There is none, one cannot be read, or there are more than 64.
pub fn inspect_pem(pem: &[u8]) -> Result<Vec<Inspection>, InspectError> {
    let mut inspections = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|e| InspectError::NotPem { why: e.to_string() })?;
        inspections.push(Inspection::of(&certificate)?);
        if inspections.len() > CERTIFICATES_MAX {
            return Err(InspectError::TooMany);
        }
    }
    if inspections.is_empty() {
        return Err(InspectError::NotPem {
            why: "no BEGIN CERTIFICATE".to_owned(),
        });
    }
    Ok(inspections)
}

/// A file holds nothing to show.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// It cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file, and what is wrong with it.
    #[error("{}: {source}", path.display())]
    InFile {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        source: Box<InspectError>,
    },
    /// There is no certificate in PEM.
    #[error("holds no certificate in PEM: {why}")]
    NotPem {
        /// Why.
        why: String,
    },
    /// The PEM holds something else than a certificate.
    #[error("{why}")]
    NotACertificate {
        /// Why.
        why: String,
    },
    /// More certificates than anybody reads.
    #[error("holds more than {CERTIFICATES_MAX} certificates")]
    TooMany,
}

/// SHA-256 of a certificate, as `AA:BB:…`.
fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate.as_ref());
    digest
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02X}"))
        .collect::<Vec<_>>()
        .join(":")
}

fn usages(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(usage)) = certificate.extended_key_usage() else {
        return Vec::new();
    };
    let known = [
        (usage.value.any, "any"),
        (usage.value.server_auth, "server"),
        (usage.value.client_auth, "client"),
    ];
    let known = known
        .into_iter()
        .filter(|(set, _)| *set)
        .map(|(_, name)| name.to_owned());
    known
        .chain(usage.value.other.iter().map(|oid| oid.to_id_string()))
        .collect()
}

fn key_algorithm(certificate: &X509Certificate<'_>) -> String {
    match certificate
        .public_key()
        .algorithm
        .algorithm
        .to_id_string()
        .as_str()
    {
        "1.3.101.112" => "Ed25519".to_owned(),
        "1.2.840.10045.2.1" => "ECDSA".to_owned(),
        "1.2.840.113549.1.1.1" => "RSA".to_owned(),
        other => other.to_owned(),
    }
}

fn ip_address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(v4).into());
    }
    <[u8; 16]>::try_from(bytes)
        .ok()
        .map(|v6| Ipv6Addr::from(v6).into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;
    use crate::{Authority, Kind, Request, Validity};

    #[test]
    fn facts_of_an_authority_and_of_a_leaf() {
        let validity = Validity::between(1_000_000, 2_000_000).unwrap();
        let authority = Authority::create("example.com".parse().unwrap(), &validity).unwrap();
        let mut request = Request::new(Kind::Proxy, "p1".parse().unwrap(), validity);
        request.dns.push("LB.example.com".to_owned());
        request.ips.extend([
            "10.0.0.1".parse::<IpAddr>().unwrap(),
            "::1".parse().unwrap(),
        ]);
        let issued = authority.issue(&request).unwrap();
        let both =
            inspect_pem(format!("{}{}", issued.cert_pem, authority.ca_pem()).as_bytes()).unwrap();
        let [leaf, ca] = &both[..] else {
            panic!("two certificates")
        };
        assert_eq!(leaf.subject, Subject::Identity(issued.identity));
        assert_eq!(leaf.uris, ["spiffe://example.com/proxy/p1"]);
        assert_eq!(leaf.dns, ["proxy.example.com", "lb.example.com"]);
        assert_eq!(leaf.ips, request.ips);
        assert_eq!(leaf.usages, ["server", "client"]);
        assert_eq!(leaf.key, "Ed25519");
        assert_eq!((leaf.not_before, leaf.not_after), (1_000_000, 2_000_000));
        assert_eq!(leaf.valid_until(), "1970-01-24T03:33:20Z");
        assert_eq!(leaf.days_left(2_000_000 - 86_400), 1);
        assert_eq!(leaf.days_left(2_000_001), -1);
        assert_eq!(leaf.sha256.len(), 32 * 3 - 1);
        assert_eq!(leaf.serial.len(), 16 * 3 - 1);
        assert_ne!(leaf.serial, ca.serial);
        assert_eq!(
            ca.subject,
            Subject::Authority(Some("example.com".parse().unwrap()))
        );
        assert!(ca.usages.is_empty());
    }

    #[test]
    fn what_is_no_certificate() {
        assert!(matches!(inspect_pem(b""), Err(InspectError::NotPem { .. })));
        assert!(matches!(
            inspect_pem(b"\xff\x00"),
            Err(InspectError::NotPem { .. })
        ));
        let garbage = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(matches!(
            inspect_pem(garbage),
            Err(InspectError::NotACertificate { .. })
        ));
    }
}
