//! `[tls]`: the node's identity.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use certs::{Credentials, CredentialsError, FileError, Kind, PEM_BYTES_MAX, format_utc};

use super::Role;
use super::checker::Checker;
use crate::config::file::TlsShape;

/// A certificate that expires sooner is warned of, in days.
const EXPIRY_WARNING_DAYS: i64 = 14;

const DAY_SECS: i64 = 24 * 60 * 60;

/// The node's identity and authority, all checked to belong together and to the role.
pub(super) fn credentials(
    check: &mut Checker<'_>,
    shape: Option<&TlsShape>,
    role: Option<Role>,
) -> Option<Credentials> {
    let Some(shape) = shape else {
        check.missing(
            "tls",
            "write [tls] with ca, cert and key; `node certs issue` makes the files",
        );
        return None;
    };
    let ca = check.required(
        "tls.ca",
        shape.ca.as_ref(),
        "write ca = \"ca.pem\", the cluster's authority",
    );
    let cert = check.required(
        "tls.cert",
        shape.cert.as_ref(),
        "write cert = \"NAME.pem\", this node's certificate",
    );
    let key = check.required(
        "tls.key",
        shape.key.as_ref(),
        "write key = \"NAME.key\", the key of tls.cert",
    );
    // Each on its own first, so that all that are missing are named.
    let ca = ca.and_then(|text| check.read("tls.ca", text, PEM_BYTES_MAX));
    let cert = cert.and_then(|text| check.read("tls.cert", text, PEM_BYTES_MAX));
    let key = key.and_then(|text| check.read("tls.key", text, PEM_BYTES_MAX));
    if let Some((path, _)) = &key {
        private(check, "tls.key", path);
    }
    let (ca, cert, key) = (ca?.0, cert?.0, key?.0);
    let credentials = match Credentials::load(&ca, &cert, &key) {
        Ok(credentials) => credentials,
        Err(error) => {
            let failure = Failure::of(&error, &ca, &key);
            check.error(failure.key, failure.what, failure.remedy);
            return None;
        }
    };
    let identity = credentials.identity();
    if let Some(role) = role {
        let fits = match identity.kind {
            Kind::Proxy => role == Role::Proxy,
            Kind::Agent => role == Role::Agent,
            Kind::User => false,
        };
        if !fits {
            check.error(
                "tls.cert",
                format!(
                    "{} is the certificate of {} \"{}\", and this node's role is {role}",
                    cert.display(),
                    identity.kind,
                    identity.name
                ),
                format!("issue one with `node certs issue {role} NAME`, or correct the role"),
            );
            return None;
        }
    }
    expiry(
        check,
        "tls.cert",
        credentials.not_after(),
        "issue a new one in time (`node certs issue`)",
    );
    expiry(
        check,
        "tls.ca",
        credentials.authority_not_after(),
        "make a new authority in time (`node certs init`), and all certificates anew",
    );
    Some(credentials)
}

/// Warns when a certificate expires soon.
pub(super) fn expiry(check: &mut Checker<'_>, key: &str, not_after: i64, remedy: &str) {
    let days = not_after.saturating_sub(check.now) / DAY_SECS;
    if days < EXPIRY_WARNING_DAYS {
        let until = format_utc(not_after);
        check.warn(
            key,
            &format!("expires in {days} days, at {until}: {remedy}"),
        );
    }
}

/// Warns when everybody on this host may read a secret.
pub(super) fn private(check: &mut Checker<'_>, key: &str, path: &Path) {
    const READABLE_BY_OTHERS: u32 = 0o004;
    let open = std::fs::metadata(path)
        .is_ok_and(|metadata| metadata.permissions().mode() & READABLE_BY_OTHERS != 0);
    if open {
        let path = path.display();
        check.warn(
            key,
            &format!("{path} can be read by every user of this host: run `chmod 600 {path}`"),
        );
    }
}

/// Why the credentials do not do, as an error of the configuration.
struct Failure {
    key: &'static str,
    what: String,
    remedy: String,
}

impl Failure {
    fn of(error: &CredentialsError, ca: &Path, key: &Path) -> Self {
        const ISSUE: &str = "issue one with `node certs issue`";
        let key_of = |path: &Path| match path {
            path if path == ca => "tls.ca",
            path if path == key => "tls.key",
            _ => "tls.cert",
        };
        let at = |path: &Path, what: String, remedy: &str| Self {
            key: key_of(path),
            what: format!("{} {what}", path.display()),
            remedy: remedy.to_owned(),
        };
        match error {
            CredentialsError::File(error) => match error {
                FileError::Missing { path } => at(path, "does not exist".into(), "check the path"),
                FileError::Exists { path } => at(path, "already exists".into(), "check the path"),
                FileError::TooLarge { path } => at(
                    path,
                    format!("is over the limit of {PEM_BYTES_MAX} bytes"),
                    "check the path",
                ),
                FileError::Io {
                    path,
                    doing,
                    source,
                } => at(
                    path,
                    format!("cannot be {doing}: {source}"),
                    "check the path and its permissions",
                ),
            },
            CredentialsError::NotPem {
                path,
                expected,
                why,
            } => {
                // What it holds instead may come with the question whether files are swapped.
                let (why, remedy) = why
                    .rsplit_once(": ")
                    .filter(|(_, question)| question.ends_with('?'))
                    .unwrap_or((why, "check which files [tls] names"));
                at(path, format!("holds no {expected}{why}"), remedy)
            }
            CredentialsError::Identity { path, source } => {
                at(path, format!("does not say whose it is: {source}"), ISSUE)
            }
            CredentialsError::BadCertificate { path, why } => {
                at(path, format!("cannot be used: {why}"), ISSUE)
            }
            CredentialsError::BadKey { path, why } => at(
                path,
                format!("cannot be used: {why}"),
                "issue key and certificate anew with `node certs issue`",
            ),
            CredentialsError::BadAuthority { path, why } => at(
                path,
                format!("is not a cluster's authority: {why}"),
                "copy ca.pem from where `node certs init` wrote it",
            ),
            CredentialsError::KeyMismatch { key, cert } => at(
                key,
                format!("does not fit the certificate in {}", cert.display()),
                "name the two files that one `node certs issue` wrote",
            ),
            CredentialsError::OtherCluster {
                ca,
                ca_cluster,
                cert,
                identity,
            } => at(
                cert,
                format!(
                    "is of cluster {}, and {} is the authority of {ca_cluster}",
                    identity.cluster,
                    ca.display()
                ),
                "take both from one cluster",
            ),
            CredentialsError::WrongAuthority { cert, ca, cluster } => at(
                cert,
                format!(
                    "was not issued by the authority in {}, though it names {cluster} too",
                    ca.display()
                ),
                "copy the right ca.pem, or issue the certificate again if the authority was made anew",
            ),
            CredentialsError::Expired {
                path,
                not_after: _,
                until,
            } => at(
                path,
                format!("expired at {until}"),
                "issue a new one with `node certs`, or check this host's clock",
            ),
            CredentialsError::NotYetValid { path, from, now } => at(
                path,
                format!("is valid from {from}, and this host's clock says {now}"),
                "check the clock",
            ),
            CredentialsError::NoClock => Self {
                key: "tls.cert",
                what: "cannot be judged: this host's clock is before 1970".into(),
                remedy: "set the clock".into(),
            },
        }
    }
}
