//! What a leaf certificate looks like, whether it is issued with its key or signed from a request.

use std::net::IpAddr;

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose,
    SanType, SerialNumber,
};
use rustls_pki_types::DnsName;
use time::OffsetDateTime;

use crate::identity::{Identity, Kind};
use crate::tls::proxy_dns_name;
use crate::validity::Validity;

/// The most DNS names and addresses that a leaf may have besides its identity.
pub(crate) const ALT_NAMES_MAX: usize = 64;

/// A leaf with these names cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AltNameError {
    /// Not a host name.
    #[error(
        "{name:?} is no DNS name for a certificate: labels of a-z, 0-9 and '-', without wildcard, port or final dot"
    )]
    InvalidDns {
        /// The value.
        name: String,
    },
    /// The name by which clients know proxies.
    #[error("{name:?} stands for this cluster's proxies; only a proxy's certificate may bear it")]
    Reserved {
        /// The value.
        name: String,
    },
    /// More names than one certificate may have (64).
    #[error(
        "{count} DNS names and addresses are too many for one certificate: {ALT_NAMES_MAX} at most"
    )]
    TooMany {
        /// How many.
        count: usize,
    },
}

/// The subject alternative names of a leaf: its identity first, then what DNS names and addresses
/// it has. A proxy always bears `proxy.<cluster>`.
pub(crate) fn alt_names(
    identity: &Identity,
    dns: &[String],
    ips: &[IpAddr],
) -> Result<Vec<SanType>, LeafError> {
    let count = dns.len() + ips.len();
    if count > ALT_NAMES_MAX {
        return Err(AltNameError::TooMany { count }.into());
    }
    let of_proxies = proxy_dns_name(&identity.cluster);
    let mut names = Vec::new();
    if identity.kind == Kind::Proxy {
        names.push(of_proxies.clone());
    }
    for name in dns {
        let lower = name.to_ascii_lowercase();
        if DnsName::try_from(lower.as_str()).is_err() || lower.ends_with('.') {
            return Err(AltNameError::InvalidDns {
                name: name.chars().take(260).collect(),
            }
            .into());
        }
        if lower == of_proxies && identity.kind != Kind::Proxy {
            return Err(AltNameError::Reserved { name: lower }.into());
        }
        if !names.contains(&lower) {
            names.push(lower);
        }
    }
    let mut sans = vec![SanType::URI(identity.to_string().try_into()?)];
    for name in names {
        sans.push(SanType::DnsName(name.try_into()?));
    }
    for ip in ips {
        let san = SanType::IpAddress(*ip);
        if !sans.contains(&san) {
            sans.push(san);
        }
    }
    Ok(sans)
}

/// The parameters of a leaf, all but its key.
pub(crate) fn params(
    identity: &Identity,
    sans: Vec<SanType>,
    validity: &Validity,
) -> Result<CertificateParams, LeafError> {
    let mut params = base_params(validity)?;
    params.subject_alt_names = sans;
    params.distinguished_name = common_name(identity.name.as_str());
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = match identity.kind {
        // A proxy dials its peers, too.
        Kind::Proxy => vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ],
        Kind::Agent | Kind::User => vec![ExtendedKeyUsagePurpose::ClientAuth],
    };
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// What leaf and authority have in common: validity and a random serial number.
pub(crate) fn base_params(validity: &Validity) -> Result<CertificateParams, LeafError> {
    let time = |secs| {
        OffsetDateTime::from_unix_timestamp(secs).map_err(|_| LeafError::Time { unix_secs: secs })
    };
    let mut params = CertificateParams::default();
    params.not_before = time(validity.not_before())?;
    params.not_after = time(validity.not_after())?;
    params.serial_number = Some(random_serial()?);
    Ok(params)
}

/// A subject that is one common name.
pub(crate) fn common_name(name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    subject
}

/// 126 random bits. The first byte is within 0x40..=0x7f, so that the number is positive and all
/// certificates have equally many bytes.
fn random_serial() -> Result<SerialNumber, LeafError> {
    let mut bytes = [0_u8; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| LeafError::NoRandomness)?;
    bytes[0] = bytes[0] & 0x3f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

/// Why a leaf could not be put together.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LeafError {
    #[error(transparent)]
    AltName(#[from] AltNameError),
    #[error("{unix_secs} is no time that a certificate can state")]
    Time { unix_secs: i64 },
    #[error("the system gave no randomness")]
    NoRandomness,
    #[error(transparent)]
    Rcgen(#[from] rcgen::Error),
}
